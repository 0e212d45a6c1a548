//! What the kernel is told: what it must forget, and the answers that must come behind that.

use super::{Background, Work};
use crate::vfs::Notice;
use fuser::{INodeNo, Notifier};
use std::ffi::OsStr;
use std::io;
use std::sync::mpsc::channel;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How long the kernel gets to forget a name before what is behind it: without a scan it takes microseconds, and the name
/// leads nowhere for no more than a second anyway.
const NAME_WAIT: Duration = Duration::from_millis(100);

/// Errands to the kernel, on threads of their own: it waits for reads of the pages it is to drop, and those wait for the
/// session's threads, or for a disk. Only errands about the same file keep their order, so nobody else waits for them.
#[derive(Debug)]
pub(super) struct Errands {
    threads: Background,
    /// None as long as there is no session, of which the kernel knows nothing either.
    notifier: OnceLock<Notifier>,
}

impl Errands {
    pub(super) fn new() -> Self {
        Self { threads: Background::new("codchifs-tell", 0), notifier: OnceLock::new() }
    }

    /// The session has begun.
    pub(super) fn begin(&self, notifier: Notifier) {
        // There is one session.
        let _ = self.notifier.set(notifier);
    }

    /// Tells the kernel something about a machine.
    pub(super) fn tell(&self, machine: &Arc<str>, notice: Notice) {
        let Some(notifier) = self.notifier.get().cloned() else { return };
        let (threads, of) = (self.threads.clone(), Arc::clone(machine));
        self.threads.run(Arc::clone(machine), Work::tell(notice.ino()), move || match notice {
            Notice::Pages { ino, offset } => {
                let offset = i64::try_from(offset).unwrap_or(0);
                told(notifier.inval_inode(INodeNo(ino), offset, 0), "pages");
            }
            Notice::Bytes { ino, offset, bytes } => {
                told(notifier.store(INodeNo(ino), offset, &bytes), "bytes");
            }
            Notice::Name { parent, name, .. } => {
                let (done, wait) = channel();
                // The kernel takes the lock of the directory that has the name, and a lookup that scans holds it.
                threads.run(of, Work::Name, move || {
                    told(notifier.inval_entry(INodeNo(parent), OsStr::new(name)), "name");
                    // Nobody waits any more if it took long.
                    let _ = done.send(());
                });
                let _ = wait.recv_timeout(NAME_WAIT);
            }
        });
    }

    /// Whether anything is on its way.
    pub(super) fn is_busy(&self) -> bool {
        self.threads.is_busy()
    }

    /// Tries again to get threads, where none could be had.
    pub(super) fn retry(&self) {
        self.threads.retry();
    }

    /// Answers behind all that was told of a file so far.
    pub(super) fn answer(
        &self,
        machine: Arc<str>,
        ino: u64,
        answer: impl FnOnce() + Send + 'static,
    ) {
        self.threads.run(machine, Work::tell(ino), answer);
    }
}

fn told(result: io::Result<()>, what: &str) {
    match result {
        // The kernel has forgotten it already.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(%error, what, "cannot have the kernel forget"),
        Ok(()) => {}
    }
}
