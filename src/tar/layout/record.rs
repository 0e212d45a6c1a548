//! What a layout keeps of a member.

use crate::tar::Kind;

/// `Record::parent` of a child of the root.
pub(super) const ROOT: u32 = u32::MAX;

/// One member without its start and tag, which have vectors of their own.
///
/// 40 bytes; with start, a tag of 24 bytes and a name of 16 a member takes 88.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    /// File: its bytes, with holes. Symlink: bytes of the target. Hard link: number of the first name's member.
    /// Device: major number in the upper half, minor in the lower. Else 0.
    pub(super) payload: u64,
    pub(super) mtime_sec: i64,
    /// 0 unless the member has a PAX header.
    pub(super) mtime_nsec: u32,
    /// Offset of the name in the arena; a symlink's target is right after it.
    pub(super) name_start: u32,
    /// Member number or [`ROOT`].
    pub(super) parent: u32,
    /// Index into the table of owners.
    pub(super) owner: u32,
    /// Length of all header blocks, in blocks.
    pub(super) header_blocks: u32,
    pub(super) name_len: u16,
    pub(super) perm: Perm,
}

/// The kind of a sparse file, for which [`Kind`] has no number of its own.
const SPARSE: u16 = 7;

/// Permission bits in the lower 12, the kind in the upper 4.
#[derive(Clone, Copy, Debug)]
pub(super) struct Perm(pub(super) u16);

impl Perm {
    pub(super) fn new(kind: Kind, perm: u16) -> Self {
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

    /// That of a file whose data is in the layout's table of sparse files.
    pub(super) fn sparse(perm: u16) -> Self {
        Self(SPARSE << 12 | perm & 0o7777)
    }

    pub(super) fn is_sparse(self) -> bool {
        self.0 >> 12 == SPARSE
    }

    pub(super) fn kind(self) -> Kind {
        match self.0 >> 12 {
            1 | SPARSE => Kind::File,
            2 => Kind::Symlink,
            3 => Kind::HardLink,
            4 => Kind::CharDevice,
            5 => Kind::BlockDevice,
            6 => Kind::Fifo,
            _ => Kind::Directory,
        }
    }

    pub(super) fn bits(self) -> u16 {
        self.0 & 0o7777
    }
}

/// What a number that is not of the layout answers: an empty directory without a name.
pub(super) static UNKNOWN: Record = Record {
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

/// Bytes of the file.
pub(super) fn file_len(record: &Record) -> u64 {
    match record.perm.kind() {
        Kind::File => record.payload,
        _ => 0,
    }
}

pub(super) fn rdev(record: &Record) -> (u32, u32) {
    match record.perm.kind() {
        Kind::CharDevice | Kind::BlockDevice => {
            ((record.payload >> 32) as u32, record.payload as u32)
        }
        _ => (0, 0),
    }
}
