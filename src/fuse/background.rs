//! Threads for what may take long, so that it does not keep the session's few threads from
//! answering everybody else.
//!
//! Each machine has a share of its own: however many requests wait for a machine whose disk does not answer, those for
//! another one are answered. So have scans and reads of one machine, since a reader may stay for hours.

use super::owed::Waits;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;

/// Threads of one share. More at once only make each other slower; further requests wait.
const MAX_SHARE: usize = 4;
/// Queues of a machine for what the kernel is told: a file whose reads take long delays few others.
const TELLERS: u64 = 8;
/// Threads of all shares.
const MAX_THREADS: usize = 256;

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Work {
    /// A look that may scan, or make a text about a machine.
    Look,
    /// A read that makes what it reads.
    Read,
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

    fn threads(self) -> usize {
        match self {
            Self::Look | Self::Read => MAX_SHARE,
            Self::Tell(_) | Self::Name => 1,
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
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    shares: HashMap<Share, Queue>,
    threads: usize,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Job>,
    threads: usize,
}

impl fmt::Debug for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        write!(f, "Background({} shares, {} threads)", state.shares.len(), state.threads)
    }
}

impl Background {
    /// With threads of this name.
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, state: Arc::default() }
    }

    /// Runs `job` for a machine as soon as a thread is free. Where none can be had at all it runs here: slow is
    /// better than never.
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
        let waits = |job: &Job| job.caller.as_ref().is_none_or(|caller| caller.waits());
        for queue in self.state.lock().shares.values_mut() {
            queue.waiting.retain(waits);
        }
    }

    fn add(&self, share: Share, job: Job) {
        {
            let mut state = self.state.lock();
            let all = state.threads;
            let queue = state.shares.entry(share.clone()).or_default();
            queue.waiting.push_back(job);
            if queue.threads >= share.1.threads() || all >= MAX_THREADS {
                return;
            }
            queue.threads = queue.threads.saturating_add(1);
            state.threads = all.saturating_add(1);
        }
        let (worker, of) = (self.clone(), share.clone());
        let thread = std::thread::Builder::new().name(self.name.into());
        if let Err(error) = thread.spawn(move || worker.work(of)) {
            tracing::warn!(%error, "no thread for what may take long");
            self.work(share);
        }
    }

    /// Does the work of a share, then that of others which got no thread.
    fn work(&self, mut share: Share) {
        loop {
            let job = {
                let mut state = self.state.lock();
                match state.next(&share) {
                    Some((job, of)) => {
                        share = of;
                        job
                    }
                    None => return,
                }
            };
            super::survive("background", job.run);
        }
    }
}

impl State {
    /// The next job for a thread that has done one of `share`, and whose it is; `None` ends the thread.
    fn next(&mut self, share: &Share) -> Option<(Job, Share)> {
        if let Some(queue) = self.shares.get_mut(share) {
            if let Some(job) = queue.waiting.pop_front() {
                return Some((job, share.clone()));
            }
            queue.threads = queue.threads.saturating_sub(1);
            if queue.threads == 0 {
                self.shares.remove(share);
            }
        }
        let waits =
            |of: &Share, queue: &Queue| queue.threads < of.1.threads() && !queue.waiting.is_empty();
        let found = self.shares.iter_mut().find(|(of, queue)| waits(of, queue));
        if let Some((of, queue)) = found
            && let Some(job) = queue.waiting.pop_front()
        {
            queue.threads = queue.threads.saturating_add(1);
            return Some((job, of.clone()));
        }
        self.threads = self.threads.saturating_sub(1);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn every_job_runs_even_after_a_panic() {
        let background = Background::new("codchifs-slow");
        let (done, finished) = channel();
        for number in 0..2000 {
            let done = done.clone();
            let machine = Arc::from(format!("m{}", number % 150));
            background.run(machine, Work::Look, move || {
                if number % 7 == 0 {
                    drop(done);
                    panic!("a job that fails");
                }
                done.send(number).unwrap();
            });
        }
        drop(done);
        assert_eq!(finished.iter().count(), 1714);
        let state = background.state.lock();
        assert!(state.shares.values().all(|queue| queue.waiting.is_empty()));
    }

    #[test]
    fn a_machine_that_does_not_answer_keeps_no_other_waiting() {
        let background = Background::new("codchifs-slow");
        let (release, released) = channel::<()>();
        let released = Arc::new(Mutex::new(released));
        for number in 0..64 {
            let released = Arc::clone(&released);
            let work = if number % 2 == 0 { Work::Look } else { Work::Read };
            background.run("stuck".into(), work, move || {
                let _ = released.lock().recv();
            });
        }
        let (done, finished) = channel();
        for name in ["healthy", "other"] {
            let done = done.clone();
            background.run(name.into(), Work::Look, move || done.send(name).unwrap());
        }
        drop(done);
        assert_eq!(finished.iter().count(), 2);
        drop(release);
    }
}
