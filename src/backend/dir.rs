//! Plain directories in the shape that LXD leaves on the disk: `DIR/codchi-NAME/rootfs`, and `backup.yaml` beside it.

use super::record::Instance;
use super::{Driver, IdMaps, LocateError, Location, read_small};
use crate::quote;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// All instances below one directory. Whoever names the directory vouches for what is in it.
#[derive(Clone, Debug)]
pub struct Directories {
    root: PathBuf,
}

impl Directories {
    /// Instances are `root/NAME`.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Where all instances are.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Finds an instance (`codchi-NAME`).
    pub(super) fn locate(&self, instance: &str) -> Result<Location, LocateError> {
        let dir = self.root.join(instance);
        let rootfs = dir.join("rootfs");
        let look = |path: PathBuf, source| Err(LocateError::Look { path, source });
        match rootfs.symlink_metadata() {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return look(rootfs, ErrorKind::NotADirectory.into()),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(LocateError::not_installed(
                    &quote::path(&rootfs).to_string(),
                    instance,
                ));
            }
            Err(e) => return look(rootfs, e),
        }
        let path = dir.join("backup.yaml");
        let unusable = |why: String| LocateError::Record {
            instance: instance.into(),
            why: format!("{}: {why}", quote::path(&path)),
        };
        let maps = match read_small(&path) {
            Ok((text, _)) => {
                let record = Instance::of_copy(&text).map_err(|e| unusable(e.to_string()))?;
                record.maps().map_err(unusable)?
            }
            Err(e) if e.kind() == ErrorKind::NotFound => IdMaps::default(),
            Err(e) => return look(path, e),
        };
        Ok(Location {
            rootfs,
            maps,
            driver: Driver::Dir,
            power: None,
            pool: None,
            project: None,
            home: None,
            foreign: Vec::new(),
        })
    }
}
