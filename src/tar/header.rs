//! One member's header blocks: GNU long records, a PAX header, the ustar block, a sparse file's map.
//!
//! Everything here is a pure function of the fields. [`length`] knows how long [`Header::encode`] will be without
//! looking at the name's bytes, so a layout can be made from lengths alone.
//!
//! Sources: POSIX.1-2017 "pax", sections "ustar Interchange Format" and "pax Header Block"; the GNU tar manual,
//! "Basic Tar Format", for the `L` and `K` records and for base-256 numbers.

use super::Kind;
use super::ustar::{self, get_mut as field};
use std::sync::LazyLock;

/// The unit of the format in bytes: headers are whole blocks, bodies are padded to them.
pub(super) const BLOCK: u64 = ustar::BLOCK as u64;

/// Bytes of the ustar `name` and `linkname` fields. A text that fills the field has no NUL.
const NAME: usize = 100;
/// Bytes of the ustar `prefix` field.
const PREFIX: usize = 155;
/// Largest value of an 8 byte octal field, seven digits: ids.
const OCTAL_7: u64 = (1 << 21) - 1;
/// Largest value of a 12 byte octal field, eleven digits: sizes and times.
pub(super) const OCTAL_11: u64 = (1 << 33) - 1;

/// Names of the helper records. They are constants, so that the same tree gives the same bytes.
const LONG_NAME: &[u8] = b"././@LongLink";
const PAX_NAME: &[u8] = b"././@PaxHeader";
/// Mode of the helper records, as GNU tar writes it.
const HELPER_PERM: u16 = 0o644;

/// A member's numbers, as they appear in the archive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields {
    pub(super) kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub(super) perm: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Bytes after the ustar block: the body, for a sparse file its map too; 0 for everything but files.
    pub(super) size: u64,
    /// Bytes of the file where `size` is not that: of a sparse one.
    pub(super) real_size: Option<u64>,
    /// Seconds since the epoch, rounded down, and the nanoseconds above them. Nanoseconds other than 0 ask for a
    /// PAX header.
    pub(super) mtime: (i64, u32),
    /// Major and minor number; 0 for everything but devices. Base-256 alone holds large ones: GNU tar warns of the
    /// keywords `SCHILY.devmajor` and `SCHILY.devminor`.
    pub(super) rdev: (u32, u32),
}

/// A PAX record beyond the numbers: its keyword (without `=`) and its raw value.
pub type PaxRecord<'a> = (&'a [u8], &'a [u8]);

/// All that decides a member's header blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header<'a> {
    /// The name as it appears in the archive: begins with `./`, ends in `/` for a directory.
    pub(super) path: &'a [u8],
    /// Symlink target or the name of the first hard link; else empty.
    pub(super) link: &'a [u8],
    pub(super) fields: Fields,
    /// Encoded PAX records after those of the numbers (xattrs, ACLs); any ask for a PAX header.
    pub(super) records: &'a [u8],
    /// A sparse file's map; else empty.
    pub(super) map: &'a [u8],
}

/// Whether a name of `len` bytes fits the ustar fields when it is split at a `/` at index `slash`.
///
/// The part before goes to `prefix`, the part after to `name`; neither may be empty.
pub(super) fn splits_at(len: usize, slash: usize) -> bool {
    let name = len.saturating_sub(slash).saturating_sub(1);
    (1..=PREFIX).contains(&slash) && (1..=NAME).contains(&name)
}

/// Whether a name of `len` bytes fits the `name` field as it is.
pub(super) fn fits_whole(len: usize) -> bool {
    len <= NAME
}

/// Whether no split can make a name of `len` bytes fit, wherever its slashes are.
pub(super) fn never_fits(len: usize) -> bool {
    len > PREFIX + 1 + NAME
}

/// Bytes of the header blocks but for a sparse file's map; `None` if they exceed u64.
///
/// `path_fits` says that the name fits the ustar fields, whole or split; `path`, `link` and `records` (encoded) are
/// lengths in bytes.
pub(super) fn length(
    path: u64,
    path_fits: bool,
    link: u64,
    fields: &Fields,
    records: u64,
) -> Option<u64> {
    let plain = plain_length(path, path_fits, link)?;
    match needs_pax(fields, records) {
        false => Some(plain),
        true => plain.checked_add(pax_length(fields, records)?),
    }
}

/// Bytes of the PAX header alone, with `records` bytes of encoded ones.
pub(super) fn pax_length(fields: &Fields, records: u64) -> Option<u64> {
    helper_length(numbers_length(fields).checked_add(records)?)
}

/// The same without a PAX header.
pub(super) fn plain_length(path: u64, path_fits: bool, link: u64) -> Option<u64> {
    let mut total = BLOCK;
    if !path_fits {
        total = total.checked_add(helper_length(path.checked_add(1)?)?)?;
    }
    if link > NAME as u64 {
        total = total.checked_add(helper_length(link.checked_add(1)?)?)?;
    }
    Some(total)
}

/// Bytes of the records of the numbers in a PAX header.
fn numbers_length(fields: &Fields) -> u64 {
    let mut body = 0u64;
    each_record(fields, |key, value| {
        body = body.saturating_add(record_length(key, value) as u64);
    });
    body
}

/// The shortest comment: `12 comment=\n`.
const LEAST_COMMENT: u64 = 12;

/// Bytes of the comment that has a body begin at a multiple of `page`, where all before it but the PAX header ends at
/// `before`; `None` if it does so without one. `needed` says that there is a PAX header anyway.
pub(super) fn comment_to_align(
    fields: &Fields,
    before: u64,
    records: u64,
    needed: bool,
    page: u64,
) -> Option<u64> {
    if !needed && before.is_multiple_of(page) {
        return None;
    }
    let body = numbers_length(fields).checked_add(records)?;
    let mut padded = body.checked_next_multiple_of(BLOCK)?;
    let aligned =
        |padded: u64| Some(before.checked_add(BLOCK)?.checked_add(padded)?.is_multiple_of(page));
    if needed && aligned(padded)? {
        return None;
    }
    while !aligned(padded)? || padded - body < LEAST_COMMENT {
        padded = padded.checked_add(BLOCK)?;
    }
    Some(padded - body)
}

/// A comment of `len` bytes in all, at least 12, and encoded records after it.
pub(super) fn with_comment(len: u64, records: &[u8]) -> Vec<u8> {
    let mut out = format!("{len} comment=").into_bytes();
    out.resize((len as usize).saturating_sub(1).max(out.len()), b' ');
    out.push(b'\n');
    out.extend_from_slice(records);
    out
}

/// A helper record: its own header block and its padded body.
fn helper_length(body: u64) -> Option<u64> {
    body.checked_next_multiple_of(BLOCK)?.checked_add(BLOCK)
}

/// Whether the member has a value that neither ustar fields nor long records hold.
pub(super) fn needs_pax(fields: &Fields, records: u64) -> bool {
    fields.mtime.1 != 0
        || !(0..=OCTAL_11 as i64).contains(&fields.mtime.0)
        || fields.size > OCTAL_11
        || fields.real_size.is_some()
        || [fields.uid, fields.gid].iter().any(|id| u64::from(*id) > OCTAL_7)
        || records != 0
}

/// Calls `sink` with every record of a number in a PAX header that is known to be needed, in archive order.
fn each_record(fields: &Fields, mut sink: impl FnMut(&[u8], &[u8])) {
    sink(b"mtime", pax_time(fields.mtime).as_bytes());
    if fields.size > OCTAL_11 {
        sink(b"size", fields.size.to_string().as_bytes());
    }
    let ids: [(&[u8], u32); 2] = [(b"uid", fields.uid), (b"gid", fields.gid)];
    for (key, id) in ids {
        if u64::from(id) > OCTAL_7 {
            sink(key, id.to_string().as_bytes());
        }
    }
    if let Some(real_size) = fields.real_size {
        sink(b"GNU.sparse.major", b"1");
        sink(b"GNU.sparse.minor", b"0");
        sink(b"GNU.sparse.realsize", real_size.to_string().as_bytes());
    }
}

/// Appends `LENGTH key=value\n`, where LENGTH counts its own digits too.
pub(super) fn put_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    out.extend_from_slice(record_length(key, value).to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// A time as PAX writes it: a decimal fraction with the sign in front of all of it, so (-2, 500000000) is -1.5.
fn pax_time((sec, nsec): (i64, u32)) -> String {
    let nsec = nsec.min(999_999_999);
    if sec < 0 && nsec > 0 {
        let whole = (sec + 1).unsigned_abs();
        format!("-{whole}.{:09}", 1_000_000_000 - nsec)
    } else {
        format!("{sec}.{nsec:09}")
    }
}

/// Length in bytes of what [`put_record`] appends.
fn record_length(key: &[u8], value: &[u8]) -> usize {
    let rest = key.len() + value.len() + 3;
    let mut total = rest + 1;
    while rest + digits(total) > total {
        total += 1;
    }
    total
}

fn digits(number: usize) -> usize {
    number.checked_ilog10().unwrap_or(0) as usize + 1
}

impl Header<'_> {
    /// Appends the header blocks: PAX header, link record, name record, each only if needed, then the ustar block.
    ///
    /// tar2sqfs and Perl's Archive::Tar forget a long record at a PAX header behind it. One with a size comes last all the same:
    /// sqfstar and tar-rs would apply it to a long record in between.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let pax = needs_pax(&self.fields, self.records.len() as u64);
        let has_size = self.fields.size > OCTAL_11;
        if pax && !has_size {
            self.pax_header(out);
        }
        if self.link.len() > NAME {
            long_record(out, b'K', self.link);
        }
        let mut block = empty(typeflag(self.fields.kind), self.fields.perm);
        if fits_whole(self.path.len()) {
            put(field(&mut block, ustar::NAME), self.path);
        } else if let Some((prefix, name)) = split(self.path) {
            put(field(&mut block, ustar::PREFIX), prefix);
            put(field(&mut block, ustar::NAME), name);
        } else {
            long_record(out, b'L', self.path);
            put(field(&mut block, ustar::NAME), self.path);
        }
        if pax && has_size {
            self.pax_header(out);
        }
        let fields = &self.fields;
        put(field(&mut block, ustar::LINKNAME), self.link);
        number(field(&mut block, ustar::UID), fields.uid.into());
        number(field(&mut block, ustar::GID), fields.gid.into());
        number(field(&mut block, ustar::SIZE), fields.size.into());
        number(field(&mut block, ustar::MTIME), fields.mtime.0.into());
        number(field(&mut block, ustar::DEV_MAJOR), fields.rdev.0.into());
        number(field(&mut block, ustar::DEV_MINOR), fields.rdev.1.into());
        seal(out, block);
        out.extend_from_slice(self.map);
        pad(out);
    }

    fn pax_header(&self, out: &mut Vec<u8>) {
        let mut body = self.records.len() as u64;
        each_record(&self.fields, |key, value| {
            body = body.saturating_add(record_length(key, value) as u64);
        });
        helper(out, b'x', PAX_NAME, body);
        each_record(&self.fields, |key, value| put_record(out, key, value));
        out.extend_from_slice(self.records);
        pad(out);
    }
}

/// The longest prefix that lets the name fit, as GNU tar splits it.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let slash = path
        .iter()
        .enumerate()
        .take(PREFIX + 1)
        .rev()
        .find(|(index, byte)| **byte == b'/' && splits_at(path.len(), *index))?
        .0;
    Some((path.get(..slash)?, path.get(slash + 1..)?))
}

/// A GNU record that holds the name (`L`) or the link target (`K`) of the next header, NUL-terminated.
fn long_record(out: &mut Vec<u8>, flag: u8, text: &[u8]) {
    helper(out, flag, LONG_NAME, text.len() as u64 + 1);
    out.extend_from_slice(text);
    out.push(0);
    pad(out);
}

fn helper(out: &mut Vec<u8>, flag: u8, name: &[u8], size: u64) {
    let mut block = empty(flag, HELPER_PERM);
    put(field(&mut block, ustar::NAME), name);
    number(field(&mut block, ustar::SIZE), size.into());
    seal(out, block);
}

/// A ustar block whose numbers are all zero; uname and gname stay empty.
static EMPTY: LazyLock<[u8; ustar::BLOCK]> = LazyLock::new(|| {
    let mut block = [0; ustar::BLOCK];
    for zero in
        [ustar::UID, ustar::GID, ustar::SIZE, ustar::MTIME, ustar::DEV_MAJOR, ustar::DEV_MINOR]
    {
        number(field(&mut block, zero), 0);
    }
    put(field(&mut block, ustar::MAGIC), b"ustar\0");
    put(field(&mut block, ustar::VERSION), b"00");
    block
});

fn empty(flag: u8, perm: u16) -> [u8; ustar::BLOCK] {
    let mut block = *EMPTY;
    number(field(&mut block, ustar::MODE), perm.into());
    put(field(&mut block, ustar::TYPEFLAG), &[flag]);
    block
}

/// Writes the checksum and appends the block.
fn seal(out: &mut Vec<u8>, mut block: [u8; ustar::BLOCK]) {
    let sum = ustar::checksum(&block);
    // Six digits, NUL, space: the form every tar since the seventh edition writes.
    if let Some((blank, digits)) = field(&mut block, ustar::CHECKSUM).split_last_mut() {
        number(digits, sum.into());
        *blank = b' ';
    }
    out.extend_from_slice(&block);
}

/// Copies as much of `text` as the field holds.
fn put(field: &mut [u8], text: &[u8]) {
    for (to, from) in field.iter_mut().zip(text) {
        *to = *from;
    }
}

/// Octal digits and a NUL where they hold the value, else GNU base-256: two's complement, big-endian, top bit set.
fn number(field: &mut [u8], value: i128) {
    let mut rest = value;
    if let Some((end, digits)) = field.split_last_mut() {
        *end = 0;
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (rest & 7) as u8;
            rest >>= 3;
        }
    }
    if rest == 0 {
        return;
    }
    rest = value;
    for byte in field.iter_mut().rev() {
        *byte = (rest & 0xff) as u8;
        rest >>= 8;
    }
    if let Some(first) = field.first_mut() {
        *first |= 0x80;
    }
}

/// Fills the last block with zeros; `out` began at a block's start.
fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(BLOCK as usize), 0);
}

fn typeflag(kind: Kind) -> u8 {
    match kind {
        Kind::File => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::CharDevice => b'3',
        Kind::BlockDevice => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
    }
}
