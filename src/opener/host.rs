//! The host's side: finds and opens for the server, which may only name machines.

use super::Direct;
use super::wire::{Answer, Opened, Request, What, receive, send};
use crate::codchi::MachineName;
use rustix::fd::{AsFd, OwnedFd};
use std::io;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Questions answered at a time: those who look at machines rarely wait, but one may wait for a daemon.
const SOCKETS: usize = 4;

/// Answers on sockets until the server ends.
#[derive(Debug)]
pub struct Host {
    direct: Arc<Direct>,
}

impl Host {
    /// Answers with what `direct` finds and opens.
    pub fn new(direct: Direct) -> Self {
        Self { direct: Arc::new(direct) }
    }

    /// Starts to answer. The other ends are for the server's [`super::Client`].
    pub fn start(&self) -> io::Result<Vec<OwnedFd>> {
        let mut ends = Vec::new();
        for _ in 0..SOCKETS {
            let (ours, servers) = UnixStream::pair()?;
            let direct = Arc::clone(&self.direct);
            std::thread::Builder::new()
                .name("codchifs-host".into())
                .spawn(move || while answer(&direct, &ours).is_ok() {})?;
            ends.push(servers.into());
        }
        Ok(ends)
    }

    /// The finder itself.
    pub fn direct(&self) -> &Direct {
        &self.direct
    }
}

fn answer(direct: &Direct, socket: &UnixStream) -> io::Result<()> {
    let (request, _): (Request, _) = receive(socket)?;
    let found = catch_unwind(AssertUnwindSafe(|| find(direct, &request)));
    let (answer, fds) = found.unwrap_or_else(|panic| {
        // Dropping what a panic carries may panic in turn.
        std::mem::forget(panic);
        (refused(&request, "the look for it failed; this is a bug".into()), Vec::new())
    });
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    send(socket, &answer, &fds)
}

fn refused(request: &Request, why: String) -> Answer {
    let located = Err(super::wire::Refusal::Other(why.clone()));
    Answer { number: request.number, located, facts: Default::default(), opened: Err(why) }
}

fn find(direct: &Direct, request: &Request) -> (Answer, Vec<OwnedFd>) {
    // Whoever asks is not trusted to have checked it.
    let name = match MachineName::new(&request.name) {
        Ok(name) => name,
        Err(why) => return (refused(request, why.to_string()), Vec::new()),
    };
    let (located, facts) = direct.locate(&name);
    let mut fds = Vec::new();
    let opened = match (request.what, &located) {
        (What::Open, Ok(located)) => direct.open(located).map(|roots| {
            let roots = [roots.rootfs, roots.home];
            let opened = roots
                .iter()
                .map(|root| Opened { quiet: root.is_quiet(), covered: root.covered().to_vec() });
            let opened = opened.collect();
            fds.extend(roots.into_iter().map(crate::tree::Root::into_fd));
            opened
        }),
        (What::Open, Err(why)) => Err(why.to_string()),
        (What::Locate, _) => Ok(Vec::new()),
    };
    let located = located.map_err(Into::into);
    (Answer { number: request.number, located, facts, opened }, fds)
}
