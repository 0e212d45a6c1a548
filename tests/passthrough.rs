//! Large files of `rootfs/`, which the kernel reads past codchifs where it can.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::Fixture;
use common::mounted::Mounted;
use common::{program, run};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

const LARGE: usize = 3 << 20;
const SMALL: usize = 4 << 10;
/// In the log, a request for bytes.
const READ: &str = " READ fh ";

/// Bytes that no other page of a file, and no other `seed`, has.
fn bytes(seed: u8, len: usize) -> Vec<u8> {
    (0..len / 8).flat_map(|at| (at as u64 ^ u64::from(seed) << 56).to_le_bytes()).collect()
}

/// A machine with files in `/srv`, mounted with a log of all that the kernel asks.
struct Scene {
    fixture: Fixture,
    disk: PathBuf,
    mounted: Mounted,
}

impl Scene {
    fn new(prepare: impl FnOnce(&Fixture), args: &[&str]) -> Self {
        let fixture = Fixture::new();
        let disk = fixture.empty("m").rootfs.join("srv");
        prepare(&fixture);
        fs::create_dir_all(&disk).unwrap();
        let mut command = fixture.command(["mount", "--foreground"]);
        command.args(args).env("CODCHIFS_LOG", "fuser::request=debug");
        let mounted = Mounted::of(command, fixture.mount_point(), fixture.path().join("log"));
        Self { fixture, disk, mounted }
    }

    fn plain() -> Self {
        Self::new(|_| (), &[])
    }

    fn shown(&self, name: &str) -> PathBuf {
        self.mounted.rootfs("m").join("srv").join(name)
    }

    fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.disk.join(name), content).unwrap();
    }

    /// How often codchifs was asked for bytes of a file so far. The log comes through another process: what was asked before the
    /// mark is there once the mark is.
    fn asked(&self) -> usize {
        static MARKS: AtomicUsize = AtomicUsize::new(0);
        let mark = format!("mark-{}", MARKS.fetch_add(1, Ordering::Relaxed));
        assert!(!self.shown(&mark).exists());
        common::wait_until("the log", || self.mounted.log().contains(&format!("{mark}\"")));
        self.mounted.log().matches(READ).count()
    }
}

fn at(file: &File, offset: u64, len: usize) -> Vec<u8> {
    let mut buffer = vec![0; len];
    let mut done = 0;
    loop {
        match file.read_at(&mut buffer[done..], offset + done as u64).unwrap() {
            0 => break,
            count => done += count,
        }
    }
    buffer.truncate(done);
    buffer
}

#[test]
fn the_kernel_reads_large_files_by_itself_and_no_access_time_moves() {
    let scene = Scene::plain();
    let content = bytes(1, LARGE);
    scene.write("large", &content);
    let old = fs::FileTimes::new().set_accessed(std::time::SystemTime::UNIX_EPOCH);
    File::options().write(true).open(scene.disk.join("large")).unwrap().set_times(old).unwrap();
    let shown = scene.shown("large");
    assert!(fs::read(&shown).unwrap() == content);
    assert_eq!(scene.asked(), 0, "{}", scene.mounted.log());
    // By mmap(2), splice(2), O_DIRECT and copy_file_range(2) where there is one.
    let to = scene.fixture.path().join("copy");
    let map = "import mmap,sys; f=open(sys.argv[1],'rb'); \
        open(sys.argv[2],'wb').write(mmap.mmap(f.fileno(),0,mmap.MAP_SHARED,mmap.PROT_READ))";
    let send = "import os,sys; f=os.open(sys.argv[1],0); t=os.open(sys.argv[2],os.O_WRONLY|os.O_CREAT)\n\
        while os.sendfile(t,f,None,1<<20): pass";
    let (from_path, to_path) = (shown.to_str().unwrap(), to.to_str().unwrap());
    for (name, args) in [
        ("python3", vec!["-c", map, from_path, to_path]),
        ("python3", vec!["-c", send, from_path, to_path]),
        ("cp", vec![from_path, to_path]),
        ("busybox", vec!["cp", from_path, to_path]),
        ("dd", vec![&format!("if={from_path}"), &format!("of={to_path}"), "bs=1M", "status=none"]),
    ] {
        run(program(name, &args)).ok();
        assert!(fs::read(&to).unwrap() == content, "{name} {args:?}");
        fs::remove_file(&to).unwrap();
    }
    assert_eq!(scene.asked(), 0, "{}", scene.mounted.log());
    let direct = [&format!("if={from_path}"), &format!("of={to_path}"), "bs=1M", "iflag=direct"];
    run(program("dd", direct)).ok();
    assert!(fs::read(&to).unwrap() == content, "dd iflag=direct");
    assert_eq!(fs::metadata(scene.disk.join("large")).unwrap().atime(), 0, "access time");
}

#[test]
fn what_happens_to_an_open_file_is_seen_as_on_the_disk() {
    let scene = Scene::plain();
    let (old, new) = (bytes(2, LARGE), bytes(3, LARGE));
    scene.write("f", &old);
    let open = File::open(scene.shown("f")).unwrap();
    assert!(at(&open, 0, LARGE) == old);
    // Rewritten in place, times set back: nothing but the bytes tells.
    let times = fs::metadata(scene.disk.join("f")).unwrap().modified().unwrap();
    let disk = File::options().write(true).open(scene.disk.join("f")).unwrap();
    disk.write_all_at(&new, 0).unwrap();
    disk.set_modified(times).unwrap();
    assert!(at(&open, 0, LARGE) == new, "rewritten in place");
    assert!(fs::read(scene.shown("f")).unwrap() == new, "rewritten in place, opened anew");
    // Grown and truncated.
    disk.write_all_at(&old, LARGE as u64).unwrap();
    assert!(at(&open, LARGE as u64, LARGE) == old, "grown");
    disk.set_len(SMALL as u64).unwrap();
    assert_eq!(at(&open, 0, LARGE).len(), SMALL, "truncated");
    // A small file now, and still open the other way: all of these go the way of the first.
    let second = File::open(scene.shown("f")).unwrap();
    assert!(at(&second, 0, LARGE) == new[..SMALL], "truncated, opened anew");
    // Replaced.
    scene.write("g", &old);
    fs::rename(scene.disk.join("g"), scene.disk.join("f")).unwrap();
    assert!(at(&open, 0, LARGE) == new[..SMALL], "replaced, of who had it open");
    common::wait_until("the new file", || fs::read(scene.shown("f")).is_ok_and(|read| read == old));
    fs::remove_file(scene.disk.join("f")).unwrap();
    assert!(at(&second, 0, LARGE) == new[..SMALL], "removed, of who had it open");
    assert_eq!(scene.asked(), 0, "{}", scene.mounted.log());
}

#[test]
fn openers_of_one_file_go_one_way_until_all_are_gone() {
    let scene = Scene::plain();
    let (small, large) = (bytes(4, SMALL), bytes(5, LARGE));
    scene.write("f", &small);
    let first = File::open(scene.shown("f")).unwrap();
    assert!(at(&first, 0, LARGE) == small);
    // The log comes through another process.
    common::wait_until("a small file is asked for", || scene.asked() > 0);
    // Larger now, but somebody reads it through the cache: an opener that differed would get EIO.
    scene.write("f", &large);
    common::wait_until("the new size", || {
        fs::metadata(scene.shown("f")).unwrap().len() == LARGE as u64
    });
    assert!(fs::read(scene.shown("f")).unwrap() == large);
    drop(first);
    common::wait_until("its release", || {
        let before = scene.asked();
        assert!(fs::read(scene.shown("f")).unwrap() == large);
        scene.asked() == before
    });
    // Many at once, each opening and closing while others have it open.
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (scene, large) = (&scene, &large);
            scope.spawn(move || {
                for round in 0..100_usize {
                    let file = File::open(scene.shown("f")).unwrap();
                    let offset = (thread * 100 + round) * 1000 % LARGE;
                    let some = at(&file, offset as u64, 5000);
                    assert!(some == large[offset..(offset + 5000).min(LARGE)], "{thread} {round}");
                }
            });
        }
    });
}

/// Mounts an overlay with one large file on the machine's rootfs: FUSE does not go through two layers.
fn overlay(fixture: &Fixture) {
    let rootfs = fixture.place("m").rootfs;
    let lower = fixture.scratch("lower");
    fs::create_dir(lower.join("srv")).unwrap();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        fixture.scratch("upper").display(),
        fixture.scratch("work").display()
    );
    run(program("mount", ["-t", "overlay", "overlay", "-o", &options]).arg(rootfs)).ok();
}

#[test]
fn where_the_kernel_cannot_codchifs_reads() {
    type Case = (&'static str, fn(&Fixture), &'static [&'static str]);
    let none: fn(&Fixture) = |_| ();
    let cases: [Case; 2] = [
        ("switched off", none, &["--passthrough=no"]),
        ("on a file system that cannot be stacked", overlay, &[]),
    ];
    for (case, prepare, args) in cases {
        let scene = Scene::new(prepare, args);
        let content = bytes(6, LARGE);
        scene.write("large", &content);
        assert!(fs::read(scene.shown("large")).unwrap() == content, "{case}");
        common::wait_until(case, || scene.asked() > 0);
    }
}

/// Root of a user namespace may mount, and has no right to what takes the host's CAP_SYS_ADMIN.
#[test]
fn without_the_right_to_codchifs_reads() {
    const SCRIPT: &str = "log=$1 point=$2; shift 2; \"$@\" mount --log-file \"$log\" \"$point\"; \
        cat \"$point/m/rootfs/srv/large\"; \"$@\" unmount \"$point\"";
    let fixture = Fixture::new();
    let disk = fixture.empty("m").rootfs.join("srv");
    let content = bytes(7, LARGE);
    fs::create_dir(&disk).unwrap();
    fs::write(disk.join("large"), &content).unwrap();
    let log = fixture.path().join("log");
    let codchifs = fixture.command(std::iter::empty::<&str>());
    let mut command =
        program("unshare", ["--user", "--map-root-user", "--mount", "sh", "-ec", SCRIPT, "sh"]);
    command.args([&log, &fixture.mount_point()]);
    command.arg(codchifs.get_program()).args(codchifs.get_args());
    let done = run(command.env("CODCHIFS_LOG", "fuser::request=debug")).ok();
    assert!(done.stdout == content);
    assert!(fs::read_to_string(log).unwrap().contains(READ));
}
