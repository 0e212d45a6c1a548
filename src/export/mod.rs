//! A tree as a tar: generations of a frozen layout, and reading them.

use crate::tree::Time;
use rustix::io::Errno;
use std::sync::Arc;

/// All generations of one machine's export.
#[derive(Debug)]
pub struct Exports {}

impl Exports {
    /// The generation to serve now; scans when there is none or it is too old. Blocks; call it off the session's threads.
    pub fn lookup(&self) -> Result<Arc<Generation>, Errno> {
        todo!()
    }
    /// The generation `lookup` would return at once, if any (counts as a lookup).
    pub fn fresh(&self) -> Option<Arc<Generation>> {
        todo!()
    }
    /// A live generation by its id (also an older one that is still held).
    pub fn by_id(&self, _id: u64) -> Option<Arc<Generation>> {
        todo!()
    }
}

/// One frozen layout of one machine. Keeps what it needs alive, whatever happens to the machine's entry.
#[derive(Debug)]
pub struct Generation {}

impl Generation {
    /// Stable id: the same tree gives the same id after any remount.
    pub fn id(&self) -> u64 {
        todo!()
    }
    /// Exact size of the archive in bytes.
    pub fn size(&self) -> u64 {
        todo!()
    }
    /// mtime of export.tar.
    pub fn mtime(&self) -> Time {
        todo!()
    }
    /// ctime of export.tar.
    pub fn ctime(&self) -> Time {
        todo!()
    }
    /// Fills `buf` from `offset` as far as the archive reaches; returns the bytes filled, short only at the end.
    /// EIO for the last page of a torn generation.
    pub fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> Result<usize, Errno> {
        todo!()
    }
    /// A member could not be served as promised: every close answers EIO, the next lookup makes another generation.
    pub fn torn(&self) -> bool {
        todo!()
    }
    /// Offset of the last page of the archive: its cached copy must be dropped when the generation becomes torn.
    pub fn last_page(&self) -> u64 {
        todo!()
    }
}
