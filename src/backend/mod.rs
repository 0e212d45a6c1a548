//! Where a machine's files are, and how its ids are shifted. Knows nothing of Codchi's configuration of it.

#[cfg_attr(not(test), expect(dead_code, reason = "the next change asks the daemon"))]
mod api;
mod backup;
mod dir;

pub use api::ApiError;
pub use backup::{BackupError, IdMaps};
pub use dir::Directories;

use std::path::PathBuf;

/// A machine's directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The container's root directory on the host.
    pub rootfs: PathBuf,
    /// How ids are shifted on the disk.
    pub maps: IdMaps,
}

/// Why a machine's files cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// There is no instance of that name.
    #[error("not installed: there is no {0}; `codchi rebuild NAME` makes it")]
    NotInstalled(PathBuf),
    /// Something on the way cannot be read.
    #[error("cannot look at {path}: {source}; codchifs must run as root to read a machine")]
    Look {
        /// What was looked at.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The id maps are unreadable: no file's owner would be known.
    #[error("cannot use {path}: {source}")]
    Backup {
        /// The instance's backup.yaml.
        path: PathBuf,
        /// What is wrong with it.
        source: BackupError,
    },
}
