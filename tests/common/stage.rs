//! What mount(8) needs: a mount namespace of its own, with its own /etc/fstab and its own /sbin, where it finds the helper.

use super::fixture::{Fixture, Maker};
use super::lxd::{UID, user};
use super::processes::command_lines;
use super::{Done, program, run, wait_until, without_variables};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// `$AT/sbin` stands in for /sbin: it has links to all that was there. `c` runs a command and keeps what it did.
const STAGE: &str = r#"
[ -e "$AT/fuse" ] || mknod "$AT/fuse" c 10 229
chmod 666 "$AT/fuse"
mount --bind "$AT/fuse" /dev/fuse
mount --bind /sbin/ "$AT/sbin-before"
ln -s "$AT"/sbin-before/* "$AT/sbin/" 2>/dev/null || true # ours are there already
mount --bind "$AT/sbin" /sbin/
mount --bind "$AT/fstab" /etc/fstab
mkdir -p /run/mount
mount -t tmpfs none /run/mount
n=0
c() {
    n=$((n + 1))
    "$@" >"$AT/out/$n.out" 2>"$AT/out/$n.err" && set -- 0 || set -- "$?"
    echo "$1" >"$AT/out/$n.code"
}
clean() {
    while read -r _ _ _ _ at _; do
        case $at in "$M"*) umount -l "$at" || true ;; esac
    done </proc/self/mountinfo
}
trap clean EXIT
"#;

/// The helper, built from what is here now.
pub(crate) fn helper() -> &'static Path {
    static HELPER: OnceLock<PathBuf> = OnceLock::new();
    HELPER.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("helper");
        let args = ["build", "--quiet", "--package", "mount-codchifs", "--target-dir"];
        run(program(env!("CARGO"), args).arg(&target)).ok();
        target.join("debug/mount-codchifs")
    })
}

/// A user's state with the machine `m`, and what mount(8) needs.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) fixture: Fixture,
    pub(crate) user: String,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let fixture = Fixture::new();
        let place = fixture.empty("m");
        Maker::new(&place.rootfs).dir("srv").file("srv/hello", b"hello\n");
        Maker::new(&place.home).file("a,b c", b"x").file("program", b"#!/bin/sh\n");
        fs::set_permissions(place.home.join("program"), Permissions::from_mode(0o755)).unwrap();
        let at = fixture.path();
        for directory in ["sbin", "sbin-before", "out", "other"] {
            fs::create_dir(at.join(directory)).unwrap();
        }
        // Of the user, from top to bottom.
        for path in [fixture.config(), fixture.data(), fixture.rootfs_dir(), at.join("mnt")] {
            run(program("chown", ["-R", &UID.to_string()]).arg(path)).silent();
        }
        lchown(at, Some(UID), Some(UID)).unwrap();
        fs::set_permissions(at, Permissions::from_mode(0o755)).unwrap();
        let codchifs = env!("CARGO_BIN_EXE_codchifs");
        for name in ["mount.codchifs", "mount.fuse.codchifs"] {
            symlink(helper(), at.join("sbin").join(name)).unwrap();
        }
        symlink(codchifs, at.join("sbin/codchifs")).unwrap();
        Self { fixture, user: user() }
    }

    /// Options that say where everything is.
    pub(crate) fn options(&self) -> String {
        let (config, data, rootfs) =
            (self.fixture.config(), self.fixture.data(), self.fixture.rootfs_dir());
        format!(
            "config-dir={},data-dir={},driver=dir,rootfs-dir={}",
            config.display(),
            data.display(),
            rootfs.display()
        )
    }

    /// A line of fstab.
    pub(crate) fn line(&self, source: &str, point: &str, more: &str) -> String {
        let point = self.fixture.path().join(point);
        format!("{source} {} codchifs {},{more} 0 0\n", point.display(), self.options())
    }

    /// Runs a script with this fstab. In it: `$M` the mount point, `$O` the options, `$U` the user, `as` a command as
    /// the user. What every `c` did.
    #[track_caller]
    pub(crate) fn play(&self, fstab: &str, script: &str) -> Vec<Done> {
        let at = self.fixture.path();
        fs::write(at.join("fstab"), fstab).unwrap();
        let script = format!(
            "{STAGE}\nas() {{ setpriv --reuid {UID} --regid {UID} --clear-groups \"$@\"; }}\n{script}"
        );
        let mut command = program("unshare", ["--mount", "--propagation", "private"]);
        command.args(["bash", "-ec", &script]).current_dir(at);
        without_variables(&mut command);
        command.env("AT", at).env("M", self.fixture.mount_point());
        command.env("O", self.options()).env("U", &self.user);
        run(command).ok();
        wait_until("the end of every server", || {
            command_lines().iter().all(|(_, line)| !line.contains(at.to_str().unwrap()))
        });
        let mut all = Vec::new();
        while let Ok(code) = fs::read_to_string(at.join(format!("out/{}.code", all.len() + 1))) {
            let read = |kind: &str| {
                let path = at.join(format!("out/{}.{kind}", all.len() + 1));
                fs::read(&path).inspect(|_| fs::remove_file(&path).unwrap()).unwrap()
            };
            let (stdout, stderr) = (read("out"), read("err"));
            read("code");
            let line = format!("command {}", all.len() + 1);
            all.push(Done { line, code: code.trim().parse().ok(), stdout, stderr });
        }
        all
    }
}
