//! A copy compared with a machine, or with a list taken along: member by member, in the order of the archive.
//!
//! Both sides are streams in that order, so that neither is ever held as a whole. Of a directory only the members are
//! looked at: the root of a system has much else.

mod archive;
mod directory;
mod kind;
mod list;

pub use archive::{Archive, Item};
pub use directory::{Directory, Names, NamesError};
pub use list::{List, ListError};

use crate::export::{Digest, Entry, Generation, Manifest, Record};
use crate::tar::{Kind, MemberId};
use rustix::io::Errno;
use std::cmp::Ordering;
use std::sync::Arc;
use std::sync::mpsc::Sender;

/// What a copy should be.
pub trait Reference {
    /// The next member.
    fn next(&mut self) -> Result<Option<Entry>, Error>;
    /// The digest of the last one's content; `None` for what has none.
    fn digest(&mut self) -> Result<Option<Digest>, Error>;
    /// When the last one's file was changed last, in seconds, where that is known.
    fn changed_at(&self) -> Option<i64>;
    /// It is the machine as it is now, which may have changed since the copy.
    fn is_now(&self) -> bool;
}

/// What ends a comparison: it is not known whether the copy is right.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine.
    #[error("cannot read the machine: {0}")]
    Machine(Errno),
    /// The list.
    #[error("the manifest: {0}")]
    List(#[from] ListError),
    /// The copy.
    #[error("cannot read the copy: {0}")]
    Copy(std::io::Error),
    /// The copy is something else than an export.
    #[error("the copy is no archive of codchifs: it is {0}")]
    Foreign(String),
    /// The copy has members in another order than any export has.
    #[error(
        "the copy is no archive of codchifs: its members are in another order; extract it, and \
         compare the directory"
    )]
    Order,
    /// The copy goes on behind the end of an archive, with members that come before its last one.
    #[error(
        "the copy has more than one archive in it: behind the end of the first, another one begins; \
         copy it again into a new file"
    )]
    Surplus,
    /// Whoever looks on has had enough.
    #[error("{0}")]
    Stopped(std::io::Error),
}

/// A machine as it is now.
#[allow(missing_debug_implementations)] // An iterator has none.
pub struct Now {
    generation: Arc<Generation>,
    manifest: Arc<Manifest>,
    ids: Box<dyn Iterator<Item = MemberId> + Send>,
    last: Option<MemberId>,
}

impl Now {
    /// As this generation has it.
    pub fn new(generation: Arc<Generation>) -> Self {
        let manifest = generation.manifest();
        let ids = Box::new(generation.ids_from(0));
        Self { generation, manifest, ids, last: None }
    }
}

impl Reference for Now {
    fn next(&mut self) -> Result<Option<Entry>, Error> {
        self.last = self.ids.next();
        Ok(self.last.map(|member| self.generation.entry(member)))
    }

    fn digest(&mut self) -> Result<Option<Digest>, Error> {
        let digest = self.last.map(|member| self.manifest.content(member)).transpose();
        Ok(digest.map_err(Error::Machine)?.flatten())
    }

    fn changed_at(&self) -> Option<i64> {
        self.generation.changed_at(self.last?)
    }

    fn is_now(&self) -> bool {
        true
    }
}

/// A member that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Path from the root.
    pub path: Vec<u8>,
    /// What differs: `content`, `mode`, `owner`, `missing`, ...
    pub what: Vec<String>,
    /// What that most likely means.
    pub why: Why,
}

/// Which side has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The machine, after the copy was made.
    Since,
    /// The copy, after it was made: what is not damage is somebody's work.
    There,
    /// The copy, and nobody has meant to.
    Damaged,
    /// It cannot be told.
    Unknown,
}

/// What a comparison has found besides the differences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Members that were compared.
    pub compared: u64,
    /// Differences.
    pub differences: u64,
    /// Of a directory: names in the directories of the export that are not the export's.
    pub others: u64,
    /// Bytes of an archive that are no member's.
    pub damaged_bytes: u64,
    /// Where an archive ends too early.
    pub cut_off: Option<u64>,
    /// It was read out of a compressed file.
    pub compressed: bool,
}

impl Summary {
    /// Whether the copy is what it should be.
    pub fn is_identical(&self) -> bool {
        self.differences == 0 && self.damaged_bytes == 0 && self.cut_off.is_none()
    }
}

/// The order of members: a directory before what is in it, siblings by bytes.
fn order(a: &[u8], b: &[u8]) -> Ordering {
    let key = |byte: &u8| if *byte == b'/' { 0 } else { u16::from(*byte) + 1 };
    a.iter().map(key).cmp(b.iter().map(key))
}

/// What is known of the content of a member of the copy.
enum There {
    Hashed(Option<Digest>),
    /// Whether it is to be hashed.
    Asked(Sender<bool>),
}

/// Compares an archive, whose members `next` gives. `made` is when it was copied, in seconds, where that is known.
pub fn archive(
    reference: &mut dyn Reference,
    mut next: impl FnMut() -> Result<Option<Item>, Error>,
    made: Option<i64>,
    each: &mut dyn FnMut(Difference) -> std::io::Result<()>,
) -> Result<Summary, Error> {
    let mut summary = Summary::default();
    let mut found = |summary: &mut Summary, difference| {
        summary.differences += 1;
        each(difference).map_err(Error::Stopped)
    };
    let mut expected = reference.next()?;
    let mut last: Vec<u8> = Vec::new();
    // What is no member lies between the last one and the next.
    let mut gap = false;
    let mut take = |summary: &mut Summary| loop {
        let item = next()?;
        if let Some(Item::Member(entry, _) | Item::Wanted(entry, _)) = &item
            && !last.is_empty()
            && order(&last, &entry.path) != Ordering::Less
        {
            return Err(if gap { Error::Surplus } else { Error::Order });
        }
        match item {
            Some(Item::Member(entry, digest)) => {
                gap = false;
                last.clone_from(&entry.path);
                return Ok(Some((*entry, There::Hashed(digest))));
            }
            Some(Item::Wanted(entry, answer)) => {
                return Ok(Some((*entry, There::Asked(answer))));
            }
            Some(Item::Damaged { len }) => {
                gap = true;
                summary.damaged_bytes += len;
            }
            Some(Item::Foreign(what)) => return Err(Error::Foreign(what)),
            Some(Item::CutOff { at }) => {
                summary.cut_off = Some(at);
                return Ok(None);
            }
            None => return Ok(None),
        }
    };
    let mut there = take(&mut summary)?;
    loop {
        let (which, damaged) = match (&expected, &there) {
            (None, None) => return Ok(summary),
            // What would follow is not missing: the copy just ends.
            (Some(_), None) if summary.cut_off.is_some() => return Ok(summary),
            (Some(_), None) => (Ordering::Less, summary.damaged_bytes > 0),
            (None, Some(_)) => (Ordering::Greater, false),
            (Some(here), Some((there, _))) => {
                (order(&here.path, &there.path), summary.damaged_bytes > 0)
            }
        };
        // Once it is known what should be there: only what has the right size is worth to be hashed.
        if which != Ordering::Less
            && let Some((entry, There::Asked(answer))) = &there
        {
            let same = |here: &Entry| which == Ordering::Equal && here.size == entry.size;
            // Nobody waits for it if the copy cannot be read any further.
            let _ = answer.send(expected.as_ref().is_some_and(same));
            there = take(&mut summary)?;
            continue;
        }
        match which {
            Ordering::Less => {
                let path = expected.take().map(|entry| entry.path).unwrap_or_default();
                let why = match (reference.changed_at(), made) {
                    (Some(changed), Some(made)) if changed > made => Why::Since,
                    _ if damaged => Why::Damaged,
                    _ => Why::Unknown,
                };
                found(&mut summary, Difference { path, what: vec!["missing".into()], why })?;
                expected = reference.next()?;
            }
            Ordering::Greater => {
                let path = there.take().map(|(entry, _)| entry.path).unwrap_or_default();
                let why = if reference.is_now() { Why::Since } else { Why::Unknown };
                found(&mut summary, Difference { path, what: vec!["unexpected".into()], why })?;
                there = take(&mut summary)?;
            }
            Ordering::Equal => {
                if let (Some(here), Some((there, There::Hashed(digest)))) = (&expected, &there) {
                    summary.compared += 1;
                    let mut what = differing(here, there);
                    // The header has a checksum: what differs in it was so when the copy was made.
                    let header = !what.is_empty();
                    if here.kind == Kind::File
                        && there.kind == Kind::File
                        && (here.size != there.size || reference.digest()? != *digest)
                    {
                        what.insert(0, "content".into());
                    }
                    if !what.is_empty() {
                        let why = match (reference.changed_at(), made) {
                            _ if header && reference.is_now() => Why::Since,
                            (Some(changed), Some(made)) if changed > made => Why::Since,
                            (Some(changed), Some(made)) if changed < made => Why::Damaged,
                            // What is made has no time of its own; a list has no other state than its copy.
                            _ if !reference.is_now() => Why::Damaged,
                            _ => Why::Unknown,
                        };
                        found(&mut summary, Difference { path: here.path.clone(), what, why })?;
                    }
                }
                expected = reference.next()?;
                there = take(&mut summary)?;
            }
        }
    }
}

/// Compares a directory that an archive was extracted to.
pub fn directory(
    reference: &mut dyn Reference,
    directory: &mut Directory,
    each: &mut dyn FnMut(Difference) -> std::io::Result<()>,
    progress: &mut dyn FnMut(u64),
) -> Result<Summary, Error> {
    let mut summary = Summary::default();
    while let Some(mut here) = reference.next()? {
        directory.renumber(&mut here);
        let mut why = Why::Unknown;
        let what = match directory.entry(&here) {
            Ok(there) => {
                summary.compared += 1;
                why = match order_of_times(here.mtime, there.mtime) {
                    Ordering::Greater if reference.is_now() => Why::Since,
                    Ordering::Less => Why::There,
                    _ => Why::Unknown,
                };
                let mut what = differing(&here, &there);
                if here.kind == Kind::File && there.kind == Kind::File {
                    let digest = match here.size == there.size {
                        true => directory.digest(),
                        false => Ok([0; 32]),
                    };
                    match digest {
                        Ok(digest) if reference.digest()? == Some(digest) => {}
                        Ok(_) => {
                            if what.is_empty() {
                                why = Why::Damaged;
                            }
                            what.insert(0, "content".into());
                        }
                        Err(error) => what.push(format!("unreadable ({error})")),
                    }
                }
                what
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => vec!["missing".into()],
            Err(error) => vec![format!("unreadable ({error})")],
        };
        progress(here.size);
        if !what.is_empty() {
            summary.differences += 1;
            each(Difference { path: here.path, what, why }).map_err(Error::Stopped)?;
        }
    }
    summary.others = directory.others();
    Ok(summary)
}

/// The order of two times, in seconds and nanoseconds. A fraction counts where both have one: an archive of whole seconds
/// has lost it.
fn order_of_times(a: (i64, u32), b: (i64, u32)) -> Ordering {
    let fractions = if a.1 == 0 || b.1 == 0 { Ordering::Equal } else { a.1.cmp(&b.1) };
    a.0.cmp(&b.0).then(fractions)
}

/// What of two entries of one path differs, but for their content.
fn differing(here: &Entry, there: &Entry) -> Vec<String> {
    if here.kind != there.kind {
        return vec!["type".into()];
    }
    if here.kind == Kind::HardLink {
        // All else is with the first name.
        return if here.target == there.target { Vec::new() } else { vec!["hard link".into()] };
    }
    let mut what: Vec<String> = [
        ("size", here.size != there.size),
        ("mode", here.perm != there.perm),
        ("owner", here.uid != there.uid),
        ("group", here.gid != there.gid),
        ("mtime", order_of_times(here.mtime, there.mtime) != Ordering::Equal),
        ("link target", here.target != there.target),
        ("device", here.rdev != there.rdev),
    ]
    .into_iter()
    .filter(|(_, differs)| *differs)
    .map(|(name, _)| name.to_owned())
    .collect();
    let value = |records: &[Record], key: &[u8]| {
        records.iter().find(|(k, _)| k == key).map(|(_, value)| value.clone())
    };
    let mut keys: Vec<&[u8]> = here.records.iter().chain(&there.records).map(|r| &*r.0).collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        if value(&here.records, key) == value(&there.records, key) {
            continue;
        }
        what.push(match crate::export::attribute(key) {
            Some(name) => format!("xattr {}", crate::quote::name(&name)),
            None => "ACL".into(),
        });
    }
    what.dedup();
    what
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fraction_of_a_second_counts_where_both_have_one() {
        for (a, b, expected) in [
            ((5, 1), (5, 2), Ordering::Less),
            ((5, 2), (5, 2), Ordering::Equal),
            ((5, 2), (5, 0), Ordering::Equal),
            ((6, 1), (5, 2), Ordering::Greater),
            ((-1, 0), (0, 7), Ordering::Less),
        ] {
            assert_eq!(order_of_times(a, b), expected, "{a:?} {b:?}");
            assert_eq!(order_of_times(b, a), expected.reverse(), "{b:?} {a:?}");
        }
    }

    #[test]
    fn the_order_is_that_of_the_archive() {
        let sorted: [&[u8]; 7] = [b"a", b"a/b", b"a/b/c", b"a/b.c", b"a b", b"a-b", b"a\xff"];
        for (i, a) in sorted.iter().enumerate() {
            for (j, b) in sorted.iter().enumerate() {
                assert_eq!(order(a, b), i.cmp(&j), "{i} {j}");
            }
        }
    }
}
