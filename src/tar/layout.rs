//! Members and their places in the archive.

use std::ops::Range;

use xxhash_rust::xxh3::Xxh3;

use super::header::{BLOCK, Fields, Header};
use super::{Extent, Kind};

mod builder;
mod error;
mod record;
mod scratch;

pub use builder::{LayoutBuilder, MAX_PATH, MAX_RECORDS, Options};
pub use error::LayoutError;
pub(super) use scratch::Scratch;

use record::{ROOT, Record, UNKNOWN, file_len, rdev};

/// Bytes of a page; the trailer fills the last one.
const PAGE: u64 = 4096;
/// A member's number: its place in the order of pushes, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u32);

/// What a run of the archive's bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All header blocks of a member: long records, PAX header, ustar block, a sparse file's map.
    Header(MemberId),
    /// A file's bytes, those of a sparse one without its holes.
    Body(MemberId),
    /// Zeros from the end of a file's bytes to the end of their last block.
    Padding(MemberId),
    /// Zeros after the last member.
    Trailer,
}

/// A run of the archive's bytes that have one origin; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// What the bytes are.
    pub part: Part,
    /// Offset of the first byte in the archive.
    pub start: u64,
    /// Number of bytes, at least 1.
    pub len: u64,
}

impl Segment {
    /// Offset after the last byte.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

/// The frozen list of members with their offsets, and a tag for each.
///
/// A [`MemberId`] that did not come from this layout is no error: it answers like an empty directory without a name,
/// and has no tag.
#[derive(Debug)]
pub struct Layout<T> {
    /// Offsets of the members' first header byte, ascending.
    starts: Vec<u64>,
    records: Vec<Record>,
    tags: Vec<T>,
    names: Vec<u8>,
    owners: Vec<(u32, u32)>,
    /// Members with PAX records of their own, ascending, and the index of those.
    records_of: Vec<(u32, u32)>,
    /// Encoded PAX records, each text once.
    pax: Vec<Box<[u8]>>,
    /// Ascending by member.
    sparse: Vec<Sparse>,
    /// Those of all sparse files.
    pieces: Vec<Piece>,
    /// Offset after the last member.
    members_end: u64,
    size: u64,
}

/// A run of a file's bytes in the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Whose.
    pub member: MemberId,
    /// Offset of the first byte in the file.
    pub offset: u64,
    /// Offset of the first byte in the archive.
    pub start: u64,
    /// Number of bytes.
    pub len: u64,
}

/// What a member's header holds besides its name, its kind and its size.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Details<'a> {
    pub perm: u16,
    pub uid: u32,
    pub gid: u32,
    /// Seconds, and nanoseconds where the archive has them.
    pub mtime: (i64, u32),
    /// Target of a symbolic link.
    pub target: &'a [u8],
    /// First name of a hard link.
    pub first: Option<MemberId>,
    pub rdev: (u32, u32),
    /// PAX records of its own, encoded.
    pub records: &'a [u8],
}

/// A sparse file's data.
#[derive(Clone, Debug)]
struct Sparse {
    member: u32,
    /// Indexes into the layout's pieces.
    pieces: Range<usize>,
    /// Bytes of them all.
    data: u64,
}

/// A run of data of a sparse file. It reaches to where the next one starts, the last one to the end of the data.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// Offset in the file.
    offset: u64,
    /// Offset in the file's data in the archive.
    start: u64,
}

impl<T> Layout<T> {
    /// Bytes of the whole archive, a multiple of 4096.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Offset of the last page: 4096 zeros of the trailer.
    pub fn last_page(&self) -> u64 {
        self.size.saturating_sub(PAGE)
    }

    /// Number of members.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are no members; the archive then is a trailer only.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// All members in archive order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = MemberId> + use<T> {
        (0..self.records.len() as u32).map(MemberId)
    }

    /// The segment that holds the byte at `offset`; `None` from [`Layout::size`] on.
    pub fn find(&self, offset: u64) -> Option<Segment> {
        self.locate(offset).map(|(_, segment)| segment)
    }

    /// The tag a member was pushed with.
    pub fn tag(&self, member: MemberId) -> Option<&T> {
        self.tags.get(member.0 as usize)
    }

    /// The directory a member is in; `None` for a child of the root.
    pub fn parent(&self, member: MemberId) -> Option<MemberId> {
        match self.record(member).parent {
            ROOT => None,
            parent => Some(MemberId(parent)),
        }
    }

    /// Last component of a member's path, raw.
    pub fn name(&self, member: MemberId) -> &[u8] {
        let record = self.record(member);
        self.arena(record.name_start, record.name_len.into())
    }

    /// What a member is.
    pub fn kind(&self, member: MemberId) -> Kind {
        self.record(member).perm.kind()
    }

    /// Bytes of a member's file, with its holes; 0 for everything but files.
    pub fn size_of(&self, member: MemberId) -> u64 {
        file_len(self.record(member))
    }

    /// Bytes of a member's file that are in the archive: all but its large holes.
    pub fn data_len(&self, member: MemberId) -> u64 {
        self.body_len(member, self.record(member))
    }

    /// The rest of what a member's header holds.
    pub fn details(&self, member: MemberId) -> Details<'_> {
        let record = self.record(member);
        let (uid, gid) = self.owner(record);
        let is_link = record.perm.kind() == Kind::HardLink;
        Details {
            perm: record.perm.bits(),
            uid,
            gid,
            mtime: (record.mtime_sec, record.mtime_nsec),
            target: self.target(record),
            first: is_link.then_some(MemberId(record.payload as u32)),
            rdev: rdev(record),
            records: self.pax_records(member),
        }
    }

    /// Where a sparse member has its data; `None` for every other.
    pub fn extents(&self, member: MemberId) -> Option<Vec<Extent>> {
        let sparse = self.sparse_of(member)?;
        let pieces = self.pieces.get(sparse.pieces.clone()).unwrap_or_default();
        let ends = pieces.iter().skip(1).map(|piece| piece.start).chain([sparse.data]);
        let extent = |(piece, end): (&Piece, u64)| Extent {
            offset: piece.offset,
            len: end.saturating_sub(piece.start),
        };
        Some(pieces.iter().zip(ends).map(extent).collect())
    }

    /// All runs of at least `least` bytes that lie in one piece both in a file and in the archive, in archive order.
    pub fn runs(&self, least: u64) -> impl Iterator<Item = Run> {
        self.iter().filter(move |member| self.size_of(*member) >= least).flat_map(move |member| {
            let start = self.body_start(member);
            let whole = [Extent { offset: 0, len: self.size_of(member) }];
            let extents = self.extents(member).unwrap_or_else(|| whole.to_vec());
            let mut before = 0u64;
            let runs = extents.into_iter().map(move |Extent { offset, len }| {
                let run = Run { member, offset, start: start.saturating_add(before), len };
                before = before.saturating_add(len);
                run
            });
            runs.filter(move |run| run.len >= least)
        })
    }

    /// Which bytes of a member's file the body has from `within` on: their offset in the file, and how many follow it
    /// without a hole.
    pub(super) fn in_file(&self, member: MemberId, within: u64) -> (u64, u64) {
        let Some(sparse) = self.sparse_of(member) else {
            return (within, self.size_of(member).saturating_sub(within));
        };
        let pieces = self.pieces.get(sparse.pieces.clone()).unwrap_or_default();
        let after = pieces.partition_point(|piece| piece.start <= within);
        let end = pieces.get(after).map_or(sparse.data, |next| next.start);
        match after.checked_sub(1).and_then(|at| pieces.get(at)) {
            Some(piece) => {
                (piece.offset.saturating_add(within - piece.start), end.saturating_sub(within))
            }
            None => (0, 0),
        }
    }

    /// Offset of the first byte after a member's header blocks: of its body, if it has one.
    pub fn body_start(&self, member: MemberId) -> u64 {
        let start = self.starts.get(member.0 as usize);
        let header = u64::from(self.record(member).header_blocks) * BLOCK;
        start.map_or(self.size, |start| start.saturating_add(header))
    }

    /// A member's path with a `/` in front and none at the end.
    pub fn absolute_path(&self, member: MemberId) -> Vec<u8> {
        let mut path = vec![b'/'];
        self.append_path(member, &mut path);
        path
    }

    /// Replaces what is in `path` by a member's path from the root: no `./` in front, no `/` at the end.
    pub fn path(&self, member: MemberId, path: &mut Vec<u8>) {
        path.clear();
        self.append_path(member, path);
    }

    /// A digest of all that decides the archive's bytes but the bodies, and of what `tag` feeds in for each member.
    ///
    /// The same on every host and in every release that writes the same bytes.
    pub fn digest(&self, mut tag: impl FnMut(&T, &mut Xxh3)) -> u128 {
        let mut hash = Xxh3::new();
        hash.update(&(self.records.len() as u64).to_le_bytes());
        for (record, value) in self.records.iter().zip(&self.tags) {
            let (uid, gid) = self.owner(record);
            let text = record.name_len as usize + self.target(record).len();
            hash.update(&record.payload.to_le_bytes());
            hash.update(&record.mtime_sec.to_le_bytes());
            hash.update(&record.mtime_nsec.to_le_bytes());
            hash.update(&record.parent.to_le_bytes());
            hash.update(&uid.to_le_bytes());
            hash.update(&gid.to_le_bytes());
            hash.update(&record.perm.0.to_le_bytes());
            hash.update(&record.name_len.to_le_bytes());
            hash.update(self.arena(record.name_start, text));
            tag(value, &mut hash);
        }
        for (member, records) in &self.records_of {
            hash.update(&member.to_le_bytes());
            let records = self.pax.get(*records as usize).map(AsRef::as_ref).unwrap_or_default();
            hash.update(&(records.len() as u64).to_le_bytes());
            hash.update(records);
        }
        for sparse in &self.sparse {
            hash.update(&sparse.member.to_le_bytes());
            hash.update(&sparse.data.to_le_bytes());
            for piece in self.pieces.get(sparse.pieces.clone()).unwrap_or_default() {
                hash.update(&piece.offset.to_le_bytes());
                hash.update(&piece.start.to_le_bytes());
            }
        }
        hash.digest128()
    }

    /// Bytes of memory that the layout holds on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.starts.capacity() * size_of::<u64>()
            + self.records.capacity() * size_of::<Record>()
            + self.tags.capacity() * size_of::<T>()
            + self.names.capacity()
            + self.owners.capacity() * size_of::<(u32, u32)>()
            + self.records_of.capacity() * size_of::<(u32, u32)>()
            + self.pax.iter().map(|records| records.len() + size_of::<Box<[u8]>>()).sum::<usize>()
            + self.sparse.capacity() * size_of::<Sparse>()
            + self.pieces.capacity() * size_of::<Piece>()
    }

    /// Like [`Layout::find`], with the index to hand to [`Layout::locate_from`].
    pub(super) fn locate(&self, offset: u64) -> Option<(usize, Segment)> {
        let after = self.starts.partition_point(|start| *start <= offset);
        self.segment(after.saturating_sub(1), offset)
    }

    /// The segment at `offset`, which lies in member `index` or at the start of the next.
    pub(super) fn locate_from(&self, index: usize, offset: u64) -> Option<(usize, Segment)> {
        let next = index.saturating_add(1);
        match self.starts.get(next) {
            Some(start) if *start <= offset => self.segment(next, offset),
            _ => self.segment(index, offset),
        }
    }

    fn segment(&self, index: usize, offset: u64) -> Option<(usize, Segment)> {
        if offset >= self.size {
            return None;
        }
        let segment = |part, start: u64, end: u64| {
            let len = end - start;
            Some((index, Segment { part, start, len }))
        };
        if offset >= self.members_end {
            return segment(Part::Trailer, self.members_end, self.size);
        }
        let (start, record) = (*self.starts.get(index)?, self.records.get(index)?);
        let member = MemberId(index as u32);
        let body = start + u64::from(record.header_blocks) * BLOCK;
        let padding = body + self.body_len(member, record);
        if offset < body {
            segment(Part::Header(member), start, body)
        } else if offset < padding {
            segment(Part::Body(member), body, padding)
        } else {
            segment(Part::Padding(member), padding, padding.next_multiple_of(BLOCK))
        }
    }

    /// Encodes a member's header blocks.
    pub(super) fn header<'a>(&self, member: MemberId, scratch: &'a mut Scratch) -> &'a [u8] {
        let record = self.record(member);
        let kind = record.perm.kind();
        scratch.place(self, member, record);
        scratch.link.clear();
        match kind {
            Kind::HardLink => {
                scratch.link.extend_from_slice(b"./");
                self.append_path(MemberId(record.payload as u32), &mut scratch.link);
            }
            Kind::Symlink => scratch.link.extend_from_slice(self.target(record)),
            _ => {}
        }
        let (uid, gid) = self.owner(record);
        let extents = self.extents(member);
        let mut map = Vec::new();
        if let Some(extents) = &extents {
            super::sparse::put_map(&mut map, extents, file_len(record));
        }
        let map_len = (map.len() as u64).next_multiple_of(BLOCK);
        scratch.out.clear();
        Header {
            path: &scratch.path,
            link: &scratch.link,
            fields: Fields {
                kind,
                perm: record.perm.bits(),
                uid,
                gid,
                size: map_len.saturating_add(self.body_len(member, record)),
                real_size: extents.as_ref().map(|_| file_len(record)),
                mtime: (record.mtime_sec, record.mtime_nsec),
                rdev: rdev(record),
            },
            records: self.pax_records(member),
            map: &map,
        }
        .encode(&mut scratch.out);
        &scratch.out
    }

    /// Bytes between a member's header blocks and the zeros after it.
    fn body_len(&self, member: MemberId, record: &Record) -> u64 {
        match record.perm.is_sparse() {
            true => self.sparse_of(member).map_or(0, |sparse| sparse.data),
            false => file_len(record),
        }
    }

    fn sparse_of(&self, member: MemberId) -> Option<&Sparse> {
        if !self.record(member).perm.is_sparse() {
            return None;
        }
        let at = self.sparse.binary_search_by_key(&member.0, |sparse| sparse.member).ok()?;
        self.sparse.get(at)
    }

    /// A member's own PAX records, encoded; empty for most.
    fn pax_records(&self, member: MemberId) -> &[u8] {
        let at = self.records_of.binary_search_by_key(&member.0, |(member, _)| *member).ok();
        let index = at.and_then(|at| self.records_of.get(at)).map(|(_, index)| *index as usize);
        index.and_then(|index| self.pax.get(index)).map(AsRef::as_ref).unwrap_or_default()
    }

    /// Appends the path from the root, written from its end to its beginning.
    fn append_path(&self, member: MemberId, path: &mut Vec<u8>) {
        let begin = path.len();
        let mut next = Some(member);
        while let Some(member) = next {
            path.extend(self.name(member).iter().rev());
            next = self.parent(member);
            if next.is_some() {
                path.push(b'/');
            }
        }
        if let Some(path) = path.get_mut(begin..) {
            path.reverse();
        }
    }

    fn record(&self, member: MemberId) -> &Record {
        self.records.get(member.0 as usize).unwrap_or(&UNKNOWN)
    }

    fn owner(&self, record: &Record) -> (u32, u32) {
        let owner = self.owners.get(record.owner as usize);
        owner.copied().unwrap_or_default()
    }

    /// A symlink's target; empty for everything else.
    fn target(&self, record: &Record) -> &[u8] {
        if record.perm.kind() != Kind::Symlink {
            return &[];
        }
        let after = record.name_start.saturating_add(record.name_len.into());
        self.arena(after, record.payload as usize)
    }

    fn arena(&self, start: u32, len: usize) -> &[u8] {
        let start = start as usize;
        let text = self.names.get(start..start.saturating_add(len));
        text.unwrap_or_default()
    }
}
