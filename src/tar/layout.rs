//! Members and their places in the archive.

use xxhash_rust::xxh3::Xxh3;

use super::Kind;
use super::header::{BLOCK, Fields, Header};

mod builder;

pub use builder::{LayoutBuilder, LayoutError, Options};

/// Bytes of a page; the trailer fills the last one.
const PAGE: u64 = 4096;
/// `Record::parent` of a child of the root.
const ROOT: u32 = u32::MAX;

/// A member's number: its place in the order of pushes, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u32);

/// What a run of the archive's bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All header blocks of a member: long records, PAX header, ustar block.
    Header(MemberId),
    /// A file's bytes.
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

/// One member without its start and tag, which have vectors of their own.
///
/// 40 bytes; with start, a tag of 24 bytes and a name of 16 a member takes 88.
#[derive(Clone, Copy, Debug)]
struct Record {
    /// File: bytes of the body. Symlink: bytes of the target. Hard link: number of the first name's member.
    /// Device: major number in the upper half, minor in the lower. Else 0.
    payload: u64,
    mtime_sec: i64,
    /// 0 unless the member has a PAX header.
    mtime_nsec: u32,
    /// Offset of the name in the arena; a symlink's target is right after it.
    name_start: u32,
    /// Member number or [`ROOT`].
    parent: u32,
    /// Index into the table of owners.
    owner: u32,
    /// Length of all header blocks, in blocks.
    header_blocks: u32,
    name_len: u16,
    perm: Perm,
}

/// Permission bits in the lower 12, the kind in the upper 4.
#[derive(Clone, Copy, Debug)]
struct Perm(u16);

impl Perm {
    fn new(kind: Kind, perm: u16) -> Self {
        let kind: u16 = match kind {
            Kind::Directory => 0,
            Kind::File => 1,
            Kind::Symlink => 2,
            Kind::HardLink => 3,
            Kind::CharDevice => 4,
            Kind::BlockDevice => 5,
            Kind::Fifo => 6,
        };
        Self(kind << 12 | perm & 0o7777)
    }

    fn kind(self) -> Kind {
        match self.0 >> 12 {
            1 => Kind::File,
            2 => Kind::Symlink,
            3 => Kind::HardLink,
            4 => Kind::CharDevice,
            5 => Kind::BlockDevice,
            6 => Kind::Fifo,
            _ => Kind::Directory,
        }
    }

    fn bits(self) -> u16 {
        self.0 & 0o7777
    }
}

/// What a number that is not of the layout answers: an empty directory without a name.
static UNKNOWN: Record = Record {
    payload: 0,
    mtime_sec: 0,
    mtime_nsec: 0,
    name_start: 0,
    parent: ROOT,
    owner: 0,
    header_blocks: 0,
    name_len: 0,
    perm: Perm(0),
};

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
    /// Offset after the last member.
    members_end: u64,
    size: u64,
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

    /// Bytes of a member's body; 0 for everything but files.
    pub fn size_of(&self, member: MemberId) -> u64 {
        body_len(self.record(member))
    }

    /// Offset of the first byte after a member's header blocks: of its body, if it has one.
    pub fn body_start(&self, member: MemberId) -> u64 {
        let start = self.starts.get(member.0 as usize);
        let header = u64::from(self.record(member).header_blocks) * BLOCK;
        start.map_or(self.size, |start| start.saturating_add(header))
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
        hash.digest128()
    }

    /// Bytes of memory that the layout holds on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.starts.capacity() * size_of::<u64>()
            + self.records.capacity() * size_of::<Record>()
            + self.tags.capacity() * size_of::<T>()
            + self.names.capacity()
            + self.owners.capacity() * size_of::<(u32, u32)>()
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
        let padding = body + body_len(record);
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
        scratch.out.clear();
        Header {
            path: &scratch.path,
            link: &scratch.link,
            fields: Fields {
                kind,
                perm: record.perm.bits(),
                uid,
                gid,
                size: body_len(record),
                mtime: (record.mtime_sec, record.mtime_nsec),
                rdev: rdev(record),
            },
            records: &[],
        }
        .encode(&mut scratch.out);
        &scratch.out
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

fn body_len(record: &Record) -> u64 {
    match record.perm.kind() {
        Kind::File => record.payload,
        _ => 0,
    }
}

fn rdev(record: &Record) -> (u32, u32) {
    match record.perm.kind() {
        Kind::CharDevice | Kind::BlockDevice => {
            ((record.payload >> 32) as u32, record.payload as u32)
        }
        _ => (0, 0),
    }
}

/// Buffers for encoding headers one after the other; siblings share their parent's path.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// The archive's name of the member encoded last.
    path: Vec<u8>,
    /// Whose path is in the first `dir_len` bytes of `path`, with `./` and the final `/`; `None` for nobody's.
    dir: Option<u32>,
    dir_len: usize,
    link: Vec<u8>,
    out: Vec<u8>,
}

impl Scratch {
    fn place<T>(&mut self, layout: &Layout<T>, member: MemberId, record: &Record) {
        if self.dir != Some(record.parent) {
            self.path.clear();
            self.path.extend_from_slice(b"./");
            if let Some(parent) = layout.parent(member) {
                layout.append_path(parent, &mut self.path);
                self.path.push(b'/');
            }
            self.dir = Some(record.parent);
            self.dir_len = self.path.len();
        }
        self.path.truncate(self.dir_len);
        self.path.extend_from_slice(layout.name(member));
        if record.perm.kind() == Kind::Directory {
            self.path.push(b'/');
            // What comes next is most often inside.
            self.dir = Some(member.0);
            self.dir_len = self.path.len();
        }
    }
}
