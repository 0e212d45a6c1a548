//! Large files of a tree, which the kernel reads from the disk by itself: no copy through here, and no second one of their
//! pages in memory.
//!
//! The kernel has all openers of one inode go one way, through its cache of our answers or past us to one backing file,
//! and fails the open that differs with EIO (fs/fuse/iomode.c). So whoever comes second goes the way of the first.

use super::owed::Owed;
use crate::opener::Client;
use crate::sys;
use fuser::{BackingId, InitFlags, KernelConfig, ReplyOpen};
use parking_lot::Mutex;
use rustix::fd::BorrowedFd;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::Arc;

/// Bytes from which on it pays: a backing costs an open more than a read of a small file does.
pub(super) const WORTH_IT: u64 = 128 << 10;

/// Asks for the way past us; whether the kernel has it. Who may not use it finds out with the first file.
pub(super) fn ask(config: &mut KernelConfig) -> bool {
    // Files of an overlay would take 2, and then nobody could have an overlay on top of this mount.
    config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
        && config.set_max_stack_depth(1).is_ok()
}

/// How each open file of a tree is read, by inode number.
#[derive(Debug)]
pub(super) struct Backings {
    /// Has the rights that it takes.
    host: Arc<Client>,
    open: Mutex<HashMap<u64, Openers>>,
}

/// A file that the kernel reads by itself, until this is dropped.
#[derive(Debug)]
pub(super) struct Backing {
    id: Option<BackingId>,
    host: Arc<Client>,
}

impl Backing {
    pub(super) fn id(&self) -> Option<&BackingId> {
        self.id.as_ref()
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        if let Some(id) = self.id.take()
            && let Err(error) = self.host.let_go(id.into_raw())
        {
            tracing::debug!(%error, "the kernel keeps a file until the mount ends");
        }
    }
}

#[derive(Debug)]
struct Openers {
    count: usize,
    /// `None`: through the cache.
    backing: Option<Arc<Backing>>,
}

impl Backings {
    pub(super) fn new(host: Arc<Client>) -> Self {
        Self { host, open: Mutex::default() }
    }

    /// Has the kernel read `file` by itself.
    pub(super) fn back(&self, owed: &Owed<ReplyOpen>, file: BorrowedFd<'_>) -> io::Result<Backing> {
        let id = self.host.back(file)?;
        match owed.with(|reply| sys::backing(reply, id)) {
            Some(id) => Ok(Backing { id: Some(id), host: Arc::clone(&self.host) }),
            // Nobody waits for it any more.
            None => self.host.let_go(id).and(Err(io::ErrorKind::Interrupted.into())),
        }
    }

    /// Counts an opener and tells which way it has to go: the one of those who are there, else what `make` makes.
    ///
    /// To be called before the open is answered. The kernel lets go of its side before it sends RELEASE: what is counted
    /// here is never less than what it has.
    pub(super) fn enter(
        &self,
        ino: u64,
        make: impl FnOnce() -> Option<Backing>,
    ) -> Option<Arc<Backing>> {
        if let Some(openers) = self.open.lock().get_mut(&ino) {
            return openers.admit();
        }
        let made = make().map(Arc::new);
        // Somebody may have been faster; then what was made is closed again.
        let mut open = self.open.lock();
        open.entry(ino).or_insert_with(|| Openers { count: 0, backing: made.clone() }).admit()
    }

    /// An opener is gone.
    pub(super) fn leave(&self, ino: u64) {
        let gone = match self.open.lock().entry(ino) {
            Entry::Vacant(_) => None,
            Entry::Occupied(mut openers) => {
                let count = &mut openers.get_mut().count;
                *count = count.saturating_sub(1);
                (*count == 0).then(|| openers.remove())
            }
        };
        drop(gone);
    }
}

impl Openers {
    fn admit(&mut self) -> Option<Arc<Backing>> {
        self.count = self.count.saturating_add(1);
        self.backing.clone()
    }
}
