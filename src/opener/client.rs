//! The server's side: asks the host.

use super::wire::{Answer, Body, Request, Told, What, receive, send};
use super::{HOME, Located, ROOTFS, Roots};
use crate::backend::{Facts, LocateError};
use crate::codchi::MachineName;
use crate::tree::Root;
use parking_lot::Mutex;
use rustix::fd::{BorrowedFd, OwnedFd};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The host gets this long: it waits for a daemon itself, and not longer than ten seconds.
const PATIENCE: Duration = Duration::from_secs(15);

/// For so long after that, nobody else waits for it: a directory of machines asks for one after the other.
const PAUSE: Duration = Duration::from_secs(5);

/// And this long for what it need not look for: the file is read in the usual way then.
const NO_PATIENCE: Duration = Duration::from_secs(1);

/// Sockets to the host, each for one question at a time; the first is for files alone, which never wait for a daemon.
#[derive(Debug)]
pub struct Client {
    sockets: Vec<Mutex<UnixStream>>,
    number: AtomicU64,
    /// When the host last let somebody wait in vain.
    silent: Mutex<Option<Instant>>,
}

impl Client {
    /// Asks over `sockets`, of which there are at least two.
    pub fn new(sockets: Vec<OwnedFd>) -> io::Result<Self> {
        let socket = |(fd, patience)| {
            let socket = UnixStream::from(fd);
            socket.set_read_timeout(Some(patience))?;
            socket.set_write_timeout(Some(patience))?;
            Ok(Mutex::new(socket))
        };
        let patience = std::iter::once(NO_PATIENCE).chain(std::iter::repeat(PATIENCE));
        let sockets = sockets.into_iter().zip(patience).map(socket).collect::<io::Result<_>>()?;
        Ok(Self { sockets, number: AtomicU64::new(1), silent: Mutex::default() })
    }

    pub(super) fn locate(&self, name: &MachineName) -> (Result<Located, LocateError>, Facts) {
        match self.ask_machine(What::Locate(name.to_string())) {
            Ok((told, _)) => (told.located.map_err(Into::into), told.facts),
            Err(why) => (Err(LocateError::Silent(why)), Facts::default()),
        }
    }

    pub(super) fn open(&self, name: &MachineName, located: &Located) -> Result<Roots, String> {
        let (told, fds) = self
            .ask_machine(What::Open(name.to_string()))
            .map_err(|why| format!("the process that opens machines does not answer: {why}"))?;
        told.opened?;
        // Owners are told by the maps that go with these very directories.
        match told.located {
            Ok(same) if same == *located => {}
            Ok(_) => return Err("it changes at this moment; look again".into()),
            Err(why) => return Err(LocateError::from(why).to_string()),
        }
        let mut fds = fds.into_iter();
        match (fds.next(), fds.next()) {
            (Some(rootfs), Some(home)) => Ok(Roots {
                rootfs: Root::handed_over(rootfs, located.covered(ROOTFS)),
                home: Root::handed_over(home, located.covered(HOME)),
            }),
            _ => Err("the process that opens machines sent nothing".into()),
        }
    }

    /// Has the kernel read an open file by itself for the mount's readers; its number for it.
    pub fn back(&self, file: BorrowedFd<'_>) -> io::Result<u32> {
        match self.ask(What::Back, &[file])?.0 {
            Body::Backed(Ok(id)) => Ok(id),
            Body::Backed(Err(code)) => Err(io::Error::from_raw_os_error(code)),
            Body::Machine(_) => Err(confused()),
        }
    }

    /// Has the kernel let go of that file.
    pub fn let_go(&self, id: u32) -> io::Result<()> {
        self.ask(What::LetGo(id), &[]).map(drop)
    }

    fn ask_machine(&self, what: What) -> io::Result<(Told, Vec<OwnedFd>)> {
        if self.silent.lock().is_some_and(|since| since.elapsed() < PAUSE) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let answer = self.ask(what, &[]);
        if answer.as_ref().is_err_and(|why| why.kind() == io::ErrorKind::TimedOut) {
            *self.silent.lock() = Some(Instant::now());
        }
        match answer? {
            (Body::Machine(told), fds) => Ok((*told, fds)),
            (Body::Backed(_), _) => Err(confused()),
        }
    }

    fn ask(&self, what: What, fds: &[BorrowedFd<'_>]) -> io::Result<(Body, Vec<OwnedFd>)> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let (of_files, of_machines) =
            self.sockets.split_first().ok_or(io::ErrorKind::NotConnected)?;
        let sockets = match what {
            What::Locate(_) | What::Open(_) => of_machines,
            What::Back | What::LetGo(_) => std::slice::from_ref(of_files),
        };
        let socket = match sockets.iter().find_map(Mutex::try_lock) {
            Some(socket) => socket,
            None => {
                let turn = usize::try_from(number).unwrap_or(0) % sockets.len().max(1);
                let waiting = sockets.get(turn).and_then(|s| s.try_lock_for(PATIENCE));
                waiting.ok_or(io::ErrorKind::TimedOut)?
            }
        };
        send(&socket, &Request { number, what }, fds)?;
        let asked = Instant::now();
        loop {
            let (answer, fds): (Answer, _) = receive(&socket).map_err(|why| match why.kind() {
                io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
                _ => why,
            })?;
            // Answers to whoever did not wait for them come first.
            if answer.number == number {
                return Ok((answer.body, fds));
            }
            if asked.elapsed() > PATIENCE {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

fn confused() -> io::Error {
    io::Error::other("an answer to another question")
}
