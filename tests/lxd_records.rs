//! What records of LXD and Incus may say and leave out, by the API and in backup.yaml: of each release what it writes, and
//! what nobody should have written. Daemons are played.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::lxd::{HOME, Host, UID, check, expected, plant, seen, shifted};
use common::played::{MAP, directory, http, metadata, on_disk, record, serve, sync};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

/// A machine on the disk, the record of it, and a change of that record in all that it says twice.
struct Machine {
    host: Host,
    record: Value,
}

impl Machine {
    fn new() -> Self {
        let host = Host::new();
        on_disk(&host, &host.lxd, "demo", MAP, shifted);
        let record = record(&host, "demo", "Stopped", MAP);
        Self { host, record }
    }

    fn both(&mut self, section: &str, change: impl Fn(&mut Value)) {
        change(&mut self.record[section]);
        change(&mut self.record[format!("expanded_{section}")]);
    }

    /// Has the daemon say so.
    fn told(&self) {
        let answer = sync(std::slice::from_ref(&self.record));
        serve(&self.host.lxd.join("unix.socket"), move |_| answer.clone());
    }

    /// Has the disk say so, and the daemon nothing.
    fn written(&self) {
        let _ = fs::remove_file(self.host.lxd.join("unix.socket"));
        let text = json!({"container": self.record}).to_string();
        fs::write(directory(&self.host.lxd, "demo").join("backup.yaml"), text).unwrap();
    }

    /// Either way, one after the other.
    fn by_api_and_disk(&self, look: impl Fn(&Host, &str)) {
        self.told();
        look(&self.host, "the API");
        self.written();
        look(&self.host, "backup.yaml");
    }

    #[track_caller]
    fn works(&self, what: &str) {
        self.by_api_and_disk(|host, how| {
            let row = host.row("demo");
            assert_eq!(row["reason"], Value::Null, "{what}, {how}: {row}");
            let mounted = host.mount("mnt");
            check(host, &format!("{what}, {how}"), &mounted.rootfs("demo"));
            mounted.unmount();
        });
    }

    /// What is said of a machine that is not opened.
    #[track_caller]
    fn refused(&self, what: &str, words: &[&str]) {
        self.by_api_and_disk(|host, how| {
            let row = host.row("demo");
            let reason = row["reason"].as_str().unwrap_or_else(|| panic!("{what}, {how}: {row}"));
            for words in words {
                assert!(reason.contains(words), "{what}, {how}, {words}: {reason}");
            }
            host.run(&["export", "demo", "-q", "-o", "-"]).exits(1);
        });
    }
}

#[test]
fn every_state_is_running_stopped_or_unknown() {
    let machine = Machine::new();
    let running = [
        "Running", "Ready", "Started", "Starting", "Stopping", "Aborting", "Freezing", "Frozen",
        "Thawed",
    ];
    let unknown = [
        "Error",
        "",
        "Pending",
        "Cancelling",
        "Operation created",
        "Success",
        "Failure",
        "Cancelled",
        "Broken",
    ];
    let states = running.map(|s| (s, "running", json!(true)));
    let states = states.into_iter().chain(unknown.map(|s| (s, "ready", Value::Null)));
    let status = Arc::new(Mutex::new("Stopped"));
    let (shared, record) = (Arc::clone(&status), machine.record.clone());
    serve(&machine.host.lxd.join("unix.socket"), move |_| {
        let mut record = record.clone();
        record["status"] = json!(*shared.lock().unwrap());
        sync(&[record])
    });
    for (state, listed, reported) in states.chain([("Stopped", "stopped", json!(false))]) {
        *status.lock().unwrap() = state;
        assert_eq!(machine.host.row("demo")["state"], listed, "{state}");
        let page = machine.host.run(&["migrate", "demo"]).ok().out();
        assert_eq!(page.contains("It is stopped already"), state == "Stopped", "{state}");
        assert_eq!(page.contains("lxc stop codchi-demo"), state != "Stopped", "{state}");
        let mounted = machine.host.mount("mnt");
        assert_eq!(mounted.report("demo")["running"], reported, "{state}");
        mounted.unmount();
    }
}

#[test]
fn maps_that_are_there_twice_or_null_or_missing_are_as_lxd_takes_them() {
    let text = |ranges: Value| ranges.to_string();
    let range = |host: u32, inside: u32, count: u32| json!({"Isuid": true, "Isgid": true, "Hostid": host, "Nsid": inside, "Maprange": count});
    let twice = text(json!([range(1000, 0, 1), range(100_001, 1, 999_999), range(1000, 0, 1)]));
    let mut machine = Machine::new();
    for key in ["volatile.last_state.idmap", "volatile.idmap.current", "volatile.idmap.next"] {
        machine.both("config", |config| config[key] = twice.clone().into());
    }
    machine.works("all twice");
    for none in [Value::Null, json!("")] {
        machine.both("config", |config| config["volatile.idmap.current"] = none.clone());
        // The next start would map otherwise, but what is in the home is by the map of the last one.
        machine.both("config", |config| {
            config["volatile.idmap.next"] =
                text(json!([range(1000, 0, 1), range(500_001, 1, 999_999)])).into();
        });
        machine.works("no current map");
    }
    for (what, ranges) in [
        ("one host id, two ids inside", json!([range(1000, 0, 1), range(1000, 1, 1)])),
        ("two host ids, one inside", json!([range(1000, 0, 1), range(1001, 0, 1)])),
        ("the same start", json!([range(1000, 0, 1), range(1000, 0, 2)])),
        ("a part", json!([range(1000, 0, 10), range(1005, 5, 10)])),
    ] {
        machine.both("config", |config| {
            config["volatile.last_state.idmap"] = text(ranges.clone()).into()
        });
        machine.refused(what, &["volatile.last_state.idmap: the id map has two ranges"]);
    }
    // Not shifted on the disk, as LXD writes it after a migration.
    let mut machine = Machine::new();
    let instance = directory(&machine.host.lxd, "demo");
    fs::remove_dir_all(&instance).unwrap();
    on_disk(&machine.host, &machine.host.lxd, "demo", "[]", |id| id);
    for last in ["null", "[]", " [ ] "] {
        machine.both("config", |config| config["volatile.last_state.idmap"] = last.into());
        machine.works(last);
    }
    for missing in [Value::Null, json!("")] {
        machine.both("config", |config| config["volatile.last_state.idmap"] = missing.clone());
        let remedy = "lxc config set codchi-demo volatile.last_state.idmap='[]'";
        machine.refused("no last map", &["it has no volatile.last_state.idmap", remedy]);
    }
}

#[test]
fn a_home_mounted_with_shift_and_that_of_a_privileged_machine_have_the_machines_ids() {
    let home_of = |machine: &Machine| {
        let home = machine.host.home("demo");
        fs::remove_dir_all(&home).unwrap();
        plant(&home, HOME, |id| id);
        chown(&home, Some(0), Some(0)).unwrap();
        home
    };
    for yes in ["true", "True", "1", "yes", "on"] {
        let mut machine = Machine::new();
        home_of(&machine);
        machine.both("devices", |devices| devices["home/codchi"]["shift"] = yes.into());
        machine.works("shift");
    }
    for no in ["false", "0", "no", ""] {
        let mut machine = Machine::new();
        machine.both("devices", |devices| devices["home/codchi"]["shift"] = no.into());
        machine.works("no shift");
    }
    // An id that the machine has not is nobody's there, as without shift.
    let mut machine = Machine::new();
    let home = home_of(&machine);
    fs::write(home.join("beyond"), "").unwrap();
    chown(home.join("beyond"), Some(1_000_000), Some(999_999)).unwrap();
    machine.both("devices", |devices| devices["home/codchi"]["shift"] = "true".into());
    machine.by_api_and_disk(|host, how| {
        let mounted = host.mount("mnt");
        let beyond = fs::metadata(mounted.rootfs("demo").join("home/codchi/beyond")).unwrap();
        use std::os::unix::fs::MetadataExt as _;
        assert_eq!((beyond.uid(), beyond.gid()), (65534, 999_999), "{how}");
        mounted.unmount();
    });
    // Privileged: there is no map at all, whatever else is set.
    let mut machine = Machine::new();
    fs::remove_dir_all(directory(&machine.host.lxd, "demo")).unwrap();
    on_disk(&machine.host, &machine.host.lxd, "demo", "[]", |id| id);
    home_of(&machine);
    machine.both("config", |config| {
        config["security.privileged"] = "true".into();
        for key in ["volatile.last_state.idmap", "volatile.idmap.current", "volatile.idmap.next"] {
            config[key] = "[]".into();
        }
    });
    machine.works("privileged");
    machine.both("devices", |devices| devices["home/codchi"]["shift"] = "true".into());
    machine.works("privileged, with shift");
    machine.both("config", |config| {
        let config = config.as_object_mut().unwrap();
        config.retain(|key, _| !key.starts_with("volatile.idmap"));
    });
    machine.works("privileged, never started");
}

#[test]
fn the_home_is_found_however_its_path_is_written() {
    for path in [
        "home/codchi",
        "/home/codchi/",
        "/home//codchi",
        "//home/codchi",
        "/home/./codchi",
        "./home/codchi",
        "/home/codchi/.",
        "/home/x/../codchi",
        "/home/codchi//",
        "/../home/codchi",
    ] {
        let mut machine = Machine::new();
        // Not where Codchi puts it, so that it is this device which is found.
        let elsewhere = machine.host.data().join("elsewhere");
        fs::rename(machine.host.home("demo"), &elsewhere).unwrap();
        machine.both("devices", |devices| {
            devices["home/codchi"]["path"] = path.into();
            devices["home/codchi"]["source"] = elsewhere.to_str().unwrap().into();
        });
        machine.works(path);
        let report = machine.host.mount("again").report("demo");
        assert_eq!(report["devices_not_exported"], json!([]), "{path}");
    }
    // A disk above the home has it as well.
    let mut machine = Machine::new();
    let above = machine.host.data().join("above");
    fs::create_dir(&above).unwrap();
    chown(&above, Some(UID), Some(UID)).unwrap();
    fs::rename(machine.host.home("demo"), above.join("codchi")).unwrap();
    machine.both("devices", |devices| {
        devices["home/codchi"] = json!({"type": "disk", "path": "home/", "source": above});
    });
    machine.works("a disk at /home");
    let mut machine = Machine::new();
    let home = json!(machine.host.home("demo"));
    machine.both("devices", |devices| {
        devices["again"] = json!({"type": "disk", "path": "home/codchi/", "source": home});
    });
    machine.refused("two disks", &["more than one disk at /home/codchi"]);
}

#[test]
fn a_home_that_is_recorded_or_reached_through_a_link_is_the_users() {
    let mut machine = Machine::new();
    let (data, link) = (machine.host.data(), machine.host.path().join("link"));
    symlink(&data, &link).unwrap();
    machine.both("devices", |devices| {
        devices["home/codchi"]["source"] = link.join("machine/demo").to_str().unwrap().into();
    });
    machine.works("the record goes through a link");
    // The data directory may be the link, too.
    let machine = Machine::new();
    symlink(machine.host.data(), machine.host.path().join("link")).unwrap();
    let link = machine.host.path().join("link");
    machine.by_api_and_disk(|host, how| {
        let mut list = host.command_of(&common::lxd::user(), &host.config(), Some(&link));
        let out = common::run(list.args(["list", "--json"])).ok().out();
        let rows: Value = serde_json::from_str(&out).unwrap();
        assert_ne!(rows[0]["state"], "not installed", "{how}: {rows}");
    });
    // A link that leads to where another user's homes are is none of the user's.
    let mut machine = Machine::new();
    let other = machine.host.path().join("other/machine/demo");
    fs::create_dir_all(&other).unwrap();
    symlink(machine.host.path().join("other"), machine.host.path().join("link")).unwrap();
    let through = machine.host.path().join("link/machine/demo");
    machine.both("devices", |devices| devices["home/codchi"]["source"] = json!(through));
    machine.refused("another's", &["not installed", "has its home elsewhere"]);
}

#[test]
fn a_home_that_cannot_be_opened_is_named_with_what_to_do() {
    let mut machine = Machine::new();
    machine.both("devices", |devices| {
        devices["home/codchi"] =
            json!({"type": "disk", "path": "/home/codchi", "pool": "fast", "source": "homes"});
    });
    machine
        .refused("a volume", &["its home is the volume \"homes\" of the pool \"fast\"", "cp -a"]);
    let machine = Machine::new();
    let (home, kept) = (machine.host.home("demo"), machine.host.data().join("kept"));
    fs::rename(&home, &kept).unwrap();
    symlink(&kept, &home).unwrap();
    machine.refused("a link", &["cannot open the home", "put the directory itself in its place"]);
    fs::remove_file(&home).unwrap();
    fs::rename(&kept, &home).unwrap();
    machine.works("as is said");
}

#[test]
fn one_base_directory_by_two_paths_is_one_daemon() {
    for (base, kind) in [("lxd", "lxd"), ("incus", "incus")] {
        let machine = Machine::new();
        let host = &machine.host;
        // LXD_DIR and INCUS_DIR lead to the same place, one of them by a link.
        let (real, link) = match base {
            "lxd" => (&host.lxd, &host.incus),
            _ => (&host.incus, &host.lxd),
        };
        if base == "incus" {
            fs::rename(&host.lxd, &host.incus).unwrap();
        }
        symlink(real, link).unwrap();
        let told = sync(std::slice::from_ref(&machine.record));
        for daemon in ["down", "up"] {
            if daemon == "up" {
                let told = told.clone();
                serve(&real.join("unix.socket"), move |_| told.clone());
            }
            let row = host.row("demo");
            assert_eq!(
                [&row["reason"], &row["driver"]],
                [&Value::Null, &json!(kind)],
                "{daemon}: {row}"
            );
            host.run(&["export", "demo", "-q", "-o", "-"]).ok();
        }
    }
}

#[test]
fn silent_daemons_are_waited_for_side_by_side() {
    let machine = Machine::new();
    let host = &machine.host;
    // Neither answers before both have been asked.
    let (first, second) = (channel::<()>(), channel::<()>());
    let ends = [
        (first.0, second.1, vec![machine.record.clone()]),
        (second.0, first.1, vec![record(host, "other", "Stopped", MAP)]),
    ];
    for (base, (asked, other, records)) in [&host.lxd, &host.incus].into_iter().zip(ends) {
        let (other, answer) = (Arc::new(Mutex::new(other)), sync(&records));
        serve(&base.join("unix.socket"), move |_| {
            let _ = asked.send(());
            let _ = other.lock().unwrap().recv();
            answer.clone()
        });
    }
    let row = host.row("demo");
    assert_eq!([&row["state"], &row["facts"]], [&json!("stopped"), &Value::Null], "{row}");
}

#[test]
fn a_server_that_lists_one_project_at_a_time_is_asked_for_each() {
    let mut machine = Machine::new();
    let from = directory(&machine.host.lxd, "demo");
    fs::rename(&from, from.with_file_name("work_codchi-demo")).unwrap();
    // LXD 4 does not say it.
    machine.record.as_object_mut().unwrap().remove("project");
    let extensions = json!(["projects", "instances"]);
    for (release, path) in [("LXD 4.0", "/1.0/instances"), ("LXD 3.18", "/1.0/containers")] {
        let (record, extensions) = (machine.record.clone(), extensions.clone());
        serve(&machine.host.lxd.join("unix.socket"), move |asked| {
            let (asked_path, query) = asked.split_once('?').unwrap_or((asked, ""));
            match asked_path {
                "/1.0" => metadata(&json!({"api_extensions": extensions, "environment": {}})),
                "/1.0/projects" => {
                    metadata(&json!(["/1.0/projects/default", "/1.0/projects/work"]))
                }
                p if p == path && query.contains("project=work") => {
                    sync(std::slice::from_ref(&record))
                }
                p if p == path => sync(&[]),
                _ => http(
                    "404 Not Found",
                    &json!({"type": "error", "error": "not found", "error_code": 404}).to_string(),
                ),
            }
        });
        let row = machine.host.row("demo");
        assert_eq!(
            [&row["state"], &row["facts"]],
            [&json!("stopped"), &Value::Null],
            "{release}: {row}"
        );
        let page = machine.host.mount("mnt");
        assert_eq!(seen(&page.rootfs("demo")), expected(), "{release}");
        page.unmount();
    }
    // In the commands that are given, too.
    machine.record["status"] = "Running".into();
    machine.record["project"] = "work".into();
    machine.told();
    let page = machine.host.run(&["migrate", "demo"]).ok().out();
    assert!(page.contains("lxc stop codchi-demo --project work"), "{page}");
    fs::rename(
        from.with_file_name("work_codchi-demo").join("rootfs"),
        machine.host.path().join("away"),
    )
    .unwrap();
    let reason = machine.host.row("demo")["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("`lxc start codchi-demo --project work` mounts it"), "{reason}");
}

#[test]
fn a_machine_on_another_member_of_a_cluster_is_named_with_the_member() {
    let mut machine = Machine::new();
    machine.record["location"] = "two".into();
    let record = machine.record.clone();
    let server = |name: &'static str, record: Value| {
        move |asked: &str| match asked {
            "/1.0" => metadata(&json!({
                "api_extensions": ["projects", "instance_all_projects"],
                "environment": {"server_clustered": true, "server_name": name},
            })),
            _ => sync(std::slice::from_ref(&record)),
        }
    };
    let socket = machine.host.lxd.join("unix.socket");
    serve(&socket, server("one", record.clone()));
    let row = machine.host.row("demo");
    let reason = row["reason"].as_str().unwrap();
    assert!(
        reason.contains("on the cluster member two") && reason.contains("run codchifs on two"),
        "{row}"
    );
    assert!(!reason.contains("rebuild"), "{row}");
    serve(&socket, server("two", record));
    assert_eq!(machine.host.row("demo")["state"], "stopped");
}

#[test]
fn a_record_that_says_nothing_is_no_reason_to_build_the_machine_anew() {
    let machine = Machine::new();
    let nothing = |state: &str| {
        json!({
            "name": "codchi-demo", "project": "work", "type": "container", "status": state, "location": "two",
            "config": null, "devices": null, "expanded_config": null, "expanded_devices": null,
        })
    };
    for state in ["Error", "Unknown", ""] {
        let answer = sync(&[nothing(state)]);
        serve(&machine.host.lxd.join("unix.socket"), move |_| answer.clone());
        let row = machine.host.row("demo");
        let reason = row["reason"].as_str().unwrap();
        for words in
            ["LXD lists it on the cluster member two", "lxc info codchi-demo --project work"]
        {
            assert!(reason.contains(words), "{words}: {row}");
        }
        assert!(!reason.contains("rebuild") && !reason.contains("somebody else"), "{row}");
    }
}

#[test]
fn leftovers_of_a_move_are_not_taken_for_the_machine() {
    let machine = Machine::new();
    let host = &machine.host;
    let used = host.lxd.join("storage-pools/second/containers/codchi-demo");
    let left = directory(&host.lxd, "demo");
    fs::create_dir_all(used.parent().unwrap()).unwrap();
    fs::rename(&left, &used).unwrap();
    let moved = json!({"container": machine.record})
        .to_string()
        .replace(r#""pool":"default""#, r#""pool":"second""#);
    fs::write(used.join("backup.yaml"), moved).unwrap();
    fs::create_dir(&left).unwrap();
    machine.written();
    // A record without files.
    assert_eq!(host.row("demo")["pool"], "second", "{}", host.row("demo"));
    check(host, "beside a leftover", &host.mount("mnt").rootfs("demo"));
    // Both have files, or one of them has nothing: only the daemon knows.
    let refused = |what: &str| {
        let row = host.row("demo");
        let reason = row["reason"].as_str().unwrap();
        for words in ["it lies in the pools default and second", "start LXD"] {
            assert!(reason.contains(words), "{what}, {words}: {row}");
        }
        assert!(!reason.contains("delete"), "{what}: {row}");
    };
    fs::create_dir(left.join("rootfs")).unwrap();
    refused("both have files");
    fs::remove_dir(left.join("rootfs")).unwrap();
    fs::remove_file(left.join("backup.yaml")).unwrap();
    refused("an empty directory, as of a volume that is not mounted");
}

/// What each release writes into backup.yaml, and how: from its sources, where there is none here to write it.
fn releases(host: &Host) -> Vec<(&'static str, Value)> {
    let mut instance = record(host, "demo", "Running", MAP);
    let pool = json!({"name": "default", "driver": "dir", "config": {}, "used_by": [], "status": "Created"});
    let volume = json!({"name": "codchi-demo", "type": "container", "config": {}, "content_type": "filesystem"});
    let mut with = |key: &str, value: Value| {
        instance[key] = value;
        instance.clone()
    };
    let lxd_5 = with("location", "none".into());
    let lxd_6 = with("location", "none".into());
    let mut lxd_4 = lxd_5.clone();
    lxd_4.as_object_mut().unwrap().remove("project");
    let mut new_volume = volume.clone();
    (new_volume["pool"], new_volume["project"]) = ("default".into(), "default".into());
    let custom = json!({"name": "data", "type": "custom", "pool": "other", "project": "default"});
    vec![
        ("LXD 4.0", json!({"container": lxd_4, "snapshots": [], "pool": pool, "volume": volume})),
        (
            "LXD 5.0",
            json!({"container": lxd_5, "snapshots": null, "pool": pool, "profiles": [], "volume": volume}),
        ),
        ("LXD 5.21", json!({"container": lxd_5, "pool": pool, "volume": new_volume})),
        (
            "LXD 6",
            json!({"version": 2, "instance": lxd_6, "pools": [{"name": "other"}, pool], "volumes": [custom, new_volume]}),
        ),
        (
            "Incus 6",
            json!({"container": lxd_5, "pool": pool, "profiles": [], "volume": new_volume}),
        ),
    ]
}

#[test]
fn the_records_of_every_release_are_read() {
    let machine = Machine::new();
    machine.written();
    for (release, record) in releases(&machine.host) {
        fs::write(directory(&machine.host.lxd, "demo").join("backup.yaml"), record.to_string())
            .unwrap();
        let mounted = machine.host.mount("mnt");
        check(&machine.host, release, &mounted.rootfs("demo"));
        mounted.unmount();
    }
}
