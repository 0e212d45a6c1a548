//! backup.yaml, as LXD and Incus leave it beside a machine.
//!
//! Any text is read or refused, in a time and space that follow its length; JSON, which is YAML, says the same as over the
//! API.
#![no_main]

use codchifs::backend::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let read = fuzzing::backup(text);
    let Ok(value) = serde_json::from_str::<serde_json::Value>(text) else { return };
    let Some(object) = value.get("container").or_else(|| value.get("instance")) else { return };
    // Numbers differ beyond 64 bits, and what is no text is nobody's name in either.
    if let (Ok(from_yaml), Ok(from_json)) = (read, fuzzing::record(object)) {
        assert_eq!(from_yaml, from_json);
    }
});
