//! Files that are made, not found: the flake, its lock, codchi-env, codchi-owners.

use super::attr::{Attr, Kind, ObjectId, Time};
use std::sync::Arc;

/// A file that the exported tree has over whatever the disk has there.
#[derive(Clone)]
pub struct GeneratedFile {
    /// Absolute path in the machine.
    pub path: &'static [u8],
    /// All of its bytes; `None` for one that only a scan of the whole tree can make. The tree then shows it as empty, and
    /// whoever has scanned knows better.
    pub content: Option<Arc<[u8]>>,
    /// Permission bits.
    pub perm: u16,
    /// Owner in the machine.
    pub uid: u32,
    /// Group in the machine.
    pub gid: u32,
}

impl GeneratedFile {
    /// What it is, stable over remounts; without its content where only a scan knows that.
    pub fn id(&self) -> ObjectId {
        ObjectId::generated(self.path, self.content.as_deref().unwrap_or_default())
    }

    pub(super) fn attr(&self, made: Time) -> Attr {
        let content = self.content.as_deref().unwrap_or_default();
        let attr = Attr::made(self.path, Kind::File, self.perm, content, made);
        Attr { uid: self.uid, gid: self.gid, ..attr }
    }
}

// codchi-env holds every secret of a machine: its bytes must not reach a log through a derived Debug.
impl std::fmt::Debug for GeneratedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GeneratedFile")
            .field("path", &crate::quote::name(self.path))
            .field("bytes", &self.content.as_ref().map(|content| content.len()))
            .finish()
    }
}
