//! Whether a mount of ours is there, and whether anybody serves it.

use super::MountError;
use crate::mountinfo::{self, Mount};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::thread::{set_thread_res_gid, set_thread_res_uid};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

/// The file system type of our mounts.
pub(super) const TYPE: &str = "fuse.codchifs";

/// How long a mount may take to show that somebody serves it.
const PATIENCE: Duration = Duration::from_secs(5);

/// The topmost mount at `path`, an absolute path without symbolic links.
pub(super) fn mounted_at(path: &Path) -> Result<Option<Mount>, MountError> {
    let table = mountinfo::read().map_err(|source| MountError::Table { source })?;
    Ok(table.into_iter().rfind(|mounted| mounted.mountpoint == path))
}

/// Whether nobody serves the mount any more. A daemon that does not answer in time counts as
/// alive: detaching a mount that is in use is worse than refusing.
pub(super) fn is_stale(mounted: &Mount) -> bool {
    let (path, owner) = (mounted.mountpoint.clone(), mounted.owner);
    let (answer, answered) = mpsc::channel();
    // Its own thread: it may hang, and it changes its own ids for good.
    let asked = std::thread::Builder::new().name("codchifs-probe".into()).spawn(move || {
        // A dropped receiver means that the answer came too late.
        let _ = answer.send(probe(&path, owner) == Err(Errno::NOTCONN));
    });
    asked.is_ok() && answered.recv_timeout(PATIENCE).unwrap_or(false)
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
