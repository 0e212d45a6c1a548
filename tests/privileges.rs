//! What the process that answers the kernel may do: nothing but read machines.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::Fixture;
use common::lxd::{Host, UID};
use common::mounted::Mounted;
use common::played::played;
use common::processes::{Call, Idle, call, descriptors, is_alive, make, status, threads};
use common::{program, run};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

/// CAP_DAC_READ_SEARCH (linux/capability.h).
const READ_SEARCH: u64 = 1 << 2;

/// A set of capabilities as /proc writes it.
fn set(bits: u64) -> String {
    format!("{bits:016x}")
}

fn mounted(host: &Host) -> Mounted {
    let mounted = host.mount("mnt");
    // Served at least once, so that all that is started late is there.
    fs::read(mounted.tar("demo")).unwrap();
    mounted
}

#[test]
fn the_server_is_the_user_with_one_capability_in_every_thread() {
    let host = played();
    let mounted = mounted(&host);
    let server = mounted.server();
    let all = threads(server);
    assert!(all.len() > 1, "one thread only: {all:?}");
    for thread in all {
        let status = status(format!("{server}/task/{thread}"));
        for (field, value) in [
            ("Uid", format!("{UID} {UID} {UID} {UID}")),
            ("Gid", format!("{UID} {UID} {UID} {UID}")),
            ("Groups", UID.to_string()),
            ("CapInh", set(0)),
            ("CapPrm", set(READ_SEARCH)),
            ("CapEff", set(READ_SEARCH)),
            ("CapBnd", set(0)),
            ("CapAmb", set(0)),
            ("NoNewPrivs", "1".into()),
            // SECCOMP_MODE_FILTER
            ("Seccomp", "2".into()),
        ] {
            assert_eq!(status[field], value, "{field} of {}", status["Name"]);
        }
    }
    let limits = fs::read_to_string(format!("/proc/{server}/limits")).unwrap();
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().collect::<Vec<_>>(), ["0", "0", "bytes"]);
    // What belongs to root in /proc is what shows that a process is not dumpable (proc(5)).
    let owner = |pid| {
        std::os::unix::fs::MetadataExt::uid(&fs::metadata(format!("/proc/{pid}/fd")).unwrap())
    };
    assert_eq!(owner(server), 0);
    let user = unconfined();
    assert_eq!(owner(user.pid()), UID, "any other process of the user can be traced by the user");
    assert!(status(mounted.host())["Uid"].starts_with("0 0"));
}

#[test]
fn nothing_of_the_caller_arrives_in_the_server() {
    let host = played();
    let stray = host.path().join("stray");
    fs::write(&stray, "stray").unwrap();
    // Below, above, and beyond what a process usually has.
    let mut shell =
        program("bash", ["-c", r#"exec 3<"$0" 9<"$0" 77<"$0" 200<"$0"; cd "$1"; exec "${@:2}""#]);
    let codchifs = host.command(&["mount", "--foreground", "-o", "allow_root"]);
    shell.arg(&stray).arg(host.path()).arg(codchifs.get_program()).args(codchifs.get_args());
    for (name, value) in codchifs.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
        .env_remove("RUST_BACKTRACE")
        .env("SECRET_OF_THE_CALLER", "s")
        .env("LD_CALLER", "s")
        .env("CODCHIFS_LOG", "info");
    let mounted = Mounted::of(shell, host.path().join("mnt"), host.path().join("log"));
    fs::read(mounted.tar("demo")).unwrap();
    let server = mounted.server();
    assert!(descriptors(mounted.host()).values().any(|at| *at == stray), "the test opened nothing");

    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    let found = descriptors(server);
    for path in found.values() {
        let text = path.to_str().unwrap();
        let kind = match text.split_once(':') {
            Some((kind, _)) => kind.to_owned(),
            // Detached mounts show their directory from its own root on.
            None if text.starts_with("/dev/") => text.into(),
            None => "machine".into(),
        };
        *kinds.entry(kind).or_default() += 1;
    }
    let machines = kinds.remove("machine").unwrap_or_default();
    // What the kernel is answered on, and a second descriptor of that to see its end; two of the socket for what it is told, four
    // to ask on, and the one that it logs to.
    let expected = [("/dev/fuse", 2), ("/dev/null", 2), ("socket", 7)];
    assert_eq!(kinds, expected.map(|(kind, count)| (kind.to_owned(), count)).into(), "{found:?}");
    assert!((2..10).contains(&machines), "{found:?}");

    let read = |what: &str| fs::read(format!("/proc/{server}/{what}")).unwrap();
    let environment = String::from_utf8(read("environ")).unwrap();
    for variable in environment.split_terminator('\0') {
        assert_eq!(variable, "CODCHIFS_LOG=info");
    }
    assert_eq!(fs::read_link(format!("/proc/{server}/cwd")).unwrap(), Path::new("/"));
}

/// A process of the user with the server's capability, and nothing that confines it.
fn unconfined() -> Idle {
    let mut setpriv = program("setpriv", ["--clear-groups"]);
    setpriv.args([format!("--reuid={UID}"), format!("--regid={UID}")]);
    setpriv.args(["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]);
    Idle::new(setpriv)
}

/// Files with something in them that the server has no business with, and one of its machine.
struct Outside {
    private: Vec<PathBuf>,
    own: PathBuf,
    _root: tempfile::TempDir,
}

fn outside(host: &Host) -> Outside {
    let root = tempfile::Builder::new().prefix("secret-").tempdir_in("/root").unwrap();
    let home = host.path().join("home-of-another");
    fs::create_dir(&home).unwrap();
    let private = vec![root.path().join("key"), home.join("key")];
    for path in &private {
        fs::write(path, "private").unwrap();
    }
    for path in [&home, &home.join("key")] {
        chown(path, Some(65534), Some(65534)).unwrap();
    }
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).unwrap();
    let own = host.path().join("own");
    fs::create_dir_all(own.join("empty")).unwrap();
    fs::write(own.join("file"), "own").unwrap();
    for path in [&own, &own.join("file"), &own.join("empty")] {
        chown(path, Some(UID), Some(UID)).unwrap();
    }
    Outside { private, own, _root: root }
}

/// What a server that was taken over would try: each works for the user.
fn attempts(outside: &Outside, victim: u32) -> Vec<(Call, i32)> {
    let text = |path: &Path| format!("\"{}\"", path.display());
    let mut all = Vec::new();
    let mut denied = |name: &str, number, arguments: String, errno| {
        all.push((call(name, number, arguments), errno))
    };
    // No path leads anywhere.
    let (denied_files, missing) = (libc::ENOENT, libc::ENOSYS);
    for path in outside.private.iter().map(PathBuf::as_path).chain([Path::new("/etc/shadow")]) {
        let path = text(path);
        denied(&format!("open {path}"), libc::SYS_open, format!("{path}, 0"), denied_files);
        denied(
            &format!("openat2 {path}"),
            libc::SYS_openat2,
            format!("-100, {path}, $read, 24"),
            denied_files,
        );
    }
    let (file, empty) = (text(&outside.own.join("file")), text(&outside.own.join("empty")));
    let new = |name| text(&outside.own.join(name));
    denied("open for writing", libc::SYS_openat, format!("-100, {file}, 1"), missing);
    denied("open for both", libc::SYS_open, format!("{file}, 2"), missing);
    denied(
        "openat2 for writing",
        libc::SYS_openat2,
        format!("-100, {file}, $write, 24"),
        denied_files,
    );
    denied("creat", libc::SYS_creat, format!("{}, 0644", new("created")), missing);
    denied("truncate", libc::SYS_truncate, format!("{file}, 1"), missing);
    denied("chmod", libc::SYS_chmod, format!("{file}, 0600"), missing);
    denied("utime", libc::SYS_utimensat, format!("-100, {file}, 0, 0"), missing);
    denied("setxattr", libc::SYS_setxattr, format!("{file}, \"user.x\", \"y\", 1, 0"), missing);
    denied("mkdir", libc::SYS_mkdir, format!("{}, 0755", new("made")), missing);
    denied("rmdir", libc::SYS_rmdir, new("made"), missing);
    denied("mkfifo", libc::SYS_mknod, format!("{}, 0010644, 0", new("fifo")), missing);
    denied("link", libc::SYS_link, format!("{file}, {}", new("link")), missing);
    denied("symlink", libc::SYS_symlink, format!("\"x\", {}", new("symlink")), missing);
    denied("rename", libc::SYS_rename, format!("{empty}, {}", new("moved")), missing);
    denied("unlink", libc::SYS_unlink, file.clone(), missing);
    denied("memfd_create", libc::SYS_memfd_create, "\"x\", 0".into(), missing);
    for (name, family, kind) in [
        ("unix", libc::AF_UNIX, libc::SOCK_STREAM),
        ("inet", libc::AF_INET, libc::SOCK_STREAM),
        ("udp", libc::AF_INET6, libc::SOCK_DGRAM),
        ("netlink", libc::AF_NETLINK, libc::SOCK_RAW),
    ] {
        denied(
            &format!("socket {name}"),
            libc::SYS_socket,
            format!("{family}, {kind}, 0"),
            missing,
        );
    }
    denied("socketpair", libc::SYS_socketpair, "1, 1, 0, $room".into(), missing);
    denied("fork", libc::SYS_fork, "0".into(), missing);
    denied("clone", libc::SYS_clone, format!("{}, 0, 0, 0, 0", libc::SIGCHLD), missing);
    denied("ptrace", libc::SYS_ptrace, format!("{}, {victim}, 0, 0", libc::PTRACE_SEIZE), missing);
    denied(
        "read another's memory",
        libc::SYS_process_vm_readv,
        format!("{victim}, 0, 0, 0, 0, (long)0"),
        missing,
    );
    denied("pidfd_open", libc::SYS_pidfd_open, format!("{victim}, 0"), missing);
    denied("tgkill", libc::SYS_tgkill, format!("{victim}, {victim}, 0"), missing);
    denied("kill", libc::SYS_kill, format!("{victim}, 0"), missing);
    denied("inotify", libc::SYS_inotify_init1, "0".into(), missing);
    denied(
        "be dumpable",
        libc::SYS_prctl,
        format!("{}, 1, 0, 0, 0", libc::PR_SET_DUMPABLE),
        missing,
    );
    denied("set a limit", libc::SYS_setrlimit, format!("{}, $read", libc::RLIMIT_CORE), missing);
    denied("execveat", libc::SYS_execveat, "-100, \"/nonexistent\", 0, 0, 0".into(), missing);
    denied("execve", libc::SYS_execve, "\"/bin/true\", 0, 0".into(), missing);
    all
}

/// Directories that a server has open.
fn directories(server: u32) -> Vec<u32> {
    let is_directory = |number: &u32| {
        fs::metadata(format!("/proc/{server}/fd/{number}")).is_ok_and(|found| found.is_dir())
    };
    descriptors(server).into_keys().filter(is_directory).collect()
}

/// The server opens `path` from every directory that it has, which leads to the file from one at least.
fn opens(server: u32, path: &str) {
    let from =
        |directory: &u32| call(path, libc::SYS_openat, format!("{directory}, \"{path}\", 0"));
    let calls: Vec<_> = directories(server).iter().map(from).collect();
    let got = make(server, &calls);
    assert!(got.iter().any(Result::is_ok), "what it is for: {got:?}");
}

/// No path leads from its directories to what is beside or above, nor writes what is below.
fn stays_inside(server: u32, beside: &[&str], own: &str) {
    let mut calls = Vec::new();
    for directory in directories(server) {
        for path in beside {
            calls.push(call(path, libc::SYS_openat, format!("{directory}, \"{path}\", 0")));
        }
        for how in ["$write", "$truncate"] {
            let arguments = format!("{directory}, \"{own}\", {how}, 24");
            calls.push(call(how, libc::SYS_openat2, arguments));
        }
    }
    assert!(calls.len() > beside.len(), "it has no directory");
    for (call, got) in calls.iter().zip(make(server, &calls)) {
        let denied = match call.number {
            // ENOSYS without Landlock.
            libc::SYS_openat2 => &[libc::ENOENT, libc::EACCES, libc::EROFS, libc::ENOSYS][..],
            _ => &[libc::ENOENT, libc::ENOTDIR],
        };
        assert!(got.is_err_and(|error| denied.contains(&error)), "{call:?}: {got:?}");
    }
    let root = fs::read_dir(format!("/proc/{server}/root")).unwrap();
    for entry in root {
        let name = entry.unwrap().file_name();
        assert!(name.to_str().unwrap().parse::<u32>().is_ok(), "{name:?} in its root directory");
    }
}

#[test]
fn the_server_itself_cannot_do_what_its_user_can() {
    let host = played();
    let outside = outside(&host);
    let mounted = mounted(&host);
    let mut victim = unconfined();
    let attempts = attempts(&outside, victim.pid());
    let calls: Vec<_> = attempts.iter().map(|(call, _)| call.clone()).collect();
    let exec = calls.len() - 1;

    let file = "srv/service/data";
    opens(mounted.server(), file);
    // From its own rootfs to its own rootfs, by what is above.
    let beside = format!("../../codchi-demo/rootfs/{file}");
    let private = format!("{}{}", "../".repeat(20), outside.private[0].display());
    stays_inside(mounted.server(), &[&beside, &private], file);
    let got = make(mounted.server(), &calls);
    let mut wrong = Vec::new();
    for ((call, errno), got) in attempts.iter().zip(&got) {
        // Without Landlock the server has no openat2.
        let is_missing = call.number == libc::SYS_openat2 && *got == Err(libc::ENOSYS);
        if *got != Err(*errno) && !is_missing {
            wrong.push(format!("{}: {got:?} and not error {errno}", call.name));
        }
    }
    assert!(wrong.is_empty(), "the server:\n{}", wrong.join("\n"));
    assert_eq!(fs::read_to_string(outside.own.join("file")).unwrap(), "own");
    fs::read(mounted.tar("demo")).expect("it goes on");

    // The same calls by a process with the same ids and the same capability.
    let control = unconfined();
    let got = make(control.pid(), &calls);
    for (call, got) in calls.iter().zip(&got) {
        let expected = if call.name == "execveat" { Err(libc::ENOENT) } else { Ok(()) };
        assert_eq!(got.map(drop), expected, "{} by who is not confined", call.name);
    }
    assert_eq!(calls[exec].name, "execve");
    assert!(!outside.own.join("file").exists());
    assert_eq!(victim.killed_by(), None);
}

#[test]
fn the_server_cannot_do_what_takes_root() {
    let host = played();
    let mounted = mounted(&host);
    let calls = [
        call("mount", libc::SYS_mount, "\"none\", \"/mnt\", \"tmpfs\", 0, 0"),
        call("umount", libc::SYS_umount2, "\"/mnt\", 0"),
        call("open_tree", libc::SYS_open_tree, "-100, \"/\", 1"),
        call("fsopen", libc::SYS_fsopen, "\"tmpfs\", 0"),
        call("unshare", libc::SYS_unshare, libc::CLONE_NEWNS.to_string()),
        call(
            "mknod",
            libc::SYS_mknod,
            format!("\"{}/device\", 0020644, 0x103", host.path().display()),
        ),
        call("chroot", libc::SYS_chroot, format!("\"{}\"", host.path().display())),
        call("setuid", libc::SYS_setuid, "0"),
        call("setgroups", libc::SYS_setgroups, "0, 0"),
    ];
    for (call, got) in calls.iter().zip(make(mounted.server(), &calls)) {
        assert_eq!(got, Err(libc::ENOSYS), "{}", call.name);
    }
    let control = Idle::new(program("unshare", ["--mount", "--propagation", "private"]));
    for (call, got) in calls.iter().zip(make(control.pid(), &calls)) {
        assert!(got.is_ok(), "{} by root: {got:?}", call.name);
    }
}

#[test]
fn the_server_of_roots_own_machines_is_confined_as_well() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    let mounted = Mounted::new(&fixture);
    fs::read(mounted.tar("m")).unwrap();
    let status = status(mounted.server());
    assert_eq!((&status["CapEff"], &status["CapBnd"]), (&set(READ_SEARCH), &set(0)));
    let own = "project/README";
    opens(mounted.server(), own);
    stays_inside(mounted.server(), &[&format!("../m/{own}")], own);
    assert_ne!(fs::read(place.home.join(own)).unwrap(), b"");
    let calls = [
        call("shadow", libc::SYS_open, "\"/etc/shadow\", 0"),
        call("write", libc::SYS_open, "\"/etc/shadow\", 1"),
        call("socket", libc::SYS_socket, "1, 1, 0"),
    ];
    let got = make(mounted.server(), &calls);
    let denied = [libc::ENOENT, libc::ENOSYS, libc::ENOSYS].map(Err);
    assert_eq!(got, denied, "{calls:?}");
}

#[test]
fn the_user_gets_nothing_out_of_the_server_or_the_host() {
    let host = played();
    let mounted = mounted(&host);
    let user = |line: &str| {
        let mut setpriv = program("setpriv", ["--clear-groups"]);
        setpriv.args([format!("--reuid={UID}"), format!("--regid={UID}")]);
        run(setpriv.args(["perl", "-e", line])).code == Some(0)
    };
    let looks = |pid| {
        let opened = |what: &str| {
            format!("open(my $f, '<', '/proc/{pid}/{what}') or exit 1; defined(getc $f) or exit 1")
        };
        let listed = |what: &str| format!("opendir(my $d, '/proc/{pid}/{what}') or exit 1");
        [
            // PTRACE_SEIZE
            format!("exit(syscall({}, 0x4206, {pid}, 0, 0) != 0)", libc::SYS_ptrace),
            format!("open(my $f, '<', '/proc/{pid}/mem') or exit 1"),
            opened("environ"),
            opened("maps"),
            listed("fd"),
            format!("readlink('/proc/{pid}/fd/0') or exit 1"),
            listed("root/"),
            listed("map_files"),
        ]
    };
    let plain = {
        let mut setpriv = program("setpriv", ["--clear-groups"]);
        setpriv.args([format!("--reuid={UID}"), format!("--regid={UID}")]);
        Idle::new(setpriv)
    };
    for (process, pid) in [("server", mounted.server()), ("host", mounted.host())] {
        for (line, control) in looks(pid).iter().zip(looks(plain.pid())) {
            assert!(!user(line), "{process}: {line}");
            assert!(user(&control), "any other process of the user: {control}");
        }
    }
    // As the uid is the user's, the user may end the server. Then it is gone, and the host unmounts.
    assert!(user(&format!("kill(9, {}) or exit 1", mounted.server())));
    common::wait_until("the end of the mount", || {
        common::mounted::mounts_on(mounted.point()).is_empty()
    });
}

/// The host acts with the user's rights in threads of its own. kill(2) asks whose thread it is, and ends the process.
#[test]
fn the_user_ends_and_throttles_no_thread_of_the_host_that_acts_as_the_user() {
    const SCRIPT: &str = "
import ctypes, os, resource, sys, time
libc, host, point = ctypes.CDLL(None), int(sys.argv[1]), sys.argv[2]
def done(what, *arguments):
    try:
        what(*arguments)
    except OSError:
        return 0
    print(what, arguments)
    return 1
end, sent = time.monotonic() + 5, 0
while time.monotonic() < end and not sent:
    os.listdir(point)
    for thread in map(int, os.listdir(f'/proc/{host}/task')):
        sent += libc.tgkill(host, thread, 9) == 0
        sent += done(os.sched_setaffinity, thread, [0])
        sent += done(os.setpriority, os.PRIO_PROCESS, thread, 19)
        sent += done(os.sched_setscheduler, thread, os.SCHED_IDLE, os.sched_param(0))
        sent += done(resource.prlimit, thread, resource.RLIMIT_CPU, (1, 1))
        # ioprio_set, migrate_pages, move_pages, process_vm_readv of one byte at 0, kcmp, pidfd_open: x86-64's numbers.
        sent += libc.syscall(251, 1, thread, 3 << 13) == 0
        sent += libc.syscall(256, thread, 64, None, None) == 0
        sent += libc.syscall(279, thread, 0, None, None, None, 0) == 0
        sent += libc.syscall(312, thread, os.getpid(), 1, 0, 0) >= 0
        sent += libc.ptrace(16, thread, None, None) == 0
sys.exit(sent)";
    let host = played();
    let mounted = host.mount("mnt");
    let mut setpriv = program("setpriv", ["--clear-groups"]);
    setpriv.args([format!("--reuid={UID}"), format!("--regid={UID}")]);
    setpriv.args(["/usr/bin/python3", "-c", SCRIPT, &mounted.host().to_string()]);
    run(setpriv.arg(mounted.point().join("demo"))).silent();
    assert!(is_alive(mounted.host()));
}
