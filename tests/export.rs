//! An export holds the machine, by the judgement of programs nobody here wrote.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::expected::{expected, without_etc};
use common::fixture::{EXCLUDED, Fixture, LOOKALIKES, is_at_or_below};
use common::mounted::Mounted;
use common::readers::{LOCALES, READERS, Reader};
use common::snapshot::{Snapshot, bytes, show};
use common::{contains, program, run};
use rustix::fs::FileType;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Python sets no times of links.
fn without_link_times(tree: &Snapshot) -> Snapshot {
    tree.clone().map(|_, node| {
        if node.kind == FileType::Symlink {
            node.mtime = 0;
        }
    })
}

/// `cp export.tar` to a file of the fixture.
fn copied(mounted: &Mounted, fixture: &Fixture, name: &str, to: &str) -> PathBuf {
    let target = fixture.path().join(to);
    run(program("cp", [mounted.tar(name), target.clone()])).silent();
    target
}

#[test]
fn the_tree_is_the_machine() {
    let fixture = Fixture::new();
    fixture.hostile("m");
    let mounted = Mounted::new(&fixture);
    let tree = Snapshot::of(&mounted.rootfs("m"));
    expected(&fixture, "m", Snapshot::of).assert_same(&without_etc(&tree), "disk against rootfs/");

    let mut etc = tree.paths();
    etc.retain(|path| is_at_or_below(path, b"etc"));
    let etc: Vec<_> = etc.iter().map(|path| show(path)).collect();
    let generated = [
        "etc",
        "etc/codchi-env",
        "etc/codchi-members",
        "etc/nixos",
        "etc/nixos/codchi-arrive",
        "etc/nixos/codchi-owners",
        "etc/nixos/flake.nix",
    ];
    assert_eq!(etc, generated);
    for (path, mode) in [("etc", 0o755), ("etc/nixos", 0o755), ("etc/nixos/flake.nix", 0o644)] {
        let node = &tree.nodes[path.as_bytes()];
        assert_eq!((node.mode, node.uid, node.gid), (mode, 0, 0), "{path}");
    }
}

#[test]
fn exclusions_are_anchored_and_match_whole_names() {
    let fixture = Fixture::new();
    fixture.hostile("m");
    let mounted = Mounted::new(&fixture);
    let tree = Snapshot::of(&mounted.rootfs("m"));
    for path in EXCLUDED.iter().filter(|path| **path != "etc") {
        assert!(!tree.nodes.contains_key(path.as_bytes()), "/{path} is exported");
    }
    for path in LOOKALIKES {
        assert!(tree.nodes.contains_key(path.as_bytes()), "/{path} is not exported");
    }
    let archive = fs::read(copied(&mounted, &fixture, "m", "m.tar")).unwrap();
    assert!(!contains(&archive, b"NOT-EXPORTED"), "content of an excluded file is exported");
}

#[test]
fn every_reader_lists_the_members_of_the_tree() {
    let fixture = Fixture::new();
    fixture.hostile("m");
    let long = fixture.add_long_path("m");
    let mounted = Mounted::new(&fixture);
    let archive = copied(&mounted, &fixture, "m", "m.tar");
    let tree = Snapshot::of(&mounted.rootfs("m"));
    assert!(tree.nodes.contains_key(&long), "the path of {} bytes is in rootfs/", long.len());
    for reader in READERS {
        for locale in LOCALES {
            let mut members = reader.list(&archive, locale);
            members.sort();
            let (ours, theirs) = (tree.paths(), members);
            for path in &ours {
                assert!(
                    theirs.binary_search(path).is_ok(),
                    "{reader:?} {locale}: no {}",
                    show(path)
                );
            }
            for path in &theirs {
                assert!(
                    ours.binary_search(path).is_ok(),
                    "{reader:?} {locale}: new {}",
                    show(path)
                );
            }
            assert_eq!(ours.len(), theirs.len(), "{reader:?} {locale}: a member is there twice");
        }
    }
}

#[test]
fn every_reader_extracts_the_tree() {
    let fixture = Fixture::new();
    fixture.hostile("m");
    let mounted = Mounted::new(&fixture);
    let archive = copied(&mounted, &fixture, "m", "m.tar");
    let tree = Snapshot::of(&mounted.rootfs("m"));
    for reader in READERS {
        for locale in LOCALES {
            let directory = fixture.scratch(&format!("{reader:?}-{locale}"));
            reader.extract(&archive, &directory, locale);
            let mut extracted = Snapshot::of(&directory);
            if reader == Reader::Bsd {
                // libarchive takes the -86400.25 of a pax header for -86400 + 0.25.
                let node = extracted.nodes.get_mut(b"srv/times/fraction".as_slice()).unwrap();
                assert!([-86_400, -86_401].contains(&node.mtime), "{node:?}");
                node.mtime = -86_401;
            }
            let what = format!("rootfs/ against what {reader:?} extracts in {locale}");
            if reader == Reader::Python {
                without_link_times(&tree).assert_same(&without_link_times(&extracted), &what);
            } else {
                tree.assert_same(&extracted, &what);
            }
        }
    }
}

#[test]
fn bsdtar_extracts_paths_over_4095_bytes() {
    let fixture = Fixture::new();
    fixture.empty("m");
    let long = fixture.add_long_path("m");
    let mounted = Mounted::new(&fixture);
    let archive = copied(&mounted, &fixture, "m", "m.tar");
    let directory = fixture.scratch("out");
    // It complains of the directories on the way, and makes them and the file all the same.
    let mut bsdtar = program("bsdtar", ["--numeric-owner", "-xpf"]);
    run(bsdtar.arg(&archive).arg("-C").arg(&directory));
    let extracted = Snapshot::of(&directory);
    assert!(extracted.nodes.contains_key(&long));
    Snapshot::of(&mounted.rootfs("m")).assert_same(&extracted, "rootfs/ against the extraction");
}

#[test]
fn tar_finds_no_difference_to_rootfs() {
    let fixture = Fixture::new();
    fixture.hostile("m");
    let mounted = Mounted::new(&fixture);
    for locale in LOCALES {
        let mut tar = program("tar", ["--numeric-owner", "-df"]);
        tar.arg(mounted.tar("m")).arg("-C").arg(mounted.rootfs("m")).env("LC_ALL", locale);
        run(tar).silent();
    }
}

/// What rsync would do to make `to` like `from`, but for their own attributes.
fn rsync(arguments: &[&str], from: &Path, to: &Path) -> String {
    let slash = |path: &Path| [bytes(path), b"/"].concat();
    let mut command = program(
        "rsync",
        ["-aHn", "--numeric-ids", "--delete", "--checksum", "--itemize-changes", "--8-bit-output"],
    );
    command.args(arguments);
    for path in [from, to] {
        command.arg(std::ffi::OsStr::from_bytes(&slash(path)));
    }
    let done = run(command).ok();
    let text = done.out();
    text.lines().filter(|line| !line.ends_with(" ./")).collect::<Vec<_>>().join("\n")
}

#[test]
fn rsync_finds_no_difference() {
    let fixture = Fixture::new();
    fixture.hostile("m");
    let place = fixture.place("m");
    let mounted = Mounted::new(&fixture);
    let archive = copied(&mounted, &fixture, "m", "m.tar");
    let extraction = fixture.scratch("out");
    Reader::Gnu.extract(&archive, &extraction, "C");
    let tree = mounted.rootfs("m");
    assert_eq!(rsync(&[], &tree, &extraction), "", "rootfs/ against the extraction");
    assert_eq!(rsync(&[], &extraction, &tree), "", "the extraction against rootfs/");

    let mut filters: Vec<String> =
        EXCLUDED.iter().map(|path| format!("--exclude=/{path}")).collect();
    filters.extend(["--exclude=/home/codchi".into(), "--exclude=/srv/kinds/socket".into()]);
    let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
    assert_eq!(rsync(&filters, &place.rootfs, &tree), "", "the rootfs on disk against rootfs/");
    let home = ["--exclude=/.Xauthority", "--chown=1000:100"];
    assert_eq!(rsync(&home, &place.home, &tree.join("home/codchi")), "", "the home on disk");
}

#[test]
fn export_writes_the_bytes_of_export_tar() {
    let fixture = Fixture::new();
    fixture.hostile("m");
    let mounted = Mounted::new(&fixture);
    let archive = copied(&mounted, &fixture, "m", "m.tar");

    let file = fixture.path().join("exported.tar");
    fixture.run(["export", "m", "-o", file.to_str().unwrap()]).ok();
    run(program("cmp", [&archive, &file])).silent();
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600, "an export holds secrets");
    assert!(!fixture.path().join("exported.tar.partial").exists());

    let done = fixture.run(["export", "m", "-o", "-"]).ok();
    assert!(done.stdout == fs::read(&archive).unwrap(), "-o - writes other bytes");
}

#[test]
fn a_failed_export_leaves_nothing() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let file = fixture.path().join("no/such/directory.tar");
    let done = fixture.run(["export", "m", "-o", file.to_str().unwrap()]).exits(1);
    assert!(done.err().contains("no/such"), "{}", done.err());
    let file = fixture.path().join("unknown.tar");
    let done = fixture.run(["export", "unknown", "-o", file.to_str().unwrap()]).exits(1);
    assert!(done.err().contains("unknown"), "{}", done.err());
    assert!(!file.exists());
}

#[test]
fn the_archive_starts_at_dot_and_ends_in_a_page_of_zeros() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let mounted = Mounted::new(&fixture);
    let archive = copied(&mounted, &fixture, "m", "m.tar");
    let content = fs::read(&archive).unwrap();
    assert_eq!(content.len() % 512, 0);
    assert!(content.len() >= 8192);
    let last_page = content.len() / 4096 * 4096 - 4096;
    assert!(content[last_page..].iter().all(|byte| *byte == 0), "no whole page of zeros");
    let members = Reader::Python.list(&archive, "C");
    assert!(!members.contains(&b".".to_vec()), "a member for the root would change the target's");
    let mut sorted = members.clone();
    sorted.sort_by(|a, b| a.split(|c| *c == b'/').cmp(b.split(|c| *c == b'/')));
    assert_eq!(members, sorted, "siblings are in byte order, after their directory");
}

#[test]
fn a_remount_changes_neither_bytes_nor_inode_numbers_nor_times() {
    let fixture = Fixture::new();
    fixture.hostile("m");
    let look = |to: &str| {
        let mounted = Mounted::new(&fixture);
        let archive = copied(&mounted, &fixture, "m", to);
        let (tree, inodes) = Snapshot::with_inodes(&mounted.rootfs("m"));
        let stat = rustix::fs::lstat(mounted.tar("m")).unwrap();
        assert_eq!(stat.st_size as u64, fs::metadata(&archive).unwrap().len());
        assert_eq!(stat.st_blocks as u64, (stat.st_size as u64).div_ceil(512));
        let identity =
            (stat.st_ino, stat.st_size, stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime);
        mounted.unmount();
        (archive, tree, inodes, identity)
    };
    let (first, second) = (look("1.tar"), look("2.tar"));
    run(program("cmp", [&first.0, &second.0])).silent();
    first.1.assert_same(&second.1, "rootfs/ before and after a remount");
    assert!(first.2 == second.2, "inode numbers change over a remount");
    assert_eq!(first.3, second.3, "inode number, size and times of export.tar");

    // No two files share a number, all names of one file do.
    let mut owners = std::collections::BTreeMap::new();
    for (path, inode) in &first.2 {
        let file = first.1.nodes[path].same_as.as_ref().unwrap_or(path);
        let other = owners.entry(*inode).or_insert(file);
        assert_eq!(show(other), show(file), "two files have inode number {inode}");
    }
}

#[test]
fn a_changed_machine_has_another_export() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    let mounted = Mounted::new(&fixture);
    let before = rustix::fs::lstat(mounted.tar("m")).unwrap();
    fs::write(place.home.join("new"), vec![7; 5000]).unwrap();
    common::wait_until("a new generation", || {
        rustix::fs::lstat(mounted.tar("m")).unwrap().st_ino != before.st_ino
    });
    let after = rustix::fs::lstat(mounted.tar("m")).unwrap();
    assert!(after.st_size > before.st_size && after.st_ctime >= before.st_ctime);
    let archive = copied(&mounted, &fixture, "m", "m.tar");
    assert!(Reader::Gnu.list(&archive, "C").contains(&b"home/codchi/new".to_vec()));
}

#[test]
fn patterns_and_includes_change_what_is_exported() {
    let fixture = Fixture::new();
    fixture.hostile("m");
    let arguments = ["--exclude", "/srv", "--exclude", "*.dir", "--include", "/etc/ssh"];
    let mounted = Mounted::with(&fixture, &arguments);
    let tree = Snapshot::of(&mounted.rootfs("m"));
    assert!(!tree.nodes.contains_key(b"srv".as_slice()));
    assert!(tree.nodes.contains_key(b"etc/ssh/ssh_host_ed25519_key".as_slice()));
    assert!(!tree.nodes.contains_key(b"etc/passwd".as_slice()));
    let archive = copied(&mounted, &fixture, "m", "m.tar");
    let mut members = Reader::Gnu.list(&archive, "C");
    members.sort();
    assert_eq!(members.len(), tree.nodes.len());
    assert!(members.iter().eq(tree.nodes.keys()));
    let done = fixture.run([["export", "m", "-o", "-"].as_slice(), &arguments].concat()).ok();
    assert!(done.stdout == fs::read(&archive).unwrap(), "export with the same patterns differs");
}

#[test]
fn two_exports_into_one_file_do_not_mix() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let output = fixture.path().join("m.tar");
    let partial = fixture.path().join("m.tar.partial");
    let other = fs::File::create(&partial).unwrap();
    rustix::fs::flock(&other, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let done = fixture.run(["export", "m", "-o", output.to_str().unwrap()]).exits(1);
    assert!(done.err().contains("another export is writing"), "{}", done.err());
    assert!(!output.exists());
    drop(other);
    // Left behind by one that was killed: not in the way.
    fixture.run(["export", "m", "-o", output.to_str().unwrap()]).ok();
    assert!(output.exists() && !partial.exists());
}

#[test]
fn an_export_into_the_machine_itself_is_refused() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    let output = place.home.join("m.tar");
    let done = fixture.run(["export", "m", "-o", output.to_str().unwrap()]).exits(1);
    assert!(done.err().contains("lies in the machine itself"), "{}", done.err());
    assert!(!output.exists() && !place.home.join("m.tar.partial").exists());
}

#[test]
fn hard_links_between_rootfs_and_home_are_two_files() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    fs::write(place.rootfs.join("srv/one"), "both").unwrap();
    fs::hard_link(place.rootfs.join("srv/one"), place.rootfs.join("srv/two")).unwrap();
    fs::hard_link(place.rootfs.join("srv/one"), place.home.join("three")).unwrap();
    let mounted = Mounted::new(&fixture);
    let root = mounted.rootfs("m");
    let ino = |path: &str| fs::metadata(root.join(path)).unwrap().ino();
    assert_eq!(ino("srv/one"), ino("srv/two"));
    assert_ne!(ino("srv/one"), ino("home/codchi/three"));
    let archive = copied(&mounted, &fixture, "m", "m.tar");
    let list = run(program("tar", ["-tvf"]).arg(&archive)).ok().out();
    let kind = |name: &str| list.lines().find(|l| l.contains(name)).unwrap().chars().next();
    assert_eq!(kind("./home/codchi/three"), Some('-'));
    assert_eq!(kind("./srv/one"), Some('-'));
    assert_eq!(kind("./srv/two link to ./srv/one"), Some('h'));
}

#[test]
fn list_has_the_size_of_an_export_for_who_asks() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let size = |arguments: &[&str]| {
        let done = fixture.run([&["list", "--json"], arguments].concat()).ok();
        let rows: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        rows[0]["size"].clone()
    };
    assert!(size(&[]).is_null(), "a list scans nothing by itself");
    let export = fixture.run(["export", "m", "-q", "-o", "-"]).ok();
    assert_eq!(size(&["--size"]), export.stdout.len());
    let table = fixture.run(["list", "--size"]).ok().out();
    assert!(table.contains("SIZE") && table.contains("KiB"), "{table}");
}
