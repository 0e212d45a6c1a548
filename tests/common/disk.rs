//! File systems of the test's own, to hold what the one below the temporary directory may not.

use super::{program, run};
use rustix::mount::{UnmountFlags, unmount};
use tempfile::TempDir;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskKind {
    /// Attribute values up to 64 KiB, times up to 2486.
    Xfs,
    /// Any time, but attribute values of some KiB only.
    Btrfs,
    Tmpfs,
}

pub(crate) const DISKS: [DiskKind; 3] = [DiskKind::Xfs, DiskKind::Btrfs, DiskKind::Tmpfs];

impl DiskKind {
    /// The longest attribute value that fits beside a few others.
    pub(crate) fn longest_value(self) -> usize {
        match self {
            Self::Xfs => 64 << 10,
            Self::Btrfs => 8 << 10,
            Self::Tmpfs => 64 << 10,
        }
    }

    pub(crate) fn longest_target(self) -> usize {
        match self {
            Self::Xfs => 1023,
            Self::Btrfs => 3900,
            Self::Tmpfs => 4095,
        }
    }
}

/// Mounted until it is dropped.
#[derive(Debug)]
pub(crate) struct Disk {
    temp: TempDir,
}

impl Disk {
    pub(crate) fn new(kind: DiskKind) -> Self {
        super::require_root();
        // Size of a sparse image: only what is written takes room.
        const SIZE: u64 = 64 << 30;
        let temp = tempfile::Builder::new().prefix("codchifs-disk-").tempdir().unwrap();
        let (image, point) = (temp.path().join("image"), temp.path().join("point"));
        std::fs::create_dir(&point).unwrap();
        // xfs allocates ahead of what is written, and a copy's holes would hold blocks.
        let (name, options) = match kind {
            DiskKind::Xfs => ("xfs", "loop,allocsize=4k"),
            DiskKind::Btrfs => ("btrfs", "loop"),
            DiskKind::Tmpfs => ("tmpfs", "size=50%"),
        };
        let mut mount = program("mount", ["-t", name, "-o", options]);
        if kind == DiskKind::Tmpfs {
            run(mount.arg("tmpfs").arg(&point)).silent();
        } else {
            std::fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
            run(program(&format!("mkfs.{name}"), ["-q"]).arg(&image)).ok();
            run(mount.arg(&image).arg(&point)).silent();
        }
        Self { temp }
    }

    /// A directory on it.
    pub(crate) fn path(&self) -> std::path::PathBuf {
        self.temp.path().join("point")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Its last user may be a program that looks at all mounts for a moment.
        if let Err(error) = unmount(self.path(), UnmountFlags::DETACH) {
            eprintln!("{}: {error}", self.path().display());
        }
    }
}
