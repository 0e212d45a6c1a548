//! Answering the kernel.

use super::mount::{self, MountOptions, Stop};
use super::{Adaptor, Background, Backings, Errand, MountError};
use crate::machine::Machines;
use crate::opener::Client;
use crate::vfs::{Access, Notice, Vfs};
use fuser::{Config, INodeNo, MountOption, Notifier, Session, SessionACL};
use rustix::fd::OwnedFd;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// How often what nobody needs any more is looked for.
const TIDY: Duration = Duration::from_secs(60);
/// How long the kernel gets to forget a name before others are served: without a scan it takes microseconds, and the name
/// leads nowhere for no more than a second anyway.
const NAME_WAIT: Duration = Duration::from_millis(100);

/// Answers for a mount that [`mount::attach`] made, until it is unmounted. Calls `ready` once the kernel is answered.
///
/// `options` are those of the mount; `host` does what takes more rights than this process may have.
pub fn answer(
    machines: Arc<Machines>,
    options: &MountOptions,
    host: Arc<Client>,
    device: OwnedFd,
    ready: impl FnOnce(),
) -> Result<(), MountError> {
    let (adaptor, errands) = adaptor(machines, options, Some(host));
    let vfs = Arc::clone(&adaptor.vfs);
    let mut config = Config::default();
    config.n_threads = Some(options.threads.max(1));
    // fuser would compare callers with our own effective user; the kernel compares them with
    // user_id, and `allow_root` is the adaptor's.
    let session = Session::from_fd(adaptor, device, SessionACL::All, config);
    let start = |source| MountError::Start { source };
    let running = start_session(session.map_err(start)?, errands, vfs).map_err(start)?;
    ready();
    let ended = running.join();
    ended.map_err(|source| MountError::Session { source })
}

/// Mounts `machines` as a plain user, with fusermount3's help, calls `ready` once the mount is answered, and answers until it
/// is unmounted or the process is told to end.
///
/// After a second signal it returns while somebody still uses the mount: the process is then to
/// end at once.
pub fn serve(
    machines: Arc<Machines>,
    options: &MountOptions,
    ready: impl FnOnce(),
) -> Result<(), MountError> {
    let (mountpoint, _) = mount::prepare(options)?;
    let stop = Stop::new()?;
    let (adaptor, errands) = adaptor(Arc::clone(&machines), options, None);
    let vfs = Arc::clone(&adaptor.vfs);
    let session = mount_with_fusermount(adaptor, &mountpoint, options)?;
    let start = |source| {
        mount::detach(&mountpoint);
        MountError::Start { source }
    };
    let running = start_session(session, errands, vfs).map_err(start)?;
    let (end, ended) = channel();
    let cut_off = end.clone();
    let watched = mountpoint.clone();
    let handle = stop.watch(
        options.stop_timeout,
        move |lazy| mount::unmount(&watched, lazy),
        move || machines.reread(),
        // Nobody receives only if the session has ended already.
        move || drop(cut_off.send(Ok(()))),
    );
    let waiter = std::thread::Builder::new().name("codchifs-wait".into());
    // Nobody receives only if a second signal was faster.
    waiter.spawn(move || drop(end.send(running.join()))).map_err(start)?;
    tracing::info!(mountpoint = %mountpoint.display(), "mounted");
    ready();
    let result = ended.recv().unwrap_or(Ok(()));
    handle.close();
    result.map_err(|source| {
        mount::detach(&mountpoint);
        MountError::Session { source }
    })
}

fn adaptor(
    machines: Arc<Machines>,
    options: &MountOptions,
    host: Option<Arc<Client>>,
) -> (Adaptor, Receiver<Errand>) {
    let access = Access {
        uid: options.uid,
        gid: options.gid,
        others: options.allow_other,
        checked: options.allow_root,
    };
    let (errands, to_do) = channel();
    let tell = errands.clone();
    let notify = move |notice| {
        if tell.send(Errand::Tell(notice)).is_err() {
            tracing::debug!("nobody tells the kernel");
        }
    };
    let adaptor = Adaptor {
        vfs: Arc::new(Vfs::new(machines, access, notify)),
        background: Background::default(),
        errands,
        only: options.allow_root.then_some(options.uid),
        kernel_checks: options.allow_other,
        backings: host.filter(|_| options.passthrough).map(Backings::new),
    };
    (adaptor, to_do)
}

fn start_session(
    session: Session<Adaptor>,
    errands: Receiver<Errand>,
    vfs: Arc<Vfs>,
) -> io::Result<fuser::BackgroundSession> {
    let notifier = session.notifier();
    std::thread::Builder::new()
        .name("codchifs-notify".into())
        .spawn(move || run_errands(&notifier, &errands, || vfs.tidy()))?;
    session.spawn()
}

/// Mounts as a plain user, with fusermount3's help.
fn mount_with_fusermount(
    adaptor: Adaptor,
    mountpoint: &Path,
    options: &MountOptions,
) -> Result<Session<Adaptor>, MountError> {
    // fusermount3 opens it with this user's rights, and the error of its own says nothing of the device.
    mount::open_device()?;
    let mut config = Config::default();
    config.n_threads = Some(options.threads.max(1));
    config.acl = match (options.allow_other, options.allow_root) {
        (true, _) => SessionACL::All,
        (_, true) => SessionACL::RootAndOwner,
        _ => SessionACL::Owner,
    };
    config.mount_options = vec![
        MountOption::FSName(options.source.clone()),
        MountOption::Subtype("codchifs".into()),
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
    ];
    if options.noexec {
        config.mount_options.push(MountOption::NoExec);
    }
    if options.allow_other {
        config.mount_options.push(MountOption::DefaultPermissions);
    }
    Session::new(adaptor, mountpoint, &config).map_err(|source| MountError::Start { source })
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
    let mut tidied = Instant::now();
    loop {
        // Whatever else there is to do: a mount that is always busy is tidied as well.
        if tidied.elapsed() >= TIDY {
            super::survive("tidy", &tidy);
            tidied = Instant::now();
        }
        match errands.recv_timeout(TIDY.saturating_sub(tidied.elapsed())) {
            Ok(Errand::Tell(Notice::Pages { ino, offset })) => {
                let offset = i64::try_from(offset).unwrap_or(0);
                told(notifier.inval_inode(INodeNo(ino), offset, 0), "pages");
            }
            Ok(Errand::Tell(Notice::Bytes { ino, offset, bytes })) => {
                told(notifier.store(INodeNo(ino), offset, &bytes), "bytes");
            }
            Ok(Errand::Tell(Notice::Name { parent, name })) => {
                let (done, wait) = channel();
                if names.send((parent, name, done)).is_ok() {
                    let _ = wait.recv_timeout(NAME_WAIT);
                }
            }
            Ok(Errand::Answer(answer)) => super::survive("read", answer),
            Err(RecvTimeoutError::Timeout) => {}
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
