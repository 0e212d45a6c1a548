//! The server's log arrives over a socket and is written by the host.
//!
//! A server that had the log itself could open it anew through its descriptors: to read what others logged, or to cut it.
//! A socket cannot be opened again.

use super::super::log::{self, MAX_LINE};
use crate::quote;
use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, ioctl_fionread};
use rustix::net::{RecvFlags, recv};
use std::borrow::Cow;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the server logs arrives at once, unless somebody stopped this process.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// The server waits for a host that was stopped for this long with each line.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// Writes what the server logs, until it ends. Dropped after the server's end, it waits for the last of it.
pub(super) struct Relay(Arc<Shared>);

struct Shared {
    socket: UnixStream,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What came of a line so far.
    line: Vec<u8>,
    ended: bool,
}

impl Relay {
    /// Starts; the other end is to be the server's stderr.
    pub(super) fn start() -> io::Result<(Self, UnixStream)> {
        let (socket, theirs) = UnixStream::pair()?;
        theirs.set_write_timeout(Some(SEND_TIMEOUT))?;
        let shared =
            Arc::new(Shared { socket, state: Mutex::default(), changed: Condvar::default() });
        let reader = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("codchifs-relay".into())
            .spawn(move || while reader.read_some() {})?;
        Ok((Self(shared), theirs))
    }

    /// Waits until everything that the server has logged so far is written.
    pub(super) fn flush(&self) {
        self.wait(|shared, state| {
            // Nothing is between the socket and the queue while the state is locked.
            state.ended || ioctl_fionread(&shared.socket).is_ok_and(|unread| unread == 0)
        });
    }

    fn wait(&self, done: impl Fn(&Shared, &State) -> bool) {
        let end = Instant::now() + FLUSH_TIMEOUT;
        let mut state = self.0.state.lock();
        while !done(&self.0, &state) {
            if self.0.changed.wait_until(&mut state, end).timed_out() {
                break;
            }
        }
        drop(state);
        log::flush();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.wait(|_, state| state.ended);
    }
}

impl Shared {
    /// Whether there may be more.
    fn read_some(&self) -> bool {
        let mut polled = [PollFd::new(&self.socket, PollFlags::IN)];
        if poll(&mut polled, None).is_err_and(|error| error != Errno::INTR) {
            return false;
        }
        let mut state = self.state.lock();
        let mut bytes = [0; 4096];
        let got = recv(&self.socket, &mut bytes, RecvFlags::DONTWAIT).map(|(got, _)| got);
        match got {
            Ok(got @ 1..) => {
                bytes.get(..got).unwrap_or_default().iter().for_each(|b| state.add(*b))
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            // The server has ended, perhaps within a line.
            Ok(0) | Err(_) => {
                state.end_line();
                state.ended = true;
            }
        }
        self.changed.notify_all();
        !state.ended
    }
}

/// A line without the levels "emergency" to "critical" of sd-daemon(3), which go to every terminal of the host: the server has no
/// reason for them.
fn without_alarm(line: &str) -> Cow<'_, str> {
    let level = line.strip_prefix('<').and_then(|rest| rest.split_once('>'));
    match level.and_then(|(level, rest)| Some((level.parse::<u8>().ok()?, rest))) {
        Some((0..=2, rest)) => format!("<3>{rest}").into(),
        _ => line.into(),
    }
}

impl State {
    fn add(&mut self, byte: u8) {
        match byte {
            b'\n' => self.end_line(),
            // One byte more, so that it shows that there was more.
            _ if self.line.len() <= MAX_LINE => self.line.push(byte),
            _ => {}
        }
    }

    /// Whoever has taken over the server sends anything: it may not speak to root's terminal.
    fn end_line(&mut self) {
        if !self.line.is_empty() {
            let line = quote::message(&self.line);
            log::push(&without_alarm(&line));
            self.line.clear();
        }
    }
}
