//! Text that people read: on a terminal, in a log, in a page of Markdown.

use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// Whether a character does not show, or changes how others show: control characters (ECMA-48, both sets), what turns the
/// direction of writing (UAX 9), and what has no width of its own and no ink (UAX 44, Default_Ignorable_Code_Point; the
/// separators of lines and paragraphs; interlinear annotations).
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// A name that is shown: see [`name`].
#[derive(Clone, Copy, Debug)]
pub struct Name<'a>(&'a [u8]);

/// A name as one line that is safe on a terminal and tells it from every other name: hidden characters, bytes that are not
/// UTF-8, `\`, and a `;` that a blank may follow are `\xNN` for each byte. By `; ` our messages begin to say what to do: no name
/// is taken for that.
pub fn name<B: AsRef<[u8]> + ?Sized>(bytes: &B) -> Name<'_> {
    Name(bytes.as_ref())
}

/// The same for a path.
pub fn path<P: AsRef<Path> + ?Sized>(path: &P) -> Name<'_> {
    Name(path.as_ref().as_os_str().as_bytes())
}

/// Foreign text inside of a sentence: a name in quotation marks, of at most 64 characters, so that it is clear where it ends.
pub fn quotation(text: &str) -> String {
    const MAX: usize = 64;
    let short = text.char_indices().nth(MAX).and_then(|(at, _)| text.get(..at));
    let shown = name(short.unwrap_or(text)).to_string().replace('"', "\\x22");
    format!("\"{shown}{}\"", if short.is_some() { "…" } else { "" })
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        put(f, self.0, |c, rest| {
            c == '\\' || c == ';' && (rest.is_empty() || rest.starts_with(' '))
        })
    }
}

/// A text that names may be quoted in already, as one line that is safe on a terminal.
pub fn message<B: AsRef<[u8]> + ?Sized>(text: &B) -> String {
    let mut out = String::with_capacity(text.as_ref().len());
    // A String takes all that is written to it.
    let _ = put(&mut out, text.as_ref(), |_, _| false);
    out
}

/// The same for a text of ours that has several lines.
pub fn lines(text: &str) -> String {
    text.split('\n').map(message).collect::<Vec<_>>().join("\n")
}

/// Writes bytes as text in which all that is hidden, and what `also` names by itself and by what follows it, is `\xNN`.
fn put(out: &mut impl fmt::Write, bytes: &[u8], also: impl Fn(char, &str) -> bool) -> fmt::Result {
    for chunk in bytes.utf8_chunks() {
        let mut rest = chunk.valid();
        let mut chars = rest.chars();
        while let Some(c) = chars.next() {
            if !is_hidden(c) && !also(c, chars.as_str()) {
                continue;
            }
            let (before, after) =
                (rest.len() - chars.as_str().len() - c.len_utf8(), chars.as_str());
            out.write_str(rest.get(..before).unwrap_or_default())?;
            for byte in c.to_string().bytes() {
                write!(out, "\\x{byte:02x}")?;
            }
            rest = after;
        }
        out.write_str(rest)?;
        for byte in chunk.invalid() {
            write!(out, "\\x{byte:02x}")?;
        }
    }
    Ok(())
}

/// Columns that a line takes on a terminal.
pub fn width(text: &str) -> usize {
    text.width()
}

/// A line with spaces after it up to `columns`.
pub fn padded(text: &str, columns: usize) -> String {
    format!("{text}{}", " ".repeat(columns.saturating_sub(width(text))))
}

/// What of a line fits into `columns`.
pub fn clipped(text: &str, columns: usize) -> &str {
    let mut taken = 0;
    let end = text.char_indices().find(|(_, c)| {
        taken += c.width().unwrap_or(0);
        taken > columns
    });
    end.and_then(|(at, _)| text.get(..at)).unwrap_or(text)
}

/// A piece of code in a line of Markdown (CommonMark 0.31, "Code spans").
pub fn code(bytes: impl AsRef<[u8]>) -> String {
    let text = name(&bytes).to_string();
    let fence = "`".repeat(longest_run(&text) + 1);
    // One space is taken away on both sides, unless there is nothing else.
    let blank = text.bytes().all(|byte| byte == b' ');
    let spaces = !blank && text.starts_with(' ') && text.ends_with(' ');
    let ticks = text.starts_with('`') || text.ends_with('`');
    let room = if spaces || ticks || text.is_empty() { " " } else { "" };
    format!("{fence}{room}{text}{room}{fence}")
}

/// Lines as a block of code of Markdown, in the language `info`.
pub fn fenced(info: &str, text: &str) -> String {
    let fence = "`".repeat(longest_run(text).max(2) + 1);
    format!("{fence}{info}\n{}\n{fence}", text.trim_end())
}

fn longest_run(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_visible_line_and_tells_names_apart() {
        for (bytes, text) in [
            (b"/a b".as_slice(), "/a b"),
            (b"/\xff", "/\\xff"),
            (b"/\\xff", "/\\x5cxff"),
            (b"/a\nb\x1b[2J\x7f", "/a\\x0ab\\x1b[2J\\x7f"),
            ("/\u{fc}\u{4e16}".as_bytes(), "/\u{fc}\u{4e16}"),
            ("\u{9b}31m".as_bytes(), "\\xc2\\x9b31m"),
            (
                "a\u{202e}b\u{200b}\u{2066}".as_bytes(),
                "a\\xe2\\x80\\xaeb\\xe2\\x80\\x8b\\xe2\\x81\\xa6",
            ),
            (b"a\xe2\x80", "a\\xe2\\x80"),
            (b"/a; b;c;", "/a\\x3b b;c\\x3b"),
        ] {
            assert_eq!(name(bytes).to_string(), text);
        }
        assert_eq!(message("\\x1b is \x1b\nb"), "\\x1b is \\x1b\\x0ab");
        assert_eq!(message(b"a\xff\n"), "a\\xff\\x0a");
        assert_eq!(lines("a\x1b\nb"), "a\\x1b\nb");
        assert_eq!(quotation("a\"b\\\n"), r#""a\x22b\x5c\x0a""#);
        assert_eq!(quotation(&"\u{fc}".repeat(65)), format!("\"{}…\"", "\u{fc}".repeat(64)));
        assert_eq!(quotation(&"a".repeat(64)), format!("\"{}\"", "a".repeat(64)));
    }

    #[test]
    fn columns_are_those_of_a_terminal() {
        assert_eq!(width("a\u{4e16}e\u{301}"), 4);
        assert_eq!(padded("\u{4e16}", 4), "\u{4e16}  ");
        assert_eq!((clipped("a\u{4e16}b", 2), clipped("a\u{4e16}b", 3)), ("a", "a\u{4e16}"));
        assert_eq!((clipped("ab", 2), clipped("", 0)), ("ab", ""));
    }

    #[test]
    fn code_ends_where_it_should() {
        for (text, expected) in [
            ("dev", "`dev`"),
            ("a`b", "``a`b``"),
            ("``", "``` `` ```"),
            ("", "`  `"),
            (" a ", "`  a  `"),
            ("  ", "`  `"),
            ("a\n# b", r"`a\x0a# b`"),
            ("\\x", r"`\x5cx`"),
        ] {
            assert_eq!(code(text), expected);
        }
        assert_eq!(fenced("sh", "ls\n"), "```sh\nls\n```");
        assert_eq!(fenced("", "a\n````\nb"), "`````\na\n````\nb\n`````");
    }
}
