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

/// FUSE_GETATTR, and bytes of the heads of a request and of an answer.
const GETATTR: u32 = 3;
const HEAD: usize = 16;

impl Hung {
    /// From now on it answers, each request with ENOTCONN, as if nobody served it; `at_look` is done when somebody asks for its
    /// attributes for the first time. Ends with the mount.
    pub(crate) fn play_stale(&self, at_look: impl FnOnce() + Send + 'static) {
        let mut device = self.device.try_clone().unwrap();
        let mut at_look = Some(at_look);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 20];
            loop {
                match device.read(&mut buffer) {
                    Ok(_) => {}
                    Err(why) if why.kind() == std::io::ErrorKind::WouldBlock => {
                        std::thread::sleep(std::time::Duration::from_millis(1));
                        continue;
                    }
                    Err(_) => return,
                }
                let number = u32::from_le_bytes(buffer[4..8].try_into().unwrap());
                let unique: [u8; 8] = buffer[8..HEAD].try_into().unwrap();
                let (error, body) = match number {
                    // struct fuse_init_out, with version 7.31 and nothing else that matters.
                    INIT => {
                        let mut body = vec![0; 64];
                        body[..4].copy_from_slice(&7_u32.to_le_bytes());
                        body[4..8].copy_from_slice(&31_u32.to_le_bytes());
                        body[20..24].copy_from_slice(&(1_u32 << 17).to_le_bytes());
                        (0, body)
                    }
                    number => {
                        if let Some(at_look) = at_look.take_if(|_| number == GETATTR) {
                            at_look();
                        }
                        (-libc::ENOTCONN, Vec::new())
                    }
                };
                let length = HEAD + body.len();
                let mut answer = (length as u32).to_le_bytes().to_vec();
                answer.extend(error.to_le_bytes());
                answer.extend(unique);
                answer.extend(body);
                // A request that was interrupted takes no answer.
                let _ = std::io::Write::write(&mut device, &answer);
            }
        });
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        let _ = unmount(&self.point, UnmountFlags::DETACH);
    }
}
