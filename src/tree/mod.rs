//! One machine's exported tree: rootfs − exclusions + home graft + generated files.

mod attr;
pub use attr::{Attr, Kind, ObjectId, Time};

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::sync::Arc;

/// An open directory of the exported tree. Cheap to clone; holds at most one descriptor.
#[derive(Clone, Debug)]
pub struct Dir(Arc<()>);

/// What opening a regular file gives.
#[derive(Debug)]
pub enum File {
    /// A regular file of the machine, opened read-only.
    Disk(OwnedFd),
    /// A generated file: all of its bytes.
    Generated(Arc<[u8]>),
}

/// One entry of a directory.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The name, raw bytes, never `.` or `..`.
    pub name: Box<[u8]>,
    /// Attributes with the machine's ids.
    pub attr: Attr,
}

/// Figures of the machine's storage for statfs(2).
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct StatFs {
    pub blocks: u64,
    pub bfree: u64,
    pub bavail: u64,
    pub files: u64,
    pub ffree: u64,
    pub bsize: u32,
    pub namelen: u32,
    pub frsize: u32,
}

/// One machine's exported tree, frozen in its rules, live in its contents.
#[derive(Debug)]
pub struct Tree {}

impl Tree {
    /// The root directory. Its attributes are always 0755 0:0.
    pub fn root(&self) -> Result<(Dir, Attr), Errno> {
        todo!()
    }
    /// Finds `name` in `dir` (one statx; nothing is opened).
    pub fn lookup(&self, _dir: &Dir, _name: &[u8]) -> Result<Attr, Errno> {
        todo!()
    }
    /// All entries, sorted by bytes.
    pub fn read_dir(&self, _dir: &Dir) -> Result<Vec<Entry>, Errno> {
        todo!()
    }
    /// Opens the subdirectory `name`.
    pub fn open_dir(&self, _dir: &Dir, _name: &[u8]) -> Result<(Dir, Attr), Errno> {
        todo!()
    }
    /// Opens the regular file `name`; attributes are of the opened file. Anything else: ENXIO for special files, ELOOP for links.
    pub fn open_file(&self, _dir: &Dir, _name: &[u8]) -> Result<(File, Attr), Errno> {
        todo!()
    }
    /// Attributes of an opened file of this tree's disk layers (fstat; `like` is the attr it was opened with).
    pub fn attr_of(&self, _file: &OwnedFd, _like: &Attr) -> Result<Attr, Errno> {
        todo!()
    }
    /// The target of the symbolic link `name`.
    pub fn read_link(&self, _dir: &Dir, _name: &[u8]) -> Result<Vec<u8>, Errno> {
        todo!()
    }
    /// Names of extended attributes, NUL-terminated each (empty until the fidelity issue).
    pub fn list_xattr(&self, _dir: &Dir, _name: &[u8]) -> Result<Vec<u8>, Errno> {
        Ok(Vec::new())
    }
    /// Value of one extended attribute.
    pub fn xattr(&self, _dir: &Dir, _name: &[u8], _xattr: &[u8]) -> Result<Vec<u8>, Errno> {
        Err(Errno::NODATA)
    }
    /// Figures of the machine's storage.
    pub fn statfs(&self) -> Result<StatFs, Errno> {
        todo!()
    }
}
