//! Opening and reading files.

use super::handle::Handle;
use super::inode::{Node, Stamp};
use super::namespace::{MANIFEST, now};
use super::number::{Key, Object};
use super::transfers::Progress;
use super::{Attr, Cache, Notice, Opened, Vfs, moved};
use crate::export::{Generation, ScanFile};
use crate::tree::{self, File};
use parking_lot::Mutex;
use rustix::fd::{AsFd as _, BorrowedFd};
use rustix::fs::{SeekFrom, StatVfsMountFlags};
use rustix::io::Errno;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Marks a place behind notices; to be passed when the kernel has had them.
#[derive(Debug)]
pub struct Barrier(Arc<Node>);

impl Barrier {
    /// The kernel has had every notice before this.
    pub fn pass(self) {
        self.0.settled.store(true, Ordering::SeqCst);
    }
}

/// A page of the kernel's cache.
const PAGE_SIZE: u64 = 4096;

/// A read that takes as long as reading large files does.
#[derive(Debug)]
pub struct SlowRead {
    handle: Arc<Handle>,
    /// The thread that reads.
    pid: u32,
    /// How often the file had been closed when the request came.
    closes: usize,
    size: usize,
}

impl SlowRead {
    /// Whether somebody may still wait for it. A reader that is killed does not wait for pages any more and closes the file,
    /// which is all that the kernel tells of it. So does anybody who shares the open file with others that go on: they ask
    /// again, for each page alone, and such a request ends with its own reader only.
    pub fn is_wanted(&self) -> bool {
        let Handle::Manifest { closed_by, .. } = &*self.handle else { return true };
        let closed_by = closed_by.lock();
        let again = self.closes > 0 && self.size as u64 <= PAGE_SIZE;
        closed_by.count == self.closes || again && !closed_by.by_since(self.closes, self.pid)
    }
}

/// Where lseek(2) is asked to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Seek {
    Data,
    Hole,
}

impl Vfs {
    /// Whether a user may open a file whose mode lets them, where everybody gets in.
    ///
    /// The flake, its lock and codchi-env are made of what only the mounting user can read on the host, secrets among it. In
    /// the machine others have to read them, so their modes say so, here as in the archive.
    pub fn may_open(&self, ino: u64, uid: u32) -> Result<(), Errno> {
        if !self.access.others || uid == 0 || uid == self.access.uid {
            return Ok(());
        }
        let node = self.table.get(ino)?;
        let Object::Tree(id) = node.key.object else { return Ok(()) };
        // A generated file whose machine is gone has nothing to read either.
        let tree = self.tree(&node.key.machine)?;
        match tree.generated_file(id).is_some() && ScanFile::of(id) != Some(ScanFile::Owners) {
            true => Err(Errno::ACCESS),
            false => Ok(()),
        }
    }

    /// Opens a file for reading, for the process `pid`. Never a special file: the kernel keeps those to itself.
    pub fn open(&self, ino: u64, pid: u32) -> Result<Opened, Errno> {
        let node = self.table.get(ino)?;
        match node.key.object {
            Object::Tree(id) => self.open_entry(node, id),
            Object::Export { .. } => {
                let generation = node.generation().ok_or(Errno::STALE)?;
                // Retired: the kernel looks the name up again and meets the next one. One that was
                // torn from the start (a file that nobody can read) is the best there is.
                if generation.torn() && !self.is_current(&node, &generation) {
                    return Err(Errno::STALE);
                }
                let history = Arc::clone(self.exports(&node.key.machine)?.history());
                let hold = history.open(&generation);
                let progress = Progress::new(pid);
                Ok(self.open_shared(Handle::Export { node, hold, progress }))
            }
            Object::Manifest { .. } => {
                let generation = node.generation().ok_or(Errno::STALE)?;
                let history = Arc::clone(self.exports(&node.key.machine)?.history());
                let (manifest, hold) = (generation.manifest(), history.open(&generation));
                let closed_by = Mutex::default();
                Ok(self.open_shared(Handle::Manifest { node, manifest, hold, closed_by }))
            }
            Object::Page { page, .. } => self.open_page(node, page),
            Object::Placeholder(_) => Err(Errno::STALE),
            _ => Err(Errno::ISDIR),
        }
    }

    fn open_shared(&self, handle: Handle) -> Opened {
        let node = Arc::clone(handle.node());
        let forget = || self.notice(&node, Notice::Pages { ino: node.ino, offset: 0 });
        let (handle, behind) = self.handles.add_reader(handle, forget);
        Opened { close_tells: true, behind, ..Opened::unchanging(handle) }
    }

    /// The kernel has had the notices that the answer to an open had to come behind.
    pub fn is_answered(&self, handle: u64) {
        if let Ok(handle) = self.handles.get(handle) {
            handle.node().forgetting.store(false, Ordering::SeqCst);
        }
    }

    /// Whether a lookup of `export.tar` would give this very generation again.
    fn is_current(&self, node: &Node, generation: &Arc<Generation>) -> bool {
        let exports = self.exports(&node.key.machine).ok();
        let current = exports.and_then(|exports| exports.fresh());
        current.is_some_and(|current| Arc::ptr_eq(&current, generation))
    }

    fn open_entry(&self, node: Arc<Node>, id: tree::ObjectId) -> Result<Opened, Errno> {
        let (tree, dir, place) = self.place_of(&node)?;
        let (file, mut attr) = tree.open_file(&dir, &place.name).map_err(moved)?;
        // What only a scan knows, as the last one has found it.
        let late = match (&file, ScanFile::of(attr.id)) {
            (File::Generated(None), Some(late)) => {
                let exports = self.exports(&node.key.machine)?;
                let generation = exports.last().ok_or(Errno::STALE)?;
                attr = generation.settled(attr);
                Some((late, exports.history().open(&generation)))
            }
            _ => None,
        };
        if attr.id != id {
            return Err(Errno::STALE);
        }
        match file {
            File::Disk(file) => {
                let cache = cached_as(&node, &attr);
                *node.seen.lock() = Some(attr.ctime);
                let resized = node.told_size.load(Ordering::Relaxed) != attr.size;
                let plain = Some(attr.size);
                let handle = self.handles.add(Handle::Disk { node, tree, file, attr });
                Ok(Opened { handle, cache, close_tells: false, plain, resized, behind: resized })
            }
            File::Generated(bytes) => {
                let attr = Attr::of(node.ino, &attr);
                let handle = match (bytes, late) {
                    (Some(bytes), _) => Handle::Bytes { node, bytes, attr },
                    (None, Some((file, hold))) => Handle::Scanned { node, hold, file, attr },
                    (None, None) => return Err(Errno::STALE),
                };
                Ok(Opened::unchanging(self.handles.add(handle)))
            }
        }
    }

    /// Has the kernel learn the size of a file that was opened, where that is another one than it was told. It would read to
    /// where the file ended then, for as long as it believes that. `cached`: it reads through its cache.
    pub fn notice_size(&self, handle: u64, cached: bool) {
        let Ok(handle) = self.handles.get(handle) else { return };
        let Handle::Disk { node, file, attr, .. } = &*handle else { return };
        let told = node.told_size.swap(attr.size, Ordering::Relaxed);
        self.notice(node, Notice::Pages { ino: node.ino, offset: 0 });
        // From now on it asks before it reads. Not so for splice(2) and sendfile(2): they go by the size it has, which only
        // bytes behind it can move.
        if cached && told < attr.size {
            let offset = attr.size.saturating_sub(1) / PAGE_SIZE * PAGE_SIZE;
            let mut bytes = vec![0; usize::try_from(attr.size - offset).unwrap_or(0)];
            if tree::read_full(file, offset, &mut bytes).is_ok_and(|count| count == bytes.len()) {
                let bytes = bytes.into();
                self.notice(node, Notice::Bytes { ino: node.ino, offset, bytes });
            }
        }
    }

    /// Calls `pass` with the descriptor of an opened file of a machine, if whoever reads from it leaves no access time on
    /// the disk.
    pub fn with_file<T>(&self, handle: u64, pass: impl FnOnce(BorrowedFd<'_>) -> T) -> Option<T> {
        let handle = self.handles.get(handle).ok()?;
        let Handle::Disk { file, .. } = &*handle else { return None };
        let mount = rustix::fs::fstatvfs(file).ok()?.f_flag;
        mount.contains(StatVfsMountFlags::NOATIME).then(|| pass(file.as_fd()))
    }

    /// Up to `size` bytes from `offset` on, at the beginning of `buf`: less than asked only at the end of the file. A shorter
    /// answer inside the file would make the kernel believe that the file ends there, and a copy would be cut off without
    /// an error.
    ///
    /// What takes long ends with EINTR as soon as it is not `wanted`. With a [`Barrier`], the answer is not to reach the kernel
    /// before all notices so far have.
    pub fn read(
        &self,
        handle: u64,
        offset: u64,
        size: usize,
        wanted: &dyn Fn() -> bool,
        buf: &mut Vec<u8>,
    ) -> (Result<usize, Errno>, Option<Barrier>) {
        let handle = match self.handles.get(handle) {
            Ok(handle) => handle,
            Err(error) => return (Err(error), None),
        };
        let buf = sized(buf, size);
        let (node, generation, count) = match &*handle {
            Handle::Export { node, hold, progress } => {
                let count = hold.generation().read_at(offset, buf);
                progress.read(offset, *count.as_ref().unwrap_or(&0));
                (node, hold.generation(), count)
            }
            Handle::Manifest { node, hold, manifest, .. } => {
                (node, hold.generation(), manifest.read_at(offset, buf, wanted))
            }
            other => return (Self::read_handle(other, offset, buf), None),
        };
        match self.announce(node, generation) {
            // The kernel waits for this very page before it drops it: the answer must not wait for that.
            Some(_) if offset.saturating_add(size as u64) > last_page(node, generation) => {
                (Err(Errno::IO), None)
            }
            barrier => (count, barrier),
        }
    }

    /// What is to be known of a read that may take as long as reading large files does: it must not keep others waiting.
    /// The process `pid` reads.
    pub fn slow_read(&self, handle: u64, pid: u32, size: usize) -> Option<SlowRead> {
        let handle = self.handles.get(handle).ok()?;
        let Handle::Manifest { closed_by, .. } = &*handle else { return None };
        let closes = closed_by.lock().count;
        Some(SlowRead { handle, pid, closes, size })
    }

    fn read_handle(handle: &Handle, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        match handle {
            Handle::Disk { node, file, .. } => {
                let count = tree::read_full(file, offset, buf)?;
                if count < buf.len() {
                    // The kernel takes that for the end of the file.
                    let end = offset.saturating_add(count as u64);
                    node.told_size.fetch_min(end, Ordering::Relaxed);
                }
                Ok(count)
            }
            Handle::Bytes { bytes, .. } => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let rest = bytes.get(start..).unwrap_or_default();
                let count = rest.len().min(buf.len());
                if let (Some(to), Some(from)) = (buf.get_mut(..count), rest.get(..count)) {
                    to.copy_from_slice(from);
                }
                Ok(count)
            }
            Handle::Scanned { hold, file, .. } => {
                Ok(hold.generation().read_scanned(*file, offset, buf))
            }
            Handle::Export { .. } | Handle::Manifest { .. } | Handle::Directory { .. } => {
                Err(Errno::ISDIR)
            }
        }
    }

    /// Announces a torn generation, once. Until the kernel has dropped the last page, no reader gets further: some do not
    /// look at what close(2) answers, and would take that page from the cache.
    fn announce(&self, node: &Arc<Node>, generation: &Arc<Generation>) -> Option<Barrier> {
        if !generation.torn() || node.settled.load(Ordering::SeqCst) {
            return None;
        }
        // Before the lock below, which comes after the table's, and is held for nothing that takes long.
        let parent = self.table.number(&Key::new(&node.key.machine, Object::Machine));
        let offset = last_page(node, generation);
        // Held while the notices are queued: whoever comes second must come behind them.
        let mut told = node.told.lock();
        if !std::mem::replace(&mut *told, true) {
            let name = match node.key.object {
                Object::Manifest { .. } => MANIFEST,
                _ => self.machines.export_name(),
            };
            self.notice(node, Notice::Pages { ino: node.ino, offset });
            self.notice(node, Notice::Name { ino: node.ino, parent, name });
        }
        drop(told);
        Some(Barrier(Arc::clone(node)))
    }

    /// Has the kernel told that what it knows is not so any more.
    pub(super) fn notice(&self, node: &Node, notice: Notice) {
        (self.notify)(&node.key.machine, notice);
    }

    /// What close(2) answers: EIO if what was read is no faithful export.
    /// The process `pid` closes.
    pub fn flush(&self, handle: u64, pid: u32) -> Result<(), Errno> {
        let handle = self.handles.get(handle)?;
        if let Handle::Manifest { closed_by, .. } = &*handle {
            closed_by.lock().add(pid);
        }
        match &*handle {
            Handle::Export { node, hold, .. } | Handle::Manifest { node, hold, .. }
                if hold.generation().torn() =>
            {
                // An error needs not wait.
                drop(self.announce(node, hold.generation()));
                Err(Errno::IO)
            }
            _ => Ok(()),
        }
    }

    /// Ends a handle of a file or directory.
    pub fn release(&self, handle: u64) {
        self.handles.remove(handle);
    }

    /// Where data or a hole begins, at or after `offset`.
    pub fn seek(&self, handle: u64, offset: i64, to: Seek) -> Result<i64, Errno> {
        // As everywhere: before the beginning there is nothing.
        let offset = u64::try_from(offset).map_err(|_| Errno::NXIO)?;
        let size = match &*self.handles.get(handle)? {
            Handle::Disk { file, .. } => {
                // Moves the descriptor's own position, which nothing here uses.
                let to = match to {
                    Seek::Data => SeekFrom::Data(offset),
                    Seek::Hole => SeekFrom::Hole(offset),
                };
                let found = rustix::fs::seek(file, to)?;
                return i64::try_from(found).map_err(|_| Errno::OVERFLOW);
            }
            Handle::Bytes { attr, .. } | Handle::Scanned { attr, .. } => attr.size,
            Handle::Export { hold, .. } => hold.generation().size(),
            Handle::Manifest { manifest, .. } => manifest.size(),
            Handle::Directory { .. } => return Err(Errno::ISDIR),
        };
        if offset >= size {
            return Err(Errno::NXIO);
        }
        let found = if to == Seek::Data { offset } else { size };
        i64::try_from(found).map_err(|_| Errno::OVERFLOW)
    }
}

/// The beginning of `buf`, which grows to that.
fn sized(buf: &mut Vec<u8>, size: usize) -> &mut [u8] {
    if buf.len() < size {
        buf.resize(size, 0);
    }
    buf.get_mut(..size).unwrap_or_default()
}

/// Where the last page of an `export.tar` or of its list begins: what of a torn generation no reader may have.
fn last_page(node: &Node, generation: &Arc<Generation>) -> u64 {
    match node.key.object {
        Object::Manifest { .. } => {
            generation.manifest_size().saturating_sub(1) / PAGE_SIZE * PAGE_SIZE
        }
        _ => generation.last_page(),
    }
}

/// Seconds after which a file's ctime tells of every change to it, with room for a slow writeback.
const SETTLED: i64 = 60;

/// Whether the pages that the kernel has of this file are of the content that was opened now.
///
/// Size and mtime alone do not tell: npm dates every file 1985, `cp -p` keeps mtimes. The ctime
/// does, unless it is so recent that another write may yet get the same one: a store through mmap(2) into a page that is
/// dirty already moves no ctime, and pages stay dirty for half a minute (proc_sys_vm(5), dirty_expire_centisecs).
fn cached_as(node: &Node, attr: &tree::Attr) -> Cache {
    let stamp = Stamp { ctime: attr.ctime, mtime: attr.mtime, size: attr.size };
    let settled = attr.ctime.sec < now().sec.saturating_sub(SETTLED);
    let mut known = node.stamp.lock();
    let same = settled && *known == Some(stamp);
    *known = settled.then_some(stamp);
    if same { Cache::Keep } else { Cache::Drop }
}
