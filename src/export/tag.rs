//! What a layout keeps of each member to find its file again.

use crate::tree::{Attr, ObjectId, Tree};

/// Layer of what is made rather than found.
pub(super) const GENERATED: u8 = 2;

/// What the layout keeps of each member to find its file again and to tell whether it changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    /// Inode number on the disk, or index of the generated file.
    pub(super) ino: u64,
    pub(super) ctime_sec: i64,
    pub(super) ctime_nsec: u32,
    pub(super) layer: u8,
}

/// Where an entry comes from, for its [`Tag`]. The index of a made directory means nothing: it has no body.
pub(super) fn layer_of(tree: &Tree, attr: &Attr) -> (u8, u64) {
    match attr.id {
        ObjectId::Disk { layer, ino, .. } => (layer, ino),
        made @ ObjectId::Generated { .. } => {
            let index = tree.generated().iter().position(|file| made.is_made_at(file.path));
            (GENERATED, index.unwrap_or(0) as u64)
        }
    }
}
