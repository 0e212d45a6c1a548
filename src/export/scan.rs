//! A walk over a tree's metadata that freezes its layout. No regular file is opened.

use super::generation::{Tag, layer_of};
use super::report::{LeftOutLine, Note};
use crate::tar::{self, Layout, LayoutBuilder, LayoutError, Link, Member, MemberId};
use crate::tree::{Attr, Dir, Kind, LeftOut, ObjectId, Time, Tree};
use lru::LruCache;
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use std::collections::HashMap;
use std::num::NonZeroUsize;

/// Directories kept open at once, so that neither depth nor width of a tree can use up the descriptors.
const OPEN_DIRS: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// Why there is no layout.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The tree itself cannot be walked.
    #[error("cannot read the machine's root directory: {0}")]
    Root(Errno),
    /// More than an archive can hold.
    #[error(transparent)]
    Layout(#[from] LayoutError),
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
}

struct Found {
    name: Box<[u8]>,
    attr: Attr,
    /// Target of a link.
    target: Box<[u8]>,
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
    incomplete: bool,
    /// The root directory itself could not be listed: there is nothing to export.
    no_root: Option<Errno>,
}

struct Walk<'a> {
    tree: &'a Tree,
    root: Dir,
    queue: Mutex<Queue>,
    work: Condvar,
    open: Mutex<LruCache<u32, Dir>>,
}

/// Scans `tree` on `threads` threads.
pub(super) fn scan(tree: &Tree, options: tar::Options, threads: usize) -> Result<Scan, ScanError> {
    let (root, _) = tree.root().map_err(ScanError::Root)?;
    let walk = Walk {
        tree,
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
    let mut newest = tree.newest_root_ctime().map_err(ScanError::Root)?;
    let mut left_out = queue.left_out;
    let layout = assemble(tree, queue.dirs, options, &mut newest, &mut left_out)?;
    Ok(Scan { layout, newest_ctime: newest, left_out, incomplete: queue.incomplete })
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
        let mut unreadable = None;
        let listed = self.tree.scan_dir(&dir, |name, why| {
            if let LeftOut::Unreadable(e) = why {
                unreadable = Some(e);
            }
            note.push(LeftOutLine::of(&at(name), why));
        });
        let entries = match listed {
            Ok(entries) => entries,
            Err(e) => return (Vec::new(), note, Some(e)),
        };
        let mut found = Vec::with_capacity(entries.len());
        for entry in entries {
            let mut target = Box::default();
            if entry.attr.kind == Kind::Symlink {
                match self.tree.read_link(&dir, &entry.name) {
                    Ok(t) => target = t.into_boxed_slice(),
                    // Gone between the look and this one: it is not in the machine any more.
                    Err(Errno::NOENT | Errno::INVAL) => continue,
                    Err(e) => {
                        unreadable = Some(e);
                        note.push(LeftOutLine::of(&at(&entry.name), LeftOut::Unreadable(e)));
                        continue;
                    }
                }
            }
            found.push(Found { name: entry.name, attr: entry.attr, target, dir: None });
        }
        if unreadable.is_some() {
            note.incomplete = true;
        }
        (found, note, None)
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
        for f in found.iter_mut().filter(|f| f.attr.kind == Kind::Directory) {
            let Ok(child) = u32::try_from(queue.dirs.len()) else { break };
            queue.dirs.push(Directory { parent: number, name: f.name.clone(), found: Vec::new() });
            queue.pending.push(child);
            f.dir = Some(child);
        }
        queue.incomplete |= note.incomplete;
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

/// Pushes everything in archive order: a directory before what is in it, siblings by bytes.
fn assemble(
    tree: &Tree,
    mut dirs: Vec<Directory>,
    options: tar::Options,
    newest: &mut Time,
    left_out: &mut Note,
) -> Result<Layout<Tag>, ScanError> {
    let mut builder = LayoutBuilder::new(options);
    let mut first_names: HashMap<ObjectId, MemberId> = HashMap::new();
    let mut take = |number: u32| {
        let found = dirs.get_mut(number as usize).map(|d| std::mem::take(&mut d.found));
        found.unwrap_or_default().into_iter()
    };
    let mut stack = vec![(None, take(0))];
    while let Some((parent, entries)) = stack.last_mut() {
        let Some(found) = entries.next() else {
            stack.pop();
            continue;
        };
        let attr = &found.attr;
        *newest = (*newest).max(attr.ctime);
        let first = (attr.nlink > 1 && attr.kind != Kind::Directory)
            .then(|| first_names.get(&attr.id).copied())
            .flatten();
        let (kind, link) = match (first, attr.kind) {
            (Some(first), _) => (tar::Kind::HardLink, Link::Hard(first)),
            (None, Kind::Directory) => (tar::Kind::Directory, Link::None),
            (None, Kind::File) => (tar::Kind::File, Link::None),
            (None, Kind::Symlink) => (tar::Kind::Symlink, Link::Symlink(&found.target)),
            (None, Kind::CharDevice) => (tar::Kind::CharDevice, Link::None),
            (None, Kind::BlockDevice) => (tar::Kind::BlockDevice, Link::None),
            (None, Kind::Fifo) => (tar::Kind::Fifo, Link::None),
            (None, Kind::Socket) => continue,
        };
        let (layer, ino) = layer_of(tree, attr);
        let pushed = builder.push(&Member {
            parent: *parent,
            name: &found.name,
            kind,
            perm: attr.perm,
            uid: attr.uid,
            gid: attr.gid,
            size: attr.size,
            mtime: (attr.mtime.sec, attr.mtime.nsec),
            link,
            rdev: attr.rdev,
            tag: Tag { ino, ctime_sec: attr.ctime.sec, ctime_nsec: attr.ctime.nsec, layer },
        });
        let id = match pushed {
            Ok(id) => id,
            // This one member is what no archive can hold (a device number out of range); the rest still can be.
            Err(
                why @ (LayoutError::Device { .. }
                | LayoutError::Time { .. }
                | LayoutError::Path { .. }),
            ) => {
                left_out.push(LeftOutLine::unarchivable(&why));
                continue;
            }
            Err(why) => return Err(why.into()),
        };
        if first.is_none() && attr.nlink > 1 && attr.kind != Kind::Directory {
            first_names.insert(attr.id, id);
        }
        if let Some(number) = found.dir {
            stack.push((Some(id), take(number)));
        }
    }
    Ok(builder.finish())
}
