//! Which file system something is on, as fstatfs(2) names it (linux/magic.h).

use rustix::fd::AsFd;
use rustix::io::Errno;

pub(crate) const BCACHEFS: u32 = 0xca45_1a4e;
pub(crate) const BTRFS: u32 = 0x9123_683e;
/// Also ext2 and ext3.
pub(crate) const EXT4: u32 = 0xef53;
pub(crate) const OVERLAYFS: u32 = 0x794c_7630;
pub(crate) const TMPFS: u32 = 0x0102_1994;
pub(crate) const XFS: u32 = 0x5846_5342;

/// The file system that `fd` is on.
pub(crate) fn of(fd: impl AsFd) -> Result<u32, Errno> {
    // The type of the field differs by architecture, and sign-extended numbers by kernel.
    rustix::fs::fstatfs(fd).map(|fs| fs.f_type as u32)
}
