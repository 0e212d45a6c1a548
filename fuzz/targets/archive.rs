//! Any bytes, and bytes with whole headers among them, as a copy that is verified.
//!
//! It ends: each item takes bytes, what is said to be damaged or cut off is within what was read, and nothing that a header
//! promises is held before it is there.
#![no_main]

use codchifs::verify::{Archive, Item};
use libfuzzer_sys::fuzz_target;

/// Gives every block that calls itself ustar the checksum that it has.
fn seal(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(512) {
        if &block[257..262] != b"ustar" {
            continue;
        }
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

fuzz_target!(|bytes: &[u8]| {
    // Holes are hashed as zeros, however many they are: the time for that is not the parser's.
    if bytes.windows(8).any(|part| part == b"realsize") {
        return;
    }
    let mut sealed = bytes.to_vec();
    seal(&mut sealed);
    for bytes in [bytes, &sealed] {
        let mut archive = Archive::new(bytes, |_| false);
        let mut items = 0;
        loop {
            match archive.item().unwrap() {
                None => break,
                Some(Item::CutOff { at }) => assert!(at <= bytes.len() as u64),
                Some(Item::Damaged { len }) => assert!(len <= bytes.len() as u64),
                Some(Item::Member(entry, digest)) => {
                    assert!(digest.is_none() || entry.size <= bytes.len() as u64);
                }
                Some(Item::Foreign(what)) => assert!(!what.is_empty()),
                Some(Item::Wanted(..)) => unreachable!("only what reads ahead asks"),
            }
            items += 1;
            assert!(items <= bytes.len() / 512 + 2, "{items} items of {} bytes", bytes.len());
        }
        assert!(archive.offset() <= bytes.len() as u64);
    }
});
