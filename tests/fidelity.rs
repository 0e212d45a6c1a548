//! A machine arrives as it is, whatever is in it and whichever way it takes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "fidelity/mod.rs"]
mod fidelity;

use common::disk::{DISKS, Disk, DiskKind};
use common::expected::expected;
use common::mounted::Mounted;
use common::snapshot::{Node, Snapshot};
use common::{program, run, xattr};
use fidelity::limits::LIMITS;
use fidelity::routes::{ROUTES, Route};
use fidelity::travel::{NINE_GIB, arrived, bounded, built, nine_gib, travels, travels_by};
use fidelity::trees::{self, Machine};
use proptest::test_runner::{Config, FileFailurePersistence, RngAlgorithm, TestRng, TestRunner};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// How many generated machines: more with FIDELITY_CASES.
fn cases() -> u32 {
    std::env::var("FIDELITY_CASES").map_or(24, |text| text.parse().expect("FIDELITY_CASES"))
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
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/READERS.md");
    let page = fs::read_to_string(page).unwrap();
    for limit in LIMITS {
        println!("{:?}: {}", limit.reader, limit.property);
        assert!(page.contains(limit.property), "it is not in docs/READERS.md");
        let dir = tempfile::tempdir_in(disk.path()).unwrap();
        fs::create_dir(dir.path().join("from")).unwrap();
        fs::write(dir.path().join("from/file"), b"content").unwrap();
        (limit.proof)(dir.path());
    }
}

#[test]
fn each_reader_restores_what_its_flags_say() {
    let disk = Disk::new(DiskKind::Tmpfs);
    let fixture = built(&Machine::empty(DiskKind::Tmpfs), &disk.path());
    let srv = fixture.place("m").rootfs.join("srv");
    fs::write(srv.join("file"), b"content").unwrap();
    let holes = fs::File::create(srv.join("holes")).unwrap();
    holes.set_len(5 << 20).unwrap();
    for (name, value) in [
        (b"user.x".as_slice(), b"y".to_vec()),
        (b"trusted.x", b"y".to_vec()),
        (
            xattr::ACCESS,
            xattr::acl(&[('U', 0, 6), ('u', 71, 4), ('G', 0, 4), ('m', 0, 4), ('o', 0, 4)]),
        ),
        (xattr::CAPABILITY, xattr::capability(1, None)),
    ] {
        xattr::set(&srv.join("file"), name, &value).unwrap();
    }
    let mounted = Mounted::new(&fixture);
    let filled = fixture.path().join("filled.tar");
    fixture.run(["export", "m", "--sparse=no", "-o", filled.to_str().unwrap()]).ok();
    // Root's own: the process behind a mount sees no trusted attributes.
    let archive = fixture.path().join("all.tar");
    fixture.run(["export", "m", "-o", archive.to_str().unwrap()]).ok();
    let rootfs = mounted.rootfs("m").join(".");
    // Command, with A for the archive, F for one without sparse members, R for rootfs/, T for the target; then what
    // arrives: user, trusted, acl, capability, holes.
    let table = [
        ("tar -xpf A -C T", "h"),
        ("tar --acls -xpf A -C T", "a h"),
        ("tar --xattrs -xpf A -C T", "u h"),
        ("tar --xattrs --xattrs-include=* -xpf A -C T", "u t c h"),
        ("tar --xattrs --xattrs-include=* --acls -xpf A -C T", "u t a c h"),
        ("bsdtar -xpf A -C T", "u t a c h"),
        ("busybox tar -xpf F -C T", ""),
        ("cp -dR --preserve=mode R T", "a h"),
        ("cp -a R T", "u a c h"),
        ("rsync -aH R T", ""),
        ("rsync -aHS R T", "h"),
        ("rsync -aHAXS R T", "u a c h"),
    ];
    for (line, expected) in table {
        let to = fixture.scratch("to");
        let mut words = line.split(' ').map(|word| match word {
            "A" => archive.clone().into_os_string(),
            "F" => filled.clone().into_os_string(),
            "R" => rootfs.clone().into_os_string(),
            "T" => to.clone().into_os_string(),
            word => word.into(),
        });
        let name = words.next().unwrap();
        run(program(name.to_str().unwrap(), words)).ok();
        let copy = Snapshot::full(&to);
        let (file, holes) =
            (&copy.nodes[b"srv/file".as_slice()], &copy.nodes[b"srv/holes".as_slice()]);
        assert_eq!((file.size, holes.size), (7, 5 << 20), "{line}");
        let has = |name: &[u8]| file.xattrs.contains_key(name);
        let all = [
            ("u", has(b"user.x")),
            ("t", has(b"trusted.x")),
            ("a", has(xattr::ACCESS)),
            ("c", has(xattr::CAPABILITY)),
            ("h", holes.holes > 0),
        ];
        let arrived: Vec<_> = all.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect();
        assert_eq!(arrived.join(" "), expected, "{line}");
        fs::remove_dir_all(&to).unwrap();
    }
    // busybox takes the map of a sparse member for content.
    let to = fixture.scratch("to");
    run(program("busybox", ["tar", "-xpf"]).arg(&archive).arg("-C").arg(&to)).ok();
    assert_ne!(fs::metadata(to.join("srv/holes")).unwrap().len(), 5 << 20);
}

#[test]
fn fractions_of_seconds_are_kept_with_mtime_ns() {
    let disk = Disk::new(DiskKind::Btrfs);
    let fixture = built(&trees::everything(DiskKind::Btrfs), &disk.path());
    let archive = fixture.path().join("m.tar");
    let mounted = Mounted::with(&fixture, &["--mtime=ns"]);
    run(program("cp", [&mounted.tar("m"), &archive])).silent();
    let tree = Snapshot::full(&mounted.rootfs("m"));
    for route in ROUTES.into_iter().filter(|route| route.reads_the_archive()) {
        let to = fixture.scratch(&format!("{route:?}"));
        route.copy(&archive, &mounted.rootfs("m"), &to);
        let copy = arrived(&to);
        bounded(route, &tree, &copy).assert_same(&copy, &format!("{route:?} with --mtime=ns"));
    }
}

#[test]
fn each_kind_of_attribute_that_is_left_out_is_one_line() {
    let disk = Disk::new(DiskKind::Btrfs);
    let machine = trees::everything(DiskKind::Btrfs);
    let fixture = built(&machine, &disk.path());
    let srv = fixture.place("m").rootfs.join("srv");
    xattr::set(&srv.join("capable0"), b"btrfs.compression", b"zstd").unwrap();
    xattr::set(&srv.join("capable1"), b"security.selinux", b"label").unwrap();
    let mounted = Mounted::new(&fixture);
    fs::metadata(mounted.tar("m")).unwrap();
    let report = mounted.report("m");
    let lines = report["left_out"]["lines"].as_array().unwrap();
    let of_attributes = lines.iter().filter(|line| line["reason"] == "attribute");
    let mut texts: Vec<String> = of_attributes.map(|line| line["text"].to_string()).collect();
    texts.sort();
    let kinds = [
        "btrfs.*",
        "security.SMACK*",
        "security.ima",
        "security.selinux",
        "trusted.*",
        "with control characters in their names",
    ];
    assert_eq!(texts.len(), kinds.len(), "{texts:?}");
    for (text, kind) in texts.iter().zip(kinds) {
        assert!(text.contains(kind), "{kind}: {texts:?}");
    }
}

#[test]
fn thousands_of_attributes_on_one_file_arrive() {
    let disk = Disk::new(DiskKind::Xfs);
    let fixture = built(&Machine::empty(DiskKind::Xfs), &disk.path());
    let srv = fixture.place("m").rootfs.join("srv");
    // The kernel lists 64 KiB of names, each with its NUL.
    let fill = |file: &str, names: usize| {
        fs::write(srv.join(file), b"x").unwrap();
        for i in 0..names {
            let name = format!("user.{i:05}");
            xattr::set(&srv.join(file), name.as_bytes(), name.as_bytes()).unwrap();
        }
    };
    fill("many", 5000);
    travels(&fixture);

    fill("too-many", 7000);
    let mounted = Mounted::new(&fixture);
    fs::metadata(mounted.tar("m")).unwrap();
    let report = mounted.report("m");
    let lines = report["left_out"]["lines"].as_array().unwrap();
    let line = lines.iter().find(|line| line["path"] == "/srv/too-many");
    assert!(line.is_some_and(|line| line["reason"] == "attribute"), "{report}");
    assert_eq!(fs::read(mounted.rootfs("m").join("srv/too-many")).unwrap(), b"x");
}

#[test]
fn a_file_of_nine_gib_arrives() {
    let disk = Disk::new(DiskKind::Xfs);
    let fixture = nine_gib(&disk.path());
    // All but rsync know of holes, and have not much to read.
    let routes = ROUTES.into_iter().filter(|route| *route != Route::Rsync);
    travels_by(&fixture, &routes.collect::<Vec<_>>(), |_| ());

    let mounted = Mounted::with(&fixture, &["--sparse=no"]);
    let size = fs::metadata(mounted.tar("m")).unwrap().len();
    assert!((NINE_GIB..NINE_GIB + (16 << 20)).contains(&size), "{size}");
    // These jump over what they do not read.
    let list =
        |name, arguments: &[&str]| run(program(name, arguments).arg(mounted.tar("m"))).ok().out();
    for (name, arguments) in [("tar", ["--numeric-owner", "-tvf"]), ("bsdtar", ["-n", "-tvf"])] {
        let lines = list(name, &arguments);
        let line = lines.lines().find(|line| line.ends_with("./srv/huge")).unwrap();
        assert!(line.contains(&NINE_GIB.to_string()), "{name}: {line}");
        assert!(lines.contains("./srv/huge-and-then"), "{name}: {lines}");
    }
    let script = "
import sys, tarfile
with tarfile.open(sys.argv[1]) as archive, open(sys.argv[2], 'rb') as disk:
    huge = archive.extractfile('./srv/huge')
    for at in (0, 3, 1 << 30, disk.seek(0, 2) // 2, disk.seek(0, 2) - 100):
        disk.seek(at), huge.seek(at)
        assert disk.read(200_000) == huge.read(200_000), at
    assert len(archive.extractfile('./srv/huge-and-then').read()) == 9
";
    let mut python = program("python3", ["-c", script]);
    run(python.arg(mounted.tar("m")).arg(fixture.place("m").rootfs.join("srv/huge"))).silent();
}

#[test]
fn an_export_by_root_has_trusted_attributes() {
    let disk = Disk::new(DiskKind::Btrfs);
    let fixture = built(&trees::everything(DiskKind::Btrfs), &disk.path());
    let archive = fixture.path().join("m.tar");
    fixture.run(["export", "m", "-o", archive.to_str().unwrap()]).ok();
    let to = fixture.scratch("to");
    Route::Gnu.copy(&archive, Path::new("unused"), &to);
    let of_root = |tree: Snapshot| {
        let trusted = |(path, node): (&Vec<u8>, &Node)| {
            let mut xattrs = node.xattrs.clone();
            xattrs.retain(|name, _| !xattr::is_seen_by_a_mount(name));
            (!xattrs.is_empty()).then(|| (path.clone(), xattrs))
        };
        tree.nodes.iter().filter_map(trusted).collect::<BTreeMap<_, _>>()
    };
    let disk = of_root(expected(&fixture, "m", Snapshot::full));
    assert!(!disk.is_empty());
    assert_eq!(disk, of_root(arrived(&to)));
}
