//! The disk below a machine does not give everything back: a btrfs whose checksums do not fit, a disk that begins to fail or is
//! taken away.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::faulty::{FILES, Faulty, SIZE};
use common::fixture::{Fixture, Maker};
use common::mounted::{Mounted, unmount_unused};
use common::readers::Reader;
use common::{program, run, wait_until};
use rustix::fs::{RawDir, SeekFrom};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::mem::MaybeUninit;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

const BLOCK: usize = 4096;
/// The size of a btrfs metadata node, and the layout of its header and items (linux/btrfs_tree.h).
const NODE: usize = 16384;
const NODE_FSID: usize = 32;
const NODE_ITEMS: usize = 96;
const NODE_LEVEL: usize = 100;
const NODE_HEADER: usize = 101;
const ITEM: usize = 25;
const ITEM_TYPE: usize = 8;
const DIR_INDEX: u8 = 96;
const SUPERBLOCK_FSID: usize = 65536 + 32;

/// Blocks that are all different and occur nowhere else.
fn content(seed: u64, blocks: usize) -> Vec<u8> {
    let block = |number| format!("block {number:08} of {seed:016x}|").into_bytes();
    (0..blocks).flat_map(|number| block(number).into_iter().cycle().take(BLOCK)).collect()
}

/// A disk in a file, on which the root file systems of the machines are.
struct Disk {
    fixture: Fixture,
    image: PathBuf,
}

impl Disk {
    fn new() -> Self {
        let fixture = Fixture::new();
        let image = fixture.path().join("disk");
        File::create(&image).unwrap().set_len(256 << 20).unwrap();
        run(program("/usr/sbin/mkfs.btrfs", ["-q", "-n", &NODE.to_string()]).arg(&image)).ok();
        let disk = Self { fixture, image };
        disk.mount();
        disk
    }

    fn mount(&self) {
        run(program("mount", ["-o", "loop"]).arg(&self.image).arg(self.fixture.rootfs_dir())).ok();
    }

    /// Changes every block of the image that `change` says it changed, while nobody uses it.
    fn damage(&self, size: usize, change: impl Fn(&mut [u8]) -> bool) -> usize {
        unmount_unused(&self.fixture.rootfs_dir());
        let image = File::options().read(true).write(true).open(&self.image).unwrap();
        let mut damaged = 0;
        let mut block = vec![0; size];
        for at in (0..image.metadata().unwrap().len()).step_by(size) {
            image.read_exact_at(&mut block, at).unwrap();
            if change(&mut block) {
                image.write_all_at(&block, at).unwrap();
                damaged += 1;
            }
        }
        drop(image);
        self.mount();
        damaged
    }

    fn fsid(&self) -> [u8; 16] {
        let mut fsid = [0; 16];
        File::open(&self.image).unwrap().read_exact_at(&mut fsid, SUPERBLOCK_FSID as u64).unwrap();
        fsid
    }
}

/// Copies the export with cp, which must fail, and extracts what it copied.
fn failed_copy(disk: &Disk, mounted: &Mounted) -> PathBuf {
    let copy = disk.fixture.path().join("copy.tar");
    let size = fs::metadata(mounted.tar("m")).unwrap().len();
    run(program("cp", [mounted.tar("m"), copy.clone()])).exits(1);
    Reader::check_torn(&copy, size);
    let directory = disk.fixture.scratch("extracted");
    Reader::Gnu.extract(&copy, &directory, "C");
    directory
}

/// An export, which must fail and name `path`.
fn failed_export(disk: &Disk, path: &str) {
    let output = disk.fixture.path().join("m.tar");
    let done = disk.fixture.run(["export", "m", "-o", output.to_str().unwrap()]).exits(1);
    assert!(done.err().contains(path), "{}", done.err());
    assert!(!output.exists(), "an export that is not whole has the name of a whole one");
    // All that could be read is kept under the name that the message has.
    let kept = disk.fixture.path().join("m.tar.partial");
    assert!(done.err().contains(&format!("what was written is {}", kept.display())));
    Reader::Gnu.list(&kept, "C");
    fs::remove_file(kept).unwrap();
}

fn read(root: &Path, path: &str) -> Vec<u8> {
    fs::read(root.join(path)).unwrap()
}

#[test]
fn a_file_that_the_disk_does_not_give_back_is_reported_and_the_others_are_right() {
    let disk = Disk::new();
    let place = disk.fixture.empty("m");
    let root = Maker::new(&place.rootfs);
    let files =
        [("a-before", 1, 40), ("bad-large", 2, 700), ("bad-small", 3, 1), ("z-after", 4, 40)];
    for (name, seed, blocks) in files {
        root.file(&format!("srv/{name}"), &content(seed, blocks));
    }
    drop(root);
    let bad = [(2, 350), (3, 0)];
    let starts = bad.map(|(seed, number)| content(seed, 700)[number * BLOCK..][..64].to_vec());
    let damaged = disk.damage(BLOCK, |block| {
        let is_bad = starts.iter().any(|start| block.starts_with(start));
        block[BLOCK / 2] ^= u8::from(is_bad);
        is_bad
    });
    assert_eq!(damaged, bad.len());

    let mounted = Mounted::new(&disk.fixture);
    let extracted = failed_copy(&disk, &mounted);
    let report = mounted.report("m");
    let changed: Vec<_> = report["changed"].as_array().unwrap().iter().collect();
    assert_eq!(changed.len(), 2, "{report}");
    for (line, name) in changed.into_iter().zip(["bad-large", "bad-small"]) {
        assert_eq!(line["path"], format!("/srv/{name}"));
        assert_eq!((&line["reason"], &line["torn"]), (&"unreadable".into(), &true.into()));
        let error = fs::read(mounted.rootfs("m").join("srv").join(name)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{name}");
    }
    for (name, seed, blocks) in files {
        let found = read(&extracted, &format!("srv/{name}"));
        // The kernel's requests begin anywhere in a member, at a block of the archive.
        let (found, whole) = (found.chunks(512), content(seed, blocks));
        let mut zeros = 0;
        for (at, (found, right)) in found.zip(whole.chunks(512)).enumerate() {
            let zero = found.iter().all(|byte| *byte == 0);
            zeros += usize::from(zero);
            assert!(zero || found == right, "{name}: block {at}");
            assert!(zero || !bad.contains(&(seed, at * 512 / BLOCK)), "{name}: block {at} is bad");
        }
        assert_eq!(zeros > 0, name.starts_with("bad"), "{name}: {zeros} blocks are zeros");
    }
    failed_export(&disk, "srv/bad-large");
    failed_export(&disk, "srv/bad-small");
    mounted.unmount();
}

/// Whether a directory cannot be listed to its end. Where btrfs notices depends on how the entries fell into leaves.
fn refuses(directory: &Path) -> bool {
    !fs::read_dir(directory).is_ok_and(|mut entries| entries.all(|entry| entry.is_ok()))
}

/// Whether a block of the disk is a leaf of nothing but entries of one directory.
fn is_leaf_of(node: &[u8], fsid: &[u8; 16], directory: u64) -> bool {
    let count = u32::from_le_bytes(node[NODE_ITEMS..][..4].try_into().unwrap()) as usize;
    let items = || node[NODE_HEADER..].chunks_exact(ITEM).take(count);
    node[NODE_FSID..].starts_with(fsid)
        && node[NODE_LEVEL] == 0
        && count > 0
        && items()
            .all(|item| item.starts_with(&directory.to_le_bytes()) && item[ITEM_TYPE] == DIR_INDEX)
}

#[test]
fn a_directory_that_the_disk_does_not_give_back_is_reported_and_the_others_are_right() {
    let disk = Disk::new();
    let place = disk.fixture.empty("m");
    let root = Maker::new(&place.rootfs);
    root.file("srv/a-before/file", &content(1, 3)).file("srv/z-after/file", &content(2, 3));
    for number in 0..2000 {
        root.file(&format!("srv/bad/entry-{number:0100}"), b"");
    }
    drop(root);
    let directory = fs::metadata(place.rootfs.join("srv/bad")).unwrap().ino();
    let fsid = disk.fsid();
    let damaged = disk.damage(NODE, |node| {
        let is_bad = is_leaf_of(node, &fsid, directory);
        node[NODE - 1] ^= u8::from(is_bad);
        is_bad
    });
    assert!(damaged > 0, "the directory has no leaf of its own");
    assert!(refuses(&place.rootfs.join("srv/bad")), "the disk gives the directory back");

    let mounted = Mounted::new(&disk.fixture);
    let extracted = failed_copy(&disk, &mounted);
    let report = mounted.report("m");
    let lines = report["left_out"]["lines"].as_array().unwrap();
    let line = lines.iter().find(|line| line["reason"] != "attribute").expect("a line");
    assert_eq!(
        (&line["path"], &line["reason"]),
        (&"/srv/bad".into(), &"unreadable".into()),
        "{report}"
    );
    assert_eq!(report["generation"]["complete"], false);
    for (name, seed) in [("a-before", 1), ("z-after", 2)] {
        assert!(read(&extracted, &format!("srv/{name}/file")) == content(seed, 3), "{name}");
    }
    assert!(refuses(&mounted.rootfs("m").join("srv/bad")), "half of a directory");
    failed_export(&disk, "srv/bad");
    mounted.unmount();
}

/// After this long a listing's attributes are read again (vfs/listing.rs).
const STALE: Duration = Duration::from_millis(600);

/// Names from a position of a directory on, as many as fit into one system call, and the position behind each.
fn names_from(directory: &File, position: u64, room: usize) -> Result<Vec<(String, u64)>, Errno> {
    rustix::fs::seek(directory, SeekFrom::Start(position))?;
    let mut buffer = vec![MaybeUninit::uninit(); room];
    let mut entries = RawDir::new(directory, &mut buffer);
    let mut names = Vec::new();
    while names.is_empty() || !entries.is_buffer_empty() {
        let Some(entry) = entries.next() else { break };
        let entry = entry?;
        names.push((entry.file_name().to_str().unwrap().to_owned(), entry.next_entry_cookie()));
    }
    Ok(names)
}

/// What a reader keeps of an open file, after a word.
const KEEPS: &str = "
import mmap, os, sys
file = open(sys.argv[1], 'rb')
mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
print('open', flush=True)
sys.stdin.readline()
print(len(mapped[:].strip(b'x')), os.fstat(file.fileno()).st_size, len(os.pread(file.fileno(), 10**6, 0)))
";

#[test]
fn a_name_whose_attributes_cannot_be_read_takes_nothing_from_who_has_the_file_open() {
    let fixture = Fixture::new();
    let disk = Faulty::new(&fixture.empty("m").rootfs);
    let mounted = Mounted::with(&fixture, &["--passthrough=no"]);
    let path = mounted.rootfs("m").join("d");
    let mut reader = program("python3", ["-c", KEEPS])
        .arg(path.join("bad"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(reader.stdout.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "open");
    let directory = File::open(&path).unwrap();
    let start = names_from(&directory, 0, 4096).unwrap();
    let [_, (_, before), (name, _), ..] = &start[..] else { panic!("{start:?}") };
    assert_eq!(name, "bad");
    std::thread::sleep(STALE);
    disk.is_broken(true);
    for number in 0..FILES {
        // After a lookup in it, the kernel asks for attributes with the next names.
        fs::symlink_metadata(path.join(format!("f{number}"))).unwrap();
        let names = names_from(&directory, *before, 4096).unwrap();
        assert_eq!(names[0].0, "bad", "left out: a copy would lack it without a word");
    }
    disk.is_broken(false);
    writeln!(reader.stdin.take().unwrap()).unwrap();
    let kept = said.next().unwrap_or_else(|| panic!("{}", reader.wait().unwrap())).unwrap();
    assert_eq!(kept, format!("0 {SIZE} {SIZE}"));
    reader.wait().unwrap();
    drop(directory);
    mounted.unmount();
}

#[test]
fn a_directory_whose_machine_is_gone_does_not_end_as_if_that_were_all() {
    let fixture = Fixture::new();
    let place = fixture.empty("m");
    for number in 0..200 {
        Maker::new(&place.rootfs).file(&format!("srv/f{number:03}"), b"");
    }
    let mounted = Mounted::new(&fixture);
    let path = mounted.rootfs("m").join("srv");
    let directory = File::open(&path).unwrap();
    let first = names_from(&directory, 0, 200).unwrap();
    assert!(first.len() < 20, "{first:?}");
    // The kernel asks for attributes with the next names.
    fs::symlink_metadata(path.join("f150")).unwrap();
    let above = place.rootfs.parent().unwrap();
    fs::rename(above, above.with_file_name("elsewhere")).unwrap();
    wait_until("the machine to be gone", || fs::symlink_metadata(path.join("f100")).is_err());
    std::thread::sleep(STALE);
    let rest = names_from(&directory, first.last().unwrap().1, 1 << 16);
    assert_eq!(rest, Err(Errno::STALE));
    drop(directory);
    mounted.unmount();
}
