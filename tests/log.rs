//! What a mount logs: all of it in order, and nobody waits for whoever reads it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::Fixture;
use common::mounted::{Mounted, mounts_on};
use common::{wait_until, within};
use rustix::mount::{UnmountFlags, unmount};
use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};

/// Names that are not there: the server logs a line about each look.
const LOOKS: usize = 300;

fn look(point: &Path) {
    for number in 0..LOOKS {
        assert!(fs::metadata(point.join(format!("none-{number}"))).is_err());
    }
}

#[test]
fn the_log_has_what_the_server_said_in_order_and_to_its_end() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let mut command = fixture.command(["mount", "--foreground"]);
    command.env("CODCHIFS_LOG", "fuser=debug,codchifs=info");
    let log = fixture.path().join("log");
    let mut mounted = Mounted::of(command, fixture.mount_point(), log.clone());
    look(mounted.point());
    unmount(mounted.point(), UnmountFlags::empty()).unwrap();
    assert!(mounted.wait().success());
    // The process has ended, and so has its log.
    let text = fs::read_to_string(log).unwrap();
    let mut rest = &*text;
    for number in 0..LOOKS {
        let name = format!("none-{number}\"");
        rest =
            rest.split_once(&name).unwrap_or_else(|| panic!("no {name} in its place:\n{text}")).1;
    }
    assert!(text.ends_with('\n'), "{text}");
}

#[test]
fn a_background_mount_logs_to_its_file_alone() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let (point, log) = (fixture.mount_point(), fixture.path().join("mount.log"));
    let arguments = [
        "mount",
        "--machine",
        "none",
        "--log-file",
        log.to_str().unwrap(),
        point.to_str().unwrap(),
    ];
    let mut command = fixture.command(arguments);
    command.env("CODCHIFS_LOG", "fuser=debug,codchifs=info");
    let done = common::run(command).ok();
    // What is said until it is ready is for whoever waits.
    assert!(done.err().contains("no such machine yet"), "{}", done.err());
    look(&point);
    unmount(&point, UnmountFlags::empty()).unwrap();
    let last = format!("none-{}\"", LOOKS - 1);
    wait_until("the log", || fs::read_to_string(&log).is_ok_and(|text| text.contains(&last)));
    assert!(!fs::read_to_string(&log).unwrap().contains("no such machine yet"));
}

/// Mounts with `log` as stderr and everything logged, looks around, and ends it in order.
fn serves(fixture: &Fixture, log: OwnedFd) -> Child {
    let point = fixture.mount_point();
    let mut command = fixture.command(["mount", "--foreground"]);
    command.arg(&point).env("CODCHIFS_LOG", "trace").stderr(Stdio::from(log));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    wait_until("the mount", || {
        assert_eq!(child.try_wait().unwrap(), None, "it does not come up");
        !mounts_on(&point).is_empty()
    });
    let tar = point.join("m/export.tar");
    let tar = within("reading with a log that takes nothing", move || {
        for _ in 0..20 {
            look(tar.ancestors().nth(2).unwrap());
        }
        fs::read(tar)
    });
    assert!(!tar.unwrap().is_empty());
    child
}

fn end(fixture: &Fixture, mut child: Child) {
    unmount(fixture.mount_point(), UnmountFlags::empty()).unwrap();
    let mut status = None;
    wait_until("the end of the mount", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert!(status.unwrap().success(), "{status:?}");
}

#[test]
fn a_log_that_takes_nothing_stops_no_mount() {
    // A full disk, a pipe that nobody reads, and a socket, as systemd's journal has it.
    let (pipe, into_pipe) = rustix::pipe::pipe().unwrap();
    let (socket, into_socket) = UnixStream::pair().unwrap();
    let full: OwnedFd = File::options().write(true).open("/dev/full").unwrap().into();
    for (log, reader) in [
        (full, None),
        (into_pipe, Some(File::from(pipe))),
        (into_socket.into(), Some(File::from(OwnedFd::from(socket)))),
    ] {
        let fixture = Fixture::new();
        fixture.sample("m");
        let child = serves(&fixture, log);
        let reader = reader.map(|mut reader| {
            std::thread::spawn(move || {
                let mut text = Vec::new();
                reader.read_to_end(&mut text).unwrap();
                String::from_utf8_lossy(&text).into_owned()
            })
        });
        end(&fixture, child);
        if let Some(text) = reader.map(|reader| reader.join().unwrap()) {
            let missing = text.lines().filter(|line| line.ends_with("missing here: it took none"));
            assert!(missing.count() > 0, "{} bytes", text.len());
        }
    }
}
