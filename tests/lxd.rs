//! Machines of a real LXD and of a real Incus.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::lxd::{
    HOME, INCUS, Kind, LXD, Server, check, entries, expected, plant, seen, shifted, user,
};
use common::{Done, contains, program, run, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown, symlink};
use std::path::Path;

/// One life of a machine, under one open mount and with a new mount at each stage.
fn life(kind: &'static Kind, pool: &str) {
    let mut server = Server::new(kind, pool);
    let open = server.host.mount("open");
    let stage = |server: &Server, name: &str, running: Value| {
        wait_until(&format!("{name}: the status in report.json"), || {
            open.report("demo")["running"] == running
        });
        check(&server.host, name, &open.rootfs("demo"));
        let fresh = server.host.mount("fresh");
        check(&server.host, name, &fresh.rootfs("demo"));
        fresh.unmount();
    };
    stage(&server, "never started", json!(false));
    assert_eq!(server.host.row("demo")["shifted"], false);
    for name in ["started", "started again"] {
        server.client(&["start", "codchi-demo"]).ok();
        assert_eq!(server.inside(), expected(), "the instance, {name}");
        stage(&server, name, json!(true));
        let row = server.host.row("demo");
        assert_eq!(
            [&row["state"], &row["driver"], &row["pool"], &row["facts"]],
            [&json!("running"), &json!(kind.name), &json!("default"), &Value::Null]
        );
        // LXD shifts the owners on the disk, Incus mounts the rootfs with a map: both are what is to be read.
        let shifted = server.rootfs("demo").metadata().unwrap().uid() != 0;
        assert_eq!([&row["shifted"], &json!(kind.name == "lxd")], [&json!(shifted); 2], "{row}");
        if name == "started" {
            server.client(&["stop", "-f", "codchi-demo"]).ok();
            stage(&server, "stopped", json!(false));
            assert_eq!(server.host.row("demo")["state"], "stopped");
        }
    }
    server.kill_daemon();
    wait_until("the silence in report.json", || {
        open.report("demo")["daemon"]["silent"].is_string()
    });
    // The open mount knows from when its facts are; a new one has them from the disk.
    assert!(open.report("demo")["daemon"]["facts_as_of"].is_string());
    stage(&server, "daemon killed", json!(true));
    let row = server.host.row("demo");
    let why = format!("from backup.yaml: {}: cannot connect", kind.title);
    assert!(row["facts"].as_str().unwrap().starts_with(&why), "{row}");
    assert_eq!(row["state"], "ready", "nobody knows whether it runs");
    server.start_daemon();
    server.client(&["stop", "-f", "codchi-demo"]).ok();
    stage(&server, "daemon back, stopped", json!(false));
    server.kill_daemon();
    stage(&server, "daemon killed, stopped", json!(false));
    open.unmount();
}

#[test]
fn owners_are_the_instances_own_in_a_dir_pool_of_lxd() {
    life(LXD, "dir");
}

#[test]
fn owners_are_the_instances_own_in_a_btrfs_pool_of_lxd() {
    life(LXD, "btrfs");
}

#[test]
fn owners_are_the_instances_own_in_a_dir_pool_of_incus() {
    life(INCUS, "dir");
}

#[test]
fn owners_are_the_instances_own_in_a_btrfs_pool_of_incus() {
    life(INCUS, "btrfs");
}

#[test]
fn a_machine_made_while_mounted_and_a_foreign_device_show() {
    let mut server = Server::new(LXD, "dir");
    let open = server.host.mount("mnt");
    assert_eq!(open.report("demo")["devices_not_exported"], json!([]));
    let shared = server.host.path().join("shared");
    fs::create_dir(&shared).unwrap();
    let source = format!("source={}", shared.display());
    let device = ["config", "device", "add", "codchi-demo", "shared", "disk"];
    server.client(&[&device[..], &[&source, "path=/mnt/shared"]].concat()).ok();
    let named = json!([{"path": "/mnt/shared", "source": shared}]);
    wait_until("the device", || open.report("demo")["devices_not_exported"] == named);

    assert!(!open.point().join("new").exists());
    server.create("new");
    plant(&server.host.home("new"), HOME, shifted);
    wait_until("the new machine", || open.report("new")["state"] == "ready");
    assert_eq!(seen(&open.rootfs("new")), expected());
    server.client(&["delete", "codchi-new"]).ok();
    wait_until("its end", || open.report("new")["state"] == "not installed");
    // The same in a project of its own.
    let features = ["-c", "features.images=false", "-c", "features.profiles=false"];
    server.client(&[&["project", "create", "work"][..], &features].concat()).ok();
    server.client(&["project", "switch", "work"]).ok();
    server.create("elsewhere");
    plant(&server.host.home("elsewhere"), HOME, shifted);
    wait_until("the other project", || open.report("elsewhere")["state"] == "ready");
    server.kill_daemon();
    let offline = server.host.mount("offline");
    assert_eq!(offline.report("demo")["devices_not_exported"], named);
    assert_eq!(seen(&offline.rootfs("elsewhere")), expected());
    server.start_daemon();
    server.client(&["delete", "codchi-elsewhere"]).ok();
    server.client(&["project", "switch", "default"]).ok();
    server.client(&["project", "delete", "work"]).ok();
}

#[test]
fn somebody_elses_machine_is_not_read() {
    let server = Server::new(LXD, "dir");
    let host = &server.host;
    let (config, data) = (host.path().join("config2"), host.path().join("data2"));
    for directory in [config.join("machine/demo"), data.join("machine/demo")] {
        fs::create_dir_all(directory).unwrap();
    }
    let json = config.join("machine/demo/config.json");
    fs::write(&json, r#"{"nixpkgs_from":null,"modules":{},"secrets":{}}"#).unwrap();
    for path in [&config, &config.join("machine"), &config.join("machine/demo"), &json, &data] {
        chown(path, Some(65534), Some(65534)).unwrap();
    }
    let refused = |daemon: &str, user: &str, config: &Path, data: &Path| {
        let mut all = Vec::new();
        for args in [&["list"][..], &["export", "demo", "-o", "-"]] {
            let done = run(host.command_of(user, config, Some(data)).args(args));
            assert!(
                done.out().contains("belongs to somebody else")
                    || done.err().contains("belongs to somebody else"),
                "{daemon}, {user}, {args:?}: {done:?}"
            );
            all.extend([done.stdout, done.stderr].concat());
        }
        for (path, _, _, _, content) in entries() {
            let content = content.unwrap_or(path);
            assert!(!contains(&all, content.as_bytes()), "{daemon}: {content}");
        }
    };
    refused("running", "nobody", &config, &data);
    // Who claims the other's data dir is still not root in the machine; who is, must have the home in the data dir.
    refused("running", "nobody", &config, &host.data());
    refused("running", &user(), &host.config(), &data);
    let mut server = server;
    server.kill_daemon();
    let host = &server.host;
    for args in [&["list"][..], &["export", "demo", "-o", "-"]] {
        let done = run(host.command_of("nobody", &config, Some(&data)).args(args));
        let text = done.out() + &done.err();
        assert!(text.contains("belongs to somebody else"), "offline: {text}");
        assert!(!text.contains("the user's\n"), "offline: {text}");
    }
    assert_eq!(host.row("demo")["state"], "ready", "its own user still has it");
}

#[test]
fn links_of_the_user_lead_to_nothing_that_the_user_may_not_read() {
    let mut server = Server::new(LXD, "dir");
    let secret = tempfile::Builder::new().prefix("secret-").tempdir_in("/root").unwrap();
    let marker = "marker-8dd1e0";
    fs::create_dir_all(secret.path().join("machine/demo")).unwrap();
    for file in ["config.toml", "flake.lock", "machine/demo/config.json", "machine/demo/file"] {
        let text =
            format!(r#"{{"nixpkgs_from":null,"modules":{{}},"secrets":{{"m":"{marker}"}}}}"#);
        fs::write(secret.path().join(file), text).unwrap();
    }
    let host = &server.host;
    let shadow = fs::read("/etc/shadow").unwrap();
    let line = shadow.split(|b| *b == b'\n').next().unwrap().to_owned();
    let clean = |what: &str, done: &Done| {
        for bytes in [&done.stdout, &done.stderr] {
            assert!(!contains(bytes, marker.as_bytes()), "{what}: {}", done.line);
            assert!(!contains(bytes, &line), "{what}: {}", done.line);
        }
    };
    let attempt = |what: &str, config: &Path, data: Option<&Path>| {
        let list = run(host.command_of(&user(), config, data).arg("list"));
        clean(what, &list);
        let export =
            run(host.command_of(&user(), config, data).args(["export", "demo", "-o", "-"]));
        clean(what, &export);
        assert_ne!(export.code, Some(0), "{what}: exported");
        assert!(!export.stderr.is_empty(), "{what}: no reason");
        list.out() + &list.err() + &export.err()
    };
    let (config, data) = (host.config(), host.data());
    let machine = config.join("machine/demo");
    host.run(&["export", "demo", "-q", "-o", "-"]).ok();

    let linked = host.path().join("config-link");
    symlink(secret.path(), &linked).unwrap();
    attempt("config dir", &linked, Some(&data));

    let moved = config.join("moved");
    for target in [secret.path().join("machine/demo"), "/root".into()] {
        fs::rename(&machine, &moved).unwrap();
        symlink(&target, &machine).unwrap();
        attempt("machine dir", &config, Some(&data));
        fs::remove_file(&machine).unwrap();
        fs::rename(&moved, &machine).unwrap();
    }

    let home = host.home("demo");
    let kept = host.data().join("kept");
    for target in [secret.path().join("machine/demo"), "/root".into(), "/etc/shadow".into()] {
        fs::rename(&home, &kept).unwrap();
        symlink(&target, &home).unwrap();
        let said = attempt("home", &config, Some(&data));
        assert!(said.contains("cannot open the home"), "{said}");
        fs::remove_file(&home).unwrap();
        fs::rename(&kept, &home).unwrap();
    }
    // The whole way to the home leads elsewhere.
    fs::rename(host.data().join("machine"), host.data().join("away")).unwrap();
    symlink(secret.path().join("machine"), host.data().join("machine")).unwrap();
    attempt("way to the home", &config, Some(&data));
    fs::remove_file(host.data().join("machine")).unwrap();
    fs::rename(host.data().join("away"), host.data().join("machine")).unwrap();

    for file in ["flake.lock", "config.json"] {
        for target in ["/etc/shadow".into(), secret.path().join("flake.lock")] {
            let at = machine.join(file);
            let _ = fs::rename(&at, machine.join("kept"));
            symlink(&target, &at).unwrap();
            let said = attempt(file, &config, Some(&data));
            assert!(said.contains(file), "{said}");
            fs::remove_file(&at).unwrap();
            let _ = fs::rename(machine.join("kept"), &at);
        }
    }

    let toml = config.join("config.toml");
    for target in ["/etc/shadow".into(), secret.path().join("config.toml")] {
        symlink(&target, &toml).unwrap();
        let said = attempt("config.toml", &config, None);
        assert!(said.contains("config.toml"), "{said}");
        fs::remove_file(&toml).unwrap();
    }
    fs::write(&toml, format!("data_dir = {:?}\n", secret.path())).unwrap();
    attempt("data_dir", &config, None);
    fs::remove_file(&toml).unwrap();
    server.kill_daemon();
    assert_eq!(server.host.row("demo")["state"], "ready", "all is as it was");
}

#[test]
fn btrfs_subvolumes_keep_their_inode_numbers_whatever_is_read_first() {
    let server = Server::new(LXD, "btrfs");
    let srv = server.rootfs("demo").join("srv");
    for name in ["a", "b"] {
        let at = srv.join(name);
        run(program("btrfs", ["-q", "subvolume", "create"]).arg(&at)).ok();
        fs::write(at.join("file"), name).unwrap();
    }
    let numbers = |order: [&str; 2]| {
        let mounted = server.host.mount("mnt");
        let mut found = order.map(|name| {
            let at = mounted.rootfs("demo").join("srv").join(name);
            assert_eq!(fs::read_to_string(at.join("file")).unwrap(), name);
            (
                name.to_owned(),
                at.metadata().unwrap().ino(),
                at.join("file").metadata().unwrap().ino(),
            )
        });
        found.sort();
        mounted.unmount();
        found
    };
    let first = numbers(["a", "b"]);
    assert_eq!(first, numbers(["b", "a"]));
    assert_ne!(first[0].1, first[1].1);
    assert_ne!(first[0].2, first[1].2);
}
