//! Extended attributes and ACLs as PAX records.
//!
//! `SCHILY.xattr.NAME` has the raw value. An ACL is text, as in acl(5), with numeric ids: names would be looked up on the
//! target, where they may be missing or somebody else's. Each entry has three fields (`user:71:rw-`); a fourth one for the
//! id is star's, and not every reader knows it. In a keyword GNU tar writes and reads `=` as `%3D` and `%` as `%25`.

use crate::tree::{ACL_ACCESS, ACL_DEFAULT, ACL_GROUP, ACL_USER, AclEntry, Xattr, acl_entries};

/// The records of a member, in the order of the attributes' names.
pub fn records(xattrs: &[Xattr]) -> Vec<(Vec<u8>, Vec<u8>)> {
    xattrs
        .iter()
        .filter_map(|xattr| {
            let acl = || acl_entries(&xattr.value).map(|entries| acl_text(&entries).into_bytes());
            Some(match &*xattr.name {
                ACL_ACCESS => (b"SCHILY.acl.access".to_vec(), acl()?),
                ACL_DEFAULT => (b"SCHILY.acl.default".to_vec(), acl()?),
                name => (keyword(name), xattr.value.to_vec()),
            })
        })
        .collect()
}

fn keyword(name: &[u8]) -> Vec<u8> {
    let mut out = b"SCHILY.xattr.".to_vec();
    for byte in name {
        match byte {
            b'%' => out.extend_from_slice(b"%25"),
            b'=' => out.extend_from_slice(b"%3D"),
            byte => out.push(*byte),
        }
    }
    out
}

/// The name of the attribute that a keyword stands for; `None` if it is an ACL's.
pub fn attribute(keyword: &[u8]) -> Option<Vec<u8>> {
    let mut rest = keyword.strip_prefix(b"SCHILY.xattr.")?;
    let mut name = Vec::with_capacity(rest.len());
    while let Some((byte, tail)) = rest.split_first() {
        let (byte, tail) = match (byte, tail) {
            (b'%', [b'2', b'5', tail @ ..]) => (b'%', tail),
            (b'%', [b'3', b'D', tail @ ..]) => (b'=', tail),
            _ => (*byte, tail),
        };
        name.push(byte);
        rest = tail;
    }
    Some(name)
}

/// Tags of linux/posix_acl.h that name nobody.
const USER_OBJ: u16 = 0x01;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;

fn acl_text(entries: &[AclEntry]) -> String {
    let text = |entry: &AclEntry| {
        let flag = |bit, letter| if entry.perm & bit != 0 { letter } else { '-' };
        let who = match entry.tag {
            USER_OBJ => "user:".to_owned(),
            ACL_USER => format!("user:{}", entry.id),
            GROUP_OBJ => "group:".to_owned(),
            ACL_GROUP => format!("group:{}", entry.id),
            MASK => "mask:".to_owned(),
            _ => "other:".to_owned(),
        };
        format!("{who}:{}{}{}", flag(4, 'r'), flag(2, 'w'), flag(1, 'x'))
    };
    entries.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acl_is_text_with_numbers() {
        let entry = |tag, perm, id| AclEntry { tag, perm, id };
        let entries = [
            entry(1, 6, u32::MAX),
            entry(2, 6, 71),
            entry(4, 4, u32::MAX),
            entry(8, 5, 100),
            entry(16, 7, u32::MAX),
            entry(32, 0, u32::MAX),
        ];
        assert_eq!(
            acl_text(&entries),
            "user::rw-,user:71:rw-,group::r--,group:100:r-x,mask::rwx,other::---"
        );
    }

    #[test]
    fn an_equals_sign_in_a_name_ends_no_keyword() {
        let xattr = Xattr { name: (*b"user.a=b%").into(), value: (*b"=\n\0").into() };
        assert_eq!(attribute(b"SCHILY.xattr.user.a%3Db%25"), Some(b"user.a=b%".to_vec()));
        assert_eq!(attribute(b"SCHILY.acl.access"), None);
        let expected = (b"SCHILY.xattr.user.a%3Db%25".to_vec(), b"=\n\0".to_vec());
        assert_eq!(records(&[xattr]), [expected]);
    }
}
