//! Open directories of the trees, a bounded number of them.

use super::inode::{Node, Place};
use super::number::Object;
use crate::tree::{Dir, ObjectId, Tree};
use lru::LruCache;
use parking_lot::Mutex;
use rustix::io::Errno;
use std::num::NonZeroUsize;
use std::sync::Arc;

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
    pub(super) fn open(&self, tree: &Arc<Tree>, node: &Arc<Node>) -> Result<Dir, Errno> {
        // Iterative: trees may be thousands of levels deep.
        let mut missing: Vec<(Arc<Node>, Place, ObjectId)> = Vec::new();
        let mut at = Arc::clone(node);
        let mut dir = loop {
            match at.key.object {
                Object::Rootfs => {
                    if let Some(dir) = self.cached(tree, at.ino, None, None) {
                        break dir;
                    }
                    let (dir, _) = tree.root()?;
                    self.keep(at.ino, tree, None, None, &dir);
                    break dir;
                }
                Object::Tree(id) => {
                    let place = at.place()?;
                    if let Some(dir) = self.cached(tree, at.ino, Some(id), Some(&place))
                        && is_at(&at, dir.path())
                    {
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
            self.keep(node.ino, tree, Some(*id), Some(place), &next);
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
    ) -> Option<Dir> {
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
        usable.then(|| found.dir.clone())
    }

    fn keep(
        &self,
        ino: u64,
        tree: &Arc<Tree>,
        id: Option<ObjectId>,
        place: Option<&Place>,
        dir: &Dir,
    ) {
        let place = place.map(|place| (place.parent.ino, Arc::clone(&place.name)));
        let open = Open { tree: Arc::clone(tree), id, place, dir: dir.clone() };
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
