//! Every way in which a real LXD and a real Incus map owners, name places and states: what they record of it is what the
//! instance itself sees, with the daemon up and down.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::lxd::{HOME, INCUS, Kind, LXD, Server, check, expected, plant, shifted};
use common::wait_until;
use serde_json::json;
use std::fs;
use std::os::unix::fs::chown;

/// The map of an instance that has a range of its own, which is the first one that LXD and Incus give.
fn isolated(id: u32) -> u32 {
    if id == 0 { 1000 } else { 165_536 + id }
}

/// A way to map owners: what is set, the options of the home's device, and which ids its files have on the disk.
type Way = (&'static str, &'static [&'static str], &'static [&'static str], fn(u32) -> u32);

const WAYS: &[Way] = &[
    ("both", &["raw.idmap=both 1000 0"], &[], shifted),
    ("isolated", &["security.idmap.isolated=true"], &[], isolated),
    ("privileged", &["security.privileged=true"], &[], |id| id),
];

/// LXD 5.0.2 cannot mount so with a kernel without shiftfs.
const SHIFT: Way = ("shift=true", &[], &["shift=true"], |id| id);

fn owners(kind: &'static Kind, ways: &[&Way]) {
    let mut server = Server::new(kind, "dir");
    for (what, settings, device, ids) in ways {
        for setting in *settings {
            server.client(&["config", "set", "codchi-demo", setting]).ok();
        }
        for option in *device {
            let set = ["config", "device", "set", "codchi-demo", "home/codchi", option];
            server.client(&set).ok();
        }
        let home = server.host.home("demo");
        fs::remove_dir_all(&home).unwrap();
        plant(&home, HOME, *ids);
        chown(&home, Some(ids(0)), Some(ids(0))).unwrap();
        let stage = |server: &Server, stage: &str| {
            let mounted = server.host.mount("mnt");
            check(&server.host, &format!("{what}, {stage}"), &mounted.rootfs("demo"));
            mounted.unmount();
        };
        stage(&server, "never started");
        server.client(&["start", "codchi-demo"]).ok();
        assert_eq!(server.inside(), expected(), "{what}: the instance");
        stage(&server, "running");
        server.kill_daemon();
        stage(&server, "running, the daemon killed");
        server.start_daemon();
        server.client(&["stop", "-f", "codchi-demo"]).ok();
        stage(&server, "stopped");
        server.kill_daemon();
        stage(&server, "stopped, the daemon killed");
        server.start_daemon();
        server.client(&["delete", "codchi-demo"]).ok();
        server.create("demo");
    }
}

#[test]
fn owners_are_the_instances_own_however_lxd_maps_them() {
    owners(LXD, &WAYS.iter().collect::<Vec<_>>());
}

#[test]
fn owners_are_the_instances_own_however_incus_maps_them() {
    owners(INCUS, &WAYS.iter().chain([&SHIFT]).collect::<Vec<_>>());
}

#[test]
fn a_machine_that_became_privileged_keeps_its_owners() {
    let mut server = Server::new(LXD, "dir");
    server.client(&["start", "codchi-demo"]).ok();
    server.client(&["stop", "-f", "codchi-demo"]).ok();
    server.client(&["config", "set", "codchi-demo", "security.privileged=true"]).ok();
    check(&server.host, "not started since", &server.host.mount("mnt").rootfs("demo"));
    server.client(&["start", "codchi-demo"]).ok();
    // LXD has shifted the rootfs back, and the home is as it was: its files are now those of other ids.
    let home = server.host.home("demo");
    fs::remove_dir_all(&home).unwrap();
    plant(&home, HOME, |id| id);
    server.client(&["restart", "-f", "codchi-demo"]).ok();
    assert_eq!(server.inside(), expected());
    check(&server.host, "started since", &server.host.mount("mnt2").rootfs("demo"));
    server.kill_daemon();
    check(&server.host, "the daemon killed", &server.host.mount("mnt3").rootfs("demo"));
}

#[test]
fn the_command_that_records_a_missing_map_is_taken() {
    for kind in [LXD, INCUS] {
        let mut server = Server::new(kind, "dir");
        // As codchifs has it where the key is missing; the daemon itself lets nobody remove it.
        let set = ["config", "set", "codchi-demo", "volatile.last_state.idmap=[]"];
        server.client(&set).ok();
        let name = kind.title;
        check(&server.host, name, &server.host.mount("mnt").rootfs("demo"));
        server.kill_daemon();
        check(&server.host, &format!("{name}, down"), &server.host.mount("mnt2").rootfs("demo"));
    }
}

#[test]
fn a_frozen_machine_is_not_called_stopped() {
    for kind in [LXD, INCUS] {
        let server = Server::new(kind, "dir");
        let mounted = server.host.mount("mnt");
        let page = || fs::read_to_string(mounted.point().join("demo/MIGRATE.md")).unwrap();
        assert!(page().contains("It is stopped already"), "{}", kind.title);
        server.client(&["start", "codchi-demo"]).ok();
        server.client(&["pause", "codchi-demo"]).ok();
        wait_until("the state", || mounted.report("demo")["running"] == json!(true));
        assert_eq!(server.host.row("demo")["state"], "running");
        let stop = format!("{} stop codchi-demo", kind.client);
        assert!(page().contains(&stop) && !page().contains("stopped already"), "{}", page());
        let export = server.host.run(&["export", "demo", "-q", "-o", "-"]).ok();
        assert!(export.err().contains("demo runs"), "{}", export.err());
        server.client(&["stop", "-f", "codchi-demo"]).ok();
        wait_until("the stop", || page().contains("It is stopped already"));
        mounted.unmount();
    }
}

/// The daemon's own backup, brought back under another name and into another pool.
fn imported(kind: &'static Kind) {
    let mut server = Server::new(kind, "dir");
    server.client(&["storage", "create", "second", "dir"]).ok();
    let backup = server.host.path().join("backup.tar.gz");
    let backup = backup.to_str().unwrap();
    server.client(&["start", "codchi-demo"]).ok();
    server.client(&["stop", "-f", "codchi-demo"]).ok();
    server.client(&["export", "codchi-demo", backup]).ok();
    server.client(&["delete", "codchi-demo"]).ok();

    server.client(&["import", backup, "-s", "second"]).ok();
    check(&server.host, "another pool", &server.host.mount("mnt").rootfs("demo"));
    server.kill_daemon();
    assert_eq!(server.host.row("demo")["pool"], "second");
    check(&server.host, "another pool, daemon down", &server.host.mount("mnt2").rootfs("demo"));
    server.start_daemon();
    server.client(&["delete", "codchi-demo"]).ok();

    // With the home of the machine that was backed up.
    server.host.configure("other");
    server.client(&["import", backup, "codchi-other", "-s", "second"]).ok();
    assert_eq!(server.host.row("other")["state"], "stopped", "{}", server.host.row("other"));
    server.host.run(&["export", "other", "-q", "-o", "-"]).ok();
    assert_eq!(server.host.row("demo")["state"], "not installed");
    server.kill_daemon();
    let row = server.host.row("other");
    // Incus writes the record anew at once, LXD when it starts the instance.
    let writes_late = kind.name == LXD.name;
    assert_eq!(row["state"], if writes_late { "broken" } else { "ready" }, "{row}");
    for words in ["codchi-other", "says that its name is \"codchi-demo\"", "start LXD"] {
        let reason = row["reason"].as_str().unwrap_or_default();
        assert_eq!(reason.contains(words), writes_late, "{words}: {reason}");
    }
    assert_eq!(server.host.row("demo")["state"], "not installed", "it is not where it says");
    server.start_daemon();
    server.client(&["start", "codchi-other"]).ok();
    server.kill_daemon();
    assert_eq!(server.host.row("other")["state"], "ready", "{}", server.host.row("other"));
    server.host.run(&["export", "other", "-q", "-o", "-"]).ok();
    server.start_daemon();
    server.client(&["delete", "-f", "codchi-other"]).ok();
    server.client(&["storage", "delete", "second"]).ok();
}

#[test]
fn a_machine_that_lxd_imported_is_where_lxd_put_it() {
    imported(LXD);
}

#[test]
fn a_machine_that_incus_imported_is_where_incus_put_it() {
    imported(INCUS);
}
