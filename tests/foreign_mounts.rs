//! Root's commands at mounts of others: what is unmounted and covered is what was looked at, and who serves a mount can neither
//! hold up nor end who looks at it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::alone::alone;
use common::fixture::Fixture;
use common::liar::{Liar, Lies};
use common::lxd;
use common::mounted::{Mounted, mounts_on};
use common::plants::Hung;
use common::processes::peak_below;
use common::{Done, host_lock, program, run, run_while, wait_until};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::mount::{UnmountFlags, unmount};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Of no other test: what has these ids is stopped and killed here.
const UID: u32 = 60_711;
const OTHER: u32 = 1001;
const TYPE: &str = "fuse.codchifs";

/// The user's `d/mnt`, and another user's `other/mnt`, which is mounted.
struct Stage {
    fixture: Fixture,
    directory: PathBuf,
    point: PathBuf,
    link: PathBuf,
    other: PathBuf,
    _mounted: Hung,
}

fn stage() -> Stage {
    let fixture = Fixture::new();
    fixture.sample("m");
    let own = fixture.scratch("own");
    let (directory, other) = (own.join("d"), fixture.scratch("other"));
    fs::create_dir_all(directory.join("mnt")).unwrap();
    fs::create_dir(other.join("mnt")).unwrap();
    for path in [&own, &directory, &directory.join("mnt")] {
        chown(path, Some(UID), Some(UID)).unwrap();
    }
    for path in [&other, &other.join("mnt")] {
        chown(path, Some(OTHER), Some(OTHER)).unwrap();
    }
    let link = own.join("link");
    symlink(&other, &link).unwrap();
    lchown(&link, Some(UID), Some(UID)).unwrap();
    let mounted = Hung::new(&other.join("mnt"), OTHER, TYPE);
    let point = directory.join("mnt");
    Stage { fixture, directory, point, link, other, _mounted: mounted }
}

impl Stage {
    /// The other user's mount is there, and nothing over it.
    #[track_caller]
    fn others_mount_stays(&self, what: &str) {
        let there = mounts_on(&self.other.join("mnt"));
        assert_eq!(there.len(), 1, "{what}: {there:?}");
        assert_eq!(there[0].source, "hung", "{what}");
    }
}

fn exchange(one: &Path, two: &Path) {
    renameat_with(CWD, one, CWD, two, RenameFlags::EXCHANGE).unwrap();
}

#[test]
fn a_stale_mount_that_moves_while_it_is_looked_at_has_nothing_else_unmounted_or_covered() {
    let stage = stage();
    for round in 0..3 {
        let stale = Hung::new(&stage.point, UID, TYPE);
        let (directory, link) = (stage.directory.clone(), stage.link.clone());
        let swapped = Arc::new(AtomicBool::new(false));
        let done = Arc::clone(&swapped);
        stale.play_stale(move || {
            exchange(&directory, &link);
            done.store(true, Ordering::SeqCst);
        });
        let said = stage.fixture.run(["mount", stage.point.to_str().unwrap()]);
        assert!(swapped.load(Ordering::SeqCst), "round {round}: nobody looked: {}", said.err());
        stage.others_mount_stays(&format!("round {round}: {}", said.err()));
        exchange(&stage.directory, &stage.link);
        while !mounts_on(&stage.point).is_empty() {
            unmount(&stage.point, UnmountFlags::DETACH).unwrap();
        }
        drop(stale);
    }
}

#[test]
fn a_path_that_changes_while_it_is_unmounted_has_nothing_else_unmounted() {
    let stage = stage();
    let stop = Arc::new(AtomicBool::new(false));
    let racing = {
        let (stop, one, two) = (Arc::clone(&stop), stage.directory.clone(), stage.link.clone());
        std::thread::spawn(move || {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                exchange(&one, &two);
                exchange(&one, &two);
                rounds += 1;
            }
            rounds
        })
    };
    let end = std::time::Instant::now() + std::time::Duration::from_secs(8);
    while std::time::Instant::now() < end {
        for how in [&["unmount"][..], &["unmount", "--lazy"]] {
            let point = stage.point.to_str().unwrap();
            let said = stage.fixture.run([how, &[point]].concat());
            stage.others_mount_stays(&format!("{how:?}: {}", said.err()));
        }
    }
    stop.store(true, Ordering::Relaxed);
    assert!(racing.join().unwrap() > 20);
    // Named without a race, each is the one that is meant.
    let mine = Hung::new(&stage.point, UID, TYPE);
    stage.fixture.run(["unmount", stage.point.to_str().unwrap()]).ok();
    assert!(mounts_on(&stage.point).is_empty());
    drop(mine);
    let through_link = stage.link.join("mnt");
    stage.fixture.run(["unmount", through_link.to_str().unwrap()]).exits(1);
    stage.others_mount_stays("a link of the user's to another user's mount");
    // Nor by a link in place of the mount point itself.
    fs::remove_dir(&stage.point).unwrap();
    symlink(stage.other.join("mnt"), &stage.point).unwrap();
    lchown(&stage.point, Some(UID), Some(UID)).unwrap();
    for how in [&["unmount"][..], &["unmount", "--lazy"], &["mount"]] {
        stage.fixture.run([how, &[stage.point.to_str().unwrap()]].concat()).exits(1);
        stage.others_mount_stays("a link in place of the mount point");
    }
}

#[test]
fn who_serves_a_mount_neither_ends_nor_stops_nor_slows_down_who_looks_at_it() {
    let stage = stage();
    let mount = Hung::new(&stage.point, UID, TYPE);
    // Whatever has the user's ids is killed at once, as is all that it can be sent to.
    let mut killer = program("setpriv", ["--clear-groups"]);
    killer.args([format!("--reuid={UID}"), format!("--regid={UID}")]);
    let script = "
import os, signal, time
while True:
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            line = open(f'/proc/{pid}/cmdline', 'rb').read()
            if b'--look' in line:
                os.kill(int(pid), signal.SIGKILL)
            if b'--config-dir' in line:
                for thread in os.listdir(f'/proc/{pid}/task'):
                    os.kill(int(thread), signal.SIGSTOP)
        except OSError:
            pass
    time.sleep(0.001)";
    let mut killer =
        killer.args(["/usr/bin/python3", "-c", script]).stdin(Stdio::null()).spawn().unwrap();
    for words in [&["status"][..], &["status", "--json"], &["doctor"], &["list"]] {
        let said = stage.fixture.run(words);
        assert!(said.code.is_some(), "{words:?} was ended by a signal");
        if words[0] == "status" {
            assert!(said.out().contains("silent"), "{words:?}: {}", said.out());
        }
    }
    // Root's mount over it is refused, since it may be in use, and takes it away once asked to.
    let point = stage.point.to_str().unwrap();
    stage.fixture.run(["mount", point]).exits(1);
    stage.fixture.run(["unmount", "--lazy", point]).ok();
    assert!(mounts_on(&stage.point).is_empty());
    killer.kill().unwrap();
    killer.wait().unwrap();
    drop(mount);
    wait_until("nobody left who looks", || {
        let asked = run(program("pgrep", ["-u", &UID.to_string(), "-f", "codchifs --look"]));
        asked.out().trim().is_empty()
    });
}

/// What `status` says of a mount that says what no codchifs does, or more than it would.
const NONSENSE: &str = "its answers make no sense";
const TOO_MUCH: &str = "it says more than can be shown";

/// What a server may say, and what `status` then says of its mount.
fn lies() -> Vec<(&'static str, Lies, &'static str)> {
    let transfers = |inside: &str| format!(r#"{{"schema":1,"transfers":[{inside}]}}"#);
    let text = |text: &str| Lies::text(text);
    let one = Lies::text(transfers(""));
    let endless = Lies { length: u64::MAX, ..one.clone() };
    let in_a_string = Lies { text: b"{\"schema\":\"".into(), filler: b'x', ..endless.clone() };
    let many = |inside: &str, numbered| {
        let text = transfers(&format!("{inside}{{}}"));
        Lies { names: Vec::new(), numbered, ..Lies::text(text) }
    };
    let sized = |size| Lies { size: Some(size), ..one.clone() };
    let named = |names| Lies { names, ..one.clone() };
    let copies = "{},".repeat(300_000);
    let deep = "[".repeat(500_000);
    let long = format!(r#"{{"file":"{}"}},"#, "x".repeat(900 << 10));
    let hostile = r#"{"pid":1,"file":"\u001b[2J\n","generation":"\u202e\u0000\n# "},"#;
    let large = format!(r#"{{"pid":1,"offset":{0},"size":{0},"bytes":{0}}},"#, u64::MAX);
    vec![
        ("bytes without an end", endless, TOO_MUCH),
        ("a string without an end", in_a_string, TOO_MUCH),
        ("1 GiB", Lies { length: 1 << 30, ..one.clone() }, TOO_MUCH),
        ("no JSON", text("transfers"), NONSENSE),
        ("half of it", text(r#"{"transfers":["#), NONSENSE),
        ("nothing", text(""), NONSENSE),
        ("no UTF-8", Lies::text([b'"', 0xff, 0x1b, b'"']), NONSENSE),
        ("another type", text(r#"{"transfers":"no"}"#), NONSENSE),
        ("a negative size", many(r#"{"size":-1},"#, 1), NONSENSE),
        ("nested", text(&format!(r#"{{"transfers":{deep}"#)), NONSENSE),
        ("nested where nobody looks", text(&format!(r#"{{"other":{deep}"#)), NONSENSE),
        ("a large size", sized(u64::MAX >> 1), ""),
        ("a small size", sized(3), NONSENSE),
        ("many copies", many(&copies, 1), NONSENSE),
        ("many copies of many machines", many(&copies, 9_000), NONSENSE),
        ("a thousand copies of many machines", many(&"{},".repeat(999), 9_000), TOO_MUCH),
        ("commands of many machines", many(&r#"{"pid":1},"#.repeat(900), 9_000), TOO_MUCH),
        ("long names of files", many(&long, 9_000), TOO_MUCH),
        ("machines without an end", Lies { numbered: u64::MAX >> 1, ..one.clone() }, TOO_MUCH),
        ("hidden names without an end", named(vec![b".x".to_vec(); 1 << 20]), TOO_MUCH),
        ("a name with control characters", named(vec![b"m\n\x1b[2J\xff".to_vec()]), ""),
        ("two of one name", named(vec![b"m".to_vec(); 2]), ""),
        ("hostile strings", many(hostile, 3), ""),
        ("large numbers", many(&large, 3), ""),
        ("a few copies", many(&"{},".repeat(900), 3), ""),
    ]
}

/// The parsed answers of real mounts take a few MiB; the program itself, unoptimized, about 20.
const MAX_MEMORY: u64 = 96 << 20;

/// Runs it where no mounts of other tests are, while nothing below this process takes more memory.
#[track_caller]
fn within_memory(what: &str, fixture: &Fixture, command: &Command) -> Done {
    let mut alone = alone(fixture.path(), command);
    let mut peak = 0;
    let done = run_while(&mut alone, || peak = peak.max(peak_below(std::process::id())));
    assert!(peak < MAX_MEMORY, "{what}: {} MiB: {}", peak >> 20, done.line);
    done
}

/// What `status` says of the mount at `point`.
#[track_caller]
fn mount_at(point: &str, status: &[u8]) -> Value {
    let all: Value = serde_json::from_slice(status).unwrap();
    let found = all["mounts"].as_array().unwrap().iter().find(|one| one["mountpoint"] == point);
    found.unwrap_or_else(|| panic!("no {point} in {all:#}")).clone()
}

#[test]
fn what_a_server_that_calls_itself_codchifs_says_takes_no_memory_of_who_looks() {
    let _alone = host_lock("liars");
    let fixture = Fixture::new();
    let point = fixture.scratch("point");
    chown(&point, Some(UID), Some(UID)).unwrap();
    let name = point.to_str().unwrap();
    for (what, lies, said) in lies() {
        let liar = Liar::new(&point, UID, TYPE, lies);
        let done = within_memory(what, &fixture, &fixture.command(["status", "--json"]));
        let mount = mount_at(name, &done.stdout);
        // On a busy machine the time may be over before an endless answer is too long.
        let may =
            [said, if said == TOO_MUCH { "there is no answer from who serves it" } else { said }];
        let is_said = |mount: &Value| {
            let reason = mount["reason"].as_str().unwrap_or_default();
            let state = if reason.starts_with(said) { "served" } else { "silent" };
            may.iter().any(|said| reason.starts_with(said) && said.is_empty() == reason.is_empty())
                && mount["state"] == state
        };
        assert!(is_said(&mount), "{what}: {mount:#}");
        assert_eq!(mount["machines"].as_array().unwrap().is_empty(), !said.is_empty(), "{what}");

        let done = within_memory(what, &fixture, &fixture.command(["status"]));
        let text = done.out();
        let tells = may.iter().any(|said| text.contains(said));
        assert!(tells && text.contains(name), "{what}: {text}");
        assert!(!text.contains(|c: char| c != '\n' && c.is_control()), "{what}: {text:?}");

        let mut watch = program("sh", ["-c", "\"$0\" status --watch --json | head -n 1"]);
        watch.arg(env!("CARGO_BIN_EXE_codchifs"));
        let done = within_memory(what, &fixture, &watch).ok();
        assert!(is_said(&mount_at(name, &done.stdout)), "{what}");

        let done = within_memory(what, &fixture, &fixture.command(["doctor"]));
        assert!(done.out().contains(name), "{what}: {}{}", done.out(), done.err());

        let mut complete = program(env!("CARGO_BIN_EXE_codchifs"), ["--", "codchifs"]);
        complete.args(["unmount", ""]).env("_CLAP_IFS", "\n");
        complete.env("CODCHIFS_COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", "2");
        assert!(within_memory(what, &fixture, &complete).ok().out().contains(name), "{what}");

        fixture.run(["unmount", "--lazy", name]).ok();
        assert!(mounts_on(&point).is_empty(), "{what}");
        drop(liar);
    }
}

#[test]
fn many_mounts_that_say_much_share_the_memory_for_what_they_say() {
    let _alone = host_lock("liars");
    let fixture = Fixture::new();
    let copies = format!(r#"{{"transfers":[{}{{}}]}}"#, "{},".repeat(900));
    let mounted: Vec<_> = (0..40)
        .map(|number| {
            let point = fixture.scratch(&number.to_string());
            let lies = Lies { names: Vec::new(), numbered: 4, ..Lies::text(&*copies) };
            Liar::new(&point, UID, TYPE, lies)
        })
        .collect();
    let done = within_memory("many", &fixture, &fixture.command(["status", "--json"])).exits(1);
    let all: Value = serde_json::from_slice(&done.stdout).unwrap();
    let reasons = all["mounts"].as_array().unwrap().iter().map(|mount| mount["reason"].as_str());
    let refused = reasons.flatten().filter(|why| why.starts_with(TOO_MUCH)).count();
    assert!((1..40).contains(&refused), "{refused}");
    drop(mounted);
}

#[test]
fn no_user_can_mount_over_a_mount_of_roots() {
    // fusermount3 wants a user with a name.
    let (uid, _) = (lxd::UID, lxd::user());
    let fixture = Fixture::new();
    fixture.sample("m");
    let own = fixture.scratch("own");
    chown(&own, Some(uid), Some(uid)).unwrap();
    for top in [fixture.path(), &own] {
        fs::set_permissions(top, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mounted = Mounted::with(&fixture, &["-o", "allow_other"]);
    // As libfuse does it, with a socket for the descriptor.
    let script = "import os, socket, subprocess, sys
ours, theirs = socket.socketpair()
os.set_inheritable(theirs.fileno(), True)
os.environ['_FUSE_COMMFD'] = str(theirs.fileno())
sys.exit(subprocess.run(['fusermount3', '--', sys.argv[1]], close_fds=False).returncode)";
    let over = |point: &Path| {
        let mut python = program("setpriv", ["--clear-groups"]);
        python.args([format!("--reuid={uid}"), format!("--regid={uid}")]);
        run(python.args(["/usr/bin/python3", "-c", script]).arg(point))
    };
    over(&own).ok();
    let _ = unmount(&own, UnmountFlags::DETACH);
    let mounts = mounts_on(mounted.point()).len();
    let refused = over(mounted.point()).exits(1);
    assert!(refused.err().contains("no write access"), "{}", refused.err());
    assert_eq!(mounts_on(mounted.point()).len(), mounts);
    mounted.unmount();
}
