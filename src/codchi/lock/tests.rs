use super::*;
use crate::codchi::{MachineName, Secret};
use serde_json::json;
use std::path::Path;

const REV: &str = "0123456789abcdef0123456789abcdef01234567";

fn rewritten(modules: Value, lock: &str) -> Result<Option<String>, String> {
    let name = MachineName::new("web").unwrap();
    let text = json!({ "modules": modules }).to_string();
    let mut config = MachineConfig::parse(&name, Path::new("/c"), &text).unwrap();
    config.flake_lock = Some(Secret::new(lock));
    rewrite(&config).map_err(|fault| fault.to_string())
}

/// What becomes of one module's node, `null` where it is dropped.
fn node(url: &str, original: Value, locked: Value) -> Value {
    let lock = json!({ "version": 7, "root": "r", "nodes": {
        "r": { "inputs": { "m": "m_2" } }, "m_2": { "original": original, "locked": locked } } });
    let text = rewritten(json!({ "m": url }), &lock.to_string()).unwrap().unwrap();
    let lock: Value = serde_json::from_str(&text).unwrap();
    lock["nodes"].get("m_2").cloned().unwrap_or_default()
}

#[test]
fn local_modules_move() {
    let git = |url: &str| json!({ "type": "git", "url": url });
    let at = |url: &str, rev: &str| json!({ "type": "git", "url": url, "rev": rev });
    let old = "file:///data/machine/web/x";
    let new = "file:///home/codchi/x";
    let moved = json!({ "original": git(new), "locked": at(new, REV) });
    assert_eq!(node("file://x?#a", git(old), at(old, REV)), moved);
    assert_eq!(node("file://x?#a", git(old), git(old)), Value::Null, "no rev");
    assert_eq!(node("file://y?#a", git(old), at(old, REV)), Value::Null, "another path");
    assert_eq!(node("file://x?ref=b#a", git(old), at(old, REV)), Value::Null, "another branch");

    let pinned = format!("{old}?commit={REV}");
    let url = format!("file://x?commit={REV}#a");
    let moved = json!({ "original": at(new, REV), "locked": at(new, REV) });
    assert_eq!(node(&url, git(&pinned), at(&pinned, REV)), moved);
    let moved = json!({ "original": git(new), "locked": at(new, "other") });
    assert_eq!(node(&url, git(&pinned), at(&pinned, "other")), moved, "locked elsewhere");
}

#[test]
fn pins_become_revisions() {
    let original =
        json!({ "type": "github", "owner": "o", "repo": "r", "host": "h", "ref": "main" });
    let locked = json!({ "type": "github", "owner": "o", "repo": "r", "rev": REV });
    let found = node(&format!("github://h/o/r?commit={REV}&ref=main#a"), original.clone(), locked);
    let expected = json!({ "type": "github", "owner": "o", "repo": "r", "host": "h", "rev": REV });
    assert_eq!(found["original"], expected);
    let locked = json!({ "type": "github", "owner": "o", "repo": "r", "rev": "other" });
    let found = node(&format!("github://h/o/r?commit={REV}#a"), original.clone(), locked.clone());
    assert_eq!(found["original"], original);
    let found = node("github://h/o/other?#a", original.clone(), locked);
    assert_eq!(found["original"], original);
}

#[test]
fn drops_what_nothing_needs() {
    let lock = json!({ "version": 7, "root": "root", "nodes": {
        "root": { "inputs": { "codchi_driver": "d", "gone": "g", "m": "m", "f": ["gone"] } },
        "d": { "inputs": { "nixpkgs": "n", "via": ["gone", "x"], "own": ["codchi_driver", "y"] } },
        "m": { "original": { "type": "git" }, "inputs": { "loop": "m" } },
        "g": { "inputs": { "nixpkgs": "n", "only": "o" } }, "o": {}, "n": {}, "stray": {} } });
    let text = rewritten(json!({ "m": "https://h/r?#a" }), &lock.to_string()).unwrap().unwrap();
    let found: Value = serde_json::from_str(&text).unwrap();
    let names: Vec<&String> = found["nodes"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["d", "m", "n", "root"]);
    assert_eq!(found["nodes"]["root"]["inputs"], json!({ "codchi_driver": "d", "m": "m" }));
    let kept = json!({ "nixpkgs": "n", "own": ["codchi_driver", "y"] });
    assert_eq!(found["nodes"]["d"]["inputs"], kept);
}

#[test]
fn sorted_with_two_blanks_and_a_newline() {
    let lock = r#"{"version":7,"root":"r","nodes":{"r":{}}}"#;
    let expected = "{\n  \"nodes\": {\n    \"r\": {\n      \"inputs\": {}\n    }\n  },\n  \"root\": \
                    \"r\",\n  \"version\": 7\n}\n";
    assert_eq!(rewritten(json!({}), lock).unwrap().unwrap(), expected);
}

#[test]
fn refuses_what_is_no_lock() {
    let remedy = "; run `codchi rebuild web` to have it written anew";
    for (lock, fault) in [
        ("{}", "it has no root"),
        (r#"{"root": "r"}"#, "it has no nodes"),
        (r#"{"root": "r", "nodes": {}}"#, "its root is not among its nodes"),
        (
            r#"{"root": "r", "nodes": {"r": {"inputs": ["hunter2"]}}}"#,
            "the inputs of its root are no object",
        ),
    ] {
        let expected = format!("cannot rewrite /c/flake.lock of machine web: {fault}{remedy}");
        assert_eq!(rewritten(json!({}), lock).unwrap_err(), expected);
    }
    assert_eq!(
        rewritten(json!({}), "\"hunter2\"").unwrap_err(),
        "cannot parse /c/flake.lock of machine web: a value has the wrong type at line 1 column 9; \
         repair it or restore it from a backup"
    );
}

#[test]
fn redacted_of_all_that_smells_of_a_credential_and_of_nothing_else() {
    let secret = json!({
        "type": "tarball", "url": "https://u:hunter2@h/a.tgz?private_token=hunter2&rev=1&access_token=hunter2",
        "token": "hunter2", "access-token": "hunter2", "HTTP_Password": "hunter2", "netrc-file": "hunter2",
        "privateKey": "hunter2", "clientSecret": ["hunter2"], "headers": {"Authorization": "hunter2", "x": "y"},
        "host": "hunter2@h", "path": "/a:b?c", "publicKey": "p", "verifyCommit": true,
    });
    let plain = json!({
        "type": "tarball", "url": "https://h/a.tgz?rev=1", "headers": {"x": "y"}, "host": "h",
        "path": "/a:b?c", "publicKey": "p", "verifyCommit": true,
    });
    let inputs = json!({ "secrets": "token:a?b", "via": ["codchi_driver", "token"] });
    let lock = |side: &Value, rest: Value| {
        let mut lock = json!({ "version": 7, "root": "root", "nodes": {
            "root": { "inputs": { "codchi_driver": "d" } },
            "d": { "inputs": inputs, "locked": side, "original": side },
            "token:a?b": { "flake": false, "locked": side, "original": side } } });
        lock.as_object_mut().unwrap().extend(rest.as_object().cloned().unwrap());
        lock
    };
    let name = MachineName::new("web").unwrap();
    let mut config = MachineConfig::parse(&name, Path::new("/c"), "{}").unwrap();
    let text = lock(&secret, json!({ "netrc": "hunter2", "note": "hunter2" })).to_string();
    config.flake_lock = Some(Secret::new(text));
    let whole = rewrite(&config).unwrap().unwrap();
    assert_eq!(serde_json::from_str::<Value>(&whole).unwrap()["nodes"]["d"]["locked"], secret);
    let redacted = rewrite(&config.redacted()).unwrap().unwrap();
    assert!(!redacted.contains("hunter2"), "{redacted}");
    assert_eq!(serde_json::from_str::<Value>(&redacted).unwrap(), lock(&plain, json!({})));
}

#[test]
fn a_number_of_any_size_is_the_same_the_second_time() {
    let lock = r#"{"version":7,"root":"r","nodes":{"r":{"inputs":{"codchi_driver":"c"}},
        "c":{"locked":{"lastModified":555855555555555555555555555551}}}}"#;
    let once = rewritten(json!({}), lock).unwrap().unwrap();
    assert_eq!(rewritten(json!({}), &once), Ok(Some(once)));
}
