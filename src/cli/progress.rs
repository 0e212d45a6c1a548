//! A line of progress on a terminal: how far, how fast, how long still.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// How often the line is drawn.
const EVERY: Duration = Duration::from_millis(200);

/// Draws nothing where stderr is no terminal.
pub(super) struct Progress {
    total: u64,
    started: Instant,
    drawn: Option<Instant>,
    on: bool,
}

impl Progress {
    pub(super) fn new(total: u64, quiet: bool) -> Self {
        let on = !quiet && std::io::stderr().is_terminal();
        Self { total, started: Instant::now(), drawn: None, on }
    }

    pub(super) fn at(&mut self, done: u64) {
        if !self.on || self.drawn.is_some_and(|drawn| drawn.elapsed() < EVERY) {
            return;
        }
        self.drawn = Some(Instant::now());
        let text = line(done, self.total, self.started.elapsed());
        let _ = write!(std::io::stderr(), "\r{text}\x1b[K");
    }

    /// Takes the line away.
    pub(super) fn end(&self) {
        if self.drawn.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn line(done: u64, total: u64, elapsed: Duration) -> String {
    let percent = (done.saturating_mul(100)).checked_div(total).unwrap_or(100);
    let rate = done as f64 / elapsed.as_secs_f64().max(0.001);
    let left = if rate > 0.0 { (total.saturating_sub(done)) as f64 / rate } else { 0.0 };
    format!(
        "{percent:3} %  {} of {}  {}/s  {} left",
        size(done),
        size(total),
        size(rate as u64),
        clock(Duration::from_secs_f64(left.min(1e9)))
    )
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

pub(super) fn clock(time: Duration) -> String {
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
        let s = Duration::from_secs;
        assert_eq!(
            line(1 << 30, 4 << 30, s(10)),
            " 25 %  1.0 GiB of 4.0 GiB  102 MiB/s  0:30 left"
        );
        assert_eq!(line(0, 10, s(0)), "  0 %  0 B of 10 B  0 B/s  0:00 left");
        assert_eq!(line(0, 0, s(1)), "100 %  0 B of 0 B  0 B/s  0:00 left");
        assert_eq!(clock(s(3725)), "1:02:05");
    }
}
