//! What one machine, or one command line, can make large or slow: it is bounded, and costs nobody else anything.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::Fixture;
use common::mounted::Mounted;
use common::processes::{resident, threads};
use common::{Done, contains, program, run, wait_until, within};
use rustix::fs::{FileType, Mode, OFlags};
use serde_json::Value;
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The same with this much address space: what takes more ends with an error.
fn with_memory(mebibytes: u64, command: &Command) -> Command {
    let limit = format!("--as={}", mebibytes << 20);
    let mut limited = program("prlimit", [limit]);
    limited.arg(command.get_program()).args(command.get_args());
    limited
}

fn names_in(tar: &Path) -> Vec<String> {
    let done = run(program("tar", ["-tf"]).arg(tar)).ok();
    done.out().lines().map(str::to_owned).collect()
}

/// An export with these options, in 1 GiB of memory.
fn export(fixture: &Fixture, options: impl Iterator<Item = String>) -> Done {
    let tar = fixture.path().join("m.tar");
    let mut command = fixture.command(["export", "m", "-q", "-o"]);
    command.arg(tar).args(options);
    run(with_memory(1024, &command))
}

#[test]
fn tens_of_thousands_of_includes_are_taken() {
    let fixture = Fixture::new();
    let place = fixture.empty("m");
    fs::create_dir_all(place.rootfs.join("nix")).unwrap();
    for number in [0, 65_999, 66_000] {
        fs::write(place.rootfs.join(format!("nix/{number}")), "included").unwrap();
    }
    let done = export(&fixture, (0..66_000).map(|number| format!("--include=/nix/{number}"))).ok();
    let names = names_in(&fixture.path().join("m.tar"));
    for (number, there) in [(0, true), (65_999, true), (66_000, false)] {
        assert_eq!(names.contains(&format!("./nix/{number}")), there, "{number}");
    }
    // Of those that are not there some are named, and not all.
    assert!((1..=1000).contains(&done.err().lines().count()), "{}", done.err().lines().count());
}

#[test]
fn more_includes_than_can_be_kept_are_refused() {
    let fixture = Fixture::new();
    fixture.empty("m");
    let deep = |number| format!("--include=/{number}{}", "/a".repeat(2000));
    let done = export(&fixture, (0..100).map(deep)).exits(1);
    assert!(done.err().contains("too many --include"), "{}", done.err());
    let long = format!("--include={}", "/a".repeat(3000));
    let done = export(&fixture, [long].into_iter()).exits(1);
    assert!(done.err().contains("longer than 4095 bytes"), "{}", done.err());
    // As deep as a path can be.
    let deepest = (0..50).map(|number| format!("--include=/{number:02}{}", "/a".repeat(2000)));
    export(&fixture, deepest).ok();
}

#[test]
fn tens_of_thousands_of_excludes_are_taken() {
    let fixture = Fixture::new();
    let place = fixture.empty("m");
    fs::create_dir_all(place.rootfs.join("srv")).unwrap();
    for name in ["f1", "f39999", "kept"] {
        fs::write(place.rootfs.join("srv").join(name), name).unwrap();
    }
    export(&fixture, (0..40_000).map(|number| format!("--exclude=/srv/f{number}"))).ok();
    let names = names_in(&fixture.path().join("m.tar"));
    let of_srv: Vec<_> = names.iter().filter(|name| name.starts_with("./srv/")).collect();
    assert_eq!(of_srv, ["./srv/", "./srv/kept"]);
}

/// Directories inside each other, `levels` of them, below `top`; their names have `length` bytes.
fn nested(top: &Path, levels: usize, name: &[u8]) {
    let mut at =
        rustix::fs::openat(rustix::fs::CWD, top, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
            .unwrap();
    for _ in 0..levels {
        rustix::fs::mkdirat(&at, name, Mode::RWXU).unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        at = rustix::fs::openat(&at, name, flags, Mode::empty()).unwrap();
    }
}

/// The bytes of a machine's report after a look at its export.
fn report_of(mounted: &Mounted, machine: &str) -> Vec<u8> {
    let (tar, report) = (mounted.tar(machine), mounted.point().join(machine).join("report.json"));
    within("the scan", move || fs::metadata(tar)).unwrap();
    within("the report", move || fs::read(report)).unwrap()
}

const MIB: usize = 1 << 20;

#[test]
fn long_paths_fill_neither_a_report_nor_memory() {
    let fixture = Fixture::new();
    let place = fixture.empty("deep");
    let top = place.rootfs.join("srv");
    fs::create_dir_all(&top).unwrap();
    nested(&top, 1500, &[b'n'; 255]);
    // What takes several bytes a byte, in a report and in JSON.
    let place = fixture.empty("wide");
    let top = place.rootfs.join("srv");
    fs::create_dir_all(&top).unwrap();
    nested(&top, 10, &[b'\\'; 255]);
    let deep = format!("{}/", "\\".repeat(255)).repeat(10);
    let at = top.join(deep);
    for number in 0..3000 {
        let name = format!("{number:05}{}", "\u{1}".repeat(250));
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, at.join(name), FileType::Socket, mode, 0).unwrap();
    }
    let mounted = Mounted::new(&fixture);
    for machine in ["deep", "wide"] {
        let report = report_of(&mounted, machine);
        assert!(report.len() < 16 * MIB, "{machine}: {} bytes", report.len());
        let report: Value = serde_json::from_slice(&report).unwrap();
        let lines = report["left_out"]["lines"].as_array().unwrap();
        let all = lines.len() as u64 + report["left_out"]["more"].as_u64().unwrap();
        assert!(!lines.is_empty() && all >= 1480, "{machine}: {all}");
        let long = lines.iter().find(|line| line["path"].as_str().unwrap().contains("\\["));
        assert_eq!(long.is_some(), machine == "deep", "{long:?}");
        let memory = resident(mounted.server()) >> 10;
        assert!(memory < 150, "{machine}: {memory} MiB of memory");
    }
    let done = fixture.run(["export", "deep", "-q", "-o", "/dev/null"]).ok();
    assert!(done.err().len() < MIB, "{} bytes of warnings", done.err().len());
}

#[test]
fn a_change_of_many_files_with_long_paths_is_told_in_bounds() {
    let fixture = Fixture::new();
    let place = fixture.empty("m");
    let deep = format!("{}/", "d".repeat(255)).repeat(15);
    let at = place.home.join(deep);
    fs::create_dir_all(&at).unwrap();
    let names: Vec<_> = (0..1000).map(|number| at.join(format!("{number}"))).collect();
    for name in &names {
        fs::write(name, "before").unwrap();
    }
    let mounted = Mounted::new(&fixture);
    let mut total = 0;
    // Each of them is a generation of its own that is torn.
    for round in 0..3 {
        let mut tar = fs::File::open(mounted.tar("m")).unwrap();
        for name in &names {
            fs::write(name, format!("{round}")).unwrap();
        }
        let _ = std::io::copy(&mut tar, &mut std::io::sink());
        drop(tar);
        let report = report_of(&mounted, "m");
        assert!(report.len() < 16 * MIB, "{} bytes", report.len());
        let report: Value = serde_json::from_slice(&report).unwrap();
        total = report["earlier"].as_array().unwrap().len();
        for past in report["earlier"].as_array().unwrap() {
            let listed = past["changed"].as_array().unwrap().len() as u64;
            let more = past["changed_not_listed"].as_u64().unwrap_or(0);
            assert_eq!(listed + more, 1000, "{past:.300}");
        }
    }
    assert!(total >= 2, "{total}");
}

/// Processor time that a process has used, in hundredths of a second.
fn processor_time(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn a_deep_tree_takes_no_more_work_than_a_flat_one() {
    const DIRECTORIES: usize = 10_000;
    let fixture = Fixture::new();
    nested(&fixture.empty("deep").home, DIRECTORIES, b"d");
    let flat = fixture.empty("flat").home;
    for number in 0..DIRECTORIES {
        fs::create_dir(flat.join(format!("{number}-d"))).unwrap();
    }
    let mounted = Mounted::new(&fixture);
    let work = |machine: &str| {
        let top = mounted.rootfs(machine).join("home/codchi");
        let before = processor_time(mounted.server());
        let walk = "find \"$1\" -name '*d' | wc -l";
        let done = run(program("sh", ["-c", walk, "sh"]).arg(top)).ok();
        assert_eq!(done.out().trim(), DIRECTORIES.to_string(), "{machine}");
        processor_time(mounted.server()) - before
    };
    let (flat, deep) = (work("flat"), work("deep"));
    assert!(deep < 5 * flat + 100, "{deep} against {flat}");
    // Dropping a fixture goes down the tree by whole paths.
    run(program("rm", ["-r"]).arg(fixture.place("deep").home)).ok();
}

/// A reader, killed when it is dropped.
struct Reading(Child);

impl Reading {
    fn of(file: &Path) -> Self {
        let mut cat = program("cat", [file]);
        Self(cat.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// With SIGKILL; waits until it is gone.
    fn kill(mut self) {
        self.0.kill().unwrap();
        wait_until("the end of a killed reader", || self.0.try_wait().unwrap().is_some());
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether a thread of the server does what takes long.
fn works(mounted: &Mounted) -> bool {
    let server = mounted.server();
    let name = |thread| fs::read_to_string(format!("/proc/{server}/task/{thread}/comm"));
    threads(server).into_iter().any(|t| name(t).is_ok_and(|name| name == "codchifs-slow\n"))
}

/// A machine with a file that nobody can hash in time.
fn with_endless_file(fixture: &Fixture, machine: &str) {
    let place = fixture.empty(machine);
    fs::File::create(place.home.join("endless")).unwrap().set_len(8 << 40).unwrap();
    fs::write(place.home.join("small"), "small").unwrap();
}

#[test]
fn who_is_killed_while_a_list_is_made_ends_and_so_does_the_work() {
    let fixture = Fixture::new();
    with_endless_file(&fixture, "m");
    for lazily in [false, true] {
        let mut mounted = Mounted::new(&fixture);
        let list = mounted.point().join("m/manifest.mtree");
        let reader = Reading::of(&list);
        wait_until("the work", || works(&mounted));
        let point = mounted.point().to_str().unwrap().to_owned();
        if lazily {
            fixture.run(["unmount", "--lazy", &point]).silent();
            reader.kill();
        } else {
            reader.kill();
            wait_until("the end of the work", || !works(&mounted));
            // The kernel has no page that is waited for any more.
            fixture.run(["unmount", &point]).silent();
        }
        assert!(mounted.wait().success());
    }
}

#[test]
fn who_shares_an_open_list_with_one_that_closes_it_reads_on() {
    let fixture = Fixture::new();
    let place = fixture.empty("m");
    // Some seconds of work.
    fs::File::create(place.home.join("large")).unwrap().set_len(4 << 30).unwrap();
    let mounted = Mounted::new(&fixture);
    let list = mounted.point().join("m/manifest.mtree");
    let expected = run(program("cat", [&list])).ok().stdout;
    assert!(contains(&expected, b"./home/codchi/large "));
    mounted.unmount();
    let mounted = Mounted::new(&fixture);
    let shared = fs::File::open(&list).unwrap();
    let mut cat = program("cat", std::iter::empty::<&str>());
    let mut reader = cat.stdin(shared).stdout(Stdio::piped()).spawn().unwrap();
    wait_until("the work", || works(&mounted));
    // Closes what the parent has of it.
    drop(cat);
    let mut read = Vec::new();
    reader.stdout.take().unwrap().read_to_end(&mut read).unwrap();
    assert!(reader.wait().unwrap().success() && read == expected);
}

#[test]
fn many_who_wait_for_one_machine_keep_none_of_another_waiting() {
    let fixture = Fixture::new();
    with_endless_file(&fixture, "bad");
    fixture.sample("good");
    // Dropped after the mount: they wait in the kernel.
    let mut readers = Vec::new();
    let mounted = Mounted::new(&fixture);
    let list = mounted.point().join("bad/manifest.mtree");
    readers.extend((0..64).map(|_| Reading::of(&list)));
    wait_until("the work", || works(&mounted));
    let copy = fixture.path().join("good.tar");
    run(program("cp", [mounted.tar("good"), copy.clone()])).silent();
    fixture.run(["verify", "good", copy.to_str().unwrap()]).ok();
    assert!(mounted.rootfs("good").join("opt/tool").exists());
    for name in ["report.json", "MIGRATE.md", "manifest.mtree"] {
        run(program("cat", [mounted.point().join("good").join(name)])).ok();
    }
    // The machine itself as well.
    assert!(fs::metadata(mounted.tar("bad")).is_ok());
    let small = mounted.rootfs("bad").join("home/codchi/small");
    assert_eq!(within("a small file", move || fs::read(small)).unwrap(), b"small");
    let memory = resident(mounted.server()) >> 10;
    assert!(memory < 150, "{memory} MiB of memory");
}

#[test]
fn each_of_many_who_wait_for_one_list_is_gone_when_it_is_killed() {
    let fixture = Fixture::new();
    with_endless_file(&fixture, "m");
    let mut readers = Vec::new();
    let mut mounted = Mounted::new(&fixture);
    let list = mounted.point().join("m/manifest.mtree");
    readers.extend((0..64).map(|_| Reading::of(&list)));
    wait_until("the work", || works(&mounted));
    // The first has asked for the page that all others wait for.
    for reader in readers.drain(..) {
        reader.kill();
    }
    wait_until("the end of the work", || !works(&mounted));
    // One that shares its open file with another. (Of several that read from it at a time, the kernel lets one go after the other.)
    let shared = fs::File::open(&list).unwrap();
    let start = || {
        let mut cat = program("cat", std::iter::empty::<&str>());
        cat.stdin(shared.try_clone().unwrap()).stdout(Stdio::null()).stderr(Stdio::null());
        Reading(cat.spawn().unwrap())
    };
    for _ in 0..3 {
        let reader = start();
        wait_until("the work", || works(&mounted));
        reader.kill();
    }
    drop(shared);
    wait_until("the end of the work", || !works(&mounted));
    fixture.run(["unmount", mounted.point().to_str().unwrap()]).silent();
    assert!(mounted.wait().success());
}

/// Reads an archive to where it is torn, after one of its files was changed.
fn tear(mounted: &Mounted, fixture: &Fixture, machine: &str) {
    let mut tar = fs::File::open(mounted.tar(machine)).unwrap();
    fs::write(fixture.place(machine).home.join("small"), "less").unwrap();
    within("the archive", move || std::io::copy(&mut tar, &mut std::io::sink())).unwrap_err();
}

#[test]
fn what_the_kernel_must_forget_of_one_machine_keeps_no_answer_of_another_waiting() {
    let fixture = Fixture::new();
    with_endless_file(&fixture, "bad");
    for machine in ["good", "torn"] {
        let home = fixture.empty(machine).home;
        fs::write(home.join("grows"), "1").unwrap();
        fs::write(home.join("small"), "small").unwrap();
    }
    let mut readers = Vec::new();
    let mounted = Mounted::new(&fixture);
    let list = mounted.point().join("bad/manifest.mtree");
    let open = fs::File::open(&list).unwrap();
    readers.push(Reading::of(&list));
    wait_until("the work", || works(&mounted));
    // The kernel is to forget the end of a list that somebody still waits for.
    tear(&mounted, &fixture, "bad");
    drop(open);
    // Answers that come behind what the kernel is told: of a file that has grown since it was looked at, and of the end of an
    // archive that is torn.
    let (seen, grows) = (
        mounted.rootfs("good").join("home/codchi/grows"),
        fixture.place("good").home.join("grows"),
    );
    for length in 2..20 {
        let (seen, grows) = (seen.clone(), grows.clone());
        let read = within("a file that has grown", move || {
            fs::metadata(&seen).unwrap();
            fs::write(grows, "1".repeat(length)).unwrap();
            fs::read(seen).unwrap()
        });
        assert_eq!(read.len(), length);
    }
    tear(&mounted, &fixture, "torn");
    // Other files of the same machine as well.
    let small = mounted.rootfs("bad").join("home/codchi/small");
    assert_eq!(within("a small file", move || fs::read(small)).unwrap(), b"less");
    readers.drain(..).for_each(Reading::kill);
}
