//! Machines of a real LXD, and of daemons that do not answer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::lxd::{Entry, FILES, HOME, Host, Lxd, plant, shifted, user};
use common::{Done, contains, program, run, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

/// A change of an instance shows within this time.
const SHOWS: Duration = Duration::from_secs(2);
/// What a command may take at most with a daemon that never answers: its deadline is 3 s.
const COMES_BACK: Duration = Duration::from_secs(15);

fn entries() -> impl Iterator<Item = &'static Entry> + Clone {
    FILES.iter().chain(HOME)
}

fn expected() -> String {
    entries().map(|(path, uid, gid, mode, _)| format!("{uid} {gid} {mode:o} {path}\n")).collect()
}

/// Owners and modes as they are below `top`; the contents are compared on the way.
fn seen(top: &Path) -> String {
    entries()
        .map(|(path, _, _, _, content)| {
            let at = top.join(path);
            let meta = at.symlink_metadata().unwrap_or_else(|e| panic!("{}: {e}", at.display()));
            if let Some(content) = content {
                assert_eq!(fs::read_to_string(&at).unwrap(), *content, "{}", at.display());
            }
            format!("{} {} {:o} {path}\n", meta.uid(), meta.gid(), meta.mode() & 0o7777)
        })
        .collect()
}

/// What a program in the instance sees.
fn inside(lxd: &Lxd) -> String {
    let script = "cd / && for f; do busybox stat -c '%u %g %a %n' $f; done";
    let paths = entries().map(|e| e.0);
    let exec = ["exec", "codchi-demo", "--", "/bin/busybox", "sh", "-c", script, "sh"];
    let all: Vec<_> = exec.into_iter().chain(paths).collect();
    let files = entries().filter(|e| e.4.is_some());
    let cat = ["exec", "codchi-demo", "--", "/bin/busybox", "cat"].map(str::to_owned);
    let cat: Vec<_> = cat.into_iter().chain(files.clone().map(|e| format!("/{}", e.0))).collect();
    let contents = lxd.lxc(&cat.iter().map(String::as_str).collect::<Vec<_>>()).ok().out();
    assert_eq!(contents, files.map(|e| e.4.unwrap()).collect::<String>());
    lxd.lxc(&all).ok().out()
}

/// The export of a machine, extracted, is what the instance sees; so is `rootfs`, of a mount.
fn check(host: &Host, stage: &str, rootfs: &Path) {
    assert_eq!(seen(rootfs), expected(), "rootfs/, {stage}");
    let out = host.path().join("extracted");
    let tar = host.path().join("demo.tar");
    host.run(&["export", "demo", "-q", "-o", tar.to_str().unwrap()]).ok();
    fs::create_dir(&out).unwrap();
    run(program("tar", ["--numeric-owner", "-xpf"]).arg(&tar).arg("-C").arg(&out)).silent();
    assert_eq!(seen(&out), expected(), "the extracted export, {stage}");
    fs::remove_dir_all(&out).unwrap();
    fs::remove_file(&tar).unwrap();
}

/// One life of a machine, under one open mount and with a new mount at each stage.
fn life(pool: &str) {
    let mut lxd = Lxd::new(pool);
    let open = lxd.host.mount("open");
    let stage = |lxd: &Lxd, name: &str, running: Value| {
        wait_until(&format!("{name}: the status in report.json"), SHOWS, || {
            open.report("demo")["running"] == running
        });
        check(&lxd.host, name, &open.rootfs("demo"));
        let fresh = lxd.host.mount("fresh");
        check(&lxd.host, name, &fresh.rootfs("demo"));
        fresh.unmount();
    };
    stage(&lxd, "never started", json!(false));
    assert_eq!(lxd.host.row("demo")["shifted"], false);
    for name in ["started", "started again"] {
        lxd.lxc(&["start", "codchi-demo"]).ok();
        assert_eq!(inside(&lxd), expected(), "the instance, {name}");
        stage(&lxd, name, json!(true));
        let row = lxd.host.row("demo");
        assert_eq!(
            [&row["state"], &row["driver"], &row["pool"], &row["facts"]],
            [&json!("running"), &json!("lxd"), &json!("default"), &Value::Null]
        );
        if name == "started" {
            lxd.lxc(&["stop", "-f", "codchi-demo"]).ok();
            stage(&lxd, "stopped", json!(false));
            assert_eq!(lxd.host.row("demo")["state"], "stopped");
        }
    }
    lxd.kill_daemon();
    wait_until("the silence in report.json", SHOWS, || {
        open.report("demo")["daemon"]["silent"].is_string()
    });
    // The open mount knows from when its facts are; a new one has them from the disk.
    assert!(open.report("demo")["daemon"]["facts_as_of"].is_string());
    stage(&lxd, "daemon killed", json!(true));
    let row = lxd.host.row("demo");
    assert!(row["facts"].as_str().unwrap().starts_with("from backup.yaml: LXD: cannot connect"));
    assert_eq!(row["state"], "ready", "nobody knows whether it runs");
    lxd.start_daemon();
    lxd.lxc(&["stop", "-f", "codchi-demo"]).ok();
    stage(&lxd, "daemon back, stopped", json!(false));
    lxd.kill_daemon();
    stage(&lxd, "daemon killed, stopped", json!(false));
    open.unmount();
}

#[test]
fn owners_are_the_instances_own_in_a_dir_pool() {
    life("dir");
}

#[test]
fn owners_are_the_instances_own_in_a_btrfs_pool() {
    life("btrfs");
}

#[test]
fn a_machine_made_while_mounted_and_a_foreign_device_show() {
    let mut lxd = Lxd::new("dir");
    let open = lxd.host.mount("mnt");
    assert_eq!(open.report("demo")["devices_not_exported"], json!([]));
    let shared = lxd.host.path().join("shared");
    fs::create_dir(&shared).unwrap();
    let source = format!("source={}", shared.display());
    let device = ["config", "device", "add", "codchi-demo", "shared", "disk"];
    lxd.lxc(&[&device[..], &[&source, "path=/mnt/shared"]].concat()).ok();
    let named = json!([{"path": "/mnt/shared", "source": shared}]);
    wait_until("the device", SHOWS, || open.report("demo")["devices_not_exported"] == named);

    assert!(!open.point().join("new").exists());
    lxd.create("new");
    plant(&lxd.host.home("new"), HOME, shifted);
    wait_until("the new machine", SHOWS, || open.report("new")["state"] == "ready");
    assert_eq!(seen(&open.rootfs("new")), expected());
    lxd.lxc(&["delete", "codchi-new"]).ok();
    wait_until("its end", SHOWS, || open.report("new")["state"] == "not installed");
    // The same in a project of its own.
    let features = ["-c", "features.images=false", "-c", "features.profiles=false"];
    lxd.lxc(&[&["project", "create", "work"][..], &features].concat()).ok();
    lxd.lxc(&["project", "switch", "work"]).ok();
    lxd.create("elsewhere");
    plant(&lxd.host.home("elsewhere"), HOME, shifted);
    wait_until("the other project", SHOWS, || open.report("elsewhere")["state"] == "ready");
    lxd.kill_daemon();
    let offline = lxd.host.mount("offline");
    assert_eq!(offline.report("demo")["devices_not_exported"], named);
    assert_eq!(seen(&offline.rootfs("elsewhere")), expected());
    lxd.start_daemon();
    lxd.lxc(&["delete", "codchi-elsewhere"]).ok();
    lxd.lxc(&["project", "switch", "default"]).ok();
    lxd.lxc(&["project", "delete", "work"]).ok();
}

#[test]
fn somebody_elses_machine_is_not_read() {
    let lxd = Lxd::new("dir");
    let host = &lxd.host;
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
    let mut lxd = lxd;
    lxd.kill_daemon();
    let host = &lxd.host;
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
    let mut lxd = Lxd::new("dir");
    let secret = tempfile::Builder::new().prefix("secret-").tempdir_in("/root").unwrap();
    let marker = "marker-8dd1e0";
    fs::create_dir_all(secret.path().join("machine/demo")).unwrap();
    for file in ["config.toml", "flake.lock", "machine/demo/config.json", "machine/demo/file"] {
        let text =
            format!(r#"{{"nixpkgs_from":null,"modules":{{}},"secrets":{{"m":"{marker}"}}}}"#);
        fs::write(secret.path().join(file), text).unwrap();
    }
    let host = &lxd.host;
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
    lxd.kill_daemon();
    assert_eq!(lxd.host.row("demo")["state"], "ready", "all is as it was");
}

#[test]
fn btrfs_subvolumes_keep_their_inode_numbers_whatever_is_read_first() {
    let lxd = Lxd::new("btrfs");
    let srv = lxd.rootfs("demo").join("srv");
    for name in ["a", "b"] {
        let at = srv.join(name);
        run(program("btrfs", ["-q", "subvolume", "create"]).arg(&at)).ok();
        fs::write(at.join("file"), name).unwrap();
    }
    let numbers = |order: [&str; 2]| {
        let mounted = lxd.host.mount("mnt");
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

/// What a daemon that is none answers: the bytes of a whole response, or nothing, ever.
fn pretend(socket: &Path, response: Option<Vec<u8>>) {
    let _ = fs::remove_file(socket);
    fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            match &response {
                Some(bytes) => {
                    let _ = stream.read(&mut [0; 4096]);
                    let _ = stream.write_all(bytes);
                }
                None => kept.push(stream),
            }
        }
    });
}

fn http(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn sync(instances: &[Value]) -> Vec<u8> {
    http("200 OK", &json!({"type": "sync", "status_code": 200, "metadata": instances}).to_string())
}

const MAP: &str = r#"[{"Isuid":true,"Isgid":true,"Hostid":1000,"Nsid":0,"Maprange":1},{"Isuid":true,"Isgid":true,"Hostid":100001,"Nsid":1,"Maprange":999999}]"#;

/// The record of a machine as the API lists it.
fn record(host: &Host, machine: &str, status: &str, last_state: &str) -> Value {
    let config = json!({
        "raw.idmap": "uid 1000 0\ngid 1000 0",
        "security.nesting": "true",
        "volatile.last_state.idmap": last_state,
        "volatile.idmap.current": MAP,
        "volatile.idmap.next": MAP,
    });
    let devices = json!({
        "root": {"path": "/", "pool": "default", "type": "disk"},
        "home/codchi": {"path": "/home/codchi", "type": "disk", "source": host.home(machine)},
    });
    json!({
        "name": format!("codchi-{machine}"), "project": "default", "type": "container", "status": status,
        "config": config, "devices": devices, "expanded_config": config, "expanded_devices": devices,
    })
}

/// A machine on disk, whose backup.yaml says the same as [`record`].
fn on_disk(host: &Host, base: &Path, machine: &str, last_state: &str, ids: fn(u32) -> u32) {
    host.configure(machine);
    let dir = base.join(format!("storage-pools/default/containers/codchi-{machine}"));
    let rootfs = dir.join("rootfs");
    fs::create_dir_all(&rootfs).unwrap();
    chown(&rootfs, Some(ids(0)), Some(ids(0))).unwrap();
    plant(&rootfs, FILES, ids);
    plant(&host.home(machine), HOME, shifted);
    let backup = json!({"container": record(host, machine, "Stopped", last_state)});
    // JSON is YAML.
    fs::write(dir.join("backup.yaml"), backup.to_string()).unwrap();
}

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

#[test]
fn an_incus_that_leaves_the_rootfs_unshifted_is_read() {
    let host = Host::new();
    on_disk(&host, &host.incus, "demo", "[]", |id| id);
    pretend(&host.incus.join("unix.socket"), Some(sync(&[record(&host, "demo", "Running", "[]")])));
    let row = host.row("demo");
    assert_eq!(
        [&row["driver"], &row["state"], &row["shifted"]],
        [&json!("incus"), &json!("running"), &json!(false)]
    );
    check(&host, "online", &host.mount("online").rootfs("demo"));
    fs::remove_file(host.incus.join("unix.socket")).unwrap();
    assert_eq!(host.row("demo")["state"], "ready");
    check(&host, "offline", &host.mount("offline").rootfs("demo"));
}
