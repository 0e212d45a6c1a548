//! A manifest that was taken along, as [`crate::export::Manifest`] writes it.

use super::{Error, Reference, order};
use crate::export::{Digest, Entry, Record};
use crate::quote::unvis;
use crate::tar::{Kind, MAX_PATH, MAX_RECORDS};
use std::cmp::Ordering;
use std::io::{BufRead, Read as _};

/// Bytes of a line that are believed: a path takes four times its bytes, and so does the target of a link beside it.
const MAX_LINE: u64 = 4 * MAX_PATH as u64 + (64 << 10);
/// What one record takes besides its bytes.
const RECORD: usize = size_of::<Record>();

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] std::io::Error),
    /// It is none of ours.
    #[error("line {0} is not as codchifs writes it; `codchifs manifest` makes it anew")]
    Line(u64),
}

/// A manifest that is read once.
#[allow(missing_debug_implementations)] // A reader need not have one.
pub struct List<R> {
    input: R,
    line: u64,
    digest: Option<Digest>,
    last: Vec<u8>,
}

impl<R: BufRead> List<R> {
    /// From its first line.
    pub fn new(input: R) -> Self {
        Self { input, line: 0, digest: None, last: Vec::new() }
    }

    fn read(&mut self) -> Result<Option<Entry>, ListError> {
        let (mut records, mut first, mut held) = (Vec::new(), None, 0_usize);
        loop {
            let mut text = Vec::new();
            self.line += 1;
            self.input.by_ref().take(MAX_LINE).read_until(b'\n', &mut text)?;
            if text.is_empty() {
                return Ok(None);
            }
            let bad = ListError::Line(self.line);
            let Some(text) = text.strip_suffix(b"\n") else { return Err(bad) };
            if self.line == 1 && text != b"#mtree v2.0" {
                return Err(bad);
            }
            let mut words = text.split(|byte| *byte == b' ');
            match words.next() {
                Some(b"#.first") => first = Some(words.next().and_then(path).ok_or(bad)?),
                Some(b"#.record") => {
                    let (key, value) = record(words).ok_or(ListError::Line(self.line))?;
                    held = held.saturating_add(RECORD + key.len() + value.len());
                    if held > MAX_RECORDS {
                        return Err(bad);
                    }
                    records.push((key, value));
                }
                Some(word) if word.starts_with(b"#") || word == b"." => {}
                Some(name) => {
                    let name = path(name).filter(|name| {
                        self.last.is_empty() || order(&self.last, name) == Ordering::Less
                    });
                    let (entry, digest) =
                        name.and_then(|name| entry(name, first, records, words)).ok_or(bad)?;
                    self.digest = digest;
                    self.last.clone_from(&entry.path);
                    return Ok(Some(entry));
                }
                None => return Err(bad),
            }
        }
    }
}

fn path(word: &[u8]) -> Option<Vec<u8>> {
    unvis(word.strip_prefix(b"./")?).filter(|path| !path.is_empty())
}

fn record<'a>(mut words: impl Iterator<Item = &'a [u8]>) -> Option<Record> {
    Some((unvis(words.next()?)?, unvis(words.next()?)?))
}

fn entry<'a>(
    path: Vec<u8>,
    first: Option<Vec<u8>>,
    records: Vec<Record>,
    words: impl Iterator<Item = &'a [u8]>,
) -> Option<(Entry, Option<Digest>)> {
    let mut entry = Entry {
        path,
        kind: Kind::File,
        perm: 0,
        uid: 0,
        gid: 0,
        size: 0,
        mtime: (0, 0),
        target: Vec::new(),
        rdev: (0, 0),
        records,
    };
    let mut digest = None;
    for word in words {
        let equals = word.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (word.get(..equals)?, word.get(equals + 1..)?);
        let text = str::from_utf8(value).ok()?;
        match key {
            b"type" => {
                entry.kind = match text {
                    "dir" => Kind::Directory,
                    "file" => Kind::File,
                    "link" => Kind::Symlink,
                    "char" => Kind::CharDevice,
                    "block" => Kind::BlockDevice,
                    "fifo" => Kind::Fifo,
                    _ => return None,
                }
            }
            b"mode" => entry.perm = u16::from_str_radix(text, 8).ok()?,
            b"uid" => entry.uid = text.parse().ok()?,
            b"gid" => entry.gid = text.parse().ok()?,
            b"size" => entry.size = text.parse().ok()?,
            b"link" => entry.target = unvis(value)?,
            b"device" => {
                let (major, minor) = text.strip_prefix("native,")?.split_once(',')?;
                entry.rdev = (major.parse().ok()?, minor.parse().ok()?);
            }
            b"time" => {
                let (sec, nsec) = text.split_once('.')?;
                entry.mtime = (sec.parse().ok()?, nsec.parse().ok()?);
            }
            b"sha256digest" => digest = Some(hex(value)?),
            _ => {}
        }
    }
    if let Some(first) = first {
        // As in an archive, all of it is with the first name.
        (entry.kind, entry.size, entry.target, digest) = (Kind::HardLink, 0, first, None);
    }
    Some((entry, digest))
}

fn hex(text: &[u8]) -> Option<Digest> {
    let mut digest = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (to, pair) in digest.iter_mut().zip(text.chunks(2)) {
        *to = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}

impl<R: BufRead> Reference for List<R> {
    fn next(&mut self) -> Result<Option<Entry>, Error> {
        Ok(self.read()?)
    }

    fn digest(&mut self) -> Result<Option<Digest>, Error> {
        Ok(self.digest)
    }

    fn changed_at(&self) -> Option<i64> {
        None
    }

    fn is_now(&self) -> bool {
        false
    }
}
