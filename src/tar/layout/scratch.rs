//! Buffers of whoever encodes headers.

use super::record::Record;
use super::{Layout, MemberId};
use crate::tar::Kind;

/// Buffers for encoding headers one after the other; siblings share their parent's path.
#[derive(Debug, Default)]
pub(in crate::tar) struct Scratch {
    /// The archive's name of the member encoded last.
    pub(super) path: Vec<u8>,
    /// Whose path is in the first `dir_len` bytes of `path`, with `./` and the final `/`; `None` for nobody's.
    dir: Option<u32>,
    dir_len: usize,
    pub(super) link: Vec<u8>,
    pub(super) out: Vec<u8>,
}

impl Scratch {
    pub(super) fn place<T>(&mut self, layout: &Layout<T>, member: MemberId, record: &Record) {
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
