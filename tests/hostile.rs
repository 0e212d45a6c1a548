//! Machines made to break out of their directory, or to stop us.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::{Fixture, Maker};
use common::mounted::{Mounted, unmount_unused};
use common::snapshot::Snapshot;
use common::xattr;
use common::{contains, program, run, within};
use rustix::fs::{CWD, RenameFlags};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const MARKER: &[u8] = b"MARKER-OUTSIDE-OF-THE-MACHINE";

fn with_marker() -> Fixture {
    let fixture = Fixture::new();
    fs::write(fixture.outside().join("marker"), MARKER).unwrap();
    fs::create_dir(fixture.outside().join("deeper")).unwrap();
    fs::write(fixture.outside().join("deeper/marker"), MARKER).unwrap();
    fixture
}

#[test]
fn links_are_shown_and_never_followed() {
    let fixture = with_marker();
    fixture.hostile("m");
    let done = fixture.run(["export", "m", "-o", "-"]).ok();
    assert!(!contains(&done.stdout, MARKER), "the export holds what a link points to");
    let shadow = fs::read("/etc/shadow").unwrap_or_default();
    assert!(shadow.len() < 20 || !contains(&done.stdout, &shadow[..20]), "it holds /etc/shadow");

    let mounted = Mounted::new(&fixture);
    let link = mounted.rootfs("m").join("srv/links/marker");
    assert_eq!(fs::read_link(link).unwrap(), fixture.outside().join("marker"));
    let up = fs::read_link(mounted.rootfs("m").join("srv/links/up")).unwrap();
    assert_eq!(up, Path::new("../../../../../../../../etc/shadow"));
}

#[test]
fn layers_that_are_links_are_not_entered() {
    for layer in ["rootfs", "home"] {
        let fixture = with_marker();
        let place = fixture.empty("m");
        fixture.sample("good");
        let target = if layer == "home" { &place.home } else { &place.rootfs };
        fs::remove_dir(target).unwrap();
        std::os::unix::fs::symlink(fixture.outside(), target).unwrap();
        let done = fixture.run(["export", "m", "-o", "-"]);
        assert!(!contains(&done.stdout, MARKER), "a link in place of the {layer} was followed");
        let mounted = Mounted::new(&fixture);
        if let Ok(tree) = fs::read_dir(mounted.rootfs("m")) {
            drop(tree);
            let copy = fixture.path().join("m.tar");
            run(program("cp", [mounted.tar("m"), copy.clone()]));
            assert!(!contains(&fs::read(copy).unwrap_or_default(), MARKER));
        }
        assert!(mounted.rootfs("good").join("opt/tool").exists(), "the other machine works");
    }
}

#[test]
fn a_directory_swapped_for_a_link_leads_nowhere() {
    let fixture = with_marker();
    let place = fixture.empty("m");
    let root = Maker::new(&place.rootfs);
    for number in 0..200 {
        root.file(&format!("srv/swap/deeper/file-{number}"), b"inside\n");
    }
    root.file("srv/swap/marker", b"inside\n").file("srv/swap/deeper/marker", b"inside\n");
    root.symlink(fixture.outside().to_str().unwrap(), "srv/other");
    let (one, two) = (place.rootfs.join("srv/swap"), place.rootfs.join("srv/other"));

    let stop = Arc::new(AtomicBool::new(false));
    let swapper = std::thread::spawn({
        let stop = stop.clone();
        move || {
            let mut swaps = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(CWD, &one, CWD, &two, RenameFlags::EXCHANGE).unwrap();
                swaps += 1;
            }
            swaps
        }
    });
    let found = std::panic::catch_unwind(|| {
        for round in 0..20 {
            let done = fixture.run(["export", "m", "-o", "-"]);
            assert!(
                matches!(done.code, Some(0 | 1)),
                "round {round}: {:?} {}",
                done.code,
                done.err()
            );
            assert!(!contains(&done.stdout, MARKER), "round {round}: outside was read by export");
        }
        let mounted = Mounted::new(&fixture);
        for round in 0..20 {
            let copy = fixture.path().join("m.tar");
            run(program("cp", [mounted.tar("m"), copy.clone()]));
            assert!(!contains(&fs::read(copy).unwrap_or_default(), MARKER), "round {round}: cp");
        }
    });
    stop.store(true, Ordering::Relaxed);
    let swaps = swapper.join().unwrap();
    if let Err(panic) = found {
        std::panic::resume_unwind(panic);
    }
    assert!(swaps > 100, "only {swaps} swaps: nothing was tried");
}

#[test]
fn fifos_and_devices_stop_nobody() {
    let fixture = Fixture::new();
    let place = fixture.hostile("m");
    let root = Maker::new(&place.rootfs);
    for number in 0..50 {
        root.fifo(&format!("srv/fifos/{number}"));
    }
    fixture.run(["export", "m", "-o", "-"]).ok();
    let mounted = Mounted::new(&fixture);
    let tree = mounted.rootfs("m");
    within("a walk over FIFOs", move || Snapshot::of(&tree));
    // The kernel opens a FIFO by itself, one of the mount and not the machine's; devices are denied by nodev.
    let device = rustix::fs::open(
        mounted.rootfs("m").join("srv/kinds/null"),
        rustix::fs::OFlags::RDONLY,
        rustix::fs::Mode::empty(),
    );
    assert_eq!(device.map(drop), Err(rustix::io::Errno::ACCESS));
}

#[test]
fn a_file_swapped_for_a_fifo_after_the_scan_does_not_hang() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    let mounted = Mounted::new(&fixture);
    let file = fs::File::open(mounted.tar("m")).unwrap();
    fs::remove_file(place.home.join("project/README")).unwrap();
    Maker::new(&place.home).fifo("project/README");
    let read = within("a read of a torn archive", move || {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut &file, &mut bytes).map(|_| bytes)
    });
    assert!(read.is_err(), "a member has gone and the reader was not told");
    let lines = mounted.report("m").to_string();
    assert!(lines.contains("project/README"), "{lines}");
    // The next generation has the FIFO and is whole.
    let copy = fixture.path().join("m.tar");
    run(program("cp", [mounted.tar("m"), copy])).silent();
}

#[test]
fn a_mount_below_the_machine_is_not_crossed() {
    let fixture = with_marker();
    let place = fixture.sample("m");
    let point = place.rootfs.join("srv/mounted");
    fs::create_dir_all(&point).unwrap();
    run(program("mount", [Path::new("--bind"), &fixture.outside(), &point])).silent();
    let done = fixture.run(["export", "m", "-o", "-"]);
    let mounted = Mounted::new(&fixture);
    let report = {
        let _ = fs::symlink_metadata(mounted.tar("m"));
        mounted.report("m").to_string()
    };
    unmount_unused(&point);
    assert_eq!(done.code, Some(0), "{}", done.err());
    assert!(!contains(&done.stdout, MARKER), "what is mounted there was exported");
    assert!(report.contains("srv/mounted"), "{report}");
}

#[test]
fn other_hard_links_of_a_file_that_something_is_mounted_over_are_exported() {
    let fixture = with_marker();
    let place = fixture.empty("m");
    let root = Maker::new(&place.rootfs);
    root.file("srv/covered", b"its own\n").file("srv/both", b"both\n").dir("opt");
    Maker::new(&place.home).file("covered", b"of the home\n");
    let link = |from: &str, to: &str| {
        fs::hard_link(place.rootfs.join(from), place.rootfs.join(to)).unwrap()
    };
    // Beside it, in another directory under the same name, and one that is covered as well.
    link("srv/covered", "srv/other");
    link("srv/covered", "opt/covered");
    link("srv/both", "srv/second");
    fs::hard_link(place.home.join("covered"), place.home.join("other")).unwrap();
    let secret = fixture.outside().join("secret");
    fs::write(&secret, MARKER).unwrap();
    let points = [
        place.rootfs.join("srv/covered"),
        place.rootfs.join("srv/both"),
        place.rootfs.join("srv/second"),
        place.home.join("covered"),
    ];
    for point in &points {
        run(program("mount", [Path::new("--bind"), &secret, point])).silent();
    }
    let exported = fixture.run(["export", "m", "-q", "-o", "-"]);
    let mounted = Mounted::new(&fixture);
    let read = |path: &str| fs::read(mounted.rootfs("m").join(path)).ok();
    let shown: Vec<_> = ["srv/other", "opt/covered", "home/codchi/other"].map(read).into();
    let covered: Vec<_> =
        ["srv/covered", "srv/both", "srv/second", "home/codchi/covered"].map(read).into();
    let _ = fs::symlink_metadata(mounted.tar("m"));
    let report = mounted.report("m")["left_out"].to_string();
    points.iter().for_each(|point| unmount_unused(point));
    assert_eq!(
        shown,
        [Some(b"its own\n".to_vec()), Some(b"its own\n".to_vec()), Some(b"of the home\n".to_vec())]
    );
    assert_eq!(covered, [None, None, None, None]);
    for path in ["/srv/covered", "/srv/both", "/srv/second", "/home/codchi/covered"] {
        assert!(report.contains(&format!("\"{path}\"")), "{path}: {report}");
    }
    let tar = fixture.path().join("m.tar");
    fs::write(&tar, &exported.ok().stdout).unwrap();
    assert!(!contains(&fs::read(&tar).unwrap(), MARKER), "what is mounted there was exported");
    let names = run(program("tar", ["-tvf"]).arg(&tar)).ok().out();
    for name in ["./srv/other", "./opt/covered", "./home/codchi/other"] {
        assert!(
            names.lines().any(|line| line.split(" link to ").next().unwrap().ends_with(name)),
            "{name}: {names}"
        );
    }
    assert!(!names.contains("./srv/covered") && !names.contains("./srv/second"), "{names}");
}

#[test]
fn sockets_are_left_out_with_a_line_in_the_report() {
    let fixture = Fixture::new();
    fixture.hostile("m");
    let mounted = Mounted::new(&fixture);
    assert!(!mounted.rootfs("m").join("srv/kinds/socket").exists());
    fs::symlink_metadata(mounted.tar("m")).unwrap();
    let report = mounted.report("m").to_string();
    assert!(report.contains("srv/kinds/socket"), "{report}");
}

#[test]
fn an_attribute_whose_name_has_control_characters_is_left_out_everywhere() {
    let fixture = Fixture::new();
    let place = fixture.empty("m");
    Maker::new(&place.rootfs).file("srv/a", b"x\n").file("srv/b", b"x\n").dir("srv/dir");
    Maker::new(&place.home).file("c", b"x\n");
    let left_out: [&[u8]; 6] = [
        b"user.\n-rw------- 0/0 0 2026-01-01 00:00 ./root/forged\n",
        b"user.\x1b]0;forged\x07",
        b"user.forged\r",
        b"user.forged\x7f",
        b"user.forged\xc2\x9b2J",
        b"trusted.\tforged",
    ];
    let kept: [&[u8]; 4] =
        [b"user.\xff\xfe", b"user. \"'\\", "user.\u{202e}".as_bytes(), b"user.a"];
    let paths = ["srv/a", "srv/dir", "home/codchi/c"];
    let on_disk = |path: &str| match path.strip_prefix("home/codchi/") {
        Some(below) => place.home.join(below),
        None => place.rootfs.join(path),
    };
    for path in paths {
        for name in left_out.iter().chain(&kept) {
            xattr::set(&on_disk(path), name, b"value").unwrap();
        }
    }
    let only_kept = |path: &Path, what: &str| {
        let names: Vec<_> = xattr::read(path).unwrap().into_keys().collect();
        let mut expected = kept.map(<[u8]>::to_vec);
        expected.sort();
        assert_eq!(names, expected, "{what}: {}", path.display());
    };
    let mounted = Mounted::new(&fixture);
    for path in paths {
        only_kept(&mounted.rootfs("m").join(path), "rootfs/");
        for name in left_out {
            let got = rustix::fs::lgetxattr(mounted.rootfs("m").join(path), name, &mut [0_u8; 8]);
            assert_eq!(got, Err(rustix::io::Errno::NODATA));
        }
    }
    let tar = fixture.path().join("m.tar");
    run(program("cp", [&mounted.tar("m"), &tar])).silent();
    let exported = fixture.path().join("exported.tar");
    fixture.run(["export", "m", "-q", "-o", exported.to_str().unwrap()]).ok();
    for (number, archive) in [&tar, &exported].into_iter().enumerate() {
        let bytes = fs::read(archive).unwrap();
        assert!(!contains(&bytes, b"forged"), "{}", archive.display());
        for (reader, args) in
            [("tar", &["--xattrs", "--xattrs-include=*", "-xpf"][..]), ("bsdtar", &["-xpf"][..])]
        {
            let to = fixture.scratch(&format!("{reader}{number}"));
            run(program(reader, args).arg(archive).arg("-C").arg(&to)).ok();
            paths.iter().for_each(|path| only_kept(&to.join(path), reader));
        }
    }
    let list = fixture.run(["manifest", "m"]).ok();
    assert!(!contains(&list.stdout, b"forged"), "{}", list.out());
    // One line for all of them, beside that for trusted attributes, which a mount does not see.
    let report = mounted.report("m");
    let lines = report["left_out"]["lines"].as_array().unwrap().iter();
    let lines: Vec<_> = lines.filter(|line| line["text"].to_string().contains("control")).collect();
    assert_eq!(lines.len(), 1, "{report}");
    assert_eq!(
        (&lines[0]["reason"], &lines[0]["path"]),
        (&"attribute".into(), &"/home/codchi/c".into())
    );
    // No process behind a mount sees trusted attributes.
    assert_eq!(lines[0]["files"], 3 * (left_out.len() - 1));
    mounted.unmount();
    for path in paths {
        let had = xattr::read(&on_disk(path)).unwrap();
        assert_eq!(had.len(), left_out.len() + kept.len(), "the machine lost an attribute");
    }
}

#[test]
fn the_report_holds_no_secret() {
    let fixture = Fixture::new();
    fixture.hostile("m");
    let mounted = Mounted::new(&fixture);
    fs::symlink_metadata(mounted.tar("m")).unwrap();
    let report = mounted.report("m").to_string();
    for secret in ["a'b", "$HOME"] {
        assert!(!report.contains(secret), "the report holds a secret: {report}");
    }
}

#[test]
fn what_is_excluded_stays_so_when_its_directories_move() {
    let fixture = Fixture::new();
    let place = fixture.empty("m");
    fs::create_dir_all(place.rootfs.join("opt/d/sub")).unwrap();
    fs::create_dir_all(place.rootfs.join("srv")).unwrap();
    fs::write(place.rootfs.join("opt/d/sub/secret"), "s").unwrap();
    let mounted = Mounted::with(&fixture, &["--exclude", "/srv/d/sub/secret"]);
    let root = mounted.rootfs("m");
    assert!(root.join("opt/d/sub/secret").exists());
    fs::rename(place.rootfs.join("opt/d"), place.rootfs.join("srv/d")).unwrap();
    common::wait_until("the moved directory", || {
        root.join("srv/d/sub").exists() && !root.join("opt/d").exists()
    });
    assert!(fs::read(root.join("srv/d/sub/secret")).is_err(), "an excluded file is shown");
}

/// Holds a lease on a file, and lets go when it is told to, or never.
fn lease(path: &Path, lets_go: bool) -> std::process::Child {
    let script = "
import fcntl, os, signal, sys, time
file = os.open(sys.argv[1], os.O_RDWR)
signal.signal(signal.SIGIO, lambda *_: sys.argv[2] == 'true' and fcntl.fcntl(file, 1024, fcntl.F_UNLCK))
fcntl.fcntl(file, 1024, fcntl.F_WRLCK)
print('held', flush=True)
while True:
    time.sleep(1000)";
    let mut python = program("/usr/bin/python3", ["-c", script]);
    python.arg(path).arg(lets_go.to_string()).stdout(std::process::Stdio::piped());
    let mut child = python.spawn().unwrap();
    let mut line = String::new();
    let stdout = child.stdout.as_mut().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    assert_eq!(line, "held\n");
    child
}

#[test]
fn a_lease_delays_an_export_by_a_bounded_time_and_is_named() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    let file = place.rootfs.join("srv/leased");
    fs::write(&file, "leased").unwrap();
    let whole = fixture.run(["export", "m", "-q", "-o", "-"]).ok().stdout;
    let mut holder = lease(&file, true);
    let done = fixture.run(["export", "m", "-q", "-o", "-"]).ok();
    assert!(done.stdout == whole, "a lease that is given up");
    holder.kill().unwrap();
    holder.wait().unwrap();
    let mut holder = lease(&file, false);
    let done = fixture.run(["export", "m", "-q", "-o", "-"]).exits(1);
    assert!(
        done.err().contains("srv/leased: cannot be read: a program in the machine holds a lease")
    );
    assert!(done.err().contains("stop the machine and try again"), "{}", done.err());
    let mounted = Mounted::new(&fixture);
    let other = mounted.rootfs("m").join("opt/tool");
    let leased = fs::read(mounted.rootfs("m").join("srv/leased"));
    assert!(leased.is_err() || leased.unwrap() == b"leased");
    assert!(fs::read(other).is_ok(), "the others");
    holder.kill().unwrap();
    holder.wait().unwrap();
}
