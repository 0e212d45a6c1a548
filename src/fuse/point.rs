//! Where a mount is or is to be: a name in an open directory.
//!
//! Whoever owns a directory on the way may exchange it between two looks by path, and would have root unmount, or cover, what
//! is somebody else's. So the path is walked once (`walk`), and everything after that goes through the descriptor.

use super::MountError;
use crate::mountinfo::{self, Mount};
use crate::walk::{self, Refusal, WalkError};
use rustix::fd::{AsRawFd as _, OwnedFd};
use rustix::fs::{self, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// The file system type of our mounts.
pub(super) const TYPE: &str = "fuse.codchifs";

/// Links one after the other in place of the directory (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Opens a mount's root without a word to who serves it.
const PIN: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A name in a directory.
#[derive(Debug)]
pub(super) struct Point {
    parent: OwnedFd,
    name: OsString,
    /// Without symbolic links.
    pub(super) path: PathBuf,
    /// Whose link led here, if it was neither root's nor followed by anybody but root.
    link_of: Option<u32>,
}

impl Point {
    /// Walks `path`, which may end in a link.
    pub(super) fn find(path: &Path) -> Result<Self, MountError> {
        let root = rustix::process::geteuid().is_root();
        let mut left = std::path::absolute(path).map_err(|source| MountError::Look { source })?;
        let mut link_of = None;
        for _ in 0..=MAX_LINKS {
            let (Some(parent), Some(name)) = (left.parent(), left.file_name()) else {
                let directory = walk::pin(&left).map_err(|why| not_walked(path, why))?;
                left = path_of(&directory)?;
                if left.parent().is_none() {
                    return Err(MountError::NotEmpty);
                }
                continue;
            };
            let name = name.to_owned();
            let parent = walk::pin(parent).map_err(|why| not_walked(path, why))?;
            let at = path_of(&parent)?.join(&name);
            let point = Self { parent, name, path: at, link_of };
            match point.open()? {
                Some(found) if point.is_plain(&found)? => {
                    let st = fs::fstat(&found).map_err(look)?;
                    if FileType::from_raw_mode(st.st_mode) != FileType::Symlink {
                        return match link_of {
                            Some(uid) if uid != st.st_uid => Err(point.refused(uid)),
                            _ => Ok(point),
                        };
                    }
                    if root && st.st_uid != 0 {
                        link_of = Some(st.st_uid);
                    }
                    let target = fs::readlinkat(&found, "", Vec::new()).map_err(look)?;
                    let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                    left = point.path.parent().unwrap_or(Path::new("/")).join(target);
                }
                _ => return Ok(point),
            }
        }
        Err(look(Errno::LOOP))
    }

    /// What has the name now; of a mount, its root.
    fn open(&self) -> Result<Option<OwnedFd>, MountError> {
        match fs::openat(&self.parent, &self.name, PIN, Mode::empty()) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::NOTDIR) => Err(MountError::NotADirectory),
            Err(why) => Err(look(why)),
        }
    }

    /// Whether nothing is mounted on it.
    fn is_plain(&self, found: &OwnedFd) -> Result<bool, MountError> {
        let id = |fd| mountinfo::id_of(fd).map_err(look);
        Ok(id(found)? == id(&self.parent)?)
    }

    /// The codchifs that is mounted here on top of all, with its root.
    pub(super) fn mounted(&self) -> Result<Option<(Mount, OwnedFd)>, MountError> {
        let Some(found) = self.open()? else { return Ok(None) };
        if self.is_plain(&found)? {
            return Ok(None);
        }
        let id = mountinfo::id_of(&found).map_err(look)?;
        let mount = mountinfo::find(id).map_err(|source| MountError::Table { source })?;
        let Some(mount) = mount.filter(|mount| mount.fstype == TYPE) else { return Ok(None) };
        match self.link_of {
            Some(uid) if mount.owner.is_none_or(|(owner, _)| owner != uid) => {
                Err(self.refused(uid))
            }
            _ => Ok(Some((mount, found))),
        }
    }

    /// Opens the directory to mount on: one that is there, and empty.
    pub(super) fn empty_directory(&self) -> Result<OwnedFd, MountError> {
        let opened = walk::open_directory_at(&self.parent, &self.name);
        let directory = opened.map_err(|why| match why.errno() {
            Some(Errno::NOENT) => MountError::Missing { path: self.path.clone() },
            Some(Errno::NOTDIR) => MountError::NotADirectory,
            _ => MountError::Look { source: why.into() },
        })?;
        for entry in fs::Dir::read_from(&directory).map_err(look)? {
            if !matches!(entry.map_err(look)?.file_name().to_bytes(), b"." | b"..") {
                return Err(MountError::NotEmpty);
            }
        }
        Ok(directory)
    }

    /// Takes the mount away whose root is `root`, and no other, as root. `lazy` takes it out of sight at once.
    pub(super) fn unmount(&self, root: OwnedFd, lazy: bool) -> Result<(), MountError> {
        let own = |fd: &OwnedFd| Path::new("/proc/self/fd").join(fd.as_raw_fd().to_string());
        let done = if lazy {
            // By its own descriptor, which leads nowhere else.
            unmount(own(&root), UnmountFlags::DETACH)
        } else {
            let id = mountinfo::id_of(&root).map_err(look)?;
            let now = self.open()?;
            let now = now.map(|now| mountinfo::id_of(&now)).transpose().map_err(look)?;
            if now != Some(id) {
                return Err(MountError::NotMounted);
            }
            // A descriptor of the root would be in use by ourselves. While it is mounted here, nobody can move or remove the
            // directory (rename(2), EBUSY): what could only come in between is a mount on top of it, of whoever may mount here.
            drop(root);
            unmount(own(&self.parent).join(&self.name), UnmountFlags::NOFOLLOW)
        };
        done.map_err(|source| not_unmounted(&self.path, source))
    }

    fn refused(&self, uid: u32) -> MountError {
        let why = WalkError::Refused { at: self.path.clone(), why: Refusal::LinkOf(uid) };
        MountError::Look { source: why.into() }
    }
}

pub(super) fn not_unmounted(path: &Path, source: Errno) -> MountError {
    match source {
        Errno::BUSY => MountError::Busy { path: path.to_owned() },
        _ => MountError::Unmount { source },
    }
}

fn not_walked(path: &Path, why: WalkError) -> MountError {
    match why.errno() {
        Some(Errno::NOENT) => MountError::Missing { path: path.to_owned() },
        Some(Errno::NOTDIR) => MountError::NotADirectory,
        _ => MountError::Look { source: why.into() },
    }
}

fn look(source: Errno) -> MountError {
    MountError::Look { source: source.into() }
}

/// Where an opened directory is, without symbolic links.
fn path_of(directory: &OwnedFd) -> Result<PathBuf, MountError> {
    let own = format!("/proc/self/fd/{}", directory.as_raw_fd());
    std::fs::read_link(own).map_err(|source: io::Error| MountError::Look { source })
}
