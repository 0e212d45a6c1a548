//! `/etc/codchi-members`: the members whose owners may have another id on another system.
//!
//! What goes to whom on the target is decided by this list and by nothing that a program prints, since a machine chooses
//! the names that are printed. A record is four texts, each ended by a NUL, which no name can hold: `KIND UID GID` (KIND as
//! find(1) prints it with `%y`), the path, and the access and default ACL as the archive has them, empty where they name
//! nobody who may have another id.
//!
//! The list is rendered when it is read: only where each 64th member's record begins is kept.

use super::owners::is_fixed;
use super::tag::Tag;
use crate::tar::{Kind, Layout, MemberId, pax_records};
use crate::tree::LONGEST_PATH;
use std::ops::Range;
use xxhash_rust::xxh3::Xxh3;

/// Members between two whose records are found at once.
const STEP: usize = 64;

/// Where the records of one layout are in its list.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// Offset of the first record from each [`STEP`]th member on.
    starts: Vec<u64>,
    size: u64,
    digest: u64,
}

impl Members {
    pub(super) fn of(layout: &Layout<Tag>) -> Self {
        let mut starts = Vec::with_capacity(layout.len().div_ceil(STEP));
        let (mut size, mut hash) = (0, Xxh3::new());
        for (number, member) in layout.iter().enumerate() {
            if number % STEP == 0 {
                starts.push(size);
            }
            if let Some(record) = record(layout, member) {
                hash.update(&record);
                size += record.len() as u64;
            }
        }
        Self { starts, size, digest: hash.digest() }
    }

    /// Bytes of the list.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// A digest of the list.
    pub(super) fn digest(&self) -> u64 {
        self.digest
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.starts.capacity() * size_of::<u64>()
    }

    /// Fills `buf` from `offset` on, short only at the end of the list. `layout` is the one that this was made of.
    pub(super) fn read_at(&self, layout: &Layout<Tag>, offset: u64, buf: &mut [u8]) -> usize {
        let end = offset.saturating_add(buf.len() as u64).min(self.size);
        let step = self.starts.partition_point(|start| *start <= offset).saturating_sub(1);
        let mut at = self.starts.get(step).copied().unwrap_or(self.size);
        for member in layout.iter().skip(step.saturating_mul(STEP)) {
            if at >= end {
                break;
            }
            let Some(record) = record(layout, member) else { continue };
            copy_part(buf, offset..end, at, &record);
            at += record.len() as u64;
        }
        end.saturating_sub(offset) as usize
    }
}

/// Copies what of `text`, which begins at `at`, lies in `wanted` to its place in `buf`, which begins where `wanted` does.
pub(super) fn copy_part(buf: &mut [u8], wanted: Range<u64>, at: u64, text: &[u8]) {
    let (from, to) = (at.max(wanted.start), (at + text.len() as u64).min(wanted.end));
    if from < to
        && let (Some(target), Some(source)) = (
            buf.get_mut((from - wanted.start) as usize..(to - wanted.start) as usize),
            text.get((from - at) as usize..(to - at) as usize),
        )
    {
        target.copy_from_slice(source);
    }
}

/// The record of a member; `None` if nothing about it can change, or if no program can reach it by its path.
fn record(layout: &Layout<Tag>, member: MemberId) -> Option<Vec<u8>> {
    let details = layout.details(member);
    let first = details.first.unwrap_or(member);
    let acls = acls(layout.details(first).records);
    if is_fixed(details.uid) && is_fixed(details.gid) && acls.iter().all(Vec::is_empty) {
        return None;
    }
    let kind = match layout.kind(first) {
        Kind::File | Kind::HardLink => 'f',
        Kind::Directory => 'd',
        Kind::Symlink => 'l',
        Kind::CharDevice => 'c',
        Kind::BlockDevice => 'b',
        Kind::Fifo => 'p',
    };
    let path = layout.absolute_path(member);
    if path.len() > LONGEST_PATH {
        return None;
    }
    let mut record = format!("{kind} {} {}\0", details.uid, details.gid).into_bytes();
    let [access, default] = &acls;
    for text in [&path, access, default] {
        record.extend_from_slice(text);
        record.push(0);
    }
    Some(record)
}

/// The access and the default ACL, each empty where it names nobody who may have another id.
fn acls(records: &[u8]) -> [Vec<u8>; 2] {
    let mut acls = [Vec::new(), Vec::new()];
    if records.is_empty() {
        return acls;
    }
    let keys: [&[u8]; 2] = [b"SCHILY.acl.access", b"SCHILY.acl.default"];
    for (key, value) in pax_records(records).unwrap_or_default() {
        for (acl, wanted) in acls.iter_mut().zip(keys) {
            if key == wanted && names_somebody(&value) {
                acl.clone_from(&value);
            }
        }
    }
    acls
}

/// Whether an ACL, as `records` writes it, has an entry with an id that another system may give to another.
fn names_somebody(acl: &[u8]) -> bool {
    acl.split(|byte| *byte == b',').any(|entry| {
        let id = entry.split(|byte| *byte == b':').nth(1).unwrap_or_default();
        let id = str::from_utf8(id).ok().and_then(|id| id.parse().ok());
        id.is_some_and(|id| !is_fixed(id))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar::{LayoutBuilder, Link, Member, Options};

    /// A name, an owner and records.
    type File<'a> = (&'a [u8], u32, &'a [(&'a [u8], &'a [u8])]);

    fn layout(files: &[File<'_>]) -> Layout<Tag> {
        let mut builder = LayoutBuilder::new(Options::default());
        for (name, uid, records) in files {
            let member = Member {
                parent: None,
                name,
                kind: Kind::File,
                perm: 0o644,
                uid: *uid,
                gid: 0,
                size: 0,
                extents: None,
                records,
                mtime: (0, 0),
                link: Link::None,
                rdev: (0, 0),
                tag: Tag { ino: 0, ctime_sec: 0, ctime_nsec: 0, layer: 0 },
            };
            builder.push(&member).unwrap();
        }
        builder.finish()
    }

    #[test]
    fn only_what_may_change_has_a_record_and_every_part_of_the_list_is_the_same() {
        let acl: &[u8] = b"user::rw-,user:71:rw-,group::r--,mask::rw-,other::---";
        let fixed: &[u8] = b"user::rw-,user:1000:rw-,group::r--,mask::rw-,other::---";
        let (access, default): (&[u8], &[u8]) = (b"SCHILY.acl.access", b"SCHILY.acl.default");
        let mut files: Vec<File<'_>> = vec![
            (b"root's", 0, &[]),
            (b"a\n- \xff", 302, &[]),
            (b"named", 0, &[]),
            (b"fixed", 1000, &[]),
        ];
        let (one, two) = ([(access, acl)], [(access, fixed), (default, acl)]);
        files[2].2 = &one;
        files[3].2 = &two;
        let fixed_only = [(access, fixed)];
        files.push((b"plain", 100, &fixed_only));
        let layout_of_few = layout(&files);
        let list = Members::of(&layout_of_few);
        let text = [
            b"f 302 0\0/a\n- \xff\0\0\0f 0 0\0/named\0".as_slice(),
            acl,
            b"\0\0f 1000 0\0/fixed\0\0",
            acl,
            b"\0",
        ]
        .concat();
        let mut whole = vec![0; text.len() + 9];
        assert_eq!(list.read_at(&layout_of_few, 0, &mut whole), text.len());
        assert_eq!(whole[..text.len()], text);

        let names: Vec<String> =
            (0..1000).map(|n| format!("{n:0width$}", width = 1 + n % 200)).collect();
        let files: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(n, name)| (name.as_bytes(), if n % 3 == 0 { 302 } else { 0 }, [].as_slice()))
            .collect();
        let layout = layout(&files);
        let list = Members::of(&layout);
        let mut whole = vec![0; list.size() as usize];
        assert_eq!(list.read_at(&layout, 0, &mut whole), whole.len());
        assert_eq!(whole.iter().filter(|byte| **byte == 0).count(), 4 * 334);
        for (offset, len) in
            [(0, 1), (1, 700), (4096, 4096), (whole.len() - 3, 10), (whole.len(), 5)]
        {
            let mut part = vec![0xff; len];
            let count = list.read_at(&layout, offset as u64, &mut part);
            assert_eq!(part[..count], whole[offset..whole.len().min(offset + len)], "{offset}");
        }
    }
}
