//! Requests of the kernel: each is answered once, by the work for it or because its caller is gone, on a thread that may wait
//! for the machine it is about.

use super::background::{Background, Work};
use super::convert::{self, attr, errno, kind};
use super::errands::Errands;
use super::owed::{Callers, Owed, Reply};
use super::passthrough::{self, Backing, Backings};
use super::{failed, survive};
use crate::vfs::{Barrier, Cache, Entry, Opened, Seek, Slow, Vfs};
use fuser::{
    FileHandle, FopenFlags, Generation, INodeNo, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr,
};
use rustix::io::Errno as Sys;
use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, OnceLock};

/// What answers them.
pub(super) struct Requests {
    pub(super) vfs: Arc<Vfs>,
    pub(super) background: Background,
    /// Who waits for an answer.
    pub(super) callers: Arc<Callers>,
    /// What the kernel is told.
    pub(super) errands: Arc<Errands>,
    /// Large files are read by the kernel itself, where it can.
    pub(super) backings: OnceLock<Backings>,
}

impl Requests {
    /// Answers a request of the thread `pid` about a machine.
    pub(super) fn answer<R: Reply>(
        self: &Arc<Self>,
        op: &'static str,
        pid: u32,
        machine: Arc<str>,
        reply: R,
        job: impl FnOnce(&Arc<Self>, Arc<Owed<R>>) + Send + 'static,
    ) {
        let owed = self.callers.owe(pid, reply);
        if let Some(_inline) = self.background.enter(&machine) {
            return survive(op, || job(self, owed));
        }
        let (requests, caller) = (Arc::clone(self), Arc::<Owed<R>>::clone(&owed));
        self.background.run_for(caller, machine, Work::Request, move || {
            survive(op, || job(&requests, owed));
        });
    }

    /// Does something for a machine that nobody waits for.
    pub(super) fn silently(
        self: &Arc<Self>,
        op: &'static str,
        machine: Arc<str>,
        job: impl FnOnce(&Self) + Send + 'static,
    ) {
        if let Some(_inline) = self.background.enter(&machine) {
            return survive(op, || job(self));
        }
        let requests = Arc::clone(self);
        self.background.run(machine, Work::Request, move || {
            survive(op, || job(&requests));
        });
    }

    pub(super) fn lookup(
        self: &Arc<Self>,
        owed: Arc<Owed<ReplyEntry>>,
        machine: Arc<str>,
        parent: u64,
        name: &OsStr,
    ) {
        let work = match self.vfs.lookup_at_once(parent, name.as_bytes()) {
            Ok(found) => return self.found(&owed, parent, found),
            Err(Slow::Scan) => Work::Scan,
            Err(Slow::Text) => Work::Text,
        };
        let (requests, name) = (Arc::clone(self), name.to_owned());
        let caller = Arc::<Owed<ReplyEntry>>::clone(&owed);
        self.background.run_for(caller, machine, work, move || {
            let found = requests.vfs.lookup(parent, name.as_bytes());
            requests.found(&owed, parent, found);
        });
    }

    fn found(&self, owed: &Owed<ReplyEntry>, parent: u64, found: Result<Entry, Sys>) {
        match (owed.take(), found) {
            (Some(reply), Ok(entry)) => reply.entry_with_ttls(
                &entry.attr_ttl,
                &entry.entry_ttl,
                &attr(&entry.attr),
                Generation(0),
            ),
            (Some(reply), Err(error)) => reply.error(failed("lookup", parent, error)),
            // The kernel was not sent this lookup, and will not give it back.
            (None, Ok(entry)) => self.vfs.forget(entry.attr.ino, 1),
            (None, Err(_)) => {}
        }
    }

    pub(super) fn getattr(&self, owed: &Owed<ReplyAttr>, ino: u64, handle: Option<u64>) {
        let found = self.vfs.getattr(ino, handle);
        let Some(reply) = owed.take() else { return };
        match found {
            Ok(entry) => reply.attr(&entry.attr_ttl, &attr(&entry.attr)),
            Err(error) => reply.error(failed("getattr", ino, error)),
        }
    }

    pub(super) fn readlink(&self, owed: &Owed<ReplyData>, ino: u64) {
        let target = self.vfs.readlink(ino);
        let Some(reply) = owed.take() else { return };
        match target {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(failed("readlink", ino, error)),
        }
    }

    /// Opens a file for the process `pid` of the user `uid`.
    pub(super) fn open(
        self: &Arc<Self>,
        owed: Arc<Owed<ReplyOpen>>,
        ino: u64,
        how: OpenFlags,
        (uid, pid): (u32, u32),
    ) {
        let opened = self.vfs.may_open(ino, uid).and_then(|()| self.vfs.open(ino, pid));
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let Some(reply) = owed.take() else { return };
                return reply.error(failed("open", ino, error));
            }
        };
        let mut flags = match opened.cache {
            Cache::Keep => FopenFlags::FOPEN_KEEP_CACHE,
            Cache::Drop => FopenFlags::empty(),
        };
        // A round trip less for every file of a tree.
        flags.set(FopenFlags::FOPEN_NOFLUSH, !opened.close_tells);
        let backing = self.backing(ino, &opened, how, &owed);
        if opened.resized {
            self.vfs.notice_size(opened.handle, backing.is_none());
        }
        let requests = Arc::clone(self);
        let answer = move || {
            if opened.behind {
                requests.vfs.is_answered(opened.handle);
            }
            let Some(reply) = owed.take() else {
                // The kernel was not sent this handle, and will not give it back.
                return requests.release(ino, opened.handle);
            };
            let handle = FileHandle(opened.handle);
            match backing.as_ref().and_then(|backing| backing.id()) {
                // It is an error to keep what is not cached.
                Some(id) => {
                    let flags = flags.difference(FopenFlags::FOPEN_KEEP_CACHE);
                    reply.opened_passthrough(handle, flags, id);
                }
                None => reply.opened(handle, flags),
            }
        };
        match opened.behind {
            true => self.errands.answer(self.vfs.machine_of(ino), ino, answer),
            false => answer(),
        }
    }

    /// What the kernel is to read instead of asking, for a file just opened.
    fn backing(
        &self,
        ino: u64,
        opened: &Opened,
        how: OpenFlags,
        owed: &Owed<ReplyOpen>,
    ) -> Option<Arc<Backing>> {
        let size = opened.plain?;
        let backings = self.backings.get()?;
        backings.enter(ino, || {
            // Not every file system takes O_DIRECT, while we do.
            if size < passthrough::WORTH_IT || how.0 & libc::O_DIRECT != 0 {
                return None;
            }
            let made = self.vfs.with_file(opened.handle, |file| backings.back(owed, file))?;
            made.inspect_err(|error| tracing::debug!(ino, %error, "read in the usual way")).ok()
        })
    }

    /// Ends a handle of a file. Closing one may wait for its disk.
    pub(super) fn release(&self, ino: u64, handle: u64) {
        if let Some(backings) = self.backings.get() {
            backings.leave(ino);
        }
        self.vfs.release(handle);
    }

    pub(super) fn read(
        &self,
        owed: Arc<Owed<ReplyData>>,
        ino: u64,
        handle: u64,
        offset: u64,
        size: usize,
    ) {
        with_buffer(|buffer| {
            let (count, barrier) = self.vfs.read(handle, offset, size, &|| true, buffer);
            self.answer_read(owed, ino, count, barrier, buffer);
        });
    }

    /// What takes as long as reading large files does.
    pub(super) fn read_slowly(
        self: &Arc<Self>,
        slow: crate::vfs::SlowRead,
        pid: u32,
        ino: u64,
        handle: u64,
        (offset, size): (u64, usize),
        reply: ReplyData,
    ) {
        let requests = Arc::clone(self);
        let owed = self.callers.owe(pid, reply);
        let caller = Arc::<Owed<ReplyData>>::clone(&owed);
        self.background.run_for(caller, self.vfs.machine_of(ino), Work::Read, move || {
            let mut buffer = Vec::new();
            let wanted = || owed.with(|_| ()).is_some() && slow.is_wanted();
            let (count, barrier) = requests.vfs.read(handle, offset, size, &wanted, &mut buffer);
            requests.answer_read(Arc::clone(&owed), ino, count, barrier, &buffer);
        });
    }

    fn answer_read(
        &self,
        owed: Arc<Owed<ReplyData>>,
        ino: u64,
        count: Result<usize, Sys>,
        barrier: Option<Barrier>,
        buffer: &[u8],
    ) {
        let data = match count {
            Ok(count) => buffer.get(..count).unwrap_or_default(),
            Err(error) => {
                let Some(reply) = owed.take() else { return };
                return reply.error(failed("read", ino, error));
            }
        };
        let Some(barrier) = barrier else {
            if let Some(reply) = owed.take() {
                reply.data(data);
            }
            return;
        };
        let data = data.to_vec();
        self.errands.answer(self.vfs.machine_of(ino), ino, move || {
            barrier.pass();
            if let Some(reply) = owed.take() {
                reply.data(&data);
            }
        });
    }

    pub(super) fn opendir(&self, owed: &Owed<ReplyOpen>, ino: u64) {
        let opened = self.vfs.open_dir(ino);
        match (owed.take(), opened) {
            (Some(reply), Ok(handle)) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            (Some(reply), Err(error)) => reply.error(failed("opendir", ino, error)),
            (None, Ok(handle)) => self.vfs.release(handle),
            (None, Err(_)) => {}
        }
    }

    pub(super) fn readdir(&self, owed: &Owed<ReplyDirectory>, ino: u64, handle: u64, offset: u64) {
        let result = self.vfs.read_dir(handle, offset, false, &mut |entry| {
            let name = OsStr::from_bytes(entry.name);
            let add = |reply: &mut ReplyDirectory| {
                reply.add(INodeNo(entry.ino), entry.offset, kind(entry.kind), name)
            };
            owed.with(add).unwrap_or(true)
        });
        let Some(reply) = owed.take() else { return };
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(failed("readdir", ino, error)),
        }
    }

    pub(super) fn readdirplus(
        &self,
        owed: &Owed<ReplyDirectoryPlus>,
        ino: u64,
        handle: u64,
        offset: u64,
    ) {
        let mut looked_up = Vec::new();
        let result = self.vfs.read_dir(handle, offset, true, &mut |entry| {
            let (attr, ttl) = convert::plus(entry);
            let name = OsStr::from_bytes(entry.name);
            let add = |reply: &mut ReplyDirectoryPlus| {
                reply.add(INodeNo(entry.ino), entry.offset, name, &ttl, &attr, Generation(0))
            };
            let full = owed.with(add).unwrap_or(true);
            if !full && entry.entry.is_some() {
                looked_up.push(entry.ino);
            }
            full
        });
        match (owed.take(), result) {
            (Some(reply), Ok(())) => return reply.ok(),
            (Some(reply), Err(error)) => reply.error(failed("readdirplus", ino, error)),
            (None, _) => {}
        }
        // The kernel was not sent these lookups, and will not give them back.
        looked_up.into_iter().for_each(|ino| self.vfs.forget(ino, 1));
    }

    pub(super) fn statfs(&self, owed: &Owed<ReplyStatfs>, ino: u64) {
        let figures = self.vfs.statfs(ino);
        let Some(reply) = owed.take() else { return };
        match figures {
            Ok(s) => reply.statfs(
                s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.frsize,
            ),
            Err(error) => reply.error(failed("statfs", ino, error)),
        }
    }

    /// Answers with the value of an attribute, or the list of all.
    pub(super) fn xattr(owed: &Owed<ReplyXattr>, ino: u64, size: u32, value: Result<Vec<u8>, Sys>) {
        let Some(reply) = owed.take() else { return };
        let length =
            value.as_ref().map_or(0, |value| u32::try_from(value.len()).unwrap_or(u32::MAX));
        match value {
            Ok(_) if size == 0 => reply.size(length),
            Ok(_) if length > size => reply.error(errno(Sys::RANGE)),
            Ok(value) => reply.data(&value),
            Err(error) => reply.error(failed("xattr", ino, error)),
        }
    }

    pub(super) fn access(&self, owed: &Owed<ReplyEmpty>, ino: u64, write: bool, execute: bool) {
        let result = self.vfs.access(ino, write, execute);
        let Some(reply) = owed.take() else { return };
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(failed("access", ino, error)),
        }
    }

    pub(super) fn lseek(
        &self,
        owed: &Owed<ReplyLseek>,
        ino: u64,
        handle: u64,
        offset: i64,
        whence: i32,
    ) {
        let to = match whence {
            libc::SEEK_DATA => Ok(Seek::Data),
            libc::SEEK_HOLE => Ok(Seek::Hole),
            // The kernel does the others itself.
            _ => Err(Sys::INVAL),
        };
        let result = to.and_then(|to| self.vfs.seek(handle, offset, to));
        let Some(reply) = owed.take() else { return };
        match result {
            Ok(offset) => reply.offset(offset),
            Err(error) => reply.error(failed("lseek", ino, error)),
        }
    }
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
