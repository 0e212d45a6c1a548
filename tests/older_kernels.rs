//! What holds where a kernel, or a filter around us, does not have all calls: the table in SECURITY.md, on any kernel.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::Fixture;
use common::mounted::Mounted;
use common::processes::{call, descriptors, make};
use common::sandboxed::{sandboxed, without};
use common::snapshot::Snapshot;
use common::{program, run};
use std::fs;
use std::os::unix::fs::symlink;

const LANDLOCK: libc::c_long = 444;
const MOUNT_SETATTR: libc::c_long = 442;

/// The calls that a kernel has not, or a filter does not know, and what that is.
const LACKING: &[(&str, &[libc::c_long])] = &[
    ("openat2", &[libc::SYS_openat2]),
    ("Landlock", &[LANDLOCK]),
    ("quiet mounts", &[MOUNT_SETATTR]),
    ("quiet mounts and Landlock", &[MOUNT_SETATTR, LANDLOCK]),
    (
        "all that came after 5.6",
        &[MOUNT_SETATTR, LANDLOCK, libc::SYS_openat2, 464, 465, libc::SYS_faccessat2],
    ),
];

fn mounted(fixture: &Fixture, calls: &[libc::c_long]) -> Mounted {
    sandboxed(calls, libc::ENOSYS, || Mounted::new(fixture))
}

#[test]
fn an_older_kernel_shows_and_exports_the_same() {
    let fixture = Fixture::new();
    let place = fixture.hostile("m");
    fs::write(fixture.outside().join("secret"), "secret").unwrap();
    symlink(fixture.outside(), place.rootfs.join("srv/out")).unwrap();
    let exported = |calls: &[libc::c_long]| {
        let tar = fixture.path().join("m.tar");
        let mut command = fixture.command(["export", "-o", tar.to_str().unwrap(), "m"]);
        without(calls, libc::ENOSYS, &mut command).ok();
        fs::read(&tar).unwrap()
    };
    let shown = |calls: &[libc::c_long]| {
        let mounted = mounted(&fixture, calls);
        let tar = fs::read(mounted.tar("m")).unwrap();
        let tree = Snapshot::full(&mounted.rootfs("m"));
        mounted.unmount();
        (tar, tree)
    };
    // getpmsg, which no kernel has.
    let nothing = [181];
    let (export, (tar, tree)) = (exported(&nothing), shown(&nothing));
    // As old profiles of containers answer.
    let refused = sandboxed(&[libc::SYS_openat2], libc::EPERM, || shown(&nothing));
    assert!(refused.0 == tar, "export.tar where openat2 is refused");
    for (what, calls) in LACKING {
        assert!(exported(calls) == export, "an export without {what}");
        let got = shown(calls);
        assert!(got.0 == tar, "export.tar without {what}");
        tree.assert_same(&got.1, what);
    }
}

/// The user of a machine owns files in it, and writes them outside of the mount.
#[test]
fn a_taken_over_server_writes_nothing_on_an_older_kernel() {
    for (what, calls) in LACKING {
        let fixture = Fixture::new();
        let place = fixture.sample("m");
        let file = place.rootfs.join("srv/mine");
        fs::write(&file, "mine").unwrap();
        run(program("mkfifo", ["-m", "666"]).arg(place.rootfs.join("srv/fifo"))).silent();
        let mounted = mounted(&fixture, calls);
        fs::read(mounted.tar("m")).unwrap();
        let server = mounted.server();
        let mut attempts = Vec::new();
        for (directory, path) in descriptors(server) {
            let opened = fs::metadata(format!("/proc/{server}/fd/{directory}"));
            if !opened.is_ok_and(|opened| opened.is_dir()) {
                continue;
            }
            for (how, flags) in [
                ("$write", 1),
                ("$both", 2),
                ("$truncate", libc::O_TRUNC),
                ("$append", libc::O_APPEND),
            ] {
                for target in ["srv/mine", "srv/fifo", "srv", "new"] {
                    // Of a FIFO nothing is cut, and that is an open for reading.
                    if (how, target) == ("$truncate", "srv/fifo") {
                        continue;
                    }
                    let name = format!("{target} by {how} below {}", path.display());
                    let target = format!("{directory}, \"{target}\"");
                    let openat2 = format!("{target}, {how}, 24");
                    attempts.push(call(&name, libc::SYS_openat2, openat2));
                    // Not to wait for who reads a FIFO.
                    let flags = flags | libc::O_NONBLOCK;
                    attempts.push(call(&name, libc::SYS_openat, format!("{target}, {flags}")));
                }
            }
        }
        assert!(attempts.len() > 50);
        let got = make(server, &attempts);
        // A call that fails because of the path shows nothing: one directory at least has the file.
        let reads: Vec<_> = descriptors(server)
            .into_keys()
            .map(|from| call("read", libc::SYS_openat, format!("{from}, \"srv/mine\", 0")))
            .collect();
        assert!(make(server, &reads).iter().any(Result::is_ok), "without {what}: {attempts:?}");
        for (call, got) in attempts.iter().zip(got) {
            assert!(got.is_err(), "without {what}: {} by {}", call.name, call.number);
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "mine", "without {what}");
    }
}
