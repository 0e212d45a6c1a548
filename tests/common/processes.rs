//! Processes as /proc shows them, and calls that they are made to make.

use super::{program, run, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// The fields of `/proc/PATH/status`.
pub(crate) fn status(path: impl std::fmt::Display) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{path}/status")).unwrap();
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_owned(), value.trim().replace('\t', " "))).collect()
}

/// Its threads.
pub(crate) fn threads(pid: u32) -> Vec<u32> {
    numbers(&format!("/proc/{pid}/task"))
}

/// Processes that it started and that run.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let of = |thread| fs::read_to_string(format!("/proc/{pid}/task/{thread}/children"));
    let text: String = threads(pid).into_iter().filter_map(|thread| of(thread).ok()).collect();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// What each of its descriptors is.
pub(crate) fn descriptors(pid: u32) -> BTreeMap<u32, PathBuf> {
    let directory = format!("/proc/{pid}/fd");
    let link = |fd| Some((fd, fs::read_link(format!("{directory}/{fd}")).ok()?));
    numbers(&directory).into_iter().filter_map(link).collect()
}

/// Every process with the words that it was started with.
pub(crate) fn command_lines() -> Vec<(u32, String)> {
    let line = |pid| Some((pid, fs::read(format!("/proc/{pid}/cmdline")).ok()?));
    let lines = numbers("/proc").into_iter().filter_map(line);
    lines.map(|(pid, line)| (pid, String::from_utf8_lossy(&line).into_owned())).collect()
}

/// Sends it.
pub(crate) fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

fn numbers(directory: &str) -> Vec<u32> {
    let entries = fs::read_dir(directory).unwrap_or_else(|why| panic!("{directory}: {why}"));
    entries.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok()).collect()
}

pub(crate) fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// KiB of memory that it has.
pub(crate) fn resident(pid: u32) -> u64 {
    status(pid)["VmRSS"].split(' ').next().unwrap().parse().unwrap()
}

/// Bytes of memory that any codchifs below this process has had at most, of those that run.
pub(crate) fn peak_below(pid: u32) -> u64 {
    let mut peak = 0;
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    for task in tasks {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().map(|child| child.parse().unwrap()) {
            // A process that has ended has no memory, nor one that is gone a file.
            let text = fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
            // Before it becomes another program, a process has the memory of who started it. `exe` is of /proc/self/exe.
            let is_ours =
                ["Name:\tcodchifs\n", "Name:\texe\n"].iter().any(|name| text.starts_with(name));
            let mut lines = text.lines().filter(|_| is_ours);
            let line = lines.find_map(|line| line.strip_prefix("VmHWM:"));
            let number = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
            peak = peak.max(number.unwrap_or(0) << 10).max(peak_below(child));
        }
    }
    peak
}

/// A process that does nothing until it is made to, and ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Idle(Child);

impl Idle {
    /// `before` ends in what runs the words after it.
    pub(crate) fn new(mut before: Command) -> Self {
        let child = before.args(["sleep", "1000"]).stdin(Stdio::null()).spawn().unwrap();
        let idle = Self(child);
        wait_until("the process", || {
            fs::read_to_string(format!("/proc/{}/comm", idle.pid())).unwrap() == "sleep\n"
        });
        idle
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// By which signal it has ended.
    pub(crate) fn killed_by(&mut self) -> Option<i32> {
        self.0.try_wait().unwrap().and_then(|status| status.signal())
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A system call with C expressions as arguments.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) number: libc::c_long,
    pub(crate) arguments: String,
}

pub(crate) fn call(name: &str, number: libc::c_long, arguments: impl Into<String>) -> Call {
    Call { name: name.into(), number, arguments: arguments.into() }
}

/// Has the process itself make these calls, one after the other: what it got, or the number of the error. A program that it
/// executes is the last that it does.
pub(crate) fn make(pid: u32, calls: &[Call]) -> Vec<Result<i64, i32>> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/make.py");
    let file = tempfile::NamedTempFile::new().unwrap();
    let lines =
        calls.iter().map(|Call { number, arguments, .. }| format!("{number} {arguments}\n"));
    fs::write(file.path(), lines.collect::<String>()).unwrap();
    let mut python = program("/usr/bin/python3", [script, &pid.to_string()]);
    let done = run(python.arg(file.path())).ok();
    let got = done.out().lines().map(|line| line.parse().unwrap()).collect::<Vec<i64>>();
    assert_eq!(got.len(), calls.len(), "{got:?}");
    got.into_iter().map(|got| if got < 0 { Err(-got as i32) } else { Ok(got) }).collect()
}
