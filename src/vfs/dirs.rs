//! Open directories of the trees, a bounded number of them.

use super::inode::{Node, Place};
use super::number::Object;
use crate::tree::{Dir, ObjectId, Tree};
use lru::LruCache;
use parking_lot::Mutex;
use rustix::io::Errno;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many directories stay open. Each costs a descriptor; a backup walks depth first and needs
/// little more than its depth.
const OPEN_DIRECTORIES: NonZeroUsize = NonZeroUsize::new(256).unwrap();

#[derive(Debug)]
struct Open {
    /// The tree and the place it was opened in: a directory that moved is opened again, since what
    /// is excluded or grafted below it depends on its path.
    tree: Arc<Tree>,
    id: Option<ObjectId>,
    place: Option<(u64, Arc<[u8]>)>,
    /// How many directories had moved when this was where its path says: without another move it still is.
    moves: u64,
    dir: Dir,
}

/// The open directories by inode number. The lock is never held across I/O.
#[derive(Debug)]
pub(super) struct Dirs {
    open: Mutex<LruCache<u64, Open>>,
}

impl Dirs {
    pub(super) fn new() -> Self {
        Self { open: Mutex::new(LruCache::new(OPEN_DIRECTORIES)) }
    }

    /// The directory `node`, opened again from the nearest open parent if need be. ESTALE if
    /// another object is where it was: the kernel then looks the path up again.
    ///
    /// `moves` counts the directories that were found elsewhere than before.
    pub(super) fn open(
        &self,
        tree: &Arc<Tree>,
        node: &Arc<Node>,
        moves: &AtomicU64,
    ) -> Result<Dir, Errno> {
        // Before anything is looked at: a move meanwhile has the next look compare paths.
        let moves = moves.load(Ordering::SeqCst);
        // Iterative: trees may be thousands of levels deep.
        let mut missing: Vec<(Arc<Node>, Place, ObjectId)> = Vec::new();
        let mut at = Arc::clone(node);
        let mut dir = loop {
            match at.key.object {
                Object::Rootfs => {
                    if let Some((dir, _)) = self.cached(tree, at.ino, None, None) {
                        break dir;
                    }
                    let (dir, _) = tree.root()?;
                    self.keep(at.ino, tree, None, None, moves, &dir);
                    break dir;
                }
                Object::Tree(id) => {
                    let place = at.place()?;
                    if let Some((dir, seen)) = self.cached(tree, at.ino, Some(id), Some(&place))
                        && (seen == moves || is_at(&at, dir.path()))
                    {
                        if seen != moves {
                            self.keep(at.ino, tree, Some(id), Some(&place), moves, &dir);
                        }
                        break dir;
                    }
                    let parent = Arc::clone(&place.parent);
                    missing.push((at, place, id));
                    at = parent;
                }
                _ => return Err(Errno::NOTDIR),
            }
        };
        for (node, place, id) in missing.iter().rev() {
            let (next, attr) = tree.open_dir(&dir, &place.name).map_err(moved)?;
            if attr.id != *id {
                return Err(Errno::STALE);
            }
            self.keep(node.ino, tree, Some(*id), Some(place), moves, &next);
            dir = next;
        }
        Ok(dir)
    }

    fn cached(
        &self,
        tree: &Arc<Tree>,
        ino: u64,
        id: Option<ObjectId>,
        place: Option<&Place>,
    ) -> Option<(Dir, u64)> {
        let mut open = self.open.lock();
        let found = open.get(&ino)?;
        let same_place = match (&found.place, place) {
            (None, None) => true,
            (Some((parent, name)), Some(place)) => {
                *parent == place.parent.ino && *name == place.name
            }
            _ => false,
        };
        let usable = same_place && found.id == id && Arc::ptr_eq(&found.tree, tree);
        usable.then(|| (found.dir.clone(), found.moves))
    }

    fn keep(
        &self,
        ino: u64,
        tree: &Arc<Tree>,
        id: Option<ObjectId>,
        place: Option<&Place>,
        moves: u64,
        dir: &Dir,
    ) {
        let place = place.map(|place| (place.parent.ino, Arc::clone(&place.name)));
        let open = Open { tree: Arc::clone(tree), id, place, moves, dir: dir.clone() };
        let evicted = self.open.lock().push(ino, open);
        drop(evicted);
    }
}

/// Whether `path` is where `node` is now: the rules below a directory hang on all of its path, and what moved may be far
/// above it.
fn is_at(node: &Arc<Node>, mut path: &[u8]) -> bool {
    let mut at = Arc::clone(node);
    loop {
        match at.key.object {
            Object::Rootfs => return path.is_empty(),
            _ => {
                let Ok(place) = at.place() else { return false };
                let Some(rest) = path.strip_suffix(&*place.name) else { return false };
                let Some(rest) = rest.strip_suffix(b"/") else { return false };
                (path, at) = (rest, place.parent);
            }
        }
    }
}

/// What re-finding a thing by its name answers when the name leads elsewhere now.
pub(super) fn moved(error: Errno) -> Errno {
    match error {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO => Errno::STALE,
        other => other,
    }
}
