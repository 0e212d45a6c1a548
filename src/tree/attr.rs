//! Attributes of an entry, with the machine's ids.

/// Seconds and nanoseconds since 1970; `sec` may be negative, `nsec` is 0..1e9.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub struct Time {
    pub sec: i64,
    pub nsec: u32,
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
    /// A generated file or directory: hash of its path.
    Generated(u64),
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
