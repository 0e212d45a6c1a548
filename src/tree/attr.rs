//! Attributes of an entry, with the machine's ids. Un-shifting happens here and nowhere else.

use crate::idmap::{IdMap, NOBODY};
use rustix::fs::{FileType, Statx, StatxTimestamp};
use xxhash_rust::xxh3::xxh3_64;

/// Seconds and nanoseconds since 1970; `sec` may be negative, `nsec` is 0..1e9.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub struct Time {
    pub sec: i64,
    pub nsec: u32,
}

impl From<StatxTimestamp> for Time {
    fn from(t: StatxTimestamp) -> Self {
        Self { sec: t.tv_sec, nsec: t.tv_nsec }
    }
}

/// Type of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Kind {
    Directory,
    File,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
}

impl Kind {
    pub(super) fn of(st: &Statx) -> Self {
        match FileType::from_raw_mode(u32::from(st.stx_mode)) {
            FileType::Directory => Self::Directory,
            FileType::Symlink => Self::Symlink,
            FileType::CharacterDevice => Self::CharDevice,
            FileType::BlockDevice => Self::BlockDevice,
            FileType::Fifo => Self::Fifo,
            FileType::Socket => Self::Socket,
            FileType::RegularFile | FileType::Unknown => Self::File,
        }
    }
}

/// What an entry is on disk, stable over renames, remounts and reboots. Hard links share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ObjectId {
    /// A file of a layer: `layer` 0 is the rootfs, 1 the home; `subvol` 0 is the layer's own root.
    Disk {
        /// Index of the layer.
        layer: u8,
        /// btrfs subvolume, 0 for the one of the layer's root.
        subvol: u64,
        /// Inode number on that file system.
        ino: u64,
    },
    /// A generated file or directory. Another content is another file in its place: the kernel keeps pages and the size
    /// by inode, so two contents under one number would be mixed.
    Generated {
        /// Hash of its path.
        path: u64,
        /// Hash of its content; that of nothing for a directory.
        content: u64,
    },
}

impl ObjectId {
    /// That of what is made at `path` (absolute, in the machine).
    pub fn generated(path: &[u8], content: &[u8]) -> Self {
        Self::Generated { path: xxh3_64(path), content: xxh3_64(content) }
    }

    /// Whether it is what is made at `path`, whatever its content.
    pub fn is_made_at(self, path: &[u8]) -> bool {
        matches!(self, Self::Generated { path: hash, .. } if hash == xxh3_64(path))
    }
}

/// Attributes of an entry, with the machine's ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Attr {
    pub id: ObjectId,
    pub kind: Kind,
    /// Permission bits with setuid, setgid, sticky (07777).
    pub perm: u16,
    pub uid: u32,
    pub gid: u32,
    /// Bytes; for a link the length of its target.
    pub size: u64,
    /// Allocated 512-byte blocks; at least 1 for a generated file that is not empty.
    pub blocks: u64,
    pub mtime: Time,
    pub ctime: Time,
    pub atime: Time,
    /// The disk's for files, 1 for directories.
    pub nlink: u32,
    /// Major and minor of a device node.
    pub rdev: (u32, u32),
}

/// Whose a layer's files are.
#[derive(Clone, Debug)]
pub enum Owners {
    /// The disk has the machine's ids.
    AsOnDisk,
    /// The disk's ids are shifted.
    Mapped(IdMap),
    /// Everything belongs to one owner: no map of the home is recorded.
    All(u32, u32),
}

impl Owners {
    /// The machine's uid; `None` where it has no place in the map.
    pub(super) fn uid(&self, host: u32) -> Option<u32> {
        match self {
            Self::AsOnDisk => Some(host),
            Self::All(uid, _) => Some(*uid),
            Self::Mapped(map) => map.uid(host),
        }
    }

    /// The machine's gid; `None` where it has no place in the map.
    pub(super) fn gid(&self, host: u32) -> Option<u32> {
        match self {
            Self::AsOnDisk => Some(host),
            Self::All(_, gid) => Some(*gid),
            Self::Mapped(map) => map.gid(host),
        }
    }

    /// The machine's uid of a user namespace's root. Where everything belongs to one user, nobody knows.
    pub(super) fn root(&self, host: u32) -> Option<u32> {
        match self {
            Self::All(..) => None,
            _ => self.uid(host),
        }
    }

    /// The machine's owner, and whether an id had no place in the map.
    pub(super) fn unshift(&self, uid: u32, gid: u32) -> ((u32, u32), bool) {
        let (uid, gid) = (self.uid(uid), self.gid(gid));
        ((uid.unwrap_or(NOBODY), gid.unwrap_or(NOBODY)), uid.is_none() || gid.is_none())
    }
}

impl Attr {
    pub(super) fn from_disk(st: &Statx, layer: u8, subvol: u64, owners: &Owners) -> Self {
        let kind = Kind::of(st);
        let ((uid, gid), _) = owners.unshift(st.stx_uid, st.stx_gid);
        Self {
            id: ObjectId::Disk { layer, subvol, ino: st.stx_ino },
            kind,
            perm: st.stx_mode & 0o7777,
            uid,
            gid,
            size: st.stx_size,
            blocks: st.stx_blocks,
            mtime: st.stx_mtime.into(),
            ctime: st.stx_ctime.into(),
            atime: st.stx_atime.into(),
            nlink: if kind == Kind::Directory { 1 } else { st.stx_nlink },
            rdev: (st.stx_rdev_major, st.stx_rdev_minor),
        }
    }

    /// A directory or file of ours. All times are `time`, so that equal input gives equal bytes; only the ctime tells, by
    /// its nanoseconds, one content from another: config.json may be older than both.
    pub(super) fn made(path: &[u8], kind: Kind, perm: u16, content: &[u8], time: Time) -> Self {
        let size = content.len() as u64;
        let changed = Time { nsec: digest_nsec(xxh3_64(content)), ..time };
        Self {
            id: ObjectId::generated(path, content),
            kind,
            perm,
            uid: 0,
            gid: 0,
            size,
            // tar -S takes a non-empty file without blocks for one hole.
            blocks: size.div_ceil(512),
            mtime: time,
            ctime: changed,
            atime: time,
            nlink: 1,
            rdev: (0, 0),
        }
    }

    /// The same with another content.
    #[must_use]
    pub fn with_content(self, content: &[u8]) -> Self {
        self.with_digest(content.len() as u64, xxh3_64(content))
    }

    /// The same with another content of `size` bytes, which `digest` tells from others.
    #[must_use]
    pub fn with_digest(mut self, size: u64, digest: u64) -> Self {
        if let ObjectId::Generated { content, .. } = &mut self.id {
            *content = digest;
        }
        self.size = size;
        self.blocks = self.size.div_ceil(512);
        self.ctime.nsec = digest_nsec(digest);
        self
    }
}

fn digest_nsec(digest: u64) -> u32 {
    // Below 10^9, which fits.
    (digest % 1_000_000_000) as u32
}
