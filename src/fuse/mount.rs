//! Mounting and unmounting.

use super::MountError;
use super::abort::Abort;
use super::mounts;
use super::point::{Point, TYPE};
use crate::kernel;
use crate::mountinfo::{self, Mount, Numbers};
use crate::quote;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, AsRawFd as _, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount as sys;
use rustix::process::{Signal, getpid, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long unmounting is tried again while the mount is in use. Programs that look at every mount (df, systemd, a desktop)
/// hold each of them for a moment.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// Read-ahead in KiB that makes a sequential read of `export.tar` as fast as it gets. What the
/// kernel offers a FUSE file system by itself is 128.
const READ_AHEAD: &str = "1024";

/// `MOUNT_ATTR_NOSYMFOLLOW` (linux/mount.h), which rustix does not name.
const NOSYMFOLLOW: sys::MountAttrFlags = sys::MountAttrFlags::from_bits_retain(0x0020_0000);
/// The step that fails before Linux 5.14.
const FSMOUNT_NOSYMFOLLOW: &str = "fsmount with nosymfollow, which Linux 5.14 and later have,";

/// Between two looks at the mount table.
const TABLE_PAUSE: Duration = Duration::from_millis(200);

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Where: an existing, empty directory.
    pub mountpoint: PathBuf,
    /// Whom the mount belongs to. As root it may be somebody else.
    pub uid: u32,
    /// That user's *primary* group: the kernel compares it too.
    pub gid: u32,
    /// Admit everybody, by the modes. Machine uid N then reads what host uid N may read.
    pub allow_other: bool,
    /// Admit root besides the user.
    pub allow_root: bool,
    /// No program in it can be run.
    pub noexec: bool,
    /// Nobody is led out of it by a link.
    pub nosymfollow: bool,
    /// Inode numbers are below 2^32, for 32-bit programs without large-file support.
    pub inode32: bool,
    /// What the mount table has as the source.
    pub source: String,
    /// Threads that answer the kernel.
    pub threads: usize,
    /// Have the kernel read large files of `rootfs/` by itself where it can.
    pub passthrough: bool,
    /// It is a service's, which is of no use if only the service sees the mount.
    pub of_service: bool,
    /// How long whoever uses the mount keeps it after a signal. Without one: until a second signal.
    pub stop_timeout: Option<Duration>,
}

impl MountOptions {
    /// Where, without symbolic links, if nothing in the options speaks against it.
    fn place(&self) -> Result<Point, MountError> {
        if let Some(why) = kernel::too_old() {
            return Err(MountError::Kernel { why });
        }
        if self.allow_other && self.allow_root {
            return Err(MountError::BothAllowed);
        }
        if self.nosymfollow && !rustix::process::geteuid().is_root() {
            return Err(MountError::OnlyRootNosymfollow);
        }
        Point::find(&self.mountpoint)
    }
}

/// A mount made by root.
#[derive(Debug)]
pub struct Attached {
    /// Where it was put, without symbolic links. What leads there now may be something else.
    pub mountpoint: PathBuf,
    numbers: Numbers,
    abort: Abort,
    /// It was this process that took it away.
    unmounted: AtomicBool,
}

/// Mounts as root, and gives what the mount is answered on: it ends when all copies of that are closed. Not through fuser: it
/// loses the subtype, and `findmnt -t fuse.codchifs` finds nothing then.
pub fn attach(options: &MountOptions) -> Result<(Attached, OwnedFd), MountError> {
    let (mountpoint, directory) = prepare(options)?;
    let device = open_device()?;
    let numbers = attach_at(&device, &directory, options)
        .map_err(|(step, source)| MountError::Mount { step, source })?;
    let abort = Abort::of(numbers.1);
    Ok((Attached { mountpoint, numbers, abort, unmounted: AtomicBool::new(false) }, device))
}

/// Opens what the kernel is answered on.
pub(super) fn open_device() -> Result<OwnedFd, MountError> {
    rustix::fs::openat(CWD, "/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|source| MountError::Device { source })
}

impl Attached {
    /// Takes away this very mount, wherever it is by now: who owns a directory on the way may have moved it, and led its path
    /// to another mount. Only while its connection lives: afterwards its numbers may be another mount's. `lazy` takes it out
    /// of sight at once and ends it when its last user lets go.
    pub fn unmount(&self, lazy: bool) -> Result<(), MountError> {
        let mounted = self.found()?.ok_or(MountError::NotMounted)?;
        let point = Point::find(&mounted.mountpoint)?;
        let root = match point.mounted()? {
            Some((same, root)) if (same.id, same.device) == self.numbers => root,
            _ => return Err(MountError::NotMounted),
        };
        // Before it shows in the table.
        self.unmounted.store(true, Ordering::Relaxed);
        point.unmount(root, lazy).inspect_err(|_| self.unmounted.store(false, Ordering::Relaxed))
    }

    /// Fails whoever still uses the mount, wherever it is mounted.
    pub fn cut_off(&self) {
        self.abort.end();
    }

    /// Takes away what is left of the mount, whoever still uses it, after its connection has ended. Another mount that got its
    /// numbers stays, since it is served.
    pub fn clear(&self) -> Result<(), MountError> {
        match self.found()? {
            Some(mounted) if mounts::is_stale_there(&mounted) => self.unmount(true),
            _ => Ok(()),
        }
    }

    /// Fails if the mount is in a namespace of this service alone, where nobody would find it. Where process 1 cannot be looked at,
    /// it is taken to be seen.
    pub fn check_seen(&self) -> Result<(), MountError> {
        let Ok(table) = mountinfo::read_of_init() else { return Ok(()) };
        match table.iter().any(|mount| mount.device == self.numbers.1 && mount.fstype == TYPE) {
            true => Ok(()),
            false => Err(MountError::Unseen),
        }
    }

    /// Ends this process as a signal would when somebody else takes the mount out of this namespace (`umount -l`, or an unmount
    /// of what is around it) while it is still in use: a service must not go on over an empty directory.
    pub fn end_when_taken_away(self: &Arc<Self>) {
        let attached = Arc::clone(self);
        let watcher = std::thread::Builder::new().name("codchifs-table".into()).spawn(move || {
            let path = quote::path(&attached.mountpoint);
            match attached.wait_until_gone() {
                Ok(()) if attached.unmounted.load(Ordering::Relaxed) => return,
                Ok(()) => tracing::warn!(mountpoint = %path, "somebody unmounted it"),
                Err(why) => return tracing::warn!(%why, "cannot watch the mount table"),
            }
            signal_self();
        });
        if let Err(why) = watcher {
            tracing::warn!(%why, "nobody watches the mount table");
        }
    }

    /// The kernel tells a poll of the table that it has changed (proc_pid_mountinfo(5)).
    fn wait_until_gone(&self) -> Result<(), MountError> {
        let failed = |source: io::Error| MountError::Table { source };
        let table = std::fs::File::open("/proc/self/mountinfo").map_err(failed)?;
        while self.found()?.is_some() {
            let mut changed = [PollFd::new(&table, PollFlags::PRI)];
            match poll(&mut changed, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(why) => return Err(failed(why.into())),
            }
            // A host that mounts all the time: the table may be long.
            std::thread::sleep(TABLE_PAUSE);
        }
        Ok(())
    }

    /// Lets the kernel read ahead as far as pays. Only root may, and only after the kernel's INIT was answered; before, it
    /// would be reset.
    pub fn raise_read_ahead(&self) {
        let (major, minor) = self.numbers.1;
        let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        if let Err(error) = std::fs::write(&path, READ_AHEAD) {
            tracing::debug!(%error, path, "cannot raise the read-ahead");
        }
    }

    fn found(&self) -> Result<Option<Mount>, MountError> {
        let table = mountinfo::read().map_err(|source| MountError::Table { source })?;
        let same = |mount: &Mount| (mount.id, mount.device) == self.numbers && mount.fstype == TYPE;
        Ok(table.into_iter().find(same))
    }
}

/// The steps of mounting. Both descriptors made here are closed on return: either one left open
/// pins the superblock, and the session would outlive the mount forever.
fn attach_at(
    device: &OwnedFd,
    directory: &OwnedFd,
    options: &MountOptions,
) -> Result<Numbers, (&'static str, Errno)> {
    let at = |step: &'static str| move |error| (step, error);
    let context = sys::fsopen("fuse", sys::FsOpenFlags::FSOPEN_CLOEXEC).map_err(at("fsopen"))?;
    let context = context.as_fd();
    for (key, value) in [
        ("source", options.source.clone()),
        ("subtype", "codchifs".to_owned()),
        ("fd", device.as_raw_fd().to_string()),
        ("rootmode", "40000".to_owned()),
        ("user_id", options.uid.to_string()),
        ("group_id", options.gid.to_string()),
    ] {
        sys::fsconfig_set_string(context, key, value).map_err(at("fsconfig"))?;
    }
    let flags = [
        ("ro", true),
        ("allow_other", options.allow_other || options.allow_root),
        ("default_permissions", options.allow_other),
    ];
    for (key, _) in flags.into_iter().filter(|(_, wanted)| *wanted) {
        sys::fsconfig_set_flag(context, key).map_err(at("fsconfig"))?;
    }
    sys::fsconfig_create(context).map_err(at("fsconfig create"))?;
    let mut attributes = sys::MountAttrFlags::MOUNT_ATTR_RDONLY
        | sys::MountAttrFlags::MOUNT_ATTR_NOSUID
        | sys::MountAttrFlags::MOUNT_ATTR_NODEV;
    attributes.set(sys::MountAttrFlags::MOUNT_ATTR_NOEXEC, options.noexec);
    attributes.set(NOSYMFOLLOW, options.nosymfollow);
    let mount = sys::fsmount(context, sys::FsMountFlags::FSMOUNT_CLOEXEC, attributes);
    let mount =
        mount.map_err(at(if options.nosymfollow { FSMOUNT_NOSYMFOLLOW } else { "fsmount" }))?;
    let numbers = mountinfo::numbers_of(&mount).map_err(at("statx"))?;
    // On the very directory that was looked at.
    let flags =
        sys::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | sys::MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    sys::move_mount(mount.as_fd(), "", directory, "", flags).map_err(at("move_mount"))?;
    Ok(numbers)
}

/// Whether `options` can be mounted, without doing it; a mount that is there already is none of its business.
pub fn check(options: &MountOptions) -> Result<(), MountError> {
    let point = options.place()?;
    match point.mounted()? {
        Some(_) => Ok(()),
        None => point.empty_directory().map(drop),
    }
}

/// Unmounts the codchifs at `path`. `lazy` takes it out of sight at once and ends it when its last
/// user lets go. Without it, a mount that is in use is tried again for two seconds.
pub fn unmount(path: &Path, lazy: bool) -> Result<(), MountError> {
    let end = Instant::now() + BUSY_TIMEOUT;
    loop {
        match unmount_now(path, lazy) {
            Err(MountError::Busy { .. }) if Instant::now() < end => std::thread::sleep(BUSY_PAUSE),
            done => return done,
        }
    }
}

fn unmount_now(path: &Path, lazy: bool) -> Result<(), MountError> {
    let point = Point::find(path)?;
    let (_, root) = point.mounted()?.ok_or(MountError::NotMounted)?;
    unmount_at(&point, root, lazy)
}

/// Makes sure that the directory can be mounted on, taking away what a crash left there.
pub(super) fn prepare(options: &MountOptions) -> Result<(PathBuf, OwnedFd), MountError> {
    let point = options.place()?;
    raise_descriptor_limit();
    while let Some((mounted, root)) = point.mounted()? {
        let path = point.path.clone();
        if !mounts::is_stale(&mounted, &root) {
            return Err(MountError::AlreadyMounted { path });
        }
        tracing::warn!(mountpoint = %quote::path(&path), "detaching what a crashed codchifs left");
        unmount_at(&point, root, true)
            .map_err(|source| MountError::Stale { path, source: Box::new(source) })?;
    }
    let directory = point.empty_directory()?;
    Ok((point.path, directory))
}

fn unmount_at(point: &Point, root: OwnedFd, lazy: bool) -> Result<(), MountError> {
    if rustix::process::geteuid().is_root() {
        return point.unmount(root, lazy);
    }
    // It looks by itself whose mount is there.
    drop(root);
    let path = &point.path;
    let failed = |reason| MountError::Fusermount { reason };
    let output = Command::new("fusermount3")
        .arg(if lazy { "-uz" } else { "-u" })
        .arg("--")
        .arg(path)
        // Its message for a busy mount is recognized below.
        .env("LC_ALL", "C")
        .output()
        .map_err(|error| failed(error.to_string()))?;
    let text = quote::message(output.stderr.trim_ascii());
    match output.status.success() {
        true => Ok(()),
        false if text.contains("busy") => Err(MountError::Busy { path: path.to_owned() }),
        false => Err(failed(text)),
    }
}

/// What ends the connection of our own mount.
pub(super) fn abort_of(mountpoint: &Path) -> Abort {
    let table = mountinfo::read().unwrap_or_default();
    let here = |mount: &Mount| mount.mountpoint == mountpoint && mount.fstype == TYPE;
    // The one on top of others.
    let found = table.into_iter().rfind(here);
    found.map_or_else(Abort::none, |mount| Abort::of(mount.device))
}

/// Takes away our own mount after a failure, which is reported already.
pub(super) fn detach(mountpoint: &Path) {
    if let Err(error) = unmount(mountpoint, true) {
        tracing::debug!(%error, "nothing to detach");
    }
}

/// Signals that end a mount, kept from now on until somebody looks: none may leave a stale mount behind.
#[derive(Debug)]
pub struct Stop(Signals);

impl Stop {
    /// Takes them over, and SIGHUP.
    pub fn new() -> Result<Self, MountError> {
        let signals = Signals::new([SIGTERM, SIGINT, SIGHUP]);
        signals.map(Self).map_err(|source| MountError::Signals { source })
    }

    /// Calls `end` on a signal, lazily or not, in a thread of its own, until the handle is closed. If the mount is in use it
    /// goes out of sight, and a second signal, or the end of `timeout`, calls `cut_off`, which is to fail whoever still uses it.
    /// SIGHUP calls `reread`.
    pub fn watch(
        self,
        timeout: Option<Duration>,
        end: impl Fn(bool) -> Result<(), MountError> + Send + 'static,
        reread: impl Fn() + Send + 'static,
        cut_off: impl FnOnce() + Send + 'static,
    ) -> Handle {
        let mut signals = self.0;
        let handle = signals.handle();
        let watcher = std::thread::Builder::new()
            .name("codchifs-signals".into())
            .spawn(move || watch(&mut signals, timeout, end, reread, cut_off));
        if let Err(source) = &watcher {
            tracing::warn!(%source, "no thread for signals: unmount with umount");
        }
        handle
    }
}

fn watch(
    signals: &mut Signals,
    timeout: Option<Duration>,
    end: impl Fn(bool) -> Result<(), MountError>,
    reread: impl Fn(),
    cut_off: impl FnOnce(),
) {
    let mut detached = false;
    for signal in signals.forever() {
        if signal == SIGHUP {
            tracing::info!("looking at everything anew");
            reread();
            continue;
        }
        tracing::info!(signal, "unmounting");
        if detached {
            tracing::warn!("cutting off whoever still uses the mount");
            return cut_off();
        }
        let result = match end(false) {
            Err(MountError::Busy { .. }) => {
                tracing::warn!("the mount is in use: it is detached and ends with its last user");
                end(true)
            }
            other => other,
        };
        match result {
            Ok(()) | Err(MountError::NotMounted) => {
                detached = true;
                if let Some(timeout) = timeout {
                    signal_self_after(timeout);
                }
            }
            Err(error) => tracing::warn!(%error, "cannot unmount"),
        }
    }
}

/// A signal as from outside.
pub fn signal_self() {
    if let Err(why) = kill_process(getpid(), Signal::TERM) {
        tracing::warn!(%why, "cannot send a signal to this process");
    }
}

fn signal_self_after(timeout: Duration) {
    let wait = move || {
        std::thread::sleep(timeout);
        signal_self();
    };
    if let Err(why) = std::thread::Builder::new().name("codchifs-timeout".into()).spawn(wait) {
        tracing::warn!(%why, "nobody waits for the time-out: a second signal ends the mount");
    }
}

/// Directories are kept open, and so is what readers have open: 1024 descriptors are soon gone. Inherited by who answers.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
}
