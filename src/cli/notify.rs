//! The service manager's socket: sd_notify(3), of which two words are needed.
//!
//! Not by the crate sd-notify: it opens the socket for each word, when this process may have no rights to it any longer, and waits
//! without end for a manager that does not read.

use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// `READY=1`: the mount can be used.
pub(super) const READY: &str = "READY=1";
/// `STOPPING=1`: it is going.
pub(super) const STOPPING: &str = "STOPPING=1";

/// Connected while there still are the rights to it; nothing where nobody asked.
pub(super) struct Manager(Option<UnixDatagram>);

impl Manager {
    /// The manager that `socket`, the value of `$NOTIFY_SOCKET`, names; `@` stands for the NUL of an abstract one.
    pub(super) fn new(socket: Option<OsString>) -> Self {
        let Some(name) = socket.filter(|name| !name.is_empty()) else { return Self(None) };
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
            _ => SocketAddr::from_pathname(&name),
        };
        let connected = address.and_then(|address| {
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(&address)?;
            // A manager that does not read must not keep us.
            socket.set_write_timeout(Some(Duration::from_secs(1)))?;
            Ok(socket)
        });
        if let Err(why) = &connected {
            tracing::warn!(%why, ?name, "cannot tell the service manager anything");
        }
        Self(connected.ok())
    }

    pub(super) fn tell(&self, state: &str) {
        if let Some(Err(why)) = self.0.as_ref().map(|socket| socket.send(state.as_bytes())) {
            tracing::warn!(%why, state, "cannot tell the service manager");
        }
    }
}
