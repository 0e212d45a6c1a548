//! Layout and reader against each other, and a few headers against their exact bytes.

use std::convert::Infallible;

use proptest::prelude::*;

use super::*;

/// Every byte of a body follows from the tag and the offset.
struct Pattern;

fn pattern(tag: u64, offset: u64) -> u8 {
    ((tag << 40 ^ offset).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

impl Source<u64> for Pattern {
    type Error = Infallible;

    fn read_body(
        &self,
        layout: &Layout<u64>,
        member: MemberId,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), Infallible> {
        assert!(!buf.is_empty() && offset + buf.len() as u64 <= layout.size_of(member));
        let tag = *layout.tag(member).unwrap();
        for (byte, at) in buf.iter_mut().zip(offset..) {
            *byte = pattern(tag, at);
        }
        Ok(())
    }
}

fn member(name: &[u8], kind: Kind) -> Member<'_, u64> {
    Member {
        parent: None,
        name,
        kind,
        perm: 0o644,
        uid: 0,
        gid: 0,
        size: 0,
        extents: None,
        records: &[],
        mtime: (0, 0),
        link: Link::None,
        rdev: (0, 0),
        tag: 0,
    }
}

/// A layout of a member, and of one behind it: the last one is made to end at a page.
fn one(first: &Member<'_, u64>) -> Result<Layout<u64>, LayoutError> {
    let mut builder = LayoutBuilder::new(Options::default());
    builder.push(first)?;
    builder.push(&member(b"last", Kind::Fifo))?;
    Ok(builder.finish())
}

fn read(layout: &Layout<u64>, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0xaa; len];
    let Ok(len) = read_at(layout, &Pattern, offset, &mut buf);
    buf.truncate(len);
    buf
}

type Entry = (prop::sample::Index, Vec<u8>, u8, u64, (u32, i64, u32), usize);

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let name = prop_oneof![Just(1..20usize), Just(40..60), Just(90..110), Just(1..255)]
        .prop_flat_map(|len| prop::collection::vec(b'a'..=b'z', len));
    let size = prop_oneof![Just(0u64), Just(512), Just(4096), 0..3000u64];
    let uid = prop_oneof![4 => 0..2000u32, 1 => any::<u32>()];
    let sec = prop_oneof![4 => 0..1i64 << 33, 1 => any::<i64>()];
    let numbers = (uid, sec, 0..1_000_000_000u32);
    let entry = (any::<prop::sample::Index>(), name, 0..8u8, size, numbers, 1..300usize);
    prop::collection::vec(entry, 0..40)
}

fn build(entries: &[Entry], options: Options) -> Layout<u64> {
    let mut builder = LayoutBuilder::new(options);
    let mut dirs = vec![None];
    let mut files = vec![];
    for (tag, (dir, name, kind, size, (uid, sec, nsec), target)) in (0..).zip(entries) {
        let target = vec![b't'; *target];
        // A byte of data, a hole, and whatever is left, in blocks.
        let holes =
            [Extent { offset: 512, len: 1024 }, Extent { offset: 4096, len: size % 777 + 1 }];
        let (sparse, size) = match kind {
            6 if size % 2 == 0 => (Some(&holes[..]), holes[1].end()),
            6 => (Some(&[][..]), *size),
            _ => (None, *size),
        };
        let value = vec![b'v'; target.len() % 600];
        let record = [(&b"SCHILY.xattr.user.a"[..], &value[..]), (b"b", b"\0")];
        let records = if target.len() % 3 == 0 { &record[..target.len() % 2 + 1] } else { &[] };
        let (kind, link) = match (kind, files.last()) {
            (0 | 1, _) => (Kind::Directory, Link::None),
            (2, _) => (Kind::Symlink, Link::Symlink(&target)),
            (3, Some(first)) => (Kind::HardLink, Link::Hard(*first)),
            (4, _) => (Kind::CharDevice, Link::None),
            (5, _) => (Kind::Fifo, Link::None),
            _ => (Kind::File, Link::None),
        };
        let (parent, mtime) = (dirs[dir.index(dirs.len())], (*sec, *nsec));
        let member = Member { parent, link, mtime, uid: *uid, size, tag, ..member(name, kind) };
        let member = Member { extents: sparse, records, ..member };
        let id = builder.push(&member).unwrap();
        match kind {
            Kind::Directory => dirs.push(Some(id)),
            Kind::File => files.push(id),
            _ => {}
        }
    }
    builder.finish()
}

proptest! {
    #[test]
    fn read_at_any_offset_equals_the_stream(
        entries in entries(),
        mtime_ns: bool,
        align in prop_oneof![Just(None), Just(Some(1)), Just(Some(1000))],
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0..9000usize), 1..40),
    ) {
        let layout = build(&entries, Options { mtime_ns, align });
        let whole = read(&layout, 0, layout.size() as usize + 7);
        prop_assert_eq!(whole.len() as u64, layout.size());
        for (offset, len) in cuts {
            let offset = offset.index(whole.len() + 1);
            let end = whole.len().min(offset + len);
            prop_assert!(read(&layout, offset as u64, len) == whole[offset..end]);
        }
    }

    #[test]
    fn segments_tile_the_archive(entries in entries(), mtime_ns: bool, align: bool) {
        let layout = build(&entries, Options { mtime_ns, align: align.then_some(600) });
        let mut offset = 0;
        let mut headers = vec![];
        while let Some(segment) = layout.find(offset) {
            prop_assert_eq!(segment.start, offset);
            prop_assert!(segment.len > 0);
            for inside in [segment.start, segment.start + segment.len / 2, segment.end() - 1] {
                prop_assert_eq!(layout.find(inside), Some(segment));
            }
            if let Part::Header(member) = segment.part {
                prop_assert_eq!(segment.start % 512, 0);
                prop_assert_eq!(segment.end(), layout.body_start(member));
                let mut scratch = super::layout::Scratch::default();
                prop_assert_eq!(layout.header(member, &mut scratch).len() as u64, segment.len);
                headers.push(member);
            }
            offset = segment.end();
        }
        prop_assert_eq!(offset, layout.size());
        prop_assert_eq!(headers, layout.iter().collect::<Vec<_>>());
    }

    #[test]
    fn large_bodies_begin_at_a_page_when_they_are_to(entries in entries(), mtime_ns: bool) {
        let layout = build(&entries, Options { mtime_ns, align: Some(600) });
        let plain = build(&entries, Options { mtime_ns, align: None });
        for run in layout.runs(1) {
            let whole = layout.extents(run.member).is_none();
            prop_assert!(run.len < 600 || !whole || run.start % 4096 == 0, "{:?}", run);
            let mut bytes = [vec![0; run.len as usize], vec![0; run.len as usize]];
            let Ok(_) = read_at(&layout, &Pattern, run.start, &mut bytes[0]);
            let Ok(()) = Pattern.read_body(&layout, run.member, run.offset, &mut bytes[1]);
            prop_assert_eq!(&bytes[0], &bytes[1]);
        }
        let len = |layout: &Layout<u64>| layout.runs(1).map(|run| run.len).sum::<u64>();
        prop_assert_eq!(len(&layout), len(&plain));
        // It may even be smaller: what fills the last page is not needed where the end is at a page anyway.
        prop_assert!(layout.size() <= plain.size() + 4096 * (layout.len() as u64 + 1));
    }

    #[test]
    fn the_last_page_is_all_trailer(entries in entries()) {
        let layout = build(&entries, Options::default());
        prop_assert_eq!(layout.size() % 4096, 0);
        prop_assert_eq!(layout.last_page() + 4096, layout.size());
        let trailer = layout.find(layout.last_page()).unwrap();
        prop_assert_eq!(trailer.part, Part::Trailer);
        prop_assert_eq!(trailer.end(), layout.size());
        // A reader that stops at the first zero block has come to the last page.
        prop_assert_eq!(trailer.start, layout.last_page());
        prop_assert!(read(&layout, layout.last_page(), 4096).iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_layout_of_many_is_small() {
    let mut builder = LayoutBuilder::new(Options::default());
    let count = 100_000u32;
    for number in 0..count {
        let name = format!("a-name-of-16-{:03}", number % 1000);
        let member = Member {
            parent: None,
            name: name.as_bytes(),
            kind: Kind::File,
            perm: 0o644,
            uid: number % 50,
            gid: 100,
            size: 1,
            extents: None,
            records: &[],
            mtime: (1, 1),
            link: Link::None,
            rdev: (0, 0),
            tag: [0u64; 3],
        };
        builder.push(&member).unwrap();
    }
    let each = builder.finish().heap_bytes() as f64 / f64::from(count);
    assert!(each <= 89.0, "{each} bytes per member");
}

#[test]
fn an_empty_archive_is_one_page() {
    let layout = build(&[], Options::default());
    assert_eq!((layout.size(), layout.last_page()), (4096, 0));
    assert_eq!(read(&layout, 0, 5000), [0; 4096]);
}

#[test]
fn pax_records_are_exact() {
    let layout = one(&Member { mtime: (-2, 500_000_000), ..member(b"x", Kind::File) }).unwrap();
    let bytes = read(&layout, 0, 1536);
    assert_eq!(&bytes[..15], b"././@PaxHeader\0");
    assert_eq!(bytes[156], b'x');
    assert_eq!(&bytes[512..536], b"22 mtime=-1.500000000\n\0\0");
    assert_eq!(&bytes[1024..1028], b"./x\0");
    assert_eq!(bytes[1024 + 136..1024 + 148], [vec![0xff; 11], vec![0xfe]].concat());
    for (sec, text) in
        [(-1, "22 mtime=-0.500000000\n"), (i64::MIN, "40 mtime=-9223372036854775807.500000000\n")]
    {
        let layout =
            one(&Member { mtime: (sec, 500_000_000), ..member(b"x", Kind::File) }).unwrap();
        assert_eq!(read(&layout, 512, text.len()), text.as_bytes());
    }
}

/// Flags of the header blocks of a member.
fn flags(member: &Member<'_, u64>) -> Vec<u8> {
    let layout = one(member).unwrap();
    let bytes = read(&layout, 0, layout.body_start(MemberId(0)) as usize);
    let mut flags = Vec::new();
    let mut at = 0;
    while let Some(block) = bytes.get(at..at + 512) {
        flags.push(block[156]);
        let body = match b"xKL".contains(&block[156]) {
            true => std::str::from_utf8(&block[124..135]).unwrap(),
            false => "0",
        };
        let body = usize::from_str_radix(body, 8).unwrap();
        at += 512 + body.next_multiple_of(512);
    }
    flags
}

#[test]
fn the_header_of_a_size_comes_behind_the_names() {
    let long = [b'n'; 170];
    let file = Member { uid: 3_000_000, ..member(&long, Kind::File) };
    assert_eq!(flags(&file), b"xL0");
    assert_eq!(flags(&Member { size: 8 << 30, ..file }), b"Lx0");
    let link = Member { link: Link::Symlink(&long), kind: Kind::Symlink, ..file };
    assert_eq!(flags(&link), b"xKL2");
}

#[test]
fn a_sparse_file_is_its_map_and_its_data() {
    let extents = [Extent { offset: 512, len: 512 }, Extent { offset: 4096, len: 3 }];
    let file = Member { size: 4099, extents: Some(&extents), ..member(b"x", Kind::File) };
    let layout = one(&file).unwrap();
    let bytes = read(&layout, 0, layout.size() as usize);
    let records = "21 mtime=0.000000000\n22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n\
                   28 GNU.sparse.realsize=4099\n";
    assert_eq!(std::str::from_utf8(&bytes[512..512 + records.len()]).unwrap(), records);
    assert_eq!(&bytes[1024 + 124..1024 + 136], b"00000002003\0");
    let map = b"3\n512\n512\n4096\n3\n4099\n0\n\0";
    assert_eq!(&bytes[1536..1536 + map.len()], map);
    assert_eq!((layout.body_start(MemberId(0)), layout.size_of(MemberId(0))), (2048, 4099));
    let data: Vec<u8> = (512..1024).chain(4096..4099).map(|at| pattern(0, at)).collect();
    assert_eq!(bytes[2048..2048 + 515], data);
    assert_eq!(layout.extents(MemberId(0)), Some(extents.to_vec()));
    for bad in [
        &[Extent { offset: 1, len: 511 }][..],
        &[Extent { offset: 0, len: 5 }],
        &[Extent { offset: 0, len: 0 }],
        &[Extent { offset: 4096, len: 512 }],
        &[Extent { offset: 512, len: 512 }, Extent { offset: 512, len: 512 }],
    ] {
        let refused = one(&Member { extents: Some(bad), ..file }).unwrap_err();
        assert_eq!(refused, LayoutError::Holes { name: "x".into() }, "{bad:?}");
    }
}

#[test]
fn records_stand_in_the_pax_header_and_equal_ones_once_in_memory() {
    let value = [b'v'; 5000];
    let records = [(&b"SCHILY.xattr.user.a"[..], &value[..])];
    let layout = one(&Member { records: &records, ..member(b"x", Kind::File) }).unwrap();
    let bytes = read(&layout, 512, 6000);
    let expected =
        [b"21 mtime=0.000000000\n5026 SCHILY.xattr.user.a=", &value[..], b"\n\0"].concat();
    assert_eq!(bytes[..expected.len()], expected);
    let mut builder = LayoutBuilder::new(Options::default());
    for name in ["a", "b", "c", "d"] {
        builder.push(&Member { records: &records, ..member(name.as_bytes(), Kind::File) }).unwrap();
    }
    assert!(builder.finish().heap_bytes() < 6000);
    for key in [&b""[..], b"a=b"] {
        let records = [(key, &value[..])];
        let refused = one(&Member { records: &records, ..member(b"x", Kind::File) }).unwrap_err();
        assert_eq!(refused, LayoutError::Keyword { name: "x".into() });
    }
}

#[test]
fn a_plain_header_is_one_block() {
    let layout = one(&Member { mtime: (8, 9), size: 3, ..member(b"x", Kind::File) }).unwrap();
    let bytes = read(&layout, 0, 512);
    assert_eq!(layout.body_start(MemberId(0)), 512);
    assert_eq!(&bytes[100..108], b"0000644\0");
    assert_eq!(&bytes[124..148], b"00000000003\x0000000000010\0");
    assert_eq!(&bytes[148..157], b"007526\0 0");
    assert_eq!(&bytes[257..266], b"ustar\x0000\0");
}

#[test]
fn what_cannot_be_archived_is_an_error() {
    let of = |member: Member<'_, u64>| one(&member).unwrap_err();
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'a'; 65536]] {
        assert!(matches!(of(member(name, Kind::File)), LayoutError::Name { .. }));
    }
    let lost = Member { parent: Some(MemberId(0)), ..member(b"x", Kind::File) };
    assert!(matches!(of(lost), LayoutError::Parent { .. }));
    for (kind, link) in [
        (Kind::Symlink, Link::None),
        (Kind::Symlink, Link::Symlink(b"")),
        (Kind::Symlink, Link::Symlink(b"a\0")),
        (Kind::HardLink, Link::Hard(MemberId(0))),
        (Kind::File, Link::Symlink(b"a")),
    ] {
        assert!(matches!(of(Member { link, ..member(b"x", kind) }), LayoutError::Link { .. }));
    }
    let late = Member { mtime: (0, 1_000_000_000), ..member(b"x", Kind::File) };
    assert!(matches!(of(late), LayoutError::Time { .. }));
    let device = Member { rdev: (0, 1 << 31), ..member(b"x", Kind::CharDevice) };
    assert!(matches!(of(device), LayoutError::Device { .. }));
    for size in [u64::MAX, u64::MAX - 1024, i64::MAX as u64, i64::MAX as u64 - 4096] {
        let huge = Member { size, ..member(b"x\n", Kind::File) };
        assert_eq!(of(huge), LayoutError::Size { name: "x\\x0a".to_owned(), size });
    }
}

#[test]
fn a_refused_member_changes_nothing() {
    let mut builder = LayoutBuilder::new(Options::default());
    builder.push(&member(b"a", Kind::File)).unwrap();
    builder.push(&Member { size: u64::MAX, ..member(b"b", Kind::File) }).unwrap_err();
    assert_eq!(builder.push(&member(b"c", Kind::File)), Ok(MemberId(1)));
    builder.push(&Member { size: u64::MAX, ..member(b"b", Kind::File) }).unwrap_err();
    let layout = builder.finish();
    assert_eq!(layout.body_start(MemberId(0)), 512);
    // With a PAX header, for the end of the page.
    assert_eq!((layout.body_start(MemberId(1)), layout.size()), (4096, 8192));
}

#[test]
fn the_digest_sees_bytes_and_tags() {
    let digest = |member: Member<'_, u64>| {
        one(&member).unwrap().digest(|tag, hash| hash.update(&tag.to_le_bytes()))
    };
    let base = Member { link: Link::Symlink(b"t"), ..member(b"x", Kind::Symlink) };
    let others = [
        base,
        Member { name: b"xt", ..base },
        Member { link: Link::Symlink(b"u"), ..base },
        Member { uid: 1, ..base },
        Member { gid: 1, ..base },
        Member { perm: 0, ..base },
        Member { mtime: (1, 0), ..base },
        Member { records: &[(b"a", b"b")], ..base },
        Member { tag: 1, ..base },
        member(b"x", Kind::File),
        Member { extents: Some(&[]), ..member(b"x", Kind::File) },
        member(b"x", Kind::Fifo),
    ];
    let mut digests = others.map(digest).to_vec();
    assert_eq!(digests[0], digest(base));
    // Nanoseconds that no header shows are not part of the archive.
    assert_eq!(digests[0], digest(Member { mtime: (0, 1), ..base }));
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), others.len());
}

#[test]
fn a_foreign_number_is_an_empty_directory() {
    let layout = build(&[], Options::default());
    let id = MemberId(7);
    assert_eq!((layout.tag(id), layout.parent(id)), (None, None));
    assert_eq!((layout.name(id), layout.kind(id)), (&[][..], Kind::Directory));
    assert_eq!((layout.size_of(id), layout.body_start(id)), (0, layout.size()));
}

#[test]
fn a_file_whose_size_was_not_known_yet_gets_its_place_afterwards() {
    let numbered = |name, size, tag| Member { size, tag, ..member(name, Kind::File) };
    for last in [false, true] {
        for (before, after) in [(0, 1), (700, 0), (512, 513), (10, 500), (0, 4096)] {
            let layout = |size, tag| {
                let mut builder = LayoutBuilder::new(Options::default());
                builder.push(&numbered(b"a", 1000, 1)).unwrap();
                let late = builder.push(&numbered(b"b", size, tag)).unwrap();
                if !last {
                    builder.push(&numbered(b"c", 3, 3)).unwrap();
                    builder.push(&numbered(b"d", 9000, 4)).unwrap();
                }
                (builder, late)
            };
            let (mut builder, late) = layout(before, 7);
            builder.replace(late, after, 2).unwrap();
            let (found, expected) = (builder.finish(), layout(after, 2).0.finish());
            let all = |layout: &Layout<u64>| read(layout, 0, layout.size() as usize);
            assert!(all(&found) == all(&expected), "{before} -> {after}, {last}");
        }
    }
}
