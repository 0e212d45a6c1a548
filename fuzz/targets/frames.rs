//! What the host and the server of a mount tell each other, from a peer that says anything and stops anywhere: the kind of
//! message, where it stops, and the bytes.
#![no_main]

use codchifs::opener::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((head, bytes)) = data.split_at_checked(2) else { return };
    let stop = usize::from(head[1]).min(bytes.len());
    let (first, rest) = bytes.split_at(stop);
    fuzzing::frames(head[0], [first, rest]);
});
