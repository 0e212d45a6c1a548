//! Any text in JSON: jq reads back the value, and the text shows nothing that is hidden.
#![no_main]

mod judge;

use codchifs::quote;
use judge::Reader;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use std::sync::{LazyLock, Mutex};

static JQ: LazyLock<Mutex<Reader>> =
    LazyLock::new(|| Mutex::new(Reader::new("jq", &["-c", "--unbuffered", "."])));

fuzz_target!(|text: &str| {
    let value = json!({ text: [text, 1], "a": { "b": text } });
    let mut jq = JQ.lock().unwrap();
    for written in [value.to_string(), format!("{value:#}")] {
        let quoted = quote::json(&written);
        assert!(!quoted.chars().any(|c| c != '\n' && quote::is_hidden(c)), "{quoted}");
        jq.tell(&format!("{quoted}\n"));
        assert_eq!(serde_json::from_slice::<Value>(&jq.answer(b'\n')).unwrap(), value);
    }
});
