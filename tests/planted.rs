//! What a user plants to have a mount made by root read what the user may not: a refusal, and not one byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::disk::{Disk, DiskKind};
use common::lxd::{Host, UID, shifted, user};
use common::mounted::{Mounted, mounts_on};
use common::played::{MAP, Played, directory, on_disk, played, pretend, record, sync};
use common::{contains, program, run, wait_until};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{chown, lchown, symlink};
use std::path::{Path, PathBuf};

/// In everything that nobody may see.
const MARKER: &str = "marker-e2a51b";

/// Root's: whatever Codchi's state may have, and a marker in it.
fn secret() -> tempfile::TempDir {
    let secret = tempfile::Builder::new().prefix("secret-").tempdir_in("/root").unwrap();
    marked(secret.path());
    secret
}

fn marked(top: &Path) {
    fs::create_dir_all(top.join("machine/demo/srv")).unwrap();
    let json = format!(r#"{{"nixpkgs_from":null,"modules":{{}},"secrets":{{"m":"{MARKER}"}}}}"#);
    for file in ["config.json", "flake.nix", "flake.lock", "file", "srv/file"] {
        fs::write(top.join("machine/demo").join(file), &json).unwrap();
    }
    fs::write(top.join("config.toml"), format!("data_dir = {MARKER:?}\n")).unwrap();
}

/// Reads all that can be read below `top`: names, targets, contents, attributes. Nothing of it has a marker.
#[track_caller]
fn nothing_leaks(what: &str, top: &Path) -> usize {
    let shadow = fs::read_to_string("/etc/shadow").unwrap();
    let shadow = shadow.lines().next().unwrap().as_bytes();
    let (mut left, mut read) = (vec![top.to_path_buf()], 0);
    while let Some(directory) = left.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            assert!(
                !contains(path.as_os_str().as_encoded_bytes(), MARKER.as_bytes()),
                "{what}: {path:?}"
            );
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                left.push(path.clone());
            }
            if let Some(bytes) = kind.is_file().then(|| fs::read(&path).ok()).flatten() {
                read += 1;
                assert!(!contains(&bytes, MARKER.as_bytes()), "{what}: {}", path.display());
                assert!(!contains(&bytes, shadow), "{what}: {}", path.display());
            }
        }
    }
    read
}

/// The machine's `report.json`, if it shows at all.
fn report(mounted: &Mounted, machine: &str) -> String {
    fs::read_to_string(mounted.point().join(machine).join("report.json")).unwrap_or_default()
}

/// A place of the user's, and what a link there may lead to.
type Plant = (&'static str, fn(&Host) -> PathBuf);

const PLACES: &[Plant] = &[
    ("the machine's config directory", |host| host.config().join("machine/demo")),
    ("config.json", |host| host.config().join("machine/demo/config.json")),
    ("flake.nix", |host| host.config().join("machine/demo/flake.nix")),
    ("flake.lock", |host| host.config().join("machine/demo/flake.lock")),
    ("the machines' config directory", |host| host.config().join("machine")),
    ("the config directory", Host::config),
    ("the home", |host| host.home("demo")),
    ("the way to the home", |host| host.data().join("machine")),
    ("the data directory", Host::data),
];

/// What it is called below [`secret`].
fn counterpart(host: &Host, place: &Path, secret: &Path) -> PathBuf {
    let below = place.strip_prefix(host.config()).or_else(|_| place.strip_prefix(host.data()));
    secret.join(below.unwrap())
}

#[test]
fn a_planted_link_leads_nowhere() {
    let (host, secret) = (played(), secret());
    let point = host.path().join("mnt");
    plants(&host, secret.path(), |what, place| {
        let done = host.run(&["mount", "-o", "allow_root", point.to_str().unwrap()]);
        assert!(!done.err().contains(MARKER), "{what}: {}", done.err());
        nothing_leaks(what, &point);
        let harmless = place.ends_with("flake.nix");
        assert!(harmless || !point.join("demo/export.tar").exists(), "{what}: exported");
        if !mounts_on(&point).is_empty() {
            host.run(&["unmount", point.to_str().unwrap()]).ok();
        }
    });
    let mounted = host.mount("mnt");
    assert!(nothing_leaks("no plant", mounted.point()) > 3, "without a link the machine shows");
}

#[test]
fn a_link_planted_under_a_mount_leads_nowhere() {
    let (host, secret) = (played(), secret());
    let mut mount = host.command(&["mount", "--foreground", "-o", "allow_root"]);
    mount.env("CODCHIFS_LOG", "info");
    let mounted = Mounted::of(mount, host.path().join("mnt"), host.path().join("log"));
    let looks = || mounted.log().matches("looking at everything anew").count();
    plants(&host, secret.path(), |what, _| {
        let before = looks();
        mounted.signal(rustix::process::Signal::HUP);
        wait_until(what, || looks() > before);
        for _ in 0..3 {
            nothing_leaks(what, mounted.point());
        }
    });
    assert!(!mounted.log().contains(MARKER));
    wait_until("the machine to be back", || nothing_leaks("no plant", mounted.point()) > 3);
}

/// Plants one link after the other and takes it away again.
fn plants(host: &Host, secret: &Path, mut attempt: impl FnMut(&str, &Path)) {
    on_disk(host, &host.lxd, "victim", MAP, shifted);
    let victim = directory(&host.lxd, "victim").join("rootfs");
    fs::write(victim.join("srv/file"), MARKER).unwrap();
    fs::remove_dir_all(host.config().join("machine/victim")).unwrap();
    let kept = host.path().join("kept");
    for (what, place) in PLACES {
        let place = place(host);
        let like = counterpart(host, &place, secret);
        for target in [&like, Path::new("/etc/shadow"), Path::new("/root"), &victim] {
            let was_there = fs::rename(&place, &kept).is_ok();
            symlink(target, &place).unwrap();
            lchown(&place, Some(UID), Some(UID)).unwrap();
            attempt(&format!("{what} -> {}", target.display()), &place);
            fs::remove_file(&place).unwrap();
            if was_there {
                fs::rename(&kept, &place).unwrap();
            }
        }
    }
}

#[test]
fn a_data_dir_that_leads_elsewhere_shows_no_machine() {
    let secret = secret();
    let host = played();
    fs::create_dir(host.path().join("elsewhere")).unwrap();
    symlink(secret.path(), host.path().join("elsewhere/link")).unwrap();
    for data in [secret.path().to_owned(), host.path().join("elsewhere/link"), "/root".into()] {
        let toml = host.config().join("config.toml");
        fs::write(&toml, format!("data_dir = {data:?}\n")).unwrap();
        chown(&toml, Some(UID), Some(UID)).unwrap();
        let point = host.path().join("mnt");
        let mut mount = host.command_of(&user(), &host.config(), None);
        let done = run(mount.args(["mount", "-o", "allow_root"]).arg(&point));
        assert!(!done.err().contains(MARKER), "{}", done.err());
        nothing_leaks(&format!("data_dir {}", data.display()), &point);
        assert!(!point.join("demo/export.tar").exists(), "{}", data.display());
        if !mounts_on(&point).is_empty() {
            host.run(&["unmount", point.to_str().unwrap()]).ok();
        }
    }
}

#[test]
fn the_name_of_somebody_elses_machine_opens_nothing() {
    let host = played();
    // Of another user by its map; of the user by its map, but with the home in another's data directory.
    let other = host.path().join("other/machine/foreign");
    fs::create_dir_all(&other).unwrap();
    for machine in ["foreign", "nearly"] {
        on_disk(&host, &host.lxd, machine, MAP, shifted);
        fs::write(directory(&host.lxd, machine).join("rootfs/srv/root"), MARKER).unwrap();
        fs::write(host.home(machine).join("root"), MARKER).unwrap();
    }
    let mut records =
        ["demo", "foreign", "nearly"].map(|machine| record(&host, machine, "Stopped", MAP));
    for config in ["config", "expanded_config"] {
        records[1][config]["raw.idmap"] = "uid 1001 0\ngid 1001 0".into();
    }
    for devices in ["devices", "expanded_devices"] {
        records[2][devices]["home/codchi"]["source"] = other.to_str().unwrap().into();
    }
    fs::remove_file(host.lxd.join("unix.socket")).unwrap();
    let _daemon = Played::new(&host.lxd.join("unix.socket"), sync(&records));
    let mounted = host.mount("mnt");
    for machine in ["foreign", "nearly"] {
        assert!(report(&mounted, machine).contains("belongs to somebody else"), "{machine}");
    }
    assert!(mounted.tar("demo").exists());
    assert!(nothing_leaks("another's machine", mounted.point()) > 3);
}

/// A machine of user 1001, with the marker in its root and home, in a directory of its own.
fn of_another_user(host: &Host, directory: &str) -> PathBuf {
    let at = host.lxd.join("storage-pools").join(directory);
    let home = host.path().join("other/machine/victim");
    for path in [at.join("rootfs/srv"), home.clone()] {
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("file"), MARKER).unwrap();
    }
    chown(at.join("rootfs"), Some(UID), Some(UID)).unwrap();
    let config = json!({"raw.idmap": "uid 1001 0", "volatile.last_state.idmap": MAP});
    let record = json!({"container": {"name": "codchi-victim", "config": config}});
    fs::write(at.join("backup.yaml"), record.to_string()).unwrap();
    at
}

/// What a record may say that is not so: a place in it, and what stands there then.
type Lie = (&'static str, fn(&mut Value));

/// The machine that they all point to is `victim`, of project `work` and pool `second`.
const LIES: &[Lie] = &[
    ("name", |record| record["container"]["name"] = "codchi-victim".into()),
    ("name and project in one", |record| {
        record["container"]["name"] = "work_codchi-victim".into();
    }),
    ("name that is a way", |record| {
        record["container"]["name"] = "../../../second/containers/work_codchi-victim".into();
    }),
    ("project", |record| record["container"]["project"] = "work".into()),
    ("project that is a way", |record| record["container"]["project"] = "../work".into()),
    ("no project", |record| {
        record["container"].as_object_mut().unwrap().remove("project");
        record["container"]["name"] = "work_codchi-victim".into();
    }),
    ("pool", |record| {
        for devices in ["devices", "expanded_devices"] {
            record["container"][devices]["root"]["pool"] = "second".into();
        }
        record["pool"] = json!({"name": "second", "driver": "dir"});
    }),
    ("pool that is a way", |record| {
        for devices in ["devices", "expanded_devices"] {
            record["container"][devices]["root"]["pool"] = "../storage-pools/second".into();
        }
    }),
    ("pools of LXD 6", |record| record["pools"] = json!([{"name": "second", "driver": "dir"}])),
    ("volume", |record| {
        record["volume"] = json!({"name": "codchi-victim", "type": "container", "project": "work"});
    }),
    ("volumes of LXD 6", |record| {
        record["volumes"] =
            json!([{"name": "codchi-victim", "type": "container", "pool": "second"}]);
    }),
    ("another record beside it", |record| {
        record["instance"] = record["container"].clone();
        record["instance"]["name"] = "codchi-victim".into();
        record["instance"]["project"] = "work".into();
    }),
    ("profiles that say otherwise", |record| {
        record["container"]["devices"]["root"]["pool"] = "second".into();
    }),
    ("names that are no text", |record| record["container"]["name"] = json!(["codchi-victim"])),
];

#[test]
fn a_record_that_lies_of_its_place_opens_nothing() {
    let host = Host::new();
    // The user's own, and one of the same name as the other user's, which is in other directories.
    on_disk(&host, &host.lxd, "demo", MAP, shifted);
    host.configure("victim");
    let truth = record(&host, "demo", "Stopped", MAP);
    let places = ["second/containers/work_codchi-victim", "default/containers/codchi-victim"];
    let others = places.map(|place| of_another_user(&host, place));
    let own = directory(&host.lxd, "demo").join("backup.yaml");
    let together: Lie =
        ("many together", |record| LIES.iter().take(10).for_each(|(_, lie)| lie(record)));
    for daemon in ["down", "silent"] {
        if daemon == "silent" {
            pretend(&host.lxd.join("unix.socket"), None);
        }
        let lies = if daemon == "down" { LIES } else { &[together] };
        for (what, lie) in lies {
            let mut lying = json!({"container": truth});
            lie(&mut lying);
            fs::write(&own, lying.to_string()).unwrap();
            let mounted = host.mount("mnt");
            for machine in ["demo", "victim"] {
                let told = report(&mounted, machine);
                assert!(!mounted.tar(machine).exists(), "{daemon}, {what}: {machine} is exported");
                assert!(!told.contains("is not mounted"), "{daemon}, {what}: {told}");
                let done = host.run(&["export", machine, "-q", "-o", "-"]).exits(1);
                assert!(done.stdout.is_empty(), "{daemon}, {what}: {machine}");
            }
            let told = report(&mounted, "demo");
            assert!(
                told.contains("cannot use the record of codchi-demo"),
                "{daemon}, {what}: {told}"
            );
            assert!(told.contains("start LXD"), "{daemon}, {what}: {told}");
            nothing_leaks(what, mounted.point());
            mounted.unmount();
        }
    }
    drop(others);
    fs::remove_file(host.lxd.join("unix.socket")).unwrap();
    fs::write(&own, json!({"container": truth}).to_string()).unwrap();
    assert!(nothing_leaks("the truth", host.mount("mnt").point()) > 3, "its own place is its own");
}

/// Sets what a record has twice.
fn both(record: &mut Value, section: &str, change: impl Fn(&mut Value)) {
    for section in [section.to_owned(), format!("expanded_{section}")] {
        change(&mut record[section]);
    }
}

/// What no daemon says, of whose machine it is and where. The user's own `demo` is what it is said of.
const LIES_OF_A_DAEMON: &[Lie] = &[
    ("a name that is another's directory", |record| record["name"] = "work_codchi-victim".into()),
    ("a name that is a way", |record| record["name"] = "../containers/codchi-victim".into()),
    ("a project that is a way", |record| record["project"] = "../containers/work".into()),
    ("an empty project", |record| record["project"] = "".into()),
    ("a pool that is a way", |record| {
        both(record, "devices", |devices| {
            devices["root"]["pool"] = "../storage-pools/second".into()
        });
    }),
    ("a pool of no instance", |record| {
        both(record, "devices", |devices| devices["root"]["pool"] = "third".into());
    }),
    ("another's home", |record| {
        both(record, "devices", |devices| {
            devices["home/codchi"]["source"] = "/root/machine/demo".into()
        });
    }),
    ("a home by a way", |record| {
        both(record, "devices", |devices| {
            let own = devices["home/codchi"]["source"].as_str().unwrap().to_owned();
            devices["home/codchi"]["source"] =
                format!("{own}/../../../other/machine/victim").into();
        });
    }),
    ("another's map", |record| {
        both(record, "config", |config| config["raw.idmap"] = "uid 1001 0\ngid 1001 0".into());
    }),
    ("the maps of two", |record| {
        both(record, "config", |config| config["raw.idmap"] = "uid 1001 0\nuid 1000 0".into());
    }),
    ("a map that is not its own", |record| {
        record["config"]["raw.idmap"] = "uid 1001 0".into();
    }),
    ("devices that are not its own", |record| {
        record["devices"]["home/codchi"]["source"] = "/root".into();
    }),
];

#[test]
fn what_no_daemon_says_of_an_instance_opens_nothing() {
    let host = Host::new();
    on_disk(&host, &host.lxd, "demo", MAP, shifted);
    host.configure("victim");
    for place in ["second/containers/work_codchi-victim", "default/containers/codchi-victim"] {
        of_another_user(&host, place);
    }
    let truth = record(&host, "demo", "Stopped", MAP);
    let socket = host.lxd.join("unix.socket");
    let daemon = Played::new(&socket, sync(std::slice::from_ref(&truth)));
    let together: Lie =
        ("all together", |record| LIES_OF_A_DAEMON.iter().for_each(|(_, lie)| lie(record)));
    for (what, lie) in LIES_OF_A_DAEMON.iter().chain([&together]) {
        let mut lying = truth.clone();
        lie(&mut lying);
        daemon.says(sync(&[lying]));
        let mounted = host.mount("mnt");
        for machine in ["demo", "victim"] {
            assert!(!mounted.tar(machine).exists(), "{what}: {machine} is exported");
            let told = report(&mounted, machine);
            assert!(!told.contains("codchi-victim/") && !told.contains("work"), "{what}: {told}");
        }
        nothing_leaks(what, mounted.point());
        mounted.unmount();
    }
    daemon.says(sync(&[truth]));
    assert!(nothing_leaks("the truth", host.mount("mnt").point()) > 3);
}

#[test]
fn nobody_is_told_what_others_have() {
    let host = Host::new();
    host.configure("victim");
    let place = of_another_user(&host, "default/containers/codchi-victim");
    let asked = |what: &str| {
        let mounted = host.mount("mnt");
        assert!(!mounted.tar("victim").exists(), "{what}");
        nothing_leaks(what, mounted.point());
        let told = report(&mounted, "victim");
        mounted.unmount();
        let (row, done) = (host.row("victim"), host.run(&["export", "victim", "-o", "-"]).exits(1));
        format!("{told}{row}{}", done.err())
    };
    let mut theirs = json!({"container": record(&host, "victim", "Stopped", MAP)});
    for config in ["config", "expanded_config"] {
        theirs["container"][config]["raw.idmap"] = "uid 1001 0\ngid 1001 0".into();
    }
    let mut lying = theirs.clone();
    lying["container"]["name"] = "codchi-other".into();
    // Whatever the other user has, down to a record that nobody can read: it is as if there were nothing.
    let records = [("theirs", theirs.to_string()), ("theirs, lying", lying.to_string())];
    let mut told = Vec::new();
    for (what, text) in &records {
        fs::write(place.join("backup.yaml"), text).unwrap();
        told.push((*what, asked(what)));
    }
    // While it runs, its directory belongs to who is root in it.
    chown(&place, Some(UID + 1), Some(0)).unwrap();
    let claims_to_be_mine = json!({"container": record(&host, "victim", "Stopped", MAP)});
    for (what, text) in
        [("torn", "container: [".to_owned()), ("a lie", claims_to_be_mine.to_string())]
    {
        fs::write(place.join("backup.yaml"), text).unwrap();
        told.push((what, asked(what)));
    }
    fs::remove_file(place.join("backup.yaml")).unwrap();
    told.push(("no record", asked("no record")));
    // A record that another user has put there, in a directory that is root's again.
    chown(&place, Some(0), Some(0)).unwrap();
    fs::write(place.join("backup.yaml"), claims_to_be_mine.to_string()).unwrap();
    chown(place.join("backup.yaml"), Some(UID + 1), None).unwrap();
    told.push(("a file of another user", asked("a file of another user")));
    fs::remove_dir_all(&place).unwrap();
    let nothing = asked("nothing");
    for (what, told) in told {
        assert_eq!(told, nothing, "{what}");
    }
}

#[test]
fn a_machine_that_moves_to_where_none_was_at_mount_time_is_shown() {
    let host = played();
    on_disk(&host, &host.lxd, "moves", MAP, shifted);
    fs::remove_file(host.lxd.join("unix.socket")).unwrap();
    let mut records = ["demo", "moves"].map(|machine| record(&host, machine, "Stopped", MAP));
    let daemon = Played::new(&host.lxd.join("unix.socket"), sync(&records));
    let mounted = host.mount("mnt");
    assert!(mounted.tar("moves").exists());
    // A pool that was not there.
    let from = directory(&host.lxd, "moves");
    let to = host.lxd.join("storage-pools/second/containers/codchi-moves");
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::rename(from, &to).unwrap();
    for devices in ["devices", "expanded_devices"] {
        records[1][devices]["root"]["pool"] = "second".into();
    }
    daemon.says(sync(&records));
    fs::write(to.join("rootfs/there"), "").unwrap();
    let shown = mounted.rootfs("moves").join("there");
    wait_until("the machine to be elsewhere", || shown.exists());
    assert!(fs::read(mounted.tar("moves")).is_ok());
    assert!(fs::read(mounted.tar("demo")).is_ok(), "the other machine");
}

#[test]
fn reading_moves_no_access_time() {
    let disk = Disk::new(DiskKind::Tmpfs);
    // With a source, mount(8) looks nothing up in the table of mounts, which other tests change meanwhile.
    run(program("mount", ["-o", "remount,strictatime", "none"]).arg(disk.path())).silent();
    let host = played();
    let at = disk.path();
    // The machine itself, in the same place.
    for place in [directory(&host.lxd, "demo").join("rootfs"), host.home("demo")] {
        let moved = at.join(place.file_name().unwrap());
        run(program("cp", ["-a"]).args([&place, &moved])).silent();
        symlink("root", moved.join("link")).unwrap();
        run(program("mount", ["--bind"]).args([&moved, &place])).silent();
    }
    // Through a mount that moves none itself.
    let quiet = host.path().join("quiet");
    fs::create_dir(&quiet).unwrap();
    run(program("mount", ["--bind"]).args([&at, &quiet])).silent();
    run(program("mount", ["-o", "remount,bind,noatime", "none"]).arg(&quiet)).silent();
    let times = || {
        let listed =
            run(program("find", [quiet.as_os_str()]).args(["-printf", "%A@ %y %P\\n"])).ok().out();
        listed.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let mounted = host.mount("mnt");
    let copy = host.path().join("copy");
    let point = mounted.point().to_owned();
    for line in [
        "cp -a \"$0/demo/rootfs\" \"$1\"",
        "find \"$0\" -ls >/dev/null",
        "tar -cf - -C \"$0/demo/rootfs\" . | cat >/dev/null",
        "tar -tf \"$0/demo/export.tar\" >/dev/null",
        "cat \"$0/demo/export.tar\" >/dev/null",
        "grep -r hello \"$0\" >/dev/null",
        "rsync -aHAX \"$0/demo/rootfs/\" \"$1/again/\"",
        "readlink \"$0/demo/rootfs/link\"",
    ] {
        let before = times();
        run(program("sh", ["-ec", line]).args([&point, &copy])).ok();
        assert_eq!(times(), before, "{line}");
    }
    let before = times();
    let rootfs = directory(&host.lxd, "demo").join("rootfs");
    run(program("cp", ["-a"]).args([rootfs.join("srv"), host.path().join("direct")])).ok();
    fs::read_link(rootfs.join("link")).unwrap();
    let after = times();
    let moved = before.iter().zip(&after).filter(|(before, after)| before != after);
    let kinds: BTreeSet<_> = moved.map(|(_, after)| after.split(' ').nth(1).unwrap()).collect();
    assert_eq!(kinds, ["d", "f", "l"].into(), "who does not come through the mount moves them");
}

#[test]
fn a_way_to_where_others_keep_their_homes_leads_to_none_of_them() {
    let host = played();
    // Another user's, open to all but for the home itself, whose owner is in the map that all instances share.
    let other = host.path().join("other/machine");
    let home = other.join("demo");
    fs::create_dir_all(&home).unwrap();
    fs::write(home.join("file"), MARKER).unwrap();
    for path in [home.join("file"), home] {
        chown(path, Some(shifted(1000)), Some(shifted(100))).unwrap();
    }
    chown(&other, Some(UID + 1), Some(UID + 1)).unwrap();
    let way = host.data().join("machine");
    fs::rename(&way, host.path().join("kept")).unwrap();
    symlink(&other, &way).unwrap();
    lchown(&way, Some(UID), Some(UID)).unwrap();
    let mounted = host.mount("mnt");
    let told = report(&mounted, "demo");
    assert!(told.contains("refused: the home"), "{told}");
    nothing_leaks("a link to another user's homes", mounted.point());
    let done = host.run(&["export", "demo", "-q", "-o", "-"]).exits(1);
    assert!(!contains(&done.stdout, MARKER.as_bytes()));
}
