//! What shows only after many rounds or a long time: `tests/run --long`.
//!
//! `SOAK_SECONDS` is how long readers read, `SOAK_CYCLES` how often is mounted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::{Fixture, Place};
use common::mounted::{Mounted, mounts_on};
use common::processes::{children, descriptors, is_alive, resident, threads};
use common::{DEADLINE, run, wait_until};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::Hasher as _;
use std::io::Read;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// A machine with many small files and some large ones.
fn machine(fixture: &Fixture) -> Place {
    let place = fixture.sample("m");
    for directory in 0..20 {
        let at = place.home.join(format!("many/{directory}"));
        fs::create_dir_all(&at).unwrap();
        for file in 0..100 {
            fs::write(at.join(file.to_string()), format!("{directory} {file}\n").repeat(100))
                .unwrap();
        }
    }
    for number in 0..8_u8 {
        let bytes: Vec<u8> = (0..8_u32 << 20).map(|i| (i / 7) as u8 ^ number).collect();
        fs::write(place.home.join(format!("large-{number}")), bytes).unwrap();
    }
    place
}

fn hash(mut from: impl Read, buffer: &mut [u8]) -> u64 {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    loop {
        match from.read(buffer).unwrap() {
            0 => return hash.finish(),
            read => hash.update(&buffer[..read]),
        }
    }
}

/// What a mount takes of the kernel: descriptors and threads of both processes.
fn taken(mounted: &Mounted) -> BTreeMap<&'static str, usize> {
    let (host, server) = (mounted.host(), mounted.server());
    [
        ("descriptors of the host", descriptors(host).len()),
        ("descriptors of the server", descriptors(server).len()),
        ("threads of the host", threads(host).len()),
        ("threads of the server", threads(server).len()),
    ]
    .into()
}

/// Processes of this very program, and what is mounted anywhere.
fn left(fixture: &Fixture) -> (usize, usize) {
    let state = fixture.path().to_str().unwrap();
    let processes = fs::read_dir("/proc").unwrap().filter(|entry| {
        let line = entry.as_ref().unwrap().path().join("cmdline");
        fs::read_to_string(line).is_ok_and(|line| line.contains("codchifs") && line.contains(state))
    });
    let mounts = fs::read_to_string("/proc/1/mountinfo").unwrap();
    (processes.count(), mounts.lines().filter(|line| line.contains(state)).count())
}

#[test]
fn hundreds_of_mounts_leave_nothing_behind() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let point = fixture.mount_point();
    let text = point.to_str().unwrap();
    let expected = fixture.run(["export", "m", "-q", "-o", "-"]).ok().stdout;
    let own = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = own();
    for round in 0..setting("SOAK_CYCLES", 500) {
        fixture.run(["mount", text]).ok();
        assert!(fs::read(point.join("m/export.tar")).unwrap() == expected, "round {round}");
        assert_eq!(mounts_on(&point).len(), 1, "round {round}");
        match round % 3 {
            // Cut off with a file that is open.
            0 => {
                let open = File::open(point.join("m/export.tar")).unwrap();
                fixture.run(["unmount", "--lazy", text]).ok();
                drop(open);
            }
            _ => drop(fixture.run(["unmount", text]).ok()),
        }
        assert!(mounts_on(&point).is_empty(), "round {round}");
    }
    wait_until("the last process to end", || left(&fixture) == (0, 0));
    assert_eq!(own(), before);
}

#[test]
fn one_mount_takes_no_more_after_many_rounds_of_everything() {
    let fixture = Fixture::new();
    machine(&fixture);
    let mounted = Mounted::new(&fixture);
    let rounds = setting("SOAK_CYCLES", 500) / 10;
    let (mut settled, mut memory) = (None, 0);
    for round in 0..rounds {
        // New generations, a walk over all of it, and a machine that comes and goes.
        fs::write(fixture.place("m").home.join(format!("new-{round}")), "new").unwrap();
        let place = fixture.empty("guest");
        mounted.signal(rustix::process::Signal::HUP);
        wait_until("the guest", || mounted.tar("guest").exists());
        let copy = fixture.path().join("copy");
        run(common::program("cp", [mounted.tar("m"), copy.clone()])).silent();
        run(common::program("tar", ["-cf", "/dev/null", "-C"]).arg(mounted.rootfs("m")).arg("."))
            .ok();
        fs::remove_dir_all(place.config).unwrap();
        wait_until("the guest to be gone", || !mounted.point().join("guest").exists());
        // Half of the rounds fill whatever has a bound of its own.
        if round == rounds / 2 {
            settled = Some(taken(&mounted));
            memory = resident(mounted.host()) + resident(mounted.server());
        }
    }
    let settled = settled.unwrap();
    wait_until("what was taken to be given back", || {
        taken(&mounted).iter().all(|(what, count)| *count <= settled[what] + 2)
    });
    let now = resident(mounted.host()) + resident(mounted.server());
    assert!(now < memory + memory / 4 + (8 << 10), "{memory} KiB have become {now}");
    mounted.unmount();
}

#[test]
fn many_readers_for_a_long_time_read_the_same_in_bounded_memory() {
    const READERS: usize = 24;
    // KiB of both processes: far more than a layout and the buffers of all readers, far less than the machine.
    const MOST: u64 = 300 << 10;
    let fixture = Fixture::new();
    let place = machine(&fixture);
    let mounted = Mounted::new(&fixture);
    let export = fixture.path().join("m.tar");
    fixture.run(["export", "m", "-q", "-o", export.to_str().unwrap()]).ok();
    let mut buffer = vec![0; 1 << 20];
    let whole = hash(File::open(&export).unwrap(), &mut buffer);
    let files: Vec<(PathBuf, u64)> = files_below(&place.home)
        .into_iter()
        .map(|path| {
            let sum = hash(File::open(&path).unwrap(), &mut buffer);
            (
                mounted
                    .rootfs("m")
                    .join("home/codchi")
                    .join(path.strip_prefix(&place.home).unwrap()),
                sum,
            )
        })
        .collect();
    let (stop, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    let (tar, export, stop_at) = (mounted.tar("m"), File::open(&export).unwrap(), &stop);
    let end = Instant::now() + Duration::from_secs(setting("SOAK_SECONDS", 600));
    let most = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|reader| {
                let (tar, files, export, reads) = (&tar, &files, &export, &reads);
                scope.spawn(move || {
                    let mut buffer = vec![0; 1 << 20];
                    let mut random = reader as u64 * 7919 + 1;
                    while !stop_at.load(Ordering::Relaxed) {
                        match reader % 3 {
                            0 => assert_eq!(hash(File::open(tar).unwrap(), &mut buffer), whole),
                            1 => random_reads(tar, export, &mut random),
                            _ => {
                                for (path, sum) in files.iter().skip(reader) {
                                    let file = File::open(path).unwrap();
                                    assert_eq!(hash(file, &mut buffer), *sum, "{}", path.display());
                                }
                            }
                        }
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let mut most = 0;
        while Instant::now() < end && readers.iter().all(|reader| !reader.is_finished()) {
            most = most.max(resident(mounted.host()) + resident(mounted.server()));
            std::thread::park_timeout(Duration::from_millis(100));
        }
        stop.store(true, Ordering::Relaxed);
        most
    });
    assert!(most < MOST, "{most} KiB");
    assert!(reads.load(Ordering::Relaxed) >= READERS as u64 * 3);
    assert_eq!(mounted.log(), "");
    assert!(children(mounted.host()).into_iter().all(is_alive));
    mounted.unmount();
}

fn random_reads(tar: &Path, export: &File, random: &mut u64) {
    let file = File::open(tar).unwrap();
    let size = file.metadata().unwrap().size();
    assert_eq!(size, export.metadata().unwrap().size());
    let (mut here, mut there) = (vec![0; 100_000], vec![0; 100_000]);
    for _ in 0..100 {
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        let offset = *random % size;
        let length = here.len().min((size - offset) as usize);
        file.read_exact_at(&mut here[..length], offset).unwrap();
        export.read_exact_at(&mut there[..length], offset).unwrap();
        assert!(here[..length] == there[..length], "{length} bytes at {offset}");
    }
}

fn files_below(top: &Path) -> Vec<PathBuf> {
    let (mut left, mut files) = (vec![top.to_path_buf()], Vec::new());
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                left.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files
}
