//! Opening and reading files.

use super::ahead::Part;
use super::handle::Handle;
use super::inode::{Node, Stamp};
use super::namespace::now;
use super::number::{Key, Object};
use super::transfers::Progress;
use super::{Attr, Cache, Notice, Opened, Vfs, moved};
use crate::export::{Generation, ScanFile};
use crate::tree::{self, File};
use rustix::fd::{AsFd as _, BorrowedFd};
use rustix::fs::{SeekFrom, StatVfsMountFlags};
use rustix::io::Errno;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Marks a place behind notices; to be passed when the kernel has had them.
#[derive(Debug)]
pub struct Barrier(Arc<Node>);

impl Barrier {
    /// The kernel has had every notice before this.
    pub fn pass(self) {
        self.0.settled.store(true, Ordering::SeqCst);
    }
}

/// What a read gives.
#[derive(Debug)]
pub enum Bytes {
    /// So many, at the beginning of the buffer that was handed in.
    Here(usize),
    /// Some that others read as well.
    Shared(Part),
}

/// Where lseek(2) is asked to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Seek {
    Data,
    Hole,
}

impl Vfs {
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
                // Pages are shared by readers of one time, not kept for later ones: a file that is written through mmap(2)
                // changes without any sign until it is written back.
                let other = self.handles.of_inode(node.ino);
                let shared = other.is_some();
                let ahead = match other.as_deref() {
                    Some(Handle::Export { ahead, .. }) => Arc::clone(ahead),
                    _ => Arc::default(),
                };
                let history = Arc::clone(self.exports(&node.key.machine)?.history());
                let hold = history.open(&generation);
                let next = AtomicU64::new(0);
                let handle = self.handles.add(Handle::Export {
                    node,
                    hold,
                    ahead,
                    next,
                    progress: Progress::new(pid),
                });
                let cache = if shared { Cache::Keep } else { Cache::Drop };
                Ok(Opened { handle, cache, direct: true, close_tells: true, plain: None })
            }
            Object::Manifest(_) => {
                let generation = node.generation().ok_or(Errno::STALE)?;
                let history = Arc::clone(self.exports(&node.key.machine)?.history());
                let (manifest, hold) = (generation.manifest(), history.open(&generation));
                let handle = self.handles.add(Handle::Manifest { node, manifest, hold });
                // What is in the last page depends on whether all files were as they were scanned.
                Ok(Opened::past_the_cache(handle, true))
            }
            Object::Transfers => {
                let bytes = self.transfers(&node.key.machine);
                let attr = self.page_attr(ino, &bytes, now());
                let handle = self.handles.add(Handle::Bytes { node, bytes: bytes.into(), attr });
                Ok(Opened::past_the_cache(handle, false))
            }
            object @ (Object::Report | Object::Guide) => {
                let machine = self.machines.get(node.key.machine.as_bytes());
                let (bytes, time) = self.page(object, &*machine.ok_or(Errno::STALE)?);
                let attr = self.page_attr(ino, &bytes, time);
                let handle = self.handles.add(Handle::Bytes { node, bytes: bytes.into(), attr });
                Ok(Opened::past_the_cache(handle, false))
            }
            Object::Placeholder => Err(Errno::STALE),
            _ => Err(Errno::ISDIR),
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
        let (file, attr) = tree.open_file(&dir, &place.name).map_err(moved)?;
        if attr.id != id {
            return Err(Errno::STALE);
        }
        match file {
            File::Disk(file) => {
                let cache = cached_as(&node, &attr);
                *node.seen.lock() = Some(attr.ctime);
                let handle = self.handles.add(Handle::Disk { node, tree, file, attr });
                Ok(Opened {
                    handle,
                    cache,
                    direct: false,
                    close_tells: false,
                    plain: Some(attr.size),
                })
            }
            File::Generated(bytes) => {
                let handle = match bytes {
                    Some(bytes) => {
                        let attr = Attr::of(node.ino, &attr);
                        Handle::Bytes { node, bytes, attr }
                    }
                    None => {
                        let file = ScanFile::of(attr.id).ok_or(Errno::STALE)?;
                        let exports = self.exports(&node.key.machine)?;
                        let generation = exports.last().ok_or(Errno::STALE)?;
                        let attr = Attr::of(node.ino, &generation.settled(attr));
                        let hold = exports.history().open(&generation);
                        Handle::Scanned { node, hold, file, attr }
                    }
                };
                Ok(Opened::past_the_cache(self.handles.add(handle), false))
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

    /// Up to `size` bytes from `offset` on, in `buf` or shared: less than asked only at the end of the file. A shorter
    /// answer inside the file would make the kernel believe that the file ends there, and a copy would be cut off without
    /// an error. Only a `direct` read, one past the kernel's cache, may be answered in parts.
    ///
    /// With a [`Barrier`], the answer is not to reach the kernel before all notices so far have.
    pub fn read(
        &self,
        handle: u64,
        offset: u64,
        size: usize,
        direct: bool,
        buf: &mut Vec<u8>,
    ) -> (Result<Bytes, Errno>, Option<Barrier>) {
        let handle = match self.handles.get(handle) {
            Ok(handle) => handle,
            Err(error) => return (Err(error), None),
        };
        let Handle::Export { node, hold, progress, .. } = &*handle else {
            return (Self::read_handle(&handle, offset, sized(buf, size)).map(Bytes::Here), None);
        };
        let generation = hold.generation();
        if !direct {
            let count = generation.read_at(offset, sized(buf, size)).map(Bytes::Here);
            note(progress, offset, &count);
            return match self.announce(node, generation) {
                // The kernel waits for this very page before it drops it: the answer must not wait for that.
                Some(_) if generation.has_last_page(offset, size) => (Err(Errno::IO), None),
                barrier => (count, barrier),
            };
        }
        let read = self.read_direct(&handle, offset, size, buf);
        note(progress, offset, &read);
        let barrier = self.announce(node, generation);
        (read.and_then(|bytes| before_last_page(generation, offset, bytes)), barrier)
    }

    fn read_direct(
        &self,
        handle: &Arc<Handle>,
        offset: u64,
        size: usize,
        buf: &mut Vec<u8>,
    ) -> Result<Bytes, Errno> {
        let Handle::Export { hold, ahead, next, .. } = &**handle else { return Err(Errno::BADF) };
        let generation = hold.generation();
        let end = offset.saturating_add(size as u64).min(generation.size());
        let wanted = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX);
        // Who reads for the first time may want no more than that.
        let goes_on = next.swap(end, Ordering::Relaxed) == offset && offset > 0;
        if !goes_on {
            return generation.read_unchecked(offset, sized(buf, wanted)).map(Bytes::Here);
        }
        let first = ahead.read(generation, offset, wanted);
        for missing in ahead.missing(Arc::strong_count(ahead), end, generation.size()) {
            self.makers.prepare(handle, missing);
        }
        match first {
            Some(part) if part.bytes().len() == wanted => Ok(Bytes::Shared(part)),
            mut next => {
                let buf = sized(buf, wanted);
                let mut done: usize = 0;
                while let Some(part) = next {
                    let end = done.saturating_add(part.bytes().len());
                    buf.get_mut(done..end).ok_or(Errno::IO)?.copy_from_slice(part.bytes());
                    done = end;
                    next = ahead.read(generation, offset + done as u64, wanted - done);
                }
                let rest = buf.get_mut(done..).unwrap_or_default();
                done += generation.read_unchecked(offset + done as u64, rest)?;
                Ok(Bytes::Here(done))
            }
        }
    }

    /// Whether a read of this handle may take as long as reading large files does: it must not keep others waiting.
    pub fn reads_slowly(&self, handle: u64) -> bool {
        matches!(self.handles.get(handle).as_deref(), Ok(Handle::Manifest { .. }))
    }

    fn read_handle(handle: &Handle, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        match handle {
            Handle::Disk { file, .. } => tree::read_full(file, offset, buf),
            Handle::Bytes { bytes, .. } => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let rest = bytes.get(start..).unwrap_or_default();
                let count = rest.len().min(buf.len());
                if let (Some(to), Some(from)) = (buf.get_mut(..count), rest.get(..count)) {
                    to.copy_from_slice(from);
                }
                Ok(count)
            }
            Handle::Manifest { manifest, .. } => manifest.read_at(offset, buf),
            Handle::Scanned { hold, file, .. } => {
                Ok(hold.generation().read_scanned(*file, offset, buf))
            }
            Handle::Export { .. } | Handle::Directory { .. } => Err(Errno::ISDIR),
        }
    }

    /// Announces a torn generation, once. Until the kernel has dropped the last page, no reader gets further: some do not
    /// look at what close(2) answers, and would take that page from the cache.
    fn announce(&self, node: &Arc<Node>, generation: &Generation) -> Option<Barrier> {
        if !generation.torn() || node.settled.load(Ordering::SeqCst) {
            return None;
        }
        // Held while the notices are queued: whoever comes second must come behind them.
        let mut told = node.told.lock();
        if !std::mem::replace(&mut *told, true) {
            let parent = Key::new(&node.key.machine, Object::Machine);
            let parent = self.table.number(&parent);
            self.notice(Notice::Pages { ino: node.ino, offset: generation.last_page() });
            self.notice(Notice::Name { parent, name: self.machines.export_name() });
        }
        Some(Barrier(Arc::clone(node)))
    }

    /// Has the kernel told that what it knows is not so any more.
    pub(super) fn notice(&self, notice: Notice) {
        (self.notify)(notice);
    }

    /// What close(2) answers: EIO if what was read is no faithful export.
    pub fn flush(&self, handle: u64) -> Result<(), Errno> {
        match &*self.handles.get(handle)? {
            Handle::Export { node, hold, .. } if hold.generation().torn() => {
                // An error needs not wait.
                drop(self.announce(node, hold.generation()));
                Err(Errno::IO)
            }
            Handle::Manifest { hold, .. } if hold.generation().torn() => Err(Errno::IO),
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

fn note(progress: &Progress, offset: u64, read: &Result<Bytes, Errno>) {
    match read {
        Ok(Bytes::Here(count)) => progress.read(offset, *count),
        Ok(Bytes::Shared(part)) => progress.read(offset, part.bytes().len()),
        Err(_) => {}
    }
}

/// The beginning of `buf`, which grows to that.
fn sized(buf: &mut Vec<u8>, size: usize) -> &mut [u8] {
    if buf.len() < size {
        buf.resize(size, 0);
    }
    buf.get_mut(..size).unwrap_or_default()
}

/// What a direct read may have of what was read: of a torn generation nothing of the last page, since some readers do not
/// look at what close(2) answers.
fn before_last_page(
    generation: &Generation,
    offset: u64,
    mut bytes: Bytes,
) -> Result<Bytes, Errno> {
    let count = match &bytes {
        Bytes::Here(count) => *count,
        Bytes::Shared(part) => part.bytes().len(),
    };
    if !generation.torn() || !generation.has_last_page(offset, count) {
        return Ok(bytes);
    }
    let most = generation.last_page().saturating_sub(offset);
    let most = usize::try_from(most).ok().filter(|most| *most > 0).ok_or(Errno::IO)?;
    match &mut bytes {
        Bytes::Here(count) => *count = most.min(*count),
        Bytes::Shared(part) => part.truncate(most),
    }
    Ok(bytes)
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
