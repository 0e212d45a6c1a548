//! The texts about a machine: `report.json`, `MIGRATE.md`, `.transfers`.
//!
//! They change at any time, and the kernel keeps size and pages by inode. Each text is therefore a file of its own that
//! never changes: another text is another inode under the same name. Whoever has one open reads it to its end, and no
//! reader gets the beginning of one text and the rest, or the size, of another.

use super::handle::Handle;
use super::inode::{Found, Node};
use super::namespace::now;
use super::number::{Key, Object, Page};
use super::text::Text;
use super::{Attr, Entry, LASTING, Opened, Vfs};
use crate::machine::Machine;
use crate::tree::{Kind, Time};
use rustix::io::Errno;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64;

/// By machine and page: the hash of the last text, and since when it says so.
pub(super) type Since = HashMap<(Arc<str>, Page), (u64, Time)>;

impl Vfs {
    /// Counts a lookup of a text as it is now. The name is never believed: the next lookup may meet another text.
    pub(super) fn insert_page(&self, page: Page, machine: &Machine) -> Result<Entry, Errno> {
        let text = self.text(page, machine);
        let key = Key::new(&machine.name, Object::Page { page, hash: text.hash });
        let node = self.table.insert(key, Found::Page(Box::new(text.clone())))?;
        let entry = self.entry(self.attr_of_text(node.ino, &text), LASTING);
        Ok(Entry { entry_ttl: Duration::ZERO, ..entry })
    }

    /// Attributes of a text that was looked up.
    pub(super) fn attr_of_page(&self, node: &Node) -> Result<Attr, Errno> {
        let text = node.text.lock();
        let text = text.as_deref().ok_or(Errno::STALE)?;
        Ok(self.attr_of_text(node.ino, text))
    }

    /// Opens a text that was looked up. ESTALE if it is gone and another one is there now: the kernel then looks the name
    /// up again.
    pub(super) fn open_page(&self, node: Arc<Node>, page: Page) -> Result<Opened, Errno> {
        let mut text = node.text.lock().as_deref().cloned().ok_or(Errno::STALE)?;
        if text.bytes.is_none() {
            let machine = self.machines.get(node.key.machine.as_bytes()).ok_or(Errno::STALE)?;
            let again = self.text(page, &machine);
            if again.hash != text.hash {
                return Err(Errno::STALE);
            }
            text.bytes = again.bytes;
            *node.text.lock() = Some(Box::new(text.clone()));
        }
        let attr = self.attr_of_text(node.ino, &text);
        let bytes = text.bytes.ok_or(Errno::STALE)?;
        let handle = self.handles.add(Handle::Bytes { node, bytes, attr });
        Ok(Opened::unchanging(handle))
    }

    /// The text as of now, and since when it says so.
    fn text(&self, page: Page, machine: &Machine) -> Text {
        let bytes: Arc<[u8]> = match page {
            Page::Report => machine.report().into(),
            Page::Guide => machine.guide().into(),
            Page::Transfers => self.transfers(&machine.name).into(),
        };
        let (size, hash) = (bytes.len() as u64, xxh3_64(&bytes));
        let since = match page {
            Page::Transfers => now(),
            Page::Report | Page::Guide => {
                let first = (hash, machine.time());
                let mut pages = self.pages.lock();
                let known = pages.entry((Arc::clone(&machine.name), page)).or_insert(first);
                if known.0 != hash {
                    *known = (hash, now());
                }
                known.1
            }
        };
        Text { bytes: Some(bytes), size, hash, since, made: Instant::now() }
    }

    /// `NAME/.transfers`: one object for each open `export.tar` of the machine.
    fn transfers(&self, machine: &Arc<str>) -> Vec<u8> {
        let name = self.machines.export_name();
        let mut all: Vec<(u64, Value)> = Vec::new();
        for (number, handle) in self.handles.all() {
            match &*handle {
                Handle::Export { node, hold, progress } if node.key.machine == *machine => {
                    all.push((number, progress.to_json(name, hold.generation())));
                }
                _ => {}
            }
        }
        all.sort_by_key(|(number, _)| *number);
        let all: Vec<Value> = all.into_iter().map(|(_, value)| value).collect();
        format!("{:#}\n", json!({ "schema": 1, "transfers": all })).into_bytes()
    }

    fn attr_of_text(&self, ino: u64, text: &Text) -> Attr {
        self.own_attr(ino, Kind::File, 0o600, text.size, text.since)
    }
}
