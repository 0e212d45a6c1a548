//! Any text as a manifest that was taken along: it is read to its end or refused by its line, in the order of an archive.
#![no_main]

use codchifs::verify::{List, Reference};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let whole = [b"#mtree v2.0\n", bytes].concat();
    for text in [bytes, &whole] {
        let mut list = List::new(text);
        let mut members = 0;
        while let Ok(Some(entry)) = list.next() {
            assert!(!entry.path.is_empty());
            assert!(list.digest().is_ok());
            members += 1;
        }
        assert!(members <= text.len());
    }
});
