//! Text for a terminal.

use std::os::fd::AsFd;

/// Columns of what is a terminal.
pub(super) fn columns(out: &(impl AsFd + std::io::IsTerminal)) -> Option<usize> {
    let size = out.is_terminal().then(|| rustix::termios::tcgetwinsize(out).ok()).flatten()?;
    // 0 where nobody has said.
    Some(size.ws_col.into()).filter(|columns| *columns > 0)
}

/// Names and other people's words, safe on a terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default().collect::<Vec<_>>());
            escaped.unwrap_or_else(|| vec![c])
        })
        .collect()
}

/// Broken at spaces; a path that is longer than a line stays whole, so that it can be copied.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
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
        assert_eq!(printable("a\x1b[31m\nb\u{e4}"), "a\\u{1b}[31m\\nb\u{e4}");
    }
}
