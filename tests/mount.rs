//! The mount as the kernel and its users see it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::{Fixture, Maker};
use common::mounted::{Mounted, mounts_on};
use common::readers::Reader;
use common::{program, run, run_while, wait_until, within};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Child;

#[test]
fn the_mount_table_says_fuse_codchifs_read_only() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let mounted = Mounted::new(&fixture);
    let mounts = mounts_on(mounted.point());
    let [mount] = mounts.as_slice() else { panic!("{mounts:?}") };
    assert_eq!((mount.kind.as_str(), mount.source.as_str()), ("fuse.codchifs", "codchifs"));
    for option in ["ro", "nosuid", "nodev"] {
        assert!(mount.options.iter().any(|have| have == option), "{option}: {mount:?}");
    }
    mounted.unmount();
    assert!(mounts_on(&fixture.mount_point()).is_empty());
}

#[test]
fn modes_and_owners_of_the_generated_names() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    Maker::new(place.rootfs.parent().unwrap()).mode("rootfs", 0o2700).own("rootfs", 71, 71);
    let mounted = Mounted::new(&fixture);
    let user = rustix::process::geteuid().as_raw();
    let machine = mounted.point().join("m");
    for (path, mode) in [
        (machine.clone(), 0o700),
        (machine.join("export.tar"), 0o600),
        (machine.join("report.json"), 0o600),
        (machine.join("MIGRATE.md"), 0o600),
        (machine.join("rootfs"), 0o755),
    ] {
        let meta = fs::symlink_metadata(&path).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid()), (mode, user), "{}", path.display());
    }
    let rootfs = fs::symlink_metadata(machine.join("rootfs")).unwrap();
    assert_eq!((rootfs.uid(), rootfs.gid()), (0, 0));
    assert!(fs::symlink_metadata(machine.join("report.json")).unwrap().blocks() >= 1);
    assert_eq!(mounted.report("m"), mounted.report("m"));
}

fn listing(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn machines_appear_and_vanish_live() {
    let fixture = Fixture::new();
    fixture.sample("one");
    let mounted = Mounted::new(&fixture);
    assert_eq!(listing(mounted.point()), ["one"]);
    fixture.empty("two");
    wait_until("the new machine", || listing(mounted.point()) == ["one", "two"]);
    assert!(mounted.rootfs("two").join("etc/nixos/flake.nix").is_file());
    fs::remove_dir_all(fixture.place("two").config).unwrap();
    wait_until("the end of the machine", || listing(mounted.point()) == ["one"]);
}

#[test]
fn only_the_named_machines_are_shown() {
    let fixture = Fixture::new();
    for name in ["a", "b", "c"] {
        fixture.empty(name);
    }
    let mounted = Mounted::with(&fixture, &["--machine", "a", "--machine", "c"]);
    assert_eq!(listing(mounted.point()), ["a", "c"]);
    assert!(!mounted.point().join("b").exists());
}

/// A machine with a directory of so many files.
fn crowded(fixture: &Fixture, name: &str, files: usize) {
    let directory = fixture.empty(name).home.join("crowd");
    fs::create_dir(&directory).unwrap();
    for number in 0..files {
        File::create(directory.join(format!("file-{number}"))).unwrap();
    }
}

#[test]
fn a_directory_of_100_000_entries_and_a_listing_during_its_scan() {
    const FILES: usize = 100_000;
    let fixture = Fixture::new();
    crowded(&fixture, "m", FILES);
    let mounted = Mounted::new(&fixture);

    // `ls NAME` and report.json answer while stat of export.tar scans, the first ones as well.
    let machine = mounted.point().join("m");
    let tar = mounted.tar("m");
    let scan = std::thread::spawn(move || fs::symlink_metadata(tar).unwrap().len());
    let mut during = 0;
    while !scan.is_finished() {
        let names = listing(&machine);
        assert_eq!(names.iter().filter(|name| *name == "export.tar").count(), 1);
        mounted.report("m");
        during += usize::from(!scan.is_finished());
    }
    let size = scan.join().unwrap();
    assert!(size > FILES as u64 * 512);
    assert!(during >= 3, "only {during} listings ended before the scan did");

    let crowd = mounted.rootfs("m").join("home/codchi/crowd");
    let names = within("a large directory", move || listing(&crowd));
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), FILES);
    assert_eq!(names.len(), FILES);
}

#[test]
fn listing_a_machine_scans_nothing() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    let mounted = Mounted::new(&fixture);
    listing(&mounted.point().join("m"));
    let before = mounted.report("m");
    // A scan after this change would find the file; one before it would not.
    listing(&mounted.point().join("m"));
    assert_eq!(mounted.report("m"), before, "a listing changed the report");
    fs::write(place.home.join("late"), b"late").unwrap();
    let copy = fixture.path().join("m.tar");
    run(program("cp", [mounted.tar("m"), copy.clone()])).silent();
    assert!(Reader::Gnu.list(&copy, "C").contains(&b"home/codchi/late".to_vec()));
    assert_ne!(mounted.report("m"), before, "the scan is not in the report");
}

#[test]
fn twenty_readers_at_random_offsets_read_the_sequential_stream() {
    const READERS: u64 = 20;
    const READS: usize = 200;
    let fixture = Fixture::new();
    let place = fixture.hostile("m");
    for number in 0..20_u8 {
        fs::write(place.home.join(format!("data-{number}")), vec![number; 300_001]).unwrap();
    }
    let mounted = Mounted::new(&fixture);
    let stream = std::sync::Arc::new(fs::read(mounted.tar("m")).unwrap());
    let readers: Vec<_> = (0..READERS)
        .map(|seed| {
            let (stream, tar) = (stream.clone(), mounted.tar("m"));
            std::thread::spawn(move || {
                let file = File::open(tar).unwrap();
                let mut state = seed * 7919 + 1;
                let mut random = |below: usize| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    (state % below as u64) as usize
                };
                for _ in 0..READS {
                    let offset = random(stream.len());
                    let scale = [10, 600, 5000, 300_000][random(4)];
                    let length = 1 + random(scale);
                    let end = (offset + length).min(stream.len());
                    let mut buffer = vec![0; end - offset];
                    file.read_exact_at(&mut buffer, offset as u64).unwrap();
                    assert!(buffer == stream[offset..end], "bytes at {offset}..{end} differ");
                }
                assert_eq!(file.read_at(&mut [0; 10], stream.len() as u64).unwrap(), 0);
            })
        })
        .collect();
    within("twenty readers", move || {
        for reader in readers {
            reader.join().unwrap();
        }
    });
}

#[test]
fn a_second_mount_on_the_same_place_is_refused() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let mounted = Mounted::new(&fixture);
    let point = mounted.point().to_str().unwrap().to_owned();
    for (arguments, code) in
        [(vec!["mount", &point], 1), (vec!["mount", "--foreground", &point], 78)]
    {
        let done = fixture.run(arguments).exits(code);
        assert!(done.err().contains(&point), "the text names the place: {}", done.err());
    }
    assert_eq!(mounts_on(mounted.point()).len(), 1);
    assert_eq!(listing(mounted.point()), ["m"]);
}

#[test]
fn mount_returns_when_ready_and_unmount_ends_it() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let point = fixture.mount_point();
    let text = point.to_str().unwrap();
    fixture.run(["mount", text]).ok();
    let guard = Detach(point.clone());
    assert_eq!(listing(&point), ["m"]);
    let busy = File::open(point.join("m/report.json")).unwrap();
    fixture.run(["unmount", text]).exits(1);
    drop(busy);
    fixture.run(["unmount", text]).ok();
    assert!(mounts_on(&point).is_empty());
    drop(guard);
    let done = fixture.run(["unmount", text]).exits(1);
    assert!(done.err().contains(text), "{}", done.err());
}

#[test]
fn a_program_that_looks_at_the_mount_for_a_moment_does_not_keep_it() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let point = fixture.mount_point();
    let text = point.to_str().unwrap();
    fixture.run(["mount", text]).ok();
    let _guard = Detach(point.clone());
    // Closed as soon as unmounting has failed for the first time.
    let mut busy = Some(File::open(point.join("m/report.json")).unwrap());
    let log = fixture.path().join("calls");
    let unmount = fixture.command(["unmount", text]);
    let mut strace = program("strace", ["-f", "--trace=umount2", "-o"]);
    strace.arg(&log).arg(unmount.get_program()).args(unmount.get_args());
    run_while(strace, || {
        if fs::read_to_string(&log).is_ok_and(|calls| calls.contains("EBUSY")) {
            busy = None;
        }
    })
    .silent();
    assert!(busy.is_none() && mounts_on(&point).is_empty());

    // As often as they can.
    let looks = r#"while :; do df "$0"; ls "$0"; done >/dev/null 2>&1"#;
    let _looking = Ended(program("sh", ["-c", looks]).arg(&point).spawn().unwrap());
    for _ in 0..10 {
        fixture.run(["mount", text]).ok();
        fixture.run(["unmount", text]).silent();
    }
}

#[test]
fn lazy_unmount_leaves_open_files_readable() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let mounted = Mounted::new(&fixture);
    let file = File::open(mounted.tar("m")).unwrap();
    fixture.run(["unmount", "--lazy", mounted.point().to_str().unwrap()]).ok();
    assert!(mounts_on(mounted.point()).is_empty());
    let mut block = [0; 512];
    file.read_exact_at(&mut block, 0).unwrap();
    assert_eq!(&block[257..262], b"ustar");
}

/// Ends the process.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Detaches what is mounted there.
struct Detach(PathBuf);

impl Drop for Detach {
    fn drop(&mut self) {
        while !mounts_on(&self.0).is_empty() && unmount(&self.0, UnmountFlags::DETACH).is_ok() {}
    }
}

#[test]
fn signals_unmount() {
    for signal in [Signal::TERM, Signal::INT] {
        let fixture = Fixture::new();
        fixture.sample("m");
        let mut mounted = Mounted::new(&fixture);
        mounted.signal(signal);
        let status = mounted.wait();
        assert!(status.success(), "after {signal:?}: {status}\n{}", mounted.log());
        assert!(mounts_on(mounted.point()).is_empty(), "still mounted after {signal:?}");
    }
}

#[test]
fn the_next_mount_detaches_a_stale_one() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let mut killed = Mounted::new(&fixture);
    killed.signal(Signal::KILL);
    killed.wait();
    // Not stat: the kernel may still have the root's attributes. Who asks while the server goes is told so first.
    wait_until("a stale mount", || match rustix::fs::statfs(killed.point()).unwrap_err() {
        Errno::CONNABORTED => false,
        error => {
            assert_eq!(error, Errno::NOTCONN, "a killed server leaves a stale mount");
            true
        }
    });
    assert_eq!(mounts_on(killed.point()).len(), 1);

    let text = killed.point().to_str().unwrap().to_owned();
    fixture.run(["mount", &text]).ok();
    assert_eq!(mounts_on(killed.point()).len(), 1, "the stale mount is still below");
    assert_eq!(listing(killed.point()), ["m"]);
    fixture.run(["unmount", &text]).ok();
}

/// A `ro,nosuid,nodev` bind mount.
fn bind(source: &Path, target: &Path) -> Detach {
    fs::create_dir(target).unwrap();
    run(program("mount", [Path::new("--bind"), source, target])).silent();
    let guard = Detach(target.into());
    run(program("mount", ["-o", "remount,bind,ro,nosuid,nodev"]).arg(target)).silent();
    guard
}

/// Every system call that changes something, or opens for it, on one path.
fn mutations(root: &Path, path: &str) -> Vec<(&'static str, Result<(), Errno>)> {
    let here = &root.join(path);
    let new = &root.join("srv/kinds/new");
    let (mode, time) = (Mode::from(0o644), Timespec { tv_sec: 1, tv_nsec: 0 });
    let times = Timestamps { last_access: time, last_modification: time };
    let owner = (Some(Uid::from_raw(5)), Some(Gid::from_raw(5)));
    let open = |flags| {
        // NONBLOCK: a FIFO must not wait for its other end.
        rustix::fs::open(here, flags | OFlags::NONBLOCK | OFlags::CLOEXEC, mode).map(drop)
    };
    let no_follow = AtFlags::SYMLINK_NOFOLLOW;
    vec![
        ("mkdir", rustix::fs::mkdir(here, mode)),
        ("rmdir", rustix::fs::rmdir(here)),
        ("unlink", rustix::fs::unlink(here)),
        ("rename from", rustix::fs::rename(here, new)),
        ("rename to", rustix::fs::rename(root.join("srv/sizes/1"), here)),
        (
            "exchange",
            rustix::fs::renameat_with(CWD, here, CWD, root.join("opt/one"), RenameFlags::EXCHANGE),
        ),
        ("link from", rustix::fs::link(here, new)),
        ("link to", rustix::fs::link(root.join("opt/one"), here)),
        ("symlink", rustix::fs::symlink("x", here)),
        ("mknod", rustix::fs::mknodat(CWD, here, FileType::Fifo, mode, 0)),
        ("creat", open(OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC)),
        ("open O_WRONLY", open(OFlags::WRONLY)),
        ("open O_RDWR", open(OFlags::RDWR)),
        ("open O_RDWR|O_NOFOLLOW", open(OFlags::RDWR | OFlags::NOFOLLOW)),
        ("open O_RDONLY|O_TRUNC", open(OFlags::RDONLY | OFlags::TRUNC)),
        ("open O_WRONLY|O_APPEND", open(OFlags::WRONLY | OFlags::APPEND)),
        ("open O_CREAT", open(OFlags::CREATE)),
        ("open O_CREAT|O_EXCL", open(OFlags::CREATE | OFlags::EXCL)),
        ("open O_TMPFILE", open(OFlags::TMPFILE | OFlags::RDWR)),
        ("open O_RDONLY", open(OFlags::RDONLY)),
        ("open O_DIRECTORY", open(OFlags::DIRECTORY)),
        ("truncate", truncate(here)),
        ("chmod", rustix::fs::chmod(here, mode)),
        ("chown", rustix::fs::chownat(CWD, here, owner.0, owner.1, AtFlags::empty())),
        ("lchown", rustix::fs::chownat(CWD, here, owner.0, owner.1, no_follow)),
        ("utimens", rustix::fs::utimensat(CWD, here, &times, AtFlags::empty())),
        ("lutimens", rustix::fs::utimensat(CWD, here, &times, no_follow)),
        ("setxattr", rustix::fs::setxattr(here, "user.x", b"y", XattrFlags::empty())),
        ("lsetxattr", rustix::fs::lsetxattr(here, "trusted.x", b"y", XattrFlags::empty())),
        ("removexattr", rustix::fs::removexattr(here, "user.x")),
        ("lremovexattr", rustix::fs::lremovexattr(here, "trusted.x")),
        ("access W_OK", rustix::fs::access(here, rustix::fs::Access::WRITE_OK)),
        ("access X_OK", rustix::fs::access(here, rustix::fs::Access::EXEC_OK)),
    ]
}

/// truncate(2): rustix has only ftruncate.
fn truncate(path: &Path) -> Result<(), Errno> {
    let line =
        "import os, sys\ntry: os.truncate(sys.argv[1], 0)\nexcept OSError as e: print(e.errno)";
    let out = run(program("python3", ["-c", line]).arg(path)).ok().out();
    out.trim().parse().map_or(Ok(()), |number| Err(Errno::from_raw_os_error(number)))
}

#[test]
fn every_change_fails_as_on_a_native_read_only_mount() {
    let fixture = Fixture::new();
    let place = fixture.hostile("m");
    Maker::new(&place.rootfs).symlink("../kinds", "srv/links/directory");
    let mounted = Mounted::new(&fixture);
    let (ours, copy) = (mounted.rootfs("m"), fixture.scratch("copy"));
    let tree = copy.join("rootfs");
    fs::create_dir(&tree).unwrap();
    Reader::Gnu.extract(&mounted.tar("m"), &tree, "C");
    // Like ours, the native tree is not itself the mount point: renaming that would be EBUSY.
    let guard = bind(&copy, &fixture.path().join("native"));
    let native = guard.0.join("rootfs");
    let mut differences = Vec::new();
    for path in [
        "",
        "opt",
        "opt/one",
        "srv/kinds/empty",
        "srv/kinds/empty-file",
        "srv/kinds/fifo",
        "srv/kinds/null",
        "srv/kinds/loop",
        "srv/kinds/missing",
        "srv/kinds/missing/below",
        "opt/one/below",
        "srv/links/dangling",
        "srv/links/loop-a",
        "srv/links/self",
        "srv/links/directory",
        "srv/links/directory/",
        "srv/modes/f4755",
        "srv/modes/f0",
        "srv/modes/d0",
        "etc",
        "etc/nixos",
        "etc/nixos/flake.nix",
        "etc/nixos/new",
        "home/codchi",
        "home/codchi/setuid",
        "home/codchi/caf\u{e9}",
    ] {
        let there = native.clone();
        let expected = within("changes of the native tree", move || mutations(&there, path));
        let ours = ours.clone();
        let found = within("changes of the mount", move || mutations(&ours, path));
        for ((call, expected), (_, found)) in expected.into_iter().zip(found) {
            if expected != found {
                differences
                    .push(format!("{call} of '{path}': native {expected:?}, ours {found:?}"));
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    drop(guard);
}

#[test]
fn generated_names_cannot_be_changed() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let mounted = Mounted::new(&fixture);
    let point = mounted.point();
    for path in ["new", "m/new", "m/rootfs/new"] {
        assert_eq!(
            rustix::fs::mkdir(point.join(path), Mode::from(0o755)),
            Err(Errno::ROFS),
            "{path}"
        );
    }
    for path in ["m", "m/MIGRATE.md", "m/export.tar", "m/report.json", "m/rootfs"] {
        let path = point.join(path);
        assert_eq!(rustix::fs::mkdir(&path, Mode::from(0o755)), Err(Errno::EXIST));
        assert_eq!(rustix::fs::chmod(&path, Mode::from(0o777)), Err(Errno::ROFS));
        assert_eq!(rustix::fs::rename(&path, point.join("x")), Err(Errno::ROFS));
    }
    for path in ["m/MIGRATE.md", "m/export.tar", "m/report.json"] {
        let opened = rustix::fs::open(point.join(path), OFlags::RDWR, Mode::empty());
        assert_eq!(opened.map(drop), Err(Errno::ROFS), "{path}");
        assert_eq!(rustix::fs::unlink(point.join(path)), Err(Errno::ROFS), "{path}");
    }
}

#[test]
fn statfs_answers_for_the_storage() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    let mounted = Mounted::new(&fixture);
    let native = rustix::fs::statvfs(&place.rootfs).unwrap();
    let ours = rustix::fs::statvfs(mounted.rootfs("m")).unwrap();
    assert_eq!(ours.f_blocks * ours.f_frsize, native.f_blocks * native.f_frsize);
    assert_eq!(ours.f_namemax, native.f_namemax);
}

#[test]
fn hard_links_share_a_number_and_directories_have_one_link() {
    let fixture = Fixture::new();
    fixture.hostile("m");
    let mounted = Mounted::new(&fixture);
    let meta = |path: &str| fs::symlink_metadata(mounted.rootfs("m").join(path)).unwrap();
    assert_eq!(meta("opt/one").ino(), meta("srv/three").ino());
    assert_eq!(meta("opt/one").nlink(), 3);
    assert_eq!(meta("opt/b").nlink(), 2, "the disk's, though one name is not exported");
    assert_eq!((meta("opt").nlink(), meta("").nlink()), (1, 1));
    assert_ne!(meta("opt/one").ino(), meta("opt/a").ino());
}

#[test]
fn a_directory_can_be_read_again_from_any_entry() {
    use rustix::fs::Dir;
    let fixture = Fixture::new();
    fixture.hostile("m");
    let mounted = Mounted::new(&fixture);
    let fd = File::open(mounted.rootfs("m").join("srv/names")).unwrap();
    let names = |dir: &mut Dir| -> Vec<Vec<u8>> {
        dir.map(|entry| entry.unwrap().file_name().to_bytes().to_vec()).collect()
    };
    let mut dir = Dir::read_from(&fd).unwrap();
    let first = names(&mut dir);
    dir.rewind();
    assert_eq!(names(&mut dir), first);
    assert!(first.contains(&b".".to_vec()) && first.contains(&b"..".to_vec()));
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), first.len());
    for entry in Dir::read_from(&fd).unwrap().skip(2) {
        let entry = entry.unwrap();
        let stat = rustix::fs::statat(&fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW).unwrap();
        assert_eq!(entry.file_type(), FileType::from_raw_mode(stat.st_mode), "{entry:?}");
        assert_eq!(entry.ino(), stat.st_ino, "{entry:?}");
    }
}

#[test]
fn a_state_that_cannot_be_read_is_an_error_and_no_empty_mount() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let mounted = Mounted::new(&fixture);
    assert_eq!(listing(mounted.point()), ["m"]);
    assert!(mounted.rootfs("m").exists());
    let machines = fixture.config().join("machine");
    fs::rename(&machines, machines.with_extension("away")).unwrap();
    fs::write(&machines, "no directory").unwrap();
    let list = || fs::read_dir(mounted.point())?.collect::<Result<Vec<_>, _>>();
    wait_until("the broken state to show", || list().is_err());
    assert!(mounted.tar("m").exists(), "what was known before is not served any more");
    fs::remove_file(&machines).unwrap();
    fs::rename(machines.with_extension("away"), &machines).unwrap();
    wait_until("the repaired state", || list().is_ok());
    assert_eq!(listing(mounted.point()), ["m"]);
}

#[test]
fn a_log_file_that_cannot_be_opened_ends_the_mount_with_an_error() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let point = fixture.mount_point();
    let done =
        fixture.run(["mount", "--log-file", "/nonexistent/log", point.to_str().unwrap()]).exits(1);
    assert!(done.err().contains("/nonexistent/log"), "{}", done.err());
    assert!(mounts_on(&point).is_empty());
}

#[test]
fn a_mount_inside_a_machine_does_not_wait_for_itself() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    let inside = place.home.join("mnt");
    fs::create_dir(&inside).unwrap();
    let text = inside.to_str().unwrap().to_owned();
    fixture.run(["mount", &text]).ok();
    let listed = within("listings of the home", {
        let home = inside.join("m/rootfs/home/codchi");
        move || {
            let one = |home: PathBuf| {
                fs::read_dir(home)
                    .unwrap()
                    .filter(|e| e.as_ref().unwrap().metadata().is_ok())
                    .count()
            };
            let threads: Vec<_> = (0..20)
                .map(|_| {
                    std::thread::spawn({
                        let home = home.clone();
                        move || one(home)
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).min()
        }
    });
    fixture.run(["unmount", &text]).ok();
    assert!(listed.is_some_and(|count| count > 1));
}

#[test]
fn with_allow_other_acls_decide_as_on_a_native_mount() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    let acls = [
        ("named", "u::rw-,u:65534:r--,g::---,m::r--,o::---"),
        // Shown as rw-rw----: the bits of the group are the mask.
        ("masked", "u::rw-,u:71:rw-,g::---,m::rw-,o::---"),
    ];
    for (name, acl) in acls {
        let path = place.rootfs.join("srv").join(name);
        fs::write(&path, name).unwrap();
        std::os::unix::fs::chown(&path, Some(0), Some(100)).unwrap();
        run(program("setfacl", ["--set", acl]).arg(&path)).silent();
    }
    // Everybody must be able to come there.
    for path in [fixture.path(), &fixture.rootfs_dir(), place.rootfs.parent().unwrap()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mounted = Mounted::with(&fixture, &["-o", "allow_other"]);
    for (name, uid, gid, may) in [
        ("named", 65534, 65534, true),
        ("named", 65533, 65533, false),
        ("named", 65533, 100, false),
        ("masked", 71, 71, true),
        ("masked", 65533, 100, false),
    ] {
        for top in [place.rootfs.clone(), mounted.rootfs("m")] {
            let who = [format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".into()];
            let path = top.join("srv").join(name);
            let done = run(program("setpriv", who).arg("cat").arg(&path));
            assert_eq!(
                done.code == Some(0),
                may,
                "{uid}:{gid}, {}: {}",
                path.display(),
                done.err()
            );
        }
    }
}

#[test]
fn with_nosymfollow_no_link_is_followed_and_all_are_shown() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    fs::write(fixture.outside().join("secret"), "secret").unwrap();
    let links = [
        ("absolute", fixture.outside()),
        ("relative", PathBuf::from("../../../../../../outside")),
        ("magic", PathBuf::from("/proc/self/root")),
        ("inside", PathBuf::from("hello")),
    ];
    for (name, target) in &links {
        std::os::unix::fs::symlink(target, place.rootfs.join("srv").join(name)).unwrap();
    }
    let mounted = Mounted::with(&fixture, &["-o", "nosymfollow"]);
    let srv = mounted.rootfs("m").join("srv");
    for (name, target) in &links {
        assert_eq!(fs::read_link(srv.join(name)).unwrap(), *target);
        for path in [srv.join(name), srv.join(name).join("secret")] {
            let error = fs::File::open(&path).unwrap_err();
            assert_eq!(Errno::from_io_error(&error), Some(Errno::LOOP), "{}", path.display());
        }
    }
    // A copy has the links, and nothing of what they lead to.
    let copy = fixture.scratch("copy");
    run(program("cp", ["-a"]).arg(&srv).arg(&copy)).silent();
    for (name, target) in &links {
        assert_eq!(fs::read_link(copy.join("srv").join(name)).unwrap(), *target);
    }
    assert!(mounts_on(mounted.point())[0].options.iter().any(|word| word == "nosymfollow"));
}
