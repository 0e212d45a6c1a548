//! A walk over a tree's metadata that freezes its layout. No regular file is opened but to find holes.

use super::owners::Ids;
use super::records::records;
use super::report::{LeftOutLine, Note};
use super::tag::{Tag, layer_of};
use super::{ALIGN_FROM, OWNERS, Options};
use crate::tar::{self, Extent, Layout, LayoutBuilder, LayoutError, Link, Member, MemberId};
use crate::tree::{
    Attr, DataRun, Dir, Kind, LONGEST_PATH, LeftOut, ObjectId, Scanned, Time, Tree, Wants, Weight,
    Xattr,
};
use lru::LruCache;
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

/// Directories kept open at once, so that neither depth nor width of a tree can use up the descriptors.
const OPEN_DIRS: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// Bytes of attributes that every reader takes: bsdtar's limit for a whole PAX header is 1 MiB (libarchive,
/// archive_read_support_format_tar.c).
const LARGEST_PAX: usize = (1 << 20) - (8 << 10);

/// Why there is no layout.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The tree itself cannot be walked.
    #[error("cannot read the machine's root directory: {0}")]
    Root(Errno),
    /// More than an archive can hold.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Layouts that somebody reads fill the memory that they may have.
    #[error(
        "{open} older layouts of this machine are being read, which takes all the memory they may \
         have: let a copy end, or stop one, then try again"
    )]
    Held {
        /// How many.
        open: usize,
    },
    /// Extended attributes that would fill the memory.
    #[error(
        "the extended attributes of the machine exceed {} MiB; leave a part of it out with --exclude",
        tar::MAX_RECORDS >> 20
    )]
    Attributes,
    /// More directories than numbers for them.
    #[error("the machine has more than 2^32 directories")]
    TooMany,
}

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
}

struct Found {
    entry: Scanned,
    /// Number of a directory.
    dir: Option<u32>,
}

/// A directory on the way from "seen" to "in the layout".
struct Directory {
    parent: u32,
    name: Box<[u8]>,
    found: Vec<Found>,
}

#[derive(Default)]
struct Queue {
    /// Last in, first out: what is opened next is below what was opened last, and likely still open.
    pending: Vec<u32>,
    busy: usize,
    dirs: Vec<Directory>,
    left_out: Note,
    /// The root directory itself could not be listed: there is nothing to export.
    no_root: Option<Errno>,
    /// What ends the scan.
    failed: Option<ScanError>,
}

struct Walk<'a> {
    tree: &'a Tree,
    holes: bool,
    /// Files with further names whose attributes and holes were read: under a thousand names they are the same.
    linked: Mutex<HashSet<ObjectId>>,
    /// Bytes of extended attributes that may still be kept.
    room: AtomicUsize,
    root: Dir,
    queue: Mutex<Queue>,
    work: Condvar,
    open: Mutex<LruCache<u32, Dir>>,
}

/// Scans `tree` on `threads` threads.
pub(super) fn scan(tree: &Tree, options: Options, threads: usize) -> Result<Scan, ScanError> {
    let (root, _) = tree.root().map_err(ScanError::Root)?;
    let walk = Walk {
        tree,
        holes: options.sparse,
        linked: Mutex::default(),
        room: AtomicUsize::new(tar::MAX_RECORDS),
        root,
        queue: Mutex::new(Queue {
            pending: vec![0],
            dirs: vec![Directory { parent: 0, name: Box::default(), found: Vec::new() }],
            ..Queue::default()
        }),
        work: Condvar::new(),
        open: Mutex::new(LruCache::new(OPEN_DIRS)),
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
    let mut newest = tree.newest_root_ctime().map_err(ScanError::Root)?;
    let mut left_out = queue.left_out;
    if !crate::tree::sees_trusted() {
        left_out.attribute(crate::tree::TRUSTED, b"/");
    }
    let owners: Arc<[u8]> = owners(tree, &queue.dirs).into_bytes().into();
    let align = options.align.then_some(ALIGN_FROM);
    let options = tar::Options { mtime_ns: options.mtime_ns, align };
    let layout = assemble(tree, queue.dirs, options, &owners, &mut newest, &mut left_out)?;
    let incomplete = left_out.incomplete;
    left_out.finish();
    Ok(Scan { layout, newest_ctime: newest, left_out, incomplete, owners })
}

/// The text of codchi-owners for everything that was found.
fn owners(tree: &Tree, dirs: &[Directory]) -> String {
    let mut ids = Ids::default();
    for found in dirs.iter().flat_map(|dir| &dir.found) {
        ids.add(found.entry.attr.uid, found.entry.attr.gid);
    }
    let names = |path| tree.system_file(path).unwrap_or_default();
    ids.render(&names("etc/passwd"), &names("etc/group"))
}

impl Walk<'_> {
    fn run(&self) {
        let mut queue = self.queue.lock();
        loop {
            if let Some(number) = queue.pending.pop() {
                queue.busy += 1;
                drop(queue);
                // A panic here would leave the others waiting for work that never ends.
                let list = std::panic::AssertUnwindSafe(|| self.list(number));
                let done = std::panic::catch_unwind(list)
                    .unwrap_or_else(|_| (Vec::new(), Note::default(), Some(Errno::IO)));
                queue = self.queue.lock();
                self.merge(&mut queue, number, done);
                queue.busy -= 1;
                self.work.notify_all();
            } else if queue.busy == 0 {
                return;
            } else {
                self.work.wait(&mut queue);
            }
        }
    }

    /// Lists one directory. Runs without any lock held but for the moments it looks at shared state.
    fn list(&self, number: u32) -> (Vec<Found>, Note, Option<Errno>) {
        let mut note = Note::default();
        let dir = match self.open(number) {
            Ok(dir) => dir,
            Err(e) => return (Vec::new(), note, Some(e)),
        };
        let at = |name: &[u8]| [dir.path(), b"/", name].concat();
        let mut hidden = Vec::new();
        let details = |attr: &Attr| !is_linked(attr) || self.linked.lock().insert(attr.id);
        let wants = Wants { holes: self.holes, details: &details, room: &self.room };
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
            Ok(entries) => {
                let found = |entry| Found { entry, dir: None };
                (entries.into_iter().map(found).collect(), note, None)
            }
            Err(e) => (Vec::new(), note, Some(e)),
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

    fn merge(&self, queue: &mut Queue, number: u32, done: (Vec<Found>, Note, Option<Errno>)) {
        let (mut found, mut note, failed) = done;
        if number == 0 {
            queue.no_root = failed;
        }
        if let Some(e) = failed {
            // Deleted while it was walked towards is no loss; anything else is a part of the machine that is missing.
            if e != Errno::NOENT {
                note.incomplete = true;
                let path = path_of(&queue.dirs, number);
                note.push(LeftOutLine::of(&path, LeftOut::Unreadable(e)));
            }
        }
        for f in found.iter_mut().filter(|f| f.entry.attr.kind == Kind::Directory) {
            let Ok(child) = u32::try_from(queue.dirs.len()) else {
                queue.failed = Some(ScanError::TooMany);
                break;
            };
            let name = f.entry.name.clone();
            queue.dirs.push(Directory { parent: number, name, found: Vec::new() });
            queue.pending.push(child);
            f.dir = Some(child);
        }
        queue.left_out.append(note);
        if let Some(dir) = queue.dirs.get_mut(number as usize) {
            dir.found = found;
        }
    }

    /// Opens directory `number`, from the nearest ancestor that is open.
    fn open(&self, number: u32) -> Result<Dir, Errno> {
        let mut missing = Vec::new();
        let mut at = number;
        let mut dir = loop {
            if at == 0 {
                break self.root.clone();
            }
            if let Some(dir) = self.open.lock().get(&at) {
                break dir.clone();
            }
            let queue = self.queue.lock();
            let Some(d) = queue.dirs.get(at as usize) else { return Err(Errno::NOENT) };
            missing.push((at, d.name.clone()));
            at = d.parent;
        };
        for (number, name) in missing.into_iter().rev() {
            dir = self.tree.open_dir(&dir, &name)?.0;
            self.open.lock().put(number, dir.clone());
        }
        Ok(dir)
    }
}

fn path_of(dirs: &[Directory], number: u32) -> Vec<u8> {
    let mut names: Vec<&[u8]> = Vec::new();
    let mut at = number;
    while let Some(d) = dirs.get(at as usize).filter(|_| at != 0) {
        names.push(&d.name);
        at = d.parent;
    }
    names.iter().rev().flat_map(|n| [b"/".as_slice(), n].concat()).collect()
}

/// Whether an entry may have other names.
fn is_linked(attr: &Attr) -> bool {
    attr.nlink > 1 && attr.kind != Kind::Directory
}

type Details = (Attr, Vec<Xattr>, Option<Box<[DataRun]>>);

/// Takes out what was read of files with further names, under whichever name that was.
fn details_of_linked(dirs: &mut [Directory]) -> HashMap<ObjectId, Details> {
    let mut details = HashMap::new();
    for entry in dirs.iter_mut().flat_map(|dir| &mut dir.found).map(|found| &mut found.entry) {
        if is_linked(&entry.attr) && (!entry.xattrs.is_empty() || entry.data.is_some()) {
            let xattrs = std::mem::take(&mut entry.xattrs);
            details.insert(entry.attr.id, (entry.attr, xattrs, entry.data.take()));
        }
    }
    details
}

/// Pushes everything in archive order: a directory before what is in it, siblings by bytes.
fn assemble(
    tree: &Tree,
    mut dirs: Vec<Directory>,
    options: tar::Options,
    owners: &[u8],
    newest: &mut Time,
    left_out: &mut Note,
) -> Result<Layout<Tag>, ScanError> {
    let mut builder = LayoutBuilder::new(options);
    let mut first_names: HashMap<ObjectId, MemberId> = HashMap::new();
    let mut linked = details_of_linked(&mut dirs);
    let mut take = |number: u32| {
        let found = dirs.get_mut(number as usize).map(|d| std::mem::take(&mut d.found));
        found.unwrap_or_default().into_iter()
    };
    let owners_id = ObjectId::generated(OWNERS.as_bytes());
    let mut stack = vec![(None, take(0))];
    while let Some((parent, entries)) = stack.last_mut() {
        let Some(found) = entries.next() else {
            stack.pop();
            continue;
        };
        let Scanned { name, mut attr, target, mut xattrs, mut data } = found.entry;
        if let Some(details) = linked.remove(&attr.id) {
            // Its size is of the moment at which its holes were looked for.
            (attr, xattrs, data) = details;
        }
        match attr.id {
            ObjectId::Disk { .. } => *newest = (*newest).max(attr.ctime),
            made if made == owners_id => attr = attr.with_content(owners),
            // Its sources have the times that count.
            ObjectId::Generated(_) => {}
        }
        let has_links = is_linked(&attr);
        let first = has_links.then(|| first_names.get(&attr.id).copied()).flatten();
        let (kind, link) = match (first, attr.kind) {
            (Some(first), _) => (tar::Kind::HardLink, Link::Hard(first)),
            (None, Kind::Directory) => (tar::Kind::Directory, Link::None),
            (None, Kind::File) => (tar::Kind::File, Link::None),
            (None, Kind::Symlink) => (tar::Kind::Symlink, Link::Symlink(&target)),
            (None, Kind::CharDevice) => (tar::Kind::CharDevice, Link::None),
            (None, Kind::BlockDevice) => (tar::Kind::BlockDevice, Link::None),
            (None, Kind::Fifo) => (tar::Kind::Fifo, Link::None),
            (None, Kind::Socket) => continue,
        };
        let records = match first {
            // What an inode has is with its first name.
            Some(_) => Vec::new(),
            None => records(&xattrs),
        };
        let records: Vec<_> = records.iter().map(|(key, value)| (&**key, &**value)).collect();
        let extent = |run: &DataRun| Extent { offset: run.offset, len: run.len };
        let extents = data.map(|runs| runs.iter().map(extent).collect::<Vec<_>>());
        let (layer, ino) = layer_of(tree, &attr);
        let pushed = builder.push(&Member {
            parent: *parent,
            name: &name,
            kind,
            perm: attr.perm,
            uid: attr.uid,
            gid: attr.gid,
            size: attr.size,
            extents: extents.as_deref(),
            records: &records,
            mtime: (attr.mtime.sec, attr.mtime.nsec),
            link,
            rdev: attr.rdev,
            tag: Tag { ino, ctime_sec: attr.ctime.sec, ctime_nsec: attr.ctime.nsec, layer },
        });
        let path_of = |builder: &LayoutBuilder<Tag>| {
            let mut path = parent.map(|parent| builder.path(parent)).unwrap_or_default();
            path.push(b'/');
            path.extend_from_slice(&name);
            path
        };
        let id = match pushed {
            Ok(id) => id,
            Err(
                why @ (LayoutError::Members { .. }
                | LayoutError::Names { .. }
                | LayoutError::Records { .. }),
            ) => return Err(why.into()),
            // This one member is what no archive can hold (a device number out of range); the rest still can be. It is
            // missing, so that no copy may pass for whole.
            Err(why) => {
                left_out.push(LeftOutLine::unarchivable(&path_of(&builder), &why));
                left_out.incomplete = true;
                continue;
            }
        };
        let bytes: usize = records.iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > LARGEST_PAX {
            left_out.push(LeftOutLine::large_attributes(&path_of(&builder)));
        }
        if builder.path_len(id) as usize > LONGEST_PATH {
            left_out.push(LeftOutLine::long_path(&path_of(&builder)));
        }
        if first.is_none() && has_links {
            first_names.insert(attr.id, id);
        }
        if let Some(number) = found.dir {
            stack.push((Some(id), take(number)));
        }
    }
    Ok(builder.finish())
}
