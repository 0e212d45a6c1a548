//! Entries of a store path and their places in its archive.

/// The string `)` that ends a node or an entry.
pub(super) const CLOSE: [u8; 16] = [1, 0, 0, 0, 0, 0, 0, 0, b')', 0, 0, 0, 0, 0, 0, 0];

/// Largest archive in bytes: offsets must fit a signed 64-bit file offset.
const MAX_SIZE: u64 = i64::MAX as u64;

/// Stands for the parent of the root.
const NONE: u32 = u32::MAX;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file that nobody may execute.
    File,
    /// A regular file that its owner may execute.
    Executable,
    /// A symbolic link.
    Symlink,
}

/// What is pushed into a [`LayoutBuilder`].
#[derive(Clone, Copy, Debug)]
pub enum Node<'a> {
    /// A directory: what is pushed until [`LayoutBuilder::close`] is in it.
    Directory,
    /// A regular file.
    File {
        /// Bytes of its content.
        size: u64,
        /// Whether its owner may execute it.
        executable: bool,
    },
    /// A symbolic link with its target: raw bytes, never empty.
    Symlink(&'a [u8]),
}

/// Why a tree has no archive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// A name that is empty, `.`, `..`, longer than 65535 bytes, or holds `/` or NUL.
    #[error("{name} is no file name")]
    Name {
        /// The name, escaped.
        name: String,
    },
    /// Names of a directory must ascend, each once.
    #[error("{name} does not come after the entry before it")]
    Order {
        /// The name, escaped.
        name: String,
    },
    /// More entries, or more bytes of names, than fit 32-bit numbers.
    #[error("too many entries")]
    Entries,
    /// The archive would not fit a file offset.
    #[error("the archive would be larger than 2^63 bytes")]
    Size,
    /// Something was pushed after the root was complete, or the root never came.
    #[error("a store path has one root")]
    Root,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    /// Offset of its first byte in the archive.
    start: u64,
    /// Bytes of a file, or of a link's target.
    size: u64,
    /// Where its name begins in the names; the target of a link follows it.
    name_start: u32,
    parent: u32,
    /// How many `)` follow it: its own, and those of the directories that end with it.
    brackets: u32,
    name_len: u16,
    kind: Kind,
}

/// The frozen list of a store path's entries with their offsets: 32 bytes an entry, and its name.
#[derive(Debug)]
pub struct Layout {
    records: Vec<Record>,
    names: Vec<u8>,
    size: u64,
}

/// A run of the archive that one entry accounts for: its head, the body of a file, and what ends it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) entry: u32,
    pub(super) start: u64,
    pub(super) head: u64,
    pub(super) body: u64,
    pub(super) padding: u64,
    pub(super) tail: u64,
}

/// How many `)` end an entry of the directory `parent`.
const fn brackets(parent: u32) -> u32 {
    if parent == NONE { 1 } else { 2 }
}

/// Bytes of a string of `len` bytes in the archive.
const fn string_len(len: u64) -> u64 {
    8 + len.div_ceil(8) * 8
}

impl Layout {
    /// Bytes of the whole archive.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Number of entries, the root included.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Never: a store path has a root.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// What an entry is; `None` for a number that is none of this layout's.
    pub fn kind(&self, entry: u32) -> Option<Kind> {
        self.record(entry).map(|record| record.kind)
    }

    /// Bytes of an entry's file; 0 for everything else.
    pub fn file_size(&self, entry: u32) -> u64 {
        self.record(entry).map_or(0, |record| match record.kind {
            Kind::File | Kind::Executable => record.size,
            Kind::Directory | Kind::Symlink => 0,
        })
    }

    /// Path of an entry below the store path, without a slash at its start; empty for the root.
    pub fn path(&self, entry: u32) -> Vec<u8> {
        let mut names = Vec::new();
        let mut next = self.record(entry);
        while let Some(record) = next.filter(|record| record.parent != NONE) {
            names.push(self.name(record));
            next = self.record(record.parent);
        }
        names.reverse();
        names.join(&b'/')
    }

    fn record(&self, entry: u32) -> Option<&Record> {
        self.records.get(entry as usize)
    }

    fn name(&self, record: &Record) -> &[u8] {
        self.arena(u64::from(record.name_start), u64::from(record.name_len))
    }

    fn target(&self, record: &Record) -> &[u8] {
        self.arena(u64::from(record.name_start) + u64::from(record.name_len), record.size)
    }

    fn arena(&self, start: u64, len: u64) -> &[u8] {
        self.names.get(start as usize..(start + len) as usize).unwrap_or_default()
    }

    /// The entry that accounts for the byte at `offset`; `None` from [`Layout::size`] on.
    pub(super) fn place(&self, offset: u64) -> Option<Place> {
        if offset >= self.size {
            return None;
        }
        let after = self.records.partition_point(|record| record.start <= offset);
        let entry = u32::try_from(after.checked_sub(1)?).ok()?;
        self.place_of(entry)
    }

    fn place_of(&self, entry: u32) -> Option<Place> {
        let record = self.record(entry)?;
        let [head, body, padding, tail] = self.lengths(record);
        Some(Place { entry, start: record.start, head, body, padding, tail })
    }

    /// Bytes of the four parts of an entry.
    fn lengths(&self, record: &Record) -> [u64; 4] {
        let root = record.parent == NONE;
        let body = match record.kind {
            Kind::File | Kind::Executable => record.size,
            Kind::Directory | Kind::Symlink => 0,
        };
        let name = string_len(record.name_len.into());
        let begin = if root { string_len(13) } else { 16 * 4 + name };
        let node = match record.kind {
            Kind::Directory => string_len(9),
            Kind::File => 16 + 16 + 8,
            Kind::Executable => 16 + string_len(10) + 8 + 16 + 8,
            Kind::Symlink => 16 + 16 + string_len(record.size),
        };
        [begin + 32 + node, body, body.next_multiple_of(8) - body, 16 * u64::from(record.brackets)]
    }

    /// Writes all that comes before an entry's body.
    pub(super) fn head(&self, entry: u32, into: &mut Vec<u8>) {
        into.clear();
        let Some(record) = self.record(entry) else { return };
        let mut string = |bytes: &[u8]| {
            into.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            into.extend_from_slice(bytes);
            into.resize(into.len().next_multiple_of(8), 0);
        };
        match record.parent {
            NONE => string(b"nix-archive-1"),
            _ => {
                for word in [&b"entry"[..], b"(", b"name", self.name(record), b"node"] {
                    string(word);
                }
            }
        }
        string(b"(");
        string(b"type");
        match record.kind {
            Kind::Directory => string(b"directory"),
            Kind::Symlink => {
                for word in [&b"symlink"[..], b"target", self.target(record)] {
                    string(word);
                }
            }
            Kind::File | Kind::Executable => {
                string(b"regular");
                if record.kind == Kind::Executable {
                    string(b"executable");
                    string(b"");
                }
                string(b"contents");
                into.extend_from_slice(&record.size.to_le_bytes());
            }
        }
    }
}

/// Makes a [`Layout`] from entries in the order of the archive: a directory, what is in it, its end.
#[derive(Debug)]
pub struct LayoutBuilder {
    layout: Layout,
    /// The directories that are open, the root first, each with its last entry's number.
    open: Vec<(u32, Option<u32>)>,
}

impl Default for LayoutBuilder {
    fn default() -> Self {
        Self {
            layout: Layout { records: Vec::new(), names: Vec::new(), size: 0 },
            open: Vec::new(),
        }
    }
}

impl LayoutBuilder {
    /// Appends an entry to the directory that is open; the first one is the root, whose name is ignored.
    ///
    /// Answers its number. After an error the builder is of no more use.
    pub fn push(&mut self, name: &[u8], node: Node<'_>) -> Result<u32, LayoutError> {
        let shown = || crate::quote::name(name).to_string();
        let entry = u32::try_from(self.layout.records.len()).map_err(|_| LayoutError::Entries)?;
        if entry == NONE {
            return Err(LayoutError::Entries);
        }
        let (parent, name) = match self.open.last() {
            Some((parent, before)) => {
                if name.is_empty()
                    || matches!(name, b"." | b"..")
                    || name.iter().any(|b| matches!(b, b'/' | 0))
                {
                    return Err(LayoutError::Name { name: shown() });
                }
                let before = before.and_then(|before| self.layout.record(before));
                if before.is_some_and(|before| self.layout.name(before) >= name) {
                    return Err(LayoutError::Order { name: shown() });
                }
                (*parent, name)
            }
            None if entry == 0 => (NONE, &b""[..]),
            None => return Err(LayoutError::Root),
        };
        let name_len =
            u16::try_from(name.len()).map_err(|_| LayoutError::Name { name: shown() })?;
        let name_start =
            u32::try_from(self.layout.names.len()).map_err(|_| LayoutError::Entries)?;
        self.layout.names.extend_from_slice(name);
        let (kind, size) = match node {
            Node::Directory => (Kind::Directory, 0),
            Node::File { size, executable: true } => (Kind::Executable, size),
            Node::File { size, executable: false } => (Kind::File, size),
            Node::Symlink(target) => {
                self.layout.names.extend_from_slice(target);
                (Kind::Symlink, target.len() as u64)
            }
        };
        if size > MAX_SIZE {
            return Err(LayoutError::Size);
        }
        // A directory ends with the last entry in it. The root is no entry of anything: it has one bracket, others two.
        let brackets = match kind {
            Kind::Directory => 0,
            _ => brackets(parent),
        };
        // `finish` sets the starts, since an entry's brackets are known only once the next one comes.
        self.layout.records.push(Record {
            start: 0,
            size,
            name_start,
            parent,
            brackets,
            name_len,
            kind,
        });
        if let Some((_, last)) = self.open.last_mut() {
            *last = Some(entry);
        }
        if kind == Kind::Directory {
            self.open.push((entry, None));
        }
        Ok(entry)
    }

    /// Ends the directory that is open.
    pub fn close(&mut self) -> Result<(), LayoutError> {
        let (directory, _) = self.open.pop().ok_or(LayoutError::Root)?;
        let parent = self.layout.record(directory).map_or(NONE, |record| record.parent);
        let last = self.layout.records.last_mut().ok_or(LayoutError::Root)?;
        last.brackets = last.brackets.checked_add(brackets(parent)).ok_or(LayoutError::Entries)?;
        Ok(())
    }

    /// The layout, once the root is complete.
    pub fn finish(mut self) -> Result<Layout, LayoutError> {
        if self.layout.records.is_empty() || !self.open.is_empty() {
            return Err(LayoutError::Root);
        }
        let mut at = 0_u64;
        for index in 0..self.layout.records.len() {
            if let Some(record) = self.layout.records.get_mut(index) {
                record.start = at;
            }
            let Some(record) = self.layout.records.get(index) else { break };
            for len in self.layout.lengths(record) {
                at = at.checked_add(len).filter(|at| *at <= MAX_SIZE).ok_or(LayoutError::Size)?;
            }
        }
        self.layout.size = at;
        self.layout.records.shrink_to_fit();
        self.layout.names.shrink_to_fit();
        Ok(self.layout)
    }
}
