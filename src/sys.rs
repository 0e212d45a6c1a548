//! System calls that no crate wraps: the only unsafe code of the project.
//!
//! Each function is one call, with arguments whose types already say all that the call asks of them.
#![allow(unsafe_code)]

use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd};
use rustix::io::Errno;
use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, Ordering};

/// `listxattrat` and `getxattrat` of linux/xattr.h: the numbers of every architecture but alpha, mips and x32.
const GETXATTRAT: libc::c_long = 464;
const LISTXATTRAT: libc::c_long = 465;

/// `struct xattr_args` (linux/xattr.h): where the value goes.
#[repr(C)]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

const _: () = assert!(size_of::<XattrArgs>() == 16);

/// listxattrat(2) of `name` in `dir`, never following it: the bytes written to `names`, each name with its NUL.
///
/// Since Linux 6.13; ENOSYS before.
pub(crate) fn list_xattr_at(
    dir: BorrowedFd<'_>,
    name: &CStr,
    names: &mut [u8],
) -> Result<usize, Errno> {
    // SAFETY: the kernel reads `name` up to its NUL and writes at most `names.len()` bytes to `names`; both outlive
    // the call, and it keeps neither.
    let result = unsafe {
        libc::syscall(
            LISTXATTRAT,
            dir.as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            names.as_mut_ptr(),
            names.len(),
        )
    };
    outcome(result)
}

/// getxattrat(2) of the attribute `xattr` of `name` in `dir`, never following it: the bytes written to `value`.
///
/// Since Linux 6.13; ENOSYS before.
pub(crate) fn xattr_at(
    dir: BorrowedFd<'_>,
    name: &CStr,
    xattr: &CStr,
    value: &mut [u8],
) -> Result<usize, Errno> {
    let args = XattrArgs {
        value: value.as_mut_ptr() as u64,
        size: u32::try_from(value.len()).unwrap_or(u32::MAX),
        flags: 0,
    };
    // SAFETY: the kernel reads both names up to their NULs and `args`, and writes at most `args.size` bytes, which is
    // no more than `value` has; all of them outlive the call, and it keeps none.
    let result = unsafe {
        libc::syscall(
            GETXATTRAT,
            dir.as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            xattr.as_ptr(),
            &raw const args,
            size_of::<XattrArgs>(),
        )
    };
    outcome(result)
}

/// `struct mount_attr` (linux/mount.h).
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

const _: () = assert!(size_of::<MountAttr>() == 32);

/// mount_setattr(2), on the same ones.
const MOUNT_SETATTR: libc::c_long = 442;
/// `MOUNT_ATTR_RDONLY`, `_NOSUID`, `_NODEV`, `_NOEXEC`, `_NOATIME` and `_NOSYMFOLLOW` (linux/mount.h).
const QUIET: u64 = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x0020_0000;
/// `MOUNT_ATTR__ATIME`: whoever chooses how access times are kept has to clear all of it.
const ATIME: u64 = 0x70;

/// Makes a detached mount one through which nothing can be written, no device opened, no link followed and no access time
/// moved.
///
/// mount_setattr(2), since Linux 5.12, `NOSYMFOLLOW` since 5.14.
pub(crate) fn quiet_mount(mount: BorrowedFd<'_>) -> Result<(), Errno> {
    let attr = MountAttr { set: QUIET, clear: ATIME, propagation: 0, user_namespace: 0 };
    // SAFETY: the kernel reads an empty path and `attr`, of the size given; both outlive the call.
    let result = unsafe {
        libc::syscall(
            MOUNT_SETATTR,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    outcome(result).map(drop)
}

/// landlock_create_ruleset(2), on the same ones as above.
const LANDLOCK_CREATE_RULESET: libc::c_long = 444;
/// `LANDLOCK_CREATE_RULESET_VERSION` (linux/landlock.h).
const LANDLOCK_VERSION: u32 = 1;

/// The version of Landlock's interface. ENOSYS before Linux 5.13 or where it is not built in, EOPNOTSUPP where it is not
/// enabled.
pub(crate) fn landlock_abi() -> Result<usize, Errno> {
    // SAFETY: with this flag the call takes no ruleset and no size, and only answers a number.
    let result = unsafe {
        let (none, size) = (std::ptr::null::<u8>(), 0usize);
        libc::syscall(LANDLOCK_CREATE_RULESET, none, size, LANDLOCK_VERSION)
    };
    outcome(result)
}

/// `struct fiemap_extent` (linux/fiemap.h).
#[repr(C)]
#[derive(Clone, Copy)]
struct FiemapExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// Extents of one answer.
const EXTENTS: usize = 64;

/// `struct fiemap` with room for extents behind it.
#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [FiemapExtent; EXTENTS],
}

const _: () = assert!(size_of::<FiemapExtent>() == 56);
const _: () = assert!(size_of::<Fiemap>() == FIEMAP_BYTES + EXTENTS * 56);

/// Bytes of `struct fiemap` alone, which the number of the call is made of.
const FIEMAP_BYTES: usize = 32;

/// Calls `each` with begin and end of extents of `file` from `start` on, written or not: some of them, in ascending order. Where
/// to go on; `None` after the last one.
///
/// ioctl(2), `FS_IOC_FIEMAP` (Documentation/filesystems/fiemap.rst). EOPNOTSUPP or ENOTTY where the file system has no
/// such map. What is not on the disk yet may be missing.
pub(crate) fn extents(
    file: BorrowedFd<'_>,
    start: u64,
    mut each: impl FnMut(u64, u64),
) -> Result<Option<u64>, Errno> {
    const LAST: u32 = 1;
    let none = FiemapExtent {
        logical: 0,
        physical: 0,
        length: 0,
        reserved64: [0; 2],
        flags: 0,
        reserved: [0; 3],
    };
    let mut map = Fiemap {
        start,
        length: u64::MAX - start,
        flags: 0,
        mapped_extents: 0,
        extent_count: EXTENTS as u32,
        reserved: 0,
        extents: [none; EXTENTS],
    };
    let call = rustix::ioctl::opcode::read_write::<[u8; FIEMAP_BYTES]>(b'f', 11);
    // SAFETY: the kernel reads the head of `map` and writes it and at most `extent_count` extents, which is all there are;
    // it outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), call as _, &raw mut map) };
    outcome(result.into())?;
    let found = map.extents.get(..map.mapped_extents as usize).unwrap_or_default();
    let mut next = None;
    for extent in found {
        let end = extent.logical.saturating_add(extent.length);
        each(extent.logical, end);
        next = (extent.flags & LAST == 0 && end > start).then_some(end);
    }
    Ok(next)
}

/// Gives memory that is free back to the system: the allocator keeps what a scan needed, several times as much as its
/// layout, for a next time that may never come. malloc_trim(3), of glibc alone.
pub(crate) fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes a number and touches nothing but the allocator's own state, under its own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// `struct fuse_backing_map` (linux/fuse.h).
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

const _: () = assert!(size_of::<BackingMap>() == 16);

/// Has the kernel answer reads of a FUSE mount from `file` wherever an open names the number that this returns.
///
/// ioctl(2), `FUSE_DEV_IOC_BACKING_OPEN` (Documentation/filesystems/fuse-passthrough.rst), since Linux 6.9. EPERM without
/// CAP_SYS_ADMIN; ENOTTY before.
pub(crate) fn back(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<u32, Errno> {
    let map = BackingMap { fd: file.as_raw_fd(), flags: 0, padding: 0 };
    let call = rustix::ioctl::opcode::write::<BackingMap>(229, 1);
    // SAFETY: the kernel reads `map`, of the size that is part of the number; it outlives the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), call as _, &raw const map) };
    outcome(result.into()).and_then(|id| u32::try_from(id).map_err(|_| Errno::OVERFLOW))
}

/// Has the kernel let go of what [`back`] named.
///
/// ioctl(2), `FUSE_DEV_IOC_BACKING_CLOSE`.
pub(crate) fn let_go_of_backing(device: BorrowedFd<'_>, id: u32) -> Result<(), Errno> {
    let call = rustix::ioctl::opcode::write::<u32>(229, 2);
    // SAFETY: the kernel reads `id`; it outlives the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), call as _, &raw const id) };
    outcome(result.into()).map(drop)
}

/// A number of [`back`] as fuser takes it. It is to be taken apart again with `into_raw`: as its drop lets go of the file
/// with this process's rights, which may have none.
pub(crate) fn backing(reply: &fuser::ReplyOpen, id: u32) -> fuser::BackingId {
    // SAFETY: as with a descriptor, the number has no other owner: it comes from `back`, by way of the process that may
    // call it, and only who drops what is made here lets go of it.
    unsafe { reply.wrap_backing(id) }
}

/// Keeps every descriptor but the standard ones from the programs that are started from now on: whoever started this one may
/// have left some open that are none of theirs.
///
/// close_range(2) with `CLOSE_RANGE_CLOEXEC`, since Linux 5.11; before, one descriptor after the other.
pub(crate) fn keep_descriptors() -> std::io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_long = 4;
    // SAFETY: with this flag the call closes nothing; it marks what happens to be open, whose owners do not notice.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3 as libc::c_long,
            libc::c_long::from(u32::MAX),
            CLOSE_RANGE_CLOEXEC,
        )
    };
    match outcome(result) {
        // The flag is not known, the call is not there, or a sandbox refuses it.
        Err(Errno::INVAL | Errno::NOSYS | Errno::PERM) => mark_each_descriptor(),
        marked => Ok(marked.map(drop)?),
    }
}

fn mark_each_descriptor() -> std::io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name().to_str().and_then(|name| name.parse::<libc::c_int>().ok());
        let Some(number) = number.filter(|number| *number > 2) else { continue };
        // SAFETY: the call marks what happens to be open, whose owner does not notice, and fails for what is closed by now.
        match outcome(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }.into()) {
            Ok(_) | Err(Errno::BADF) => {}
            Err(why) => return Err(why.into()),
        }
    }
    Ok(())
}

/// Whether this process was started with a closed standard output (`>&-`). Rust's runtime opens /dev/null in its place, where
/// all that is written is lost without an error, and does so before `main`.
pub(crate) fn stdout_was_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

static CLOSED: AtomicBool = AtomicBool::new(false);

/// The dynamic linker calls what is listed here before the runtime starts (elf(5), `SHT_INIT_ARRAY`).
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look_at_stdout;

extern "C" fn look_at_stdout() {
    // SAFETY: fcntl(2) with F_GETFD takes a number and changes nothing.
    let flags = unsafe { libc::fcntl(1, libc::F_GETFD) };
    CLOSED.store(flags == -1, Ordering::Relaxed);
}

/// A second descriptor of what this process has open under `number`; EBADF where it has nothing.
pub(crate) fn duplicate(number: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: fcntl(2) takes numbers; one that is not open is an error. What it returns is new, and so nobody else's.
    unsafe {
        let new = outcome(libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3).into())?;
        Ok(OwnedFd::from_raw_fd(i32::try_from(new).map_err(|_| Errno::BADF)?))
    }
}

/// Makes this thread act on files as `uid` and `gid` (setfsuid(2)). Its other ids stay, and with them who may signal it, or
/// change its priority, limits and processors: those calls compare the real, effective and saved ids only.
pub(crate) fn set_file_system_ids(uid: u32, gid: u32) -> Result<(), Errno> {
    // SAFETY: both calls take a number and change nothing but this thread's credentials; glibc and the kernel agree that,
    // unlike setuid, they are the thread's alone.
    unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
    }
    // They report no error: what they were before is all that they return.
    // SAFETY: -1 is nobody's id, so nothing is changed.
    let now = unsafe { (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX)) };
    match now == (uid as i32, gid as i32) {
        true => Ok(()),
        false => Err(Errno::PERM),
    }
}

/// As whom this thread acts on files.
pub(crate) fn file_system_uid() -> u32 {
    // SAFETY: -1 is nobody's id, so nothing is changed.
    (unsafe { libc::setfsuid(u32::MAX) }) as u32
}

fn outcome(result: libc::c_long) -> Result<usize, Errno> {
    usize::try_from(result)
        .map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::AsFd as _;
    use rustix::fs::{XattrFlags, setxattr};

    #[test]
    fn extents_are_those_of_the_file() {
        let file = tempfile::tempfile().unwrap();
        let mut found = Vec::new();
        match extents(file.as_fd(), 0, |begin, end| found.push((begin, end))) {
            // A file system without a map.
            Err(Errno::OPNOTSUPP | Errno::NOTTY) => return,
            next => assert_eq!((next, found.len()), (Ok(None), 0)),
        }
        use std::os::unix::fs::FileExt as _;
        const STEP: u64 = 1 << 20;
        for at in 0..200 {
            file.write_all_at(b"x", at * STEP).unwrap();
        }
        file.sync_all().unwrap();
        let mut next = Some(0);
        while let Some(start) = next {
            next = extents(file.as_fd(), start, |begin, end| found.push((begin, end))).unwrap();
        }
        let begins: Vec<_> = found.iter().map(|(begin, _)| *begin).collect();
        assert_eq!(begins, (0..200).map(|at| at * STEP).collect::<Vec<_>>());
        assert!(found.iter().all(|(begin, end)| end - begin >= 1 && end - begin < STEP));
    }

    #[test]
    fn descriptors_are_kept_from_programs_with_and_without_the_call_for_all() {
        use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
        for mark in [keep_descriptors, mark_each_descriptor] {
            let file = tempfile::tempfile().unwrap();
            fcntl_setfd(&file, FdFlags::empty()).unwrap();
            mark().unwrap();
            assert_eq!(fcntl_getfd(&file), Ok(FdFlags::CLOEXEC));
        }
    }

    #[test]
    fn reads_what_setxattr_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "").unwrap();
        setxattr(&path, c"user.name", b"value\0", XattrFlags::empty()).unwrap();
        let parent = std::fs::File::open(dir.path()).unwrap();
        let mut buffer = [0; 64];
        match list_xattr_at(parent.as_fd(), c"file", &mut buffer) {
            // Before Linux 6.13.
            Err(Errno::NOSYS) => return,
            names => assert_eq!(&buffer[..names.unwrap()], b"user.name\0"),
        }
        let read = xattr_at(parent.as_fd(), c"file", c"user.name", &mut buffer).unwrap();
        assert_eq!(&buffer[..read], b"value\0");
        let short = xattr_at(parent.as_fd(), c"file", c"user.name", &mut buffer[..2]);
        assert_eq!(short, Err(Errno::RANGE));
        let none = xattr_at(parent.as_fd(), c"file", c"user.none", &mut buffer);
        assert_eq!(none, Err(Errno::NODATA));
    }
}
