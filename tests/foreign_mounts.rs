//! Root's commands at mounts of others: what is unmounted and covered is what was looked at, and who serves a mount can neither
//! hold up nor end who looks at it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::Fixture;
use common::lxd::UID;
use common::mounted::mounts_on;
use common::plants::Hung;
use common::{program, run, wait_until};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::mount::{UnmountFlags, unmount};
use std::fs;
use std::os::unix::fs::{chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const OTHER: u32 = 1001;
const TYPE: &str = "fuse.codchifs";

/// The user's `d/mnt`, and another user's `other/mnt`, which is mounted.
struct Stage {
    fixture: Fixture,
    directory: PathBuf,
    point: PathBuf,
    link: PathBuf,
    other: PathBuf,
    _mounted: Hung,
}

fn stage() -> Stage {
    let fixture = Fixture::new();
    fixture.sample("m");
    let own = fixture.scratch("own");
    let (directory, other) = (own.join("d"), fixture.scratch("other"));
    fs::create_dir_all(directory.join("mnt")).unwrap();
    fs::create_dir(other.join("mnt")).unwrap();
    for path in [&own, &directory, &directory.join("mnt")] {
        chown(path, Some(UID), Some(UID)).unwrap();
    }
    for path in [&other, &other.join("mnt")] {
        chown(path, Some(OTHER), Some(OTHER)).unwrap();
    }
    let link = own.join("link");
    symlink(&other, &link).unwrap();
    lchown(&link, Some(UID), Some(UID)).unwrap();
    let mounted = Hung::new(&other.join("mnt"), OTHER, TYPE);
    let point = directory.join("mnt");
    Stage { fixture, directory, point, link, other, _mounted: mounted }
}

impl Stage {
    /// The other user's mount is there, and nothing over it.
    #[track_caller]
    fn others_mount_stays(&self, what: &str) {
        let there = mounts_on(&self.other.join("mnt"));
        assert_eq!(there.len(), 1, "{what}: {there:?}");
        assert_eq!(there[0].source, "hung", "{what}");
    }
}

fn exchange(one: &Path, two: &Path) {
    renameat_with(CWD, one, CWD, two, RenameFlags::EXCHANGE).unwrap();
}

#[test]
fn a_stale_mount_that_moves_while_it_is_looked_at_has_nothing_else_unmounted_or_covered() {
    let stage = stage();
    for round in 0..3 {
        let stale = Hung::new(&stage.point, UID, TYPE);
        let (directory, link) = (stage.directory.clone(), stage.link.clone());
        let swapped = Arc::new(AtomicBool::new(false));
        let done = Arc::clone(&swapped);
        stale.play_stale(move || {
            exchange(&directory, &link);
            done.store(true, Ordering::SeqCst);
        });
        let said = stage.fixture.run(["mount", stage.point.to_str().unwrap()]);
        assert!(swapped.load(Ordering::SeqCst), "round {round}: nobody looked: {}", said.err());
        stage.others_mount_stays(&format!("round {round}: {}", said.err()));
        exchange(&stage.directory, &stage.link);
        while !mounts_on(&stage.point).is_empty() {
            unmount(&stage.point, UnmountFlags::DETACH).unwrap();
        }
        drop(stale);
    }
}

#[test]
fn a_path_that_changes_while_it_is_unmounted_has_nothing_else_unmounted() {
    let stage = stage();
    let stop = Arc::new(AtomicBool::new(false));
    let racing = {
        let (stop, one, two) = (Arc::clone(&stop), stage.directory.clone(), stage.link.clone());
        std::thread::spawn(move || {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                exchange(&one, &two);
                exchange(&one, &two);
                rounds += 1;
            }
            rounds
        })
    };
    let end = std::time::Instant::now() + std::time::Duration::from_secs(8);
    while std::time::Instant::now() < end {
        for how in [&["unmount"][..], &["unmount", "--lazy"]] {
            let point = stage.point.to_str().unwrap();
            let said = stage.fixture.run([how, &[point]].concat());
            stage.others_mount_stays(&format!("{how:?}: {}", said.err()));
        }
    }
    stop.store(true, Ordering::Relaxed);
    assert!(racing.join().unwrap() > 20);
    // Named without a race, each is the one that is meant.
    let mine = Hung::new(&stage.point, UID, TYPE);
    stage.fixture.run(["unmount", stage.point.to_str().unwrap()]).ok();
    assert!(mounts_on(&stage.point).is_empty());
    drop(mine);
    let through_link = stage.link.join("mnt");
    stage.fixture.run(["unmount", through_link.to_str().unwrap()]).exits(1);
    stage.others_mount_stays("a link of the user's to another user's mount");
    // Nor by a link in place of the mount point itself.
    fs::remove_dir(&stage.point).unwrap();
    symlink(stage.other.join("mnt"), &stage.point).unwrap();
    lchown(&stage.point, Some(UID), Some(UID)).unwrap();
    for how in [&["unmount"][..], &["unmount", "--lazy"], &["mount"]] {
        stage.fixture.run([how, &[stage.point.to_str().unwrap()]].concat()).exits(1);
        stage.others_mount_stays("a link in place of the mount point");
    }
}

#[test]
fn who_serves_a_mount_neither_ends_nor_stops_nor_slows_down_who_looks_at_it() {
    let stage = stage();
    let mount = Hung::new(&stage.point, UID, TYPE);
    // Whatever has the user's ids is killed at once, as is all that it can be sent to.
    let mut killer = program("setpriv", ["--clear-groups"]);
    killer.args([format!("--reuid={UID}"), format!("--regid={UID}")]);
    let script = "
import os, signal, time
while True:
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            line = open(f'/proc/{pid}/cmdline', 'rb').read()
            if b'--look' in line:
                os.kill(int(pid), signal.SIGKILL)
            if b'--config-dir' in line:
                for thread in os.listdir(f'/proc/{pid}/task'):
                    os.kill(int(thread), signal.SIGSTOP)
        except OSError:
            pass
    time.sleep(0.001)";
    let mut killer =
        killer.args(["/usr/bin/python3", "-c", script]).stdin(Stdio::null()).spawn().unwrap();
    for words in [&["status"][..], &["status", "--json"], &["doctor"], &["list"]] {
        let said = stage.fixture.run(words);
        assert!(said.code.is_some(), "{words:?} was ended by a signal");
        if words[0] == "status" {
            assert!(said.out().contains("silent"), "{words:?}: {}", said.out());
        }
    }
    // Root's mount over it is refused, since it may be in use, and takes it away once asked to.
    let point = stage.point.to_str().unwrap();
    stage.fixture.run(["mount", point]).exits(1);
    stage.fixture.run(["unmount", "--lazy", point]).ok();
    assert!(mounts_on(&stage.point).is_empty());
    killer.kill().unwrap();
    killer.wait().unwrap();
    drop(mount);
    wait_until("nobody left who looks", || {
        let asked = run(program("pgrep", ["-u", &UID.to_string(), "-f", "codchifs --look"]));
        asked.out().trim().is_empty()
    });
}
