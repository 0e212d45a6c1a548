//! Inode numbers below 2^32, for 32-bit programs without large-file support: they get EOVERFLOW for a longer one from stat(2)
//! and readdir(3), and mostly take that for the end of the directory.
//!
//! Where a reader meets one number twice, it may take the second file for a further name of the first. So no two files of a
//! layer share one as long as a mount lasts, even if the kernel has forgotten the first. What is known of each file is too
//! much to be kept for that; instead, numbers are given away in blocks, as inodes lie on a disk:
//!
//! `number = block of (machine, layer, subvolume, inode on disk >> 14) << 14 | lower 14 bits of the inode on disk`
//!
//! A home's files keep their numbers, since git has them in its index and reads every file whose number is another one. All
//! else begins at a place of its own, so that the numbers are the same after a remount unless two of them meet: then whoever
//! is looked at later gets the next free block. What is no file of a layer has one name, and needs a number that nobody has at
//! the time: it is hashed into what is above all blocks.

use super::number::{Key, Object, ROOT};
use crate::tree::ObjectId;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Bits of a number within its block: inodes on ext4 come in groups of 8192 and more.
const BLOCK_BITS: u32 = 14;
const WITHIN_BLOCK: u64 = (1 << BLOCK_BITS) - 1;
/// What git keeps of a number, of the number of a block.
const LOWER_HALF: u64 = (1 << (32 - BLOCK_BITS)) - 1;
/// From here on numbers are hashed.
const HASHED: u32 = 0xf000_0000;
const BLOCKS: u32 = HASHED >> BLOCK_BITS;
/// How many hashed numbers are tried: with a million of them in use, each is free with more than 99 %.
const ATTEMPTS: u64 = 16;
/// The layer that keeps its numbers.
const HOME: u8 = 1;

/// Which blocks are whose.
#[derive(Debug, Default)]
pub(super) struct Short {
    /// By machine, layer and subvolume, and the block on its disk.
    owned: HashMap<(Arc<str>, u8, u64), HashMap<u64, u32>>,
    taken: HashSet<u32>,
}

impl Short {
    /// Short numbers that `key` may have, the best first. Of a file of a layer it is one, which no other file has had or gets.
    /// None are left where the disks of the machines have more inodes than there are numbers.
    pub(super) fn numbers(&mut self, key: &Key) -> impl Iterator<Item = u64> + use<> {
        let own = match key.object {
            Object::Tree(ObjectId::Disk { layer, subvol, ino }) => {
                let block = self.block(key, layer, subvol, ino >> BLOCK_BITS);
                block.map(|block| u64::from(block) << BLOCK_BITS | (ino & WITHIN_BLOCK))
            }
            _ => Some(0),
        };
        // The root of a tmpfs has the number that is the mount's own here.
        let hashes = own.is_some_and(|number| number <= ROOT).then(|| key.clone());
        let hashed = hashes.into_iter().flat_map(|key| {
            let numbers = (0..ATTEMPTS).filter_map(move |attempt| key.number(attempt));
            // Both halves: the lower one may be that of the disk, whatever the attempt.
            numbers.map(|number| u64::from(HASHED) | ((number ^ number >> 32) & u64::from(!HASHED)))
        });
        own.filter(|number| *number > ROOT).into_iter().chain(hashed)
    }

    fn block(&mut self, key: &Key, layer: u8, subvol: u64, block: u64) -> Option<u32> {
        let owner = (Arc::clone(&key.machine), layer, subvol);
        if let Some(known) = self.owned.get(&owner).and_then(|blocks| blocks.get(&block)) {
            return Some(*known);
        }
        if self.taken.len() >= BLOCKS as usize {
            return None;
        }
        let start = match (layer, subvol) {
            (HOME, 0) => 0,
            _ => {
                let first = Object::Tree(ObjectId::Disk { layer, subvol, ino: 0 });
                Key::new(&key.machine, first).number(0).unwrap_or(0) >> 32
            }
        };
        let wanted = start.wrapping_add(block & LOWER_HALF) % u64::from(BLOCKS);
        let wanted = u32::try_from(wanted).ok()?;
        let free = (wanted..BLOCKS).chain(0..wanted).find(|block| !self.taken.contains(block))?;
        self.taken.insert(free);
        self.owned.entry(owner).or_default().insert(block, free);
        Some(free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(machine: &str, layer: u8, ino: u64) -> Key {
        Key::new(&machine.into(), Object::Tree(ObjectId::Disk { layer, subvol: 0, ino }))
    }

    #[test]
    fn files_of_a_home_keep_their_numbers_and_no_two_files_ever_share_one() {
        let mut short = Short::default();
        let mut seen = HashSet::new();
        for machine in ["dev", "other"] {
            for layer in [1, 0] {
                for ino in (2..100_000).step_by(7) {
                    let key = file(machine, layer, ino);
                    let number = short.numbers(&key).next().unwrap();
                    assert!(number < u64::from(HASHED));
                    assert!(seen.insert(number), "{machine} {layer} {ino}");
                    assert_eq!(short.numbers(&key).next(), Some(number), "it stays");
                    if (machine, layer) == ("dev", 1) {
                        assert_eq!(number, ino);
                    }
                }
            }
        }
    }

    #[test]
    fn a_remount_gives_the_same_numbers_whatever_is_looked_at_first() {
        let files: Vec<_> = (1..20).map(|n| file("dev", (n % 2) as u8, n << 20 | 5)).collect();
        let (mut forwards, mut backwards) = (Short::default(), Short::default());
        let number = |short: &mut Short, key: &Key| short.numbers(key).next().unwrap();
        let first: Vec<_> = files.iter().map(|key| number(&mut forwards, key)).collect();
        let mut second: Vec<_> =
            files.iter().rev().map(|key| number(&mut backwards, key)).collect();
        second.reverse();
        assert_eq!(first, second);
    }

    #[test]
    fn with_all_blocks_taken_there_is_no_short_number() {
        let mut short = Short::default();
        for block in 0..u64::from(BLOCKS) {
            assert!(short.numbers(&file("big", 1, block << BLOCK_BITS | 9)).next().is_some());
        }
        assert_eq!(short.numbers(&file("big", 1, 1 << 60)).next(), None);
        assert_eq!(short.numbers(&file("big", 1, 9)).next(), Some(9));
    }

    #[test]
    fn large_numbers_of_the_disk_and_what_is_made_get_short_ones() {
        let mut short = Short::default();
        assert_eq!(short.numbers(&file("dev", 1, 3 << 40 | 70_000)).next(), Some(70_000));
        assert_ne!(short.numbers(&file("dev", 1, 2 << 40 | 70_000)).next(), Some(70_000));
        for made in [Key::new(&"dev".into(), Object::Machine), file("dev", 1, 1)] {
            let numbers: HashSet<_> = short.numbers(&made).collect();
            assert!(numbers.iter().all(|number| (u64::from(HASHED)..1 << 32).contains(number)));
            assert_eq!(numbers.len() as u64, ATTEMPTS);
        }
    }
}
