//! backup.yaml, as LXD and Incus leave it beside a machine: a line with the names of the pool and the directory that it lies
//! in, divided by a slash, then its text.
//!
//! Any text is read or refused, in a time and space that follow its length; whatever it says, the instance is the one that
//! the directory is of; JSON, which is YAML, says the same as over the API.
#![no_main]

use codchifs::backend::fuzzing;
use libfuzzer_sys::fuzz_target;
use std::ffi::OsStr;

fuzz_target!(|input: &str| {
    let (line, text) = input.split_once('\n').unwrap_or(("default/codchi-a", input));
    let (pool, directory) = line.split_once('/').unwrap_or(("default", line));
    let read = fuzzing::backup(text, OsStr::new(pool), OsStr::new(directory));
    let Ok(value) = serde_json::from_str::<serde_json::Value>(text) else { return };
    let object = ["container", "instance"].map(|key| value.get(key).filter(|o| !o.is_null()));
    let [container, instance] = object;
    let Some(object) = container.or(instance) else { return };
    // Numbers differ beyond 64 bits, and what is no text is nobody's name in either.
    if let (Ok(from_yaml), Ok(from_json)) = (read, fuzzing::record(object)) {
        assert_eq!(from_yaml, from_json);
    }
});
