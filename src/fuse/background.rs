//! Threads for what may take long, so that it does not keep the session's few threads from
//! answering everybody else.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

/// More scans at once than this only make each other slower; further ones wait.
const MOST_THREADS: usize = 16;

type Job = Box<dyn FnOnce() + Send>;

/// Runs jobs on threads that live as long as there is work.
#[derive(Clone, Default)]
pub(super) struct Background {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    threads: usize,
}

impl fmt::Debug for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        write!(f, "Background({} waiting, {} threads)", state.waiting.len(), state.threads)
    }
}

impl Background {
    /// Runs `job` as soon as a thread is free. Where none can be had at all it runs here: slow is
    /// better than never.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) {
        {
            let mut state = self.state.lock();
            state.waiting.push_back(Box::new(job));
            if state.threads >= MOST_THREADS {
                return;
            }
            state.threads = state.threads.saturating_add(1);
        }
        let worker = self.clone();
        let thread = std::thread::Builder::new().name("codchifs-scan".into());
        if let Err(error) = thread.spawn(move || worker.work()) {
            tracing::warn!(%error, "no thread for a lookup that may scan");
            self.work();
        }
    }

    fn work(&self) {
        loop {
            let job = {
                let mut state = self.state.lock();
                match state.waiting.pop_front() {
                    Some(job) => job,
                    None => {
                        state.threads = state.threads.saturating_sub(1);
                        return;
                    }
                }
            };
            super::survive("background", job);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn every_job_runs_even_after_a_panic() {
        let background = Background::default();
        let (done, finished) = channel();
        for number in 0..100 {
            let done = done.clone();
            background.run(move || {
                if number % 7 == 0 {
                    drop(done);
                    panic!("a job that fails");
                }
                done.send(number).unwrap();
            });
        }
        drop(done);
        assert_eq!(finished.iter().count(), 85);
    }
}
