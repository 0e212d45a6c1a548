//! Any bytes on a terminal: what is printed shows, nothing else of the terminal changes, and a name can be read back.
#![no_main]

use codchifs::quote;
use libfuzzer_sys::fuzz_target;
use std::num::NonZeroU16;

const ROWS: NonZeroU16 = NonZeroU16::new(3).unwrap();
const COLUMNS: NonZeroU16 = NonZeroU16::new(10_000).unwrap();

/// What the first line shows, where the cursor is in it, and all else.
fn screen_after(bytes: &[u8]) -> (String, u16, String) {
    let mut terminal = vt100::Parser::new(ROWS, COLUMNS, 0);
    terminal.process(bytes);
    let screen = terminal.screen();
    let mut rows = screen.rows(0, COLUMNS.get());
    let (first, (row, column)) = (rows.next().unwrap(), screen.cursor_position());
    let rest = format!(
        "{}{row}{:?}{}{}{}{}",
        rows.collect::<String>(),
        screen.attributes_formatted(),
        screen.hide_cursor(),
        screen.alternate_screen(),
        screen.application_keypad(),
        screen.bracketed_paste()
    );
    (first, column, rest)
}

fn unquoted(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text);
    while let Some((before, after)) = rest.split_once("\\x") {
        bytes.extend_from_slice(before.as_bytes());
        let (digits, after) = after.split_at(2);
        bytes.push(u8::from_str_radix(digits, 16).unwrap());
        rest = after;
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

fuzz_target!(|bytes: &[u8]| {
    let bytes = bytes.get(..500).unwrap_or(bytes);
    let (_, _, untouched) = screen_after(b"");
    let name = quote::name(bytes).to_string();
    assert_eq!(unquoted(&name), bytes);
    let quotation = str::from_utf8(bytes).map(quote::quotation).unwrap_or_default();
    assert!(quotation.matches('"').count() <= 2);
    let lines = str::from_utf8(bytes).map(quote::lines).unwrap_or_default();
    assert!(!lines.chars().any(|c| c != '\n' && quote::is_hidden(c)));
    let message = quote::message(bytes);
    let clipped = quote::clipped(&message, 7);
    assert!(quote::width(clipped) <= 7 && message.starts_with(clipped));
    for text in [&name, &message, &quotation] {
        let (shown, column, rest) = screen_after(text.as_bytes());
        assert_eq!(rest, untouched, "{text}");
        assert_eq!(shown.trim_end(), text.trim_end());
        assert_eq!(usize::from(column), quote::width(text), "{text}");
    }
});
