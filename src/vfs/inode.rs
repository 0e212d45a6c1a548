//! The inode table: what the kernel may still name by number.

use super::number::{Key, Object, ROOT};
use super::short::Short;
use super::text::Text;
use crate::export::Generation;
use crate::tree::{Kind, Time};
use parking_lot::Mutex;
use rustix::io::Errno;
use std::collections::hash_map::Entry as Slots;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Where an entry of a tree was found last.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) parent: Arc<Node>,
    pub(super) name: Arc<[u8]>,
    pub(super) kind: Kind,
}

/// What a file was when the kernel began to cache its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) ctime: Time,
    pub(super) mtime: Time,
    pub(super) size: u64,
}

/// One numbered thing. What never changes stands plain; the rest is behind locks that are held
/// for a copy only, in the order that [`Table`] names.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) ino: u64,
    pub(super) key: Key,
    /// `Some` exactly for an entry below `rootfs/`. Written only under the table's lock, which is
    /// what keeps the chain of parents free of cycles.
    place: Mutex<Option<Place>>,
    /// That of an `export.tar`, as long as it is served or kept: the kernel remembers numbers for longer than anybody
    /// wants a layout in memory.
    generation: Mutex<Weak<Generation>>,
    /// `Some` exactly for a text about a machine.
    pub(super) text: Mutex<Option<Box<Text>>>,
    /// Under which stamp the cached pages of a file were read; `None`: unknown, do not keep them.
    pub(super) stamp: Mutex<Option<Stamp>>,
    /// The ctime of a file when the kernel was last told of its content; `None` before it was opened.
    pub(super) seen: Mutex<Option<Time>>,
    /// The size of a file of a machine that the kernel was told last.
    pub(super) told_size: AtomicU64,
    /// The notices that this generation is torn are on their way.
    pub(super) told: Mutex<bool>,
    /// The kernel has had them.
    pub(super) settled: AtomicBool,
    /// An `export.tar` or a list was open since the kernel has this number: it may have pages.
    pub(super) opened: AtomicBool,
    /// The kernel is being told to drop these.
    pub(super) forgetting: AtomicBool,
}

impl Node {
    fn new(ino: u64, key: Key, found: Found) -> Self {
        let (mut place, mut generation, mut text) = (None, Weak::new(), None);
        match found {
            Found::Fixed => {}
            Found::Entry(found) => place = Some(found),
            Found::Generation(found) => generation = Arc::downgrade(&found),
            Found::Page(found) => text = Some(found),
        }
        Self {
            ino,
            key,
            place: Mutex::new(place),
            generation: Mutex::new(generation),
            text: Mutex::new(text),
            stamp: Mutex::new(None),
            seen: Mutex::new(None),
            told_size: AtomicU64::new(u64::MAX),
            told: Mutex::new(false),
            settled: AtomicBool::new(false),
            opened: AtomicBool::new(false),
            forgetting: AtomicBool::new(false),
        }
    }

    /// Where it was found last; ESTALE for what is no entry of a tree.
    pub(super) fn place(&self) -> Result<Place, Errno> {
        self.place.lock().clone().ok_or(Errno::STALE)
    }

    /// The generation of an `export.tar`; `None` if it is gone.
    pub(super) fn generation(&self) -> Option<Arc<Generation>> {
        self.generation.lock().upgrade()
    }
}

impl Drop for Node {
    /// Lets go of the parents one after the other: a tree may be thousands of levels deep, and
    /// dropping them inside each other would overflow the stack.
    fn drop(&mut self) {
        let mut next = self.place.get_mut().take();
        while let Some(place) = next {
            next = Arc::into_inner(place.parent).and_then(|mut node| node.place.get_mut().take());
        }
    }
}

/// What a lookup found, besides the key.
#[derive(Debug)]
pub(super) enum Found {
    /// Nothing more to remember.
    Fixed,
    /// An entry of a tree, here.
    Entry(Place),
    /// An `export.tar` or a `manifest.mtree`.
    Generation(Arc<Generation>),
    /// A text about a machine.
    Page(Box<Text>),
}

#[derive(Debug)]
struct Slot {
    node: Arc<Node>,
    /// How often the kernel was given this number. It takes it back with FORGET; dropping the node
    /// earlier makes every later call on an open file fail.
    lookups: u64,
}

#[derive(Debug, Default)]
struct Inner {
    by_number: HashMap<u64, Slot>,
    /// Keys whose first number was taken by another file.
    displaced: HashMap<Key, u64>,
    /// Numbers of texts about machines.
    texts: HashSet<u64>,
    /// Numbers that 32-bit programs can take, where they are asked for.
    short: Option<Short>,
}

/// Number to node. One lock, never held across I/O.
///
/// The order of all locks of this module: first the table's, then one of a [`Node`]'s own, and nothing of these but notices,
/// which are queued without a wait. Whoever has a node's lock takes neither the table's nor another node's. All others (open
/// handles, directories, texts, what a handle keeps) are held for a copy, and inside none but for notices.
#[derive(Debug)]
pub(super) struct Table {
    slots: Mutex<Inner>,
    root: Arc<Node>,
    /// How many directories were found elsewhere than before.
    pub(super) moves: AtomicU64,
}

impl Table {
    /// With `inode32`, numbers are below 2^32 as long as there are such.
    pub(super) fn new(inode32: bool) -> Self {
        let key = Key { machine: Arc::from(""), object: Object::Root };
        let short = inode32.then(Short::default);
        Self {
            slots: Mutex::new(Inner { short, ..Inner::default() }),
            root: Arc::new(Node::new(ROOT, key, Found::Fixed)),
            moves: AtomicU64::new(0),
        }
    }

    /// The node of a number. ESTALE if the kernel has given it back: it then looks up again.
    pub(super) fn get(&self, ino: u64) -> Result<Arc<Node>, Errno> {
        if ino == ROOT {
            return Ok(Arc::clone(&self.root));
        }
        let slots = self.slots.lock();
        slots.by_number.get(&ino).map(|slot| Arc::clone(&slot.node)).ok_or(Errno::STALE)
    }

    /// The number that `key` has or would get, without counting a lookup.
    pub(super) fn number(&self, key: &Key) -> u64 {
        self.slots.lock().number(key).0
    }

    /// The node of `key` if the kernel knows it.
    pub(super) fn find(&self, key: &Key) -> Option<Arc<Node>> {
        let mut slots = self.slots.lock();
        let (number, _) = slots.number(key);
        slots.by_number.get(&number).map(|slot| Arc::clone(&slot.node))
    }

    /// Counts a lookup of `key`; the latest place and generation win.
    pub(super) fn insert(&self, key: Key, found: Found) -> Result<Arc<Node>, Errno> {
        // Dropped only after the lock: the last reference to a deep chain takes its time.
        let old_place;
        let node;
        {
            let mut slots = self.slots.lock();
            let (number, displaced) = slots.number(&key);
            if displaced {
                slots.displaced.insert(key.clone(), number);
            }
            if matches!(found, Found::Page(_)) {
                slots.texts.insert(number);
            }
            match slots.by_number.entry(number) {
                Slots::Vacant(vacant) => {
                    node = Arc::new(Node::new(number, key, found));
                    vacant.insert(Slot { node: Arc::clone(&node), lookups: 1 });
                    return Ok(node);
                }
                Slots::Occupied(mut slot) => {
                    let slot = slot.get_mut();
                    old_place = slot.node.update(found)?;
                    if old_place.as_ref().is_some_and(|old: &Place| old.kind == Kind::Directory) {
                        self.moves.fetch_add(1, Ordering::SeqCst);
                    }
                    slot.lookups = slot.lookups.saturating_add(1);
                    node = Arc::clone(&slot.node);
                }
            }
        }
        drop(old_place);
        Ok(node)
    }

    /// Takes back `count` lookups.
    pub(super) fn forget(&self, ino: u64, count: u64) {
        let gone = {
            let mut slots = self.slots.lock();
            let Some(slot) = slots.by_number.get_mut(&ino) else { return };
            slot.lookups = slot.lookups.saturating_sub(count);
            if slot.lookups > 0 {
                return;
            }
            let gone = slots.by_number.remove(&ino);
            slots.texts.remove(&ino);
            if !slots.displaced.is_empty() {
                slots.displaced.retain(|_, number| *number != ino);
            }
            gone
        };
        drop(gone);
    }

    /// Lets go of texts that nobody has needed for a while. The kernel remembers numbers for as long as it has memory.
    pub(super) fn tidy(&self) {
        let slots = self.slots.lock();
        for slot in slots.texts.iter().filter_map(|ino| slots.by_number.get(ino)) {
            if let Some(text) = slot.node.text.lock().as_deref_mut() {
                text.tidy();
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.slots.lock().by_number.len()
    }
}

impl Inner {
    /// The number of `key`, and whether it is another one than its first because somebody else has that.
    fn number(&mut self, key: &Key) -> (u64, bool) {
        if let Some(number) = self.displaced.get(key) {
            return (*number, true);
        }
        let short = self.short.as_mut().map(|short| short.numbers(key)).into_iter().flatten();
        // Ends: there are fewer nodes than attempts.
        let all = short.chain((0..=u64::MAX).filter_map(|attempt| key.number(attempt)));
        let by_number = &self.by_number;
        all.enumerate()
            .find(|(_, number)| by_number.get(number).is_none_or(|slot| slot.node.key == *key))
            .map_or((ROOT, false), |(place, number)| (number, place > 0))
    }
}

impl Node {
    /// Takes over a newer finding; returns what it replaced. Called under the table's lock.
    fn update(&self, found: Found) -> Result<Option<Place>, Errno> {
        match found {
            Found::Fixed => Ok(None),
            Found::Generation(generation) => {
                *self.generation.lock() = Arc::downgrade(&generation);
                Ok(None)
            }
            Found::Page(text) => {
                *self.text.lock() = Some(text);
                Ok(None)
            }
            Found::Entry(place) => {
                let same = self.place.lock().as_ref().is_some_and(|old| {
                    Arc::ptr_eq(&old.parent, &place.parent)
                        && old.name == place.name
                        && old.kind == place.kind
                });
                if same {
                    return Ok(None);
                }
                if place.kind == Kind::Directory && self.is_above(&place.parent) {
                    return Err(Errno::STALE);
                }
                Ok(self.place.lock().replace(place))
            }
        }
    }

    /// Whether this node is `below` or one of its parents. A directory that was moved into its own
    /// former child would close a circle that no walk to the root leaves again.
    fn is_above(&self, below: &Arc<Node>) -> bool {
        let mut at = Arc::clone(below);
        loop {
            if at.ino == self.ino {
                return true;
            }
            let Ok(place) = at.place() else { return false };
            at = place.parent;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::ObjectId;

    fn key(ino: u64) -> Key {
        Key::new(&"dev".into(), Object::Tree(ObjectId::Disk { layer: 0, subvol: 0, ino }))
    }

    fn below(parent: &Arc<Node>, name: &str, kind: Kind) -> Found {
        Found::Entry(Place { parent: Arc::clone(parent), name: name.as_bytes().into(), kind })
    }

    fn rootfs(table: &Table) -> Arc<Node> {
        table.insert(Key::new(&"dev".into(), Object::Rootfs), Found::Fixed).unwrap()
    }

    #[test]
    fn lookups_are_counted_and_forgotten() {
        let table = Table::new(false);
        let top = rootfs(&table);
        let one = table.insert(key(5), below(&top, "a", Kind::File)).unwrap();
        let two = table.insert(key(5), below(&top, "b", Kind::File)).unwrap();
        assert!(Arc::ptr_eq(&one, &two), "hard links share a node");
        assert_eq!(&*one.place().unwrap().name, b"b", "the latest place wins");
        table.forget(one.ino, 1);
        assert!(table.get(one.ino).is_ok());
        table.forget(one.ino, 1);
        assert_eq!(table.get(one.ino).unwrap_err(), Errno::STALE);
        table.forget(one.ino, 9);
        table.forget(ROOT, 1);
        assert!(table.get(ROOT).is_ok());
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn a_collision_moves_aside_and_stays_there() {
        let table = Table::new(false);
        let top = rootfs(&table);
        let victim = key(5);
        let first = victim.number(0).unwrap();
        // Another file sits on the number.
        let squatter = Arc::new(Node::new(first, key(6), Found::Fixed));
        let slot = Slot { node: squatter, lookups: 1 };
        table.slots.lock().by_number.insert(first, slot);
        assert_eq!(table.number(&victim), victim.number(1).unwrap());
        let node = table.insert(victim.clone(), below(&top, "a", Kind::File)).unwrap();
        assert_eq!(Some(node.ino), victim.number(1));
        // With the squatter gone it keeps its number as long as the kernel knows it.
        table.forget(first, 1);
        let again = table.insert(victim.clone(), below(&top, "a", Kind::File)).unwrap();
        assert!(Arc::ptr_eq(&node, &again));
        table.forget(node.ino, 2);
        assert_eq!(table.number(&victim), first);
    }

    #[test]
    fn a_circle_of_directories_is_refused() {
        let table = Table::new(false);
        let top = rootfs(&table);
        let a = table.insert(key(1), below(&top, "a", Kind::Directory)).unwrap();
        let b = table.insert(key(2), below(&a, "b", Kind::Directory)).unwrap();
        let moved = table.insert(key(1), below(&b, "a", Kind::Directory));
        assert_eq!(moved.unwrap_err(), Errno::STALE);
        assert!(Arc::ptr_eq(&a.place().unwrap().parent, &top));
    }

    #[test]
    fn a_deep_chain_is_dropped_without_recursion() {
        let table = Table::new(false);
        let mut at = rootfs(&table);
        for ino in 0..200_000 {
            let next = table.insert(key(ino), below(&at, "d", Kind::Directory)).unwrap();
            table.forget(at.ino, 1);
            at = next;
        }
        table.forget(at.ino, 1);
        drop(at);
        assert_eq!(table.len(), 0);
    }
}
