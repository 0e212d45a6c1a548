//! What LXD, Incus, or whoever listens in their place answers: two bytes of status, then the body.
//!
//! It is taken or refused; the reason is short and safe on a terminal; each record in it is used or refused.
#![no_main]

use codchifs::backend::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((status, body)) = data.split_at_checked(2) else { return };
    let status = u16::from_le_bytes([status[0], status[1]]) % 1000;
    match fuzzing::answer(status, body) {
        Ok(metadata) => {
            for record in metadata.as_array().into_iter().flatten() {
                let _ = fuzzing::record(record);
            }
        }
        Err(why) => {
            // An escaped character is up to ten.
            assert!(why.chars().count() < 300 * 10 + 300, "{why}");
            assert!(!why.chars().any(char::is_control), "{why:?}");
        }
    }
});
