//! From pushed members to a layout.

use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_64;

use crate::quote;
use crate::tar::header::{self, BLOCK, Fields};
use crate::tar::{Kind, Link, Member, pax_records, sparse};

use super::record::{Perm, ROOT, Record, file_len};
use super::{Layout, LayoutError, MemberId, PAGE, Piece, Sparse};

/// Largest archive in bytes: offsets must fit a signed 64-bit file offset.
const MAX_SIZE: u64 = i64::MAX as u64;

/// Bytes of all PAX records of all members together, at most: they are kept in memory. Equal ones count once.
pub const MAX_RECORDS: usize = 512 << 20;

/// Bytes of a member's path at most, with the `./` in front.
pub const MAX_PATH: u32 = 64 << 20;

/// Choices that change the archive's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Write mtimes with nanoseconds, which takes a PAX header for every member that has any.
    pub mtime_ns: bool,
    /// Have files of at least this many bytes begin at a multiple of 4096 bytes, which takes a PAX header for most.
    pub align: Option<u64>,
}

/// Makes a [`Layout`] from members in archive order.
#[derive(Debug)]
pub struct LayoutBuilder<T> {
    options: Options,
    layout: Layout<T>,
    /// Per member, the bytes of its path with `./` in front and without a `/` at the end. Not kept in the layout.
    path_lens: Vec<u32>,
    owners: HashMap<(u32, u32), u32>,
    /// By their hash, the index in the layout of encoded PAX records that some member has.
    records: HashMap<u64, u32>,
    records_len: usize,
    last: Option<Last>,
}

/// What decides the length of a member's header blocks, kept of the last one.
#[derive(Clone, Copy, Debug)]
struct Last {
    /// As a PAX header shows them.
    fields: Fields,
    /// Offset in the archive.
    start: u64,
    /// Bytes of the member without its PAX header.
    plain: u64,
    /// It has a PAX header.
    pax: bool,
    /// Its body is where it is to be.
    aligned: bool,
}

impl<T: Copy> LayoutBuilder<T> {
    /// An archive without members.
    pub fn new(options: Options) -> Self {
        Self {
            options,
            layout: Layout {
                starts: Vec::new(),
                records: Vec::new(),
                tags: Vec::new(),
                names: Vec::new(),
                owners: Vec::new(),
                records_of: Vec::new(),
                pax: Vec::new(),
                sparse: Vec::new(),
                pieces: Vec::new(),
                members_end: 0,
                size: 0,
            },
            path_lens: Vec::new(),
            owners: HashMap::new(),
            records: HashMap::new(),
            records_len: 0,
            last: None,
        }
    }

    /// Appends a member. After an error the builder is as before, so that the caller may leave the member out.
    ///
    /// Two members of one name are not noticed.
    pub fn push(&mut self, member: &Member<'_, T>) -> Result<MemberId, LayoutError> {
        let name = || quote::name(member.name).to_string();
        let id = u32::try_from(self.layout.records.len())
            .ok()
            .filter(|id| *id < ROOT)
            .ok_or_else(|| LayoutError::Members { name: name() })?;
        let name_len = u16::try_from(member.name.len())
            .ok()
            .filter(|_| is_name(member.name))
            .ok_or_else(|| LayoutError::Name { name: name() })?;
        if member.mtime.1 >= 1_000_000_000 {
            let nsec = member.mtime.1;
            return Err(LayoutError::Time { name: name(), nsec });
        }
        let mut fields = fields(member);
        let (major, minor) = fields.rdev;
        if major.max(minor) > i32::MAX as u32 {
            return Err(LayoutError::Device { name: name(), major, minor });
        }
        let dir_len =
            self.dir_len(member.parent).ok_or_else(|| LayoutError::Parent { name: name() })?;
        let path_len = dir_len
            .checked_add(u32::from(name_len) + 1)
            .filter(|len| *len < MAX_PATH)
            .ok_or_else(|| LayoutError::Path { name: name() })?;
        let (target, link_len) =
            self.link(member).ok_or_else(|| LayoutError::Link { name: name() })?;
        let link_len = u32::try_from(link_len).map_err(|_| LayoutError::Path { name: name() })?;
        let name_start = u32::try_from(self.layout.names.len())
            .ok()
            .filter(|start| {
                let text = member.name.len().saturating_add(target.len());
                u32::try_from(text).is_ok_and(|text| start.checked_add(text).is_some())
            })
            .ok_or_else(|| LayoutError::Names { name: name() })?;

        let extents = member.extents.filter(|_| member.kind == Kind::File);
        let (map_len, data) = match extents {
            None => (0, fields.size),
            Some(extents) => {
                let data = sparse::data_len(extents, fields.size)
                    .ok_or_else(|| LayoutError::Holes { name: name() })?;
                let mut map = Vec::new();
                sparse::put_map(&mut map, extents, fields.size);
                let map_len = (map.len() as u64).next_multiple_of(BLOCK);
                fields.real_size = Some(fields.size);
                fields.size = map_len.saturating_add(data);
                (map_len, data)
            }
        };
        let mut records = Vec::new();
        for (key, value) in member.records {
            if key.is_empty() || key.contains(&b'=') {
                return Err(LayoutError::Keyword { name: name() });
            }
            header::put_record(&mut records, key, value);
        }
        let records_len = records.len() as u64;
        let shown_len = path_len as usize + usize::from(member.kind == Kind::Directory);
        let start = self.layout.members_end;
        let fits = self.path_fits(shown_len, member);
        let nsec = fields.mtime.1;
        if !self.options.mtime_ns {
            fields.mtime.1 = 0;
        }
        let align = self.options.align.is_some_and(|least| data >= least && data > 0);
        let needed = header::needs_pax(&fields, records_len);
        // A PAX header has the exact time, whatever it is there for.
        let exact = Fields { mtime: (fields.mtime.0, nsec), ..fields };
        let plain = header::plain_length(shown_len as u64, fits, link_len.into())
            .and_then(|len| len.checked_add(map_len));
        if align
            && let Some(before) = plain.and_then(|len| len.checked_add(start))
            && let Some(comment) =
                header::comment_to_align(&exact, before, records_len, needed, PAGE)
        {
            records = header::with_comment(comment, &records);
        }
        if needed || !records.is_empty() {
            fields = exact;
        }
        let records_len = records.len() as u64;
        let known = records.is_empty() || self.known_records(&records).is_some();
        if !known && self.records_len.saturating_add(records.len()) > MAX_RECORDS {
            return Err(LayoutError::Records { name: name() });
        }
        let place = header::length(shown_len as u64, fits, link_len.into(), &fields, records_len)
            .and_then(|len| {
                let len = len.checked_add(map_len)?;
                let body = data.checked_next_multiple_of(BLOCK)?;
                let end = start.checked_add(len)?.checked_add(body)?;
                let whole = archive_size(end)?;
                Some((u32::try_from(len / BLOCK).ok()?, end, whole))
            })
            .filter(|(_, _, whole)| *whole <= MAX_SIZE);
        let Some((header_blocks, end, _)) = place else {
            let size = member.size;
            return Err(LayoutError::Size { name: name(), size });
        };

        self.last = Some(Last {
            fields: exact,
            start,
            plain: plain.unwrap_or(0).saturating_add(data.next_multiple_of(BLOCK)),
            pax: header::needs_pax(&fields, records_len),
            aligned: align,
        });
        if let Some(extents) = extents {
            self.sparse(id, extents, data);
        }
        if !records.is_empty() {
            let records = self.records(records.into());
            self.layout.records_of.push((id, records));
        }
        let owner = self.owner((member.uid, member.gid));
        self.layout.names.extend_from_slice(member.name);
        self.layout.names.extend_from_slice(target);
        self.layout.starts.push(start);
        self.layout.tags.push(member.tag);
        self.layout.records.push(Record {
            payload: payload(member),
            mtime_sec: fields.mtime.0,
            mtime_nsec: fields.mtime.1,
            name_start,
            parent: member.parent.map_or(ROOT, |parent| parent.0),
            owner,
            header_blocks,
            name_len,
            perm: match extents {
                Some(_) => Perm::sparse(member.perm),
                None => Perm::new(member.kind, member.perm),
            },
        });
        self.path_lens.push(path_len);
        self.layout.members_end = end;
        Ok(MemberId(id))
    }

    /// Gives a plain file that was pushed before another size, and another tag. A size of 8 GiB or more is refused, as it
    /// takes a longer header. All members after it move, so [`Options::align`] must not be set.
    pub fn replace(&mut self, member: MemberId, size: u64, tag: T) -> Result<(), LayoutError> {
        let index = member.0 as usize;
        let name = || quote::name(self.layout.name(member)).to_string();
        let too_large = || LayoutError::Size { name: name(), size };
        let record = *self.layout.records.get(index).ok_or_else(too_large)?;
        let (old, new) = (file_len(&record).next_multiple_of(BLOCK), size.next_multiple_of(BLOCK));
        let moved = |at: u64| at.saturating_sub(old).saturating_add(new);
        let end = moved(self.layout.members_end);
        if size > header::OCTAL_11 || archive_size(end).is_none_or(|whole| whole > MAX_SIZE) {
            return Err(too_large());
        }
        let is_last = index.saturating_add(1) == self.layout.records.len();
        if let Some(record) = self.layout.records.get_mut(index) {
            record.payload = size;
        }
        if let Some(of) = self.layout.tags.get_mut(index) {
            *of = tag;
        }
        for start in self.layout.starts.iter_mut().skip(index.saturating_add(1)) {
            *start = moved(*start);
        }
        self.layout.members_end = end;
        if let Some(last) = &mut self.last {
            match is_last {
                true => {
                    last.fields.size = size;
                    last.plain = moved(last.plain);
                }
                false => last.start = moved(last.start),
            }
        }
        Ok(())
    }

    /// The members so far.
    pub fn layout(&self) -> &Layout<T> {
        &self.layout
    }

    /// The same members, laid out with other options. `self` must not have been made with [`Options::align`], and with
    /// [`Options::mtime_ns`] where the new options may show nanoseconds.
    pub fn with_options(self, options: Options) -> Result<Self, LayoutError> {
        let layout = self.layout;
        let mut builder = Self::new(options);
        for member in layout.iter() {
            let Some(tag) = layout.tag(member) else { continue };
            let details = layout.details(member);
            let records = pax_records(details.records).unwrap_or_default();
            let records: Vec<_> = records.iter().map(|(key, value)| (&**key, &**value)).collect();
            let kind = layout.kind(member);
            builder.push(&Member {
                parent: layout.parent(member),
                name: layout.name(member),
                kind,
                perm: details.perm,
                uid: details.uid,
                gid: details.gid,
                size: layout.size_of(member),
                extents: layout.extents(member).as_deref(),
                records: &records,
                mtime: details.mtime,
                link: match details.first {
                    Some(first) => Link::Hard(first),
                    None if kind == Kind::Symlink => Link::Symlink(details.target),
                    None => Link::None,
                },
                rdev: details.rdev,
                tag: *tag,
            })?;
        }
        Ok(builder)
    }

    /// Bytes of a member's path with `./` in front and without a `/` at the end.
    pub fn path_len(&self, member: MemberId) -> u32 {
        self.path_lens.get(member.0 as usize).copied().unwrap_or_default()
    }

    /// A member's path from the root, with a `/` in front and none at the end.
    pub fn path(&self, member: MemberId) -> Vec<u8> {
        self.layout.absolute_path(member)
    }

    /// Freezes the members and adds the trailer.
    pub fn finish(mut self) -> Layout<T> {
        self.end_at_a_page();
        let mut layout = self.layout;
        layout.starts.shrink_to_fit();
        layout.records.shrink_to_fit();
        layout.tags.shrink_to_fit();
        layout.names.shrink_to_fit();
        layout.owners.shrink_to_fit();
        layout.records_of.shrink_to_fit();
        layout.pax.shrink_to_fit();
        layout.sparse.shrink_to_fit();
        layout.pieces.shrink_to_fit();
        // Every push has checked this sum.
        layout.size = archive_size(layout.members_end).unwrap_or(MAX_SIZE);
        layout
    }

    /// Has the last member end at the end of a page, by a comment in its PAX header: readers that stop at the first zero
    /// block then stop in the last page of the archive, where they meet the error that says that it is torn.
    fn end_at_a_page(&mut self) {
        let Some(last) = self.last.filter(|last| !last.aligned) else { return };
        let Some(member) = self.layout.records.len().checked_sub(1) else { return };
        let fields = last.fields;
        let own = self.layout.pax_records(MemberId(member as u32)).to_vec();
        let before = last.start.saturating_add(last.plain);
        let comment = header::comment_to_align(&fields, before, own.len() as u64, last.pax, PAGE);
        let Some(comment) = comment else { return };
        let records = header::with_comment(comment, &own);
        let pax = header::pax_length(&fields, records.len() as u64);
        let end = pax.and_then(|pax| before.checked_add(pax)).filter(|end| *end <= MAX_SIZE / 2);
        let Some(end) = end else { return };
        let body = self.layout.members_end - self.layout.body_start(MemberId(member as u32));
        let records = self.records(records.into());
        if self.layout.records_of.last().is_some_and(|(of, _)| *of as usize == member) {
            self.layout.records_of.pop();
        }
        self.layout.records_of.push((member as u32, records));
        if let Some(record) = self.layout.records.last_mut() {
            record.mtime_nsec = fields.mtime.1;
            record.header_blocks = ((end - last.start - body) / BLOCK) as u32;
        }
        self.layout.members_end = end;
    }

    /// Bytes of the parent's path with `./` in front; `None` if it is no directory pushed before.
    fn dir_len(&self, parent: Option<MemberId>) -> Option<u32> {
        let Some(parent) = parent else {
            return Some(1);
        };
        let index = parent.0 as usize;
        let record = self.layout.records.get(index)?;
        let len = self.path_lens.get(index)?;
        (record.perm.kind() == Kind::Directory).then_some(*len)
    }

    /// The symlink target to keep, and the length of the link name in the archive; `None` if the link is not valid.
    fn link<'a>(&self, member: &Member<'a, T>) -> Option<(&'a [u8], usize)> {
        match (member.kind, member.link) {
            (Kind::Symlink, Link::Symlink(target)) => {
                (!target.is_empty() && !target.contains(&0)).then_some((target, target.len()))
            }
            (Kind::HardLink, Link::Hard(first)) => {
                let index = first.0 as usize;
                let kind = self.layout.records.get(index)?.perm.kind();
                let len = *self.path_lens.get(index)? as usize;
                (!matches!(kind, Kind::Directory | Kind::HardLink)).then_some((&[], len))
            }
            (Kind::Symlink | Kind::HardLink, _) => None,
            (_, Link::None) => Some((&[], 0)),
            (_, Link::Symlink(_) | Link::Hard(_)) => None,
        }
    }

    /// Whether the name, `len` bytes as shown in the archive, fits the ustar fields.
    ///
    /// Only lengths matter: every component gives the place of the `/` before it.
    fn path_fits(&self, len: usize, member: &Member<'_, T>) -> bool {
        if header::fits_whole(len) || header::never_fits(len) {
            return header::fits_whole(len);
        }
        // `./` and all components up to and with the parent end at this `/`.
        let mut slash = self.dir_len(member.parent).unwrap_or(0) as usize;
        let mut parent = member.parent;
        loop {
            if header::splits_at(len, slash) {
                return true;
            }
            let Some(dir) = parent else { return false };
            parent = self.layout.parent(dir);
            slash = self.dir_len(parent).unwrap_or(0) as usize;
        }
    }

    fn sparse(&mut self, member: u32, extents: &[sparse::Extent], data: u64) {
        let first = self.layout.pieces.len();
        let mut start = 0;
        for extent in extents {
            self.layout.pieces.push(Piece { offset: extent.offset, start });
            start += extent.len;
        }
        let pieces = first..self.layout.pieces.len();
        self.layout.sparse.push(Sparse { member, pieces, data });
    }

    fn known_records(&self, records: &[u8]) -> Option<u32> {
        let index = *self.records.get(&xxh3_64(records))?;
        // Another text may have the same hash: it is then kept as often as it occurs.
        (self.layout.pax.get(index as usize)?.as_ref() == records).then_some(index)
    }

    fn records(&mut self, records: Box<[u8]>) -> u32 {
        if let Some(index) = self.known_records(&records) {
            return index;
        }
        self.records_len = self.records_len.saturating_add(records.len());
        // At most one per member, whose number is a u32.
        let index = self.layout.pax.len() as u32;
        self.records.insert(xxh3_64(&records), index);
        self.layout.pax.push(records);
        index
    }

    fn owner(&mut self, owner: (u32, u32)) -> u32 {
        let owners = &mut self.layout.owners;
        *self.owners.entry(owner).or_insert_with(|| {
            owners.push(owner);
            // At most one per member, whose number is a u32.
            (owners.len() - 1) as u32
        })
    }
}

fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

fn fields<T>(member: &Member<'_, T>) -> Fields {
    let is_device = matches!(member.kind, Kind::CharDevice | Kind::BlockDevice);
    Fields {
        kind: member.kind,
        perm: member.perm & 0o7777,
        uid: member.uid,
        gid: member.gid,
        size: if member.kind == Kind::File { member.size } else { 0 },
        real_size: None,
        mtime: member.mtime,
        rdev: if is_device { member.rdev } else { (0, 0) },
    }
}

fn payload<T>(member: &Member<'_, T>) -> u64 {
    match (member.kind, member.link) {
        (Kind::File, _) => member.size,
        (Kind::CharDevice | Kind::BlockDevice, _) => {
            u64::from(member.rdev.0) << 32 | u64::from(member.rdev.1)
        }
        (_, Link::Symlink(target)) => target.len() as u64,
        (_, Link::Hard(first)) => first.0.into(),
        (Kind::Directory | Kind::Symlink | Kind::HardLink | Kind::Fifo, Link::None) => 0,
    }
}

/// Members, zeros to the end of their last page, one page of zeros.
fn archive_size(members_end: u64) -> Option<u64> {
    members_end.checked_next_multiple_of(PAGE)?.checked_add(PAGE)
}
