//! What the calls that are left to a taken-over server can do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::Fixture;
use common::mounted::Mounted;
use common::processes::{Call, Idle, call, descriptors, make};
use common::{program, wait_until};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

fn mounted(fixture: &Fixture) -> Mounted {
    fixture.sample("m");
    let mounted = Mounted::new(fixture);
    fs::read(mounted.tar("m")).unwrap();
    mounted
}

/// The numbers of system calls by their names.
fn numbers() -> BTreeMap<String, libc::c_long> {
    let header = fs::read_to_string("/usr/include/x86_64-linux-gnu/asm/unistd_64.h").unwrap();
    let lines = header.lines().filter_map(|line| line.strip_prefix("#define __NR_"));
    let mut all: BTreeMap<_, _> = lines
        .filter_map(|line| line.split_once(' '))
        .map(|(name, number)| (name.to_owned(), number.trim().parse().unwrap()))
        .collect();
    // Headers of Debian 12 are older.
    all.extend([("getxattrat".to_owned(), 464), ("listxattrat".to_owned(), 465)]);
    all
}

/// The calls in the first column of the table of SECURITY.md.
fn listed() -> BTreeSet<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/SECURITY.md");
    let page = fs::read_to_string(page).unwrap();
    let section = page.split_once("\n### System calls\n").unwrap().1;
    let section = section.split("\n##").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let cells = rows.map(|row| row.split(" |").next().unwrap());
    cells
        .flat_map(|cell| cell.split([' ', ',', '`']).filter(|word| !word.is_empty()))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_server_makes_no_call_but_those_in_the_list() {
    let fixture = Fixture::new();
    let mounted = mounted(&fixture);
    let numbers = numbers();
    let listed = listed();
    let allowed: BTreeSet<_> = listed.iter().map(|name| numbers[name]).collect();
    assert!(allowed.len() > 40, "{listed:?}");
    // The kernel asks no filter about uretprobe and uprobe (kernel/seccomp.c): they end whoever calls them by himself.
    let exempt = [335, 336];
    let denied = (0..512).filter(|number| !allowed.contains(number) && !exempt.contains(number));
    let mut denied: Vec<_> = denied.collect();
    // Those of the ABI x32, which are the same ones under other numbers: write, openat, execve.
    denied.extend([1, 257, 520].map(|number| 0x4000_0000 | number));
    let calls: Vec<_> =
        denied.iter().map(|number| call(&number.to_string(), *number, "0")).collect();
    let wrong: Vec<_> = calls
        .iter()
        .zip(make(mounted.server(), &calls))
        .filter(|(_, got)| *got != Err(libc::ENOSYS))
        .map(|(call, got)| format!("{}: {got:?}", call.name))
        .collect();
    assert!(wrong.is_empty(), "not in the list, and yet there: {wrong:?}");
    fs::read(mounted.tar("m")).expect("it goes on");
}

/// Arguments of allowed calls that would do more than the server needs. Each does something in another process.
fn attempts(victim: u32, descriptor: u32) -> Vec<Call> {
    let thread = libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
    let fcntl = |name: &str, command: libc::c_int, argument: i64| {
        call(name, libc::SYS_fcntl, format!("{descriptor}, {command}, {argument}"))
    };
    let ioctl = |name: &str, command: u64, argument: &str| {
        call(name, libc::SYS_ioctl, format!("{descriptor}, {command}, {argument}"))
    };
    let memory = |name: &str, number, arguments: &str| call(name, number, arguments);
    vec![
        // Signals as the user, without kill(2).
        fcntl("F_SETOWN", libc::F_SETOWN, victim.into()),
        fcntl("F_SETOWN of a group", libc::F_SETOWN, -i64::from(victim)),
        call("F_SETOWN_EX", libc::SYS_fcntl, format!("{descriptor}, 15, $owner")),
        fcntl("F_SETSIG", 10, libc::SIGKILL.into()),
        fcntl("F_SETFL with O_ASYNC", libc::F_SETFL, libc::O_ASYNC.into()),
        fcntl("F_SETFL with O_NONBLOCK", libc::F_SETFL, libc::O_NONBLOCK.into()),
        fcntl("F_NOTIFY", libc::F_NOTIFY, 1),
        ioctl("FIOASYNC", 0x5452, "$one"),
        ioctl("FIONBIO", 0x5421, "$one"),
        ioctl("FIOSETOWN", 0x8901, "$owner"),
        ioctl("SIOCSPGRP", 0x8902, "$owner"),
        // What others wait for.
        fcntl("F_SETLEASE", libc::F_SETLEASE, libc::F_RDLCK.into()),
        call("F_SETLK", libc::SYS_fcntl, format!("{descriptor}, {}, $room", libc::F_SETLK)),
        call("F_OFD_SETLK", libc::SYS_fcntl, format!("{descriptor}, 37, $room")),
        call("flock", libc::SYS_flock, format!("{descriptor}, {}", libc::LOCK_EX | libc::LOCK_NB)),
        call("flock, waiting", libc::SYS_flock, format!("{descriptor}, {}", libc::LOCK_SH)),
        // Terminals and descriptors.
        ioctl("TIOCSTI", 0x5412, "\"x\""),
        ioctl("TCGETS", 0x5401, "$room"),
        ioctl("FUSE_DEV_IOC_CLONE", 0x8004_e500, "$one"),
        ioctl("FUSE_DEV_IOC_BACKING_OPEN", 0x4010_e501, "$room"),
        ioctl("FS_IOC_SETFLAGS", 0x4008_6602, "$one"),
        ioctl("FICLONE", 0x4004_9409, "0"),
        fcntl("F_DUPFD", libc::F_DUPFD, 0),
        fcntl("F_SETPIPE_SZ", libc::F_SETPIPE_SZ, 4096),
        fcntl("F_ADD_SEALS", libc::F_ADD_SEALS, 1),
        // New code.
        memory("mmap of code", libc::SYS_mmap, "0, 4096, 5, 0x22, -1, 0"),
        memory("mmap of code to write", libc::SYS_mmap, "0, 4096, 7, 0x22, -1, 0"),
        memory("mprotect to code", libc::SYS_mprotect, "$page, 4096, 5"),
        // Processes, namespaces, and threads that share less.
        call(
            "clone of a thread and more",
            libc::SYS_clone,
            format!("{}, 0, 0, 0, 0", thread | libc::CLONE_NEWNS),
        ),
        call(
            "clone like vfork",
            libc::SYS_clone,
            format!("{}, 0, 0, 0, 0", libc::CLONE_VM | libc::SIGCHLD),
        ),
        call("PR_SET_DUMPABLE", libc::SYS_prctl, "4, 1, 0, 0, 0"),
        call("PR_SET_PDEATHSIG", libc::SYS_prctl, "1, 0, 0, 0, 0"),
        call("PR_SET_MM", libc::SYS_prctl, "35, 1, 0, 0, 0"),
        call("PR_SET_PTRACER", libc::SYS_prctl, "0x59616d61, -1, 0, 0, 0"),
        call("PR_CAP_AMBIENT", libc::SYS_prctl, "47, 2, 2, 0, 0"),
        // Files to write.
        call("openat to write", libc::SYS_openat, "-100, \"/0\", 1"),
        call("openat to read and write", libc::SYS_openat, "-100, \"/0\", 2"),
        call("openat to cut", libc::SYS_openat, format!("-100, \"/0\", {}", libc::O_TRUNC)),
        call("openat to append", libc::SYS_openat, format!("-100, \"/0\", {}", libc::O_APPEND)),
        call("openat to make", libc::SYS_openat, format!("-100, \"x\", {}, 0600", libc::O_CREAT)),
        call(
            "openat without a name",
            libc::SYS_openat,
            format!("-100, \"/\", {}, 0600", libc::O_TMPFILE | libc::O_RDWR),
        ),
        call("open to write", libc::SYS_open, "\"/0\", 1"),
        call("open to cut", libc::SYS_open, format!("\"/0\", {}", libc::O_TRUNC)),
    ]
}

#[test]
fn arguments_that_do_more_than_the_server_needs_are_refused() {
    let fixture = Fixture::new();
    let mounted = mounted(&fixture);
    let mut victim = Idle::new(program("env", ["--"]));
    let server = mounted.server();
    // Of each kind that it has: a socket, the device, a directory of a machine, nothing.
    let mut kinds = BTreeMap::new();
    for (number, path) in descriptors(server) {
        kinds.entry(path.to_str().unwrap().split(':').next().unwrap().to_owned()).or_insert(number);
    }
    assert!(kinds.len() >= 4, "{kinds:?}");
    for (kind, descriptor) in kinds {
        let calls = attempts(victim.pid(), descriptor);
        for (call, got) in calls.iter().zip(make(server, &calls)) {
            assert_eq!(got, Err(libc::ENOSYS), "{} of {kind}", call.name);
        }
    }
    // Nothing of that is missing in this kernel.
    let mut control = program("env", ["--"]);
    control.current_dir(fixture.path());
    let control = Idle::new(control);
    let calls = attempts(victim.pid(), 0);
    for (call, got) in calls.iter().zip(make(control.pid(), &calls)) {
        assert_ne!(got, Err(libc::ENOSYS), "{} by who is not confined", call.name);
    }
    assert_eq!(victim.killed_by(), None);
    fs::read(mounted.tar("m")).expect("it goes on");
}

/// The root directory of the server has its descriptors, and a name there opens the file anew.
#[test]
fn no_descriptor_of_the_server_opens_anew_for_more() {
    let fixture = Fixture::new();
    let mounted = mounted(&fixture);
    let server = mounted.server();
    let found = descriptors(server);
    let path = |number: u32| found[&number].to_str().unwrap().to_owned();
    assert!(found.values().all(|path| *path != fixture.path().join("log")), "{found:?}");
    // Without Landlock it has no openat2 at all, and openat opens nothing for writing.
    let probe = call("/0", libc::SYS_openat2, "-100, \"/0\", $read, 24");
    let is_missing = make(server, &[probe]) == [Err(libc::ENOSYS)];
    for how in ["$write", "$both", "$truncate", "$append", "$read"] {
        let calls: Vec<_> = found
            .keys()
            .map(|fd| {
                call(&fd.to_string(), libc::SYS_openat2, format!("-100, \"/{fd}\", {how}, 24"))
            })
            .collect();
        for (call, got) in calls.iter().zip(make(server, &calls)) {
            let path = path(call.name.parse().unwrap());
            let expected = match (how, path.split(':').next().unwrap()) {
                _ if is_missing => Err(libc::ENOSYS),
                // Of them there is nothing to read or to write anew.
                (_, "socket") => Err(libc::ENXIO),
                // What it has, it may have twice; nothing is cut off a device.
                ("$read", _) | ("$truncate", "/dev/null" | "/dev/fuse") => Ok(()),
                ("$write" | "$both" | "$append", "/dev/null" | "/dev/fuse") => Err(libc::EACCES),
                _ => Err(libc::EISDIR),
            };
            assert_eq!(got.map(drop), expected, "{path} by {how}");
        }
    }
}

/// The control sequence of a terminal, sent by what serves a mount.
#[test]
fn a_taken_over_server_logs_lines_and_no_control_characters() {
    let fixture = Fixture::new();
    let mounted = mounted(&fixture);
    let text = "a\x1b]0;title\x07b\u{9b}31m\rc";
    let write = call("write", libc::SYS_write, format!("2, \"{text}\", {}", text.len()));
    let newline = call("write", libc::SYS_write, "2, $newline, 1");
    // Levels of the journal that go to every terminal.
    let alarm = call("write", libc::SYS_write, "2, \"<0>fire\", 7");
    let alarms = call("write", libc::SYS_write, "2, \"<002>water\", 10");
    // What is too long costs the host no memory, and its rest begins no other line.
    let long = call("write", libc::SYS_write, "2, $x, 1000");
    let last = call("write", libc::SYS_write, "2, \"last\", 4");
    let calls: Vec<_> = [write, newline.clone(), alarm, newline.clone(), alarms, newline.clone()]
        .into_iter()
        .chain(std::iter::repeat_n(long, 100))
        .chain([newline.clone(), last, newline])
        .collect();
    assert!(make(mounted.server(), &calls).iter().all(Result::is_ok));
    wait_until("the lines", || mounted.log().lines().any(|line| line == "last"));
    let log = mounted.log();
    let long: Vec<_> = log.lines().filter(|line| line.len() > 500).collect();
    assert!(long.len() == 1 && long[0].len() <= 16 << 10 && long[0].ends_with('…'), "{long:?}");
    assert!(log.chars().all(|c| c == '\n' || !c.is_control()), "{log:?}");
    assert!(log.contains("title"), "{log}");
    let levels: Vec<_> = log.lines().filter(|line| line.starts_with('<')).collect();
    assert_eq!(levels, ["<3>fire", "<3>water"]);
}
