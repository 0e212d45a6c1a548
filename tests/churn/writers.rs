//! Programs that never stop changing a machine, so that of any bytes it can be told whether a file ever held them.

use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// In every file outside of the machine.
pub(crate) const MARKER: &[u8] = b"OUTSIDE-OF-THE-MACHINE";
/// At the start of every file.
const HEADER: usize = 64;
/// What is written at once in a file that is rewritten in place.
const CHUNK: usize = 4096;

/// How a file changes, and so which bytes it can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It never does.
    Kept,
    /// Longer, and shorter now and then: any beginning.
    Appended,
    /// By the next version in place, from the start to the end: some of that, and the version before.
    InPlace,
    /// By a rename: a whole version.
    Replaced,
    /// Truncated and written, and new files: any beginning of a version.
    Rewritten,
}

const KINDS: [(Kind, &str); 5] = [
    (Kind::Kept, "kept"),
    (Kind::Appended, "appended"),
    (Kind::InPlace, "in-place"),
    (Kind::Replaced, "replaced"),
    (Kind::Rewritten, "rewritten"),
];

/// The content of one version of one file.
pub(crate) fn state(kind: Kind, id: u64, version: u64, length: usize) -> Vec<u8> {
    let name = KINDS.iter().find(|(known, _)| *known == kind).unwrap().1;
    // Of a file that grows, the header stays.
    let named = if kind == Kind::Appended { 0 } else { length };
    let header = format!("churn {name} {id} {version} {named} ");
    let mut bytes = header.into_bytes();
    bytes.resize(HEADER, b'.');
    let mut random = Random::new(id << 32 | version);
    // No zeros, which stand for what is missing; of a length that no block and no page is a multiple of.
    let unit: Vec<u8> = (0..509).map(|_| random.next() as u8 | 1).collect();
    bytes.extend(unit.repeat(length / unit.len() + 1));
    bytes.truncate(length);
    bytes
}

/// How far two files are the same.
fn same(one: &[u8], two: &[u8]) -> usize {
    let mut blocks = one.chunks(CHUNK).zip(two.chunks(CHUNK));
    let whole = blocks.by_ref().take_while(|(one, two)| one == two).count() * CHUNK;
    let rest = one.iter().zip(two).skip(whole);
    (whole + rest.take_while(|(one, two)| one == two).count()).min(one.len())
}

/// What a file of the machine holds, if it ever held `content`: its kind, and whether that is all of a version.
pub(crate) fn recognized(content: &[u8]) -> Option<(Kind, bool)> {
    let known = content.len().min(6);
    if content.len() < HEADER {
        return (content[..known] == b"churn "[..known]).then_some((Kind::Rewritten, false));
    }
    let header = std::str::from_utf8(&content[..HEADER]).ok()?;
    let [_, name, id, version, length, _] = header.split(' ').collect::<Vec<_>>()[..] else {
        return None;
    };
    let kind = KINDS.iter().find(|(_, known)| *known == name)?.0;
    let (id, version) = (id.parse().ok()?, version.parse().ok()?);
    let length = match length.parse().ok()? {
        0 => content.len(),
        length => length,
    };
    let here = state(kind, id, version, length);
    let same = same(content, &here);
    let whole = content.len() == length;
    if same == content.len() {
        return Some((kind, whole));
    }
    let before =
        (kind == Kind::InPlace && version > 0).then(|| state(kind, id, version - 1, length))?;
    (content[same..] == before[same..content.len()]).then_some((kind, whole))
}

/// The same numbers for the same seed.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }
}

/// Changes below a directory, each of its own kind and with its own files. One call is one change.
pub(crate) struct Writer {
    pub(crate) name: &'static str,
    pub(crate) change: fn(&Path, &mut Random, u64),
}

pub(crate) const WRITERS: &[Writer] = &[
    Writer { name: "append and truncate", change: append },
    Writer { name: "rewrite in place", change: rewrite_in_place },
    Writer { name: "replace by a rename", change: replace },
    Writer { name: "truncate and write", change: rewrite },
    Writer { name: "create and delete", change: create_and_delete },
    Writer { name: "move directories and put links in their place", change: move_directories },
];

/// Sizes that take one read of the kernel and several, one page and several.
const SIZES: [usize; 5] = [700, 3000, 9000, 70_000, 400_000];

/// The machine before anything changes.
pub(crate) fn prepare(top: &Path, outside: &Path) {
    for directory in ["kept", "appended", "in-place", "replaced", "rewritten", "created", "moved/a"]
    {
        fs::create_dir_all(top.join(directory)).unwrap();
    }
    for (number, size) in SIZES.into_iter().enumerate() {
        let id = number as u64;
        let put = |directory: &str, kind, version| {
            fs::write(top.join(directory).join(id.to_string()), state(kind, id, version, size))
                .unwrap();
        };
        put("kept", Kind::Kept, 0);
        put("appended", Kind::Appended, 0);
        put("in-place", Kind::InPlace, 0);
        put("replaced", Kind::Replaced, 0);
        put("rewritten", Kind::Rewritten, 0);
        put("moved/a", Kind::Kept, 1);
        fs::write(outside.join(id.to_string()), MARKER).unwrap();
    }
    symlink(outside, top.join("moved/link")).unwrap();
}

fn one_of(random: &mut Random) -> (u64, usize) {
    let id = random.below(SIZES.len() as u64);
    (id, SIZES[id as usize])
}

fn append(top: &Path, random: &mut Random, _: u64) {
    let (id, size) = one_of(random);
    let file = File::options().write(true).open(top.join("appended").join(id.to_string())).unwrap();
    let length = file.metadata().unwrap().len() as usize;
    let more = random.below(10_000) as usize;
    if length + more > size * 2 {
        return file.set_len(random.below(length as u64 + 1)).unwrap();
    }
    let whole = state(Kind::Appended, id, 0, length + more);
    file.write_all_at(&whole[length..], length as u64).unwrap();
}

fn rewrite_in_place(top: &Path, _: &mut Random, count: u64) {
    let (id, size) = (count % SIZES.len() as u64, SIZES[count as usize % SIZES.len()]);
    let path = top.join("in-place").join(id.to_string());
    let file = File::options().write(true).open(path).unwrap();
    let bytes = state(Kind::InPlace, id, count / SIZES.len() as u64 + 1, size);
    for (number, chunk) in bytes.chunks(CHUNK).enumerate() {
        file.write_all_at(chunk, (number * CHUNK) as u64).unwrap();
    }
}

fn replace(top: &Path, random: &mut Random, count: u64) {
    let (id, size) = one_of(random);
    let length = HEADER + size / 2 + random.below(size as u64) as usize;
    let (new, path) = (top.join("new"), top.join("replaced").join(id.to_string()));
    fs::write(&new, state(Kind::Replaced, id, count + 1, length)).unwrap();
    fs::rename(new, path).unwrap();
}

fn rewrite(top: &Path, random: &mut Random, count: u64) {
    let (id, size) = one_of(random);
    let length = HEADER + size / 2 + random.below(size as u64) as usize;
    let path = top.join("rewritten").join(id.to_string());
    fs::write(path, state(Kind::Rewritten, id, count + 1, length)).unwrap();
}

fn create_and_delete(top: &Path, random: &mut Random, count: u64) {
    const MOST: u64 = 20;
    let path = |number: u64| top.join("created").join(number.to_string());
    let (id, size) = one_of(random);
    fs::write(path(count), state(Kind::Rewritten, id, count, size.max(HEADER) / 4)).unwrap();
    if count >= MOST {
        fs::remove_file(path(count - MOST)).unwrap();
    }
}

fn move_directories(top: &Path, _: &mut Random, count: u64) {
    let path = |name: &str| -> PathBuf { top.join("moved").join(name) };
    match count % 4 {
        0 => fs::rename(path("a"), path("b")).unwrap(),
        1 => fs::rename(path("b"), path("a")).unwrap(),
        _ => renameat_with(CWD, path("a"), CWD, path("link"), RenameFlags::EXCHANGE).unwrap(),
    }
}

/// Changes until told to stop, sometimes in a hurry and sometimes not: some copies must succeed.
pub(crate) fn churn(
    writer: &Writer,
    top: &Path,
    seed: u64,
    stop: &Receiver<()>,
    done: &AtomicU64,
    over: &AtomicBool,
) {
    const PHASE: u128 = 2000;
    let mut random = Random::new(seed);
    let start = Instant::now();
    for count in 0.. {
        (writer.change)(top, &mut random, count);
        done.fetch_add(1, Ordering::Relaxed);
        let hurry = (start.elapsed().as_millis() / PHASE).is_multiple_of(2);
        let pause = Duration::from_millis(random.below(if hurry { 30 } else { 1500 }));
        let told = stop.recv_timeout(pause) != Err(RecvTimeoutError::Timeout);
        if told || over.load(Ordering::Relaxed) {
            return;
        }
    }
}
