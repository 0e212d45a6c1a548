//! Where log lines go. Nobody who logs in a mount waits for whoever reads the log.

use super::journal;
use crate::quote;
use parking_lot::{Condvar, Mutex};
use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, IsTerminal as _, Write};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::format::debug_fn;

/// Bytes of lines that wait to be written. A terminal that was stopped takes none for as long as it likes.
const MAX_WAITING: usize = 1 << 20;

/// Bytes of a line. The rest of a longer one is dropped: the journal would begin another line with it (`LineMax=` of
/// journald.conf(5)), and who chose a long name would say what that is.
pub(super) const MAX_LINE: usize = 16 << 10;

/// A log that takes nothing for this long keeps nobody waiting at the end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Lines that wait, once [`start_queue`] was called.
static QUEUE: OnceLock<Queue> = OnceLock::new();

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Lines since the last written one that were dropped.
    lost: u64,
    /// A line was taken from the queue and is not written yet.
    writing: bool,
}

/// Starts logging to stderr, with -v this often.
pub(super) fn start(verbose: u8) {
    journal::detect();
    let level = match verbose {
        0 => "warn",
        1 => "codchifs=info,warn",
        2 => "codchifs=debug,info",
        _ => "trace",
    };
    let filter = std::env::var("CODCHIFS_LOG")
        .ok()
        .and_then(|text| tracing_subscriber::EnvFilter::try_new(text).ok())
        .unwrap_or_else(|| tracing_subscriber::EnvFilter::new(level));
    // Each value on the line of its event: names and other people's words are among them.
    let fields = debug_fn(|out, field, value| {
        let value = quote::message(&format!("{value:?}"));
        match field.name() {
            "message" => write!(out, "{value}"),
            name => write!(out, "{name}={value}"),
        }
    });
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .fmt_fields(fields.delimited(" "))
        .with_ansi(io::stderr().is_terminal())
        .with_writer(|| Log)
        .event_format(journal::Lines::new())
        .init();
}

/// From now on a thread writes the lines, and whoever logs goes on at once.
pub(super) fn start_queue() -> io::Result<()> {
    std::thread::Builder::new().name("codchifs-log".into()).spawn(|| {
        let queue = QUEUE.get_or_init(Queue::default);
        loop {
            queue.write_next();
        }
    })?;
    QUEUE.get_or_init(Queue::default);
    Ok(())
}

/// Adds a line, with its newline.
pub(super) fn push(line: &str) {
    let line = format!("{}\n", cut(line.trim_end_matches('\n')));
    match QUEUE.get() {
        Some(queue) => queue.push(line.as_bytes()),
        // It is the log itself that failed: there is nowhere to say so.
        None => drop(io::stderr().write_all(line.as_bytes())),
    }
}

/// What of a line has room in a log.
pub(super) fn cut(line: &str) -> Cow<'_, str> {
    const MORE: &str = "…";
    if line.len() <= MAX_LINE {
        return line.into();
    }
    let mut ends = (0..=MAX_LINE - MORE.len()).rev();
    let whole = ends.find_map(|end| line.get(..end)).unwrap_or_default();
    format!("{whole}{MORE}").into()
}

/// Waits until all lines are written, if the log takes them.
pub(super) fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush(Instant::now() + FLUSH_TIMEOUT);
    }
}

impl Queue {
    fn push(&self, line: &[u8]) {
        let mut state = self.state.lock();
        state.note_lost();
        if state.bytes.saturating_add(line.len()) > MAX_WAITING {
            state.lost = state.lost.saturating_add(1);
        } else {
            state.add(line.to_vec());
        }
        self.changed.notify_all();
    }

    fn write_next(&self) {
        let mut state = self.state.lock();
        let line = loop {
            match state.lines.pop_front() {
                Some(line) => break line,
                None => self.changed.wait(&mut state),
            }
        };
        state.bytes = state.bytes.saturating_sub(line.len());
        state.writing = true;
        drop(state);
        let written = io::stderr().write_all(&line);
        let mut state = self.state.lock();
        state.writing = false;
        if written.is_err() {
            state.lost = state.lost.saturating_add(1);
        }
        self.changed.notify_all();
    }

    fn flush(&self, end: Instant) {
        let mut state = self.state.lock();
        state.note_lost();
        self.changed.notify_all();
        while state.writing || !state.lines.is_empty() {
            if self.changed.wait_until(&mut state, end).timed_out() {
                return;
            }
        }
    }
}

impl State {
    fn add(&mut self, line: Vec<u8>) {
        self.bytes = self.bytes.saturating_add(line.len());
        self.lines.push_back(line);
    }

    /// Says how many lines are missing at this place, as soon as there is room to say it.
    fn note_lost(&mut self) {
        if self.lost > 0 && self.bytes < MAX_WAITING / 2 {
            let lost = std::mem::take(&mut self.lost);
            self.add(
                format!(
                    "{}{lost} lines of the log are missing here: it took none\n",
                    journal::prefix(tracing::Level::WARN)
                )
                .into(),
            );
        }
    }
}

/// What events are written to; it takes every line. An error here would become a panic in `tracing`, which reports it on stderr.
struct Log;

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // It was a String.
        push(str::from_utf8(line).unwrap_or_default());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_takes_nothing_costs_bounded_memory_and_says_what_is_missing() {
        let queue = Queue::default();
        let line = vec![b'x'; 1000];
        for _ in 0..3000 {
            queue.push(&line);
        }
        let mut state = queue.state.lock();
        assert!(state.bytes <= MAX_WAITING);
        assert_eq!(state.lines.len() as u64 + state.lost, 3000);
        let lost = state.lost;
        state.lines.clear();
        state.bytes = 0;
        drop(state);
        queue.push(b"next\n");
        let state = queue.state.lock();
        let lines: Vec<_> = state.lines.iter().map(|l| String::from_utf8_lossy(l)).collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].contains(&format!("{lost} lines")), "{lines:?}");
        assert_eq!(lines[1], "next\n");
    }

    #[test]
    fn a_line_is_cut_between_two_characters() {
        for (line, len) in [
            ("a".repeat(MAX_LINE), MAX_LINE),
            ("a".repeat(MAX_LINE + 1), MAX_LINE),
            (format!("a{}", "\u{fc}".repeat(MAX_LINE)), MAX_LINE),
            ("\u{1f600}".repeat(MAX_LINE), MAX_LINE - 1),
        ] {
            let shown = cut(&line);
            assert_eq!(shown.len(), len);
            assert_eq!(shown.ends_with('…'), line.len() > MAX_LINE);
        }
    }
}
