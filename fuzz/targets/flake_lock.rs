//! A machine's flake.lock beside its config.json: `JSON NUL LOCK`.
//!
//! What is written anew is a lock, stays as it is when it is written once more, and has no login and no token where it is
//! to have none.
#![no_main]

use codchifs::codchi::{MachineConfig, MachineName, Secret, lock};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};
use std::path::Path;

const MARK: &str = "hunter2-hunter2";

/// Puts credentials where nix and people put them.
fn plant(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields.iter_mut() {
                match field {
                    Value::String(text) if key == "url" => {
                        let rest = text.split_once("://").map_or("h/x", |(_, rest)| rest);
                        let (place, query) = rest.split_once('?').unwrap_or((rest, "ref=main"));
                        let (_, place) = place.rsplit_once('@').unwrap_or(("", place));
                        *text = format!("git+https://user:{MARK}@{place}?{query}&token={MARK}");
                    }
                    // Names of inputs, and of nodes.
                    _ if key == "inputs" => {}
                    other => plant(other),
                }
            }
            if fields.contains_key("locked") || fields.contains_key("type") {
                for key in ["token", "password", "access-token"] {
                    fields.insert(key.into(), MARK.into());
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(plant),
        _ => {}
    }
}

fuzz_target!(|text: &str| {
    let Some((json, text)) = text.split_once('\0').filter(|_| !text.contains(MARK)) else { return };
    let name = MachineName::new("m").unwrap();
    let Ok(mut config) = MachineConfig::parse(&name, Path::new("/c"), json) else { return };
    config.flake_lock = Some(Secret::new(text));
    let Ok(Some(once)) = lock::rewrite(&config) else { return };
    let parsed: Value = serde_json::from_str(&once).unwrap();
    assert!(parsed["nodes"][parsed["root"].as_str().unwrap()].is_object(), "{once}");
    assert!(once.ends_with("}\n"));
    config.flake_lock = Some(Secret::new(once.clone()));
    assert_eq!(lock::rewrite(&config).unwrap().unwrap(), once);

    let Ok(Value::Object(mut lock)) = serde_json::from_str(text) else { return };
    lock.get_mut("nodes")
        .and_then(Value::as_object_mut)
        .unwrap_or(&mut Map::new())
        .values_mut()
        .for_each(plant);
    config.flake_lock = Some(Secret::new(Value::Object(lock).to_string()));
    let Ok(Some(redacted)) = lock::rewrite(&config.redacted()) else { return };
    assert!(!redacted.contains(MARK), "{redacted}");
});
