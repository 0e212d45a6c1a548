//! What a package installs: units, fstab, tmpfiles.d, updatedb, AppArmor; and what a service manager is told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::Fixture;
use common::mounted::Mounted;
use common::{program, run};
use rustix::process::Signal;
use std::fs;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::time::Duration;

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging")
}

fn read(name: &str) -> String {
    fs::read_to_string(packaging().join(name)).unwrap()
}

#[test]
fn systemd_takes_the_units() {
    let temp = tempfile::tempdir().unwrap();
    // It looks whether the program is there.
    let here = env!("CARGO_BIN_EXE_codchifs");
    let mut paths = Vec::new();
    for entry in packaging().join("systemd").read_dir().unwrap() {
        let entry = entry.unwrap();
        let text = fs::read_to_string(entry.path()).unwrap().replace("/usr/bin/codchifs", here);
        let path = temp.path().join(entry.file_name());
        fs::write(&path, text).unwrap();
        paths.push(path);
    }
    assert!(!paths.is_empty());
    for path in &paths {
        run(program("systemd-analyze", ["verify", "--man=no"]).arg(path)).silent();
    }
    // Only ever a warning to systemd, which leaves the line out.
    let service = temp.path().join("codchifs@.service");
    let odd = fs::read_to_string(&service).unwrap().replace("Type=", "Typo=");
    fs::write(&service, odd).unwrap();
    let done = run(program("systemd-analyze", ["verify", "--man=no"]).arg(&service));
    assert!(done.err().contains("Typo"), "{}", done.err());
}

/// Debian's rule is to enable whatever a package brings.
#[test]
fn no_preset_enables_a_service_of_nobody() {
    let root = tempfile::tempdir().unwrap();
    let units = root.path().join("usr/lib/systemd/system");
    fs::create_dir_all(&units).unwrap();
    fs::create_dir_all(root.path().join("usr/lib/systemd/system-preset")).unwrap();
    fs::write(root.path().join("usr/lib/systemd/system-preset/all.preset"), "enable *\n").unwrap();
    fs::write(units.join("multi-user.target"), "[Unit]\n").unwrap();
    let plain = "[Service]\nExecStart=true\n[Install]\nWantedBy=multi-user.target\n";
    fs::write(units.join("plain.service"), plain).unwrap();
    let systemctl = |args: &[&str]| {
        run(program("systemctl", ["--root"]).arg(root.path()).args(args)).ok();
    };
    fs::write(units.join("codchifs@.service"), read("systemd/codchifs@.service")).unwrap();
    systemctl(&["preset-all"]);
    let wanted = || {
        let wants = root.path().join("etc/systemd/system/multi-user.target.wants");
        let names = wants.read_dir().unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(wanted(), ["plain.service"]);
    systemctl(&["enable", "codchifs@alice"]);
    assert_eq!(wanted(), ["codchifs@alice.service", "plain.service"]);
}

/// With any of these nobody outside of the service would see the mount (systemd.exec(5), "Sandboxing").
#[test]
fn the_service_has_no_mount_namespace_of_its_own() {
    let service = read("systemd/codchifs@.service");
    for line in service.lines() {
        for makes_one in [
            "BindPaths",
            "DynamicUser",
            "InaccessiblePaths",
            "Mount",
            "Private",
            "ProtectClock",
            "ProtectControlGroups",
            "ProtectHome",
            "ProtectKernel",
            "ProtectProc",
            "ProtectSystem",
            "ReadOnlyPaths",
            "ReadWritePaths",
            "RootDirectory",
            "RootImage",
            "TemporaryFileSystem",
            // No namespace, but without openat2(2) each open takes more calls.
            "RestrictSUIDSGID",
        ] {
            assert!(!line.starts_with(makes_one), "{line}");
        }
    }
}

#[test]
fn the_line_of_the_service_mounts_and_says_when_it_is_ready() {
    let service = read("systemd/codchifs@.service");
    let line = service.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let words: Vec<_> = line.split(' ').collect();
    let ["/usr/bin/codchifs", "--user", "%I", "mount", args @ .., "/mnt/codchi/%I"] = &words[..]
    else {
        panic!("{line}")
    };
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("notify");
    let hidden = format!("codchifs-test-{}", std::process::id());
    for (name, socket) in [
        (path.to_str().unwrap().to_owned(), UnixDatagram::bind(&path).unwrap()),
        (
            format!("@{hidden}"),
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&hidden).unwrap()).unwrap(),
        ),
    ] {
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let receive = || {
            let mut buffer = [0; 100];
            let len = socket.recv(&mut buffer).unwrap_or_else(|why| panic!("{name}: {why}"));
            String::from_utf8_lossy(&buffer[..len]).into_owned()
        };
        let fixture = Fixture::new();
        fixture.sample("m");
        let mut command = fixture.command(["mount"]);
        command.args(args).env("NOTIFY_SOCKET", &name);
        let log = fixture.path().join("log");
        let mut mounted = Mounted::of(command, fixture.mount_point(), log);
        assert_eq!(receive(), "READY=1");
        // Not before: it is there now.
        assert!(fixture.mount_point().join("m/export.tar").exists());
        mounted.signal(Signal::TERM);
        assert_eq!(receive(), "STOPPING=1");
        assert!(mounted.wait().success(), "{}", mounted.log());
    }
}

#[test]
fn a_service_manager_that_is_gone_is_no_reason_to_fail() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let mut command = fixture.command(["mount", "--foreground"]);
    command.env("NOTIFY_SOCKET", fixture.path().join("none"));
    let mounted = Mounted::of(command, fixture.mount_point(), fixture.path().join("log"));
    assert!(mounted.log().contains("cannot tell the service manager"), "{}", mounted.log());
    mounted.unmount();
}

#[test]
fn findmnt_takes_the_lines_of_fstab() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("fstab");
    // Those that are commented out as well, but for what is said of them.
    let uncomment = |line: &str| match line.strip_prefix('#') {
        Some(line) if !line.starts_with(' ') => line.to_owned(),
        _ => line.to_owned(),
    };
    let text: Vec<_> = read("fstab").lines().map(uncomment).collect();
    fs::write(&path, text.join("\n") + "\n").unwrap();
    let args = ["-n", "-t", "codchifs", "-o", "SOURCE,TARGET", "-F"];
    let out = run(program("findmnt", args).arg(&path)).ok().out();
    assert_eq!(out.lines().count(), 3, "{out}");
    assert!(out.lines().all(|line| line.starts_with("alice ")), "{out}");
}

#[test]
fn tmpfiles_makes_the_directory_of_the_mount_points() {
    let root = tempfile::tempdir().unwrap();
    let conf = packaging().join("tmpfiles.conf");
    let mut command = program("systemd-tmpfiles", ["--create"]);
    fs::create_dir(root.path().join("etc")).unwrap();
    fs::write(root.path().join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
    fs::write(root.path().join("etc/group"), "root:x:0:\n").unwrap();
    run(command.arg("--root").arg(root.path()).arg(&conf)).silent();
    assert!(root.path().join("mnt/codchi").is_dir());
}

#[test]
fn updatedb_is_told_once_to_leave_codchifs_out() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("updatedb.conf");
    let script = packaging().join("updatedb-prune");
    for (before, after) in [
        (r#"PRUNEFS="NFS nfs fuse.sshfs""#, r#"PRUNEFS="fuse.codchifs NFS nfs fuse.sshfs""#),
        ("A=1\n PRUNEFS = \"nfs\"\nB=2", "A=1\n PRUNEFS = \"fuse.codchifs nfs\"\nB=2"),
        ("A=1", "A=1\nPRUNEFS=\"fuse.codchifs\""),
        (r#"PRUNEFS="xfuse.codchifs""#, r#"PRUNEFS="fuse.codchifs xfuse.codchifs""#),
        (r#"PRUNEFS="nfs fuse.codchifs""#, r#"PRUNEFS="nfs fuse.codchifs""#),
    ] {
        fs::write(&path, format!("{before}\n")).unwrap();
        for _ in 0..2 {
            run(program(script.to_str().unwrap(), [&path])).silent();
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{after}\n"));
        }
        if before != after {
            run(program(script.to_str().unwrap(), ["--undo"]).arg(&path)).silent();
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{before}\n"));
        }
    }
    run(program(script.to_str().unwrap(), [temp.path().join("none")])).silent();
    assert!(!temp.path().join("none").exists());
}

#[test]
fn apparmor_takes_the_rules() {
    let rules = packaging().join("apparmor/fusermount3");
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("profile");
    // As Ubuntu's own profile takes them in.
    let profile = |more: &str| {
        let text = format!(
            "include <tunables/global>\nprofile fusermount3 /usr/bin/fusermount3 {{\n  include \"{}\"\n{more}}}\n",
            rules.display()
        );
        fs::write(&path, text).unwrap();
        run(program("apparmor_parser", ["--skip-kernel-load", "--skip-cache"]).arg(&path))
    };
    // Here it may say that the kernel has no AppArmor.
    assert!(!profile("").ok().err().contains("error"));
    assert_ne!(profile("  mount nonsense,,\n").code, Some(0));
}
