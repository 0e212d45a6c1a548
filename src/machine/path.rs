//! Directories of a machine's tree by their paths.

use crate::tree::{Dir, Tree};

/// The directory at a path.
pub(super) fn walk(tree: &Tree, path: &str) -> Option<Dir> {
    open(tree, &tree.root().ok()?.0, path)
}

pub(super) fn open(tree: &Tree, dir: &Dir, path: &str) -> Option<Dir> {
    let names = path.split('/').filter(|name| !name.is_empty());
    names
        .into_iter()
        .try_fold(dir.clone(), |dir, name| Some(tree.open_dir(&dir, name.as_bytes()).ok()?.0))
}
