//! `MIGRATE.md`: what it says and when, and that nothing a machine is called or holds reaches a shell as anything but text.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::{Fixture, Maker, Place};
use common::guide::{blocks, of_text, one_line, with};
use common::mounted::Mounted;
use common::{program, run, wait_until};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

fn page(mounted: &Mounted, machine: &str) -> PathBuf {
    mounted.point().join(machine).join("MIGRATE.md")
}

fn text(mounted: &Mounted, machine: &str) -> String {
    fs::read_to_string(page(mounted, machine)).unwrap()
}

#[test]
fn it_never_scans_and_says_when_a_scan_was() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    fixture.configured("broken", "{");
    let mounted = Mounted::new(&fixture);
    let stat_of = |mounted: &Mounted| {
        let meta = fs::metadata(page(mounted, "m")).unwrap();
        (meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len())
    };
    let (unscanned, before) = (stat_of(&mounted), text(&mounted, "m"));
    assert!(before.contains("Not scanned yet"), "{before}");
    assert!(mounted.report("m")["generation"].is_null(), "reading the page scanned");
    let size = fs::metadata(mounted.tar("m")).unwrap().len();
    wait_until("the scan in the page", || {
        let text = one_line(&text(&mounted, "m"));
        text.contains("Scanned 2") && text.contains(&format!("{size} bytes"))
    });
    assert!(text(&mounted, "broken").contains("cannot leave"));
    // Unchanged, it is the same file in every respect; with another text it is another file, with another time.
    let stat = || stat_of(&mounted);
    wait_until("its size", || stat().3 == text(&mounted, "m").len() as u64);
    let first = stat();
    assert_eq!(stat(), first);
    Maker::new(&place.home).file(".nix-profile/manifest.nix", b"[ { name = \"hello-1\"; } ]");
    wait_until("the program in the page", || stat().3 > first.3);
    let second = stat();
    assert_ne!(second.0, first.0);
    assert_ne!((second.1, second.2), (first.1, first.2));
    mounted.unmount();
    // Nothing is scanned yet, as at first.
    let (first, mounted) = (before, Mounted::new(&fixture));
    fs::remove_dir_all(place.home.join(".nix-profile")).unwrap();
    wait_until("the page without it", || text(&mounted, "m") == first);
    assert_eq!(stat_of(&mounted).0, unscanned.0, "after a remount");
}

#[test]
fn the_command_prints_it_for_a_host_without_a_mount() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let done = fixture.run(["migrate", "m", "--exclude", "/srv/it's"]).ok();
    let all = of_text(&done.out());
    let export = &with(&all, "export ").commands;
    // It is this very state that the commands take, and this selection.
    for part in ["--driver=dir", fixture.config().to_str().unwrap(), r"'--exclude=/srv/it'\''s'"] {
        assert!(export.contains(part), "{part}: {export}");
    }
    assert!(done.out().contains("Not scanned yet"));
    assert!(fixture.run(["migrate", "m", "--size"]).ok().out().contains("Scanned 2"));
    fixture.configured("broken", "{");
    assert!(fixture.run(["migrate", "broken"]).exits(1).out().contains("config.json"));
}

/// A machine that tries to be more than text wherever the page shows something of it.
fn hostile(fixture: &Fixture, name: &str) -> Place {
    let trap = r#"`touch PWNED` $(touch PWNED) '; touch PWNED; ' "; touch PWNED""#;
    let module = |fence: &str| format!("file://{fence}{}?#x", trap.replace("; ", ";"));
    let config = serde_json::json!({
        "modules": {"a": module("a\n```\ntouch PWNED\n```sh\n"), "b": "file://plain?#x",
            "c": format!("https://h/{trap}?token=PlantedToken#x")},
        "secrets": {format!("K\n## 1. Say where\n```sh\n{trap}"): "PlantedValue"},
    });
    let place = fixture.configured(name, config.to_string());
    let home = Maker::new(&place.home);
    let manifest = serde_json::json!({"version": 3, "elements": {
        trap: {"originalUrl": format!("github:o/{trap}"), "attrPath": trap},
        "ok": {"originalUrl": "flake:nixpkgs", "attrPath": "legacyPackages.x86_64-linux.hello"},
        "t": {"originalUrl": "git+https://PlantedLogin@h/r", "attrPath": "x"},
    }});
    home.file(".nix-profile/manifest.json", manifest.to_string().as_bytes());
    // Out of the machine, in a circle, and far too large.
    home.symlink("../../../../../../etc/passwd", ".local/state/nix/profiles/profile");
    Maker::new(&place.rootfs)
        .symlink("/nix/store/x-nixos-system-$(touch PWNED)-24.05'; touch PWNED", "sbin/init")
        .symlink("/nix/var/nix/profiles/system", "nix/var/nix/profiles/system");
    place
}

#[test]
fn nothing_of_a_machine_reaches_a_shell_as_more_than_text() {
    let fixture = Fixture::new();
    let name = r#"m `touch PWNED` $(touch PWNED) 'it"s' \ ü;&|<>*"#;
    hostile(&fixture, name);
    for secrets in ["--secrets=include", "--secrets=omit"] {
        let mounted = Mounted::with(&fixture, &[secrets]);
        let page = text(&mounted, name);
        assert!(!page.contains("Planted"), "{page}");
        assert!(page.chars().all(|c| c == '\n' || !c.is_control()));
        let headings = page.lines().filter(|line| line.starts_with("## 1.")).count();
        assert_eq!(headings, 1, "{page}");
        assert!(page.contains("nix profile install 'nixpkgs#hello'"), "{page}");
        let work = tempfile::tempdir_in(fixture.path()).unwrap();
        // The shell itself tells the words that programs would get.
        let shell = |commands: &str| {
            let stubs: String =
                ["ssh", "rsync", "cat", "tar", "codchifs", "bash", "systemctl", "rm", "nix"]
                    .map(|name| format!("{name}() {{ printf '%s\\0' {name} \"$@\" >&2; }}\n"))
                    .concat();
            let script = format!("TARGET=root@vm\n{stubs}{commands}");
            let done = run(program("bash", ["--norc", "-c", &script]).current_dir(work.path()));
            let words = done.stderr.split(|byte| *byte == 0);
            words.map(|word| String::from_utf8_lossy(word).into_owned()).collect::<Vec<_>>()
        };
        let all = blocks(&mounted.point().join(name).join("MIGRATE.md"));
        for block in &all {
            run(program("bash", ["-n", "-c", &block.commands])).silent();
        }
        let tar = mounted.point().join(name).join(match secrets {
            "--secrets=omit" => "export-redacted.tar",
            _ => "export.tar",
        });
        let words = shell(&with(&all, "--append-verify").commands);
        assert!(words.iter().any(|word| **word == *tar.to_str().unwrap()), "{words:?}");
        let words = shell(&with(&all, "manifest").commands);
        assert!(words.iter().any(|word| word == name), "{words:?}");
        // The script has what the machine chose as well.
        let script = mounted.rootfs(name).join("etc/nixos/codchi-arrive");
        let facts =
            "source <(sed '/^# usage/,$d' \"$1\"); printf '%s\\0' \"$machine\" \"${modules[@]}\"";
        let done = run(program("bash", ["-euc", facts, "-"]).arg(&script).current_dir(work.path()));
        let words = done.ok().out();
        let words: Vec<_> = words.split('\0').collect();
        assert_eq!(words[0], name);
        assert!(words.contains(&"plain") && words[1].starts_with("a\n```\n"), "{words:?}");
        run(program("bash", ["-n"]).arg(&script)).silent();
        assert_eq!(fs::read_dir(work.path()).unwrap().count(), 0, "something was executed");
        mounted.unmount();
    }
}

#[test]
fn it_says_what_this_machine_needs() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    Maker::new(&place.rootfs)
        .file(
            "nix/store/h-user-environment/manifest.json",
            br#"{"version":2,"elements":[{"attrPath":"legacyPackages.x86_64-linux.jq","originalUrl":"flake:nixpkgs"}]}"#,
        );
    Maker::new(&place.home)
        .symlink("/home/codchi/.local/state/nix/profiles/profile", ".nix-profile")
        .symlink("profile-2-link", ".local/state/nix/profiles/profile")
        .symlink("/nix/store/h-user-environment", ".local/state/nix/profiles/profile-2-link");
    let page = one_line(&fixture.run(["migrate", "m", "--secrets=omit"]).ok().out());
    for part in [
        "nix profile install 'nixpkgs#jq'",
        "`CODCHI_token` in `/etc/codchi-env`",
        "asks for a password for `codchi`",
        "bash /etc/nixos/codchi-arrive all && reboot",
    ] {
        assert!(page.contains(part), "{part}\n{page}");
    }
    // What needs a mount is for who has one.
    assert!(!page.contains("rootfs/"), "{page}");
}

#[test]
fn it_fits_80_lines_of_80_columns_for_any_machine() {
    let fixture = Fixture::new();
    let long = "a-very-long-name-of-a-machine-".repeat(8);
    let wide = "\u{4e16}".repeat(80);
    for name in ["m", &long, &wide] {
        let many = |count: usize| (0..count).map(|n| format!("{n}{}", "x".repeat(200)));
        let modules: serde_json::Map<_, _> = many(60)
            .map(|name| (format!("m{name}"), format!("https://h/{name}?token=t#x").into()))
            .collect();
        let secrets: serde_json::Map<_, _> = many(60).map(|name| (name, "value".into())).collect();
        let config = serde_json::json!({ "modules": modules, "secrets": secrets });
        let place = fixture.configured(name, config.to_string());
        let elements: serde_json::Map<_, _> = (0..300)
            .map(|n| {
                let element = serde_json::json!({"originalUrl": "flake:nixpkgs", "attrPath": format!("p{n}{}", "y".repeat(100))});
                (n.to_string(), element)
            })
            .chain((0..50).map(|n| (format!("{n}{}", "z".repeat(120)), serde_json::json!({}))))
            .collect();
        let manifest = serde_json::json!({ "version": 3, "elements": elements });
        Maker::new(&place.home).file(".nix-profile/manifest.json", manifest.to_string().as_bytes());
        fs::write(
            place.config.join("flake.nix"),
            r#"{ inputs.codchi_driver.url = "github:aformatik/codchi/v0.3.1.4"; }"#,
        )
        .unwrap();
    }
    for secrets in ["--secrets=include", "--secrets=omit"] {
        let mounted = Mounted::with(&fixture, &[secrets]);
        for name in ["m", &long, &wide] {
            fs::metadata(mounted.point().join(name)).unwrap();
            let page = text(&mounted, name);
            let alone = fixture.run(["migrate", "--size", secrets, "--", name]).ok().out();
            for page in [&page, &alone] {
                let widest = page
                    .lines()
                    .max_by_key(|line| unicode_width::UnicodeWidthStr::width(*line))
                    .unwrap();
                assert!(unicode_width::UnicodeWidthStr::width(widest) <= 80, "{widest}");
                assert!(page.lines().count() <= 80, "{} lines:\n{page}", page.lines().count());
            }
        }
        mounted.unmount();
    }
    // Not one machine alone: a broken one says why.
    fixture.configured("broken", format!("{{ {}", "x".repeat(500)));
    let page = fixture.run(["migrate", "broken"]).exits(1).out();
    assert!(page.lines().all(|line| line.len() <= 80), "{page}");
}

#[test]
fn commands_are_for_whoever_reads_it() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let page = |sudo: Option<&str>, words: &[&str]| {
        let mut command = fixture.command(["migrate", "m"]);
        command.args(words);
        if let Some(user) = sudo {
            command.env("SUDO_USER", user);
        }
        run(&mut command).ok().out()
    };
    // Root itself needs no sudo, whether it says whose machine it is or not.
    assert!(!page(None, &[]).contains("sudo"));
    let root = page(None, &["--user", "root"]);
    assert!(root.contains("codchifs --user=root") || root.contains("--user=root"), "{root}");
    assert!(!root.contains("sudo "), "{root}");
    // Who has become root by sudo types it again; the copy is that user's, and for nobody else.
    let by_sudo = one_line(&page(Some("root"), &[]));
    assert!(by_sudo.contains("(umask 077; sudo codchifs"), "{by_sudo}");
    assert!(
        by_sudo.contains("--user=root") && by_sudo.contains("(set -o pipefail; sudo codchifs"),
        "{by_sudo}"
    );
    // Who reads the page in a mount of root's is the user whose machines it shows.
    let mut mount = fixture.command(["--user", "root", "mount"]);
    run(mount.arg(fixture.mount_point())).ok();
    let text = fs::read_to_string(fixture.mount_point().join("m/MIGRATE.md")).unwrap();
    run(&mut fixture.command([std::ffi::OsStr::new("unmount"), fixture.mount_point().as_os_str()]))
        .ok();
    assert!(one_line(&text).contains("(set -o pipefail; sudo codchifs"), "{text}");
    assert!(!text.contains("sudo rsync"), "{text}");
}
