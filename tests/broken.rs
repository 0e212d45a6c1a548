//! One broken machine is one broken machine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::Fixture;
use common::mounted::Mounted;
use common::{Done, program, run};
use serde_json::Value;
use std::fs;

const SECRET: &str = "do-not-print-this";

/// Name, what is done to it, and words of which the reason has at least one (in lower case).
type Break = (&'static str, fn(&Fixture, &str), &'static [&'static str]);

const BROKEN: &[Break] = &[
    ("blank", |f, n| drop(f.configured(n, "\n")), &["ends too early"]),
    (
        "truncated",
        |f, n| drop(f.configured(n, r#"{"modules":{},"secrets":{"a":"do-not-print-this"#)),
        &["eof", "json", "config.json"],
    ),
    ("not-json", |f, n| drop(f.configured(n, "[general]\nx = 1\n")), &["json", "config.json"]),
    ("list", |f, n| drop(f.configured(n, "[]")), &["json", "config.json"]),
    (
        "wrong-types",
        |f, n| drop(f.configured(n, r#"{"modules":"do-not-print-this","secrets":{}}"#)),
        &["json", "config.json", "modules"],
    ),
    (
        "unknown-scheme",
        |f, n| drop(f.configured(n, r#"{"modules":{"x":"ftp://host/y#z"},"secrets":{}}"#)),
        &["ftp", "scheme"],
    ),
    (
        "leaves-home",
        |f, n| drop(f.configured(n, r##"{"modules":{"x":"file://../../etc#z"},"secrets":{}}"##)),
        &["..", "url", "path"],
    ),
    (
        "unreadable",
        |f, n| {
            let place = f.empty(n);
            fs::remove_file(place.config.join("config.json")).unwrap();
            fs::create_dir(place.config.join("config.json")).unwrap();
        },
        &["config.json", "directory"],
    ),
    ("no-rootfs", |f, n| fs::remove_dir(f.empty(n).rootfs).unwrap(), &["rootfs", "installed"]),
    (
        "no-container",
        |f, n| fs::remove_dir_all(f.empty(n).rootfs.parent().unwrap()).unwrap(),
        &["rootfs", "installed"],
    ),
];

/// All broken machines and a good one.
fn broken() -> Fixture {
    let fixture = Fixture::new();
    fixture.sample("good");
    for (name, damage, _) in BROKEN {
        damage(&fixture, name);
    }
    fixture
}

/// The machines in `list --json`, an array or an object with one.
fn machines(done: &Done) -> Vec<Value> {
    let value: Value = serde_json::from_slice(&done.stdout).expect("list --json prints JSON");
    match value {
        Value::Array(machines) => machines,
        Value::Object(mut object) => match object.remove("machines") {
            Some(Value::Array(machines)) => machines,
            other => panic!("no machines: {other:?}"),
        },
        other => panic!("no machines: {other}"),
    }
}

#[test]
fn list_tells_what_is_wrong_with_each() {
    let fixture = broken();
    let done = fixture.run(["list", "--json"]).ok();
    let machines = machines(&done);
    for (name, _, words) in BROKEN {
        let machine = machines
            .iter()
            .find(|machine| machine["name"] == *name)
            .unwrap_or_else(|| panic!("{name} is not listed: {}", done.out()));
        let reason = machine["reason"].as_str().unwrap_or_default().to_lowercase();
        assert!(words.iter().any(|word| reason.contains(word)), "{name}: reason is '{reason}'");
    }
    let good = machines.iter().find(|machine| machine["name"] == "good").unwrap();
    assert!(good["reason"].is_null(), "{good}");
    for key in ["name", "state", "driver", "rootfs", "home"] {
        assert!(good[key].is_string(), "{key}: {good}");
    }
    assert!(!done.out().contains(SECRET) && !done.err().contains(SECRET), "{}", done.out());

    let table = fixture.run(["list"]).ok();
    for (name, ..) in BROKEN {
        assert!(table.out().lines().any(|line| line.contains(name)), "{name}: {}", table.out());
    }
    assert!(!table.out().contains(SECRET));
}

#[test]
fn an_empty_config_is_no_machine() {
    let fixture = Fixture::new();
    fixture.sample("good");
    fixture.configured("empty", "");
    let mounted = Mounted::new(&fixture);
    let names: Vec<_> =
        fs::read_dir(mounted.point()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["good"]);
    assert!(fs::symlink_metadata(mounted.point().join("empty")).is_err());
    let done = fixture.run(["export", "empty", "-o", "-"]).exits(1);
    assert_eq!(done.err(), "codchifs: export empty: no such machine; `codchifs list` names them\n");
}

#[test]
fn the_good_machine_is_exported_beside_broken_ones() {
    let fixture = broken();
    let mounted = Mounted::new(&fixture);
    let copy = fixture.path().join("good.tar");
    run(program("cp", [mounted.tar("good"), copy.clone()])).silent();
    run(program("tar", ["-tf"]).arg(&copy)).ok();
    fixture.run(["export", "good", "-o", "-"]).ok();
}

#[test]
fn a_broken_machine_shows_its_reason_and_no_half_export() {
    let fixture = broken();
    let mounted = Mounted::new(&fixture);
    for (name, _, words) in BROKEN {
        assert!(fs::symlink_metadata(mounted.tar(name)).is_err(), "{name} has an export.tar");
        let report = mounted.report(name).to_string();
        let lower = report.to_lowercase();
        assert!(words.iter().any(|word| lower.contains(word)), "{name}: {report}");
        assert!(!report.contains(SECRET), "{name}: {report}");
        let done = fixture.run(["export", name, "-o", "-"]).exits(1);
        assert!(done.stdout.is_empty(), "{name}: bytes of a half export");
        assert!(done.err().contains(name), "{name}: {}", done.err());
        assert!(!done.err().contains(SECRET), "{name}: {}", done.err());
    }
}

#[test]
fn names_that_are_paths_are_refused() {
    let fixture = Fixture::new();
    fixture.sample("good");
    for name in ["../good", "..", ".", "a/b", "", "/etc"] {
        let done = fixture.run(["export", name, "-o", "-"]);
        assert!(matches!(done.code, Some(1 | 2)), "'{name}': {:?} {}", done.code, done.err());
        assert!(done.stdout.is_empty() && !done.stderr.is_empty(), "'{name}'");
        let point = fixture.mount_point();
        let arguments = ["mount", "--foreground", "--machine", name, point.to_str().unwrap()];
        let done = fixture.run(arguments);
        assert!(matches!(done.code, Some(1 | 2)), "'{name}': {:?} {}", done.code, done.err());
    }
}

#[test]
fn a_machine_repaired_while_mounted_works() {
    let fixture = Fixture::new();
    let place = fixture.configured("m", "{");
    let mounted = Mounted::new(&fixture);
    assert!(fs::symlink_metadata(mounted.tar("m")).is_err());
    fs::write(place.config.join("config.json"), r#"{"modules":{},"secrets":{}}"#).unwrap();
    common::wait_until("the repaired machine", || fs::symlink_metadata(mounted.tar("m")).is_ok());
}

#[test]
fn wrong_arguments_are_usage_errors() {
    let fixture = Fixture::new();
    for arguments in
        [&["no-such-command"][..], &["list", "--no-such-flag"], &["export"], &["mount"]]
    {
        fixture.run(arguments).exits(2);
    }
    let done = fixture.run(["export", "unknown", "-o", "-"]).exits(1);
    assert!(done.err().starts_with("codchifs: "), "{}", done.err());
}
