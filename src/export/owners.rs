//! `/etc/nixos/codchi-owners`: the names of the ids that own something in an export.
//!
//! NixOS gives most services an id at their first start and remembers it in `/var/lib/nixos`, which is not exported, as
//! the target has its own. So what a service owns here may be another one's there, until it is renumbered by this list.

use crate::accounts;
use std::collections::{BTreeMap, BTreeSet};

/// Ids that mean the same in every NixOS machine of Codchi: root, the group `users`, the user `codchi`, nobody.
const FIXED: [u32; 4] = [0, 100, 1000, crate::idmap::NOBODY];

/// Whether an id means the same in the machine and on every other NixOS.
pub(super) fn is_fixed(id: u32) -> bool {
    FIXED.contains(&id)
}

/// Who owns the members of an archive.
#[derive(Debug, Default)]
pub(super) struct Ids {
    users: BTreeSet<u32>,
    groups: BTreeSet<u32>,
}

impl Ids {
    pub(super) fn add(&mut self, uid: u32, gid: u32) {
        self.users.insert(uid);
        self.groups.insert(gid);
    }

    pub(super) fn append(&mut self, mut other: Self) {
        self.users.append(&mut other.users);
        self.groups.append(&mut other.groups);
    }

    /// One line `user NAME ID` or `group NAME ID` for each id, sorted; `?` for one that the machine's passwd or group
    /// has no name for.
    pub(super) fn render(&self, passwd: &[u8], group: &[u8]) -> String {
        let mut lines = BTreeSet::new();
        for (kind, ids, file) in [("user", &self.users, passwd), ("group", &self.groups, group)] {
            let names = names(file);
            for id in ids.iter().filter(|id| !is_fixed(**id)) {
                lines.insert(format!("{kind} {} {id}\n", names.get(id).unwrap_or(&"?")));
            }
        }
        lines.into_iter().collect()
    }
}

/// Names by id, of a passwd(5) or group(5); the first one of an id counts, as for getpwuid(3).
fn names(file: &[u8]) -> BTreeMap<u32, &str> {
    let mut names = BTreeMap::new();
    for line in accounts::lines(file) {
        if let Some(name) = str::from_utf8(line.name).ok().filter(|name| is_name(name)) {
            names.entry(line.id).or_insert(name);
        }
    }
    names
}

/// Whether a name stays one word of a line that a shell reads on the target. The machine may have written anything.
fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '$');
    !name.is_empty() && !name.starts_with('-') && name.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_but_the_fixed_ones_has_a_line() {
        let mut ids = Ids::default();
        for (uid, gid) in [(0, 0), (1000, 100), (71, 71), (999, 26), (65534, 65534), (300, 7)] {
            ids.add(uid, gid);
        }
        let passwd = b"root:x:0:0::/:/bin/sh\npostgres:x:71:71::/:\nlater:x:71:1::/:\n$(rm -rf):x:999:1::/:\nno id\n\xff:x:300:1\n";
        let group = b"postgres:x:71:\ndialout:x:26:\n";
        assert_eq!(
            ids.render(passwd, group),
            "group ? 7\ngroup dialout 26\ngroup postgres 71\nuser ? 300\nuser ? 999\nuser postgres 71\n"
        );
        assert_eq!(Ids::default().render(passwd, group), "");
    }
}
