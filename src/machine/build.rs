//! One machine put together: its directories opened, its generated files made.

use super::{Machines, Origin};
use crate::backend::Location;
use crate::codchi::{self, MachineConfig, MachineName, flake};
use crate::credentials::as_user;
use crate::export::{Exports, History, OWNERS};
use crate::idmap::IdMap;
use crate::tree::{self, GeneratedFile, Owners, Source, Time, Tree};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::path::{Path, PathBuf};
use std::sync::Arc;

impl Machines {
    /// The home that the instance has, else where Codchi puts it.
    pub(super) fn home(&self, name: &MachineName, location: Option<&Location>) -> PathBuf {
        location.and_then(|l| l.home.clone()).unwrap_or_else(|| self.state.home(name))
    }

    pub(super) fn build(
        &self,
        config: &MachineConfig,
        origin: &Origin,
        home: &Path,
        history: Arc<History>,
    ) -> Result<(Arc<Tree>, Arc<Exports>), String> {
        let location = &origin.location;
        let rootfs = tree::open_layer(&location.rootfs)
            .map_err(|e| cannot_open("root file system", &location.rootfs, e))?;
        inside_map("root file system", &location.rootfs, &rootfs, location.maps.rootfs.as_ref())?;
        let opened = self.open_home(home)?;
        inside_map("home", home, &opened, location.maps.home.as_ref())?;
        let redacted = self.settings.redact.then(|| config.redacted());
        let generated = generated(redacted.as_ref().unwrap_or(config), &rootfs);
        let generated = generated.map_err(|e| e.to_string())?;
        let mapped = |map: &Option<IdMap>, otherwise| match map {
            Some(map) => Owners::Mapped(map.clone()),
            None => otherwise,
        };
        let source = Source {
            rootfs,
            rootfs_owners: mapped(&location.maps.rootfs, Owners::AsOnDisk),
            home: Some(opened),
            home_owners: mapped(&location.maps.home, Owners::All(1000, 100)),
        };
        let made = time(config.times.config_mtime);
        let tree = Tree::new(source, &self.settings.selection, generated, made)
            .map_err(|e| e.to_string())?;
        let tree = Arc::new(tree);
        let sources = time(config.times.newest_ctime());
        let exports = Exports::new(Arc::clone(&tree), sources, self.settings.options, history);
        Ok((tree, Arc::new(exports)))
    }

    /// Whether this process may read a machine's root file system; else why not, and what to do.
    pub fn rootfs_readable(&self, rootfs: &Path) -> Result<(), String> {
        let opened = tree::open_layer(rootfs);
        opened.map(drop).map_err(|e| cannot_open("root file system", rootfs, e))
    }

    /// The same for a home.
    pub fn home_readable(&self, home: &Path) -> Result<(), String> {
        self.open_home(home).map(drop)
    }

    /// The way to a home is the user's, who may put links there: it is walked with the user's rights. Only the home
    /// itself, which is shifted and 0700, is opened with more, and not if it is a link.
    fn open_home(&self, home: &Path) -> Result<OwnedFd, String> {
        let (Some(parent), Some(name)) = (home.parent(), home.file_name()) else {
            return Err(format!("the home {} is no directory's path", home.display()));
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = as_user(self.user, || rustix::fs::open(parent, flags, Mode::empty()))
            .map_err(|e| e.to_string())?
            .map_err(|e| cannot_open("way to the home", home, e))?;
        tree::open_layer_at(&parent, name).map_err(|e| cannot_open("home", home, e))
    }
}

fn cannot_open(what: &str, path: &Path, why: Errno) -> String {
    let remedy = match why {
        Errno::ACCESS | Errno::PERM => {
            "; only root reads machines: run as root, or mount with `mount -t codchifs`"
        }
        _ => "",
    };
    format!("cannot open the {what} {}: {why}{remedy}", path.display())
}

/// A layer whose owner is nobody in the machine is not the machine's, however it got there.
fn inside_map(what: &str, path: &Path, layer: &OwnedFd, map: Option<&IdMap>) -> Result<(), String> {
    let (uid, _) = tree::layer_owner(layer).map_err(|e| cannot_open(what, path, e))?;
    match map {
        Some(map) if map.uid(uid).is_none() => Err(format!(
            "refused: the {what} {} belongs to host uid {uid}, who is nobody in the machine",
            path.display()
        )),
        _ => Ok(()),
    }
}

fn time(t: codchi::Time) -> Time {
    Time { sec: t.sec, nsec: t.nsec }
}

pub(super) fn identity(path: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt as _;
    path.symlink_metadata().map_or((0, 0), |m| (m.dev(), m.ino()))
}

/// The files that the export has over whatever the machine has there.
fn generated(
    config: &MachineConfig,
    rootfs: &OwnedFd,
) -> Result<Vec<GeneratedFile>, codchi::Error> {
    let file = |path: &'static str, text: Option<String>, perm, gid| GeneratedFile {
        path: path.as_bytes(),
        content: text.map(|text| Arc::from(text.into_bytes())),
        perm,
        uid: 0,
        gid,
    };
    // A token in a URL is a password; nix copies it into the world-readable store all the same.
    let (perm, gid) = if config.has_token() { (0o640, 100) } else { (0o644, 0) };
    let flake = flake::render(config, flake::System::host());
    let mut files = vec![file("/etc/nixos/flake.nix", Some(flake), perm, gid)];
    if let Some(lock) = codchi::lock::rewrite(config)? {
        files.push(file("/etc/nixos/flake.lock", Some(lock), perm, gid));
    }
    files.push(file(OWNERS, None, 0o644, 0));
    const ENV: &str = "/etc/codchi-env";
    // Services of any user source it; the machine's own mode says who may.
    let perm = tree::file_perm(rootfs, ENV).unwrap_or(0o644);
    files.push(file(ENV, Some(codchi::env::render(config)), perm, 0));
    Ok(files)
}
