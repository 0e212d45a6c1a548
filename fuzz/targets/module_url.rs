//! Codchi's module URLs: any text, and such as have a credential in a known place.
//!
//! No credential is in `Debug`, in an error, or in a flake.nix or flake.lock that is made without it.
#![no_main]

use arbitrary::Arbitrary;
use codchifs::codchi::{MachineConfig, MachineName, ModuleUrl, flake, lock};
use libfuzzer_sys::fuzz_target;
use std::path::Path;

const MARK: &str = "hunter2-hunter2";

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    Text(&'a str),
    Parts(Parts<'a>),
}

#[derive(Arbitrary, Debug)]
struct Parts<'a> {
    scheme: u8,
    login: Option<&'a str>,
    place: &'a str,
    before: &'a str,
    after: &'a str,
    attribute: &'a str,
    odd_scheme: &'a str,
}

fn config(url: &str) -> Option<MachineConfig> {
    let name = MachineName::new("m").unwrap();
    let json = serde_json::json!({ "modules": { "x": url } }).to_string();
    match MachineConfig::parse(&name, Path::new("/c"), &json) {
        Ok(config) => Some(config),
        Err(why) => {
            assert!(!why.to_string().contains(MARK), "{why}");
            None
        }
    }
}

fn check(config: &MachineConfig, plain: usize) {
    assert!(format!("{config:?}").matches(MARK).count() <= plain);
    let redacted = config.redacted();
    assert!(!redacted.has_token());
    let rendered = flake::render(&redacted, flake::System::X86_64);
    assert!(rendered.matches(MARK).count() <= plain, "{rendered}");
    assert!(!lock::rewrite(&redacted).is_ok_and(|lock| lock.is_some()));
}

fuzz_target!(|input: Input<'_>| match input {
    Input::Text(text) => {
        if let Ok(url) = text.parse::<ModuleUrl>() {
            assert!(!url.attribute_path().is_empty());
            assert!(url.local_path().is_none_or(|path| !path.split('/').any(|part| part == "..")));
            assert_eq!(url.without_token(), url.without_token().without_token());
            assert!(!url.without_token().has_token());
            if let Some(config) = config(text) {
                check(&config, usize::MAX);
            }
        }
    }
    Input::Parts(parts) => {
        let all = [parts.place, parts.before, parts.after, parts.attribute, parts.odd_scheme];
        if all.iter().chain(&parts.login).any(|text| text.contains(MARK)) {
            return;
        }
        let schemes = ["file", "github", "gitlab", "sourcehut", "http", "https", "ssh"];
        let scheme = schemes.get(usize::from(parts.scheme)).unwrap_or(&parts.odd_scheme);
        // What stands before these would make something else of it.
        let clean = |text: &str, ends: &[char]| text.replace(ends, "");
        let place = clean(parts.place, &['?', '#', '@']);
        let login = match (*scheme, parts.login) {
            // An ssh user's name alone is no credential.
            ("ssh", Some(login)) => format!("{}:{MARK}@", clean(login, &['?', '#', '@', '/'])),
            ("http" | "https", Some(login)) => {
                format!("{}{MARK}@", clean(login, &['?', '#', '@', '/']))
            }
            _ => String::new(),
        };
        let (before, after) = (clean(parts.before, &['#', '&']), clean(parts.after, &['#']));
        let text = format!(
            "{}://{login}{place}?{before}&token={MARK}&{after}#{}",
            clean(scheme, &[':', '?', '#']),
            parts.attribute
        );
        // Of several the last one counts, and the others are nothing.
        if let Some(config) = config(&text) {
            check(&config, 0);
        }
    }
});
