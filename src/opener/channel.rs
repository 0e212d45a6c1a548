//! A socket whose frames stay in step when somebody does not wait for the end of one.
//!
//! What came of a frame is kept, and the next receiver goes on with it; what could not be sent of one goes before the next. So
//! a peer that stops in the middle of a frame, and goes on later, costs an answer and never the socket. This needs no call
//! but those that read and write: the server may make few others.

use super::wire::{Incoming, begin};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::mem::take;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// One end of a socket.
#[derive(Debug)]
pub(super) struct Channel {
    socket: UnixStream,
    /// How long one side waits for the other.
    timeout: Duration,
    incoming: Incoming,
    /// The end of a frame that was begun.
    outgoing: Vec<u8>,
}

impl Channel {
    /// Waits for the other end no longer than twice `timeout`, whether it is silent or slow.
    pub(super) fn new(socket: UnixStream, timeout: Duration) -> io::Result<Self> {
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(timeout))?;
        Ok(Self { socket, timeout, incoming: Incoming::default(), outgoing: Vec::new() })
    }

    /// Waits for what the other end sends without end, and sends nothing.
    pub(super) fn receiving(socket: UnixStream) -> io::Result<Self> {
        socket.set_read_timeout(None)?;
        let (incoming, outgoing) = Default::default();
        Ok(Self { socket, timeout: Duration::MAX, incoming, outgoing })
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
        self.outgoing = begin(&self.socket, what, fds).map_err(timed_out)?;
        self.flush()
    }

    /// Sends what is left of the last frame.
    fn flush(&mut self) -> io::Result<Sent> {
        let began = Instant::now();
        while !self.outgoing.is_empty() {
            match send(&self.socket, &self.outgoing, SendFlags::NOSIGNAL) {
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
        while !self.incoming.receive_some(&self.socket).map_err(timed_out)? {
            if began.elapsed() > self.timeout {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        take(&mut self.incoming).open()
    }
}

/// What a socket with a time-out says of it is `WouldBlock`.
fn timed_out(why: io::Error) -> io::Error {
    match why.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => why,
    }
}

/// How far a frame got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Wholly,
    /// The rest goes before the next frame.
    Partly,
}

#[cfg(test)]
mod tests {
    use super::super::wire::{encoded, send};
    use super::*;
    use rustix::fd::AsFd as _;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, sendmsg};
    use std::fs::File;
    use std::io::{IoSlice, Read as _, Write as _};
    use std::mem::MaybeUninit;

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
        sendmsg(&peer, &[IoSlice::new(&frame[..2])], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
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
