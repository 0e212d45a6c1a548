//! Listing directories.

use super::handle::{Handle, Listed, Listing, Source};
use super::inode::{Found, Node};
use super::namespace::{GUIDE, REPORT, ROOTFS, is_late};
use super::number::{Key, Object};
use super::{DirEntry, Entry, Vfs};
use crate::tree::{Kind, Time};
use parking_lot::Mutex;
use rustix::io::Errno;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Attributes older than this are read again before the kernel gets them: it then believes them
/// for another second, however long ago the reader began.
const STALE_AFTER: Duration = Duration::from_millis(500);

impl Vfs {
    /// Opens a directory. Nothing is read yet.
    pub fn open_dir(&self, ino: u64) -> Result<u64, Errno> {
        let node = self.table.get(ino)?;
        match node.key.object {
            Object::Tree(_) if node.place()?.kind != Kind::Directory => return Err(Errno::NOTDIR),
            Object::Tree(_) | Object::Rootfs => {
                self.dirs.open(&self.tree(&node.key.machine)?, &node, &self.table.moves)?;
            }
            Object::Root | Object::Machine | Object::Generations | Object::GenerationDir(_) => {}
            _ => return Err(Errno::NOTDIR),
        }
        Ok(self.handles.add(Handle::Directory { node, listing: Mutex::new(None) }))
    }

    /// Hands the entries from `offset` on to `add` until it answers that it is full. With `plus`,
    /// every entry but `.` and `..` has attributes and counts as looked up if `add` took it.
    ///
    /// Never scans, makes no text and looks at no machine but the directory's own: `export.tar`, the texts and the machines have a
    /// stand-in there, valid for no time, so that the next look at one is a lookup.
    pub fn read_dir(
        &self,
        handle: u64,
        offset: u64,
        plus: bool,
        add: &mut dyn FnMut(&DirEntry<'_>) -> bool,
    ) -> Result<(), Errno> {
        let handle = self.handles.get(handle)?;
        let Handle::Directory { node, listing } = &*handle else { return Err(Errno::NOTDIR) };
        let known = listing.lock().clone();
        let taken = match known {
            Some(known) if offset > 0 => known,
            // The beginning, perhaps again after rewinddir(3): what is there now.
            _ => {
                let taken = Arc::new(self.list(node)?);
                *listing.lock() = Some(Arc::clone(&taken));
                taken
            }
        };
        let mut empty = true;
        for (next, listed) in taken.from(offset) {
            let entry = match self.plus_entry(node, listed, plus, taken.taken) {
                Ok(entry) => entry,
                Err(Errno::NOENT | Errno::STALE) => match self.is_there(node) {
                    // Gone meanwhile.
                    Ok(()) => continue,
                    // With all that is around it: an end here would say that there was no more of it. What has been added stays
                    // an answer, and the next one begins here.
                    Err(error) if empty => return Err(error),
                    Err(_) => break,
                },
                // A name without attributes: the reader's own look at it gets the error. Left out, it would be missing
                // from a copy without a word.
                Err(error) => {
                    tracing::debug!(ino = node.ino, %error, "listed without attributes");
                    match self.name_only(node, listed) {
                        Ok(entry) => entry,
                        Err(_) => continue,
                    }
                }
            };
            let ino = match (&entry, &listed.source) {
                (Some(entry), _) => entry.attr.ino,
                (None, Source::Dots(ino)) => *ino,
                (None, Source::Fixed(key)) => self.table.number(key),
                (None, Source::Tree(attr) | Source::Late(attr)) => {
                    self.table.number(&Key::new(&node.key.machine, Object::Tree(attr.id)))
                }
            };
            let kind = entry.map_or(listed.kind, |entry| entry.attr.kind);
            let full = add(&DirEntry { ino, offset: next, kind, name: &listed.name, entry });
            if full {
                if entry.is_some() {
                    self.table.forget(ino, 1);
                }
                break;
            }
            empty = false;
        }
        Ok(())
    }

    fn plus_entry(
        &self,
        node: &Arc<Node>,
        listed: &Listed,
        plus: bool,
        taken: Instant,
    ) -> Result<Option<Entry>, Errno> {
        if !plus {
            return Ok(None);
        }
        match &listed.source {
            Source::Dots(_) => Ok(None),
            Source::Fixed(key) if matches!(key.object, Object::Placeholder(_)) => {
                self.insert_fixed(key.clone(), None).map(|entry| Some(unlinked(entry)))
            }
            // Of each machine, whoever looks at it waits for it.
            Source::Fixed(key) if key.object == Object::Machine => self.name_only(node, listed),
            Source::Fixed(_) => self.lookup_in(node, &listed.name).map(Some),
            Source::Late(attr) => {
                self.insert_entry(node, &listed.name, attr).map(|entry| Some(unlinked(entry)))
            }
            Source::Tree(attr) if taken.elapsed() < STALE_AFTER => {
                self.insert_entry(node, &listed.name, attr).map(Some)
            }
            Source::Tree(_) => self.lookup_in(node, &listed.name).map(Some),
        }
    }

    /// Fails if what a directory is in is gone: its machine, or all files of that.
    fn is_there(&self, node: &Node) -> Result<(), Errno> {
        match node.key.object {
            Object::Root => Ok(()),
            Object::Rootfs | Object::Tree(_) => self.tree(&node.key.machine).map(drop),
            _ => self.machines.get(node.key.machine.as_bytes()).map(drop).ok_or(Errno::STALE),
        }
    }

    /// An entry whose attributes cannot be read. The kernel gives its number back at once, so it counts as looked up: else
    /// that would be somebody else's lookup, and a file that is open would be forgotten.
    fn name_only(&self, node: &Arc<Node>, listed: &Listed) -> Result<Option<Entry>, Errno> {
        let entry = match &listed.source {
            Source::Dots(_) => return Ok(None),
            Source::Fixed(key) => {
                let node = self.table.insert(key.clone(), Found::Fixed)?;
                let attr = self.own_attr(node.ino, listed.kind, 0o600, 0, Time::default());
                self.entry(attr, Duration::ZERO)
            }
            Source::Tree(attr) | Source::Late(attr) => {
                self.insert_entry(node, &listed.name, attr)?
            }
        };
        Ok(Some(unlinked(entry)))
    }

    /// The entries of a directory as of now.
    fn list(&self, node: &Arc<Node>) -> Result<Listing, Errno> {
        let taken = Instant::now();
        let mut entries = vec![dots(b".", node.ino), dots(b"..", self.parent_of(node)?)];
        let machine = &node.key.machine;
        let mut fixed = |name: &str, kind, key| {
            let source = Source::Fixed(key);
            entries.push(Listed { name: name.as_bytes().into(), kind, source });
        };
        match node.key.object {
            Object::Root => {
                for name in self.machines.names()? {
                    fixed(&name, Kind::Directory, Key::new(&name, Object::Machine));
                }
            }
            Object::Machine => {
                let found = self.machines.get(machine.as_bytes()).ok_or(Errno::NOENT)?;
                found.may_be_listed()?;
                let placeholder = |place| Key::new(machine, Object::Placeholder(place));
                fixed(GUIDE, Kind::File, placeholder(2));
                if found.exports.is_some() {
                    fixed(self.machines.export_name(), Kind::File, placeholder(0));
                }
                fixed(REPORT, Kind::File, placeholder(1));
                if found.tree.is_ok() {
                    fixed(ROOTFS, Kind::Directory, Key::new(machine, Object::Rootfs));
                }
            }
            // Named by id only.
            Object::Generations => {}
            Object::GenerationDir(_) => {
                fixed(
                    self.machines.export_name(),
                    Kind::File,
                    Key::new(machine, Object::Placeholder(0)),
                );
            }
            Object::Rootfs | Object::Tree(_) => {
                let tree = self.tree(machine)?;
                let dir = self.dirs.open(&tree, node, &self.table.moves)?;
                entries.extend(tree.read_dir(&dir)?.into_iter().map(|entry| Listed {
                    name: entry.name,
                    kind: entry.attr.kind,
                    source: match is_late(&tree, &entry.attr) {
                        true => Source::Late(entry.attr),
                        false => Source::Tree(entry.attr),
                    },
                }));
            }
            _ => return Err(Errno::NOTDIR),
        }
        Ok(Listing { taken, entries })
    }

    /// The number that `..` shows.
    fn parent_of(&self, node: &Node) -> Result<u64, Errno> {
        let object = match node.key.object {
            Object::Tree(_) => return node.place().map(|place| place.parent.ino),
            Object::Root | Object::Machine => return Ok(super::number::ROOT),
            Object::GenerationDir(_) => Object::Generations,
            _ => Object::Machine,
        };
        Ok(self.table.number(&Key::new(&node.key.machine, object)))
    }
}

/// What only a lookup may tell, as a listing has it: with a size that no file has. The kernel then lists the name and does
/// not link it (fs/fuse/readdir.c, `fuse_invalid_attr`); linking it would wait for a lookup of the same name, and that
/// one scans.
fn unlinked(entry: Entry) -> Entry {
    let (attr_ttl, entry_ttl) = (Duration::ZERO, Duration::ZERO);
    Entry { attr: super::Attr { size: u64::MAX, ..entry.attr }, attr_ttl, entry_ttl }
}

fn dots(name: &[u8], ino: u64) -> Listed {
    Listed { name: name.into(), kind: Kind::Directory, source: Source::Dots(ino) }
}
