//! codchifs as a child process, mounted.

use super::fixture::Fixture;
use super::processes::children;
use super::{wait_until, within};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// One line of /proc/self/mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountEntry {
    pub(crate) options: Vec<String>,
    pub(crate) kind: String,
    pub(crate) source: String,
}

/// A path as the table of mounts has it: blanks, line breaks and backslashes are octal numbers.
fn unescaped(path: &str) -> PathBuf {
    let octal = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    octal.into_iter().fold(path.to_owned(), |path, (from, to)| path.replace(from, to)).into()
}

/// All mounts on this very directory, the lowest first.
pub(crate) fn mounts_on(point: &Path) -> Vec<MountEntry> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let entry = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let (left, right): (Vec<_>, Vec<_>) =
            (left.split(' ').collect(), right.split(' ').collect());
        (unescaped(left[4]) == point).then(|| MountEntry {
            options: left[5].split(',').map(str::to_owned).collect(),
            kind: right[0].to_owned(),
            source: right[1].to_owned(),
        })
    };
    text.lines().filter_map(entry).collect()
}

/// Mount points below a directory, the deepest first.
pub(crate) fn mounts_below(top: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(unescaped);
    let mut points: Vec<_> = points.filter(|point| point.starts_with(top)).collect();
    points.sort();
    points.reverse();
    points
}

/// Unmounts as umount(8) does. Whoever looks at all mounts (df, the desktop of this host) holds each of them for a moment.
#[track_caller]
pub(crate) fn unmount_unused(point: &Path) {
    let mut result = Ok(());
    wait_until(&format!("nobody uses {}", point.display()), || {
        result = unmount(point, UnmountFlags::empty());
        result != Err(Errno::BUSY)
    });
    result.unwrap();
}

/// Unmounts and ends the process when dropped.
#[derive(Debug)]
pub(crate) struct Mounted {
    point: PathBuf,
    child: Child,
    log: PathBuf,
}

impl Mounted {
    /// Mounts the state at its usual place.
    pub(crate) fn new(fixture: &Fixture) -> Self {
        Self::with(fixture, &[])
    }

    /// The same with more arguments for `mount`. Returns when the mount is in the table and answers.
    pub(crate) fn with(fixture: &Fixture, args: &[&str]) -> Self {
        Self::spawn(fixture, args).ready()
    }

    /// Of any command that ends in `mount --foreground ...`; the mount point is appended.
    pub(crate) fn of(command: Command, point: PathBuf, log: PathBuf) -> Self {
        Self::start(command, point, log).ready()
    }

    /// The same of another user's, which is in the table.
    pub(crate) fn unseen(command: Command, point: PathBuf, log: PathBuf) -> Self {
        let mut mounted = Self::start(command, point, log);
        mounted.is_in_the_table();
        mounted
    }

    fn is_in_the_table(&mut self) {
        wait_until("the mount", || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("codchifs mount ended: {status}\n{}", self.log());
            }
            mounts_on(&self.point).iter().any(|entry| entry.kind.starts_with("fuse"))
        });
    }

    fn ready(self) -> Self {
        let mut mounted = self;
        mounted.is_in_the_table();
        let point = mounted.point.clone();
        within("stat of the mount point", move || fs::symlink_metadata(point)).unwrap();
        mounted
    }

    /// Starts it and waits for nothing.
    pub(crate) fn spawn(fixture: &Fixture, args: &[&str]) -> Self {
        let mut command = fixture.command(["mount", "--foreground"]);
        command.args(args);
        Self::start(command, fixture.mount_point(), fixture.path().join("log"))
    }

    fn start(mut command: Command, point: PathBuf, log: PathBuf) -> Self {
        let output = File::options().append(true).create(true).open(&log).unwrap();
        let child = command
            .arg(&point)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Self { point, child, log }
    }

    pub(crate) fn point(&self) -> &Path {
        &self.point
    }

    pub(crate) fn tar(&self, machine: &str) -> PathBuf {
        self.point.join(machine).join("export.tar")
    }

    pub(crate) fn rootfs(&self, machine: &str) -> PathBuf {
        self.point.join(machine).join("rootfs")
    }

    pub(crate) fn report(&self, machine: &str) -> serde_json::Value {
        let path = self.point.join(machine).join("report.json");
        let text = within("report.json", move || fs::read(path)).unwrap();
        serde_json::from_slice(&text).expect("report.json is JSON")
    }

    /// The process that mounted.
    pub(crate) fn host(&self) -> u32 {
        self.child.id()
    }

    /// The process that answers the kernel.
    pub(crate) fn server(&self) -> u32 {
        let [server] = children(self.host())[..] else { panic!("no server\n{}", self.log()) };
        server
    }

    /// What it printed and logged so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// What the serving process has open, as /proc shows it.
    pub(crate) fn open_files(&self) -> Vec<PathBuf> {
        let fds = fs::read_dir(format!("/proc/{}/fd", self.server())).unwrap();
        fds.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok()).collect()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the process to end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the end of codchifs mount", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Unmounts and expects a clean end.
    pub(crate) fn unmount(mut self) {
        unmount_unused(&self.point);
        let status = self.wait();
        assert!(status.success(), "after umount: {status}\n{}", self.log());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A detached mount whose server is gone lets everybody go who still waits on it.
        while !mounts_on(&self.point).is_empty() {
            if unmount(&self.point, UnmountFlags::DETACH).is_err() {
                break;
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("log of codchifs:\n{}", self.log());
        }
    }
}
