//! The union rule: what a name is in the exported tree.

use super::attr::{Attr, Kind};
use super::layer;
use super::rules::{RuleId, Verdict};
use super::{Dir, HOME_LAYER, LeftOut, Tree};
use rustix::io::Errno;

/// An entry, and what opening it as a directory needs to know.
pub(super) struct Found {
    pub(super) attr: Attr,
    pub(super) layer: u8,
    pub(super) rule: Option<RuleId>,
    pub(super) hidden: bool,
    pub(super) made: bool,
    pub(super) mount_point: bool,
}

impl Found {
    fn new(attr: Attr, layer: u8) -> Self {
        Self { attr, layer, rule: None, hidden: false, made: false, mount_point: false }
    }

    /// A directory of the disk that the union rule has nothing to say about, nor about what is below.
    pub(super) fn is_plain(&self) -> bool {
        let directory = self.attr.kind == Kind::Directory && !self.made && !self.mount_point;
        directory && self.rule.is_none() && !self.hidden
    }
}

impl Tree {
    /// What `name` in `dir` is in the exported tree: the union rule.
    pub(super) fn find(
        &self,
        dir: &Dir,
        name: &[u8],
        left_out: &mut dyn FnMut(LeftOut),
    ) -> Result<Found, Errno> {
        let made_dir = || {
            Attr::made(
                &[&dir.0.path, b"/".as_slice(), name].concat(),
                Kind::Directory,
                0o755,
                &[],
                self.made,
            )
        };
        let verdict = self.rules.verdict(dir.0.rule, dir.0.hidden, name);
        let found = match verdict {
            Verdict::Hidden => return Err(Errno::NOENT),
            Verdict::Generated(i) => {
                let file = self.generated.get(i).ok_or(Errno::NOENT)?;
                Found::new(file.attr(self.made), dir.0.layer)
            }
            Verdict::Graft { rule } => {
                let home = self.home.as_ref().ok_or(Errno::NOENT)?;
                let attr = self.disk_attr(&layer::stat_fd(home.root())?, HOME_LAYER, 0, true);
                Found { rule: Some(rule), ..Found::new(attr, HOME_LAYER) }
            }
            Verdict::Made { rule, hidden } => Found {
                rule: Some(rule),
                hidden,
                made: true,
                ..Found::new(made_dir(), dir.0.layer)
            },
            Verdict::Way { rule } => match self.find_on_disk(dir, name, left_out) {
                Ok(found) if found.attr.kind == Kind::Directory => {
                    Found { rule: Some(rule), ..found }
                }
                _ => Found { rule: Some(rule), made: true, ..Found::new(made_dir(), dir.0.layer) },
            },
            Verdict::Disk => self.find_on_disk(dir, name, left_out)?,
            Verdict::DiskWith { rule, hidden } => {
                let found = self.find_on_disk(dir, name, left_out)?;
                if hidden && found.attr.kind != Kind::Directory {
                    return Err(Errno::NOENT);
                }
                Found { rule: Some(rule), hidden, ..found }
            }
        };
        if self.rules.excluded_by_user(&dir.0.path, name, found.attr.kind == Kind::Directory) {
            left_out(LeftOut::ByUser);
            return Err(Errno::NOENT);
        }
        Ok(found)
    }

    fn find_on_disk(
        &self,
        dir: &Dir,
        name: &[u8],
        left_out: &mut dyn FnMut(LeftOut),
    ) -> Result<Found, Errno> {
        let layer = dir.0.layer;
        let st = match layer::stat_at(dir.disk()?, name) {
            Ok(st) => st,
            Err(Errno::NOENT) => return Err(Errno::NOENT),
            Err(e) => {
                left_out(LeftOut::Unreadable(e));
                return Err(e);
            }
        };
        let mount_point = self.layer(layer).is_mount_point(dir.disk()?, name, &st);
        let kind = Kind::of(&st);
        if mount_point {
            left_out(LeftOut::MountPoint);
        }
        if kind == Kind::Socket {
            left_out(LeftOut::Socket);
        }
        if kind == Kind::Socket || (mount_point && kind != Kind::Directory) {
            return Err(Errno::NOENT);
        }
        if self.owners(layer).unshift(st.stx_uid, st.stx_gid).1 {
            left_out(LeftOut::ForeignOwner);
        }
        let attr = self.disk_attr(&st, layer, self.subvol(dir, layer, &st, name), false);
        Ok(Found { mount_point, ..Found::new(attr, layer) })
    }
}
