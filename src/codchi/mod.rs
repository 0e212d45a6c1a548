//! Codchi's own state on this host, read and never written.
//!
//! A machine is `CONFIG/machine/NAME/config.json`, not empty; beside it lie the `flake.nix` and
//! `flake.lock` that Codchi made from it. [`State`] finds and reads them; [`flake`], [`lock`] and
//! [`mod@env`] render from them what the export holds. All rendering is pure.
//!
//! This state is under the user's control. Nothing here raises or drops rights: callers with more
//! rights than the user must drop them first.

mod age;
pub mod config;
pub mod dirs;
pub mod driver;
pub mod env;
mod error;
pub mod flake;
pub mod lock;
mod read;
mod release;
pub mod url;

pub use config::{MachineConfig, Secret};
pub use error::{Error, NameError};
pub use read::{Time, Times};
pub use url::ModuleUrl;

use crate::walk::{self, WalkError};
use read::MachineDir;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// What Codchi puts before a machine's name to name its instance.
pub(crate) const INSTANCE_PREFIX: &str = "codchi-";
/// The longest file name Linux has, in bytes.
const NAME_MAX: usize = 255;

/// The name of a code machine, safe as a single visible path component.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineName(String);

impl MachineName {
    /// Checks a name. The rules are those of a file name that is not hidden, short enough for
    /// `codchi-NAME` to be one too.
    pub fn new(name: &str) -> Result<Self, NameError> {
        if name.is_empty() {
            Err(NameError::Empty)
        } else if name.contains('/') || name == "." || name == ".." {
            Err(NameError::Path)
        } else if name.starts_with('.') {
            Err(NameError::Hidden)
        } else if name.chars().any(char::is_control) {
            Err(NameError::Control)
        } else if name.len() > NAME_MAX - INSTANCE_PREFIX.len() {
            Err(NameError::TooLong)
        } else {
            Ok(Self(name.to_owned()))
        }
    }

    /// Checks a name as a directory or the kernel gives it.
    pub fn from_os(name: &OsStr) -> Result<Self, NameError> {
        name.to_str().ok_or(NameError::NotText).and_then(Self::new)
    }

    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The LXD or Incus instance of this machine.
    pub fn instance(&self) -> String {
        format!("{INSTANCE_PREFIX}{self}")
    }
}

impl fmt::Display for MachineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for MachineName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        Self::new(name)
    }
}

/// One entry of Codchi's machine directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A code machine. It may still be broken; [`State::load`] tells.
    Machine(MachineName),
    /// A directory with a config under a name that no machine can have here.
    Invalid {
        /// The directory's name, as on disk.
        name: OsString,
        /// Why it is refused.
        reason: NameError,
    },
}

impl Found {
    fn key(&self) -> &[u8] {
        match self {
            Self::Machine(name) => name.as_str().as_bytes(),
            Self::Invalid { name, .. } => name.as_bytes(),
        }
    }
}

/// Where one user's Codchi keeps its files.
#[derive(Debug, Clone)]
pub struct State {
    /// Holds `config.toml` and `machine/NAME/`. [`dirs::config_dir`] finds it.
    pub config_dir: PathBuf,
    /// Holds `machine/NAME`, the machines' homes. [`dirs::data_dir`] finds it.
    pub data_dir: PathBuf,
    /// Ways to `machine` in the config directory, for a process whose paths lead nowhere: the first that leads there is taken.
    pub ways: Vec<Way>,
}

/// An opened directory, and what is left from there to Codchi's directory of machines.
#[derive(Debug, Clone)]
pub struct Way {
    /// The directory.
    pub from: Arc<OwnedFd>,
    /// The rest, maybe nothing.
    pub rest: PathBuf,
}

impl Way {
    fn go(&self) -> Result<OwnedFd, Errno> {
        // One that was deleted stays open, and would have no machines for ever.
        if rustix::fs::fstat(&self.from)?.st_nlink == 0 {
            return Err(Errno::STALE);
        }
        let rest = if self.rest.as_os_str().is_empty() { Path::new(".") } else { &self.rest };
        rustix::fs::openat(&self.from, rest, DIRECTORY, Mode::empty())
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl State {
    /// Finds the state of `owner`. Directories that are given explicitly win over all else.
    ///
    /// Fails where config.toml is there but cannot be read or parsed: its `data_dir` would be
    /// missed, and other homes exported.
    pub fn locate(
        owner: &dirs::Owner,
        config_dir: Option<&Path>,
        data_dir: Option<&Path>,
        env: dirs::Env<'_>,
    ) -> Result<Self, Error> {
        let config_dir = dirs::config_dir(owner, config_dir, env)?;
        let settings = match data_dir {
            Some(_) => None,
            None => read::settings(&config_dir.join("config.toml"))?,
        };
        let data_dir = dirs::data_dir(owner, data_dir, env, &config_dir, settings.as_deref())?;
        Ok(Self { config_dir, data_dir, ways: Vec::new() })
    }

    /// Where the machines' directories are.
    fn machines(&self) -> PathBuf {
        self.config_dir.join("machine")
    }

    fn open_machines(&self) -> Result<OwnedFd, WalkError> {
        if self.ways.is_empty() {
            return walk::open_directory(&self.machines());
        }
        let mut opened = Err(Errno::LOOP);
        for way in &self.ways {
            // A link on the way is not followed; another way begins where it led to.
            if opened.as_ref().is_err_and(|why| *why == Errno::LOOP) {
                opened = way.go();
            }
        }
        Ok(opened?)
    }

    /// All machines, sorted by name in byte order. A missing directory holds none.
    ///
    /// A machine is a real directory, no link, whose `config.json` is not an empty file. So one
    /// whose `config.json` is a FIFO or cannot be looked at is found, and [`Self::load`] says what
    /// is wrong with it.
    pub fn machine_names(&self) -> Result<Vec<Found>, Error> {
        let fail = |cause: Errno| Error::List { path: self.machines(), cause: cause.into() };
        let dir = match self.open_machines() {
            Ok(dir) => dir,
            Err(cause) if cause.errno() == Some(Errno::NOENT) => return Ok(Vec::new()),
            Err(cause) => {
                return Err(Error::List { path: self.machines(), cause: cause.into() });
            }
        };
        let mut found = Vec::new();
        for entry in rustix::fs::Dir::read_from(&dir).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." || !is_machine(&dir, name) {
                continue;
            }
            found.push(match MachineName::from_os(name) {
                Ok(name) => Found::Machine(name),
                Err(reason) => Found::Invalid { name: name.to_owned(), reason },
            });
        }
        found.sort_by(|a, b| a.key().cmp(b.key()));
        Ok(found)
    }

    /// Whether [`Self::machine_names`] would name the machine.
    pub fn has(&self, name: &MachineName) -> Result<bool, Error> {
        match self.open_machines() {
            Ok(dir) => Ok(is_machine(&dir, OsStr::new(name.as_str()))),
            Err(cause) if cause.errno() == Some(Errno::NOENT) => Ok(false),
            // A backup that deletes what it no longer sees must not take this for "no machines".
            Err(cause) => Err(Error::List { path: self.machines(), cause: cause.into() }),
        }
    }

    /// Reads one machine. Waits for at most half a second, for Codchi to release its lock.
    pub fn load(&self, name: &MachineName) -> Result<MachineConfig, Error> {
        let path = self.machine_dir(name);
        config::load(&MachineDir::open(self.open_machines(), &path, name)?, &path, name)
    }

    /// The times of a machine's files, without reading them: where they are unchanged, so is what
    /// [`Self::load`] returns.
    pub fn times(&self, name: &MachineName) -> Result<Times, Error> {
        MachineDir::open(self.open_machines(), &self.machine_dir(name), name)?.times()
    }

    /// Where the machine's config.json, flake.nix and flake.lock are.
    fn machine_dir(&self, name: &MachineName) -> PathBuf {
        self.machines().join(name.as_str())
    }

    /// The directory that is `/home/codchi` in the machine.
    pub fn home(&self, name: &MachineName) -> PathBuf {
        self.data_dir.join("machine").join(name.as_str())
    }
}

/// Whether `dir/name` is a real directory with a config that is not an empty file.
fn is_machine(dir: &OwnedFd, name: &OsStr) -> bool {
    match walk::stat_at(dir, name) {
        Ok(found) if FileType::from_raw_mode(found.st_mode) != FileType::Directory => return false,
        Ok(_) => {}
        Err(WalkError::System(_)) => return false,
        // What is in the way of a machine is said when it is loaded.
        Err(WalkError::Refused { .. }) => return true,
    }
    let config = walk::open_directory_at(dir, name);
    match config.and_then(|machine| walk::stat_at(machine, OsStr::new("config.json"))) {
        Ok(config) => {
            FileType::from_raw_mode(config.st_mode) != FileType::RegularFile || config.st_size > 0
        }
        Err(cause) => cause.errno() != Some(Errno::NOENT),
    }
}

#[cfg(test)]
mod tests;
