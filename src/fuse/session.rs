//! Answering the kernel.

use super::errands::Errands;
use super::mount::{self, MountOptions, Stop};
use super::owed::{Callers, LOOK};
use super::requests::Requests;
use super::{Adaptor, Background, Backings, MountError, Work};
use crate::machine::Machines;
use crate::opener::Client;
use crate::quote;
use crate::vfs::{Access, Vfs};
use fuser::{Config, MountOption, Session, SessionACL};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd as _, OwnedFd};
use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

/// How often what nobody needs any more is looked for.
const TIDY: Duration = Duration::from_secs(60);

/// What a thread of its own looks after.
struct Keeper {
    vfs: Arc<Vfs>,
    /// They end with the session.
    callers: Weak<Callers>,
    background: Background,
    host: Option<Arc<Client>>,
    errands: Arc<Errands>,
}

/// The end of the session, for whoever waits for it.
type End = Sender<io::Result<()>>;

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
    let (adaptor, keeper, woken) = adaptor(machines, options, Some(host));
    let mut config = Config::default();
    config.n_threads = Some(options.threads.max(1));
    // fuser would compare callers with our own effective user; the kernel compares them with
    // user_id, and `allow_root` is the adaptor's.
    let session = Session::from_fd(adaptor, device, SessionACL::All, config);
    let start = |source| MountError::Start { source };
    let (_, ended) = start_session(session.map_err(start)?, keeper, woken).map_err(start)?;
    ready();
    ended.recv().unwrap_or(Ok(())).map_err(|source| MountError::Session { source })
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
    let (adaptor, keeper, woken) = adaptor(Arc::clone(&machines), options, None);
    let session = mount_with_fusermount(adaptor, &mountpoint, options)?;
    let start = |source| {
        mount::detach(&mountpoint);
        MountError::Start { source }
    };
    let (cut_off, ended) = start_session(session, keeper, woken).map_err(start)?;
    let watched = mountpoint.clone();
    let handle = stop.watch(
        options.stop_timeout,
        move |lazy| mount::unmount(&watched, lazy),
        move || machines.reread(),
        // Nobody receives only if the session has ended already.
        move || drop(cut_off.send(Ok(()))),
    );
    tracing::info!(mountpoint = %quote::path(&mountpoint), "mounted");
    let abort = mount::abort_of(&mountpoint);
    ready();
    let result = ended.recv().unwrap_or(Ok(()));
    abort.end();
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
) -> (Adaptor, Keeper, Receiver<()>) {
    let access = Access {
        uid: options.uid,
        gid: options.gid,
        others: options.allow_other,
        checked: options.allow_root,
        inode32: options.inode32,
    };
    let (wake, woken) = channel();
    let errands = Arc::new(Errands::new());
    let tell = Arc::clone(&errands);
    let vfs = Vfs::new(machines, access, move |machine, notice| tell.tell(machine, notice));
    let (vfs, callers) = (Arc::new(vfs), Arc::new(Callers::new(wake)));
    let background = Background::new("codchifs-slow", options.threads);
    let keeper = Keeper {
        vfs: Arc::clone(&vfs),
        callers: Arc::downgrade(&callers),
        background: background.clone(),
        host: host.clone(),
        errands: Arc::clone(&errands),
    };
    let backings = OnceLock::new();
    let adaptor = Adaptor {
        requests: Arc::new(Requests { vfs, background, callers, errands, backings }),
        only: options.allow_root.then_some(options.uid),
        kernel_checks: options.allow_other,
        backings: host.filter(|_| options.passthrough).map(Backings::new),
    };
    (adaptor, keeper, woken)
}

/// Starts to answer the kernel; what is returned tells of the end, and takes it from others.
fn start_session(
    session: Session<Adaptor>,
    keeper: Keeper,
    woken: Receiver<()>,
) -> io::Result<(End, Receiver<io::Result<()>>)> {
    keeper.errands.begin(session.notifier());
    let device = session.as_fd().try_clone_to_owned()?;
    let (end, ended) = channel();
    let (of_keeper, of_waiter) = (end.clone(), end.clone());
    std::thread::Builder::new()
        .name("codchifs-keeper".into())
        .spawn(move || look_after(&keeper, &woken, &device, &of_keeper))?;
    let running = session.spawn()?;
    // Nobody receives only if somebody else was faster.
    std::thread::Builder::new()
        .name("codchifs-wait".into())
        .spawn(move || drop(of_waiter.send(running.join())))?;
    Ok((end, ended))
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

/// Lets go callers that are killed, and tidies, until the session has ended. Does nothing itself that waits for a machine.
fn look_after(keeper: &Keeper, woken: &Receiver<()>, device: &OwnedFd, end: &End) {
    let mut tidied = Instant::now();
    loop {
        // Whatever else there is to do: a mount that is always busy is tidied as well.
        if tidied.elapsed() >= TIDY {
            super::survive("tidy", || keeper.tidy());
            tidied = Instant::now();
        }
        let mut pause = TIDY.saturating_sub(tidied.elapsed());
        if let Some(callers) = keeper.callers.upgrade() {
            if callers.look(keeper.host.as_deref()) {
                keeper.background.forget_abandoned();
            }
            keeper.background.retry();
            keeper.errands.retry();
            let is_busy = keeper.background.is_busy() || keeper.errands.is_busy();
            // A thread of the session that waits for a disk would keep the session, and the process, from ending.
            if is_busy && is_gone(device) {
                let _ = end.send(Ok(()));
            }
            if is_busy || !callers.may_rest() {
                pause = pause.min(LOOK);
            }
        }
        match woken.recv_timeout(pause) {
            // Most are answered at once.
            Ok(()) => std::thread::sleep(LOOK),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

impl Keeper {
    /// Each machine on a thread of its own: what is dropped may be the last of an open file, and closing it wait for a disk.
    fn tidy(&self) {
        for (machine, exports) in self.vfs.tidy() {
            if !self.background.has(&machine, Work::Tidy) {
                self.background.run(machine, Work::Tidy, move || exports.tidy());
            }
        }
    }
}

/// Whether the kernel asks no more: the mount is gone, or was cut off.
fn is_gone(device: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(device, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec::default())).is_ok()
        && polled.iter().any(|fd| fd.revents().contains(PollFlags::ERR))
}
