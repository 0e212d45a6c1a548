//! Trees as values, so that they can be generated, shrunk and printed, and made on any disk.

use super::disk::DiskKind;
use super::xattr::{self, Ace};
use proptest::sample::Index;
use rustix::fd::OwnedFd;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, makedev, mkdirat,
    mknodat, openat,
};
use rustix::io::Errno;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Entries in the order in which they are made.
#[derive(Clone, Debug)]
pub(crate) struct Plan(pub(crate) Vec<Entry>);

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) place: Place,
    /// Where the name is taken, the entry is not made.
    pub(crate) name: Bytes,
    pub(crate) what: What,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
    pub(crate) mtime: (i64, i64),
    /// Only the kinds that may have them get them, and values are cut to what the disk takes.
    pub(crate) xattrs: Vec<(Bytes, Fill)>,
    pub(crate) acl: Vec<Ace>,
    pub(crate) default_acl: Vec<Ace>,
    /// Permitted, and the id of a root.
    pub(crate) capability: Option<(u64, Option<u32>)>,
}

/// The directory of an entry.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// One of those that are there by then.
    Any(Index),
    /// One that was there to begin with.
    Base(String),
}

/// An earlier entry that is no directory.
#[derive(Clone, Debug)]
pub(crate) enum Which {
    Any(Index),
    Last,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    Directory,
    File(Fill),
    /// Its size, and where it has how much data.
    Sparse(u64, Vec<(u64, usize)>),
    /// Cut to what the disk takes.
    Symlink(Bytes),
    /// One more name of an earlier entry that is no directory; not made where there is none.
    Link(Which),
    Fifo,
    Char(u32, u32),
    Block(u32, u32),
}

/// Raw bytes that print as text.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

/// Content.
#[derive(Clone, Debug)]
pub(crate) enum Fill {
    These(Bytes),
    /// So many bytes of many values.
    Pattern(usize),
}

impl Fill {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::These(bytes) => bytes.0.clone(),
            Self::Pattern(length) => pattern(*length),
        }
    }
}

/// Without zeros: cp makes holes of them.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 % 251) as u8 + 1).collect()
}

/// What was made: where it is, and which entry it is of.
struct Made<'a> {
    parent: usize,
    name: &'a [u8],
    entry: &'a Entry,
}

impl Plan {
    /// Makes it below `root`, where `base` are the directories that are there to begin with.
    pub(crate) fn build(&self, root: &Path, base: &[&str], disk: DiskKind) {
        let mut directories: Vec<OwnedFd> = Vec::new();
        for path in base {
            std::fs::create_dir_all(root.join(path)).unwrap();
            directories.push(directory(CWD, root.join(path)));
        }
        let mut made: Vec<Made<'_>> = Vec::new();
        for entry in &self.0 {
            let parent = match &entry.place {
                Place::Any(index) => index.index(directories.len()),
                Place::Base(name) => base.iter().position(|base| base == name).unwrap(),
            };
            let name = entry.name.0.as_slice();
            match make(&directories[parent], name, entry, &made, &directories, disk) {
                Err(Errno::EXIST) => continue,
                other => other.unwrap_or_else(|error| panic!("{entry:?} on {disk:?}: {error}")),
            }
            if matches!(entry.what, What::Directory) {
                directories.push(directory(&directories[parent], name));
            }
            made.push(Made { parent, name, entry });
        }
        for Made { parent, name, entry } in &made {
            if !matches!(entry.what, What::Link(_)) {
                attributes(&directories[*parent], name, entry, disk)
                    .unwrap_or_else(|error| panic!("{entry:?} on {disk:?}: {error}"));
            }
        }
        // Last, as everything before it changes them.
        for Made { parent, name, entry } in made.iter().rev() {
            let time = Timespec { tv_sec: entry.mtime.0, tv_nsec: entry.mtime.1 };
            let times = Timestamps { last_access: time, last_modification: time };
            let dir = &directories[*parent];
            rustix::fs::utimensat(dir, *name, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
        for path in base.iter().flat_map(|path| Path::new(path).ancestors()) {
            let time = Timespec { tv_sec: 1_700_000_000, tv_nsec: 123_456_789 };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, root.join(path), &times, AtFlags::empty()).unwrap();
        }
    }
}

fn directory(parent: impl rustix::fd::AsFd, name: impl rustix::path::Arg) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty()).unwrap()
}

fn make(
    dir: &OwnedFd,
    name: &[u8],
    entry: &Entry,
    made: &[Made<'_>],
    directories: &[OwnedFd],
    disk: DiskKind,
) -> Result<(), Errno> {
    let file = || {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        openat(dir, name, flags, Mode::from(0o644)).map(File::from)
    };
    let node = |kind, device| mknodat(dir, name, kind, Mode::from(0o640), device);
    match &entry.what {
        What::Directory => mkdirat(dir, name, Mode::from(0o755)),
        What::File(fill) => file().map(|file| file.write_all_at(&fill.bytes(), 0).unwrap()),
        What::Sparse(size, data) => file().map(|file| {
            file.set_len(*size).unwrap();
            for (offset, length) in data {
                let length = (*length).min((size - offset.min(size)) as usize);
                file.write_all_at(&pattern(length), *offset).unwrap();
            }
        }),
        What::Symlink(target) => {
            let target = &target.0[..target.0.len().min(disk.longest_target())];
            rustix::fs::symlinkat(target, dir, name)
        }
        What::Link(which) => {
            let files: Vec<_> =
                made.iter().filter(|made| !matches!(made.entry.what, What::Directory)).collect();
            if files.is_empty() {
                return Err(Errno::EXIST);
            }
            let first = match which {
                Which::Any(index) => files[index.index(files.len())],
                Which::Last => files[files.len() - 1],
            };
            let from = &directories[first.parent];
            rustix::fs::linkat(from, first.name, dir, name, AtFlags::empty())
        }
        What::Fifo => node(FileType::Fifo, 0),
        What::Char(major, minor) => node(FileType::CharacterDevice, makedev(*major, *minor)),
        What::Block(major, minor) => node(FileType::BlockDevice, makedev(*major, *minor)),
    }
}

/// Owner before mode before ACL before the rest: each of them changes what comes after it.
fn attributes(dir: &OwnedFd, name: &[u8], entry: &Entry, disk: DiskKind) -> Result<(), Errno> {
    let (uid, gid) = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
    rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    let symlink = matches!(entry.what, What::Symlink(_));
    let directory = matches!(entry.what, What::Directory);
    let file = matches!(entry.what, What::File(_) | What::Sparse(..));
    let path = xattr::at(dir, name);
    if !symlink {
        rustix::fs::chmodat(dir, name, Mode::from(entry.mode), AtFlags::empty())?;
        if !entry.acl.is_empty() {
            xattr::set(&path, xattr::ACCESS, &xattr::acl(&entry.acl))?;
        }
    }
    if directory && !entry.default_acl.is_empty() {
        xattr::set(&path, xattr::DEFAULT, &xattr::acl(&entry.default_acl))?;
    }
    for (name, value) in &entry.xattrs {
        if directory || file || !name.0.starts_with(b"user.") {
            let mut value = value.bytes();
            value.truncate(disk.longest_value());
            xattr::set(&path, &name.0, &value)?;
        }
    }
    if let Some((permitted, root)) = entry.capability.filter(|_| file) {
        xattr::set(&path, xattr::CAPABILITY, &xattr::capability(permitted, root))?;
    }
    Ok(())
}
