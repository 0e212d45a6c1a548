//! Foreign text in a page that people paste from: names may hold anything a file name can.

use std::fmt::Write as _;

/// One word of a shell: plain where nothing in it needs a quote, else in quotes. What a terminal or an editor would not
/// show as it is, is written as bash, zsh and fish's `$'...'` have it.
pub(super) fn word(bytes: &[u8]) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"_-./:@+=,".contains(b);
    if !bytes.is_empty() && bytes.iter().all(plain) && bytes.first() != Some(&b'=') {
        return str::from_utf8(bytes).unwrap_or_default().to_owned();
    }
    match str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(is_hidden) => format!("'{}'", text.replace('\'', r"'\''")),
        _ => {
            let mut out = String::from("$'");
            escape(bytes, &mut out, |c| matches!(c, '\'' | '\\'));
            out.push('\'');
            out
        }
    }
}

/// Words of a shell.
pub(super) fn words<T: AsRef<[u8]>>(words: impl IntoIterator<Item = T>) -> String {
    words.into_iter().map(|w| word(w.as_ref())).collect::<Vec<_>>().join(" ")
}

/// A piece of code in a line of Markdown.
pub(super) fn code(bytes: impl AsRef<[u8]>) -> String {
    let mut text = String::new();
    escape(bytes.as_ref(), &mut text, |c| c == '\\');
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    let room =
        if text.starts_with('`') || text.ends_with('`') || text.is_empty() { " " } else { "" };
    format!("{fence}{room}{text}{room}{fence}")
}

/// Bytes as text in which all that cannot be seen, and what `also` names, is `\xNN`.
fn escape(bytes: &[u8], out: &mut String, also: impl Fn(char) -> bool) {
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if is_hidden(c) || also(c) {
                for b in c.encode_utf8(&mut [0; 4]).bytes() {
                    let _ = write!(out, "\\x{b:02x}");
                }
            } else {
                out.push(c);
            }
        }
        for b in chunk.invalid() {
            let _ = write!(out, "\\x{b:02x}");
        }
    }
}

/// Control characters, and those that change how others are shown: a page must not read otherwise than it is pasted.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
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
            (b"$(id) `id` !! ~ #", "'$(id) `id` !! ~ #'"),
            (b"~", "'~'"),
            (b"=ls", "'=ls'"),
            (b"a\nb'\\", r"$'a\x0ab\x27\x5c'"),
            (b"\xff", r"$'\xff'"),
            ("\u{fc}".as_bytes(), "'\u{fc}'"),
            ("a\u{202e}b".as_bytes(), r"$'a\xe2\x80\xaeb'"),
        ] {
            assert_eq!(word(bytes), expected);
        }
        assert_eq!(words(["rm", "-rf x"]), "rm '-rf x'");
    }

    #[test]
    fn code_ends_where_it_should() {
        for (text, expected) in [
            ("dev", "`dev`"),
            ("a`b", "``a`b``"),
            ("``", "``` `` ```"),
            ("", "`  `"),
            ("a\n# b", r"`a\x0a# b`"),
            ("\\x", r"`\x5cx`"),
        ] {
            assert_eq!(code(text), expected);
        }
    }
}
