//! A directory that an export was extracted to, looked at by the paths of the members.

use crate::accounts;
use crate::export::{Digest, Entry, records};
use crate::tar::Kind;
use crate::tree::{self, Plain};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::path::Path;

/// Bytes that are hashed at once.
const AT_ONCE: usize = 1 << 20;
/// Bytes of a list of users that are read at most.
const MOST_LIST: u64 = 4 << 20;

/// The directory.
#[derive(Debug)]
pub struct Directory {
    root: Plain,
    /// The one that was looked into last, with its path.
    last: Option<(Vec<u8>, Plain)>,
    /// The name in it that was looked at last.
    name: Vec<u8>,
    /// Names in directories of the export.
    names: u64,
    /// Members among them.
    members: u64,
    ids: Option<Names>,
}

/// What the ids of the machine became when the services got their files.
#[derive(Debug, Default)]
pub struct Names {
    users: HashMap<u32, u32>,
    groups: HashMap<u32, u32>,
}

/// Why the ids are not known.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}")]
pub struct NamesError {
    path: &'static str,
    why: Errno,
}

impl Names {
    /// By the lists in an extracted root: codchi-owners, and the users and groups that it has now.
    pub fn of(root: &Path) -> Result<Self, NamesError> {
        let read = |path: &'static str| read(root, path).map_err(|why| NamesError { path, why });
        let (owners, passwd) = (read("etc/nixos/codchi-owners")?, read("etc/passwd")?);
        let group = read("etc/group")?;
        let mut names = Self::default();
        for line in owners.lines() {
            let mut words = line.split(' ');
            let (Some(kind), Some(name), Some(id)) = (words.next(), words.next(), words.next())
            else {
                continue;
            };
            let (list, to) = match kind {
                "user" => (&passwd, &mut names.users),
                _ => (&group, &mut names.groups),
            };
            let found = accounts::lines(list.as_bytes()).find(|line| line.name == name.as_bytes());
            if let (Ok(id), Some(found)) = (id.parse(), found) {
                to.insert(id, found.id);
            }
        }
        Ok(names)
    }
}

fn read(root: &Path, path: &str) -> Result<String, Errno> {
    let (dir, name) = path.rsplit_once('/').ok_or(Errno::INVAL)?;
    let mut at = Plain::open(root)?;
    for part in dir.split('/') {
        at = at.dir(part.as_bytes())?;
    }
    let file = at.file(name.as_bytes())?;
    let mut bytes = vec![0; MOST_LIST as usize];
    let count = tree::read_full(&file, 0, &mut bytes)?;
    bytes.truncate(count);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Directory {
    /// The directory at a path of the caller's; the root of a system that runs, where the machine's ids are these now.
    pub fn open(path: &Path, ids: Option<Names>) -> Result<Self, Errno> {
        let root = Plain::open(path)?;
        let names = root.count()?;
        Ok(Self { root, last: None, name: Vec::new(), names, members: 0, ids })
    }

    /// Names beside the members, in the directories that are members.
    pub(super) fn others(&self) -> u64 {
        self.names.saturating_sub(self.members)
    }

    /// Gives an entry the ids that it should have here.
    pub(super) fn renumber(&self, entry: &mut Entry) {
        let Some(ids) = &self.ids else { return };
        let new = |ids: &HashMap<u32, u32>, id: u32| ids.get(&id).copied().unwrap_or(id);
        (entry.uid, entry.gid) = (new(&ids.users, entry.uid), new(&ids.groups, entry.gid));
        let acls = entry.records.iter_mut().filter(|(key, _)| key.starts_with(b"SCHILY.acl."));
        for (_, acl) in acls {
            let text = String::from_utf8_lossy(acl).into_owned();
            let renumbered = text.split(',').map(|ace| {
                let fields: Vec<_> = ace.split(':').collect();
                match (&fields[..], fields.get(1).and_then(|id| id.parse::<u32>().ok())) {
                    ([kind @ "user", _, perm], Some(id)) => {
                        format!("{kind}:{}:{perm}", new(&ids.users, id))
                    }
                    ([kind @ "group", _, perm], Some(id)) => {
                        format!("{kind}:{}:{perm}", new(&ids.groups, id))
                    }
                    _ => ace.to_owned(),
                }
            });
            // The kernel sorts the entries by id.
            let mut all: Vec<_> = renumbered.collect();
            all.sort_by_key(|ace| ace_key(ace));
            *acl = all.join(",").into_bytes();
        }
    }

    /// What is at the path of a member; a hard link is one if it is the same file as its first name.
    pub(super) fn entry(&mut self, member: &Entry) -> Result<Entry, Errno> {
        let (dir, name) = split(&member.path);
        self.go(dir)?;
        self.name = name.to_vec();
        let found = self.here().entry(name)?;
        self.members += 1;
        let kind = match found.attr.kind {
            tree::Kind::Directory => Kind::Directory,
            tree::Kind::File => Kind::File,
            tree::Kind::Symlink => Kind::Symlink,
            tree::Kind::CharDevice => Kind::CharDevice,
            tree::Kind::BlockDevice => Kind::BlockDevice,
            tree::Kind::Fifo | tree::Kind::Socket => Kind::Fifo,
        };
        if kind == Kind::Directory && member.kind == Kind::Directory {
            self.go(&member.path)?;
            self.names = self.names.saturating_add(self.here().count()?);
        }
        let mut entry = Entry {
            path: member.path.clone(),
            kind,
            perm: found.attr.perm,
            uid: found.attr.uid,
            gid: found.attr.gid,
            size: if kind == Kind::File { found.attr.size } else { 0 },
            mtime: (found.attr.mtime.sec, found.attr.mtime.nsec),
            target: found.target,
            rdev: if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
                found.attr.rdev
            } else {
                (0, 0)
            },
            records: records(&found.xattrs),
        };
        if kind == Kind::Directory && self.ids.is_some() {
            // A system that runs puts names of its own beside the export's.
            entry.mtime = member.mtime;
        }
        if member.kind == Kind::HardLink {
            let (dir, name) = split(&member.target);
            let first = self.go(dir).and_then(|()| self.here().entry(name));
            let same = first
                .is_ok_and(|first| (first.attr.id, first.device) == (found.attr.id, found.device));
            entry.kind = Kind::HardLink;
            entry.target = if same { member.target.clone() } else { Vec::new() };
        }
        Ok(entry)
    }

    /// The digest of the file that was looked at last.
    pub(super) fn digest(&self) -> Result<Digest, Errno> {
        let file = self.here().file(&self.name)?;
        let (mut hash, mut buf, mut at) = (Sha256::new(), vec![0; AT_ONCE], 0_u64);
        loop {
            let count = tree::read_full(&file, at, &mut buf)?;
            hash.update(buf.get(..count).unwrap_or_default());
            at = at.saturating_add(count as u64);
            if count < buf.len() {
                return Ok(hash.finalize().into());
            }
        }
    }

    fn here(&self) -> &Plain {
        self.last.as_ref().map_or(&self.root, |(_, dir)| dir)
    }

    /// Opens a directory, from the one that is open if that is above it.
    fn go(&mut self, path: &[u8]) -> Result<(), Errno> {
        if path.is_empty() {
            self.last = None;
            return Ok(());
        }
        let above = self.last.as_ref().is_some_and(|(last, _)| {
            path.strip_prefix(&**last).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        });
        if !above {
            self.last = None;
        }
        let from = self.last.as_ref().map_or(0, |(last, _)| last.len());
        let missing = path.get(from..).unwrap_or_default();
        for name in missing.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let dir = self.here().dir(name)?;
            let mut at = self.last.take().map(|(at, _)| at).unwrap_or_default();
            if !at.is_empty() {
                at.push(b'/');
            }
            at.extend_from_slice(name);
            self.last = Some((at, dir));
        }
        Ok(())
    }
}

/// The directory of a path, and the name in it.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None => (b"", path),
    }
}

/// Owner, named users by id, group, named groups by id, mask, others.
fn ace_key(ace: &str) -> (usize, u32) {
    let mut fields = ace.split(':');
    let (kind, id) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
    let rank = ["user", "group", "mask", "other"].iter().position(|k| *k == kind).unwrap_or(4);
    let id: Option<u32> = id.parse().ok();
    (rank * 2 + usize::from(id.is_some()), id.unwrap_or(0))
}
