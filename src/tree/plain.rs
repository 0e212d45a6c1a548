//! A directory that is no machine: what an export was extracted to. Nothing in it is hidden, made or un-shifted.

use super::xattr::{Fate, Xattr, fate};
use super::{Attr, Kind, Owners, ROOTFS, layer};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use std::ffi::CString;
use std::path::Path;

/// An open directory. Links in it are never followed; what is mounted in it belongs to it.
#[derive(Debug)]
pub struct Plain(OwnedFd);

/// Everything about an entry that an export holds, but its content.
#[derive(Debug)]
pub struct PlainEntry {
    /// With the ids of the disk.
    pub attr: Attr,
    /// The device that it is on: with the inode number, what hard links share.
    pub device: (u32, u32),
    /// Target of a symbolic link; else empty.
    pub target: Vec<u8>,
    /// Those of the kinds that an export keeps, sorted by name.
    pub xattrs: Vec<Xattr>,
}

const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Plain {
    /// The directory at a path of the caller's.
    pub fn open(path: &Path) -> Result<Self, Errno> {
        Ok(Self(openat(CWD, path, FLAGS, Mode::empty())?))
    }

    /// The subdirectory `name`, which is no link.
    pub fn dir(&self, name: &[u8]) -> Result<Self, Errno> {
        Ok(Self(openat(&self.0, name, FLAGS | OFlags::NOFOLLOW, Mode::empty())?))
    }

    /// The entry `name`.
    pub fn entry(&self, name: &[u8]) -> Result<PlainEntry, Errno> {
        let st = layer::stat_at(&self.0, name)?;
        let attr = Attr::from_disk(&st, ROOTFS, 0, &Owners::AsOnDisk);
        let target = match attr.kind {
            Kind::Symlink => layer::read_link(&self.0, name)?,
            _ => Vec::new(),
        };
        let mut names = Vec::new();
        layer::xattr_names(self.0.as_fd(), name, |xattr| {
            if !matches!(fate(xattr.to_bytes()), Fate::Drop(_) | Fate::Twin) {
                names.push(CString::from(xattr));
            }
        })?;
        names.sort_unstable();
        let value = |xattr: CString| match layer::xattr(self.0.as_fd(), name, &xattr) {
            Err(Errno::NODATA) => None,
            value => Some(
                value.map(|value| Xattr { name: xattr.into_bytes().into(), value: value.into() }),
            ),
        };
        let xattrs = names.into_iter().filter_map(value).collect::<Result<_, _>>()?;
        Ok(PlainEntry { attr, device: layer::device(&st), target, xattrs })
    }

    /// The regular file `name`, for reading; as [`super::Tree::open_file`] for everything else.
    pub fn file(&self, name: &[u8]) -> Result<OwnedFd, Errno> {
        layer::open_mounted_file(&self.0, name)
    }

    /// How many names there are in it.
    pub fn count(&self) -> Result<u64, Errno> {
        let mut count = 0_u64;
        layer::names(self.0.as_fd(), |_| count = count.saturating_add(1))?;
        Ok(count)
    }
}
