//! Programs that copy an `export.tar`.

use super::ssh::Sshd;
use super::{Done, program, run_while};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is left where the copy should be, when the export was torn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaves {
    /// Everything, or everything but the last page.
    Copy,
    /// rsync tries a file that it could not read once more, meets the next export, and has that one whole.
    NextExport,
    /// What it had sent before it gave up.
    Part,
    /// The members, extracted.
    Tree,
    /// Nothing: a snapshot without the file.
    Nothing,
}

/// A program that copies `from` to `to`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client {
    pub(crate) name: &'static str,
    pub(crate) command: fn(&Sshd, from: &Path, to: &Path) -> Command,
    /// Exit status when it could not read everything.
    pub(crate) code: i32,
    pub(crate) leaves: Leaves,
    /// The server reads, and not the program itself.
    pub(crate) remote: bool,
}

const fn local(
    name: &'static str,
    command: fn(&Sshd, &Path, &Path) -> Command,
    code: i32,
    leaves: Leaves,
) -> Client {
    Client { name, command, code, leaves, remote: false }
}

const fn remote(
    name: &'static str,
    command: fn(&Sshd, &Path, &Path) -> Command,
    code: i32,
) -> Client {
    Client { name, command, code, leaves: Leaves::Copy, remote: true }
}

fn of(name: &str, args: &[&str], from: &Path, to: &Path) -> Command {
    let mut command = program(name, args);
    command.args([from, to]);
    command
}

fn extraction(name: &str, from: &Path, to: &Path) -> Command {
    fs::create_dir_all(to).unwrap();
    let mut command = program(name, ["-xf"]);
    command.arg(from).arg("-C").arg(to);
    command
}

fn busybox_tar(from: &Path, to: &Path) -> Command {
    fs::create_dir_all(to).unwrap();
    let mut command = program("busybox", ["tar", "-xf"]);
    command.arg(from).arg("-C").arg(to);
    command
}

/// A new repository beside `to`.
fn restic(from: &Path, to: &Path) -> Command {
    let repository = to.with_extension("restic");
    super::run(restic_in(&repository).arg("init")).ok();
    let mut command = restic_in(&repository);
    command.arg("backup").arg(from);
    command
}

/// restic with a repository and no cache outside of it.
pub(crate) fn restic_in(repository: &Path) -> Command {
    let mut command = program("restic", ["--no-cache", "-r"]);
    command.arg(repository).env("RESTIC_PASSWORD", "x");
    command
}

pub(crate) const CLIENTS: &[Client] = &[
    local("cp", |_, f, t| of("cp", &[], f, t), 1, Leaves::Copy),
    local("cat", |_, f, t| of("sh", &["-c", "exec cat -- \"$0\" >\"$1\""], f, t), 1, Leaves::Copy),
    local(
        "dd",
        |_, f, t| of("sh", &["-c", "exec dd bs=1M if=\"$0\" of=\"$1\""], f, t),
        1,
        Leaves::Copy,
    ),
    local("install", |_, f, t| of("install", &["-m", "600"], f, t), 1, Leaves::Copy),
    local("gio copy", |_, f, t| of("gio", &["copy"], f, t), 1, Leaves::Copy),
    local("busybox cp", |_, f, t| of("busybox", &["cp"], f, t), 1, Leaves::Copy),
    local("rsync", |_, f, t| of("rsync", &[], f, t), 23, Leaves::NextExport),
    local("rsync --partial", |_, f, t| of("rsync", &["--partial"], f, t), 23, Leaves::NextExport),
    local("rsync --inplace", |_, f, t| of("rsync", &["--inplace"], f, t), 23, Leaves::NextExport),
    local("restic", |_, f, t| restic(f, t), 3, Leaves::Nothing),
    local("tar -x", |_, f, t| extraction("tar", f, t), 2, Leaves::Tree),
    local("bsdtar -x", |_, f, t| extraction("bsdtar", f, t), 1, Leaves::Tree),
    local("busybox tar -x", |_, f, t| busybox_tar(f, t), 1, Leaves::Tree),
    remote(
        "scp from",
        |s, f, t| {
            let mut command = s.client("scp");
            command.arg(Sshd::remote(f)).arg(t);
            command
        },
        1,
    ),
    local(
        "scp to",
        |s, f, t| {
            let mut command = s.client("scp");
            command.arg(f).arg(Sshd::remote(t));
            command
        },
        255,
        Leaves::Part,
    ),
    remote(
        "sftp get",
        |s, f, t| {
            let mut command = s.client("sftp");
            command.arg(Sshd::remote(f)).arg(t);
            command
        },
        1,
    ),
];

/// Makes a program stop at its first read of one file.
#[derive(Debug)]
pub(crate) struct Stopper {
    log: PathBuf,
    resumed: usize,
}

impl Stopper {
    /// What to put before the program's own arguments.
    pub(crate) fn wrapper(&self, file: &Path) -> Vec<String> {
        let calls = "read,pread64,readv,preadv,copy_file_range,sendfile,splice,mmap";
        ["strace", "-f", "-o", self.log.to_str().unwrap(), "-P", file.to_str().unwrap()]
            .map(str::to_owned)
            .into_iter()
            .chain([format!("--trace={calls}"), format!("--inject={calls}:signal=SIGSTOP:when=1")])
            .collect()
    }

    pub(crate) fn new(log: PathBuf) -> Self {
        Self { log, resumed: 0 }
    }

    /// Runs `command`, part of which stops; does `meanwhile` then, once, and lets it go on.
    pub(crate) fn run(mut self, command: Command, meanwhile: impl FnOnce()) -> Done {
        let mut meanwhile = Some(meanwhile);
        let done = run_while(command, || {
            for pid in self.stopped() {
                if let Some(meanwhile) = meanwhile.take() {
                    meanwhile();
                }
                // The threads of a program stop one by one, and some may have ended since.
                let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::CONT);
            }
        });
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        assert!(meanwhile.is_none(), "{}: never read the file\n{text}{}", done.line, done.err());
        done
    }

    /// Processes that have stopped since the last call.
    fn stopped(&mut self) -> Vec<i32> {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines = text.lines().filter(|line| line.contains("--- stopped by SIGSTOP ---"));
        let pids: Vec<_> = lines
            .skip(self.resumed)
            .map(|line| line.split(' ').next().unwrap().parse().unwrap())
            .collect();
        self.resumed += pids.len();
        pids
    }
}

/// `command` with another program before it.
pub(crate) fn wrapped(wrapper: &[String], command: &Command) -> Command {
    let mut outer = program(&wrapper[0], &wrapper[1..]);
    outer.arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(key, value),
            None => outer.env_remove(key),
        };
    }
    outer
}
