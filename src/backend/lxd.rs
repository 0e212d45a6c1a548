//! LXD and Incus: from their API while the daemon answers, else from the `backup.yaml` that it keeps beside each rootfs.

mod told;

use super::api;
use super::place::Place;
use super::record::Instance;
use super::{Driver, Facts, Found, LocateError, Location, Power, Query, read_small};
use crate::codchi::INSTANCE_PREFIX;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use told::Told;

/// The daemon has this long for one answer.
const DEADLINE: Duration = Duration::from_secs(3);
/// And we this long to read it, or the disk: 256 MiB of JSON take half a second, ten times that where nothing is optimised.
const OWN_WORK: Duration = Duration::from_secs(7);
/// Bytes of an answer at most: 10,000 instances are some 60 MiB.
const MOST_ANSWER: usize = 256 << 20;
/// One request for all machines of all projects.
const INSTANCES: &str = "/1.0/instances?recursion=1&all-projects=true";
/// Where the snap has its state.
const SNAP: &str = "/var/snap/lxd";
/// What the snap has its own view of the pools under, visible from outside of its mount namespace.
const SNAP_NAMESPACE: &str = "/var/snap/lxd/common/mntns";

/// Which daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// LXD.
    Lxd,
    /// Incus.
    Incus,
}

impl Kind {
    /// As a machine's driver.
    pub fn driver(self) -> Driver {
        match self {
            Self::Lxd => Driver::Lxd,
            Self::Incus => Driver::Incus,
        }
    }

    fn client(self) -> &'static str {
        match self {
            Self::Lxd => "lxc",
            Self::Incus => "incus",
        }
    }

    /// Base directories, likeliest first: the variable that the daemon's own client heeds, then where it is installed.
    fn bases(self, env: &dyn Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
        let (variable, installed): (_, &[&str]) = match self {
            Self::Lxd => ("LXD_DIR", &["/var/snap/lxd/common/lxd", "/var/lib/lxd"]),
            Self::Incus => ("INCUS_DIR", &["/var/lib/incus"]),
        };
        match env(variable).filter(|dir| !dir.is_empty()) {
            Some(dir) => vec![dir.into()],
            None => installed.iter().map(PathBuf::from).collect(),
        }
    }
}

/// One daemon's base directory.
#[derive(Clone, Debug)]
pub struct Daemon {
    kind: Kind,
    base: PathBuf,
    told: Arc<Told>,
}

/// All instances, as of one moment.
#[derive(Debug)]
struct Answer {
    instances: Vec<Arc<Instance>>,
    /// Where the disk was asked, instances without a record that can be used.
    faults: Vec<Arc<Fault>>,
    /// When these were asked for.
    checked: Instant,
    /// When the daemon last told them; `None` where backup.yaml did.
    online: Option<SystemTime>,
    /// Why the daemon did not tell.
    why: Option<String>,
    /// Why even the disk did not.
    disk: Option<String>,
}

impl Daemon {
    /// A daemon with an explicit base directory.
    pub fn at(kind: Kind, base: PathBuf) -> Self {
        Self { kind, base, told: Arc::default() }
    }

    /// All base directories of `kind` that exist on this host.
    pub fn discover(kind: Kind, env: &dyn Fn(&str) -> Option<OsString>) -> Vec<Self> {
        let exists = |base: &PathBuf| !matches!(base.symlink_metadata(), Err(e) if e.kind() == ErrorKind::NotFound);
        kind.bases(env).into_iter().filter(exists).map(|base| Self::at(kind, base)).collect()
    }

    /// The directories of this base that hold instances, one for each pool and view, as of now.
    pub(super) fn places(&self) -> Vec<PathBuf> {
        let pools = |view: PathBuf| {
            let pools = view.join("storage-pools");
            let names = names(&pools).unwrap_or_default();
            names.into_iter().map(move |pool| pools.join(pool).join("containers"))
        };
        views(&self.base).into_iter().flat_map(pools).collect()
    }

    /// Which it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its base directory.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.base.join("unix.socket")
    }

    /// Whether it answers us now; else why not, and what to do. Waits for a few seconds at most.
    pub fn reach(&self) -> Result<(), String> {
        let answer = api::get(&self.socket(), "/1.0/instances", DEADLINE, MOST_ANSWER);
        answer.map(drop).map_err(|why| why.to_string())
    }

    /// The snap's mount namespace.
    pub const SNAP_MOUNTS: &str = "/run/snapd/ns/lxd.mnt";

    /// Where the pools of the snap can be seen from outside of its mount namespace, where it is the snap.
    pub fn snap_view(&self) -> Option<PathBuf> {
        views(&self.base).get(1).map(|view| view.join("storage-pools"))
    }

    /// All instances of that name, and whose they are.
    pub(super) fn find(&self, query: &Query<'_>) -> Found {
        let answer = self.answer();
        let named = |i: &&Arc<Instance>| {
            i.name == query.instance && i.belongs_to(query.uid, query.data_dir)
        };
        let (mine, wrong): (Vec<_>, Vec<_>) =
            answer.instances.iter().filter(named).partition(|i| i.contradiction.is_none());
        let wrong = wrong.first().map(|i| self.contradiction(i));
        let fault = answer.faults.iter().find(|f| f.is_of(query));
        Found {
            mine: mine.into_iter().map(|i| (self.place(i), self.location(i))).collect(),
            fault: wrong.or_else(|| fault.map(|f| self.error(f, query.instance))),
            facts: Facts {
                online: answer.online,
                why: answer.why.clone(),
                disk: answer.disk.clone(),
            },
        }
    }

    /// Of a record that is the user's and opens nothing.
    fn contradiction(&self, instance: &Instance) -> LocateError {
        let why = instance.contradiction.as_deref().unwrap_or_default();
        let daemon = kind_name(self.kind);
        let why = match (&instance.place, instance.writers.is_empty()) {
            (Some(place), false) => {
                let at = self.base.join(place.path()).join("backup.yaml");
                format!("{}: {why}; start {daemon}, which has it itself", at.display())
            }
            _ => format!("{daemon} says of it that {why}"),
        };
        LocateError::Record { instance: instance.name.clone(), why }
    }

    fn place(&self, instance: &Instance) -> String {
        let pool = instance.place.as_ref().map_or("unknown", |place| &place.pool);
        let (name, base) = (kind_name(self.kind), self.base.display());
        format!("one of {name} in {base} (project {}, pool {pool})", instance.project)
    }

    fn location(&self, instance: &Instance) -> Result<Location, LocateError> {
        let unusable = |why: String| LocateError::Record { instance: instance.name.clone(), why };
        let maps = instance.maps().map_err(unusable)?;
        let place = instance
            .place
            .as_ref()
            .ok_or_else(|| unusable("it names no storage pool that can be a directory".into()))?;
        let pool = place.pool.clone();
        let below = place.path().join("rootfs");
        let directory = |path: &Path| match path.symlink_metadata()?.is_dir() {
            true => Ok(()),
            false => Err(ErrorKind::NotADirectory.into()),
        };
        let (rootfs, found) = first(&views(&self.base), &below, directory);
        match found {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let pool = instance.pool_driver.clone().unwrap_or(pool);
                return Err(self.unmounted(rootfs, &instance.name, pool));
            }
            Err(source) => return Err(LocateError::Look { path: rootfs, source }),
        }
        let foreign =
            instance.disks.iter().filter(|d| !super::is_codchis_own(&d.path)).cloned().collect();
        Ok(Location {
            rootfs,
            maps,
            driver: self.kind.driver(),
            power: match instance.status.as_str() {
                "" => None,
                "Running" => Some(Power::Running),
                _ => Some(Power::Stopped),
            },
            pool: Some(pool),
            home: instance.home.clone(),
            foreign,
        })
    }

    fn unmounted(&self, path: PathBuf, instance: &str, pool: String) -> LocateError {
        let start = format!("`{} start {instance}` mounts it", self.kind.client());
        let remedy = match self.base.starts_with(SNAP) {
            true => format!(
                "{start}, but only for the snap: where {SNAP_NAMESPACE} does not show it, run codchifs with \
                 `nsenter --mount={}`",
                Self::SNAP_MOUNTS
            ),
            false => start,
        };
        LocateError::Unmounted { path, instance: instance.into(), pool, remedy }
    }

    fn error(&self, fault: &Fault, instance: &str) -> LocateError {
        let path = fault.at.clone();
        let why = match &fault.why {
            Why::Look(e) if e.kind() == ErrorKind::NotFound => {
                return self.unmounted(path, instance, fault.pool.clone());
            }
            Why::Look(e) if e.kind() == ErrorKind::PermissionDenied => {
                let source = e.raw_os_error().map_or(e.kind().into(), io::Error::from_raw_os_error);
                return LocateError::Look { path, source };
            }
            Why::Look(e) => e.to_string(),
            Why::Record(why) => why.clone(),
        };
        let daemon = kind_name(self.kind);
        let why = format!("{}: {why}; start {daemon}, which has it itself", path.display());
        LocateError::Record { instance: instance.into(), why }
    }

    fn answer(&self) -> Arc<Answer> {
        let (kind, base) = (self.kind, self.base.clone());
        let answer = self.told.answer(move |before| ask(kind, &base, before));
        answer.unwrap_or_else(|| {
            Arc::new(Answer {
                instances: Vec::new(),
                faults: Vec::new(),
                checked: Instant::now(),
                online: None,
                why: Some(format!("{} did not answer in time", kind_name(self.kind))),
                disk: Some(format!("nor did the disk, {}; try again", self.base.display())),
            })
        })
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Lxd => "LXD",
        Kind::Incus => "Incus",
    }
}

fn ask(kind: Kind, base: &Path, before: Option<&Answer>) -> Answer {
    let checked = Instant::now();
    match api::get(&base.join("unix.socket"), INSTANCES, DEADLINE, MOST_ANSWER) {
        Ok(metadata) => {
            let records = metadata.as_array().map(Vec::as_slice).unwrap_or_default();
            let instances = records
                .iter()
                .filter(|r| r.get("type").and_then(|t| t.as_str()).is_none_or(|t| t == "container"))
                .filter_map(|r| Instance::from_record(r).ok())
                .map(Arc::new)
                .collect();
            Answer {
                instances,
                faults: Vec::new(),
                checked,
                online: Some(SystemTime::now()),
                why: None,
                disk: None,
            }
        }
        Err(why) => {
            let why = format!("{}: {why}", kind_name(kind));
            tracing::debug!(%why, "asking the disk instead");
            let disk = from_disk(base);
            let answer = |instances, online| Answer {
                instances,
                faults: disk.faults.into_iter().map(Arc::new).collect(),
                checked,
                online,
                why: Some(why),
                disk: (!disk.unseen.is_empty()).then(|| disk.unseen.join("; ")),
            };
            let told = before.and_then(|b| Some((b, b.online?)));
            let Some((before, online)) = told else {
                return answer(
                    disk.instances.into_iter().map(|(i, _)| Arc::new(i)).collect(),
                    None,
                );
            };
            // What the daemon told is newer than any backup.yaml that it has not written since.
            let mut merged = before.instances.clone();
            for (new, _) in disk.instances.into_iter().filter(|(_, written)| *written > online) {
                merged.retain(|old| (&old.name, &old.project) != (&new.name, &new.project));
                merged.push(Arc::new(new));
            }
            answer(merged, Some(online))
        }
    }
}

/// An instance's directory without a record that can be used.
#[derive(Debug)]
struct Fault {
    /// The instance's name, by its directory.
    name: String,
    /// As [`Instance::writers`].
    writers: Vec<u32>,
    pool: String,
    /// Where its backup.yaml would be.
    at: PathBuf,
    why: Why,
}

#[derive(Debug)]
enum Why {
    /// There is no backup.yaml, or it cannot be read.
    Look(io::Error),
    /// It is nonsense.
    Record(String),
}

impl Fault {
    /// Whose instance it is, nobody knows; but that of another user who was root in it is not this one's.
    fn is_of(&self, query: &Query<'_>) -> bool {
        self.name == query.instance && self.writers.iter().all(|uid| [0, query.uid].contains(uid))
    }
}

/// What the disk tells without the daemon.
#[derive(Debug, Default)]
struct Disk {
    /// Each with when its backup.yaml was written.
    instances: Vec<(Instance, SystemTime)>,
    faults: Vec<Fault>,
    /// Where instances may be that are in neither list, and why.
    unseen: Vec<String>,
}

/// Every machine's backup.yaml.
fn from_disk(base: &Path) -> Disk {
    let (views, mut disk) = (views(base), Disk::default());
    let mut pools = BTreeSet::new();
    for view in &views {
        let at = view.join("storage-pools");
        match names(&at) {
            Ok(found) => pools.extend(found),
            // A daemon that was never started has none.
            Err(e) if e.kind() == ErrorKind::NotFound && base.is_dir() => {}
            Err(e) => disk.unseen.push(cannot_read(&at, &e)),
        }
    }
    for pool in pools {
        let below = Path::new("storage-pools").join(&pool).join("containers");
        let (at, containers) = first(&views, &below, names);
        let containers = match containers {
            Ok(containers) => containers,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let at = at.display();
                let pool = pool.to_string_lossy();
                disk.unseen.push(format!("the pool {pool} is not mounted: there is no {at}"));
                continue;
            }
            Err(e) => {
                disk.unseen.push(cannot_read(&at, &e));
                continue;
            }
        };
        for place in containers.iter().filter_map(|name| Place::of_directory(&pool, name)) {
            if place.name.starts_with(INSTANCE_PREFIX) {
                disk.look(&views, &place);
            }
        }
    }
    disk
}

impl Disk {
    /// Takes one instance's record from its directory.
    fn look(&mut self, views: &[PathBuf], place: &Place) {
        let (at, read) = first(views, &place.path().join("backup.yaml"), read_small);
        // LXD and Incus give the directory to who is root in the instance while it runs. That user can put another record
        // there, but nobody else can.
        let directory = at.parent().map(Path::symlink_metadata);
        let mut writers: Vec<u32> =
            directory.and_then(Result::ok).map(|m| m.uid()).into_iter().collect();
        let read = read.and_then(|(text, meta)| {
            writers.push(meta.uid());
            Ok((text, meta.modified()?))
        });
        let read = read.map_err(Why::Look).and_then(|(text, written)| {
            let read = Instance::from_backup(&text, place);
            Ok((read.map_err(|e| Why::Record(e.to_string()))?, written))
        });
        match read {
            Ok((mut instance, written)) => {
                // As of when it was written: a machine outlives its daemon.
                instance.status.clear();
                instance.writers = writers;
                self.instances.push((instance, written));
            }
            Err(why) => self.faults.push(Fault {
                name: place.name.clone(),
                writers,
                pool: place.pool.clone(),
                at,
                why,
            }),
        }
    }
}

/// Where a daemon's base directory can be seen: for the snap, also through its mount namespace, where its pools are.
fn views(base: &Path) -> Vec<PathBuf> {
    let mut views = vec![base.to_owned()];
    if base.starts_with(SNAP) {
        views.push(Path::new(SNAP_NAMESPACE).join(base.strip_prefix("/").unwrap_or(base)));
    }
    views
}

/// The first view that has it; else the first error that tells more than that it is not there.
fn first<T>(
    views: &[PathBuf],
    below: &Path,
    look: impl Fn(&Path) -> io::Result<T>,
) -> (PathBuf, io::Result<T>) {
    let mut failed: Option<(PathBuf, io::Error)> = None;
    for path in views.iter().map(|view| view.join(below)) {
        match look(&path) {
            Ok(found) => return (path, Ok(found)),
            Err(e) if failed.as_ref().is_none_or(|(_, e)| e.kind() == ErrorKind::NotFound) => {
                if failed.is_none() || e.kind() != ErrorKind::NotFound {
                    failed = Some((path, e));
                }
            }
            Err(_) => {}
        }
    }
    let (path, why) = failed.unwrap_or_else(|| (below.to_owned(), ErrorKind::NotFound.into()));
    (path, Err(why))
}

fn names(dir: &Path) -> io::Result<Vec<OsString>> {
    std::fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect()
}

fn cannot_read(dir: &Path, why: &io::Error) -> String {
    let remedy = match why.kind() {
        ErrorKind::PermissionDenied => super::AS_ROOT,
        _ => "",
    };
    format!("cannot read {}: {why}{remedy}", dir.display())
}
