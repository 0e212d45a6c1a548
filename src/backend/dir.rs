//! Plain directories in the shape that LXD leaves on the disk: `DIR/codchi-NAME/rootfs`, and `backup.yaml` beside it.

use super::{IdMaps, LocateError, Location};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Bytes of a backup.yaml that are read at most.
const MOST_BACKUP: u64 = 4 << 20;

/// All instances below one directory.
#[derive(Clone, Debug)]
pub struct Directories {
    root: PathBuf,
}

impl Directories {
    /// Instances are `root/NAME`.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Finds an instance (`codchi-NAME`).
    pub fn locate(&self, instance: &str) -> Result<Location, LocateError> {
        let dir = self.root.join(instance);
        let rootfs = dir.join("rootfs");
        match rootfs.symlink_metadata() {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err(look(&rootfs, ErrorKind::NotADirectory.into())),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(LocateError::NotInstalled(rootfs));
            }
            Err(e) => return Err(look(&rootfs, e)),
        }
        let path = dir.join("backup.yaml");
        let maps = match read_backup(&path) {
            Ok(text) => IdMaps::parse(&text)
                .map_err(|source| LocateError::Backup { path: path.clone(), source })?,
            Err(e) if e.kind() == ErrorKind::NotFound => IdMaps::default(),
            Err(e) => return Err(look(&path, e)),
        };
        Ok(Location { rootfs, maps })
    }
}

fn look(path: &Path, source: std::io::Error) -> LocateError {
    LocateError::Look { path: path.into(), source }
}

fn read_backup(path: &Path) -> std::io::Result<String> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    let mut text = String::new();
    if file.take(MOST_BACKUP + 1).read_to_string(&mut text)? as u64 > MOST_BACKUP {
        return Err(ErrorKind::FileTooLarge.into());
    }
    Ok(text)
}
