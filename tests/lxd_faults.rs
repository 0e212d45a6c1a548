//! Daemons that are of no use, and records that nobody can use.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::lxd::{Host, check, expected, seen, shifted};
use common::played::{MAP, http, on_disk, pretend, record, sync};
use serde_json::json;
use std::fs;
use std::time::{Duration, Instant};

/// What a command may take at most with a daemon that never answers: its deadline is 3 s.
const COMES_BACK: Duration = Duration::from_secs(15);

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
        let start = Instant::now();
        let list = host.run(&["list"]);
        assert!(start.elapsed() < COMES_BACK, "{what}: {:?}", start.elapsed());
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
fn a_daemon_with_10_000_instances_and_unusable_maps_is_read() {
    let host = Host::new();
    on_disk(&host, &host.lxd, "demo", MAP, shifted);
    let range = |host: i64, inside: i64| json!({"Isuid": true, "Isgid": true, "Hostid": host, "Nsid": inside, "Maprange": 10});
    let bad = [
        ("overlap", json!([range(0, 0), range(5, 100)]).to_string()),
        ("negative", json!([range(-1, 0)]).to_string()),
        ("text", "{".to_owned()),
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
    let start = Instant::now();
    let row = host.row("demo");
    assert_eq!(row["state"], "running", "{row}");
    assert!(start.elapsed() < COMES_BACK, "{:?}", start.elapsed());
    for (name, _) in &bad {
        let row = host.row(name);
        assert_eq!(row["state"], "broken", "{name}");
        let reason = row["reason"].as_str().unwrap();
        let nobody = "who is nobody in the machine";
        assert!(reason.contains("volatile.last_state.idmap") || reason.contains(nobody), "{row}");
    }
    check(&host, "10,000 instances", &host.mount("mnt").rootfs("demo"));
}
