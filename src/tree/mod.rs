//! One machine's exported tree: rootfs − exclusions + home graft + generated files.
//!
//! The union rule, once: a name's verdict (`rules.rs`) decides first; a generated file or the home stands over whatever
//! the disk has; below an excluded directory only what an include or a generated file names is there; everything else
//! is the rootfs. Sockets, and what lies on another mount, are not in the tree, since they cannot be in the tar.

mod attr;
mod check;
mod find;
mod generated;
mod layer;
mod plain;
mod rules;
mod scan;
#[cfg(test)]
mod tests;
mod weigh;
mod xattr;

pub use attr::{Attr, Kind, ObjectId, Owners, Time};
pub use check::{CannotRead, check_reading, open_sample, sample};
pub use generated::GeneratedFile;
pub use plain::{Plain, PlainEntry};
pub use rules::{BUILT_IN_EXCLUDES, HOME, RuleError, Selection};
pub use scan::{DataRun, Details, Listing, Scanned, TRUSTED, Wants, is_hole_outside, sees_trusted};
pub use weigh::Weight;
pub use xattr::{ACL_ACCESS, ACL_DEFAULT, ACL_GROUP, ACL_USER, AclEntry, Xattr, acl_entries};

use layer::Layer;
pub(crate) use layer::covered;
pub use layer::{Apart, LONGEST_PATH, Root, all_is_handed_over};
use rules::{RuleId, Rules, Verdict};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::Statx;
use rustix::io::Errno;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Index of the rootfs among the layers.
const ROOTFS: u8 = 0;
/// Bytes of a small file of the machine's system that are read at most: passwd, group, lists.
const SMALL: u64 = 4 << 20;
/// Index of the home among the layers.
const HOME_LAYER: u8 = 1;

/// An open directory of the exported tree. Cheap to clone; holds at most one descriptor.
#[derive(Clone, Debug)]
pub struct Dir(Arc<Place>);

#[derive(Debug)]
struct Place {
    /// `None`: there is nothing on the disk to list (made by us, or another mount lies here).
    fd: Option<OwnedFd>,
    /// The descriptor's position is where it was when it was opened.
    unread: AtomicBool,
    layer: u8,
    subvol: u64,
    device: (u32, u32),
    rule: Option<RuleId>,
    /// Only names with a rule are shown.
    hidden: bool,
    /// Absolute path in the machine, no slash at its end (so the root's is empty).
    path: Box<[u8]>,
}

/// What opening a regular file gives.
pub enum File {
    /// A regular file of the machine, opened read-only.
    Disk(OwnedFd),
    /// A generated file: all of its bytes; `None` for one that only a scan can make.
    Generated(Option<Arc<[u8]>>),
}

// As of a [`GeneratedFile`]: lengths only, since the bytes may be codchi-env's.
impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Disk(fd) => f.debug_tuple("Disk").field(fd).finish(),
            Self::Generated(bytes) => {
                let len = bytes.as_ref().map(|bytes| bytes.len());
                f.debug_struct("Generated").field("bytes", &len).finish()
            }
        }
    }
}

/// One entry of a directory.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The name, raw bytes, never `.` or `..`.
    pub name: Box<[u8]>,
    /// Attributes with the machine's ids.
    pub attr: Attr,
}

/// Why something on the disk is not in the exported tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftOut {
    /// A socket: no archive can hold one.
    Socket,
    /// Another file system is mounted here.
    MountPoint,
    /// A pattern of the user.
    ByUser,
    /// The list of what is never exported. What an include or a generated file names below it is there all the same.
    BuiltIn,
    /// Hidden by the home that stands in its place.
    BelowHome,
    /// The entry is there but cannot be looked at.
    Unreadable(Errno),
    /// Its owner is outside the machine's id map; it is in the tree as 65534.
    ForeignOwner,
    /// So is an id in its ACL or capability.
    ForeignId,
    /// An extended attribute of a kind that is not exported.
    Xattr(&'static str),
    /// Its extended attributes cannot be read.
    Xattrs(Errno),
}

/// Where a machine's files are, and whose.
#[derive(Debug)]
pub struct Source {
    /// The container's root directory on the host, opened by whoever may.
    pub rootfs: Root,
    /// Whose the rootfs's files are.
    pub rootfs_owners: Owners,
    /// The directory that Codchi mounts at `/home/codchi`.
    pub home: Option<Root>,
    /// Whose the home's files are.
    pub home_owners: Owners,
}

/// Figures of the machine's storage for statfs(2).
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct StatFs {
    pub blocks: u64,
    pub bfree: u64,
    pub bavail: u64,
    pub files: u64,
    pub ffree: u64,
    pub bsize: u32,
    pub namelen: u32,
    pub frsize: u32,
}

/// One machine's exported tree, frozen in its rules, live in its contents.
#[derive(Debug)]
pub struct Tree {
    rootfs: Layer,
    home: Option<Layer>,
    rootfs_owners: Owners,
    home_owners: Owners,
    rules: Rules,
    generated: Vec<GeneratedFile>,
    /// mtime of what we make: config.json's.
    made: Time,
}

impl Tree {
    /// Joins a machine's directories. `made` is the mtime of everything generated.
    pub fn new(
        source: Source,
        selection: &Selection,
        generated: Vec<GeneratedFile>,
        made: Time,
    ) -> Result<Self, TreeError> {
        let rootfs = Layer::new(source.rootfs)?;
        let home = source.home.map(Layer::new).transpose()?;
        let rules = Rules::new(selection, &generated, home.is_some())?;
        Ok(Self {
            rootfs,
            home,
            rootfs_owners: source.rootfs_owners,
            home_owners: source.home_owners,
            rules,
            generated,
            made,
        })
    }

    /// The root directory. Its attributes are always 0755 0:0: `rsync -a rootfs/ vm:/` applies them to the target's.
    pub fn root(&self) -> Result<(Dir, Attr), Errno> {
        let st = layer::stat_fd(self.rootfs.root())?;
        let mut attr = Attr::from_disk(&st, ROOTFS, 0, &self.rootfs_owners);
        (attr.perm, attr.uid, attr.gid) = (0o755, 0, 0);
        let place = Place {
            fd: Some(layer::open_dir(self.rootfs.root(), b".")?),
            unread: AtomicBool::new(true),
            layer: ROOTFS,
            subvol: 0,
            device: layer::device(&st),
            rule: Some(Rules::ROOT),
            hidden: false,
            path: Box::default(),
        };
        Ok((Dir(Arc::new(place)), attr))
    }

    /// Finds `name` in `dir` (one statx; nothing is opened).
    pub fn lookup(&self, dir: &Dir, name: &[u8]) -> Result<Attr, Errno> {
        self.find(dir, name, &mut |_| ()).map(|found| found.attr)
    }

    /// The generated file that an entry is, if it is one.
    pub fn generated_file(&self, id: ObjectId) -> Option<&GeneratedFile> {
        self.generated.iter().find(|file| id.is_made_at(file.path))
    }

    /// All entries, sorted by bytes. An error if one of them cannot be looked at: a listing without it would be taken
    /// for the whole.
    pub fn read_dir(&self, dir: &Dir) -> Result<Vec<Entry>, Errno> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut failed = None;
        self.names(dir, |name| match self.lookup(dir, name) {
            Ok(attr) => entries.push(Entry { name: name.into(), attr }),
            Err(Errno::NOENT) => {}
            Err(e) => failed = Some(e),
        })?;
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        failed.map_or(Ok(entries), Err)
    }

    /// Calls `each` with every name that may be an entry, in no order. Nothing of them is looked at: [`Self::lookup`] tells
    /// which are.
    pub fn names(&self, dir: &Dir, mut each: impl FnMut(&[u8])) -> Result<(), Errno> {
        self.rules.children(dir.0.rule).for_each(&mut each);
        let Some(fd) = dir.0.fd.as_ref().filter(|_| !dir.0.hidden) else { return Ok(()) };
        let each = |name: &[u8]| {
            if self.rules.rule_of(dir.0.rule, name).is_none() {
                each(name);
            }
        };
        // The first to list it needs no descriptor of its own.
        match dir.0.unread.swap(false, Ordering::AcqRel) {
            true => layer::rest_of_names(fd.as_fd(), each),
            false => layer::names(fd.as_fd(), each),
        }
    }

    /// Opens the subdirectory `name`.
    pub fn open_dir(&self, dir: &Dir, name: &[u8]) -> Result<(Dir, Attr), Errno> {
        let found = self.find(dir, name, &mut |_| ())?;
        if found.attr.kind != Kind::Directory {
            return Err(if found.attr.kind == Kind::Symlink { Errno::LOOP } else { Errno::NOTDIR });
        }
        let mut place = Place {
            fd: None,
            unread: AtomicBool::new(true),
            layer: found.layer,
            subvol: 0,
            device: (0, 0),
            rule: found.rule,
            hidden: found.hidden,
            path: [&dir.0.path, b"/".as_slice(), name].concat().into(),
        };
        let mut attr = found.attr;
        let graft = found.layer == HOME_LAYER && dir.0.layer == ROOTFS;
        let fd = match (graft, &self.home, &dir.0.fd) {
            (true, Some(home), _) => Some(layer::open_dir(home.root(), b".")?),
            (false, _, Some(parent)) if !found.mount_point => match layer::open_dir(parent, name) {
                Ok(fd) => Some(fd),
                // Made whatever the disk has: a link or nothing at all.
                Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::XDEV) if found.made => None,
                Err(e) => return Err(e),
            },
            _ => None,
        };
        if let Some(fd) = fd {
            let st = layer::stat_fd(&fd)?;
            place.device = layer::device(&st);
            place.subvol = if graft { 0 } else { self.subvol(dir, found.layer, &st, name) };
            if !found.made {
                // Between the look and the open it may have become another directory; this is the one that is open.
                attr = self.disk_attr(&st, found.layer, place.subvol, graft);
            }
            place.fd = Some(fd);
        }
        Ok((Dir(Arc::new(place)), attr))
    }

    /// As [`Self::open_dir`], of what a scan has just found to be a directory of the disk with nothing special about it
    /// ([`Scanned::plain`]).
    pub fn open_plain(&self, dir: &Dir, name: &[u8]) -> Result<Dir, Errno> {
        let slow = || self.open_dir(dir, name).map(|(dir, _)| dir);
        if !self.layer(dir.0.layer).is_flat() {
            return slow();
        }
        let fd = match layer::open_dir(dir.disk()?, name) {
            // Something was mounted there meanwhile.
            Err(Errno::XDEV) => return slow(),
            other => other?,
        };
        Ok(Dir(Arc::new(Place {
            fd: Some(fd),
            unread: AtomicBool::new(true),
            layer: dir.0.layer,
            subvol: dir.0.subvol,
            device: dir.0.device,
            rule: None,
            hidden: false,
            path: [&dir.0.path, b"/".as_slice(), name].concat().into(),
        })))
    }

    /// Opens the regular file `name`; the attributes are of the opened file. Refused without an open: ENXIO for a
    /// special file, ELOOP for a link, EISDIR for a directory.
    pub fn open_file(&self, dir: &Dir, name: &[u8]) -> Result<(File, Attr), Errno> {
        match self.rules.verdict(dir.0.rule, dir.0.hidden, name) {
            Verdict::Generated(i) => {
                let attr = self.find(dir, name, &mut |_| ())?.attr;
                let file = self.generated.get(i).ok_or(Errno::NOENT)?;
                Ok((File::Generated(file.content.clone()), attr))
            }
            Verdict::Hidden => Err(Errno::NOENT),
            Verdict::Graft { .. } | Verdict::Way { .. } | Verdict::Made { .. } => Err(Errno::ISDIR),
            Verdict::Disk | Verdict::DiskWith { .. } => {
                if self.rules.excluded_by_user(&dir.0.path, name, false) {
                    return Err(Errno::NOENT);
                }
                let (fd, st) = self.open_regular(dir, name)?;
                let subvol = self.subvol(dir, dir.0.layer, &st, name);
                Ok((File::Disk(fd), self.disk_attr(&st, dir.0.layer, subvol, false)))
            }
        }
    }

    fn open_regular(&self, dir: &Dir, name: &[u8]) -> Result<(OwnedFd, Statx), Errno> {
        let here = dir.disk()?;
        match self.open_path(dir.0.layer, &[&dir.0.path, b"/".as_slice(), name].concat()) {
            None => layer::open_file(here, name),
            Some(file) => {
                let file = file?;
                let st = layer::stat_fd(&file)?;
                layer::only_files(&st)?;
                Ok((file, st))
            }
        }
    }

    /// Opens the file at `path` (absolute, in the machine), which was found in `layer`; `None` where the process may only
    /// do so from its directory. What there is now may be anything but a link or a device: [`stamp`] tells.
    pub fn open_path(&self, layer: u8, path: &[u8]) -> Option<Result<OwnedFd, Errno>> {
        let below = match layer {
            HOME_LAYER => path.strip_prefix(HOME.as_bytes())?,
            _ => path,
        };
        self.layer(layer).open_path(below.strip_prefix(b"/")?)
    }

    /// Attributes of an opened file of this tree's layers; `like` are those that it was opened with.
    pub fn attr_of(&self, file: &OwnedFd, like: &Attr) -> Result<Attr, Errno> {
        let ObjectId::Disk { layer, subvol, .. } = like.id else { return Err(Errno::BADF) };
        Ok(self.disk_attr(&layer::stat_fd(file)?, layer, subvol, false))
    }

    /// The target of the symbolic link `name`.
    pub fn read_link(&self, dir: &Dir, name: &[u8]) -> Result<Vec<u8>, Errno> {
        match self.find(dir, name, &mut |_| ())?.attr.kind {
            Kind::Symlink => layer::read_link(dir.disk()?, name),
            _ => Err(Errno::INVAL),
        }
    }

    /// Figures of the storage that the rootfs is on.
    pub fn statfs(&self) -> Result<StatFs, Errno> {
        let s = rustix::fs::fstatfs(self.rootfs.root())?;
        let small = |n: i64| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(StatFs {
            blocks: s.f_blocks,
            bfree: s.f_bfree,
            bavail: s.f_bavail,
            files: s.f_files,
            ffree: s.f_ffree,
            bsize: small(s.f_bsize),
            namelen: small(s.f_namelen),
            frsize: small(s.f_frsize),
        })
    }

    /// The newest ctime of the layers' roots and of the directories that have rules, whatever the tree shows of them: what an export's mtime
    /// must not be older than, since a removal there changes the tree and shows nowhere else. So it is with what names
    /// the owners.
    pub fn newest_root_ctime(&self) -> Result<Time, Errno> {
        let mut newest: Time = layer::stat_fd(self.rootfs.root())?.stx_ctime.into();
        if let Some(home) = &self.home {
            newest = newest.max(layer::stat_fd(home.root())?.stx_ctime.into());
        }
        for path in ["etc/passwd", "etc/group"] {
            if let Ok((_, st)) = self.open_system_file(path) {
                newest = newest.max(st.stx_ctime.into());
            }
        }
        self.rules.directories(|path| {
            let (layer, below) = match (path.strip_prefix(HOME.as_bytes()), &self.home) {
                (Some(rest), Some(home)) => (home, rest),
                _ => (&self.rootfs, path),
            };
            let below = below.strip_prefix(b"/").unwrap_or(below);
            let below = if below.is_empty() { b"." } else { below };
            if let Ok(fd) = layer::open_dir(layer.root(), below) {
                newest = newest.max(layer::stat_fd(&fd)?.stx_ctime.into());
            }
            Ok::<_, Errno>(())
        })?;
        Ok(newest)
    }

    /// All of a small regular file of the rootfs, whether it is exported or not; `None` if there is none, or if it is no
    /// small one. `path` is relative to the root.
    pub fn system_file(&self, path: &str) -> Option<Vec<u8>> {
        let (file, st) = self.open_system_file(path).ok()?;
        if st.stx_size > SMALL {
            return None;
        }
        let mut bytes = Vec::new();
        std::fs::File::from(file).take(SMALL).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// The target of a link of the rootfs, whether it is exported or not. `path` is relative to the root.
    pub fn system_link(&self, path: &str) -> Option<Vec<u8>> {
        let (dir, name) = path.rsplit_once('/').unwrap_or((".", path));
        let dir = layer::open_dir(self.rootfs.root(), dir.as_bytes()).ok()?;
        layer::read_link(dir, name.as_bytes()).ok()
    }

    fn open_system_file(&self, path: &str) -> Result<(OwnedFd, Statx), Errno> {
        let (dir, name) = path.rsplit_once('/').unwrap_or((".", path));
        let dir = layer::open_dir(self.rootfs.root(), dir.as_bytes())?;
        layer::open_file(&dir, name.as_bytes())
    }

    /// The files that are made rather than found.
    pub fn generated(&self) -> &[GeneratedFile] {
        &self.generated
    }

    fn owners(&self, layer: u8) -> &Owners {
        if layer == HOME_LAYER { &self.home_owners } else { &self.rootfs_owners }
    }

    fn layer(&self, layer: u8) -> &Layer {
        match &self.home {
            Some(home) if layer == HOME_LAYER => home,
            _ => &self.rootfs,
        }
    }

    fn subvol(&self, dir: &Dir, layer: u8, st: &Statx, name: &[u8]) -> u64 {
        self.layer(layer).subvol(st, (dir.0.subvol, dir.0.device), name)
    }

    fn disk_attr(&self, st: &Statx, layer: u8, subvol: u64, home: bool) -> Attr {
        let mut attr = Attr::from_disk(st, layer, subvol, self.owners(layer));
        if home {
            // The login user must be able to enter it, whatever the map says (docs/SEMANTICS.md, owners).
            (attr.uid, attr.gid) = (1000, 100);
        }
        attr
    }
}

impl Dir {
    /// Absolute path in the machine, without a slash at its end.
    pub fn path(&self) -> &[u8] {
        &self.0.path
    }

    fn disk(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.0.fd.as_ref().map(AsFd::as_fd).ok_or(Errno::NOENT)
    }
}

/// Opens a directory that becomes a layer. Its path is the caller's to vouch for; only its last component is not followed.
pub fn open_layer(path: &Path) -> Result<OwnedFd, Errno> {
    layer::open_root(rustix::fs::CWD, path)
}

/// As [`open_layer`], below a directory that somebody with fewer rights has opened.
pub fn open_layer_at(parent: &OwnedFd, name: &std::ffi::OsStr) -> Result<OwnedFd, Errno> {
    layer::open_root(parent, Path::new(name))
}

/// Reads until the buffer is full or the file ends; bytes read. An error after some bytes is an error: whoever asks takes a
/// short answer for the end of the file.
pub fn read_full(file: &OwnedFd, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let at = offset.checked_add(done as u64).ok_or(Errno::OVERFLOW)?;
        match rustix::io::pread(file, rest, at) {
            Ok(0) => break,
            Ok(count) => done = done.saturating_add(count),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// What a file's bytes are tied to: any write, truncation or replacement moves one of these (statx(2); ctime cannot be
/// set back, and on kernels from 6.13 it is fine enough to tell two writes in one tick apart).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Inode number on its file system.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// When anything about it changed last.
    pub ctime: Time,
}

/// The stamp of an opened file; as [`Tree::open_file`] for what is no regular file.
pub fn stamp(file: &OwnedFd) -> Result<Stamp, Errno> {
    let st = layer::stat_fd(file)?;
    layer::only_files(&st)?;
    Ok(Stamp { ino: st.stx_ino, size: st.stx_size, ctime: st.stx_ctime.into() })
}

/// The owner of an opened layer, on the host.
pub fn layer_owner(layer: &OwnedFd) -> Result<(u32, u32), Errno> {
    layer::stat_fd(layer).map(|st| (st.stx_uid, st.stx_gid))
}

/// Which directory an opened layer is: device and inode number.
pub fn layer_identity(layer: &OwnedFd) -> Result<(u32, u32, u64), Errno> {
    layer::stat_fd(layer).map(|st| (st.stx_dev_major, st.stx_dev_minor, st.stx_ino))
}

/// Permission bits of the regular file `path` (absolute, in the machine) below a layer, if it is one.
pub fn file_perm(layer: &OwnedFd, path: &str) -> Option<u16> {
    let (dir, name) = path.trim_start_matches('/').rsplit_once('/')?;
    let dir = layer::open_dir(layer, dir.as_bytes()).ok()?;
    let st = layer::stat_at(&dir, name.as_bytes()).ok()?;
    (Kind::of(&st) == Kind::File).then_some(st.stx_mode & 0o777)
}

/// A tree that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A directory of the machine.
    #[error("cannot look at the machine's directories: {0}")]
    Layer(#[from] Errno),
    /// The user's selection.
    #[error(transparent)]
    Rule(#[from] RuleError),
}
