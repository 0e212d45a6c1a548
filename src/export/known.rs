//! What a scan need not ask again: which entries had no extended attributes, under which ctime.

use super::tag::Tag;
use crate::tar::{Layout, MemberId};
use crate::tree::{Attr, ObjectId};

/// One bit a member of a layout: it had no extended attributes, and cannot get one under the ctime that its tag has.
#[derive(Debug, Default)]
pub(super) struct Bare {
    words: Vec<u64>,
    count: usize,
}

impl Bare {
    pub(super) fn add(&mut self, member: MemberId) {
        let at = member.0 as usize / 64;
        if self.words.len() <= at {
            self.words.resize(at + 1, 0);
        }
        if let Some(word) = self.words.get_mut(at) {
            *word |= 1 << (member.0 % 64);
            self.count += 1;
        }
    }

    #[cfg(test)]
    pub(super) fn has(&self, member: MemberId) -> bool {
        self.members().any(|bare| bare == member.0)
    }

    pub(super) fn shrink(&mut self) {
        self.words.shrink_to_fit();
    }

    fn members(&self) -> impl Iterator<Item = u32> {
        (0..).zip(&self.words).flat_map(|(at, word)| {
            (0..64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| at * 64 + bit)
        })
    }
}

/// The bare members of a layout by what they are on the disk.
#[derive(Debug)]
pub(super) struct Known<'a> {
    layout: &'a Layout<Tag>,
    /// An open-addressed table of member numbers, at most half full; its length is a power of two.
    slots: Vec<u32>,
}

const EMPTY: u32 = u32::MAX;

impl<'a> Known<'a> {
    pub(super) fn new(layout: &'a Layout<Tag>, bare: &Bare) -> Self {
        let slots = vec![EMPTY; bare.count.max(1).saturating_mul(2).next_power_of_two()];
        let mut known = Self { layout, slots };
        for member in bare.members() {
            let Some(tag) = layout.tag(MemberId(member)) else { continue };
            let free =
                known.probe(tag.layer, tag.ino).find(|at| known.slots.get(*at) == Some(&EMPTY));
            if let Some(slot) = free.and_then(|at| known.slots.get_mut(at)) {
                *slot = member;
            }
        }
        known
    }

    /// Whether an entry of the layer's own subvolume was bare, and is what it was.
    pub(super) fn is_bare(&self, attr: &Attr) -> bool {
        let ObjectId::Disk { layer, subvol: 0, ino } = attr.id else { return false };
        self.has(&Tag { ino, ctime_sec: attr.ctime.sec, ctime_nsec: attr.ctime.nsec, layer })
    }

    pub(super) fn has(&self, wanted: &Tag) -> bool {
        let slots = self.probe(wanted.layer, wanted.ino);
        let members = slots.map_while(|at| self.slots.get(at).filter(|slot| **slot != EMPTY));
        members.filter_map(|member| self.layout.tag(MemberId(*member))).any(|tag| tag == wanted)
    }

    /// The slots where an entry may be, in turn.
    fn probe(&self, layer: u8, ino: u64) -> impl Iterator<Item = usize> + use<> {
        let mask = self.slots.len().saturating_sub(1);
        // Fibonacci hashing: neighbours in a directory are neighbours by number.
        let hash = (ino ^ u64::from(layer) << 63).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        (0..=mask).map(move |step| (hash as usize).wrapping_add(step) & mask)
    }
}
