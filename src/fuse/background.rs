//! Who works for which machine, and on which thread: one machine whose disk does not answer must not keep others waiting.
//!
//! A request that is of a machine is answered by the thread that took it from the kernel, which costs nothing, as long as another
//! one stays free to take the next and the machine has not taken more than its part of these threads. All others go to threads
//! of the machine's own, made when they are needed; where these are all at work they wait in a line of the machine's own. So
//! however many machines do not answer, and however many requests wait for them, those for another one are answered.
//!
//! What takes long by its nature (scans, reads that hash) has further threads of the machine's, since it may take hours.

use super::owed::Waits;
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Threads of all shares beyond which none gets a second one.
const MANY_THREADS: usize = 128;
/// Threads of all shares: so many machines may be stuck at once that each share still gets a first one.
const MAX_THREADS: usize = 1024;
/// Requests of one share that wait for a thread.
const MAX_WAITING: usize = 4096;
/// Queues of a machine for what the kernel is told: a file whose reads take long delays few others.
const TELLERS: u64 = 8;
/// A thread without work waits for so long for more.
const LINGER: Duration = Duration::from_secs(1);

/// What a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Work {
    /// A request that is answered at once, unless a disk is slow.
    Request,
    /// A look that may scan.
    Scan,
    /// A text about a machine is made.
    Text,
    /// A read that makes what it reads.
    Read,
    /// What nobody needs any more is dropped.
    Tidy,
    /// What the kernel is told of files, and the answers behind it: in their order, so one thread for each queue.
    Tell(u64),
    /// What the kernel is told of names.
    Name,
}

impl Work {
    /// What is told of this file.
    pub(super) fn tell(ino: u64) -> Self {
        Self::Tell(ino % TELLERS)
    }

    /// Threads of one share. More at once would only make each other slower.
    fn threads(self) -> usize {
        match self {
            Self::Request => 8,
            Self::Scan | Self::Read => 4,
            Self::Text => 2,
            Self::Tidy | Self::Tell(_) | Self::Name => 1,
        }
    }
}

/// Whose time a job takes.
type Share = (Arc<str>, Work);

struct Job {
    run: Box<dyn FnOnce() + Send>,
    /// Who waits for it, where that may end before.
    caller: Option<Arc<dyn Waits>>,
}

/// Runs jobs on threads that live as long as there is work.
#[derive(Clone)]
pub(super) struct Background {
    /// Of its threads.
    name: &'static str,
    /// Threads that take requests from the kernel.
    session_threads: usize,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// A lingering thread is called.
    call: Condvar,
}

#[derive(Default)]
struct State {
    shares: HashMap<Share, Queue>,
    /// Threads of all shares.
    threads: usize,
    /// Threads without work that nobody has called yet, and not among those.
    lingering: usize,
    /// What called ones are to do.
    calls: VecDeque<Share>,
    /// The session's threads that answer a request themselves.
    inline: usize,
    /// Some share should have a thread and could not get one.
    lacks_threads: bool,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Job>,
    threads: usize,
    /// The session's threads that are at work for it.
    inline: usize,
    /// More than may wait have come; said once.
    full: bool,
}

impl Queue {
    fn is_unused(&self) -> bool {
        self.waiting.is_empty() && self.threads == 0 && self.inline == 0
    }
}

impl fmt::Debug for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state.lock();
        write!(f, "Background({} shares, {} threads)", state.shares.len(), state.threads)
    }
}

/// A request is answered by the thread that took it from the kernel.
pub(super) struct Inline<'a> {
    background: &'a Background,
    share: Share,
}

impl Drop for Inline<'_> {
    fn drop(&mut self) {
        let mut state = self.background.shared.state.lock();
        state.inline = state.inline.saturating_sub(1);
        if let Some(queue) = state.shares.get_mut(&self.share) {
            queue.inline = queue.inline.saturating_sub(1);
            if queue.is_unused() {
                state.shares.remove(&self.share);
            }
        }
    }
}

impl Background {
    /// With threads of this name, beside so many of the session's.
    pub(super) fn new(name: &'static str, session_threads: usize) -> Self {
        Self { name, session_threads, shared: Arc::default() }
    }

    /// Whether this thread of the session may answer a request of the machine: until what is returned is dropped.
    pub(super) fn enter(&self, machine: &Arc<str>) -> Option<Inline<'_>> {
        // One is left to take requests from the kernel, and another one to answer those of other machines.
        let (all, of_one) =
            (self.session_threads.checked_sub(1)?, self.session_threads.saturating_sub(2).max(1));
        let mut state = self.shared.state.lock();
        if state.inline >= all {
            return None;
        }
        let share = (Arc::clone(machine), Work::Request);
        let queue = state.shares.entry(share.clone()).or_default();
        if queue.inline >= of_one || !queue.waiting.is_empty() {
            return None;
        }
        queue.inline = queue.inline.saturating_add(1);
        state.inline = state.inline.saturating_add(1);
        drop(state);
        Some(Inline { background: self, share })
    }

    /// Runs `job` for a machine as soon as a thread is free.
    pub(super) fn run(&self, machine: Arc<str>, work: Work, job: impl FnOnce() + Send + 'static) {
        self.add((machine, work), Job { run: Box::new(job), caller: None });
    }

    /// The same for a caller; if that is gone before a thread is free, not at all.
    pub(super) fn run_for(
        &self,
        caller: Arc<dyn Waits>,
        machine: Arc<str>,
        work: Work,
        job: impl FnOnce() + Send + 'static,
    ) {
        self.add((machine, work), Job { run: Box::new(job), caller: Some(caller) });
    }

    /// Forgets what waits for a thread and has no caller any more.
    pub(super) fn forget_abandoned(&self) {
        let mut gone = Vec::new();
        let mut state = self.shared.state.lock();
        for queue in state.shares.values_mut() {
            let (kept, dropped) = std::mem::take(&mut queue.waiting)
                .into_iter()
                .partition(|job| job.caller.as_ref().is_none_or(|caller| caller.waits()));
            queue.waiting = kept;
            gone.extend::<VecDeque<Job>>(dropped);
        }
        state.shares.retain(|_, queue| !queue.is_unused());
        drop(state);
        // What a job holds may be the last of something whose end takes its time.
        drop(gone);
    }

    /// Whether a machine has such work.
    pub(super) fn has(&self, machine: &Arc<str>, work: Work) -> bool {
        self.shared.state.lock().shares.contains_key(&(Arc::clone(machine), work))
    }

    /// Whether anything is done or waits to be done.
    pub(super) fn is_busy(&self) -> bool {
        let state = self.shared.state.lock();
        state.inline > 0 || !state.shares.is_empty()
    }

    /// Tries again to get threads, where none could be had.
    pub(super) fn retry(&self) {
        let shares: Vec<Share> = {
            let mut state = self.shared.state.lock();
            if !std::mem::take(&mut state.lacks_threads) {
                return;
            }
            let lacking =
                |(_, queue): &(&Share, &Queue)| queue.threads == 0 && !queue.waiting.is_empty();
            state.shares.iter().filter(lacking).map(|(share, _)| share.clone()).collect()
        };
        shares.into_iter().for_each(|share| self.start(share));
    }

    fn add(&self, share: Share, job: Job) {
        {
            let mut state = self.shared.state.lock();
            let queue = state.shares.entry(share.clone()).or_default();
            // What nobody waits for is no request of the kernel, and must not be lost.
            if let Some(caller) = job.caller.as_ref().filter(|_| queue.waiting.len() >= MAX_WAITING)
            {
                let (caller, is_news) =
                    (Arc::clone(caller), !std::mem::replace(&mut queue.full, true));
                drop(state);
                if is_news {
                    tracing::warn!(machine = %share.0, waiting = MAX_WAITING, "too many wait for it; others get an error");
                }
                return caller.give_up(Errno::BUSY);
            }
            queue.waiting.push_back(job);
        }
        self.start(share);
    }

    /// Has a thread work for a share, if there may be one more.
    fn start(&self, share: Share) {
        {
            let mut state = self.shared.state.lock();
            let all = state.threads;
            let Some(queue) = state.shares.get_mut(&share) else { return };
            if queue.waiting.is_empty() || !may_have_one_more(all, queue.threads, share.1) {
                if queue.threads == 0 && !queue.waiting.is_empty() {
                    state.lacks_threads = true;
                }
                return;
            }
            queue.threads = queue.threads.saturating_add(1);
            state.threads = all.saturating_add(1);
            if state.lingering > 0 {
                state.lingering = state.lingering.saturating_sub(1);
                state.calls.push_back(share);
                drop(state);
                self.shared.call.notify_one();
                return;
            }
        }
        let (worker, of) = (self.clone(), share.clone());
        let thread = std::thread::Builder::new().name(self.name.into());
        if let Err(error) = thread.spawn(move || worker.work(of)) {
            self.without_thread(&share, &error);
        }
    }

    /// No thread can be had. The thread that is here is not to do it: it may be the session's, or hold a lock. Others that run
    /// take it when they are done; where there are none, callers get an error, and what the kernel is to be told waits.
    fn without_thread(&self, share: &Share, error: &std::io::Error) {
        tracing::warn!(%error, machine = %share.0, "no thread for what may take long");
        let mut state = self.shared.state.lock();
        state.threads = state.threads.saturating_sub(1);
        state.lacks_threads = true;
        let alone = state.threads == 0;
        let Some(queue) = state.shares.get_mut(share) else { return };
        queue.threads = queue.threads.saturating_sub(1);
        let mut refused = VecDeque::new();
        if alone {
            (refused, queue.waiting) = std::mem::take(&mut queue.waiting)
                .into_iter()
                .partition(|job| job.caller.is_some());
        }
        if queue.is_unused() {
            state.shares.remove(share);
        }
        drop(state);
        for job in refused {
            job.caller.inspect(|caller| caller.give_up(Errno::AGAIN));
        }
    }

    /// Does the work of a share, then that of others which got no thread, then waits a moment for more.
    fn work(&self, mut share: Share) {
        loop {
            let job = {
                let mut state = self.shared.state.lock();
                match state.next(&share) {
                    Some((job, of)) => {
                        share = of;
                        job
                    }
                    None => match self.linger(state) {
                        Some(of) => {
                            share = of;
                            continue;
                        }
                        None => return,
                    },
                }
            };
            super::survive("background", job.run);
        }
    }

    /// The share that this thread is called for; `None` ends it.
    fn linger(&self, mut state: parking_lot::MutexGuard<'_, State>) -> Option<Share> {
        state.lingering = state.lingering.saturating_add(1);
        loop {
            let timed_out = self.shared.call.wait_for(&mut state, LINGER).timed_out();
            if let Some(share) = state.calls.pop_front() {
                return Some(share);
            }
            if timed_out {
                state.lingering = state.lingering.saturating_sub(1);
                return None;
            }
        }
    }
}

/// Whether a share with so many threads may have another one while there are so many in all.
fn may_have_one_more(all: usize, threads: usize, work: Work) -> bool {
    threads < work.threads() && all < if threads == 0 { MAX_THREADS } else { MANY_THREADS }
}

impl State {
    /// The next job for a thread that has done one of `share`, and whose it is; `None` where there is none.
    fn next(&mut self, share: &Share) -> Option<(Job, Share)> {
        if let Some(queue) = self.shares.get_mut(share) {
            if let Some(job) = queue.waiting.pop_front() {
                queue.full = false;
                return Some((job, share.clone()));
            }
            queue.threads = queue.threads.saturating_sub(1);
            if queue.is_unused() {
                self.shares.remove(share);
            }
        }
        self.threads = self.threads.saturating_sub(1);
        let all = self.threads;
        let waits = |of: &Share, queue: &Queue| {
            !queue.waiting.is_empty() && may_have_one_more(all, queue.threads, of.1)
        };
        let waiting = self.shares.iter_mut().filter(|(of, queue)| waits(of, queue));
        let (of, queue) = waiting.min_by_key(|(_, queue)| queue.threads)?;
        let job = queue.waiting.pop_front()?;
        queue.threads = queue.threads.saturating_add(1);
        self.threads = all.saturating_add(1);
        Some((job, of.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;

    #[test]
    fn every_job_runs_even_after_a_panic() {
        let background = Background::new("codchifs-slow", 4);
        let (done, finished) = channel();
        for number in 0..2000 {
            let done = done.clone();
            let machine = Arc::from(format!("m{}", number % 150));
            background.run(machine, Work::Scan, move || {
                if number % 7 == 0 {
                    drop(done);
                    panic!("a job that fails");
                }
                done.send(number).unwrap();
            });
        }
        drop(done);
        assert_eq!(finished.iter().count(), 1714);
        let state = background.shared.state.lock();
        assert!(state.shares.values().all(|queue| queue.waiting.is_empty()));
    }

    /// So many machines that do not answer, each with so many requests of each kind; they end when the sender is dropped.
    fn stuck(
        background: &Background,
        machines: usize,
        requests: usize,
    ) -> std::sync::mpsc::Sender<()> {
        let (release, released) = channel::<()>();
        let released = Arc::new(Mutex::new(released));
        for number in 0..machines {
            for work in [Work::Request, Work::Scan, Work::Read] {
                for _ in 0..requests {
                    let released = Arc::clone(&released);
                    background.run(format!("stuck{number}").into(), work, move || {
                        let _ = released.lock().recv();
                    });
                }
            }
        }
        release
    }

    #[test]
    fn machines_that_do_not_answer_keep_no_other_waiting_however_many_they_are() {
        for machines in [1, 5, 20, 150] {
            let background = Background::new("codchifs-slow", 4);
            let release = stuck(&background, machines, 64);
            let (done, finished) = channel();
            for name in ["healthy", "other"] {
                for work in [Work::Request, Work::Scan] {
                    let done = done.clone();
                    background.run(name.into(), work, move || done.send(name).unwrap());
                }
            }
            drop(done);
            assert_eq!(finished.iter().count(), 4, "{machines}");
            let threads = background.shared.state.lock().threads;
            assert!(threads <= MANY_THREADS + 3 * machines + 4, "{machines}: {threads}");
            drop(release);
        }
    }

    #[test]
    fn one_thread_of_the_session_always_takes_requests() {
        let background = Background::new("codchifs-slow", 4);
        let machine = |number: usize| Arc::from(format!("m{number}"));
        let enter = |number| background.enter(&machine(number));
        let first: Vec<_> = (0..4).filter_map(|_| enter(0)).collect();
        assert_eq!(first.len(), 2, "of one machine");
        let second: Vec<_> = (0..4).filter_map(|_| enter(1)).collect();
        assert_eq!(second.len(), 1, "of all machines");
        drop(first);
        assert!(enter(2).is_some());
        drop(second);
        assert!(!background.is_busy());
        assert!(background.shared.state.lock().shares.is_empty());
    }

    #[test]
    fn whoever_waits_is_not_overtaken_inline() {
        let background = Background::new("codchifs-slow", 4);
        let release = stuck(&background, 1, 64);
        assert!(background.enter(&Arc::from("stuck0")).is_none());
        drop(release);
    }

    #[derive(Default)]
    struct Refused(AtomicUsize);

    impl Waits for Refused {
        fn give_up(&self, why: Errno) {
            assert_eq!(why, Errno::BUSY);
            self.0.fetch_add(1, Ordering::SeqCst);
        }

        fn waits(&self) -> bool {
            self.0.load(Ordering::SeqCst) == 0
        }
    }

    #[test]
    fn a_line_has_an_end_and_who_is_gone_leaves_it() {
        let background = Background::new("codchifs-slow", 4);
        let release = stuck(&background, 1, Work::Request.threads());
        let refused = Arc::new(Refused::default());
        let mut came = 0;
        while refused.0.load(Ordering::SeqCst) < 3 {
            let caller = Arc::<Refused>::clone(&refused);
            background.run_for(caller, "stuck0".into(), Work::Request, || panic!("nobody waits"));
            came += 1;
        }
        // The threads may have had no work yet.
        assert!((MAX_WAITING - 8..=MAX_WAITING + 3).contains(&came), "{came}");
        background.forget_abandoned();
        let state = background.shared.state.lock();
        let waiting: usize = state.shares.values().map(|queue| queue.waiting.len()).sum();
        assert!(waiting <= 3 * 8, "{waiting}");
        drop(state);
        drop(release);
    }
}
