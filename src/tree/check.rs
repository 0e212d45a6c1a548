//! Whether this process can read machines at all: every call that reading one takes, made on a file that each host has.
//!
//! A sandbox around codchifs (a systemd unit's, a container's) may refuse a call, as if the kernel did not have it. Without a
//! look, a mount would come up in which every file is an error.

use super::layer::{self, Layer, Root};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// A directory with a file that everybody may read (proc_sys_kernel(5)).
const DIRECTORY: &str = "/proc/sys/kernel";
const FILE: &[u8] = b"ostype";

/// What refused to read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("files of machines cannot be read: {call}: {why}; {}", remedy(*.why))]
pub struct CannotRead {
    call: &'static str,
    why: Errno,
}

fn remedy(why: Errno) -> &'static str {
    match why {
        Errno::NOSYS | Errno::PERM | Errno::ACCESS => {
            "a sandbox around codchifs refuses the call: take SystemCallFilter= out of the unit, or allow the call in the \
             container's seccomp profile"
        }
        _ => "please report this, with the version of the kernel",
    }
}

fn at(call: &'static str) -> impl Fn(Errno) -> CannotRead {
    move |why| CannotRead { call, why }
}

/// The directory that [`check_reading`] is to be tried on; `None` where /proc does not have it.
pub fn sample() -> Result<Option<OwnedFd>, CannotRead> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(DIRECTORY, flags, Mode::empty()) {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::NOENT) => {
            tracing::debug!(DIRECTORY, "nothing to try on whether files can be read");
            Ok(None)
        }
        Err(why) => Err(at("open")(why)),
    }
}

/// The sample as a machine's directory is opened by a process that has all rights it will have.
pub fn open_sample(directory: OwnedFd) -> Result<Root, CannotRead> {
    Root::new(directory, Vec::new()).map_err(at("open_tree"))
}

/// Reads the sample by the calls by which machines are read.
pub fn check_reading(sample: Root) -> Result<(), CannotRead> {
    let layer = Layer::new(sample).map_err(at("statx"))?;
    let directory = layer::open_dir(layer.root(), b".").map_err(at("open"))?;
    let mut found = false;
    layer::names(directory.as_fd(), |name| found |= name == FILE).map_err(at("getdents64"))?;
    if !found {
        return Err(at("getdents64")(Errno::NOENT));
    }
    layer::stat_at(&directory, FILE).map_err(at("statx"))?;
    layer::xattr_names(directory.as_fd(), FILE, |_| {}).map_err(at("listxattr"))?;
    let (file, _) = layer::open_file(&directory, FILE).map_err(at("open"))?;
    let mut text = [0; 1];
    rustix::io::pread(&file, &mut text, 0).map_err(at("pread64"))?;
    if let Some(opened) = layer.open_path(FILE) {
        rustix::io::pread(opened.map_err(at("open"))?, &mut text, 0).map_err(at("pread64"))?;
    }
    Ok(())
}
