//! Our plain structs in fuser's terms.

use crate::tree::{Kind, Time};
use crate::vfs::{Attr, DirEntry};
use fuser::{FileAttr, FileType, INodeNo};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(super) fn errno(error: rustix::io::Errno) -> fuser::Errno {
    fuser::Errno::from_i32(error.raw_os_error())
}

pub(super) fn kind(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

/// A time of any sign and size; what no `SystemTime` can hold becomes 1970 rather than a panic.
pub(super) fn time(time: Time) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(time.nsec));
    let seconds = Duration::from_secs(time.sec.unsigned_abs());
    let whole = if time.sec < 0 {
        UNIX_EPOCH.checked_sub(seconds)
    } else {
        UNIX_EPOCH.checked_add(seconds)
    };
    whole.and_then(|whole| whole.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

pub(super) fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: time(attr.atime),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: kind(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: device(attr.rdev),
        blksize: attr.blksize,
        flags: 0,
    }
}

/// What readdirplus says of an entry. `.` and `..` have no attributes: the kernel takes their
/// number and type from there and ignores the rest.
pub(super) fn plus(entry: &DirEntry<'_>) -> (FileAttr, Duration) {
    match &entry.entry {
        Some(found) => (attr(&found.attr), found.entry_ttl.min(found.attr_ttl)),
        None => {
            let none = Time::default();
            let bare = Attr {
                ino: entry.ino,
                kind: entry.kind,
                perm: 0o755,
                nlink: 1,
                uid: 0,
                gid: 0,
                size: 0,
                blocks: 0,
                atime: none,
                mtime: none,
                ctime: none,
                rdev: (0, 0),
                blksize: crate::vfs::BLOCK,
            };
            (attr(&bare), Duration::ZERO)
        }
    }
}

/// A device number as the protocol has it: 12 bits of major, 20 of minor, the minor's low byte
/// first.
fn device((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_never_panic() {
        for sec in [i64::MIN, i64::MIN + 1, -1, 0, 1, i64::MAX] {
            for nsec in [0, 1, 999_999_999, u32::MAX] {
                time(Time { sec, nsec });
            }
        }
        let before = time(Time { sec: -2, nsec: 800_000_000 });
        assert_eq!(UNIX_EPOCH.duration_since(before).unwrap(), Duration::from_millis(1200));
    }

    #[test]
    fn device_numbers_are_the_kernels() {
        assert_eq!(device((1, 3)), 0x103);
        assert_eq!(device((259, 65536 + 5)), (259 << 8) | 5 | (0x100 << 20));
    }
}
