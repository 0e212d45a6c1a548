//! `MIGRATE.md`: what it says and when, and that nothing a machine is called or holds reaches a shell as anything but text.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::{Fixture, Maker, Place};
use common::guide::{blocks, of_text, with};
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
        let text = text(&mounted, "m");
        text.contains("Scanned 2") && text.contains(&format!("{size} bytes"))
    });
    assert!(text(&mounted, "broken").contains("cannot leave"));
    // Unchanged, it is the same file in every respect; with another text it is another file, with another time.
    let stat = || stat_of(&mounted);
    wait_until("its size", || stat().3 == text(&mounted, "m").len() as u64);
    let first = stat();
    assert_eq!(stat(), first);
    Maker::new(&place.rootfs).file("var/lib/postgresql/15/PG_VERSION", b"15\n");
    wait_until("the database in the page", || stat().3 > first.3);
    let second = stat();
    assert_ne!(second.0, first.0);
    assert_ne!((second.1, second.2), (first.1, first.2));
    mounted.unmount();
    // Nothing is scanned yet, as at first.
    let (first, mounted) = (before, Mounted::new(&fixture));
    fs::remove_dir_all(place.rootfs.join("var/lib/postgresql")).unwrap();
    wait_until("the page without a database", || text(&mounted, "m") == first);
    assert_eq!(stat_of(&mounted).0, unscanned.0, "after a remount");
}

#[test]
fn the_command_prints_it_for_a_host_without_a_mount() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let done = fixture.run(["migrate", "m", "--exclude", "/srv/it's"]).ok();
    let all = of_text(&done.out());
    let export = &with(&all, "set -o pipefail").commands;
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
        assert_eq!(page.matches("24.05").count(), 3, "{page}");
        let work = tempfile::tempdir_in(fixture.path()).unwrap();
        // The shell itself tells the words that programs would get.
        let shell = |commands: &str| {
            let stubs: String =
                ["ssh", "scp", "rsync", "cat", "tar", "codchifs", "git", "sed", "grep"]
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
        for command in ["scp ", "--append-verify", "pipefail", "--numeric-ids"] {
            let words = shell(&with(&all, command).commands);
            let path = if command == "--numeric-ids" {
                tar.with_file_name("rootfs/")
            } else {
                tar.clone()
            };
            assert!(
                words.iter().any(|word| **word == *path.to_str().unwrap()),
                "{command}: {words:?}"
            );
        }
        let words = shell(&with(&all, "safe.directory").commands);
        assert!(words.contains(&"/home/codchi/plain".to_owned()), "{words:?}");
        assert!(words.iter().any(|word| word.starts_with("/home/codchi/a\n```\n")), "{words:?}");
        assert_eq!(fs::read_dir(work.path()).unwrap().count(), 0, "something was executed");
        mounted.unmount();
    }
}

#[test]
fn it_says_what_this_machine_needs() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    Maker::new(&place.rootfs)
        .file("var/lib/postgresql/15/PG_VERSION", b"15\n")
        .symlink("system-7-link", "nix/var/nix/profiles/system")
        .symlink("/nix/store/h-nixos-system-m-23.11.1.abc", "nix/var/nix/profiles/system-7-link")
        .file(
            "nix/store/h-user-environment/manifest.json",
            br#"{"version":2,"elements":[{"attrPath":"legacyPackages.x86_64-linux.jq","originalUrl":"flake:nixpkgs"}]}"#,
        );
    Maker::new(&place.home)
        .symlink("/home/codchi/.local/state/nix/profiles/profile", ".nix-profile")
        .symlink("profile-2-link", ".local/state/nix/profiles/profile")
        .symlink("/nix/store/h-user-environment", ".local/state/nix/profiles/profile-2-link");
    let page = fixture.run(["migrate", "m", "--secrets=omit"]).ok().out();
    for part in [
        "nix profile install 'nixpkgs#jq'",
        "`/var/lib/postgresql/15`",
        r#"priority = 1400; content = "23.11"; };/'"#,
        "Nix calls git",
        "safe.directory /home/codchi/project",
        "- `CODCHI_token` in `/etc/codchi-env`",
        "sets the password of the user `codchi`",
        "hardware-configuration.nix",
        "nixos-rebuild switch --flake /etc/nixos#nixos",
    ] {
        assert!(page.contains(part), "{part}\n{page}");
    }
    // Ways that need a mount are for who has one.
    assert!(!page.contains("scp --") && !page.contains("--numeric-ids"), "{page}");
}
