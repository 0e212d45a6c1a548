//! What report.json says: of what is not in an export, of what changed under its readers, to whom it is handed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::{Fixture, Place};
use common::mounted::Mounted;
use common::{program, run};
use rustix::fs::{XattrFlags, lsetxattr};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// A file with its directories.
fn write(top: &Path, path: &str, content: &str) {
    let path = top.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// A machine that has something of every kind that is left out.
fn lossy(fixture: &Fixture) -> Place {
    let place = fixture.empty("m");
    for (path, content) in [
        ("etc/.clean", "nixos-made\nssh/sshd_config"),
        ("etc/nixos-made", "by the system"),
        ("etc/ssh/sshd_config", "by the system"),
        ("etc/ssh/ssh_host_key", "0123456789"),
        ("etc/wireguard/wg0.conf", "01234"),
        ("etc/codchi-env", "replaced"),
        ("var/log/journal/a", "1234"),
        ("var/log/journal/b/c", "123456"),
        ("nix/store/x", "1"),
        ("home/codchi/hidden", "123"),
        ("srv/cache/big", "12345678"),
    ] {
        write(&place.rootfs, path, content);
    }
    fs::create_dir_all(place.rootfs.join("var/cache")).unwrap();
    std::os::unix::fs::symlink("/etc/static/hosts", place.rootfs.join("etc/hosts")).unwrap();
    std::os::unix::net::UnixListener::bind(place.rootfs.join("srv/socket")).unwrap();
    for path in ["srv/cache/big", "srv"] {
        let label = b"system_u:object_r:x_t:s0\0";
        lsetxattr(place.rootfs.join(path), c"security.selinux", label, XattrFlags::empty())
            .unwrap();
    }
    place
}

/// The lines of one reason as (path, files, bytes).
fn lines(report: &Value, reason: &str) -> Vec<(String, Option<u64>, Option<u64>)> {
    let lines = report["left_out"]["lines"].as_array().unwrap().iter();
    lines
        .filter(|line| line["reason"] == reason)
        .map(|line| {
            let path = line["path"].as_str().unwrap().to_owned();
            (path, line["files"].as_u64(), line["bytes"].as_u64())
        })
        .collect()
}

/// What an outside judge says of a report.
fn assert_valid(report: &Value, fixture: &Fixture) {
    let at = fixture.path().join("report.json");
    fs::write(&at, report.to_string()).unwrap();
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/report.schema.json");
    run(program("jsonschema", [Path::new("-i"), &at, Path::new(schema)])).ok();
}

#[test]
fn everything_that_is_left_out_has_a_line() {
    let fixture = Fixture::new();
    lossy(&fixture);
    let mounted =
        Mounted::with(&fixture, &["--exclude", "/srv/cache", "--exclude", "/srv/nothing"]);
    fs::metadata(mounted.tar("m")).unwrap();
    let report = mounted.report("m");
    assert_valid(&report, &fixture);
    let line = |path: &str, files: u64, bytes: u64| (path.to_owned(), Some(files), Some(bytes));
    // codchi-env is replaced, and /etc/nixos is ours.
    let etc = "nixos-made\nssh/sshd_config".len() as u64 + 13 + 13 + 10 + 5;
    assert_eq!(
        lines(&report, "excluded"),
        [line("/etc", 6, etc), line("/nix", 1, 1), line("/var/log", 2, 10)]
    );
    assert_eq!(lines(&report, "excluded-by-user"), [line("/srv/cache", 1, 8)]);
    assert_eq!(lines(&report, "below-home"), [line("/home/codchi", 1, 3)]);
    let stray = |path: &str| (path.to_owned(), None, None);
    assert_eq!(
        lines(&report, "etc"),
        [stray("/etc/ssh/ssh_host_key"), stray("/etc/wireguard/wg0.conf")]
    );
    assert_eq!(lines(&report, "socket"), [stray("/srv/socket")]);
    // No process behind a mount sees trusted attributes: the root stands for all that may have some.
    let attributes = ["/", "/srv"].map(|path| (path.to_owned(), Some(1), None));
    assert_eq!(lines(&report, "attribute"), attributes);
    assert_eq!(report["left_out"]["more"], 0);
}

#[test]
fn what_an_include_takes_back_is_not_called_left_out() {
    let fixture = Fixture::new();
    lossy(&fixture);
    let mounted = Mounted::with(&fixture, &["--include", "/etc/ssh", "--include", "/var/log"]);
    assert_eq!(fs::read(mounted.rootfs("m").join("etc/ssh/ssh_host_key")).unwrap(), b"0123456789");
    fs::metadata(mounted.tar("m")).unwrap();
    let report = mounted.report("m");
    let paths = |reason| lines(&report, reason).into_iter().map(|l| l.0).collect::<Vec<_>>();
    assert_eq!(paths("excluded"), ["/etc", "/nix"]);
    assert_eq!(paths("etc"), ["/etc/wireguard/wg0.conf"]);
    // .clean, nixos-made, wg0.conf and the link.
    assert_eq!(lines(&report, "excluded")[0].1, Some(4));
}

#[test]
fn owners_have_the_names_that_the_machine_gives_them() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    write(&place.rootfs, "etc/passwd", "root:x:0:0::/root:/bin/sh\npg:x:71:71::/:/bin/sh\n");
    write(&place.rootfs, "etc/group", "root:x:0:\npg:x:71:\n");
    for (path, uid, gid) in [("srv/a", 71, 71), ("srv/b", 300, 71), ("srv/c", 65534, 100)] {
        write(&place.rootfs, path, path);
        std::os::unix::fs::chown(place.rootfs.join(path), Some(uid), Some(gid)).unwrap();
    }
    // Not exported: nobody has to know its owner.
    write(&place.rootfs, "var/log/x", "x");
    std::os::unix::fs::chown(place.rootfs.join("var/log/x"), Some(77), Some(77)).unwrap();
    let mounted = Mounted::new(&fixture);
    let at = mounted.rootfs("m").join("etc/nixos/codchi-owners");
    // Listed and looked at before anything was scanned.
    let listed = fs::read_dir(at.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name());
    assert!(listed.into_iter().any(|name| name == "codchi-owners"));
    let size = fs::metadata(&at).unwrap().len();
    let owners = fs::read_to_string(&at).unwrap();
    assert_eq!(size, owners.len() as u64);
    let all = |ids: &str| owners.lines().filter(|l| l.ends_with(ids)).collect::<Vec<_>>();
    assert_eq!(all(" 71"), ["group pg 71", "user pg 71"]);
    assert_eq!(all(" 300"), ["user ? 300"]);
    for id in ["0", "100", "1000", "65534", "77"] {
        assert_eq!(all(&format!(" {id}")), [""; 0], "{owners}");
    }
    let sorted = run(program("sort", ["-c"]).arg(&at));
    sorted.silent();
    // A further owner, and the file has it in the tar and in the tree.
    std::os::unix::fs::chown(place.rootfs.join("srv/c"), Some(301), None).unwrap();
    common::wait_until("the new owner", || {
        fs::read_to_string(&at).unwrap().contains("user ? 301\n")
    });
    let tar = fixture.path().join("m.tar");
    run(program("cp", [&mounted.tar("m"), &tar])).silent();
    let member = run(program("tar", ["-xOf", tar.to_str().unwrap(), "./etc/nixos/codchi-owners"]));
    assert_eq!(member.ok().out(), fs::read_to_string(&at).unwrap());
    assert_eq!(
        run(program("tar", ["-df"]).arg(&tar).arg("-C").arg(mounted.rootfs("m"))).ok().out(),
        ""
    );
}

#[test]
fn an_export_for_somebody_else_says_what_it_lacks() {
    let fixture = Fixture::new();
    let config = r##"{"modules":{
        "private":"https://example.org/a/b?token=TOKEN-1&ref=main#x",
        "public":"github://github.com/a/b?#x"},
        "secrets":{"KEY":"SECRET-1"}}"##;
    let place = fixture.configured("m", config);
    write(&place.home, ".ssh/id_ed25519", "key");
    write(&place.home, ".ssh/id_ed25519.pub", "key");
    write(&place.home, ".git-credentials", "x");
    write(&place.rootfs, "root/.bash_history", "x");
    let mounted = Mounted::with(&fixture, &["--secrets=omit"]);
    let directory = mounted.point().join("m");
    assert!(fs::metadata(directory.join("export.tar")).is_err());
    let tar = directory.join("export-redacted.tar");
    fs::metadata(&tar).unwrap();
    let report = mounted.report("m");
    assert_valid(&report, &fixture);
    assert_eq!(
        report["redacted"],
        json!({
            "secrets": ["CODCHI_KEY"],
            "tokens_of_modules": ["private"],
            "credentials_still_inside": [
                "/home/codchi/.git-credentials",
                "/home/codchi/.ssh/id_ed25519",
                "/root/.bash_history",
            ],
        })
    );
    let bytes = fs::read(&tar).unwrap();
    for secret in ["SECRET-1", "TOKEN-1"] {
        assert!(!common::contains(&bytes, secret.as_bytes()), "{secret} is in the export");
    }
    assert!(common::contains(&bytes, b"export CODCHI_KEY=''\n"));
    let to = fixture.path().join("handed-over.tar");
    fixture.run(["export", "m", "--secrets=omit", "-q", "-o", to.to_str().unwrap()]).ok();
    assert!(fs::read(to).unwrap() == bytes);
}

#[test]
fn keys_are_named_up_to_a_limit_and_links_are_keys() {
    let fixture = Fixture::new();
    let place = fixture.empty("m");
    write(&place.home, ".ssh/known_hosts", "public");
    for i in 0..1000 {
        write(&place.home, &format!(".ssh/{i:04}"), "");
        write(&place.home, &format!(".ssh/{i:04}.pub"), "");
    }
    write(&place.rootfs, "root/.ssh/config.d/x", "in a directory");
    std::os::unix::fs::symlink("/srv/keys/id", place.rootfs.join("root/.ssh/id_rsa")).unwrap();
    let linked = fixture.empty("linked");
    std::os::unix::fs::symlink("dotfiles/ssh", linked.home.join(".ssh")).unwrap();
    let mounted = Mounted::with(&fixture, &["--secrets=omit"]);
    let inside = |machine: &str| -> Vec<String> {
        let report = mounted.report(machine);
        assert_valid(&report, &fixture);
        serde_json::from_value(report["redacted"]["credentials_still_inside"].clone()).unwrap()
    };
    assert_eq!(inside("linked"), ["/home/codchi/.ssh"]);
    let all = inside("m");
    let (named, rest) = all.split_at(all.iter().position(|line| line.contains(": ")).unwrap());
    let first = (0..named.len()).map(|i| format!("/home/codchi/.ssh/{i:04}"));
    assert_eq!(named, first.collect::<Vec<_>>());
    let more = format!(
        "/home/codchi/.ssh: {} more names, of which none was looked at",
        1000 - named.len()
    );
    assert!((10..1000).contains(&named.len()), "{}", named.len());
    assert_eq!(rest, [more, "/root/.ssh/id_rsa".to_owned()]);
}

#[test]
fn every_state_of_a_machine_fits_the_schema() {
    let fixture = Fixture::new();
    let place = fixture.sample("good");
    fixture.configured("broken", "{");
    fs::remove_dir(fixture.empty("missing").rootfs).unwrap();
    let mounted = Mounted::new(&fixture);
    for machine in ["good", "broken", "missing"] {
        assert_valid(&mounted.report(machine), &fixture);
    }
    // Torn, and then followed by another generation.
    write(&place.rootfs, "srv/file", "0123456789");
    fs::metadata(mounted.tar("good")).unwrap();
    write(&place.rootfs, "srv/file", "0");
    run(program("cp", [mounted.tar("good"), fixture.path().join("x")])).exits(1);
    let torn = mounted.report("good");
    assert_valid(&torn, &fixture);
    assert_eq!(torn["generation"]["torn"], true);
    let line = json!({"path": "/srv/file", "reason": "shrank", "torn": true});
    assert_eq!(torn["changed"], json!([line]));
    fs::metadata(mounted.tar("good")).unwrap();
    let next = mounted.report("good");
    assert_valid(&next, &fixture);
    assert_eq!((&next["generation"]["torn"], &next["changed"]), (&json!(false), &json!([])));
    assert_eq!(next["earlier"][0]["id"], torn["generation"]["id"]);
    assert_eq!(next["earlier"][0]["changed"], json!([line]), "the reason outlives the generation");
}

#[test]
fn the_example_in_the_docs_fits_the_schema() {
    let text = include_str!("../docs/REPORT.md");
    let (_, rest) = text.split_once("```json\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    assert_valid(&serde_json::from_str(example).unwrap(), &Fixture::new());
}

#[test]
fn lines_of_one_reason_crowd_out_no_others_and_are_always_the_same() {
    let fixture = Fixture::new();
    let place = lossy(&fixture);
    let directory = place.rootfs.join("srv/sockets");
    fs::create_dir(&directory).unwrap();
    // mknod makes them as well, and faster.
    let mode = rustix::fs::Mode::RUSR;
    let dir = fs::File::open(&directory).unwrap();
    for number in 0..12_000 {
        let name = format!("{number:05}");
        rustix::fs::mknodat(&dir, name, rustix::fs::FileType::Socket, mode, 0).unwrap();
    }
    let report = || {
        let mounted = Mounted::new(&fixture);
        fs::metadata(mounted.tar("m")).unwrap();
        mounted.report("m")["left_out"].clone()
    };
    let first = report();
    let of = |reason: &str| {
        let lines = first["lines"].as_array().unwrap().iter();
        lines.filter(|line| line["reason"] == reason).count()
    };
    assert_eq!((of("socket"), of("attribute"), of("etc")), (10_000, 2, 2));
    assert_eq!(first["more"], 2001);
    assert!(first == report(), "which lines are kept depends on the scan");
}

#[test]
fn a_home_that_is_left_out_has_a_line() {
    let fixture = Fixture::new();
    let place = fixture.empty("m");
    write(&place.home, "project/a", "12345");
    write(&place.rootfs, "home/codchi/hidden", "1");
    let mounted = Mounted::with(&fixture, &["--exclude", "/home/codchi"]);
    fs::metadata(mounted.tar("m")).unwrap();
    let report = mounted.report("m");
    let line = ("/home/codchi".to_owned(), Some(1), Some(5));
    assert_eq!(lines(&report, "excluded-by-user"), [line]);
    assert_eq!(lines(&report, "below-home"), [("/home/codchi".to_owned(), Some(1), Some(1))]);
}

#[test]
fn more_attributes_than_every_reader_takes_are_named_once_for_all_names_of_a_file() {
    let disk = common::disk::Disk::new(common::disk::DiskKind::Xfs);
    let fixture = Fixture::below(&disk.path());
    let place = fixture.empty("m");
    let file = place.rootfs.join("srv-file");
    fs::write(&file, "x").unwrap();
    for number in 0..20 {
        let name = format!("user.a{number}");
        lsetxattr(&file, name, &[b'v'; 60_000], XattrFlags::empty()).unwrap();
    }
    for number in 0..50 {
        fs::hard_link(&file, place.rootfs.join(format!("link-{number:02}"))).unwrap();
    }
    let mounted = Mounted::new(&fixture);
    let size = fs::metadata(mounted.tar("m")).unwrap().len();
    assert!((1_200_000..1_300_000).contains(&size), "{size}");
    let report = mounted.report("m");
    assert_valid(&report, &fixture);
    assert_eq!(lines(&report, "large-attributes"), [("/link-00".to_owned(), None, None)]);
    let copy = fixture.path().join("copy.tar");
    run(program("cp", [&mounted.tar("m"), &copy])).silent();
    let refused = run(program("bsdtar", ["-tf"]).arg(&copy));
    assert_ne!(refused.code, Some(0), "bsdtar reads it: no line is needed");
    let list = run(program("tar", ["-tf"]).arg(&copy)).ok().out();
    assert_eq!(list.lines().filter(|l| l.contains("link-") || l.contains("srv-file")).count(), 51);
}
