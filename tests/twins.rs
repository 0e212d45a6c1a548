//! Machines that are the same in all that is exported give the same bytes, however the disk holds them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "fidelity/mod.rs"]
mod fidelity;

use common::disk::{Disk, DiskKind};
use common::fixture::{Fixture, Maker};
use common::mounted::Mounted;
use common::plan::Plan;
use common::snapshot::Snapshot;
use common::{program, run, xattr};
use fidelity::trees::{self, BASE, Machine};
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the machine's ids are on a host that shifts them: its first, as many as Codchi maps, and the largest of all.
const SHIFTED: [Range; 3] = [
    Range { inside: 0, host: 1000, count: 1 },
    Range { inside: 1, host: 100_001, count: 10_000_000 },
    Range { inside: u32::MAX - 1, host: 50_000_000, count: 1 },
];

/// The host's ids are the machine's.
const SAME: [Range; 1] = [Range { inside: 0, host: 0, count: u32::MAX }];

#[derive(Clone, Copy, Debug)]
struct Range {
    inside: u32,
    host: u32,
    count: u32,
}

/// The id on the host.
fn shift(ranges: &[Range], id: u32) -> u32 {
    let range = ranges.iter().find(|range| id >= range.inside && id - range.inside < range.count);
    let range = range.unwrap_or_else(|| panic!("{id} is not in {ranges:?}"));
    range.host + (id - range.inside)
}

fn shifted(plan: &Plan, ranges: &[Range]) -> Plan {
    let mut plan = plan.clone();
    for entry in &mut plan.0 {
        (entry.uid, entry.gid) = (shift(ranges, entry.uid), shift(ranges, entry.gid));
        for ace in entry.acl.iter_mut().chain(&mut entry.default_acl) {
            ace.1 = shift(ranges, ace.1);
        }
        if let Some((_, Some(root))) = &mut entry.capability {
            *root = shift(ranges, *root);
        }
    }
    plan
}

/// The machine `m`, with ids as `ranges` have them and a record that says so.
fn built(machine: &Machine, ranges: &[Range], below: &Path) -> Fixture {
    let fixture = Fixture::below(below);
    let place = fixture.empty("m");
    run(program("touch", ["-d", "@1500000000"]).arg(place.config.join("config.json"))).silent();
    shifted(&machine.rootfs, ranges).build(&place.rootfs, &BASE, machine.disk);
    shifted(&machine.home, ranges).build(&place.home, &[""], machine.disk);
    let root = shift(ranges, 0);
    for (top, base) in [(&place.rootfs, &BASE[..]), (&place.home, &[""])] {
        for path in base.iter().flat_map(|path| Path::new(path).ancestors()) {
            std::os::unix::fs::chown(top.join(path), Some(root), Some(root)).unwrap();
        }
    }
    let map: Vec<_> = ranges
        .iter()
        .map(|range| {
            json!({"Isuid": true, "Isgid": true, "Hostid": range.host, "Nsid": range.inside,
                "Maprange": range.count})
        })
        .collect();
    let map = serde_json::to_string(&map).unwrap();
    let config = json!({"volatile.last_state.idmap": map, "volatile.idmap.current": map});
    let record = json!({"container": {"name": "codchi-m", "config": config}});
    fs::write(place.rootfs.parent().unwrap().join("backup.yaml"), record.to_string()).unwrap();
    fixture
}

/// The archive and rootfs/.
fn exported(fixture: &Fixture) -> (PathBuf, Snapshot) {
    let mounted = Mounted::new(fixture);
    let tree = Snapshot::full(&mounted.rootfs("m"));
    let archive = fixture.path().join("m.tar");
    run(program("cp", [mounted.tar("m"), archive.clone()])).silent();
    (archive, tree)
}

fn assert_same_bytes(one: &Path, other: &Path) {
    run(program("cmp", [one, other])).silent();
}

#[test]
fn shifted_ids_leave_no_trace_in_owners_acls_and_capabilities() {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let disk = Disk::new(DiskKind::Tmpfs);
    let mut machines = vec![trees::everything(DiskKind::Tmpfs)];
    machines.extend((0..3).map(|_| trees::machines().new_tree(&mut runner).unwrap().current()));
    for machine in machines {
        let machine = Machine { disk: DiskKind::Tmpfs, ..machine };
        let [same, shifted] = [&SAME[..], &SHIFTED].map(|ids| built(&machine, ids, &disk.path()));
        let [same, shifted] = [&same, &shifted].map(exported);
        same.1.assert_same(&shifted.1, "rootfs/ of a machine and of its shifted twin");
        assert_same_bytes(&same.0, &shifted.0);
    }
}

#[test]
fn an_id_outside_the_map_is_65534_and_reported() {
    let disk = Disk::new(DiskKind::Tmpfs);
    let fixture = built(&Machine::empty(DiskKind::Tmpfs), &SHIFTED, &disk.path());
    let rootfs = fixture.place("m").rootfs;
    let maker = Maker::new(&rootfs);
    let acl = |user, group| {
        let (user, group) = (('u', user, 4), ('g', group, 1));
        xattr::acl(&[('U', 0, 6), user, ('G', 0, 4), group, ('m', 0, 7), ('o', 0, 0)])
    };
    for name in ["srv/owner", "srv/group", "srv/access", "srv/capable", "srv/good"] {
        maker.file(name, b"x").own(name, 1000, 1000);
    }
    maker.dir("srv/default").own("srv/default", 1000, 1000);
    maker.own("srv/owner", 5, 1000).own("srv/group", 1000, 5);
    let set = |name, attribute, value: &[u8]| {
        xattr::set(&rootfs.join(name), attribute, value).unwrap();
    };
    set("srv/access", xattr::ACCESS, &acl(5, 100_071));
    set("srv/default", xattr::DEFAULT, &acl(100_071, 6));
    set("srv/capable", xattr::CAPABILITY, &xattr::capability(1, Some(7)));
    set("srv/good", xattr::ACCESS, &acl(1000, 100_071));
    let mounted = Mounted::new(&fixture);
    let tree = Snapshot::full(&mounted.rootfs("m"));
    let node = |name: &str| &tree.nodes[name.as_bytes()];
    assert_eq!((node("srv/owner").uid, node("srv/owner").gid), (65534, 0));
    assert_eq!((node("srv/group").uid, node("srv/group").gid), (0, 65534));
    assert_eq!(node("srv/access").xattrs[xattr::ACCESS], acl(65534, 71));
    assert_eq!(node("srv/default").xattrs[xattr::DEFAULT], acl(71, 65534));
    let capability = xattr::capability(1, Some(65534));
    assert_eq!(node("srv/capable").xattrs[xattr::CAPABILITY], capability);
    assert_eq!(node("srv/good").xattrs[xattr::ACCESS], acl(0, 71));

    fs::metadata(mounted.tar("m")).unwrap();
    let report = mounted.report("m");
    let lines = report["left_out"]["lines"].as_array().unwrap();
    let mut paths: Vec<_> = lines
        .iter()
        .filter(|line| line["reason"] == "foreign-owner")
        .map(|line| line["path"].as_str().unwrap())
        .collect();
    paths.sort_unstable();
    let bad = ["/srv/access", "/srv/capable", "/srv/default", "/srv/group", "/srv/owner"];
    assert_eq!(paths, bad, "{report}");
}

/// The same machine on another disk, as cp copies it.
fn moved(fixture: &Fixture, to: &Path, arguments: &[&str]) -> Fixture {
    let twin = Fixture::below(to);
    for directory in ["config", "data", "containers"] {
        let mut cp = program("cp", ["-a", "--preserve=all,xattr"]);
        run(cp.args(arguments).arg(fixture.path().join(directory)).arg(twin.path())).silent();
    }
    twin
}

#[test]
fn a_machine_moved_to_another_disk_gives_the_same_bytes() {
    let (here, there) = (Disk::new(DiskKind::Xfs), Disk::new(DiskKind::Tmpfs));
    let fixture = built(&trees::everything(DiskKind::Xfs), &SAME, &here.path());
    let twin = moved(&fixture, &there.path(), &[]);
    assert_same_bytes(&exported(&fixture).0, &exported(&twin).0);
}

#[test]
fn without_sparse_members_holes_leave_no_trace() {
    let (here, there) = (Disk::new(DiskKind::Xfs), Disk::new(DiskKind::Tmpfs));
    let fixture = built(&trees::everything(DiskKind::Xfs), &SAME, &here.path());
    let twin = moved(&fixture, &there.path(), &["--sparse=never"]);
    let export = |fixture: &Fixture, arguments: &[&str]| {
        let archive = fixture.path().join(arguments.join(""));
        fixture.run([&["export", "m", "-o", archive.to_str().unwrap()], arguments].concat()).ok();
        archive
    };
    let [one, other] = [&fixture, &twin].map(|fixture| export(fixture, &["--sparse=no"]));
    assert_same_bytes(&one, &other);
    let [one, other] = [&fixture, &twin].map(|fixture| export(fixture, &["--sparse=yes"]));
    run(program("cmp", ["-s".as_ref(), one.as_os_str(), other.as_os_str()])).exits(1);
}
