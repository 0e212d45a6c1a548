//! A member as a list of members has it: what a copy is compared by.

use super::Generation;
use crate::export::tag::GENERATED;
use crate::tar::{Kind, MemberId, Record, pax_records};

/// A member of an archive, a line of a manifest, or a file of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path from the root: no `./` in front, no `/` at the end.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub perm: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a file, with its holes; else 0.
    pub size: u64,
    /// Seconds, and nanoseconds where they are known.
    pub mtime: (i64, u32),
    /// Target of a symbolic link; first name of a hard link, as in [`Self::path`].
    pub target: Vec<u8>,
    /// Device numbers.
    pub rdev: (u32, u32),
    /// Attributes and ACLs, as the archive has them.
    pub records: Vec<Record>,
}

impl Generation {
    /// The members' numbers in archive order, without the first ones.
    pub fn ids_from(&self, first: usize) -> impl Iterator<Item = MemberId> + Send + use<> {
        (first..self.layout.len()).map(|number| MemberId(number as u32))
    }

    /// A member as the scan saw it.
    pub fn entry(&self, member: MemberId) -> Entry {
        let details = self.layout.details(member);
        let (mut path, mut target) = (Vec::new(), details.target.to_vec());
        self.layout.path(member, &mut path);
        if let Some(first) = details.first {
            self.layout.path(first, &mut target);
        }
        Entry {
            path,
            kind: self.layout.kind(member),
            perm: details.perm,
            uid: details.uid,
            gid: details.gid,
            size: self.layout.size_of(member),
            mtime: details.mtime,
            target,
            rdev: details.rdev,
            records: pax_records(details.records).unwrap_or_default(),
        }
    }

    /// Where a hard link has its content.
    pub(super) fn first(&self, member: MemberId) -> Option<MemberId> {
        self.layout.details(member).first
    }

    /// When a member's file was changed last, in seconds; `None` for what is made.
    pub fn changed_at(&self, member: MemberId) -> Option<i64> {
        self.layout.tag(member).filter(|tag| tag.layer != GENERATED).map(|tag| tag.ctime_sec)
    }
}
