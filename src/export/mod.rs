//! A tree as a tar: generations of a frozen layout, and reading them.
//!
//! A *layout* is the list of members with their offsets, made from metadata alone; a *generation* is one layout of one
//! machine. Its sizes are promises: what changes underneath is padded or cut, told in the report, and where bytes of
//! two states would meet in one member the generation is *torn*: it can be read to its last page and no further.

mod generation;
mod report;
mod scan;
mod stream;
#[cfg(test)]
mod tests;

pub use generation::Generation;
pub use report::{Change, ChangeLine, LeftOutLine, Note, printable};
pub use scan::ScanError;
pub use stream::{StreamError, write_all};

use crate::tar;
use crate::tree::{Time, Tree};
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// A layout is served at least this long, and this many times as long as its scan took.
const LEAST_AGE: Duration = Duration::from_secs(2);
const AGE_PER_SCAN: u32 = 2;
/// And never longer than this.
const MOST_AGE: Duration = Duration::from_secs(30);
/// After a lookup returned a layout it is served this long: cp(1) fails when the inode changes between its stat and its open.
pub const HOLD: Duration = Duration::from_secs(1);

/// All generations of one machine's export.
#[derive(Debug)]
pub struct Exports {
    tree: Arc<Tree>,
    /// The newest ctime of the files that the generated ones come from.
    sources_ctime: Time,
    state: Mutex<State>,
    scanned: Condvar,
}

#[derive(Debug, Default)]
struct State {
    current: Option<Current>,
    scanning: bool,
    alive: HashMap<u64, Weak<Generation>>,
    /// Ids of torn generations: none of them is ever used again.
    torn: HashSet<u64>,
    failed: Option<Arc<ScanError>>,
}

#[derive(Debug)]
struct Current {
    generation: Arc<Generation>,
    scan_ended: Instant,
    scan_took: Duration,
    looked_up: Instant,
}

impl Exports {
    /// For the machine's tree. `sources_ctime` is the newest ctime of the files that the generated ones come from.
    pub fn new(tree: Arc<Tree>, sources_ctime: Time) -> Self {
        Self { tree, sources_ctime, state: Mutex::default(), scanned: Condvar::new() }
    }

    /// The generation to serve now; scans when there is none or it is too old, once however many ask. Blocks.
    pub fn lookup(&self) -> Result<Arc<Generation>, Errno> {
        self.lookup_or_why().map_err(|_| Errno::IO)
    }

    /// As [`Self::lookup`], with the reason.
    pub fn lookup_or_why(&self) -> Result<Arc<Generation>, Arc<ScanError>> {
        let mut state = self.state.lock();
        loop {
            if let Some(generation) = state.fresh() {
                return Ok(generation);
            }
            if !state.scanning {
                break;
            }
            self.scanned.wait(&mut state);
            if let (false, Some(why)) = (state.scanning, &state.failed) {
                return Err(Arc::clone(why));
            }
        }
        state.scanning = true;
        drop(state);
        // Whatever happens in the scan, those who wait must be woken.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.scan()));
        let mut state = self.state.lock();
        state.scanning = false;
        self.scanned.notify_all();
        let result = match result {
            Ok(result) => result,
            Err(panic) => {
                drop(state);
                std::panic::resume_unwind(panic)
            }
        };
        match result {
            Ok((generation, took)) => {
                state.failed = None;
                let now = Instant::now();
                let generation = match &state.current {
                    Some(c) if c.generation.id() == generation.id() => {
                        c.generation.confirm(took);
                        Arc::clone(&c.generation)
                    }
                    _ => Arc::new(generation),
                };
                state.alive.retain(|_, g| g.strong_count() > 0);
                state.alive.insert(generation.id(), Arc::downgrade(&generation));
                state.current = Some(Current {
                    generation: Arc::clone(&generation),
                    scan_ended: now,
                    scan_took: took,
                    looked_up: now,
                });
                Ok(generation)
            }
            Err(why) => {
                let why = Arc::new(why);
                state.failed = Some(Arc::clone(&why));
                Err(why)
            }
        }
    }

    fn scan(&self) -> Result<(Generation, Duration), ScanError> {
        let started = Instant::now();
        let threads = std::thread::available_parallelism().map_or(2, usize::from).min(8);
        let scan = scan::scan(&self.tree, tar::Options::default(), threads)?;
        let took = started.elapsed();
        let mtime = scan.newest_ctime.max(self.sources_ctime);
        let torn = self.torn_ids();
        let generation =
            Generation::new(Arc::clone(&self.tree), scan, mtime, took, |id| torn.contains(&id));
        tracing::debug!(members = generation.members(), size = generation.size(), ?took, "scanned");
        Ok((generation, took))
    }

    fn torn_ids(&self) -> HashSet<u64> {
        let mut state = self.state.lock();
        state.retire_torn();
        state.torn.clone()
    }

    /// The generation that [`Self::lookup`] would return at once, if any. Counts as a lookup.
    pub fn fresh(&self) -> Option<Arc<Generation>> {
        self.state.lock().fresh()
    }

    /// The last generation, however old, for the report. Never scans.
    pub fn last(&self) -> Option<Arc<Generation>> {
        self.state.lock().current.as_ref().map(|c| Arc::clone(&c.generation))
    }

    /// Why the last scan gave nothing.
    pub fn failed(&self) -> Option<Arc<ScanError>> {
        self.state.lock().failed.clone()
    }

    /// A live generation by its id, also an older one that somebody still holds.
    pub fn by_id(&self, id: u64) -> Option<Arc<Generation>> {
        self.state.lock().alive.get(&id).and_then(Weak::upgrade)
    }
}

impl State {
    fn retire_torn(&mut self) {
        for g in self.alive.values().filter_map(Weak::upgrade).filter(|g| g.spoiled()) {
            self.torn.insert(g.id());
        }
    }

    fn fresh(&mut self) -> Option<Arc<Generation>> {
        let now = Instant::now();
        let current = self.current.as_mut()?;
        if current.generation.spoiled() {
            self.retire_torn();
            return None;
        }
        if now > current.limit() && !current.held(now) {
            return None;
        }
        current.looked_up = now;
        Some(Arc::clone(&current.generation))
    }
}

impl Current {
    fn limit(&self) -> Instant {
        self.scan_ended + (self.scan_took * AGE_PER_SCAN).clamp(LEAST_AGE, MOST_AGE)
    }

    /// Looked up within [`HOLD`]. Somebody who looks all the time must not keep a layout for ever.
    fn held(&self, now: Instant) -> bool {
        now <= self.looked_up + HOLD && now <= self.scan_ended + MOST_AGE + HOLD
    }
}
