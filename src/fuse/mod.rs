//! The kernel's protocol: the only module that knows fuser. Each operation is one call into
//! [`crate::vfs`] and one reply; mounting is in `session`.

mod abort;
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
mod requests;
mod session;

pub use error::MountError;
pub use mount::{Attached, MountOptions, Stop, attach, check, signal_self, unmount};
pub(crate) use mounts::transfers;
pub use mounts::{Health, mounted};
pub use session::{answer, serve};

use crate::vfs::Vfs;
use background::{Background, Work};
use convert::errno;
use fuser::{
    AccessFlags, Errno, FileHandle, Filesystem, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use passthrough::Backings;
use requests::Requests;
use rustix::io::Errno as Sys;
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

/// The adaptor: hands each request to [`Requests`], with nothing of fuser but the reply.
struct Adaptor {
    requests: Arc<Requests>,
    /// The one user besides root who gets in, where the kernel lets everybody through.
    only: Option<u32>,
    /// Everybody gets in, and the kernel checks permissions.
    kernel_checks: bool,
    /// Has the kernel read large files by itself; taken when it says whether it can.
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

    fn vfs(&self) -> &Vfs {
        &self.requests.vfs
    }

    /// The machine that a number is of.
    fn machine(&self, ino: INodeNo) -> Arc<str> {
        self.vfs().machine_of(ino.0)
    }
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
        if let Some(backings) = self.backings.take().filter(|_| passthrough::ask(config)) {
            // There is one INIT.
            let _ = self.requests.backings.set(backings);
        }
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
        if let Err(error) = self.admit(req) {
            return reply.error(failed("lookup", parent.0, error));
        }
        let (machine, name) = (self.vfs().machine_at(parent.0, name.as_bytes()), name.to_owned());
        let of = Arc::clone(&machine);
        self.requests.answer("lookup", req.pid(), machine, reply, move |requests, owed| {
            requests.lookup(owed, of, parent.0, &name);
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        survive("forget", || self.vfs().forget(ino.0, nlookup));
    }

    fn getattr(&self, req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        if let Err(error) = self.admit(req) {
            return reply.error(failed("getattr", ino.0, error));
        }
        let handle = fh.map(|fh| fh.0);
        self.requests.answer("getattr", req.pid(), self.machine(ino), reply, move |all, owed| {
            all.getattr(&owed, ino.0, handle);
        });
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        if let Err(error) = self.admit(req) {
            return reply.error(failed("readlink", ino.0, error));
        }
        self.requests.answer("readlink", req.pid(), self.machine(ino), reply, move |all, owed| {
            all.readlink(&owed, ino.0);
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, how: OpenFlags, reply: ReplyOpen) {
        let may = self.admit(req).and_then(|()| match how.acc_mode() {
            fuser::OpenAccMode::O_RDONLY => Ok(()),
            _ => Err(Sys::ROFS),
        });
        if let Err(error) = may {
            return reply.error(failed("open", ino.0, error));
        }
        let caller = (req.uid(), req.pid());
        self.requests.answer("open", req.pid(), self.machine(ino), reply, move |all, owed| {
            all.open(owed, ino.0, how, caller);
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
        if let Some(slow) = self.vfs().slow_read(fh.0, req.pid(), size) {
            let what = (offset, size);
            return self.requests.read_slowly(slow, req.pid(), ino.0, fh.0, what, reply);
        }
        self.requests.answer("read", req.pid(), self.machine(ino), reply, move |all, owed| {
            all.read(owed, ino.0, fh.0, offset, size);
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
        survive("flush", || match self.vfs().flush(fh.0, req.pid()) {
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
        let machine = self.machine(ino);
        self.requests.silently("release", machine, move |all| all.release(ino.0, fh.0));
        reply.ok();
    }

    /// There is never anything to write out, and fsync(2) on a read-only file succeeds.
    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if let Err(error) = self.admit(req) {
            return reply.error(failed("opendir", ino.0, error));
        }
        self.requests.answer("opendir", req.pid(), self.machine(ino), reply, move |all, owed| {
            all.opendir(&owed, ino.0);
        });
    }

    fn readdir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        self.requests.answer("readdir", req.pid(), self.machine(ino), reply, move |all, owed| {
            all.readdir(&owed, ino.0, fh.0, offset);
        });
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let machine = self.machine(ino);
        self.requests.answer("readdirplus", req.pid(), machine, reply, move |all, owed| {
            all.readdirplus(&owed, ino.0, fh.0, offset);
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
            self.vfs().release(fh.0);
            reply.ok();
        });
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        if let Err(error) = self.admit(req) {
            return reply.error(failed("statfs", ino.0, error));
        }
        self.requests.answer("statfs", req.pid(), self.machine(ino), reply, move |all, owed| {
            all.statfs(&owed, ino.0);
        });
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if let Err(error) = self.admit(req) {
            return reply.error(failed("xattr", ino.0, error));
        }
        let name = name.to_owned();
        self.requests.answer("getxattr", req.pid(), self.machine(ino), reply, move |all, owed| {
            Requests::xattr(&owed, ino.0, size, all.vfs.xattr(ino.0, name.as_bytes()));
        });
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if let Err(error) = self.admit(req) {
            return reply.error(failed("xattr", ino.0, error));
        }
        self.requests.answer("listxattr", req.pid(), self.machine(ino), reply, move |all, owed| {
            Requests::xattr(&owed, ino.0, size, all.vfs.list_xattr(ino.0));
        });
    }

    fn access(&self, req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        if let Err(error) = self.admit(req) {
            return reply.error(failed("access", ino.0, error));
        }
        let write = mask.contains(AccessFlags::W_OK);
        let execute = mask.contains(AccessFlags::X_OK);
        self.requests.answer("access", req.pid(), self.machine(ino), reply, move |all, owed| {
            all.access(&owed, ino.0, write, execute);
        });
    }

    fn lseek(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.requests.answer("lseek", req.pid(), self.machine(ino), reply, move |all, owed| {
            all.lseek(&owed, ino.0, fh.0, offset, whence);
        });
    }

    readonly::operations!();
}
