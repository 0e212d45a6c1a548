//! Confined opens below a root: the only place that touches a machine's files.
//!
//! Every open is relative to a descriptor below the layer's root and confined to that (`confined`), so whatever the machine does
//! to its tree meanwhile, no path of it leads anywhere else.
//!
//! A layer is read through a detached mount of its own where somebody may make one (root): it is read-only, opens no device
//! and moves no access time, so one open by the whole path does. It shows what is on the disk below a mount point; which
//! places those are is found out before. Elsewhere an O_PATH descriptor is looked at before anything is opened, and a
//! mount point by the mount that a name is on.

use crate::confined;
use crate::filesystem::{self, BTRFS, EXT4, OVERLAYFS, TMPFS, XFS};
use crate::mountinfo::{self, Mount};
use crate::sys;
use rustix::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{self, AtFlags, Mode, OFlags, Statx, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::path::Arg as _;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CStr;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// `STATX_SUBVOL` (linux/stat.h, kernel 6.10): rustix has the field but no name for the bit.
const STATX_SUBVOL: StatxFlags = StatxFlags::from_bits_retain(0x8000);

/// A directory of a machine, opened by whoever may: the rootfs or the home.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    quiet: bool,
    covered: Vec<PathBuf>,
}

impl Root {
    /// An opened directory, through a quiet mount where this process may make one. `covered`: over which places of it
    /// something is mounted.
    ///
    /// Only where the kernel has no such mounts, or this process no right to make any, is the directory opened the slow way.
    /// EINVAL: the directory is on a mount of another mount namespace, or on one that may not be cloned (mount(2), `MS_UNBINDABLE`).
    pub fn new(directory: OwnedFd, covered: Vec<PathBuf>) -> Result<Self, Errno> {
        let mount = match clone_mount(&directory, OpenTreeFlags::empty()) {
            Err(error @ (Errno::NOSYS | Errno::PERM)) => {
                return Ok(Self::slow(directory, covered, error));
            }
            other => other?,
        };
        match sys::quiet_mount(mount.as_fd()) {
            Ok(()) => Ok(Self { fd: mount, quiet: true, covered }),
            Err(error) => Ok(Self::slow(directory, covered, error)),
        }
    }

    /// Without a mount of its own, `because` there can be none. Opens are confined all the same, at the price of more calls,
    /// and of access times that move.
    pub fn slow(directory: OwnedFd, covered: Vec<PathBuf>, because: Errno) -> Self {
        tracing::info!(%because, "no mount of our own for a machine's directory: opening the slow way");
        Self { fd: directory, quiet: false, covered }
    }

    /// Through a mount that is [`Apart`] from all else.
    pub fn apart(directory: &OwnedFd, how: Apart, covered: Vec<PathBuf>) -> Result<Self, Errno> {
        Ok(Self::parted(how.part(directory)?, how, covered))
    }

    /// One that was made [`Apart`] in this way before.
    pub fn parted(fd: OwnedFd, how: Apart, covered: Vec<PathBuf>) -> Self {
        Self { fd, quiet: how.is_quiet(), covered }
    }

    /// As another process opened it, apart, for this one, which was [`all_is_handed_over`].
    pub fn handed_over(fd: OwnedFd, covered: Vec<PathBuf>) -> Self {
        Self { fd, quiet: HANDED_OVER.get() == Some(&Apart::Quietly), covered }
    }

    /// The directory itself.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// The same, to hand over.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

/// Places below `directory` over which something is mounted by `table`, relative to it.
pub(crate) fn covered(directory: &OwnedFd, table: &[Mount]) -> Vec<PathBuf> {
    path_of(directory).map_or_else(|_| Vec::new(), |path| mountinfo::below(table, &path))
}

/// Where an opened directory is in this process's namespace, without symbolic links.
pub(super) fn path_of(directory: &OwnedFd) -> Result<PathBuf, Errno> {
    let link = fs::readlink(format!("/proc/self/fd/{}", directory.as_raw_fd()), Vec::new())?;
    Ok(OsString::from_vec(link.into_bytes()).into())
}

/// One of the directories that an exported tree is made of (the rootfs, the home).
#[derive(Debug)]
pub(crate) struct Layer {
    root: OwnedFd,
    /// Whether `root` is on a mount of our own, which is nowhere but here.
    quiet: bool,
    mount: u64,
    /// On a mount of our own: over what others have mounted something, with the directories and names that it has there. Other
    /// hard links of a file are not covered.
    covered: HashMap<Identity, Vec<(Identity, Vec<u8>)>>,
    subvol: Option<u64>,
    /// The root's.
    device: (u32, u32),
    /// Files have the device of the file system below that they come from, and its inode number; directories have the
    /// layer's own.
    stacked: bool,
    /// One file system without subvolumes: all that is on the mount has the root's device.
    flat: bool,
    /// No extended attribute changes but that the ctime does.
    ctime_tells: bool,
}

/// Device and inode number.
type Identity = ((u32, u32), u64);

fn identity(st: &Statx) -> Identity {
    (device(st), st.stx_ino)
}

/// Bytes of the longest path that a system call takes, without its NUL (linux/limits.h, `PATH_MAX`).
pub const LONGEST_PATH: usize = 4095;

impl Layer {
    /// Everything on the mount that `root` is on.
    pub(crate) fn new(root: Root) -> Result<Self, Errno> {
        let Root { fd: root, quiet, covered } = root;
        let st = stat_fd(&root)?;
        let mut places: HashMap<Identity, Vec<_>> = HashMap::new();
        for path in covered.iter().filter(|_| quiet) {
            let Ok((what, place)) = covered_place(&root, path) else { continue };
            places.entry(what).or_default().push(place);
        }
        let kind = filesystem::of(&root);
        Ok(Self {
            root,
            quiet,
            mount: st.stx_mnt_id,
            covered: places,
            subvol: subvol(&st),
            device: device(&st),
            stacked: kind == Ok(OVERLAYFS),
            flat: matches!(kind, Ok(EXT4 | XFS | TMPFS)),
            ctime_tells: matches!(kind, Ok(EXT4 | XFS | BTRFS)),
        })
    }

    /// Whether a directory of this layer is on its root's device and in its subvolume, whoever put it there.
    pub(crate) fn is_flat(&self) -> bool {
        self.flat
    }

    /// Whether an extended attribute cannot change without a change of the ctime. On tmpfs it can (before kernel 6.1), and
    /// what a server or another file system below does, nobody knows.
    pub(crate) fn ctime_tells(&self) -> bool {
        self.ctime_tells
    }

    /// Opens the file `path` below the layer's root; `None` if only [`open_file`] can. Whether it is a regular file is
    /// the caller's to look at: a FIFO that takes its place at this very moment is opened, which its writer may notice.
    pub(crate) fn open_path(&self, path: &[u8]) -> Option<Result<OwnedFd, Errno>> {
        // Step by step a path is as many calls as it has names, and the way by its directory is shorter.
        if !self.quiet || path.len() > LONGEST_PATH || confined::is_stepwise() {
            return None;
        }
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let opened = patiently(|| confined::open(&self.root, path, flags));
        Some(opened.map_err(|error| match error {
            // A device: the mount has none.
            Errno::ACCESS if self.is_device(path) => Errno::NXIO,
            other => other,
        }))
    }

    fn is_device(&self, path: &[u8]) -> bool {
        let found = confined::open(&self.root, path, confined::PIN);
        let kind = found.and_then(stat_fd).map(|st| kind_of(&st));
        matches!(kind, Ok(fs::FileType::CharacterDevice | fs::FileType::BlockDevice))
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Whether `name` in `dir`, which `st` is of, lies on another mount than this layer: its contents are not the machine's.
    pub(crate) fn is_mount_point(&self, dir: impl AsFd, name: &[u8], st: &Statx) -> bool {
        if st.stx_mask & StatxFlags::MNT_ID.bits() != 0 && st.stx_mnt_id != self.mount {
            return true;
        }
        let places = match self.covered.is_empty() {
            true => None,
            false => self.covered.get(&identity(st)),
        };
        let Some(places) = places else { return false };
        // A directory has one place, wherever it was moved to.
        if kind_of(st) == fs::FileType::Directory {
            return true;
        }
        // Where that cannot be found out, it is not shown rather than shown wrongly.
        stat_fd(dir).map_or(true, |dir| {
            let dir = identity(&dir);
            places.iter().any(|(parent, covered)| *parent == dir && covered == name)
        })
    }

    /// The subvolume of `st`: 0 for that of the layer's root. `parent` is what its directory's is; before kernel 6.10
    /// a change of device without a change of mount marks the root of one, and its path has to name it.
    ///
    /// Only a directory can be the root of a subvolume. A file with another device comes from another file system below an
    /// overlay (Documentation/filesystems/overlayfs.rst, "Inode properties"): all of that one are told from others by their
    /// device alone, since the names of a file may be anywhere.
    pub(crate) fn subvol(&self, st: &Statx, parent: (u64, (u32, u32)), name: &[u8]) -> u64 {
        let directory = kind_of(st) == fs::FileType::Directory;
        if self.stacked || (!directory && subvol(st).is_none()) {
            if device(st) == if self.stacked { self.device } else { parent.1 } {
                return if self.stacked { 0 } else { parent.0 };
            }
            // As far from the layer's own as it was given out: the numbers themselves are others after each mount.
            let (major, minor) = device(st);
            let distance = [major.wrapping_sub(self.device.0), minor.wrapping_sub(self.device.1)];
            return xxhash_rust::xxh3::xxh3_64(&distance.map(u32::to_le_bytes).concat()) | 1;
        }
        match (subvol(st), self.subvol) {
            (Some(mine), Some(root)) if mine == root => 0,
            (Some(mine), _) => mine,
            (None, _) if device(st) == parent.1 => parent.0,
            (None, _) => xxhash_rust::xxh3::xxh3_64_with_seed(name, parent.0) | 1,
        }
    }
}

/// What is at `path` below a layer's root, and where that is.
fn covered_place(root: &OwnedFd, path: &Path) -> Result<(Identity, (Identity, Vec<u8>)), Errno> {
    let name = path.file_name().ok_or(Errno::INVAL)?.as_bytes().to_vec();
    let parent = path.parent().map_or(&b"."[..], |parent| parent.as_os_str().as_bytes());
    let parent = confined::pin(root, if parent.is_empty() { &b"."[..] } else { parent })?;
    let what = confined::pin(&parent, &*name).and_then(stat_fd)?;
    Ok((identity(&what), (identity(&stat_fd(parent)?), name)))
}

/// Opens the directory `path`, not following its last component.
pub(crate) fn open_root(dir: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    read_quietly(|flags| {
        fs::openat(&dir, path, flags | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
    })
}

fn subvol(st: &Statx) -> Option<u64> {
    (st.stx_mask & STATX_SUBVOL.bits() != 0).then_some(st.stx_subvol)
}

/// The device a file is on, as statx(2) says; btrfs gives these out in order of first access, so no number is made of it.
pub(crate) fn device(st: &Statx) -> (u32, u32) {
    (st.stx_dev_major, st.stx_dev_minor)
}

fn statx(dir: impl AsFd, name: &[u8], flags: AtFlags) -> Result<Statx, Errno> {
    let want = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID | STATX_SUBVOL;
    fs::statx(dir, name, flags | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, want)
}

/// statx(2) of the entry `name`, never following it.
pub(crate) fn stat_at(dir: impl AsFd, name: &[u8]) -> Result<Statx, Errno> {
    // What is mounted in the machine may be a dead network, or this very mount: it must not be asked. Disks have
    // nothing to sync with.
    statx(dir, name, AtFlags::STATX_DONT_SYNC)
}

/// statx(2) of an open descriptor.
pub(crate) fn stat_fd(fd: impl AsFd) -> Result<Statx, Errno> {
    statx(fd, b"", AtFlags::EMPTY_PATH)
}

/// Opens the directory `path` (one or more components) below `dir`.
pub(crate) fn open_dir(dir: impl AsFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    read_quietly(|flags| confined::open(&dir, path, flags | OFlags::DIRECTORY))
}

/// Opens the regular file `name` in `dir`; everything else is refused without being opened: ELOOP for a link, EISDIR,
/// ENXIO for a FIFO, socket or device (opening a FIFO wakes its writer, opening a device may do anything).
///
/// An O_PATH descriptor pins the object, its type is looked at, and only then is that very object opened.
pub(crate) fn open_file(dir: impl AsFd, name: &[u8]) -> Result<(OwnedFd, Statx), Errno> {
    open_pinned(confined::pin(&dir, name)?)
}

/// The same in a directory that is no machine's, where what is mounted over a file belongs to it.
pub(super) fn open_mounted_file(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    Ok(open_pinned(confined::pin_mounted(&dir, name)?)?.0)
}

fn open_pinned(pinned: OwnedFd) -> Result<(OwnedFd, Statx), Errno> {
    let st = stat_fd(&pinned)?;
    only_files(&st)?;
    Ok((patiently(|| read_quietly(|flags| confined::reopen(&pinned, flags)))?, st))
}

/// How long a lease may delay an open: those who use leases as they are meant (Samba, NFS) give them up within milliseconds.
const LEASE_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for whoever answers a mount: others wait behind this open.
const LEASE_TIMEOUT_OF_A_MOUNT: Duration = Duration::from_secs(1);
const LEASE_PAUSE: Duration = Duration::from_millis(10);

/// Opens again what a program in the machine holds a lease on (fcntl(2), `F_SETLEASE`): its first open has told the holder, who
/// has `/proc/sys/fs/lease-break-time` to let go, 45 seconds as a rule. EAGAIN after [`LEASE_TIMEOUT`].
fn patiently(open: impl Fn() -> Result<OwnedFd, Errno>) -> Result<OwnedFd, Errno> {
    let first = open();
    if !matches!(first, Err(Errno::AGAIN)) {
        return first;
    }
    let mount = HANDED_OVER.get().is_some();
    let end = Instant::now() + if mount { LEASE_TIMEOUT_OF_A_MOUNT } else { LEASE_TIMEOUT };
    loop {
        std::thread::sleep(LEASE_PAUSE);
        match open() {
            Err(Errno::AGAIN) if Instant::now() < end => {}
            other => return other,
        }
    }
}

fn kind_of(st: &Statx) -> fs::FileType {
    fs::FileType::from_raw_mode(u32::from(st.stx_mode))
}

/// Refuses all that [`open_file`] refuses.
pub(crate) fn only_files(st: &Statx) -> Result<(), Errno> {
    match kind_of(st) {
        fs::FileType::RegularFile => Ok(()),
        fs::FileType::Directory => Err(Errno::ISDIR),
        fs::FileType::Symlink => Err(Errno::LOOP),
        _ => Err(Errno::NXIO),
    }
}

/// How a directory becomes the root of a detached mount, from which no way leads to what is above or beside it. Takes
/// CAP_SYS_ADMIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Apart {
    /// The mount is quiet, and without what is mounted below.
    Quietly,
    /// It is as it was, all of it.
    Whole,
}

impl Apart {
    /// How this process can do it. Quiet mounts are since Linux 5.14; root of a user namespace may neither part what was
    /// mounted together before, nor change how access times are kept (mount_namespaces(7)).
    pub fn best() -> Self {
        let top = fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        match top.and_then(|top| quiet_mount(&top)) {
            Ok(_) => Self::Quietly,
            Err(error) => {
                tracing::debug!(%error, "no quiet mounts: opening the slow way");
                Self::Whole
            }
        }
    }

    /// Does it.
    pub fn part(self, directory: &OwnedFd) -> Result<OwnedFd, Errno> {
        match self {
            Self::Quietly => quiet_mount(directory),
            Self::Whole => clone_mount(directory, OpenTreeFlags::AT_RECURSIVE),
        }
    }

    /// Whether nothing is written through it, and no access time moved.
    pub fn is_quiet(self) -> bool {
        self == Self::Quietly
    }
}

/// A clone of the mount that `directory` is on, with that directory as its root: what is mounted below is not in it.
fn quiet_mount(directory: &OwnedFd) -> Result<OwnedFd, Errno> {
    let mount = clone_mount(directory, OpenTreeFlags::empty())?;
    sys::quiet_mount(mount.as_fd())?;
    Ok(mount)
}

fn clone_mount(directory: &OwnedFd, flags: OpenTreeFlags) -> Result<OwnedFd, Errno> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(directory, c"", clone | flags)
}

/// Of a process to which all layers are handed over: how they are apart.
static HANDED_OVER: OnceLock<Apart> = OnceLock::new();

/// Tells that this process's root directory is that of its own descriptors, and that all layers will be
/// [`Root::handed_over`]. Where they are quiet, asking for no access time, which the process may only for its user's own
/// files, is a call more for nothing.
pub fn all_is_handed_over(how: Apart) {
    // There is no second time.
    let _ = HANDED_OVER.set(how);
    confined::root_has_own_fds();
}

/// Opens without leaving an access time behind where the process may (open(2), O_NOATIME: the owner or CAP_FOWNER).
fn read_quietly(open: impl Fn(OFlags) -> Result<OwnedFd, Errno>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    if HANDED_OVER.get() == Some(&Apart::Quietly) {
        return open(flags);
    }
    match open(flags | OFlags::NOATIME) {
        Err(Errno::PERM) => open(flags),
        other => other,
    }
}

/// The target of the link `name`, raw bytes.
pub(crate) fn read_link(dir: impl AsFd, name: &[u8]) -> Result<Vec<u8>, Errno> {
    Ok(fs::readlinkat(dir, name, Vec::new())?.into_bytes())
}

/// Calls `each` with every name in `dir` but `.` and `..`, in the disk's order.
pub(crate) fn names(dir: BorrowedFd<'_>, each: impl FnMut(&[u8])) -> Result<(), Errno> {
    // A descriptor of its own: the position of a shared one belongs to all its users.
    rest_of_names(open_dir(dir, b".")?.as_fd(), each)
}

/// Bytes of names that one call may answer.
const NAMES: usize = 64 << 10;

/// As [`names`], from the position of `dir` on, which nobody else moves meanwhile.
pub(crate) fn rest_of_names(dir: BorrowedFd<'_>, mut each: impl FnMut(&[u8])) -> Result<(), Errno> {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    let mut buffer = BUFFER.with(RefCell::take);
    buffer.reserve(NAMES);
    let mut raw = fs::RawDir::new(dir, buffer.spare_capacity_mut());
    let mut read = Ok(());
    while let Some(entry) = raw.next() {
        match entry {
            Ok(entry) => match entry.file_name().to_bytes() {
                b"." | b".." => {}
                name => each(name),
            },
            Err(why) => {
                read = Err(why);
                break;
            }
        }
    }
    BUFFER.with(|place| place.replace(buffer));
    read
}

/// What the kernel takes and gives at most, of all names and of one value (linux/limits.h, `XATTR_LIST_MAX` and
/// `XATTR_SIZE_MAX`).
const XATTR_MAX: usize = 64 << 10;

/// Calls `each` with the name of every extended attribute of `name` in `dir`, never following it; `.` is `dir` itself.
/// E2BIG where the names are more than the kernel can tell anybody.
pub(crate) fn xattr_names(
    dir: BorrowedFd<'_>,
    name: &[u8],
    mut each: impl FnMut(&CStr),
) -> Result<(), Errno> {
    let names = with_c_str(name, |name| {
        fill(|buffer| match sys::list_xattr_at(dir, name, buffer) {
            // A sandbox may refuse what it does not know with EPERM, which the call itself has no use for.
            Err(Errno::NOSYS | Errno::PERM) => rustix::fs::llistxattr(below(dir, name), buffer),
            other => other,
        })
    });
    let names = match names {
        // A file system without any.
        Err(Errno::OPNOTSUPP) => return Ok(()),
        other => other?,
    };
    for name in names.split_inclusive(|byte| *byte == 0) {
        if let Ok(name) = CStr::from_bytes_with_nul(name) {
            each(name);
        }
    }
    Ok(())
}

/// The value of the extended attribute `xattr` of `name` in `dir`, never following it; `.` is `dir` itself.
pub(crate) fn xattr(dir: BorrowedFd<'_>, name: &[u8], xattr: &CStr) -> Result<Vec<u8>, Errno> {
    with_c_str(name, |name| {
        fill(|buffer| match sys::xattr_at(dir, name, xattr, buffer) {
            Err(Errno::NOSYS | Errno::PERM) => {
                rustix::fs::lgetxattr(below(dir, name), xattr, buffer)
            }
            other => other,
        })
    })
}

fn with_c_str<T>(name: &[u8], ask: impl FnOnce(&CStr) -> Result<T, Errno>) -> Result<T, Errno> {
    name.into_with_c_str(ask)
}

/// A path to `name` for kernels before 6.13. Our own table's magic link leads to `dir` itself.
fn below(dir: BorrowedFd<'_>, name: &CStr) -> Vec<u8> {
    let prefix = format!("{}{}/", confined::own_fds_path(), dir.as_raw_fd());
    [prefix.as_bytes(), name.to_bytes()].concat()
}

/// What `read` writes. Most files have nothing, and the kernel allocates as much as it is offered: a small buffer comes
/// first. The large one stays with the thread.
fn fill(read: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    let mut small = [0; 256];
    match read(&mut small) {
        Err(Errno::RANGE) => {}
        len => return Ok(small.get(..len?).unwrap_or_default().to_vec()),
    }
    let mut buffer = BUFFER.with(RefCell::take);
    buffer.resize(XATTR_MAX, 0);
    let result = read(&mut buffer);
    let bytes = result.map(|len| buffer.get(..len).unwrap_or_default().to_vec());
    BUFFER.with(|place| place.replace(buffer));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{FileType, Timespec, Timestamps, makedev, mknodat, utimensat};
    use std::fs::{create_dir, write};

    #[test]
    fn root_reads_through_a_mount_that_opens_no_device_and_moves_no_time() {
        assert!(rustix::process::geteuid().is_root(), "run the tests as root");
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        create_dir(at("d")).unwrap();
        write(at("d/file"), "text").unwrap();
        std::os::unix::fs::symlink("file", at("d/link")).unwrap();
        for (name, kind, device) in
            [("null", FileType::CharacterDevice, makedev(1, 3)), ("fifo", FileType::Fifo, 0)]
        {
            mknodat(fs::CWD, at("d").join(name), kind, Mode::RUSR, device).unwrap();
        }
        let long_ago = Timespec { tv_sec: 1, tv_nsec: 0 };
        let times = Timestamps { last_access: long_ago, last_modification: long_ago };
        utimensat(fs::CWD, at("d/file"), &times, AtFlags::empty()).unwrap();
        let root = Root::new(open_root(fs::CWD, temp.path()).unwrap(), Vec::new()).unwrap();
        let layer = Layer::new(root).unwrap();
        let open = |path: &[u8]| layer.open_path(path).expect("root has a mount of its own");
        let file = open(b"d/file").unwrap();
        let mut text = [0; 9];
        assert_eq!(rustix::io::pread(&file, &mut text, 0), Ok(4));
        assert_eq!(stat_fd(&file).unwrap().stx_atime.tv_sec, 1);
        let rest: [(&[u8], _); 4] = [
            (b"d/null", Errno::NXIO),
            (b"d/link", Errno::LOOP),
            (b"d/none", Errno::NOENT),
            (b"../etc/passwd", Errno::XDEV),
        ];
        for (path, why) in rest {
            assert_eq!(open(path).unwrap_err(), why, "{path:?}");
        }
        assert_eq!(only_files(&stat_fd(open(b"d/fifo").unwrap()).unwrap()), Err(Errno::NXIO));
        let dir = open_dir(layer.root(), b"d").unwrap();
        for (name, why) in
            [(&b"null"[..], Errno::NXIO), (b"fifo", Errno::NXIO), (b"link", Errno::LOOP)]
        {
            assert_eq!(open_file(&dir, name).unwrap_err(), why, "{name:?}");
        }
    }
}
