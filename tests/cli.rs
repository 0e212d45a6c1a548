//! What scripts and people meet: help, pipes, terminals, exit statuses, manual pages, completions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::alone::alone;
use common::fixture::Fixture;
use common::mounted::Mounted;
use common::played::played;
use common::stage;
use common::terminals::{Shells, on_terminal};
use common::{program, run, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

const COMMANDS: [&str; 10] = [
    "list", "status", "doctor", "mount", "unmount", "export", "migrate", "verify", "manifest",
    "demo",
];

/// Without what a terminal takes for colours.
fn visible(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c == '\x1b' {
            rest.by_ref().find(char::is_ascii_alphabetic);
        } else if c != '\r' {
            shown.push(c);
        }
    }
    shown
}

#[test]
fn help_fits_80_columns_and_has_examples_and_exit_statuses() {
    let fixture = Fixture::new();
    for arguments in COMMANDS.map(|name| vec![name, "--help"]).into_iter().chain([vec!["--help"]]) {
        let command = fixture.command(&arguments);
        let piped = run(fixture.command(&arguments)).ok();
        assert!(!piped.out().contains('\x1b') && piped.stderr.is_empty(), "{arguments:?}");
        for text in [piped.out(), visible(&on_terminal(&command).ok().out())] {
            let long: Vec<_> = text.lines().filter(|l| l.chars().count() > 80).collect();
            assert!(long.is_empty(), "{arguments:?}: {long:#?}");
            assert!(text.contains("\nExamples:\n") && text.contains("\nExit status: 0 "), "{text}");
        }
    }
    let helper = run(program(stage::helper().to_str().unwrap(), ["--help"])).ok().out();
    let long: Vec<_> = helper.lines().filter(|line| line.len() > 80).collect();
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn help_offers_what_has_an_effect_and_usage_what_is_to_be_typed() {
    let fixture = Fixture::new();
    for name in COMMANDS {
        let text = fixture.run([name, "--help"]).ok().out();
        let looks = !["status", "unmount", "demo"].contains(&name);
        for option in ["--user", "--config-dir", "--driver", "--rootfs-dir"] {
            assert_eq!(text.contains(option), looks, "{name}: {option}");
        }
    }
    // What comes from the environment need not be typed.
    let mut command = program(env!("CARGO_BIN_EXE_codchifs"), ["export"]);
    command.env("CODCHIFS_DRIVER", "dir").env("CODCHIFS_ROOTFS_DIR", fixture.path());
    let text = run(command).exits(2).err();
    assert!(text.contains("Usage: codchifs export [OPTIONS] <NAME>\n"), "{text}");
}

#[test]
fn a_demo_that_is_kept_says_how_to_go_on_and_how_to_end_it() {
    let temp = tempfile::tempdir().unwrap();
    let mut demo = program(env!("CARGO_BIN_EXE_codchifs"), ["demo", "--keep"]);
    let out = run(demo.env("TMPDIR", temp.path())).ok().out();
    let long = |line: &&str| line.starts_with('#') && line.chars().count() > 80;
    assert_eq!(out.lines().find(long), None);
    let typed: Vec<_> = out.lines().filter(|line| line.starts_with("  ")).collect();
    let [.., shell, end] = &typed[..] else { panic!("{out}") };
    let script = format!("echo codchifs verify dev dev.tar | {shell}");
    let done = run(program("sh", ["-c", &script]).env("SHELL", "/bin/sh")).ok();
    assert!(done.err().contains("identical"), "{}", done.err());
    run(program("sh", ["-c", end])).silent();
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
}

#[test]
fn differences_have_lines_of_their_own_beside_the_progress() {
    let fixture = Fixture::new();
    fixture.sample("one");
    fixture.sample("other");
    let tar = fixture.path().join("one.tar").display().to_string();
    fixture.run(["export", "one", "-q", "-o", &tar]).silent();
    fs::write(fixture.place("other").home.join("more"), "more").unwrap();
    let done = on_terminal(&fixture.command(["verify", "other", &tar])).exits(1).out();
    assert!(done.contains(" left\x1b[K\r\x1b[K/"), "{done:?}");
    assert!(!done.contains(" left\x1b[K/"), "{done:?}");
}

#[test]
fn root_hears_on_a_terminal_that_a_mount_does_not_admit_it() {
    let host = played();
    let point = host.path().join("mnt");
    fs::create_dir_all(&point).unwrap();
    let point = point.to_str().unwrap();
    for (arguments, said) in
        [(&["mount", point][..], true), (&["mount", "-o", "allow_root", point], false)]
    {
        let out = on_terminal(&host.command(arguments)).ok().out();
        assert_eq!(out.contains("-o allow_root admits both"), said, "{out}");
        assert_eq!(out.is_empty(), !said, "{out}");
        host.run(&["unmount", point]).silent();
        host.run(arguments).silent();
        host.run(&["unmount", point]).silent();
    }
}

#[test]
fn a_failure_says_what_why_and_what_to_do_and_has_its_status() {
    let fixture = Fixture::new();
    let nowhere = fixture.path().join("nowhere").display().to_string();
    for (arguments, code, words) in [
        (&["export", "unknown", "-o", "-"][..], 1, &["no such machine", "`codchifs list`"][..]),
        (&["manifest", "unknown"], 1, &["no such machine", "`codchifs list`"]),
        (&["migrate", "unknown"], 1, &["no such machine", "`codchifs list`"]),
        (&["verify", "unknown", "x.tar"], 2, &["no such machine", "`codchifs list`"]),
        (&["export", "dev", "--json", "-o", "-"], 1, &["stdout", "-o FILE"]),
        (&["mount", &nowhere], 1, &["there is no such directory", "mkdir -p"]),
        (&["unmount", &nowhere], 1, &["nowhere"]),
        (&["umount", &nowhere], 1, &["nowhere"]),
        (&["list", "--bogus"], 2, &["--bogus", "--help"]),
        (&["bogus"], 2, &["bogus", "--help"]),
        (&["export"], 2, &["<NAME>", "--help"]),
    ] {
        let done = fixture.run(arguments).exits(code);
        let text = done.err();
        assert!(text.starts_with("codchifs: ") && done.stdout.is_empty(), "{arguments:?}: {text}");
        assert!(words.iter().all(|word| text.contains(word)), "{arguments:?}: {text}");
        assert!(!text.contains('\x1b'), "{arguments:?}: {text}");
    }
}

/// Commands that print, each with its exit status.
fn printing(fixture: &Fixture) -> Vec<(Vec<String>, Option<i32>)> {
    let tar = fixture.path().join("dev.tar").display().to_string();
    let again = fixture.path().join("again.tar").display().to_string();
    fixture.run(["export", "dev", "-o", &tar]).silent();
    let line = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    // What they say of this host may be anything.
    vec![
        (line("list"), Some(0)),
        (line("list --json --size"), Some(0)),
        (line("status"), None),
        (line("status --json"), None),
        (line("doctor"), None),
        (line("doctor --json"), None),
        (line("migrate dev"), Some(0)),
        (line("migrate dev --size --json"), Some(0)),
        (line("manifest dev"), Some(0)),
        (line("manifest dev --sums"), Some(0)),
        (line(&format!("verify dev {tar} --json")), Some(0)),
        (line(&format!("export dev --json -o {again}")), Some(0)),
        (line("export dev -o -"), Some(0)),
        (line("--help"), Some(0)),
        (line("list --help"), Some(0)),
        (line("--version"), Some(0)),
    ]
}

#[test]
fn pipes_get_no_colours_and_json_where_it_is_asked_for() {
    let fixture = Fixture::new();
    fixture.sample("dev");
    for (arguments, code) in printing(&fixture) {
        let done = fixture.run(&arguments);
        assert!(code.is_none_or(|code| done.code == Some(code)), "{arguments:?}: {}", done.err());
        assert!(!done.stdout.is_empty(), "{arguments:?}");
        // A tar may hold any byte.
        let text = if done.stdout.starts_with(b"./") { &[][..] } else { &done.stdout };
        assert!(!text.contains(&0x1b) && !done.stderr.contains(&0x1b), "{arguments:?}");
        if arguments.iter().any(|word| word == "--json") {
            let value: Value = serde_json::from_slice(&done.stdout).unwrap();
            assert!(value.is_object() || value.is_array(), "{arguments:?}");
        }
        // A script that only wants the status hears nothing of progress.
        assert!(!done.err().contains('\r'), "{arguments:?}: {}", done.err());
    }
    let tar = fixture.path().join("terminal.tar").display().to_string();
    let done = on_terminal(&fixture.command(["export", "dev", "-o", &tar])).ok();
    assert!(done.out().contains("members"), "{}", done.out());
    let done = on_terminal(&fixture.command(["export", "dev", "-q", "-o", &tar])).ok();
    assert!(done.stdout.is_empty(), "{}", done.out());
    assert!(
        on_terminal(&fixture.command(["export", "dev", "-o", "-"]))
            .exits(1)
            .out()
            .contains("-o FILE")
    );
}

#[test]
fn a_list_fits_a_terminal_and_a_pipe_has_a_line_for_each_machine() {
    let fixture = Fixture::below(&Fixture::new().scratch(&"long".repeat(20)));
    fixture.sample("dev");
    fixture.configured("broken", "{");
    let path = fixture.place("dev").rootfs.display().to_string();
    let piped = fixture.run(["list"]).ok().out();
    assert!(piped.lines().any(|l| l.starts_with("dev ") && l.ends_with(&path)), "{piped}");
    let shown = visible(&on_terminal(&fixture.command(["list"])).ok().out());
    let lines: Vec<_> = shown.lines().collect();
    // It is there in one piece, whatever the width.
    assert!(lines.iter().any(|line| line.trim_start() == path), "{shown}");
    assert!(lines.iter().all(|l| l.chars().count() <= 80 || !l.trim().contains(' ')), "{shown}");
    assert!(lines[0].ends_with("SHIFTED"), "{shown}");
}

#[test]
fn whoever_closes_the_pipe_early_is_no_failure() {
    let fixture = Fixture::new();
    fixture.sample("dev");
    for (arguments, _) in printing(&fixture) {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        drop(reader);
        let stderr = tempfile::NamedTempFile::new().unwrap();
        let mut command = fixture.command(&arguments);
        command.stdout(writer).stderr(stderr.reopen().unwrap());
        let mut child = command.spawn().unwrap();
        // The write end must not live here.
        drop(command);
        let mut status = None;
        wait_until(&format!("the end of {arguments:?}"), || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        let text = fs::read_to_string(stderr.path()).unwrap();
        assert_eq!((status.unwrap().code(), &*text), (Some(0), ""), "{arguments:?}");
    }
}

#[test]
fn the_version_has_the_commit_of_this_very_source_or_none() {
    let temp = tempfile::tempdir().unwrap();
    let (script, source) = (temp.path().join("script"), Path::new(env!("CARGO_MANIFEST_DIR")));
    run(program("rustc", ["--edition=2024", "-o"]).arg(&script).arg(source.join("build.rs"))).ok();
    let git = |directory: &Path, words: &str| {
        let who = ["-c", "user.name=a", "-c", "user.email=a@b"];
        let done = run(program("git", who).args(words.split(' ')).current_dir(directory)).ok();
        done.out().trim().to_owned()
    };
    let repository = temp.path().join("repository");
    fs::create_dir_all(repository.join("inside/mount-helper")).unwrap();
    fs::create_dir(repository.join("mount-helper")).unwrap();
    git(&repository, "init -q -b main");
    git(&repository, "commit -q --allow-empty -m first");
    let head = git(&repository, "rev-parse HEAD");
    git(&repository, "worktree add -q ../worktree");
    git(&repository, "clone -q . ../packed");
    let packed = temp.path().join("packed");
    git(&packed, "pack-refs --all");
    git(&repository, "clone -q . ../detached");
    git(&temp.path().join("detached"), "checkout -q --detach");
    let package = temp.path().join("package");
    fs::create_dir(&package).unwrap();
    let info = format!("{{\n  \"git\": {{\n    \"sha1\": \"{head}\"\n  }}\n}}");
    fs::write(package.join(".cargo_vcs_info.json"), info).unwrap();
    let given = "0123456789abcdef";
    let with = |id: &str| format!("1.2.3 ({})", &id[..12]);
    for (directory, commit, expected) in [
        ("repository", None, with(&head)),
        ("worktree", None, with(&head)),
        ("packed", None, with(&head)),
        ("detached", None, with(&head)),
        ("package", None, with(&head)),
        // The helper's, which has no repository of its own.
        ("repository/mount-helper", None, with(&head)),
        ("repository/inside/mount-helper", None, "1.2.3".into()),
        // An unpacked tarball inside somebody else's repository.
        ("repository/inside", None, "1.2.3".into()),
        ("repository/inside", Some(given), with(given)),
        ("repository", Some(""), "1.2.3".into()),
        ("repository/inside", Some("no id"), "1.2.3".into()),
    ] {
        let mut command = program(script.to_str().unwrap(), std::iter::empty::<&str>());
        command.env_clear().env("CARGO_PKG_VERSION", "1.2.3");
        command.env("CARGO_MANIFEST_DIR", temp.path().join(directory));
        command.envs(commit.map(|commit| ("CODCHIFS_COMMIT", commit)));
        let out = run(command).ok().out();
        let line = format!("cargo::rustc-env=CODCHIFS_VERSION={expected}");
        assert!(out.lines().any(|l| l == line), "{directory} {commit:?}: {out}");
    }
    let shown = Fixture::new().run(["--version"]).ok().out();
    assert!(shown.starts_with(concat!("codchifs ", env!("CARGO_PKG_VERSION"))), "{shown}");
}

fn generated(fixture: &Fixture) -> PathBuf {
    let directory = fixture.path().join("generated");
    run(fixture.command(["generate"]).arg(&directory)).silent();
    directory
}

#[test]
fn man_and_mandoc_take_the_manual_pages() {
    let fixture = Fixture::new();
    let man = generated(&fixture).join("man");
    for (page, words) in [
        (
            "codchifs.1",
            &[&COMMANDS[..], &["Never scp -r", "EXIT STATUS", "FILES", "SEE ALSO"]].concat(),
        ),
        ("mount.codchifs.8", &vec!["allow_other", "lxd-dir=DIR", "Never scp -r", "EXIT STATUS"]),
    ] {
        let path = man.join(page);
        run(program("mandoc", ["-Tlint", "-Werror"]).arg(&path)).silent();
        let mut command = program("man", ["--warnings", "-l"]);
        let done = run(command.arg(&path).env("MANWIDTH", "80").env("LC_ALL", "C.UTF-8")).ok();
        assert!(done.stderr.is_empty(), "{page}: {}", done.err());
        for word in words {
            assert!(done.out().contains(word), "{page}: no {word}");
        }
        let out = done.out();
        let long: Vec<_> = out.lines().filter(|line| line.chars().count() > 80).collect();
        assert!(long.is_empty(), "{page}: {long:#?}");
    }
}

#[test]
fn each_shell_completes_the_name_of_a_machine() {
    let fixture = Fixture::new();
    fixture.empty("workbench");
    let other = Fixture::new();
    other.empty("elsewhere");
    let config = other.config();
    let shells = Shells::new(&fixture, Path::new(env!("CARGO_BIN_EXE_codchifs")).parent().unwrap());
    for shell in shells.each() {
        for (typed, completed) in [
            ("codchifs export wo".to_owned(), "codchifs export workbench"),
            ("codchifs mount --machine wo".to_owned(), "--machine workbench"),
            (format!("codchifs --config-dir {} migrate el", config.display()), "migrate elsewhere"),
            ("codchifs mani".to_owned(), "codchifs manifest"),
        ] {
            shell.complete(&typed);
            wait_until(&format!("{}: {typed}", shell.name), || shell.screen().contains(completed));
            // A new prompt on a clean screen: the shell empties the line itself, and no signal is in the way.
            shell.keys(&["C-u"]);
            shell.keys(&["C-l"]);
        }
    }
}

/// What `codchifs status` says of one machine of a mount.
fn transfers(status: &[u8], mounted: &Mounted, machine: &str) -> Vec<Value> {
    let all: Value = serde_json::from_slice(status).unwrap();
    let find = |list: &Value, key: &str, name: &str| {
        let found = list.as_array().unwrap().iter().find(|one| one[key] == name);
        found.unwrap_or_else(|| panic!("no {name} in {all}")).clone()
    };
    let mount = find(&all["mounts"], "mountpoint", mounted.point().to_str().unwrap());
    assert_eq!((&mount["state"], &mount["reason"]), (&Value::from("served"), &Value::Null));
    find(&mount["machines"], "name", machine)["transfers"].as_array().unwrap().clone()
}

/// Ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn whoever_reads_an_export_is_seen_with_its_command_and_how_far_it_is() {
    let fixture = Fixture::new();
    let place = fixture.sample("dev");
    fs::write(place.home.join("large"), vec![b'x'; 16 << 20]).unwrap();
    let mounted = Mounted::new(&fixture);
    let look = |words: &[&str]| run(alone(fixture.path(), &fixture.command(words)));
    let status = || look(&["status", "--json"]).ok().stdout;
    assert!(transfers(&status(), &mounted, "dev").is_empty());
    let (tar, fifo) = (mounted.tar("dev"), fixture.path().join("fifo"));
    let (to, slowly) = (fixture.path().join("rsync.tar"), "--bwlimit=64");
    run(program("mkfifo", [&fifo])).silent();
    for command in [
        program("cp", [&tar, &fifo]),
        program("rsync", [slowly, tar.to_str().unwrap(), to.to_str().unwrap()]),
    ] {
        let mut command = command;
        let name = command.get_program().to_str().unwrap().to_owned();
        // Opened for writing as well, so that cp needs not wait; nobody reads, so it stays where it is.
        let pipe = File::options().read(true).write(true).open(&fifo).unwrap();
        let running = Running(command.stderr(Stdio::null()).spawn().unwrap());
        let mut seen = Vec::new();
        wait_until(&format!("{name} to be seen"), || {
            seen = transfers(&status(), &mounted, "dev");
            seen.iter().any(|one| one["offset"].as_u64() > Some(0))
        });
        let [one] = &seen[..] else { panic!("{seen:?}") };
        let shown = one["command"].as_str().unwrap();
        let asked = command.get_args().map(|word| word.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(shown, format!("{name} {}", asked.join(" ")));
        let size = fs::metadata(&tar).unwrap().size();
        assert_eq!(one["size"], size);
        assert!(one["offset"].as_u64() < Some(size) && one["rate"].is_u64(), "{one}");
        if name == "cp" {
            assert_eq!(one["pid"], running.0.id());
        }
        let text = look(&["status"]).ok().out();
        assert!(text.contains(shown) && text.contains('%') && !text.contains('\x1b'), "{text}");
        drop(running);
        drop(pipe);
        wait_until(&format!("{name} to be gone"), || {
            transfers(&status(), &mounted, "dev").is_empty()
        });
    }
}

#[test]
fn transfers_are_found_by_name_for_the_owner_alone_and_scan_nothing() {
    let fixture = Fixture::new();
    fixture.sample("dev");
    fixture.configured("broken", "{");
    let mounted = Mounted::new(&fixture);
    let before = mounted.report("dev");
    for machine in ["dev", "broken"] {
        let path = mounted.point().join(machine).join(".transfers");
        let read = fs::read(&path).unwrap();
        let all: Value = serde_json::from_slice(&read).unwrap();
        assert_eq!(all["transfers"], Value::Array(Vec::new()), "{machine}");
        let attributes = fs::metadata(&path).unwrap();
        assert_eq!(attributes.mode() & 0o7777, 0o600);
        assert_eq!(attributes.len(), read.len() as u64);
        let names = fs::read_dir(mounted.point().join(machine)).unwrap();
        assert!(names.into_iter().all(|name| name.unwrap().file_name() != ".transfers"));
        fixture.run(["status"]);
    }
    assert_eq!(mounted.report("dev"), before, "there was a scan");
}

#[test]
fn status_that_watches_has_a_line_for_each_look_until_it_is_interrupted() {
    let fixture = Fixture::new();
    fixture.sample("dev");
    let mounted = Mounted::new(&fixture);
    let mut watch = fixture.command(["status", "--watch", "--json"]);
    let mut running = Running(watch.stdout(Stdio::piped()).spawn().unwrap());
    let lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
    for line in lines.take(2) {
        assert!(transfers(line.unwrap().as_bytes(), &mounted, "dev").is_empty());
    }
    kill_process(Pid::from_child(&running.0), Signal::INT).unwrap();
    running.0.wait().unwrap();
}

#[test]
fn looks_are_told_apart_in_a_pipe_and_drawn_over_each_other_on_a_terminal() {
    let fixture = Fixture::new();
    fixture.sample("dev");
    let _mounted = Mounted::new(&fixture);
    let mut watch = fixture.command(["status", "--watch"]);
    let mut running = Running(watch.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
    assert!(!lines.next().unwrap().unwrap().is_empty());
    assert!(lines.any(|line| line.unwrap().is_empty()));
    drop(running);

    let watch = format!("stty cols 20 && exec '{}' status --watch", env!("CARGO_BIN_EXE_codchifs"));
    let mut terminal = program("script", ["-qec", &watch, "/dev/null"]);
    let mut running = Running(terminal.stdout(Stdio::piped()).spawn().unwrap());
    let mut shown = String::new();
    let mut out = BufReader::new(running.0.stdout.take().unwrap());
    // The second one has come when the third begins.
    while shown.matches("\x1b[H").count() < 3 {
        assert_ne!(out.read_line(&mut shown).unwrap(), 0, "{shown:?}");
    }
    assert_eq!(shown.matches("\x1b[2J").count(), 1, "{shown:?}");
    for line in visible(&shown).lines() {
        assert!(line.chars().count() <= 20, "{line}");
    }
}

#[test]
fn root_sees_what_is_in_a_mount_that_admits_nobody_but_its_user() {
    let host = played();
    let point = host.path().join("mnt");
    fs::create_dir_all(&point).unwrap();
    let point = point.to_str().unwrap();
    host.run(&["mount", point]).ok();
    let status = run(alone(host.path(), &host.command(&["status", "--json"]))).ok();
    host.run(&["unmount", point]).ok();
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    let mounts = status["mounts"].as_array().unwrap();
    let ours = mounts.iter().find(|mount| mount["mountpoint"] == point).expect("the mount");
    assert_eq!(ours["machines"][0]["name"], "demo", "{ours}");
}
