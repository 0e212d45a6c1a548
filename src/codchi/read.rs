//! Opens of files that somebody else may have planted: never blocks, never writes, never follows.

use super::{Error, MachineName};
use crate::walk::{self, WalkError};
use rustix::fs::{FileType, FlockOperation, Stat};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of each file that are read at most. Codchi's are a few kilobytes; a parser takes up to a hundred times the memory
/// of its text, in a process that may be root's.
const MAX_CONFIG: u64 = 2 << 20;
const MAX_FLAKE: u64 = 512 << 10;
const MAX_LOCK: u64 = 2 << 20;
const MAX_SETTINGS: u64 = 64 << 10;

fn max_size(name: &str) -> u64 {
    match name {
        "flake.nix" => MAX_FLAKE,
        "flake.lock" => MAX_LOCK,
        _ => MAX_CONFIG,
    }
}

/// A limit as people read it.
fn in_words(limit: u64) -> String {
    match limit >> 20 {
        0 => format!("{} KiB", limit >> 10),
        mib => format!("{mib} MiB"),
    }
}

/// How long a writer may hold the lock before the file is read without it.
const LOCK_DEADLINE: Duration = Duration::from_millis(500);
/// How often the lock is tried.
const LOCK_INTERVAL: Duration = Duration::from_millis(10);

/// A point in time as the file system keeps it, since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    /// Seconds, negative before 1970.
    pub sec: i64,
    /// Nanoseconds on top of the seconds, below 10^9.
    pub nsec: u32,
}

/// When the files changed that the generated ones come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Times {
    /// config.json's mtime, which all generated files carry.
    pub config_mtime: Time,
    /// config.json's ctime.
    pub config_ctime: Time,
    /// The ctime of the machine's flake.nix, where it has one.
    pub flake_nix_ctime: Option<Time>,
    /// The ctime of the machine's flake.lock, where it has one.
    pub flake_lock_ctime: Option<Time>,
}

impl Times {
    /// The newest ctime of the three.
    pub fn newest_ctime(&self) -> Time {
        let beside = self.flake_nix_ctime.max(self.flake_lock_ctime);
        beside.map_or(self.config_ctime, |time| time.max(self.config_ctime))
    }
}

/// A machine's directory under Codchi's config, held open, with the words for its errors.
pub(super) struct MachineDir<'a> {
    fd: OwnedFd,
    path: &'a Path,
    machine: &'a MachineName,
}

/// A file as it was when it was opened.
pub(super) struct Text {
    pub(super) content: String,
    /// Whether a lock that was asked for was had.
    pub(super) locked: bool,
    pub(super) mtime: Time,
    pub(super) ctime: Time,
}

impl<'a> MachineDir<'a> {
    /// That of `machine` in `all`, the directory of all machines; it is said to be at `path`.
    pub(super) fn open(
        all: Result<OwnedFd, WalkError>,
        path: &'a Path,
        machine: &'a MachineName,
    ) -> Result<Self, Error> {
        let opened = all.and_then(|all| walk::open_directory_at(all, OsStr::new(machine.as_str())));
        let fd = opened.map_err(|cause| Error::Read {
            machine: machine.clone(),
            path: path.to_owned(),
            cause: cause.into(),
        })?;
        Ok(Self { fd, path, machine })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Reads a file; `None` where there is none. `lock` waits for a writer, up to the deadline.
    pub(super) fn read(&self, name: &str, lock: bool) -> Result<Option<Text>, Error> {
        if self.stat(name)?.is_none() {
            return Ok(None);
        }
        // The look above keeps devices from being opened at all; that an open waits for nobody, and the look below, cover
        // whoever swaps the file in between.
        let fd = match walk::open_file_at(&self.fd, OsStr::new(name)) {
            Ok(fd) => fd,
            Err(cause) if cause.errno() == Some(Errno::NOENT) => return Ok(None),
            Err(cause) => return Err(self.fail(name, cause.into())),
        };
        let locked = lock && lock_shared(&fd);
        let stat = rustix::fs::fstat(&fd).map_err(|cause| self.fail(name, cause.into()))?;
        self.check(name, &stat)?;
        let mut bytes = Vec::new();
        File::from(fd)
            .take(max_size(name) + 1)
            .read_to_end(&mut bytes)
            .map_err(|cause| self.fail(name, cause))?;
        if bytes.len() as u64 > max_size(name) {
            return Err(self.too_large(name));
        }
        let content = String::from_utf8(bytes)
            .map_err(|_| Error::NotText { machine: self.machine.clone(), path: self.path(name) })?;
        Ok(Some(Text { content, locked, mtime: mtime(&stat), ctime: ctime(&stat) }))
    }

    /// The times of config.json and of the files beside it.
    pub(super) fn times(&self) -> Result<Times, Error> {
        let config = self
            .stat("config.json")?
            .ok_or_else(|| self.fail("config.json", Errno::NOENT.into()))?;
        let beside = |name| Ok(self.stat(name)?.as_ref().map(ctime));
        Ok(Times {
            config_mtime: mtime(&config),
            config_ctime: ctime(&config),
            flake_nix_ctime: beside("flake.nix")?,
            flake_lock_ctime: beside("flake.lock")?,
        })
    }

    fn stat(&self, name: &str) -> Result<Option<Stat>, Error> {
        match walk::stat_at(&self.fd, OsStr::new(name)) {
            Ok(stat) => self.check(name, &stat).map(|()| Some(stat)),
            Err(cause) if cause.errno() == Some(Errno::NOENT) => Ok(None),
            Err(cause) => Err(self.fail(name, cause.into())),
        }
    }

    fn check(&self, name: &str, stat: &Stat) -> Result<(), Error> {
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            let (machine, path) = (self.machine.clone(), self.path(name));
            return Err(Error::NotAFile { machine, path });
        }
        if u64::try_from(stat.st_size).is_ok_and(|size| size > max_size(name)) {
            return Err(self.too_large(name));
        }
        Ok(())
    }

    pub(super) fn fail(&self, name: &str, cause: io::Error) -> Error {
        Error::Read { machine: self.machine.clone(), path: self.path(name), cause }
    }

    fn too_large(&self, name: &str) -> Error {
        let (machine, path) = (self.machine.clone(), self.path(name));
        Error::TooLarge { machine, path, limit: in_words(max_size(name)) }
    }
}

/// Reads Codchi's config.toml; `None` where there is none. Links are followed: dotfile managers
/// make this one a link.
pub(super) fn settings(path: &Path) -> Result<Option<String>, Error> {
    let fail = |cause| Error::Settings { path: path.to_owned(), cause };
    let fd = match walk::open_file(path) {
        Ok(fd) => fd,
        Err(why) => match why.errno() {
            Some(Errno::NOENT) => return Ok(None),
            Some(Errno::INVAL) => return Err(fail(io::Error::other("it is not a regular file"))),
            _ => return Err(fail(why.into())),
        },
    };
    let stat = rustix::fs::fstat(&fd).map_err(|cause| fail(cause.into()))?;
    let mut text = String::new();
    let too_large = || {
        let limit = in_words(MAX_SETTINGS);
        fail(io::Error::other(format!("it is larger than {limit}, the most that is read of it")))
    };
    // Before the read: whether the bytes are text is of no interest then.
    if u64::try_from(stat.st_size).is_ok_and(|size| size > MAX_SETTINGS) {
        return Err(too_large());
    }
    File::from(fd).take(MAX_SETTINGS + 1).read_to_string(&mut text).map_err(fail)?;
    if text.len() as u64 > MAX_SETTINGS {
        return Err(too_large());
    }
    Ok(Some(text))
}

/// Takes a shared lock, or gives up at the deadline or where the file system has no locks.
fn lock_shared(fd: &OwnedFd) -> bool {
    let deadline = Instant::now() + LOCK_DEADLINE;
    loop {
        match rustix::fs::flock(fd, FlockOperation::NonBlockingLockShared) {
            Ok(()) => return true,
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => {
                thread::sleep(LOCK_INTERVAL);
            }
            Err(_) => return false,
        }
    }
}

fn mtime(stat: &Stat) -> Time {
    Time { sec: stat.st_mtime, nsec: stat.st_mtime_nsec as u32 }
}

fn ctime(stat: &Stat) -> Time {
    Time { sec: stat.st_ctime, nsec: stat.st_ctime_nsec as u32 }
}
