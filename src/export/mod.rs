//! A tree as a tar: generations of a frozen layout, and reading them.
//!
//! A *layout* is the list of members with their offsets, made from metadata alone; a *generation* is one layout of one
//! machine. Its sizes are promises: what changes underneath is padded or cut, told in the report, and where bytes of
//! two states would meet in one member the generation is *torn*: it can be read to its last page and no further.
//!
//! [`Exports`] decides which generation is served, [`history`](History) which older ones are kept.

mod assemble;
mod error;
mod exports;
mod generation;
mod history;
mod known;
mod members;
mod owners;
mod records;
mod report;
mod scan;
mod scan_file;
mod stream;
mod tag;
#[cfg(test)]
mod tests;

pub use crate::tar::{Record, pax_records};
pub use error::ScanError;
pub use exports::{Exports, HOLD};
pub use generation::{Digest, Entry, Generation, Manifest, Status, hash_zeros, sum_line};
pub use history::{History, Hold};
pub use records::{attribute, records};
pub use report::{Change, ChangeLine, Changes, LeftOutLine, Note};
pub use scan_file::{MEMBERS, OWNERS, ScanFile};
pub use stream::{Sink, StreamError, write_all};

/// Choices about an export that the user has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Write mtimes with nanoseconds.
    pub mtime_ns: bool,
    /// Make sparse members of files with large holes. busybox reads none.
    pub sparse: bool,
    /// End a read with EIO where anything is not as the scan saw it.
    pub strict: bool,
    /// Lay large files out so that a file system can share their blocks with the archive.
    pub align: bool,
}

/// Files of at least this many bytes are laid out to be shared: below, what is saved is less than the room it takes.
const ALIGN_FROM: u64 = 64 << 10;

impl Default for Options {
    fn default() -> Self {
        Self { mtime_ns: false, sparse: true, strict: false, align: false }
    }
}
