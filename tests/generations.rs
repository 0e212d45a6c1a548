//! Which archive is served when, and for how long one is kept.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::Fixture;
use common::mounted::Mounted;
use common::{program, run, wait_until};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;

/// Where the current generation stays to be found.
fn resume(mounted: &Mounted) -> PathBuf {
    let report = mounted.report("m");
    mounted.point().join("m").join(report["generation"]["resume"].as_str().unwrap())
}

/// Waits until a lookup gives another inode than `before`.
fn next(mounted: &Mounted, before: u64) -> fs::Metadata {
    wait_until("another generation", || fs::metadata(mounted.tar("m")).unwrap().ino() != before);
    fs::metadata(mounted.tar("m")).unwrap()
}

#[test]
fn an_unchanged_machine_keeps_its_generation_over_scans_and_remounts() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let stat = |mounted: &Mounted| {
        let meta = fs::metadata(mounted.tar("m")).unwrap();
        (meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec())
    };
    let mounted = Mounted::new(&fixture);
    let first = stat(&mounted);
    let scanned = || mounted.report("m")["generation"]["scanned"].clone();
    let before = scanned();
    wait_until("another scan", || {
        assert_eq!(stat(&mounted), first);
        scanned() != before
    });
    mounted.unmount();
    assert_eq!(stat(&Mounted::new(&fixture)), first);
}

#[test]
fn a_change_gives_another_inode_and_other_times() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    let mounted = Mounted::new(&fixture);
    let first = fs::metadata(mounted.tar("m")).unwrap();
    fs::write(place.rootfs.join("srv/new"), "x").unwrap();
    let second = next(&mounted, first.ino());
    assert_ne!((first.ctime(), first.ctime_nsec()), (second.ctime(), second.ctime_nsec()));
    assert!((second.mtime(), second.mtime_nsec()) > (first.mtime(), first.mtime_nsec()));
}

#[test]
fn an_open_handle_keeps_its_generation_and_a_closed_one_is_found_by_its_id() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    fs::write(place.rootfs.join("srv/kept"), "kept").unwrap();
    let mounted = Mounted::new(&fixture);
    let whole = fs::read(mounted.tar("m")).unwrap();
    let old = resume(&mounted);
    let open = File::open(mounted.tar("m")).unwrap();
    let ino = open.metadata().unwrap().ino();
    // What it names is not touched: the old generation can still be read to its end.
    fs::write(place.rootfs.join("srv/new"), "x").unwrap();
    let new = next(&mounted, ino);
    assert_ne!(new.len(), 0);
    let mut bytes = vec![0; whole.len()];
    open.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == whole, "the handle");
    drop(open);
    assert!(fs::read(&old).unwrap() == whole, "by its id");
    assert_eq!(fs::metadata(&old).unwrap().ino(), ino);
    // So it is when Codchi's configuration changes meanwhile, and with it what is generated.
    let config = r#"{"nixpkgs_from":null,"modules":{},"secrets":{"NEW":"1"}}"#;
    fs::write(place.config.join("config.json"), config).unwrap();
    next(&mounted, new.ino());
    assert!(fs::read(&old).unwrap() == whole, "after a change of the configuration");
    // No listing shows it, so no backup walks in.
    let listed = fs::read_dir(mounted.point().join("m")).unwrap();
    let names: Vec<_> = listed.map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.as_encoded_bytes().starts_with(b".")), "{names:?}");
    let none = mounted.point().join("m/.generations/0123456789abcdef/export.tar");
    assert_eq!(fs::metadata(none).unwrap_err().kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn only_the_last_closed_generations_are_kept() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    let mounted = Mounted::new(&fixture);
    let mut paths = Vec::new();
    let mut ino = 0;
    for number in 0..11 {
        fs::write(place.rootfs.join("srv/number"), number.to_string()).unwrap();
        ino = next(&mounted, ino).ino();
        fs::read(mounted.tar("m")).unwrap();
        paths.push(resume(&mounted));
    }
    let kept: Vec<bool> = paths.iter().map(|path| path.exists()).collect();
    // Eight, and the current one if it is not among them.
    assert_eq!(kept.iter().filter(|kept| **kept).count(), 8, "{kept:?}");
    assert!(kept[3..].iter().all(|kept| *kept), "{kept:?}");
}

#[test]
fn with_fail_the_first_changed_byte_ends_a_copy() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    fs::write(place.rootfs.join("srv/log"), "line\n").unwrap();
    let mounted = Mounted::with(&fixture, &["--on-change=fail"]);
    fs::metadata(mounted.tar("m")).unwrap();
    // Grown only: without the option the promised length is served, and the copy is whole.
    fs::write(place.rootfs.join("srv/log"), "line\nline\n").unwrap();
    let copy = fixture.path().join("copy");
    run(program("cp", [&mounted.tar("m"), &copy])).exits(1);
    assert_eq!(mounted.report("m")["changed"][0]["reason"], "grew");
    run(program("cp", [&mounted.tar("m"), &copy])).silent();
    drop(mounted);
    let mounted = Mounted::new(&fixture);
    fs::metadata(mounted.tar("m")).unwrap();
    fs::write(place.rootfs.join("srv/log"), "line\nline\nline\n").unwrap();
    run(program("cp", [&mounted.tar("m"), &copy])).silent();
    assert_eq!(mounted.report("m")["changed"][0]["reason"], "grew");
}

#[test]
fn what_is_written_into_a_hole_after_the_scan_tears() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    let path = place.rootfs.join("srv/disk");
    let disk = File::create(&path).unwrap();
    disk.set_len(8 << 20).unwrap();
    disk.write_all_at(b"begin", 0).unwrap();
    let mounted = Mounted::new(&fixture);
    let size = fs::metadata(mounted.tar("m")).unwrap().len();
    assert!(size < 1 << 20, "{size}: the hole is not written out");
    // Into the data that there was: what is there now is served.
    disk.write_all_at(b"BEGIN", 0).unwrap();
    run(program("cp", [mounted.tar("m"), fixture.path().join("copy")])).silent();
    assert_eq!(mounted.report("m")["changed"][0]["reason"], "changed");
    let ino = fs::metadata(mounted.tar("m")).unwrap().ino();
    next(&mounted, ino);
    disk.write_all_at(b"middle", 4 << 20).unwrap();
    run(program("cp", [mounted.tar("m"), fixture.path().join("copy")])).exits(1);
    assert_eq!(mounted.report("m")["changed"][0]["reason"], "rewritten");
    run(program("cp", [mounted.tar("m"), fixture.path().join("copy")])).silent();
}

#[test]
fn a_change_of_nothing_that_is_exported_gives_the_times_of_a_new_mount() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    let times = |mounted: &Mounted| {
        let meta = fs::metadata(mounted.tar("m")).unwrap();
        (meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec())
    };
    let mounted = Mounted::new(&fixture);
    let first = times(&mounted);
    // The root directory has another ctime.
    fs::create_dir(place.rootfs.join("bin")).unwrap();
    fs::remove_dir(place.rootfs.join("bin")).unwrap();
    wait_until("the next scan", || times(&mounted) != first);
    let second = times(&mounted);
    mounted.unmount();
    assert_eq!(times(&Mounted::new(&fixture)), second);
}

#[test]
fn a_removal_beside_an_include_is_a_newer_export() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    for name in ["aa", "bb"] {
        fs::create_dir_all(place.rootfs.join("etc/kept")).unwrap();
        fs::write(place.rootfs.join("etc/kept").join(name), name).unwrap();
    }
    let include = ["--include", "/etc/kept/aa", "--include", "/etc/kept/bb"];
    let mounted = Mounted::with(&fixture, &include);
    let first = fs::metadata(mounted.tar("m")).unwrap();
    fs::remove_file(place.rootfs.join("etc/kept/bb")).unwrap();
    let second = next(&mounted, first.ino());
    assert!((second.mtime(), second.mtime_nsec()) > (first.mtime(), first.mtime_nsec()));
}

#[test]
fn a_machine_that_was_away_keeps_its_generations_to_resume_from() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    let mounted = Mounted::new(&fixture);
    let whole = fs::read(mounted.tar("m")).unwrap();
    let old = resume(&mounted);
    let away = place.rootfs.with_extension("away");
    fs::rename(&place.rootfs, &away).unwrap();
    wait_until("its absence", || mounted.report("m")["state"] != "ready");
    fs::rename(&away, &place.rootfs).unwrap();
    wait_until("its return", || mounted.report("m")["state"] == "ready");
    assert!(fs::read(&old).unwrap() == whole);
}

#[test]
fn what_a_copy_had_open_is_let_go_when_it_ends() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    let large = place.rootfs.join("srv/large");
    fs::write(&large, vec![1; 3 << 20]).unwrap();
    let mounted = Mounted::new(&fixture);
    let open = File::open(mounted.tar("m")).unwrap();
    let mut bytes = vec![0; open.metadata().unwrap().len() as usize];
    open.read_exact_at(&mut bytes, 0).unwrap();
    let has = |mounted: &Mounted| mounted.open_files().iter().any(|f| f.ends_with("srv/large"));
    assert!(has(&mounted), "a file that is read in parts stays open meanwhile");
    drop(open);
    wait_until("the file to be closed", || !has(&mounted));
}

#[test]
fn blocks_that_are_allocated_and_not_written_are_data_cached_or_not() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    let path = place.rootfs.join("srv/disk");
    let file = path.to_str().unwrap();
    run(program("fallocate", ["-l", "8M", file])).silent();
    run(program("truncate", ["-s", "64M", file])).silent();
    let mounted = Mounted::new(&fixture);
    let first = fs::metadata(mounted.tar("m")).unwrap();
    assert!((8 << 20..10 << 20).contains(&first.len()), "{}", first.len());
    fs::read(mounted.rootfs("m").join("srv/disk")).unwrap();
    fs::read(&path).unwrap();
    let scanned = || mounted.report("m")["generation"]["scanned"].clone();
    let before = scanned();
    wait_until("another scan", || {
        let meta = fs::metadata(mounted.tar("m")).unwrap();
        assert_eq!((meta.ino(), meta.len()), (first.ino(), first.len()));
        scanned() != before
    });
}
