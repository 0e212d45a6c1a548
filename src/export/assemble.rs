//! From listed directories to a layout: members in archive order, each as soon as all before it are there.

use super::error::ScanError;
use super::known::Bare;
use super::members::Members;
use super::records::records;
use super::report::{LeftOutLine, Note};
use super::scan_file::ScanFile;
use super::tag::{Tag, layer_of};
use crate::tar::{self, Extent, Layout, LayoutBuilder, LayoutError, Link, Member, MemberId};
use crate::tree::{
    Attr, DataRun, Details, Kind, LONGEST_PATH, Listing, ObjectId, Scanned, Time, Tree,
};
use parking_lot::Mutex;
use std::collections::HashMap;

/// Bytes of attributes that every reader takes: bsdtar's limit for a whole PAX header is 1 MiB (libarchive,
/// archive_read_support_format_tar.c).
pub(super) const LARGEST_PAX: usize = (1 << 20) - (8 << 10);

/// A directory on the way from "listed" to "in the layout".
pub(super) struct Listed {
    pub(super) listing: Listing,
    /// Number of the first directory in it; the others follow.
    pub(super) first: u32,
}

/// Files with further names: under a thousand names they have the same attributes and holes, which are read once.
#[derive(Debug, Default)]
pub(super) struct Links(Mutex<HashMap<ObjectId, Linked>>);

#[derive(Debug, Default)]
struct Linked {
    /// Whoever came to it first is still reading.
    reading: bool,
    details: Option<Box<(Attr, Details)>>,
    /// Its first name in the archive, if that is there already.
    first: Option<MemberId>,
}

/// What a name of a linked file is in the archive.
enum Name {
    First(Option<Box<(Attr, Details)>>),
    Further(MemberId),
    /// Its details are still to come.
    NotYet,
}

impl Links {
    /// Whether the caller is the first to come to a file, and has to [`Self::settle`] it.
    pub(super) fn claim(&self, id: ObjectId) -> bool {
        let mut links = self.0.lock();
        let vacant = !links.contains_key(&id);
        if vacant {
            links.insert(id, Linked { reading: true, ..Linked::default() });
        }
        vacant
    }

    /// Takes what was read of a file that was claimed.
    pub(super) fn settle(&self, entry: &mut Scanned) {
        let details = entry.details.take().map(|details| Box::new((entry.attr, *details)));
        let linked = Linked { reading: false, details, first: None };
        self.0.lock().insert(entry.attr.id, linked);
    }

    fn name(&self, id: ObjectId, wait: bool) -> Name {
        let mut links = self.0.lock();
        let linked = links.entry(id).or_default();
        match linked.first {
            Some(first) => Name::Further(first),
            None if linked.reading && wait => Name::NotYet,
            None => Name::First(linked.details.take()),
        }
    }

    fn set_first(&self, id: ObjectId, first: MemberId) {
        self.0.lock().entry(id).or_default().first = Some(first);
    }
}

/// A directory whose entries are being pushed.
struct Frame {
    member: Option<MemberId>,
    listing: Listing,
    /// Of the next entry.
    at: usize,
    /// Number of the next directory in it.
    child: u32,
}

/// A layout in the making.
pub(super) struct Assembly<'a> {
    tree: &'a Tree,
    options: tar::Options,
    builder: LayoutBuilder<Tag>,
    frames: Vec<Frame>,
    /// The directory whose entries come next.
    next: Option<(u32, Option<MemberId>)>,
    /// What only a scan knows, pushed before it was known.
    scan_files: Vec<(ScanFile, MemberId, Attr)>,
    newest: Time,
    left_out: Note,
    bare: Bare,
}

/// What is left in the end.
pub(super) struct Assembled {
    pub(super) layout: Layout<Tag>,
    pub(super) members: Members,
    pub(super) newest: Time,
    pub(super) left_out: Note,
    pub(super) bare: Bare,
}

impl<'a> Assembly<'a> {
    pub(super) fn new(tree: &'a Tree, options: tar::Options) -> Self {
        // What is known in the end only would move what was aligned before: that is done at the end. Until then times are
        // kept whole, as an aligned member may show them.
        let now = match options.align {
            Some(_) => tar::Options { mtime_ns: true, align: None },
            None => options,
        };
        Self {
            tree,
            options,
            builder: LayoutBuilder::new(now),
            frames: Vec::new(),
            next: Some((0, None)),
            scan_files: Vec::new(),
            newest: Time { sec: i64::MIN, nsec: 0 },
            left_out: Note::default(),
            bare: Bare::default(),
        }
    }

    /// Pushes all that is there up to the first that is not. A directory before what is in it, siblings by bytes.
    pub(super) fn advance(
        &mut self,
        listed: &Mutex<HashMap<u32, Listed>>,
        links: &Links,
    ) -> Result<(), ScanError> {
        self.push_all(listed, links, true)
    }

    /// Pushes all that is left, and fills in what only now is known.
    pub(super) fn finish(
        mut self,
        listed: &Mutex<HashMap<u32, Listed>>,
        links: &Links,
        owners: &[u8],
    ) -> Result<Assembled, ScanError> {
        self.push_all(listed, links, false)?;
        let members = Members::of(self.builder.layout());
        for (file, member, attr) in &self.scan_files {
            let attr = match file {
                ScanFile::Owners => attr.with_content(owners),
                ScanFile::Members => attr.with_digest(members.size(), members.digest()),
            };
            self.builder.replace(*member, attr.size, tag(self.tree, &attr))?;
        }
        self.bare.shrink();
        let Self { options, builder, newest, left_out, bare, .. } = self;
        let builder = match options.align {
            Some(_) => builder.with_options(options)?,
            None => builder,
        };
        Ok(Assembled { layout: builder.finish(), members, newest, left_out, bare })
    }

    fn push_all(
        &mut self,
        listed: &Mutex<HashMap<u32, Listed>>,
        links: &Links,
        wait: bool,
    ) -> Result<(), ScanError> {
        loop {
            if let Some((number, member)) = self.next {
                let found = listed.lock().remove(&number);
                let found = match found {
                    None if wait => return Ok(()),
                    None => Listed { listing: Listing::default(), first: 0 },
                    Some(found) => found,
                };
                let Listed { listing, first: child } = found;
                self.frames.push(Frame { member, listing, at: 0, child });
                self.next = None;
            }
            let Some(mut frame) = self.frames.pop() else { return Ok(()) };
            while self.next.is_none() && frame.at < frame.listing.entries().len() {
                if !self.push(&mut frame, links, wait)? {
                    self.frames.push(frame);
                    return Ok(());
                }
            }
            if self.next.is_some() {
                self.frames.push(frame);
            }
        }
    }

    /// Pushes the next entry of a directory; `false` if it has to wait.
    fn push(&mut self, frame: &mut Frame, links: &Links, wait: bool) -> Result<bool, ScanError> {
        let Some(entry) = frame.listing.entries().get(frame.at) else { return Ok(true) };
        let name = frame.listing.name(entry);
        let mut attr = entry.attr;
        let mut details = entry.details.as_deref();
        let (mut first, mut of_link) = (None, None);
        let has_links = is_linked(&attr);
        if has_links {
            match links.name(attr.id, wait) {
                Name::NotYet => return Ok(false),
                Name::Further(member) => first = Some(member),
                Name::First(read) => of_link = read,
            }
        }
        if let Some((of, read)) = of_link.as_deref() {
            // Its size is of the moment at which its holes were looked for.
            (attr, details) = (*of, Some(read));
        }
        frame.at += 1;
        let directory = attr.kind == Kind::Directory;
        let child = frame.child;
        frame.child += u32::from(directory);
        match attr.id {
            ObjectId::Disk { .. } => self.newest = self.newest.max(attr.ctime),
            // Its sources have the times that count.
            ObjectId::Generated { .. } => {}
        }
        let (kind, link) = match (first, attr.kind) {
            (Some(first), _) => (tar::Kind::HardLink, Link::Hard(first)),
            (None, Kind::Directory) => (tar::Kind::Directory, Link::None),
            (None, Kind::File) => (tar::Kind::File, Link::None),
            (None, Kind::Symlink) => {
                (tar::Kind::Symlink, Link::Symlink(frame.listing.target(entry)))
            }
            (None, Kind::CharDevice) => (tar::Kind::CharDevice, Link::None),
            (None, Kind::BlockDevice) => (tar::Kind::BlockDevice, Link::None),
            (None, Kind::Fifo) => (tar::Kind::Fifo, Link::None),
            (None, Kind::Socket) => return Ok(true),
        };
        // What an inode has is with its first name.
        let details = details.filter(|_| first.is_none());
        let records = details.map(|details| records(&details.xattrs)).unwrap_or_default();
        let records: Vec<_> = records.iter().map(|(key, value)| (&**key, &**value)).collect();
        let extent = |run: &DataRun| Extent { offset: run.offset, len: run.len };
        let data = details.and_then(|details| details.data.as_ref());
        let extents = data.map(|runs| runs.iter().map(extent).collect::<Vec<_>>());
        let pushed = self.builder.push(&Member {
            parent: frame.member,
            name,
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
            tag: tag(self.tree, &attr),
        });
        let parent = frame.member;
        let path_of = |builder: &LayoutBuilder<Tag>| {
            let mut path = parent.map(|parent| builder.path(parent)).unwrap_or_default();
            path.push(b'/');
            path.extend_from_slice(name);
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
                self.left_out.push(LeftOutLine::unarchivable(&path_of(&self.builder), &why));
                self.left_out.incomplete = true;
                return Ok(true);
            }
        };
        let bytes: usize = records.iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > LARGEST_PAX {
            self.left_out.push(LeftOutLine::large_attributes(&path_of(&self.builder)));
        }
        if self.builder.path_len(id) as usize > LONGEST_PATH {
            self.left_out.push(LeftOutLine::long_path(&path_of(&self.builder)));
        }
        if first.is_none() && has_links {
            links.set_first(attr.id, id);
        }
        if entry.bare {
            self.bare.add(id);
        }
        if let Some(file) = ScanFile::of(attr.id) {
            self.scan_files.push((file, id, attr));
        }
        if directory {
            self.next = Some((child, Some(id)));
        }
        Ok(true)
    }
}

/// Whether an entry may have other names.
pub(super) fn is_linked(attr: &Attr) -> bool {
    attr.nlink > 1 && attr.kind != Kind::Directory
}

fn tag(tree: &Tree, attr: &Attr) -> Tag {
    let (layer, ino) = layer_of(tree, attr);
    Tag { ino, ctime_sec: attr.ctime.sec, ctime_nsec: attr.ctime.nsec, layer }
}
