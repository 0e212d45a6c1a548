//! A generation from its first byte to its last, without a mount.

use super::Generation;
use rustix::io::Errno;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

/// Bytes that travel at once.
const BLOCK: usize = 1 << 20;
/// Blocks on the way: one being filled, one being written, one between them.
const BLOCKS: usize = 3;

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

/// Writes all of `generation` to `out`, reading ahead on a second thread. `progress` hears of the bytes written so far,
/// and ends the stream with its error.
pub fn write_all(
    generation: &Arc<Generation>,
    out: &mut dyn Write,
    mut progress: impl FnMut(u64) -> io::Result<()>,
) -> Result<(), StreamError> {
    let (full, filled) = sync_channel::<Result<Vec<u8>, Errno>>(BLOCKS - 2);
    let (empty, free) = sync_channel::<Vec<u8>>(BLOCKS);
    for _ in 0..BLOCKS {
        let _ = empty.send(vec![0; BLOCK]);
    }
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut offset = 0;
            while let Ok(mut block) = free.recv() {
                block.resize(BLOCK, 0);
                let read = generation.read_unchecked(offset, &mut block);
                let done = !matches!(read, Ok(n) if n > 0);
                let sent = full.send(read.map(|n| {
                    offset += n as u64;
                    block.truncate(n);
                    block
                }));
                if done || sent.is_err() {
                    break;
                }
            }
        });
        let mut written = 0;
        while let Ok(block) = filled.recv() {
            let block = block.map_err(StreamError::Read)?;
            if block.is_empty() {
                break;
            }
            out.write_all(&block)?;
            written += block.len() as u64;
            progress(written)?;
            let _ = empty.send(block);
        }
        out.flush()?;
        Ok(())
    })
}
