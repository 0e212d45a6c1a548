//! The package for Debian: made of what cargo has built, installed into a Debian of its own, used there, removed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::debian::debian_with_fuse;
use common::fixture::Fixture;
use common::{Done, program, run};
use std::fs;
use std::path::{Path, PathBuf};

/// Makes the package of the program under test.
fn package(to: &Path, compression: &str) -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_codchifs")).parent().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/deb");
    let mut command = program(script.to_str().unwrap(), [built, to]);
    command.env("COMPRESSION", compression).env_remove("DEBEMAIL").env_remove("DEBFULLNAME");
    let path = PathBuf::from(run(command.env("SOURCE_DATE_EPOCH", "1500000000")).ok().out().trim());
    let name = format!("codchifs_{}-1_", env!("CARGO_PKG_VERSION"));
    assert!(path.file_name().unwrap().to_str().unwrap().starts_with(&name), "{path:?}");
    path
}

/// Everything in the Debian but what dpkg keeps for itself.
const LIST: &str = r"find / -xdev \( -path /var/lib/dpkg -o -path /var/log -o -path /srv -o -path /proc \) -prune \
    -o ! -path /tmp -printf '%p %M %U %l\n' | sort";

/// A Debian in namespaces of its own, in which `script` runs; `/srv` is kept.
fn inside(fixture: &Fixture, srv: &Path, script: &str) -> Done {
    let at = fixture.path().join("overlay");
    fs::create_dir(&at).unwrap();
    let outer = r#"
        mount -t tmpfs none "$AT"
        mkdir "$AT/upper" "$AT/work" "$AT/root"
        mount -t overlay none "$AT/root" -o "lowerdir=$LOWER,upperdir=$AT/upper,workdir=$AT/work"
        [ -e "$AT/root/dev/fuse" ] || mknod -m 666 "$AT/root/dev/fuse" c 10 229
        mount -t proc proc "$AT/root/proc"
        mount --bind "$SRV" "$AT/root/srv"
        exec env -i PATH=/usr/bin:/usr/sbin:/bin:/sbin LC_ALL=C chroot "$AT/root" sh -exc "$SCRIPT"
    "#;
    let mut command =
        program("unshare", ["--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", outer]);
    command.env("AT", at).env("SRV", srv).env("LOWER", debian_with_fuse());
    run(command.env("SCRIPT", script))
}

#[test]
fn the_package_is_installed_used_and_removed_and_leaves_nothing() {
    let fixture = Fixture::new();
    let place = fixture.sample("dev");
    let srv = fixture.scratch("srv");
    let package = package(&srv, "none");
    for (from, to) in [
        (place.rootfs.parent().unwrap(), "rootfs/codchi-dev"),
        (&place.home, "alice/.local/share/codchi/machine/dev"),
        (&place.config, "alice/.config/codchi/machine/dev"),
    ] {
        let to = srv.join(to);
        fs::create_dir_all(&to).unwrap();
        run(program("cp", ["-a"]).arg(from.join(".")).arg(to)).silent();
    }
    let export = fixture.path().join("export.tar");
    run(fixture.command(["export", "dev", "-o"]).arg(&export)).ok();

    let name = package.file_name().unwrap().to_str().unwrap();
    let options = "driver=dir,rootfs-dir=/srv/rootfs,allow_root";
    let script = format!(
        r#"
        useradd --home-dir /srv/alice --no-create-home alice
        chown -R alice /srv/alice
        mkdir -p /etc/systemd/system/other.target.wants
        {LIST} >/srv/before
        dpkg --install /srv/{name}
        dpkg --verify codchifs
        test -d /mnt/codchi
        mkdir /mnt/a
        codchifs --version
        mount -t codchifs alice /mnt/a -o {options}
        ls /mnt/a/dev
        cp /mnt/a/dev/export.tar /srv/first
        umount /mnt/a
        echo "alice /mnt/codchi codchifs noauto,{options} 0 0" >>/etc/fstab
        mount /mnt/codchi
        findmnt -n -o SOURCE,FSTYPE /mnt/codchi
        cp /mnt/codchi/dev/export.tar /srv/second
        umount /mnt/codchi
        rmdir /mnt/a
        # As systemctl enables and masks.
        mkdir -p /etc/systemd/system/multi-user.target.wants
        ln -s /usr/lib/systemd/system/codchifs@.service /etc/systemd/system/multi-user.target.wants/codchifs@alice.service
        ln -s /dev/null /etc/systemd/system/codchifs@bob.service
        dpkg --remove codchifs
        ! test -e /mnt/codchi
        dpkg --purge codchifs
        sed -i /codchifs/d /etc/fstab
        {LIST} >/srv/after
        "#
    );
    let done = inside(&fixture, &srv, &script).ok();
    let out = done.out();
    for line in [
        concat!("codchifs ", env!("CARGO_PKG_VERSION")),
        "export.tar",
        "rootfs",
        "alice  fuse.codchifs",
    ] {
        assert!(out.lines().any(|found| found.starts_with(line)), "{line}:\n{out}");
    }
    for copy in ["first", "second"] {
        run(program("cmp", [&export, &srv.join(copy)])).silent();
    }
    let list = |name: &str| fs::read_to_string(srv.join(name)).unwrap();
    assert!(list("before").lines().count() > 2000);
    run(program("diff", ["-U0", "before", "after"]).current_dir(&srv)).silent();
}

#[test]
fn the_same_input_makes_the_same_package_and_lintian_takes_it() {
    let temp = tempfile::tempdir().unwrap();
    let first = package(&temp.path().join("a"), "gzip");
    let second = package(&temp.path().join("b"), "gzip");
    run(program("cmp", [&first, &second])).silent();
    let mut lintian = program("lintian", ["--fail-on", "error,warning", "--allow-root"]);
    run(lintian.arg(&first)).silent();
    has_what_is_promised(&first);
}

fn has_what_is_promised(package: &Path) {
    let depends = run(program("dpkg-deb", ["--field"]).arg(package).arg("Depends")).ok().out();
    for wanted in ["libc6 (>= ", "fuse3"] {
        assert!(depends.contains(wanted), "{depends}");
    }
    let out = run(program("dpkg-deb", ["--contents"]).arg(package)).ok().out();
    let files: Vec<_> = out
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .map(|words| (words[0].to_owned(), words[1].to_owned(), words[5..].join(" ")))
        .collect();
    for (mode, name) in [
        ("-rwxr-xr-x", "./usr/bin/codchifs"),
        ("-rwxr-xr-x", "./usr/sbin/mount.codchifs"),
        ("lrwxrwxrwx", "./usr/sbin/mount.fuse.codchifs -> mount.codchifs"),
        ("-rw-r--r--", "./usr/lib/systemd/system/codchifs@.service"),
        ("-rw-r--r--", "./usr/share/man/man1/codchifs.1.gz"),
        ("-rw-r--r--", "./usr/share/man/man8/mount.codchifs.8.gz"),
        ("-rw-r--r--", "./usr/share/bash-completion/completions/codchifs"),
        ("-rw-r--r--", "./usr/lib/tmpfiles.d/codchifs.conf"),
        ("-rwxr-xr-x", "./usr/share/codchifs/updatedb-prune"),
        ("-rw-r--r--", "./usr/share/doc/codchifs/copyright"),
        ("-rw-r--r--", "./usr/share/doc/codchifs/changelog.Debian.gz"),
        ("-rw-r--r--", "./usr/share/doc/codchifs/examples/fstab"),
        ("-rw-r--r--", "./usr/share/doc/codchifs/docs/SEMANTICS.md"),
        ("-rw-r--r--", "./usr/share/doc/codchifs/docs/pictures/terminal.svg"),
    ] {
        let found = (mode.to_owned(), "root/root".to_owned(), name.to_owned());
        assert!(files.contains(&found), "{name}:\n{out}");
    }
    assert!(files.iter().all(|(_, owner, _)| owner == "root/root"), "{out}");
}
