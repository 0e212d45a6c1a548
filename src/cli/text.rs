//! Text for a terminal.

use crate::quote;
use serde_json::Value;
use std::io::{self, Write};
use std::os::fd::AsFd;

/// Columns of what is a terminal.
pub(super) fn columns(out: &(impl AsFd + std::io::IsTerminal)) -> Option<usize> {
    let size = out.is_terminal().then(|| rustix::termios::tcgetwinsize(out).ok()).flatten()?;
    // 0 where nobody has said.
    Some(size.ws_col.into()).filter(|columns| *columns > 0)
}

/// Writes JSON: indented for people, or on one line.
pub(super) fn write_json(out: &mut impl Write, value: &Value, indented: bool) -> io::Result<()> {
    let text = if indented { format!("{value:#}") } else { value.to_string() };
    writeln!(out, "{}", quote::json(&text))
}

/// Broken at spaces; a path that is longer than a line stays whole, so that it can be copied.
pub(super) fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if quote::width(line) + 1 + quote::width(word) <= columns => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_at_the_width_and_paths_stay_whole() {
        let long = "/a".repeat(60);
        let text = format!("{} {long} end", "word ".repeat(40).trim_end());
        let lines = wrapped(&text, 71);
        assert!(lines.iter().all(|l| l.chars().count() <= 71 || *l == long), "{lines:?}");
        assert_eq!(lines.join(" "), text);
    }
}
