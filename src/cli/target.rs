//! The file that an export is written to.

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// The file being written: under another name until it is whole and on the disk.
pub(super) struct Target {
    pub(super) file: File,
    output: PathBuf,
    /// `None` where the output is no regular file (a pipe, a device) and is written as it is.
    partial: Option<PathBuf>,
}

impl Target {
    pub(super) fn create(output: &Path) -> io::Result<Self> {
        let special = output.metadata().is_ok_and(|m| !m.is_file());
        if special {
            let file = OpenOptions::new().write(true).open(output)?;
            return Ok(Self { file, output: output.into(), partial: None });
        }
        // Through a link to the file that is meant.
        let output = output.canonicalize().unwrap_or_else(|_| output.into());
        let mut partial = output.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW);
        // Another export may finish between the open and the lock, and take the name away.
        let file = loop {
            let file = options.open(&partial)?;
            flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|why| match why {
                Errno::WOULDBLOCK => {
                    io::Error::other(format!("another export is writing {}", partial.display()))
                }
                why => why.into(),
            })?;
            let (ours, named) = (file.metadata()?, partial.symlink_metadata());
            if named.is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino())) {
                break file;
            }
        };
        // It holds a person's secrets: for nobody else from its first byte on.
        let meta = file.metadata()?;
        if meta.uid() != rustix::process::geteuid().as_raw() || meta.nlink() != 1 {
            return Err(io::Error::other(format!(
                "{} is there and not ours; remove it",
                partial.display()
            )));
        }
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.set_len(0)?;
        Ok(Self { file, output, partial: Some(partial) })
    }

    /// Whether it lies in one of the machine's own directories, and so would be in its own archive.
    pub(super) fn is_below(&self, directory: &Path) -> bool {
        self.partial.is_some()
            && directory.canonicalize().is_ok_and(|directory| {
                let parent = self.output.parent().filter(|p| !p.as_os_str().is_empty());
                parent
                    .unwrap_or(Path::new("."))
                    .canonicalize()
                    .is_ok_and(|p| p.starts_with(directory))
            })
    }

    pub(super) fn finish(self) -> io::Result<()> {
        let Some(partial) = &self.partial else { return Ok(()) };
        let named = self.file.sync_all().and_then(|()| std::fs::rename(partial, &self.output));
        if let Err(why) = named {
            self.discard();
            return Err(why);
        }
        // The rename is on the disk when its directory is.
        let dir = self.output.parent().filter(|d| !d.as_os_str().is_empty());
        File::open(dir.unwrap_or(Path::new(".")))?.sync_all()
    }

    /// Leaves what was written under its other name.
    pub(super) fn keep(self) -> io::Result<PathBuf> {
        // A pipe has nothing to be on a disk.
        if self.partial.is_some() {
            self.file.sync_all()?;
        }
        Ok(self.partial.unwrap_or(self.output))
    }

    pub(super) fn discard(&self) {
        if let Some(partial) = &self.partial {
            let _ = std::fs::remove_file(partial);
        }
    }
}

/// Whether files on the file system of `path` can share blocks (statfs(2), linux/magic.h: btrfs, XFS, bcachefs).
pub(super) fn shares_blocks(path: &Path) -> bool {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let kind = rustix::fs::statfs(parent).map(|fs| fs.f_type as u64 & 0xffff_ffff);
    matches!(kind, Ok(0x9123_683e | 0x5846_5342 | 0xca45_1a4e))
}
