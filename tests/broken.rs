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

/// Bytes of memory that a command may take for what a user has written.
const MEMORY: u64 = 192 << 20;

fn with_little_memory(fixture: &Fixture, arguments: &[&str]) -> Done {
    let command = fixture.command(arguments);
    let mut limited = program("prlimit", [format!("--data={MEMORY}")]);
    limited.arg(command.get_program()).args(command.get_args());
    run(limited)
}

#[test]
fn what_a_user_has_written_is_bounded_before_it_is_parsed() {
    // Of each file, the most that is read.
    const LIMITS: [(&str, usize, &str); 3] = [
        ("config.json", 2 << 20, "2 MiB"),
        ("flake.nix", 512 << 10, "512 KiB"),
        ("flake.lock", 2 << 20, "2 MiB"),
    ];
    let filled = |start: &str, unit: &dyn Fn(usize) -> String, end: &str, size: usize| {
        let mut text = start.to_owned();
        for number in 0.. {
            let unit = unit(number);
            if text.len() + unit.len() + end.len() > size {
                break;
            }
            text += &unit;
        }
        text + end
    };
    // What takes the most memory for its bytes.
    let lock = |list: &str| {
        format!(
            r#"{{"version":7,"root":"r","nodes":{{"r":{{"inputs":{{"codchi_driver":"d"}}}},"d":{{"x":{list}"#
        )
    };
    let dense: [(&str, &str, String); 9] = [
        (
            "secrets",
            "config.json",
            filled(r#"{"secrets":{"":"""#, &|n| format!(",\"{n}\":\"\""), "}}", LIMITS[0].1),
        ),
        ("unknown", "config.json", filled(r#"{"x":[0"#, &|_| ",0".into(), "]}", LIMITS[0].1)),
        (
            "modules",
            "config.json",
            filled(r#"{"modules":{"":"""#, &|n| format!(",\"{n}\":\"file://\""), "}}", LIMITS[0].1)
                .replace(r#""":"","#, ""),
        ),
        ("tokens", "flake.nix", "{".repeat(LIMITS[1].1)),
        ("strings", "flake.nix", "\"\"".repeat(LIMITS[1].1 / 2)),
        ("list", "flake.lock", filled(&lock("[0"), &|_| ",0".into(), "]}}}", LIMITS[2].1)),
        ("objects", "flake.lock", filled(&lock("[{}"), &|_| ",{}".into(), "]}}}", LIMITS[2].1)),
        (
            "nodes",
            "flake.lock",
            filled(
                r#"{"version":7,"root":"r","nodes":{"r":{"inputs":{}}"#,
                &|n| format!(",\"{n}\":{{}}"),
                "}}",
                LIMITS[2].1,
            ),
        ),
        (
            "deep",
            "flake.lock",
            filled(
                &lock(&("[".repeat(100) + "0")),
                &|_| ",0".into(),
                &("]".repeat(100) + "}}}"),
                LIMITS[2].1,
            ),
        ),
    ];
    for (name, file, text) in &dense {
        let fixture = Fixture::new();
        fs::write(fixture.empty("m").config.join(file), text).unwrap();
        let done = with_little_memory(&fixture, &["list"]).ok();
        let broken = done.out().contains("broken");
        assert_eq!(broken, *name == "deep", "{name}: {}", done.out());
        if !broken {
            drop(with_little_memory(&fixture, &["export", "m", "-q", "-o", "-"]).ok());
        }
    }
    for (file, limit, words) in LIMITS {
        for surplus in [1, 64 << 20] {
            let fixture = Fixture::new();
            let place = fixture.empty("m");
            let file = fs::File::create(place.config.join(file)).map(|f| (f, file)).unwrap();
            file.0.set_len((limit + surplus) as u64).unwrap();
            let done = with_little_memory(&fixture, &["list"]).ok();
            // Lines are wrapped.
            let said = done.out().split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(said.contains(&format!("/{}", file.1)), "{said}");
            assert!(said.contains(&format!("larger than {words}")), "{said}");
        }
    }
}

#[test]
fn settings_of_codchi_are_bounded_before_they_are_parsed() {
    let limit = 64 << 10;
    let fixture = Fixture::new();
    fixture.empty("m");
    let settings = fixture.config().join("config.toml");
    let list = || {
        let mut command = program("prlimit", [format!("--data={MEMORY}")]);
        common::without_variables(&mut command);
        command.arg(env!("CARGO_BIN_EXE_codchifs")).arg("--config-dir").arg(fixture.config());
        command.args(["--driver", "dir", "--rootfs-dir"]).arg(fixture.rootfs_dir()).arg("list");
        run(command.env("XDG_DATA_HOME", fixture.data()))
    };
    let tables: String = (0..limit).map(|n| format!("[{n}]\n")).collect();
    let numbers = format!("a=[{}]", "0,".repeat((limit - 4) / 2));
    for text in [tables[..limit].rsplit_once('[').unwrap().0, &*numbers] {
        fs::write(&settings, text).unwrap();
        list().ok();
    }
    // 13 MB of it took 1.4 GB.
    for text in [numbers + " ", "[x]\n".repeat(3 << 20)] {
        fs::write(&settings, text).unwrap();
        let said = list().exits(1).err();
        assert!(said.contains("config.toml") && said.contains("larger than 64 KiB"), "{said}");
    }
    fs::write(&settings, "").unwrap();
    fs::File::options().write(true).open(&settings).unwrap().set_len(1 << 40).unwrap();
    assert!(list().exits(1).err().contains("larger than 64 KiB"));
}
