//! Inode numbers: a fixed rule, so that they are the same after any remount or reboot.
//!
//! `number = mix(value ^ xxh3(xxh3(machine, seed = attempt), tag, layer, subvol; seed = attempt))`
//! but for files of a layer, whose lower half is that of their number on the disk:
//!
//! `number = (upper half of the above, of value = inode on disk >> 32) | lower half of the inode on disk`
//!
//! git keeps that half in its index, and reads every file whose number is another one there.
//!
//! `mix` is the bijective finalizer of splitmix64. For one (machine, tag, layer, subvol) two
//! different values therefore never share a number; across them a collision is as unlikely as with
//! a random 64-bit number (of two layers one in 2^32 has the other's upper half), and is resolved by the next `attempt` when
//! it is met. 0 and 1 are
//! reserved: the kernel treats 0 as "no entry", and 1 is the mount's root.
//!
//! | object | tag | layer, subvol | value |
//! |---|---|---|---|
//! | `NAME/` | 1 | 0, 0 | 0 |
//! | `NAME/report.json` | 2 | 0, 0 | hash of the text |
//! | `NAME/rootfs/` | 3 | 0, 0 | 0 |
//! | a name in a listing that only a lookup finds | 4 | 0, 0 | its place |
//! | `NAME/.generations/` | 5 | 0, 0 | 0 |
//! | `NAME/.generations/ID/` | 6 | 0, 0 | ID |
//! | `export.tar` | 7 | 0, retry | ID |
//! | file of a layer | 8 | its own | inode on disk |
//! | generated file | 9 | 0, hash of the content | hash of its path |
//! | `NAME/MIGRATE.md` | 10 | 0, 0 | hash of the text |
//! | `manifest.mtree` | 11 | 0, retry | ID |
//! | `NAME/.transfers` | 12 | 0, 0 | hash of the text |
//!
//! Changing any of this makes every backup tool read everything again. With `-o inode32` numbers are those of [`super::short`].

use crate::tree::ObjectId;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// What git keeps of a number.
const LOWER_HALF: u64 = 0xffff_ffff;

/// The number of the mount's root, given by the protocol.
pub(super) const ROOT: u64 = 1;

/// What a number stands for; equal keys are the same file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// Name of the machine; empty for the mount's root alone.
    pub(super) machine: Arc<str>,
    pub(super) object: Object,
}

/// The thing within a machine's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Object {
    /// The mount's root.
    Root,
    /// `NAME/`.
    Machine,
    /// One text about a machine: another text is another object.
    Page { page: Page, hash: u64 },
    /// `NAME/rootfs/`.
    Rootfs,
    /// A name as a listing shows it before anything looked it up: the how manieth of such names.
    Placeholder(u8),
    /// `NAME/.generations/`.
    Generations,
    /// `NAME/.generations/ID/`.
    GenerationDir(u64),
    /// `export.tar` of one generation. `retry` counts torn generations of the same id that the
    /// kernel still knows: their cached pages hold zeros and must never be seen under this one.
    Export { id: u64, retry: u32 },
    /// `manifest.mtree` of one generation, with the same `retry`.
    Manifest { id: u64, retry: u32 },
    /// An entry below `rootfs/`.
    Tree(ObjectId),
}

/// Which of the texts about a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Page {
    Report,
    Guide,
    Transfers,
}

impl Key {
    pub(super) fn new(machine: &Arc<str>, object: Object) -> Self {
        Self { machine: Arc::clone(machine), object }
    }

    /// The number of this key at the given attempt, `None` if that one is reserved.
    pub(super) fn number(&self, attempt: u64) -> Option<u64> {
        let (tag, layer, subvol, value) = match self.object {
            Object::Root => return Some(ROOT),
            Object::Machine => (1, 0, 0, 0),
            Object::Page { page: Page::Report, hash } => (2, 0, 0, hash),
            Object::Rootfs => (3, 0, 0, 0),
            Object::Placeholder(place) => (4, 0, 0, u64::from(place)),
            Object::Generations => (5, 0, 0, 0),
            Object::GenerationDir(id) => (6, 0, 0, id),
            Object::Export { id, retry } => (7, 0, u64::from(retry), id),
            Object::Tree(ObjectId::Disk { layer, subvol, ino }) => (8, layer, subvol, ino),
            Object::Tree(ObjectId::Generated { path, content }) => (9, 0, content, path),
            Object::Page { page: Page::Guide, hash } => (10, 0, 0, hash),
            Object::Manifest { id, retry } => (11, 0, u64::from(retry), id),
            Object::Page { page: Page::Transfers, hash } => (12, 0, 0, hash),
        };
        let machine = xxh3_64_with_seed(self.machine.as_bytes(), attempt);
        let mut prefix = [0_u8; 18];
        let [tag_at, layer_at, rest @ ..] = &mut prefix;
        *tag_at = tag;
        *layer_at = layer;
        let (machine_at, subvol_at) = rest.split_at_mut(8);
        machine_at.copy_from_slice(&machine.to_le_bytes());
        subvol_at.copy_from_slice(&subvol.to_le_bytes());
        let hash = xxh3_64_with_seed(&prefix, attempt);
        let number = match self.object {
            Object::Tree(ObjectId::Disk { .. }) => {
                (mix((value >> 32) ^ hash) & !LOWER_HALF) | (value & LOWER_HALF)
            }
            _ => mix(value ^ hash),
        };
        (number > ROOT).then_some(number)
    }
}

/// The finalizer of splitmix64, a bijection on 64-bit numbers.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn disk(machine: &str, layer: u8, subvol: u64, ino: u64) -> Key {
        Key::new(&machine.into(), Object::Tree(ObjectId::Disk { layer, subvol, ino }))
    }

    #[test]
    fn numbers_are_pinned() {
        // These two lines are a promise to every backup made so far.
        assert_eq!(disk("dev", 0, 0, 257).number(0), Some(PINNED_DISK));
        assert_eq!(Key::new(&"dev".into(), Object::Machine).number(0), Some(PINNED_MACHINE));
    }
    const PINNED_DISK: u64 = 1946588846242136321;
    const PINNED_MACHINE: u64 = 12876873490724383377;

    #[test]
    fn prefixes_separate() {
        let mut seen = HashSet::new();
        for machine in ["a", "b", "ab"] {
            for layer in 0..2 {
                for subvol in [0, 5, 256] {
                    for ino in 0..2000 {
                        assert!(seen.insert(disk(machine, layer, subvol, ino).number(0)));
                    }
                }
            }
        }
    }

    #[test]
    fn attempts_differ() {
        let key = disk("dev", 1, 0, 42);
        assert_ne!(key.number(0), key.number(1));
        assert_eq!(Key::new(&"".into(), Object::Root).number(7), Some(ROOT));
    }

    #[test]
    fn mix_has_no_two_sources_for_the_reserved_ones() {
        // mix is a bijection with mix(0) = 0, so exactly one value per prefix is reserved.
        assert_eq!(mix(0), 0);
        assert_ne!(mix(1), 1);
    }
}
