//! Who reads an `export.tar` now, and how far each is.

use crate::export::Generation;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// How far the reader of one handle is.
#[derive(Debug)]
pub(super) struct Progress {
    /// Of the thread that opened it; 0 where the kernel has no number for it here.
    pid: u32,
    opened: Instant,
    /// Behind what was read last.
    at: AtomicU64,
    /// Read so far, whatever was read twice.
    bytes: AtomicU64,
}

impl Progress {
    pub(super) fn new(pid: u32) -> Self {
        Self { pid, opened: Instant::now(), at: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    pub(super) fn read(&self, offset: u64, count: usize) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.at.store(offset.saturating_add(count), Ordering::Relaxed);
        self.bytes.fetch_add(count, Ordering::Relaxed);
    }

    /// As an object of `.transfers`.
    pub(super) fn to_json(&self, file: &str, generation: &Generation) -> Value {
        let seconds = self.opened.elapsed().as_secs_f64();
        let bytes = self.bytes.load(Ordering::Relaxed);
        json!({
            "file": file,
            "generation": format!("{:016x}", generation.id()),
            "pid": Some(self.pid).filter(|pid| *pid != 0),
            "offset": self.at.load(Ordering::Relaxed),
            "size": generation.size(),
            "bytes": bytes,
            "seconds": seconds,
            "rate": (bytes as f64 / seconds.max(0.001)) as u64,
        })
    }
}
