//! One frozen layout of one machine, and the bytes of it.

mod body;
mod entry;
mod manifest;

pub use entry::Entry;
pub use manifest::{Digest, Manifest, hash_zeros, sum_line};

use super::Options;
use super::members::Members;
use super::report::{Change, Changes, Note};
use super::scan::Scan;
use super::scan_file::ScanFile;
use super::tag::Tag;
use crate::tar::{self, Layout, MemberId};
use crate::tree::{Dir, Stamp, Time, Tree};
use lru::LruCache;
use parking_lot::Mutex;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, SystemTime};

/// Directories that a generation keeps open for its readers.
const OPEN_DIRS: NonZeroUsize = NonZeroUsize::new(128).unwrap();
/// Files kept open because one read did not take all of them.
const OPEN_FILES: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// One frozen layout of one machine. Keeps what it needs alive, whatever happens to the machine's entry.
pub struct Generation {
    tree: Arc<Tree>,
    pub(super) layout: Layout<Tag>,
    options: Options,
    status: Arc<Status>,
    mtime: Time,
    /// The text of codchi-owners.
    pub(super) owners: Arc<[u8]>,
    /// The list of codchi-members.
    pub(super) member_list: Members,
    left_out: Mutex<Arc<Note>>,
    incomplete: bool,
    extracted: OnceLock<u64>,
    /// Made when it is asked for; whoever reads it keeps it.
    manifest: Mutex<Weak<Manifest>>,
    manifest_size: OnceLock<u64>,
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
            let content = match (&file.content, ScanFile::of(file.id())) {
                (Some(content), _) => content,
                (None, Some(ScanFile::Owners)) => &scan.owners,
                // It is made of the layout, which is in the digest.
                (None, _) => continue,
            };
            hash.update(file.path);
            hash.update(&(content.len() as u64).to_le_bytes());
            hash.update(content);
        }
        // Another mtime is another inode: what a lookup shows must not depend on which scan came first.
        hash.update(&mtime.sec.to_le_bytes());
        hash.update(&mtime.nsec.to_le_bytes());
        hash.update(&[u8::from(scan.incomplete)]);
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
            member_list: scan.members,
            left_out: Mutex::new(Arc::new(scan.left_out)),
            incomplete: scan.incomplete,
            extracted: OnceLock::new(),
            manifest: Mutex::default(),
            manifest_size: OnceLock::new(),
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
        self.layout.heap_bytes()
            + self.member_list.heap_bytes()
            + self.served.len() * size_of::<AtomicU64>()
    }

    /// Whether large files lie where their blocks can be shared.
    pub(super) fn is_aligned(&self) -> bool {
        self.options.align
    }

    /// Number of members.
    pub fn members(&self) -> usize {
        self.layout.len()
    }

    /// The list of its members.
    pub fn manifest(self: &Arc<Self>) -> Arc<Manifest> {
        // Held meanwhile: whoever asks as well gets the same one.
        let mut known = self.manifest.lock();
        if let Some(manifest) = known.upgrade() {
            return manifest;
        }
        let manifest = Arc::new(Manifest::new(Arc::clone(self)));
        *known = Arc::downgrade(&manifest);
        manifest
    }

    /// The size of the list; the first to ask waits while every member is looked at.
    pub fn manifest_size(self: &Arc<Self>) -> u64 {
        *self.manifest_size.get_or_init(|| self.manifest().size())
    }

    /// Whether [`Self::manifest_size`] is known.
    pub fn manifest_is_sized(&self) -> bool {
        self.manifest_size.get().is_some()
    }

    /// About how many bytes a file system takes for what is in it, in blocks of 4 KiB.
    pub fn extracted(&self) -> u64 {
        *self.extracted.get_or_init(|| {
            let blocks = |member| match self.layout.kind(member) {
                tar::Kind::Directory => 1,
                tar::Kind::File => self.layout.data_len(member).div_ceil(4096),
                _ => 0,
            };
            self.layout.iter().map(blocks).sum::<u64>().saturating_mul(4096)
        })
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

    /// Closes what was opened for readers: nobody reads any more.
    pub(super) fn let_go(&self) {
        let gone = (
            std::mem::replace(&mut *self.dirs.lock(), LruCache::new(OPEN_DIRS)),
            std::mem::replace(&mut *self.files.lock(), LruCache::new(OPEN_FILES)),
        );
        drop(gone);
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
}
