//! Whether a mount of ours is there, and whether anybody serves it.

use super::MountError;
use super::point::{Point, TYPE};
use crate::look::{Answer, Look, Machines, TOO_MUCH, What};
use crate::mountinfo::{self, Mount};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long a mount may take to show that somebody serves it.
const PATIENCE: Duration = Duration::from_secs(5);
/// Looks at once.
const AT_ONCE: usize = 16;
/// Bytes of memory for all answers together.
const MAX_ANSWERS: usize = 2 << 20;

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

/// Every codchifs in the mount table with how it is.
pub fn mounted() -> Result<Vec<(PathBuf, Health)>, MountError> {
    let all = ask_all(What::Health)?.into_iter();
    Ok(all.map(|(path, answer)| (path, health(answer.as_ref()))).collect())
}

/// A mount point, how its mount is, and who reads what of it.
pub(crate) type MountTransfers = (PathBuf, Health, Result<Machines, Errno>);

/// Every codchifs in the mount table with its readers; an error of its own where only these cannot be seen.
pub(crate) fn transfers() -> Result<Vec<MountTransfers>, MountError> {
    let with_machines = |(path, answer): (PathBuf, Option<Answer>)| {
        let health = health(answer.as_ref());
        let machines = match answer {
            Some(Answer::Machines(machines)) => Ok(machines),
            Some(Answer::Failed(why)) => Err(Errno::from_raw_os_error(why)),
            _ => Err(Errno::TIMEDOUT),
        };
        (path, health, machines)
    };
    Ok(ask_all(What::Transfers)?.into_iter().map(with_machines).collect())
}

fn health(answer: Option<&Answer>) -> Health {
    let gone = [Errno::NOTCONN, Errno::CONNABORTED].map(Errno::raw_os_error);
    match answer {
        Some(Answer::Failed(why)) if gone.contains(why) => Health::Stale,
        Some(_) => Health::Served,
        None => Health::Silent,
    }
}

/// As many at once as make no difference to a host, so that a few take no longer than one; and for a bounded time, however many
/// somebody has mounted. Answers that do not fit into the memory for all of them are an error of their mounts.
fn ask_all(what: What) -> Result<Vec<(PathBuf, Option<Answer>)>, MountError> {
    let table = mountinfo::read().map_err(|source| MountError::Table { source })?;
    let ours: Vec<_> = table.into_iter().filter(|mounted| mounted.fstype == TYPE).collect();
    let (mut all, mut room, last) = (Vec::new(), MAX_ANSWERS, Instant::now() + 2 * PATIENCE);
    for some in ours.chunks(AT_ONCE) {
        let end = last.min(Instant::now() + PATIENCE);
        let started: Vec<_> = some.iter().map(|mounted| (mounted, ask(mounted, what))).collect();
        for (mounted, look) in started {
            let mut answer = look.and_then(|look| look.wait(end));
            match room.checked_sub(answer.as_ref().map_or(0, Answer::weight)) {
                Some(left) => room = left,
                None => answer = Some(Answer::Failed(TOO_MUCH.raw_os_error())),
            }
            all.push((mounted.mountpoint.clone(), answer));
        }
    }
    Ok(all)
}

/// Whether nobody serves the mount any more. A daemon that does not answer in time counts as alive: detaching a mount that is in
/// use is worse than refusing.
pub(super) fn is_stale(mounted: &Mount, root: &OwnedFd) -> bool {
    // The second where the server goes at this very moment.
    let look = root.try_clone().and_then(|root| Look::start(root, mounted.owner, What::Health));
    let answer = look.ok().and_then(|look| look.wait(Instant::now() + PATIENCE));
    health(answer.as_ref()) == Health::Stale
}

/// The same of a mount in the table, where that very one is found at its place.
pub(super) fn is_stale_there(mounted: &Mount) -> bool {
    let found = Point::find(&mounted.mountpoint).and_then(|point| point.mounted());
    matches!(found, Ok(Some((same, root))) if same.id == mounted.id && is_stale(mounted, &root))
}

fn ask(mounted: &Mount, what: What) -> Option<Look> {
    let (_, root) = Point::find(&mounted.mountpoint).ok()?.mounted().ok()??;
    Look::start(root, mounted.owner, what).ok()
}
