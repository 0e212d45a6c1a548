//! Open files and directories.

use super::inode::Node;
use super::number::Key;
use super::transfers::Progress;
use crate::export::{Hold, Manifest, ScanFile};
use crate::tree::{self, Kind, Tree};
use parking_lot::{Mutex, RwLock};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// What a handle reads from. A handle keeps what it opened, whatever happens to the name.
pub(super) enum Handle {
    /// A regular file of the machine.
    Disk { node: Arc<Node>, tree: Arc<Tree>, file: OwnedFd, attr: tree::Attr },
    /// Bytes fixed at open: a generated file or the report.
    Bytes { node: Arc<Node>, bytes: Arc<[u8]>, attr: super::Attr },
    /// A generated file that only a scan knows.
    Scanned { node: Arc<Node>, hold: Hold, file: ScanFile, attr: super::Attr },
    /// A `manifest.mtree`. `closed_by` has each thread that closed it: whoever shares the open file does.
    Manifest { node: Arc<Node>, manifest: Arc<Manifest>, hold: Hold, closed_by: Mutex<Closes> },
    /// An `export.tar`.
    Export { node: Arc<Node>, hold: Hold, progress: Progress },
    /// A directory.
    Directory { node: Arc<Node>, listing: Mutex<Option<Arc<Listing>>> },
}

/// How often a handle was closed, and by which threads the last times.
#[derive(Debug, Default)]
pub(super) struct Closes {
    pub(super) count: usize,
    last: VecDeque<u32>,
}

impl Closes {
    /// How many are remembered by their thread.
    const KEPT: usize = 64;

    pub(super) fn add(&mut self, pid: u32) {
        self.count = self.count.wrapping_add(1);
        self.last.push_back(pid);
        if self.last.len() > Self::KEPT {
            self.last.pop_front();
        }
    }

    /// Whether `pid` has closed it lately, after the first `count` times.
    pub(super) fn by_since(&self, count: usize, pid: u32) -> bool {
        let since = self.count.wrapping_sub(count);
        self.last.iter().rev().take(since).any(|by| *by == pid)
    }
}

// The bytes may be codchi-env's, and must not reach a log through a derived Debug: lengths only.
impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct(match self {
            Self::Disk { .. } => "Disk",
            Self::Bytes { .. } => "Bytes",
            Self::Scanned { .. } => "Scanned",
            Self::Manifest { .. } => "Manifest",
            Self::Export { .. } => "Export",
            Self::Directory { .. } => "Directory",
        });
        if let Self::Bytes { bytes, .. } = self {
            shown.field("bytes", &bytes.len());
        }
        shown.field("ino", &self.node().ino).finish_non_exhaustive()
    }
}

impl Handle {
    pub(super) fn node(&self) -> &Arc<Node> {
        match self {
            Self::Disk { node, .. }
            | Self::Bytes { node, .. }
            | Self::Scanned { node, .. }
            | Self::Manifest { node, .. }
            | Self::Export { node, .. }
            | Self::Directory { node, .. } => node,
        }
    }
}

/// A directory as it was when its reading began. The offset after the entry at index `i` is
/// `i + 1`, so a reader may stop and go on, or seek, and meets each entry once.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) taken: Instant,
    pub(super) entries: Vec<Listed>,
}

/// One entry of a listing.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) name: Box<[u8]>,
    pub(super) kind: Kind,
    pub(super) source: Source,
}

/// What the rest of an entry is made of when it is asked for.
#[derive(Debug)]
pub(super) enum Source {
    /// `.` or `..`, with its number.
    Dots(u64),
    /// A name of ours.
    Fixed(Key),
    /// An entry of the tree.
    Tree(tree::Attr),
    /// One whose size only a scan knows: like the tar, it is not to be believed before it is looked up.
    Late(tree::Attr),
}

impl Listing {
    /// The entries from `offset` on, each with the offset of the next one.
    pub(super) fn from(&self, offset: u64) -> impl Iterator<Item = (u64, &Listed)> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        (offset.saturating_add(1)..).zip(self.entries.iter().skip(start))
    }
}

/// All open handles by number. The lock is held to copy a reference out, never across I/O.
#[derive(Debug, Default)]
pub(super) struct Handles {
    open: RwLock<HashMap<u64, Arc<Handle>>>,
    last: AtomicU64,
}

impl Handles {
    pub(super) fn add(&self, handle: Handle) -> u64 {
        let number = self.last.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        self.open.write().insert(number, Arc::new(handle));
        number
    }

    /// The same of a file whose pages are shared by readers of one time, not kept for later ones: a file that is written through
    /// mmap(2) changes without any sign until it is written back. The first of later ones calls `forget`, which has the kernel told
    /// to drop the pages. Whether the answer must come behind that, as the second value: of whoever opens it meanwhile as well.
    ///
    /// Nobody is told to drop them with the open itself: the kernel does so when the open returns, and waits for whoever
    /// opened it at the same time and reads already, maybe for as long as hashing a machine takes.
    pub(super) fn add_reader(&self, handle: Handle, forget: impl FnOnce()) -> (u64, bool) {
        let number = self.last.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let node = Arc::clone(handle.node());
        let mut open = self.open.write();
        // Of what was never open there are no pages.
        let is_new = !node.opened.swap(true, Ordering::SeqCst);
        if !is_new && !open.values().any(|other| other.node().ino == node.ino) {
            node.forgetting.store(true, Ordering::SeqCst);
            // Queued before anybody else can come behind it.
            forget();
        }
        open.insert(number, Arc::new(handle));
        (number, node.forgetting.load(Ordering::SeqCst))
    }

    pub(super) fn get(&self, number: u64) -> Result<Arc<Handle>, Errno> {
        self.open.read().get(&number).map(Arc::clone).ok_or(Errno::BADF)
    }

    /// All of them, each with its number.
    pub(super) fn all(&self) -> Vec<(u64, Arc<Handle>)> {
        self.open.read().iter().map(|(number, handle)| (*number, Arc::clone(handle))).collect()
    }

    pub(super) fn remove(&self, number: u64) {
        let gone = self.open.write().remove(&number);
        drop(gone);
    }

    /// Any open handle of an inode: fstat(2) comes without its handle, and the name may be gone.
    pub(super) fn of_inode(&self, ino: u64) -> Option<Arc<Handle>> {
        self.open.read().values().find(|handle| handle.node().ino == ino).map(Arc::clone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::inode::Table;
    use crate::vfs::number::ROOT;

    #[test]
    fn debug_shows_how_many_bytes_there_are_and_none_of_them() {
        let secret = *b"PlantedSecret";
        let node = Table::new(false).get(ROOT).unwrap();
        let time = tree::Time::default();
        let attr = super::super::Attr {
            ino: node.ino,
            kind: Kind::File,
            perm: 0o600,
            nlink: 1,
            uid: 0,
            gid: 0,
            size: secret.len() as u64,
            blocks: 1,
            atime: time,
            mtime: time,
            ctime: time,
            rdev: (0, 0),
            blksize: 4096,
        };
        let handles = Handles::default();
        let number = handles.add(Handle::Bytes { node, bytes: Arc::new(secret), attr });
        let handle = handles.get(number).unwrap();
        assert_eq!(format!("{handle:?}"), "Bytes { bytes: 13, ino: 1, .. }");
        let all = format!("{handles:?} {handles:#?}");
        // Neither as text nor as a list of numbers.
        assert!(!all.contains("Planted") && !all.contains("80, 108, 97"), "{all}");
    }

    #[test]
    fn of_those_who_open_a_file_at_once_one_has_its_pages_dropped_and_all_come_behind_that() {
        let node = Table::new(false).get(ROOT).unwrap();
        let handles = Handles::default();
        for round in 0..100 {
            let start = std::sync::Barrier::new(4);
            let opened: Vec<_> = std::thread::scope(|scope| {
                let open = || {
                    let (node, listing) = (Arc::clone(&node), Mutex::default());
                    start.wait();
                    let mut forgets = false;
                    let handle = Handle::Directory { node, listing };
                    let (number, behind) = handles.add_reader(handle, || forgets = true);
                    (number, behind, forgets)
                };
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let forget = opened.iter().filter(|(_, _, forgets)| *forgets).count();
            assert_eq!(forget, usize::from(round > 0));
            assert!(opened.iter().all(|(_, behind, _)| *behind == (round > 0)));
            opened.iter().for_each(|(number, ..)| handles.remove(*number));
            node.forgetting.store(false, Ordering::SeqCst);
        }
    }

    fn listing(names: &[&str]) -> Listing {
        let listed = |name: &&str| Listed {
            name: name.as_bytes().into(),
            kind: Kind::File,
            source: Source::Dots(7),
        };
        Listing { taken: Instant::now(), entries: names.iter().map(listed).collect() }
    }

    #[test]
    fn offsets_resume_after_any_entry() {
        let listing = listing(&["a", "b", "c", "d"]);
        let all: Vec<_> = listing.from(0).map(|(at, e)| (at, e.name.to_vec())).collect();
        assert_eq!(all.len(), 4);
        for (at, (next, name)) in all.iter().enumerate() {
            assert_eq!(*next, at as u64 + 1);
            let resumed: Vec<_> = listing.from(*next).map(|(_, e)| e.name.to_vec()).collect();
            let rest: Vec<_> = all[at + 1..].iter().map(|(_, name)| name.clone()).collect();
            assert_eq!(resumed, rest, "after {name:?}");
        }
        assert_eq!(listing.from(4).count(), 0);
        assert_eq!(listing.from(u64::MAX).count(), 0);
    }
}
