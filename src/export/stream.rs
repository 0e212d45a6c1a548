//! A generation from its first byte to its last, without a mount.
//!
//! Into a file of our own on a disk, threads read large blocks and write each to its place, past the page cache: what goes
//! through it costs a further copy and its bookkeeping, and waits for the disk in the end all the same.
//!
//! Elsewhere small files are read by two threads into large blocks, which one thread writes in turn. A large file then never
//! enters this process: the kernel copies it, or, where source and target are on a file system that can, shares its blocks.

use super::Generation;
use crate::filesystem::{self, EXT4, XFS};
use crate::tar::Run;
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;
use rustix::pipe::SpliceFlags;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

/// Bytes that travel at once.
const BLOCK: usize = 1 << 20;
/// Threads that read: opening small files costs more than writing their bytes.
const READERS: usize = 2;
/// Blocks on the way for each reader: one being filled, one being written.
const BLOCKS: usize = 2;
/// Runs of at least this many bytes are left to the kernel: below, its calls cost more than our copies.
const LARGE: u64 = 256 << 10;
/// Bytes that the kernel copies in one call: between two, progress shows and a signal counts.
const AT_ONCE: u64 = 256 << 20;

/// Bytes that travel at once past the page cache.
const DIRECT_BLOCK: usize = 4 << 20;
/// Threads that read and write them: enough that some read while others wait for the disk.
const DIRECT_THREADS: usize = 4;
/// What the addresses and offsets of such transfers are multiples of, at least.
const DIRECT_ALIGN: usize = 4096;
/// Archives of fewer bytes are not worth it.
const DIRECT_FROM: u64 = 4 << 20;

/// Why a stream ended early.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The machine's side.
    #[error("cannot read the export: {0}")]
    Read(Errno),
    /// The other side.
    #[error(transparent)]
    Write(#[from] io::Error),
}

/// Where a generation goes.
#[allow(missing_debug_implementations)] // A writer need not have one.
pub enum Sink<'a> {
    /// A file, a pipe or a socket, from where its position is; to a file, the kernel copies.
    File(&'a File),
    /// A file that is empty, and nobody else's; or anything else than a file.
    Own(&'a File),
    /// Through a program's hands: a compressor.
    Writer(&'a mut dyn Write),
}

/// A piece of the archive, in archive order.
#[derive(Clone, Copy, Debug)]
enum Piece {
    /// To be read by one of our threads: offset and length.
    Block(u64, usize),
    /// To be copied by the kernel.
    Run(Run),
}

/// Cuts an archive of `size` bytes into pieces around `runs`.
fn pieces(size: u64, runs: impl Iterator<Item = Run>) -> impl Iterator<Item = Piece> {
    let mut runs = runs.peekable();
    let mut at = 0;
    std::iter::from_fn(move || {
        let end = runs.peek().map_or(size, |run| run.start);
        if at < end {
            let len = (end - at).min(BLOCK as u64);
            at += len;
            return Some(Piece::Block(at - len, len as usize));
        }
        let run = runs.next()?;
        at = run.start.saturating_add(run.len);
        Some(Piece::Run(run))
    })
}

/// Writes all of `generation` to `sink`. `progress` hears of the bytes written so far, and ends the stream with its
/// error.
///
/// Reader `r` of `n` reads blocks `r`, `r + n`, `r + 2n`, …; the caller's thread writes them in turn.
pub fn write_all(
    generation: &Arc<Generation>,
    mut sink: Sink<'_>,
    mut progress: impl FnMut(u64) -> io::Result<()>,
) -> Result<(), StreamError> {
    if let Sink::Own(file) = sink {
        // Blocks are shared by the kernel's copies only.
        if generation.size() >= DIRECT_FROM && !generation.is_aligned() && is_on_disk(file) {
            match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, generation.size()) {
                Ok(()) => return write_direct(generation, file, progress),
                Err(Errno::OPNOTSUPP) => {}
                Err(why) => return Err(StreamError::Write(why.into())),
            }
        }
        sink = Sink::File(file);
    }
    // Into a pipe the kernel would move references to pages: what is written to the file after we have looked at it would
    // still reach the reader.
    let by_kernel = matches!(&sink, Sink::File(file) if file.metadata().is_ok_and(|m| m.is_file()));
    let least = if by_kernel { LARGE } else { u64::MAX };
    let plan = || pieces(generation.size(), generation.runs(least));
    std::thread::scope(|scope| {
        let mut readers = Vec::new();
        for r in 0..READERS {
            let (full, filled) = channel();
            let (empty, free) = channel();
            for _ in 0..BLOCKS {
                let _ = empty.send(Vec::with_capacity(BLOCK));
            }
            let blocks = plan().filter_map(|piece| match piece {
                Piece::Block(offset, len) => Some((offset, len)),
                Piece::Run(_) => None,
            });
            let mine = blocks.skip(r).step_by(READERS);
            scope.spawn(move || read_blocks(generation, mine, &free, &full));
            readers.push((filled, empty));
        }
        let mut written = 0;
        let mut kernel = Kernel::default();
        // The readers end when their channels close, which they do when `readers` is dropped, on every way out.
        let mut turn = readers.iter().cycle();
        for piece in plan() {
            match piece {
                Piece::Block(..) => {
                    let Some((filled, empty)) = turn.next() else { break };
                    let Ok(block) = filled.recv() else { break };
                    let block = block.map_err(StreamError::Read)?;
                    sink.write_all(&block)?;
                    written += block.len() as u64;
                    let _ = empty.send(block);
                    progress(written)?;
                }
                Piece::Run(run) => {
                    let mut done = 0;
                    while done < run.len {
                        let rest = Run {
                            offset: run.offset + done,
                            start: run.start + done,
                            len: (run.len - done).min(AT_ONCE),
                            ..run
                        };
                        done += match &sink {
                            Sink::File(out) => copy(generation, rest, out, &mut kernel)?,
                            Sink::Own(_) | Sink::Writer(_) => 0,
                        };
                        progress(written + done)?;
                    }
                    written += run.len;
                }
            }
        }
        if written != generation.size() {
            return Err(StreamError::Read(Errno::IO));
        }
        sink.flush()?;
        Ok(())
    })
}

impl Sink<'_> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::File(file) | Self::Own(file) => (&mut &**file).write_all(bytes),
            Self::Writer(writer) => writer.write_all(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) | Self::Own(file) => (&mut &**file).flush(),
            Self::Writer(writer) => writer.flush(),
        }
    }
}

/// Whether `file` is on a file system of a disk that writes past its page cache what it would write through it: not so
/// btrfs, which would not compress.
fn is_on_disk(file: &File) -> bool {
    file.metadata().is_ok_and(|m| m.is_file()) && matches!(filesystem::of(file), Ok(EXT4 | XFS))
}

/// Writes all of `generation` to a file of its size. Each thread takes the next block, reads it, and writes it to its place.
fn write_direct(
    generation: &Generation,
    file: &File,
    mut progress: impl FnMut(u64) -> io::Result<()>,
) -> Result<(), StreamError> {
    let size = generation.size();
    direct(file, true);
    let (next, stopped) = (AtomicU64::new(0), AtomicBool::new(false));
    let (done, blocks) = channel();
    let result = std::thread::scope(|scope| {
        for _ in 0..DIRECT_THREADS {
            let (done, next, stopped) = (done.clone(), &next, &stopped);
            scope.spawn(move || {
                let mut buffer = vec![0; DIRECT_BLOCK + DIRECT_ALIGN];
                let skip = buffer.as_ptr().align_offset(DIRECT_ALIGN);
                while !stopped.load(Ordering::Relaxed) {
                    let at = next.fetch_add(DIRECT_BLOCK as u64, Ordering::Relaxed);
                    let len = size.saturating_sub(at).min(DIRECT_BLOCK as u64) as usize;
                    let block = skip.checked_add(len).and_then(|end| buffer.get_mut(skip..end));
                    let Some(block) = block.filter(|block| !block.is_empty()) else { return };
                    if done.send(copy_block(generation, at, block, file)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);
        let mut written = 0;
        for block in blocks {
            let result = block.and_then(|len| {
                written += len as u64;
                Ok(progress(written)?)
            });
            if result.is_err() {
                stopped.store(true, Ordering::Relaxed);
                return result;
            }
        }
        match written == size {
            true => Ok(()),
            false => Err(StreamError::Read(Errno::IO)),
        }
    });
    direct(file, false);
    result
}

/// Has writes go past the page cache, where the file system likes that, or through it.
fn direct(file: &File, past: bool) {
    if let Ok(flags) = rustix::fs::fcntl_getfl(file) {
        let mut flags = flags;
        flags.set(OFlags::DIRECT, past);
        // It is as good through the cache, only slower.
        let _ = rustix::fs::fcntl_setfl(file, flags);
    }
}

/// Reads the block at `at` and writes it there; its bytes.
fn copy_block(
    generation: &Generation,
    at: u64,
    block: &mut [u8],
    file: &File,
) -> Result<usize, StreamError> {
    match generation.read_unchecked(at, block) {
        Ok(n) if n == block.len() => {}
        Ok(_) => return Err(StreamError::Read(Errno::IO)),
        Err(why) => return Err(StreamError::Read(why)),
    }
    match file.write_all_at(block, at) {
        // A disk with blocks of its own size. What was written of this one is written again.
        Err(why) if why.kind() == io::ErrorKind::InvalidInput => {
            direct(file, false);
            file.write_all_at(block, at)?;
        }
        written => written?,
    }
    Ok(block.len())
}

/// Sends every block, read.
fn read_blocks(
    generation: &Generation,
    blocks: impl Iterator<Item = (u64, usize)>,
    free: &Receiver<Vec<u8>>,
    full: &Sender<Result<Vec<u8>, Errno>>,
) {
    for (offset, len) in blocks {
        let Ok(mut block) = free.recv() else { return };
        block.resize(len, 0);
        let read = match generation.read_unchecked(offset, &mut block) {
            Ok(n) if n == len => Ok(block),
            Ok(_) => Err(Errno::IO),
            Err(why) => Err(why),
        };
        let failed = read.is_err();
        if full.send(read).is_err() || failed {
            return;
        }
    }
}

/// Copies a run to `out`: as much of it as the kernel likes to, and what it does not like by hand. Bytes written, at
/// least one.
fn copy(
    generation: &Generation,
    run: Run,
    out: &File,
    kernel: &mut Kernel,
) -> Result<u64, StreamError> {
    let copied = generation.with_file(run.member, |file| kernel.copy(file, run, out));
    if let Some(copied) = copied.filter(|copied| *copied > 0) {
        return Ok(copied);
    }
    let mut block = vec![0; (run.len as usize).min(BLOCK)];
    generation.read_unchecked(run.start, &mut block).map_err(StreamError::Read)?;
    (&mut &*out).write_all(&block)?;
    Ok(block.len() as u64)
}

/// Ways to have the kernel copy, each until it has refused.
#[derive(Debug, Default)]
struct Kernel {
    no_copy: bool,
    no_splice: bool,
    pipe: Option<(OwnedFd, OwnedFd)>,
}

impl Kernel {
    /// Bytes copied; 0 where the kernel refuses, or something is wrong on either side: who copies by hand is told what.
    fn copy(&mut self, file: &OwnedFd, run: Run, out: &File) -> u64 {
        let mut done = 0;
        while done < run.len && !self.no_copy {
            let mut from = run.offset + done;
            let len = usize::try_from(run.len - done).unwrap_or(usize::MAX);
            match rustix::fs::copy_file_range(file, Some(&mut from), out, None, len) {
                Ok(0) => return done,
                Ok(n) => done += n as u64,
                Err(Errno::INTR) => {}
                Err(_) => self.no_copy = true,
            }
        }
        while done < run.len && !self.no_splice {
            match self.splice(file, run.offset + done, run.len - done, out) {
                Ok(0) => return done,
                Ok(n) => done += n,
                Err(_) => self.no_splice = true,
            }
        }
        done
    }

    /// Copies through a pipe of our own, which has references to the file's pages until they are in `out`.
    fn splice(&mut self, file: &OwnedFd, from: u64, len: u64, out: &File) -> Result<u64, Errno> {
        let (read, write) = match self.pipe.take() {
            Some(pipe) => pipe,
            None => {
                let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
                // The default of 64 KiB works as well, only slower.
                let _ = rustix::pipe::fcntl_setpipe_size(&write, BLOCK);
                (read, write)
            }
        };
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(BLOCK);
        let mut from = from;
        let flags = SpliceFlags::MORE;
        let full = rustix::pipe::splice(file, Some(&mut from), write.as_fd(), None, len, flags)?;
        let mut done = 0;
        while done < full {
            // What stays in the pipe is dropped with it, and was not counted.
            match rustix::pipe::splice(&read, None, out, None, full - done, flags) {
                Ok(0) => return Ok(done as u64),
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(_) if done > 0 => return Ok(done as u64),
                Err(why) => return Err(why),
            }
        }
        self.pipe = Some((read, write));
        Ok(done as u64)
    }
}
