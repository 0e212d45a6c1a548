//! Which generation is served: how old it may be, and who scans.

use super::Options;
use super::error::ScanError;
use super::generation::Generation;
use super::history::{History, KEEP};
use super::known::{Bare, Known};
use super::scan;
use crate::sys;
use crate::tree::{Time, Tree};
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// A layout is served at least this long, and this many times as long as its scan took.
const LEAST_AGE: Duration = Duration::from_secs(2);
const AGE_PER_SCAN: u32 = 2;
/// And never longer than this.
const MOST_AGE: Duration = Duration::from_secs(30);
/// After a lookup returned a layout it is served this long: cp(1) fails when the inode changes between its stat and its open.
pub const HOLD: Duration = Duration::from_secs(1);

/// A scan of so many members leaves megabytes behind that are worth some milliseconds.
const MANY: usize = 20_000;

/// The export of one machine as it is configured now.
#[derive(Debug)]
pub struct Exports {
    tree: Arc<Tree>,
    /// The newest ctime of the files that the generated ones come from.
    sources_ctime: Time,
    options: Options,
    history: Arc<History>,
    state: Mutex<State>,
    scanned: Condvar,
}

#[derive(Debug, Default)]
struct State {
    current: Option<Current>,
    scanning: bool,
    failed: Option<Arc<ScanError>>,
}

#[derive(Debug)]
struct Current {
    generation: Arc<Generation>,
    scan_ended: Instant,
    scan_took: Duration,
    looked_up: Instant,
    /// Of the members of `generation`, for the next scan.
    bare: Arc<Bare>,
}

impl Exports {
    /// For the machine's tree. `sources_ctime` is the newest ctime of the files that the generated ones come from;
    /// `history` is that of the machine.
    pub fn new(
        tree: Arc<Tree>,
        sources_ctime: Time,
        options: Options,
        history: Arc<History>,
    ) -> Self {
        let (state, scanned) = (Mutex::default(), Condvar::new());
        Self { tree, sources_ctime, options, history, state, scanned }
    }

    /// The generation to serve now; scans when there is none or it is too old, once however many ask. Blocks.
    pub fn lookup(&self) -> Result<Arc<Generation>, Errno> {
        self.lookup_or_why().map_err(|why| match &*why {
            ScanError::Held { .. } => Errno::NFILE,
            _ => Errno::IO,
        })
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
        let before =
            state.current.as_ref().map(|c| (Arc::clone(&c.generation), Arc::clone(&c.bare)));
        drop(state);
        // Whatever happens in the scan, those who wait must be woken.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.scan(before)));
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
        let result = result.and_then(|(new, bare, took)| {
            let added = self.history.add(new, took);
            Ok((added.map_err(|open| ScanError::Held { open })?, bare, took))
        });
        match result {
            Ok((generation, bare, took)) => {
                state.failed = None;
                let now = Instant::now();
                state.current = Some(Current {
                    generation: Arc::clone(&generation),
                    scan_ended: now,
                    scan_took: took,
                    looked_up: now,
                    bare: Arc::new(bare),
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

    fn scan(
        &self,
        before: Option<(Arc<Generation>, Arc<Bare>)>,
    ) -> Result<(Generation, Bare, Duration), ScanError> {
        let started = Instant::now();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = Time { sec: i64::try_from(now.as_secs()).unwrap_or(i64::MAX), nsec: 0 };
        let threads = std::thread::available_parallelism().map_or(2, usize::from).min(8);
        let known = before.as_ref().map(|(before, bare)| Known::new(&before.layout, bare));
        let mut scan = scan::scan(&self.tree, self.options, threads, known.as_ref(), now)?;
        drop(known);
        let bare = std::mem::take(&mut scan.bare);
        let took = started.elapsed();
        let mtime = scan.newest_ctime.max(self.sources_ctime);
        let tree = Arc::clone(&self.tree);
        let avoid = |id| self.history.is_torn(id);
        let generation = Generation::new(tree, scan, mtime, took, self.options, avoid);
        if generation.members() >= MANY {
            sys::trim_memory();
        }
        tracing::debug!(members = generation.members(), size = generation.size(), ?took, "scanned");
        Ok((generation, bare, took))
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

    /// The current generation or one that is kept, by its id.
    pub fn by_id(&self, id: u64) -> Option<Arc<Generation>> {
        let current = self.last().filter(|generation| generation.id() == id);
        current.or_else(|| self.history.kept(id))
    }

    /// Drops what nobody has asked for within an hour. To be called now and then.
    pub fn tidy(&self) {
        self.history.tidy();
        let mut state = self.state.lock();
        let idle = |c: &mut Current| c.looked_up.elapsed() > KEEP;
        let gone = state.current.take_if(idle);
        drop(state);
        drop(gone);
    }

    /// Has the next lookup scan, however young the layout is.
    #[cfg(test)]
    pub(super) fn renew(&self) {
        self.state.lock().current = None;
    }

    /// The machine's generations before this one.
    pub fn history(&self) -> &Arc<History> {
        &self.history
    }
}

impl State {
    fn fresh(&mut self) -> Option<Arc<Generation>> {
        let now = Instant::now();
        let current = self.current.as_mut()?;
        if current.generation.spoiled() {
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
