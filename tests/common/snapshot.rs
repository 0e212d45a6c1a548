//! Everything about a directory tree that an export has to keep, as a value that can be compared.

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// One entry. Times in whole seconds: that is what a tar keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
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
}

/// A tree below a directory, which is not part of it. Paths have no leading slash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) nodes: BTreeMap<Vec<u8>, Node>,
}

impl Snapshot {
    /// Reads the tree. Follows no link, opens only directories and regular files, and paths may have any length.
    pub(crate) fn of(root: &Path) -> Self {
        Self::with_inodes(root).0
    }

    /// The tree, and the inode number of every path.
    pub(crate) fn with_inodes(root: &Path) -> (Self, BTreeMap<Vec<u8>, u64>) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, root, flags, Mode::empty())
            .unwrap_or_else(|error| panic!("{}: {error}", root.display()));
        let mut walk = Walk::default();
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

    /// One line for each difference, the first forty of them; `-` is here, `+` is there.
    pub(crate) fn differences(&self, other: &Self) -> String {
        const SHOWN: usize = 40;
        let mut lines = Vec::new();
        for (path, node) in &self.nodes {
            match other.nodes.get(path) {
                None => lines.push(format!("- {}", show(path))),
                Some(there) if there != node => {
                    lines.push(format!("! {}: {}", show(path), fields(node, there)));
                }
                Some(_) => {}
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
    text
}

#[derive(Default)]
struct Walk {
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
        };
        let mut below = None;
        match kind {
            FileType::RegularFile => {
                let fd = open(OFlags::NONBLOCK).unwrap_or_else(|error| fail("open", error));
                let mut content = Vec::new();
                File::from(fd)
                    .read_to_end(&mut content)
                    .unwrap_or_else(|error| panic!("read {}: {error}", show(path)));
                node.hash = xxhash_rust::xxh3::xxh3_64(&content);
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
