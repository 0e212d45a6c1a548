//! Any bytes as a word to paste, as a word of a file, and as what bash completes: every shell takes each for one word with these
//! bytes.
#![no_main]

mod judge;

use codchifs::{cli, quote};
use judge::Reader;
use libfuzzer_sys::fuzz_target;
use std::sync::{LazyLock, Mutex};

/// fish reads all of its input before it does anything: tests/quoting.rs asks it.
static SHELLS: LazyLock<Mutex<Vec<Reader>>> = LazyLock::new(|| {
    let all: [(&str, &[&str]); 4] =
        [("bash", &["--norc"]), ("zsh", &["-f"]), ("dash", &[]), ("busybox", &["sh"])];
    Mutex::new(all.map(|(shell, args)| Reader::new(shell, args)).into())
});

fuzz_target!(|bytes: &[u8]| {
    if bytes.contains(&0) {
        return;
    }
    let mut shells = SHELLS.lock().unwrap();
    let word = quote::word(bytes);
    assert!(!word.chars().any(quote::is_hidden), "{word}");
    for shell in shells.iter_mut().take(2) {
        shell.assert_word(&word, bytes);
    }
    if let Ok(text) = str::from_utf8(bytes) {
        for shell in shells.iter_mut() {
            shell.assert_word(&quote::literal(text), bytes);
        }
    }
    // HOME is `~`. A word that was begun in quotes takes no quotes of ours.
    let begun = bytes.get(..bytes.len() / 2).unwrap_or_default();
    for begun in [b"".as_slice(), begun] {
        if let Some(text) = cli::fuzzing::completed(bytes, begun) {
            assert!(!text.contains('\n'));
            shells[0].assert_word(&text, bytes);
        }
    }
});
