//! A socket whose frames stay in step when somebody does not wait for the end of one.
//!
//! What came of a frame is kept, and the next receiver goes on with it; what could not be sent of one goes before the next. So
//! a peer that stops in the middle of a frame, and goes on later, costs an answer and never the socket. This needs no call
//! but those that read and write: the server may make few others.

use super::wire::{MOST_FDS, encoded, length_of};
use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::{MaybeUninit, take};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Bytes that are received at once.
const AT_ONCE: usize = 64 << 10;

/// One end of a socket.
#[derive(Debug)]
pub(super) struct Channel {
    socket: UnixStream,
    /// How long one side waits for the other.
    timeout: Duration,
    /// The beginning of a frame, with the descriptors that came with it.
    incoming: (Vec<u8>, Vec<OwnedFd>),
    /// The end of a frame that was begun.
    outgoing: Vec<u8>,
}

impl Channel {
    /// Waits for the other end no longer than twice `timeout`, whether it is silent or slow.
    pub(super) fn new(socket: UnixStream, timeout: Duration) -> io::Result<Self> {
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(timeout))?;
        Ok(Self { socket, timeout, incoming: Default::default(), outgoing: Vec::new() })
    }

    /// Sends a frame. `TimedOut` before any of it is on its way is an error that names nothing; after that, it arrives before the
    /// next one: see [`Sent`].
    pub(super) fn send(
        &mut self,
        what: &impl Serialize,
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<Sent> {
        if let Sent::Partly = self.flush()? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let frame = encoded(what)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::other("too many descriptors for one message"));
        }
        let sent = loop {
            match sendmsg(&self.socket, &[IoSlice::new(&frame)], &mut ancillary, FLAGS) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                sent => break sent?,
            }
        };
        self.outgoing = frame.get(sent..).unwrap_or_default().to_vec();
        self.flush()
    }

    /// Sends what is left of the last frame.
    fn flush(&mut self) -> io::Result<Sent> {
        let began = Instant::now();
        while !self.outgoing.is_empty() {
            let mut none = SendAncillaryBuffer::default();
            match sendmsg(&self.socket, &[IoSlice::new(&self.outgoing)], &mut none, FLAGS) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Sent::Partly),
                sent => drop(self.outgoing.drain(..sent?)),
            }
            if began.elapsed() > self.timeout && !self.outgoing.is_empty() {
                return Ok(Sent::Partly);
            }
        }
        Ok(Sent::Wholly)
    }

    /// Receives a frame. `TimedOut` keeps what came of it.
    pub(super) fn receive<T: DeserializeOwned>(&mut self) -> io::Result<(T, Vec<OwnedFd>)> {
        let began = Instant::now();
        loop {
            let wanted = match length_of(&self.incoming.0)? {
                Some(length) if self.incoming.0.len() == length => break,
                Some(length) => length,
                // The length itself, and no byte of the frame behind: its descriptors come with it.
                None => size_of::<u32>(),
            };
            if began.elapsed() > self.timeout {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.receive_some(wanted)?;
        }
        let (frame, fds) = take(&mut self.incoming);
        let text = frame.get(size_of::<u32>()..).unwrap_or_default();
        Ok((serde_json::from_slice(text)?, fds))
    }

    fn receive_some(&mut self, wanted: usize) -> io::Result<()> {
        let (bytes, fds) = &mut self.incoming;
        let have = bytes.len();
        bytes.resize(wanted.min(have.saturating_add(AT_ONCE)), 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let got = {
            let into = &mut [IoSliceMut::new(bytes.get_mut(have..).unwrap_or_default())];
            recvmsg(self.socket.as_fd(), into, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        };
        let count = got.as_ref().map_or(0, |got| got.bytes);
        bytes.truncate(have.saturating_add(count));
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = message {
                fds.extend(some);
            }
        }
        match got {
            Err(Errno::INTR) => Ok(()),
            Err(Errno::AGAIN) => Err(io::ErrorKind::TimedOut.into()),
            Err(why) => Err(why.into()),
            Ok(_) if count == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(()),
        }
    }
}

const FLAGS: SendFlags = SendFlags::NOSIGNAL;

/// How far a frame got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Wholly,
    /// The rest goes before the next frame.
    Partly,
}

#[cfg(test)]
mod tests {
    use super::super::wire::send;
    use super::*;
    use std::fs::File;
    use std::io::{Read as _, Write as _};

    const TIMEOUT: Duration = Duration::from_millis(50);

    fn is_timeout<T: std::fmt::Debug>(result: io::Result<T>) -> bool {
        result.is_err_and(|why| why.kind() == io::ErrorKind::TimedOut)
    }

    #[test]
    fn a_peer_that_stops_anywhere_in_a_frame_and_goes_on_loses_nothing() {
        let frame = encoded(&"the first").unwrap();
        for at in 0..frame.len() {
            let (mut peer, socket) = UnixStream::pair().unwrap();
            let mut channel = Channel::new(socket, TIMEOUT).unwrap();
            peer.write_all(&frame[..at]).unwrap();
            assert!(is_timeout(channel.receive::<String>()), "{at}");
            assert!(is_timeout(channel.receive::<String>()), "{at}, a second time");
            peer.write_all(&frame[at..]).unwrap();
            // The next one has descriptors, which stay with it.
            let null = File::open("/dev/null").unwrap();
            send(&peer, &"the second", &[null.as_fd()]).unwrap();
            let (text, fds) = channel.receive::<String>().unwrap();
            assert_eq!((&*text, fds.len()), ("the first", 0), "{at}");
            let (text, fds) = channel.receive::<String>().unwrap();
            assert_eq!((&*text, fds.len()), ("the second", 1), "{at}");
        }
    }

    #[test]
    fn descriptors_wait_for_the_rest_of_their_frame() {
        let (peer, socket) = UnixStream::pair().unwrap();
        let mut channel = Channel::new(socket, TIMEOUT).unwrap();
        let null = File::open("/dev/null").unwrap();
        let frame = encoded(&"with one").unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [null.as_fd()];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(&peer, &[IoSlice::new(&frame[..2])], &mut ancillary, FLAGS).unwrap();
        assert!(is_timeout(channel.receive::<String>()));
        (&peer).write_all(&frame[2..]).unwrap();
        let (text, fds) = channel.receive::<String>().unwrap();
        assert_eq!((&*text, fds.len()), ("with one", 1));
    }

    #[test]
    fn a_frame_that_is_not_taken_at_once_arrives_whole_and_before_the_next() {
        let (mut peer, socket) = UnixStream::pair().unwrap();
        let mut channel = Channel::new(socket, TIMEOUT).unwrap();
        let large = "x".repeat(4 << 20);
        assert_eq!(channel.send(&large, &[]).unwrap(), Sent::Partly);
        assert!(is_timeout(channel.send(&"next", &[])), "the rest is still in the way");
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            peer.read_to_end(&mut all).unwrap();
            all
        });
        while is_timeout(channel.send(&"next", &[])) {}
        drop(channel);
        let expected = [encoded(&large).unwrap(), encoded(&"next").unwrap()].concat();
        assert!(reader.join().unwrap() == expected, "out of step");
    }

    #[test]
    fn a_slow_peer_is_not_waited_for_without_end_and_garbage_ends_only_its_frame() {
        let (mut peer, socket) = UnixStream::pair().unwrap();
        let mut channel = Channel::new(socket, TIMEOUT).unwrap();
        let frame = encoded(&"slow").unwrap();
        let slow = std::thread::spawn(move || {
            for byte in frame {
                peer.write_all(&[byte]).unwrap();
                std::thread::sleep(TIMEOUT / 2);
            }
            peer
        });
        let mut tries = 0;
        let text = loop {
            match channel.receive::<String>() {
                Ok((text, _)) => break text,
                Err(why) => assert_eq!(why.kind(), io::ErrorKind::TimedOut),
            }
            tries += 1;
        };
        assert!(text == "slow" && tries > 0, "{tries}");
        let mut peer = slow.join().unwrap();
        peer.write_all(&3_u32.to_ne_bytes()).unwrap();
        peer.write_all(b"{[x").unwrap();
        send(&peer, &"after", &[]).unwrap();
        assert!(channel.receive::<String>().is_err());
        assert_eq!(channel.receive::<String>().unwrap().0, "after");
        peer.write_all(&u32::MAX.to_ne_bytes()).unwrap();
        assert!(channel.receive::<String>().unwrap_err().to_string().contains("too long"));
    }
}
