//! Mounting, serving, unmounting.

use super::mounts::{self, Mounted, TYPE, mounted_at};
use super::{Adaptor, Background, Backings, Errand, MountError};
use crate::machine::Machines;
use crate::vfs::{Access, Notice, Vfs};
use fuser::{Config, INodeNo, MountOption, Notifier, Session, SessionACL};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount as sys;
use rustix::mount::UnmountFlags;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// Read-ahead in KiB that makes a sequential read of `export.tar` as fast as it gets. What the
/// kernel offers a FUSE file system by itself is 128.
const READ_AHEAD: &str = "1024";

/// How often what nobody needs any more is looked for.
const TIDY: Duration = Duration::from_secs(60);
/// How long the kernel gets to forget a name before others are served: without a scan it takes microseconds, and the name
/// leads nowhere for no more than a second anyway.
const NAME_WAIT: Duration = Duration::from_millis(100);

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
    /// Threads that answer the kernel.
    pub threads: usize,
    /// Have the kernel read large files of `rootfs/` by itself where it can.
    pub passthrough: bool,
}

/// Mounts `machines`, calls `ready` once the mount is served, and serves it until it is unmounted
/// or the process is told to end.
///
/// After a second signal it returns while somebody still uses the mount: the process is then to
/// end at once.
pub fn serve(
    machines: Arc<Machines>,
    options: &MountOptions,
    ready: impl FnOnce(),
) -> Result<(), MountError> {
    if options.allow_other && options.allow_root {
        return Err(MountError::BothAllowed);
    }
    let mountpoint = prepare(&options.mountpoint)?;
    // From here on a signal is kept until somebody looks: none may leave a stale mount behind.
    let mut signals =
        Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(|source| MountError::Signals { source })?;
    raise_descriptor_limit();

    let privileged = rustix::process::geteuid().is_root();
    let access = Access {
        uid: options.uid,
        gid: options.gid,
        others: options.allow_other,
        checked: options.allow_root,
    };
    let to_tidy = Arc::clone(&machines);
    let (errands, to_do) = channel();
    let tell = errands.clone();
    let notify = move |notice| {
        if tell.send(Errand::Tell(notice)).is_err() {
            tracing::debug!(?notice, "nobody tells the kernel");
        }
    };
    let adaptor = Adaptor {
        vfs: Arc::new(Vfs::new(machines, access, notify)),
        background: Background::default(),
        errands,
        only: options.allow_root.then_some(options.uid),
        kernel_checks: options.allow_other,
        direct: false,
        backings: options.passthrough.then(Backings::default),
    };
    let session = if privileged {
        mount_directly(adaptor, &mountpoint, options)?
    } else {
        mount_with_fusermount(adaptor, &mountpoint, options)?
    };
    let notifier = session.notifier();
    let started = std::thread::Builder::new()
        .name("codchifs-notify".into())
        .spawn(move || run_errands(&notifier, &to_do, || to_tidy.tidy()))
        .and_then(|_| session.spawn());
    let background = match started {
        Ok(background) => background,
        Err(source) => {
            detach(&mountpoint);
            return Err(MountError::Start { path: mountpoint, source });
        }
    };
    let mounted = mounted_at(&mountpoint)?.filter(|mounted| mounted.fstype == TYPE);
    if privileged && let Some(mounted) = &mounted {
        raise_read_ahead(mounted);
    }
    let handle = signals.handle();
    let watched = mountpoint.clone();
    let (end, ended) = channel();
    let cut_off = end.clone();
    let watcher = std::thread::Builder::new()
        .name("codchifs-signals".into())
        .spawn(move || watch(&mut signals, &watched, &cut_off));
    if let Err(source) = &watcher {
        tracing::warn!(%source, "no thread for signals: unmount with umount");
    }
    let waiter = std::thread::Builder::new().name("codchifs-wait".into()).spawn(move || {
        // Nobody receives only if a second signal was faster.
        let _ = end.send(background.join());
    });
    if let Err(source) = waiter {
        detach(&mountpoint);
        return Err(MountError::Start { path: mountpoint, source });
    }
    tracing::info!(mountpoint = %mountpoint.display(), "mounted");
    ready();
    let result = ended.recv().unwrap_or(Ok(()));
    handle.close();
    if let Err(source) = result {
        detach(&mountpoint);
        return Err(MountError::Session { path: mountpoint, source });
    }
    Ok(())
}

/// Unmounts the codchifs at `path`. `lazy` takes it out of sight at once and ends it when its last
/// user lets go.
pub fn unmount(path: &Path, lazy: bool) -> Result<(), MountError> {
    let path = resolve(path)?;
    match mounted_at(&path)? {
        Some(mounted) if mounted.fstype == TYPE => unmount_at(&path, lazy),
        _ => Err(MountError::NotMounted { path }),
    }
}

/// `path` without symbolic links. Only its parent is looked at: the directory itself may be a
/// mount that answers nobody.
fn resolve(path: &Path) -> Result<PathBuf, MountError> {
    let look = |source| MountError::Look { path: path.to_owned(), source };
    let absolute = std::path::absolute(path).map_err(look)?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return std::fs::canonicalize(path).map_err(look);
    };
    let direct = match std::fs::canonicalize(parent) {
        Ok(parent) => parent.join(name),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(MountError::Missing { path: path.to_owned() });
        }
        Err(error) => return Err(look(error)),
    };
    match std::fs::symlink_metadata(&direct) {
        Ok(found) if found.is_symlink() => std::fs::canonicalize(&direct).map_err(look),
        _ => Ok(direct),
    }
}

/// Makes sure that `path` can be mounted on, taking away what a crash left there.
fn prepare(path: &Path) -> Result<PathBuf, MountError> {
    let path = resolve(path)?;
    while let Some(mounted) = mounted_at(&path)?.filter(|mounted| mounted.fstype == TYPE) {
        if !mounts::is_stale(&mounted) {
            return Err(MountError::AlreadyMounted { path });
        }
        tracing::warn!(mountpoint = %path.display(), "detaching what a crashed codchifs left");
        unmount_at(&path, true)
            .map_err(|source| MountError::Stale { path: path.clone(), source: Box::new(source) })?;
    }
    let look = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => MountError::Missing { path: path.clone() },
        _ => MountError::Look { path: path.clone(), source },
    };
    if !std::fs::metadata(&path).map_err(look)?.is_dir() {
        return Err(MountError::NotADirectory { path });
    }
    if std::fs::read_dir(&path).map_err(look)?.next().is_some() {
        return Err(MountError::NotEmpty { path });
    }
    Ok(path)
}

/// Mounts as root. Not through fuser: it loses the subtype, and `findmnt -t fuse.codchifs` finds
/// nothing then.
fn mount_directly(
    adaptor: Adaptor,
    mountpoint: &Path,
    options: &MountOptions,
) -> Result<Session<Adaptor>, MountError> {
    let device =
        rustix::fs::openat(CWD, "/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|source| MountError::Device { source })?;
    attach(&device, mountpoint, options).map_err(|(step, source)| MountError::Mount {
        path: mountpoint.to_owned(),
        step,
        source,
    })?;
    let mut config = Config::default();
    config.n_threads = Some(options.threads.max(1));
    // fuser would compare callers with our own effective user; the kernel compares them with
    // user_id, and `allow_root` is the adaptor's.
    Session::from_fd(adaptor, device, SessionACL::All, config).map_err(|source| {
        detach(mountpoint);
        MountError::Start { path: mountpoint.to_owned(), source }
    })
}

/// The steps of mounting. Both descriptors made here are closed on return: either one left open
/// pins the superblock, and the session would outlive the mount forever.
fn attach(
    device: &OwnedFd,
    mountpoint: &Path,
    options: &MountOptions,
) -> Result<(), (&'static str, Errno)> {
    use rustix::fd::AsRawFd;
    let at = |step: &'static str| move |error| (step, error);
    let context = sys::fsopen("fuse", sys::FsOpenFlags::FSOPEN_CLOEXEC).map_err(at("fsopen"))?;
    let context = context.as_fd();
    for (key, value) in [
        ("source", "codchifs".to_owned()),
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
    let attributes = sys::MountAttrFlags::MOUNT_ATTR_RDONLY
        | sys::MountAttrFlags::MOUNT_ATTR_NOSUID
        | sys::MountAttrFlags::MOUNT_ATTR_NODEV;
    let mount = sys::fsmount(context, sys::FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(at("fsmount"))?;
    let flags = sys::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    sys::move_mount(mount.as_fd(), "", CWD, mountpoint, flags).map_err(at("move_mount"))
}

/// Mounts as a plain user, with fusermount3's help.
fn mount_with_fusermount(
    adaptor: Adaptor,
    mountpoint: &Path,
    options: &MountOptions,
) -> Result<Session<Adaptor>, MountError> {
    let mut config = Config::default();
    config.n_threads = Some(options.threads.max(1));
    config.acl = match (options.allow_other, options.allow_root) {
        (true, _) => SessionACL::All,
        (_, true) => SessionACL::RootAndOwner,
        _ => SessionACL::Owner,
    };
    config.mount_options = vec![
        MountOption::FSName("codchifs".into()),
        MountOption::Subtype("codchifs".into()),
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
    ];
    if options.allow_other {
        config.mount_options.push(MountOption::DefaultPermissions);
    }
    Session::new(adaptor, mountpoint, &config)
        .map_err(|source| MountError::Start { path: mountpoint.to_owned(), source })
}

fn unmount_at(path: &Path, lazy: bool) -> Result<(), MountError> {
    if rustix::process::geteuid().is_root() {
        let mut flags = UnmountFlags::NOFOLLOW;
        flags.set(UnmountFlags::DETACH, lazy);
        return sys::unmount(path, flags).map_err(|source| match source {
            Errno::BUSY => MountError::Busy { path: path.to_owned() },
            _ => MountError::Unmount { path: path.to_owned(), source },
        });
    }
    let failed = |reason| MountError::Fusermount { path: path.to_owned(), reason };
    let output = Command::new("fusermount3")
        .arg(if lazy { "-uz" } else { "-u" })
        .arg("--")
        .arg(path)
        // Its message for a busy mount is recognized below.
        .env("LC_ALL", "C")
        .output()
        .map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    match output.status.success() {
        true => Ok(()),
        false if text.contains("busy") => Err(MountError::Busy { path: path.to_owned() }),
        false => Err(failed(text)),
    }
}

/// Takes away our own mount after a failure, which is reported already.
fn detach(mountpoint: &Path) {
    if let Err(error) = unmount(mountpoint, true) {
        tracing::debug!(%error, "nothing to detach");
    }
}

/// Ends the mount on a signal; if it is in use it goes out of sight, and a second signal cuts off
/// whoever still uses it: `serve` returns, and the kernel fails what waits when the process ends.
fn watch(signals: &mut Signals, mountpoint: &Path, cut_off: &Sender<io::Result<()>>) {
    let mut detached = false;
    for signal in signals.forever() {
        tracing::info!(signal, "unmounting");
        if detached {
            tracing::warn!("cutting off whoever still uses the mount");
            // Nobody receives only if the session has ended already.
            let _ = cut_off.send(Ok(()));
            return;
        }
        let result = match unmount(mountpoint, false) {
            Err(MountError::Busy { .. }) => {
                tracing::warn!("the mount is in use: it is detached and ends with its last user");
                unmount(mountpoint, true)
            }
            other => other,
        };
        match result {
            Ok(()) | Err(MountError::NotMounted { .. }) => detached = true,
            Err(error) => tracing::warn!(%error, "cannot unmount"),
        }
    }
}

/// Only root may, and only after the kernel's INIT was answered; before, it would be reset.
fn raise_read_ahead(mounted: &Mounted) {
    let (major, minor) = mounted.device;
    let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = std::fs::write(&path, READ_AHEAD) {
        tracing::debug!(%error, path, "cannot raise the read-ahead");
    }
}

/// Directories are kept open, and so is what readers have open: 1024 descriptors are soon gone.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
}

/// Tells the kernel what it must forget, and answers what had to wait for that. A thread of its own: the kernel waits for
/// reads of the pages it is to drop, and those wait for the session's threads.
fn run_errands(notifier: &Notifier, errands: &Receiver<Errand>, tidy: impl Fn()) {
    let (names, named) = channel();
    let of_names = notifier.clone();
    let started = std::thread::Builder::new()
        .name("codchifs-names".into())
        .spawn(move || forget_names(&of_names, &named));
    if let Err(error) = started {
        tracing::warn!(%error, "no thread for names: a retired export is seen for a second");
    }
    loop {
        match errands.recv_timeout(TIDY) {
            Ok(Errand::Tell(Notice::Pages { ino, offset })) => {
                let offset = i64::try_from(offset).unwrap_or(0);
                told(notifier.inval_inode(INodeNo(ino), offset, 0), "pages");
            }
            Ok(Errand::Tell(Notice::Name { parent, name })) => {
                let (done, wait) = channel();
                if names.send((parent, name, done)).is_ok() {
                    let _ = wait.recv_timeout(NAME_WAIT);
                }
            }
            Ok(Errand::Answer(answer)) => super::survive("read", answer),
            Err(RecvTimeoutError::Timeout) => super::survive("tidy", &tidy),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Another thread still: the kernel takes the lock of the directory that has the name, and a lookup that scans holds it.
fn forget_names(notifier: &Notifier, names: &Receiver<(u64, &'static str, Sender<()>)>) {
    for (parent, name, done) in names {
        told(notifier.inval_entry(INodeNo(parent), OsStr::new(name)), "name");
        // Nobody waits any more if it took long.
        let _ = done.send(());
    }
}

fn told(result: io::Result<()>, what: &str) {
    match result {
        // The kernel has forgotten it already.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(%error, what, "cannot have the kernel forget"),
        Ok(()) => {}
    }
}
