//! The kernel's mount table, as /proc/self/mountinfo has it.

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

/// All mounts of this process's namespace, the lower ones first.
pub(crate) fn read() -> std::io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
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
    let mountpoint = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
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

/// Turns `\040` and its like back into bytes.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] => {
                plain.push(((a & 3) << 6) | ((b & 7) << 3) | (c & 7));
                rest = tail;
            }
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
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

    #[test]
    fn only_whole_escapes_are_escapes() {
        for (text, plain) in [
            ("a\\040b", &b"a b"[..]),
            ("\\04", b"\\04"),
            ("\\777", b"\\777"),
            ("\\\\", b"\\\\"),
            ("\\303\\244", "\u{e4}".as_bytes()),
        ] {
            assert_eq!(unescape(text.as_bytes()), plain, "{text}");
        }
    }
}
