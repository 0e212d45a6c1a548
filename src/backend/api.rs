//! One GET over the unix socket of LXD or Incus. Knows their envelope, and nothing of what is in it:
//! `{"type":"sync","status_code":200,"metadata":…}` and `{"type":"error","error":"…","error_code":403}`.
//!
//! The daemon is not trusted to answer, nor to speak HTTP: a file system that waits for it hangs its users. So a call
//! ends at its deadline whatever the other side does, and takes a bounded amount of memory.

use super::activation;
use crate::quote;
use httparse::{EMPTY_HEADER, Response, Status};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde_json::Value;
use std::io::{self, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Bytes of a status line with its headers; LXD and Incus send about 200.
const MAX_HEAD: usize = 16 << 10;
/// Headers of an answer; LXD and Incus send less than ten.
const MAX_HEADERS: usize = 64;
/// Bytes of a head that are read at once.
const HEAD_STEP: usize = 2 << 10;

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
    /// No thread or socket to be had for the call.
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
    if code == 403 { GROUPS } else { "" }
}

/// Answers the `metadata` of the envelope. Everything that waits for the daemon (connect, send, headers, body) happens
/// within `deadline`, the body is at most `most` bytes. To take it apart is our own work and comes after: what bounds
/// it is `most`. `path` is that of the URL with its query, percent-encoded.
///
/// The call runs in its own thread: every wait for the socket ends at the deadline, but looking its path up blocks for as long
/// as that file system likes. Such a thread stays behind until that file system answers.
///
/// The request is one of HTTP/1.0, because its answer has no chunks (RFC 9112, 6.1) and ends with the connection or at its
/// Content-Length. An answer that was cut off is no complete JSON, so it is never taken for a whole one.
pub(super) fn get(
    socket: &Path,
    path: &str,
    deadline: Duration,
    most: usize,
) -> Result<Value, ApiError> {
    if activation::would_start(socket) {
        return Err(ApiError::Asleep { socket: socket.to_owned() });
    }
    if !is_path(path) {
        return Err(ApiError::Path { socket: socket.to_owned(), path: path.to_owned() });
    }
    let call = Arc::new(Call {
        socket: socket.to_owned(),
        path: path.to_owned(),
        deadline,
        end: Instant::now() + deadline,
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
        Ok(answer) => answer.and_then(|answer| call.open(&answer)),
        Err(RecvTimeoutError::Timeout) => Err(call.timed_out()),
        Err(RecvTimeoutError::Disconnected) => {
            Err(start(io::Error::other("the client of HTTP panicked")))
        }
    }
}

/// An absolute path with its query, percent-encoded. What follows a `#` would not be sent.
fn is_path(path: &str) -> bool {
    path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
}

struct Call {
    socket: PathBuf,
    path: String,
    deadline: Duration,
    end: Instant,
    most: usize,
}

/// The start of an answer.
struct Head {
    status: u16,
    /// The server's words for the status.
    reason: String,
    /// Content-Length. Without one, the body ends with the connection.
    length: Option<u64>,
    /// Bytes of the head itself; the body begins behind them.
    size: usize,
}

struct Answer {
    status: u16,
    reason: String,
    /// Whether the head told the body's length, and it has that length.
    is_measured: bool,
    body: Vec<u8>,
}

/// A stream whose reads all together end at `end`: a daemon that sends a byte now and then gets no longer than a silent one.
struct Timed {
    stream: UnixStream,
    end: Instant,
}

impl Read for Timed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(left(self.end)?))?;
        self.stream.read(into)
    }
}

/// The time until `end`, never zero: that is no time-out for the kernel.
fn left(end: Instant) -> io::Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

impl Call {
    /// Sends the request, reads all of the answer.
    fn run(&self) -> Result<Answer, ApiError> {
        let mut stream = Timed { stream: self.connect()?, end: self.end };
        let request = format!(
            "GET {} HTTP/1.0\r\nHost: localhost\r\nUser-Agent: codchifs/{}\r\nAccept: application/json\r\n\r\n",
            self.path,
            env!("CARGO_PKG_VERSION")
        );
        stream.stream.write_all(request.as_bytes()).map_err(|e| self.failed(e))?;
        let mut start = Vec::new();
        let head = self.head(&mut stream, &mut start)?;
        let is_measured = head.length.is_some();
        let body = self.body(head.length, start.get(head.size..).unwrap_or_default(), stream)?;
        Ok(Answer { status: head.status, reason: head.reason, is_measured, body })
    }

    /// Waits while the daemon has too many others to accept, by the socket's time-out for sending (unix(7)).
    fn connect(&self) -> Result<UnixStream, ApiError> {
        let failed =
            |why: Errno| ApiError::Connect { socket: self.socket.clone(), source: why.into() };
        let address = SocketAddrUnix::new(&self.socket).map_err(failed)?;
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|why| ApiError::Start { socket: self.socket.clone(), source: why.into() })?;
        loop {
            let left = left(self.end).map_err(|e| self.failed(e))?;
            set_socket_timeout(&socket, Timeout::Send, Some(left)).map_err(failed)?;
            match connect(&socket, &address) {
                Ok(()) => return Ok(socket.into()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(self.timed_out()),
                Err(why) => return Err(failed(why)),
            }
        }
    }

    /// Reads into `start` until it holds all of the head, and perhaps some of the body.
    fn head(&self, stream: &mut Timed, start: &mut Vec<u8>) -> Result<Head, ApiError> {
        loop {
            let mut some = [0; HEAD_STEP];
            let count = loop {
                match stream.read(&mut some) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(self.failed(e)),
                    Ok(0) => return Err(self.failed(io::ErrorKind::UnexpectedEof.into())),
                    Ok(count) => break count,
                }
            };
            start.extend_from_slice(some.get(..count).unwrap_or_default());
            match head(start) {
                Ok(Some(head)) => return Ok(head),
                Ok(None) if start.len() > MAX_HEAD => {
                    return Err(self.garbage("not HTTP: its head is too large"));
                }
                Ok(None) => {}
                Err(what) => return Err(self.garbage(&format!("not HTTP: {what}"))),
            }
        }
    }

    /// The body, whose first bytes came with the head.
    fn body(&self, length: Option<u64>, first: &[u8], stream: Timed) -> Result<Vec<u8>, ApiError> {
        let too_large = || ApiError::TooLarge { socket: self.socket.clone(), most: self.most };
        let most = self.most as u64;
        if length.is_some_and(|length| length > most) {
            return Err(too_large());
        }
        let mut body = Vec::new();
        let limit = length.unwrap_or(most.saturating_add(1));
        first.chain(stream).take(limit).read_to_end(&mut body).map_err(|e| self.failed(e))?;
        let got = body.len() as u64;
        match length {
            Some(length) if got < length => Err(self.failed(io::ErrorKind::UnexpectedEof.into())),
            None if got > most => Err(too_large()),
            _ => Ok(body),
        }
    }

    fn timed_out(&self) -> ApiError {
        ApiError::Deadline { socket: self.socket.clone(), after: self.deadline }
    }

    fn failed(&self, source: io::Error) -> ApiError {
        match source.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => self.timed_out(),
            _ => ApiError::Lost { socket: self.socket.clone(), source },
        }
    }

    /// Takes the metadata out of the envelope.
    fn open(&self, answer: &Answer) -> Result<Value, ApiError> {
        let Answer { status, reason, is_measured, body } = answer;
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
            return Err(refused(code.filter(|c| *c != 0).unwrap_or(*status), text));
        }
        if !(200..300).contains(status) {
            // Longer than what is shown of it, and short: an answer has megabytes.
            let text = body.trim_ascii();
            let text = quote::message(text.get(..text.len().min(8 * WORDS)).unwrap_or(text));
            let words = [&text, reason.trim(), "no reason given"];
            let said = words.into_iter().find(|words| !words.is_empty()).unwrap_or_default();
            return Err(refused(*status, said));
        }
        match (kind.as_deref(), parsed) {
            // The connection ended before the body did.
            (_, Err(e)) if e.is_eof() && !is_measured => {
                Err(self.failed(io::ErrorKind::UnexpectedEof.into()))
            }
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

/// Takes the head of an answer apart; `None` if it is not there as a whole.
fn head(bytes: &[u8]) -> Result<Option<Head>, String> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut response = Response::new(&mut headers);
    let Status::Complete(size) = response.parse(bytes).map_err(|e| e.to_string())? else {
        return Ok(None);
    };
    let status = response.code.unwrap_or_default();
    if status < 200 {
        return Err(format!("status {status}, which no request of HTTP/1.0 gets"));
    }
    let mut length = None;
    for header in response.headers.iter() {
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err("a Transfer-Encoding, which no request of HTTP/1.0 gets".into());
        }
        if header.name.eq_ignore_ascii_case("content-length") {
            let digits = str::from_utf8(header.value).ok().filter(|value| !value.starts_with('+'));
            let told =
                digits.and_then(|value| value.parse().ok()).ok_or("invalid Content-Length")?;
            if length.replace(told).is_some_and(|before| before != told) {
                return Err("two different Content-Lengths".into());
            }
        }
    }
    let reason = response.reason.unwrap_or_default().to_owned();
    Ok(Some(Head { status, reason, length, size }))
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

/// What is made of an answer's bytes.
#[cfg(feature = "fuzzing")]
pub(super) fn open(status: u16, body: &[u8]) -> Result<Value, String> {
    let call = Call {
        socket: "/s".into(),
        path: "/".into(),
        deadline: Duration::ZERO,
        end: Instant::now(),
        most: 0,
    };
    // As much as a head can be made of it, too.
    drop(head(body));
    let answer = Answer { status, reason: String::new(), is_measured: true, body: body.to_owned() };
    call.open(&answer).map_err(|why| why.to_string())
}

#[cfg(test)]
mod tests;
