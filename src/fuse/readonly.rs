//! Everything that would change something, and everything that this file system does not have.

/// The operations that never succeed. On a mount that is read-only in its superblock the kernel
/// answers nearly all of these itself, and in the order a native mount does (mkdir of an existing
/// name is EEXIST); what gets here is refused.
macro_rules! operations {
    () => {
        readonly::refused! {
            mknod(parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32) ReplyEntry;
            mkdir(parent: INodeNo, name: &OsStr, mode: u32, umask: u32) ReplyEntry;
            unlink(parent: INodeNo, name: &OsStr) ReplyEmpty;
            rmdir(parent: INodeNo, name: &OsStr) ReplyEmpty;
            symlink(parent: INodeNo, name: &OsStr, target: &std::path::Path) ReplyEntry;
            rename(
                parent: INodeNo,
                name: &OsStr,
                to: INodeNo,
                to_name: &OsStr,
                flags: fuser::RenameFlags
            ) ReplyEmpty;
            link(ino: INodeNo, to: INodeNo, to_name: &OsStr) ReplyEntry;
            create(
                parent: INodeNo,
                name: &OsStr,
                mode: u32,
                umask: u32,
                flags: i32
            ) fuser::ReplyCreate;
            setattr(
                ino: INodeNo,
                mode: Option<u32>,
                uid: Option<u32>,
                gid: Option<u32>,
                size: Option<u64>,
                atime: Option<fuser::TimeOrNow>,
                mtime: Option<fuser::TimeOrNow>,
                ctime: Option<std::time::SystemTime>,
                fh: Option<FileHandle>,
                crtime: Option<std::time::SystemTime>,
                chgtime: Option<std::time::SystemTime>,
                bkuptime: Option<std::time::SystemTime>,
                flags: Option<fuser::BsdFileFlags>
            ) ReplyAttr;
            setxattr(
                ino: INodeNo,
                name: &OsStr,
                value: &[u8],
                flags: i32,
                position: u32
            ) ReplyEmpty;
            removexattr(ino: INodeNo, name: &OsStr) ReplyEmpty;
            write(
                ino: INodeNo,
                fh: FileHandle,
                offset: u64,
                data: &[u8],
                write_flags: fuser::WriteFlags,
                flags: OpenFlags,
                lock_owner: Option<LockOwner>
            ) fuser::ReplyWrite;
            fallocate(
                ino: INodeNo,
                fh: FileHandle,
                offset: u64,
                length: u64,
                mode: i32
            ) ReplyEmpty;
            copy_file_range(
                ino: INodeNo,
                fh: FileHandle,
                offset: u64,
                to: INodeNo,
                to_fh: FileHandle,
                to_offset: u64,
                len: u64,
                flags: fuser::CopyFileRangeFlags
            ) fuser::ReplyWrite;
        }

        fn ioctl(
            &self,
            _: &Request,
            _: INodeNo,
            _: FileHandle,
            _: fuser::IoctlFlags,
            _: u32,
            _: &[u8],
            _: u32,
            reply: fuser::ReplyIoctl,
        ) {
            reply.error(Errno::ENOTTY);
        }

        /// ENOSYS makes the kernel answer by itself from now on, as for any regular file.
        fn poll(
            &self,
            _: &Request,
            _: INodeNo,
            _: FileHandle,
            _: fuser::PollNotifier,
            _: fuser::PollEvents,
            _: fuser::PollFlags,
            reply: fuser::ReplyPoll,
        ) {
            reply.error(Errno::ENOSYS);
        }

        fn bmap(&self, _: &Request, _: INodeNo, _: u32, _: u64, reply: fuser::ReplyBmap) {
            reply.error(Errno::EINVAL);
        }
    };
}

/// Writes out operations that answer EROFS.
macro_rules! refused {
    ($($op:ident($($arg:ident: $type:ty),*) $reply:ty;)*) => {
        $(fn $op(&self, _: &Request, $(_: $type,)* reply: $reply) {
            reply.error(Errno::EROFS);
        })*
    };
}

pub(super) use {operations, refused};
