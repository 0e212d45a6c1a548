//! `codchifs export`: large files that the kernel copies, blocks that are shared, compression.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::disk::{Disk, DiskKind};
use common::fixture::{Fixture, Place};
use common::mounted::Mounted;
use common::snapshot::Snapshot;
use common::{program, run};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

const MIB: usize = 1 << 20;

/// Bytes that follow from their place and compress badly.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Files of all sizes around the one from which the kernel copies, among small ones.
fn mixed(fixture: &Fixture) -> Place {
    let place = fixture.sample("m");
    let sizes = [0, 1, 4095, 4096, 65_535, 65_536, 262_143, 262_144, 262_145, 3 * MIB + 17];
    for (seed, size) in (1..).zip(sizes) {
        fs::write(place.rootfs.join(format!("srv/{size}")), noise(size, seed)).unwrap();
        fs::write(place.home.join(format!("{size}")), noise(size, seed * 31)).unwrap();
    }
    let sparse = File::create(place.rootfs.join("srv/sparse")).unwrap();
    sparse.set_len(40 * MIB as u64).unwrap();
    sparse.write_all_at(&noise(MIB, 99), 4 * MIB as u64).unwrap();
    sparse.write_all_at(&noise(700_000, 98), 30 * MIB as u64 + 123).unwrap();
    place
}

fn extracted(archive: &Path, at: &Path, reader: &str) -> Snapshot {
    fs::create_dir(at).unwrap();
    let mut command = program(reader, ["-xpf"]);
    run(command.arg(archive).arg("-C").arg(at)).silent();
    let found = Snapshot::of(at);
    fs::remove_dir_all(at).unwrap();
    found
}

#[test]
fn what_the_kernel_copies_is_what_the_mount_shows() {
    let fixture = Fixture::new();
    mixed(&fixture);
    let mounted = Mounted::new(&fixture);
    let (whole, copy) = (fixture.path().join("whole.tar"), fixture.path().join("copy.tar"));
    run(program("cp", [&mounted.tar("m"), &whole])).silent();
    // To a file of the same file system, to others (past the page cache and through it), into a pipe.
    fixture.run(["export", "m", "-q", "-o", copy.to_str().unwrap()]).ok();
    run(program("cmp", [&whole, &copy])).silent();
    for kind in [DiskKind::Xfs, DiskKind::Btrfs, DiskKind::Tmpfs] {
        let disk = Disk::new(kind);
        let there = disk.path().join("copy.tar");
        fixture.run(["export", "m", "-q", "-o", there.to_str().unwrap()]).ok();
        run(program("cmp", [&whole, &there])).silent();
    }
    let piped =
        format!("{:?} | cmp - {:?}", fixture.command(["export", "m", "-q", "-o", "-"]), whole);
    run(program("bash", ["-c", &format!("set -o pipefail; {piped}")])).silent();
}

#[test]
fn a_compressed_export_is_the_same_archive() {
    let fixture = Fixture::new();
    mixed(&fixture);
    let mounted = Mounted::new(&fixture);
    for level in ["--zstd", "--zstd=19"] {
        let to = fixture.path().join("m.tar.zst");
        fixture.run(["export", "m", "-q", level, "-o", to.to_str().unwrap()]).ok();
        assert!(fs::metadata(&to).unwrap().len() < fs::metadata(mounted.tar("m")).unwrap().len());
        assert_eq!(fs::metadata(&to).unwrap().mode() & 0o777, 0o600);
        let same = format!("zstd -dc {to:?} | cmp - {:?}", mounted.tar("m"));
        run(program("bash", ["-c", &format!("set -o pipefail; {same}")])).silent();
    }
    let both = fixture.run(["export", "m", "--zstd", "--reflink=auto", "-o", "x"]);
    both.exits(2);
}

/// Bytes that the file system says are taken.
fn used(disk: &Path) -> u64 {
    run(program("sync", ["-f"]).arg(disk)).silent();
    let fs = rustix::fs::statvfs(disk).unwrap();
    (fs.f_blocks - fs.f_bfree) * fs.f_frsize
}

#[test]
fn blocks_of_large_files_are_shared_with_the_archive_where_that_can_be() {
    for kind in [DiskKind::Xfs, DiskKind::Btrfs] {
        let disk = Disk::new(kind);
        let fixture = Fixture::below(&disk.path());
        let place = mixed(&fixture);
        let large = noise(64 * MIB, 5);
        fs::write(place.home.join("large"), &large).unwrap();
        let expected = {
            let plain = fixture.path().join("plain.tar");
            fixture.run(["export", "m", "-q", "-o", plain.to_str().unwrap()]).ok();
            let tree = extracted(&plain, &fixture.path().join("plain"), "tar");
            fs::remove_file(plain).unwrap();
            tree
        };
        let to: PathBuf = fixture.path().join("m.tar");
        let before = used(&disk.path());
        fixture.run(["export", "m", "-q", "--reflink=auto", "-o", to.to_str().unwrap()]).ok();
        let size = fs::metadata(&to).unwrap().len();
        let taken = used(&disk.path()).saturating_sub(before);
        assert!(size > large.len() as u64);
        assert!(taken < size / 8, "{kind:?}: {taken} bytes taken for an archive of {size}");
        for reader in ["tar", "bsdtar"] {
            let found = extracted(&to, &fixture.path().join(reader), reader);
            found.assert_same(&expected, &format!("{kind:?}, {reader}"));
        }
        let script = "import sys, tarfile, hashlib\nwith tarfile.open(sys.argv[1]) as t:\n  print(hashlib.sha256(t.extractfile('./home/codchi/large').read()).hexdigest())";
        let python = run(program("python3", ["-c", script, to.to_str().unwrap()])).ok().out();
        let sum = run(program("sha256sum", [place.home.join("large")])).ok().out();
        assert_eq!(python.trim(), &sum[..64], "{kind:?}");
        // busybox reads no sparse members.
        let dense = fixture.path().join("dense.tar");
        let dense = dense.to_str().unwrap();
        fixture.run(["export", "m", "-q", "--reflink=auto", "--sparse=no", "-o", dense]).ok();
        let member = ["tar", "-xOf", dense, "./home/codchi/large"];
        assert!(run(program("busybox", member)).ok().stdout == large, "{kind:?}");
        // What is written to the machine afterwards is not in the archive.
        File::options()
            .write(true)
            .open(place.home.join("large"))
            .unwrap()
            .write_all_at(b"new", 0)
            .unwrap();
        let member = ["-xOf", to.to_str().unwrap(), "./home/codchi/large"];
        assert!(run(program("tar", member)).ok().stdout == large, "{kind:?}");
    }
}

#[test]
fn a_large_file_that_shrinks_before_it_is_copied_is_named_and_the_rest_is_whole() {
    let fixture = Fixture::new();
    let place = mixed(&fixture);
    let large = place.home.join("large");
    fs::write(&large, noise(8 * MIB, 7)).unwrap();
    // The pipe stops the export before it comes to the file.
    let export = fixture.command(["export", "m", "-o", "-"]);
    let out = fixture.path().join("out.tar");
    let script = format!(
        "{{ {export:?}; echo $? >{status:?}; }} | {{ head -c 1; truncate -s 1000 {large:?}; cat; }} >{out:?}",
        status = fixture.path().join("status"),
    );
    let done = run(program("bash", ["-c", &script])).ok();
    assert_eq!(fs::read_to_string(fixture.path().join("status")).unwrap(), "1\n");
    assert!(done.err().contains("/home/codchi/large: shrank"), "{}", done.err());
    let found = extracted(&out, &fixture.path().join("out"), "tar");
    let mounted = Mounted::new(&fixture);
    let mut expected = Snapshot::of(&mounted.rootfs("m"));
    let mut found = found;
    for tree in [&mut expected, &mut found] {
        tree.nodes.remove(b"home/codchi/large".as_slice());
    }
    found.assert_same(&expected, "all but the torn file");
}

#[test]
fn an_include_of_nothing_is_said() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let to = fixture.path().join("m.tar");
    let export = ["export", "m", "-q", "--include", "/etc/shh", "-o", to.to_str().unwrap()];
    let done = fixture.run(export).ok();
    assert!(done.err().contains("--include /etc/shh: there is nothing"), "{}", done.err());
    let mounted = Mounted::with(&fixture, &["--include", "/etc/shh"]);
    assert!(mounted.report("m")["warnings"][0].as_str().unwrap().contains("/etc/shh"));
}

#[test]
fn a_pipe_that_is_read_slowly_gets_no_mixture_for_a_whole_file() {
    let fixture = Fixture::new();
    let place = fixture.sample("m");
    let large = place.home.join("large");
    fs::write(&large, vec![b'A'; 64 * MIB]).unwrap();
    let export = fixture.command(["export", "m", "-o", "-"]);
    let (out, status) = (fixture.path().join("out.tar"), fixture.path().join("status"));
    // Rewritten in place while most of it is still to be read, and again shortly before its end.
    let rewrite = format!(
        "tr '\\0' B </dev/zero | dd of={large:?} bs=1M count=64 iflag=fullblock conv=notrunc status=none"
    );
    let script = format!(
        "{{ {export:?}; echo $? >{status:?}; }} | {{ head -c 1000000; {rewrite}; head -c 60000000; {rewrite}; cat; }} >{out:?}"
    );
    run(program("bash", ["-c", &script])).ok();
    assert_eq!(fs::read_to_string(status).unwrap(), "1\n", "a mixture passed for a whole export");
}

/// Reads to the end in blocks, with a step back in the middle.
fn blocks(file: &File, mut offset: usize, block: usize, whole: &[u8]) {
    let mut buffer = vec![0; block];
    let mut back = whole.len() / 2;
    loop {
        let count = file.read_at(&mut buffer, offset as u64).unwrap();
        let end = (offset + block).min(whole.len());
        assert!(buffer[..count] == whole[offset..end], "{block} bytes at {offset}: {count}");
        if count == 0 {
            return;
        }
        offset = end;
        if offset > back {
            (offset, back) = (offset.saturating_sub(3 * block + 1000), usize::MAX);
        }
    }
}

#[test]
fn readers_in_blocks_of_any_size_get_the_same_bytes_at_once() {
    let fixture = Fixture::new();
    mixed(&fixture);
    let mounted = Mounted::new(&fixture);
    let (tar, to) = (mounted.tar("m"), fixture.path().join("whole.tar"));
    fixture.run(["export", "m", "-o", to.to_str().unwrap()]).ok();
    let whole = fs::read(&to).unwrap();
    let mapped = "import mmap, sys; files = [open(path, 'rb') for path in sys.argv[1:]]\n\
        maps = [mmap.mmap(f.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) for f in files]\n\
        assert maps[0][:] == maps[1][:]";
    std::thread::scope(|scope| {
        for (block, offset) in
            [(700, 0), (10_240, 0), (65_536, 1), (131_072, 0), (MIB, 0), (MIB, 512), (3 * MIB, 7)]
        {
            let (tar, whole) = (&tar, &whole);
            scope.spawn(move || blocks(&File::open(tar).unwrap(), offset, block, whole));
        }
        // Through the kernel's cache.
        scope.spawn(|| run(program("python3", ["-c", mapped]).args([&tar, &to])).silent());
        scope.spawn(|| run(program("busybox", ["cmp"]).args([&tar, &to])).silent());
    });
}
