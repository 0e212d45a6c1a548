//! Bytes of an `export.tar` ahead of those who read it past the kernel's cache.
//!
//! A direct read is answered while its reader waits, and what it is made of may be hundreds of files. So whoever reads on
//! from where it stopped gets pieces that were made while it was busy with the last one; readers at the same place share
//! them. There are few of them, and they go when the last of these readers does.

use crate::export::Generation;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a piece: what the kernel asks for at most at once.
pub(super) const PIECE: u64 = 1 << 20;
/// Pieces made before they are asked for.
const AHEAD: usize = 3;
/// Pieces of one generation at most. Each takes [`PIECE`] of memory.
const MOST: usize = 12;
/// Buffers that are kept to be filled again.
const SPARE: usize = 4;
/// More would not be faster: what the disk has in memory is copied, what it has not is read ahead by the kernel.
const THREADS: usize = 2;
/// How long a thread waits for more to do.
const LINGER: Duration = Duration::from_secs(1);

/// Some bytes of an archive, shared.
#[derive(Debug)]
pub struct Part {
    bytes: Arc<Vec<u8>>,
    range: Range<usize>,
}

impl Part {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(self.range.clone()).unwrap_or_default()
    }

    /// No more than `len` of them.
    pub(super) fn truncate(&mut self, len: usize) {
        self.range.end = self.range.end.min(self.range.start.saturating_add(len));
    }
}

/// The pieces of one generation.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    state: Mutex<State>,
    made: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The least recently used first.
    pieces: VecDeque<Piece>,
    spare: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Piece {
    range: Range<u64>,
    /// `None`: somebody is making it.
    bytes: Option<Arc<Vec<u8>>>,
}

/// Takes back a piece that is not made after all, whatever the reason: others wait for it.
struct Making<'a> {
    ahead: &'a Ahead,
    start: u64,
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.ahead.state.lock().pieces.retain(|p| p.range.start != self.start || p.bytes.is_some());
        self.ahead.made.notify_all();
    }
}

impl Ahead {
    /// Up to `len` bytes from `offset` on: as many as the piece there has, made now if need be. `None` at the end of the
    /// archive, and where they cannot be had.
    pub(super) fn read(&self, generation: &Generation, offset: u64, len: usize) -> Option<Part> {
        let start = {
            let mut state = self.state.lock();
            loop {
                let found = state.pieces.iter().position(|piece| piece.range.contains(&offset));
                let Some(piece) = found.and_then(|at| state.pieces.remove(at)) else { break };
                let have = piece.bytes.as_ref().map(|bytes| (Arc::clone(bytes), piece.range.start));
                state.pieces.push_back(piece);
                match have {
                    Some((bytes, start)) => return part(bytes, offset - start, len),
                    None => self.made.wait(&mut state),
                }
            }
            state.begin(offset, generation.size())?
        };
        part(self.make(generation, start)?, 0, len)
    }

    /// Makes the piece at `offset`, unless it is there.
    fn prepare(&self, generation: &Generation, offset: u64) {
        let start = {
            let mut state = self.state.lock();
            match state.pieces.iter().any(|piece| piece.range.contains(&offset)) {
                true => None,
                false => state.begin(offset, generation.size()),
            }
        };
        if let Some(range) = start {
            self.make(generation, range);
        }
    }

    fn make(&self, generation: &Generation, range: Range<u64>) -> Option<Arc<Vec<u8>>> {
        let making = Making { ahead: self, start: range.start };
        let mut bytes = self.state.lock().spare.pop().unwrap_or_default();
        bytes.resize(usize::try_from(range.end - range.start).ok()?, 0);
        let filled = generation.read_unchecked(range.start, &mut bytes).ok()?;
        bytes.truncate(filled);
        let bytes = Arc::new(bytes);
        let mut state = self.state.lock();
        let piece = state.pieces.iter_mut().find(|piece| piece.range.start == range.start)?;
        piece.bytes = Some(Arc::clone(&bytes));
        drop(state);
        drop(making);
        Some(bytes)
    }

    /// Where the pieces that should be there for who has read up to `offset` begin, of those that are not. Fewer where
    /// many read.
    pub(super) fn missing(&self, readers: usize, offset: u64, size: u64) -> Vec<u64> {
        let first = offset.next_multiple_of(PIECE);
        let depth = AHEAD.min(MOST / readers.max(1)) as u64;
        let state = self.state.lock();
        let starts = (0..depth).map(|nth| first.saturating_add(nth * PIECE));
        starts
            .filter(|start| *start < size)
            .filter(|start| !state.pieces.iter().any(|piece| piece.range.contains(start)))
            .collect()
    }
}

impl State {
    /// Marks the piece at `offset` as being made; it ends where they all end.
    fn begin(&mut self, offset: u64, size: u64) -> Option<Range<u64>> {
        let end = offset.saturating_add(1).next_multiple_of(PIECE).min(size);
        if offset >= end {
            return None;
        }
        while self.pieces.len() >= MOST {
            // What is being made is waited for.
            let oldest = self.pieces.iter().position(|piece| piece.bytes.is_some())?;
            let gone = self.pieces.remove(oldest).and_then(|piece| piece.bytes);
            if let Some(bytes) = gone.and_then(Arc::into_inner)
                && self.spare.len() < SPARE
            {
                self.spare.push(bytes);
            }
        }
        self.pieces.push_back(Piece { range: offset..end, bytes: None });
        Some(offset..end)
    }
}

fn part(bytes: Arc<Vec<u8>>, from: u64, len: usize) -> Option<Part> {
    let start = usize::try_from(from).ok()?;
    let end = start.saturating_add(len).min(bytes.len());
    (start < end).then_some(Part { bytes, range: start..end })
}

/// What has pieces to be made.
pub(super) trait Reader: Send + Sync + 'static {
    /// Whose pieces, and where they are kept.
    fn export(&self) -> Option<(&Ahead, &Generation)>;
}

type Job<R> = (Arc<R>, u64);

/// A few threads that make pieces before they are asked for.
pub(super) struct Makers<R>(Arc<Queue<R>>);

struct Queue<R> {
    state: Mutex<Jobs<R>>,
    more: Condvar,
}

struct Jobs<R> {
    waiting: VecDeque<Job<R>>,
    threads: usize,
    idle: usize,
}

impl<R: Reader> Makers<R> {
    pub(super) fn new() -> Self {
        let state = Jobs { waiting: VecDeque::new(), threads: 0, idle: 0 };
        Self(Arc::new(Queue { state: Mutex::new(state), more: Condvar::new() }))
    }

    /// Has the piece at `offset` made soon. Where there is no thread for it, whoever wants it makes it.
    pub(super) fn prepare(&self, reader: &Arc<R>, offset: u64) {
        {
            let mut jobs = self.0.state.lock();
            let same = |job: &Job<R>| Arc::ptr_eq(&job.0, reader) && job.1 == offset;
            if jobs.waiting.len() >= MOST || jobs.waiting.iter().any(same) {
                return;
            }
            jobs.waiting.push_back((Arc::clone(reader), offset));
            if jobs.idle > 0 || jobs.threads >= THREADS {
                self.0.more.notify_one();
                return;
            }
            jobs.threads = jobs.threads.saturating_add(1);
        }
        let queue = Arc::clone(&self.0);
        let thread = std::thread::Builder::new().name("codchifs-ahead".into());
        if let Err(error) = thread.spawn(move || queue.work()) {
            tracing::debug!(%error, "no thread to read ahead");
            let mut jobs = self.0.state.lock();
            jobs.threads = jobs.threads.saturating_sub(1);
            jobs.waiting.clear();
        }
    }
}

impl<R: Reader> Queue<R> {
    fn work(&self) {
        let mut jobs = self.state.lock();
        loop {
            if let Some((reader, offset)) = jobs.waiting.pop_front() {
                drop(jobs);
                let make = AssertUnwindSafe(|| {
                    if let Some((ahead, generation)) = reader.export() {
                        ahead.prepare(generation, offset);
                    }
                });
                if catch_unwind(make).is_err() {
                    tracing::error!(offset, "reading ahead panicked");
                }
                drop(reader);
                jobs = self.state.lock();
                continue;
            }
            jobs.idle = jobs.idle.saturating_add(1);
            let timed_out = self.more.wait_for(&mut jobs, LINGER).timed_out();
            jobs.idle = jobs.idle.saturating_sub(1);
            if timed_out && jobs.waiting.is_empty() {
                jobs.threads = jobs.threads.saturating_sub(1);
                return;
            }
        }
    }
}
