//! How much of a machine is left out: what the exported tree hides, counted and never opened.

use super::layer::{self, Layer};
use super::rules::{RuleId, Verdict};
use super::{Dir, Kind, Tree};
use rustix::fd::{AsFd as _, BorrowedFd};
use rustix::fs::Statx;
use rustix::io::Errno;

/// What is hidden below a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// Everything but directories.
    pub files: u64,
    /// Bytes of the regular files.
    pub bytes: u64,
    /// Directories that cannot be looked into, or are mount points: what they hold is not counted.
    pub unseen: u64,
}

/// A directory on the way, and what of it is still to be looked into.
struct Level {
    /// Bytes of its path.
    path: usize,
    below: Vec<(Box<[u8]>, Option<RuleId>)>,
}

/// An entry of a hidden directory.
enum Hidden<'a> {
    /// A directory, and its rule.
    Directory(Option<RuleId>),
    Other(&'a Statx),
}

impl Tree {
    /// Counts what the disk has at `name` in `dir` and the exported tree has not; `file` hears of every regular file of
    /// it, by its path below `name`. `None` if there is nothing there at all, not even a directory. Where the home is shown,
    /// `of_home` tells it from what it hides.
    pub fn weigh(
        &self,
        dir: &Dir,
        name: &[u8],
        of_home: bool,
        file: &mut dyn FnMut(&[u8]),
    ) -> Result<Option<Weight>, Errno> {
        let rule = self.rules.rule_of(dir.0.rule, name);
        let graft =
            matches!(self.rules.verdict(dir.0.rule, dir.0.hidden, name), Verdict::Graft { .. });
        let (layer, at, name) = match &self.home {
            Some(home) if graft && of_home => (home, home.root(), &b"."[..]),
            _ => match dir.0.fd.as_ref() {
                Some(disk) => (self.layer(dir.0.layer), disk.as_fd(), name),
                None => return Ok(None),
            },
        };
        let st = match layer::stat_at(at, name) {
            Ok(st) => st,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut weight = Weight::default();
        if Kind::of(&st) != Kind::Directory {
            weight.add(&st, b"", file);
            return Ok(Some(weight));
        }
        if layer.is_mount_point(at, name, &st) {
            return Ok(Some(Weight { unseen: 1, ..weight }));
        }
        let top = layer::open_dir(at, name)?;
        // Depth first, so that only the names beside one path wait at a time; and from the top each time, so that however
        // deep it is, one descriptor does. Paths end at 4095 bytes.
        let mut path = Vec::new();
        let mut levels: Vec<Level> = Vec::new();
        let mut rule = rule;
        loop {
            let mut below = Vec::new();
            let here: &[u8] = if path.is_empty() { b"." } else { &path };
            let prefix =
                if path.is_empty() { Vec::new() } else { [&path, b"/".as_slice()].concat() };
            let listed = layer::open_dir(&top, here).and_then(|here| {
                self.weigh_dir(layer, here.as_fd(), rule, &mut |name, hidden| match hidden {
                    Hidden::Directory(rule) => below.push((name.into(), rule)),
                    Hidden::Other(st) => weight.add(st, &[&prefix, name].concat(), file),
                })
            });
            match listed {
                Ok(unseen) => weight.unseen += unseen,
                // Deleted meanwhile.
                Err(Errno::NOENT) => {}
                Err(_) => weight.unseen += 1,
            }
            levels.push(Level { path: path.len(), below });
            loop {
                let Some(level) = levels.last_mut() else { return Ok(Some(weight)) };
                path.truncate(level.path);
                let Some((name, next)) = level.below.pop() else {
                    levels.pop();
                    continue;
                };
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(&name);
                rule = next;
                break;
            }
        }
    }

    /// Hands on what one hidden directory has; how many of its entries are not to be seen.
    fn weigh_dir(
        &self,
        layer: &Layer,
        dir: BorrowedFd<'_>,
        rule: Option<RuleId>,
        each: &mut dyn FnMut(&[u8], Hidden<'_>),
    ) -> Result<u64, Errno> {
        let mut unseen = 0;
        layer::names(dir, |name| {
            let child = match self.rules.verdict(rule, true, name) {
                // It is in the exported tree, or something else in its place.
                Verdict::Generated(_) | Verdict::Graft { .. } => return,
                Verdict::DiskWith { hidden: false, .. } => return,
                Verdict::DiskWith { rule, .. }
                | Verdict::Way { rule }
                | Verdict::Made { rule, .. } => Some(rule),
                Verdict::Hidden | Verdict::Disk => None,
            };
            match layer::stat_at(dir, name) {
                Ok(st) if Kind::of(&st) != Kind::Directory => each(name, Hidden::Other(&st)),
                Ok(st) if layer.is_mount_point(dir, name, &st) => unseen += 1,
                Ok(_) => each(name, Hidden::Directory(child)),
                Err(Errno::NOENT) => {}
                Err(_) => unseen += 1,
            }
        })?;
        Ok(unseen)
    }
}

impl Weight {
    fn add(&mut self, st: &Statx, path: &[u8], file: &mut dyn FnMut(&[u8])) {
        self.files += 1;
        if Kind::of(st) == Kind::File {
            self.bytes = self.bytes.saturating_add(st.stx_size);
            file(path);
        }
    }
}
