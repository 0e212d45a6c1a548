//! What can go wrong with a scan.

use crate::tar::{self, LayoutError};
use rustix::io::Errno;

/// Why there is no layout.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The tree itself cannot be walked.
    #[error("cannot read the machine's root directory: {0}")]
    Root(Errno),
    /// More than an archive can hold.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Layouts that somebody reads fill the memory that they may have.
    #[error(
        "{open} older layouts of this machine are being read, which takes all the memory they may \
         have: let a copy end, or stop one, then try again"
    )]
    Held {
        /// How many.
        open: usize,
    },
    /// Extended attributes that would fill the memory.
    #[error(
        "the extended attributes of the machine exceed {} MiB; leave a part of it out with --exclude",
        tar::MAX_RECORDS >> 20
    )]
    Attributes,
    /// A bug of ours.
    #[error("the scan failed, which is a bug; the log has more")]
    Panicked,
    /// More directories than numbers for them.
    #[error("the machine has more than 2^32 directories")]
    TooMany,
}
