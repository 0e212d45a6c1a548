//! What can go wrong with mounting: what was attempted, why it failed, what to do.

use crate::quote;
use rustix::io::Errno;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Mounting, serving or unmounting failed. Whoever says it has named the mount point before.
#[derive(Debug, Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum MountError {
    /// codchifs does not run on this kernel.
    #[error("{why}")]
    Kernel { why: String },
    /// It is in the mount namespace of a service.
    #[error(
        "nobody but the service would see the mount, since the service has a mount namespace of its own; \
         take PrivateTmp=, ProtectSystem=, ProtectHome= and the like out of the unit"
    )]
    Unseen,
    /// The mount point does not exist.
    #[error("there is no such directory; create it with: mkdir -p {}", quote::path_word(.path))]
    Missing { path: PathBuf },
    /// The mount point is a file.
    #[error("it is not a directory; choose an empty directory")]
    NotADirectory,
    /// Mounting would hide something.
    #[error(
        "the directory is not empty, and a mount would hide what is in it; choose an empty directory"
    )]
    NotEmpty,
    /// A live mount of ours is there.
    #[error("codchifs is already mounted there; to mount anew, first run: codchifs unmount {}", quote::path_word(.path))]
    AlreadyMounted { path: PathBuf },
    /// The mount point cannot be looked at.
    #[error("cannot look at the mount point: {source}{}", look_remedy(.source))]
    Look { source: io::Error },
    /// A crashed instance's mount cannot be taken away.
    #[error("cannot detach the stale mount that a crashed codchifs left: {source}; as root run: umount -l {}", quote::path_word(.path))]
    Stale { path: PathBuf, source: Box<MountError> },
    /// No FUSE here.
    #[error("cannot open /dev/fuse: {source}; {}", fuse_remedy(*.source))]
    Device { source: Errno },
    /// The kernel refused one step of mounting.
    #[error("{step} failed: {source}{}", mount_remedy(*.source))]
    Mount { step: &'static str, source: Errno },
    /// fusermount3 or the first exchange with the kernel failed.
    #[error("{}; {}", .source.to_string().trim_end(), start_remedy(.source))]
    Start { source: io::Error },
    /// `allow_other` and `allow_root` exclude each other.
    #[error("allow_other already admits root; give allow_other or allow_root, not both")]
    BothAllowed,
    /// fusermount3 has no such option.
    #[error("only root mounts with nosymfollow: run as root, or leave it out")]
    OnlyRootNosymfollow,
    /// The session ended with an error.
    #[error("serving failed: {source}")]
    Session { source: io::Error },
    /// Signals cannot be handled.
    #[error("cannot set up signal handling: {source}")]
    Signals { source: io::Error },
    /// The mount table is unreadable.
    #[error("cannot read /proc/self/mountinfo: {source}; is /proc mounted?")]
    Table { source: io::Error },
    /// Nothing of ours is mounted there.
    #[error("no codchifs is mounted there; findmnt -t fuse.codchifs lists those that are")]
    NotMounted,
    /// Somebody uses the mount.
    #[error("it is in use; fuser -vm {} shows by whom, and codchifs unmount --lazy detaches it anyway", quote::path_word(.path))]
    Busy { path: PathBuf },
    /// The kernel refused to unmount.
    #[error("{source}")]
    Unmount { source: Errno },
    /// fusermount3 cannot be run or refused.
    #[error("fusermount3 cannot: {reason}; if root mounted it, unmount it as root")]
    Fusermount { reason: String },
}

impl MountError {
    /// Whether it stays so until somebody changes something.
    pub fn is_permanent(&self) -> bool {
        matches!(
            self,
            Self::Kernel { .. }
                | Self::Unseen
                | Self::Missing { .. }
                | Self::NotADirectory
                | Self::NotEmpty
                | Self::AlreadyMounted { .. }
                | Self::BothAllowed
                | Self::Mount { source: Errno::PERM | Errno::ACCESS | Errno::NOSYS, .. }
        )
    }
}

fn fuse_remedy(error: Errno) -> &'static str {
    match error {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => "load the module with: modprobe fuse",
        Errno::ACCESS | Errno::PERM => "give yourself access to the device, or run as root",
        _ => "check that the kernel has FUSE",
    }
}

fn look_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; choose a directory that you may read, or run as root",
        _ => "",
    }
}

fn start_remedy(error: &io::Error) -> &'static str {
    let text = error.to_string();
    if text.contains("user_allow_other") {
        "have root add the line user_allow_other to /etc/fuse.conf, or mount as root"
    } else if text.contains("no write access to mountpoint") {
        "choose a directory of your own, or mount as root"
    } else {
        "mounting without root needs fusermount3 (package fuse3) and a /dev/fuse that you can open"
    }
}

fn mount_remedy(error: Errno) -> &'static str {
    match error {
        Errno::PERM | Errno::ACCESS => "; mounting needs CAP_SYS_ADMIN: run as root",
        Errno::NOSYS => "; a sandbox around codchifs refuses it",
        Errno::NODEV => "; load the module with: modprobe fuse",
        _ => "",
    }
}
