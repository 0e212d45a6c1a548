//! What the host and the server of a mount tell each other: frames of JSON over a pair of sockets, some with descriptors.

use super::Located;
use crate::backend::{Facts, LocateError, bytes};
use crate::tree::Apart;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// Bytes of one frame at most: an id map has some thousand ranges.
const MOST: u32 = 16 << 20;
/// Descriptors of one frame at most (unix(7), SCM_MAX_FD is 253).
const MOST_FDS: usize = 128;
/// Bytes that are received at once: a length that a peer tells is no reason to take so much memory.
const AT_ONCE: usize = 64 << 10;

/// What the server wants.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum What {
    /// Where the machine of this name is.
    Locate(String),
    /// Its directories.
    Open(String),
    /// That the kernel reads the file that comes along by itself.
    Back,
    /// That it lets go of that file.
    LetGo(u32),
    /// Which of these threads are about to end by SIGKILL.
    Killed(Vec<u32>),
}

/// Server to host. A name, a file that it can read anyway, or a thread's number is all that the server has a say in.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) number: u64,
    pub(super) what: What,
}

/// Host to server.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Answer {
    /// That of the request.
    pub(super) number: u64,
    pub(super) body: Body,
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Body {
    Machine(Box<Told>),
    /// The kernel's number for the file, or its error.
    Backed(Result<u32, i32>),
    /// Those that are.
    Killed(Vec<u32>),
}

/// Of a machine; with the rootfs and the home where these were asked for and can be had.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Told {
    pub(super) located: Result<Located, Refusal>,
    pub(super) facts: Facts,
    /// Why the directories are not in this frame.
    pub(super) opened: Result<(), String>,
}

/// A [`LocateError`]; for those who are told, there are but three kinds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Refusal {
    NotInstalled(String),
    Unanswered,
    Other(String),
}

impl From<LocateError> for Refusal {
    fn from(error: LocateError) -> Self {
        match error {
            LocateError::NotInstalled(what) => Self::NotInstalled(what),
            LocateError::Unanswered => Self::Unanswered,
            other => Self::Other(other.to_string()),
        }
    }
}

impl From<Refusal> for LocateError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotInstalled(what) => Self::NotInstalled(what),
            Refusal::Unanswered => Self::Unanswered,
            Refusal::Other(why) => Self::Told(why),
        }
    }
}

/// The first that the server hears: whom it serves and what it may use.
#[derive(Debug, Serialize, Deserialize)]
pub struct Greeting {
    /// Whose machines.
    pub uid: u32,
    /// That user's main group.
    pub gid: u32,
    /// Codchi's config directory.
    #[serde(with = "bytes")]
    pub config_dir: PathBuf,
    /// Codchi's data directory.
    #[serde(with = "bytes")]
    pub data_dir: PathBuf,
    /// Where the mount is.
    #[serde(with = "bytes")]
    pub mountpoint: PathBuf,
    /// Whether there is a directory to try reading on.
    pub sample: bool,
    /// How many sockets are for questions.
    pub sockets: usize,
    /// How all directories are apart that are opened for it.
    pub apart: Apart,
    /// What is left of the ways to Codchi's directory of machines, from the directories that come along.
    #[serde(with = "bytes::list")]
    pub ways: Vec<PathBuf>,
}

/// What the server may use, in the order in which it is sent.
#[derive(Debug)]
pub struct Greeted {
    /// What the kernel is answered on.
    pub device: OwnedFd,
    /// For [`crate::tree::check_reading`].
    pub sample: Option<OwnedFd>,
    /// For the [`super::Client`].
    pub sockets: Vec<OwnedFd>,
    /// Where the ways begin.
    pub ways: Vec<OwnedFd>,
}

/// What is said once the server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control {
    /// Server to host: the kernel is being answered.
    Ready,
    /// Host to server: look at everything anew.
    Reread,
}

impl Control {
    /// Says it.
    pub fn send(self, to: &UnixStream) -> io::Result<()> {
        send(to, &self, &[])
    }

    /// Waits until the other says something. UnexpectedEof once it has ended.
    pub fn receive(from: &UnixStream) -> io::Result<Self> {
        receive(from).map(|(control, _)| control)
    }
}

/// Sends the greeting and what the server may use, in the order of [`Greeted`].
pub fn send_greeting(
    to: &UnixStream,
    greeting: &Greeting,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    send(to, &(greeting, fds.len()), &[])?;
    fds.chunks(MOST_FDS).try_for_each(|chunk| send(to, &(), chunk))
}

/// Receives what [`send_greeting`] sent.
pub fn receive_greeting(from: &UnixStream) -> io::Result<(Greeting, Greeted)> {
    let ((greeting, count), _): ((Greeting, usize), _) = receive(from)?;
    let mut fds = Vec::new();
    while fds.len() < count {
        let ((), some) = receive(from)?;
        if some.is_empty() {
            return Err(missing());
        }
        fds.extend(some);
    }
    let mut fds = fds.into_iter();
    let device = fds.next().ok_or_else(missing)?;
    let sample = if greeting.sample { Some(fds.next().ok_or_else(missing)?) } else { None };
    let sockets = fds.by_ref().take(greeting.sockets).collect();
    Ok((greeting, Greeted { device, sample, sockets, ways: fds.collect() }))
}

fn missing() -> io::Error {
    io::Error::other("descriptors are missing")
}

/// Sends one frame.
pub(super) fn send(
    to: &UnixStream,
    what: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let rest = begin(to, what, fds)?;
    let mut to = to;
    to.write_all(&rest)
}

/// Sends the first bytes of a frame, and its descriptors with them. Returns the bytes that are left to send.
pub(super) fn begin(
    to: &UnixStream,
    what: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> io::Result<Vec<u8>> {
    let mut frame = encoded(what)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    loop {
        match sendmsg(to, &[IoSlice::new(&frame)], &mut ancillary, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            sent => {
                frame.drain(..sent?);
                return Ok(frame);
            }
        }
    }
}

/// A frame: the length of its text, then that.
pub(super) fn encoded(what: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; size_of::<u32>()];
    serde_json::to_writer(&mut frame, what)?;
    let length = u32::try_from(frame.len() - size_of::<u32>()).ok().filter(|len| *len <= MOST);
    let length = length.ok_or_else(|| io::Error::other("a message is too long"))?;
    for (to, byte) in frame.iter_mut().zip(length.to_ne_bytes()) {
        *to = byte;
    }
    Ok(frame)
}

/// Receives one frame.
pub(super) fn receive<T: DeserializeOwned>(from: &UnixStream) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut frame = Incoming::default();
    while !frame.receive_some(from)? {}
    frame.open()
}

/// Bytes of the frame that begins so, with those of its length; `None` until the length is there.
pub(super) fn length_of(start: &[u8]) -> io::Result<Option<usize>> {
    let Some(length) = start.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes)) else {
        return Ok(None);
    };
    match length > MOST {
        true => Err(io::Error::other("a message is too long")),
        false => Ok(Some(size_of::<u32>() + length as usize)),
    }
}

/// The beginning of a frame, with the descriptors that came with it.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Incoming {
    /// Receives more of the frame, and nothing of the one behind it, whose descriptors come with its first bytes. Returns whether
    /// the frame is complete. Whatever fails, the frame keeps what has come.
    pub(super) fn receive_some(&mut self, from: &UnixStream) -> io::Result<bool> {
        let have = self.bytes.len();
        self.bytes.resize(self.size()?.min(have.saturating_add(AT_ONCE)), 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let got = {
            let into = &mut [IoSliceMut::new(self.bytes.get_mut(have..).unwrap_or_default())];
            recvmsg(from.as_fd(), into, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        };
        let count = got.as_ref().map_or(0, |got| got.bytes);
        self.bytes.truncate(have.saturating_add(count));
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        match got {
            Err(Errno::INTR) => Ok(false),
            Err(why) => Err(why.into()),
            Ok(_) if count == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(self.bytes.len() == self.size()?),
        }
    }

    /// Bytes of the frame with its length; until that is there, of the length alone.
    fn size(&self) -> io::Result<usize> {
        Ok(length_of(&self.bytes)?.unwrap_or(size_of::<u32>()))
    }

    /// What is in a frame that is complete.
    pub(super) fn open<T: DeserializeOwned>(self) -> io::Result<(T, Vec<OwnedFd>)> {
        let text = self.bytes.get(size_of::<u32>()..).unwrap_or_default();
        Ok((serde_json::from_slice(text)?, self.fds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::path::Path;

    #[test]
    fn a_greeting_brings_more_descriptors_than_one_message_holds() {
        let (host, server) = UnixStream::pair().unwrap();
        let file = File::open("/dev/null").unwrap();
        let fds = vec![file.as_fd(); MOST_FDS * 2 + 7];
        let path = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"/no\xfftext");
        let greeting = Greeting {
            uid: 7,
            gid: 8,
            config_dir: path.into(),
            data_dir: "/data".into(),
            mountpoint: "/mnt".into(),
            sample: true,
            sockets: 4,
            apart: Apart::Whole,
            ways: vec![path.into()],
        };
        let sent = std::thread::scope(|scope| {
            let sender = scope.spawn(|| send_greeting(&host, &greeting, &fds));
            let (told, got) = receive_greeting(&server).unwrap();
            assert_eq!((told.uid, told.gid, &*told.config_dir), (7, 8, Path::new(path)));
            assert_eq!((got.sample.is_some(), got.sockets.len()), (true, 4));
            assert_eq!(got.ways.len(), fds.len() - 6);
            sender.join().unwrap()
        });
        sent.unwrap();
        drop(host);
        let ended = Control::receive(&server).unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_frame_that_is_too_long_is_no_reason_to_wait_for_it() {
        let (mut host, server) = UnixStream::pair().unwrap();
        host.write_all(&u32::MAX.to_ne_bytes()).unwrap();
        assert!(Control::receive(&server).unwrap_err().to_string().contains("too long"));
    }
}
