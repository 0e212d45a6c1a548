//! Text that programs read: JSON, mtree(5), checksums, tables of mounts.

use super::is_hidden;
use std::fmt::Write as _;

/// JSON, as a serializer wrote it, in which every hidden character is written as `\u` with its number: the same value, and
/// nothing that a terminal takes for a command.
pub fn json(text: &str) -> String {
    // Serializers escape control characters below that in strings; outside of them there are line breaks.
    let hidden = |c: char| c >= '\x7f' && is_hidden(c);
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, from)) = rest.find(hidden).and_then(|at| rest.split_at_checked(at)) {
        out.push_str(before);
        let mut chars = from.chars();
        for unit in chars.next().into_iter().flat_map(|c| c.encode_utf16(&mut [0; 2]).to_vec()) {
            // A String takes all that is written to it.
            let _ = write!(out, "\\u{unit:04x}");
        }
        rest = chars.as_str();
    }
    out.push_str(rest);
    out
}

/// Bytes as mtree(5) and vis(3) have them: what is no plain character, or one of a pattern, as three octal digits.
pub fn vis(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        if byte.is_ascii_graphic() && !br"\#*?[]=".contains(byte) {
            text.push(char::from(*byte));
        } else {
            let _ = write!(text, "\\{byte:03o}");
        }
    }
    text
}

/// The bytes that `vis` has written; `None` if it has not.
pub fn unvis(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        if *byte != b'\\' {
            bytes.push(*byte);
            continue;
        }
        let (value, tail) = octal(tail)?;
        bytes.push(value);
        rest = tail;
    }
    Some(bytes)
}

/// Turns `\040` and its like back into bytes; a `\` that begins no such escape stays.
pub fn unescape_octal(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let escape = if *first == b'\\' { octal(tail) } else { None };
        let (byte, tail) = escape.unwrap_or((*first, tail));
        plain.push(byte);
        rest = tail;
    }
    plain
}

/// Three octal digits, and what is after them.
fn octal(text: &[u8]) -> Option<(u8, &[u8])> {
    match text {
        [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] => {
            Some((((a & 3) << 6) | ((b & 7) << 3) | (c & 7), tail))
        }
        _ => None,
    }
}

/// A name as coreutils write it in a list of checksums, and whether something in it had to be escaped: the line then begins
/// with a `\`.
pub fn sum_name(name: &[u8]) -> (Vec<u8>, bool) {
    let mut out = Vec::with_capacity(name.len());
    for byte in name {
        match byte {
            b'\\' => out.extend_from_slice(br"\\"),
            b'\n' => out.extend_from_slice(br"\n"),
            b'\r' => out.extend_from_slice(br"\r"),
            byte => out.push(*byte),
        }
    }
    let escaped = out.len() != name.len();
    (out, escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        let every: Vec<u8> = (1..=255).collect();
        assert_eq!(unvis(vis(&every).as_bytes()), Some(every));
        assert_eq!(vis(b"a b\n*\\\xff"), r"a\040b\012\052\134\377");
        for bad in [r"\", r"\1", r"\12x", r"\+12", r"\777"] {
            assert_eq!(unvis(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn only_whole_escapes_are_escapes() {
        for (text, plain) in [
            (r"/a\040b", b"/a b".as_slice()),
            (r"/\134040", br"/\040"),
            (r"/a\04", br"/a\04"),
            (r"\377\400", b"\xff\\400"),
            (r"/a\\", br"/a\\"),
        ] {
            assert_eq!(unescape_octal(text.as_bytes()), plain, "{text}");
        }
    }

    #[test]
    fn json_keeps_its_value_and_shows_nothing_hidden() {
        let value = serde_json::json!({"a\u{9b}\u{7f}": "\u{202e}\u{e0001}\n\u{1b}\u{fc}\u{1f600}", "b": [1]});
        for text in [value.to_string(), format!("{value:#}")] {
            let quoted = json(&text);
            assert_eq!(serde_json::from_str::<serde_json::Value>(&quoted).unwrap(), value);
            assert!(!quoted.chars().any(|c| c != '\n' && is_hidden(c)), "{quoted}");
        }
        assert!(json("\"\u{e0001}\"") == "\"\\udb40\\udc01\"");
    }
}
