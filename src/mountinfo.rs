//! The kernel's mount table, as /proc/self/mountinfo has it.

use crate::quote::unescape_octal;
use rustix::fd::{AsFd, AsRawFd as _};
use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One line of the mount table (proc_pid_mountinfo(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// The kernel's number of it, while it is there.
    pub(crate) id: u64,
    pub(crate) device: (u32, u32),
    pub(crate) mountpoint: PathBuf,
    pub(crate) fstype: String,
    /// user_id and group_id of a FUSE mount.
    pub(crate) owner: Option<(u32, u32)>,
}

impl Mount {
    /// Whether a process answers for it.
    pub(crate) fn is_fuse(&self) -> bool {
        matches!(&*self.fstype, "fuse" | "fuseblk") || self.fstype.starts_with("fuse.")
    }
}

/// Readings of the table while others mount and unmount.
const MAX_READINGS: usize = 8;

/// All mounts of this process's namespace, the lower ones first.
pub(crate) fn read() -> std::io::Result<Vec<Mount>> {
    let mut table = read_once()?;
    for _ in 1..MAX_READINGS {
        // One reading is many reads, and those between which somebody unmounts may miss what is there.
        let again = read_once()?;
        if again == table {
            break;
        }
        table = again;
    }
    Ok(table)
}

/// All mounts of the namespace of process 1, which is what people see.
pub(crate) fn read_of_init() -> std::io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read("/proc/1/mountinfo")?))
}

fn read_once() -> std::io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// The mount of this number, if it is in this process's namespace. Whoever asks holds a descriptor on it, so that the number
/// stays its own.
pub(crate) fn find(id: u64) -> std::io::Result<Option<Mount>> {
    let mut before = None;
    for _ in 0..MAX_READINGS {
        let table = read_once()?;
        if let Some(mount) = table.iter().find(|mount| mount.id == id) {
            return Ok(Some(mount.clone()));
        }
        if before.as_ref() == Some(&table) {
            break;
        }
        before = Some(table);
    }
    Ok(None)
}

/// What the mount table knows a mount by: its number and its device. Both may be another mount's as soon as it is gone.
pub(crate) type Numbers = (u64, (u32, u32));

/// Those of the mount that `fd` is on. Asks nobody: what is mounted there may not answer, or not us.
pub(crate) fn numbers_of(fd: impl AsFd) -> Result<Numbers, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let st = rustix::fs::statx(&fd, "", flags, StatxFlags::empty())?;
    let device = (st.stx_dev_major, st.stx_dev_minor);
    if st.stx_mask & StatxFlags::MNT_ID.bits() != 0 {
        return Ok((st.stx_mnt_id, device));
    }
    // Before Linux 5.8.
    let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
    let text = std::fs::read_to_string(path).map_err(|_| Errno::NOSYS)?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    let id = id.and_then(|id| id.trim().parse().ok()).ok_or(Errno::NOSYS)?;
    Ok((id, device))
}

/// The number of the mount that `fd` is on.
pub(crate) fn id_of(fd: impl AsFd) -> Result<u64, Errno> {
    numbers_of(fd).map(|(id, _)| id)
}

/// Mount points below `top`, an absolute path without symbolic links, relative to it. Sorted, each once.
pub(crate) fn below(table: &[Mount], top: &Path) -> Vec<PathBuf> {
    let points = table.iter().filter_map(|mount| mount.mountpoint.strip_prefix(top).ok());
    let mut points: Vec<PathBuf> =
        points.filter(|path| !path.as_os_str().is_empty()).map(Path::to_owned).collect();
    points.sort_unstable();
    points.dedup();
    points
}

/// Reads a mount table; lines that make no sense are left out.
fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    // id parent major:minor root mountpoint options optional... - type source super-options
    let mut fields = line.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = std::str::from_utf8(fields.nth(1)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let mountpoint = PathBuf::from(OsString::from_vec(unescape_octal(fields.nth(1)?)));
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let fstype = String::from_utf8_lossy(fields.next()?).into_owned();
    let options = String::from_utf8_lossy(fields.nth(1).unwrap_or_default()).into_owned();
    let number = |name: &str| {
        options.split(',').find_map(|option| option.strip_prefix(name)?.parse::<u32>().ok())
    };
    Some(Mount {
        id,
        device: (major.parse().ok()?, minor.parse().ok()?),
        mountpoint,
        fstype,
        owner: number("user_id=").zip(number("group_id=")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_table() {
        let table = b"25 30 0:23 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
            91 30 0:55 / /mnt/a\\040b\\134c ro,nosuid,nodev,relatime - fuse.codchifs codchifs \
            ro,user_id=1000,group_id=100\nnonsense\n\n";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 2);
        assert_eq!((mounts[0].id, mounts[0].owner), (25, None));
        assert_eq!(mounts[1].mountpoint, Path::new("/mnt/a b\\c"));
        assert_eq!(mounts[1].fstype, "fuse.codchifs");
        assert_eq!(mounts[1].device, (0, 55));
        assert_eq!(mounts[1].owner, Some((1000, 100)));
        assert_eq!(below(&mounts, Path::new("/mnt")), [Path::new("a b\\c")]);
        assert!(below(&mounts, Path::new("/sys")).is_empty());
    }
}
