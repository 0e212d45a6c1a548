//! Every machine of one user: Codchi's state joined with where its files are.

use crate::backend::{Directories, LocateError, Location};
use crate::codchi::{self, Found, MachineConfig, MachineName, State, Times, flake};
use crate::export::Exports;
use crate::idmap::IdMap;
use crate::tree::{self, GeneratedFile, Owners, Selection, Source, Time, Tree};
use parking_lot::Mutex;
use serde_json::json;
use std::collections::HashMap;
use std::path::PathBuf;
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
    /// The container's root directory, where it was found.
    pub rootfs: Option<PathBuf>,
    /// The home directory on the host.
    pub home: PathBuf,
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
    backend: Directories,
    selection: Selection,
    /// Only these, where there are any.
    only: Vec<MachineName>,
    known: Mutex<HashMap<MachineName, Known>>,
}

impl Machines {
    /// The machines of `state` whose files `backend` finds; only those named in `only`, where there are any.
    pub fn new(
        state: State,
        backend: Directories,
        selection: Selection,
        only: Vec<MachineName>,
    ) -> Result<Self, tree::RuleError> {
        selection.check()?;
        Ok(Self { state, backend, selection, only, known: Mutex::default() })
    }

    /// All entries of Codchi's machine directory that are asked for, sorted, those with impossible names too.
    pub fn found(&self) -> Result<Vec<Found>, codchi::Error> {
        let mut found = self.state.machine_names()?;
        found.retain(|f| match f {
            Found::Machine(name) => self.wanted(name),
            Found::Invalid { .. } => self.only.is_empty(),
        });
        Ok(found)
    }

    /// Names of all machines, sorted. Reads Codchi's config directory; never scans.
    pub fn names(&self) -> Vec<Arc<str>> {
        let found = self.found().unwrap_or_else(|why| {
            tracing::warn!(%why, "cannot list the machines");
            Vec::new()
        });
        let names: Vec<MachineName> = found
            .into_iter()
            .filter_map(|f| match f {
                Found::Machine(name) => Some(name),
                Found::Invalid { .. } => None,
            })
            .collect();
        // What Codchi has forgotten must not be held open by us.
        self.known.lock().retain(|name, _| names.contains(name));
        names.iter().map(|name| Arc::from(name.as_str())).collect()
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
        let broken = |state, rootfs, why: String| {
            let machine = Machine {
                name: Arc::from(name.as_str()),
                state,
                tree: Err(why),
                exports: None,
                rootfs,
                home: self.state.home(name),
            };
            (Some(Arc::new(machine)), None)
        };
        if !self.state.has(name) {
            return (None, None);
        }
        let times = match self.state.times(name) {
            Ok(times) => times,
            Err(why) => return broken(Status::Broken, None, why.to_string()),
        };
        let location = match self.backend.locate(&name.instance()) {
            Ok(location) => location,
            Err(why @ LocateError::NotInstalled(_)) => {
                return broken(Status::NotInstalled, None, why.to_string());
            }
            Err(why) => return broken(Status::Broken, None, why.to_string()),
        };
        let home = self.state.home(name);
        let rootfs = location.rootfs.clone();
        let roots = [identity(&rootfs), identity(&home)];
        let origin = Origin { times, location, roots };
        if let Some((machine, Some(same))) = &before
            && *same == origin
        {
            return (Some(Arc::clone(machine)), Some(origin));
        }
        let config = match self.state.load(name) {
            Ok(config) => config,
            Err(why) => {
                return match before {
                    // Codchi is in the middle of writing it: the last good version still holds.
                    Some((machine, origin @ Some(_))) if why.is_busy() => (Some(machine), origin),
                    _ => broken(Status::Broken, Some(rootfs), why.to_string()),
                };
            }
        };
        match self.build(&config, &origin, home.clone()) {
            Ok((tree, exports)) => {
                let machine = Machine {
                    name: Arc::from(name.as_str()),
                    state: Status::Ready,
                    tree: Ok(tree),
                    exports: Some(exports),
                    rootfs: Some(rootfs),
                    home,
                };
                (Some(Arc::new(machine)), Some(origin))
            }
            Err(why) => broken(Status::Broken, Some(rootfs), why),
        }
    }

    fn build(
        &self,
        config: &MachineConfig,
        origin: &Origin,
        home: PathBuf,
    ) -> Result<(Arc<Tree>, Arc<Exports>), String> {
        let generated = generated(config, &origin.location.rootfs).map_err(|e| e.to_string())?;
        let mapped = |map: &Option<IdMap>, otherwise| match map {
            Some(map) => Owners::Mapped(map.clone()),
            None => otherwise,
        };
        let source = Source {
            rootfs: origin.location.rootfs.clone(),
            rootfs_owners: mapped(&origin.location.maps.rootfs, Owners::AsOnDisk),
            home: Some(home),
            home_owners: mapped(&origin.location.maps.home, Owners::All(1000, 100)),
        };
        let made = time(config.times.config_mtime);
        let tree =
            Tree::open(source, &self.selection, generated, made).map_err(|e| e.to_string())?;
        let tree = Arc::new(tree);
        let exports = Exports::new(Arc::clone(&tree), time(config.times.newest_ctime()));
        Ok((tree, Arc::new(exports)))
    }
}

fn time(t: codchi::Time) -> Time {
    Time { sec: t.sec, nsec: t.nsec }
}

fn identity(path: &std::path::Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt as _;
    path.symlink_metadata().map_or((0, 0), |m| (m.dev(), m.ino()))
}

/// The files that the export has over whatever the machine has there.
fn generated(
    config: &MachineConfig,
    rootfs: &std::path::Path,
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
