//! What stays of a machine's generations: those that are open, those that a copy may be resumed from, and what changed
//! under the readers of the last ones.
//!
//! Outlives every [`super::Exports`]: those are made anew when the machine's configuration changes.

use super::generation::{Generation, Status};
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// A generation is kept this long after its last close: an interrupted copy goes on from where it was.
pub(super) const KEEP: Duration = Duration::from_secs(60 * 60);
/// So many closed ones at most.
const MOST_CLOSED: usize = 8;
/// Bytes of the layouts of all generations but the first: a million members take some 90 MB.
const MOST_BYTES: usize = 1 << 30;
/// Generations whose changes the report still tells.
const MOST_PAST: usize = 16;

/// One machine's generations, former and present.
#[derive(Debug)]
pub struct History {
    state: Mutex<State>,
    /// [`MOST_BYTES`], but for tests.
    most_bytes: usize,
}

impl Default for History {
    fn default() -> Self {
        Self { state: Mutex::default(), most_bytes: MOST_BYTES }
    }
}

#[derive(Debug, Default)]
struct State {
    kept: Vec<Kept>,
    /// All that somebody has, by id. A machine that is put together anew has the same ids as before, and the kernel the same
    /// file with the same pages for them: were one id two generations, one would not know what tears the other.
    alive: HashMap<u64, Weak<Generation>>,
    /// Newest last.
    past: VecDeque<Arc<Status>>,
    /// Ids of torn generations that are not in `past` any more: none of them is ever used again, since the kernel may
    /// have pages under it that no file ever had.
    torn: HashSet<u64>,
}

#[derive(Debug)]
struct Kept {
    generation: Arc<Generation>,
    /// Handles.
    open: usize,
    closed: Instant,
}

/// An open generation. As long as one of these is there, it is neither dropped nor forgotten.
#[derive(Debug)]
pub struct Hold {
    history: Arc<History>,
    generation: Arc<Generation>,
}

impl Hold {
    /// The generation that is open.
    pub fn generation(&self) -> &Arc<Generation> {
        &self.generation
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.history.close(&self.generation);
    }
}

impl History {
    /// One that may take less memory.
    #[cfg(test)]
    pub(super) fn bounded(most_bytes: usize) -> Self {
        Self { most_bytes, ..Self::default() }
    }

    /// Counts an open handle of a generation.
    pub fn open(self: &Arc<Self>, generation: &Arc<Generation>) -> Hold {
        let mut state = self.state.lock();
        match state.kept.iter_mut().find(|kept| Arc::ptr_eq(&kept.generation, generation)) {
            Some(kept) => kept.open = kept.open.saturating_add(1),
            None => state.kept.push(Kept {
                generation: Arc::clone(generation),
                open: 1,
                closed: Instant::now(),
            }),
        }
        Hold { history: Arc::clone(self), generation: Arc::clone(generation) }
    }

    fn close(&self, generation: &Arc<Generation>) {
        let mut state = self.state.lock();
        let mut last = false;
        if let Some(kept) = state.kept.iter_mut().find(|k| Arc::ptr_eq(&k.generation, generation)) {
            kept.open = kept.open.saturating_sub(1);
            kept.closed = Instant::now();
            last = kept.open == 0;
        }
        let gone = state.purge(MOST_CLOSED);
        drop(state);
        if last {
            // A file that the machine deletes must not be held by a copy that has ended.
            generation.let_go();
        }
        // A million members are not given back while somebody waits.
        drop(gone);
    }

    /// Takes a new generation in, whose scan `took` so long, and returns it, or the one of the same id that somebody has; how
    /// many are open where there is no room for one more.
    pub(super) fn add(&self, new: Generation, took: Duration) -> Result<Arc<Generation>, usize> {
        let mut gone = Vec::new();
        let mut state = self.state.lock();
        let same = state.alive.get(&new.id()).and_then(Weak::upgrade);
        if let Some(same) = same.filter(|same| !same.spoiled()) {
            drop(state);
            same.confirm(new, took);
            return Ok(same);
        }
        let mut closed = MOST_CLOSED;
        loop {
            gone.extend(state.purge(closed));
            let used: usize = state.kept.iter().map(|kept| kept.generation.heap_bytes()).sum();
            let all = used.saturating_add(new.heap_bytes());
            if state.kept.is_empty() || all <= self.most_bytes {
                break;
            }
            if closed == 0 {
                return Err(state.kept.len());
            }
            closed -= 1;
        }
        state.past.push_back(Arc::clone(new.status()));
        state.trim();
        let new = Arc::new(new);
        state.alive.retain(|_, generation| generation.strong_count() > 0);
        state.alive.insert(new.id(), Arc::downgrade(&new));
        drop(state);
        Ok(new)
    }

    /// A generation that is open, or was within the last hour.
    pub(super) fn kept(&self, id: u64) -> Option<Arc<Generation>> {
        let mut state = self.state.lock();
        let gone = state.purge(MOST_CLOSED);
        let found = state.kept.iter().find(|kept| kept.generation.id() == id);
        let found = found.map(|kept| Arc::clone(&kept.generation));
        drop(state);
        drop(gone);
        found
    }

    /// Drops what nobody may ask for any more.
    pub(super) fn tidy(&self) {
        let gone = self.state.lock().purge(MOST_CLOSED);
        drop(gone);
    }

    /// Whether a generation of this id was torn under a reader.
    pub(super) fn is_torn(&self, id: u64) -> bool {
        let state = self.state.lock();
        state.torn.contains(&id) || state.past.iter().any(|past| past.id() == id && past.torn())
    }

    /// The last generations under whose readers something changed, oldest first.
    pub fn changed(&self) -> Vec<Arc<Status>> {
        let state = self.state.lock();
        state.past.iter().filter(|past| !past.changes().is_empty()).map(Arc::clone).collect()
    }
}

impl State {
    /// Takes out what is closed and torn, closed for too long, or one of too many closed ones.
    fn purge(&mut self, most: usize) -> Vec<Arc<Generation>> {
        let mut closed: Vec<Instant> =
            self.kept.iter().filter(|kept| kept.open == 0).map(|kept| kept.closed).collect();
        closed.sort_unstable_by(|a, b| b.cmp(a));
        // The latest of those that are too many.
        let limit = closed.get(most).copied();
        let mut gone = Vec::new();
        self.kept.retain(|kept| {
            let stays = kept.open > 0
                || (kept.closed.elapsed() < KEEP
                    && !kept.generation.spoiled()
                    && limit.is_none_or(|limit| kept.closed > limit));
            if !stays {
                gone.push(Arc::clone(&kept.generation));
            }
            stays
        });
        gone
    }

    /// Forgets the oldest generations: first those that have nothing to tell and nobody to tell it of.
    fn trim(&mut self) {
        while self.past.len() > MOST_PAST {
            let over = |past: &Arc<Status>| Arc::strong_count(past) == 1;
            let silent = self.past.iter().position(|past| over(past) && past.changes().is_empty());
            let oldest = silent.or_else(|| self.past.iter().position(over)).unwrap_or(0);
            if let Some(past) = self.past.remove(oldest).filter(|past| past.torn()) {
                self.torn.insert(past.id());
            }
        }
    }
}
