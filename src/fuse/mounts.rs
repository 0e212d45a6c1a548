//! The kernel's mount table, as /proc/self/mountinfo has it.

use super::MountError;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::thread::{set_thread_res_gid, set_thread_res_uid};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// The file system type of our mounts.
pub(super) const TYPE: &str = "fuse.codchifs";

/// How long a mount may take to show that somebody serves it.
const PATIENCE: Duration = Duration::from_secs(5);

/// One line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mounted {
    pub(super) device: (u32, u32),
    pub(super) mountpoint: PathBuf,
    pub(super) fstype: String,
    /// user_id and group_id of a FUSE mount.
    pub(super) owner: Option<(u32, u32)>,
}

/// The topmost mount at `path`, an absolute path without symbolic links.
pub(super) fn mounted_at(path: &Path) -> Result<Option<Mounted>, MountError> {
    let table =
        std::fs::read("/proc/self/mountinfo").map_err(|source| MountError::Table { source })?;
    Ok(parse(&table).into_iter().rfind(|mounted| mounted.mountpoint == path))
}

/// Whether somebody serves a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Somebody does, or at least nobody says that there is nobody.
    Served,
    /// Its process is gone.
    Stale,
    /// There is no answer in time.
    Silent,
}

/// Every codchifs in the mount table with how it is. All are asked at once, so that it takes no longer than for one.
pub fn mounted() -> Result<Vec<(PathBuf, Health)>, MountError> {
    let table =
        std::fs::read("/proc/self/mountinfo").map_err(|source| MountError::Table { source })?;
    let ours = parse(&table).into_iter().filter(|mounted| mounted.fstype == TYPE);
    let asked: Vec<_> = ours.map(|mounted| (mounted.mountpoint.clone(), ask(&mounted))).collect();
    let end = std::time::Instant::now() + PATIENCE;
    let health = |answer: mpsc::Receiver<_>| match answer
        .recv_timeout(end.saturating_duration_since(std::time::Instant::now()))
    {
        Ok(Err(Errno::NOTCONN)) => Health::Stale,
        Ok(_) => Health::Served,
        Err(_) => Health::Silent,
    };
    Ok(asked.into_iter().map(|(path, answer)| (path, health(answer))).collect())
}

/// Reads a mount table; lines that make no sense are left out.
fn parse(table: &[u8]) -> Vec<Mounted> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mounted> {
    // id parent major:minor root mountpoint options optional... - type source super-options
    let mut fields = line.split(|byte| *byte == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let mountpoint = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let fstype = String::from_utf8_lossy(fields.next()?).into_owned();
    let options = String::from_utf8_lossy(fields.nth(1).unwrap_or_default()).into_owned();
    let number = |name: &str| {
        options.split(',').find_map(|option| option.strip_prefix(name)?.parse::<u32>().ok())
    };
    Some(Mounted {
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

/// Whether nobody serves the mount any more. A daemon that does not answer in time counts as
/// alive: detaching a mount that is in use is worse than refusing.
pub(super) fn is_stale(mounted: &Mounted) -> bool {
    ask(mounted).recv_timeout(PATIENCE) == Ok(Err(Errno::NOTCONN))
}

fn ask(mounted: &Mounted) -> mpsc::Receiver<Result<(), Errno>> {
    let (path, owner) = (mounted.mountpoint.clone(), mounted.owner);
    let (answer, answered) = mpsc::channel();
    // Its own thread: it may hang, and it changes its own ids for good. Without one there is no answer.
    let _ = std::thread::Builder::new().name("codchifs-probe".into()).spawn(move || {
        // A dropped receiver means that the answer came too late.
        let _ = answer.send(probe(&path, owner));
    });
    answered
}

/// Asks for the attributes of a mount's root as its owner: to anybody else, root included, the
/// kernel answers EACCES whether the mount is alive or not.
fn probe(path: &Path, owner: Option<(u32, u32)>) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let root = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    if let Some((uid, gid)) = owner
        && rustix::process::geteuid().is_root()
    {
        let gid = rustix::process::Gid::from_raw(gid);
        set_thread_res_gid(gid, gid, gid)?;
        let uid = rustix::process::Uid::from_raw(uid);
        set_thread_res_uid(uid, uid, uid)?;
    }
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    rustix::fs::statx(root, "", flags, StatxFlags::BASIC_STATS).map(drop)
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
        assert_eq!(mounts[0].owner, None);
        assert_eq!(mounts[1].mountpoint, Path::new("/mnt/a b\\c"));
        assert_eq!(mounts[1].fstype, TYPE);
        assert_eq!(mounts[1].device, (0, 55));
        assert_eq!(mounts[1].owner, Some((1000, 100)));
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
