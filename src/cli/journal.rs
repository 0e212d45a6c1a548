//! What the journal wants of who logs to it: a level before each line, and no time, which it has itself (sd-daemon(3)).

use rustix::fd::AsFd;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{self, Format, FormatEvent, FormatFields, Full};
use tracing_subscriber::registry::LookupSpan;

/// Set by systemd: device and inode number of the journal's socket, to be compared with those of stderr.
pub(super) const STREAM: &str = "JOURNAL_STREAM";

/// Whether stderr is the journal.
static IN_USE: AtomicBool = AtomicBool::new(false);

/// Looks whether stderr is the journal.
pub(super) fn detect() {
    let named = std::env::var(STREAM).ok();
    IN_USE.store(named.is_some() && named == stream(std::io::stderr()), Ordering::Relaxed);
}

/// What [`STREAM`] has to be for a program whose stderr is `file`.
pub(super) fn stream(file: impl AsFd) -> Option<String> {
    let st = rustix::fs::fstat(file).ok()?;
    Some(format!("{}:{}", st.st_dev, st.st_ino))
}

/// Whether stderr is the journal.
pub(super) fn is_in_use() -> bool {
    IN_USE.load(Ordering::Relaxed)
}

/// From here on stderr is a file.
pub(super) fn leave() {
    IN_USE.store(false, Ordering::Relaxed);
}

/// What a line on stderr begins with that is no event.
pub(super) fn prefix(level: Level) -> String {
    match is_in_use() {
        // The journal has the program's name, too.
        true => format!("<{}>", priority(level)),
        false => "codchifs: ".to_owned(),
    }
}

/// As syslog(3) counts.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// How events are written.
pub(super) struct Lines {
    dated: Format<Full>,
    bare: Format<Full, ()>,
}

impl Lines {
    pub(super) fn new() -> Self {
        let bare = format::format().without_time().with_level(false);
        Self { dated: format::format(), bare }
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: format::Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if !is_in_use() {
            return self.dated.format_event(context, writer, event);
        }
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.bare.format_event(context, writer, event)
    }
}
