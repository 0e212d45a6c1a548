//! Everything about a directory tree that an export has to keep, as a value that can be compared.

use super::xattr::{self, Xattrs};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// A hole of this size or more has to stay one.
pub(crate) const LARGE_HOLE: u64 = 1 << 20;

/// One entry. Times in whole seconds: that is what a tar keeps.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) kind: FileType,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// 0 for directories, whose size says nothing.
    pub(crate) size: u64,
    pub(crate) mtime: i64,
    pub(crate) target: Vec<u8>,
    pub(crate) hash: u64,
    pub(crate) rdev: u64,
    /// The first name of the file, where the tree has several.
    pub(crate) same_as: Option<Vec<u8>>,
    /// The fraction of `mtime`; like all below it only in [`Snapshot::full`], else 0 and empty.
    pub(crate) nsec: u32,
    /// ACLs are in here, as the disk holds them.
    pub(crate) xattrs: Xattrs,
    /// Allocated bytes; no difference between nodes.
    pub(crate) allocated: u64,
    /// Bytes in holes of [`LARGE_HOLE`] and more; no difference between nodes.
    pub(crate) holes: u64,
}

/// A tree below a directory, which is not part of it. Paths have no leading slash.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) nodes: BTreeMap<Vec<u8>, Node>,
}

impl Snapshot {
    /// Reads the tree. Follows no link, opens only directories and regular files, and paths may have any length.
    pub(crate) fn of(root: &Path) -> Self {
        Self::with_inodes(root).0
    }

    /// The same with fractions of times, extended attributes and holes.
    pub(crate) fn full(root: &Path) -> Self {
        Self::walked(root, Walk { full: true, ..Walk::default() }).0
    }

    /// The tree, and the inode number of every path.
    pub(crate) fn with_inodes(root: &Path) -> (Self, BTreeMap<Vec<u8>, u64>) {
        Self::walked(root, Walk::default())
    }

    fn walked(root: &Path, mut walk: Walk) -> (Self, BTreeMap<Vec<u8>, u64>) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, root, flags, Mode::empty())
            .unwrap_or_else(|error| panic!("{}: {error}", root.display()));
        walk.directory(fd, &mut Vec::new());
        walk.finish()
    }

    /// Without the entries that `keep` denies, and with links among what is left.
    pub(crate) fn filtered(&self, keep: impl Fn(&[u8]) -> bool) -> Self {
        let mut firsts: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
        let mut nodes = BTreeMap::new();
        for (path, node) in self.nodes.iter().filter(|(path, _)| keep(path)) {
            if let Some(first) = &node.same_as {
                firsts.entry(first.clone()).or_default().push(path.clone());
            }
            nodes.insert(path.clone(), Node { same_as: None, ..node.clone() });
        }
        for group in firsts.values().filter(|group| group.len() > 1) {
            for path in group {
                nodes.get_mut(path).unwrap().same_as = Some(group[0].clone());
            }
        }
        Self { nodes }
    }

    /// With every node changed by `change`.
    pub(crate) fn map(mut self, mut change: impl FnMut(&[u8], &mut Node)) -> Self {
        for (path, node) in &mut self.nodes {
            change(path, node);
        }
        self
    }

    /// With the tree `other` below `directory`.
    pub(crate) fn graft(mut self, directory: &[u8], other: Self) -> Self {
        let below = |path: &[u8]| [directory, b"/", path].concat();
        for (path, mut node) in other.nodes {
            node.same_as = node.same_as.map(|first| below(&first));
            self.nodes.insert(below(&path), node);
        }
        self
    }

    pub(crate) fn paths(&self) -> Vec<Vec<u8>> {
        self.nodes.keys().cloned().collect()
    }

    /// Fails with a list of differences, if there are any.
    #[track_caller]
    pub(crate) fn assert_same(&self, other: &Self, what: &str) {
        let differences = self.differences(other);
        assert!(differences.is_empty(), "{what}:\n{differences}");
    }

    /// Fails where `copy` has filled large holes of this tree.
    #[track_caller]
    pub(crate) fn assert_holes_kept(&self, copy: &Self, what: &str) {
        // What a file system rounds up for the end of each extent and for its maps.
        const SLACK: u64 = 256 << 10;
        for (path, node) in self.nodes.iter().filter(|(_, node)| node.holes > 0) {
            let most = node.size - node.holes + SLACK;
            let allocated = copy.nodes[path].allocated;
            assert!(
                allocated <= most,
                "{what}: {} of {} bytes, {} of them in large holes, takes {allocated} bytes",
                show(path),
                node.size,
                node.holes
            );
        }
    }

    /// One line for each difference, the first forty of them; `-` is here, `+` is there.
    pub(crate) fn differences(&self, other: &Self) -> String {
        const SHOWN: usize = 40;
        let mut lines = Vec::new();
        for (path, node) in &self.nodes {
            match other.nodes.get(path) {
                None => lines.push(format!("- {}", show(path))),
                Some(there) => {
                    let fields = fields(node, there);
                    if !fields.is_empty() {
                        lines.push(format!("! {}: {fields}", show(path)));
                    }
                }
            }
        }
        let new = other.nodes.keys().filter(|path| !self.nodes.contains_key(*path));
        lines.extend(new.map(|path| format!("+ {}", show(path))));
        let more = lines.len().saturating_sub(SHOWN);
        lines.truncate(SHOWN);
        let mut text = lines.join("\n");
        if more > 0 {
            let _ = write!(text, "\n... and {more} more");
        }
        text
    }
}

/// The names whose values differ, for people; empty if none do.
pub(crate) fn differing(here: &Xattrs, there: &Xattrs) -> String {
    let value = |value: Option<&Vec<u8>>| {
        value.map_or("none".into(), |value| format!("{:?} of {}", show(value), value.len()))
    };
    let mut text = String::new();
    let names: BTreeSet<_> = here.keys().chain(there.keys()).collect();
    for name in names.into_iter().filter(|name| here.get(*name) != there.get(*name)) {
        let (here, there) = (value(here.get(name)), value(there.get(name)));
        let _ = write!(text, "{} {here} -> {there}; ", show(name));
    }
    text
}

/// A path for people; a long one is cut.
pub(crate) fn show(path: &[u8]) -> String {
    let text = path.escape_ascii().to_string();
    if text.len() > 200 { format!("{}... ({} bytes)", &text[..200], path.len()) } else { text }
}

fn fields(here: &Node, there: &Node) -> String {
    let mut text = String::new();
    let mut field = |name: &str, here: &dyn std::fmt::Debug, there: &dyn std::fmt::Debug| {
        let (here, there) = (format!("{here:?}"), format!("{there:?}"));
        if here != there {
            let _ = write!(text, "{name} {here} -> {there}; ");
        }
    };
    field("kind", &here.kind, &there.kind);
    field("mode", &format_args!("{:o}", here.mode), &format_args!("{:o}", there.mode));
    field("uid", &here.uid, &there.uid);
    field("gid", &here.gid, &there.gid);
    field("size", &here.size, &there.size);
    field("mtime", &here.mtime, &there.mtime);
    field("target", &show(&here.target), &show(&there.target));
    field("content", &here.hash, &there.hash);
    field("rdev", &here.rdev, &there.rdev);
    field("link of", &here.same_as.as_deref().map(show), &there.same_as.as_deref().map(show));
    field("nsec", &here.nsec, &there.nsec);
    text + &differing(&here.xattrs, &there.xattrs)
}

#[derive(Default)]
struct Walk {
    full: bool,
    buffer: Vec<u8>,
    nodes: BTreeMap<Vec<u8>, Node>,
    inodes: BTreeMap<Vec<u8>, u64>,
    files: BTreeMap<(u64, u64), Vec<Vec<u8>>>,
}

impl Walk {
    fn directory(&mut self, fd: OwnedFd, path: &mut Vec<u8>) {
        for name in names(&fd, path) {
            let length = path.len();
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            self.entry(&fd, &name, path);
            path.truncate(length);
        }
    }

    fn entry(&mut self, parent: &OwnedFd, name: &[u8], path: &mut Vec<u8>) {
        let fail = |what: &str, error: rustix::io::Errno| -> ! {
            panic!("{what} {}: {error}", show(path));
        };
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
            .unwrap_or_else(|error| fail("stat", error));
        let kind = FileType::from_raw_mode(stat.st_mode);
        let open = |flags| {
            rustix::fs::openat(
                parent,
                name,
                flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )
        };
        let mut node = Node {
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: if kind == FileType::Directory { 0 } else { stat.st_size as u64 },
            mtime: stat.st_mtime,
            target: Vec::new(),
            hash: 0,
            rdev: if matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) {
                stat.st_rdev
            } else {
                0
            },
            same_as: None,
            nsec: 0,
            xattrs: Xattrs::new(),
            allocated: 0,
            holes: 0,
        };
        if self.full {
            node.nsec = stat.st_mtime_nsec as u32;
            node.allocated = stat.st_blocks as u64 * 512;
            node.xattrs = xattr::read(&xattr::at(parent, name))
                .unwrap_or_else(|error| fail("attributes of", error));
        }
        let mut below = None;
        match kind {
            FileType::RegularFile => {
                let fd = open(OFlags::NONBLOCK).unwrap_or_else(|error| fail("open", error));
                node.hash = hash(&File::from(fd.try_clone().unwrap()), &mut self.buffer)
                    .unwrap_or_else(|error| panic!("read {}: {error}", show(path)));
                if self.full {
                    node.holes =
                        large_holes(&fd, node.size).unwrap_or_else(|error| fail("holes of", error));
                }
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(parent, name, Vec::new())
                    .unwrap_or_else(|error| fail("readlink", error));
                node.target = target.into_bytes();
            }
            FileType::Directory => {
                below =
                    Some(open(OFlags::DIRECTORY).unwrap_or_else(|error| fail("opendir", error)));
            }
            _ => {}
        }
        if kind != FileType::Directory {
            self.files.entry((stat.st_dev, stat.st_ino)).or_default().push(path.clone());
        }
        self.nodes.insert(path.clone(), node);
        self.inodes.insert(path.clone(), stat.st_ino);
        if let Some(fd) = below {
            self.directory(fd, path);
        }
    }

    fn finish(mut self) -> (Snapshot, BTreeMap<Vec<u8>, u64>) {
        for group in self.files.values_mut().filter(|group| group.len() > 1) {
            group.sort();
            for path in group.iter() {
                self.nodes.get_mut(path).unwrap().same_as = Some(group[0].clone());
            }
        }
        (Snapshot { nodes: self.nodes }, self.inodes)
    }
}

/// Of all that is not zeros and where it is: the same for a hole and for zeros, and soon done with holes.
fn hash(file: &File, buffer: &mut Vec<u8>) -> std::io::Result<u64> {
    const CHUNK: u64 = 64 << 10;
    buffer.resize(CHUNK as usize, 0);
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    let mut at = 0;
    loop {
        match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => return Ok(hash.digest()),
            data => at = data? / CHUNK * CHUNK,
        }
        let mut length = 0;
        while length < buffer.len() {
            match file.read_at(&mut buffer[length..], at + length as u64)? {
                0 => break,
                read => length += read,
            }
        }
        if buffer[..length].iter().any(|byte| *byte != 0) {
            hash.update(&at.to_le_bytes());
            hash.update(&buffer[..length]);
        }
        at += CHUNK;
    }
}

/// Bytes in holes of [`LARGE_HOLE`] and more.
fn large_holes(file: &OwnedFd, size: u64) -> Result<u64, Errno> {
    let (mut holes, mut at) = (0, 0);
    while at < size {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => size,
            other => other?,
        };
        if data - at >= LARGE_HOLE {
            holes += data - at;
        }
        if data >= size {
            break;
        }
        at = rustix::fs::seek(file, SeekFrom::Hole(data))?;
    }
    Ok(holes)
}

fn names(fd: &OwnedFd, path: &[u8]) -> Vec<Vec<u8>> {
    let dir = rustix::fs::Dir::read_from(fd.as_fd())
        .unwrap_or_else(|error| panic!("readdir {}: {error}", show(path)));
    dir.map(|entry| {
        entry
            .unwrap_or_else(|error| panic!("readdir {}: {error}", show(path)))
            .file_name()
            .to_bytes()
            .to_vec()
    })
    .filter(|name| name != b"." && name != b"..")
    .collect()
}

/// The bytes of a path.
pub(crate) fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}
