//! What a service manager relies on: a mount is ready only if it can be used, ends when it is told to, says what need not be
//! tried again, and logs as the journal wants it. `tests/machines` has the same under a real systemd.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::Fixture;
use common::mounted::{Mounted, mounts_on};
use common::processes::is_alive;
use common::sandboxed::without;
use common::{program, run, wait_until};
use rustix::process::Signal;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;

#[test]
fn a_mount_that_could_not_read_machines_does_not_come_up() {
    let fixture = Fixture::new();
    fixture.sample("m");
    for (name, calls, error) in [
        ("statx", &[libc::SYS_statx][..], libc::EPERM),
        ("getdents64", &[libc::SYS_getdents64], libc::EPERM),
        // listxattrat as well: it may stand in for the other one.
        ("listxattr", &[libc::SYS_llistxattr, 465], libc::EPERM),
    ] {
        for (args, code) in [(&["mount"][..], 1), (&["mount", "--foreground"], 78)] {
            let mut command = fixture.command(args);
            let done = without(calls, error, command.arg(fixture.mount_point())).exits(code);
            assert!(done.err().contains(name), "{name}: {}", done.err());
            assert!(mounts_on(&fixture.mount_point()).is_empty(), "{name}: {}", done.err());
        }
    }
    // What it can do without.
    let mut command = fixture.command(["mount"]);
    let calls = [442, 464, 465, libc::SYS_close_range, 444, 445, 446];
    without(&calls, libc::ENOSYS, command.arg(fixture.mount_point())).ok();
    let tar = fs::read(fixture.mount_point().join("m/export.tar")).unwrap();
    let mut command = fixture.command(["export", "m", "-o", "-"]);
    assert!(run(&mut command).ok().stdout == tar);
    fixture
        .run(
            ["unmount"].map(String::from).into_iter().chain([fixture
                .mount_point()
                .to_str()
                .unwrap()
                .to_owned()]),
        )
        .ok();
}

#[test]
fn doctor_names_what_a_sandbox_refuses() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let calls = [libc::SYS_llistxattr, 465];
    let done = without(&calls, libc::EPERM, &mut fixture.command(["doctor"])).exits(1);
    let out = done.out().split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(out.contains("error reading: files of machines cannot be read: listxattr"), "{out}");
    assert!(out.contains("SystemCallFilter="), "{out}");
}

#[test]
fn a_kernel_that_is_too_old_is_named_with_the_oldest_that_works() {
    let fixture = Fixture::new();
    let codchifs = env!("CARGO_BIN_EXE_codchifs");
    let mut command = program("setarch", ["--uname-2.6", codchifs, "mount"]);
    let done = run(command.arg(fixture.mount_point())).exits(1);
    assert!(done.err().contains("is too old: codchifs needs 5.10 or later"), "{}", done.err());
}

#[test]
fn whoever_still_reads_is_cut_off_after_the_time_that_was_given() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    fs::write(place.home.join("large"), vec![7; 8 << 20]).unwrap();
    let mut mounted = Mounted::with(&fixture, &["--stop-timeout", "1"]);
    let mut file = File::open(mounted.tar("m")).unwrap();
    file.read_exact(&mut [0; 4096]).unwrap();
    let server = mounted.server();
    mounted.signal(Signal::TERM);
    assert_eq!(mounted.wait().code(), Some(0), "{}", mounted.log());
    assert!(mounts_on(mounted.point()).is_empty() && !is_alive(server));
    assert!(!mounted.log().contains("somebody unmounted it"), "{}", mounted.log());
    let mut rest = Vec::new();
    file.read_to_end(&mut rest).unwrap_err();
    assert!(
        mounted.log().contains("cutting off whoever still uses the mount"),
        "{}",
        mounted.log()
    );
}

#[test]
fn a_service_whose_mount_is_taken_away_ends() {
    for lazily in [&["-l"][..], &[]] {
        let fixture = Fixture::new();
        fixture.sample("m");
        let mut mounted = Mounted::with(&fixture, &["--stop-timeout", "1"]);
        // Without a reader the kernel ends the mount, and with one nothing would.
        let reader = (!lazily.is_empty()).then(|| File::open(mounted.tar("m")).unwrap());
        run(program("umount", lazily).arg(mounted.point())).ok();
        assert_eq!(mounted.wait().code(), Some(0), "{}", mounted.log());
        drop(reader);
    }
    // With the directory that it is in.
    let fixture = Fixture::new();
    fixture.sample("m");
    let around = fixture.scratch("around");
    run(program("mount", ["-t", "tmpfs", "none"]).arg(&around)).ok();
    fs::create_dir(around.join("mnt")).unwrap();
    let log = fixture.path().join("log");
    let mut mounted = Mounted::of(
        {
            let mut command = fixture.command(["mount", "--foreground", "--stop-timeout", "1"]);
            command.env_remove("NOTIFY_SOCKET");
            command
        },
        around.join("mnt"),
        log,
    );
    let reader = File::open(mounted.tar("m")).unwrap();
    run(program("umount", ["-l"]).arg(&around)).ok();
    assert_eq!(mounted.wait().code(), Some(0), "{}", mounted.log());
    drop(reader);
}

#[test]
fn what_trying_again_does_not_mend_has_a_status_of_its_own() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let mount = |args: &[&str]| {
        let mut command = fixture.command(["mount", "--foreground"]);
        run(command.args(args)).code
    };
    let (point, file) = (fixture.mount_point(), fixture.path().join("file"));
    fs::write(&file, "").unwrap();
    let full = fixture.scratch("full");
    fs::write(full.join("x"), "").unwrap();
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    for args in [
        vec![text(&file)],
        vec![text(&full)],
        vec![text(&fixture.path().join("none"))],
        vec!["--user".into(), "no-such-user".into(), text(&point)],
        vec!["--exclude".into(), "[z-a]".into(), text(&point)],
        vec!["-oallow_other,allow_root".into(), text(&point)],
    ] {
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        assert_eq!(mount(&args), Some(78), "{args:?}");
    }
    let mounted = Mounted::new(&fixture);
    assert_eq!(mount(&[&text(&point)]), Some(78));
    mounted.unmount();
    assert_eq!(mount(&["--sparse=perhaps", &text(&point)]), Some(2));
    // The module may be loaded later.
    let script = "mount -t tmpfs none /dev; exec \"$@\"";
    let mut command = program("unshare", ["--mount", "sh", "-ec", script, "sh"]);
    let without = fixture.command(["mount", "--foreground"]);
    command.arg(without.get_program()).args(without.get_args()).arg(&point);
    let done = run(&mut command).exits(1);
    assert!(done.err().contains("modprobe fuse"), "{}", done.err());
}

#[test]
fn the_journal_gets_levels_and_no_times_and_a_file_gets_times() {
    for journal in [true, false] {
        let fixture = Fixture::new();
        fixture.sample("m");
        let log = fixture.path().join("log");
        fs::write(&log, "").unwrap();
        let meta = fs::metadata(&log).unwrap();
        let inode = if journal { meta.ino() } else { meta.ino() + 1 };
        let mut command = fixture.command(["mount", "-vv", "--foreground", "--machine", "m"]);
        command.args(["--machine", "none"]);
        command.env("JOURNAL_STREAM", format!("{}:{inode}", meta.dev()));
        let mut mounted = Mounted::of(command, fixture.mount_point(), log);
        fs::read(mounted.tar("m")).unwrap();
        // The server logs to the same.
        wait_until("a line of each process", || {
            let text = mounted.log();
            text.contains("no such machine") && text.contains("mounted") && text.contains("scanned")
        });
        mounted.signal(Signal::TERM);
        assert!(mounted.wait().success());
        let text = mounted.log();
        for line in text.lines() {
            let level = line.get(..3).is_some_and(|start| {
                start.starts_with('<') && start.ends_with('>') && ("0".."8").contains(&&start[1..2])
            });
            assert_eq!(level, journal, "{line}");
            let dated = line.starts_with("20") || line.starts_with("codchifs: ");
            assert_eq!(dated, !journal, "{line}");
        }
        assert!(text.contains(if journal {
            "<4>none: no such machine yet"
        } else {
            "codchifs: none"
        }));
    }
}

#[test]
fn a_service_whose_mount_nobody_would_see_does_not_come_up() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let socket = fixture.path().join("notify");
    let _manager = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    let mount = fixture.command(["mount", "--foreground"]);
    let mut command = program("unshare", ["--mount", "--propagation", "slave"]);
    command.arg(mount.get_program()).args(mount.get_args()).arg(fixture.mount_point());
    let done = run(command.env("NOTIFY_SOCKET", &socket)).exits(78);
    assert!(done.err().contains("PrivateTmp="), "{}", done.err());
    // Whoever has a namespace and no manager has it on purpose.
    let mount = fixture.command(["mount"]);
    let script = "\"$@\" && ls \"${@: -1}/m\" && umount \"${@: -1}\"";
    let mut command = program("unshare", ["--mount", "--propagation", "slave", "bash", "-ec"]);
    command.args([script, "bash"]).arg(mount.get_program()).args(mount.get_args());
    let done = run(command.arg(fixture.mount_point())).ok();
    assert!(done.out().contains("export.tar"), "{}", done.out());
}
