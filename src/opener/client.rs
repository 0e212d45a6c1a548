//! The server's side: asks the host.

use super::channel::{Channel, Sent};
use super::wire::{Answer, Body, Request, Told, What};
use super::{HOME, Located, ROOTFS, Roots};
use crate::backend::{Facts, LocateError};
use crate::codchi::MachineName;
use crate::tree::Root;
use parking_lot::Mutex;
use rustix::fd::{BorrowedFd, OwnedFd};
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// The host gets this long: it waits for a daemon itself, and not longer than ten seconds.
const PATIENCE: Duration = Duration::from_secs(15);

/// For so long after that, nobody else waits for it: a directory of machines asks for one after the other.
const PAUSE: Duration = Duration::from_secs(5);

/// And this long for what it need not look for: the file is read in the usual way then.
const NO_PATIENCE: Duration = Duration::from_secs(1);

/// Two sockets to the host: one for files and callers, the other one for machines. Any number of questions are on their way at a
/// time, and are answered in any order: that about a machine whose disk does not answer keeps no other waiting.
#[derive(Debug)]
pub struct Client {
    files: Line,
    machines: Line,
    number: AtomicU64,
    /// When the host last let somebody wait in vain for a machine, and for a file.
    silent: Mutex<Option<Instant>>,
    silent_files: Mutex<Option<Instant>>,
}

/// A socket to the host.
#[derive(Debug)]
struct Line {
    asking: Arc<Mutex<Channel>>,
    /// Taken by the thread that receives.
    answers: Mutex<Option<Channel>>,
    waiting: Arc<Mutex<Waiting>>,
    patience: Duration,
}

/// An answer, with descriptors.
type Got = (Body, Vec<OwnedFd>);

/// Who waits for which answer.
#[derive(Debug, Default)]
struct Waiting {
    asked: HashMap<u64, SyncSender<Got>>,
    /// Questions for a backing file whose answers nobody has waited for.
    abandoned: HashSet<u64>,
    /// The host has ended.
    ended: bool,
}

impl Client {
    /// Asks over two sockets; nothing is answered before [`Self::start`].
    pub fn new(sockets: Vec<OwnedFd>) -> io::Result<Self> {
        Self::patient(sockets, NO_PATIENCE, PATIENCE)
    }

    fn patient(sockets: Vec<OwnedFd>, files: Duration, machines: Duration) -> io::Result<Self> {
        let mut sockets = sockets.into_iter();
        let mut line = |patience| {
            let socket = UnixStream::from(sockets.next().ok_or(io::ErrorKind::NotConnected)?);
            Line::new(socket, patience)
        };
        Ok(Self {
            files: line(files)?,
            machines: line(machines)?,
            number: AtomicU64::new(1),
            silent: Mutex::default(),
            silent_files: Mutex::default(),
        })
    }

    /// Starts to receive answers, with the rights that this process has now.
    pub fn start(&self) -> io::Result<()> {
        self.files.start()?;
        self.machines.start()
    }

    pub(super) fn locate(&self, name: &MachineName) -> (Result<Located, LocateError>, Facts) {
        match self.ask_machine(What::Locate(name.to_string())) {
            Ok((told, _)) => (told.located.map_err(Into::into), told.facts),
            Err(why) if why.kind() == io::ErrorKind::TimedOut && self.is_alive() => {
                (Err(LocateError::Unanswered), Facts::default())
            }
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
        let answer = self.ask(what, &[]);
        // The machine's disk may be what does not answer; then nobody else is kept from asking.
        let answer = match is_timeout(&answer) && self.is_alive() {
            true => answer,
            false => noted(answer, &self.silent),
        };
        match answer? {
            (Body::Machine(told), fds) => Ok((*told, fds)),
            (Body::Backed(_) | Body::Killed(_), _) => Err(confused()),
        }
    }

    /// Whether the host answers what it need not look for.
    fn is_alive(&self) -> bool {
        self.killed(Vec::new()).is_ok()
    }

    fn ask(&self, what: What, fds: &[BorrowedFd<'_>]) -> io::Result<Got> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        match what {
            What::Locate(_) | What::Open(_) => self.machines.ask(number, what, fds),
            What::Back | What::LetGo(_) | What::Killed(_) => self.files.ask(number, what, fds),
        }
    }
}

impl Line {
    fn new(socket: UnixStream, patience: Duration) -> io::Result<Self> {
        let asking = Channel::new(socket.try_clone()?, patience)?;
        Ok(Self {
            asking: Arc::new(Mutex::new(asking)),
            answers: Mutex::new(Some(Channel::receiving(socket)?)),
            waiting: Arc::default(),
            patience,
        })
    }

    fn start(&self) -> io::Result<()> {
        let Some(mut answers) = self.answers.lock().take() else { return Ok(()) };
        let (waiting, asking) = (Arc::clone(&self.waiting), Arc::clone(&self.asking));
        let receiver = std::thread::Builder::new().name("codchifs-answers".into());
        receiver.spawn(move || {
            while let Ok((answer, fds)) = answers.receive() {
                let late = waiting.lock().arrived(answer, fds);
                if let Some(id) = late {
                    let_go(&asking, id);
                }
            }
            let mut waiting = waiting.lock();
            waiting.ended = true;
            waiting.asked.clear();
        })?;
        Ok(())
    }

    fn ask(&self, number: u64, what: What, fds: &[BorrowedFd<'_>]) -> io::Result<Got> {
        let backs = matches!(what, What::Back);
        let (sender, answer) = sync_channel(1);
        {
            let mut waiting = self.waiting.lock();
            if waiting.ended {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            waiting.asked.insert(number, sender);
        }
        let sent = match self.asking.try_lock_for(self.patience) {
            Some(mut asking) => asking.send(&Request { number, what }, fds),
            None => Err(io::ErrorKind::TimedOut.into()),
        };
        let got = match sent {
            Ok(Sent::Wholly) => answer.recv_timeout(self.patience),
            Ok(Sent::Partly) => Err(RecvTimeoutError::Timeout),
            Err(why) => {
                self.waiting.lock().asked.remove(&number);
                return Err(why);
            }
        };
        got.or_else(|why| match why {
            RecvTimeoutError::Disconnected => Err(io::ErrorKind::BrokenPipe.into()),
            RecvTimeoutError::Timeout => {
                let mut waiting = self.waiting.lock();
                if waiting.asked.remove(&number).is_none() {
                    // It came at this very moment.
                    return answer.try_recv().map_err(|_| io::ErrorKind::BrokenPipe.into());
                }
                if backs {
                    waiting.abandoned.insert(number);
                }
                Err(io::ErrorKind::TimedOut.into())
            }
        })
    }
}

impl Waiting {
    /// Hands an answer to who waits for it. A file that nobody waited for is to be let go, or it would be open until the mount ends:
    /// its number.
    fn arrived(&mut self, answer: Answer, fds: Vec<OwnedFd>) -> Option<u32> {
        if let Some(asker) = self.asked.remove(&answer.number) {
            // There is room for one, and who does not wait any more has taken its sender away.
            let _ = asker.try_send((answer.body, fds));
            return None;
        }
        match answer.body {
            Body::Backed(Ok(id)) if self.abandoned.remove(&answer.number) => Some(id),
            _ => None,
        }
    }
}

/// Has the kernel let go of a file. The answer is to nobody's question and passed over.
fn let_go(asking: &Mutex<Channel>, id: u32) {
    let request = Request { number: NOBODY, what: What::LetGo(id) };
    if let Err(error) = asking.lock().send(&request, &[]) {
        tracing::debug!(%error, "the kernel keeps a file until the mount ends");
    }
}

/// The number of a question whose answer nobody waits for.
const NOBODY: u64 = 0;

/// Whether the host has let somebody wait in vain just now.
fn is_recent(silent: &Mutex<Option<Instant>>) -> bool {
    silent.lock().is_some_and(|since| since.elapsed() < PAUSE)
}

fn is_timeout<T>(answer: &io::Result<T>) -> bool {
    answer.as_ref().is_err_and(|why| why.kind() == io::ErrorKind::TimedOut)
}

/// The same answer; that there was none is remembered.
fn noted<T>(answer: io::Result<T>, silent: &Mutex<Option<Instant>>) -> io::Result<T> {
    if is_timeout(&answer) {
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
        let client = Client::patient(vec![ours.into(), other.into()], files, LONG).unwrap();
        client.start().unwrap();
        (client, host)
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
        // The next one that asks gets its own answer, and the late ones are let go.
        std::thread::scope(|scope| {
            let host = &host;
            let served = scope.spawn(move || {
                let mut let_go = Vec::new();
                loop {
                    let Request { number, what } = request(host);
                    match what {
                        What::LetGo(99) => return let_go,
                        What::LetGo(id) => let_go.push(id),
                        _ => answer(host, number, 9),
                    }
                }
            });
            // On a busy machine it may give up once more, and lets go of that one as well.
            while !client
                .ask(What::Back, &[file.as_fd()])
                .is_ok_and(|(body, _)| matches!(body, Body::Backed(Ok(9))))
            {}
            let _ = client.let_go(99);
            let let_go = served.join().unwrap();
            assert_eq!(let_go[..3], [1, 2, 3], "{let_go:?}");
        });
    }

    #[test]
    fn a_machine_that_is_not_found_keeps_nobody_waiting_for_another_one() {
        let (files, host_files) = UnixStream::pair().unwrap();
        let (machines, host) = UnixStream::pair().unwrap();
        let client = Client::patient(vec![files.into(), machines.into()], LONG, LONG).unwrap();
        client.start().unwrap();
        let refused = |number| {
            let located = Err(super::super::wire::Refusal::Unanswered);
            let told = Told { located, facts: Facts::default(), opened: Ok(()) };
            send(&host, &Answer { number, body: Body::Machine(Box::new(told)) }, &[]).unwrap();
        };
        let locate = |name: &str| client.locate(&MachineName::new(name).unwrap()).0.unwrap_err();
        std::thread::scope(|scope| {
            let bad: Vec<_> = (0..8).map(|_| scope.spawn(|| locate("bad"))).collect();
            let numbers: Vec<_> = bad.iter().map(|_| request(&host).number).collect();
            let good = scope.spawn(|| locate("good"));
            refused(request(&host).number);
            assert!(matches!(good.join().unwrap(), LocateError::Unanswered));
            assert!(bad.iter().all(|asker| !asker.is_finished()));
            // The host ends, for one of them before its answer.
            numbers[1..].iter().for_each(|number| refused(*number));
            host.shutdown(std::net::Shutdown::Both).unwrap();
            drop(host_files);
            let silent = bad.into_iter().map(|asker| asker.join().unwrap());
            assert_eq!(silent.filter(|why| matches!(why, LocateError::Silent(_))).count(), 1);
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
