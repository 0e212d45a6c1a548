//! One machine put together: its directories opened, its generated files made.

use super::{Machines, arrive};
use crate::backend::HomeIds;
use crate::codchi::{self, MachineConfig, MachineName, flake};
use crate::export::{Exports, History, MEMBERS, OWNERS};
use crate::opener::{Located, Opener, Roots};
use crate::tree::{self, GeneratedFile, Owners, Source, Time, Tree};
use rustix::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

impl Machines {
    /// The home that the instance has, else where Codchi puts it.
    pub(super) fn home(&self, name: &MachineName, located: Option<&Located>) -> PathBuf {
        located.map_or_else(|| self.state.home(name), |located| located.home.clone())
    }

    /// Whether a machine's root file system can be read; else why not, and what to do.
    pub fn rootfs_readable(&self, rootfs: &Path) -> Result<(), String> {
        match &self.opener {
            Opener::Direct(direct) => direct.rootfs_readable(rootfs),
            Opener::Asked(_) => Ok(()),
        }
    }

    /// The same for a home.
    pub fn home_readable(&self, home: &Path) -> Result<(), String> {
        match &self.opener {
            Opener::Direct(direct) => direct.home_readable(home),
            Opener::Asked(_) => Ok(()),
        }
    }

    pub(super) fn build(
        &self,
        config: &MachineConfig,
        name: &MachineName,
        located: &Located,
        history: Arc<History>,
    ) -> Result<(Arc<Tree>, Arc<Exports>), String> {
        let Roots { rootfs, home } = self.opener.open(name, located)?;
        let redacted = self.settings.redact.then(|| config.redacted());
        let generated = generated(redacted.as_ref().unwrap_or(config), rootfs.fd());
        let generated = generated.map_err(|e| e.to_string())?;
        let maps = &located.location.maps;
        let source = Source {
            rootfs,
            rootfs_owners: maps.rootfs.clone().map_or(Owners::AsOnDisk, Owners::Mapped),
            home: Some(home),
            home_owners: match &maps.home {
                HomeIds::Unrecorded => Owners::All(1000, 100),
                HomeIds::Same => Owners::AsOnDisk,
                HomeIds::Mapped(map) => Owners::Mapped(map.clone()),
            },
        };
        let made = time(config.times.config_mtime);
        let tree = Tree::new(source, &self.settings.selection, generated, made)
            .map_err(|e| e.to_string())?;
        let tree = Arc::new(tree);
        let sources = time(config.times.newest_ctime());
        let exports = Exports::new(Arc::clone(&tree), sources, self.settings.options, history);
        Ok((tree, Arc::new(exports)))
    }
}

fn time(t: codchi::Time) -> Time {
    Time { sec: t.sec, nsec: t.nsec }
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
    files.push(file("/etc/nixos/codchi-arrive", Some(arrive::render(config)), 0o755, 0));
    files.push(file(OWNERS, None, 0o644, 0));
    // It has names of private directories.
    files.push(file(MEMBERS, None, 0o600, 0));
    const ENV: &str = "/etc/codchi-env";
    // Services of any user source it; the machine's own mode says who may.
    let perm = tree::file_perm(rootfs, ENV).unwrap_or(0o644);
    files.push(file(ENV, Some(codchi::env::render(config)), perm, 0));
    Ok(files)
}
