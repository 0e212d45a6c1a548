//! A machine arrives as it is, whatever is in it and whichever way it takes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "fidelity/limits.rs"]
mod limits;
#[path = "fidelity/python.rs"]
mod python;
#[path = "fidelity/routes.rs"]
mod routes;
#[path = "fidelity/trees.rs"]
mod trees;

use common::disk::{DISKS, Disk, DiskKind};
use common::expected::{expected, without_etc};
use common::fixture::Fixture;
use common::mounted::Mounted;
use common::snapshot::{Snapshot, differing, show};
use common::{program, run, xattr};
use limits::LIMITS;
use proptest::test_runner::{Config, FileFailurePersistence, RngAlgorithm, TestRng, TestRunner};
use routes::{GNU, NOT_TWICE, ROUTES, Route};
use rustix::fs::FileType;
use std::fs;
use std::path::{Path, PathBuf};
use trees::{BASE, Machine};

/// How many generated machines: more with FIDELITY_CASES.
fn cases() -> u32 {
    std::env::var("FIDELITY_CASES").map_or(9, |text| text.parse().expect("FIDELITY_CASES"))
}

fn built(machine: &Machine, below: &Path) -> Fixture {
    let fixture = Fixture::below(below);
    let place = fixture.empty("m");
    // Generated directories have its time. rsync leaves fractions alone where the seconds are the same by chance.
    run(program("touch", ["-d", "@1500000000.25"]).arg(place.config.join("config.json"))).silent();
    machine.rootfs.build(&place.rootfs, &BASE, machine.disk);
    machine.home.build(&place.home, &[""], machine.disk);
    fixture
}

/// `cp export.tar`, and what the archive says of times and attributes compared with rootfs/.
fn archived(fixture: &Fixture, mounted: &Mounted, tree: &Snapshot) -> (PathBuf, Snapshot) {
    let archive = fixture.path().join("m.tar");
    run(program("cp", [mounted.tar("m"), archive.clone()])).silent();
    let described = described(tree, &archive);
    (archive, described)
}

/// rootfs/ with the times that an archive holds; fails where its records say anything else than rootfs/.
fn described(tree: &Snapshot, archive: &Path) -> Snapshot {
    let records = python::records(archive);
    let none = python::Records::new();
    tree.clone().map(|path, node| {
        // Of further names, the archive says nothing.
        let first = node.same_as.as_deref().unwrap_or(path);
        let records = records.get(first).unwrap_or(&none);
        let differing = differing(&node.xattrs, &python::xattrs(records));
        assert!(differing.is_empty(), "rootfs/ against the archive: {}: {differing}", show(path));
        match records.get(b"mtime".as_slice()) {
            Some(text) => {
                assert_eq!(python::time(text), (node.mtime, node.nsec), "{}", show(path));
            }
            None => {
                assert!(records.is_empty(), "{}: no time in {records:?}", show(path));
                node.nsec = 0;
            }
        }
        let sparse = records.keys().any(|key| key.starts_with(b"GNU.sparse."));
        assert_eq!(sparse, node.holes > 0, "{}: {records:?}", show(path));
    })
}

/// What of `sent` must arrive, knowing the limits of the reader, where `copy` did.
fn bounded(route: Route, sent: &Snapshot, copy: &Snapshot) -> Snapshot {
    let second_name_of_link = |path: &[u8]| {
        let node = &sent.nodes[path];
        node.kind == FileType::Symlink && node.same_as.as_deref().is_some_and(|first| first != path)
    };
    let sent = match route {
        Route::Python => sent.filtered(|path| !second_name_of_link(path)),
        _ => sent.clone(),
    };
    sent.map(|path, node| {
        let Some(copy) = copy.nodes.get(path) else { return };
        for limit in LIMITS.iter().filter(|limit| limit.reader == route) {
            (limit.apply)(node, copy);
        }
    })
}

/// What xfs says twice is taken once.
fn arrived(to: &Path) -> Snapshot {
    let twice = |name: &[u8]| xattr::ACLS_OF_XFS.contains(&name);
    Snapshot::full(to).map(|_, node| node.xattrs.retain(|name, _| !twice(name)))
}

/// Takes a machine along every route, and compares all that arrives.
fn travels(fixture: &Fixture) {
    let mounted = Mounted::new(fixture);
    let tree = Snapshot::full(&mounted.rootfs("m"));
    let disk = expected(fixture, "m", Snapshot::full);
    disk.assert_same(&without_etc(&tree), "the disk against rootfs/");
    disk.assert_holes_kept(&tree, "rootfs/");
    // Holes of the disk, whatever rootfs/ says of them.
    let tree =
        tree.map(|path, node| node.holes = disk.nodes.get(path).map_or(0, |node| node.holes));
    let (archive, described) = archived(fixture, &mounted, &tree);
    for route in ROUTES {
        let to = fixture.scratch(&format!("{route:?}"));
        route.copy(&archive, &mounted.rootfs("m"), &to);
        let copy = arrived(&to);
        let sent = if route.reads_the_archive() { &described } else { &tree };
        let what = format!("what {route:?} makes of it");
        let sent = bounded(route, sent, &copy);
        sent.assert_same(&copy, &what);
        sent.assert_holes_kept(&copy, &what);
        if route == Route::Gnu {
            compared(&archive, &mounted.rootfs("m"), &to);
        }
        fs::remove_dir_all(&to).unwrap();
    }
}

/// tar and rsync find no difference between what they look at.
fn compared(archive: &Path, rootfs: &Path, extracted: &Path) {
    let mut tar = program("tar", GNU.split(' '));
    run(tar.arg("-df").arg(archive).arg("-C").arg(rootfs)).silent();
    let arguments = ["-aHAXn", "--numeric-ids", "--delete", "--checksum", "--itemize-changes"];
    for (from, to) in [(rootfs, extracted), (extracted, rootfs)] {
        let mut rsync = program("rsync", arguments);
        let done = run(rsync.arg(NOT_TWICE).arg(from.join("")).arg(to)).ok();
        let lines = done.out();
        let lines: Vec<&str> = lines.lines().filter(|line| !line.ends_with(" ./")).collect();
        assert_eq!(lines, [""; 0], "rsync from {} to {}", from.display(), to.display());
    }
}

#[test]
fn generated_machines_arrive_as_they_are() {
    let disks: Vec<(DiskKind, Disk)> = DISKS.map(|kind| (kind, Disk::new(kind))).into();
    let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fidelity/seeds.txt");
    let config = Config {
        cases: cases(),
        max_shrink_iters: 60,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(seeds))),
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    TestRunner::new_with_rng(config, rng)
        .run(&trees::machines(), |machine| {
            let (_, disk) = disks.iter().find(|(kind, _)| *kind == machine.disk).unwrap();
            travels(&built(&machine, &disk.path()));
            Ok(())
        })
        .unwrap();
}

#[test]
fn one_of_everything_arrives_as_it_is() {
    for kind in DISKS {
        let disk = Disk::new(kind);
        travels(&built(&trees::everything(kind), &disk.path()));
    }
}

#[test]
fn every_limit_of_a_reader_is_real() {
    let disk = Disk::new(DiskKind::Xfs);
    for limit in LIMITS {
        println!("{:?}: {}", limit.reader, limit.property);
        let dir = tempfile::tempdir_in(disk.path()).unwrap();
        fs::create_dir(dir.path().join("from")).unwrap();
        fs::write(dir.path().join("from/file"), b"content").unwrap();
        (limit.proof)(dir.path());
    }
}
