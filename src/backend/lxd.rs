//! LXD and Incus: from their API while the daemon answers, else from the `backup.yaml` that it keeps beside each rootfs.

use super::api;
use super::record::Instance;
use super::{Facts, LocateError, Location, Power, Query, read_small};
use parking_lot::{Condvar, Mutex};
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// The daemon has this long for one answer.
const DEADLINE: Duration = Duration::from_secs(3);
/// What was told is believed this long.
const FRESH: Duration = Duration::from_millis(700);
/// Bytes of an answer at most: 10,000 instances are some 60 MiB.
const MOST_ANSWER: usize = 256 << 20;
/// One request for all machines of all projects.
const INSTANCES: &str = "/1.0/instances?recursion=1&all-projects=true";
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
    /// As `list` and the report write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lxd => "lxd",
            Self::Incus => "incus",
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
#[derive(Debug)]
pub struct Daemon {
    kind: Kind,
    base: PathBuf,
    told: Arc<Told>,
}

/// What the daemon told last. Asked again in the background: whoever wants to know gets the last answer at once.
#[derive(Debug, Default)]
struct Told {
    state: Mutex<State>,
    first: Condvar,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Arc<Answer>>,
    asking: bool,
}

/// All instances, as of one moment.
#[derive(Debug)]
struct Answer {
    instances: Vec<Arc<Instance>>,
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

    /// All instances of that name which are the user's; the others are counted.
    pub(super) fn find(
        &self,
        query: &Query<'_>,
    ) -> (Vec<Result<Location, LocateError>>, Facts, usize) {
        let answer = self.answer();
        let named = |i: &&Arc<Instance>| i.name == query.instance;
        let all: Vec<_> = answer.instances.iter().filter(named).collect();
        let mine: Vec<_> = all.iter().filter(|i| i.belongs_to(query.uid, query.data_dir)).collect();
        let others = all.len() - mine.len();
        let found = mine.into_iter().map(|i| self.location(i)).collect();
        let facts =
            Facts { online: answer.online, why: answer.why.clone(), disk: answer.disk.clone() };
        (found, facts, others)
    }

    fn location(&self, instance: &Instance) -> Result<Location, LocateError> {
        let unusable = |why: String| LocateError::Record { instance: instance.name.clone(), why };
        let maps = instance.maps.clone().map_err(|e| unusable(e.to_string()))?;
        let (pool, directory) = instance
            .directory()
            .ok_or_else(|| unusable("its pool, project or name is no directory's name".into()))?;
        let below = Path::new("storage-pools")
            .join(&pool)
            .join("containers")
            .join(directory)
            .join("rootfs");
        let mut rootfs = self.base.join(&below);
        let mut found = rootfs.symlink_metadata();
        if found.is_err() && self.base.starts_with("/var/snap/lxd") {
            let inside = Path::new(SNAP_NAMESPACE)
                .join(self.base.strip_prefix("/").unwrap_or(&self.base))
                .join(&below);
            if let Ok(meta) = inside.symlink_metadata() {
                (rootfs, found) = (inside, Ok(meta));
            }
        }
        let client = self.kind.client();
        match found {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => {
                return Err(LocateError::Look {
                    path: rootfs,
                    source: ErrorKind::NotADirectory.into(),
                });
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(LocateError::Unmounted {
                    path: rootfs,
                    pool: instance.pool_driver.clone().unwrap_or(pool),
                    start: format!("{client} start {}", instance.name),
                });
            }
            Err(source) => return Err(LocateError::Look { path: rootfs, source }),
        }
        let foreign =
            instance.disks.iter().filter(|d| !super::is_codchis_own(&d.path)).cloned().collect();
        Ok(Location {
            rootfs,
            shifted: maps.rootfs.is_some(),
            maps,
            driver: self.kind.as_str(),
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

    /// The last answer; the first one is waited for.
    fn answer(&self) -> Arc<Answer> {
        let mut state = self.told.state.lock();
        if !state.asking && state.last.as_ref().is_none_or(|a| a.checked.elapsed() > FRESH) {
            state.asking = true;
            let (kind, base, told) = (self.kind, self.base.clone(), Arc::clone(&self.told));
            let before = state.last.clone();
            let ask = move || {
                let answer = ask(kind, &base, before.as_deref());
                let mut state = told.state.lock();
                state.last = Some(Arc::new(answer));
                state.asking = false;
                told.first.notify_all();
            };
            if std::thread::Builder::new().name("codchifs-ask".into()).spawn(ask).is_err() {
                state.asking = false;
            }
        }
        let until = Instant::now() + DEADLINE + Duration::from_secs(2);
        while state.last.is_none() && state.asking {
            if self.told.first.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        state.last.clone().unwrap_or_else(|| {
            Arc::new(Answer {
                instances: Vec::new(),
                checked: Instant::now(),
                online: None,
                why: Some(format!("{} did not answer, nor did the disk", kind_name(self.kind))),
                disk: None,
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
            Answer { instances, checked, online: Some(SystemTime::now()), why: None, disk: None }
        }
        Err(why) => {
            let why = format!("{}: {why}", kind_name(kind));
            tracing::debug!(%why, "asking the disk instead");
            let (mut instances, disk) = match from_disk(base) {
                Ok(instances) => (instances, None),
                Err(why) => (Vec::new(), Some(why)),
            };
            let told = before.and_then(|b| Some((b, b.online?)));
            let Some((before, online)) = told else {
                return Answer {
                    instances: instances.into_iter().map(|(i, _)| Arc::new(i)).collect(),
                    checked,
                    online: None,
                    why: Some(why),
                    disk,
                };
            };
            // What the daemon told is newer than any backup.yaml that it has not written since.
            instances.retain(|(_, written)| *written > online);
            let mut merged = before.instances.clone();
            for (new, _) in instances {
                merged.retain(|old| (&old.name, &old.project) != (&new.name, &new.project));
                merged.push(Arc::new(new));
            }
            Answer { instances: merged, checked, online: Some(online), why: Some(why), disk }
        }
    }
}

/// Every machine's backup.yaml, with when it was written.
fn from_disk(base: &Path) -> Result<Vec<(Instance, SystemTime)>, String> {
    let pools = base.join("storage-pools");
    let list = |dir: &Path| {
        std::fs::read_dir(dir).map_err(|e| {
            let remedy = match e.kind() {
                ErrorKind::PermissionDenied => {
                    "; only root reads it: run as root, or mount with `mount -t codchifs`"
                }
                _ => "",
            };
            format!("cannot read {}: {e}{remedy}", dir.display())
        })
    };
    let mut found = Vec::new();
    for pool in list(&pools)?.flatten() {
        // A pool that is not mounted has no containers directory, and other kinds of entries are none.
        let Ok(containers) = list(&pool.path().join("containers")) else { continue };
        for container in containers.flatten() {
            let path = container.path().join("backup.yaml");
            if !container.file_name().to_string_lossy().contains("codchi-") {
                continue;
            }
            let Ok((text, written)) = read_small(&path) else { continue };
            match Instance::from_backup(&text) {
                Ok(mut instance) => {
                    // As of when it was written: a machine outlives its daemon.
                    instance.status.clear();
                    if instance.pool.is_none() {
                        instance.pool = pool.file_name().into_string().ok();
                    }
                    found.push((instance, written));
                }
                Err(why) => tracing::warn!(path = %path.display(), %why, "not usable"),
            }
        }
    }
    Ok(found)
}
