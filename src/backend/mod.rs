//! Where a machine's files are, and how its ids are shifted. Knows nothing of Codchi's configuration of it.

mod activation;
mod api;
pub mod bytes;
mod dir;
mod lxd;
mod place;
mod record;
mod yaml;

pub use dir::Directories;
pub use lxd::{Daemon, Kind};
pub use record::{Device, HomeIds, IdMaps};

use crate::codchi::INSTANCE_PREFIX;
use crate::quote::{self, word};
use serde::{Deserialize, Serialize};
use std::fs::Metadata;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What a user can do who is not let in.
const AS_ROOT: &str = "; only root reads machines: run as root, or mount with `mount -t codchifs`";
/// Bytes of a backup.yaml that are read at most.
const MOST_BACKUP: u64 = 4 << 20;

/// What a machine is kept by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Driver {
    /// Nobody: it is a plain directory.
    Dir,
    /// LXD.
    Lxd,
    /// Incus.
    Incus,
}

impl Driver {
    /// As `list` and the report write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dir => "dir",
            Self::Lxd => "lxd",
            Self::Incus => "incus",
        }
    }
}

/// Whether a machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Power {
    /// It runs: its files may change while they are read.
    Running,
    /// It does not, as far as is known.
    Stopped,
}

/// A machine's directories.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    /// The container's root directory on the host.
    #[serde(with = "bytes")]
    pub rootfs: PathBuf,
    /// How ids are shifted on the disk.
    pub maps: IdMaps,
    /// What it is kept by.
    pub driver: Driver,
    /// `None` where nobody knows.
    pub power: Option<Power>,
    /// The storage pool.
    pub pool: Option<String>,
    /// The daemon's project, where it is not `default`: its client must be told.
    pub project: Option<String>,
    /// What the instance has at `/home/codchi`, where that is recorded.
    #[serde(with = "bytes::option")]
    pub home: Option<PathBuf>,
    /// Further disk devices: their content is not in the export.
    pub foreign: Vec<Device>,
}

/// How fresh a daemon's facts are.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    /// When the daemon last told; `None`: backup.yaml did, or there is no daemon.
    pub online: Option<SystemTime>,
    /// Why the daemon did not tell now.
    pub why: Option<String>,
    /// Why even the disk did not.
    pub disk: Option<String>,
}

/// Which instance, and whose.
#[derive(Clone, Copy)]
pub struct Query<'a> {
    /// `codchi-NAME`.
    pub instance: &'a str,
    /// The user whose machine it must be.
    pub uid: u32,
    /// That user's data dir, where the home must lie.
    pub data_dir: &'a Path,
    /// Where that user gets on a path, without links.
    pub resolve: &'a dyn Fn(&Path) -> Option<PathBuf>,
}

impl std::fmt::Debug for Query<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { instance, uid, data_dir, .. } = self;
        f.debug_struct("Query")
            .field("instance", instance)
            .field("uid", uid)
            .field("data_dir", data_dir)
            .finish_non_exhaustive()
    }
}

/// Where machines are looked for.
#[derive(Debug)]
pub enum Backend {
    /// Plain directories.
    Directories(Directories),
    /// Every LXD and Incus of this host.
    Daemons(Vec<Daemon>),
}

/// Why a machine's files cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// There is no instance of that name: what is missing, and what makes it.
    #[error("not installed: {0}")]
    NotInstalled(String),
    /// The instance's volume is not there.
    #[error("there is no {path}: the volume of {instance} (pool {pool}) is not mounted; {remedy}", path = quote::path(.path))]
    Unmounted {
        /// Where its rootfs would be.
        path: PathBuf,
        /// The instance.
        instance: String,
        /// The pool or its driver.
        pool: String,
        /// What mounts it.
        remedy: String,
    },
    /// More than one is the user's.
    #[error(
        "there are {} instances {instance}: {}; choose with --driver lxd|incus or --lxd-dir DIR, or rename all but one",
        places.len(),
        places.join(" and ")
    )]
    Ambiguous {
        /// The instance.
        instance: String,
        /// Where each is.
        places: Vec<String>,
    },
    /// It is on another host.
    #[error(
        "{instance} is on the cluster member {member}, and so are its files: run codchifs on {member}"
    )]
    Elsewhere {
        /// The instance.
        instance: String,
        /// The host of the cluster that has it.
        member: String,
    },
    /// Its record is unusable: no file's owner would be known.
    #[error("cannot use the record of {instance}: {why}")]
    Record {
        /// The instance.
        instance: String,
        /// What is wrong with it.
        why: String,
    },
    /// Another process looked, and says why it found nothing.
    #[error("{0}")]
    Told(String),
    /// The process that is to look does not answer.
    #[error("the process that finds machines does not answer: {0}")]
    Silent(std::io::Error),
    /// Its disk does not answer.
    #[error("its disk does not answer; what is mounted there, and the kernel's log, may tell more")]
    Unanswered,
    /// Nobody could be asked.
    #[error("cannot find out where {instance} is: {why}")]
    Unknown {
        /// The instance.
        instance: String,
        /// What each of those who were asked said.
        why: String,
    },
    /// Something on the way cannot be read.
    #[error("cannot look at {path}: {source}{}", remedy(.source), path = quote::path(.path))]
    Look {
        /// What was looked at.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
}

fn remedy(source: &std::io::Error) -> &'static str {
    match source.kind() {
        ErrorKind::PermissionDenied => AS_ROOT,
        _ => "",
    }
}

impl LocateError {
    /// Of the machine whose instance it is.
    fn not_installed(missing: &str, instance: &str) -> Self {
        let name = instance.strip_prefix(INSTANCE_PREFIX).unwrap_or(instance);
        let name = word(name.as_bytes());
        Self::NotInstalled(format!("there is no {missing}; `codchi rebuild {name}` makes it"))
    }
}

impl Backend {
    /// The directories that hold machines' directories, as of now. Some may not be there.
    pub fn places(&self) -> Vec<PathBuf> {
        match self {
            Self::Directories(dirs) => vec![dirs.root().to_owned()],
            Self::Daemons(daemons) => daemons.iter().flat_map(Daemon::places).collect(),
        }
    }

    /// Finds a machine's directories. Waits for a daemon at most once, and then not longer than a few seconds.
    pub fn locate(&self, query: &Query<'_>) -> (Result<Location, LocateError>, Facts) {
        let daemons = match self {
            Self::Directories(dirs) => return (dirs.locate(query.instance), Facts::default()),
            Self::Daemons(daemons) => Daemon::installed(daemons),
        };
        let instance = query.instance.to_owned();
        if daemons.is_empty() {
            let why = "neither LXD nor Incus is on this host; --lxd-dir or --rootfs-dir say where machines are".into();
            return (Err(LocateError::Unknown { instance, why }), Facts::default());
        }
        // Each in its own thread, so that those that are silent are waited for side by side.
        daemons.iter().for_each(Daemon::start);
        let mut all = Found::default();
        let mut silent = Vec::new();
        for daemon in &daemons {
            let here = daemon.find(query);
            if let (Some(why), Some(disk)) = (&here.facts.why, &here.facts.disk) {
                silent.push(format!("{why}; {disk}"));
            }
            // Whose instance it is, says how fresh its facts are; where nobody has it, whoever is silent.
            if !here.mine.is_empty() || (all.mine.is_empty() && all.facts.why.is_none()) {
                all.facts = here.facts;
            }
            all.mine.extend(here.mine);
            all.fault = all.fault.or(here.fault);
        }
        // The same text where another user has one: nobody is told what others have.
        let nowhere = || {
            let name = instance.strip_prefix(INSTANCE_PREFIX).unwrap_or(&instance);
            LocateError::NotInstalled(format!(
                "there is no instance {instance} of uid {} with its home in {}; `codchi rebuild {name}` makes it; if it exists, it \
                 belongs to somebody else or has its home elsewhere: name whose machines are meant with --user and --data-dir",
                query.uid,
                quote::path(&query.data_dir)
            ))
        };
        let result = match (all.mine.len(), all.fault) {
            (1, _) => match all.mine.pop() {
                Some((_, location)) => location,
                None => Err(nowhere()),
            },
            (0, Some(fault)) => Err(fault),
            (0, None) if !silent.is_empty() => {
                Err(LocateError::Unknown { instance, why: silent.join("; ") })
            }
            (0, None) => Err(nowhere()),
            _ => {
                let places = all.mine.into_iter().map(|(place, _)| place).collect();
                Err(LocateError::Ambiguous { instance, places })
            }
        };
        (result, all.facts)
    }
}

/// What one daemon has under an instance's name.
#[derive(Debug, Default)]
struct Found {
    /// Those that are the user's: where each is as a person says it, and its directories.
    mine: Vec<(String, Result<Location, LocateError>)>,
    /// One whose record cannot be used: it cannot be read, or is the user's and contradicts itself or its place.
    fault: Option<LocateError>,
    facts: Facts,
}

/// Whether a disk device is part of how Codchi runs a machine: its root, its home, and what is never exported anyway
/// (the store, sockets of the host below /run and /tmp).
fn is_codchis_own(path: &str) -> bool {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    matches!(path, "/" | "/home/codchi")
        || matches!(first, "nix" | "run" | "tmp" | "dev" | "sys" | "proc" | ".files")
}

/// What `fuzz/` calls; in no other build.
#[cfg(feature = "fuzzing")]
#[allow(missing_docs)]
pub mod fuzzing {
    use super::place::Place;
    use super::record::Instance;
    use serde_json::Value;
    use std::ffi::OsStr;

    /// A backup.yaml in this directory of this pool, as text that shows what is used of it but its place. Whatever it says,
    /// it is of the instance that the directory is of.
    pub fn backup(text: &str, pool: &OsStr, directory: &OsStr) -> Result<String, String> {
        let place = Place::of_directory(pool, directory).ok_or("no directory of an instance")?;
        let instance = Instance::from_backup(text, &place).map_err(|why| why.to_string())?;
        assert_eq!(instance.place.as_ref(), Some(&place));
        assert_eq!((&instance.name, &instance.project), (&place.name, &place.project));
        let why = instance.contradiction.as_deref().unwrap_or_default();
        assert!(why.len() < 4096 && !why.contains(char::is_control), "{why:?}");
        Ok(all(instance))
    }

    /// An instance as the API lists it.
    pub fn record(record: &Value) -> Result<String, String> {
        let instance = Instance::from_record(record, None).map_err(|why| why.to_string())?;
        if let Some(place) = &instance.place {
            let parts: Vec<_> =
                place.path().components().map(|c| c.as_os_str().to_owned()).collect();
            let directory = OsStr::new(place.path().file_name().unwrap_or_default()).to_owned();
            assert_eq!(parts.len(), 4, "{parts:?}");
            assert_eq!(
                Place::of_directory(OsStr::new(&place.pool), &directory).as_ref(),
                Some(place)
            );
        }
        Ok(all(instance))
    }

    fn all(mut instance: Instance) -> String {
        let query = super::Query {
            instance: "codchi-a",
            uid: 1000,
            data_dir: std::path::Path::new("/home/a"),
            resolve: &|_| None,
        };
        let belongs = instance.belongs_to(&query);
        (instance.place, instance.contradiction, instance.pool_driver) = (None, None, None);
        (instance.name, instance.project) = Default::default();
        format!("{instance:?} {:?} {belongs}", instance.maps())
    }

    /// The metadata of an answer.
    pub fn answer(status: u16, body: &[u8]) -> Result<Value, String> {
        super::api::open(status, body)
    }
}

/// Reads a small regular file of the daemon, never through a link.
fn read_small(path: &Path) -> std::io::Result<(String, Metadata)> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    let mut text = String::new();
    if file.take(MOST_BACKUP + 1).read_to_string(&mut text)? as u64 > MOST_BACKUP {
        return Err(ErrorKind::FileTooLarge.into());
    }
    Ok((text, meta))
}
