//! One frozen layout of one machine, and the bytes of it.

use super::Options;
use super::report::{Change, ChangeLine, Changes, Note, printable};
use super::scan::Scan;
use crate::tar::{self, Layout, MemberId, Run};
use crate::tree::{Attr, DataRun, Dir, File, ObjectId, Stamp, Time, Tree, is_hole_outside, stamp};
use lru::LruCache;
use parking_lot::Mutex;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// Directories that a generation keeps open for its readers.
const OPEN_DIRS: NonZeroUsize = NonZeroUsize::new(128).unwrap();
/// Files kept open because one read did not take all of them.
const OPEN_FILES: NonZeroUsize = NonZeroUsize::new(64).unwrap();
/// How often a file that changes while it is read is tried before its member counts as torn.
const TRIES: usize = 3;

/// Layer of what is made rather than found.
const GENERATED: u8 = 2;

/// What the layout keeps of each member to find its file again and to tell whether it changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tag {
    /// Inode number on the disk, or index of the generated file.
    pub(super) ino: u64,
    pub(super) ctime_sec: i64,
    pub(super) ctime_nsec: u32,
    pub(super) layer: u8,
}

/// Where an entry comes from, for its [`Tag`]. The index of a made directory means nothing: it has no body.
pub(super) fn layer_of(tree: &Tree, attr: &Attr) -> (u8, u64) {
    match attr.id {
        ObjectId::Disk { layer, ino, .. } => (layer, ino),
        made @ ObjectId::Generated(_) => {
            let index = tree.generated().iter().position(|g| g.id() == made);
            (GENERATED, index.unwrap_or(0) as u64)
        }
    }
}

/// One frozen layout of one machine. Keeps what it needs alive, whatever happens to the machine's entry.
pub struct Generation {
    tree: Arc<Tree>,
    layout: Layout<Tag>,
    options: Options,
    status: Arc<Status>,
    mtime: Time,
    /// The text of codchi-owners.
    owners: Arc<[u8]>,
    left_out: Mutex<Arc<Note>>,
    incomplete: bool,
    dirs: Mutex<LruCache<MemberId, Dir>>,
    files: Mutex<LruCache<MemberId, Arc<OwnedFd>>>,
    /// One bit a member: bytes of the state that the scan saw were served.
    served: Box<[AtomicU64]>,
    /// Members not served as the scan saw them: what happened, and the state that is served instead.
    changes: Mutex<BTreeMap<MemberId, (Change, Option<Stamp>)>>,
    changed: AtomicBool,
}

/// What of a generation is told when it is gone.
#[derive(Debug)]
pub struct Status {
    id: u64,
    size: u64,
    scanned: Mutex<(SystemTime, Duration)>,
    torn: AtomicBool,
    changes: Changes,
}

impl Status {
    /// That of the generation.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Exact size of the archive in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// When the scan that this layout stands for ended (the last one that found nothing changed), and how long it took.
    pub fn scanned(&self) -> (SystemTime, Duration) {
        *self.scanned.lock()
    }

    /// Whether it was torn by a change under a reader.
    pub fn torn(&self) -> bool {
        self.torn.load(Ordering::SeqCst)
    }

    /// What was not served as the scan saw it.
    pub fn changes(&self) -> &Changes {
        &self.changes
    }
}

impl std::fmt::Debug for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generation")
            .field("id", &format_args!("{:016x}", self.id()))
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}

impl Generation {
    pub(super) fn new(
        tree: Arc<Tree>,
        scan: Scan,
        mtime: Time,
        took: Duration,
        options: Options,
        avoid: impl Fn(u64) -> bool,
    ) -> Self {
        let digest = scan.layout.digest(|tag, hash| {
            hash.update(&tag.ino.to_le_bytes());
            hash.update(&tag.ctime_sec.to_le_bytes());
            hash.update(&tag.ctime_nsec.to_le_bytes());
            hash.update(&[tag.layer]);
        });
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        hash.update(&digest.to_le_bytes());
        for file in tree.generated() {
            let content = file.content.as_ref().unwrap_or(&scan.owners);
            hash.update(file.path);
            hash.update(&(content.len() as u64).to_le_bytes());
            hash.update(content);
        }
        let mut id = hash.digest();
        // A torn generation is never served again, and its inode has pages in the kernel's cache that are not the file's.
        while avoid(id) {
            hash.update(b"again");
            id = hash.digest();
        }
        let words = scan.layout.len().div_ceil(64);
        let status = Status {
            id,
            size: scan.layout.size(),
            scanned: Mutex::new((SystemTime::now(), took)),
            torn: AtomicBool::new(false),
            changes: Changes::default(),
        };
        Self {
            tree,
            options,
            status: Arc::new(status),
            mtime,
            owners: scan.owners,
            left_out: Mutex::new(Arc::new(scan.left_out)),
            incomplete: scan.incomplete,
            dirs: Mutex::new(LruCache::new(OPEN_DIRS)),
            files: Mutex::new(LruCache::new(OPEN_FILES)),
            served: (0..words).map(|_| AtomicU64::new(0)).collect(),
            changes: Mutex::default(),
            changed: AtomicBool::new(false),
            layout: scan.layout,
        }
    }

    /// Stable id: the same tree gives the same id after any remount.
    pub fn id(&self) -> u64 {
        self.status.id
    }

    /// What is told of it when it is gone.
    pub fn status(&self) -> &Arc<Status> {
        &self.status
    }

    /// Exact size of the archive in bytes.
    pub fn size(&self) -> u64 {
        self.layout.size()
    }

    /// Bytes of memory that it takes, whoever reads.
    pub fn heap_bytes(&self) -> usize {
        self.layout.heap_bytes() + self.served.len() * size_of::<AtomicU64>()
    }

    /// The text of codchi-owners.
    pub fn owners(&self) -> &Arc<[u8]> {
        &self.owners
    }

    /// Number of members.
    pub fn members(&self) -> usize {
        self.layout.len()
    }

    /// mtime of export.tar: the newest ctime of what it is made of.
    pub fn mtime(&self) -> Time {
        self.mtime
    }

    /// ctime of export.tar: another one for every generation, also where the newest ctime of what it is made of is the
    /// same as before, since the clock was set back. A backup that trusts times would else keep the old bytes.
    pub fn ctime(&self) -> Time {
        // Below 10^9, which fits.
        Time { sec: self.mtime.sec, nsec: (self.id() % 1_000_000_000) as u32 }
    }

    /// A later scan found the same layout. What is left out may have changed all the same.
    pub(super) fn confirm(&self, same: Self, took: Duration) {
        *self.status.scanned.lock() = (SystemTime::now(), took);
        *self.left_out.lock() = same.left_out.into_inner();
    }

    /// What is on the disk and not in the export.
    pub fn left_out(&self) -> Arc<Note> {
        Arc::clone(&self.left_out.lock())
    }

    /// A member could not be served as promised: every close answers EIO, the next lookup makes another generation.
    ///
    /// True from the start for one whose scan could not read everything: no copy of it may pass for whole.
    pub fn torn(&self) -> bool {
        self.incomplete || self.spoiled()
    }

    /// Torn by a change under a reader: another scan may give a better one.
    pub(super) fn spoiled(&self) -> bool {
        self.status.torn()
    }

    /// A part of the machine could not be read by the scan; [`Self::left_out`] names it.
    pub fn incomplete(&self) -> bool {
        self.incomplete
    }

    /// Offset of the last page of the archive: its cached copy must be dropped when the generation becomes torn.
    pub fn last_page(&self) -> u64 {
        self.layout.last_page()
    }

    /// Fills `buf` from `offset` as far as the archive reaches; returns the bytes filled, short only at the end.
    /// EIO for the last page of a torn generation: some readers do not look at what close(2) answers.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        let n = self.read_unchecked(offset, buf)?;
        if self.torn() && self.has_last_page(offset, n) {
            return Err(Errno::IO);
        }
        Ok(n)
    }

    /// Whether some of `len` bytes from `offset` are in the last page of the archive.
    pub fn has_last_page(&self, offset: u64, len: usize) -> bool {
        let end = offset.saturating_add(len as u64).min(self.size());
        offset < end && end > self.last_page()
    }

    /// As [`Self::read_at`], the last page of a torn generation too: for a caller that asks [`Self::torn`] at the end.
    pub fn read_unchecked(&self, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        tar::read_at(&self.layout, self, offset, buf)
    }

    fn served(&self, member: MemberId) -> Option<(&AtomicU64, u64)> {
        Some((self.served.get(member.0 as usize / 64)?, 1 << (member.0 % 64)))
    }

    fn promised(&self, member: MemberId) -> Stamp {
        let tag = self.layout.tag(member).copied();
        let tag = tag.unwrap_or(Tag { ino: 0, ctime_sec: 0, ctime_nsec: 0, layer: 0 });
        Stamp {
            ino: tag.ino,
            size: self.layout.size_of(member),
            ctime: Time { sec: tag.ctime_sec, nsec: tag.ctime_nsec },
        }
    }

    /// Remembers what happened to a member; the first thing that tears it stays.
    fn note(&self, member: MemberId, change: Change, stamp: Option<Stamp>) {
        let mut changes = self.changes.lock();
        let entry = changes.entry(member).or_insert((change, stamp));
        if change.tears() && !entry.0.tears() {
            *entry = (change, stamp);
        }
        let change = entry.0;
        drop(changes);
        let torn = change.tears() || self.options.strict;
        let mut path = Vec::new();
        self.layout.path(member, &mut path);
        path.insert(0, b'/');
        let line = ChangeLine { path: printable(&path), reason: change, torn };
        // Before the flag: whoever sees it looks for the reason.
        if self.status.changes.set(member.0, line) {
            tracing::warn!(path = %printable(&path), ?change, torn, "not served as it was scanned");
        }
        self.changed.store(true, Ordering::SeqCst);
        if torn {
            self.status.torn.store(true, Ordering::SeqCst);
        }
    }

    /// Opens the directory that `member` is in.
    fn parent_dir(&self, member: MemberId) -> Result<Dir, Errno> {
        let mut missing = Vec::new();
        let mut at = self.layout.parent(member);
        let mut dir = loop {
            let Some(parent) = at else { break self.tree.root()?.0 };
            if let Some(dir) = self.dirs.lock().get(&parent) {
                break dir.clone();
            }
            missing.push(parent);
            at = self.layout.parent(parent);
        };
        for member in missing.into_iter().rev() {
            dir = self.tree.open_dir(&dir, self.layout.name(member))?.0;
            self.dirs.lock().put(member, dir.clone());
        }
        Ok(dir)
    }

    fn open(&self, member: MemberId) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(file) = self.files.lock().get(&member) {
            return Ok(Arc::clone(file));
        }
        let mut path = Vec::new();
        self.layout.path(member, &mut path);
        path.insert(0, b'/');
        let layer = self.layout.tag(member).ok_or(Errno::IO)?.layer;
        if let Some(file) = self.tree.open_path(layer, &path) {
            return file.map(Arc::new);
        }
        let dir = self.parent_dir(member)?;
        match self.tree.open_file(&dir, self.layout.name(member))? {
            (File::Disk(fd), _) => Ok(Arc::new(fd)),
            (File::Generated(_), _) => Err(Errno::NOENT),
        }
    }

    /// Reads, and looks at the file's stamp afterwards: if that is what was expected, the bytes are of that state.
    fn read_stamped(file: &OwnedFd, offset: u64, buf: &mut [u8]) -> Result<(usize, Stamp), Errno> {
        let mut filled = 0;
        while let Some(rest) = buf.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pread(file, rest, offset.saturating_add(filled as u64)) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(Errno::INTR) => {}
                // A FIFO or a directory has none.
                Err(Errno::SPIPE | Errno::ISDIR) => break,
                Err(e) => return Err(e),
            }
        }
        Ok((filled, stamp(file)?))
    }

    /// Runs of at least `least` bytes of files on the disk, in archive order.
    pub(super) fn runs(&self, least: u64) -> impl Iterator<Item = Run> {
        let on_disk = |run: &Run| self.layout.tag(run.member).is_some_and(|t| t.layer != GENERATED);
        self.layout.runs(least).filter(on_disk)
    }

    /// Has `copy` copy from the member's file, if it is as the scan saw it, and looks at it again afterwards. `None` if it
    /// is not: it has to be read then.
    pub(super) fn with_file<T>(
        &self,
        member: MemberId,
        copy: impl FnOnce(&OwnedFd) -> T,
    ) -> Option<T> {
        let promised = self.promised(member);
        let file = self.open(member).ok()?;
        if stamp(&file) != Ok(promised) || self.changed.load(Ordering::SeqCst) && self.known(member)
        {
            return None;
        }
        self.serve_promised(member);
        let copied = copy(&file);
        // Pages are copied later than they are looked up: only what is the same after all was one state throughout.
        if stamp(&file) != Ok(promised) {
            self.note(member, Change::Rewritten, None);
        }
        Some(copied)
    }

    /// What stands in the place of a member that cannot be read.
    fn refuse(&self, member: MemberId, why: Errno, buf: &mut [u8]) {
        buf.fill(0);
        let gone =
            matches!(why, Errno::NOENT | Errno::LOOP | Errno::ISDIR | Errno::NXIO | Errno::NOTDIR);
        let change = if gone { Change::Vanished } else { Change::Unreadable };
        tracing::debug!(%why, ?change, "cannot read a member");
        self.note(member, change, None);
    }

    fn read_disk(&self, member: MemberId, offset: u64, buf: &mut [u8]) {
        let promised = self.promised(member);
        let file = match self.open(member) {
            Ok(file) => file,
            Err(why) => return self.refuse(member, why, buf),
        };
        let whole = offset == 0 && buf.len() as u64 == promised.size;
        let mut before = None;
        let mut settled = false;
        for _ in 0..TRIES {
            let (filled, stamp) = match Self::read_stamped(&file, offset, buf) {
                Ok(read) => read,
                Err(why) => return self.refuse(member, why, buf),
            };
            let short = filled < buf.len();
            if let Some(rest) = buf.get_mut(filled..) {
                rest.fill(0);
            }
            if stamp == promised && !short {
                self.serve_promised(member);
                settled = true;
                break;
            }
            // Two looks around one read that agree: the bytes are of that state.
            if before == Some(stamp) {
                self.serve_other(member, &file, promised, stamp, short);
                settled = true;
                break;
            }
            before = Some(stamp);
        }
        // Neither state held still for one read.
        if !settled {
            self.note(member, Change::Rewritten, None);
        }
        if !whole {
            self.files.lock().put(member, file);
        }
    }

    /// Whether something happened to a member.
    fn known(&self, member: MemberId) -> bool {
        self.changes.lock().contains_key(&member)
    }

    /// Bytes of the state that the scan saw are about to be served.
    fn serve_promised(&self, member: MemberId) {
        if let Some((word, bit)) = self.served(member) {
            word.fetch_or(bit, Ordering::SeqCst);
        }
        // In this order: a reader that records another state looks at the bit after it has recorded.
        if self.changed.load(Ordering::SeqCst) && self.known(member) {
            self.note(member, Change::Rewritten, None);
        }
    }

    /// Bytes of another state than the scan saw are about to be served.
    fn serve_other(
        &self,
        member: MemberId,
        file: &OwnedFd,
        promised: Stamp,
        stamp: Stamp,
        short: bool,
    ) {
        if short {
            return self.note(member, Change::Shrank, None);
        }
        let first = self.changes.lock().get(&member).map(|(_, first)| *first);
        match first {
            Some(Some(first)) if first != stamp => self.note(member, Change::Rewritten, None),
            Some(_) => {}
            None => {
                let change = match stamp.size.cmp(&promised.size) {
                    std::cmp::Ordering::Greater => Change::Grew,
                    std::cmp::Ordering::Equal => Change::Changed,
                    std::cmp::Ordering::Less => Change::Shrank,
                };
                // What was written into a hole since the scan has no place in the archive.
                let filled = self.layout.extents(member).is_some_and(|extents| {
                    let run = |e: &tar::Extent| DataRun { offset: e.offset, len: e.len };
                    let runs: Vec<_> = extents.iter().map(run).collect();
                    !is_hole_outside(file, &runs, promised.size).unwrap_or(false)
                });
                if filled {
                    return self.note(member, Change::Rewritten, Some(stamp));
                }
                self.note(member, change, Some(stamp));
                let (word, bit) = match self.served(member) {
                    Some(served) => served,
                    None => return,
                };
                if word.load(Ordering::SeqCst) & bit != 0 {
                    self.note(member, Change::Rewritten, None);
                }
            }
        }
    }
}

impl tar::Source<Tag> for Generation {
    type Error = Errno;

    fn read_body(
        &self,
        layout: &Layout<Tag>,
        member: MemberId,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), Errno> {
        let tag = layout.tag(member).ok_or(Errno::IO)?;
        if tag.layer == GENERATED {
            let file = usize::try_from(tag.ino).ok().and_then(|i| self.tree.generated().get(i));
            let from = usize::try_from(offset).ok();
            let content = file.map(|file| file.content.as_ref().unwrap_or(&self.owners));
            let bytes = content.zip(from).and_then(|(c, at)| c.get(at..at.checked_add(buf.len())?));
            buf.copy_from_slice(bytes.ok_or(Errno::IO)?);
            return Ok(());
        }
        self.read_disk(member, offset, buf);
        match self.options.strict && self.known(member) {
            true => Err(Errno::IO),
            false => Ok(()),
        }
    }
}
