//! Every machine of one user: Codchi's state joined with where its files are.

mod build;
mod credentials;
mod guide;
mod lately;
mod report;

use crate::backend::{Facts, LocateError, Location};
use crate::codchi::{self, Found, MachineName, State, Times};
use crate::credentials::{User, as_user};
use crate::export::{self, Exports, History};
use crate::opener::{Located, Opener};
use crate::tree::{self, Selection, Tree};
use credentials::Credentials;
use guide::Guide;
pub use guide::Shown;
use parking_lot::Mutex;
use rustix::io::Errno;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long what was found of a machine is believed: a change of Codchi's state shows within a second.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// How many paths of `--include` are looked for: each is opened, and a line for it stands in the report.
const MAX_CHECKED: usize = 1000;

/// What the user wants of every export.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// What to leave out and what to keep.
    pub selection: Selection,
    /// How the archive is made.
    pub options: export::Options,
    /// No secret that Codchi knows: for an export that is handed to somebody else.
    pub redact: bool,
    /// What the commands of a machine's guide must say.
    pub shown: Shown,
}

fn export_name(redacted: bool) -> &'static str {
    if redacted { "export-redacted.tar" } else { "export.tar" }
}

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
    /// Nobody answered where it is, so that it is not known either that there is nothing.
    silent: bool,
    /// Where its files are, where that is known.
    pub location: Option<Location>,
    /// The home directory on the host.
    pub home: PathBuf,
    /// What the user wants to have included.
    includes: Vec<String>,
    /// Without the secrets that Codchi knows; their names are what the receiver must fill in.
    pub redacted: Option<Redacted>,
    /// What of its configuration whoever moves it must know.
    warnings: Vec<String>,
    /// How fresh what the daemon said is, at the last look.
    facts: Mutex<Facts>,
    guide: Guide,
}

/// What an export for somebody else lacks.
#[derive(Debug, Default)]
pub struct Redacted {
    /// Names of the variables in codchi-env that have no value.
    pub secrets: Vec<String>,
    /// Modules whose URL has no token, Codchi's own among them.
    pub modules: Vec<String>,
    /// What is still inside.
    inside: Credentials,
}

/// What a machine was made from: where this is unchanged, so is the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    times: Times,
    located: Located,
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
    opener: Opener,
    settings: Settings,
    /// Only these, where there are any.
    only: Vec<MachineName>,
    known: Mutex<HashMap<MachineName, Known>>,
    /// Of all machines in `known`, and of those that are broken for a moment.
    histories: Mutex<HashMap<MachineName, Arc<History>>>,
}

impl Machines {
    /// The machines of `state`, which is `user`'s, whose files `opener` finds; only those named in `only`, where there
    /// are any.
    pub fn new(
        state: State,
        user: User,
        opener: Opener,
        settings: Settings,
        only: Vec<MachineName>,
    ) -> Result<Self, tree::RuleError> {
        settings.selection.check()?;
        Ok(Self {
            state,
            user,
            opener,
            settings,
            only,
            known: Mutex::default(),
            histories: Mutex::default(),
        })
    }

    /// The name of every machine's tar: one without secrets is never taken for a whole one.
    pub fn export_name(&self) -> &'static str {
        export_name(self.settings.redact)
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
        self.histories.lock().retain(|name, _| names.contains(name));
        Ok(names.iter().map(|name| Arc::from(name.as_str())).collect())
    }

    /// Looks at every machine anew when it is next asked for. What readers have open stays theirs.
    pub fn reread(&self) {
        for known in self.known.lock().values_mut() {
            known.origin = None;
            known.looked = Instant::now().checked_sub(LOOK_AGAIN).unwrap_or(known.looked);
        }
    }

    /// Drops a machine that was looked at for the last time: a user may have any number of them.
    pub fn forget(&self, name: &MachineName) {
        self.known.lock().remove(name);
        self.histories.lock().remove(name);
    }

    /// Drops what nobody has asked for within an hour. To be called now and then.
    pub fn tidy(&self) {
        let machines: Vec<_> =
            self.known.lock().values().map(|known| Arc::clone(&known.machine)).collect();
        for exports in machines.iter().filter_map(|machine| machine.exports.as_ref()) {
            exports.tidy();
        }
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
        let (located, facts) = self.opener.locate(name);
        let silent = matches!(located, Err(LocateError::Silent(_)));
        let broken = |status, located: Option<Located>, why: String| {
            let machine = Machine {
                name: Arc::from(name.as_str()),
                state: status,
                tree: Err(why),
                exports: None,
                silent,
                home: self.home(name, located.as_ref()),
                location: located.map(|located| located.location),
                redacted: None,
                includes: Vec::new(),
                warnings: Vec::new(),
                facts: Mutex::new(facts.clone()),
                guide: Guide::default(),
            };
            (Some(Arc::new(machine)), None)
        };
        let times = match times {
            Ok(times) => times,
            Err(why) => return broken(Status::Broken, located.ok(), why),
        };
        let located = match located {
            Ok(located) => located,
            Err(why @ LocateError::NotInstalled(_)) => {
                return broken(Status::NotInstalled, None, why.to_string());
            }
            Err(why @ LocateError::Silent(_)) => {
                return match before {
                    // What is open stays open; nothing that is mirrored from here is to vanish.
                    Some((machine, origin)) if machine.tree.is_ok() => {
                        tracing::warn!(machine = %name, %why, "serving what was known before");
                        (Some(machine), origin)
                    }
                    _ => broken(Status::Broken, None, why.to_string()),
                };
            }
            Err(why) => return broken(Status::Broken, None, why.to_string()),
        };
        let origin = Origin { times, located };
        if let Some((machine, Some(same))) = &before
            && *same == origin
        {
            *machine.facts.lock() = facts;
            return (Some(Arc::clone(machine)), Some(origin));
        }
        let located = Some(origin.located.clone());
        let config = match as_user(self.user, || self.state.load(name)) {
            Ok(Ok(config)) => config,
            Ok(Err(why)) => {
                return match before {
                    // Codchi is in the middle of writing it: the last good version still holds.
                    Some((machine, origin @ Some(_))) if why.is_busy() => (Some(machine), origin),
                    _ => broken(Status::Broken, located, why.to_string()),
                };
            }
            Err(why) => return broken(Status::Broken, located, why.to_string()),
        };
        let history = Arc::clone(self.histories.lock().entry(name.clone()).or_default());
        let redacted = self.settings.redact.then(|| Redacted {
            secrets: config.secrets.keys().cloned().collect(),
            modules: config.inputs_with_token(),
            inside: Credentials::default(),
        });
        let guide = Guide::new(self.settings.shown.clone(), &config);
        match self.build(&config, name, &origin.located, history) {
            Ok((tree, exports)) => {
                let machine = Machine {
                    name: Arc::from(name.as_str()),
                    state: Status::Ready,
                    tree: Ok(tree),
                    exports: Some(exports),
                    silent: false,
                    home: self.home(name, located.as_ref()),
                    location: located.map(|located| located.location),
                    redacted,
                    includes: self.settings.selection.include.clone(),
                    warnings: config.warnings(),
                    facts: Mutex::new(facts.clone()),
                    guide,
                };
                (Some(Arc::new(machine)), Some(origin))
            }
            Err(why) => broken(Status::Broken, located, why),
        }
    }
}

impl Machine {
    /// The error of a look at what is not shown: where nobody knows whether it is there, its name must not seem to be free,
    /// nor a listing to be whole, which a mirror would follow by deleting.
    pub fn missing(&self) -> Errno {
        match self.silent {
            true => Errno::IO,
            false => Errno::NOENT,
        }
    }

    /// Fails where [`Machine::missing`] is not merely that.
    pub fn may_be_listed(&self) -> Result<(), Errno> {
        match self.silent {
            true => Err(Errno::IO),
            false => Ok(()),
        }
    }

    /// How fresh what the daemon said is, at the last look.
    pub fn facts(&self) -> Facts {
        self.facts.lock().clone()
    }

    /// What of its configuration whoever moves it must know: it can be exported all the same.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Paths of `--include` that the machine has not, among the first thousand: most likely misspelt.
    pub fn missing_includes(&self) -> Vec<&str> {
        let Ok(tree) = &self.tree else { return Vec::new() };
        let missing = |path: &&String| {
            let Some((parent, name)) = path.trim_end_matches('/').rsplit_once('/') else {
                return true;
            };
            report::walk(tree, parent).is_none_or(|dir| tree.lookup(&dir, name.as_bytes()).is_err())
        };
        self.includes.iter().take(MAX_CHECKED).filter(missing).map(String::as_str).collect()
    }
}
