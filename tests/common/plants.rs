//! What a user without any privilege can put in the way of root: mounts of a namespace of their own, and a FUSE that never
//! answers.

use super::{program, wait_until};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

/// A process of `uid` in a user and mount namespace of its own, where a script has mounted what it likes.
#[derive(Debug)]
pub(crate) struct Namespace(Child);

impl Namespace {
    /// `script` runs in sh as root of the namespace, with `arguments` as `$0` and so on.
    pub(crate) fn new(uid: u32, script: &str, arguments: &[&Path]) -> Self {
        let mut unshare = program("setpriv", ["--clear-groups"]);
        unshare.args([format!("--reuid={uid}"), format!("--regid={uid}")]);
        // The script ends in a process that stays, in the same namespaces.
        unshare.args(["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]);
        unshare.arg(format!("{script}\nexec sleep 1000")).args(arguments);
        let mut child = unshare.stdin(Stdio::null()).spawn().unwrap();
        let comm = format!("/proc/{}/comm", child.id());
        wait_until("the namespace", || {
            assert!(child.try_wait().unwrap().is_none(), "{script} failed");
            fs::read_to_string(&comm).is_ok_and(|name| name == "sleep\n")
        });
        Self(child)
    }

    /// A path to `inside` that is a magic link's.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        format!("/proc/{}/root{inside}", self.0.id()).into()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// FUSE_INIT (linux/fuse.h), which the kernel sends by itself.
const INIT: u32 = 26;

/// A FUSE of `uid`, as fusermount3 would mount it, that admits everybody and never answers.
#[derive(Debug)]
pub(crate) struct Hung {
    point: PathBuf,
    device: File,
}

impl Hung {
    /// On a directory or a file that is there.
    pub(crate) fn new(point: &Path, uid: u32, kind: &str) -> Self {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let device = File::from(openat(CWD, "/dev/fuse", flags, Mode::empty()).unwrap());
        let mode = if point.is_dir() { "40000" } else { "100000" };
        let fd = device.as_raw_fd();
        let options = format!("fd={fd},rootmode={mode},user_id={uid},group_id={uid},allow_other");
        let options = CString::new(options).unwrap();
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("hung", point, kind, flags, options.as_c_str()).unwrap();
        Self { point: point.into(), device }
    }

    /// Numbers of the requests that have come, but for the kernel's own.
    pub(crate) fn requests(&mut self) -> Vec<u32> {
        let (mut seen, mut buffer) = (Vec::new(), vec![0; 1 << 20]);
        while let Ok(length) = self.device.read(&mut buffer) {
            assert!(length >= 8, "{length}");
            seen.push(u32::from_le_bytes(buffer[4..8].try_into().unwrap()));
        }
        seen.retain(|number| *number != INIT);
        seen
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        let _ = unmount(&self.point, UnmountFlags::DETACH);
    }
}
