//! Generated files whose content only a scan knows: codchi-owners and codchi-members.

use super::Generation;
use crate::tree::{Attr, ObjectId};

/// Names of the ids that own a member. The rebuild reads `/etc/nixos`, and may read this.
pub const OWNERS: &str = "/etc/nixos/codchi-owners";
/// Members whose owners may have another id elsewhere. Not in `/etc/nixos`, which nix copies to where everybody may read.
pub const MEMBERS: &str = "/etc/codchi-members";

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanFile {
    /// [`OWNERS`].
    Owners,
    /// [`MEMBERS`].
    Members,
}

impl ScanFile {
    const ALL: [Self; 2] = [Self::Owners, Self::Members];

    /// Its path in the machine.
    pub fn path(self) -> &'static str {
        match self {
            Self::Owners => OWNERS,
            Self::Members => MEMBERS,
        }
    }

    /// The one that an entry of the tree is.
    pub fn of(id: ObjectId) -> Option<Self> {
        Self::ALL.into_iter().find(|file| id.is_made_at(file.path().as_bytes()))
    }

    /// Whether `name` is the last component of one of their paths.
    pub fn may_be(name: &[u8]) -> bool {
        let last = |file: Self| file.path().rsplit('/').next().unwrap_or_default().as_bytes();
        Self::ALL.into_iter().any(|file| last(file) == name)
    }
}

impl Generation {
    /// The attributes of an entry: of one that only a scan knows, those that it has in this generation.
    pub fn settled(&self, attr: Attr) -> Attr {
        match ScanFile::of(attr.id) {
            None => attr,
            Some(ScanFile::Owners) => attr.with_content(&self.owners),
            Some(ScanFile::Members) => {
                attr.with_digest(self.member_list.size(), self.member_list.digest())
            }
        }
    }

    /// Fills `buf` from `offset` on, short only at the end of the file.
    pub fn read_scanned(&self, file: ScanFile, offset: u64, buf: &mut [u8]) -> usize {
        match file {
            ScanFile::Members => self.member_list.read_at(&self.layout, offset, buf),
            ScanFile::Owners => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                let rest = self.owners.get(from..).unwrap_or_default();
                let count = rest.len().min(buf.len());
                if let (Some(to), Some(from)) = (buf.get_mut(..count), rest.get(..count)) {
                    to.copy_from_slice(from);
                }
                count
            }
        }
    }
}
