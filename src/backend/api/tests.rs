//! Against real sockets. Each server is a thread that does what its test says to each connection; when the client
//! closes, it meets a read or write that fails.

use super::*;
use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

/// Never met when all is well, even on a loaded machine.
const WATCHDOG: Duration = Duration::from_secs(120);
/// For servers that never finish.
const SHORT: Duration = Duration::from_millis(300);
/// For servers that do.
const LONG: Duration = Duration::from_secs(100);
const MOST: usize = 64 << 20;

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("unix.socket")
    }

    /// The error's text, the socket's path in it replaced by `SOCKET`.
    fn text(&self, answer: &Result<Value, ApiError>) -> String {
        let text = answer.as_ref().expect_err("must fail").to_string();
        text.replace(&self.socket().display().to_string(), "SOCKET")
    }

    /// Fails if the call does not come back.
    fn ask(&self, deadline: Duration, most: usize) -> Result<Value, ApiError> {
        self.ask_for("/1.0", deadline, most)
    }

    fn ask_for(&self, path: &str, deadline: Duration, most: usize) -> Result<Value, ApiError> {
        let (socket, path) = (self.socket(), path.to_owned());
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || sender.send(get(&socket, &path, deadline, most)));
        receiver.recv_timeout(WATCHDOG).expect("the call hangs or panicked")
    }
}

/// A server whose connections go to `serve` one after the other.
fn server(mut serve: impl FnMut(UnixStream) + Send + 'static) -> Place {
    let place = Place::new();
    let listener = UnixListener::bind(place.socket()).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            serve(stream.unwrap());
        }
    });
    place
}

/// Up to its blank line.
fn request(stream: &mut UnixStream) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

/// Answers with these bytes, then closes.
fn bytes(answer: impl Into<Vec<u8>>) -> Place {
    let answer = answer.into();
    server(move |mut stream| {
        request(&mut stream);
        let _ = stream.write_all(&answer);
    })
}

/// Sends `first`, then `again` until the client is gone, which it then tells.
fn endless(
    first: &'static str,
    again: &'static str,
    pause: Duration,
) -> (Place, mpsc::Receiver<()>) {
    let (sender, gone) = mpsc::channel();
    let place = server(move |mut stream| {
        request(&mut stream);
        let mut sent = stream.write_all(first.as_bytes());
        while sent.is_ok() {
            std::thread::sleep(pause);
            sent = stream.write_all(again.as_bytes());
        }
        let _ = sender.send(());
    });
    (place, gone)
}

fn http(status: &str, body: &str) -> Place {
    bytes(format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
}

/// What the daemon is said to have answered.
fn failure(place: &Place) -> String {
    place.text(&place.ask(LONG, MOST))
}

const STUCK: &str = "no complete answer from SOCKET within 300ms; the daemon is overloaded or stuck: \
                     restart it if this persists";
const LOST: &str = "lost the connection to SOCKET: unexpected end of file; if the daemon was just \
                    restarted, try again";

fn nonsense(what: &str) -> String {
    format!("SOCKET answered nonsense: {what}; is it the socket of LXD or Incus?")
}

#[test]
fn takes_the_metadata_out_of_the_envelope() {
    let place = http(
        "200 OK",
        r#"{"type":"sync","status":"Success","status_code":200,"metadata":{"b":[1,"ü"],"a":null}}"#,
    );
    let answer = place.ask(LONG, MOST).unwrap();
    assert_eq!(answer.to_string(), r#"{"b":[1,"ü"],"a":null}"#);
    for (metadata, value) in [("null", Value::Null), ("[]", Value::Array(Vec::new()))] {
        let place = http("200 OK", &format!(r#"{{"type":"sync","metadata":{metadata}}}"#));
        assert_eq!(place.ask(LONG, MOST).unwrap(), value);
    }
}

#[test]
fn sends_one_request() {
    let (sender, receiver) = mpsc::channel();
    let place = server(move |mut stream| {
        let _ = sender.send(request(&mut stream));
        let body = r#"{"type":"sync","metadata":0}"#;
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        // The connection is closed though the server would keep it.
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        let _ = sender.send(format!("{} bytes", rest.len()));
    });
    let path = "/1.0/instances?recursion=2&project=codchi";
    assert_eq!(place.ask_for(path, LONG, MOST).unwrap(), 0);
    assert_eq!(
        receiver.recv_timeout(WATCHDOG).unwrap(),
        format!(
            "GET {path} HTTP/1.0\r\nHost: localhost\r\nUser-Agent: codchifs/{}\r\n\
             Accept: application/json\r\n\r\n",
            env!("CARGO_PKG_VERSION")
        )
    );
    assert_eq!(receiver.recv_timeout(WATCHDOG).unwrap(), "0 bytes");
}

#[test]
fn refuses_what_is_no_path() {
    let place = Place::new();
    for path in ["", "1.0", "http://h/1.0", "*", "/a b", "/a#b", "/a\r\nHost: b", "/\0", "/ü"] {
        assert_eq!(
            place.text(&place.ask_for(path, LONG, MOST)),
            format!("cannot ask SOCKET for {}: not a path of HTTP", quote::quotation(path))
        );
    }
}

#[test]
fn nobody_answers() {
    const DOWN: &str = "the daemon does not run: start LXD or Incus";
    let place = Place::new();
    assert_eq!(
        failure(&place),
        format!("cannot connect to SOCKET: No such file or directory (os error 2); {DOWN}")
    );
    std::fs::write(place.socket(), "a regular file").unwrap();
    let refused = format!("cannot connect to SOCKET: Connection refused (os error 111); {DOWN}");
    assert_eq!(failure(&place), refused);
    std::fs::remove_file(place.socket()).unwrap();
    drop(UnixListener::bind(place.socket()).unwrap());
    assert_eq!(failure(&place), refused, "the socket of a daemon that is gone");
}

#[test]
fn tells_who_may_not_connect_what_to_do() {
    // Root may connect to anything: the error is made here.
    let error = ApiError::Connect {
        socket: "/s".into(),
        source: io::Error::from_raw_os_error(libc::EACCES),
    };
    assert_eq!(
        error.to_string(),
        "cannot connect to /s: Permission denied (os error 13); add yourself to the group lxd or \
         incus-admin, or run codchifs as root"
    );
}

#[test]
fn a_path_too_long_for_a_socket() {
    let socket = PathBuf::from(format!("/{}", "x".repeat(200)));
    assert_eq!(
        get(&socket, "/1.0", LONG, MOST).unwrap_err().to_string(),
        format!("cannot connect to {}: File name too long (os error 36)", socket.display())
    );
}

/// A listener whose queue is full, and the connections in it.
fn full_backlog(place: &Place) -> (UnixListener, Vec<OwnedFd>) {
    let listener = UnixListener::bind(place.socket()).unwrap();
    rustix::net::listen(&listener, 1).unwrap();
    let address = SocketAddrUnix::new(place.socket()).unwrap();
    let mut waiting = Vec::new();
    loop {
        let flags = SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        match connect(&socket, &address) {
            Ok(()) => waiting.push(socket),
            Err(why) => {
                assert_eq!(why, Errno::AGAIN);
                return (listener, waiting);
            }
        }
    }
}

#[test]
fn a_full_backlog() {
    let place = Place::new();
    let _full = full_backlog(&place);
    assert_eq!(place.text(&place.ask(SHORT, MOST)), STUCK);
}

#[test]
fn a_backlog_that_empties_in_time() {
    let place = Place::new();
    let (listener, waiting) = full_backlog(&place);
    let answer = std::thread::scope(|scope| {
        let asked = scope.spawn(|| place.ask(LONG, MOST));
        std::thread::sleep(Duration::from_millis(50));
        for _ in &waiting {
            listener.accept().unwrap();
        }
        let (mut stream, _) = listener.accept().unwrap();
        request(&mut stream);
        let body = r#"{"type":"sync","metadata":"late"}"#;
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        asked.join().unwrap()
    });
    assert_eq!(answer.unwrap(), "late");
}

#[test]
fn a_silent_server() {
    let (sender, gone) = mpsc::channel();
    let place = server(move |mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
        let _ = sender.send(());
    });
    assert_eq!(place.text(&place.ask(SHORT, MOST)), STUCK);
    gone.recv_timeout(WATCHDOG).expect("the connection stays open");
    assert_eq!(
        place.text(&place.ask(Duration::ZERO, MOST)),
        STUCK.replace("300ms", "0s"),
        "no time at all"
    );
}

#[test]
fn servers_that_never_finish() {
    let slow = Duration::from_millis(50);
    let head = "HTTP/1.1 200 OK\r\n";
    let length = "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n";
    for (what, first, again, pause) in [
        ("a status trickles", "HTTP/1.1 200 ", "x", slow),
        ("a header trickles", "HTTP/1.1 200 OK\r\nX: ", "x", slow),
        ("headers trickle", head, "a: b\r\n", slow),
        ("a body trickles", length, " ", slow),
        ("it ends when the server closes", "HTTP/1.1 200 OK\r\n\r\n", " ", slow),
    ] {
        let (place, gone) = endless(first, again, pause);
        assert_eq!(place.text(&place.ask(SHORT, MOST)), STUCK, "{what}");
        gone.recv_timeout(WATCHDOG).expect("the client still reads");
    }
}

#[test]
fn headers_without_end() {
    for (first, again, what) in [
        ("HTTP/1.1 200 ", "xxxxxxxxxxxxxxxx", "its head is too large"),
        ("HTTP/1.1 200 OK\r\nX: ", "xxxxxxxxxxxxxxxx", "its head is too large"),
        ("HTTP/1.1 200 OK\r\nX: ", "x", "its head is too large"),
        ("HTTP/1.1 200 OK\r\n", "a: b\r\n", "too many headers"),
    ] {
        let (place, _) = endless(first, again, Duration::ZERO);
        assert_eq!(failure(&place), nonsense(&format!("not HTTP: {what}")), "{first:?}");
    }
}

#[test]
fn what_is_not_http() {
    for (answer, what) in [
        ("\0\u{1}\u{2}garbage\r\n\r\n", "invalid HTTP version"),
        ("SSH-2.0-OpenSSH_9.9\r\n", "invalid HTTP version"),
        ("HTTP/1.1 abc\r\n\r\n", "invalid response status"),
        ("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "invalid Content-Length"),
        ("HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n", "invalid Content-Length"),
        ("HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n", "invalid Content-Length"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "invalid Content-Length",
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\nContent-Length: 2\r\n\r\n1",
            "two different Content-Lengths",
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "a Transfer-Encoding, which no request of HTTP/1.0 gets",
        ),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            "status 100, which no request of HTTP/1.0 gets",
        ),
    ] {
        assert_eq!(failure(&bytes(answer)), nonsense(&format!("not HTTP: {what}")), "{answer:?}");
    }
    // Before it was asked.
    let place = server(|mut stream| {
        let _ = stream.write_all(b"220 ready\r\n");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    assert_eq!(failure(&place), nonsense("not HTTP: invalid HTTP version"));
}

#[test]
fn servers_that_go_away() {
    for (what, answer) in [
        ("nothing", ""),
        ("half a status", "HTTP/1."),
        ("half the headers", "HTTP/1.1 200 OK\r\nContent-Le"),
        ("half a body", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"type\":\"sync\""),
        ("no body", "HTTP/1.1 200 OK\r\n\r\n"),
        (
            "half a body without a length",
            "HTTP/1.1 200 OK\r\n\r\n{\"type\":\"sync\",\"metadata\":[1",
        ),
        ("all but one byte", "HTTP/1.0 200 OK\r\n\r\n{\"type\":\"sync\",\"metadata\":[1]"),
    ] {
        assert_eq!(failure(&bytes(answer)), LOST, "{what}");
    }
    // Without reading the request: at which step the client notices is up to the scheduler.
    for _ in 0..20 {
        let text = failure(&server(drop));
        let reset =
            LOST.replace("unexpected end of file", "Connection reset by peer (os error 104)");
        let pipe = LOST.replace("unexpected end of file", "Broken pipe (os error 32)");
        assert!([LOST, &reset, &pipe].contains(&text.as_str()), "{text}");
    }
}

#[test]
fn the_daemon_says_no() {
    for (status, body, text) in [
        (
            "403 Forbidden",
            r#"{"type":"error","error":"User does not have \"can_view\"","error_code":403,"metadata":null}"#,
            "SOCKET answered 403: User does not have \"can_view\"; add yourself to the group lxd or \
             incus-admin, or run codchifs as root",
        ),
        (
            "404 Not Found",
            r#"{"type":"error","error":"Instance not found","error_code":404}"#,
            "SOCKET answered 404: Instance not found",
        ),
        (
            "500 Internal Server Error",
            r#"{"type":"error","error":"database is locked","error_code":500}"#,
            "SOCKET answered 500: database is locked",
        ),
        (
            "200 OK",
            r#"{"type":"error","error":"in the envelope","error_code":404}"#,
            "SOCKET answered 404: in the envelope",
        ),
        ("500 X", r#"{"type":"error","error_code":0}"#, "SOCKET answered 500: no reason given"),
        ("500 X", r#"{"type":"error","error_code":65939}"#, "SOCKET answered 500: no reason given"),
        (
            "500 X",
            r#"{"type":"sync","metadata":1}"#,
            r#"SOCKET answered 500: {"type":"sync","metadata":1}"#,
        ),
        ("404 Not Found", "404 page not found\n", "SOCKET answered 404: 404 page not found"),
        ("502 Bad Gateway", "", "SOCKET answered 502: Bad Gateway"),
        ("302 Found", "", "SOCKET answered 302: Found"),
        ("999 X", "", "SOCKET answered 999: X"),
        ("999", "", "SOCKET answered 999: no reason given"),
    ] {
        assert_eq!(failure(&http(status, body)), text);
    }
}

#[test]
fn the_daemons_words_are_bounded_and_printable() {
    let place = http("500 X", r#"{"type":"error","error":"a\u001b[2J\nb\u202ec\u0000 'ü'"}"#);
    assert_eq!(failure(&place), r"SOCKET answered 500: a\x1b[2J\x0ab\xe2\x80\xaec\x00 'ü'");
    let place = http("500 X", &"é".repeat(100_000));
    assert_eq!(failure(&place), format!("SOCKET answered 500: {}…", "é".repeat(WORDS)));
    let place = bytes(&b"HTTP/1.1 500 X\r\nContent-Length: 4\r\n\r\n\xff\x1b\xc3A"[..]);
    assert_eq!(failure(&place), r"SOCKET answered 500: \xff\x1b\xc3A");
}

#[test]
fn what_is_no_envelope() {
    let deep = format!(r#"{{"type":"sync","metadata":{}"#, "[".repeat(1_000_000));
    for (body, what) in [
        ("<html>", "the body is no JSON: expected value at line 1 column 1"),
        ("", "the body is no JSON: EOF while parsing a value at line 1 column 0"),
        (
            r#"{"type":"sync","metadata":"#,
            "the body is no JSON: EOF while parsing a value at line 1 column 26",
        ),
        (
            r#"{"type":"sync","metadata":1} 2"#,
            "the body is no JSON: trailing characters at line 1 column 30",
        ),
        (
            r#"{"type":"sync","metadata":1e999}"#,
            "the body is no JSON: number out of range at line 1 column 31",
        ),
        (&deep, "the body is no JSON: recursion limit exceeded at line 1 column 153"),
        ("[]", "the envelope has no `type`"),
        ("null", "the envelope has no `type`"),
        (r#"{"metadata":1}"#, "the envelope has no `type`"),
        (r#"{"type":7,"metadata":1}"#, "the envelope has no `type`"),
        (r#"{"type":"sync"}"#, "the envelope has no `metadata`"),
        (r#"{"type":"async","metadata":{}}"#, "the envelope has the type `async`"),
        (r#"{"type":"\n","metadata":{}}"#, r"the envelope has the type `\x0a`"),
    ] {
        let shown = body.get(..body.len().min(60));
        assert_eq!(failure(&http("200 OK", body)), nonsense(what), "{shown:?}");
    }
    let place = bytes(&b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n\"\xff\""[..]);
    assert_eq!(
        failure(&place),
        nonsense("the body is no JSON: invalid unicode code point at line 1 column 2")
    );
}

#[test]
fn a_body_over_the_limit() {
    let body = r#"{"type":"sync","metadata":1}"#;
    let text = "the answer of SOCKET is larger than the 27 bytes that codchifs reads";
    let until_closed = bytes(format!("HTTP/1.1 200 OK\r\n\r\n{body}"));
    for place in [until_closed, http("200 OK", body)] {
        assert_eq!(place.ask(LONG, 28).unwrap(), 1);
        assert_eq!(place.text(&place.ask(LONG, 27)), text);
    }
    // As soon as it is known: not a byte of the body comes.
    let place = server(|mut stream| {
        request(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 28\r\n\r\n");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    assert_eq!(place.text(&place.ask(LONG, 27)), text);
    let (place, _) = endless("HTTP/1.1 200 OK\r\n\r\n", "                ", Duration::ZERO);
    assert_eq!(place.text(&place.ask(LONG, 27)), text);
    // Of an error, too.
    let place = http("500 X", body);
    assert_eq!(place.text(&place.ask(LONG, 27)), text);
}

#[test]
fn ten_thousand_instances() {
    let mut body = String::from(r#"{"type":"sync","status_code":200,"metadata":["#);
    for i in 0..10_000 {
        let comma = if i == 0 { "" } else { "," };
        let filler = "x".repeat(300);
        write!(body, r#"{comma}{{"name":"m{i}","config":{{"user.codchi":"{filler}"}}}}"#).unwrap();
    }
    body.push_str("]}");
    assert!(body.len() > 3_000_000);
    // As Go's server answers a request of HTTP/1.0: without a length.
    let answer = bytes(format!("HTTP/1.0 200 OK\r\n\r\n{body}")).ask(LONG, MOST).unwrap();
    let names: Vec<_> =
        answer.as_array().unwrap().iter().map(|i| i["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 10_000);
    assert_eq!((names[0], names[9_999]), ("m0", "m9999"));
}

/// What comes behind the length that was told is of another answer.
#[test]
fn a_body_ends_at_its_length() {
    let body = r#"{"type":"sync","metadata":1}"#;
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}HTTP/1.1", body.len());
    assert_eq!(bytes(answer).ask(LONG, MOST).unwrap(), 1);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]

    /// Whatever comes, there is an answer or an error, and the client did not panic.
    #[test]
    fn any_bytes(
        head in proptest::sample::select(vec![
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n",
            "HTTP/1.1 101 X\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
            "HTTP/1.1 204 X\r\n\r\n",
        ]),
        tail in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
    ) {
        let mut answer = head.as_bytes().to_vec();
        answer.extend(tail);
        let answer = bytes(answer).ask(LONG, MOST);
        let panicked = matches!(answer, Err(ApiError::Start { .. } | ApiError::Deadline { .. }));
        proptest::prop_assert!(!panicked, "{:?}", answer);
    }
}
