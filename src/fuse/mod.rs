//! The kernel's protocol: the only module that knows fuser. Each operation is one call into
//! [`crate::vfs`] and one reply; mounting is in `session`.

mod background;
mod convert;
mod errands;
mod error;
mod mount;
mod mounts;
mod owed;
mod passthrough;
mod point;
mod readonly;
mod session;

pub use error::MountError;
pub use mount::{Attached, MountOptions, Stop, attach, check, signal_self, unmount};
pub(crate) use mounts::transfers;
pub use mounts::{Health, mounted};
pub use session::{answer, serve};

use crate::vfs::{Barrier, Cache, Opened, Seek, Vfs};
use background::{Background, Work};
use convert::{attr, errno, kind};
use errands::Errands;
use fuser::{
    AccessFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use owed::{Callers, Owed, Waits};
use passthrough::{Backing, Backings};
use rustix::io::Errno as Sys;
use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Largest read that the kernel may send at once; it sends no writes. Bounds our buffers.
const MOST_AT_ONCE: u32 = 1 << 20;

/// Asynchronous reads that the kernel may send before one of them is answered.
const MAX_BACKGROUND: u16 = 4096;

/// Capabilities asked for, each if the kernel has it.
const CAPABILITIES: [InitFlags; 6] = [
    InitFlags::FUSE_ASYNC_READ,
    // Without it, `ls NAME/` waits behind a lookup that scans.
    InitFlags::FUSE_PARALLEL_DIROPS,
    // Without it, pages of a file that changed stay.
    InitFlags::FUSE_AUTO_INVAL_DATA,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_MAX_PAGES,
];
// Not FUSE_ASYNC_DIO: after an asynchronous read of a file opened with O_DIRECT the kernel does not move its position.
// Not FUSE_CACHE_SYMLINKS: the kernel keeps a target in the page cache, beyond any ttl.
// Not FUSE_NO_OPEN_SUPPORT: an open is the only look at a file rewritten with size and mtime kept.

/// The adaptor.
struct Adaptor {
    vfs: Arc<Vfs>,
    background: Background,
    /// Who waits for that.
    callers: Arc<Callers>,
    /// What the kernel is told.
    errands: Arc<Errands>,
    /// The one user besides root who gets in, where the kernel lets everybody through.
    only: Option<u32>,
    /// Everybody gets in, and the kernel checks permissions.
    kernel_checks: bool,
    /// Large files are read by the kernel itself, where it can.
    backings: Option<Backings>,
}

/// Runs `job`; a panic is logged and nothing more: what it owned is dropped, and a dropped reply
/// answers EIO. An uncaught one would end the session's thread and with it the mount.
fn survive(op: &str, job: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(job)) {
        let text = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_default();
        tracing::error!(op, panic = text, "a handler panicked; answered EIO");
        // Dropping what a panic carries may panic in turn.
        std::mem::forget(panic);
    }
}

/// Logs an error where it is sent, and nowhere else.
fn failed(op: &str, ino: u64, error: Sys) -> Errno {
    match error {
        // What a healthy mount answers all day.
        Sys::NOENT
        | Sys::STALE
        | Sys::NODATA
        | Sys::RANGE
        | Sys::ROFS
        | Sys::ACCESS
        | Sys::OPNOTSUPP
        | Sys::NXIO
        | Sys::NAMETOOLONG
        // Nobody waits any more.
        | Sys::INTR => tracing::debug!(op, ino, %error),
        _ => tracing::warn!(op, ino, %error, "operation failed"),
    }
    errno(error)
}

impl Adaptor {
    /// Refuses everybody but root and the owner, where that is ours to do.
    fn admit(&self, req: &Request) -> Result<(), Sys> {
        match self.only {
            Some(owner) if req.uid() != owner && req.uid() != 0 => Err(Sys::ACCESS),
            _ => Ok(()),
        }
    }

    /// What the kernel is to read instead of asking, for a file just opened.
    fn backing(
        &self,
        ino: u64,
        opened: &Opened,
        how: OpenFlags,
        reply: &ReplyOpen,
    ) -> Option<Arc<Backing>> {
        let size = opened.plain?;
        let backings = self.backings.as_ref()?;
        backings.enter(ino, || {
            // Not every file system takes O_DIRECT, while we do.
            if size < passthrough::WORTH_IT || how.0 & libc::O_DIRECT != 0 {
                return None;
            }
            let made = self.vfs.with_file(opened.handle, |file| backings.back(reply, file))?;
            made.inspect_err(|error| tracing::debug!(ino, %error, "read in the usual way")).ok()
        })
    }
}

fn reply_entry(reply: ReplyEntry, op: &str, parent: u64, found: Result<crate::vfs::Entry, Sys>) {
    match found {
        Ok(entry) => reply.entry_with_ttls(
            &entry.attr_ttl,
            &entry.entry_ttl,
            &attr(&entry.attr),
            Generation(0),
        ),
        Err(error) => reply.error(failed(op, parent, error)),
    }
}

fn reply_xattr(reply: ReplyXattr, ino: u64, size: u32, value: Result<Vec<u8>, Sys>) {
    let length = value.as_ref().map_or(0, |value| u32::try_from(value.len()).unwrap_or(u32::MAX));
    match value {
        Ok(_) if size == 0 => reply.size(length),
        Ok(_) if length > size => reply.error(errno(Sys::RANGE)),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(failed("xattr", ino, error)),
    }
}

fn answer_read(
    errands: &Errands,
    machine: impl FnOnce() -> Arc<str>,
    ino: u64,
    count: Result<usize, Sys>,
    barrier: Option<Barrier>,
    buffer: &[u8],
    reply: ReplyData,
) {
    let data = match count {
        Ok(count) => buffer.get(..count).unwrap_or_default(),
        Err(error) => return reply.error(failed("read", ino, error)),
    };
    let Some(barrier) = barrier else { return reply.data(data) };
    let data = data.to_vec();
    errands.answer(machine(), ino, move || {
        barrier.pass();
        reply.data(&data);
    });
}

/// A buffer that stays with the thread.
fn with_buffer<T>(use_it: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    // Taken, not borrowed: a panic inside leaves an empty buffer and no borrow behind.
    let mut buffer = BUFFER.with(RefCell::take);
    let result = use_it(&mut buffer);
    BUFFER.with(|place| place.replace(buffer));
    result
}

impl Filesystem for Adaptor {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Where the kernel decides who reads what, ACLs count as well: the group's bits alone are wider than an ACL that
        // has a mask. Everywhere else it would bring the kernel's checks with it, and the owner reads everything.
        let acl = self.kernel_checks.then_some(InitFlags::FUSE_POSIX_ACL);
        for capability in CAPABILITIES.into_iter().chain(acl) {
            if config.add_capabilities(capability).is_err() {
                tracing::debug!(?capability, "the kernel does not have this");
            }
        }
        self.backings = self.backings.take().filter(|_| passthrough::ask(config));
        // The kernel keeps further asynchronous reads back, those of other machines as well: the default is 12, and readers of
        // a machine that does not answer would be as many.
        if let Err(nearest) = config.set_max_background(MAX_BACKGROUND) {
            tracing::debug!(nearest, "another limit for reads that nobody waits for");
        }
        if let Err(nearest) = config.set_max_write(MOST_AT_ONCE) {
            tracing::debug!(nearest, "another limit for one request");
        }
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        survive("lookup", || {
            if let Err(error) = self.admit(req) {
                return reply.error(failed("lookup", parent.0, error));
            }
            match self.vfs.lookup_at_once(parent.0, name.as_bytes()) {
                Some(found) => reply_entry(reply, "lookup", parent.0, found),
                None => {
                    let (vfs, name) = (Arc::clone(&self.vfs), name.to_owned());
                    let machine = self.vfs.machine_of(parent.0);
                    let owed = self.callers.owe(req.pid(), reply);
                    let caller = Arc::<Owed<ReplyEntry>>::clone(&owed);
                    self.background.run_for(caller, machine, Work::Look, move || {
                        let found = vfs.lookup(parent.0, name.as_bytes());
                        match (owed.take(), found) {
                            (Some(reply), found) => reply_entry(reply, "lookup", parent.0, found),
                            // The kernel was not sent this lookup, and will not give it back.
                            (None, Ok(entry)) => vfs.forget(entry.attr.ino, 1),
                            (None, Err(_)) => {}
                        }
                    });
                }
            }
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        survive("forget", || self.vfs.forget(ino.0, nlookup));
    }

    fn getattr(&self, req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        survive("getattr", || {
            let handle = fh.map(|fh| fh.0);
            match self.admit(req).and_then(|()| self.vfs.getattr(ino.0, handle)) {
                Ok(entry) => reply.attr(&entry.attr_ttl, &attr(&entry.attr)),
                Err(error) => reply.error(failed("getattr", ino.0, error)),
            }
        });
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        survive("readlink", || match self.admit(req).and_then(|()| self.vfs.readlink(ino.0)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(failed("readlink", ino.0, error)),
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, how: OpenFlags, reply: ReplyOpen) {
        survive("open", || {
            let may = self.admit(req).and_then(|()| self.vfs.may_open(ino.0, req.uid()));
            let opened = may.and_then(|()| {
                if how.acc_mode() == fuser::OpenAccMode::O_RDONLY {
                    self.vfs.open(ino.0, req.pid())
                } else {
                    Err(Sys::ROFS)
                }
            });
            match opened {
                Ok(opened) => {
                    let mut flags = match opened.cache {
                        Cache::Keep => FopenFlags::FOPEN_KEEP_CACHE,
                        Cache::Drop => FopenFlags::empty(),
                    };
                    // A round trip less for every file of a tree.
                    flags.set(FopenFlags::FOPEN_NOFLUSH, !opened.close_tells);
                    let handle = FileHandle(opened.handle);
                    let backing = self.backing(ino.0, &opened, how, &reply);
                    if opened.resized {
                        self.vfs.notice_size(opened.handle, backing.is_none());
                    }
                    let answer = move || match backing.as_ref().and_then(|backing| backing.id()) {
                        // It is an error to keep what is not cached.
                        Some(id) => {
                            flags.remove(FopenFlags::FOPEN_KEEP_CACHE);
                            reply.opened_passthrough(handle, flags, id);
                        }
                        None => reply.opened(handle, flags),
                    };
                    match opened.resized {
                        true => self.errands.answer(self.vfs.machine_of(ino.0), ino.0, answer),
                        false => answer(),
                    }
                }
                Err(error) => reply.error(failed("open", ino.0, error)),
            }
        });
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if let Some(slow) = self.vfs.slow_read(fh.0, req.pid(), size) {
            let (vfs, errands) = (Arc::clone(&self.vfs), Arc::clone(&self.errands));
            let machine = self.vfs.machine_of(ino.0);
            let of = Arc::clone(&machine);
            let owed = self.callers.owe(req.pid(), reply);
            let caller = Arc::<Owed<ReplyData>>::clone(&owed);
            return self.background.run_for(caller, machine, Work::Read, move || {
                let mut buffer = Vec::new();
                let wanted = || owed.waits() && slow.is_wanted();
                let (count, barrier) = vfs.read(fh.0, offset, size, &wanted, &mut buffer);
                if let Some(reply) = owed.take() {
                    answer_read(&errands, || of, ino.0, count, barrier, &buffer, reply);
                }
            });
        }
        survive("read", || {
            with_buffer(|buffer| {
                let (count, barrier) = self.vfs.read(fh.0, offset, size, &|| true, buffer);
                let machine = || self.vfs.machine_of(ino.0);
                answer_read(&self.errands, machine, ino.0, count, barrier, buffer, reply);
            });
        });
    }

    /// Always answered: one ENOSYS would end all of them, and with them the EIO that tells cp
    /// that its copy is torn.
    fn flush(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        survive("flush", || match self.vfs.flush(fh.0, req.pid()) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(failed("flush", ino.0, error)),
        });
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        survive("release", || {
            if let Some(backings) = &self.backings {
                backings.leave(ino.0);
            }
            self.vfs.release(fh.0);
            reply.ok();
        });
    }

    /// There is never anything to write out, and fsync(2) on a read-only file succeeds.
    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        survive("opendir", || match self.admit(req).and_then(|()| self.vfs.open_dir(ino.0)) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(error) => reply.error(failed("opendir", ino.0, error)),
        });
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        survive("readdir", || {
            let result = self.vfs.read_dir(fh.0, offset, false, &mut |entry| {
                let name = OsStr::from_bytes(entry.name);
                reply.add(INodeNo(entry.ino), entry.offset, kind(entry.kind), name)
            });
            match result {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(failed("readdir", ino.0, error)),
            }
        });
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        survive("readdirplus", || {
            let result = self.vfs.read_dir(fh.0, offset, true, &mut |entry| {
                let (attr, ttl) = convert::plus(entry);
                let name = OsStr::from_bytes(entry.name);
                reply.add(INodeNo(entry.ino), entry.offset, name, &ttl, &attr, Generation(0))
            });
            match result {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(failed("readdirplus", ino.0, error)),
            }
        });
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        survive("releasedir", || {
            self.vfs.release(fh.0);
            reply.ok();
        });
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        survive("statfs", || match self.admit(req).and_then(|()| self.vfs.statfs(ino.0)) {
            Ok(s) => reply.statfs(
                s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.frsize,
            ),
            Err(error) => reply.error(failed("statfs", ino.0, error)),
        });
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        survive("getxattr", || {
            let value = self.admit(req).and_then(|()| self.vfs.xattr(ino.0, name.as_bytes()));
            reply_xattr(reply, ino.0, size, value);
        });
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        survive("listxattr", || {
            let names = self.admit(req).and_then(|()| self.vfs.list_xattr(ino.0));
            reply_xattr(reply, ino.0, size, names);
        });
    }

    fn access(&self, req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        survive("access", || {
            let write = mask.contains(AccessFlags::W_OK);
            let execute = mask.contains(AccessFlags::X_OK);
            match self.admit(req).and_then(|()| self.vfs.access(ino.0, write, execute)) {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(failed("access", ino.0, error)),
            }
        });
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        survive("lseek", || {
            let to = match whence {
                libc::SEEK_DATA => Ok(Seek::Data),
                libc::SEEK_HOLE => Ok(Seek::Hole),
                // The kernel does the others itself.
                _ => Err(Sys::INVAL),
            };
            match to.and_then(|to| self.vfs.seek(fh.0, offset, to)) {
                Ok(offset) => reply.offset(offset),
                Err(error) => reply.error(failed("lseek", ino.0, error)),
            }
        });
    }

    readonly::operations!();
}
