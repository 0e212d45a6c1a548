//! Every command of README.md and of the other pages is run as it stands there, and says what the page shows.
//!
//! A block that needs something before it, or another place, has it in the table: one line for each.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::pages::{Fenced, fenced, loose};
use common::room::{House, Room};
use std::fs;
use std::path::Path;

const PAGES: [&str; 4] = ["README.md", "docs", "packaging", "benches"];
/// These hold no commands.
const OTHER: [&str; 4] = ["text", "json", "ini", "mtree"];
/// With an LXD that does not run any more.
const STOPPED: &str =
    "codchifs mount -o allow_root /mnt/codchi; cp /mnt/codchi/dev/export.tar dev.tar
    python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"/root/dead\")'
    mount --bind /root/dead /var/lib/lxd/unix.socket";
const MOUNT: &str = "codchifs mount -o allow_root /mnt/codchi";
const LOOK: &str = "test -s /mnt/codchi/dev/export.tar";

/// What becomes of a block.
#[derive(Clone, Copy)]
enum How {
    /// It is run.
    Run(Room),
    /// What `before` prints has it, as an extract.
    Printed(Room),
    /// It is the content of this file.
    File(&'static str),
}
use How::{File, Printed, Run};
use Room::{Host, Source};

/// Page, the block's beginning, how, before, after.
type Entry = (&'static str, &'static str, How, &'static str, &'static str);

const ENTRIES: &[Entry] = &[
    (
        "README.md",
        "cargo build --workspace --release && apt",
        Run(Source),
        "",
        "cmp dev.tar <(codchifs export dev -o -)",
    ),
    ("README.md", "cargo run --release -- demo", Run(Source), "", ""),
    ("README.md", "$ ls -l mnt/dev", Printed(Host), "codchifs demo", ""),
    (
        "README.md",
        "cargo build --workspace --release\napt install",
        Run(Source),
        "",
        "man -w codchifs mount.codchifs; mount.codchifs --version",
    ),
    (
        "README.md",
        "imports = ",
        File("module"),
        "",
        "nix-instantiate --parse -E \"{ codchifs }: { $(cat module) }\"",
    ),
    (
        "README.md",
        "cargo build --workspace --release\ninstall ",
        Run(Source),
        "",
        "codchifs --version; mount -t codchifs alice /mnt/codchi -o allow_root; test -s /mnt/codchi/dev/export.tar",
    ),
    (
        "README.md",
        "mkdir -p /mnt/codchi\ncodchifs mount -o allow_root /mnt/codchi\ncodchifs export NAME",
        Run(Host),
        "",
        "cmp NAME.tar /mnt/codchi/NAME/export.tar",
    ),
    ("README.md", "$ codchifs list", Run(Host), STOPPED, ""),
    ("README.md", "rsync -aHAXSn", Run(Host), MOUNT, "! ssh vm test -e /srv/shared"),
    (
        "docs/CONFIGURATION.md",
        "imports = ",
        File("module"),
        "",
        "nix-instantiate --parse -E \"{ codchifs }: { $(cat module) }\"",
    ),
    (
        "docs/CONFIGURATION.md",
        "codchifs mount -o allow_root",
        Run(Host),
        "",
        "! mountpoint /mnt/codchi",
    ),
    ("docs/CONFIGURATION.md", "codchifs --driver dir", Run(Host), "mkdir /srv/rootfs", ""),
    ("docs/CONFIGURATION.md", "mount -t codchifs", Run(Host), "", "! mountpoint /mnt/codchi"),
    (
        "docs/CONFIGURATION.md",
        "alice  /mnt/codchi  codchifs  noauto,nofail",
        File("/etc/fstab"),
        "",
        "mount /mnt/codchi; test -s /mnt/codchi/dev/export.tar",
    ),
    (
        "docs/CONFIGURATION.md",
        "alice  /mnt/codchi  codchifs  noauto,exclude",
        File("/etc/fstab"),
        "touch $HOST/data/machine/dev/a,b",
        "mount -o allow_root /mnt/codchi; ! test -e /mnt/codchi/dev/rootfs/home/codchi/a,b; test -e /mnt/codchi/dev/rootfs/home/codchi",
    ),
    (
        "docs/CONFIGURATION.md",
        "ln -s",
        Run(Host),
        "",
        "mount -t fuse.codchifs alice /mnt/codchi -o allow_root; test -s /mnt/codchi/dev/export.tar",
    ),
    (
        "docs/CONFIGURATION.md",
        "systemctl",
        Run(Host),
        "",
        "test -L /etc/systemd/system/multi-user.target.wants/codchifs@alice.service",
    ),
    ("docs/CONFIGURATION.md", "codchifs generate", Run(Host), "", "man -w codchifs mount.codchifs"),
    ("docs/CONTRIBUTING.md", "tests/run", Run(Source), "", ""),
    ("docs/CONTRIBUTING.md", "cargo build --workspace\n", Run(Source), "", ""),
    ("docs/MIGRATION.md", "codchifs list", Run(Host), "", ""),
    ("docs/MIGRATION.md", "$ cp", Run(Host), MOUNT, LOOK),
    (
        "docs/MIGRATION.md",
        "scp ",
        Run(Host),
        MOUNT,
        "ssh vm cat codchi-export.tar | cmp - /mnt/codchi/NAME/export.tar",
    ),
    (
        "docs/MIGRATION.md",
        "ssh root@vm 'cat",
        Run(Host),
        MOUNT,
        "ssh vm test -s /var/lib/codchi-arrive/names",
    ),
    (
        "docs/MIGRATION.md",
        "(set -o pipefail",
        Run(Host),
        "codchifs mount -o allow_root /mnt/codchi; ssh vm 'cat >/run/codchi-arrive' </mnt/codchi/NAME/rootfs/etc/nixos/codchi-arrive",
        "ssh vm cat /home/codchi/project/README | grep hello",
    ),
    ("docs/MIGRATION.md", "rsync -aHAXSn", Run(Host), MOUNT, ""),
    (
        "docs/MIGRATION.md",
        "codchifs export dev -o dev.tar",
        Run(Host),
        "",
        "grep PG_VERSION dev.mtree",
    ),
    (
        "docs/MIGRATION.md",
        "codchifs export dev --secrets",
        Run(Host),
        "",
        "test -s export-redacted.tar",
    ),
];

fn commands() -> Vec<Fenced> {
    let all = fenced(Path::new(env!("CARGO_MANIFEST_DIR")), &PAGES);
    let other = |block: &Fenced| OTHER.contains(&&*block.language);
    for block in all.iter().filter(|block| other(block)) {
        let prompt = block.text.lines().any(|line| line.starts_with("$ "));
        assert!(
            !prompt,
            "{}: commands in a block of {}:\n{}",
            block.page, block.language, block.text
        );
    }
    all.into_iter().filter(|block| !other(block)).collect()
}

fn is_of(entry: &Entry, block: &Fenced) -> bool {
    entry.0 == block.page && block.text.starts_with(entry.1)
}

#[test]
fn every_block_has_an_entry_and_every_entry_a_block() {
    let blocks = commands();
    let mut faults = Vec::new();
    for block in &blocks {
        let entries = ENTRIES.iter().filter(|entry| is_of(entry, block)).count();
        let known = ["sh", "console", "nix", "fstab"].contains(&&*block.language);
        if entries != 1 || !known {
            faults.push(format!(
                "{}: {entries} entries, language {:?}:\n{}",
                block.page, block.language, block.text
            ));
        }
    }
    for entry in ENTRIES {
        if !blocks.iter().any(|block| is_of(entry, block)) {
            faults.push(format!("{}: no block begins with {:?}", entry.0, entry.1));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_command_does_what_its_page_says() {
    let house = House::new();
    let mut faults = Vec::new();
    for block in commands() {
        let Some(entry) = ENTRIES.iter().find(|entry| is_of(entry, &block)) else { continue };
        if let Err(fault) = try_block(&house, &block, entry) {
            faults.push(format!("{}:\n{}{fault}", block.page, block.text));
        }
    }
    assert!(faults.is_empty(), "{} blocks\n{}", faults.len(), faults.join("\n\n"));
}

fn try_block(house: &House, block: &Fenced, entry: &Entry) -> Result<(), String> {
    let (_, _, how, before, after) = *entry;
    let out = house.out();
    let _ = fs::remove_dir_all(&out);
    fs::create_dir(&out).unwrap();
    let write = |name: String, text: &str| fs::write(out.join(name), text).unwrap();
    write("block".into(), &block.text);
    let steps = if block.language == "console" { block.steps() } else { Vec::new() };
    for (n, step) in steps.iter().enumerate() {
        write(format!("{n}.sh"), &(step.command.clone() + "\n"));
    }
    let (room, middle) = match how {
        Run(room) if steps.is_empty() => (room, ". \"$OUT/block\"".to_owned()),
        Run(room) => {
            let each =
                (0..steps.len()).map(|n| format!(". $OUT/{n}.sh >$OUT/{n}.out 2>&1 || true\n"));
            (room, each.collect())
        }
        Printed(room) => (room, String::new()),
        File(path) => (Host, format!("cat \"$OUT/block\" >>{path}")),
    };
    let named = [" NAME ", "/NAME/"].iter().any(|name| block.text.contains(name));
    let machines = if named { "dev NAME" } else { "dev" };
    let done = house.run(room, machines, &format!("set -e\n{before}\n{middle}\n{after}"));
    if done.code != Some(0) {
        return Err(format!("-> {:?}\n{}{}", done.code, done.out(), done.err()));
    }
    if let Printed(_) = how {
        return holds(&block.text, &done.out());
    }
    for (n, step) in steps.iter().enumerate().filter(|_| matches!(how, Run(_))) {
        let real = fs::read_to_string(out.join(format!("{n}.out"))).unwrap();
        let (shown, real): (Vec<_>, Vec<_>) =
            (step.shown.iter().map(|l| loose(l)).collect(), real.lines().map(loose).collect());
        if shown != real {
            return Err(format!("-> of {}:\n{real:#?}", step.command));
        }
    }
    Ok(())
}

/// Whether the lines are all there, in this order.
fn holds(lines: &str, printed: &str) -> Result<(), String> {
    let mut rest = printed.lines().map(loose);
    let missing = lines.lines().find(|line| !rest.any(|printed| printed == loose(line)));
    missing.map_or(Ok(()), |line| Err(format!("-> not printed: {line}\n{printed}")))
}
