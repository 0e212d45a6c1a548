//! A mount from its first moment to its last, and whatever ends it early.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::Fixture;
use common::lxd::Host;
use common::mounted::{Mounted, mounts_on, unmount_unused};
use common::played::played;
use common::processes::{children, command_lines, is_alive, kill, status};
use common::{program, run, wait_until, within};
use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;
use rustix::process::Signal;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

/// The host of a mount in the background: the parent of nobody here.
fn host_of(point: &Path) -> u32 {
    let text = point.to_str().unwrap();
    let is_host = |line: &str| {
        line.contains("--background-child") && line.contains(text) && !line.contains("--server")
    };
    let lines = command_lines().into_iter();
    let hosts = lines.filter_map(|(pid, line)| is_host(&line).then_some(pid));
    let [host] = hosts.collect::<Vec<_>>()[..] else { panic!("no host of {text}") };
    host
}

#[test]
fn a_mount_answers_the_moment_that_mount_returns() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let point = fixture.mount_point();
    let text = point.to_str().unwrap();
    let expected = fixture.run(["export", "m", "-q", "-o", "-"]).ok().stdout;
    for _ in 0..10 {
        fixture.run(["mount", text]).ok();
        // No path of the kernel's caches: everything is new.
        assert!(fs::read(point.join("m/export.tar")).unwrap() == expected);
        fixture.run(["unmount", text]).ok();
        assert!(mounts_on(&point).is_empty());
    }
}

#[test]
fn a_mount_point_that_is_of_no_use_is_named_with_what_to_do() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let full = fixture.scratch("full");
    fs::write(full.join("file"), "x").unwrap();
    for (path, words) in [
        (fixture.path().join("none"), "there is no such directory; create it with: mkdir -p"),
        (fixture.path().join("none/below"), "there is no such directory"),
        (full.join("file"), "it is not a directory; choose an empty directory"),
        (full.join("file/below"), "it is not a directory; choose an empty directory"),
        (full, "the directory is not empty, and a mount would hide what is in it"),
    ] {
        for (foreground, code) in [(&["--foreground"][..], 78), (&[], 1)] {
            let arguments = [&["mount"], foreground, &[path.to_str().unwrap()]].concat();
            let said = fixture.run(arguments).exits(code).err();
            assert!(said.contains(words) && said.contains(path.to_str().unwrap()), "{said}");
        }
        assert!(mounts_on(&path).is_empty());
    }
}

/// Kills something of the host and the server.
type Kill = fn(u32, u32);

/// What is killed, and whether a mount that nobody answers is left.
const KILLED: &[(&str, Kill, bool)] = &[
    ("the host", |host, _| kill(host, Signal::KILL), true),
    ("the server", |_, server| kill(server, Signal::KILL), false),
    (
        "both",
        |host, server| {
            // The host must not see the server end.
            kill(host, Signal::STOP);
            kill(server, Signal::KILL);
            kill(host, Signal::KILL);
        },
        true,
    ),
];

#[test]
fn whatever_is_killed_the_next_mount_works() {
    let (fixture, host) = (Fixture::new(), played());
    fixture.sample("demo");
    // Root's machines and a user's.
    let point = fixture.mount_point();
    let user_point = host.path().join("mnt");
    for (point, of_user) in [(&point, false), (&user_point, true)] {
        let mount = || match of_user {
            false => fixture.command(["mount"]),
            true => host.command(&["mount"]),
        };
        for (what, ends, stale) in KILLED {
            run(mount().arg(point)).ok();
            let host = host_of(point);
            let [server] = children(host)[..] else { panic!("no server") };
            ends(host, server);
            wait_until(what, || !is_alive(host) && !is_alive(server));
            if *stale {
                assert_eq!(mounts_on(point).len(), 1, "{what}");
                let error = rustix::fs::openat(
                    rustix::fs::CWD,
                    point.join("demo"),
                    rustix::fs::OFlags::DIRECTORY,
                    rustix::fs::Mode::empty(),
                );
                // Root is not asked whether it may, where it is not root's mount.
                assert!(
                    matches!(error, Err(Errno::NOTCONN | Errno::CONNABORTED | Errno::ACCESS)),
                    "{what}: {error:?}"
                );
                // Taken away on the way.
                run(mount().arg(point)).ok();
            } else {
                wait_until("the host to unmount", || mounts_on(point).is_empty());
                run(mount().arg(point)).ok();
            }
            assert_eq!(mounts_on(point).len(), 1, "{what}: the stale mount is still below");
            assert!(is_alive(host_of(point)));
            run(program(env!("CARGO_BIN_EXE_codchifs"), ["unmount"]).arg(point)).ok();
            assert!(mounts_on(point).is_empty());
        }
    }
}

#[test]
fn a_server_that_is_killed_is_an_error_of_the_host_and_nothing_stays_mounted() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let mut mounted = Mounted::new(&fixture);
    let file = File::open(mounted.tar("m")).unwrap();
    kill(mounted.server(), Signal::KILL);
    assert_eq!(mounted.wait().code(), Some(1));
    let log = mounted.log();
    assert!(
        log.contains("the serving process ended: signal: 9")
            && log.contains("the mount was detached"),
        "{log}"
    );
    assert!(mounts_on(mounted.point()).is_empty());
    assert!(file.read_at(&mut [0; 4096], 8192).is_err());
}

#[test]
fn a_signal_to_one_or_to_all_processes_unmounts_in_order() {
    for signal in [Signal::TERM, Signal::INT] {
        for all in [false, true] {
            let fixture = Fixture::new();
            fixture.sample("m");
            let mut mounted = Mounted::new(&fixture);
            let server = mounted.server();
            if all {
                kill(server, signal);
                assert!(
                    fs::read(mounted.tar("m")).is_ok(),
                    "the server alone does not end by {signal:?}"
                );
            }
            mounted.signal(signal);
            let status = mounted.wait();
            assert!(status.success(), "{signal:?}: {status}\n{}", mounted.log());
            assert!(mounts_on(mounted.point()).is_empty() && !is_alive(server));
        }
    }
}

#[test]
fn the_first_signal_leaves_open_files_readable_and_the_second_cuts_them_off() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    fs::write(place.home.join("large"), vec![7; 8 << 20]).unwrap();
    let mut mounted = Mounted::new(&fixture);
    let mut file = File::open(mounted.tar("m")).unwrap();
    mounted.signal(Signal::TERM);
    wait_until("the mount to go out of sight", || mounts_on(mounted.point()).is_empty());
    file.read_exact(&mut [0; 4096]).unwrap();
    let server = mounted.server();
    mounted.signal(Signal::TERM);
    assert_eq!(mounted.wait().code(), Some(1));
    assert!(!is_alive(server));
    let end = file.metadata().map(|meta| meta.len()).unwrap_or(8 << 20) - 4096;
    let error = file.read_at(&mut [0; 4096], end).unwrap_err();
    let known = [Errno::NOTCONN, Errno::CONNABORTED, Errno::IO];
    assert!(known.contains(&Errno::from_io_error(&error).unwrap()), "{error}");
}

#[test]
fn sighup_has_everything_looked_at_anew_and_stays_mounted() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    let mounted = Mounted::new(&fixture);
    let flake = mounted.rootfs("m").join("etc/nixos/flake.nix");
    let before = fs::read_to_string(&flake).unwrap();
    // To both, as whoever asks a whole service to do so.
    let server = mounted.server();
    let again = |what: &str, holds: &mut dyn FnMut() -> bool| {
        kill(server, Signal::HUP);
        mounted.signal(Signal::HUP);
        wait_until(what, holds);
    };
    fs::write(
        place.config.join("config.json"),
        r#"{"modules":{"other":"file://other#x"},"secrets":{}}"#,
    )
    .unwrap();
    again("the changed config.json", &mut || fs::read_to_string(&flake).unwrap() != before);
    assert!(fs::read_to_string(&flake).unwrap().contains("other"));
    fixture.empty("new");
    again("the new machine", &mut || mounted.tar("new").exists());
    // A machine in another place with the same state of Codchi.
    let moved = place.rootfs.with_extension("moved");
    fs::rename(&place.rootfs, &moved).unwrap();
    fs::create_dir_all(place.rootfs.join("opt/other")).unwrap();
    again("the other rootfs", &mut || mounted.rootfs("m").join("opt/other").exists());
    assert_eq!(mounted.server(), server);
    mounted.unmount();
}

/// `cp` of a large export that has begun, and is not done yet.
fn copying(from: &Path, to: &Path) -> std::process::Child {
    let child = Command::new("cp")
        .args([from, to])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the copy to begin", || fs::metadata(to).is_ok_and(|meta| meta.len() > 0));
    child
}

fn with_large_files(fixture: &Fixture, mebibytes: usize) {
    let place = fixture.sample("m");
    let mut state = 1_u64;
    for number in 0..4 {
        let bytes = (0..mebibytes << 17).flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_ne_bytes()
        });
        fs::write(place.home.join(format!("large-{number}")), bytes.collect::<Vec<_>>()).unwrap();
    }
}

#[test]
fn a_stopped_server_keeps_readers_waiting_and_loses_nothing() {
    let fixture = Fixture::new();
    with_large_files(&fixture, 40);
    let mounted = Mounted::new(&fixture);
    let expected = fixture.run(["export", "m", "-q", "-o", "-"]).ok().stdout;
    let (copy, server) = (fixture.path().join("copy"), mounted.server());
    fs::metadata(mounted.tar("m")).unwrap();
    kill(server, Signal::STOP);
    let mut child = Command::new("cp").arg(mounted.tar("m")).arg(&copy).spawn().unwrap();
    // Waiting in the kernel for an answer.
    wait_until("cp to wait", || {
        let stack = fs::read_to_string(format!("/proc/{}/wchan", child.id())).unwrap();
        stack.contains("request_wait_answer")
            || status(child.id())["State"].starts_with('D')
            || stack.contains("fuse")
    });
    kill(server, Signal::CONT);
    wait_until("the copy to go on", || fs::metadata(&copy).is_ok_and(|meta| meta.len() > 0));
    kill(server, Signal::STOP);
    assert!(child.try_wait().unwrap().is_none_or(|status| status.success()));
    kill(server, Signal::CONT);
    assert!(child.wait().unwrap().success());
    assert!(fs::read(&copy).unwrap() == expected);
}

#[test]
fn a_stopped_host_delays_a_look_by_a_bounded_time_and_takes_away_nothing() {
    let fixture = Fixture::new();
    for name in ["a", "b", "c", "d"] {
        fixture.sample(name);
    }
    // One after the other, these would wait for longer than DEADLINE: each for PATIENCE of src/opener/client.rs.
    let many: Vec<_> = (0..10).map(|n| format!("m{n}")).collect();
    for name in &many {
        fixture.empty(name);
    }
    let mounted = Mounted::new(&fixture);
    for name in ["a", "b", "c"] {
        fs::metadata(mounted.tar(name)).unwrap();
    }
    let open = File::open(mounted.tar("a")).unwrap();
    kill(mounted.host(), Signal::STOP);
    let point = mounted.point().to_owned();
    within("a listing of all", move || {
        for name in ["a", "b", "c"] {
            assert_eq!(fs::read_dir(point.join(name)).unwrap().count(), 4, "{name} was known");
        }
        // Of these nobody knows what they have: a mirror must not delete it.
        let error = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
        for name in ["d".to_owned()].into_iter().chain(many) {
            let at = point.join(name);
            let listed = fs::read_dir(&at).and_then(|mut dir| dir.try_for_each(|e| e.map(drop)));
            assert_eq!(error(listed), Some(libc::EIO), "{}", at.display());
            for shown in ["export.tar", "rootfs", ".generations"] {
                let looked = fs::symlink_metadata(at.join(shown)).map(drop);
                assert_eq!(error(looked), Some(libc::EIO), "{} {shown}", at.display());
            }
        }
    });
    for name in ["a", "b", "c"] {
        assert!(mounted.tar(name).exists(), "{name} was known");
        assert!(mounted.rootfs(name).join("opt/tool").exists(), "{name} was known");
    }
    assert!(open.read_at(&mut [0; 4096], 0).is_ok());
    kill(mounted.host(), Signal::CONT);
    wait_until("the host to find machines again", || mounted.tar("d").exists());
    fixture.empty("new");
    wait_until("a new machine", || mounted.tar("new").exists());
}

#[test]
fn a_copy_that_finds_no_room_fails_and_the_mount_goes_on() {
    let fixture = Fixture::new();
    with_large_files(&fixture, 1);
    let mounted = Mounted::new(&fixture);
    let small = fixture.scratch("small");
    run(program("mount", ["-t", "tmpfs", "-o", "size=1m", "none"]).arg(&small)).silent();
    let done = run(program("cp", [mounted.tar("m"), small.join("m.tar")])).exits(1);
    assert!(done.err().contains("No space left on device"), "{}", done.err());
    assert_eq!(mounted.log(), "", "nothing that is wrong with the mount");
    let copy = fixture.path().join("m.tar");
    run(program("cp", [mounted.tar("m"), copy])).silent();
}

#[test]
fn a_copy_that_was_killed_goes_on_where_it_was() {
    let fixture = Fixture::new();
    with_large_files(&fixture, 40);
    let mounted = Mounted::new(&fixture);
    let expected = fixture.run(["export", "m", "-q", "-o", "-"]).ok().stdout;
    fs::metadata(mounted.tar("m")).unwrap();
    let id = mounted.report("m")["generation"]["id"].as_str().unwrap().to_owned();
    let generation = mounted.point().join("m/.generations").join(id).join("export.tar");
    let resume: [(&str, &[&str], &Path); 2] = [
        ("rsync", &["--append-verify"], &mounted.tar("m")),
        ("curl", &["-s", "-C", "-", "-o"], &generation),
    ];
    for (name, options, from) in resume {
        let copy = fixture.path().join(name);
        let mut child = copying(&mounted.tar("m"), &copy);
        child.kill().unwrap();
        child.wait().unwrap();
        let part = fs::metadata(&copy).unwrap().len();
        let mut command = program(name, options);
        match name {
            "rsync" => command.args([from, &copy]),
            _ => command.arg(&copy).arg(format!("file://{}", from.display())),
        };
        run(command).ok();
        assert!(part < expected.len() as u64, "cp was faster than the kill");
        assert!(fs::read(&copy).unwrap() == expected, "{name} after {part} bytes");
    }
}

#[test]
fn a_users_mount_ends_with_the_user_or_with_root() {
    let host: Host = played();
    let mut mounted = host.mount("mnt");
    mounted.signal(Signal::TERM);
    assert!(mounted.wait().success(), "{}", mounted.log());
    assert!(mounts_on(mounted.point()).is_empty());
}

#[test]
fn a_mount_whose_path_leads_elsewhere_is_the_one_that_is_taken_away() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let at = |name: &str| fixture.path().join(name);
    let mount = |way: &str| {
        let point = at(way).join("mnt");
        fs::create_dir_all(&point).unwrap();
        let log = at(&format!("log-{way}"));
        Mounted::of(fixture.command(["mount", "--foreground"]), point, log)
    };
    let (mut ours, other) = (mount("way"), mount("elsewhere"));
    fs::rename(at("way"), at("moved")).unwrap();
    symlink(at("elsewhere"), at("way")).unwrap();
    kill(ours.server(), Signal::KILL);
    assert_eq!(ours.wait().code(), Some(1));
    assert!(mounts_on(&at("moved/mnt")).is_empty(), "the mount that was moved");
    assert_eq!(mounts_on(&at("elsewhere/mnt")).len(), 1, "the one that its path led to");
    fs::remove_file(at("way")).unwrap();
    fs::rename(at("moved"), at("way")).unwrap();
    drop(ours);
    other.unmount();
}

#[test]
fn another_mount_that_got_the_numbers_of_one_that_is_gone_stays() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let numbers = |path: &Path| {
        let st = rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).unwrap();
        (st.stx_mnt_id, st.stx_dev_minor)
    };
    // Numbers are anybody's on this host as soon as they are free.
    wait_until("the numbers are used again", || {
        let mut command = fixture.command(["mount", "--foreground"]);
        command.env("CODCHIFS_LOG", "info");
        let (point, log) = (fixture.mount_point(), tempfile::NamedTempFile::new().unwrap());
        let mut mounted = Mounted::of(command, point.clone(), log.path().to_owned());
        let wanted = numbers(&point);
        let server = mounted.server();
        kill(server, Signal::STOP);
        unmount_unused(&point);
        let others: Vec<_> = (0..8).map(|number| fixture.path().join(number.to_string())).collect();
        for other in &others {
            fs::create_dir_all(other).unwrap();
            run(program("mount", ["-t", "tmpfs", "none"]).arg(other)).silent();
        }
        let found = others.iter().any(|other| numbers(other) == wanted);
        mounted.signal(Signal::TERM);
        wait_until("the signal", || mounted.log().contains("unmounting"));
        kill(server, Signal::CONT);
        assert_eq!(mounted.wait().code(), Some(0));
        for other in others {
            assert_eq!(mounts_on(&other).len(), 1, "somebody else's");
            unmount_unused(&other);
        }
        found
    });
}

#[test]
fn a_mount_that_is_cut_off_in_the_kernel_is_taken_away() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let control = fixture.scratch("fusectl");
    run(program("mount", ["-t", "fusectl", "none"]).arg(&control)).silent();
    let mut mounted = Mounted::new(&fixture);
    let number = rustix::fs::minor(fs::metadata(mounted.point()).unwrap().dev());
    fs::write(control.join(number.to_string()).join("abort"), "1").unwrap();
    mounted.wait();
    assert!(mounts_on(mounted.point()).is_empty());
}
