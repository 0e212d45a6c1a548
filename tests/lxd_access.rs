//! Machines of LXD and Incus that somebody may not read, that are not there, or that are there twice. What is said of
//! them is the same in `list`, on stderr and in `report.json`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::lxd::{Host, LXD, Server, UID, check, shifted};
use common::played::{MAP, directory, on_disk, played, pretend, record, sync};
use common::{program, run, wait_until};
use serde_json::{Value, json};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;

/// Lists, exports and mounts in a mount namespace of its own, after `$SETUP`.
const SCRIPT: &str = r#"
mknod "$AT/fuse" c 10 229
chmod 666 "$AT/fuse"
mount --bind "$AT/fuse" /dev/fuse
eval "$SETUP"
trap '"$@" unmount --lazy "$AT/mnt"' EXIT
"$@" list --json >"$AT/list"
"$@" export demo -q -o "$AT/mnt/demo.tar" 2>"$AT/export" && status=0 || status=$?
echo "$status" >"$AT/status"
rm -f "$AT"/mnt/demo.tar*
"$@" mount "$AT/mnt"
cd /
$AS cat "$AT/mnt/demo/report.json" >"$AT/report"
$AS ls "$AT/mnt/demo" >"$AT/shown"
"#;

/// Whoever asks.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Who {
    Root,
    User,
    /// The user, with the group of the daemon's socket.
    Member,
}

/// What codchifs says of the machine `demo`.
#[derive(Debug)]
struct Said {
    row: Value,
    report: Value,
    /// On stderr, by an export.
    export: String,
    status: i32,
    /// The names in its directory.
    shown: String,
}

impl Said {
    /// The reason why there is no machine, which is the same everywhere.
    #[track_caller]
    fn reason(&self) -> &str {
        let reason = self.row["reason"].as_str().unwrap_or_else(|| panic!("no reason: {self:?}"));
        assert_eq!([&self.row["state"], &self.report["state"]], [&json!("broken"); 2]);
        assert_eq!(self.report["reason"], reason);
        assert_eq!(self.export, format!("codchifs: export demo: {reason}\n"));
        assert_eq!(self.status, 1);
        assert_eq!(self.shown, "MIGRATE.md\nreport.json\n", "no machine, not even an empty one");
        reason
    }
}

fn ask(host: &Host, who: Who, setup: &str) -> Said {
    let at = tempfile::Builder::new().prefix("ask-").tempdir_in(host.path()).unwrap();
    fs::set_permissions(at.path(), Permissions::from_mode(0o755)).unwrap();
    let point = at.path().join("mnt");
    fs::create_dir(&point).unwrap();
    chown(&point, Some(UID), Some(UID)).unwrap();
    let user = format!("setpriv --reuid {UID} --regid {UID} --clear-groups");
    let asks = match who {
        Who::Root => String::new(),
        Who::User => user.clone(),
        Who::Member => user.replace("--clear-groups", "--groups lxd"),
    };
    let mut command = program("unshare", ["--mount", "--propagation", "private"]);
    command.args(["sh", "-ec", SCRIPT, "sh"]).args(asks.split_whitespace());
    let codchifs = host.command(&[]);
    let options = codchifs.get_args().skip(if who == Who::Root { 0 } else { 2 });
    command.arg(codchifs.get_program()).args(options);
    command.env("LXD_DIR", &host.lxd).env("INCUS_DIR", &host.incus);
    command.env("AT", at.path()).env("AS", user).env("SETUP", setup);
    run(command).ok();
    let text = |name: &str| fs::read_to_string(at.path().join(name)).unwrap();
    let rows: Vec<Value> = serde_json::from_str(&text("list")).unwrap();
    Said {
        row: rows.into_iter().find(|row| row["name"] == "demo").unwrap(),
        report: serde_json::from_str(&text("report")).unwrap(),
        export: text("export"),
        status: text("status").trim().parse().unwrap(),
        shown: text("shown"),
    }
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn whoever_may_not_look_is_told_what_was_denied_and_what_to_do() {
    let server = Server::new(LXD, "dir");
    let said = ask(&server.host, Who::User, "");
    for words in [
        format!("cannot connect to {}/unix.socket: Permission denied", server.base().display()),
        "add yourself to the group lxd".into(),
        format!("cannot read {}/storage-pools: Permission denied", server.base().display()),
        "run as root".into(),
    ] {
        assert!(said.reason().contains(&words), "{words}: {said:?}");
    }
    let denied = |said: &Said, path: &Path| {
        let reason = said.reason();
        for words in [&format!("{}: Permission denied", path.display()), "run as root"] {
            assert!(reason.contains(words), "{words}: {reason}");
        }
    };
    denied(&ask(&server.host, Who::Member, ""), &server.rootfs("demo"));

    let host = played();
    let (socket, instance) = (host.lxd.join("unix.socket"), directory(&host.lxd, "demo"));
    let (rootfs, backup) = (instance.join("rootfs"), instance.join("backup.yaml"));
    let (containers, home) = (instance.parent().unwrap(), host.home("demo"));
    // What is shut, and what is named then.
    for (shut, named) in [
        (&[(&*instance, 0o100)][..], &*rootfs),
        (&[(&rootfs, 0o700)], &rootfs),
        (&[(&home, 0o700)], &home),
        (&[(&socket, 0o600), (containers, 0o711)], containers),
        (&[(&socket, 0o600), (&backup, 0o400)], &backup),
    ] {
        for (at, to) in shut {
            mode(at, *to);
            chown(at, Some(shifted(71)), None).unwrap();
        }
        let said = ask(&host, Who::User, "");
        denied(&said, named);
        // Once, wherever it is said.
        let silent = said.row.to_string().matches("unix.socket: Permission denied").count();
        assert_eq!(silent, usize::from(shut[0].0 == socket), "{said:?}");
        for (at, _) in shut {
            mode(at, if *at == socket { 0o666 } else { 0o755 });
            chown(at, Some(UID), None).unwrap();
        }
    }
    // A part of it: what was denied is named, and nothing passes for the whole.
    let said = ask(&host, Who::User, "");
    assert!(
        said.export.contains("demo: /srv/service: cannot be read: Permission denied"),
        "{said:?}"
    );
    assert!(said.export.contains("export demo: incomplete"), "{said:?}");
    assert_eq!(said.status, 1);
}

#[test]
fn a_volume_that_is_not_mounted_is_named_with_what_mounts_it() {
    let host = played();
    let instance = directory(&host.lxd, "demo");
    let rootfs = instance.join("rootfs");
    let away = host.path().join("away");
    let start = "`lxc start codchi-demo` mounts it";
    fs::rename(&rootfs, &away).unwrap();
    let check_reason = |what: &str, said: &Said, path: &Path, words: &str| {
        let reason = said.reason();
        assert!(reason.contains(&format!("there is no {}", path.display())), "{what}: {reason}");
        assert!(reason.contains(words), "{what}: {reason}");
    };
    check_reason("told by the daemon", &ask(&host, Who::Root, ""), &rootfs, start);
    fs::remove_file(host.lxd.join("unix.socket")).unwrap();
    check_reason("from backup.yaml", &ask(&host, Who::Root, ""), &rootfs, start);
    // ZFS and LVM have the record in the volume, too.
    let backup = instance.join("backup.yaml");
    fs::rename(&backup, host.path().join("backup.yaml")).unwrap();
    check_reason("the directory only", &ask(&host, Who::Root, ""), &backup, start);
    // And this is a pool of btrfs on a loop device.
    let containers = instance.parent().unwrap();
    fs::rename(containers, host.path().join("containers")).unwrap();
    let said = ask(&host, Who::Root, "");
    check_reason("no pool", &said, containers, "the pool default is not mounted");
    check_reason("no pool", &said, containers, "start LXD or Incus");
    fs::rename(host.path().join("containers"), containers).unwrap();
    fs::rename(host.path().join("backup.yaml"), &backup).unwrap();
    fs::rename(&away, &rootfs).unwrap();
    check(&host, "all is back", &host.mount("mnt").rootfs("demo"));
}

#[test]
fn what_is_in_the_mount_namespace_of_the_snap_only_is_found_there() {
    let host = played();
    let base = Path::new("/var/snap/lxd/common/lxd");
    let view = Path::new("/var/snap/lxd/common/mntns/var/snap/lxd/common/lxd");
    // What shows outside of the namespace: mount points, and the socket while the daemon runs.
    let outside = host.path().join("outside");
    fs::create_dir_all(directory(&outside, "demo")).unwrap();
    let setup = format!(
        "unset LXD_DIR; mount -t tmpfs none /var; mkdir -p {0} {1}; mount --bind {2} {0}; mount --bind {3} {1}",
        base.display(),
        view.display(),
        outside.display(),
        host.lxd.display()
    );
    for (how, told_by_daemon, missing) in
        [("the disk", false, "backup.yaml"), ("the daemon", true, "rootfs")]
    {
        if told_by_daemon {
            fs::hard_link(host.lxd.join("unix.socket"), outside.join("unix.socket")).unwrap();
        }
        let said = ask(&host, Who::Root, &setup);
        assert_eq!(said.row["rootfs"], json!(directory(view, "demo").join("rootfs")), "{said:?}");
        assert_eq!(said.row["facts"].is_null(), told_by_daemon, "{how}: {said:?}");
        assert_eq!((said.export.as_str(), said.status), ("", 0), "{how}");
        assert_eq!(said.shown, "MIGRATE.md\nexport.tar\nreport.json\nrootfs\n");

        let shut = format!("{setup}; chmod 700 /var/snap/lxd/common/mntns");
        let said = ask(&host, Who::User, &shut);
        let named = view.join("storage-pools");
        assert!(said.reason().contains(&named.display().to_string()), "{how}: {said:?}");
        assert!(said.reason().contains("Permission denied"), "{how}: {said:?}");

        let gone = format!("{setup}; umount {}", view.display());
        let said = ask(&host, Who::Root, &gone);
        let missing = directory(base, "demo").join(missing);
        let named = format!("there is no {}", missing.display());
        assert!(said.reason().contains(&named), "{how}: {said:?}");
        assert!(said.reason().contains("nsenter --mount=/run/snapd/ns/lxd.mnt"), "{said:?}");
    }
}

#[test]
fn two_instances_of_one_name_are_an_error_that_names_both() {
    let host = played();
    on_disk(&host, &host.incus, "demo", "[]", |id| id);
    for (how, silent) in [("LXD tells, Incus is silent", "Incus"), ("both are silent", "LXD")] {
        let said = ask(&host, Who::Root, "");
        let reason = said.reason();
        for words in [
            format!("one of LXD in {} (project default, pool default)", host.lxd.display()),
            format!("one of Incus in {} (project default, pool default)", host.incus.display()),
            "choose with --driver lxd|incus".into(),
        ] {
            assert!(reason.contains(&words), "{how}: {reason}");
        }
        assert!(said.row["facts"].as_str().unwrap().contains(silent), "{how}: {said:?}");
        for driver in ["lxd", "incus"] {
            let out = host.run(&["list", "--json", "--driver", driver]).ok().out();
            let rows: Value = serde_json::from_str(&out).unwrap();
            let base = if driver == "lxd" { &host.lxd } else { &host.incus };
            let rootfs = directory(base, "demo").join("rootfs");
            assert_eq!([&rows[0]["driver"], &rows[0]["rootfs"]], [&json!(driver), &json!(rootfs)]);
            host.run(&["export", "demo", "-q", "-o", "-", "--driver", driver]).ok();
        }
        fs::remove_file(host.lxd.join("unix.socket")).unwrap_or_default();
    }
    // Two projects of one daemon.
    fs::remove_dir_all(&host.incus).unwrap();
    let mut other = record(&host, "demo", "Stopped", MAP);
    other["project"] = json!("work");
    let answer = sync(&[record(&host, "demo", "Stopped", MAP), other]);
    pretend(&host.lxd.join("unix.socket"), Some(answer));
    let said = ask(&host, Who::Root, "");
    for words in ["(project default, pool default)", "(project work, pool default)"] {
        assert!(said.reason().contains(words), "{said:?}");
    }
}

#[test]
fn a_daemon_that_is_installed_and_does_not_run_is_not_blamed_for_machines_of_the_other() {
    let host = played();
    fs::create_dir(&host.incus).unwrap();
    host.configure("planned");
    assert_eq!(host.row("demo")["facts"], Value::Null);
    assert_eq!(host.row("demo")["state"], "stopped");
    assert_eq!(host.row("planned")["state"], "not installed");
}

#[test]
fn a_daemon_whose_directory_comes_later_is_found_by_a_mount_that_is_there() {
    let host = Host::new();
    host.configure("demo");
    let mounted = host.mount("mnt");
    let reason = mounted.report("demo")["reason"].to_string();
    assert!(reason.contains("neither LXD nor Incus is on this host"), "{reason}");
    on_disk(&host, &host.lxd, "demo", MAP, shifted);
    wait_until("the machine", || mounted.tar("demo").exists());
}
