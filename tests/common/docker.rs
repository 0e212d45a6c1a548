//! What Docker and Podman leave on a machine's disk.

use super::{program, run};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown, lchown, symlink};
use std::path::Path;

/// `setcap cap_net_raw+ep`, as a file of an image has it: `struct vfs_cap_data` of revision 2.
pub(crate) const NET_RAW: [u8; 20] =
    [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Whose extended attributes overlayfs uses: those of a rootless one are the user's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overlay {
    Trusted,
    User,
}

fn xattr(at: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(at, name, value, XattrFlags::empty())
        .unwrap_or_else(|e| panic!("{name} of {}: {e}", at.display()));
}

/// Makes the store of an overlay driver in `store`: two layers, of which the upper one removes, replaces and moves what
/// is in the lower one. Owners go through `ids`.
pub(crate) fn plant_overlay(store: &Path, overlay: Overlay, ids: fn(u32) -> u32) {
    let prefix = if overlay == Overlay::Trusted { "trusted.overlay" } else { "user.overlay" };
    let own = |at: &Path, uid: u32, gid: u32, mode: u32| {
        lchown(at, Some(ids(uid)), Some(ids(gid))).unwrap();
        if !at.is_symlink() {
            fs::set_permissions(at, Permissions::from_mode(mode)).unwrap();
        }
    };
    let directory = |at: &Path, uid, mode| {
        let missing = at.ancestors().take_while(|a| a.starts_with(store) && !a.exists());
        for parent in missing.collect::<Vec<_>>().into_iter().rev() {
            fs::create_dir(parent).unwrap();
            own(parent, 0, 0, 0o755);
        }
        own(at, uid, uid, mode);
    };
    let file = |at: &Path, text: &str, uid, mode| {
        fs::write(at, text).unwrap();
        own(at, uid, uid, mode);
    };
    let node = |at: &Path, kind, device| {
        rustix::fs::mknodat(CWD, at, kind, Mode::empty(), device).unwrap();
        own(at, 0, 0, 0);
    };
    directory(store, 0, 0o710);
    directory(&store.join("l"), 0, 0o700);
    let (lower, upper) = ("5f0c7e9b-init", "5f0c7e9b");
    for (layer, short) in
        [(lower, "XQ7OZKCQBK4UJ3X5DYM2VT6LWE"), (upper, "R3AHNXZ5SCQ7B4LBVDW6PTKJ2I")]
    {
        directory(&store.join(layer), 0, 0o710);
        for (name, uid, mode) in [("diff", 0, 0o755), ("work", 0, 0o700), ("work/work", 0, 0)] {
            directory(&store.join(layer).join(name), uid, mode);
        }
        file(&store.join(layer).join("link"), short, 0, 0o644);
        file(&store.join(layer).join("committed"), "", 0, 0o600);
        let link = store.join("l").join(short);
        symlink(format!("../{layer}/diff"), &link).unwrap();
        own(&link, 0, 0, 0);
    }
    file(&store.join(upper).join("lower"), "l/XQ7OZKCQBK4UJ3X5DYM2VT6LWE", 0, 0o644);

    let (low, up) = (store.join(lower).join("diff"), store.join(upper).join("diff"));
    for layer in [&low, &up] {
        directory(&layer.join("etc"), 0, 0o755);
        directory(&layer.join("usr/bin"), 0, 0o755);
        directory(&layer.join("var/lib/postgresql/data"), 999, 0o700);
    }
    file(&low.join("etc/hostname"), "lower\n", 0, 0o644);
    file(&low.join("etc/removed"), "gone\n", 0, 0o644);
    // A whiteout, an opaque directory, a directory that was moved, and where a copy came from.
    node(&up.join("etc/removed"), FileType::CharacterDevice, makedev(0, 0));
    directory(&up.join("opaque"), 0, 0o755);
    xattr(&up.join("opaque"), &format!("{prefix}.opaque"), b"y");
    directory(&up.join("moved"), 0, 0o755);
    xattr(&up.join("moved"), &format!("{prefix}.redirect"), b"/etc/was-here");
    file(&up.join("etc/hostname"), "upper\n", 0, 0o644);
    xattr(&up.join("etc/hostname"), &format!("{prefix}.origin"), b"\0\xfb!\0\x01=\n%\xff\0");
    xattr(&up.join("var"), &format!("{prefix}.impure"), b"y");
    file(&up.join("etc/metacopy"), "", 0, 0o644);
    xattr(&up.join("etc/metacopy"), &format!("{prefix}.metacopy"), b"");
    // fuse-overlayfs keeps what a user cannot set.
    file(&up.join("etc/shadow"), "root:*\n", 0, 0o640);
    xattr(&up.join("etc/shadow"), "user.containers.override_stat", b"0:42:0100640");
    file(&up.join("usr/bin/ping"), "ping\n", 0, 0o755);
    xattr(&up.join("usr/bin/ping"), "security.capability", &NET_RAW);
    file(&up.join("usr/bin/su"), "su\n", 0, 0o4755);
    fs::hard_link(up.join("usr/bin/su"), up.join("usr/bin/doas")).unwrap();
    node(&up.join("etc/null"), FileType::CharacterDevice, makedev(1, 3));
    node(&up.join("etc/disk"), FileType::BlockDevice, makedev(7, 200));
    node(&up.join("etc/fifo"), FileType::Fifo, 0);
    file(&up.join("var/lib/postgresql/data/PG_VERSION"), "16\n", 999, 0o600);
    let socket = up.join("var/lib/postgresql/.s.PGSQL.5432");
    node(&socket, FileType::Socket, 0);
    own(&socket, 999, 999, 0o777);
}

/// The store of the btrfs driver: a subvolume for each layer, the second made of the first.
pub(crate) fn plant_subvolumes(store: &Path, ids: fn(u32) -> u32) {
    fs::create_dir_all(store).unwrap();
    let (first, second) = (store.join("a3d5"), store.join("b7f1"));
    run(program("btrfs", ["-q", "subvolume", "create"]).arg(&first)).ok();
    fs::write(first.join("both"), "of the first\n").unwrap();
    xattr(&first.join("both"), "user.layer", b"first");
    chown(first.join("both"), Some(ids(71)), Some(ids(100))).unwrap();
    run(program("btrfs", ["-q", "subvolume", "snapshot"]).arg(&first).arg(&second)).ok();
    fs::write(second.join("own"), "of the second\n").unwrap();
    let inner = second.join("inner");
    run(program("btrfs", ["-q", "subvolume", "create"]).arg(&inner)).ok();
    fs::write(inner.join("deep"), "in a subvolume of a subvolume\n").unwrap();
}

/// All of a tree that an export has to keep, sockets aside, as programs of others tell it.
pub(crate) fn told(top: &Path) -> String {
    const SCRIPT: &str = r#"
        cd "$1"
        find . -mindepth 1 ! -type s -printf '%P %y %m %U %G %l\n' | sort
        find . ! -type d ! -type s -printf '%P has %n names\n' | sort
        find . -mindepth 1 ! -type s -printf '%P is of %T@\n' | sed 's/[.][0-9]*$//' | sort
        find . -type f -print0 | sort -z | xargs -0 cksum
        find . -type c -print0 -o -type b -print0 | sort -z | xargs -0 -r stat -c '%n %t:%T'
        find . -mindepth 1 ! -type s -print0 | sort -z | xargs -0 getfattr -h -d -m - -e hex
        find . -mindepth 1 ! -type s ! -type l -print0 | sort -z | xargs -0 getfacl -n -p
    "#;
    let done = run(program("sh", ["-ec", SCRIPT, "sh"]).arg(top)).ok();
    assert_eq!(done.err(), "", "{}", top.display());
    done.out()
}

/// What [`told`] says, without times.
pub(crate) fn timeless(told: &str) -> String {
    told.lines().filter(|line| !line.contains(" is of ")).map(|line| format!("{line}\n")).collect()
}
