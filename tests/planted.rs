//! What a user plants to have a mount made by root read what the user may not: a refusal, and not one byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::disk::{Disk, DiskKind};
use common::lxd::{Host, UID, shifted, user};
use common::mounted::{Mounted, mounts_on};
use common::played::{MAP, Played, directory, on_disk, played, record, sync};
use common::{contains, program, run, wait_until};
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
