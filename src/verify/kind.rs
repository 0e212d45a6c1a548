//! What a file is that is no archive of codchifs, by what it begins with.

use crate::tar::ustar;

/// What people do about it.
const OTHER_TAR: &str = "extract it, and compare the directory";

/// By the first bytes of each kind: what it is, and what to do.
const KINDS: [(&[u8], &str, &str); 24] = [
    (b"\x1f\x8b", "compressed with gzip", "gzip -dc FILE | codchifs verify NAME -"),
    (b"\xfd7zXZ\0", "compressed with xz", "xz -dc FILE | codchifs verify NAME -"),
    (b"BZh", "compressed with bzip2", "bzip2 -dc FILE | codchifs verify NAME -"),
    (b"\x04\x22\x4d\x18", "compressed with lz4", "lz4 -dc FILE | codchifs verify NAME -"),
    (b"LZIP", "compressed with lzip", "lzip -dc FILE | codchifs verify NAME -"),
    (b"]\0\0", "compressed with lzma", "xz -dc FILE | codchifs verify NAME -"),
    (b"\x89LZO", "compressed with lzop", "lzop -dc FILE | codchifs verify NAME -"),
    (b"PK\x03\x04", "a zip archive", ""),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x -so FILE | codchifs verify NAME -"),
    (b"Rar!", "a RAR archive", ""),
    (b"070701", "a cpio archive", ""),
    (b"070707", "a cpio archive", ""),
    (b"!<arch>\n", "a package of Debian, or another ar archive", ""),
    (b"hsqs", "a squashfs image", "mount it, and compare the directory"),
    (b"QFI\xfb", "an image of a disk (qcow2)", "mount it, and compare the directory"),
    (b"KDMV", "an image of a disk (VMDK)", "mount it, and compare the directory"),
    (b"vhdxfile", "an image of a disk (VHDX)", "mount it, and compare the directory"),
    (b"\x7fELF", "a program", ""),
    (b"#mtree", "a manifest", "give it as --manifest FILE"),
    (b"#!", "a script", ""),
    (b"SQLite format 3\0", "a database of SQLite", ""),
    (b"age-encryption.org/", "encrypted with age", "age -d FILE | codchifs verify NAME -"),
    (b"-----BEGIN PGP", "encrypted with GnuPG", "gpg -d FILE | codchifs verify NAME -"),
    (b"BORG_", "a part of a repository of borg", "let borg export the tar"),
];

/// What a file that begins with `start` is, in words with what to do, if that is anything that is known.
pub(super) fn of(start: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(start);
    let lower = text.trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']).to_ascii_lowercase();
    let web = ["<!doctype", "<html", "<?xml", "<head"].iter().any(|tag| lower.starts_with(tag));
    if web {
        return Some("a web page: the download got something else than the archive".into());
    }
    if let Some((_, what, remedy)) = KINDS.iter().find(|(magic, ..)| start.starts_with(magic)) {
        return Some(match remedy.is_empty() {
            true => (*what).to_owned(),
            false => format!("{what}; {remedy}"),
        });
    }
    // The boot sector of a disk.
    if start.get(510..512) == Some(&[0x55, 0xaa]) {
        return Some("an image of a disk; mount it, and compare the directory".into());
    }
    if is_old_tar(start) {
        return Some(format!("a tar of another program, of a form that is older; {OTHER_TAR}"));
    }
    let plain = |c: char| !c.is_control() || matches!(c, '\n' | '\r' | '\t');
    // The last character may be cut in two.
    let whole = text.trim_end_matches('\u{fffd}');
    let is_text = !whole.is_empty() && !whole.contains('\u{fffd}') && whole.chars().all(plain);
    is_text.then(|| "a text file".to_owned())
}

/// A header without the letters `ustar` (the tar of Unix V7).
fn is_old_tar(start: &[u8]) -> bool {
    let Ok(block) = start.try_into() else { return false };
    let told = ustar::get(block, ustar::CHECKSUM).iter().copied();
    let digits: Vec<u8> = told.filter(u8::is_ascii_digit).collect();
    let told = str::from_utf8(&digits).ok().and_then(|digits| u32::from_str_radix(digits, 8).ok());
    start.first() != Some(&0) && told == Some(ustar::checksum(block))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_like_something_is_called_so() {
        for (start, words) in [
            (&b"\x1f\x8b\x08\0"[..], Some("gzip")),
            (b"  <!DOCTYPE html>", Some("web page")),
            ("\u{feff}<HTML>".as_bytes(), Some("web page")),
            (b"total 0\n-rw-r--r-- 1 root root\n", Some("text file")),
            (b"\xc3\xa4\xc3", Some("text file")),
            (b"{\"schema\": 1}", Some("text file")),
            (b"#mtree v2.0\n", Some("--manifest")),
            (b"QFI\xfb\0\0\0\x03", Some("qcow2")),
            (b"\0\x01\x02", None),
            (b"\xff\xff\xff", None),
            (b"", None),
            (b"./srv/\0\0\0", None),
        ] {
            let found = of(start);
            match words {
                Some(words) => {
                    assert!(found.as_ref().is_some_and(|f| f.contains(words)), "{found:?}")
                }
                None => assert_eq!(found, None),
            }
        }
    }
}
