//! A generation from its first byte to its last, without a mount.

use super::Generation;
use rustix::io::Errno;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Bytes that travel at once.
const BLOCK: usize = 1 << 20;
/// Threads that read: opening small files costs more than writing their bytes.
const READERS: usize = 2;
/// Blocks on the way for each reader: one being filled, one being written.
const BLOCKS: usize = 2;

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

/// Writes all of `generation` to `out`. `progress` hears of the bytes written so far, and ends the stream with its
/// error.
///
/// Reader `r` of `n` reads blocks `r`, `r + n`, `r + 2n`, …; the caller's thread writes them in turn.
pub fn write_all(
    generation: &Arc<Generation>,
    out: &mut dyn Write,
    mut progress: impl FnMut(u64) -> io::Result<()>,
) -> Result<(), StreamError> {
    std::thread::scope(|scope| {
        let mut readers = Vec::new();
        for r in 0..READERS {
            let (full, filled) = channel();
            let (empty, free) = channel();
            for _ in 0..BLOCKS {
                let _ = empty.send(vec![0; BLOCK]);
            }
            scope.spawn(move || read_blocks(generation, r, &free, &full));
            readers.push((filled, empty));
        }
        let mut written = 0;
        // The readers end when their channels close, which they do when `readers` is dropped, on every way out.
        for (filled, empty) in readers.iter().cycle() {
            let Ok(block) = filled.recv() else { break };
            let block = block.map_err(StreamError::Read)?;
            if block.is_empty() {
                break;
            }
            out.write_all(&block)?;
            written += block.len() as u64;
            progress(written)?;
            let _ = empty.send(block);
        }
        if written != generation.size() {
            return Err(StreamError::Read(Errno::IO));
        }
        out.flush()?;
        Ok(())
    })
}

/// Sends every block of reader `first`, then an empty one.
fn read_blocks(
    generation: &Generation,
    first: usize,
    free: &Receiver<Vec<u8>>,
    full: &Sender<Result<Vec<u8>, Errno>>,
) {
    let mut number = first as u64;
    while let Ok(mut block) = free.recv() {
        block.resize(BLOCK, 0);
        let read = generation.read_unchecked(number * BLOCK as u64, &mut block);
        let done = !matches!(read, Ok(n) if n > 0);
        let sent = full.send(read.map(|n| {
            block.truncate(n);
            block
        }));
        if done || sent.is_err() {
            break;
        }
        number += READERS as u64;
    }
}
