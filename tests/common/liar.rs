//! A FUSE server of a user that calls its mount codchifs and answers as it likes.

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyOpen, Request,
    Session, SessionACL,
};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::ffi::{CString, OsStr};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// What such a server answers.
#[derive(Clone, Debug)]
pub(crate) struct Lies {
    /// Names in the root directory.
    pub(crate) names: Vec<Vec<u8>>,
    /// After them come numbers, up to this many.
    pub(crate) numbered: u64,
    /// What each `NAME/.transfers` begins with.
    pub(crate) text: Vec<u8>,
    /// Comes after it again and again, up to `length`.
    pub(crate) filler: u8,
    pub(crate) length: u64,
    /// The size in the attributes of each `NAME/.transfers`; with none, reads are not cut at it.
    pub(crate) size: Option<u64>,
}

impl Lies {
    /// One machine with this text.
    pub(crate) fn text(text: impl Into<Vec<u8>>) -> Self {
        let (names, text) = (vec![b"m".to_vec()], text.into());
        Self { names, numbered: 0, length: text.len() as u64, text, filler: b' ', size: None }
    }
}

/// The inode of the first name's directory, and what that of its file has more.
const FIRST: u64 = 2;
const FILE: u64 = 1 << 40;
/// Kept by nobody.
const TTL: Duration = Duration::ZERO;

/// Such a server, until it is dropped.
#[derive(Debug)]
pub(crate) struct Liar {
    point: PathBuf,
}

impl Liar {
    /// On a directory that is there, as fusermount3 would mount it for `uid`.
    pub(crate) fn new(point: &Path, uid: u32, kind: &str, lies: Lies) -> Self {
        let device = openat(CWD, "/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let device = device.unwrap();
        let fd = device.as_raw_fd();
        let options = format!("fd={fd},rootmode=40000,user_id={uid},group_id={uid},allow_other");
        let options = CString::new(options).unwrap();
        mount("liar", point, kind, MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())
            .unwrap();
        let session =
            Session::from_fd(Server { lies, uid }, device, SessionACL::All, Config::default());
        let session = session.unwrap();
        // Ends with the mount.
        std::thread::spawn(move || session.spawn().map(fuser::BackgroundSession::join));
        Self { point: point.into() }
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        let _ = unmount(&self.point, UnmountFlags::DETACH);
    }
}

struct Server {
    lies: Lies,
    uid: u32,
}

impl Server {
    fn attributes(&self, ino: u64) -> FileAttr {
        let is_file = ino & FILE != 0;
        let time = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino: INodeNo(ino),
            size: if is_file { self.lies.size.unwrap_or(0) } else { 0 },
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: if is_file { FileType::RegularFile } else { FileType::Directory },
            perm: if is_file { 0o600 } else { 0o755 },
            nlink: 1,
            uid: self.uid,
            gid: self.uid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn name(&self, index: u64) -> Option<Vec<u8>> {
        let given = self.lies.names.len() as u64;
        match self.lies.names.get(index as usize) {
            Some(name) => Some(name.clone()),
            None if index - given < self.lies.numbered => Some(format!("m{index}").into()),
            None => None,
        }
    }
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let ino = match (parent.0, name.as_bytes()) {
            (1, name) => match self.lies.names.iter().position(|one| one == name) {
                Some(index) => Some(FIRST + index as u64),
                None => str::from_utf8(name)
                    .ok()
                    .and_then(|name| name.strip_prefix('m')?.parse::<u64>().ok())
                    .map(|index| FIRST + index),
            },
            (directory, b".transfers") => Some(directory | FILE),
            _ => None,
        };
        match ino {
            Some(ino) => reply.entry(&TTL, &self.attributes(ino), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(ino.0));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let flags = match self.lies.size {
            Some(_) => FopenFlags::empty(),
            None => FopenFlags::FOPEN_DIRECT_IO,
        };
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let end = self.lies.length.min(offset + u64::from(size));
        let text = self.lies.text.get(offset as usize..).unwrap_or_default();
        let mut bytes = text.to_vec();
        bytes.resize(end.saturating_sub(offset) as usize, self.lies.filler);
        reply.data(&bytes);
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        for index in offset.. {
            let Some(name) = self.name(index) else { break };
            let ino = INodeNo(FIRST + index);
            if reply.add(ino, index + 1, FileType::Directory, OsStr::from_bytes(&name)) {
                break;
            }
        }
        reply.ok();
    }
}
