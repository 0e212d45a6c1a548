//! What one machine, or one command line, can make large or slow: it is bounded, and costs nobody else anything.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::Fixture;
use common::{Done, program, run};
use std::fs;
use std::path::Path;
use std::process::Command;

/// The same with this much address space: what takes more ends with an error.
fn with_memory(mebibytes: u64, command: &Command) -> Command {
    let limit = format!("--as={}", mebibytes << 20);
    let mut limited = program("prlimit", [limit]);
    limited.arg(command.get_program()).args(command.get_args());
    limited
}

fn names_in(tar: &Path) -> Vec<String> {
    let done = run(program("tar", ["-tf"]).arg(tar)).ok();
    done.out().lines().map(str::to_owned).collect()
}

/// An export with these options, in 1 GiB of memory.
fn export(fixture: &Fixture, options: impl Iterator<Item = String>) -> Done {
    let tar = fixture.path().join("m.tar");
    let mut command = fixture.command(["export", "m", "-q", "-o"]);
    command.arg(tar).args(options);
    run(with_memory(1024, &command))
}

#[test]
fn tens_of_thousands_of_includes_are_taken() {
    let fixture = Fixture::new();
    let place = fixture.empty("m");
    fs::create_dir_all(place.rootfs.join("nix")).unwrap();
    for number in [0, 65_999, 66_000] {
        fs::write(place.rootfs.join(format!("nix/{number}")), "included").unwrap();
    }
    let done = export(&fixture, (0..66_000).map(|number| format!("--include=/nix/{number}"))).ok();
    let names = names_in(&fixture.path().join("m.tar"));
    for (number, there) in [(0, true), (65_999, true), (66_000, false)] {
        assert_eq!(names.contains(&format!("./nix/{number}")), there, "{number}");
    }
    // Of those that are not there some are named, and not all.
    assert!((1..=1000).contains(&done.err().lines().count()), "{}", done.err().lines().count());
}

#[test]
fn more_includes_than_can_be_kept_are_refused() {
    let fixture = Fixture::new();
    fixture.empty("m");
    let deep = |number| format!("--include=/{number}{}", "/a".repeat(2000));
    let done = export(&fixture, (0..100).map(deep)).exits(1);
    assert!(done.err().contains("too many --include"), "{}", done.err());
    let long = format!("--include={}", "/a".repeat(3000));
    let done = export(&fixture, [long].into_iter()).exits(1);
    assert!(done.err().contains("longer than 4095 bytes"), "{}", done.err());
    // As deep as a path can be.
    let deepest = (0..50).map(|number| format!("--include=/{number:02}{}", "/a".repeat(2000)));
    export(&fixture, deepest).ok();
}

#[test]
fn tens_of_thousands_of_excludes_are_taken() {
    let fixture = Fixture::new();
    let place = fixture.empty("m");
    fs::create_dir_all(place.rootfs.join("srv")).unwrap();
    for name in ["f1", "f39999", "kept"] {
        fs::write(place.rootfs.join("srv").join(name), name).unwrap();
    }
    export(&fixture, (0..40_000).map(|number| format!("--exclude=/srv/f{number}"))).ok();
    let names = names_in(&fixture.path().join("m.tar"));
    let of_srv: Vec<_> = names.iter().filter(|name| name.starts_with("./srv/")).collect();
    assert_eq!(of_srv, ["./srv/", "./srv/kept"]);
}
