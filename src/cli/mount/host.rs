//! The process that stays root: mounts, finds and opens machines for the server, and unmounts when that ends.

use super::super::journal;
use super::super::{Context, EX_CONFIG, Failure, Outcome};
use super::relay::Relay;
use crate::fuse::{self, Attached, MountError, MountOptions, Stop};
use crate::opener::{Control, Direct, Greeting, Host, send_greeting};
use crate::quote;
use crate::tree::{self, Root};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsFd as _;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The server gets this long to answer the kernel for the first time.
const START: Duration = Duration::from_secs(30);
/// And this long to take a word.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// What is left of it gets this long to end.
const END: Duration = Duration::from_secs(2);

pub(super) fn run(
    context: Context,
    options: &MountOptions,
    ready: impl FnOnce(),
) -> Result<Outcome, Failure> {
    let Context { user, state, backend, vouched } = context;
    // From here on a signal is kept until the mount can be ended.
    let stop = Stop::new()?;
    let (config_dir, data_dir) = (state.config_dir.clone(), state.data_dir.clone());
    let mut direct = Direct::new(backend, user, state, vouched);
    let apart = direct.part();
    // The server is in the same sandbox, and has less.
    let sample = tree::sample()?;
    let sample = sample.map(|sample| apart.part(&sample)).transpose()?;
    if let Some(sample) = &sample {
        let sample = sample.try_clone()?;
        tree::check_reading(Root::parted(sample, apart, Vec::new()))?;
    }
    let (attached, device) = fuse::attach(options)?;
    if options.of_service
        && let Err(why) = attached.check_seen()
    {
        attached.unmount(true)?;
        return Err(why.into());
    }
    let attached = Arc::new(attached);
    let theirs = device.try_clone();
    let host = Host::new(direct, device);
    // Dropped after the mount: its end may be worth a line.
    let (relay, log) = Relay::start()?;
    let mounted = Mounted { attached: &attached, host: &host };
    let device = theirs?;
    let (control, theirs) = UnixStream::pair()?;
    // A server that does not take a word is not waited for: signals are waiting as well.
    control.set_write_timeout(Some(PATIENCE))?;
    let mut child = start(theirs, log)?;
    let server = Arc::new(pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?);
    let kill = {
        let server = Arc::clone(&server);
        move || {
            if let Err(why) = pidfd_send_signal(&*server, Signal::KILL) {
                tracing::warn!(%why, "cannot end the server");
            }
        }
    };
    let to_server = control.try_clone()?;
    let (ours, asked) = (Arc::clone(&attached), host.clone());
    let cut_off = Arc::new(AtomicBool::new(false));
    let handle = stop.watch(
        options.stop_timeout,
        move |lazy| match asked.is_asked() {
            true => ours.unmount(lazy),
            false => Err(MountError::NotMounted),
        },
        move || {
            if let Err(why) = Control::Reread.send(&to_server) {
                tracing::warn!(%why, "cannot have the server look anew");
            }
        },
        {
            let (cut_off, kill) = (Arc::clone(&cut_off), kill.clone());
            move || {
                cut_off.store(true, Ordering::Relaxed);
                kill();
            }
        },
    );
    if options.stop_timeout.is_some() {
        attached.end_when_taken_away();
    }

    let sockets = host.start()?;
    let ways = host.direct().ways(apart);
    let greeting = Greeting {
        uid: user.uid,
        gid: user.gid,
        config_dir,
        data_dir,
        mountpoint: attached.mountpoint.clone(),
        sample: sample.is_some(),
        sockets: sockets.len(),
        apart,
        ways: ways.iter().map(|way| way.rest.clone()).collect(),
    };
    let fds: Vec<_> = std::iter::once(device.as_fd())
        .chain(sample.iter().map(|sample| sample.as_fd()))
        .chain(sockets.iter().map(|socket| socket.as_fd()))
        .chain(ways.iter().map(|way| way.from.as_fd()))
        .collect();
    let greeted = send_greeting(&control, &greeting, &fds);
    drop(fds);
    // Copies here would keep the server from ending.
    drop((device, sample, sockets, ways));
    control.set_read_timeout(Some(START))?;
    if let Err(why) = greeted.and_then(|()| Control::receive(&control).map(drop)) {
        // It may have been stopped; its user can do that.
        kill();
        let status = wait_for_end(&mut child, &server, &attached)?;
        return match status.code() {
            // It has said why.
            Some(1) => Ok(Outcome::Incomplete),
            Some(EX_CONFIG) => Ok(Outcome::Refused),
            _ if why.kind() == std::io::ErrorKind::WouldBlock => {
                let limit = START.as_secs();
                Err(format!("the serving process did not start within {limit} s; mount again")
                    .into())
            }
            _ => Err(gone(status)),
        };
    }
    attached.raise_read_ahead();
    tracing::info!(mountpoint = %quote::path(&attached.mountpoint), server = child.id(), "mounted");
    // What it said on the way is for whoever waits, not for the log file.
    relay.flush();
    ready();
    let status = wait_for_end(&mut child, &server, &attached)?;
    handle.close();
    drop(mounted);
    match options.stop_timeout.is_some() && cut_off.load(Ordering::Relaxed) {
        // As it was asked for.
        true => Ok(Outcome::Done),
        false => ended(status),
    }
}

/// Starts this program once more, with the same arguments and next to nothing else.
///
/// The server can open each of its descriptors anew, with more rights than they have: so it gets no file of the caller's.
fn start(control: UnixStream, log: UnixStream) -> Result<Child, Failure> {
    crate::sys::keep_descriptors()?;
    let ours = |(name, _): &(std::ffi::OsString, _)| {
        name.as_encoded_bytes().starts_with(b"CODCHIFS_") || name == "RUST_BACKTRACE"
    };
    // Its lines go on to the journal as they are.
    let stream = journal::stream(&log).filter(|_| journal::is_in_use());
    let child = Command::new("/proc/self/exe")
        .arg0("codchifs")
        .arg("--server")
        .args(std::env::args_os().skip(1))
        .env_clear()
        .envs(std::env::vars_os().filter(ours))
        .envs(stream.map(|stream| (journal::STREAM, stream)))
        // Keys typed at a terminal are for the host.
        .process_group(0)
        .stdin(Stdio::from(OwnedFd::from(control)))
        .stdout(Stdio::from(File::open("/dev/null")?))
        .stderr(Stdio::from(OwnedFd::from(log)))
        .spawn()?;
    Ok(child)
}

/// Waits for the server, and for no disk that one of its threads waits for.
///
/// A process has ended when all of its threads have, and the last one waits for the disks of the files that it closes. When the
/// first one has begun to end nobody answers the kernel any more, and nothing but a look tells of that.
fn wait_for_end(
    child: &mut Child,
    server: &OwnedFd,
    attached: &Attached,
) -> Result<ExitStatus, Failure> {
    let mut first = None;
    while first.is_none() && !is_readable(server, LOOK_AGAIN)? {
        first = status_of_ending(child.id());
    }
    attached.cut_off();
    if let Some(status) = first
        && !is_readable(server, END)?
    {
        tracing::warn!("a thread of the server still waits for a disk that does not answer");
        return Ok(status);
    }
    Ok(child.wait()?)
}

fn is_readable(fd: &OwnedFd, timeout: Duration) -> Result<bool, Errno> {
    let timeout = Timespec::try_from(timeout).ok();
    loop {
        let mut polled = [PollFd::new(fd, PollFlags::IN)];
        match poll(&mut polled, timeout.as_ref()) {
            Err(Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

/// What the first thread of a process ends with, as soon as it has begun to: it may be the one that closes the files, and then
/// waits for a disk itself.
fn status_of_ending(pid: u32) -> Option<ExitStatus> {
    /// PF_EXITING in include/linux/sched.h.
    const EXITING: u64 = 0x4;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    // proc_pid_stat(5): from the third field, the state, on; the ninth are the flags, the last is the status.
    let fields: Vec<_> = fields.split_whitespace().collect();
    let flags: u64 = fields.get(6)?.parse().ok()?;
    let is_ending = matches!(fields.first(), Some(&("Z" | "X"))) || flags & EXITING != 0;
    let status = fields.last().filter(|_| is_ending)?;
    Some(ExitStatus::from_raw(status.parse().unwrap_or(0)))
}

fn ended(status: ExitStatus) -> Result<Outcome, Failure> {
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(Outcome::Done),
        (Some(_), _) => Ok(Outcome::Incomplete),
        _ => Err(gone(status)),
    }
}

fn gone(status: ExitStatus) -> Failure {
    format!("the serving process ended: {status}; the mount was detached, mount again").into()
}

/// Takes the mount away when the server has ended, if it is still there.
struct Mounted<'a> {
    attached: &'a Attached,
    host: &'a Host,
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        self.host.let_go();
        if let Err(error) = self.attached.clear() {
            tracing::warn!(%error, "cannot take the mount away");
        }
    }
}
