//! A walk over a tree's metadata that freezes its layout. No regular file is opened but to find holes.
//!
//! Threads list directories in the order of the archive, or nearly so; whoever has listed one hands it to the
//! [`Assembly`], which pushes members as soon as all before them are there. So the walk itself holds little at a time.

use super::assemble::{Assembly, Links, Listed, is_linked};
use super::error::ScanError;
use super::known::{Bare, Known};
use super::members::Members;
use super::owners::Ids;
use super::report::{LeftOutLine, Note};
use super::tag::Tag;
use super::{ALIGN_FROM, Options};
use crate::tar::{self, Layout};
use crate::tree::{Attr, Dir, Kind, LeftOut, Listing, Time, Tree, Wants, Weight};
use lru::LruCache;
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

/// Directories kept open at once, so that neither depth nor width of a tree can use up the descriptors.
const OPEN_DIRS: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// Seconds after which a file's ctime tells of every change to its attributes, with room for coarse clocks.
const SETTLED: i64 = 60;

/// What a scan found.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) layout: Layout<Tag>,
    pub(super) newest_ctime: Time,
    pub(super) left_out: Note,
    /// Something of the tree could not be read at all: the export is not the whole machine.
    pub(super) incomplete: bool,
    /// The text of codchi-owners.
    pub(super) owners: Arc<[u8]>,
    /// The list of codchi-members.
    pub(super) members: Members,
    /// Members without extended attributes, for the next scan.
    pub(super) bare: Bare,
}

/// A directory that was seen. All of them are kept, to be opened again from any that is open.
struct Directory {
    parent: u32,
    /// Its name in [`Queue::names`].
    name: (usize, usize),
    plain: bool,
}

struct Queue {
    /// Last in, first out: what is opened next is below what was opened last, and next in the archive.
    pending: Vec<u32>,
    busy: usize,
    dirs: Vec<Directory>,
    names: Vec<u8>,
    left_out: Note,
    ids: Ids,
    /// The root directory itself could not be listed: there is nothing to export.
    no_root: Option<Errno>,
    /// What ends the scan.
    failed: Option<ScanError>,
}

struct Walk<'a> {
    tree: &'a Tree,
    holes: bool,
    known: Option<&'a Known<'a>>,
    settled: Time,
    links: Links,
    /// Bytes of extended attributes that may still be kept.
    room: AtomicUsize,
    root: Dir,
    queue: Mutex<Queue>,
    work: Condvar,
    open: Mutex<LruCache<u32, Dir>>,
    listed: Mutex<HashMap<u32, Listed>>,
    assembly: Mutex<Assembly<'a>>,
}

/// Scans `tree` on `threads` threads; `known` is what an earlier scan of the very same one found, `now` the time on the
/// clock.
pub(super) fn scan(
    tree: &Tree,
    options: Options,
    threads: usize,
    known: Option<&Known<'_>>,
    now: Time,
) -> Result<Scan, ScanError> {
    let (root, _) = tree.root().map_err(ScanError::Root)?;
    let align = options.align.then_some(ALIGN_FROM);
    let tar_options = tar::Options { mtime_ns: options.mtime_ns, align };
    let walk = Walk {
        tree,
        holes: options.sparse,
        known,
        settled: Time { sec: now.sec.saturating_sub(SETTLED), nsec: 0 },
        links: Links::default(),
        room: AtomicUsize::new(tar::MAX_RECORDS),
        root,
        queue: Mutex::new(Queue {
            pending: vec![0],
            busy: 0,
            dirs: vec![Directory { parent: 0, name: (0, 0), plain: false }],
            names: Vec::new(),
            left_out: Note::default(),
            ids: Ids::default(),
            no_root: None,
            failed: None,
        }),
        work: Condvar::new(),
        open: Mutex::new(LruCache::new(OPEN_DIRS)),
        listed: Mutex::default(),
        assembly: Mutex::new(Assembly::new(tree, tar_options)),
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.max(1) {
            scope.spawn(|| walk.run());
        }
        walk.run();
    });
    let queue = walk.queue.into_inner();
    if let Some(why) = queue.no_root {
        return Err(ScanError::Root(why));
    }
    if let Some(why) = queue.failed {
        return Err(why);
    }
    if queue.left_out.no_room {
        return Err(ScanError::Attributes);
    }
    let mut left_out = queue.left_out;
    if !crate::tree::sees_trusted() {
        left_out.attribute(crate::tree::TRUSTED, b"/");
    }
    let owners = owners(tree, &queue.ids);
    let done = walk.assembly.into_inner().finish(&walk.listed, &walk.links, &owners)?;
    left_out.append(done.left_out);
    let newest_ctime = tree.newest_root_ctime().map_err(ScanError::Root)?.max(done.newest);
    let incomplete = left_out.incomplete;
    left_out.finish();
    let (layout, members, bare) = (done.layout, done.members, done.bare);
    Ok(Scan { layout, newest_ctime, left_out, incomplete, owners, members, bare })
}

/// The text of codchi-owners for everything that was found.
fn owners(tree: &Tree, ids: &Ids) -> Arc<[u8]> {
    let names = |path| tree.system_file(path).unwrap_or_default();
    ids.render(&names("etc/passwd"), &names("etc/group")).into_bytes().into()
}

impl Walk<'_> {
    fn run(&self) {
        let mut ids = Ids::default();
        let mut queue = self.queue.lock();
        loop {
            if let Some(number) = queue.pending.pop() {
                queue.busy += 1;
                drop(queue);
                // A panic would leave the others waiting for work that never ends.
                let step = AssertUnwindSafe(|| self.step(number, &mut ids));
                let done = catch_unwind(step).unwrap_or(Err(ScanError::Panicked));
                queue = self.queue.lock();
                if let Err(why) = done {
                    queue.failed = Some(why);
                    queue.pending.clear();
                }
                queue.busy -= 1;
                if queue.busy == 0 {
                    self.work.notify_all();
                }
            } else if queue.busy == 0 {
                queue.ids.append(ids);
                return;
            } else {
                self.work.wait(&mut queue);
            }
        }
    }

    /// Lists one directory, and pushes what has become complete by that.
    fn step(&self, number: u32, ids: &mut Ids) -> Result<(), ScanError> {
        // One directory that cannot be listed is one directory.
        let list = AssertUnwindSafe(|| self.list(number));
        let (listing, note, failed) = catch_unwind(list)
            .unwrap_or_else(|_| (Listing::default(), Note::default(), Some(Errno::IO)));
        listing.entries().iter().for_each(|entry| ids.add(entry.attr.uid, entry.attr.gid));
        let listed = self.merge(&mut self.queue.lock(), number, listing, note, failed);
        self.listed.lock().insert(number, listed);
        self.push()
    }

    /// Pushes what can be pushed, unless somebody else is at it.
    fn push(&self) -> Result<(), ScanError> {
        match self.assembly.try_lock() {
            Some(mut assembly) => assembly.advance(&self.listed, &self.links),
            None => Ok(()),
        }
    }

    /// Lists one directory. Runs without any lock held but for the moments it looks at shared state.
    fn list(&self, number: u32) -> (Listing, Note, Option<Errno>) {
        let mut note = Note::default();
        let dir = match self.open(number) {
            Ok(dir) => dir,
            Err(e) => return (Listing::default(), note, Some(e)),
        };
        let at = |name: &[u8]| [dir.path(), b"/", name].concat();
        let mut hidden = Vec::new();
        let wants = Wants {
            holes: self.holes,
            details: &|attr: &Attr| !is_linked(attr) || self.links.claim(attr.id),
            room: &self.room,
            known_bare: &|attr: &Attr| self.known.is_some_and(|known| known.is_bare(attr)),
            settled: self.settled,
        };
        let listed = self.tree.scan_dir(&dir, &wants, &mut |name, why| match why {
            LeftOut::ByUser | LeftOut::BuiltIn | LeftOut::BelowHome => {
                hidden.push((name.to_vec(), why));
            }
            LeftOut::Xattr(kind) => note.attribute(kind, &at(name)),
            LeftOut::Xattrs(Errno::NOMEM) => note.no_room = true,
            why => {
                let unreadable = matches!(why, LeftOut::Unreadable(_) | LeftOut::Xattrs(_));
                // What nobody can read is no failure of this export.
                note.incomplete |= unreadable && why != LeftOut::Xattrs(Errno::TOOBIG);
                note.push(LeftOutLine::of(&at(name), why));
            }
        });
        for (name, why) in hidden {
            self.weigh(&dir, &name, why, &mut note);
        }
        match listed {
            Ok(mut listing) => {
                let mut directories = false;
                for entry in listing.entries_mut() {
                    directories |= entry.attr.kind == Kind::Directory;
                    if entry.asked && is_linked(&entry.attr) {
                        self.links.settle(entry);
                    }
                }
                if directories && number != 0 {
                    self.open.lock().put(number, dir);
                }
                (listing, note, None)
            }
            Err(e) => (Listing::default(), note, Some(e)),
        }
    }

    /// Notes what is hidden at `name`, if that is anything.
    fn weigh(&self, dir: &Dir, name: &[u8], why: LeftOut, note: &mut Note) {
        let path = [dir.path(), b"/", name].concat();
        let etc = path == b"/etc" && why == LeftOut::BuiltIn;
        let made = if etc { self.tree.system_file("etc/.clean") } else { None }.unwrap_or_default();
        let made: HashSet<&[u8]> = made.split(|byte| *byte == b'\n').collect();
        let of_home = why == LeftOut::ByUser;
        let weight = self.tree.weigh(dir, name, of_home, &mut |below| {
            if etc && below != b".clean" && !made.contains(below) {
                note.push(LeftOutLine::stray(&[&path, b"/".as_slice(), below].concat()));
            }
        });
        match weight {
            Ok(None) => {}
            // An empty directory is no loss, unless the user asked for it to be one.
            Ok(Some(weight)) if weight == Weight::default() && why != LeftOut::ByUser => {}
            Ok(Some(weight)) => note.push(LeftOutLine::hidden(&path, why, weight)),
            Err(_) => {
                let unseen = Weight { unseen: 1, ..Weight::default() };
                note.push(LeftOutLine::hidden(&path, why, unseen));
            }
        }
    }

    fn merge(
        &self,
        queue: &mut Queue,
        number: u32,
        listing: Listing,
        mut note: Note,
        failed: Option<Errno>,
    ) -> Listed {
        if number == 0 {
            queue.no_root = failed;
        }
        if let Some(e) = failed {
            // Deleted while it was walked towards is no loss; anything else is a part of the machine that is missing.
            if e != Errno::NOENT {
                note.incomplete = true;
                let path = path_of(queue, number);
                note.push(LeftOutLine::of(&path, LeftOut::Unreadable(e)));
            }
        }
        #[cfg(test)]
        assert!(!listing.entries().iter().any(|e| listing.name(e) == b"panic in merge"));
        let first = queue.dirs.len() as u32;
        for entry in listing.entries().iter().filter(|e| e.attr.kind == Kind::Directory) {
            if u32::try_from(queue.dirs.len()).is_err() {
                queue.failed = Some(ScanError::TooMany);
                break;
            }
            let start = queue.names.len();
            queue.names.extend_from_slice(listing.name(entry));
            let name = (start, queue.names.len());
            queue.dirs.push(Directory { parent: number, name, plain: entry.plain });
        }
        let end = queue.dirs.len() as u32;
        queue.pending.extend((first..end).rev());
        // One of them is this thread's.
        for _ in first.saturating_add(1)..end {
            if !self.work.notify_one() {
                break;
            }
        }
        queue.left_out.append(note);
        Listed { listing, first }
    }

    /// Opens directory `number`, from the nearest ancestor that is open.
    fn open(&self, number: u32) -> Result<Dir, Errno> {
        let mut missing = Vec::new();
        let mut at = number;
        let mut dir = loop {
            if at == 0 {
                break self.root.clone();
            }
            if at != number
                && let Some(dir) = self.open.lock().get(&at)
            {
                break dir.clone();
            }
            let queue = self.queue.lock();
            let Some(d) = queue.dirs.get(at as usize) else { return Err(Errno::NOENT) };
            missing.push((at, queue.name(d).to_vec(), d.plain));
            at = d.parent;
        };
        for (at, name, plain) in missing.into_iter().rev() {
            dir = match plain {
                true => self.tree.open_plain(&dir, &name)?,
                false => self.tree.open_dir(&dir, &name)?.0,
            };
            if at != number {
                self.open.lock().put(at, dir.clone());
            }
        }
        Ok(dir)
    }
}

impl Queue {
    fn name(&self, directory: &Directory) -> &[u8] {
        self.names.get(directory.name.0..directory.name.1).unwrap_or_default()
    }
}

fn path_of(queue: &Queue, number: u32) -> Vec<u8> {
    let mut names: Vec<&[u8]> = Vec::new();
    let mut at = number;
    while let Some(d) = queue.dirs.get(at as usize).filter(|_| at != 0) {
        names.push(queue.name(d));
        at = d.parent;
    }
    names.iter().rev().flat_map(|n| [b"/".as_slice(), n].concat()).collect()
}
