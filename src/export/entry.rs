//! A member as a list of members has it: what a copy is compared by.

use super::generation::Generation;
use crate::tar::{Kind, MemberId};

/// A PAX record: keyword and value.
pub type Record = (Vec<u8>, Vec<u8>);

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
        self.layout
            .tag(member)
            .filter(|tag| tag.layer != super::tag::GENERATED)
            .map(|tag| tag.ctime_sec)
    }
}

/// Takes PAX records apart: `LENGTH KEYWORD=VALUE\n`, each. Comments, which are padding, are left out. `None` if they are
/// malformed.
pub fn pax_records(mut text: &[u8]) -> Option<Vec<Record>> {
    let mut records = Vec::new();
    while !text.is_empty() {
        let space = text.iter().position(|byte| *byte == b' ')?;
        let length: usize = str::from_utf8(text.get(..space)?).ok()?.parse().ok()?;
        let record = text.get(space.checked_add(1)?..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (record.get(..equals)?, record.get(equals + 1..)?);
        if key != b"comment" {
            records.push((key.to_vec(), value.to_vec()));
        }
        text = text.get(length..)?;
    }
    Some(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_taken_apart_or_refused() {
        let record = |key: &[u8], value: &[u8]| (key.to_vec(), value.to_vec());
        assert_eq!(pax_records(b""), Some(vec![]));
        assert_eq!(
            pax_records(b"8 a=b=\n\n13 comment= \n5 c=\n"),
            Some(vec![record(b"a", b"b=\n"), record(b"c", b"")])
        );
        for bad in [
            b"x".as_slice(),
            b"9 a=b\n",
            b"6 ab=c",
            b"5 ab\n",
            b"99999999999999999999999 a=b\n",
            b"0 a=b\n",
        ] {
            assert_eq!(pax_records(bad), None, "{:?}", bad.escape_ascii().to_string());
        }
    }
}
