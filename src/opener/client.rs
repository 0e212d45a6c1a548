//! The server's side: asks the host.

use super::channel::{Channel, Sent};
use super::wire::{Answer, Body, Request, Told, What};
use super::{HOME, Located, ROOTFS, Roots};
use crate::backend::{Facts, LocateError};
use crate::codchi::MachineName;
use crate::tree::Root;
use parking_lot::Mutex;
use rustix::fd::{BorrowedFd, OwnedFd};
use std::collections::HashSet;
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
    sockets: Vec<Mutex<Line>>,
    number: AtomicU64,
    /// When the host last let somebody wait in vain for a machine, and for a file.
    silent: Mutex<Option<Instant>>,
    silent_files: Mutex<Option<Instant>>,
}

/// A socket to the host.
#[derive(Debug)]
struct Line {
    channel: Channel,
    patience: Duration,
    /// Questions for a backing file whose answers nobody has waited for.
    abandoned: HashSet<u64>,
}

impl Client {
    /// Asks over `sockets`, of which there are at least two.
    pub fn new(sockets: Vec<OwnedFd>) -> io::Result<Self> {
        Self::patient(sockets, NO_PATIENCE, PATIENCE)
    }

    fn patient(sockets: Vec<OwnedFd>, files: Duration, machines: Duration) -> io::Result<Self> {
        let line = |(fd, patience)| {
            let channel = Channel::new(UnixStream::from(fd), patience)?;
            Ok(Mutex::new(Line { channel, patience, abandoned: HashSet::new() }))
        };
        let patience = std::iter::once(files).chain(std::iter::repeat(machines));
        Ok(Self {
            sockets: sockets.into_iter().zip(patience).map(line).collect::<io::Result<_>>()?,
            number: AtomicU64::new(1),
            silent: Mutex::default(),
            silent_files: Mutex::default(),
        })
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
        if is_recent(&self.silent_files) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let answer = noted(self.ask(What::Back, &[file]), &self.silent_files);
        match answer?.0 {
            Body::Backed(Ok(id)) => Ok(id),
            Body::Backed(Err(code)) => Err(io::Error::from_raw_os_error(code)),
            Body::Machine(_) | Body::Killed(_) => Err(confused()),
        }
    }

    /// Which of these threads are killed and only wait for an answer to what they asked.
    pub fn killed(&self, threads: Vec<u32>) -> io::Result<Vec<u32>> {
        if is_recent(&self.silent_files) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match noted(self.ask(What::Killed(threads), &[]), &self.silent_files)?.0 {
            Body::Killed(killed) => Ok(killed),
            Body::Machine(_) | Body::Backed(_) => Err(confused()),
        }
    }

    /// Has the kernel let go of that file.
    pub fn let_go(&self, id: u32) -> io::Result<()> {
        noted(self.ask(What::LetGo(id), &[]), &self.silent_files).map(drop)
    }

    fn ask_machine(&self, what: What) -> io::Result<(Told, Vec<OwnedFd>)> {
        if is_recent(&self.silent) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match noted(self.ask(what, &[]), &self.silent)? {
            (Body::Machine(told), fds) => Ok((*told, fds)),
            (Body::Backed(_) | Body::Killed(_), _) => Err(confused()),
        }
    }

    fn ask(&self, what: What, fds: &[BorrowedFd<'_>]) -> io::Result<(Body, Vec<OwnedFd>)> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let (of_files, of_machines) =
            self.sockets.split_first().ok_or(io::ErrorKind::NotConnected)?;
        let sockets = match what {
            What::Locate(_) | What::Open(_) => of_machines,
            What::Back | What::LetGo(_) | What::Killed(_) => std::slice::from_ref(of_files),
        };
        let mut line = match sockets.iter().find_map(Mutex::try_lock) {
            Some(line) => line,
            None => {
                let turn = usize::try_from(number).unwrap_or(0) % sockets.len().max(1);
                let waiting = sockets.get(turn).and_then(|s| s.try_lock_for(PATIENCE));
                waiting.ok_or(io::ErrorKind::TimedOut)?
            }
        };
        line.ask(number, what, fds)
    }
}

impl Line {
    fn ask(
        &mut self,
        number: u64,
        what: What,
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<(Body, Vec<OwnedFd>)> {
        let (asked, backs) = (Instant::now(), matches!(what, What::Back));
        let answer = match self.channel.send(&Request { number, what }, fds)? {
            Sent::Wholly => self.answer(number, asked),
            Sent::Partly => Err(io::ErrorKind::TimedOut.into()),
        };
        if backs && answer.as_ref().is_err_and(|why| why.kind() == io::ErrorKind::TimedOut) {
            self.abandoned.insert(number);
        }
        answer
    }

    fn answer(&mut self, number: u64, asked: Instant) -> io::Result<(Body, Vec<OwnedFd>)> {
        loop {
            let (answer, fds): (Answer, _) = self.channel.receive()?;
            if answer.number == number {
                return Ok((answer.body, fds));
            }
            // Answers to those who did not wait for them come first.
            self.late(answer);
            if asked.elapsed() > self.patience {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    /// A file that nobody waited for is let go, or it would be open until the mount ends. The answer to that is to nobody's
    /// question and passed over.
    fn late(&mut self, answer: Answer) {
        if !self.abandoned.remove(&answer.number) {
            return;
        }
        if let Body::Backed(Ok(id)) = answer.body {
            let sent = self.channel.send(&Request { number: NOBODY, what: What::LetGo(id) }, &[]);
            if let Err(error) = sent {
                tracing::debug!(%error, "the kernel keeps a file until the mount ends");
            }
        }
    }
}

/// The number of a question whose answer nobody waits for.
const NOBODY: u64 = 0;

/// Whether the host has let somebody wait in vain just now.
fn is_recent(silent: &Mutex<Option<Instant>>) -> bool {
    silent.lock().is_some_and(|since| since.elapsed() < PAUSE)
}

/// The same answer; that there was none is remembered.
fn noted<T>(answer: io::Result<T>, silent: &Mutex<Option<Instant>>) -> io::Result<T> {
    if answer.as_ref().is_err_and(|why| why.kind() == io::ErrorKind::TimedOut) {
        *silent.lock() = Some(Instant::now());
    }
    answer
}

fn confused() -> io::Error {
    io::Error::other("an answer to another question")
}

#[cfg(test)]
mod tests {
    use super::super::wire::{receive, send};
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd as _;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(120);

    fn client(files: Duration) -> (Client, UnixStream) {
        let (ours, host) = UnixStream::pair().unwrap();
        let (other, _) = UnixStream::pair().unwrap();
        (Client::patient(vec![ours.into(), other.into()], files, LONG).unwrap(), host)
    }

    fn request(host: &UnixStream) -> Request {
        receive::<Request>(host).unwrap().0
    }

    fn answer(host: &UnixStream, number: u64, id: u32) {
        send(host, &Answer { number, body: Body::Backed(Ok(id)) }, &[]).unwrap();
    }

    #[test]
    fn a_file_that_nobody_waited_for_is_let_go() {
        let (client, host) = client(SHORT);
        let file = File::open("/dev/null").unwrap();
        for _ in 1..=3 {
            assert!(client.ask(What::Back, &[file.as_fd()]).is_err());
        }
        for late in 1..=3 {
            answer(&host, request(&host).number, late);
        }
        // The next one that asks gets its own answer, and has the late ones let go.
        std::thread::scope(|scope| {
            let host = &host;
            let served = scope.spawn(move || {
                let mut let_go = Vec::new();
                while let_go.len() < 3 {
                    let Request { number, what } = request(host);
                    match what {
                        What::LetGo(id) => {
                            answer(host, number, id);
                            let_go.push(id);
                        }
                        _ => answer(host, number, 9),
                    }
                }
                let_go
            });
            // On a busy machine it may give up once more.
            while !client
                .ask(What::Back, &[file.as_fd()])
                .is_ok_and(|(body, _)| matches!(body, Body::Backed(Ok(9))))
            {}
            assert_eq!(served.join().unwrap(), [1, 2, 3]);
        });
    }

    #[test]
    fn what_is_let_go_while_the_host_is_stopped_is_let_go_when_it_goes_on() {
        let (client, host) = client(SHORT);
        assert!(client.let_go(7).is_err(), "nobody has answered");
        assert!(client.let_go(8).is_err());
        for id in [7, 8] {
            assert!(matches!(request(&host).what, What::LetGo(found) if found == id));
        }
        // Meanwhile no open of a file waits.
        let file = File::open("/dev/null").unwrap();
        assert_eq!(client.back(file.as_fd()).unwrap_err().kind(), io::ErrorKind::TimedOut);
        host.set_nonblocking(true).unwrap();
        assert!(receive::<Request>(&host).is_err(), "it was asked");
    }
}
