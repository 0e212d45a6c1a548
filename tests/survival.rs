//! What the processes of a mount survive, and what they do not let a user notice.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::Fixture;
use common::lxd::{HOME, LXD, Server, plant, shifted};
use common::mounted::Mounted;
use common::processes::{call, make};
use common::{program, run, wait_until};
use rustix::io::Errno;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Where functions of the running program are, by what their mangled names have in them.
fn addresses<const N: usize>(pid: u32, names: [&str; N]) -> [u64; N] {
    let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let base = maps.lines().find(|line| line.ends_with(exe.to_str().unwrap())).unwrap();
    let base = u64::from_str_radix(base.split('-').next().unwrap(), 16).unwrap();
    let symbols = run(program("nm", [exe])).ok().out();
    names.map(|name| {
        let line =
            symbols.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("no {name}"));
        base + u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap()
    })
}

/// Has the next call of one function panic instead, as if it divided by zero. Only for x86-64.
fn panic_at(pid: u32, function: &str, mut meanwhile: impl FnMut()) {
    let [function, panic] = addresses(pid, [function, "panic_const_div_by_zero"]);
    let room = call("room", libc::SYS_mmap, "0, 4096, 3, 0x22, -1, 0");
    let page = make(pid, &[room])[0].unwrap();
    // What it is given is a core::panic::Location: pointer and length of a path, line, column.
    let mut script = String::from(
        "set pagination off\nset confirm off\nset debuginfod enabled off\nset language c\n",
    );
    let _ = writeln!(script, "break *{function:#x}\ncontinue");
    let _ = writeln!(script, "set $location = (char*){page:#x}");
    script.push_str(
        "set *(long*)$location = (long)($location + 32)\nset *(long*)($location + 8) = 1\n",
    );
    script.push_str("set *(int*)($location + 16) = 7\nset *(int*)($location + 20) = 7\nset *($location + 32) = 'x'\n");
    let _ =
        writeln!(script, "set $rdi = (long)$location\nset $rip = {panic:#x}\ndelete\ndetach\nquit");
    let (file, log) =
        (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
    fs::write(file.path(), script).unwrap();
    let mut gdb = Command::new("gdb")
        .args(["-nx", "-batch", "-p", &pid.to_string(), "-x"])
        .arg(file.path())
        .stdin(Stdio::null())
        .stdout(log.reopen().unwrap())
        .stderr(log.reopen().unwrap())
        .spawn()
        .unwrap();
    let said = || fs::read_to_string(log.path()).unwrap();
    wait_until("the breakpoint", || said().contains("Breakpoint 1 at"));
    meanwhile();
    wait_until("gdb to end", || gdb.try_wait().unwrap().is_some());
    assert!(said().contains("Breakpoint 1,"), "{}", said());
}

#[test]
fn a_panic_in_one_request_answers_eio_and_is_logged_and_the_mount_lives() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let mounted = Mounted::new(&fixture);
    let link = mounted.rootfs("m").join("opt/sh");
    let target = fs::read_link(&link).unwrap();
    let server = mounted.server();
    let mut got = None;
    // Not with the caches of the kernel: it asks for a link's target each time.
    panic_at(server, "3vfs3Vfs8readlink17h", || got = Some(fs::read_link(&link)));
    let error = Errno::from_io_error(&got.unwrap().unwrap_err());
    assert_eq!(error, Some(Errno::IO));
    let log = mounted.log();
    for words in ["a handler panicked; answered EIO", "attempt to divide by zero", "readlink"] {
        assert!(log.contains(words), "{words}: {log}");
    }
    assert_eq!(fs::read_link(&link).unwrap(), target);
    assert_eq!(mounted.server(), server);
    mounted.unmount();
}

/// Codchi's state of a machine under another name.
fn rename_state(server: &Server, from: &str, to: &str) {
    let config = server.host.config().join("machine");
    fs::rename(config.join(from), config.join(to)).unwrap();
    fs::rename(server.host.home(from), server.host.home(to)).unwrap();
}

#[test]
fn machines_of_a_real_lxd_come_go_and_change_their_names_under_a_mount() {
    let mut server = Server::new(LXD, "dir");
    let mounted = server.host.mount("mnt");
    let reads = |name: &str| {
        fs::read_to_string(mounted.rootfs(name).join("home/codchi/project/README"))
            .is_ok_and(|t| t == "hello\n")
    };
    assert!(reads("demo"));
    let open = File::open(mounted.rootfs("demo").join("srv/user")).unwrap();
    let tar = File::open(mounted.tar("demo")).unwrap();

    server.create("added");
    plant(&server.host.home("added"), HOME, shifted);
    wait_until("the machine that was added", || reads("added"));

    let (from, to) = ("codchi-added", "codchi-renamed");
    server.client(&["rename", from, to]).ok();
    rename_state(&server, "added", "renamed");
    let source = format!("source={}", server.host.home("renamed").display());
    server.client(&["config", "device", "set", to, "home/codchi", &source]).ok();
    wait_until("the new name", || reads("renamed") && !mounted.point().join("added").exists());

    // The daemon goes and comes back; what it last said stands on the disk.
    server.kill_daemon();
    wait_until("the machines without the daemon", || {
        reads("demo") && reads("renamed") && server.host.row("demo")["state"] == "ready"
    });
    server.start_daemon();
    wait_until("the machines with the daemon", || {
        reads("demo") && server.host.row("demo")["state"] == "stopped"
    });

    server.client(&["delete", "-f", to]).ok();
    wait_until("the deleted instance", || {
        mounted.report("renamed")["state"] == "not installed" && !mounted.tar("renamed").exists()
    });
    server.client(&["delete", "-f", "codchi-demo"]).ok();
    fs::remove_dir_all(server.host.config().join("machine/demo")).unwrap();
    wait_until("the end of the machine", || !mounted.point().join("demo").exists());
    // A file that somebody has open outlives its name, here as anywhere.
    let mut text = [0; 11];
    open.read_exact_at(&mut text, 0).unwrap();
    assert_eq!(&text, b"the user's\n");
    let length = tar.metadata().map(|meta| meta.len()).unwrap_or(1 << 20);
    let mut whole = vec![0; usize::try_from(length).unwrap()];
    assert!(tar.read_exact_at(&mut whole, 0).is_err(), "what is gone cannot pass for whole");
    assert!(Path::new(mounted.point()).is_dir() && mounted.server() > 0);
}
