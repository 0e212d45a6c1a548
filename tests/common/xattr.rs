//! Extended attributes, ACLs and capabilities as the disk holds them.

use rustix::fs::{XattrFlags, lgetxattr, llistxattr, lsetxattr};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

pub(crate) const ACCESS: &[u8] = b"system.posix_acl_access";
pub(crate) const DEFAULT: &[u8] = b"system.posix_acl_default";
pub(crate) const CAPABILITY: &[u8] = b"security.capability";

/// Names and values.
pub(crate) type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// A path for system calls that take no descriptor, of any depth: the entry `name` of an open directory.
pub(crate) fn at(dir: impl AsFd, name: &[u8]) -> PathBuf {
    Path::new(&format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd())).join(OsStr::from_bytes(name))
}

/// Everything listxattr(2) names, of the entry itself if it is a link.
pub(crate) fn read(path: &Path) -> Result<Xattrs, Errno> {
    let mut names = vec![0_u8; 64 << 10];
    let length = match llistxattr(path, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => return Ok(Xattrs::new()),
        // The kernel has room for 64 KiB of names, and files that have more.
        other => other?,
    };
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut all = Xattrs::new();
    let mut value = vec![0_u8; 64 << 10];
    for name in names {
        let length = lgetxattr(path, name, &mut value[..])?;
        all.insert(name.to_vec(), value[..length].to_vec());
    }
    Ok(all)
}

pub(crate) fn set(path: &Path, name: &[u8], value: &[u8]) -> Result<(), Errno> {
    lsetxattr(path, name, value, XattrFlags::empty())
}

/// One entry of an ACL: `u`, `g` with an id, `U`, `G`, `m`, `o` without one; and its permissions.
pub(crate) type Ace = (char, u32, u8);

/// The bytes of `system.posix_acl_*`; entries must come as the kernel sorts them.
pub(crate) fn acl(entries: &[Ace]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, id, perm) in entries {
        let (tag, id) = match tag {
            'U' => (1_u16, u32::MAX),
            'u' => (2, *id),
            'G' => (4, u32::MAX),
            'g' => (8, *id),
            'm' => (0x10, u32::MAX),
            'o' => (0x20, u32::MAX),
            other => panic!("no ACL entry is {other}"),
        };
        bytes.extend(tag.to_le_bytes());
        bytes.extend(u16::from(*perm).to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// What an archive says of an ACL: `user::rw-,user:71:r--,...`, as bytes of `system.posix_acl_*`. Anything but numeric
/// ids and three fields fails.
pub(crate) fn acl_of_text(text: &str) -> Vec<u8> {
    let entries: Vec<Ace> = text
        .split(',')
        .map(|entry| {
            let fields: Vec<&str> = entry.split(':').collect();
            let [kind, id, perm] = fields[..] else { panic!("{entry:?} has no three fields") };
            let perm = perm.chars().zip("rwx".chars()).fold(0, |bits, (have, want)| {
                assert!(have == want || have == '-', "{entry:?}");
                bits * 2 + u8::from(have == want)
            });
            let id = (!id.is_empty()).then(|| id.parse().unwrap_or_else(|_| panic!("{entry:?}")));
            match (kind, id) {
                ("user", None) => ('U', 0, perm),
                ("user", Some(id)) => ('u', id, perm),
                ("group", None) => ('G', 0, perm),
                ("group", Some(id)) => ('g', id, perm),
                ("mask", None) => ('m', 0, perm),
                ("other", None) => ('o', 0, perm),
                _ => panic!("{entry:?} is no entry of an ACL"),
            }
        })
        .collect();
    acl(&entries)
}

/// The bytes of `security.capability`: permitted and effective, version 3 with the id of a root, else version 2.
pub(crate) fn capability(permitted: u64, root: Option<u32>) -> Vec<u8> {
    const EFFECTIVE: u32 = 1;
    let version = if root.is_some() { 0x0300_0000_u32 } else { 0x0200_0000 } | EFFECTIVE;
    let mut bytes = version.to_le_bytes().to_vec();
    for half in [permitted as u32, (permitted >> 32) as u32] {
        bytes.extend(half.to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
    }
    bytes.extend(root.into_iter().flat_map(u32::to_le_bytes));
    bytes
}

/// How xfs shows ACLs once more, with the ids that the disk has; set on another file system they are junk, and on xfs
/// they change its ACL.
pub(crate) const ACLS_OF_XFS: [&[u8]; 2] = [b"trusted.SGI_ACL_FILE", b"trusted.SGI_ACL_DEFAULT"];

/// Whether the process behind a mount sees an attribute: the kernel shows `trusted.*` to administrators alone.
pub(crate) fn is_seen_by_a_mount(name: &[u8]) -> bool {
    !name.starts_with(b"trusted.")
}

/// Whether the export keeps an attribute: the contract's list, typed in once more.
pub(crate) fn is_kept(name: &[u8]) -> bool {
    let kind = name.starts_with(b"user.")
        || (name.starts_with(b"trusted.") && !ACLS_OF_XFS.contains(&name))
        || [ACCESS, DEFAULT, CAPABILITY, b"security.NTACL"].contains(&name);
    // C0 and DEL are single bytes in UTF-8, C1 begins with 0xc2; alone, these bytes are no characters.
    let controls = String::from_utf8_lossy(name).contains(char::is_control);
    kind && !controls
}
