//! One GET over the unix socket of LXD or Incus. Knows their envelope, and nothing of what is in it:
//! `{"type":"sync","status_code":200,"metadata":…}` and `{"type":"error","error":"…","error_code":403}`.
//!
//! The daemon is not trusted to answer, nor to speak HTTP: a file system that waits for it hangs its users. So a call
//! ends at its deadline whatever the other side does, and takes a bounded amount of memory.

use super::activation;
use crate::quote;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use hyper::http::uri::PathAndQuery;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use tokio::net::UnixStream;

/// Between two attempts to connect to a socket whose queue is full: the kernel does not tell when it has room.
const RETRY: Duration = Duration::from_millis(10);

/// How many characters of the daemon's own words an error repeats.
const WORDS: usize = 300;

/// Why the daemon's API gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// Nobody answers there, or not to us.
    #[error("cannot connect to {socket}: {source}{}", remedy(.source), socket = quote::path(.socket))]
    Connect {
        /// The daemon's socket.
        socket: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It does not run, and an attempt to connect would start it.
    #[error(
        "the daemon does not run, and to ask at {socket} would have systemd start it; start LXD or Incus",
        socket = quote::path(.socket)
    )]
    Asleep {
        /// The daemon's socket.
        socket: PathBuf,
    },
    /// The time is over.
    #[error(
        "no complete answer from {socket} within {}; the daemon is overloaded or stuck: \
         restart it if this persists",
        humantime::format_duration(*.after),
        socket = quote::path(.socket)
    )]
    Deadline {
        /// The daemon's socket.
        socket: PathBuf,
        /// How long the whole call was to take at most.
        after: Duration,
    },
    /// The daemon says no.
    #[error("{socket} answered {code}: {text}{}", refusal(*.code), socket = quote::path(.socket))]
    Status {
        /// The daemon's socket.
        socket: PathBuf,
        /// The envelope's `error_code`, else the status of HTTP.
        code: u16,
        /// The envelope's `error`, else the start of the body: bounded, and safe on a terminal.
        text: String,
    },
    /// What came is no answer.
    #[error("{socket} answered nonsense: {what}; is it the socket of LXD or Incus?", socket = quote::path(.socket))]
    Garbage {
        /// The socket.
        socket: PathBuf,
        /// What is wrong with it; safe on a terminal.
        what: String,
    },
    /// The answer is over the limit.
    #[error("the answer of {socket} is larger than the {most} bytes that codchifs reads", socket = quote::path(.socket))]
    TooLarge {
        /// The daemon's socket.
        socket: PathBuf,
        /// The limit of the body, in bytes.
        most: usize,
    },
    /// The daemon went away before the end of its answer.
    #[error(
        "lost the connection to {socket}: {source}; if the daemon was just restarted, try again",
        socket = quote::path(.socket)
    )]
    Lost {
        /// The daemon's socket.
        socket: PathBuf,
        /// The system's answer; `UnexpectedEof` if the other side ended it.
        source: io::Error,
    },
    /// No thread or event queue to be had for the call.
    #[error("cannot start to ask {socket}: {source}; are there too many threads or open files?", socket = quote::path(.socket))]
    Start {
        /// The daemon's socket.
        socket: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Nothing was asked: the path is none. Must be percent-encoded.
    #[error("cannot ask {socket} for {}: not a path of HTTP", quote::quotation(path), socket = quote::path(.socket))]
    Path {
        /// The daemon's socket.
        socket: PathBuf,
        /// The path and query.
        path: String,
    },
}

/// What somebody can do who may not use the daemon.
const GROUPS: &str = "; add yourself to the group lxd or incus-admin, or run codchifs as root";

fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => GROUPS,
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            "; the daemon does not run: start LXD or Incus"
        }
        _ => "",
    }
}

fn refusal(code: u16) -> &'static str {
    if code == StatusCode::FORBIDDEN.as_u16() { GROUPS } else { "" }
}

/// Answers the `metadata` of the envelope. Everything that waits for the daemon (connect, send, headers, body) happens
/// within `deadline`, the body is at most `most` bytes. To take it apart is our own work and comes after: what bounds
/// it is `most`. `path` is that of the URL with its query, percent-encoded.
///
/// Works on a thread of its own. The client never blocks, but finding the socket's path does as long as the file
/// system that it is on likes; such a thread stays behind until that answers. A runtime inside another would panic,
/// too, and a panic in a library ends here.
pub(super) fn get(
    socket: &Path,
    path: &str,
    deadline: Duration,
    most: usize,
) -> Result<Value, ApiError> {
    if activation::would_start(socket) {
        return Err(ApiError::Asleep { socket: socket.to_owned() });
    }
    let call = Arc::new(Call {
        socket: socket.to_owned(),
        uri: uri(path)
            .ok_or_else(|| ApiError::Path { socket: socket.to_owned(), path: path.to_owned() })?,
        deadline,
        most,
    });
    let start = |source| ApiError::Start { socket: socket.to_owned(), source };
    let (answer, answered) = mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("api".into())
        .spawn({
            let call = Arc::clone(&call);
            move || {
                // Fails if the deadline was first: nobody wants it any more.
                let _ = answer.send(call.run());
            }
        })
        .map_err(start)?;
    match answered.recv_timeout(deadline) {
        Ok(answer) => answer.and_then(|(status, body)| call.open(status, &body)),
        Err(RecvTimeoutError::Timeout) => {
            Err(ApiError::Deadline { socket: socket.to_owned(), after: deadline })
        }
        Err(RecvTimeoutError::Disconnected) => {
            Err(start(io::Error::other("the client of HTTP panicked")))
        }
    }
}

/// `None` for anything but an absolute path: a URL, and a `#` with what follows it, which would silently be cut off.
fn uri(path: &str) -> Option<Uri> {
    let parsed: PathAndQuery = path.parse().ok()?;
    (path.starts_with('/') && parsed.as_str() == path).then(|| Uri::from(parsed))
}

struct Call {
    socket: PathBuf,
    uri: Uri,
    deadline: Duration,
    most: usize,
}

impl Call {
    fn run(&self) -> Result<(StatusCode, Vec<u8>), ApiError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(|source| ApiError::Start { socket: self.socket.clone(), source })?;
        let answer = runtime
            .block_on(async { tokio::time::timeout(self.deadline, self.fetch()).await })
            .unwrap_or_else(|_| {
                Err(ApiError::Deadline { socket: self.socket.clone(), after: self.deadline })
            });
        // Closes the connection.
        drop(runtime);
        answer
    }

    /// Sends the request, reads all of the answer.
    async fn fetch(&self) -> Result<(StatusCode, Vec<u8>), ApiError> {
        let stream = self.connect().await?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.failed(&e))?;
        // Its error comes out of the sender and the body as well.
        tokio::spawn(connection);
        let request = Request::get(self.uri.clone())
            .header(HOST, "localhost")
            .header(USER_AGENT, concat!("codchifs/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "application/json")
            .header(CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|_| ApiError::Path {
                socket: self.socket.clone(),
                path: self.uri.to_string(),
            })?;
        let response = sender.send_request(request).await.map_err(|e| self.failed(&e))?;
        let status = response.status();
        Ok((status, self.body(response).await?))
    }

    async fn connect(&self) -> Result<UnixStream, ApiError> {
        loop {
            match UnixStream::connect(&self.socket).await {
                // The queue of those that wait to be accepted is full. A blocking connect(2) would wait, this one not.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(RETRY).await,
                Err(source) => {
                    return Err(ApiError::Connect { socket: self.socket.clone(), source });
                }
                Ok(stream) => return Ok(stream),
            }
        }
    }

    /// The bytes are copied out of each frame: kept, a frame of one byte holds on to a buffer.
    async fn body(&self, response: Response<Incoming>) -> Result<Vec<u8>, ApiError> {
        let too_large = || ApiError::TooLarge { socket: self.socket.clone(), most: self.most };
        // Content-Length, if given.
        let declared = response.body().size_hint().lower();
        if usize::try_from(declared).map_or(true, |declared| declared > self.most) {
            return Err(too_large());
        }
        let mut body = Limited::new(response.into_body(), self.most);
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| {
                if e.is::<LengthLimitError>() { too_large() } else { self.failed(&*e) }
            })?;
            // Else trailers, which say nothing here.
            if let Some(data) = frame.data_ref() {
                bytes.extend_from_slice(data);
            }
        }
        Ok(bytes)
    }

    /// Sorts out what the client says: the connection broke, or what came over it is not HTTP.
    fn failed(&self, error: &(dyn Error + 'static)) -> ApiError {
        let lost = |source| ApiError::Lost { socket: self.socket.clone(), source };
        let mut ended = false;
        let mut words = String::new();
        for cause in std::iter::successors(Some(error), |e| (*e).source()) {
            if let Some(e) = cause.downcast_ref::<io::Error>() {
                if let Some(code) = e.raw_os_error() {
                    return lost(io::Error::from_raw_os_error(code));
                }
                ended = e.kind() == io::ErrorKind::UnexpectedEof;
            } else if let Some(e) = cause.downcast_ref::<hyper::Error>() {
                ended = e.is_incomplete_message() || e.is_closed() || e.is_canceled();
            } else {
                continue;
            }
            // The last cause counts: "canceled" is also what a request is that met garbage on its way out.
            words = cause.to_string();
        }
        if ended {
            lost(io::ErrorKind::UnexpectedEof.into())
        } else {
            self.garbage(&format!("not HTTP: {words}"))
        }
    }

    /// Takes the metadata out of the envelope.
    fn open(&self, status: StatusCode, body: &[u8]) -> Result<Value, ApiError> {
        let parsed = serde_json::from_slice::<Value>(body);
        let refused = |code: u16, text: &str| ApiError::Status {
            socket: self.socket.clone(),
            code,
            text: clipped(text),
        };
        let field = |key| parsed.as_ref().ok().and_then(|v| v.get(key));
        let kind = field("type").and_then(Value::as_str).map(str::to_owned);
        if kind.as_deref() == Some("error") {
            let code = field("error_code").and_then(Value::as_u64).and_then(|c| c.try_into().ok());
            let text = field("error").and_then(Value::as_str).unwrap_or("no reason given");
            return Err(refused(code.filter(|c| *c != 0).unwrap_or(status.as_u16()), text));
        }
        if !status.is_success() {
            let reason = status.canonical_reason().unwrap_or("no reason given");
            // Longer than what is shown of it, and short: an answer has megabytes.
            let text = body.trim_ascii();
            let text = quote::message(text.get(..text.len().min(8 * WORDS)).unwrap_or(text));
            return Err(refused(status.as_u16(), if text.is_empty() { reason } else { &text }));
        }
        match (kind.as_deref(), parsed) {
            (_, Err(e)) => Err(self.garbage(&format!("the body is no JSON: {e}"))),
            (Some("sync"), Ok(Value::Object(mut envelope))) => envelope
                .remove("metadata")
                .ok_or_else(|| self.garbage("the envelope has no `metadata`")),
            (Some(kind), _) => Err(self.garbage(&format!("the envelope has the type `{kind}`"))),
            (None, _) => Err(self.garbage("the envelope has no `type`")),
        }
    }

    fn garbage(&self, what: &str) -> ApiError {
        ApiError::Garbage { socket: self.socket.clone(), what: clipped(what) }
    }
}

/// Somebody else's words on a line of ours.
fn clipped(text: &str) -> String {
    let end = text.char_indices().nth(WORDS).map(|(at, _)| at);
    let mut out = quote::message(end.and_then(|at| text.get(..at)).unwrap_or(text));
    if end.is_some() {
        out.push('…');
    }
    out
}

/// What is made of an answer's status and body.
#[cfg(feature = "fuzzing")]
pub(super) fn open(status: u16, body: &[u8]) -> Result<Value, String> {
    let call =
        Call { socket: "/s".into(), uri: Uri::from_static("/"), deadline: Duration::ZERO, most: 0 };
    let status = StatusCode::from_u16(status).unwrap_or_default();
    call.open(status, body).map_err(|why| why.to_string())
}

#[cfg(test)]
mod tests;
