//! A machine on its way, and what is compared when it arrives.

use super::limits::LIMITS;
use super::python;
use super::routes::{GNU, NOT_TWICE, ROUTES, Route};
use super::trees::{self, BASE, Machine};
use crate::common::disk::DiskKind;
use crate::common::expected::{expected, without_etc};
use crate::common::fixture::Fixture;
use crate::common::mounted::Mounted;
use crate::common::plan::{Bytes, Fill, Plan, What};
use crate::common::snapshot::{Snapshot, differing, show};
use crate::common::{program, run, xattr};
use rustix::fs::FileType;
use std::fs;
use std::path::Path;

pub(crate) fn built(machine: &Machine, below: &Path) -> Fixture {
    let fixture = Fixture::below(below);
    let place = fixture.empty("m");
    // Generated directories have its time. rsync leaves fractions alone where the seconds are the same by chance.
    run(program("touch", ["-d", "@1500000000.25"]).arg(place.config.join("config.json"))).silent();
    machine.rootfs.build(&place.rootfs, &BASE, machine.disk);
    machine.home.build(&place.home, &[""], machine.disk);
    fixture
}

/// Bytes of `srv/huge` of [`nine_gib`]: more than ustar has digits for.
pub(crate) const NINE_GIB: u64 = (9 << 30) + 5;

/// A machine with a file of nine GiB, nearly all of it holes, and a small one after it.
pub(crate) fn nine_gib(below: &Path) -> Fixture {
    let mut machine = trees::everything(DiskKind::Xfs);
    let mut huge = machine.rootfs.0[0].clone();
    huge.name = Bytes(b"huge".to_vec());
    let data = vec![(0, 3), (NINE_GIB / 2, 100_000), (NINE_GIB - 2, 2)];
    huge.what = What::Sparse(NINE_GIB, data);
    let mut last = huge.clone();
    (last.name, last.what) = (Bytes(b"huge-and-then".to_vec()), What::File(Fill::Pattern(9)));
    machine.rootfs = Plan(vec![huge, last]);
    built(&machine, below)
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
pub(crate) fn bounded(route: Route, sent: &Snapshot, copy: &Snapshot) -> Snapshot {
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
pub(crate) fn arrived(to: &Path) -> Snapshot {
    let twice = |name: &[u8]| xattr::ACLS_OF_XFS.contains(&name);
    Snapshot::full(to).map(|_, node| node.xattrs.retain(|name, _| !twice(name)))
}

/// Where a copy is, and what it was made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival<'a> {
    pub(crate) route: Route,
    pub(crate) archive: &'a Path,
    pub(crate) rootfs: &'a Path,
    pub(crate) to: &'a Path,
}

/// Takes a machine along every route, and compares all that arrives.
pub(crate) fn travels(fixture: &Fixture) {
    travels_by(fixture, &ROUTES, |arrival| {
        if arrival.route == Route::Gnu {
            compared(arrival);
        }
    });
}

/// The same along some of them; `look` sees each copy.
pub(crate) fn travels_by(fixture: &Fixture, routes: &[Route], look: impl Fn(&Arrival<'_>)) {
    let mounted = Mounted::new(fixture);
    let rootfs = &mounted.rootfs("m");
    let tree = Snapshot::full(rootfs);
    let disk = expected(fixture, "m", Snapshot::full)
        .map(|_, node| node.xattrs.retain(|name, _| xattr::is_seen_by_a_mount(name)));
    disk.assert_same(&without_etc(&tree), "the disk against rootfs/");
    disk.assert_holes_kept(&tree, "rootfs/");
    // Holes of the disk, whatever rootfs/ says of them.
    let holes = |path: &[u8]| disk.nodes.get(path).map_or(0, |node| node.holes);
    let tree = tree.map(|path, node| node.holes = holes(path));
    let archive = &fixture.path().join("m.tar");
    run(program("cp", [&mounted.tar("m"), archive])).silent();
    let described = described(&tree, archive);
    for route in routes.iter().copied() {
        let to = &fixture.scratch(&format!("{route:?}"));
        route.copy(archive, rootfs, to);
        let copy = arrived(to);
        let sent = if route.reads_the_archive() { &described } else { &tree };
        let what = format!("what {route:?} makes of it");
        let sent = bounded(route, sent, &copy);
        sent.assert_same(&copy, &what);
        sent.assert_holes_kept(&copy, &what);
        look(&Arrival { route, archive, rootfs, to });
        fs::remove_dir_all(to).unwrap();
    }
}

/// tar and rsync find no difference between what they look at.
pub(crate) fn compared(arrival: &Arrival<'_>) {
    let Arrival { archive, rootfs, to: extracted, .. } = *arrival;
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
