//! Every machine of one user: Codchi's state joined with where its files are.

use crate::backend::{Backend, Facts, LocateError, Location, Power, Query};
use crate::codchi::{self, Found, MachineConfig, MachineName, State, Times, flake};
use crate::credentials::{User, as_user};
use crate::export::Exports;
use crate::idmap::IdMap;
use crate::tree::{self, GeneratedFile, Owners, Selection, Source, Time, Tree};
use parking_lot::Mutex;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde_json::json;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long what was found of a machine is believed: a change of Codchi's state shows within a second.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// The version of `report.json`'s shape.
const REPORT_SCHEMA: u32 = 1;

/// How a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Its export can be made.
    Ready,
    /// Codchi knows it, but there is no instance.
    NotInstalled,
    /// It cannot be exported as it is.
    Broken,
}

impl Status {
    /// As `list --json` and the report write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::NotInstalled => "not installed",
            Self::Broken => "broken",
        }
    }
}

/// One code machine, as found at the last look.
#[derive(Debug)]
pub struct Machine {
    /// Its name, valid as a path component.
    pub name: Arc<str>,
    /// How it is.
    pub state: Status,
    /// The exported tree, or why there is none: a text for people.
    pub tree: Result<Arc<Tree>, String>,
    /// Its generations of `export.tar`. `None` exactly where `tree` is an error.
    pub exports: Option<Arc<Exports>>,
    /// Where its files are, where that is known.
    pub location: Option<Location>,
    /// The home directory on the host.
    pub home: PathBuf,
    /// How fresh what the daemon said is, at the last look.
    facts: Mutex<Facts>,
}

/// What a machine was made from: where this is unchanged, so is the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    times: Times,
    location: Location,
    /// Device and inode of the rootfs and the home: a machine that was deleted and made again is another one.
    roots: [(u64, u64); 2],
}

#[derive(Debug)]
struct Known {
    machine: Arc<Machine>,
    origin: Option<Origin>,
    looked: Instant,
}

/// Finds machines live.
#[derive(Debug)]
pub struct Machines {
    state: State,
    user: User,
    backend: Backend,
    selection: Selection,
    /// Only these, where there are any.
    only: Vec<MachineName>,
    known: Mutex<HashMap<MachineName, Known>>,
}

impl Machines {
    /// The machines of `state`, which is `user`'s, whose files `backend` finds; only those named in `only`, where there
    /// are any.
    pub fn new(
        state: State,
        user: User,
        backend: Backend,
        selection: Selection,
        only: Vec<MachineName>,
    ) -> Result<Self, tree::RuleError> {
        selection.check()?;
        Ok(Self { state, user, backend, selection, only, known: Mutex::default() })
    }

    /// All entries of Codchi's machine directory that are asked for, sorted, those with impossible names too.
    pub fn found(&self) -> Result<Vec<Found>, Box<dyn std::error::Error>> {
        let mut found = as_user(self.user, || self.state.machine_names())??;
        found.retain(|f| match f {
            Found::Machine(name) => self.wanted(name),
            Found::Invalid { .. } => self.only.is_empty(),
        });
        Ok(found)
    }

    /// Names of all machines, sorted. Reads Codchi's config directory; never scans. An error is EIO, and never an empty
    /// list: whoever mirrors the mount would delete what is missing.
    pub fn names(&self) -> Result<Vec<Arc<str>>, Errno> {
        let found = self.found().map_err(|why| {
            tracing::warn!(%why, "cannot list the machines");
            Errno::IO
        })?;
        let names: Vec<MachineName> = found
            .into_iter()
            .filter_map(|f| match f {
                Found::Machine(name) => Some(name),
                Found::Invalid { .. } => None,
            })
            .collect();
        // What Codchi has forgotten must not be held open by us.
        self.known.lock().retain(|name, _| names.contains(name));
        Ok(names.iter().map(|name| Arc::from(name.as_str())).collect())
    }

    /// The machine of that name: the same `Arc` while nothing it was made from changed, else made anew.
    pub fn get(&self, name: &[u8]) -> Option<Arc<Machine>> {
        let name = MachineName::new(std::str::from_utf8(name).ok()?).ok()?;
        if !self.wanted(&name) {
            return None;
        }
        let before = {
            let mut known = self.known.lock();
            let before =
                known.get(&name).map(|k| (Arc::clone(&k.machine), k.origin.clone(), k.looked));
            if let Some((machine, _, looked)) = &before
                && looked.elapsed() < LOOK_AGAIN
            {
                return Some(Arc::clone(machine));
            }
            // Whoever asks while this thread looks gets the last good answer, and does not wait as well.
            if let Some(known) = known.get_mut(&name) {
                known.looked = Instant::now();
            }
            before
        };
        // No lock from here: reading Codchi's state waits for Codchi.
        let (machine, origin) =
            self.look(&name, before.map(|(machine, origin, _)| (machine, origin)));
        let mut known = self.known.lock();
        let Some(machine) = machine else {
            known.remove(&name);
            return None;
        };
        known.insert(name, Known { machine: Arc::clone(&machine), origin, looked: Instant::now() });
        Some(machine)
    }

    fn wanted(&self, name: &MachineName) -> bool {
        self.only.is_empty() || self.only.contains(name)
    }

    fn look(
        &self,
        name: &MachineName,
        before: Option<(Arc<Machine>, Option<Origin>)>,
    ) -> (Option<Arc<Machine>>, Option<Origin>) {
        let seen = as_user(self.user, || Ok(self.state.has(name)?.then(|| self.state.times(name))));
        let times = match seen {
            Ok(Ok(Some(times))) => times.map_err(|why| why.to_string()),
            Ok(Ok(None)) => return (None, None),
            Ok(Err(why)) => {
                let why: codchi::Error = why;
                match before {
                    Some((machine, origin)) => {
                        tracing::warn!(machine = %name, %why, "serving what was known before");
                        return (Some(machine), origin);
                    }
                    None => Err(why.to_string()),
                }
            }
            Err(why) => Err(format!("cannot act as uid {}: {why}", self.user.uid)),
        };
        let query = Query {
            instance: &name.instance(),
            uid: self.user.uid,
            data_dir: &self.state.data_dir,
        };
        let (location, facts) = self.backend.locate(&query);
        let broken = |status, location: Option<Location>, why: String| {
            let machine = Machine {
                name: Arc::from(name.as_str()),
                state: status,
                tree: Err(why),
                exports: None,
                home: self.home(name, location.as_ref()),
                location,
                facts: Mutex::new(facts.clone()),
            };
            (Some(Arc::new(machine)), None)
        };
        let times = match times {
            Ok(times) => times,
            Err(why) => return broken(Status::Broken, location.ok(), why),
        };
        let location = match location {
            Ok(location) => location,
            Err(why @ LocateError::NotInstalled(_)) => {
                return broken(Status::NotInstalled, None, why.to_string());
            }
            Err(why) => return broken(Status::Broken, None, why.to_string()),
        };
        let home = self.home(name, Some(&location));
        let roots = [identity(&location.rootfs), identity(&home)];
        let origin = Origin { times, location, roots };
        if let Some((machine, Some(same))) = &before
            && *same == origin
        {
            *machine.facts.lock() = facts;
            return (Some(Arc::clone(machine)), Some(origin));
        }
        let location = Some(origin.location.clone());
        let config = match as_user(self.user, || self.state.load(name)) {
            Ok(Ok(config)) => config,
            Ok(Err(why)) => {
                return match before {
                    // Codchi is in the middle of writing it: the last good version still holds.
                    Some((machine, origin @ Some(_))) if why.is_busy() => (Some(machine), origin),
                    _ => broken(Status::Broken, location, why.to_string()),
                };
            }
            Err(why) => return broken(Status::Broken, location, why.to_string()),
        };
        match self.build(&config, &origin, &home) {
            Ok((tree, exports)) => {
                let machine = Machine {
                    name: Arc::from(name.as_str()),
                    state: Status::Ready,
                    tree: Ok(tree),
                    exports: Some(exports),
                    location,
                    home,
                    facts: Mutex::new(facts.clone()),
                };
                (Some(Arc::new(machine)), Some(origin))
            }
            Err(why) => broken(Status::Broken, location, why),
        }
    }

    /// The home that the instance has, else where Codchi puts it.
    fn home(&self, name: &MachineName, location: Option<&Location>) -> PathBuf {
        location.and_then(|l| l.home.clone()).unwrap_or_else(|| self.state.home(name))
    }

    fn build(
        &self,
        config: &MachineConfig,
        origin: &Origin,
        home: &Path,
    ) -> Result<(Arc<Tree>, Arc<Exports>), String> {
        let location = &origin.location;
        let rootfs = tree::open_layer(&location.rootfs)
            .map_err(|e| cannot_open("root file system", &location.rootfs, e))?;
        inside_map("root file system", &location.rootfs, &rootfs, location.maps.rootfs.as_ref())?;
        let opened = self.open_home(home)?;
        inside_map("home", home, &opened, location.maps.home.as_ref())?;
        let generated = generated(config, &rootfs).map_err(|e| e.to_string())?;
        let mapped = |map: &Option<IdMap>, otherwise| match map {
            Some(map) => Owners::Mapped(map.clone()),
            None => otherwise,
        };
        let source = Source {
            rootfs,
            rootfs_owners: mapped(&location.maps.rootfs, Owners::AsOnDisk),
            home: Some(opened),
            home_owners: mapped(&location.maps.home, Owners::All(1000, 100)),
        };
        let made = time(config.times.config_mtime);
        let tree =
            Tree::new(source, &self.selection, generated, made).map_err(|e| e.to_string())?;
        let tree = Arc::new(tree);
        let exports = Exports::new(Arc::clone(&tree), time(config.times.newest_ctime()));
        Ok((tree, Arc::new(exports)))
    }

    /// The way to a home is the user's, who may put links there: it is walked with the user's rights. Only the home
    /// itself, which is shifted and 0700, is opened with more, and not if it is a link.
    fn open_home(&self, home: &Path) -> Result<OwnedFd, String> {
        let (Some(parent), Some(name)) = (home.parent(), home.file_name()) else {
            return Err(format!("the home {} is no directory's path", home.display()));
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = as_user(self.user, || rustix::fs::open(parent, flags, Mode::empty()))
            .map_err(|e| e.to_string())?
            .map_err(|e| cannot_open("way to the home", home, e))?;
        tree::open_layer_at(&parent, name).map_err(|e| cannot_open("home", home, e))
    }
}

fn cannot_open(what: &str, path: &Path, why: Errno) -> String {
    let remedy = match why {
        Errno::ACCESS | Errno::PERM => {
            "; only root reads machines: run as root, or mount with `mount -t codchifs`"
        }
        _ => "",
    };
    format!("cannot open the {what} {}: {why}{remedy}", path.display())
}

/// A layer whose owner is nobody in the machine is not the machine's, however it got there.
fn inside_map(what: &str, path: &Path, layer: &OwnedFd, map: Option<&IdMap>) -> Result<(), String> {
    let (uid, _) = tree::layer_owner(layer).map_err(|e| cannot_open(what, path, e))?;
    match map {
        Some(map) if map.uid(uid).is_none() => Err(format!(
            "refused: the {what} {} belongs to host uid {uid}, who is nobody in the machine",
            path.display()
        )),
        _ => Ok(()),
    }
}

fn time(t: codchi::Time) -> Time {
    Time { sec: t.sec, nsec: t.nsec }
}

fn identity(path: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt as _;
    path.symlink_metadata().map_or((0, 0), |m| (m.dev(), m.ino()))
}

/// The files that the export has over whatever the machine has there.
fn generated(
    config: &MachineConfig,
    rootfs: &OwnedFd,
) -> Result<Vec<GeneratedFile>, codchi::Error> {
    let file = |path: &'static str, text: String, perm, gid| GeneratedFile {
        path: path.as_bytes(),
        content: Arc::from(text.into_bytes()),
        perm,
        uid: 0,
        gid,
    };
    // A token in a URL is a password; nix copies it into the world-readable store all the same.
    let (perm, gid) = if config.has_token() { (0o640, 100) } else { (0o644, 0) };
    let mut files =
        vec![file("/etc/nixos/flake.nix", flake::render(config, flake::System::host()), perm, gid)];
    if let Some(lock) = codchi::lock::rewrite(config)? {
        files.push(file("/etc/nixos/flake.lock", lock, perm, gid));
    }
    const ENV: &str = "/etc/codchi-env";
    // Services of any user source it; the machine's own mode says who may.
    let perm = tree::file_perm(rootfs, ENV).unwrap_or(0o644);
    files.push(file(ENV, codchi::env::render(config), perm, 0));
    Ok(files)
}

impl Machine {
    /// How fresh what the daemon said is, at the last look.
    pub fn facts(&self) -> Facts {
        self.facts.lock().clone()
    }

    /// The bytes of `report.json`, made now. Never scans.
    pub fn report(&self) -> Vec<u8> {
        let mut report = json!({
            "schema": REPORT_SCHEMA,
            "machine": *self.name,
            "state": self.state.as_str(),
        });
        let mut set = |key: &str, value| {
            if let Some(map) = report.as_object_mut() {
                map.insert(key.into(), value);
            }
        };
        if let Some(location) = &self.location {
            set("driver", json!(location.driver));
            set("pool", json!(location.pool));
            set("running", json!(location.power.map(|p| p == Power::Running)));
            let devices: Vec<_> = location
                .foreign
                .iter()
                .map(|d| json!({"path": d.path, "source": d.source}))
                .collect();
            set("devices_not_exported", json!(devices));
        }
        let facts = self.facts.lock().clone();
        if let Some(why) = facts.why {
            let as_of = facts.online.map(|at| humantime::format_rfc3339_seconds(at).to_string());
            set("daemon", json!({"silent": why, "facts_as_of": as_of}));
        }
        match &self.tree {
            Err(why) => set("reason", json!(why)),
            Ok(_) => match self.exports.as_ref().and_then(|e| e.last()) {
                None => {
                    let failed = self.exports.as_ref().and_then(|e| e.failed());
                    let note = failed.map_or_else(
                        || "not scanned yet: the first look at export.tar scans".into(),
                        |why| format!("the last scan failed: {why}"),
                    );
                    set("note", json!(note));
                }
                Some(g) => {
                    let (at, took) = g.scanned();
                    set(
                        "generation",
                        json!({
                            "id": format!("{:016x}", g.id()),
                            "size": g.size(),
                            "members": g.members(),
                            "scanned": humantime::format_rfc3339_seconds(at).to_string(),
                            "scan_seconds": took.as_secs_f64(),
                            "torn": g.torn(),
                            "complete": !g.incomplete(),
                        }),
                    );
                    set("left_out", json!(g.left_out()));
                    set("changed", json!(g.changes()));
                }
            },
        }
        let mut text = serde_json::to_vec_pretty(&report).unwrap_or_default();
        text.push(b'\n');
        text
    }
}
