//! What is not in an export, and what changed under a reader: the lines of `report.json`.

use crate::quote::name;
use crate::tar::LayoutError;
use crate::tree::{LeftOut, Weight};
use parking_lot::Mutex;
use rustix::io::Errno;
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};

/// Lines kept of each reason: a machine with a million sockets must not fill the memory with their names.
const MAX_LINES: usize = 10_000;
/// Bytes of the lines of one reason, as they stand in the report: a path may have megabytes.
const MAX_REASON_BYTES: usize = 4 << 20;
/// Bytes of all lines of a scan.
const MAX_NOTE_BYTES: usize = 10 << 20;
/// Bytes of the lines of what changed under the readers of one generation.
const MAX_CHANGE_BYTES: usize = 2 << 20;
/// A path that no system call takes is not listed whole, but so much of its beginning and of its end.
const MAX_PATH: usize = 4095;
const PATH_HEAD: usize = 2048;
const PATH_TAIL: usize = 512;
/// What a line takes in the report beside its path and text.
const LINE_BYTES: usize = 160;

/// Something on the disk that is not in the export as it is there.
#[derive(Clone, Debug, Serialize)]
pub struct LeftOutLine {
    /// Path in the machine, as [`name`] writes it; of more than 4095 bytes without its middle.
    pub path: String,
    /// What it is, for programs.
    pub reason: &'static str,
    /// What it means and what to do about it, for people.
    pub text: String,
    /// How many files it stands for, where that is more than the one at `path`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<u64>,
    /// Bytes of those that are regular files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

impl LeftOutLine {
    fn key(&self) -> (&str, &str, &str) {
        (&self.path, self.reason, &self.text)
    }

    fn new(path: &[u8], reason: &'static str, text: String) -> Self {
        Self { path: listed(path), reason, text, files: None, bytes: None }
    }

    /// Bytes that it takes in the report.
    fn cost(&self) -> usize {
        LINE_BYTES + escaped_len(&self.path) + escaped_len(&self.text)
    }

    /// What a scan hears of one entry.
    pub(super) fn of(path: &[u8], why: LeftOut) -> Self {
        let (reason, text) = match why {
            LeftOut::Socket => ("socket", "a socket; no archive can hold one".into()),
            LeftOut::MountPoint => (
                "mount-point",
                "another file system is mounted here; what is on it is not exported".into(),
            ),
            LeftOut::ByUser => ("excluded-by-user", "left out by --exclude".into()),
            LeftOut::BuiltIn => (
                "excluded",
                format!(
                    "the target has its own, or makes it anew; --include {} takes it along",
                    listed(path)
                ),
            ),
            LeftOut::BelowHome => (
                "below-home",
                "hidden: the machine's home directory is shown in its place".into(),
            ),
            LeftOut::Unreadable(e) => ("unreadable", format!("cannot be read: {e}")),
            LeftOut::ForeignOwner => (
                "foreign-owner",
                "its owner is outside the machine's id map; exported as 65534".into(),
            ),
            LeftOut::ForeignId => (
                "foreign-owner",
                "an id in its ACL or capability is outside the machine's id map; exported as 65534"
                    .into(),
            ),
            LeftOut::Xattr(kind) => {
                ("attribute", format!("extended attributes {kind} are not exported"))
            }
            LeftOut::Xattrs(Errno::TOOBIG) => (
                "attribute",
                "the names of its extended attributes exceed 64 KiB, which the kernel tells nobody: \
                 none of them is exported"
                    .into(),
            ),
            LeftOut::Xattrs(e) => {
                ("unreadable", format!("its extended attributes cannot be read: {e}"))
            }
        };
        Self::new(path, reason, text)
    }

    /// A name that is left out with all that is below it.
    pub(super) fn hidden(path: &[u8], why: LeftOut, weight: Weight) -> Self {
        let mut line = Self::of(path, why);
        if weight.unseen > 0 {
            line.text.push_str(&format!(
                "; {} director{} in it could not be counted",
                weight.unseen,
                if weight.unseen == 1 { "y" } else { "ies" }
            ));
        }
        Self { files: Some(weight.files), bytes: Some(weight.bytes), ..line }
    }

    /// A file of /etc that the system did not make.
    pub(super) fn stray(path: &[u8]) -> Self {
        let text = format!(
            "made by hand or by a program, not by the system's configuration; --include {} takes it along",
            listed(path)
        );
        Self::new(path, "etc", text)
    }

    /// A path that most readers cannot make.
    pub(super) fn long_path(path: &[u8]) -> Self {
        let text =
            "its path is longer than 4095 bytes: it is in the archive, and only bsdtar extracts it";
        Self::new(path, "long-path", text.into())
    }

    /// More attributes than every reader takes.
    pub(super) fn large_attributes(path: &[u8]) -> Self {
        let text = "more than 1 MiB of extended attributes: bsdtar stops reading the archive there; extract it with GNU tar";
        Self::new(path, "large-attributes", text.into())
    }

    /// A member that the archive format cannot express; the error names it.
    pub(super) fn unarchivable(path: &[u8], why: &LayoutError) -> Self {
        let text: String = why.to_string().chars().take(MAX_PATH).collect();
        Self::new(path, "unarchivable", text)
    }
}

/// Lines of a scan, bounded.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Note {
    /// Sorted by path.
    pub lines: Vec<LeftOutLine>,
    /// How many more there were.
    pub more: u64,
    /// By reason, until the end of the scan: one kind of line must not crowd out the others.
    #[serde(skip)]
    by_reason: BTreeMap<&'static str, Lines>,
    /// By kind of extended attribute, the first path that has one in byte order, and how many have.
    #[serde(skip)]
    attributes: BTreeMap<&'static str, (Vec<u8>, u64)>,
    #[serde(skip)]
    pub(super) incomplete: bool,
    /// There was no room for all extended attributes.
    #[serde(skip)]
    pub(super) no_room: bool,
}

/// Lines of one reason, and the bytes that they take.
#[derive(Clone, Debug, Default)]
struct Lines {
    lines: Vec<LeftOutLine>,
    bytes: usize,
}

impl Note {
    pub(super) fn push(&mut self, line: LeftOutLine) {
        let kept = self.by_reason.entry(line.reason).or_default();
        kept.bytes = kept.bytes.saturating_add(line.cost());
        kept.lines.push(line);
        if kept.lines.len() >= 2 * MAX_LINES || kept.bytes >= 2 * MAX_REASON_BYTES {
            self.more = self.more.saturating_add(kept.keep_first(MAX_REASON_BYTES));
        }
    }

    /// Counts an extended attribute that is left out: a whole machine may be labelled, and one line says so.
    pub(super) fn attribute(&mut self, kind: &'static str, path: &[u8]) {
        self.attributes_of(kind, path, 1);
    }

    fn attributes_of(&mut self, kind: &'static str, path: &[u8], count: u64) {
        let (first, files) = self.attributes.entry(kind).or_insert_with(|| (path.to_vec(), 0));
        *files = files.saturating_add(count);
        if path < &**first {
            *first = path.to_vec();
        }
    }

    pub(super) fn append(&mut self, other: Self) {
        self.more = self.more.saturating_add(other.more);
        self.incomplete |= other.incomplete;
        self.no_room |= other.no_room;
        for line in other.by_reason.into_values().flat_map(|kept| kept.lines) {
            self.push(line);
        }
        for (kind, (path, files)) in other.attributes {
            self.attributes_of(kind, &path, files);
        }
    }

    /// Sorted and cut, so that the report does not depend on which thread came first; one line for each kind of attribute.
    pub(super) fn finish(&mut self) {
        for (kind, (path, files)) in std::mem::take(&mut self.attributes) {
            let line = LeftOutLine::of(&path, LeftOut::Xattr(kind));
            self.push(LeftOutLine { files: Some(files), ..line });
        }
        let mut kept: Vec<Lines> = std::mem::take(&mut self.by_reason).into_values().collect();
        // The reasons with few lines first: what they leave of their share is for the others.
        kept.sort_by_key(|kept| kept.bytes);
        let (mut room, mut reasons) = (MAX_NOTE_BYTES, kept.len());
        for mut kept in kept {
            let share = (room / reasons.max(1)).min(MAX_REASON_BYTES);
            self.more = self.more.saturating_add(kept.keep_first(share));
            room = room.saturating_sub(kept.bytes);
            reasons = reasons.saturating_sub(1);
            self.lines.append(&mut kept.lines);
        }
        self.lines.sort_by(|a, b| a.key().cmp(&b.key()));
    }
}

impl Lines {
    /// Keeps the first lines by path that fit; how many are gone.
    fn keep_first(&mut self, max_bytes: usize) -> u64 {
        self.lines.sort_by(|a, b| a.key().cmp(&b.key()));
        let (mut bytes, mut fit) = (0_usize, 0);
        for line in self.lines.iter().take(MAX_LINES) {
            let with = bytes.saturating_add(line.cost());
            if with > max_bytes {
                break;
            }
            (bytes, fit) = (with, fit + 1);
        }
        let gone = self.lines.len().saturating_sub(fit) as u64;
        self.lines.truncate(fit);
        self.bytes = bytes;
        gone
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

/// What changed under the readers of one generation. It outlives the generation: a copy that failed wants its reason.
#[derive(Debug, Default)]
pub struct Changes {
    lines: Mutex<ChangeLines>,
}

#[derive(Debug, Default)]
struct ChangeLines {
    /// By member.
    by_member: BTreeMap<u32, ChangeLine>,
    bytes: usize,
    /// Members for which there was no room: a second word on one of them is not a second member.
    not_listed: HashSet<u32>,
}

impl ChangeLines {
    fn more(&self) -> u64 {
        self.not_listed.len() as u64
    }
}

impl ChangeLine {
    fn cost(&self) -> usize {
        LINE_BYTES + escaped_len(&self.path)
    }
}

impl Changes {
    /// Notes what happened to a member; a later word on the same one counts. Whether it is news.
    pub(super) fn set(&self, member: u32, line: ChangeLine) -> bool {
        let mut lines = self.lines.lock();
        if let Some(known) = lines.by_member.get_mut(&member) {
            let news = *known != line;
            // The same path: it takes as many bytes.
            *known = line;
            return news;
        }
        let bytes = lines.bytes.saturating_add(line.cost());
        if lines.by_member.len() >= MAX_LINES || bytes > MAX_CHANGE_BYTES {
            lines.not_listed.insert(member);
            return false;
        }
        lines.bytes = bytes;
        lines.by_member.insert(member, line);
        true
    }

    /// The lines in the order of the archive, and how many more there were.
    pub fn lines(&self) -> (Vec<ChangeLine>, u64) {
        let lines = self.lines.lock();
        (lines.by_member.values().cloned().collect(), lines.more())
    }

    /// The first few of [`Self::lines`].
    pub fn first_lines(&self, most: usize) -> (Vec<ChangeLine>, u64) {
        let lines = self.lines.lock();
        let first: Vec<_> = lines.by_member.values().take(most).cloned().collect();
        let rest = lines.by_member.len().saturating_sub(first.len()) as u64;
        (first, lines.more().saturating_add(rest))
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.lines.lock().by_member.is_empty()
    }
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
    /// A program in the machine holds a lease on it and does not let go in time: zeros.
    Leased,
    /// Rewritten between two reads: parts of two states.
    Rewritten,
}

impl Change {
    /// Whether the member holds bytes that the file never had.
    pub fn tears(self) -> bool {
        !matches!(self, Self::Changed | Self::Grew)
    }
}

impl Change {
    /// The same for people.
    pub fn while_exported(self) -> &'static str {
        match self {
            Self::Changed => "changed before it was exported: the newer state is in the export",
            Self::Grew => "grew before it was exported: what was added is not in the export",
            Self::Shrank => "shrank while it was exported",
            Self::Vanished => "vanished while it was exported",
            Self::Unreadable => "cannot be read",
            Self::Leased => "cannot be read: a program in the machine holds a lease on it",
            Self::Rewritten => "was rewritten while it was exported",
        }
    }
}

/// A path as lines have it: [`name`], and without its middle if no system call takes it. `\[` stands in no name, since
/// `\` is written as `\x5c`.
pub(super) fn listed(path: &[u8]) -> String {
    if path.len() <= MAX_PATH {
        return name(path).to_string();
    }
    let (head, rest) = path.split_at(PATH_HEAD);
    let tail = rest.get(rest.len().saturating_sub(PATH_TAIL)..).unwrap_or_default();
    format!("{}\\[{} bytes in all]{}", name(head), path.len(), name(tail))
}

/// Bytes of a text in JSON, without its quotes.
fn escaped_len(text: &str) -> usize {
    text.len() + text.bytes().filter(|byte| matches!(byte, b'\\' | b'"')).count()
}
