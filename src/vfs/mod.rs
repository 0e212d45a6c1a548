//! What is seen under the mount point, without a word of the kernel's protocol.
//!
//! ```text
//! /                          the machines, found live
//! └── NAME/
//!     ├── export.tar         one inode per generation
//!     ├── report.json, MIGRATE.md     one inode per text
//!     ├── rootfs/            the exported tree
//!     ├── manifest.mtree, .transfers     found by name, not listed
//!     └── .generations/ID/export.tar     found by name, not listed
//! ```
//!
//! Everything here answers with an [`Errno`]. No operation changes anything, so there are none
//! that could.
//!
//! The rule that everything else serves: **never another file's bytes under a number.** A number
//! is looked up by the place where its object was found last; if another object is there now, the
//! answer is ESTALE, on which the kernel looks the path up again.

mod dirs;
mod file;
mod handle;
mod inode;
mod listing;
mod namespace;
mod number;
mod page;
mod short;
mod text;
mod transfers;

use crate::export::Exports;
use crate::machine::Machines;
use crate::tree::{Kind, ObjectId, StatFs, Time, Tree};
use dirs::{Dirs, moved};
pub use file::{Barrier, Seek, SlowRead};
use handle::Handles;
use inode::{Found, Node, Place, Table};
pub use namespace::Slow;
use number::{Key, Object};
use parking_lot::Mutex;
use rustix::io::Errno;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long the kernel may believe a name or attributes of something that can change at any time.
const BRIEF: Duration = Duration::from_secs(1);
/// How long the kernel may believe the attributes of a generation, which never change.
const LASTING: Duration = Duration::from_secs(24 * 60 * 60);
/// What readers of a file are told to ask for at once.
pub const BLOCK: u32 = 4096;
/// The same of `export.tar`, where each read is a request.
const EXPORT_BLOCK: u32 = 1 << 20;
/// The longest name, as on every file system a machine can be on.
const NAME_MAX: usize = 255;

/// Who the mount belongs to and who else gets in.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// The mounting user, who owns what is ours.
    pub uid: u32,
    /// The mounting user's primary group.
    pub gid: u32,
    /// Everybody gets in, by the modes: `NAME/` must then be passable (0755), else the option
    /// would admit nobody.
    pub others: bool,
    /// Somebody is kept out by looking at each call's user. The kernel then may not answer a path
    /// from its own memory, so names are valid for no time at all.
    pub checked: bool,
    /// 32-bit programs without large-file support get in: inode numbers are below 2^32.
    pub inode32: bool,
}

/// Attributes as stat(2) shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Attr {
    pub ino: u64,
    pub kind: Kind,
    pub perm: u16,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub blocks: u64,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    pub rdev: (u32, u32),
    /// How many bytes a reader does best to ask for at once.
    pub blksize: u32,
}

/// A found name. The kernel holds one lookup of `attr.ino` for each one that it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The attributes.
    pub attr: Attr,
    /// How long the attributes may be believed.
    pub attr_ttl: Duration,
    /// How long the name may be believed to lead here.
    pub entry_ttl: Duration,
}

/// One entry of a listing.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// Its number.
    pub ino: u64,
    /// Where to go on after it.
    pub offset: u64,
    /// Its type.
    pub kind: Kind,
    /// Its name.
    pub name: &'a [u8],
    /// With attributes, when they were asked for and the name counts as looked up.
    pub entry: Option<Entry>,
}

/// What the kernel may do with pages of a file it has just opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// The pages it has are of this very content.
    Keep,
    /// Cache from here on, but forget what is there: it may be older.
    Drop,
}
// No file is read past the page cache (FOPEN_DIRECT_IO): for such files the kernel does not move the file's position after
// an asynchronous read (fs/fuse/file.c, fuse_direct_IO), and io_uring at the position gets the same bytes again and again.

/// An opened file.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// The handle.
    pub handle: u64,
    /// What to do with cached pages.
    pub cache: Cache,
    /// Whether close(2) may fail: [`Vfs::flush`] is then to be asked.
    pub close_tells: bool,
    /// Bytes of a file of the machine, of which nothing here is ever made up; `None` for all others.
    pub plain: Option<u64>,
    /// The kernel was told another size than the file has now: [`Vfs::notice_size`] is to be called.
    pub resized: bool,
    /// The answer must come behind the notices so far, and then [`Vfs::is_answered`] is to be called.
    pub behind: bool,
}

impl Opened {
    /// A file whose number stands for this very content.
    fn unchanging(handle: u64) -> Self {
        let cache = Cache::Keep;
        Self { handle, cache, close_tells: false, plain: None, resized: false, behind: false }
    }
}

/// Something that the kernel believes and that is not so any more.
#[derive(Clone, PartialEq, Eq)]
pub enum Notice {
    /// Pages of a file from an offset on: the last one of a torn generation, which answers EIO from now on, or all of
    /// a file that was rewritten.
    Pages {
        /// Number of the file.
        ino: u64,
        /// Bytes from its beginning.
        offset: u64,
    },
    /// What is at the end of a file that has grown.
    Bytes {
        /// Number of the file.
        ino: u64,
        /// Bytes from its beginning.
        offset: u64,
        /// From there to the end.
        bytes: Box<[u8]>,
    },
    /// A name that leads to another generation from now on.
    Name {
        /// Number of the file it led to.
        ino: u64,
        /// Number of the directory that has it.
        parent: u64,
        /// The name.
        name: &'static str,
    },
}

impl Notice {
    /// The file whose notices this one keeps its place among.
    pub fn ino(&self) -> u64 {
        match self {
            Self::Pages { ino, .. } | Self::Bytes { ino, .. } | Self::Name { ino, .. } => *ino,
        }
    }
}

// The bytes are a machine's: lengths only.
impl std::fmt::Debug for Notice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pages { ino, offset } => write!(f, "Pages({ino}, {offset})"),
            Self::Bytes { ino, offset, bytes } => {
                write!(f, "Bytes({ino}, {offset}, {})", bytes.len())
            }
            Self::Name { parent, name, .. } => write!(f, "Name({parent}, {name})"),
        }
    }
}

/// Takes a notice about a machine to the kernel.
type Notify = dyn Fn(&Arc<str>, Notice) + Send + Sync;

/// The mounted namespace.
#[allow(missing_debug_implementations)] // A closure has none.
pub struct Vfs {
    machines: Arc<Machines>,
    access: Access,
    table: Table,
    handles: Handles,
    dirs: Dirs,
    /// Of each report and guide, the hash of the last one and since when it is so.
    pages: Mutex<page::Since>,
    notify: Box<Notify>,
}

impl Vfs {
    /// A namespace of all machines. `notify` takes notices about a machine to the kernel, those of one file in their order, on
    /// another thread than those that serve reads: dropping a page waits for reads of it.
    pub fn new(
        machines: Arc<Machines>,
        access: Access,
        notify: impl Fn(&Arc<str>, Notice) + Send + Sync + 'static,
    ) -> Self {
        Self {
            machines,
            access,
            table: Table::new(access.inode32),
            handles: Handles::default(),
            dirs: Dirs::new(),
            pages: Mutex::default(),
            notify: Box::new(notify),
        }
    }

    /// Lets go of texts that nobody has needed for a while. To be called now and then; of the machines, the exports are to be
    /// tidied each by itself, as that may wait for a disk.
    pub fn tidy(&self) -> Vec<(Arc<str>, Arc<Exports>)> {
        self.table.tidy();
        self.machines.exports()
    }

    /// The kernel gives back `count` lookups of a number.
    pub fn forget(&self, ino: u64, count: u64) {
        self.table.forget(ino, count);
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, ino: u64) -> Result<Vec<u8>, Errno> {
        self.refound(ino, Errno::INVAL, |tree, dir, name| tree.read_link(dir, name))
    }

    /// The value of an extended attribute.
    pub fn xattr(&self, ino: u64, xattr: &[u8]) -> Result<Vec<u8>, Errno> {
        self.refound(ino, Errno::NODATA, |tree, dir, name| tree.xattr(dir, name, xattr))
    }

    /// The names of the extended attributes, NUL-terminated each.
    pub fn list_xattr(&self, ino: u64) -> Result<Vec<u8>, Errno> {
        match self.refound(ino, Errno::NODATA, |tree, dir, name| tree.list_xattr(dir, name)) {
            Err(Errno::NODATA) => Ok(Vec::new()),
            other => other,
        }
    }

    /// access(2), for the mounting user, who reads everything.
    pub fn access(&self, ino: u64, write: bool, execute: bool) -> Result<(), Errno> {
        if !write && !execute {
            return self.table.get(ino).map(drop);
        }
        let attr = self.getattr(ino, None)?.attr;
        // As on a native read-only mount: writing to a device or a FIFO does not write to it.
        if write && matches!(attr.kind, Kind::File | Kind::Directory | Kind::Symlink) {
            return Err(Errno::ROFS);
        }
        if execute && attr.kind != Kind::Directory && attr.perm & 0o111 == 0 {
            return Err(Errno::ACCESS);
        }
        Ok(())
    }

    /// The machine whose file a number is; none of the mount's root, and of what is not known.
    pub fn machine_of(&self, ino: u64) -> Arc<str> {
        self.table.get(ino).map_or_else(|_| Arc::from(""), |node| Arc::clone(&node.key.machine))
    }

    /// The machine that a lookup is about: the one of this name, in the mount's root.
    pub fn machine_at(&self, parent: u64, name: &[u8]) -> Arc<str> {
        match std::str::from_utf8(name) {
            Ok(name) if parent == number::ROOT => Arc::from(name),
            _ => self.machine_of(parent),
        }
    }

    /// Figures of the machine's storage; of nothing for the mount's root.
    pub fn statfs(&self, ino: u64) -> Result<StatFs, Errno> {
        let node = self.table.get(ino)?;
        match self.tree(&node.key.machine) {
            Ok(tree) => tree.statfs(),
            Err(_) => Ok(StatFs { bsize: 4096, frsize: 4096, namelen: 255, ..StatFs::default() }),
        }
    }

    /// The tree of a machine; ESTALE if it is gone or broken.
    fn tree(&self, machine: &Arc<str>) -> Result<Arc<Tree>, Errno> {
        let machine = self.machines.get(machine.as_bytes()).ok_or(Errno::STALE)?;
        machine.tree.as_ref().map(Arc::clone).map_err(|_| Errno::STALE)
    }

    /// The tree of an entry, the directory it was found in, and its place there.
    fn place_of(&self, node: &Node) -> Result<(Arc<Tree>, crate::tree::Dir, Place), Errno> {
        let place = node.place()?;
        let tree = self.tree(&node.key.machine)?;
        let dir = self.dirs.open(&tree, &place.parent, &self.table.moves)?;
        Ok((tree, dir, place))
    }

    /// Asks the tree something about an entry that can be named by its place only, and then makes
    /// sure that it was still this very object that answered.
    fn refound<T>(
        &self,
        ino: u64,
        not_in_tree: Errno,
        ask: impl FnOnce(&Tree, &crate::tree::Dir, &[u8]) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let node = self.table.get(ino)?;
        // What is made is no link and has no attributes.
        let Object::Tree(id @ ObjectId::Disk { .. }) = node.key.object else {
            return Err(not_in_tree);
        };
        let (tree, dir, place) = self.place_of(&node)?;
        let answer = ask(&tree, &dir, &place.name);
        let now = tree.lookup(&dir, &place.name).map_err(moved)?;
        if now.id == id { answer } else { Err(Errno::STALE) }
    }

    /// Counts a lookup of an entry of a tree.
    fn insert_entry(
        &self,
        parent: &Arc<Node>,
        name: &[u8],
        attr: &crate::tree::Attr,
    ) -> Result<Entry, Errno> {
        let key = Key::new(&parent.key.machine, Object::Tree(attr.id));
        let place = Place { parent: Arc::clone(parent), name: name.into(), kind: attr.kind };
        let node = self.table.insert(key, Found::Entry(place))?;
        Ok(self.entry(self.tell(&node, attr), BRIEF))
    }

    /// The attributes of a file of a machine, for the kernel.
    fn tell(&self, node: &Node, attr: &crate::tree::Attr) -> Attr {
        self.notice_rewrite(node, attr);
        node.told_size.store(attr.size, Ordering::Relaxed);
        Attr::of(node.ino, attr)
    }

    /// Has pages dropped that are of another content than a file has now. The kernel compares size and mtime by itself;
    /// `cp -p` and databases keep both.
    fn notice_rewrite(&self, node: &Node, attr: &crate::tree::Attr) {
        let mut seen = node.seen.lock();
        if seen.is_some_and(|seen| seen != attr.ctime) {
            *seen = Some(attr.ctime);
            drop(seen);
            self.notice(node, Notice::Pages { ino: node.ino, offset: 0 });
        }
    }

    /// An entry whose name is believed for a moment.
    fn entry(&self, attr: Attr, attr_ttl: Duration) -> Entry {
        let entry_ttl = if self.access.checked { Duration::ZERO } else { BRIEF };
        Entry { attr, attr_ttl, entry_ttl }
    }
}

impl Attr {
    fn of(ino: u64, attr: &crate::tree::Attr) -> Self {
        Self {
            ino,
            kind: attr.kind,
            perm: attr.perm,
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            size: attr.size,
            blocks: attr.blocks,
            atime: attr.atime,
            mtime: attr.mtime,
            ctime: attr.ctime,
            rdev: attr.rdev,
            blksize: BLOCK,
        }
    }
}
