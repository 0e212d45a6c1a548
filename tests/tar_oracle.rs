//! What other tars read in an archive: GNU tar, bsdtar, Python's tarfile and busybox, in two locales.
//!
//! A reader that warns has failed, and so has one that is not installed.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use codchifs::tar::{Kind, Layout, LayoutBuilder, Link, Member, MemberId, Options};
use proptest::prelude::*;

use readers::*;

#[path = "tar_oracle/readers.rs"]
mod readers;

#[derive(Clone, Debug)]
struct Entry {
    dir: prop::sample::Index,
    name: Vec<u8>,
    kind: u8,
    size: u64,
    target: Vec<u8>,
    mtime: (i64, u32),
}

fn text(max: usize) -> impl Strategy<Value = Vec<u8>> {
    let byte =
        prop_oneof![4 => prop::sample::select(b"ab.\n\\ \xff\xc3\xa4".to_vec()), 1 => 1u8..=255];
    let len = prop_oneof![4 => 1..20usize, 2 => 90..110usize, 1 => 1..=max];
    len.prop_flat_map(move |len| prop::collection::vec(byte.clone(), len))
}

fn entry() -> impl Strategy<Value = Entry> {
    let name = text(255).prop_map(|mut name| {
        name.iter_mut().filter(|byte| **byte == b'/').for_each(|byte| *byte = b'_');
        name
    });
    let mtime = (prop_oneof![3 => 0..1i64 << 33, 1 => -9i64..1 << 40], 0..1_000_000_000u32);
    (any::<prop::sample::Index>(), name, 0..5u8, 0..1500u64, text(300), mtime).prop_map(
        |(dir, name, kind, size, target, mtime)| Entry { dir, name, kind, size, target, mtime },
    )
}

/// Pushes what is valid; names are unique in their directory.
fn layout(entries: &[Entry], options: Options) -> Layout<()> {
    let mut builder = LayoutBuilder::new(options);
    let mut dirs = vec![None];
    let mut files = Vec::new();
    let mut names = HashSet::new();
    for entry in entries {
        let parent = dirs[entry.dir.index(dirs.len())];
        if !names.insert((parent, entry.name.clone())) {
            continue;
        }
        let (kind, link) = match (entry.kind, files.last()) {
            (0 | 1, _) => (Kind::Directory, Link::None),
            (3, _) => (Kind::Symlink, Link::Symlink(&entry.target)),
            (4, Some(first)) => (Kind::HardLink, Link::Hard(*first)),
            _ => (Kind::File, Link::None),
        };
        let (size, mtime) = (entry.size, entry.mtime);
        let pushed =
            builder.push(&Member { parent, link, size, mtime, ..member(&entry.name, kind) });
        match (pushed, kind) {
            (Ok(id), Kind::Directory) => dirs.push(Some(id)),
            (Ok(id), Kind::File) => files.push(id),
            _ => {}
        }
    }
    builder.finish()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_name_is_read_as_it_is(
        entries in prop::collection::vec(entry(), 1..60),
        mtime_ns: bool,
    ) {
        let layout = layout(&entries, Options { mtime_ns, align: None });
        let mut path = Vec::new();
        let short = layout.iter().all(|id| {
            layout.path(id, &mut path);
            path.len() + 3 <= BUSYBOX_LONGEST
        });
        assert_names(&layout, short);
    }

    #[test]
    fn what_is_extracted_is_what_was_pushed(mut entries in prop::collection::vec(entry(), 1..40)) {
        // GNU tar warns of times in the future and of times that the file system cannot hold.
        entries.iter_mut().for_each(|entry| entry.mtime.0 = entry.mtime.0.rem_euclid(1 << 30));
        let layout = layout(&entries, Options::default());
        let mut path = Vec::new();
        // No system call takes a longer path; bsdtar gets around that, but we compare by path.
        prop_assume!(layout.iter().all(|id| {
            layout.path(id, &mut path);
            path.len() < 3500
        }));
        for argv in [["tar", "-xpf", "-"], ["bsdtar", "-xpf", "-"]] {
            let dir = tempfile::tempdir().unwrap();
            run(&layout, Pattern, "C.UTF-8", dir.path(), &argv);
            assert_extracted(&layout, dir.path(), argv[0]);
        }
    }
}

fn assert_extracted(layout: &Layout<()>, root: &Path, reader: &str) {
    let mut path = Vec::new();
    for id in layout.iter() {
        layout.path(id, &mut path);
        let place = root.join(OsStr::from_bytes(&path));
        let meta = fs::symlink_metadata(&place)
            .unwrap_or_else(|error| panic!("{reader}: {}: {error}", place.display()));
        match layout.kind(id) {
            Kind::Directory => assert!(meta.is_dir(), "{reader}"),
            Kind::Symlink => assert!(meta.is_symlink(), "{reader}"),
            Kind::File => {
                let body = fs::read(&place).unwrap();
                assert_eq!(body.len() as u64, layout.size_of(id), "{reader}");
                assert!(body.iter().zip(0..).all(|(byte, at)| *byte == pattern(id, at)));
            }
            _ => assert!(meta.is_file(), "{reader}"),
        }
    }
}

/// Members of every kind, and names and targets at the lengths where the form changes.
fn every_form(deep: bool) -> Layout<()> {
    let mut builder = LayoutBuilder::new(Options::default());
    let mut push = |member: Member<'_, ()>| builder.push(&member).unwrap();
    let long = [b'n'; 255];
    let mut parent = None;
    for len in [97, 98, 99, 100, 101, 255] {
        push(Member { size: 513, ..member(&long[..len], Kind::File) });
    }
    let first = push(Member { size: 512, ..member(b"first", Kind::File) });
    push(Member { link: Link::Hard(first), ..member(b"second", Kind::HardLink) });
    for len in [1, 99, 100, 101, 102, BUSYBOX_LONGEST] {
        let target = vec![b't'; len];
        let name = format!("link{len}");
        push(Member { link: Link::Symlink(&target), ..member(name.as_bytes(), Kind::Symlink) });
    }
    push(Member { rdev: (4, 64), ..member(b"char", Kind::CharDevice) });
    push(Member { rdev: (8, 1_048_575), ..member(b"block", Kind::BlockDevice) });
    push(member(b"fifo", Kind::Fifo));
    // The path passes every length from 153 to 160 and from 255 to 259 bytes, then 4096.
    for len in [1, 49, 49, 45, 1, 1, 1, 2, 2, 90, 1, 1, 1, 1] {
        parent = Some(push(Member { parent, ..member(&long[..len], Kind::Directory) }));
        for len in [1, 50, 94, 95, 96, 97, 98, 99, 100, 101] {
            push(Member { parent, ..member(&long[1..=len], Kind::File) });
        }
    }
    if !deep {
        return builder.finish();
    }
    // The longest target that Linux has, and paths longer than any system call takes.
    push(Member { link: Link::Symlink(&[b't'; 4095]), ..member(b"longest", Kind::Symlink) });
    for _ in 0..17 {
        parent = Some(push(Member { parent, ..member(&long, Kind::Directory) }));
    }
    let deep = push(Member { parent, size: 1, ..member(b"deep", Kind::File) });
    push(Member { link: Link::Hard(deep), ..member(b"deep link", Kind::HardLink) });
    builder.finish()
}

#[test]
fn every_form_is_read() {
    assert_names(&every_form(false), true);
    let layout = every_form(true);
    assert_names(&layout, false);
    let lines = python(&layout, Pattern, "C");
    let mut path = Vec::new();
    for (id, line) in layout.iter().zip(lines) {
        layout.path(id, &mut path);
        let fields: Vec<&str> = line.split(' ').collect();
        let perm = if layout.kind(id) == Kind::Directory { "755" } else { "644" };
        assert_eq!(fields[2..5], [perm, "1000", "100"]);
        // A PAX header, which the last member has, makes it a fraction.
        assert_eq!(fields[6].trim_end_matches(".0"), "1700000000");
        assert_eq!(fields[5], layout.size_of(id).to_string());
        assert_eq!(fields[10], "");
        match path.as_slice() {
            b"second" => assert_eq!(fields[7], hex(b"./first")),
            b"link4094" => assert_eq!(fields[7], hex(&[b't'; 4094])),
            b"longest" => assert_eq!(fields[7], hex(&[b't'; 4095])),
            b"link100" => assert_eq!(fields[7], hex(&[b't'; 100])),
            b"char" => assert_eq!(fields[8..10], ["4", "64"]),
            b"block" => assert_eq!(fields[8..10], ["8", "1048575"]),
            _ => {}
        }
    }
}

/// What only a PAX header and base-256 hold.
fn big_numbers() -> Layout<()> {
    let mut builder = LayoutBuilder::new(Options::default());
    let mut push = |member: Member<'_, ()>| builder.push(&member).unwrap();
    let nsec = 500_000_000;
    push(Member { uid: 2_097_151, gid: 2_097_152, ..member(b"ids", Kind::File) });
    push(Member { uid: u32::MAX - 1, gid: u32::MAX - 1, ..member(b"top", Kind::Directory) });
    push(Member { mtime: (-5, 0), ..member(b"old", Kind::File) });
    push(Member { mtime: (1 << 40, 0), ..member(b"new", Kind::File) });
    push(Member { mtime: ((1 << 33) - 1, nsec), ..member(b"fits", Kind::File) });
    push(Member { mtime: (77, nsec), uid: 1 << 21, ..member(b"exact", Kind::File) });
    push(Member { size: 1, mtime: (-2, nsec), ..member(&[b'l'; 200], Kind::File) });
    let link = Link::Symlink(&[b't'; 200]);
    push(Member { link, gid: 1 << 31, ..member(&[b's'; 200], Kind::Symlink) });
    let rdev = (1 << 21, i32::MAX as u32);
    push(Member { rdev, ..member(b"device", Kind::BlockDevice) });
    let huge = push(Member { size: 9 << 30, uid: 1 << 31, ..member(&[b'h'; 200], Kind::File) });
    push(Member { link: Link::Hard(huge), uid: 1 << 31, ..member(b"again", Kind::HardLink) });
    push(Member { size: (8 << 30) - 1, ..member(b"limit", Kind::File) });
    push(Member { size: 3, ..member(b"last", Kind::File) });
    builder.finish()
}

/// Per member of [`big_numbers`]: uid, gid, size, mtime as GNU tar, busybox and Python show it.
const BIG_NUMBERS: [(u64, u64, u64, &str, &str, f64); 13] = [
    (2_097_151, 2_097_152, 0, "22:13:20", "22:13:20", 1.7e9),
    (4_294_967_294, 4_294_967_294, 0, "22:13:20", "22:13:20", 1.7e9),
    (1000, 100, 0, "23:59:55", "23:59:55", -5.0),
    (1000, 100, 0, "00:36:16", "00:36:16", 1_099_511_627_776.0),
    (1000, 100, 0, "12:56:31", "12:56:31", 8_589_934_591.0),
    (2_097_152, 100, 0, "00:01:17.5", "00:01:17", 77.5),
    // GNU tar shows -1.5 like this, but sets the right time when it extracts.
    (1000, 100, 1, "23:59:59.5", "23:59:58", -1.5),
    (1000, 2_147_483_648, 0, "22:13:20", "22:13:20", 1.7e9),
    (1000, 100, 0, "22:13:20", "22:13:20", 1.7e9),
    (2_147_483_648, 100, 9 << 30, "22:13:20", "22:13:20", 1.7e9),
    (2_147_483_648, 100, 0, "22:13:20", "22:13:20", 1.7e9),
    (1000, 100, (8 << 30) - 1, "22:13:20", "22:13:20", 1.7e9),
    (1000, 100, 3, "22:13:20", "22:13:20", 1.7e9),
];

#[test]
fn big_numbers_are_read() {
    let layout = big_numbers();
    let file = sparse(&layout);
    let python_file = PYTHON.replace("fileobj=sys.stdin.buffer, mode=\"r|\"", "name=sys.argv[1]");
    for locale in LOCALES {
        let list = |argv: &[&str]| words(file.path(), locale, argv);
        let gnu = list(&["tar", "--numeric-owner", "--full-time", "-tvf"]);
        let bsdtar = list(&["bsdtar", "--numeric-owner", "-tvf"]);
        let busybox = list(&["busybox", "tar", "-tvf"]);
        let python = list(&["python3", "-c", &python_file]);
        for lines in [&gnu, &bsdtar, &busybox, &python] {
            assert_eq!(lines.len(), BIG_NUMBERS.len());
        }
        for (index, (uid, gid, size, gnu_time, busybox_time, time)) in
            BIG_NUMBERS.into_iter().enumerate()
        {
            let owner = format!("{uid}/{gid}");
            let [uid, gid, size] = [uid, gid, size].map(|number| number.to_string());
            assert_eq!(python[index][3..6], [uid.clone(), gid.clone(), size.clone()]);
            assert_eq!(python[index][6].parse(), Ok(time));
            assert_eq!(bsdtar[index][2..4], [uid, gid]);
            assert_eq!([&gnu[index][1], &gnu[index][4]], [&owner, gnu_time]);
            assert_eq!([&busybox[index][1], &busybox[index][4]], [&owner, busybox_time]);
            if layout.kind(MemberId(index as u32)) != Kind::BlockDevice {
                assert_eq!([&gnu[index][2], &bsdtar[index][4], &busybox[index][2]], [&size; 3]);
            } else {
                let numbers = "2097152,2147483647";
                assert_eq!([&gnu[index][2], &bsdtar[index][4]], [numbers; 2]);
                assert_eq!(python[index][7..9], ["2097152", "2147483647"]);
            }
        }
    }
}

#[test]
fn extracted_times_are_exact() {
    let mut builder = LayoutBuilder::new(Options { mtime_ns: true, align: None });
    let times = [(1_700_000_000, 1), (1_700_000_000, 999_999_999), (77, 0), (5, 500_000_000)];
    let names = ["a", "b", "c", "d"];
    for (name, mtime) in names.into_iter().zip(times) {
        builder.push(&Member { mtime, ..member(name.as_bytes(), Kind::File) }).unwrap();
    }
    let layout = builder.finish();
    for argv in [["tar", "-xpf", "-"], ["bsdtar", "-xpf", "-"]] {
        let dir = tempfile::tempdir().unwrap();
        run(&layout, Pattern, "C", dir.path(), &argv);
        for (name, (sec, nsec)) in names.into_iter().zip(times) {
            let meta = fs::metadata(dir.path().join(name)).unwrap();
            assert_eq!((meta.mtime(), meta.mtime_nsec()), (sec, i64::from(nsec)), "{argv:?}");
        }
    }
}
