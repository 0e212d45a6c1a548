//! The list of a generation's members as mtree(5): what a copy is checked by where codchifs is not.
//!
//! Every digest takes 64 characters, so the size of the list is known before any file is read, as that of the archive is;
//! a file is read when its line is. A line has the whole path, as mtree 2.0 has it. What mtree(5) has no keyword for stands
//! in comments before it: `#.first PATH` for a hard link, `#.record KEYWORD VALUE` for an attribute or ACL.
//!
//! Names are raw bytes with every character that a shell, a pattern or a terminal would take for something else as `\ooo`.

use super::Generation;
use super::entry::Entry;
use crate::export::members::copy_part;
use crate::quote::{sum_name, vis};
use crate::tar::{Kind, MemberId};
use lru::LruCache;
use parking_lot::Mutex;
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::sync::Arc;

/// SHA-256.
pub type Digest = [u8; 32];

/// Lines between two whose offsets are known, and bytes of them: what a read makes in vain at most, before its own lines.
const STEP: u32 = 64;
const STEP_BYTES: u64 = 64 << 10;
/// Longer lines are kept for the reads that follow, each of which has but a part of one: so many, and so many bytes of all but
/// the last one. A member's attributes may make its line 300 MB.
const MAX_KEPT: usize = 4;
const MAX_KEPT_BYTES: usize = 256 << 20;
/// Characters of a digest.
const DIGEST_LEN: usize = 64;
/// Digests that are remembered: of files with several names, and of what two reads meet in.
const DIGESTS: NonZeroUsize = NonZeroUsize::new(1 << 15).unwrap();
/// Bytes that are hashed at once.
const AT_ONCE: usize = 1 << 20;
/// The same of zeros, which nobody reads.
const ZEROS_AT_ONCE: u64 = 16 << 20;

/// The list of one generation.
#[derive(Debug)]
pub struct Manifest {
    generation: Arc<Generation>,
    head: Vec<u8>,
    /// Offsets of some lines, and whose they are.
    starts: Vec<(u64, MemberId)>,
    size: u64,
    digests: Mutex<LruCache<MemberId, Digest>>,
    /// Long lines, the last one made at the end, without their digests.
    kept: Mutex<VecDeque<(MemberId, Arc<[u8]>)>>,
    /// How many long lines were made for readers.
    #[cfg(test)]
    pub(in crate::export) made: std::sync::atomic::AtomicUsize,
}

impl Manifest {
    /// Looks at every member, and at no file.
    pub fn new(generation: Arc<Generation>) -> Self {
        let id = generation.id();
        let head = format!(
            "#mtree v2.0\n# generation {id:016x} of an export of {} bytes, made by codchifs\n. type=dir\n",
            generation.size()
        )
        .into_bytes();
        let mut starts: Vec<(u64, MemberId)> = Vec::new();
        let mut size = head.len() as u64;
        for member in generation.ids_from(0) {
            let is_far = |(start, first): &(u64, MemberId)| {
                size - start >= STEP_BYTES || member.0 - first.0 >= STEP
            };
            if starts.last().is_none_or(is_far) {
                starts.push((size, member));
            }
            size += line(&generation, member).len() as u64;
        }
        Self {
            generation,
            head,
            starts,
            size,
            digests: Mutex::new(LruCache::new(DIGESTS)),
            kept: Mutex::default(),
            #[cfg(test)]
            made: Default::default(),
        }
    }

    /// The generation that it lists.
    pub fn generation(&self) -> &Arc<Generation> {
        &self.generation
    }

    /// Exact size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buf` from `offset` on, short only at the end. Reads the files whose digests are in there. EIO at the end if
    /// one of them was not as it was scanned: no list may pass for that of a whole export. EINTR as soon as it is not `wanted`
    /// any more: a file may be read for hours.
    pub fn read_at(
        &self,
        offset: u64,
        buf: &mut [u8],
        wanted: &dyn Fn() -> bool,
    ) -> Result<usize, Errno> {
        let end = offset.saturating_add(buf.len() as u64).min(self.size);
        copy_part(buf, offset..end, 0, &self.head);
        let step = self.starts.partition_point(|(start, _)| *start <= offset).saturating_sub(1);
        let (mut at, first) = self.starts.get(step).copied().unwrap_or((self.size, MemberId(0)));
        for member in self.generation.ids_from(first.0 as usize) {
            if at >= end {
                break;
            }
            let text = self.line(member);
            copy_part(buf, offset..end, at, &text);
            at += text.len() as u64;
            // It stands before the line break.
            let digest_at = at.saturating_sub(DIGEST_LEN as u64 + 1);
            if let Some(content) = content(&self.generation, member)
                && at > offset
                && digest_at < end
            {
                let mut digest = String::with_capacity(DIGEST_LEN);
                put_hex(&mut digest, &self.digest(content, wanted)?);
                copy_part(buf, offset..end, digest_at, digest.as_bytes());
            }
        }
        if end == self.size && self.generation.torn() {
            return Err(Errno::IO);
        }
        Ok(end.saturating_sub(offset) as usize)
    }

    /// The line of a member, with zeros for its digest.
    fn line(&self, member: MemberId) -> Arc<[u8]> {
        // Held meanwhile: the kernel asks for several parts of a long line at once.
        let mut kept = self.kept.lock();
        if let Some((_, text)) = kept.iter().find(|(of, _)| *of == member) {
            return Arc::clone(text);
        }
        let text: Arc<[u8]> = line(&self.generation, member).into();
        if text.len() as u64 >= STEP_BYTES {
            #[cfg(test)]
            self.made.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let room = MAX_KEPT_BYTES.saturating_sub(text.len());
            let bytes =
                |kept: &VecDeque<(_, Arc<[u8]>)>| kept.iter().map(|k| k.1.len()).sum::<usize>();
            while kept.len() >= MAX_KEPT || !kept.is_empty() && bytes(&kept) > room {
                kept.pop_front();
            }
            kept.push_back((member, Arc::clone(&text)));
        }
        text
    }

    /// The digest of a member's content.
    fn digest(&self, member: MemberId, wanted: &dyn Fn() -> bool) -> Result<Digest, Errno> {
        if let Some(known) = self.digests.lock().get(&member) {
            return Ok(*known);
        }
        let digest = self.generation.digest(member, wanted)?;
        self.digests.lock().put(member, digest);
        Ok(digest)
    }

    /// The digest of what a member is a name of; `None` for what has no content.
    pub fn content(&self, member: MemberId) -> Result<Option<Digest>, Errno> {
        let content = content(&self.generation, member);
        content.map(|content| self.digest(content, &|| true)).transpose()
    }
}

impl Generation {
    /// The digest of a file, as it is in the archive. EINTR if it is not `wanted` to its end.
    fn digest(&self, member: MemberId, wanted: &dyn Fn() -> bool) -> Result<Digest, Errno> {
        let size = self.layout.size_of(member);
        let whole = [crate::tar::Extent { offset: 0, len: size }];
        let extents = self.layout.extents(member).unwrap_or_else(|| whole.to_vec());
        let mut buf = vec![0; AT_ONCE.min(usize::try_from(size).unwrap_or(AT_ONCE))];
        let mut hash = Sha256::new();
        let mut at = 0;
        let go_on = || if wanted() { Ok(()) } else { Err(Errno::INTR) };
        let zeros = |hash: &mut Sha256, mut len: u64| {
            while len > 0 {
                go_on()?;
                let now = len.min(ZEROS_AT_ONCE);
                hash_zeros(hash, now);
                len -= now;
            }
            Ok(())
        };
        for extent in extents {
            zeros(&mut hash, extent.offset.saturating_sub(at))?;
            at = extent.offset;
            let end = at.saturating_add(extent.len);
            while at < end {
                go_on()?;
                let len = (end - at).min(AT_ONCE as u64);
                let Some(part) = buf.get_mut(..len as usize) else { return Err(Errno::IO) };
                crate::tar::Source::read_body(self, &self.layout, member, at, part)?;
                hash.update(&*part);
                at += len;
            }
        }
        zeros(&mut hash, size.saturating_sub(at))?;
        Ok(hash.finalize().into())
    }
}

/// Hashes a hole.
pub fn hash_zeros(hash: &mut Sha256, mut len: u64) {
    let zeros = [0; 1 << 16];
    while len > 0 {
        let now = zeros.get(..len.min(1 << 16) as usize).unwrap_or(&zeros);
        hash.update(now);
        len -= now.len() as u64;
    }
}

/// The member that has the content of this one, if it has any.
fn content(generation: &Generation, member: MemberId) -> Option<MemberId> {
    let first = generation.first(member).unwrap_or(member);
    (generation.layout.kind(first) == Kind::File).then_some(first)
}

/// The line of a member, with the comments before it, and with zeros for its digest. A hard link is a file like its first name.
fn line(generation: &Generation, member: MemberId) -> Vec<u8> {
    let name = generation.entry(member);
    let first = generation.first(member).map(|first| generation.entry(first));
    let entry = first.as_ref().unwrap_or(&name);
    let mut text = String::new();
    if first.is_some() {
        let _ = writeln!(text, "#.first ./{}", vis(&name.target));
    }
    for (key, value) in &name.records {
        let _ = writeln!(text, "#.record {} {}", vis(key), vis(value));
    }
    let kind = match entry.kind {
        Kind::Directory => "dir",
        Kind::File | Kind::HardLink => "file",
        Kind::Symlink => "link",
        Kind::CharDevice => "char",
        Kind::BlockDevice => "block",
        Kind::Fifo => "fifo",
    };
    let Entry { perm, uid, gid, mtime: (sec, nsec), .. } = entry;
    let _ = write!(text, "./{} type={kind} mode={perm:04o} uid={uid} gid={gid}", vis(&name.path));
    match entry.kind {
        Kind::Symlink => {
            let _ = write!(text, " link={}", vis(&entry.target));
        }
        Kind::CharDevice | Kind::BlockDevice => {
            let _ = write!(text, " device=native,{},{}", entry.rdev.0, entry.rdev.1);
        }
        Kind::File => {
            let _ = write!(text, " size={}", entry.size);
        }
        _ => {}
    }
    let _ = write!(text, " time={sec}.{nsec:09}");
    if content(generation, member).is_some() {
        text.push_str(" sha256digest=");
        text.extend(std::iter::repeat_n('0', DIGEST_LEN));
    }
    text.push('\n');
    text.into_bytes()
}

fn put_hex(text: &mut String, digest: &Digest) {
    for byte in digest {
        let _ = write!(text, "{byte:02x}");
    }
}

/// A line as `sha256sum --check` reads it.
pub fn sum_line(path: &[u8], digest: &Digest) -> Vec<u8> {
    let (name, escaped) = sum_name(path);
    let mut text = String::from(if escaped { "\\" } else { "" });
    put_hex(&mut text, digest);
    [text.as_bytes(), b"  ./", &name, b"\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_has_a_name_on_one_line() {
        assert_eq!(
            sum_line(b"a b", &[0; 32]),
            format!("{}  ./a b\n", "00".repeat(32)).into_bytes()
        );
        assert_eq!(
            sum_line(b"a\\\n", &[0; 32]),
            format!("\\{}  ./a\\\\\\n\n", "00".repeat(32)).into_bytes()
        );
    }
}
