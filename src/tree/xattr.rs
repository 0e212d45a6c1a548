//! Extended attributes: which ones are exported, and with whose ids. Pure.
//!
//! A POSIX ACL and a file capability have ids of their own, which are un-shifted like owners: else an ACL would admit
//! another user on the target, and a capability would be void there.
//!
//! Sources: linux/posix_acl_xattr.h, linux/capability.h (`struct vfs_ns_cap_data`); capabilities(7), "File
//! capabilities"; xattr(7).

use super::attr::Owners;
use crate::idmap::NOBODY;

/// One extended attribute as the exported tree has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xattr {
    /// The whole name, like `user.comment`.
    pub name: Box<[u8]>,
    /// Raw bytes; ids in it are the machine's.
    pub value: Box<[u8]>,
}

/// The ACL of a file.
pub const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
/// What a directory hands down.
pub const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";
const CAPABILITY: &[u8] = b"security.capability";

/// What becomes of an attribute, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Keep,
    Acl,
    Capability,
    /// Left out: of a kind that breaks readers or poisons the target.
    Drop(&'static str),
    /// Shown under another name already.
    Twin,
}

/// The kinds of attributes that are left out. The last is for what no rule names.
pub(super) fn fate(name: &[u8]) -> Fate {
    match name {
        // GNU tar prints names of attributes as they are. A name with a newline would forge lines of its listings, and an
        // escape sequence would reach a terminal. Bytes that are not UTF-8 are no such sequence, and every reader takes them.
        name if name.utf8_chunks().any(|chunk| chunk.valid().contains(char::is_control)) => {
            Fate::Drop("with control characters in their names")
        }
        ACL_ACCESS | ACL_DEFAULT => Fate::Acl,
        CAPABILITY => Fate::Capability,
        b"security.NTACL" => Fate::Keep,
        b"security.selinux" => Fate::Drop("security.selinux"),
        b"security.ima" => Fate::Drop("security.ima"),
        b"security.evm" => Fate::Drop("security.evm"),
        // How XFS keeps ACLs on the disk, with the host's ids.
        b"trusted.SGI_ACL_FILE" | b"trusted.SGI_ACL_DEFAULT" => Fate::Twin,
        name if name.starts_with(b"security.SMACK64") => Fate::Drop("security.SMACK*"),
        name if name.starts_with(b"user.") || name.starts_with(b"trusted.") => Fate::Keep,
        name if name.starts_with(b"btrfs.") => Fate::Drop("btrfs.*"),
        name if name.starts_with(b"system.") => Fate::Drop("system.*"),
        name if name.starts_with(b"security.") => Fate::Drop("security.*"),
        _ => Fate::Drop("other"),
    }
}

/// The value as the machine would see it, and whether an id in it had no place in the map; `None` if it is not of the
/// form that its name promises, which no system would have accepted.
pub(super) fn unshift(fate: Fate, value: &[u8], owners: &Owners) -> Option<(Box<[u8]>, bool)> {
    match fate {
        Fate::Keep => Some((value.into(), false)),
        Fate::Acl => acl(value, owners),
        Fate::Capability => capability(value, owners),
        Fate::Drop(_) | Fate::Twin => None,
    }
}

/// One entry of a POSIX ACL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AclEntry {
    /// `ACL_USER_OBJ` and friends of linux/posix_acl.h.
    pub tag: u16,
    /// Read 4, write 2, execute 1.
    pub perm: u16,
    /// Whom a named entry is for.
    pub id: u32,
}

/// Tags of an [`AclEntry`], from linux/posix_acl.h.
pub const ACL_USER: u16 = 0x02;
/// A group by its id.
pub const ACL_GROUP: u16 = 0x08;

/// The entries of an ACL in the form of its extended attribute; `None` if it has another one.
pub fn acl_entries(value: &[u8]) -> Option<Vec<AclEntry>> {
    let entries = value.strip_prefix(&2u32.to_le_bytes())?;
    let (entries, []) = entries.as_chunks::<8>() else { return None };
    let entry = |&[t0, t1, p0, p1, i0, i1, i2, i3]: &[u8; 8]| AclEntry {
        tag: u16::from_le_bytes([t0, t1]),
        perm: u16::from_le_bytes([p0, p1]),
        id: u32::from_le_bytes([i0, i1, i2, i3]),
    };
    Some(entries.iter().map(entry).collect())
}

fn acl(value: &[u8], owners: &Owners) -> Option<(Box<[u8]>, bool)> {
    let mut foreign = false;
    let mut entries: Vec<AclEntry> = Vec::new();
    for mut entry in acl_entries(value)? {
        let named = matches!(entry.tag, ACL_USER | ACL_GROUP);
        if named {
            let id = match entry.tag {
                ACL_USER => owners.uid(entry.id),
                _ => owners.gid(entry.id),
            };
            foreign |= id.is_none();
            entry.id = id.unwrap_or(NOBODY);
        }
        // Two that became one id: setfacl and libacl refuse a second entry for it.
        let twin = |e: &&mut AclEntry| named && (e.tag, e.id) == (entry.tag, entry.id);
        match entries.iter_mut().find(twin) {
            Some(first) => first.perm |= entry.perm,
            None => entries.push(entry),
        }
    }
    let mut out = 2u32.to_le_bytes().to_vec();
    for entry in entries {
        out.extend_from_slice(&entry.tag.to_le_bytes());
        out.extend_from_slice(&entry.perm.to_le_bytes());
        out.extend_from_slice(&entry.id.to_le_bytes());
    }
    Some((out.into(), foreign))
}

/// `VFS_CAP_REVISION_2` and `_3`; the low byte has the flag "effective".
const REVISION: u32 = 0xff00_0000;
const REVISION_1: u32 = 0x0100_0000;
const REVISION_2: u32 = 0x0200_0000;
const REVISION_3: u32 = 0x0300_0000;

/// Revision 3 is 2 with the id of the root for whom it counts. For the machine's own root it is 2: that is what the
/// machine sees, and what counts on the target.
fn capability(value: &[u8], owners: &Owners) -> Option<(Box<[u8]>, bool)> {
    let (magic, rest) = value.split_first_chunk::<4>()?;
    let magic = u32::from_le_bytes(*magic);
    match (magic & REVISION, rest.len()) {
        (REVISION_1, 8) | (REVISION_2, 16) => Some((value.into(), false)),
        (REVISION_3, 20) => {
            let (sets, root) = rest.split_last_chunk::<4>()?;
            let root = owners.root(u32::from_le_bytes(*root));
            let out = match root {
                Some(0) => [&(magic & !REVISION | REVISION_2).to_le_bytes(), sets].concat(),
                _ => [&magic.to_le_bytes(), sets, &root.unwrap_or(NOBODY).to_le_bytes()].concat(),
            };
            Some((out.into(), root.is_none()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::idmap::IdMap;

    fn map() -> Owners {
        let json = r#"[{"Isuid":true,"Isgid":true,"Hostid":1000,"Nsid":0,"Maprange":1},
            {"Isuid":true,"Isgid":true,"Hostid":100001,"Nsid":1,"Maprange":65535}]"#;
        Owners::Mapped(IdMap::parse(json).unwrap().unwrap())
    }

    fn acl_of(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut out = 2u32.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            out.extend(tag.to_le_bytes());
            out.extend(perm.to_le_bytes());
            out.extend(id.to_le_bytes());
        }
        out
    }

    #[test]
    fn ids_of_an_acl_are_the_machines() {
        const NONE: u32 = u32::MAX;
        let of = |entries: &[(u16, u16, u32)]| {
            let (value, foreign) = unshift(Fate::Acl, &acl_of(entries), &map()).unwrap();
            let entries = acl_entries(&value).unwrap();
            (entries.iter().map(|e| (e.tag, e.perm, e.id)).collect::<Vec<_>>(), foreign)
        };
        let shifted = [(1, 6, NONE), (2, 6, 1000), (2, 4, 100071), (4, 4, NONE), (8, 5, 100100)];
        let machines = vec![(1, 6, NONE), (2, 6, 0), (2, 4, 71), (4, 4, NONE), (8, 5, 100)];
        assert_eq!(of(&shifted), (machines, false));
        let foreign = [(2, 4, 5), (2, 2, 6), (8, 1, 5)];
        assert_eq!(of(&foreign), (vec![(2, 6, NOBODY), (8, 1, NOBODY)], true));
        for bad in [&b""[..], b"\x02\0\0", b"\x01\0\0\0", b"\x02\0\0\0odd"] {
            assert_eq!(unshift(Fate::Acl, bad, &map()), None);
        }
    }

    #[test]
    fn a_capability_of_the_machines_root_has_no_root() {
        let sets = [7u8; 16];
        let v3 =
            |root: u32| [&0x0300_0001u32.to_le_bytes(), &sets[..], &root.to_le_bytes()].concat();
        let v2 = [&0x0200_0001u32.to_le_bytes(), &sets[..]].concat();
        let of = |value: &[u8], owners: &Owners| {
            let (value, foreign) = unshift(Fate::Capability, value, owners).unwrap();
            (value.into_vec(), foreign)
        };
        assert_eq!(of(&v3(1000), &map()), (v2.clone(), false));
        assert_eq!(of(&v3(100_005), &map()), (v3(5), false));
        assert_eq!(of(&v3(7), &map()), (v3(NOBODY), true));
        assert_eq!(of(&v3(0), &Owners::AsOnDisk), (v2.clone(), false));
        assert_eq!(of(&v2, &map()), (v2.clone(), false));
        assert_eq!(unshift(Fate::Capability, &v2[..19], &map()), None);
    }

    #[test]
    fn each_name_has_its_fate() {
        const CONTROL: Fate = Fate::Drop("with control characters in their names");
        for (name, expected) in [
            (&b"user.a"[..], Fate::Keep),
            (b"trusted.overlay.opaque", Fate::Keep),
            (b"security.NTACL", Fate::Keep),
            (b"trusted.SGI_ACL_FILE", Fate::Twin),
            (b"security.SMACK64EXEC", Fate::Drop("security.SMACK*")),
            (b"btrfs.compression", Fate::Drop("btrfs.*")),
            (b"system.nfs4_acl", Fate::Drop("system.*")),
            (b"security.apparmor", Fate::Drop("security.*")),
            (b"os2.x", Fate::Drop("other")),
            (b"user.a\n", CONTROL),
            (b"user.\x1b[2J\xff", CONTROL),
            ("user.\u{9b}2J".as_bytes(), CONTROL),
            (b"trusted.\x7f", CONTROL),
            (b"user.a b\xff\x9b\"'", Fate::Keep),
            ("user.\u{fc}".as_bytes(), Fate::Keep),
        ] {
            assert_eq!(fate(name), expected, "{name:?}");
        }
    }
}
