//! Finding and opening with this process's own rights.

use super::{Found, HOME, Located, ROOTFS, Roots};
use crate::backend::{Backend, Facts, LocateError, Query};
use crate::codchi::{MachineName, State, Way};
use crate::credentials::{User, as_user};
use crate::idmap::IdMap;
use crate::mountinfo::{self, Mount};
use crate::quote;
use crate::tree::{self, Apart, Root};
use crate::walk::{self, WalkError};
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a machine's root file system is called.
const ROOT: &str = "root file system";

/// Opens a directory for nothing but to say which it is.
const PIN: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Which of Codchi's directories whoever runs this has named, rather than the user: these need not be the user's own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Vouched {
    /// The config directory.
    pub config: bool,
    /// The data directory.
    pub data: bool,
}

/// Finds what the backend knows, opens what the user may have.
#[derive(Debug)]
pub struct Direct {
    backend: Backend,
    user: User,
    state: State,
    vouched: Vouched,
    /// For who must not get out of what is opened here.
    apart: Option<Apart>,
}

impl Direct {
    /// The machines of `state`, which is `user`'s.
    pub fn new(backend: Backend, user: User, state: State, vouched: Vouched) -> Self {
        Self { backend, user, state, vouched, apart: None }
    }

    /// From now on every directory is opened [`Apart`] from all else, for a process that is to get nothing else.
    pub fn part(&mut self) -> Apart {
        *self.apart.insert(Apart::best())
    }

    /// Ways to Codchi's directory of machines, from directories opened with the user's rights: its config directory, or
    /// what is above while it is not there, and the directory of machines, should that be a link.
    pub fn ways(&self, how: Apart) -> Vec<Way> {
        let machines = self.state.config_dir.join("machine");
        let opened = |path: &Path| self.own_directory(path, self.vouched.config);
        let from_config = opened(&self.state.config_dir);
        let itself = opened(&machines).filter(|(path, _)| *path == machines);
        let way = |(path, directory): (PathBuf, OwnedFd)| {
            let rest = machines.strip_prefix(&path).ok()?.to_owned();
            match how.part(&directory) {
                Ok(from) => Some(Way { from: Arc::new(from), rest }),
                Err(why) => {
                    tracing::warn!(path = %quote::path(&path), %why, "no way to the machines from here");
                    None
                }
            }
        };
        from_config.into_iter().chain(itself).filter_map(way).collect()
    }

    /// `path`, or the lowest directory above it that there is, if that is the user's own: whatever a link of the user
    /// leads to is not. Where it is vouched for, whose it is does not matter.
    fn own_directory(&self, wanted: &Path, vouched: bool) -> Option<(PathBuf, OwnedFd)> {
        for path in wanted.ancestors() {
            let directory = match as_user(self.user, || walk::pin(path)).ok()? {
                Ok(directory) => directory,
                Err(why) if why.errno() == Some(Errno::NOENT) => continue,
                Err(why) => {
                    tracing::warn!(path = %quote::path(&path), %why, "no way to the machines from here");
                    return None;
                }
            };
            let (uid, _) = tree::layer_owner(&directory).ok()?;
            let may = uid == self.user.uid || (vouched && path == wanted);
            return may.then(|| (path.to_owned(), directory));
        }
        None
    }

    pub(super) fn locate(&self, name: &MachineName) -> (Result<Located, LocateError>, Facts) {
        let query = Query {
            instance: &name.instance(),
            uid: self.user.uid,
            data_dir: &self.state.data_dir,
            resolve: &|path| as_user(self.user, || path.canonicalize().ok()).ok().flatten(),
        };
        let (location, facts) = self.backend.locate(&query);
        let located = location.map(|location| {
            let table = mountinfo::read().unwrap_or_default();
            let home = location.home.clone().unwrap_or_else(|| self.state.home(name));
            let roots = [pin_rootfs(&location.rootfs).ok(), self.pin_home(&home).ok()]
                .map(|opened| found(opened?, &table));
            Located { location, home, roots }
        });
        (located, facts)
    }

    pub(super) fn open(&self, located: &Located) -> Result<Roots, String> {
        let (location, home) = (&located.location, &located.home);
        let rootfs = open_rootfs(&location.rootfs)?;
        let maps = &location.maps;
        inside_map(ROOT, &location.rootfs, &rootfs, maps.rootfs.as_ref())?;
        let opened = self.open_home(home)?;
        inside_map("home", home, &opened, maps.home.map())?;
        Ok(Roots {
            rootfs: self.root(ROOT, &location.rootfs, rootfs, located.covered(ROOTFS))?,
            home: self.root("home", home, opened, located.covered(HOME))?,
        })
    }

    /// Whether this process may read a machine's root file system; else why not, and what to do.
    pub fn rootfs_readable(&self, rootfs: &Path) -> Result<(), String> {
        open_rootfs(rootfs).map(drop)
    }

    /// The same for a home.
    pub fn home_readable(&self, home: &Path) -> Result<(), String> {
        self.open_home(home).map(drop)
    }

    fn open_home(&self, home: &Path) -> Result<OwnedFd, String> {
        let (parent, name) = self.way(home)?;
        let pinned = pin_last(&parent, name).map_err(|e| cannot_open("home", home, e))?;
        tree::open_layer_at(&pinned, ".".as_ref()).map_err(|e| cannot_open("home", home, e))
    }

    fn root(
        &self,
        what: &str,
        path: &Path,
        directory: OwnedFd,
        covered: Vec<PathBuf>,
    ) -> Result<Root, String> {
        let Some(how) = self.apart else {
            let second = directory.try_clone().map_err(|e| format!("the {what}: {e}"))?;
            return match Root::new(directory, covered.clone()) {
                // The way to it is the daemon's, and may lead into the mount namespace of LXD's snap.
                Err(why @ Errno::INVAL) if what == ROOT => Ok(Root::slow(second, covered, why)),
                opened => opened.map_err(|e| cannot_open(what, path, e)),
            };
        };
        Root::apart(&directory, how, covered).map_err(|e| cannot_open(what, path, e))
    }

    fn pin_home(&self, home: &Path) -> Result<OwnedFd, String> {
        let (parent, name) = self.way(home)?;
        pin_last(&parent, name).map_err(|e| cannot_open("home", home, e))
    }

    /// The way to a home is the user's, who may put links there: it is walked with the user's rights, and must end in a
    /// directory of the user's own. Only the home itself, which is shifted and 0700, is opened with more, and not if it is
    /// a link; so whoever leads the way to where other users keep theirs gets none of them.
    fn way<'a>(&self, home: &'a Path) -> Result<(OwnedFd, &'a OsStr), String> {
        let (Some(parent), Some(name)) = (home.parent(), home.file_name()) else {
            return Err(format!("the home {} is no directory's path", quote::path(&home)));
        };
        let walked = as_user(self.user, || walk::pin(parent))
            .map_err(|e| format!("cannot act as uid {}: {e}", self.user.uid))?
            .map_err(|e| cannot_open("way to the home", home, e))?;
        let failed = |e| cannot_open("way to the home", home, e);
        let (owner, _) = tree::layer_owner(&walked).map_err(failed)?;
        // Whoever is not root reads nothing here that could not be read without us.
        let own = owner == self.user.uid || !rustix::process::geteuid().is_root();
        if own || self.is_vouched_for(parent, &walked) {
            return Ok((walked, name));
        }
        Err(format!(
            "refused: the home {} would be in a directory of uid {owner}, and it must be in one of uid {}'s own; \
             if it is meant, name the data directory, without a link in its path, with --data-dir",
            quote::path(&home),
            self.user.uid
        ))
    }

    /// Whether `directory` is below the data directory that whoever runs this has named, by a way without a link.
    fn is_vouched_for(&self, path: &Path, directory: &OwnedFd) -> bool {
        let direct = || {
            let opened = walk::pin_direct(path)?;
            Ok::<_, WalkError>(tree::layer_identity(&opened)? == tree::layer_identity(directory)?)
        };
        let vouched = self.vouched.data && path.starts_with(&self.state.data_dir);
        vouched && matches!(direct(), Ok(true))
    }
}

/// The home itself: a directory, no link, on a mount that is in our own table.
fn pin_last(parent: &OwnedFd, name: &OsStr) -> Result<OwnedFd, WalkError> {
    let pinned = walk::pin_at(parent, name)?;
    match FileType::from_raw_mode(rustix::fs::fstat(&pinned)?.st_mode) {
        FileType::Directory => Ok(pinned),
        FileType::Symlink => Err(Errno::LOOP.into()),
        _ => Err(Errno::NOTDIR.into()),
    }
}

fn pin_rootfs(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, PIN | OFlags::NOFOLLOW, Mode::empty())
}

fn found(directory: OwnedFd, table: &[Mount]) -> Option<Found> {
    let identity = tree::layer_identity(&directory).ok()?;
    Some(Found { identity, covered: tree::covered(&directory, table) })
}

fn open_rootfs(rootfs: &Path) -> Result<OwnedFd, String> {
    tree::open_layer(rootfs).map_err(|e| cannot_open(ROOT, rootfs, e))
}

fn cannot_open(what: &str, path: &Path, why: impl Into<WalkError>) -> String {
    let why = why.into();
    let remedy = match why.errno() {
        Some(Errno::ACCESS | Errno::PERM) => {
            "; only root reads machines: run as root, or mount with `mount -t codchifs`"
        }
        Some(Errno::NOENT) if what != ROOT => {
            "; mount the disk that it is on, or name the data directory with --data-dir"
        }
        Some(Errno::LOOP | Errno::NOTDIR) if what == "home" => {
            "; it is a link or no directory: put the directory itself in its place, or name the data directory that it is in \
             with --data-dir"
        }
        _ => "",
    };
    format!("cannot open the {what} {}: {why}{remedy}", quote::path(&path))
}

/// A layer whose owner is nobody in the machine is not the machine's, however it got there.
fn inside_map(what: &str, path: &Path, layer: &OwnedFd, map: Option<&IdMap>) -> Result<(), String> {
    let (uid, _) = tree::layer_owner(layer).map_err(|e| cannot_open(what, path, e))?;
    match map {
        Some(map) if map.uid(uid).is_none() => Err(format!(
            "refused: the {what} {} belongs to host uid {uid}, who is nobody in the machine; \
             if it is the machine's own, chown it to who the machine's root is on the host",
            quote::path(&path)
        )),
        _ => Ok(()),
    }
}
