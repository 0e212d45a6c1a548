//! A page of Markdown that fits a terminal: no line is wider than 80 columns, whatever stands in it.

use crate::quote::{clipped, code, fenced, message, width, word};

/// Columns of a page.
const COLUMNS: usize = 80;
/// Columns of foreign text in a line; the rest of it is not shown.
const MAX_SHOWN: usize = 50;
/// Between two words of one command.
const CONTINUED: &str = " \\\n  ";

/// A part of a command.
#[derive(Clone, Debug)]
pub(super) enum Piece<'a> {
    /// Text of ours, as the shell reads it.
    Ours(&'a str),
    /// One word of foreign text.
    Word(Vec<u8>),
}

impl Piece<'_> {
    pub(super) fn word(word: impl AsRef<[u8]>) -> Self {
        Self::Word(word.as_ref().to_vec())
    }
}

/// A page in the making.
#[derive(Debug, Default)]
pub(super) struct Page(String);

impl Page {
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0.into_bytes()
    }

    /// A heading, with a line above it.
    pub(super) fn heading(&mut self, text: &str) {
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        self.line(text);
    }

    /// A paragraph.
    pub(super) fn say(&mut self, text: &str) {
        self.line(&filled(text));
    }

    /// Foreign text of any length, all of it.
    pub(super) fn whole(&mut self, text: &str) {
        let text = message(text);
        let (mut lines, mut rest) = (Vec::new(), text.as_str());
        while !rest.is_empty() {
            let line = clipped(rest, COLUMNS);
            lines.push(line);
            rest = rest.get(line.len()..).unwrap_or_default();
        }
        self.line(&fenced("text", &lines.join("\n")));
    }

    /// Commands, one below the other.
    pub(super) fn commands(&mut self, commands: &[&[Piece<'_>]]) {
        let commands: Vec<_> = commands.iter().map(|command| wrapped(command)).collect();
        self.line(&fenced("sh", &commands.join("\n")));
    }

    fn line(&mut self, text: &str) {
        self.0.push_str(text);
        self.0.push('\n');
    }
}

/// Foreign text as code, cut off where it is long.
pub(super) fn shown(text: impl AsRef<[u8]>) -> String {
    let whole = code(&text);
    if width(&whole) <= MAX_SHOWN {
        return whole;
    }
    let mut last = String::new();
    for end in 1..text.as_ref().len() {
        let part = text.as_ref().get(..end).map(code).unwrap_or_default();
        if width(&part) > MAX_SHOWN {
            break;
        }
        // A character that is cut off would show as bytes.
        if text.as_ref().get(end).is_none_or(|byte| byte & 0xc0 != 0x80) {
            last = part;
        }
    }
    last + "\u{2026}"
}

/// Words in lines.
fn filled(text: &str) -> String {
    let mut out = String::new();
    let mut column = 0;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        if column > 0 && column + 1 + width(word) > COLUMNS {
            out.push('\n');
            column = 0;
        } else if column > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += width(word);
    }
    out
}

/// One command over as many lines as it takes.
fn wrapped(command: &[Piece<'_>]) -> String {
    // A backslash has to fit behind each line.
    let room = COLUMNS - 2;
    let mut out = String::new();
    let mut column = 0;
    for piece in command {
        let text = match piece {
            Piece::Ours(text) => (*text).to_owned(),
            Piece::Word(bytes) => word(bytes),
        };
        let wide = width(&text);
        if column > 0 && column + 1 + wide > room {
            out.push_str(CONTINUED);
            column = 2;
        } else if column > 0 {
            out.push(' ');
            column += 1;
        }
        match piece {
            Piece::Word(bytes) if column + wide > room => column = cut(&mut out, bytes, column),
            _ => {
                out.push_str(&text);
                column += wide;
            }
        }
    }
    out
}

/// One word over several lines: quoted parts without anything between them are one word. Gives the column behind it.
fn cut(out: &mut String, bytes: &[u8], mut column: usize) -> usize {
    let mut part = Vec::new();
    let mut flush = |part: &mut Vec<u8>, next: &[u8]| {
        let longer = [part.as_slice(), next].concat();
        if !part.is_empty() && column + width(&word(&longer)) > COLUMNS - 2 {
            out.push_str(&word(part));
            out.push_str("\\\n");
            column = 0;
            part.clear();
        }
        part.extend_from_slice(next);
    };
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            flush(&mut part, c.encode_utf8(&mut [0; 4]).as_bytes());
        }
        for byte in chunk.invalid() {
            flush(&mut part, &[*byte]);
        }
    }
    let last = word(&part);
    out.push_str(&last);
    column + width(&last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_word_that_is_cut_is_the_same_word() {
        for text in
            ["a".repeat(500), "it's a\n\\ \u{fc}\u{4e16} $(id) ".repeat(30), "x y".to_owned()]
        {
            for before in ["printf %s", "x=1; printf '%s'"] {
                let command = wrapped(&[Piece::Ours(before), Piece::word(&text)]);
                assert!(command.lines().all(|line| width(line) <= COLUMNS), "{command}");
                let out = Command::new("bash").args(["-c", &command]).output().unwrap();
                assert_eq!(String::from_utf8(out.stdout).unwrap(), text, "{command}");
            }
        }
    }

    #[test]
    fn lines_are_filled_and_foreign_text_is_cut_off() {
        let text = filled(&"word ".repeat(40));
        assert!(
            text.lines().all(|line| width(line) <= COLUMNS && line.starts_with("word")),
            "{text}"
        );
        assert_eq!(shown("dev"), "`dev`");
        for long in ["\u{4e16}".repeat(90), "`\n".repeat(90)] {
            let cut = shown(long);
            assert!(width(&cut) <= MAX_SHOWN + 1 && cut.ends_with("`\u{2026}"), "{cut}");
        }
    }
}
