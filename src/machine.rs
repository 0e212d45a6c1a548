//! Every machine of one user: Codchi's state joined with where its files are.

mod arrive;
mod build;
mod credentials;
mod guide;
mod lately;
mod path;
mod report;

use crate::backend::{Facts, LocateError, Location};
use crate::codchi::{self, Found, MachineName, State, Times};
use crate::credentials::{User, as_user};
use crate::export::{self, Exports, History};
use crate::opener::{Located, Opener};
use crate::tree::{self, Selection, Time, Tree};
use credentials::Credentials;
use guide::Guide;
pub use guide::Shown;
use lately::Lately;
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// How long what was found of a machine is believed: a change of Codchi's state shows within a second.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// How long a look at a machine is waited for: longer than silent daemons and Codchi's lock take. From then on the machine counts
/// as one that does not answer, until the look comes back.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);

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
    /// What the user wants to have included, and what of that is not there.
    includes: Vec<String>,
    missing: Lately<Vec<String>>,
    /// Without the secrets that Codchi knows; their names are what the receiver must fill in.
    pub redacted: Option<Redacted>,
    /// What of its configuration whoever moves it must know.
    warnings: Vec<String>,
    /// How fresh what the daemon said is, at the last look.
    facts: Mutex<Facts>,
    /// What the last look found that changes without making it another machine.
    seen: Mutex<Seen>,
    guide: Guide,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// That of its root file system.
    time: Time,
    /// Since when a look has not come back.
    silent_since: Option<SystemTime>,
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

/// What was found, and who looks now.
#[derive(Debug, Default)]
struct Looks {
    known: HashMap<MachineName, Known>,
    /// Machines that a thread looks at, each since when: never two at once, which would both put it together, and the slower one,
    /// whose look is the older one, would win.
    looking: HashMap<MachineName, Began>,
    /// How often [`Machines::reread`] was called: a look that began before does not count.
    rereads: u64,
}

/// What was known of a machine at the last look.
type Before = Option<(Arc<Machine>, Option<Origin>)>;

/// When a look began, by a clock that never jumps and by that of people.
type Began = (Instant, SystemTime);

/// Finds machines live.
#[derive(Debug)]
pub struct Machines {
    state: State,
    user: User,
    opener: Opener,
    settings: Settings,
    /// Only these, where there are any.
    only: Vec<MachineName>,
    looks: Mutex<Looks>,
    /// A look has ended.
    looked: Condvar,
    /// Of all machines that are known, and of those that are broken for a moment.
    histories: Mutex<HashMap<MachineName, Arc<History>>>,
}

impl Known {
    /// Has the next look put the machine together anew.
    fn expire(&mut self) {
        self.origin = None;
        self.looked = Instant::now().checked_sub(LOOK_AGAIN).unwrap_or(self.looked);
    }
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
    ) -> Result<Arc<Self>, tree::RuleError> {
        settings.selection.check()?;
        Ok(Arc::new(Self {
            state,
            user,
            opener,
            settings,
            only,
            looks: Mutex::default(),
            looked: Condvar::new(),
            histories: Mutex::default(),
        }))
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
        let is_gone = |name: &MachineName| !names.contains(name);
        let known: Vec<_> = self.looks.lock().known.extract_if(|name, _| is_gone(name)).collect();
        let histories: Vec<_> = self.histories.lock().extract_if(|name, _| is_gone(name)).collect();
        if !known.is_empty() || !histories.is_empty() {
            // Closing what a machine has open may wait for its disk.
            let drop = std::thread::Builder::new().name("codchifs-drop".into());
            let _ = drop.spawn(move || std::mem::drop((known, histories)));
        }
        Ok(names.iter().map(|name| Arc::from(name.as_str())).collect())
    }

    /// Looks at every machine anew when it is next asked for. What readers have open stays theirs.
    pub fn reread(&self) {
        let mut looks = self.looks.lock();
        looks.rereads = looks.rereads.wrapping_add(1);
        looks.known.values_mut().for_each(Known::expire);
    }

    /// Drops a machine that was looked at for the last time: a user may have any number of them.
    pub fn forget(&self, name: &MachineName) {
        let known = self.looks.lock().known.remove(name);
        let history = self.histories.lock().remove(name);
        drop((known, history));
    }

    /// The exports of every machine that is known.
    pub fn exports(&self) -> Vec<(Arc<str>, Arc<Exports>)> {
        let looks = self.looks.lock();
        let of = |known: &Known| {
            let exports = Arc::clone(known.machine.exports.as_ref()?);
            Some((Arc::clone(&known.machine.name), exports))
        };
        looks.known.values().filter_map(of).collect()
    }

    /// The machine of that name: the same `Arc` while nothing it was made from changed, else made anew.
    ///
    /// The look itself has a thread of its own, since a disk may never answer it: it is waited for for a bounded time, there is
    /// one of each machine at most, and none is begun before the last one has come back.
    pub fn get(self: &Arc<Self>, name: &[u8]) -> Option<Arc<Machine>> {
        let name = MachineName::new(std::str::from_utf8(name).ok()?).ok()?;
        if !self.wanted(&name) {
            return None;
        }
        let mut own = None;
        let mut looks = self.looks.lock();
        loop {
            let known = looks.known.get(&name);
            let Some(began) = looks.looking.get(&name).copied() else {
                match known {
                    Some(known) if own.is_some() || known.looked.elapsed() < LOOK_AGAIN => {
                        return Some(Arc::clone(&known.machine));
                    }
                    None if own.is_some() => return None,
                    _ => {}
                }
                let before = known.map(|k| (Arc::clone(&k.machine), k.origin.clone()));
                let began = (Instant::now(), SystemTime::now());
                looks.looking.insert(name.clone(), began);
                let rereads = looks.rereads;
                drop(looks);
                let (machines, of, last) = (Arc::clone(self), name.clone(), before.clone());
                let look = std::thread::Builder::new().name("codchifs-look".into());
                let look = look.spawn(move || machines.look_and_tell(&of, before, rereads));
                looks = self.looks.lock();
                if let Err(why) = look {
                    looks.looking.remove(&name);
                    drop(looks);
                    self.looked.notify_all();
                    let why = format!("no thread can be started to look at `{name}`: {why}");
                    return Some(last.map_or_else(|| self.silent(&name, why), |(last, _)| last));
                }
                own = Some(began);
                continue;
            };
            let is_late = began.0.elapsed() >= LOOK_TIMEOUT;
            match known {
                Some(known) if is_late => {
                    known.machine.falls_silent(began.1);
                    return Some(Arc::clone(&known.machine));
                }
                // Whoever asks while another thread looks gets the last good answer, and does not wait as well.
                Some(known) if own != Some(began) => return Some(Arc::clone(&known.machine)),
                None if is_late => {
                    return Some(self.silent(&name, unanswered(name.as_str(), began.1)));
                }
                _ => {}
            }
            self.looked.wait_until(&mut looks, began.0 + LOOK_TIMEOUT);
        }
    }

    /// Looks at a machine, and tells those who wait for it, whatever happens in it.
    fn look_and_tell(&self, name: &MachineName, before: Before, rereads: u64) {
        let last = before.clone();
        // No lock: reading Codchi's state waits for Codchi, and for disks.
        let look = std::panic::AssertUnwindSafe(|| self.look(name, before));
        let found = std::panic::catch_unwind(look);
        let (machine, origin) = found.unwrap_or_else(|panic| {
            // Dropping what a panic carries may panic in turn.
            std::mem::forget(panic);
            tracing::error!(machine = %name, "a look failed; this is a bug");
            let silent =
                || (self.silent(name, "the look at it failed; this is a bug".into()), None);
            let (machine, origin) = last.unwrap_or_else(silent);
            (Some(machine), origin)
        });
        let mut looks = self.looks.lock();
        let old = match machine {
            Some(machine) => {
                let mut known = Known { machine, origin, looked: Instant::now() };
                if looks.rereads != rereads {
                    known.expire();
                }
                looks.known.insert(name.clone(), known)
            }
            None => looks.known.remove(name),
        };
        looks.looking.remove(name);
        drop(looks);
        self.looked.notify_all();
        drop(old);
    }

    /// A machine of which nothing is known and that nobody answers for.
    fn silent(&self, name: &MachineName, why: String) -> Arc<Machine> {
        let machine = self.without_tree(name, Status::Broken, None, Facts::default(), why);
        Arc::new(Machine { silent: true, ..machine })
    }

    /// A machine that cannot be shown.
    fn without_tree(
        &self,
        name: &MachineName,
        state: Status,
        located: Option<Located>,
        facts: Facts,
        why: String,
    ) -> Machine {
        Machine {
            name: Arc::from(name.as_str()),
            state,
            tree: Err(why),
            exports: None,
            silent: false,
            home: self.home(name, located.as_ref()),
            location: located.map(|located| located.location),
            redacted: None,
            includes: Vec::new(),
            missing: Lately::default(),
            warnings: Vec::new(),
            facts: Mutex::new(facts),
            seen: Mutex::default(),
            guide: Guide::default(),
        }
    }

    fn wanted(&self, name: &MachineName) -> bool {
        self.only.is_empty() || self.only.contains(name)
    }

    fn look(&self, name: &MachineName, before: Before) -> (Option<Arc<Machine>>, Option<Origin>) {
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
        let silent = matches!(located, Err(LocateError::Silent(_) | LocateError::Unanswered));
        let broken = |status, located: Option<Located>, why: String| {
            let machine = self.without_tree(name, status, located, facts.clone(), why);
            (Some(Arc::new(Machine { silent, ..machine })), None)
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
            Err(why @ (LocateError::Silent(_) | LocateError::Unanswered)) => {
                return match before {
                    // What is open stays open; nothing that is mirrored from here is to vanish.
                    Some((machine, origin)) if machine.tree.is_ok() => {
                        if matches!(why, LocateError::Unanswered) {
                            machine.falls_silent(SystemTime::now());
                        }
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
            machine.was_seen();
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
                    missing: Lately::default(),
                    warnings: config.warnings(),
                    facts: Mutex::new(facts.clone()),
                    seen: Mutex::default(),
                    guide,
                };
                machine.was_seen();
                (Some(Arc::new(machine)), Some(origin))
            }
            Err(why) => broken(Status::Broken, located, why),
        }
    }
}

/// What is said where its disk was asked in vain.
const NO_DISK: &str = "the machine's disk does not answer; what is mounted there, and the kernel's log, may tell more";

/// What is said of a machine that a look does not come back from.
fn unanswered(name: &str, since: SystemTime) -> String {
    format!(
        "`{name}` has not answered since {}: its disk, or where Codchi keeps its files, is slow or gone; \
         what is mounted there, and the kernel's log, may tell more",
        humantime::format_rfc3339_seconds(since)
    )
}

impl Machine {
    /// A look came back from its disk.
    fn was_seen(&self) {
        let root = self.tree.as_ref().ok().and_then(|tree| tree.root().ok());
        let time = root.map(|(_, attr)| attr.mtime).unwrap_or_default();
        *self.seen.lock() = Seen { time, silent_since: None };
    }

    /// A look has not come back since then, or found that nobody answers.
    fn falls_silent(&self, since: SystemTime) {
        self.seen.lock().silent_since.get_or_insert(since);
    }

    /// The time of its root file system at the last look. Asks no disk.
    pub fn time(&self) -> Time {
        self.seen.lock().time
    }

    /// Why it does not answer, if it has not for a while: what asks its disk then may wait without end.
    pub fn unanswered(&self) -> Option<String> {
        self.seen.lock().silent_since.map(|since| unanswered(&self.name, since))
    }

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
    pub fn missing_includes(&self) -> Vec<String> {
        let Ok(tree) = &self.tree else { return Vec::new() };
        if self.includes.is_empty() {
            return Vec::new();
        }
        let (tree, mut paths) = (Arc::clone(tree), self.includes.clone());
        paths.truncate(MAX_CHECKED);
        let missing = self.missing.or_find(move || {
            paths.retain(|path| is_missing(&tree, path));
            paths
        });
        missing.unwrap_or_default()
    }
}

fn is_missing(tree: &Tree, path: &str) -> bool {
    let Some((parent, name)) = path.trim_end_matches('/').rsplit_once('/') else { return true };
    path::walk(tree, parent).is_none_or(|dir| tree.lookup(&dir, name.as_bytes()).is_err())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Backend, Directories};
    use crate::opener::{Direct, Vouched};
    use rustix::fs::FlockOperation;
    use std::fs::{self, File};
    use std::path::Path;

    fn machines(dir: &Path) -> Arc<Machines> {
        for made in ["config/machine/m", "data/machine/m", "rootfs/codchi-m/rootfs"] {
            fs::create_dir_all(dir.join(made)).unwrap();
        }
        fs::write(dir.join("config/machine/m/config.json"), "{\"modules\":{}}").unwrap();
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let (user, ways) = (User { uid, gid }, Vec::new());
        let state = State { config_dir: dir.join("config"), data_dir: dir.join("data"), ways };
        let backend = Backend::Directories(Directories::new(dir.join("rootfs")));
        let vouched = Vouched { config: true, data: true };
        let opener = Opener::Direct(Direct::new(backend, user, state.clone(), vouched));
        Machines::new(state, user, opener, Settings::default(), Vec::new()).unwrap()
    }

    /// Codchi writes, so that a look waits for it for half a second.
    fn written(dir: &Path) -> File {
        let config = File::open(dir.join("config/machine/m/config.json")).unwrap();
        rustix::fs::flock(&config, FlockOperation::LockExclusive).unwrap();
        config
    }

    fn is_looked_at(machines: &Machines) -> bool {
        !machines.looks.lock().looking.is_empty()
    }

    #[test]
    fn a_machine_that_many_ask_for_is_put_together_once() {
        let dir = tempfile::tempdir().unwrap();
        let machines = machines(dir.path());
        let lock = written(dir.path());
        let got: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| machines.get(b"m").unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        drop(lock);
        let first = got.first().unwrap();
        assert!(first.tree.is_ok(), "{:?}", first.tree);
        assert!(got.iter().all(|machine| Arc::ptr_eq(machine, first)));
        assert!(!is_looked_at(&machines));
    }

    #[test]
    fn a_look_that_began_before_a_reread_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let machines = machines(dir.path());
        let lock = written(dir.path());
        let before = std::thread::scope(|scope| {
            let looks = scope.spawn(|| machines.get(b"m").unwrap());
            while !is_looked_at(&machines) {
                std::thread::yield_now();
            }
            machines.reread();
            looks.join().unwrap()
        });
        drop(lock);
        assert!(!Arc::ptr_eq(&machines.get(b"m").unwrap(), &before));
    }

    #[test]
    fn what_nobody_has_is_waited_for_by_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let machines = machines(dir.path());
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| machines.get(b"none"))).collect();
            assert!(threads.into_iter().all(|thread| thread.join().unwrap().is_none()));
        });
        assert!(!is_looked_at(&machines));
        // A machine that nobody answers for is no free name.
        let name = MachineName::new("m").unwrap();
        assert_eq!(machines.silent(&name, String::new()).missing(), Errno::IO);
    }
}
