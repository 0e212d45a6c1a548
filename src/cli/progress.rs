//! A line of progress on a terminal: how far, how fast, how long still.

use std::io::{IsTerminal as _, Write as _};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often the line is drawn.
const EVERY: Duration = Duration::from_millis(200);

/// Draws nothing where stderr is no terminal.
pub(super) struct Progress {
    total: u64,
    started: Instant,
    line: Mutex<Line>,
}

struct Line {
    on: bool,
    drawn: Option<Instant>,
}

impl Progress {
    pub(super) fn new(total: u64, quiet: bool) -> Self {
        let on = !quiet && std::io::stderr().is_terminal();
        Self { total, started: Instant::now(), line: Mutex::new(Line { on, drawn: None }) }
    }

    pub(super) fn at(&self, done: u64) {
        let mut line = self.line();
        if !line.on || line.drawn.is_some_and(|drawn| drawn.elapsed() < EVERY) {
            return;
        }
        line.drawn = Some(Instant::now());
        let rate = done as f64 / self.started.elapsed().as_secs_f64().max(0.001);
        let text = text(done, self.total, rate as u64);
        let _ = write!(std::io::stderr(), "\r{text}\x1b[K");
    }

    /// Has something else printed where the line was.
    pub(super) fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        let line = self.line();
        line.erase();
        print()
    }

    /// Takes the line away, for good.
    pub(super) fn end(&self) {
        let mut line = self.line();
        line.erase();
        line.on = false;
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn erase(&self) {
        if self.on && self.drawn.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

/// How far, how fast, how long still.
pub(super) fn text(done: u64, total: u64, rate: u64) -> String {
    let percent = done.saturating_mul(100).checked_div(total).unwrap_or(100);
    let left = total.saturating_sub(done).checked_div(rate);
    let left = left.map_or("-".into(), |left| clock(Duration::from_secs(left)));
    format!("{percent:3} %  {} of {}  {}/s  {left} left", size(done), size(total), size(rate))
}

/// Bytes with a binary unit, three digits or so.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    for next in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if value < 10.0 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

fn clock(time: Duration) -> String {
    let s = time.as_secs();
    if s < 3600 {
        format!("{}:{:02}", s / 60, s % 60)
    } else {
        format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_far_how_fast_how_long() {
        assert_eq!(
            text(1 << 30, 4 << 30, (1 << 30) / 10),
            " 25 %  1.0 GiB of 4.0 GiB  102 MiB/s  0:30 left"
        );
        assert_eq!(text(0, 10, 0), "  0 %  0 B of 10 B  0 B/s  - left");
        assert_eq!(text(0, 0, 0), "100 %  0 B of 0 B  0 B/s  - left");
        assert_eq!(clock(Duration::from_secs(3725)), "1:02:05");
    }
}
