{
  lib,
  coreutils,
  rustPlatform,
}:

rustPlatform.buildRustPackage {
  pname = "codchifs";
  inherit ((lib.importTOML ../../Cargo.toml).workspace.package) version;

  src = lib.cleanSource ../..;
  cargoLock.lockFile = ../../Cargo.lock;
  cargoBuildFlags = [ "--workspace" ];

  # They make mounts, owners and devices, as root.
  doCheck = false;

  postInstall = ''
    mv $out/bin/mount-codchifs $out/bin/mount.codchifs
    ln -s mount.codchifs $out/bin/mount.fuse.codchifs
    install -Dm644 packaging/systemd/codchifs@.service -t $out/lib/systemd/system
    sed -i -e "s|/usr/bin/codchifs|$out/bin/codchifs|" -e "s|/usr/bin/mkdir|${coreutils}/bin/mkdir|" \
      -e "s|/usr/bin/kill|${coreutils}/bin/kill|" \
      $out/lib/systemd/system/codchifs@.service
    install -Dm644 packaging/tmpfiles.conf $out/lib/tmpfiles.d/codchifs.conf
    made=$(mktemp -d)
    $out/bin/codchifs generate $made
    install -Dm644 -t $out/share/man/man1 $made/man/codchifs.1
    install -Dm644 -t $out/share/man/man8 $made/man/mount.codchifs.8
    ln -s mount.codchifs.8 $out/share/man/man8/mount.fuse.codchifs.8
    install -Dm644 $made/completions/codchifs.bash $out/share/bash-completion/completions/codchifs
    install -Dm644 -t $out/share/zsh/site-functions $made/completions/_codchifs
    install -Dm644 -t $out/share/fish/vendor_completions.d $made/completions/codchifs.fish
    rm -r $made
  '';

  meta = {
    description = "Code machines of Codchi as directories, each with a tar of it";
    license = with lib.licenses; [
      mit
      asl20
    ];
    platforms = lib.platforms.linux;
    mainProgram = "codchifs";
  };
}
