//! The one way to open what a user leads to.
//!
//! A path of Codchi's state, or to a home, is made of directories and links that a user may exchange at any time, and root
//! walks it. So no path is left to the kernel: each component is opened by itself, as an `O_PATH` descriptor, which reads
//! nothing and asks no server, and is looked at before the next one is. What is refused:
//!
//! - `/proc`. Its links (`/proc/PID/root`, `cwd`, `fd/N`) lead to what a process has, not to what a path names: into other
//!   mount namespaces, and to where only the caller may go.
//! - A mount that is not in this process's own mount table: somebody made it in a namespace of their own, where they may
//!   have mounted anything, with any owner.
//! - FUSE of anybody but root. Whoever serves it may keep the walk waiting for ever and change every answer.
//! - A link of somebody else's in a sticky directory that all may write, as with `fs.protected_symlinks`, whose rule the
//!   kernel applies only to links that it follows itself (Documentation/admin-guide/sysctl/fs.rst).
//! - For root: a link of somebody else's to what is not theirs.
//!
//! The last component is opened for reading by the descriptor that was looked at. All of it is to be called with the user's
//! ids (`credentials::as_user`).

use crate::confined;
use crate::mountinfo;
use crate::quote;
use crate::sys;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat, Statx, StatxFlags};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

/// Links on one path (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Pins what is there, and nothing more.
const PIN: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Why a path is not walked to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WalkError {
    /// The kernel says no.
    #[error("{0}")]
    System(#[from] Errno),
    /// It leads where nothing may be opened.
    #[error("refused: {} {why}", quote::path(at))]
    Refused {
        /// How far it went.
        at: PathBuf,
        /// What is wrong with that place.
        why: Refusal,
    },
}

/// What a path must not lead through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// procfs.
    #[error("is in /proc, whose links lead to what processes have open; name the directory itself")]
    Proc,
    /// A mount of another mount namespace.
    #[error(
        "is on a mount that is not in the mount table of this process; mount it here, or name a directory that is"
    )]
    ForeignMount,
    /// A FUSE of somebody else's.
    #[error(
        "is on a FUSE file system of uid {0}; use a directory on a disk, or run codchifs as that user"
    )]
    Fuse(u32),
    /// A link that somebody else may have planted.
    #[error("is a link of uid {0} in a directory that everybody may write; remove it")]
    StickyLink(u32),
    /// A link of somebody else's that leads root to what is not theirs.
    #[error(
        "is where a link of uid {0} leads, and belongs to somebody else; name it without that link"
    )]
    LinkOf(u32),
}

impl WalkError {
    /// The kernel's number, if it was the kernel.
    pub(crate) fn errno(&self) -> Option<Errno> {
        match self {
            Self::System(errno) => Some(*errno),
            Self::Refused { .. } => None,
        }
    }
}

impl From<WalkError> for io::Error {
    fn from(error: WalkError) -> Self {
        match error {
            WalkError::System(errno) => errno.into(),
            refused => Self::new(io::ErrorKind::PermissionDenied, refused),
        }
    }
}

/// Pins what `path` leads to, through links. The descriptor is good for nothing but to look at it and to go on from it.
pub(crate) fn pin(path: &Path) -> Result<OwnedFd, WalkError> {
    Walk::new(MAX_LINKS).pin(path)
}

/// As [`pin`], by a path without a link: ELOOP where there is one.
pub(crate) fn pin_direct(path: &Path) -> Result<OwnedFd, WalkError> {
    Walk::new(0).pin(path)
}

/// Opens the directory that `path` leads to for reading.
pub(crate) fn open_directory(path: &Path) -> Result<OwnedFd, WalkError> {
    Ok(directory(pin(path)?)?)
}

/// Opens the regular file that `path` leads to for reading; EINVAL for anything else, which is not opened.
pub(crate) fn open_file(path: &Path) -> Result<OwnedFd, WalkError> {
    let found = pin(path)?;
    file(&found)
}

/// Pins `name` in `dir`, one component, which may be a link itself.
pub(crate) fn pin_at(dir: impl AsFd, name: &OsStr) -> Result<OwnedFd, WalkError> {
    let mut walk = Walk { at: PathBuf::new(), mount: Some(mountinfo::id_of(&dir)?), links: 0 };
    walk.step(dir, name).map(|(found, _)| found)
}

/// What `name` in `dir` is, one component, of a link what the link is.
pub(crate) fn stat_at(dir: impl AsFd, name: &OsStr) -> Result<Stat, WalkError> {
    Ok(fs::fstat(pin_at(dir, name)?)?)
}

/// Opens the directory `name` in `dir`, one component and no link, for reading.
pub(crate) fn open_directory_at(dir: impl AsFd, name: &OsStr) -> Result<OwnedFd, WalkError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match confined::open(&dir, name, flags) {
        Err(Errno::XDEV) => Ok(directory(pin_at(dir, name)?)?),
        // A link is no directory; too many of them is something else.
        Err(Errno::LOOP) => Err(Errno::NOTDIR.into()),
        other => Ok(other?),
    }
}

/// Opens the regular file `name` in `dir`, one component and no link, for reading, without waiting for whoever holds a lease.
pub(crate) fn open_file_at(dir: impl AsFd, name: &OsStr) -> Result<OwnedFd, WalkError> {
    match confined::open(&dir, name, READ) {
        Err(Errno::XDEV) => file(&pin_at(dir, name)?),
        other => Ok(other?),
    }
}

/// Never waits for the other end of a FIFO, and takes no terminal.
const READ: OFlags =
    OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

fn directory(pinned: OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::openat(pinned, ".", flags, Mode::empty())
}

fn file(pinned: &OwnedFd) -> Result<OwnedFd, WalkError> {
    if kind(&look(pinned)?) != FileType::RegularFile {
        return Err(Errno::INVAL.into());
    }
    Ok(confined::reopen(pinned, READ)?)
}

fn kind(st: &Statx) -> FileType {
    FileType::from_raw_mode(st.stx_mode.into())
}

/// What the disk says, which is not asked to make sure.
fn look(fd: &OwnedFd) -> Result<Statx, Errno> {
    fs::statx(fd, "", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::BASIC_STATS)
}

/// One walk.
struct Walk {
    /// How far it went, for people.
    at: PathBuf,
    /// The mount that it is on, which is admitted.
    mount: Option<u64>,
    /// Links that may still be followed.
    links: usize,
}

impl Walk {
    fn new(links: usize) -> Self {
        Self { at: "/".into(), mount: None, links }
    }

    fn pin(&mut self, path: &Path) -> Result<OwnedFd, WalkError> {
        let mut dir = self.start(path)?;
        let mut left = Vec::new();
        push(&mut left, path);
        let mut planted = None;
        let root = sys::file_system_uid() == 0;
        while let Some(name) = left.pop() {
            if name == ".." {
                self.at.pop();
                dir = fs::openat(&dir, "..", PIN | OFlags::DIRECTORY, Mode::empty())?;
                self.admit(&dir)?;
                continue;
            }
            let above = look(&dir)?;
            let (next, st) = self.step(&dir, &name)?;
            if kind(&st) != FileType::Symlink {
                dir = next;
                continue;
            }
            self.links = self.links.checked_sub(1).ok_or(Errno::LOOP)?;
            if may_be_planted(&above, &st) {
                return Err(self.refused(Refusal::StickyLink(st.stx_uid)));
            }
            if root && st.stx_uid != 0 {
                planted = Some(st.stx_uid);
            }
            let target = fs::readlinkat(&next, "", Vec::new())?;
            let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
            self.at.pop();
            if target.is_absolute() {
                dir = self.start(&target)?;
            }
            push(&mut left, &target);
        }
        match planted {
            Some(uid) if look(&dir)?.stx_uid != uid => Err(self.refused(Refusal::LinkOf(uid))),
            _ => Ok(dir),
        }
    }

    /// Where a path begins. This process's root directory is its own, whatever the mount table shows of it.
    fn start(&mut self, path: &Path) -> Result<OwnedFd, WalkError> {
        let from = if path.is_absolute() { "/" } else { "." };
        let dir = fs::open(from, PIN | OFlags::DIRECTORY, Mode::empty())?;
        self.at = from.into();
        if path.is_absolute() {
            self.mount = Some(mountinfo::id_of(&dir)?);
        } else {
            self.admit(&dir)?;
        }
        Ok(dir)
    }

    /// One component on, which may be a link.
    fn step(&mut self, dir: impl AsFd, name: &OsStr) -> Result<(OwnedFd, Statx), WalkError> {
        // Asked for as a directory first: only so is something mounted that an automounter has for it.
        let opened = fs::openat(&dir, name, PIN | OFlags::DIRECTORY, Mode::empty());
        let found = match opened {
            Err(Errno::NOTDIR | Errno::LOOP) => fs::openat(&dir, name, PIN, Mode::empty())?,
            other => other?,
        };
        self.at.push(name);
        // Before anything is asked of what is mounted there.
        self.admit(&found)?;
        let st = look(&found)?;
        Ok((found, st))
    }

    /// Refuses to be on a mount that somebody else may have made.
    fn admit(&mut self, fd: &OwnedFd) -> Result<(), WalkError> {
        let id = mountinfo::id_of(fd)?;
        if self.mount == Some(id) {
            return Ok(());
        }
        // Where nothing but root can see, nobody is led astray. A process without /proc was given its directories, and
        // goes to no other mount.
        let root = rustix::process::geteuid().is_root();
        match mountinfo::find(id) {
            Ok(Some(mount)) if mount.fstype == "proc" => return Err(self.refused(Refusal::Proc)),
            Ok(Some(mount)) if root && mount.is_fuse() => match mount.owner {
                Some((0, _)) => {}
                owner => {
                    let uid = owner.map_or(u32::MAX, |(uid, _)| uid);
                    return Err(self.refused(Refusal::Fuse(uid)));
                }
            },
            Ok(None) if root => return Err(self.refused(Refusal::ForeignMount)),
            Ok(_) => {}
            Err(_) => return Err(self.refused(Refusal::ForeignMount)),
        }
        self.mount = Some(id);
        Ok(())
    }

    fn refused(&self, why: Refusal) -> WalkError {
        WalkError::Refused { at: self.at.clone(), why }
    }
}

/// The components of `path`, the first one last.
fn push(left: &mut Vec<OsString>, path: &Path) {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    let at = left.len();
    left.extend(names);
    if let Some(new) = left.get_mut(at..) {
        new.reverse();
    }
}

/// Whether a link lies where everybody may put one, and is neither ours nor the directory's owner's.
pub(crate) fn may_be_planted(above: &Statx, link: &Statx) -> bool {
    let everybodys = 0o1002;
    let uid = link.stx_uid;
    u32::from(above.stx_mode) & everybodys == everybodys
        && uid != above.stx_uid
        && uid != sys::file_system_uid()
}
