//! The bytes of a generation's files, and what of them is not as the scan saw it.

use super::Generation;
use crate::export::report::{Change, ChangeLine, listed};
use crate::export::scan_file::ScanFile;
use crate::export::tag::{GENERATED, Tag};
use crate::tar::{self, Layout, MemberId, Run};
use crate::tree::{Attr, DataRun, Dir, File, Stamp, Time, is_hole_outside, read_full, stamp};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How often a file that changes while it is read is tried before its member counts as torn.
const TRIES: usize = 3;

impl Generation {
    /// The attributes of an entry: of one that only a scan knows, those that it has in this generation.
    pub fn settled(&self, attr: Attr) -> Attr {
        match ScanFile::of(attr.id) {
            None => attr,
            Some(ScanFile::Owners) => attr.with_content(&self.owners),
            Some(ScanFile::Members) => {
                attr.with_digest(self.member_list.size(), self.member_list.digest())
            }
        }
    }

    /// Fills `buf` from `offset` on, short only at the end of the file.
    pub fn read_scanned(&self, file: ScanFile, offset: u64, buf: &mut [u8]) -> usize {
        match file {
            ScanFile::Members => self.member_list.read_at(&self.layout, offset, buf),
            ScanFile::Owners => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                let rest = self.owners.get(from..).unwrap_or_default();
                let count = rest.len().min(buf.len());
                if let (Some(to), Some(from)) = (buf.get_mut(..count), rest.get(..count)) {
                    to.copy_from_slice(from);
                }
                count
            }
        }
    }

    fn served(&self, member: MemberId) -> Option<(&AtomicU64, u64)> {
        Some((self.served.get(member.0 as usize / 64)?, 1 << (member.0 % 64)))
    }

    fn promised(&self, member: MemberId) -> Stamp {
        let tag = self.layout.tag(member).copied();
        let tag = tag.unwrap_or(Tag { ino: 0, ctime_sec: 0, ctime_nsec: 0, layer: 0 });
        Stamp {
            ino: tag.ino,
            size: self.layout.size_of(member),
            ctime: Time { sec: tag.ctime_sec, nsec: tag.ctime_nsec },
        }
    }

    /// Remembers what happened to a member, and tears it where that, or what is known already, does. The first thing that
    /// tears it stays.
    ///
    /// All of it under one lock: readers of several states of a file meet here, each of which alone would do no harm, and
    /// whoever finds a member known must find the generation torn, too.
    fn note(&self, member: MemberId, change: Change, stamp: Option<Stamp>) {
        let path = listed(&self.layout.absolute_path(member));
        let mut changes = self.changes.lock();
        // Before the bit is looked at: whoever sets it looks here afterwards.
        self.changed.store(true, Ordering::SeqCst);
        let change = match changes.get(&member) {
            Some((known, _)) if known.tears() => *known,
            _ if change.tears() => change,
            // Two states that are served beside each other.
            Some((_, known)) if *known != stamp => Change::Rewritten,
            _ if self.was_served(member) => Change::Rewritten,
            _ => change,
        };
        let first = changes.get(&member).and_then(|(_, stamp)| *stamp);
        changes.insert(member, (change, first.or(stamp)));
        let torn = change.tears() || self.options.strict;
        let line = ChangeLine { path: path.clone(), reason: change, torn };
        // Before the flag: whoever sees it looks for the reason.
        let news = self.status.changes.set(member.0, line);
        if torn {
            self.status.torn.store(true, Ordering::SeqCst);
        }
        drop(changes);
        if news {
            tracing::warn!(path, ?change, torn, "not served as it was scanned");
        }
    }

    /// Whether bytes of the state that the scan saw were served.
    fn was_served(&self, member: MemberId) -> bool {
        self.served(member).is_some_and(|(word, bit)| word.load(Ordering::SeqCst) & bit != 0)
    }

    /// Opens the directory that `member` is in.
    fn parent_dir(&self, member: MemberId) -> Result<Dir, Errno> {
        let mut missing = Vec::new();
        let mut at = self.layout.parent(member);
        let mut dir = loop {
            let Some(parent) = at else { break self.tree.root()?.0 };
            if let Some(dir) = self.dirs.lock().get(&parent) {
                break dir.clone();
            }
            missing.push(parent);
            at = self.layout.parent(parent);
        };
        for member in missing.into_iter().rev() {
            dir = self.tree.open_dir(&dir, self.layout.name(member))?.0;
            self.dirs.lock().put(member, dir.clone());
        }
        Ok(dir)
    }

    fn open(&self, member: MemberId) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(file) = self.files.lock().get(&member) {
            return Ok(Arc::clone(file));
        }
        let path = self.layout.absolute_path(member);
        let layer = self.layout.tag(member).ok_or(Errno::IO)?.layer;
        if let Some(file) = self.tree.open_path(layer, &path) {
            return file.map(Arc::new);
        }
        let dir = self.parent_dir(member)?;
        match self.tree.open_file(&dir, self.layout.name(member))? {
            (File::Disk(fd), _) => Ok(Arc::new(fd)),
            (File::Generated(_), _) => Err(Errno::NOENT),
        }
    }

    /// Reads, and looks at the file's stamp afterwards: if that is what was expected, the bytes are of that state.
    fn read_stamped(file: &OwnedFd, offset: u64, buf: &mut [u8]) -> Result<(usize, Stamp), Errno> {
        let filled = match read_full(file, offset, buf) {
            // A FIFO or a directory has no bytes; the stamp says what it is.
            Err(Errno::SPIPE | Errno::ISDIR) => 0,
            other => other?,
        };
        Ok((filled, stamp(file)?))
    }

    /// Runs of at least `least` bytes of files on the disk, in archive order.
    pub(in crate::export) fn runs(&self, least: u64) -> impl Iterator<Item = Run> {
        let on_disk = |run: &Run| self.layout.tag(run.member).is_some_and(|t| t.layer != GENERATED);
        self.layout.runs(least).filter(on_disk)
    }

    /// Has `copy` copy from the member's file, if it is as the scan saw it, and looks at it again afterwards. `None` if it
    /// is not: it has to be read then.
    pub(in crate::export) fn with_file<T>(
        &self,
        member: MemberId,
        copy: impl FnOnce(&OwnedFd) -> T,
    ) -> Option<T> {
        let promised = self.promised(member);
        let file = self.open(member).ok()?;
        if stamp(&file) != Ok(promised) || self.changed.load(Ordering::SeqCst) && self.known(member)
        {
            return None;
        }
        self.serve_promised(member);
        let copied = copy(&file);
        // Pages are copied later than they are looked up: only what is the same after all was one state throughout.
        if stamp(&file) != Ok(promised) {
            self.note(member, Change::Rewritten, None);
        }
        Some(copied)
    }

    /// What stands in the place of a member that cannot be read.
    fn refuse(&self, member: MemberId, why: Errno, buf: &mut [u8]) {
        buf.fill(0);
        let gone =
            matches!(why, Errno::NOENT | Errno::LOOP | Errno::ISDIR | Errno::NXIO | Errno::NOTDIR);
        let change = match why {
            _ if gone => Change::Vanished,
            Errno::AGAIN => Change::Leased,
            _ => Change::Unreadable,
        };
        tracing::debug!(%why, ?change, "cannot read a member");
        self.note(member, change, None);
    }

    fn read_disk(&self, member: MemberId, offset: u64, buf: &mut [u8]) {
        let promised = self.promised(member);
        let file = match self.open(member) {
            Ok(file) => file,
            Err(why) => return self.refuse(member, why, buf),
        };
        let whole = offset == 0 && buf.len() as u64 == promised.size;
        let mut before = None;
        let mut settled = false;
        for _ in 0..TRIES {
            let (filled, stamp) = match Self::read_stamped(&file, offset, buf) {
                Ok(read) => read,
                Err(why) => return self.refuse(member, why, buf),
            };
            let short = filled < buf.len();
            if let Some(rest) = buf.get_mut(filled..) {
                rest.fill(0);
            }
            if stamp == promised && !short {
                self.serve_promised(member);
                settled = true;
                break;
            }
            // Two looks around one read that agree: the bytes are of that state.
            if before == Some(stamp) {
                self.serve_other(member, &file, promised, stamp, short);
                settled = true;
                break;
            }
            before = Some(stamp);
        }
        // Neither state held still for one read.
        if !settled {
            self.note(member, Change::Rewritten, None);
        }
        if !whole {
            self.files.lock().put(member, file);
        }
    }

    /// Whether something happened to a member.
    fn known(&self, member: MemberId) -> bool {
        self.changes.lock().contains_key(&member)
    }

    /// Bytes of the state that the scan saw are about to be served.
    fn serve_promised(&self, member: MemberId) {
        if let Some((word, bit)) = self.served(member) {
            word.fetch_or(bit, Ordering::SeqCst);
        }
        // In this order: a reader that records another state looks at the bit after it has recorded.
        if self.changed.load(Ordering::SeqCst) && self.known(member) {
            self.note(member, Change::Rewritten, None);
        }
    }

    /// Bytes of another state than the scan saw are about to be served.
    fn serve_other(
        &self,
        member: MemberId,
        file: &OwnedFd,
        promised: Stamp,
        stamp: Stamp,
        short: bool,
    ) {
        if short {
            return self.note(member, Change::Shrank, None);
        }
        let known = self.changes.lock().get(&member).copied();
        let change = match known {
            Some((known, first)) if known.tears() || first == Some(stamp) => return,
            Some(_) => Change::Rewritten,
            None if self.is_filled(member, file, promised.size) => Change::Rewritten,
            None => match stamp.size.cmp(&promised.size) {
                std::cmp::Ordering::Greater => Change::Grew,
                std::cmp::Ordering::Equal => Change::Changed,
                std::cmp::Ordering::Less => Change::Shrank,
            },
        };
        self.note(member, change, Some(stamp));
    }

    /// Whether something was written into a hole since the scan: it has no place in the archive.
    fn is_filled(&self, member: MemberId, file: &OwnedFd, size: u64) -> bool {
        self.layout.extents(member).is_some_and(|extents| {
            let run = |e: &tar::Extent| DataRun { offset: e.offset, len: e.len };
            let runs: Vec<_> = extents.iter().map(run).collect();
            !is_hole_outside(file, &runs, size).unwrap_or(false)
        })
    }
}

impl tar::Source<Tag> for Generation {
    type Error = Errno;

    fn read_body(
        &self,
        layout: &Layout<Tag>,
        member: MemberId,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), Errno> {
        let tag = layout.tag(member).ok_or(Errno::IO)?;
        if tag.layer == GENERATED {
            let file = usize::try_from(tag.ino).ok().and_then(|i| self.tree.generated().get(i));
            let from = usize::try_from(offset).ok();
            let file = file.ok_or(Errno::IO)?;
            let Some(content) = &file.content else {
                let file = ScanFile::of(file.id()).ok_or(Errno::IO)?;
                let whole = self.read_scanned(file, offset, buf) == buf.len();
                return whole.then_some(()).ok_or(Errno::IO);
            };
            let bytes = from.and_then(|at| content.get(at..at.checked_add(buf.len())?));
            buf.copy_from_slice(bytes.ok_or(Errno::IO)?);
            return Ok(());
        }
        self.read_disk(member, offset, buf);
        match self.options.strict && self.known(member) {
            true => Err(Errno::IO),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::{Exports, History, Options};
    use crate::tree::{Owners, Root, Selection, Source, Tree, open_layer};
    use std::path::Path;
    use std::sync::Barrier;

    /// A machine with one file `a`, and its member.
    fn generation(rootfs: &Path) -> (Arc<Generation>, MemberId) {
        let root = Root::new(open_layer(rootfs).unwrap(), Vec::new()).unwrap();
        let (owners, home) = (Owners::AsOnDisk, None);
        let home_owners = Owners::AsOnDisk;
        let source = Source { rootfs: root, rootfs_owners: owners, home, home_owners };
        let tree = Tree::new(source, &Selection::default(), Vec::new(), Time::default()).unwrap();
        let history = Arc::new(History::default());
        let exports = Exports::new(Arc::new(tree), Time::default(), Options::default(), history);
        let generation = exports.lookup().unwrap();
        let mut members = generation.layout.iter();
        let a = members.find(|member| generation.layout.name(*member) == b"a").unwrap();
        (generation, a)
    }

    fn sample() -> (tempfile::TempDir, Arc<Generation>, MemberId) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("opt")).unwrap();
        std::fs::write(dir.path().join("opt/a"), "1111").unwrap();
        let (generation, a) = generation(dir.path());
        (dir, generation, a)
    }

    fn state(promised: Stamp, sec: i64) -> Option<Stamp> {
        Some(Stamp { ctime: Time { sec, nsec: 0 }, ..promised })
    }

    fn line(generation: &Generation) -> ChangeLine {
        let (lines, more) = generation.status.changes.lines();
        assert_eq!((lines.len(), more), (1, 0));
        lines.into_iter().next().unwrap()
    }

    #[test]
    fn readers_that_each_met_another_state_for_the_first_time_tear_together() {
        let (_dir, generation, a) = sample();
        let promised = generation.promised(a);
        // Each has found nothing known of the member, and then tells.
        generation.note(a, Change::Changed, state(promised, 1));
        assert!(!generation.torn());
        generation.note(a, Change::Changed, state(promised, 1));
        assert!(!generation.torn());
        generation.note(a, Change::Grew, state(promised, 2));
        assert!(generation.torn());
        assert_eq!((line(&generation).reason, line(&generation).torn), (Change::Rewritten, true));
        // What tears stays.
        generation.note(a, Change::Changed, state(promised, 1));
        assert_eq!(line(&generation).reason, Change::Rewritten);
    }

    #[test]
    fn a_reader_of_the_scanned_state_between_a_look_and_its_note_tears() {
        let (_dir, generation, a) = sample();
        let promised = generation.promised(a);
        // Before the other one tells, nothing is known.
        generation.serve_promised(a);
        assert!(!generation.torn());
        generation.note(a, Change::Changed, state(promised, 1));
        assert!(generation.torn());
        assert_eq!(line(&generation).reason, Change::Rewritten);
    }

    #[test]
    fn what_tears_is_never_told_as_less_whoever_comes_last() {
        let (dir, first, a) = sample();
        let promised = first.promised(a);
        drop(first);
        for _ in 0..300 {
            let (generation, a) = generation(dir.path());
            let start = Barrier::new(3);
            std::thread::scope(|scope| {
                for sec in 0..3 {
                    let (generation, start) = (&generation, &start);
                    scope.spawn(move || {
                        start.wait();
                        match sec {
                            0 => generation.serve_promised(a),
                            _ => generation.note(a, Change::Changed, state(promised, sec)),
                        }
                        sec
                    });
                }
            });
            assert!(generation.torn());
            assert_eq!(
                (line(&generation).reason, line(&generation).torn),
                (Change::Rewritten, true)
            );
        }
    }
}
