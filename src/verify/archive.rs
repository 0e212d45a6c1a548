//! The members of a copied archive, hashed as they pass by; what is damaged is told and stepped over.
//!
//! It reads what [`crate::tar`] writes: ustar blocks, GNU long names, PAX headers, sparse files of version 1.0.

use super::kind;
use crate::export::{Digest, Entry, Record, pax_records};
use crate::tar::ustar::{self, BLOCK, Field, get as field};
use crate::tar::{Kind, MAX_PATH, MAX_RECORDS};
use sha2::{Digest as _, Sha256};
use std::io::{self, ErrorKind, Read};
use std::sync::mpsc::Sender;

/// What is said of the archives of others.
const OTHER_TAR: &str = "a tar of another program";
const REMEDY: &str = "extract it, and compare the directory";
/// What an archive ends in.
const TRAILER: u64 = 4096;
/// Bytes of a long name, and of a PAX header, that are believed: what no export has is damage. A directory has a `/` and a
/// NUL behind its path, and beside a member's own records a PAX header has its numbers and the padding before its body.
const MAX_NAME: u64 = MAX_PATH as u64 + 2;
const MAX_PAX: u64 = MAX_RECORDS as u64 + (64 << 10);
/// Runs of a sparse file that are believed.
const MOST_RUNS: u64 = 1 << 20;
/// Bytes that are hashed at once.
const AT_ONCE: usize = 256 << 10;
/// Bytes of a file's holes that are hashed whatever it should be: a header may promise more than can be hashed within years.
const FREE_HOLES: u64 = 64 << 20;

/// Something of an archive.
#[derive(Debug)]
pub enum Item {
    /// A member, and the digest of a file.
    Member(Box<Entry>, Option<Digest>),
    /// A file with large holes, which is a member if its body is right: whether it is to be hashed. Without an answer it is not.
    Wanted(Box<Entry>, Sender<bool>),
    /// Bytes that belong to no member.
    Damaged {
        /// How many.
        len: u64,
    },
    /// The archive ends too early, and so does this list.
    CutOff {
        /// After so many bytes.
        at: u64,
    },
    /// It is no archive at all, or none of codchifs: in words what it is and what to do. The list ends here.
    Foreign(String),
}

/// An archive that is read once.
#[allow(missing_debug_implementations)] // A reader need not have one.
pub struct Archive<R> {
    input: R,
    offset: u64,
    done: bool,
    /// What it begins with, until there was a header.
    start: Option<Vec<u8>>,
    /// All of it has been zeros.
    zeros: bool,
    /// The last member's name began with `./`, as all of an export do.
    dotted: bool,
    /// A block that was read to find out whether it is a header.
    ahead: Option<[u8; BLOCK]>,
    wanted: Box<dyn FnMut(&Entry) -> bool + Send>,
}

enum Fault {
    CutOff,
    /// No header, or one that makes no sense.
    Damaged,
    Io(io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::UnexpectedEof => Self::CutOff,
            _ => Self::Io(error),
        }
    }
}

impl<R: Read> Archive<R> {
    /// From its first byte. A file with large holes is hashed only if it is `wanted`.
    pub fn new(input: R, wanted: impl FnMut(&Entry) -> bool + Send + 'static) -> Self {
        Self {
            input,
            offset: 0,
            done: false,
            start: Some(Vec::new()),
            zeros: true,
            dotted: false,
            ahead: None,
            wanted: Box::new(wanted),
        }
    }

    /// Bytes read so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// What comes next; `None` at the end. An error of the reader itself is one.
    pub fn item(&mut self) -> io::Result<Option<Item>> {
        if self.done {
            return Ok(None);
        }
        let start = self.offset - if self.ahead.is_some() { BLOCK as u64 } else { 0 };
        let item = self.member();
        if let Some(what) = self.foreign(&item) {
            self.done = true;
            return Ok(Some(Item::Foreign(what)));
        }
        let item = match item {
            Ok(Some((entry, digest))) => return Ok(Some(Item::Member(Box::new(entry), digest))),
            Ok(None) => self.trailer(),
            Err(Fault::Damaged) => self.next_header(),
            Err(fault) => Err(fault),
        };
        match item {
            // Zeros alone have no header before them.
            Ok(true) | Err(Fault::CutOff | Fault::Damaged) if self.is_nothing() => {
                self.done = true;
                Ok(Some(Item::Foreign(self.nothing())))
            }
            Ok(true) => {
                self.done = true;
                Ok(None)
            }
            Ok(false) => Ok(Some(Item::Damaged { len: self.offset - BLOCK as u64 - start })),
            Err(Fault::Io(error)) => Err(error),
            Err(Fault::CutOff | Fault::Damaged) => {
                self.done = true;
                Ok(Some(Item::CutOff { at: self.offset }))
            }
        }
    }

    /// Whether what was read up to its end has no member.
    fn is_nothing(&self) -> bool {
        // A copy that had just begun is cut off.
        self.start
            .as_ref()
            .is_some_and(|start| !start.starts_with(b"./") && !b"./".starts_with(start))
    }

    fn nothing(&self) -> String {
        let start = self.start.as_deref().unwrap_or_default();
        kind::of(start).unwrap_or_else(|| match self.zeros {
            true => "nothing but zeros: what was to be copied has never arrived".into(),
            false => "no tar archive".into(),
        })
    }

    /// What it is, if the first member, or what is in its place, is none of an export.
    fn foreign(
        &mut self,
        first: &Result<Option<(Entry, Option<Digest>)>, Fault>,
    ) -> Option<String> {
        let start = self.start.as_deref()?;
        match first {
            Ok(Some((entry, _))) => {
                self.start = None;
                match (self.dotted, entry.path.is_empty()) {
                    (true, false) => None,
                    (true, true) => Some(format!(
                        "{OTHER_TAR}: it has a member for the root directory; {REMEDY}"
                    )),
                    (false, _) => {
                        Some(format!("{OTHER_TAR}: its names do not begin with ./; {REMEDY}"))
                    }
                }
            }
            // Another kind of file may well have a header of a tar somewhere. One that is whole was no damage.
            Err(Fault::Damaged) => match start.first_chunk().is_some_and(header) {
                true => Some(format!("{OTHER_TAR}: it begins with what no export has; {REMEDY}")),
                false => kind::of(start),
            },
            _ => None,
        }
    }

    /// Reads zeros to the end: true. Ends before another header where there is one: false.
    fn trailer(&mut self) -> Result<bool, Fault> {
        let mut zeros = BLOCK as u64;
        loop {
            match self.block() {
                Ok(block) if block == [0; BLOCK] => zeros += BLOCK as u64,
                Ok(block) => {
                    self.ahead = Some(block);
                    return match header(&block) {
                        true => Ok(false),
                        false => self.next_header(),
                    };
                }
                // A block that is not whole is no end.
                Err(Fault::CutOff)
                    if zeros >= TRAILER && self.offset.is_multiple_of(BLOCK as u64) =>
                {
                    return Ok(true);
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    /// Reads to the next block that is a header.
    fn next_header(&mut self) -> Result<bool, Fault> {
        loop {
            let block = self.block()?;
            if header(&block) {
                self.ahead = Some(block);
                return Ok(false);
            }
        }
    }

    fn block(&mut self) -> Result<[u8; BLOCK], Fault> {
        if let Some(block) = self.ahead.take() {
            return Ok(block);
        }
        let mut block = [0; BLOCK];
        let before = self.offset;
        let filled = self.fill(&mut block);
        if let Some(start) = self.start.as_mut().filter(|start| start.is_empty()) {
            let count = usize::try_from(self.offset - before).unwrap_or(BLOCK);
            start.extend_from_slice(block.get(..count).unwrap_or_default());
        }
        filled.map(|()| block)
    }

    fn fill(&mut self, mut buf: &mut [u8]) -> Result<(), Fault> {
        while !buf.is_empty() {
            match self.input.read(buf) {
                Ok(0) => return Err(Fault::CutOff),
                Ok(count) => {
                    self.offset += count as u64;
                    if self.zeros && self.start.is_some() {
                        let read = buf.get(..count).unwrap_or_default();
                        self.zeros = read.iter().all(|byte| *byte == 0);
                    }
                    buf = buf.get_mut(count..).unwrap_or_default();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Padding.
    fn skip(&mut self, len: u64) -> Result<(), Fault> {
        let mut padding = [0; BLOCK];
        let padding = padding.get_mut(..len as usize).ok_or(Fault::Damaged)?;
        self.fill(padding)
    }

    /// The body of a record of ours, without its padding.
    fn text(&mut self, size: u64, most: u64) -> Result<Vec<u8>, Fault> {
        if size > most {
            return Err(Fault::Damaged);
        }
        // As much as there is, and not as much as is promised.
        let mut text = Vec::new();
        while (text.len() as u64) < size {
            let at = text.len();
            text.resize(at.saturating_add(AT_ONCE).min(size as usize), 0);
            self.fill(text.get_mut(at..).unwrap_or_default())?;
        }
        self.skip(size.next_multiple_of(BLOCK as u64) - size)?;
        Ok(text)
    }

    /// The next member; `None` at a block of zeros.
    fn member(&mut self) -> Result<Option<(Entry, Option<Digest>)>, Fault> {
        let (mut long_name, mut long_target, mut records) = (None, None, Vec::new());
        loop {
            let block = self.block()?;
            if block == [0; BLOCK] {
                return Ok(None);
            }
            if !header(&block) {
                return Err(Fault::Damaged);
            }
            let size = number(field(&block, ustar::SIZE)).ok_or(Fault::Damaged)?;
            let size = u64::try_from(size).map_err(|_| Fault::Damaged)?;
            match field(&block, ustar::TYPEFLAG) {
                [b'L'] => long_name = Some(self.text(size, MAX_NAME)?),
                [b'K'] => long_target = Some(self.text(size, MAX_NAME)?),
                [b'x'] => {
                    let text = self.text(size, MAX_PAX)?;
                    records = pax_records(&text).ok_or(Fault::Damaged)?;
                }
                _ => return self.body(&block, size, long_name, long_target, records).map(Some),
            }
        }
    }

    fn body(
        &mut self,
        block: &[u8; BLOCK],
        size: u64,
        long_name: Option<Vec<u8>>,
        long_target: Option<Vec<u8>>,
        records: Vec<Record>,
    ) -> Result<(Entry, Option<Digest>), Fault> {
        let name = long_name.map_or_else(
            || match (text(field(block, ustar::PREFIX)), text(field(block, ustar::NAME))) {
                ([], name) => name.to_vec(),
                (prefix, name) => [prefix, b"/", name].concat(),
            },
            |name| text(&name).to_vec(),
        );
        self.dotted = name.starts_with(b"./");
        let target = long_target
            .map_or_else(|| text(field(block, ustar::LINKNAME)).to_vec(), |t| text(&t).to_vec());
        let kind = match field(block, ustar::TYPEFLAG) {
            [b'0' | 0] => Kind::File,
            [b'1'] => Kind::HardLink,
            [b'2'] => Kind::Symlink,
            [b'3'] => Kind::CharDevice,
            [b'4'] => Kind::BlockDevice,
            [b'5'] => Kind::Directory,
            [b'6'] => Kind::Fifo,
            _ => return Err(Fault::Damaged),
        };
        let pax = |key: &[u8]| records.iter().find(|(k, _)| k == key).map(|(_, v)| &**v);
        let decimal =
            |key: &[u8]| pax(key).and_then(|v| str::from_utf8(v).ok()?.parse::<u64>().ok());
        let small = |at: Field, key: &[u8]| {
            let plain = number(field(block, at)).and_then(|n| u64::try_from(n).ok());
            decimal(key).or(plain).and_then(|n| u32::try_from(n).ok()).ok_or(Fault::Damaged)
        };
        let mtime = match pax(b"mtime") {
            Some(text) => time(text).ok_or(Fault::Damaged)?,
            None => (number(field(block, ustar::MTIME)).ok_or(Fault::Damaged)?, 0),
        };
        let perm = number(field(block, ustar::MODE)).and_then(|n| u16::try_from(n).ok());
        let mut entry = Entry {
            path: plain_path(&name),
            kind,
            perm: perm.ok_or(Fault::Damaged)? & 0o7777,
            uid: small(ustar::UID, b"uid")?,
            gid: small(ustar::GID, b"gid")?,
            size: 0,
            mtime,
            target: match kind {
                Kind::HardLink => plain_path(&target),
                Kind::Symlink => target,
                _ => Vec::new(),
            },
            rdev: match kind {
                Kind::CharDevice | Kind::BlockDevice => {
                    (small(ustar::DEV_MAJOR, b"")?, small(ustar::DEV_MINOR, b"")?)
                }
                _ => (0, 0),
            },
            records: Vec::new(),
        };
        let stored = decimal(b"size").unwrap_or(size);
        let real = decimal(b"GNU.sparse.realsize");
        entry.records =
            records.into_iter().filter(|(key, _)| key.starts_with(b"SCHILY.")).collect();
        if kind != Kind::File {
            return Ok((entry, None));
        }
        entry.size = real.unwrap_or(stored);
        let holes = entry.size.saturating_sub(stored);
        // What is no archive of ours is not compared.
        let is_hashed = holes <= FREE_HOLES || self.dotted && (self.wanted)(&entry);
        let mut hash = is_hashed.then(Sha256::new);
        match real {
            None => self.hash(&mut hash, stored)?,
            Some(real) => self.sparse(&mut hash, stored, real)?,
        }
        let padding = stored.next_multiple_of(BLOCK as u64) - stored;
        self.skip(padding)?;
        Ok((entry, hash.map(|hash| hash.finalize().into())))
    }

    fn hash(&mut self, hash: &mut Option<Sha256>, mut len: u64) -> Result<(), Fault> {
        let mut buf = vec![0; AT_ONCE.min(usize::try_from(len).unwrap_or(AT_ONCE))];
        while len > 0 {
            let Some(part) = buf.get_mut(..len.min(AT_ONCE as u64) as usize) else { break };
            self.fill(part)?;
            if let Some(hash) = hash {
                hash.update(&*part);
            }
            len -= part.len() as u64;
        }
        Ok(())
    }

    /// A map of decimal lines, padded to a block, and the data of its runs.
    fn sparse(&mut self, hash: &mut Option<Sha256>, stored: u64, real: u64) -> Result<(), Fault> {
        let zeros = |hash: &mut Option<Sha256>, len| {
            if let Some(hash) = hash {
                crate::export::hash_zeros(hash, len);
            }
        };
        let mut block: [u8; BLOCK] = [0; BLOCK];
        let (mut used, mut map_len) = (BLOCK, 0_u64);
        let mut line = |archive: &mut Self| -> Result<u64, Fault> {
            let mut value: Option<u64> = None;
            loop {
                if used == BLOCK {
                    archive.fill(&mut block)?;
                    (used, map_len) = (0, map_len + BLOCK as u64);
                    if map_len > stored {
                        return Err(Fault::Damaged);
                    }
                }
                let byte = block.get(used).copied().unwrap_or_default();
                used += 1;
                match byte {
                    b'0'..=b'9' => {
                        let digit = u64::from(byte - b'0');
                        let ten = value.unwrap_or(0).checked_mul(10);
                        value = Some(ten.and_then(|v| v.checked_add(digit)).ok_or(Fault::Damaged)?);
                    }
                    b'\n' => return value.ok_or(Fault::Damaged),
                    _ => return Err(Fault::Damaged),
                }
            }
        };
        let count = line(self)?;
        if count > MOST_RUNS {
            return Err(Fault::Damaged);
        }
        let mut runs = Vec::new();
        for _ in 0..count {
            runs.push((line(self)?, line(self)?));
        }
        let mut at = 0_u64;
        let mut rest = stored.checked_sub(map_len).ok_or(Fault::Damaged)?;
        for (offset, len) in runs {
            let hole = offset.checked_sub(at).ok_or(Fault::Damaged)?;
            at = offset.checked_add(len).filter(|end| *end <= real).ok_or(Fault::Damaged)?;
            rest = rest.checked_sub(len).ok_or(Fault::Damaged)?;
            zeros(hash, hole);
            self.hash(hash, len)?;
        }
        zeros(hash, real.saturating_sub(at));
        self.skip(rest)
    }
}

/// Up to the first NUL.
fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Without the `./` that every name begins with, and the `/` of directories.
fn plain_path(name: &[u8]) -> Vec<u8> {
    let name = name.strip_prefix(b"./").unwrap_or(name);
    name.strip_suffix(b"/").unwrap_or(name).to_vec()
}

/// Octal, or base 256 with the first bit set (the next one is its sign).
fn number(bytes: &[u8]) -> Option<i64> {
    let (first, rest) = bytes.split_first()?;
    if first & 0x80 != 0 {
        let start = i128::from(first & 0x3f) - i128::from(first & 0x40);
        let value = rest.iter().try_fold(start, |value, byte| {
            value.checked_mul(256)?.checked_add(i128::from(*byte))
        })?;
        return i64::try_from(value).ok();
    }
    let digits = bytes.split(|byte| matches!(byte, 0 | b' ')).find(|part| !part.is_empty());
    let Some(digits) = digits else { return Some(0) };
    let octal = |byte: &u8| matches!(byte, b'0'..=b'7');
    let digits = str::from_utf8(digits).ok().filter(|d| d.bytes().all(|b| octal(&b)))?;
    i64::from_str_radix(digits, 8).ok()
}

/// Seconds with a fraction: `-1.5` is half a second after -2.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let sec: i64 = whole.parse().ok()?;
    let nsec: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    match whole.starts_with('-') && nsec > 0 {
        true => Some((sec.checked_sub(1)?, 1_000_000_000_u32.checked_sub(nsec)?)),
        false => Some((sec, nsec)),
    }
}

/// Whether a block is a header: its checksum is that of its bytes, with the checksum's own as spaces.
fn header(block: &[u8; BLOCK]) -> bool {
    let sum = number(field(block, ustar::CHECKSUM));
    field(block, ustar::MAGIC).starts_with(b"ustar") && sum == Some(ustar::checksum(block).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_are_read_as_they_are_written() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"\x80\0\0\0\0\0\x01\0"), Some(256));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(b"\0\0\0"), Some(0));
        assert_eq!(number(b"9\0"), None);
        assert_eq!(time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(time(b"-1.750000000"), Some((-2, 250_000_000)));
        assert_eq!(time(b"-3"), Some((-3, 0)));
        assert_eq!(time(b"x"), None);
    }

    #[test]
    fn garbage_is_damage_and_never_a_panic() {
        for bytes in [vec![0xff; 5000], vec![b'0'; 512], Vec::new(), vec![0; 512]] {
            let mut archive = Archive::new(&*bytes, |_| false);
            let mut items = 0;
            while archive.item().unwrap().is_some() {
                items += 1;
                assert!(items < 10);
            }
        }
    }

    struct Nothing;

    impl crate::tar::Source<()> for Nothing {
        type Error = ();

        fn read_body(
            &self,
            _: &crate::tar::Layout<()>,
            _: crate::tar::MemberId,
            _: u64,
            _: &mut [u8],
        ) -> Result<(), ()> {
            Ok(())
        }
    }

    #[test]
    fn whatever_the_writer_can_write_is_read() {
        use crate::tar::{Layout, LayoutBuilder, Link, Member, Options, read_at};
        let value = vec![b'v'; 70 << 20];
        let records = [(&b"SCHILY.xattr.user.large"[..], &*value)];
        let mut builder = LayoutBuilder::new(Options { align: Some(1), ..Options::default() });
        // Names of the largest size that there is make a path that is long enough.
        let name = vec![b'n'; 65_000];
        let mut parent = None;
        let mut push = |name: &[u8], kind, parent, records| {
            let (size, extents, rdev, tag) = (0, None, (0, 0), ());
            let (perm, uid, gid, mtime, link) = (0o755, 1, u32::MAX - 1, (-7, 5), Link::None);
            let member = Member {
                parent,
                name,
                kind,
                perm,
                uid,
                gid,
                size,
                extents,
                records,
                mtime,
                link,
                rdev,
                tag,
            };
            builder.push(&member).unwrap()
        };
        const LEVELS: usize = 20;
        for _ in 0..LEVELS {
            parent = Some(push(&name, Kind::Directory, parent, &[]));
        }
        push(b"large", Kind::File, parent, &records);
        let layout: Layout<()> = builder.finish();
        let mut bytes = vec![0; usize::try_from(layout.size()).unwrap()];
        read_at(&layout, &Nothing, 0, &mut bytes).unwrap();
        let mut archive = Archive::new(&*bytes, |_| false);
        let mut last = None;
        for _ in 0..=LEVELS {
            let item = archive.item().unwrap();
            let Some(Item::Member(entry, _)) = item else { panic!("{item:?}") };
            last = Some(entry);
        }
        let last = last.unwrap();
        assert_eq!(last.path.len(), LEVELS * 65_001 + 5);
        assert!(last.records.iter().any(|(_, found)| *found == value));
        assert!(archive.item().unwrap().is_none());
    }

    #[test]
    fn what_a_header_promises_takes_no_memory() {
        // A PAX header of half a gigabyte, of which nothing is there.
        let mut block = [0; BLOCK];
        block[..2].copy_from_slice(b"./");
        block[124..135].copy_from_slice(b"03777777777");
        block[156] = b'x';
        block[257..262].copy_from_slice(b"ustar");
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum::<u64>() + 8 * 32;
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        assert!(header(&block));
        assert!(matches!(
            Archive::new(&block[..], |_| false).item(),
            Ok(Some(Item::CutOff { at: 512 }))
        ));
    }
}
