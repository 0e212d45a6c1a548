//! Everything about the entries of a directory that an archive holds but their contents.

use super::find::Found;
use super::xattr::{Fate, Xattr, fate, unshift};
use super::{Attr, Dir, HOME_LAYER, Kind, LeftOut, ObjectId, Owners, ROOTFS, Time, Tree, layer};
use crate::sys;
use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use std::ffi::CString;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A hole shorter than this is written out: it saves less than a map costs its readers.
const LEAST_HOLE: u64 = 1 << 20;
/// Runs of data begin and end at multiples of this, as they do on the disk's own blocks.
const ALIGN: u64 = 4096;
/// Runs of one file at most. A file in more pieces is told with longer holes only.
const MOST_RUNS: usize = 1 << 16;
/// How often a file that is written to while its holes are looked for is looked at.
const TRIES: usize = 3;

/// What a scan found in one directory, sorted by bytes.
#[derive(Debug, Default)]
pub struct Listing {
    entries: Vec<Scanned>,
    names: Vec<u8>,
    targets: Vec<u8>,
}

/// An entry as a scan sees it.
#[derive(Debug)]
pub struct Scanned {
    /// Attributes with the machine's ids.
    pub attr: Attr,
    name: (usize, usize),
    target: (usize, usize),
    /// It was asked for attributes and holes, and this is what there is; `None` for nothing, as most have.
    pub details: Option<Box<Details>>,
    /// [`Wants::details`] wanted them.
    pub asked: bool,
    /// It has no extended attributes, not even such as are left out, and as long as its ctime stays it has none.
    pub bare: bool,
    /// A directory of the disk without anything special, for [`Tree::open_plain`].
    pub plain: bool,
}

/// What few entries have.
#[derive(Debug, Default)]
pub struct Details {
    /// Sorted by name.
    pub xattrs: Vec<Xattr>,
    /// Where a file that has holes of 1 MiB or more has data, ascending.
    pub data: Option<Box<[DataRun]>>,
}

impl Listing {
    /// The entries, in their order.
    pub fn entries(&self) -> &[Scanned] {
        &self.entries
    }

    /// The same, to be changed.
    pub fn entries_mut(&mut self) -> &mut [Scanned] {
        &mut self.entries
    }

    /// The name of an entry, raw bytes, never `.` or `..`.
    pub fn name(&self, entry: &Scanned) -> &[u8] {
        self.names.get(entry.name.0..entry.name.1).unwrap_or_default()
    }

    /// Target of a symbolic link; else empty.
    pub fn target(&self, entry: &Scanned) -> &[u8] {
        self.targets.get(entry.target.0..entry.target.1).unwrap_or_default()
    }
}

/// A run of a file's data, in bytes; a multiple of 4096 in both but at the end of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct DataRun {
    pub offset: u64,
    pub len: u64,
}

/// Where the extended attributes of an entry are on the disk, and whose the ids in them.
struct XattrPlace<'a> {
    dir: BorrowedFd<'a>,
    name: &'a [u8],
    owners: &'a Owners,
}

/// What a scan wants to know.
#[allow(missing_debug_implementations)] // A closure has none.
pub struct Wants<'a> {
    /// The holes of files: those with fewer blocks than bytes are opened.
    pub holes: bool,
    /// Whether attributes and holes of an entry are wanted: of a file with many names, only once.
    pub details: &'a (dyn Fn(&Attr) -> bool + Sync),
    /// Bytes of extended attributes that there is still room for, in the whole scan.
    pub room: &'a AtomicUsize,
    /// Whether an earlier scan has found an entry bare under this very ctime.
    pub known_bare: &'a (dyn Fn(&Attr) -> bool + Sync),
    /// A ctime before this one is not given to another change any more.
    pub settled: Time,
}

impl Tree {
    /// What of a directory can be looked at; `left_out` hears of everything on the disk that is not as it was there: also of
    /// attributes for which there is no room, as unreadable with ENOMEM.
    pub fn scan_dir(
        &self,
        dir: &Dir,
        wants: &Wants<'_>,
        left_out: &mut dyn FnMut(&[u8], LeftOut),
    ) -> Result<Listing, Errno> {
        if !dir.0.hidden {
            for (name, why) in self.rules.hidden_children(dir.0.rule) {
                left_out(name, why);
            }
        }
        let mut text = Vec::new();
        let mut names = Vec::new();
        self.names(dir, |name| {
            let start = text.len();
            text.extend_from_slice(name);
            names.push((start, text.len()));
        })?;
        let name_at = |(start, end): (usize, usize)| text.get(start..end).unwrap_or_default();
        names.sort_unstable_by(|a, b| name_at(*a).cmp(name_at(*b)));
        // A directory that changes while it is read may give a name twice (readdir(3)).
        names.dedup_by(|a, b| name_at(*a) == name_at(*b));
        let mut listing =
            Listing { entries: Vec::with_capacity(names.len()), ..Listing::default() };
        for at in names {
            let name = name_at(at);
            // What cannot be looked at is told.
            let Ok(found) = self.find(dir, name, &mut |why| left_out(name, why)) else { continue };
            let start = listing.targets.len();
            if found.attr.kind == Kind::Symlink {
                match layer::read_link(dir.disk()?, name) {
                    Ok(target) => listing.targets.extend_from_slice(&target),
                    // Gone between the look and this one: it is not in the machine any more.
                    Err(Errno::NOENT | Errno::INVAL) => continue,
                    Err(e) => {
                        left_out(name, LeftOut::Unreadable(e));
                        continue;
                    }
                }
            }
            let mut entry = Scanned {
                attr: found.attr,
                name: at,
                target: (start, listing.targets.len()),
                details: None,
                asked: (wants.details)(&found.attr),
                bare: false,
                plain: found.is_plain(),
            };
            if entry.asked {
                self.look_closer(dir, name, &found, wants, &mut entry, left_out);
            }
            listing.entries.push(entry);
        }
        listing.names = text;
        Ok(listing)
    }

    fn look_closer(
        &self,
        dir: &Dir,
        name: &[u8],
        found: &Found,
        wants: &Wants<'_>,
        entry: &mut Scanned,
        left_out: &mut dyn FnMut(&[u8], LeftOut),
    ) {
        let mut details = Details::default();
        let attr = found.attr;
        // In a subvolume an inode number alone tells nothing.
        let own = matches!(attr.id, ObjectId::Disk { subvol: 0, .. }) && !found.mount_point;
        let told = own && attr.ctime < wants.settled && self.layer(found.layer).ctime_tells();
        if told && (wants.known_bare)(&attr) {
            entry.bare = true;
        } else {
            let some = self.xattrs_of(dir, name, found, wants.room, &mut details.xattrs, left_out);
            entry.bare = told && !some;
        }
        if wants.holes
            && attr.kind == Kind::File
            && attr.size >= LEAST_HOLE
            && attr.blocks.saturating_mul(512) < attr.size
            && let Some((now, runs)) = self.data_of(dir, name)
        {
            (entry.attr, details.data) = (now, Some(runs));
            // What was asked for was under the ctime before.
            entry.bare &= now.ctime == attr.ctime;
        }
        if !details.xattrs.is_empty() || details.data.is_some() {
            entry.details = Some(Box::new(details));
        }
    }

    /// Names of the extended attributes of `name`, sorted, each with a NUL.
    pub fn list_xattr(&self, dir: &Dir, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let found = self.find(dir, name, &mut |_| ())?;
        let Some(place) = self.xattr_place(dir, name, &found)? else { return Ok(Vec::new()) };
        let mut names: Vec<Vec<u8>> = Vec::new();
        layer::xattr_names(place.dir, place.name, |xattr| {
            if !matches!(fate_here(xattr.to_bytes()), Fate::Drop(_) | Fate::Twin) {
                names.push(xattr.to_bytes_with_nul().to_vec());
            }
        })?;
        names.sort_unstable();
        Ok(names.concat())
    }

    /// Value of one extended attribute of `name`, ids in it un-shifted.
    pub fn xattr(&self, dir: &Dir, name: &[u8], xattr: &[u8]) -> Result<Vec<u8>, Errno> {
        let fate = fate_here(xattr);
        if matches!(fate, Fate::Drop(_) | Fate::Twin) {
            return Err(Errno::NODATA);
        }
        let xattr = CString::new(xattr).map_err(|_| Errno::NODATA)?;
        let found = self.find(dir, name, &mut |_| ())?;
        let place = self.xattr_place(dir, name, &found)?.ok_or(Errno::NODATA)?;
        let value = match layer::xattr(place.dir, place.name, &xattr) {
            Err(Errno::OPNOTSUPP) => return Err(Errno::NODATA),
            other => other?,
        };
        let (value, _) = unshift(fate, &value, place.owners).ok_or(Errno::NODATA)?;
        Ok(value.into_vec())
    }

    /// Whether there are any, exported or not, or it is not known.
    fn xattrs_of(
        &self,
        dir: &Dir,
        name: &[u8],
        found: &Found,
        room: &AtomicUsize,
        xattrs: &mut Vec<Xattr>,
        left_out: &mut dyn FnMut(&[u8], LeftOut),
    ) -> bool {
        let mut names = Vec::new();
        let mut some = false;
        // Deleted meanwhile is no failure.
        let read = self.xattr_place(dir, name, found).and_then(|place| {
            let Some(place) = place else { return Ok(()) };
            layer::xattr_names(place.dir, place.name, |xattr| {
                some = true;
                match fate_here(xattr.to_bytes()) {
                    Fate::Twin => {}
                    Fate::Drop(kind) => left_out(name, LeftOut::Xattr(kind)),
                    fate => names.push((CString::from(xattr), fate)),
                }
            })?;
            names.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
            for (xattr, fate) in names {
                let value = match layer::xattr(place.dir, place.name, &xattr) {
                    // Gone between the list and this look.
                    Err(Errno::NODATA) => continue,
                    other => other?,
                };
                let Some((value, foreign)) = unshift(fate, &value, place.owners) else {
                    left_out(name, LeftOut::Xattr("malformed"));
                    continue;
                };
                if foreign {
                    left_out(name, LeftOut::ForeignId);
                }
                let bytes = value.len() + xattr.as_bytes().len();
                let took = |left: usize| left.checked_sub(bytes);
                room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, took)
                    .map_err(|_| Errno::NOMEM)?;
                xattrs.push(Xattr { name: xattr.into_bytes().into(), value });
            }
            Ok(())
        });
        match read {
            Ok(()) => return some,
            Err(Errno::NOENT) => {}
            Err(e) => left_out(name, LeftOut::Xattrs(e)),
        }
        true
    }

    /// `None` for what we make, and for mount points, which nobody must be asked about.
    fn xattr_place<'a>(
        &'a self,
        dir: &'a Dir,
        name: &'a [u8],
        found: &Found,
    ) -> Result<Option<XattrPlace<'a>>, Errno> {
        if found.mount_point || matches!(found.attr.id, ObjectId::Generated { .. }) {
            return Ok(None);
        }
        let owners = self.owners(found.layer);
        match &self.home {
            Some(home) if found.layer == HOME_LAYER && dir.0.layer == ROOTFS => {
                Ok(Some(XattrPlace { dir: home.root(), name: b".", owners }))
            }
            _ => Ok(Some(XattrPlace { dir: dir.disk()?, name, owners })),
        }
    }

    /// Where a file has data, and its attributes at that moment. `None` if there is no hole worth a map, or if it does
    /// not hold still: it is then written out like every other.
    fn data_of(&self, dir: &Dir, name: &[u8]) -> Option<(Attr, Box<[DataRun]>)> {
        let (file, st) = layer::open_file(dir.disk().ok()?, name).ok()?;
        let subvol = self.subvol(dir, dir.0.layer, &st, name);
        let look = || {
            let st = layer::stat_fd(&file).ok()?;
            Some(self.disk_attr(&st, dir.0.layer, subvol, false))
        };
        let mut before = look()?;
        for _ in 0..TRIES {
            let runs = data_runs(&file, before.size).ok()?;
            let after = look()?;
            if (after.size, after.ctime) == (before.size, before.ctime) {
                return Some((after, runs?));
            }
            before = after;
        }
        None
    }
}

/// Whether a file of `size` bytes has nothing but holes outside of `runs`.
pub fn is_hole_outside(file: &OwnedFd, runs: &[DataRun], size: u64) -> Result<bool, Errno> {
    let mut at = 0;
    let ends = runs.iter().map(|run| (run.offset, run.offset.saturating_add(run.len)));
    for (offset, end) in ends.chain([(size, size)]) {
        if at < offset {
            match rustix::fs::seek(file.as_fd(), SeekFrom::Data(at)) {
                Ok(data) if data < offset => return Ok(false),
                // No data up to the end of the file.
                Ok(_) | Err(Errno::NXIO) => {}
                Err(e) => return Err(e),
            }
        }
        at = end;
    }
    Ok(true)
}

/// The runs of data between holes that are worth it; `None` if there are none of those holes.
///
/// What the file system has allocated counts as data, written or not: lseek(2) calls unwritten extents data while the page
/// cache has pages of them, and an unchanged file must keep its map. What lseek(2) calls data counts as well, since the
/// map of extents may lack what is not on the disk yet.
fn data_runs(file: &OwnedFd, size: u64) -> Result<Option<Box<[DataRun]>>, Errno> {
    let mut allocated = Runs::new(size);
    let mut next = Some(0);
    while let Some(start) = next.filter(|start| *start < size) {
        next = match sys::extents(file.as_fd(), start, |begin, end| allocated.push(begin, end)) {
            // No such map here: only lseek(2) tells.
            Err(Errno::OPNOTSUPP | Errno::NOTTY) => None,
            other => other?,
        };
    }
    let mut seen = Runs::new(size);
    let mut at = 0;
    while at < size {
        // lseek(2): ENXIO if there is no data any more.
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            other => other?,
        };
        if data >= size {
            break;
        }
        let hole = rustix::fs::seek(file, SeekFrom::Hole(data))?;
        seen.push(data, hole);
        at = hole.max(data.saturating_add(1));
    }
    let mut both = [allocated.runs, seen.runs].concat();
    both.sort_unstable_by_key(|run| run.offset);
    let mut all = Runs::new(size);
    for run in both {
        all.push(run.offset, run.offset.saturating_add(run.len));
    }
    Ok(all.finish())
}

/// Runs of data in ascending order, with the holes between them that are worth it.
struct Runs {
    runs: Vec<DataRun>,
    size: u64,
    least: u64,
}

impl Runs {
    fn new(size: u64) -> Self {
        Self { runs: Vec::new(), size, least: LEAST_HOLE }
    }

    fn push(&mut self, begin: u64, end: u64) {
        let begin = begin - begin % ALIGN;
        let end = end.checked_next_multiple_of(ALIGN).unwrap_or(self.size).min(self.size);
        // A page that went between two looks leaves nothing.
        if begin >= end {
            return;
        }
        match self.runs.last_mut() {
            Some(last) if begin.saturating_sub(last.offset + last.len) < self.least => {
                last.len = last.len.max(end.saturating_sub(last.offset));
            }
            _ => self.runs.push(DataRun { offset: begin, len: end - begin }),
        }
        if self.runs.len() > MOST_RUNS {
            self.least = self.least.saturating_mul(2);
            self.runs = joined(&self.runs, self.least);
        }
    }

    /// Fills the holes before the first and after the last run that are not worth it. `None` if no hole is left.
    fn finish(mut self) -> Option<Box<[DataRun]>> {
        let size = self.size;
        if let Some(first) = self.runs.first_mut().filter(|first| first.offset < LEAST_HOLE) {
            first.len = first.len.saturating_add(std::mem::take(&mut first.offset));
        }
        if let Some(last) = self.runs.last_mut()
            && size.saturating_sub(last.offset + last.len) < LEAST_HOLE
        {
            last.len = size.saturating_sub(last.offset);
        }
        let whole = matches!(*self.runs, [run] if run.offset == 0 && run.len == size);
        (!whole).then(|| self.runs.into())
    }
}

/// The same runs with the holes shorter than `least` filled.
fn joined(runs: &[DataRun], least: u64) -> Vec<DataRun> {
    let mut out: Vec<DataRun> = Vec::new();
    for run in runs {
        match out.last_mut() {
            Some(last) if run.offset.saturating_sub(last.offset + last.len) < least => {
                last.len = (run.offset + run.len).saturating_sub(last.offset);
            }
            _ => out.push(*run),
        }
    }
    out
}

/// The kind of what only an administrator of the host sees.
pub const TRUSTED: &str = "trusted.* (only root sees them: `codchifs export` as root has them; no unprivileged container can \
                           have any)";

/// Whether this process sees attributes `trusted.*`. Most file systems do not even list them to others (xattr(7)); btrfs
/// does, and a name without a value makes rsync fail.
pub fn sees_trusted() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    static SEES: OnceLock<bool> = OnceLock::new();
    *SEES.get_or_init(|| {
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
    })
}

fn fate_here(name: &[u8]) -> Fate {
    match fate(name) {
        Fate::Keep if name.starts_with(b"trusted.") && !sees_trusted() => Fate::Drop(TRUSTED),
        fate => fate,
    }
}
