//! Files that are made, not found: the flake, its lock, codchi-env, codchi-owners.

use std::sync::Arc;

/// A file that the exported tree has over whatever the disk has there.
#[derive(Clone)]
pub struct GeneratedFile {
    /// Absolute path in the machine.
    pub path: &'static [u8],
    /// All of its bytes.
    pub content: Arc<[u8]>,
    /// Permission bits.
    pub perm: u16,
    /// Owner in the machine.
    pub uid: u32,
    /// Group in the machine.
    pub gid: u32,
}

// codchi-env holds every secret of a machine: its bytes must not reach a log through a derived Debug.
impl std::fmt::Debug for GeneratedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GeneratedFile")
            .field("path", &String::from_utf8_lossy(self.path))
            .field("bytes", &self.content.len())
            .finish()
    }
}
