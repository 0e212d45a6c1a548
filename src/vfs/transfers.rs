//! Who reads an `export.tar` now, and how far each is.

use super::Vfs;
use super::handle::Handle;
use serde_json::{Value, json};
use std::sync::Arc;
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
}

impl Vfs {
    /// `NAME/.transfers`: one object for each open `export.tar` of the machine.
    pub(super) fn transfers(&self, machine: &Arc<str>) -> Vec<u8> {
        let name = self.machines.export_name();
        let mut all: Vec<(u64, Value)> = Vec::new();
        for (number, handle) in self.handles.all() {
            let Handle::Export { node, hold, progress } = &*handle else { continue };
            if node.key.machine != *machine {
                continue;
            }
            let seconds = progress.opened.elapsed().as_secs_f64();
            let bytes = progress.bytes.load(Ordering::Relaxed);
            let value = json!({
                "file": name,
                "generation": format!("{:016x}", hold.generation().id()),
                "pid": Some(progress.pid).filter(|pid| *pid != 0),
                "offset": progress.at.load(Ordering::Relaxed),
                "size": hold.generation().size(),
                "bytes": bytes,
                "seconds": seconds,
                "rate": (bytes as f64 / seconds.max(0.001)) as u64,
            });
            all.push((number, value));
        }
        all.sort_by_key(|(number, _)| *number);
        let all: Vec<Value> = all.into_iter().map(|(_, value)| value).collect();
        format!("{:#}\n", json!({ "schema": 1, "transfers": all })).into_bytes()
    }
}
