//! A random layout, read in random pieces.
//!
//! The pieces are the whole, the size is exact, and the segments tile the archive.
#![no_main]

use arbitrary::Arbitrary;
use codchifs::tar::{
    Extent, Kind, Layout, LayoutBuilder, Link, Member, MemberId, Options, Source, read_at,
};
use libfuzzer_sys::fuzz_target;
use std::convert::Infallible;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    mtime_ns: bool,
    align: Option<u16>,
    entries: Vec<Entry<'a>>,
    cuts: Vec<(u32, u16)>,
}

#[derive(Arbitrary, Debug)]
struct Entry<'a> {
    parent: u8,
    name: &'a [u8],
    /// The name is repeated.
    times: u8,
    kind: u8,
    size: u16,
    ids: (u32, u32),
    mtime: (i64, u32),
    target: &'a [u8],
    value: Option<&'a [u8]>,
    holes: Vec<(u16, u16)>,
    perm: u16,
    rdev: (u32, u32),
}

/// Every byte of a body follows from the tag and the offset.
struct Pattern;

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
            *byte = ((tag << 40 ^ at).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 | 1;
        }
        Ok(())
    }
}

fn build(input: &Input<'_>) -> Layout<u64> {
    let align = input.align.map(u64::from);
    let mut builder = LayoutBuilder::new(Options { mtime_ns: input.mtime_ns, align });
    let (mut dirs, mut files) = (vec![None], vec![]);
    for (tag, entry) in (0..).zip(input.entries.iter().take(40)) {
        let name = entry.name.repeat(usize::from(entry.times % 9) + 1);
        let mut extents = vec![];
        let mut at = 0;
        for (hole, len) in &entry.holes {
            extents.push(Extent { offset: at + u64::from(*hole), len: u64::from(*len) });
            at += u64::from(*hole) + u64::from(*len);
        }
        let sparse = entry.kind % 8 == 7;
        let (kind, link) = match (entry.kind % 8, files.last()) {
            (0 | 1, _) => (Kind::Directory, Link::None),
            (2, _) => (Kind::Symlink, Link::Symlink(entry.target)),
            (3, Some(first)) => (Kind::HardLink, Link::Hard(*first)),
            (4, _) => (Kind::CharDevice, Link::None),
            (5, _) => (Kind::Fifo, Link::None),
            _ => (Kind::File, Link::None),
        };
        let record = entry.value.map(|value| [(&b"SCHILY.xattr.user.a"[..], value)]);
        let member = Member {
            parent: dirs[usize::from(entry.parent) % dirs.len()],
            name: &name,
            kind,
            perm: entry.perm,
            uid: entry.ids.0,
            gid: entry.ids.1,
            size: if sparse { at } else { u64::from(entry.size) },
            extents: sparse.then_some(&extents[..]),
            records: record.as_ref().map_or(&[], |record| &record[..]),
            mtime: entry.mtime,
            link,
            rdev: entry.rdev,
            tag,
        };
        // It refuses what no archive can hold.
        let Ok(id) = builder.push(&member) else { continue };
        match kind {
            Kind::Directory => dirs.push(Some(id)),
            Kind::File => files.push(id),
            _ => {}
        }
    }
    builder.finish()
}

fuzz_target!(|input: Input<'_>| {
    let layout = build(&input);
    let size = layout.size() as usize;
    assert!(size <= 64 << 20 && size.is_multiple_of(4096));
    let mut whole = vec![0xaa; size + 1];
    let Ok(read) = read_at(&layout, &Pattern, 0, &mut whole);
    assert_eq!(read, size);
    whole.truncate(size);
    let mut piece = vec![0; 1 << 16];
    for (offset, len) in input.cuts.iter().take(20) {
        let offset = *offset as usize % (size + 1);
        let Ok(read) = read_at(&layout, &Pattern, offset as u64, &mut piece[..usize::from(*len)]);
        assert_eq!(read, usize::from(*len).min(size - offset));
        assert!(piece[..read] == whole[offset..offset + read]);
    }
    let mut at = 0;
    while let Some(segment) = layout.find(at) {
        assert!(segment.start == at && segment.len > 0);
        at = segment.end();
    }
    assert_eq!(at, layout.size());
    assert!(whole[size - 4096..].iter().all(|byte| *byte == 0));
});
