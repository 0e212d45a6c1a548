//! Any text as a string of Nix, and as the name of an attribute: nix reads back the text, and evaluates nothing.
#![no_main]

mod judge;

use codchifs::quote;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fn judged(texts: &[Vec<u8>]) -> Result<(), String> {
    let (mut source, mut expected) = (String::from("["), Vec::new());
    for text in texts {
        let text = str::from_utf8(text).unwrap();
        let (string, name) = (quote::nix_string(text), quote::nix_attribute(text));
        source += &format!(" {string} (let s.{name} = 1; in builtins.attrNames s)\n");
        expected.extend([Value::from(text), Value::from(vec![text])]);
    }
    source += "]";
    judge::fed("nix-instantiate", &["--parse", "-"], source.as_bytes())?;
    let eval = ["--eval", "--strict", "--json", "--restrict-eval", "-"];
    let back = judge::fed("nix-instantiate", &eval, source.as_bytes())?;
    let back: Value = serde_json::from_slice(&back).map_err(|why| why.to_string())?;
    match back == Value::Array(expected) {
        true => Ok(()),
        false => Err("nix reads other texts".into()),
    }
}

fuzz_target!(|text: &str| {
    // Nix has no escape for NUL, and no caller has one.
    if !text.contains('\0') {
        judge::batched(text.as_bytes(), judged);
    }
});
