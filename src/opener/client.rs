//! The server's side: asks the host.

use super::wire::{Answer, Request, What, receive, send};
use super::{Located, Roots};
use crate::backend::{Facts, LocateError};
use crate::codchi::MachineName;
use crate::tree::Root;
use parking_lot::Mutex;
use rustix::fd::OwnedFd;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The host gets this long: it waits for a daemon itself, and not longer than ten seconds.
const PATIENCE: Duration = Duration::from_secs(15);

/// Sockets to the host, each for one question at a time.
#[derive(Debug)]
pub struct Client {
    sockets: Vec<Mutex<UnixStream>>,
    number: AtomicU64,
}

impl Client {
    /// Asks over `sockets`, of which there is at least one.
    pub fn new(sockets: Vec<OwnedFd>) -> io::Result<Self> {
        let socket = |fd| {
            let socket = UnixStream::from(fd);
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.set_write_timeout(Some(PATIENCE))?;
            Ok(Mutex::new(socket))
        };
        let sockets = sockets.into_iter().map(socket).collect::<io::Result<_>>()?;
        Ok(Self { sockets, number: AtomicU64::new(1) })
    }

    pub(super) fn locate(&self, name: &MachineName) -> (Result<Located, LocateError>, Facts) {
        match self.ask(name, What::Locate) {
            Ok((answer, _)) => (answer.located.map_err(Into::into), answer.facts),
            Err(why) => {
                let why = format!("the process that finds machines does not answer: {why}");
                (Err(LocateError::Told(why)), Facts::default())
            }
        }
    }

    pub(super) fn open(&self, name: &MachineName, located: &Located) -> Result<Roots, String> {
        let (answer, fds) = self
            .ask(name, What::Open)
            .map_err(|why| format!("the process that opens machines does not answer: {why}"))?;
        let opened = answer.opened?;
        // Owners are told by the maps that go with these very directories.
        match answer.located {
            Ok(same) if same == *located => {}
            Ok(_) => return Err("it changes at this moment; look again".into()),
            Err(why) => return Err(LocateError::from(why).to_string()),
        }
        let mut roots = opened
            .into_iter()
            .zip(fds)
            .map(|(opened, fd)| Root::handed_over(fd, opened.quiet, opened.covered));
        match (roots.next(), roots.next()) {
            (Some(rootfs), Some(home)) => Ok(Roots { rootfs, home }),
            _ => Err("the process that opens machines sent nothing".into()),
        }
    }

    fn ask(&self, name: &MachineName, what: What) -> io::Result<(Answer, Vec<OwnedFd>)> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let free = self.sockets.iter().find_map(Mutex::try_lock);
        let socket = match free {
            Some(socket) => socket,
            None => {
                let turn = usize::try_from(number).unwrap_or(0) % self.sockets.len().max(1);
                let waiting = self.sockets.get(turn).and_then(|s| s.try_lock_for(PATIENCE));
                waiting.ok_or(io::ErrorKind::TimedOut)?
            }
        };
        send(&socket, &Request { number, what, name: name.as_str().to_owned() }, &[])?;
        let asked = Instant::now();
        loop {
            let (answer, fds): (Answer, _) = receive(&socket).map_err(|why| match why.kind() {
                io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
                _ => why,
            })?;
            // Answers to whoever did not wait for them come first.
            if answer.number == number {
                return Ok((answer, fds));
            }
            if asked.elapsed() > PATIENCE {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}
