//! Machines that are not found, and those that cannot be used.

use crate::Case;
use crate::common::asked::Asked;
use crate::common::fixture::Fixture;
use crate::common::lxd::{Host, shifted, user};
use crate::common::played::{MAP, directory, metadata, on_disk, played, pretend, record, serve};
use crate::common::{program, run};
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

pub(crate) const CASES: &[Case] = &[
    ("no code machines in", || {
        let fixture = Fixture::new();
        let said = fixture.run(["list"]).ok().err();
        let other = Fixture::new();
        other.empty("m");
        assert!(other.run(["list"]).ok().stderr.is_empty());
        said
    }),
    ("not installed", || {
        let fixture = Fixture::new();
        fs::remove_dir(fixture.empty("m").rootfs).unwrap();
        said_of(&fixture)
    }),
    ("belongs to somebody else", || {
        let host = played();
        let other = host.path().join("other");
        fs::create_dir(&other).unwrap();
        let mut command = host.command_of(&user(), &host.config(), Some(&other));
        let said = run(command.arg("list")).ok().out();
        works(&host);
        said
    }),
    ("older than Codchi", || {
        let fixture = Fixture::new();
        let flake = r#"{ inputs.codchi_driver.url = "github:aformatik/codchi/v0.3.1.4"; }"#;
        fs::write(fixture.empty("m").config.join("flake.nix"), flake).unwrap();
        fixture.run(["list"]).ok().out()
    }),
    ("is no full commit id", || {
        let fixture = Fixture::new();
        fixture.configured("m", r#"{"modules": {"x": "https://h/r?commit=0123456#a"}}"#);
        fixture.run(["list"]).ok().out()
    }),
    ("there are N instances", || {
        let host = played();
        on_disk(&host, &host.incus, "demo", "[]", |id| id);
        let said = list(&host);
        host.run(&["export", "demo", "-q", "-o", "-", "--driver", "incus"]).ok();
        said
    }),
    ("is on the cluster member", || {
        let (host, mut told) = told_by_lxd();
        told["location"] = "two".into();
        cluster(&host, &told, "one");
        let said = list(&host);
        cluster(&host, &told, "two");
        works(&host);
        said
    }),
    ("neither LXD nor Incus is on this host", || {
        let host = Host::new();
        host.configure("demo");
        let said = list(&host);
        on_disk(&host, &host.path().join("elsewhere"), "demo", MAP, shifted);
        let elsewhere = host.path().join("elsewhere").display().to_string();
        host.run(&["export", "demo", "-q", "-o", "-", "--lxd-dir", &elsewhere]).ok();
        said
    }),
    ("the daemon does not run", || {
        let host = played();
        fs::remove_file(host.lxd.join("unix.socket")).unwrap();
        works(&host);
        list(&host)
    }),
    ("the daemon is overloaded or stuck", || {
        let host = played();
        pretend(&host.lxd.join("unix.socket"), None);
        list(&host)
    }),
    ("add yourself to the group", || {
        let host = played();
        fs::set_permissions(host.lxd.join("unix.socket"), Permissions::from_mode(0o600)).unwrap();
        works(&host);
        list_by_user(&host)
    }),
    ("only root reads machines", || {
        let host = played();
        let shut = |at: &std::path::Path| {
            fs::set_permissions(at, Permissions::from_mode(0o700)).unwrap();
            chown(at, Some(shifted(71)), None).unwrap();
        };
        shut(&host.home("demo"));
        let home = list_by_user(&host);
        shut(&directory(&host.lxd, "demo"));
        works(&host);
        home + &list_by_user(&host)
    }),
    ("is not mounted", || {
        let host = played();
        let (rootfs, away) =
            (directory(&host.lxd, "demo").join("rootfs"), host.path().join("away"));
        fs::rename(&rootfs, &away).unwrap();
        let said = list(&host);
        fs::rename(&away, &rootfs).unwrap();
        works(&host);
        said
    }),
    ("cannot use the record", || {
        let host = played();
        let socket = host.lxd.join("unix.socket");
        fs::rename(&socket, host.path().join("daemon")).unwrap();
        let at = directory(&host.lxd, "demo").join("backup.yaml");
        let other = fs::read_to_string(&at).unwrap().replace("codchi-demo", "codchi-imported");
        fs::write(&at, "container: [").unwrap();
        let mut said = list(&host);
        fs::write(&at, other).unwrap();
        said += &list(&host);
        assert!(said.contains("says that its name is \"codchi-imported\""), "{said}");
        fs::rename(host.path().join("daemon"), &socket).unwrap();
        works(&host);
        said
    }),
    ("its home is the volume", || {
        let (host, mut told) = told_by_lxd();
        let before = told.clone();
        for devices in ["devices", "expanded_devices"] {
            told[devices]["home/codchi"]["pool"] = "default".into();
            told[devices]["home/codchi"]["source"] = "home".into();
        }
        cluster(&host, &told, "one");
        let said = list(&host);
        cluster(&host, &before, "one");
        works(&host);
        said
    }),
    ("and nothing else", || {
        let (host, told) = told_by_lxd();
        let nothing =
            json!({"name": "codchi-demo", "project": "default", "status": "Error", "config": null});
        cluster(&host, &nothing, "one");
        let said = list(&host);
        cluster(&host, &told, "one");
        works(&host);
        said
    }),
    ("it has no volatile.last_state.idmap", || {
        let (host, told) = told_by_lxd();
        let mut without = told.clone();
        for config in ["config", "expanded_config"] {
            without[config].as_object_mut().unwrap().remove("volatile.last_state.idmap");
        }
        cluster(&host, &without, "one");
        let said = list(&host);
        cluster(&host, &told, "one");
        works(&host);
        said
    }),
    ("cannot parse", || {
        let fixture = Fixture::new();
        fixture.configured("m", r#"{"modules": {}, "secrets": {"a": }"#);
        let said = said_of(&fixture);
        repaired(&fixture);
        said
    }),
    ("holds its lock", || {
        let fixture = Fixture::new();
        let path = fixture.empty("m").config.join("config.json");
        let mut file = File::create(&path).unwrap();
        flock(&file, FlockOperation::LockExclusive).unwrap();
        file.write_all(br#"{"modules": {"#).unwrap();
        let said = said_of(&fixture);
        file.write_all(br#"}, "secrets": {}}"#).unwrap();
        drop(file);
        fixture.run(["export", "m", "-q", "-o", "-"]).ok();
        said
    }),
    ("it is not a regular file", || {
        let fixture = Fixture::new();
        let path = fixture.empty("m").config.join("config.json");
        let elsewhere = fixture.path().join("dotfiles.json");
        fs::rename(&path, &elsewhere).unwrap();
        symlink(&elsewhere, &path).unwrap();
        let said = said_of(&fixture);
        fs::rename(&elsewhere, &path).unwrap();
        fixture.run(["export", "m", "-q", "-o", "-"]).ok();
        said
    }),
    ("correct it with `codchi module set`", || {
        let fixture = Fixture::new();
        fixture.configured("m", r#"{"modules":{"x":"ftp://host/y#z"},"secrets":{}}"#);
        let said = said_of(&fixture);
        repaired(&fixture);
        said
    }),
    ("mount the disk that it is on", || {
        let fixture = Fixture::new();
        let home = fixture.empty("m").home;
        fs::remove_dir(&home).unwrap();
        let said = said_of(&fixture);
        let other = fixture.scratch("other");
        fs::create_dir_all(other.join("machine/m")).unwrap();
        let mut export = program(env!("CARGO_BIN_EXE_codchifs"), ["--config-dir"]);
        export.arg(fixture.config()).arg("--rootfs-dir").arg(fixture.rootfs_dir());
        export.arg("--data-dir").arg(&other).args(["export", "m", "-q", "-o", "-"]);
        run(export).ok();
        said
    }),
    ("it is a link or no directory", || {
        let host = played();
        let (home, kept) = (host.home("demo"), host.data().join("kept"));
        fs::rename(&home, &kept).unwrap();
        symlink(&kept, &home).unwrap();
        let said = list(&host);
        fs::remove_file(&home).unwrap();
        fs::rename(&kept, &home).unwrap();
        works(&host);
        said
    }),
    ("in one of uid UID's own", || {
        let host = played();
        let data = format!("data_dir = {:?}\n", host.data());
        fs::write(host.config().join("config.toml"), data).unwrap();
        chown(host.data().join("machine"), Some(0), None).unwrap();
        let mut command = host.command_of(&user(), &host.config(), None);
        let said = run(command.arg("list")).ok().out();
        works(&host);
        said
    }),
];

/// A machine, and what LXD says of it.
fn told_by_lxd() -> (Host, Value) {
    let host = played();
    let told = record(&host, "demo", "Stopped", MAP);
    (host, told)
}

/// Has a member of a cluster say this of the machine.
fn cluster(host: &Host, record: &Value, member: &'static str) {
    let record = record.clone();
    serve(&host.lxd.join("unix.socket"), move |path| match path {
        "/1.0" => metadata(&json!({
            "api_extensions": ["projects", "instance_all_projects"],
            "environment": {"server_clustered": true, "server_name": member},
        })),
        _ => metadata(&json!([record])),
    });
}

fn list(host: &Host) -> String {
    host.run(&["list"]).ok().out()
}

fn list_by_user(host: &Host) -> String {
    let look = "shift; \"$@\" list";
    Asked { fuse: "666", conf: "", look }.run(host).ok().out()
}

/// Root exports the machine.
fn works(host: &Host) {
    host.run(&["export", "demo", "-q", "-o", "-"]).ok();
}

/// What `list` says, which an export says as well.
fn said_of(fixture: &Fixture) -> String {
    let said = fixture.run(["list"]).ok().out();
    let export = fixture.run(["export", "m", "-q", "-o", "-"]).exits(1).err();
    let why = export.trim().strip_prefix("codchifs: export m: ").unwrap();
    assert!(said.lines().any(|line| line.trim() == why), "{said}\n{export}");
    said
}

/// With a configuration that is one.
fn repaired(fixture: &Fixture) {
    fixture.empty("m");
    fixture.run(["export", "m", "-q", "-o", "-"]).ok();
}
