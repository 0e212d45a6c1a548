//! Who gets into a mount that root made for a user.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::lxd::{Host, UID, entries};
use common::played::{directory, played};
use common::{program, run};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

/// The error of each operation, 0 where there is none.
const OPERATIONS: &str = r#"
my ($directory, $file, $link) = @ARGV;
my ($room, $key) = ("\0" x 4096, "user.key");
sub tried { my ($name, $worked) = @_; print "$name ", ($worked ? 0 : $! + 0), "\n" }
tried("stat of a directory", stat $directory);
tried("stat of a file", lstat $file);
tried("opendir", opendir(my $d, $directory));
tried("open", open(my $f, "<", $file));
tried("readlink", defined readlink $link);
tried("access", syscall(ACCESS, $file, 4) == 0);
tried("getxattr", syscall(GETXATTR, $file, $key, $room, 4096) >= 0);
tried("listxattr", syscall(LISTXATTR, $file, $room, 4096) >= 0);
tried("open for writing", open(my $w, "+<", $file));
tried("chdir", chdir $directory);
"#;

/// Another user, in no group of the machine's.
const OTHER: u32 = 65533;

fn operations(uid: u32, tree: &Path) -> BTreeMap<String, i32> {
    let script = OPERATIONS
        .replace("LISTXATTR", &libc::SYS_listxattr.to_string())
        .replace("GETXATTR", &libc::SYS_getxattr.to_string())
        .replace("ACCESS", &libc::SYS_access.to_string());
    let mut command = as_user(uid, uid, &[]);
    command.args(["perl", "-e", &script]);
    let done = run(command.args([tree.join("srv"), tree.join("srv/root"), tree.join("srv/link")]));
    let tried = done.out();
    let tried = tried.lines().map(|line| line.rsplit_once(' ').unwrap());
    let tried: BTreeMap<_, _> =
        tried.map(|(name, errno)| (name.to_owned(), errno.parse().unwrap())).collect();
    assert_eq!(tried.len(), 10, "{}", done.err());
    tried
}

fn as_user(uid: u32, gid: u32, groups: &[u32]) -> std::process::Command {
    let mut command = program("setpriv", [format!("--reuid={uid}"), format!("--regid={gid}")]);
    let groups: Vec<_> = groups.iter().map(u32::to_string).collect();
    command.arg(match groups.is_empty() {
        true => "--clear-groups".into(),
        false => format!("--groups={}", groups.join(",")),
    });
    command
}

/// Mounted in the background: nobody looks at it before the test does. Unmounted with the host.
fn mount(host: &Host, options: &[&str]) -> PathBuf {
    let point = host.path().join("mnt");
    let rootfs = directory(&host.lxd, "demo").join("rootfs/srv");
    symlink("root", rootfs.join("link")).unwrap();
    run(program("setfattr", ["-n", "user.key", "-v", "value"]).arg(rootfs.join("root"))).silent();
    let point_text = point.to_str().unwrap();
    host.run(&[&["mount"], options, &[point_text]].concat()).ok();
    point
}

#[track_caller]
fn all_fail(who: u32, tree: &Path) {
    for (operation, errno) in operations(who, tree) {
        assert_eq!(errno, libc::EACCES, "{operation} by {who}");
    }
}

#[track_caller]
fn all_work(who: u32, tree: &Path) {
    for (operation, errno) in operations(who, tree) {
        let expected = if operation == "open for writing" { libc::EROFS } else { 0 };
        assert_eq!(errno, expected, "{operation} by {who}");
    }
}

#[test]
fn without_an_option_nobody_but_the_user_gets_in() {
    let host = played();
    let tree = mount(&host, &[]).join("demo/rootfs");
    for _ in 0..2 {
        // The second time the kernel has everything in its caches.
        all_work(UID, &tree);
        for who in [0, OTHER] {
            all_fail(who, &tree);
        }
    }
}

#[test]
fn allow_root_admits_root_and_nobody_else() {
    let host = played();
    let point = mount(&host, &["-o", "allow_root"]);
    let tree = point.join("demo/rootfs");
    for _ in 0..2 {
        for who in [0, UID] {
            all_work(who, &tree);
        }
        all_fail(OTHER, &tree);
    }
    // A directory that the user hands over is no way in.
    let inside = |line: &str| {
        // The shell is root and opens for the others, who then only have the descriptor.
        let script = r#"exec 3<"$1"; cd "$1"; exec setpriv --reuid=$2 --regid=$2 --clear-groups perl -e "$3""#;
        let mut shell = program("sh", ["-c", script, "sh"]);
        shell.arg(tree.join("srv")).args([&OTHER.to_string(), line]);
        run(shell)
    };
    let openat =
        format!("my $name = 'root'; exit(syscall({}, 3, $name, 0) < 0 ? $! : 0)", libc::SYS_openat);
    for (what, line) in [
        ("openat", openat.as_str()),
        ("stat", "stat('root') or exit $!"),
        ("open", "open(my $f, '<', 'root') or exit $!"),
        ("opendir", "opendir(my $d, '.') or exit $!"),
        ("open anew", "opendir(my $d, '/proc/self/fd/3') or exit $!"),
    ] {
        let done = inside(line);
        assert_eq!(done.code, Some(libc::EACCES), "{what}: {}", done.err());
    }
}

#[test]
fn with_allow_other_what_is_private_on_the_host_stays_private() {
    let host = played();
    let config = host.config().join("machine/demo/config.json");
    let json = r#"{"modules": {"x": "https://u:PlantedToken@h/r#x"}, "secrets": {"KEY": "PlantedSecret"}}"#;
    fs::write(&config, json).unwrap();
    let point = mount(&host, &["-o", "allow_other"]);
    let tree = point.join("demo/rootfs");
    let cat = |uid: u32, groups: &[u32], path: &str| {
        run(as_user(uid, uid, groups).args(["cat", "--"]).arg(tree.join(path)))
    };
    let private = ["etc/codchi-env", "etc/nixos/flake.nix", "etc/codchi-members"];
    for path in private {
        // Nobody else, though the mode of the first lets everybody, and that of the second lets the group 100.
        for groups in [&[][..], &[100], &[UID]] {
            let done = cat(OTHER, groups, path).exits(1);
            assert!(done.err().contains("Permission denied"), "{path}: {}", done.err());
        }
        assert!(!cat(0, &[], path).ok().stdout.is_empty() || path.ends_with("members"), "{path}");
        // A descriptor that leads to it is no way around that.
        let script = r#"exec 3<"$1"; exec setpriv --reuid=$2 --regid=100 --clear-groups cat "/proc/self/fd/3/$3""#;
        let (dir, name) = path.rsplit_once('/').unwrap();
        let mut shell = program("bash", ["-c", script, "-"]);
        run(shell.arg(tree.join(dir)).arg(OTHER.to_string()).arg(name)).exits(1);
    }
    assert!(cat(UID, &[100], "etc/codchi-env").ok().out().contains("PlantedSecret"));
    assert!(cat(UID, &[100], "etc/nixos/flake.nix").ok().out().contains("PlantedToken"));
    cat(OTHER, &[], "etc/nixos/codchi-owners").ok();
    // What is shown is what the archive has.
    let tar = point.join("demo/export.tar");
    run(program("tar", ["-df"]).arg(&tar).arg("-C").arg(&tree)).ok();
    let mode = |path: &str| tree.join(path).metadata().unwrap().mode() & 0o7777;
    assert_eq!(private.map(mode), [0o644, 0o640, 0o600]);
}

/// Read, write, execute as bits, of who is who.
fn shown(meta: &fs::Metadata, uid: u32, gids: &[u32]) -> u32 {
    let shift = if meta.uid() == uid {
        6
    } else if gids.contains(&meta.gid()) {
        3
    } else {
        0
    };
    (meta.mode() >> shift) & 0o7
}

#[test]
fn with_allow_other_everybody_may_what_ls_shows() {
    let host = played();
    let point = mount(&host, &["-o", "allow_other"]);
    let tree = point.join("demo/rootfs");
    let script = format!(
        r#"for (@ARGV) {{ my $path = $_; print join(" ", map {{ syscall({}, $path, $_) == 0 ? 1 : 0 }} (4, 1)), " ", (-d $path ? opendir(my $d, $path) : open(my $f, "<", $path)) ? 1 : 0, "\n" }}"#,
        libc::SYS_access
    );
    let paths: Vec<_> = entries().map(|(path, ..)| tree.join(path)).collect();
    // The tar is the mounting user's.
    let paths: Vec<_> =
        paths.into_iter().chain([point.join("demo/export.tar"), point.join("demo")]).collect();
    let (mut granted, mut denied) = (0, 0);
    for (uid, gid, groups) in [
        (UID, UID, &[][..]),
        (71, 71, &[]),
        (71, 100, &[]),
        (OTHER, 71, &[]),
        (OTHER, OTHER, &[100]),
        (OTHER, OTHER, &[71, 100]),
        (OTHER, OTHER, &[]),
    ] {
        let mut command = as_user(uid, gid, groups);
        let done = run(command.args(["perl", "-e", &script]).args(&paths)).ok().out();
        let gids = [&[gid], groups].concat();
        for (path, line) in paths.iter().zip(done.lines()) {
            let meta = path.symlink_metadata().unwrap();
            // Who cannot come there may nothing.
            let way = path.ancestors().skip(1).take_while(|path| path.starts_with(&point));
            let way = way.map(|path| path.symlink_metadata().unwrap());
            let open = way.into_iter().all(|directory| shown(&directory, uid, &gids) & 1 != 0);
            let bits = if open { shown(&meta, uid, &gids) } else { 0 };
            let expected = format!("{} {} {}", bits >> 2, bits & 1, bits >> 2);
            assert_eq!(line, expected, "{} by {uid}, {gids:?}: {bits:o}", path.display());
            *(if bits >> 2 == 1 { &mut granted } else { &mut denied }) += 1;
        }
    }
    assert!(granted > 20 && denied > 20, "{granted} {denied}");
}
