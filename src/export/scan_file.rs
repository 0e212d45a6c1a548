//! Generated files whose content only a scan knows: codchi-owners and codchi-members.

use crate::tree::ObjectId;

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
