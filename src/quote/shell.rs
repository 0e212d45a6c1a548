//! Words of a shell.

use super::is_hidden;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Whether no shell sees more in these bytes than one word.
pub fn is_plain_word(bytes: &[u8]) -> bool {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"_-./:@+=,".contains(b);
    // zsh replaces `=NAME` by the path of a program.
    !bytes.is_empty() && bytes.iter().all(plain) && bytes.first() != Some(&b'=')
}

/// One word of a command that a person pastes into bash or zsh: as it is where nothing in it needs a quote. What a terminal
/// or an editor would not show is written as `$'...'` has it (POSIX.1-2024, "Dollar-Single-Quotes"), in octal, since of
/// `\xNN` some shells read more than two digits.
pub fn word(bytes: &[u8]) -> String {
    if let Some(plain) = str::from_utf8(bytes).ok().filter(|_| is_plain_word(bytes)) {
        return plain.to_owned();
    }
    match str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(is_hidden) => literal(text),
        _ => {
            let mut out = String::from("$'");
            for chunk in bytes.utf8_chunks() {
                for c in chunk.valid().chars() {
                    match is_hidden(c) || matches!(c, '\'' | '\\') {
                        true => octal(&mut out, c.to_string().as_bytes()),
                        false => out.push(c),
                    }
                }
                octal(&mut out, chunk.invalid());
            }
            out.push('\'');
            out
        }
    }
}

fn octal(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // A String takes all that is written to it.
        let _ = write!(out, "\\{byte:03o}");
    }
}

/// The same for a path.
pub fn path_word(path: &Path) -> String {
    word(path.as_os_str().as_bytes())
}

/// Words of a shell, with a space between them.
pub fn words<T: AsRef<[u8]>>(words: impl IntoIterator<Item = T>) -> String {
    words.into_iter().map(|w| word(w.as_ref())).collect::<Vec<_>>().join(" ")
}

/// One word of a file that any shell reads: the text as it is, in single quotes. A backslash goes outside of them, as fish
/// reads escapes inside; NUL is dropped, as no variable and no argument can hold one.
pub fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('\'');
    for c in text.chars() {
        match c {
            '\'' => out.push_str(r"'\''"),
            '\\' => out.push_str(r"'\\'"),
            '\0' => {}
            c => out.push(c),
        }
    }
    out.push('\'');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stays_one() {
        for (bytes, expected) in [
            (b"dev".as_slice(), "dev"),
            (b"/mnt/codchi/dev", "/mnt/codchi/dev"),
            (b"", "''"),
            (b"a b", "'a b'"),
            (b"it's", r"'it'\''s'"),
            (b"a\\b", r"'a'\\'b'"),
            (b"$(id) `id` !! ~ #", "'$(id) `id` !! ~ #'"),
            (b"~", "'~'"),
            (b"=ls", "'=ls'"),
            (b"a\n1b'\\", r"$'a\0121b\047\134'"),
            (b"\xff", r"$'\377'"),
            ("\u{fc}".as_bytes(), "'\u{fc}'"),
            ("a\u{202e}b".as_bytes(), r"$'a\342\200\256b'"),
        ] {
            assert_eq!(word(bytes), expected);
        }
        assert_eq!(words(["rm", "-rf x"]), "rm '-rf x'");
        assert_eq!(literal("a\n\0b"), "'a\nb'");
    }
}
