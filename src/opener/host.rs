//! The host's side: finds and opens for the server, which may only name machines.

use super::Direct;
use super::wire::{Answer, Body, Refusal, Request, Told, What, receive, send};
use crate::backend::LocateError;
use crate::codchi::MachineName;
use crate::sys;
use crate::tree::Root;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags, fcntl_getfl, statx};
use rustix::io::Errno;
use rustix::process::Signal;
use std::collections::HashSet;
use std::io;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One for files and callers, and one for machines.
const SOCKETS: usize = 2;

/// Machines that are looked for at a time. Each has a thread: it may wait for a daemon, or for a disk that never answers.
const MAX_FINDING: usize = 1024;

/// Files at a time that the kernel reads by itself.
const MOST_BACKED: usize = 1024;

/// Answers on sockets until the server ends.
#[derive(Clone, Debug)]
pub struct Host(Arc<Means>);

#[derive(Debug)]
struct Means {
    direct: Direct,
    /// What the kernel is answered on, and told on which files it may read by itself.
    device: Mutex<Option<OwnedFd>>,
    /// Files that it reads so.
    backed: AtomicUsize,
    /// Machines that a thread looks for.
    finding: Mutex<HashSet<String>>,
}

/// A socket to the server. Answers go out in the order in which they are found.
#[derive(Debug)]
struct Socket {
    stream: UnixStream,
    answering: Mutex<()>,
}

impl Socket {
    fn answer(&self, number: u64, body: Body, fds: &[OwnedFd]) -> io::Result<()> {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let _one = self.answering.lock();
        send(&self.stream, &Answer { number, body }, &fds)
    }
}

impl Means {
    fn with_device<T>(
        &self,
        tell: impl FnOnce(BorrowedFd<'_>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        self.device.lock().as_ref().map(AsFd::as_fd).ok_or(Errno::NODEV).and_then(tell)
    }
}

impl Host {
    /// Answers with what `direct` finds and opens.
    pub fn new(direct: Direct, device: OwnedFd) -> Self {
        Self(Arc::new(Means {
            direct,
            device: Mutex::new(Some(device)),
            backed: AtomicUsize::new(0),
            finding: Mutex::default(),
        }))
    }

    /// Starts to answer. The other ends are for the server's [`super::Client`].
    pub fn start(&self) -> io::Result<Vec<OwnedFd>> {
        let mut ends = Vec::new();
        for _ in 0..SOCKETS {
            let (ours, servers) = UnixStream::pair()?;
            let means = Arc::clone(&self.0);
            let ours = Arc::new(Socket { stream: ours, answering: Mutex::default() });
            std::thread::Builder::new()
                .name("codchifs-host".into())
                .spawn(move || while answer(&means, &ours).is_ok() {})?;
            ends.push(servers.into());
        }
        Ok(ends)
    }

    /// The finder itself.
    pub fn direct(&self) -> &Direct {
        &self.0.direct
    }

    /// Whether the kernel still asks: it does until the mount is gone, or was cut off.
    pub fn is_asked(&self) -> bool {
        let hung_up = self.0.with_device(|device| {
            let mut polled = [PollFd::from_borrowed_fd(device, PollFlags::empty())];
            poll(&mut polled, Some(&Timespec::default()))?;
            Ok(polled.iter().any(|fd| fd.revents().contains(PollFlags::ERR)))
        });
        hung_up == Ok(false)
    }

    /// Lets go of what the kernel is answered on. While anybody has it, whoever looks at the mount waits for an answer, and
    /// with the server gone nobody gives one.
    pub fn let_go(&self) {
        drop(self.0.device.lock().take());
    }
}

fn answer(means: &Arc<Means>, socket: &Arc<Socket>) -> io::Result<()> {
    let (Request { number, what }, mut files): (Request, _) = receive(&socket.stream)?;
    let body = match what {
        What::Locate(name) => return find_apart(means, socket, number, name, false),
        What::Open(name) => return find_apart(means, socket, number, name, true),
        What::Back => {
            let file = files.pop();
            let body = Body::Backed(back(means, file.as_ref()));
            // Closing waits for a server of a FUSE or a network file system that keeps it.
            let closer = std::thread::Builder::new().name("codchifs-close".into());
            let _ = closer.spawn(move || drop((file, files)));
            body
        }
        What::Killed(threads) => {
            Body::Killed(threads.into_iter().filter(|thread| is_killed(*thread)).collect())
        }
        What::LetGo(id) => {
            let done = means.with_device(|device| sys::let_go_of_backing(device, id));
            if done.is_ok() {
                means.backed.fetch_sub(1, Ordering::Relaxed);
            }
            Body::Backed(done.map(|()| id).map_err(Errno::raw_os_error))
        }
    };
    socket.answer(number, body, &[])
}

/// Answers from a thread of its own when the machine is found: one of each machine, so that a disk that never answers keeps one.
fn find_apart(
    means: &Arc<Means>,
    socket: &Arc<Socket>,
    number: u64,
    name: String,
    open: bool,
) -> io::Result<()> {
    let body = |located: Refusal, opened| {
        Body::Machine(Box::new(Told { located: Err(located), facts: Default::default(), opened }))
    };
    {
        let mut finding = means.finding.lock();
        if finding.contains(&name) {
            let why = LocateError::Unanswered.to_string();
            return socket.answer(number, body(Refusal::Unanswered, Err(why)), &[]);
        }
        if finding.len() >= MAX_FINDING {
            let why = format!("{MAX_FINDING} machines whose disks do not answer are looked for");
            return socket.answer(number, refused(why), &[]);
        }
        finding.insert(name.clone());
    }
    let (of, to, machine) = (Arc::clone(means), Arc::clone(socket), name.clone());
    let finder = std::thread::Builder::new().name("codchifs-find".into());
    let finder = finder.spawn(move || {
        let found = catch_unwind(AssertUnwindSafe(|| find(&of.direct, &machine, open)));
        let (body, fds) = found.unwrap_or_else(|panic| {
            // Dropping what a panic carries may panic in turn.
            std::mem::forget(panic);
            (refused("the look for it failed; this is a bug".into()), Vec::new())
        });
        of.finding.lock().remove(&machine);
        // A server that has ended waits for nothing.
        let _ = to.answer(number, body, &fds);
    });
    finder.map(drop).or_else(|why| {
        means.finding.lock().remove(&name);
        socket.answer(
            number,
            refused(format!("no thread can be started to look for it: {why}")),
            &[],
        )
    })
}

/// Only what the server has opened for reading: the kernel would also write to it otherwise, with our rights.
fn back(means: &Means, file: Option<&OwnedFd>) -> Result<u32, i32> {
    let back = |file: &OwnedFd| {
        // What the kernel knows: the disk may not answer.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let mode = statx(file, "", flags, StatxFlags::TYPE)?.stx_mode;
        let regular = FileType::from_raw_mode(mode.into()) == FileType::RegularFile;
        if !regular || fcntl_getfl(file)? & OFlags::RWMODE != OFlags::RDONLY {
            return Err(Errno::INVAL);
        }
        // The kernel keeps each open, and none of them counts among the server's descriptors.
        if means.backed.load(Ordering::Relaxed) >= MOST_BACKED {
            return Err(Errno::MFILE);
        }
        let id = means.with_device(|device| sys::back(device, file.as_fd()))?;
        means.backed.fetch_add(1, Ordering::Relaxed);
        Ok(id)
    };
    file.ok_or(Errno::BADF).and_then(back).map_err(Errno::raw_os_error)
}

/// Whether a thread is to end by SIGKILL. Of one that cannot be looked at it is not known.
pub fn is_killed(thread: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    // A set of signals for the thread; the kernel sets SIGKILL there for each signal that ends a process without a core.
    let pending = status.lines().find_map(|line| line.strip_prefix("SigPnd:"));
    let signals = pending.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0);
    signals & 1 << (Signal::KILL.as_raw() - 1) != 0
}

fn refused(why: String) -> Body {
    let located = Err(Refusal::Other(why.clone()));
    Body::Machine(Box::new(Told { located, facts: Default::default(), opened: Err(why) }))
}

fn find(direct: &Direct, name: &str, open: bool) -> (Body, Vec<OwnedFd>) {
    // Whoever asks is not trusted to have checked it.
    let name = match MachineName::new(name) {
        Ok(name) => name,
        Err(why) => return (refused(why.to_string()), Vec::new()),
    };
    let (located, facts) = direct.locate(&name);
    let mut fds = Vec::new();
    let opened = match &located {
        Ok(located) if open => direct.open(located).map(|roots| {
            fds.extend([roots.rootfs, roots.home].map(Root::into_fd));
        }),
        Err(why) if open => Err(why.to_string()),
        _ => Ok(()),
    };
    let located = located.map_err(Into::into);
    (Body::Machine(Box::new(Told { located, facts, opened })), fds)
}
