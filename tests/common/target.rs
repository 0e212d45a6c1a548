//! What a machine moves to: a root of its own, which is entered by its mount namespace and over ssh.
//!
//! It is a Debian with what NixOS brings for the migration. `nixos-rebuild` in it is a stand-in, since there is no nixpkgs
//! here: it evaluates the flake for real, and makes the users that the real one would make.

use super::debian::debian;
use super::ssh::Sshd;
use super::{Done, program, run};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// The ids that two services have here: each has the other's of the machine.
const USERS: &str = "postgres:x:302:302::/var/empty:/bin/sh\nweb:x:71:71::/var/empty:/bin/sh\n\
     codchi:x:1000:100::/home/codchi:/bin/bash\n";
const CODCHI: &str = "codchi:x:1000:100::/home/codchi:/bin/bash";
const GROUPS: &str = "postgres:x:302:\nweb:x:71:\n";

const REBUILD: &str = r#"#!/bin/bash
# A stand-in: there is no nixpkgs here. The flake is evaluated for real, and a system is a directory.
set -euo pipefail
[[ ${*:2} == "--flake /etc/nixos#nixos" ]] || { echo "nixos-rebuild: $*" >&2; exit 2; }
system=/nix/system-$(sha256sum /etc/nixos/flake.nix /etc/nixos/configuration.nix | sha256sum | cut -c -32)
case $1 in
    build) ;;
    boot) mkdir -p /nix/var/nix/profiles; ln -sfnT "$system" /nix/var/nix/profiles/system; exit ;;
    *) echo "nixos-rebuild: $*" >&2; exit 2 ;;
esac
nix eval --offline --no-write-lock-file --json --override-input codchi_driver path:/root/stubs/driver-new \
    --override-input codchi_driver/nixpkgs path:/root/stubs/nixpkgs /etc/nixos#nixosConfigurations.nixos.config \
    --apply 'c: { marks = c.marks or [ ]; driver = c.nix.driver; host = c.networking.hostName; }' >/root/evaluated
mkdir -p "$system"
cp /root/activate "$system/"
ln -sfnT "$system" result
"#;

const ACTIVATE: &str = r#"#!/bin/bash
# What the activation of a system does that Codchi's module makes.
set -euo pipefail
merge() {
    local line name
    while IFS= read -r line; do
        name=${line%%:*}
        grep -q "^$name:" "$1" || echo "$line" >>"$1"
    done <"$2"
}
merge /etc/passwd /root/users
merge /etc/group /root/groups
merge /etc/shadow <(echo 'codchi:!:1::::::')
sed -i "s|^codchi:[^:]*:|codchi:$(cat /var/lib/codchi-arrive/password):|" /etc/shadow
echo '. /etc/codchi-env' >/etc/profile.d/codchi.sh
"#;

const NIX: &str = "experimental-features = nix-command flakes\nsubstituters =\nflake-registry =\n\
     build-users-group =\nsandbox = false\n";

/// Programs that are there before those of the system.
pub(crate) const STAND_IN: &str = "/run/stand-in";

/// A root with an sshd in it. Whoever owns the directory it is in unmounts what is in it.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) root: PathBuf,
    pub(crate) sshd: Sshd,
}

impl Target {
    /// In the new directory `root`.
    pub(crate) fn new(root: &Path) -> Self {
        fs::create_dir(root).unwrap();
        let copy = "tar -C \"$1\" --exclude=./usr/* --exclude=./proc/* --exclude=./dev/* -cf - . | tar -xpf - -C \"$2\"";
        run(program("bash", ["-euo", "pipefail", "-c", copy, "-"]).arg(debian()).arg(root)).ok();
        // The host's programs; never so that they could be written to.
        run(program("mount", ["-o", "bind,ro", "/usr"]).arg(root.join("usr"))).ok();
        run(program("mount", ["-t", "proc", "proc"]).arg(root.join("proc"))).ok();
        for (name, minor) in [("null", "3"), ("zero", "5"), ("random", "8"), ("urandom", "9")] {
            let node = root.join("dev").join(name);
            run(program("mknod", ["-m", "666"]).arg(node).args(["c", "1", minor])).ok();
        }
        std::os::unix::fs::symlink("/proc/self/fd", root.join("dev/fd")).unwrap();
        let stubs = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nix-stubs");
        run(program("cp", ["-r"]).arg(stubs).arg(root.join("root/stubs"))).silent();
        let write = |path: &str, text: &str, mode: u32| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        write("root/users", USERS, 0o644);
        write("root/groups", GROUPS, 0o644);
        write("root/activate", ACTIVATE, 0o755);
        write("etc/nix/nix.conf", NIX, 0o644);
        write("etc/NIXOS", "", 0o644);
        fs::remove_file(root.join("etc/os-release")).unwrap();
        write("etc/os-release", "ID=nixos\nVERSION_ID=\"24.05\"\n", 0o644);
        // Who installed it made the user that the guide asks for, and came with a key.
        write("root/.ssh/authorized_keys", "ssh-ed25519 AAAA admin\n", 0o600);
        let user =
            format!("echo '{CODCHI}' >>etc/passwd && echo 'codchi:$6$own:1::::::' >>etc/shadow");
        run(program("sh", ["-ec", &user]).current_dir(root)).silent();
        write(&format!("{STAND_IN}/nixos-rebuild")[1..], REBUILD, 0o755);
        // There is nothing that runs.
        write(&format!("{STAND_IN}/reboot")[1..], "#!/bin/sh\n", 0o755);
        let configuration = "{ ... }: {\n  networking.hostName = \"moved\";\n  system.stateVersion = \"22.05\";\n}\n";
        write("etc/nixos/configuration.nix", configuration, 0o644);
        write("etc/nixos/hardware-configuration.nix", "{ ... }: { }\n", 0o644);
        let passwd = root.join("etc/passwd");
        let users = fs::read_to_string(&passwd).unwrap();
        if !users.contains("sshd:") {
            fs::write(&passwd, users + "sshd:x:105:65534::/run/sshd:/usr/sbin/nologin\n").unwrap();
        }
        run(program("chroot", [root]).arg("ldconfig")).ok();
        let sshd = Sshd::within(root);
        let target = Self { root: root.into(), sshd };
        target.paste("cd /etc/nixos && git init -q && git add .").ok();
        target
    }

    /// Commands as root there, in a shell of their own, with nobody at the keyboard.
    ///
    /// In a mount namespace of its own: nix goes back to the root of the namespace before it calls git, out of a chroot.
    pub(crate) fn paste(&self, commands: &str) -> Done {
        const ENTER: &str = "exec unshare --mount sh -euc '
            mount --rbind \"$1\" \"$1\" && cd \"$1\" && pivot_root . mnt && umount -l /mnt
            exec /usr/bin/env -i HOME=/root USER=root LC_ALL=C.UTF-8 \"$2\" bash -c \"$3\"' sh \"$@\"";
        let path = format!("PATH={STAND_IN}:/usr/sbin:/usr/bin");
        run(program("sh", ["-c", ENTER, "sh"]).arg(&self.root).arg(path).arg(commands))
    }

    /// A path as it is seen from outside.
    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }
}
