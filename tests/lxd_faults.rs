//! Daemons that are of no use, and records that nobody can use.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::lxd::{Host, check, expected, seen, shifted};
use common::played::{MAP, Played, directory, http, on_disk, pretend, record, sync};
use common::wait_until;
use rustix::fs::{CWD, FileType, Mode};
use serde_json::json;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::time::Duration;

#[test]
fn a_daemon_that_is_of_no_use_stops_nobody() {
    let host = Host::new();
    on_disk(&host, &host.lxd, "demo", MAP, shifted);
    on_disk(&host, &host.lxd, "other", MAP, shifted);
    let broken = host.lxd.join("storage-pools/default/containers/codchi-bad");
    fs::create_dir_all(broken.join("rootfs")).unwrap();
    fs::write(broken.join("backup.yaml"), "container: [").unwrap();
    host.configure("bad");
    let error = json!({"type": "error", "error": "not found", "error_code": 404}).to_string();
    let cases: [(&str, Option<Vec<u8>>, &str); 7] = [
        ("silent", None, "no complete answer from"),
        ("garbage", Some(b"\0\xff what?\r\n\r\n".to_vec()), "answered nonsense"),
        ("no JSON", Some(http("200 OK", "<html>")), "the body is no JSON"),
        ("404", Some(http("404 Not Found", &error)), "answered 404: not found"),
        ("403", Some(http("403 Forbidden", "")), "add yourself to the group lxd"),
        ("500", Some(http("500 Internal Server Error", "oh")), "answered 500: oh"),
        ("half", Some(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{".to_vec()), "lost"),
    ];
    for (what, response, reason) in cases {
        pretend(&host.lxd.join("unix.socket"), response);
        let list = host.run(&["list"]);
        assert!(list.out().contains(reason), "{what}: {}", list.out());
        assert!(list.out().contains("from backup.yaml"), "{what}: {}", list.out());
        let mounted = host.mount("mnt");
        check(&host, what, &mounted.rootfs("demo"));
        assert_eq!(seen(&mounted.rootfs("other")), expected(), "{what}");
        assert_ne!(mounted.report("bad")["state"], "ready", "{what}");
        mounted.unmount();
    }
}

#[test]
fn the_first_look_after_a_pause_shows_what_the_daemon_says_now() {
    let host = Host::new();
    on_disk(&host, &host.lxd, "demo", MAP, shifted);
    let says = |map: &str| sync(&[record(&host, "demo", "Stopped", map)]);
    let daemon = Played::new(&host.lxd.join("unix.socket"), says(MAP));
    let mounted = host.mount("mnt");
    let service = mounted.rootfs("demo").join("srv/service");
    let owner = || fs::symlink_metadata(&service).unwrap().uid();
    let mut owners = vec![owner()];
    // The same host ids are each the next one in the machine.
    let moved = MAP.replace(r#""Hostid":100001"#, r#""Hostid":100000"#);
    for map in [moved.as_str(), MAP] {
        wait_until("a pause", || daemon.idle() > Duration::from_secs(2));
        daemon.says(says(map));
        owners.push(owner());
    }
    assert_eq!(owners, [71, 72, 71]);
    mounted.unmount();
}

#[test]
fn a_daemon_with_10_000_instances_and_unusable_maps_is_read() {
    let host = Host::new();
    on_disk(&host, &host.lxd, "demo", MAP, shifted);
    let range = |host: i64, inside: i64| json!({"Isuid": true, "Isgid": true, "Hostid": host, "Nsid": inside, "Maprange": 10});
    let bad = [
        ("overlap", json!([range(0, 0), range(5, 100)]).to_string()),
        ("negative", json!([range(-1, 0)]).to_string()),
        ("text", "{".to_owned()),
        ("empty", String::new()),
        ("short", json!([range(500_000, 500_000)]).to_string()),
    ];
    let mut all: Vec<_> =
        (0..10_000).map(|i| record(&host, &format!("n{i}"), "Running", MAP)).collect();
    for (name, map) in &bad {
        on_disk(&host, &host.lxd, name, MAP, shifted);
        all.push(record(&host, name, "Stopped", map));
    }
    all.push(json!({"nonsense": 1}));
    all.push(record(&host, "demo", "Running", MAP));
    pretend(&host.lxd.join("unix.socket"), Some(sync(&all)));
    let row = host.row("demo");
    assert_eq!(row["state"], "running", "{row}");
    for (name, _) in &bad {
        let row = host.row(name);
        assert_eq!(row["state"], "broken", "{name}");
        let reason = row["reason"].as_str().unwrap();
        let nobody = "who is nobody in the machine";
        assert!(reason.contains("volatile.last_state.idmap") || reason.contains(nobody), "{row}");
    }
    check(&host, "10,000 instances", &host.mount("mnt").rootfs("demo"));
}

/// What may stand in place of a backup.yaml, and what is said of it.
type Spoil = (&'static str, fn(&Path), &'static str);

const SPOILT: &[Spoil] = &[
    ("empty", |at| fs::write(at, "").unwrap(), "it has neither `container` nor `instance`"),
    ("binary", |at| fs::write(at, b"\x7fELF\xff\xfe").unwrap(), "valid UTF-8"),
    ("zeros", |at| truncate(at, 100), "it holds a NUL byte"),
    ("cut", |at| fs::write(at, "container: {name: codchi-cut").unwrap(), "not YAML (line 2)"),
    ("laughs", |at| fs::write(at, laughs()).unwrap(), "it has an alias (line 3)"),
    ("deep", |at| fs::write(at, "- ".repeat(1 << 20)).unwrap(), "nested too deep (line 1)"),
    ("huge", |at| truncate(at, 5 << 30), "file too large"),
    ("directory", |at| fs::create_dir(at).unwrap(), "not a regular file"),
    ("fifo", |at| mknod(at, FileType::Fifo), "not a regular file"),
    ("device", |at| mknod(at, FileType::CharacterDevice), "not a regular file"),
    (
        "link",
        |at| symlink("../codchi-demo/backup.yaml", at).unwrap(),
        "Too many levels of symbolic links",
    ),
    ("ranges", |at| fs::write(at, many()).unwrap(), "volatile.last_state.idmap: the id map is"),
    ("gone", |_| (), "`lxc start codchi-gone` mounts it"),
];

fn truncate(at: &Path, size: u64) {
    File::create(at).unwrap().set_len(size).unwrap();
}

fn mknod(at: &Path, kind: FileType) {
    rustix::fs::mknodat(CWD, at, kind, Mode::from(0o600), rustix::fs::makedev(1, 5)).unwrap();
}

/// "Billion laughs": ten of ten of ten ... of a word.
fn laughs() -> String {
    let ten = |n: u32| format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(","));
    format!(
        "container: {{name: codchi-laughs}}\na0: &a0 lol\n{}",
        (1..12).map(ten).collect::<String>()
    )
}

/// A small file, and a map that is too large.
fn many() -> String {
    let config = json!({"raw.idmap": "uid 1000 0", "volatile.last_state.idmap": ranges(10_000)});
    json!({"container": {"name": "codchi-ranges", "config": config}}).to_string()
}

#[test]
fn a_backup_yaml_that_is_none_breaks_its_own_machine_only() {
    let host = Host::new();
    on_disk(&host, &host.lxd, "demo", MAP, shifted);
    for (name, spoil, _) in SPOILT {
        on_disk(&host, &host.lxd, name, MAP, shifted);
        let at = directory(&host.lxd, name).join("backup.yaml");
        fs::remove_file(&at).unwrap();
        spoil(&at);
    }
    // What the daemon always records is not there: the file was cut off where it is still YAML.
    on_disk(&host, &host.lxd, "short", MAP, shifted);
    let at = directory(&host.lxd, "short").join("backup.yaml");
    let text = fs::read_to_string(&at).unwrap().replace("volatile.last_state.idmap", "volatile.x");
    fs::write(&at, text).unwrap();
    let short = ("short", "it has no volatile.last_state.idmap");
    let mounted = host.mount("mnt");
    for (name, why) in SPOILT.iter().map(|(name, _, why)| (*name, *why)).chain([short]) {
        let report = mounted.report(name);
        let reason = report["reason"].as_str().unwrap_or_else(|| panic!("{name}: {report}"));
        assert!(reason.contains(why), "{name}: {reason}");
        assert!(reason.contains(&format!("codchi-{name}")), "{name}: {reason}");
        assert_eq!(report["state"], "broken", "{name}");
        assert_eq!(host.row(name)["reason"], report["reason"], "{name}");
        let export = host.run(&["export", name, "-o", "-"]).exits(1);
        assert_eq!(
            (export.out(), export.err()),
            (String::new(), format!("codchifs: export {name}: {reason}\n"))
        );
    }
    check(&host, "beside spoilt records", &mounted.rootfs("demo"));
}

/// A list of this many ranges, as text.
fn ranges(count: usize) -> String {
    let range =
        |n| format!(r#"{{"Isuid":true,"Isgid":true,"Hostid":{n},"Nsid":{n},"Maprange":1}}"#);
    format!("[{}]", (1..=count).map(range).collect::<Vec<_>>().join(","))
}

#[test]
fn a_map_of_a_million_ranges_breaks_its_own_machine_only() {
    let host = Host::new();
    for machine in ["demo", "giant"] {
        on_disk(&host, &host.lxd, machine, MAP, shifted);
    }
    let all = [record(&host, "giant", "Running", "GIANT"), record(&host, "demo", "Running", MAP)];
    let answer = json!({"type": "sync", "status_code": 200, "metadata": all}).to_string();
    let giant = ranges(1_000_000).replace('"', "\\\"");
    pretend(&host.lxd.join("unix.socket"), Some(http("200 OK", &answer.replace("GIANT", &giant))));
    let mounted = host.mount("mnt");
    assert_eq!(mounted.report("demo")["running"], true, "the daemon told");
    let reason = mounted.report("giant")["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("volatile.last_state.idmap: the id map is"), "{reason}");
    assert!(reason.len() < 1000, "{reason}");
    check(&host, "beside a giant map", &mounted.rootfs("demo"));
}
