//! What the integration tests share: machines on disk, a mounted codchifs, other people's programs, tree snapshots.
//!
//! The tests make device nodes, owners and mounts, so they run as root, and a missing tool fails them.
#![allow(dead_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

pub(crate) mod alone;
pub(crate) mod asked;
pub(crate) mod clients;
pub(crate) mod debian;
pub(crate) mod disk;
pub(crate) mod docker;
pub(crate) mod expected;
pub(crate) mod faulty;
pub(crate) mod fixture;
pub(crate) mod guide;
pub(crate) mod liar;
pub(crate) mod list;
pub(crate) mod lxd;
pub(crate) mod mounted;
pub(crate) mod pages;
pub(crate) mod plan;
pub(crate) mod plants;
pub(crate) mod played;
pub(crate) mod processes;
pub(crate) mod readers;
pub(crate) mod reading;
pub(crate) mod room;
pub(crate) mod sandboxed;
pub(crate) mod snapshot;
pub(crate) mod ssh;
pub(crate) mod stage;
pub(crate) mod target;
pub(crate) mod terminals;
pub(crate) mod xattr;

use std::borrow::BorrowMut;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// No test waits longer than this for one thing. Shorter ones fail where a machine has much else to do: how long
/// something takes is for benches/.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(5);

/// Fails with a clear text unless the test is root and /dev/fuse is there.
pub(crate) fn require_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "these tests make device nodes, foreign owners and mounts: run them as root (tests/run)"
    );
    assert!(
        Path::new("/dev/fuse").exists(),
        "/dev/fuse is missing: load the fuse module, or give the container the device"
    );
}

/// Waits until `condition` holds; `what` is the text of the failure.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(POLL);
    }
}

/// Runs `work` in a thread of its own, so that a hanging file system fails the test instead of hanging it.
pub(crate) fn within<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let _ = sender.send(work());
    });
    match receiver.recv_timeout(DEADLINE) {
        Ok(value) => value,
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
            panic!("{what}: hangs, {DEADLINE:?} passed")
        }
        Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(thread.join().expect_err("the thread sent nothing"))
        }
    }
}

/// What a program did.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) line: String,
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Done {
    pub(crate) fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub(crate) fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Fails unless the exit status is `code`.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "exit status of: {}\nstdout: {}\nstderr: {}",
            self.line,
            self.out(),
            self.err()
        );
        self
    }

    /// Fails unless it succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        self.exits(0)
    }

    /// Fails unless it succeeded without a word.
    #[track_caller]
    pub(crate) fn silent(self) -> Self {
        let done = self.ok();
        assert!(
            done.stdout.is_empty() && done.stderr.is_empty(),
            "output of: {}\nstdout: {}\nstderr: {}",
            done.line,
            done.out(),
            done.err()
        );
        done
    }
}

/// Runs to the end, or kills it at the deadline and fails. Output goes through files, so a background child that
/// keeps them open blocks nobody.
#[track_caller]
pub(crate) fn run(command: impl BorrowMut<Command>) -> Done {
    run_while(command, || ())
}

/// As [`run`], of what may take longer.
#[track_caller]
pub(crate) fn run_for(limit: Duration, command: impl BorrowMut<Command>) -> Done {
    run_watched(limit, command, || ())
}

/// As [`run`], calling `meanwhile` every now and then.
#[track_caller]
pub(crate) fn run_while(command: impl BorrowMut<Command>, meanwhile: impl FnMut()) -> Done {
    run_watched(DEADLINE, command, meanwhile)
}

/// As [`run`], with an open file as its standard input, which it alone has open.
#[track_caller]
pub(crate) fn run_with_input(mut command: impl BorrowMut<Command>, input: File) -> Done {
    command.borrow_mut().stdin(input);
    run_from(DEADLINE, command, || ())
}

#[track_caller]
fn run_watched(
    limit: Duration,
    mut command: impl BorrowMut<Command>,
    meanwhile: impl FnMut(),
) -> Done {
    command.borrow_mut().stdin(Stdio::null());
    run_from(limit, command, meanwhile)
}

#[track_caller]
fn run_from(
    limit: Duration,
    mut command: impl BorrowMut<Command>,
    mut meanwhile: impl FnMut(),
) -> Done {
    let command = command.borrow_mut();
    let line = format!("{command:?}");
    let (mut stdout, mut stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let mut child = command
        .stdout(stdout.try_clone().unwrap())
        .stderr(stderr.try_clone().unwrap())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {line}: {error}"));
    // The command keeps what it hands on.
    command.stdin(Stdio::null());
    let end = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > end {
            let _ = child.kill();
            panic!("{line}: hangs\n{}", String::from_utf8_lossy(&read_back(&mut stderr)));
        }
        meanwhile();
        std::thread::sleep(POLL);
    };
    let (stdout, stderr) = (read_back(&mut stdout), read_back(&mut stderr));
    Done { line, code: status.code(), stdout, stderr }
}

/// Has a command hear nothing of what the variables here say to codchifs.
pub(crate) fn without_variables(command: &mut Command) {
    command.env_remove("SUDO_USER");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CODCHI") {
            command.env_remove(name);
        }
    }
}

/// A program with its arguments, in the C locale.
pub(crate) fn program<S: AsRef<OsStr>>(name: &str, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(name);
    command.args(args).env("LC_ALL", "C").env_remove("TAR_OPTIONS");
    command
}

fn read_back(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Keeps something of this host to one test at a time, of whatever checkout, until it is dropped.
pub(crate) fn host_lock(name: &str) -> File {
    let path = Path::new("/run/lock").join(format!("codchifs-tests-{name}"));
    let lock = File::create(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    lock
}

/// A directory that `make` filled, in this run or in an earlier one; `cargo clean` removes it.
pub(crate) fn cached(name: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let all = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let directory = all.join(name);
    // Another test may be making it.
    let lock = File::create(all.join(format!("{name}.lock"))).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    if !directory.exists() {
        let partial = all.join(format!("{name}.partial"));
        // Of a run that was ended.
        if partial.exists() {
            std::fs::remove_dir_all(&partial)
                .unwrap_or_else(|why| panic!("{}: {why}", partial.display()));
        }
        std::fs::create_dir(&partial).unwrap();
        make(&partial);
        std::fs::rename(&partial, &directory).unwrap();
    }
    directory
}

/// A directory with a package of npm in `node_modules`.
pub(crate) fn npm(package: &str) -> PathBuf {
    cached(&package.replace(['@', '/'], "-"), |directory| {
        let words = ["install", "--no-audit", "--no-fund", "--no-package-lock", "--prefix"];
        run_for(5 * DEADLINE, program("npm", words).arg(directory).arg(package)).ok();
    })
}

/// Whether `needle` occurs in `bytes`.
pub(crate) fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}
