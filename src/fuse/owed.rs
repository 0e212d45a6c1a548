//! Replies that may take long, and callers that are killed meanwhile.
//!
//! The kernel lets a killed caller go once its request is answered. It would tell of that (FUSE_INTERRUPT), but only
//! for a server that takes it, and fuser does not. So the callers of what takes long are looked at.

use crate::opener::{self, Client};
use fuser::{Errno, ReplyData, ReplyEntry};
use parking_lot::Mutex;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How often callers are looked at.
pub(super) const LOOK: Duration = Duration::from_millis(250);

/// A reply that says that nobody waits for it.
pub(super) trait Reply: Send {
    fn interrupted(self);
}

impl Reply for ReplyEntry {
    fn interrupted(self) {
        self.error(Errno::EINTR);
    }
}

impl Reply for ReplyData {
    fn interrupted(self) {
        self.error(Errno::EINTR);
    }
}

/// A reply, for whoever comes first: the work for it, or the end of its caller.
#[derive(Debug)]
pub(super) struct Owed<R>(Mutex<Option<R>>);

impl<R> Owed<R> {
    /// The reply; `None` if its caller is gone.
    pub(super) fn take(&self) -> Option<R> {
        self.0.lock().take()
    }
}

/// What is told of the end of a caller.
pub(super) trait Waits: Send + Sync {
    /// Answers that it was interrupted.
    fn give_up(&self);
    /// Whether it waits still.
    fn waits(&self) -> bool;
}

impl<R: Reply> Waits for Owed<R> {
    fn give_up(&self) {
        if let Some(reply) = self.take() {
            reply.interrupted();
        }
    }

    fn waits(&self) -> bool {
        self.0.lock().is_some()
    }
}

type Caller = (u32, Weak<dyn Waits>);

/// Those who wait for what may take long, each with its thread.
pub(super) struct Callers {
    all: Mutex<Vec<Caller>>,
    /// There is somebody again.
    wake: Sender<()>,
}

impl Callers {
    pub(super) fn new(wake: Sender<()>) -> Self {
        Self { all: Mutex::default(), wake }
    }

    /// Keeps a reply to the thread `pid` until it is answered.
    pub(super) fn owe<R: Reply + 'static>(&self, pid: u32, reply: R) -> Arc<Owed<R>> {
        let owed = Arc::new(Owed(Mutex::new(Some(reply))));
        // The kernel has no number here for a thread of another namespace.
        if pid != 0 {
            let waits: Arc<dyn Waits> = Arc::<Owed<R>>::clone(&owed);
            let mut all = self.all.lock();
            all.push((pid, Arc::downgrade(&waits)));
            if all.len() == 1 {
                // Nobody looks any more once the session has ended.
                let _ = self.wake.send(());
            }
        }
        owed
    }

    /// Whether anybody waits.
    pub(super) fn any(&self) -> bool {
        !self.all.lock().is_empty()
    }

    /// Lets go those who are killed; whether there were any. `host` sees other users' threads, where there is one.
    pub(super) fn look(&self, host: Option<&Client>) -> bool {
        let mut threads: Vec<u32> = {
            let mut all = self.all.lock();
            all.retain(|(_, waits)| waits.upgrade().is_some_and(|waits| waits.waits()));
            all.iter().map(|(pid, _)| *pid).collect()
        };
        threads.sort_unstable();
        threads.dedup();
        if threads.is_empty() {
            return false;
        }
        let killed = match host {
            Some(host) => host.killed(threads).unwrap_or_else(|error| {
                tracing::debug!(%error, "nobody tells who is killed");
                Vec::new()
            }),
            None => threads.into_iter().filter(|thread| opener::is_killed(*thread)).collect(),
        };
        if killed.is_empty() {
            return false;
        }
        let all = self.all.lock().clone();
        let theirs = all.iter().filter(|(pid, _)| killed.contains(pid));
        theirs.filter_map(|(_, waits)| waits.upgrade()).for_each(|waits| waits.give_up());
        true
    }
}
