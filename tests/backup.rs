//! Programs that copy a machine again and again: what did not change is not read, what did is seen, and a copy that was
//! cut off goes on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::clients::restic_in;
use common::fixture::{Fixture, Maker};
use common::mounted::Mounted;
use common::ssh::Sshd;
use common::{program, run, wait_until};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mount that logs every request of the kernel.
fn logged(fixture: &Fixture, log: &str) -> Mounted {
    // What the kernel reads past us is in no log.
    let mut command = fixture.command(["mount", "--foreground", "--passthrough=no"]);
    command.env("CODCHIFS_LOG", "fuser::request=debug,warn");
    Mounted::of(command, fixture.mount_point(), fixture.path().join(log))
}

/// Inode numbers of the files whose content was read.
fn read_inodes(mounted: &Mounted) -> BTreeSet<u64> {
    let log = mounted.log();
    let reads = log.lines().filter(|line| line.contains(" READ "));
    reads
        .map(|line| {
            let hex = line.split_once("ino 0x").unwrap().1;
            u64::from_str_radix(hex.split(' ').next().unwrap(), 16).unwrap()
        })
        .collect()
}

/// Regular files with content below `directory`: ctime by inode number.
fn files_with_content(directory: &Path) -> BTreeMap<u64, (i64, i64)> {
    let mut found = BTreeMap::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let stat = fs::symlink_metadata(entry.path()).unwrap();
            if stat.is_dir() {
                directories.push(entry.path());
            } else if stat.is_file() && stat.len() > 0 {
                found.insert(stat.ino(), (stat.ctime(), stat.ctime_nsec()));
            }
        }
    }
    found
}

fn restic(_: &Path, to: &Path) -> Command {
    let mut command = restic_in(to);
    command.args(["backup", "--json", "."]);
    command
}

fn borg_in(directory: &Path, args: &[&str]) -> Command {
    let mut command = program("borg", args);
    command.env("BORG_BASE_DIR", directory.join("base")).env("BORG_REPO", directory.join("repo"));
    command.env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes");
    command.env("BORG_RELOCATED_REPO_ACCESS_IS_OK", "yes");
    command
}

fn borg(_: &Path, to: &Path) -> Command {
    borg_in(to, &["create", "--json", "--files-cache=ctime,size,inode", "::{now:%s.%f}", "."])
}

fn rsync(from: &Path, to: &Path) -> Command {
    let mut command = program("rsync", ["-aHX", "--numeric-ids", "--itemize-changes", "--stats"]);
    command.arg(from.join(".")).arg(to);
    command
}

/// A program that copies the directory that it runs in.
struct Tool {
    name: &'static str,
    init: fn(to: &Path),
    backup: fn(from: &Path, to: &Path) -> Command,
    /// Whether it says of itself that nothing was new.
    nothing_new: fn(&str) -> bool,
    /// It does not trust the newest ctime: another write may have got the same.
    rereads_the_newest: bool,
}

const TOOLS: &[Tool] = &[
    Tool {
        name: "restic",
        init: |to| drop(run(restic_in(to).arg("init")).ok()),
        backup: restic,
        nothing_new: |out| {
            let summary = json(out.lines().last().unwrap());
            let zero = |key: &str| summary[key] == 0;
            summary["files_unmodified"].as_u64().unwrap() > 0
                && ["files_new", "files_changed", "data_blobs"].into_iter().all(zero)
        },
        rereads_the_newest: false,
    },
    Tool {
        name: "borg",
        init: |to| {
            fs::create_dir(to).unwrap();
            run(borg_in(to, &["init", "--encryption=none"])).ok();
        },
        backup: borg,
        nothing_new: |out| {
            // What is new is the list of the files, some kilobytes.
            let stats = &json(out)["archive"]["stats"];
            stats["nfiles"].as_u64().unwrap() > 0
                && stats["deduplicated_size"].as_u64().unwrap() < 100_000
        },
        rereads_the_newest: true,
    },
    Tool {
        name: "rsync",
        init: |to| fs::create_dir(to).unwrap(),
        backup: rsync,
        nothing_new: |out| {
            let (items, stats) = out.split_once("\nNumber of files: ").unwrap();
            items.is_empty() && stats.contains("Number of regular files transferred: 0\n")
        },
        rereads_the_newest: false,
    },
];

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_second_backup_after_a_remount_reads_no_content() {
    for Tool { name, init, backup, nothing_new, rereads_the_newest } in TOOLS {
        let fixture = Fixture::new();
        let place = fixture.hostile("m");
        let large: Vec<u8> = (0_u32..200_000).flat_map(u32::to_le_bytes).collect();
        Maker::new(&place.home).file("large", &large);
        let to = fixture.path().join("backup");
        init(&to);
        let go = |mounted: &Mounted| {
            let from = mounted.rootfs("m");
            run(backup(&from, &to).current_dir(&from)).ok()
        };
        let mounted = logged(&fixture, "log-1");
        let files = files_with_content(&mounted.rootfs("m"));
        go(&mounted);
        let read = read_inodes(&mounted);
        assert!(
            files.keys().all(|ino| read.contains(ino)),
            "{name}: the log of requests tells of no reads"
        );
        mounted.unmount();

        let mounted = logged(&fixture, "log-2");
        let done = go(&mounted);
        assert!(nothing_new(&done.out()), "{name}: {}", done.out());
        let newest = files.values().max().filter(|_| *rereads_the_newest);
        let mut again = read_inodes(&mounted);
        // Another test's `codchifs status` reads this mount's `.transfers` at any time.
        let now = files_with_content(&mounted.rootfs("m"));
        again.retain(|ino| files.contains_key(ino) || now.contains_key(ino));
        again.retain(|ino| newest.is_none() || files.get(ino) != newest);
        assert!(
            again.is_empty(),
            "{name}: {} of {} files were read again",
            again.len(),
            files.len()
        );

        // A backup that never reads anything would pass as well.
        fs::write(place.home.join("large"), "small").unwrap();
        let large = mounted.rootfs("m").join("home/codchi/large");
        wait_until("the changed file", || fs::metadata(&large).unwrap().len() == 5);
        go(&mounted);
        let ino = fs::metadata(&large).unwrap().ino();
        assert!(read_inodes(&mounted).contains(&ino), "{name}: the file that changed");
        mounted.unmount();
    }
}

/// A machine, a whole copy of its export, and half of it. The machine changes afterwards, where it is asked to.
struct CutOff {
    mounted: Mounted,
    fixture: Fixture,
    whole: PathBuf,
    half: PathBuf,
    /// The same bytes, as long as the mount keeps them.
    generation: PathBuf,
}

impl CutOff {
    fn new() -> Self {
        let fixture = Fixture::new();
        let place = fixture.sample("m");
        let content: Vec<u8> = (0_u32..500_000).flat_map(u32::to_le_bytes).collect();
        Maker::new(&place.home).file("large", &content);
        let mounted = Mounted::new(&fixture);
        let tar = mounted.tar("m");
        let (whole, half) = (fixture.path().join("whole.tar"), fixture.path().join("half.tar"));
        run(program("cp", [&tar, &whole])).silent();
        let id = mounted.report("m")["generation"]["id"].as_str().unwrap().to_owned();
        let blocks = fs::metadata(&whole).unwrap().len() / 512;
        let dd = program("dd", ["bs=512", "status=none", &format!("count={}", blocks / 2)]);
        run({ dd }.arg(path_argument("if", &tar)).arg(path_argument("of", &half))).silent();
        let generation = mounted.point().join("m/.generations").join(id).join("export.tar");
        Self { mounted, fixture, whole, half, generation }
    }

    /// Something new in the machine, and an `export.tar` that has it.
    fn change(&self) {
        let before = fs::metadata(self.mounted.tar("m")).unwrap().ino();
        fs::write(self.fixture.place("m").home.join("a-new-one"), "new").unwrap();
        wait_until("another export", || {
            fs::metadata(self.mounted.tar("m")).unwrap().ino() != before
        });
    }
}

fn path_argument(key: &str, path: &Path) -> String {
    format!("{key}={}", path.display())
}

#[test]
fn rsync_completes_a_copy_that_was_cut_off() {
    for changed in [false, true] {
        let cut = CutOff::new();
        if changed {
            cut.change();
        }
        let tar = cut.mounted.tar("m");
        run(program("rsync", [Path::new("--append-verify"), &tar, &cut.half])).silent();
        run(program("cmp", [&tar, &cut.half])).silent();
        let same = fs::read(&cut.whole).unwrap() == fs::read(&cut.half).unwrap();
        assert_eq!(same, !changed);
    }
}

/// Goes on with a copy by its size alone.
type Resume = (&'static str, fn(&Sshd, from: &Path, to: &Path) -> Command);

const RESUMES: &[Resume] = &[
    ("curl -C -", |_, from, to| {
        let mut command = program("curl", ["-sS", "-C", "-", "-o"]);
        command.arg(to).arg(format!("file://{}", from.display()));
        command
    }),
    ("dd", |_, from, to| {
        let blocks = fs::metadata(to).unwrap().len() / 512;
        let mut command = program("dd", ["bs=512", "status=none", "conv=notrunc"]);
        command.args([path_argument("if", from), path_argument("of", to)]);
        command.args([format!("skip={blocks}"), format!("seek={blocks}")]);
        command
    }),
    ("sftp reget", |sshd, from, to| {
        let batch = to.with_extension("batch");
        fs::write(&batch, format!("reget {} {}\n", from.display(), to.display())).unwrap();
        let mut command = sshd.client("sftp");
        command.arg("-b").arg(batch).arg("root@127.0.0.1");
        command
    }),
];

#[test]
fn a_copy_goes_on_by_its_size_alone_through_its_generation() {
    let cut = CutOff::new();
    let sshd = Sshd::start(&cut.fixture, &[]);
    cut.change();
    for (name, resume) in RESUMES {
        let copy = cut.fixture.path().join("copy.tar");
        fs::copy(&cut.half, &copy).unwrap();
        run(resume(&sshd, &cut.generation, &copy)).ok();
        let same = fs::read(&cut.whole).unwrap() == fs::read(&copy).unwrap();
        assert!(same, "{name}: another file than a copy in one go");
    }
}

/// A file of the machine that is rewritten with its size and mtime kept, as `cp -p` and package managers do.
struct Rewritten {
    mounted: Mounted,
    _fixture: Fixture,
    file: PathBuf,
    shown: PathBuf,
}

impl Rewritten {
    fn new() -> Self {
        let fixture = Fixture::new();
        let place = fixture.empty("m");
        let file = place.home.join("file");
        fs::write(&file, [b'a'; 10_000]).unwrap();
        run(program("touch", ["-d", "1985-10-26"]).arg(&file)).silent();
        let mounted = Mounted::new(&fixture);
        let shown = mounted.rootfs("m").join("home/codchi/file");
        Self { mounted, _fixture: fixture, file, shown }
    }

    fn rewrite(&self, byte: u8) {
        let before = fs::metadata(&self.file).unwrap();
        let file = File::options().write(true).open(&self.file).unwrap();
        file.write_all_at(&[byte; 10_000], 0).unwrap();
        file.set_modified(before.modified().unwrap()).unwrap();
        let after = fs::metadata(&self.file).unwrap();
        assert_eq!(
            (before.len(), before.mtime(), before.ino()),
            (after.len(), after.mtime(), after.ino())
        );
    }
}

#[test]
fn a_file_rewritten_with_size_and_mtime_kept_is_seen_by_the_next_open() {
    let machine = Rewritten::new();
    for byte in [b'b', b'c', b'd'] {
        fs::read(&machine.shown).unwrap();
        machine.rewrite(byte);
        let bytes = fs::read(&machine.shown).unwrap();
        assert!(bytes.iter().all(|b| *b == byte), "old bytes of a file that was rewritten");
    }
    drop(machine.mounted);
}

#[test]
fn a_file_rewritten_with_size_and_mtime_kept_is_seen_by_an_open_handle() {
    let machine = Rewritten::new();
    let handle = File::open(&machine.shown).unwrap();
    for byte in [b'b', b'c', b'd'] {
        handle.read_at(&mut [0; 10_000], 0).unwrap();
        machine.rewrite(byte);
        wait_until("the new bytes through an old handle", || {
            let mut bytes = [0; 10_000];
            assert_eq!(handle.read_at(&mut bytes, 0).unwrap(), bytes.len());
            bytes == [byte; 10_000]
        });
    }
    drop(machine.mounted);
}

/// What git compares of a file with its index: size, times, owner, and the lower half of the inode number.
#[test]
fn git_status_reads_no_file_that_its_index_knows() {
    let fixture = Fixture::new();
    let home = fixture.empty("m").home;
    let repository = home.join("project");
    for number in 0..50 {
        Maker::new(&home).file(&format!("project/src/f{number}"), format!("{number}\n").as_bytes());
    }
    // As whoever works in the machine made it.
    let git = |directory: &Path, words: &[&str]| {
        let mut git =
            program("git", ["-c", "safe.directory=*", "-c", "user.name=x", "-c", "user.email=x@y"]);
        git.args(words).current_dir(directory);
        git
    };
    run(git(&repository, &["init", "-q"])).ok();
    run(program("chown", ["-R", "1000:100"]).arg(&repository)).silent();
    // A file as young as the index is read all the same.
    run(program("find", ["src", "-type", "f", "-exec", "touch", "-d", "-1 hour", "{}", "+"])
        .current_dir(&repository))
    .ok();
    let start = std::time::SystemTime::now();
    wait_until("another second", || start.elapsed().is_ok_and(|time| time.as_secs_f64() > 1.1));
    run(git(&repository, &["add", "."])).ok();
    run(git(&repository, &["commit", "-qm", "x"])).ok();
    let read = |top: &Path| {
        let trace = fixture.path().join("trace");
        let mut strace = program("strace", ["-f", "-e", "trace=openat,open", "-o"]);
        strace.arg(&trace).args(["git", "-c", "safe.directory=*", "status", "--porcelain"]);
        assert_eq!(run(strace.current_dir(top).env("GIT_OPTIONAL_LOCKS", "0")).ok().out(), "");
        fs::read_to_string(&trace).unwrap().lines().filter(|line| line.contains("\"src/f")).count()
    };
    assert_eq!(read(&repository), 0, "on the disk");
    for options in [&[][..], &["-o", "inode32"]] {
        let mounted = Mounted::with(&fixture, options);
        let project = mounted.rootfs("m").join("home/codchi/project");
        assert_eq!(read(&project), 0, "in the mount, {options:?}");
        mounted.unmount();
    }
}
