//! Names and attributes: what is where, and what it looks like.

use super::handle::Handle;
use super::inode::{Found, Node};
use super::number::{Key, Object, Page};
use super::{Attr, BLOCK, BRIEF, EXPORT_BLOCK, Entry, LASTING, NAME_MAX, Vfs, moved};
use crate::export::{Exports, Generation, ScanFile};
use crate::machine::Machine;
use crate::tree::{self, Kind, Time, Tree};
use rustix::io::Errno;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The names in `NAME/`, as listed, beside that of the tar.
pub(super) const REPORT: &str = "report.json";
pub(super) const GUIDE: &str = "MIGRATE.md";
pub(super) const ROOTFS: &str = "rootfs";
/// Found by name, never listed, so that no backup reads every file once more for it.
pub(super) const MANIFEST: &str = "manifest.mtree";
/// The same: it is another one each time.
const TRANSFERS: &[u8] = b".transfers";
/// Found by name, never listed, so that no backup walks in.
const GENERATIONS: &str = ".generations";

/// Why a lookup takes long by its nature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slow {
    /// The machine may be scanned for it.
    Scan,
    /// A text is made.
    Text,
}

impl Vfs {
    /// Looks a name up, unless that takes long by its nature: then nothing has happened, and [`Vfs::lookup`] is to be called
    /// where waiting holds up nobody else.
    pub fn lookup_at_once(&self, parent: u64, name: &[u8]) -> Result<Result<Entry, Errno>, Slow> {
        let node = match self.table.get(parent) {
            Ok(node) => node,
            Err(error) => return Ok(Err(error)),
        };
        match node.key.object {
            Object::Machine if name == self.export_name() => {
                let exports = match self.exports(&node.key.machine) {
                    Ok(exports) => exports,
                    Err(error) => return Ok(Err(error)),
                };
                let generation = exports.fresh().ok_or(Slow::Scan)?;
                Ok(self.insert_generation(&node, generation))
            }
            // Making the list's size looks at every member.
            Object::Machine | Object::GenerationDir(_) if name == MANIFEST.as_bytes() => {
                let exports = self.exports(&node.key.machine).map_err(|_| Slow::Scan)?;
                let sized = exports.fresh().filter(|generation| generation.manifest_is_sized());
                sized.ok_or(Slow::Scan)?;
                Ok(self.lookup_in(&node, name))
            }
            // Made anew for each look, of up to some megabytes.
            Object::Machine if [REPORT, GUIDE].iter().any(|page| name == page.as_bytes()) => {
                Err(Slow::Text)
            }
            Object::Tree(_) if ScanFile::may_be(name) && self.would_scan(&node) => Err(Slow::Scan),
            _ => Ok(self.lookup_in(&node, name)),
        }
    }

    /// Whether the scan that a [`ScanFile`] needs has yet to be done. Its name alone says little, and elsewhere a thread of
    /// its own costs little.
    fn would_scan(&self, node: &Node) -> bool {
        self.exports(&node.key.machine).is_ok_and(|exports| exports.fresh().is_none())
    }

    /// Looks a name up; of `export.tar` this may scan the machine's tree.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<Entry, Errno> {
        let node = self.table.get(parent)?;
        self.lookup_in(&node, name)
    }

    pub(super) fn lookup_in(&self, parent: &Arc<Node>, name: &[u8]) -> Result<Entry, Errno> {
        if name.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        match parent.key.object {
            Object::Root => {
                let machine = self.machines.get(name).ok_or(Errno::NOENT)?;
                self.insert_fixed(Key::new(&machine.name, Object::Machine), Some(&machine))
            }
            Object::Machine => self.lookup_in_machine(parent, name),
            Object::Generations => {
                let id = parse_id(name).ok_or(Errno::NOENT)?;
                self.exports(&parent.key.machine)?.by_id(id).ok_or(Errno::NOENT)?;
                let key = Key::new(&parent.key.machine, Object::GenerationDir(id));
                self.insert_fixed(key, None)
            }
            Object::GenerationDir(id) if name == self.export_name() => {
                let exports = self.exports(&parent.key.machine)?;
                self.insert_generation(parent, exports.by_id(id).ok_or(Errno::NOENT)?)
            }
            Object::GenerationDir(id) if name == MANIFEST.as_bytes() => {
                let exports = self.exports(&parent.key.machine)?;
                self.insert_manifest(parent, exports.by_id(id).ok_or(Errno::NOENT)?)
            }
            Object::GenerationDir(_) => Err(Errno::NOENT),
            Object::Rootfs | Object::Tree(_) => {
                let tree = self.tree(&parent.key.machine)?;
                let dir = self.dirs.open(&tree, parent, &self.table.moves)?;
                let mut attr = tree.lookup(&dir, name)?;
                if is_late(&tree, &attr) {
                    let generation = self.exports(&parent.key.machine)?.lookup()?;
                    attr = generation.settled(attr);
                }
                self.insert_entry(parent, name, &attr)
            }
            _ => Err(Errno::NOTDIR),
        }
    }

    fn lookup_in_machine(&self, parent: &Arc<Node>, name: &[u8]) -> Result<Entry, Errno> {
        let machine = self.machines.get(parent.key.machine.as_bytes()).ok_or(Errno::STALE)?;
        let object = if name == REPORT.as_bytes() {
            return self.insert_page(Page::Report, &machine);
        } else if name == GUIDE.as_bytes() {
            return self.insert_page(Page::Guide, &machine);
        } else if name == TRANSFERS {
            return self.insert_page(Page::Transfers, &machine);
        } else if machine.tree.is_err() {
            return Err(machine.missing());
        } else if name == ROOTFS.as_bytes() {
            Object::Rootfs
        } else if name == GENERATIONS.as_bytes() {
            Object::Generations
        } else if name == self.export_name() {
            let exports = machine.exports.as_ref().ok_or(Errno::NOENT)?;
            return self.insert_generation(parent, exports.lookup()?);
        } else if name == MANIFEST.as_bytes() {
            let exports = machine.exports.as_ref().ok_or(Errno::NOENT)?;
            return self.insert_manifest(parent, exports.lookup()?);
        } else {
            return Err(Errno::NOENT);
        };
        self.insert_fixed(Key::new(&machine.name, object), Some(&machine))
    }

    /// Counts a lookup of one of our own names.
    pub(super) fn insert_fixed(&self, key: Key, machine: Option<&Machine>) -> Result<Entry, Errno> {
        let attr = self.attr_of_fixed(&key, 0, machine)?;
        let node = self.table.insert(key, Found::Fixed)?;
        Ok(self.entry(Attr { ino: node.ino, ..attr }, BRIEF))
    }

    /// Counts a lookup of a generation. A torn one that the kernel still knows under the same id
    /// has zeros in cached pages: the new one then gets another number.
    fn insert_generation(
        &self,
        parent: &Node,
        generation: Arc<Generation>,
    ) -> Result<Entry, Errno> {
        let id = generation.id();
        let node = self.insert_of(parent, &generation, |retry| Object::Export { id, retry })?;
        Ok(self.entry_of(&generation, self.attr_of_generation(node.ino, &generation)))
    }

    fn insert_manifest(&self, parent: &Node, generation: Arc<Generation>) -> Result<Entry, Errno> {
        let id = generation.id();
        let node = self.insert_of(parent, &generation, |retry| Object::Manifest { id, retry })?;
        Ok(self.entry_of(&generation, self.attr_of_manifest(node.ino, &generation)))
    }

    fn insert_of(
        &self,
        parent: &Node,
        generation: &Arc<Generation>,
        object: impl Fn(u32) -> Object,
    ) -> Result<Arc<Node>, Errno> {
        let key = (0..=u32::MAX)
            .map(|retry| Key::new(&parent.key.machine, object(retry)))
            .find(|key| {
                self.table.find(key).is_none_or(|node| match node.generation() {
                    Some(known) => Arc::ptr_eq(&known, generation) || !known.torn(),
                    None => !*node.told.lock(),
                })
            })
            .ok_or(Errno::STALE)?;
        self.table.insert(key, Found::Generation(Arc::clone(generation)))
    }

    /// The next look at the name of a torn generation has to meet another one.
    fn entry_of(&self, generation: &Generation, attr: Attr) -> Entry {
        let mut entry = self.entry(attr, LASTING);
        if generation.torn() {
            entry.entry_ttl = Duration::ZERO;
        }
        entry
    }

    /// The name of every machine's tar.
    pub(super) fn export_name(&self) -> &'static [u8] {
        self.machines.export_name().as_bytes()
    }

    pub(super) fn exports(&self, machine: &Arc<str>) -> Result<Arc<Exports>, Errno> {
        let machine = self.machines.get(machine.as_bytes()).ok_or(Errno::STALE)?;
        machine.exports.as_ref().map(Arc::clone).ok_or_else(|| machine.missing())
    }

    /// Attributes of a number, or of an open handle of it. The handle keeps them available when
    /// the name is gone.
    pub fn getattr(&self, ino: u64, handle: Option<u64>) -> Result<Entry, Errno> {
        if let Some(handle) = handle {
            return self.attr_of_handle(&*self.handles.get(handle)?);
        }
        let node = self.table.get(ino)?;
        match self.attr_of_node(&node) {
            // fstat(2) comes without its handle.
            Err(Errno::STALE) => match self.handles.of_inode(ino) {
                Some(open) => self.attr_of_handle(&open),
                None => Err(Errno::STALE),
            },
            other => other,
        }
    }

    fn attr_of_node(&self, node: &Arc<Node>) -> Result<Entry, Errno> {
        match node.key.object {
            Object::Tree(id) => {
                let (tree, dir, place) = self.place_of(node)?;
                let mut attr = tree.lookup(&dir, &place.name).map_err(moved)?;
                if is_late(&tree, &attr) {
                    // No scan here. Without one, the kernel looks the name up.
                    let last = self.exports(&node.key.machine)?.last();
                    attr = last.ok_or(Errno::STALE)?.settled(attr);
                }
                if attr.id != id {
                    return Err(Errno::STALE);
                }
                Ok(self.entry(self.tell(node, &attr), BRIEF))
            }
            Object::Page { .. } => Ok(self.entry(self.attr_of_page(node)?, LASTING)),
            Object::Export { .. } => {
                let generation = node.generation().ok_or(Errno::STALE)?;
                Ok(self.entry(self.attr_of_generation(node.ino, &generation), LASTING))
            }
            Object::Manifest { .. } => {
                let generation = node.generation().ok_or(Errno::STALE)?;
                Ok(self.entry(self.attr_of_manifest(node.ino, &generation), LASTING))
            }
            // It exists in listings only: whoever asks has to look the name up.
            Object::Placeholder(_) => Err(Errno::STALE),
            _ => {
                let machine = self.machines.get(node.key.machine.as_bytes());
                let attr = self.attr_of_fixed(&node.key, node.ino, machine.as_deref())?;
                Ok(self.entry(attr, BRIEF))
            }
        }
    }

    fn attr_of_handle(&self, handle: &Handle) -> Result<Entry, Errno> {
        match handle {
            Handle::Disk { node, tree, file, attr } => {
                let attr = tree.attr_of(file, attr)?;
                Ok(self.entry(self.tell(node, &attr), BRIEF))
            }
            Handle::Bytes { attr, .. } | Handle::Scanned { attr, .. } => {
                Ok(self.entry(*attr, BRIEF))
            }
            Handle::Export { node, hold, .. } => {
                Ok(self.entry(self.attr_of_generation(node.ino, hold.generation()), LASTING))
            }
            Handle::Manifest { node, hold, .. } => {
                Ok(self.entry(self.attr_of_manifest(node.ino, hold.generation()), LASTING))
            }
            Handle::Directory { node, .. } => self.attr_of_node(node),
        }
    }

    /// Attributes of a name of ours.
    fn attr_of_fixed(&self, key: &Key, ino: u64, machine: Option<&Machine>) -> Result<Attr, Errno> {
        // That of its rootfs, which a remount does not change.
        let time = machine.map(Machine::time).unwrap_or_default();
        let directory = |perm| self.own_attr(ino, Kind::Directory, perm, 0, time);
        Ok(match key.object {
            Object::Root => directory(0o755),
            Object::Machine => {
                machine.ok_or(Errno::STALE)?;
                directory(if self.access.others { 0o755 } else { 0o700 })
            }
            Object::Generations | Object::GenerationDir(_) => directory(0o700),
            Object::Rootfs => {
                let machine = machine.ok_or(Errno::STALE)?;
                let tree = machine.tree.as_ref().map_err(|_| Errno::STALE)?;
                let (_, attr) = tree.root()?;
                let attr = Attr::of(ino, &attr);
                Attr { perm: 0o755, uid: 0, gid: 0, nlink: 1, ..attr }
            }
            Object::Placeholder(_) => self.own_attr(ino, Kind::File, 0o600, 0, time),
            Object::Page { .. }
            | Object::Export { .. }
            | Object::Manifest { .. }
            | Object::Tree(_) => return Err(Errno::STALE),
        })
    }

    fn attr_of_generation(&self, ino: u64, generation: &Generation) -> Attr {
        let size = generation.size();
        let attr = self.own_attr(ino, Kind::File, 0o600, size, generation.mtime());
        // Without blocks `tar -S` takes the whole file for a hole.
        Attr { ctime: generation.ctime(), blocks: size / 512, blksize: EXPORT_BLOCK, ..attr }
    }

    /// Of the list, which is as old as what it lists.
    fn attr_of_manifest(&self, ino: u64, generation: &Arc<Generation>) -> Attr {
        let size = generation.manifest_size();
        let attr = self.own_attr(ino, Kind::File, 0o600, size, generation.mtime());
        Attr { ctime: generation.ctime(), ..attr }
    }

    pub(super) fn own_attr(&self, ino: u64, kind: Kind, perm: u16, size: u64, time: Time) -> Attr {
        Attr {
            ino,
            kind,
            perm,
            nlink: 1,
            uid: self.access.uid,
            gid: self.access.gid,
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            rdev: (0, 0),
            blksize: BLOCK,
        }
    }
}

/// Whether an entry is the generated file whose content only a scan knows.
pub(super) fn is_late(tree: &Tree, attr: &tree::Attr) -> bool {
    tree.generated_file(attr.id).is_some_and(|file| file.content.is_none())
}

/// The wall clock.
pub(super) fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time { sec: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nsec: since.subsec_nanos() }
}

/// A generation's id as it is written in a path: 16 lower-case hexadecimal digits, so that each
/// generation has one path only.
fn parse_id(name: &[u8]) -> Option<u64> {
    let lower = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if name.len() != 16 || !name.iter().all(lower) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(name).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_spelling() {
        assert_eq!(parse_id(b"00000000000000ff"), Some(255));
        for bad in ["ff", "00000000000000FF", "+0000000000000ff", "", "0000000000000 ff"] {
            assert_eq!(parse_id(bad.as_bytes()), None, "{bad}");
        }
    }
}
