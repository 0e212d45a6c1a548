//! Where a file is written to: found without being led anywhere by somebody else.
//!
//! A directory on the way, or the name itself, may be a link. The caller's own links and root's are followed. One of somebody
//! else's is not, where it lies in a sticky directory that everybody may write, and where it leads root to what is not theirs
//! (`walk`). What is there already is looked at before it is opened: to open a FIFO or a device is to do something with it.

use crate::filesystem::{self, BCACHEFS, BTRFS, XFS};
use crate::quote;
use crate::sys;
use crate::walk::{self, WalkError};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{self, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

/// Links one after the other in place of the file (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// A name in a directory that is open, so that nobody can exchange it any more.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) directory: OwnedFd,
    pub(super) name: OsString,
    /// For messages.
    pub(super) path: PathBuf,
    pub(super) there: There,
}

/// What has the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum There {
    Nothing,
    File,
    /// A device, a FIFO, a socket.
    Special,
}

/// Where the output goes.
#[derive(Debug)]
pub(super) enum Output {
    /// To a name in a directory.
    Place(Place),
    /// To a descriptor that this process has, as `/dev/stdout`.
    Open(File),
}

impl Output {
    /// Follows `path` to its end, and opens nothing of what is there.
    pub(super) fn find(path: &Path) -> io::Result<Self> {
        if path.as_os_str().as_bytes().ends_with(b"/") {
            return Err(is_directory(path));
        }
        let mut path = std::path::absolute(path)?;
        let (me, mut planted) = (rustix::process::geteuid().as_raw(), None);
        for _ in 0..=MAX_LINKS {
            if let Some(number) = descriptor(&path).filter(|_| planted.is_none()) {
                return Ok(Self::Open(sys::duplicate(number)?.into()));
            }
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                return Err(is_directory(&path));
            };
            let directory = walk::pin(parent)?;
            let above = fs::fstat(&directory)?;
            let found = match walk::pin_at(&directory, name) {
                Ok(found) => Some((fs::fstat(&found)?, found)),
                Err(why) if why.errno() == Some(Errno::NOENT) => None,
                Err(WalkError::System(why)) => return Err(why.into()),
                // Only the name was gone by that one.
                Err(WalkError::Refused { why, .. }) => {
                    return Err(WalkError::Refused { at: path, why }.into());
                }
            };
            if let Some((st, _)) = &found
                && is_planted(&above, st, me)
            {
                let (path, uid) = (quote::path(&path), st.st_uid);
                return Err(refused(format!(
                    "{path} is uid {uid}'s, in a directory that everybody may write; remove it, or name another file"
                )));
            }
            let there = match &found {
                None => There::Nothing,
                Some((st, link)) => match FileType::from_raw_mode(st.st_mode) {
                    FileType::Symlink => {
                        if st.st_uid != me && st.st_uid != 0 {
                            planted = Some(st.st_uid);
                        }
                        let target = fs::readlinkat(link, "", Vec::new())?.into_bytes();
                        path = parent.join(PathBuf::from(OsString::from_vec(target)));
                        continue;
                    }
                    FileType::Directory => return Err(is_directory(&path)),
                    FileType::RegularFile => There::File,
                    _ => There::Special,
                },
            };
            let owner = found.as_ref().map_or(above.st_uid, |(st, _)| st.st_uid);
            if let Some(uid) = planted.filter(|uid| me == 0 && *uid != owner) {
                let path = quote::path(&path);
                return Err(refused(format!(
                    "a link of uid {uid} leads to {path}, which is uid {owner}'s; name it without that link"
                )));
            }
            if there == There::Special && owner != me && owner != 0 {
                return Err(refused(format!(
                    "{} is a FIFO or a device of uid {owner}; write to it with `-o - >{}`",
                    quote::path(&path),
                    quote::path_word(&path)
                )));
            }
            let name = name.to_owned();
            return Ok(Self::Place(Place { directory, name, path, there }));
        }
        Err(Errno::LOOP.into())
    }
}

impl Place {
    /// Opens the FIFO or the device that has the name, and nothing else.
    pub(super) fn open_special(&self) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = fs::openat(&self.directory, &self.name, flags, Mode::empty())?;
        match FileType::from_raw_mode(fs::fstat(&file)?.st_mode) {
            FileType::RegularFile => Err(changed(&self.path)),
            _ => Ok(file.into()),
        }
    }

    /// Opens the file for its end, or makes it: a log.
    pub(super) fn open_log(&self) -> io::Result<File> {
        let flags =
            OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
        let made = flags | OFlags::CREATE | OFlags::EXCL;
        let file = match self.there {
            There::Nothing => fs::openat(&self.directory, &self.name, made, private())?,
            // A FIFO that nobody reads is an error, and nothing to wait for.
            _ => fs::openat(&self.directory, &self.name, flags | OFlags::NONBLOCK, Mode::empty())?,
        };
        let (st, special) = (fs::fstat(&file)?, self.there == There::Special);
        if special == (FileType::from_raw_mode(st.st_mode) == FileType::RegularFile) {
            return Err(changed(&self.path));
        }
        let me = rustix::process::geteuid().as_raw();
        if !special && st.st_nlink != 1 && st.st_uid != me {
            let path = quote::path(&self.path);
            return Err(refused(format!("{path} has more than one name; name another file")));
        }
        fs::fcntl_setfl(&file, fs::fcntl_getfl(&file)? & !OFlags::NONBLOCK)?;
        Ok(file.into())
    }

    /// What `name` in the same directory is, of a link what the link is.
    pub(super) fn stat(&self, name: &OsStr) -> io::Result<Stat> {
        Ok(walk::stat_at(&self.directory, name)?)
    }

    /// A descriptor of the directory that can be read, and told to be on the disk.
    pub(super) fn open_directory(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        fs::openat(self.directory.as_fd(), ".", flags, Mode::empty())
    }

    /// Whether it lies in `directory`, however deep and by whatever path.
    pub(super) fn is_below(&self, directory: &OwnedFd) -> Result<bool, Errno> {
        let identity = |fd: &OwnedFd| fs::fstat(fd).map(|st| (st.st_dev, st.st_ino));
        let wanted = identity(directory)?;
        let up = |from: &OwnedFd| {
            fs::openat(
                from,
                "..",
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
        };
        let mut at =
            fs::openat(&self.directory, ".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        loop {
            let (here, above) = (identity(&at)?, up(&at)?);
            if here == wanted {
                return Ok(true);
            }
            if identity(&above)? == here {
                return Ok(false);
            }
            at = above;
        }
    }
}

/// Makes a directory and those above it that are missing, and none where somebody else leads the caller.
pub(super) fn make_directories(path: &Path) -> io::Result<()> {
    let path = std::path::absolute(path)?;
    let missing = match walk::pin(&path) {
        Err(why) if why.errno() == Some(Errno::NOENT) => why,
        done => return done.map(drop).map_err(Into::into),
    };
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(missing.into());
    };
    make_directories(parent)?;
    match fs::mkdirat(walk::pin(parent)?, name, Mode::from(0o777)) {
        Err(Errno::EXIST) | Ok(()) => Ok(()),
        Err(why) => Err(why.into()),
    }
}

/// For its owner alone.
pub(super) fn private() -> Mode {
    Mode::RUSR | Mode::WUSR
}

/// Whether it lies where everybody may put something, and is neither ours nor root's nor the directory's owner's
/// (Documentation/admin-guide/sysctl/fs.rst, `protected_symlinks`, `protected_regular`, `protected_fifos`).
fn is_planted(above: &Stat, st: &Stat, me: u32) -> bool {
    above.st_mode & 0o1002 == 0o1002 && ![me, 0, above.st_uid].contains(&st.st_uid)
}

/// The number of the descriptor that a path of proc(5) stands for.
fn descriptor(path: &Path) -> Option<i32> {
    let number = match path.to_str()? {
        "/dev/stdout" => return Some(1),
        "/dev/stderr" => return Some(2),
        path => path.strip_prefix("/dev/fd/").or_else(|| path.strip_prefix("/proc/self/fd/"))?,
    };
    number.parse().ok().filter(|number| *number >= 0)
}

fn refused(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

fn changed(path: &Path) -> io::Error {
    io::Error::other(format!(
        "{} became something else at this moment; try again",
        quote::path(&path)
    ))
}

fn is_directory(path: &Path) -> io::Error {
    let example = path.join("NAME.tar");
    io::Error::new(
        io::ErrorKind::IsADirectory,
        format!("it is a directory; name the file to write, such as {}", quote::path(&example)),
    )
}

/// Whether files on the file system of `directory` can share blocks.
pub(super) fn shares_blocks(place: &Place) -> bool {
    matches!(filesystem::of(&place.directory), Ok(BTRFS | XFS | BCACHEFS))
}
