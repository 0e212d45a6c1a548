//! A directory that holds machines' directories, through a mount of our own.

use super::layer::{self, CONFINED, device};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use std::path::PathBuf;

/// A directory below which directories of machines are opened, read-only and quietly.
#[derive(Debug)]
pub struct Anchor {
    directory: OwnedFd,
    quiet: bool,
    path: PathBuf,
    mount: u64,
}

impl Anchor {
    /// Makes one of an opened directory. A mount of our own is not to be had by root of a user namespace, nor of what is
    /// mounted in another mount namespace; then access times move.
    pub fn new(directory: OwnedFd) -> Result<Self, Errno> {
        let (path, mount) = (layer::path_of(&directory)?, layer::stat_fd(&directory)?.stx_mnt_id);
        Ok(match layer::quiet_mount(&directory) {
            Ok(quiet) => Self { directory: quiet, quiet: true, path, mount },
            Err(why) => {
                tracing::debug!(path = %path.display(), %why, "no mount of our own");
                Self { directory, quiet: false, path, mount }
            }
        })
    }

    /// The directory, where it can be on a mount that nothing else shows.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Whether nothing that is opened through it moves an access time.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Opens `directory` anew, through this one. `None` where it is not below it, or on another mount.
    pub fn open(&self, directory: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
        let wanted = layer::stat_fd(directory)?;
        let path = layer::path_of(directory)?;
        let Ok(below) = path.strip_prefix(&self.path) else { return Ok(None) };
        if wanted.stx_mnt_id != self.mount {
            return Ok(None);
        }
        let below = if below.as_os_str().is_empty() { ".".as_ref() } else { below };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = fs::openat2(&self.directory, below, flags, Mode::empty(), CONFINED)?;
        // A path is what the directory was called a moment ago.
        let found = layer::stat_fd(&opened)?;
        match (device(&found), found.stx_ino) == (device(&wanted), wanted.stx_ino) {
            true => Ok(Some(opened)),
            false => Err(Errno::STALE),
        }
    }
}
