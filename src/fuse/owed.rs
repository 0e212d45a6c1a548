//! Replies that may take long, and callers that are killed meanwhile.
//!
//! The kernel lets a killed caller go once its request is answered. It would tell of that (FUSE_INTERRUPT), but only
//! for a server that takes it, and fuser does not. So the callers of what takes long are looked at.

use super::convert::errno;
use crate::opener::{self, Client};
use fuser::{
    ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyXattr,
};
use parking_lot::Mutex;
use rustix::io::Errno;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How often callers are looked at, and how long none is looked at at first: nearly all are answered before.
pub(super) const LOOK: Duration = Duration::from_millis(250);

/// A reply that can say that there is nothing to be said.
pub(super) trait Reply: Send + 'static {
    fn refuse(self, why: Errno);
}

macro_rules! replies {
    ($($reply:ty),*) => {
        $(impl Reply for $reply {
            fn refuse(self, why: Errno) {
                self.error(errno(why));
            }
        })*
    };
}

replies!(
    ReplyAttr,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyXattr
);

/// A reply, for whoever comes first: the work for it, or the end of its caller.
pub(super) struct Owed<R: Reply> {
    reply: Mutex<Option<R>>,
    callers: Arc<Callers>,
    /// Where it is among all; `None` where its caller cannot be looked at.
    slot: Option<usize>,
}

impl<R: Reply> Owed<R> {
    /// The reply; `None` if its caller is gone.
    pub(super) fn take(&self) -> Option<R> {
        self.reply.lock().take()
    }

    /// Does something with it before it is sent; `None` if its caller is gone.
    pub(super) fn with<T>(&self, use_it: impl FnOnce(&mut R) -> T) -> Option<T> {
        self.reply.lock().as_mut().map(use_it)
    }
}

impl<R: Reply> Drop for Owed<R> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.callers.slots.lock().remove(slot);
        }
    }
}

/// What is told of the end of a caller.
pub(super) trait Waits: Send + Sync {
    /// Answers with an error.
    fn give_up(&self, why: Errno);
    /// Whether it waits still.
    fn waits(&self) -> bool;
}

impl<R: Reply> Waits for Owed<R> {
    fn give_up(&self, why: Errno) {
        if let Some(reply) = self.take() {
            reply.refuse(why);
        }
    }

    fn waits(&self) -> bool {
        self.reply.lock().is_some()
    }
}

struct Caller {
    /// Its thread.
    pid: u32,
    waits: Weak<dyn Waits>,
    /// It was there at the last look.
    is_old: bool,
}

/// All callers, each in a place that it keeps: each request is one.
#[derive(Default)]
struct Slots {
    all: Vec<Option<Caller>>,
    free: Vec<usize>,
}

impl Slots {
    fn add(&mut self, pid: u32, waits: Weak<dyn Waits>) -> usize {
        let caller = Some(Caller { pid, waits, is_old: false });
        if let Some(slot) = self.free.pop() {
            if let Some(place) = self.all.get_mut(slot) {
                *place = caller;
            }
            return slot;
        }
        self.all.push(caller);
        self.all.len().saturating_sub(1)
    }

    fn remove(&mut self, slot: usize) {
        if let Some(place) = self.all.get_mut(slot) {
            *place = None;
            self.free.push(slot);
        }
        // After many at once: nobody is to look through empty places.
        if self.free.len() == self.all.len() && self.all.len() > 64 {
            *self = Self::default();
        }
    }

    fn is_empty(&self) -> bool {
        self.free.len() == self.all.len()
    }
}

/// Those who wait for an answer.
pub(super) struct Callers {
    slots: Mutex<Slots>,
    /// Somebody looks every now and then.
    is_watched: AtomicBool,
    /// Begins to.
    wake: Sender<()>,
}

impl Callers {
    pub(super) fn new(wake: Sender<()>) -> Self {
        Self { slots: Mutex::default(), is_watched: AtomicBool::new(false), wake }
    }

    /// Keeps a reply to the thread `pid` until it is answered.
    pub(super) fn owe<R: Reply>(self: &Arc<Self>, pid: u32, reply: R) -> Arc<Owed<R>> {
        let owed = Arc::new_cyclic(|owed: &Weak<Owed<R>>| {
            // The kernel has no number here for a thread of another namespace.
            let slot = (pid != 0).then(|| self.slots.lock().add(pid, Weak::<Owed<R>>::clone(owed)));
            Owed { reply: Mutex::new(Some(reply)), callers: Arc::clone(self), slot }
        });
        self.watch();
        owed
    }

    /// Has somebody look. One who does looks for as long as there are callers, so most find it done.
    fn watch(&self) {
        if !self.is_watched.load(Ordering::SeqCst) && !self.is_watched.swap(true, Ordering::SeqCst)
        {
            // Nobody looks any more once the session has ended.
            let _ = self.wake.send(());
        }
    }

    /// Whether nobody needs to look until the next request, which then wakes whoever does.
    pub(super) fn may_rest(&self) -> bool {
        if !self.slots.lock().is_empty() {
            return false;
        }
        self.is_watched.store(false, Ordering::SeqCst);
        // One may have come before that and found it watched.
        self.slots.lock().is_empty() || self.is_watched.swap(true, Ordering::SeqCst)
    }

    /// Lets go those who are killed; whether there were any. `host` sees other users' threads, where there is one.
    pub(super) fn look(&self, host: Option<&Client>) -> bool {
        let mut old: Vec<(u32, Weak<dyn Waits>)> = Vec::new();
        for caller in self.slots.lock().all.iter_mut().flatten() {
            if std::mem::replace(&mut caller.is_old, true) {
                old.push((caller.pid, Weak::clone(&caller.waits)));
            }
        }
        let mut threads: Vec<u32> = old.iter().map(|(pid, _)| *pid).collect();
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
        let theirs = old.iter().filter(|(pid, _)| killed.contains(pid));
        theirs
            .filter_map(|(_, waits)| waits.upgrade())
            .for_each(|waits| waits.give_up(Errno::INTR));
        true
    }
}
