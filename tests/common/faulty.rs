//! A disk that can begin to fail: a FUSE whose root has the directory `d`, with many files and one, `bad`, that can be had
//! until it is broken.

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, Request, Session, SessionACL,
};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::ffi::{CString, OsStr};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

const DIRECTORY: u64 = 2;
const BAD: u64 = 3;
/// The inode of `f0`.
const FIRST: u64 = 10;
/// Of the files beside it.
pub(crate) const FILES: u64 = 40;
/// Bytes of each file, which are all `x`.
pub(crate) const SIZE: u64 = 50_000;

/// Mounted until it is dropped.
#[derive(Debug)]
pub(crate) struct Faulty {
    point: PathBuf,
    broken: Arc<AtomicBool>,
}

impl Faulty {
    pub(crate) fn new(point: &Path) -> Self {
        let device = openat(CWD, "/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let device = device.unwrap();
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
            device.as_raw_fd()
        );
        let options = CString::new(options).unwrap();
        mount("faulty", point, "fuse.faulty", MountFlags::empty(), options.as_c_str()).unwrap();
        let broken = Arc::new(AtomicBool::new(false));
        let server = Server(Arc::clone(&broken));
        let session = Session::from_fd(server, device, SessionACL::All, Config::default()).unwrap();
        // Ends with the mount.
        std::thread::spawn(move || session.spawn().map(fuser::BackgroundSession::join));
        Self { point: point.into(), broken }
    }

    /// Whether `d/bad` cannot be had by its name from now on: an error of the disk.
    pub(crate) fn is_broken(&self, broken: bool) {
        self.broken.store(broken, Ordering::SeqCst);
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        let _ = unmount(&self.point, UnmountFlags::DETACH);
    }
}

struct Server(Arc<AtomicBool>);

fn attributes(ino: u64) -> FileAttr {
    let is_file = ino > DIRECTORY;
    let time = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(ino),
        size: if is_file { SIZE } else { 0 },
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: if is_file { FileType::RegularFile } else { FileType::Directory },
        perm: if is_file { 0o644 } else { 0o755 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let ino = match (parent.0, name.to_str().unwrap_or_default()) {
            (1, "d") => DIRECTORY,
            (DIRECTORY, "bad") if self.0.load(Ordering::SeqCst) => {
                return reply.error(Errno::EIO);
            }
            (DIRECTORY, "bad") => BAD,
            (DIRECTORY, name) => match name.strip_prefix('f').and_then(|n| n.parse::<u64>().ok()) {
                Some(number) if number < FILES => FIRST + number,
                _ => return reply.error(Errno::ENOENT),
            },
            _ => return reply.error(Errno::ENOENT),
        };
        reply.entry(&Duration::ZERO, &attributes(ino), Generation(0));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::ZERO, &attributes(ino.0));
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
        let end = SIZE.min(offset + u64::from(size));
        reply.data(&vec![b'x'; end.saturating_sub(offset) as usize]);
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let mut names = vec![(DIRECTORY, "d".to_owned())];
        if ino.0 == DIRECTORY {
            names = (0..FILES).map(|number| (FIRST + number, format!("f{number}"))).collect();
            names.push((BAD, "bad".to_owned()));
        }
        for (at, (ino, name)) in names.iter().enumerate().skip(offset as usize) {
            let kind = if *ino == DIRECTORY { FileType::Directory } else { FileType::RegularFile };
            if reply.add(INodeNo(*ino), at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}
