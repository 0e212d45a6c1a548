//! The archive format of an export: a layout fixed from metadata alone, and its bytes at any offset.
//!
//! A tar holds no checksum of its data, only sizes. So the sizes of all members decide where each one lies, and the
//! archive can be read at any offset without ever being stored: every offset is a header's, a body's, padding or the
//! trailer. This module does no I/O: bodies come from a [`Source`].
//!
//! # The archive
//!
//! **Members** come in the order they are pushed, a directory before what is in it. There is no member for the root,
//! so extracting at `/` cannot change the target's root. Nothing in the bytes depends on the clock, the process or
//! the host.
//!
//! **A member** is, in 512-byte blocks: an `x` header if a number does not fit; a `K` record if its link target is longer
//! than 100 bytes; an `L` record if its name does not fit; one ustar header block; the body, padded with zeros to a whole
//! block. An `x` header with a `size` comes behind the records: readers apply that to the next header, whatever it is. Only
//! files have a body. That of a sparse file is its map and its data ([`Extent`]).
//!
//! **Names** are raw bytes, begin with `./` and end in `/` for directories. A name of at most 100 bytes is in `name`.
//! A longer one is split at the last `/` that leaves at most 155 bytes for `prefix` and at most 100 for `name`, if
//! there is one. Else a GNU `L` record (named `././@LongLink`, NUL-terminated) holds it, and `name` its first 100
//! bytes. Link targets likewise, with `K`, and without a prefix. A target is never rewritten; a hard link (typeflag
//! `1`, size 0) names its first name with `./` in front. PAX `path` and `linkpath` are never used: bsdtar refuses
//! them where the name is not UTF-8. busybox refuses an archive with a record of more than 4095 bytes.
//!
//! **Numbers** are octal where they fit: 7 digits for mode, ids and device numbers, 11 for size and mtime. `mtime` is
//! rounded down to seconds. A number that does not fit is in the ustar field as GNU base-256 *and* in the PAX header,
//! both with the same value, so that readers of either are right; a device number that does not fit is in the ustar
//! field only, since no PAX keyword for it is read without a warning. `uname` and `gname` are empty.
//!
//! **PAX headers** (named `././@PaxHeader`, all other fields constant) come only where needed: size of 8 GiB or more, ids of 2097152 or more, an mtime before 1970 or past 2242, nanoseconds if
//! [`Options::mtime_ns`] is set, holes, or [`Member::records`]. Their records are, in this order:
//!
//! | keyword | when | value |
//! |---|---|---|
//! | `mtime` | always | decimal seconds with nine digits of fraction; exact, also where only another number needs the header |
//! | `size` | 8 GiB or more | bytes |
//! | `uid`, `gid` | 2097152 or more | decimal |
//! | `GNU.sparse.major`, `.minor`, `.realsize` | a sparse file | `1`, `0`, bytes of the file with its holes |
//! | those of the member | any | as given |
//!
//! A sparse file keeps its name in the ustar header: readers take it from there where no `GNU.sparse.name` says otherwise,
//! and a name in PAX is what bsdtar refuses. `size`, here and there, is what lies in the archive: map and data.
//!
//! A time before 1970 with a fraction is written as POSIX has it, -1.5 seconds as `-1.500000000`. GNU tar and Python
//! read it so; bsdtar (3.6.2) reads the fraction as positive and is one second late.
//!
//! With [`Options::align`] a large file has one more PAX record before those of the member's own, a `comment` of as many spaces as
//! bring its first byte to a multiple of that many bytes, where file systems can share it. Readers ignore it.
//!
//! **The trailer** is one page of 4096 zeros at a multiple of 4096. The last member ends there: where it would not, its
//! PAX header has such a comment as well. So a reader that stops at the first zero block has asked for the last page, and
//! has seen every member before it.
//!
//! Sources: POSIX.1-2017 "pax"; the GNU tar manual, "Basic Tar Format".

mod header;
mod layout;
mod reader;
mod records;
mod sparse;
pub(crate) mod ustar;

pub use header::PaxRecord;
pub use layout::{
    Details, Layout, LayoutBuilder, LayoutError, MAX_PATH, MAX_RECORDS, MemberId, Options, Part,
    Run, Segment,
};
pub use reader::{Source, read_at};
pub use records::{Record, pax_records};
pub use sparse::Extent;

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A directory; pushed before what is in it.
    Directory,
    /// A regular file, the only kind with a body.
    File,
    /// A symbolic link.
    Symlink,
    /// A further name of an earlier member that is no directory.
    HardLink,
    /// A character device node.
    CharDevice,
    /// A block device node.
    BlockDevice,
    /// A named pipe.
    Fifo,
}

/// Where a link points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link<'a> {
    /// The member is no link.
    None,
    /// Target of a symbolic link: raw bytes, never empty, without NUL.
    Symlink(&'a [u8]),
    /// First name of a group of hard links.
    Hard(MemberId),
}

/// What is pushed into a [`LayoutBuilder`].
#[derive(Clone, Copy, Debug)]
pub struct Member<'a, T> {
    /// The directory it is in, pushed before; `None` for a child of the root.
    pub parent: Option<MemberId>,
    /// Last component of its path: raw bytes, neither empty nor `.` nor `..`, without `/` and NUL.
    pub name: &'a [u8],
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky; other bits are ignored.
    pub perm: u16,
    /// Owner, as the archive shows it.
    pub uid: u32,
    /// Group, as the archive shows it.
    pub gid: u32,
    /// Bytes of the file; ignored for everything but files.
    pub size: u64,
    /// Where a file has data, if it is to be a sparse member; ignored for everything but files.
    pub extents: Option<&'a [Extent]>,
    /// PAX records of the member, in the order in which they are to appear.
    pub records: &'a [PaxRecord<'a>],
    /// Seconds since the epoch, rounded down, and nanoseconds above them (below 1000000000).
    pub mtime: (i64, u32),
    /// Where it points: [`Link::Symlink`] and [`Link::Hard`] with their kinds, else [`Link::None`].
    pub link: Link<'a>,
    /// Major and minor number, each below 2^31; ignored for everything but devices.
    pub rdev: (u32, u32),
    /// What the [`Source`] needs to find the body. The layout only keeps it.
    pub tag: T,
}

#[cfg(test)]
mod tests;
