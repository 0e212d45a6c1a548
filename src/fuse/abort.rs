//! Ending a connection to the kernel, whoever still waits for it.
//!
//! Closing what the kernel is answered on would do, but a server that is killed may be unable to: a thread of it that tells the
//! kernel to forget a page waits for whoever reads that page, and that one for the server. The kernel ends a connection for who
//! writes to its file in fusectl (Documentation/filesystems/fuse.rst), and lets go of all of them.

use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// Where fusectl usually is.
const FUSECTL: &str = "/sys/fs/fuse/connections";

/// The file that ends one connection, and never another one's that gets its number.
#[derive(Debug)]
pub(super) struct Abort(Option<OwnedFd>);

impl Abort {
    /// That of the mount with this device, which is there.
    pub(super) fn of((_, minor): (u32, u32)) -> Self {
        let name = format!("{minor}/abort");
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let there = |_| rustix::fs::openat(CWD, format!("{FUSECTL}/{name}"), flags, Mode::empty());
        let own = fusectl().and_then(|top| rustix::fs::openat(top, &*name, flags, Mode::empty()));
        let opened = own.or_else(there);
        Self(opened.inspect_err(|why| tracing::debug!(%why, "cannot abort the connection")).ok())
    }

    /// That of no mount.
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// Ends it: every call that waits for an answer fails, and so does every later one.
    pub(super) fn end(&self) {
        // One that has ended by itself is no fault.
        let _ = self.0.as_ref().map(|file| rustix::io::write(file, b"1"));
    }
}

/// fusectl, mounted nowhere: not every host has it at its place. Only root may.
fn fusectl() -> Result<OwnedFd, Errno> {
    let context = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}
