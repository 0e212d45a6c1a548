//! A machine's config.json and flake.nix: `JSON NUL NIX`.
//!
//! Whatever they hold, what is rendered of them is bounded; Codchi's URL can be read back from the flake.nix that is
//! rendered; no value of a secret and no login is in `Debug`, an error or a redacted export.
#![no_main]

use codchifs::codchi::{MachineConfig, MachineName, Secret, driver, env, flake};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use std::path::Path;

/// In the place of every secret.
const MARK: &str = "hunter2-hunter2";

/// Puts it into every text that is no name.
fn plant(value: &mut Value) {
    match value {
        Value::String(text) => *text = text.replace("SECRET", MARK),
        Value::Object(fields) => fields.values_mut().for_each(plant),
        Value::Array(items) => items.iter_mut().for_each(plant),
        _ => {}
    }
}

fuzz_target!(|text: &str| {
    if text.contains(MARK) {
        return;
    }
    let (json, nix) = text.split_once('\0').unwrap_or((text, ""));
    let name = MachineName::new("m").unwrap();
    // Whatever is refused, and why: no value is told.
    if let Ok(mut value) = serde_json::from_str::<Value>(json) {
        plant(&mut value);
        if let Err(why) = MachineConfig::parse(&name, Path::new("/c"), &value.to_string()) {
            assert!(!why.to_string().contains(MARK), "{why}");
        }
    }
    let Ok(mut config) = MachineConfig::parse(&name, Path::new("/c"), json) else { return };
    config.flake_nix = Some(Secret::new(nix));
    for value in config.secrets.values_mut() {
        *value = Secret::new(MARK);
    }
    assert!(!format!("{config:?}").contains(MARK));

    let rendered = flake::render(&config, flake::System::X86_64);
    assert!(rendered.len() <= 16 * text.len() + 4096, "{} bytes", rendered.len());
    assert_eq!(driver::url(&rendered), Some(config.driver_url()), "{rendered}");
    let sourced = env::render(&config);
    assert!(sourced.len() <= 64 * text.len() + 4096 + config.secrets.len() * 1024);
    // Names that no shell takes are a comment, and two are Codchi's own.
    let shell = |name: &&String| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let own = |name: &&String| !["DEBUG", "MACHINE_NAME"].contains(&name.as_str());
    let exported = config.secrets.keys().filter(shell).filter(own).count();
    assert_eq!(sourced.matches(MARK).count(), exported);

    let redacted = config.redacted();
    assert_eq!(redacted, redacted.redacted());
    assert!(!redacted.has_token(), "{:?}", redacted.inputs_with_token());
    assert!(!env::render(&redacted).contains(MARK));
    assert!(flake::render(&redacted, flake::System::Aarch64).len() <= rendered.len() + 8);
});
