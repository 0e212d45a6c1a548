//! What is not in an export, and what changed under a reader: the lines of `report.json`.

use crate::tar::LayoutError;
use crate::tree::LeftOut;
use serde::Serialize;

/// Lines kept of each kind: a machine with a million sockets must not fill the memory with their names.
const MOST_LINES: usize = 10_000;

/// Something on the disk that is not in the export as it is there.
#[derive(Clone, Debug, Serialize)]
pub struct LeftOutLine {
    /// Path in the machine; bytes that are not UTF-8, control characters and `\` as `\xNN`.
    pub path: String,
    /// What it is, for programs.
    pub reason: &'static str,
    /// What it means, for people.
    pub text: String,
}

impl LeftOutLine {
    pub(super) fn of(path: &[u8], why: LeftOut) -> Self {
        let (reason, text) = match why {
            LeftOut::Socket => ("socket", "a socket; no archive can hold one".into()),
            LeftOut::MountPoint => (
                "mount-point",
                "another file system is mounted here; what is on it is not exported".into(),
            ),
            LeftOut::ByUser => ("excluded", "left out by --exclude".into()),
            LeftOut::Unreadable(e) => ("unreadable", format!("cannot be read: {e}")),
            LeftOut::ForeignOwner => (
                "foreign-owner",
                "its owner is outside the machine's id map; exported as 65534".into(),
            ),
        };
        Self { path: printable(path), reason, text }
    }
}

impl LeftOutLine {
    /// A member that the archive format cannot express; the error names it.
    pub(super) fn unarchivable(why: &LayoutError) -> Self {
        Self { path: String::new(), reason: "unarchivable", text: why.to_string() }
    }
}

/// Lines of a scan, bounded.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Note {
    /// The first lines.
    pub lines: Vec<LeftOutLine>,
    /// How many more there were.
    pub more: u64,
    #[serde(skip)]
    pub(super) incomplete: bool,
}

impl Note {
    pub(super) fn push(&mut self, line: LeftOutLine) {
        if self.lines.len() < MOST_LINES {
            self.lines.push(line);
        } else {
            self.more = self.more.saturating_add(1);
        }
    }

    pub(super) fn append(&mut self, other: Self) {
        self.more = self.more.saturating_add(other.more);
        for line in other.lines {
            self.push(line);
        }
    }

    /// Sorted, so that the report does not depend on which thread came first.
    pub(super) fn sort(&mut self) {
        self.lines.sort_by(|a, b| (&a.path, a.reason).cmp(&(&b.path, b.reason)));
    }
}

/// A member that is not served as the scan saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChangeLine {
    /// Path in the machine, as in [`LeftOutLine::path`].
    pub path: String,
    /// What happened.
    pub reason: Change,
    /// What of the member's bytes cannot be trusted.
    pub torn: bool,
}

/// What happened to a file between the scan and a reader, or between two reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Changed after the scan and before the first read: what was there then is served.
    Changed,
    /// As [`Self::Changed`], and longer: only the promised length is served.
    Grew,
    /// Shorter than promised: the rest is zeros.
    Shrank,
    /// Not there any more, or not a regular file: zeros.
    Vanished,
    /// The system refuses to read it: zeros.
    Unreadable,
    /// Rewritten between two reads: parts of two states.
    Rewritten,
}

impl Change {
    /// Whether the member holds bytes that the file never had.
    pub fn tears(self) -> bool {
        !matches!(self, Self::Changed | Self::Grew)
    }
}

/// Bytes as text that is safe on a terminal and in JSON, and tells every name from every other.
pub fn printable(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '\\' || c.is_control() {
                let mut utf8 = [0; 4];
                for b in c.encode_utf8(&mut utf8).bytes() {
                    let _ = write!(out, "\\x{b:02x}");
                }
            } else {
                out.push(c);
            }
        }
        for b in chunk.invalid() {
            let _ = write!(out, "\\x{b:02x}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_tells_names_apart() {
        for (bytes, text) in [
            (b"/a b".as_slice(), "/a b"),
            (b"/\xff", "/\\xff"),
            (b"/\\xff", "/\\x5cxff"),
            (b"/a\nb\x1b", "/a\\x0ab\\x1b"),
            ("/ü".as_bytes(), "/ü"),
        ] {
            assert_eq!(printable(bytes), text);
        }
    }
}
