//! Whether a mount of ours is there, and whether anybody serves it.

use super::MountError;
use crate::credentials::{User, become_owner};
use crate::mountinfo::{self, Mount};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The file system type of our mounts.
pub(super) const TYPE: &str = "fuse.codchifs";

/// How long a mount may take to show that somebody serves it.
const PATIENCE: Duration = Duration::from_secs(5);

/// The topmost mount at `path`, an absolute path without symbolic links.
pub(super) fn mounted_at(path: &Path) -> Result<Option<Mount>, MountError> {
    let table = mountinfo::read().map_err(|source| MountError::Table { source })?;
    Ok(table.into_iter().rfind(|mounted| mounted.mountpoint == path))
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
    let table = mountinfo::read().map_err(|source| MountError::Table { source })?;
    let ours = table.into_iter().filter(|mounted| mounted.fstype == TYPE);
    let asked: Vec<_> = ours.map(|mounted| (mounted.mountpoint.clone(), ask(&mounted))).collect();
    let end = Instant::now() + PATIENCE;
    let health = |answer: mpsc::Receiver<_>| match answer
        .recv_timeout(end.saturating_duration_since(Instant::now()))
    {
        Ok(Err(Errno::NOTCONN | Errno::CONNABORTED)) => Health::Stale,
        Ok(_) => Health::Served,
        Err(_) => Health::Silent,
    };
    Ok(asked.into_iter().map(|(path, answer)| (path, health(answer))).collect())
}

/// Whether nobody serves the mount any more. A daemon that does not answer in time counts as
/// alive: detaching a mount that is in use is worse than refusing.
pub(super) fn is_stale(mounted: &Mount) -> bool {
    // The second where the server goes at this very moment.
    matches!(ask(mounted).recv_timeout(PATIENCE), Ok(Err(Errno::NOTCONN | Errno::CONNABORTED)))
}

fn ask(mounted: &Mount) -> mpsc::Receiver<Result<(), Errno>> {
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
        become_owner(User { uid, gid })?;
    }
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    rustix::fs::statx(root, "", flags, StatxFlags::BASIC_STATS).map(drop)
}
