//! A file shrinks after the scan: whoever copies the archive has everything else and is told, whatever the program.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::clients::{CLIENTS, Client, Leaves, Stopper, restic_in, wrapped};
use common::fixture::{Fixture, Maker};
use common::mounted::Mounted;
use common::readers::Reader;
use common::ssh::Sshd;
use common::{Done, program, run, wait_until};
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

const PAGE: u64 = 4096;
/// What is left of the file that shrinks.
const LEFT: usize = 1000;
const TORN: &str = "home/codchi/m-torn";

/// Bytes without a pattern that a shifted copy could match.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// A mounted machine of three files, of which the second can be torn.
struct Machine {
    mounted: Mounted,
    fixture: Fixture,
    files: [(&'static str, Vec<u8>); 3],
}

impl Machine {
    fn new() -> Self {
        let fixture = Fixture::new();
        // The first is longer than what the kernel reads ahead, so that the second is not read with it.
        let files = [
            ("a-before", noise(1, 6 << 20)),
            ("m-torn", noise(2, 3_000_000)),
            ("z-after", noise(3, 700_001)),
        ];
        let home = fixture.empty("m").home;
        for (name, content) in &files {
            Maker::new(&home).file(*name, content);
        }
        let mounted = Mounted::new(&fixture);
        Self { fixture, mounted, files }
    }

    fn shrink(&self) {
        let file = File::options().write(true).open(self.fixture.place("m").home.join("m-torn"));
        file.unwrap().set_len(LEFT as u64).unwrap();
    }

    /// Makes the file whole again, with other bytes. Inode and size of the archive that has it; `torn` is the inode of
    /// the one before.
    fn restored(&mut self, seed: u64, torn: u64) -> (u64, u64) {
        self.files[1].1 = noise(seed, 3_000_000);
        Maker::new(&self.fixture.place("m").home).file("m-torn", &self.files[1].1);
        let all: u64 = self.files.iter().map(|(_, content)| content.len() as u64).sum();
        let mut found = (0, 0);
        wait_until("a scan of the whole machine", || {
            let stat = rustix::fs::lstat(self.mounted.tar("m")).unwrap();
            assert_ne!(stat.st_ino, torn, "the torn export is still there");
            found = (stat.st_ino, stat.st_size as u64);
            found.1 > all
        });
        found
    }

    /// Checks what a program left of the torn archive at `to`.
    fn check_copy(&self, what: &str, to: &Path, size: u64) {
        let members = Reader::check_torn(to, size);
        for (name, _) in &self.files {
            assert!(
                members.contains(&format!("home/codchi/{name}").into_bytes()),
                "{what}: {name}"
            );
        }
        let directory = tempfile::tempdir_in(self.fixture.path()).unwrap();
        Reader::Gnu.extract(to, directory.path(), "C");
        self.check_tree(what, directory.path());
    }

    fn check_tree(&self, what: &str, root: &Path) {
        for (name, content) in &self.files {
            let mut expected = content.clone();
            if *name == "m-torn" {
                expected[LEFT..].fill(0);
            }
            let found = fs::read(root.join("home/codchi").join(name)).unwrap();
            assert!(found == expected, "{what}: {name}");
        }
    }

    /// Whether what a program left is all of an export that was made after the file had shrunk.
    fn is_next(&self, client: &Client, to: &Path, torn_size: u64) -> bool {
        match client.leaves {
            Leaves::Tree => fs::metadata(to.join(TORN)).unwrap().len() == LEFT as u64,
            Leaves::Nothing => {
                let mut restic = restic_in(&to.with_extension("restic"));
                let list = run(restic.args(["ls", "--long", "latest"])).ok().out();
                list.contains("export.tar") && !list.contains(&format!(" {torn_size} "))
            }
            Leaves::Copy | Leaves::Part | Leaves::NextExport => {
                let out = run(program("tar", ["-xOf"]).arg(to).arg(format!("./{TORN}"))).ok();
                out.stdout == self.files[1].1[..LEFT]
            }
        }
    }

    /// Checks that a program was told, and what it left.
    fn check(&self, client: &Client, what: &str, done: Done, to: &Path, size: u64) {
        let report = self.mounted.report("m");
        done.exits(client.code);
        if client.leaves == Leaves::NextExport {
            run(program("cmp", [self.mounted.tar("m"), to.into()])).silent();
            let earlier = report["earlier"].as_array().unwrap();
            let told = |past: &serde_json::Value| past["changed"][0]["path"] == format!("/{TORN}");
            assert!(told(&report) || earlier.iter().any(told), "{what}: {report}");
            return;
        }
        let changed = &report["changed"];
        assert_eq!(changed[0]["path"], format!("/{TORN}"), "{what}: {report}");
        assert_eq!((&changed[0]["reason"], &changed[0]["torn"]), (&"shrank".into(), &true.into()));
        match client.leaves {
            Leaves::Copy => self.check_copy(what, to, size),
            Leaves::Part => assert!(fs::metadata(to).unwrap().len() <= size, "{what}"),
            Leaves::Tree => self.check_tree(what, to),
            Leaves::Nothing => {
                let mut restic = restic_in(&to.with_extension("restic"));
                let list = run(restic.args(["ls", "latest"])).ok();
                assert!(
                    !list.out().contains("\n/export.tar") && !list.out().contains("m/export.tar\n"),
                    "{what}: {}",
                    list.out()
                );
            }
            Leaves::NextExport => unreachable!(),
        }
    }
}

#[test]
fn every_program_is_told_that_what_it_read_is_torn() {
    let mut machine = Machine::new();
    let sshd = Sshd::start(&machine.fixture, &[]);
    let mut torn = 0;
    for (number, client) in CLIENTS.iter().enumerate() {
        for attempt in 0.. {
            let to = machine.fixture.path().join(format!("copy-{number}-{attempt}"));
            let command = (client.command)(&sshd, &machine.mounted.tar("m"), &to);
            let (ino, size) = machine.restored(100 + number as u64 + attempt, torn);
            machine.shrink();
            let done = run(command);
            torn = ino;
            // Where the program took seconds to open the file, it has the next export, which is whole.
            if done.code == Some(0) && attempt < 20 && machine.is_next(client, &to, size) {
                continue;
            }
            machine.check(client, client.name, done, &to, size);
            break;
        }
    }
}

/// Reads all of `file` in pieces; zeros where it is refused.
fn read_all(file: &File, size: u64) {
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < size {
        let count = file.read_at(&mut buffer, at).unwrap_or(0);
        if count == 0 {
            return;
        }
        at += count as u64;
    }
}

#[test]
fn every_program_is_told_when_another_reader_met_the_tear() {
    let mut machine = Machine::new();
    let tar = machine.mounted.tar("m");
    let mut torn = 0;
    for (number, client) in CLIENTS.iter().enumerate() {
        let stopper = Stopper::new(machine.fixture.path().join(format!("strace-{number}")));
        let wrapper = stopper.wrapper(&tar);
        let sshd = Sshd::start(&machine.fixture, if client.remote { &wrapper } else { &[] });
        let to = machine.fixture.path().join(format!("copy-{number}"));
        let mut command = (client.command)(&sshd, &tar, &to);
        if !client.remote {
            command = wrapped(&wrapper, &command);
        }
        let (ino, size) = machine.restored(200 + number as u64, torn);
        let first = File::open(&tar).unwrap();
        let last_page = size / PAGE * PAGE - PAGE;
        // The kernel has the page that will be refused.
        first.read_at(&mut [0; PAGE as usize], last_page).unwrap();
        let done = stopper.run(command, || {
            machine.shrink();
            read_all(&first, last_page);
            wait_until("the last page is refused", || {
                first.read_at(&mut [0; PAGE as usize], last_page).is_err()
            });
        });
        machine.check(client, &format!("{} after another", client.name), done, &to, size);
        torn = ino;
    }
}
