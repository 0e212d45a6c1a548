//! LXD and Incus: from their API while the daemon answers, else from the `backup.yaml` that it keeps beside each rootfs.

mod disk;
mod list;
mod told;

use super::api;
use super::place::{DEFAULT, Place};
use super::record::{Home, Instance, LAST_STATE};
use super::{Driver, Facts, Found, LocateError, Location, Query};
use crate::quote::{self, quotation};
use disk::{Fault, Why};
use list::Listing;
use std::collections::{BTreeMap, BTreeSet};
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
    named: bool,
    told: Arc<Told>,
}

/// All instances, as of one moment.
#[derive(Debug)]
struct Answer {
    instances: Vec<Arc<Instance>>,
    /// Which member of a cluster the daemon is.
    member: Option<String>,
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

impl Answer {
    /// Nothing yet.
    fn at(checked: Instant) -> Self {
        Self {
            instances: Vec::new(),
            member: None,
            faults: Vec::new(),
            checked,
            online: None,
            why: None,
            disk: None,
        }
    }
}

impl Daemon {
    /// A daemon with an explicit base directory.
    pub fn at(kind: Kind, base: PathBuf) -> Self {
        Self { kind, base, named: true, told: Arc::default() }
    }

    /// Those of `all` that are different daemons: a base directory that is a link to another's is that one, which goes by the
    /// path that is no link.
    fn distinct(all: Vec<Self>) -> Vec<Self> {
        let identity = |daemon: &Self| daemon.base.metadata().ok().map(|m| (m.dev(), m.ino()));
        let is_link = |daemon: &Self| {
            daemon.base.canonicalize().is_ok_and(|canonical| canonical != daemon.base)
        };
        let mut kept: Vec<Self> = Vec::new();
        for daemon in all {
            let same = |other: &&mut Self| {
                other.base == daemon.base
                    || identity(&daemon).is_some_and(|id| identity(other) == Some(id))
            };
            match kept.iter_mut().find(same) {
                Some(other) if is_link(other) && !is_link(&daemon) => *other = daemon,
                Some(_) => {}
                None => kept.push(daemon),
            }
        }
        kept
    }

    /// All base directories that `kind` may have on this host. Which of them is there may change: a disk is mounted late.
    pub fn discover(kind: Kind, env: &dyn Fn(&str) -> Option<OsString>) -> Vec<Self> {
        let may_be = |base| Self { named: false, ..Self::at(kind, base) };
        kind.bases(env).into_iter().map(may_be).collect()
    }

    /// Those of `all` that are on this host now, each once.
    pub fn installed(all: &[Self]) -> Vec<Self> {
        Self::distinct(all.iter().filter(|daemon| daemon.is_installed()).cloned().collect())
    }

    /// One that was named is.
    fn is_installed(&self) -> bool {
        self.named
            || !matches!(self.base.symlink_metadata(), Err(e) if e.kind() == ErrorKind::NotFound)
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
        let named = |i: &&Arc<Instance>| i.name == query.instance && i.belongs_to(query);
        let all: Vec<&Arc<Instance>> = answer.instances.iter().filter(named).collect();
        let elsewhere = |i: &Instance| match (&i.member, &answer.member) {
            (Some(at), Some(here)) if at != here => {
                Some(LocateError::Elsewhere { instance: i.name.clone(), member: at.clone() })
            }
            _ => None,
        };
        let mut fault = None;
        let mut mine: Vec<(&Arc<Instance>, Result<Location, LocateError>)> = Vec::new();
        for instance in all {
            let wrong = instance.contradiction.is_some().then(|| self.contradiction(instance));
            match wrong.or_else(|| elsewhere(instance)) {
                Some(why) => fault = fault.or(Some(why)),
                None => mine.push((instance, self.location(instance))),
            }
        }
        let mine = self.without_leftovers(mine, &answer.faults, query);
        let silent = answer.instances.iter().find(|i| i.name == query.instance && i.says_nothing);
        let unread = answer.faults.iter().find(|f| f.is_of(query));
        Found {
            mine,
            fault: fault
                .or_else(|| silent.map(|i| self.says_nothing(i)))
                .or_else(|| unread.map(|f| self.error(f, query.instance))),
            facts: Facts {
                online: answer.online,
                why: answer.why.clone(),
                disk: answer.disk.clone(),
            },
        }
    }

    /// An instance lies in one pool. A daemon that was interrupted while it moved one leaves a directory in the other: where
    /// one of the two has a record and no files, that is the leftover; else only the daemon knows.
    fn without_leftovers(
        &self,
        mine: Vec<(&Arc<Instance>, Result<Location, LocateError>)>,
        faults: &[Arc<Fault>],
        query: &Query<'_>,
    ) -> Vec<(String, Result<Location, LocateError>)> {
        let mut projects = BTreeMap::<String, Vec<_>>::new();
        for (instance, location) in mine {
            projects.entry(instance.project.clone()).or_default().push((instance, location));
        }
        let daemon = kind_name(self.kind);
        let in_use = |(project, mut same): (String, Vec<(&Arc<Instance>, _)>)| {
            if same.iter().any(|(_, location): &(_, Result<_, _>)| location.is_ok()) {
                same.retain(|(_, location)| location.is_ok());
            }
            let places = same.iter().filter_map(|(instance, _)| instance.place.as_ref());
            let unread = faults.iter().filter(|f| f.place.project == project && f.is_of(query));
            let pools: BTreeSet<_> =
                places.chain(unread.map(|f| &f.place)).map(|place| place.pool.clone()).collect();
            let (instance, location) = same.pop()?;
            let online = instance.writers.is_empty();
            let why = match (same.is_empty(), online) {
                (true, true) => None,
                (false, true) => {
                    Some(format!("{daemon} lists it more than once; restart {daemon}"))
                }
                (_, false) if pools.len() < 2 => None,
                (_, false) => {
                    let pools = Vec::from_iter(pools).join(" and ");
                    Some(format!(
                        "it lies in the pools {pools}, and only {daemon} knows which one it uses; start {daemon}"
                    ))
                }
            };
            let location = match why {
                Some(why) => Err(LocateError::Record { instance: instance.name.clone(), why }),
                None => location,
            };
            Some((self.place(instance), location))
        };
        projects.into_iter().filter_map(in_use).collect()
    }

    /// Of an instance of which the daemon knows nothing but its name.
    fn says_nothing(&self, instance: &Instance) -> LocateError {
        let (daemon, client) = (kind_name(self.kind), self.kind.client());
        let member =
            instance.member.as_ref().map(|member| format!(" on the cluster member {member}"));
        let why = format!(
            "{daemon} lists it{} with the state {} and nothing else; `{}` says more",
            member.unwrap_or_default(),
            quotation(&instance.status),
            command(client, "info", &instance.name, &instance.project)
        );
        LocateError::Record { instance: instance.name.clone(), why }
    }

    /// Of a record that is the user's and opens nothing.
    fn contradiction(&self, instance: &Instance) -> LocateError {
        let why = instance.contradiction.as_deref().unwrap_or_default();
        let daemon = kind_name(self.kind);
        let why = match (&instance.place, instance.writers.is_empty()) {
            (Some(place), false) => {
                let at = self.base.join(place.path()).join("backup.yaml");
                format!("{}: {why}; start {daemon}, which has it itself", quote::path(&at))
            }
            _ => {
                let show =
                    command(self.kind.client(), "config show", &instance.name, &instance.project);
                format!("{why}; `{show} --expanded` shows what {daemon} has of it")
            }
        };
        LocateError::Record { instance: instance.name.clone(), why }
    }

    fn place(&self, instance: &Instance) -> String {
        let pool = instance.place.as_ref().map_or("unknown", |place| &place.pool);
        let (name, base) = (kind_name(self.kind), quote::path(&self.base));
        format!("one of {name} in {base} (project {}, pool {pool})", instance.project)
    }

    fn location(&self, instance: &Instance) -> Result<Location, LocateError> {
        let unusable = |why: String| LocateError::Record { instance: instance.name.clone(), why };
        let say = |verb: &str| command(self.kind.client(), verb, &instance.name, &instance.project);
        let maps = instance.maps().map_err(|why| {
            let remedy = match instance.is_mapped() {
                true => format!("`{}` corrects it", say("config edit")),
                false => format!(
                    "if its rootfs belongs to uid 0 on the disk, `{} {LAST_STATE}='[]'` records that nothing is shifted",
                    say("config set")
                ),
            };
            unusable(format!("{why}; {remedy}"))
        })?;
        let place = instance
            .place
            .as_ref()
            .ok_or_else(|| unusable("it names no storage pool that can be a directory".into()))?;
        let home = match &instance.home {
            Home::None => None,
            Home::Directory(home) => Some(home.clone()),
            Home::Volume { pool, volume } => {
                return Err(unusable(format!(
                    "its home is the volume {} of the pool {}, and codchifs reads homes that are directories; copy what is in it \
                     to a directory with `cp -a`, and give that to the instance as /home/codchi in its place",
                    quotation(volume),
                    quotation(pool)
                )));
            }
        };
        let directory = |path: &Path| match path.symlink_metadata()?.is_dir() {
            true => Ok(()),
            false => Err(ErrorKind::NotADirectory.into()),
        };
        let (rootfs, found) = first(&views(&self.base), &place.path().join("rootfs"), directory);
        match found {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(self.unmounted(rootfs, place, instance.pool_driver.as_deref()));
            }
            Err(source) => return Err(LocateError::Look { path: rootfs, source }),
        }
        let foreign =
            instance.disks.iter().filter(|d| !super::is_codchis_own(&d.path)).cloned().collect();
        Ok(Location {
            rootfs,
            maps,
            driver: self.kind.driver(),
            power: instance.power(),
            pool: Some(place.pool.clone()),
            project: Some(place.project.clone()).filter(|project| project != DEFAULT),
            home,
            foreign,
        })
    }

    fn unmounted(&self, path: PathBuf, place: &Place, driver: Option<&str>) -> LocateError {
        let instance = &place.name;
        let start = command(self.kind.client(), "start", instance, &place.project);
        let start = format!("`{start}` mounts it");
        let remedy = match self.base.starts_with(SNAP) {
            true => format!(
                "{start}, but only for the snap: where {SNAP_NAMESPACE} does not show it, run codchifs with \
                 `nsenter --mount={}`",
                Self::SNAP_MOUNTS
            ),
            false => start,
        };
        let pool = driver.unwrap_or(&place.pool).to_owned();
        LocateError::Unmounted { path, instance: instance.clone(), pool, remedy }
    }

    fn error(&self, fault: &Fault, instance: &str) -> LocateError {
        let path = fault.at.clone();
        let why = match &fault.why {
            Why::Look(e) if e.kind() == ErrorKind::NotFound => {
                return self.unmounted(path, &fault.place, None);
            }
            Why::Look(e) if e.kind() == ErrorKind::PermissionDenied => {
                let source = e.raw_os_error().map_or(e.kind().into(), io::Error::from_raw_os_error);
                return LocateError::Look { path, source };
            }
            Why::Look(e) => e.to_string(),
            Why::Record(why) => why.clone(),
        };
        let daemon = kind_name(self.kind);
        let why = format!("{}: {why}; start {daemon}, which has it itself", quote::path(&path));
        LocateError::Record { instance: instance.into(), why }
    }

    fn answer(&self) -> Arc<Answer> {
        let (kind, base) = (self.kind, self.base.clone());
        let answer = self.told.answer(move |before| ask(kind, &base, before));
        answer.unwrap_or_else(|| {
            Arc::new(Answer {
                why: Some(format!("{} did not answer in time", kind_name(self.kind))),
                disk: Some(format!("nor did the disk, {}; try again", quote::path(&self.base))),
                ..Answer::at(Instant::now())
            })
        })
    }

    /// Has it asked in the background, if what it told last is too old.
    pub(super) fn start(&self) {
        let (kind, base) = (self.kind, self.base.clone());
        self.told.start(move |before| ask(kind, &base, before));
    }
}

/// As somebody types it.
fn command(client: &str, verb: &str, instance: &str, project: &str) -> String {
    // Old servers take any character.
    let instance = quote::word(instance.as_bytes());
    match project {
        DEFAULT => format!("{client} {verb} {instance}"),
        project => {
            format!("{client} {verb} {instance} --project {}", quote::word(project.as_bytes()))
        }
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
    let why = match list::list(base) {
        Ok(Listing { instances, member }) => {
            return Answer {
                instances,
                member,
                online: Some(SystemTime::now()),
                ..Answer::at(checked)
            };
        }
        Err(why) => format!("{}: {why}", kind_name(kind)),
    };
    tracing::debug!(%why, "asking the disk instead");
    let disk = disk::read(base);
    let mut answer = Answer {
        faults: disk.faults.into_iter().map(Arc::new).collect(),
        why: Some(why),
        disk: (!disk.unseen.is_empty()).then(|| disk.unseen.join("; ")),
        ..Answer::at(checked)
    };
    let Some((before, online)) = before.and_then(|b| Some((b, b.online?))) else {
        answer.instances = disk.instances.into_iter().map(|(i, _)| Arc::new(i)).collect();
        return answer;
    };
    // What the daemon told is newer than any backup.yaml that it has not written since.
    answer.instances.clone_from(&before.instances);
    for (new, _) in disk.instances.into_iter().filter(|(_, written)| *written > online) {
        answer.instances.retain(|old| (&old.name, &old.project) != (&new.name, &new.project));
        answer.instances.push(Arc::new(new));
    }
    (answer.online, answer.member) = (Some(online), before.member.clone());
    answer
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
    format!("cannot read {}: {why}{remedy}", quote::path(&dir))
}
