//! What `fuzz/` calls; in no other build.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use super::channel::Channel;
use super::wire::{Answer, Control, Greeting, Request, encoded, length_of, receive};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::io::{self, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Two parts of what a peer sends before it ends, the second after a receiver has waited in vain for more than the first. Both
/// receivers make of it what is in the bytes, and never get out of step.
pub fn frames(kind: u8, parts: [&[u8]; 2]) {
    match kind % 4 {
        0 => frames_of::<Request>(parts),
        1 => frames_of::<Answer>(parts),
        2 => frames_of::<Control>(parts),
        _ => frames_of::<(Greeting, usize)>(parts),
    }
}

fn frames_of<T: Serialize + DeserializeOwned + Debug>(parts: [&[u8]; 2]) {
    let bytes = parts.concat();
    let mut expected = Vec::new();
    let mut rest = &*bytes;
    while let Ok(Some(length)) = length_of(rest)
        && let Some((frame, behind)) = rest.split_at_checked(length)
    {
        expected.push(serde_json::from_slice::<T>(&frame[size_of::<u32>()..]).ok());
        rest = behind;
    }
    for known in expected.iter().flatten() {
        // What is understood is said again in the same words.
        let again = encoded(known).unwrap();
        let again: T = serde_json::from_slice(&again[size_of::<u32>()..]).unwrap();
        assert_eq!(format!("{again:?}"), format!("{known:?}"));
    }
    let expected: Vec<_> = expected.iter().map(Option::as_ref).map(shown).collect();

    let (mut peer, socket) = UnixStream::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut channel = Channel::new(socket, Duration::from_secs(1)).unwrap();
    let mut got = Vec::new();
    for (last, part) in [(false, parts[0]), (true, parts[1])] {
        peer.write_all(part).unwrap();
        if last {
            peer.shutdown(Shutdown::Write).unwrap();
        }
        while got.len() < expected.len() {
            let received = channel.receive::<T>().map(|(told, _)| told);
            if received.as_ref().is_err_and(|why| why.kind() == io::ErrorKind::TimedOut) {
                assert!(!last);
                break;
            }
            got.push(shown(received.as_ref().ok()));
        }
    }
    assert_eq!(got, expected, "in parts");
    assert!(channel.receive::<T>().is_err());

    let (mut peer, socket) = UnixStream::pair().unwrap();
    peer.write_all(&bytes).unwrap();
    drop(peer);
    let next = || receive::<T>(&socket).ok().map(|(told, _)| told);
    let got: Vec<_> = expected.iter().map(|_| shown(next().as_ref())).collect();
    assert_eq!(got, expected, "at once");
    assert!(receive::<T>(&socket).is_err());
}

fn shown<T: Debug>(told: Option<&T>) -> String {
    told.map_or_else(String::new, |told| format!("{told:?}"))
}
