//! Python's tarfile: extracts, and shows what the archive says.

use crate::common::xattr::{self, Xattrs};
use crate::common::{program, run};
use std::collections::BTreeMap;
use std::path::Path;

/// With a second argument, all members; else without further names of symbolic links.
const EXTRACT: &str = "
import sys, tarfile
kind = {'filter': 'fully_trusted'} if hasattr(tarfile, 'fully_trusted_filter') else {}
with tarfile.open(sys.argv[1], 'r:', errorlevel=2) as archive:
    links = {member.name for member in archive if member.issym() and len(sys.argv) == 3}
    members = [member for member in archive if not (member.islnk() and member.linkname in links)]
    archive.extractall(sys.argv[2], members, numeric_owner=True, **kind)
";

/// One line per pax record: name of the member, key, value, in hex.
const RECORDS: &str = "
import sys, tarfile
raw = lambda text: text.encode('utf-8', 'surrogateescape').hex()
with tarfile.open(sys.argv[1], 'r:', encoding='utf-8') as archive:
    for member in archive:
        for key, value in member.pax_headers.items():
            print(raw(member.name), raw(key), raw(value), sep=',')
";

/// Without further names of symbolic links.
#[track_caller]
pub(crate) fn extract(archive: &Path, to: &Path) {
    run(program("python3", ["-c", EXTRACT]).arg(archive).arg(to)).silent();
}

/// All of it: for archives whose links lead nowhere but into the test.
#[track_caller]
pub(crate) fn extract_all(archive: &Path, to: &Path) {
    run(program("python3", ["-c", EXTRACT]).arg(archive).arg(to).arg("all")).silent();
}

/// Keys and values of a pax header.
pub(crate) type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// Records of each member that has some, by its path without `./`.
pub(crate) fn records(archive: &Path) -> BTreeMap<Vec<u8>, Records> {
    let done = run(program("python3", ["-c", RECORDS]).arg(archive)).ok();
    let mut members: BTreeMap<_, Records> = BTreeMap::new();
    for line in done.out().lines() {
        let fields: Vec<Vec<u8>> = line.split(',').map(unhex).collect();
        let [path, key, value] = <[_; 3]>::try_from(fields).unwrap();
        let path = path.strip_prefix(b"./").unwrap_or(&path).to_vec();
        members.entry(path).or_default().insert(key, value);
    }
    members
}

/// The extended attributes and ACLs that records stand for.
pub(crate) fn xattrs(records: &Records) -> Xattrs {
    let mut xattrs = Xattrs::new();
    for (key, value) in records {
        let text = || std::str::from_utf8(value).unwrap();
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            xattrs.insert(decoded(name), value.clone());
        } else if key == b"SCHILY.acl.access" {
            xattrs.insert(xattr::ACCESS.to_vec(), xattr::acl_of_text(text()));
        } else if key == b"SCHILY.acl.default" {
            xattrs.insert(xattr::DEFAULT.to_vec(), xattr::acl_of_text(text()));
        }
    }
    xattrs
}

/// A keyword ends at the first `=`, so GNU tar writes it as `%3D`, and `%` as `%25`.
fn decoded(name: &[u8]) -> Vec<u8> {
    let mut rest = name;
    let mut bytes = Vec::new();
    while let [first, tail @ ..] = rest {
        (rest, bytes) = match rest {
            [b'%', b'3', b'D', tail @ ..] => (tail, [&bytes[..], b"="].concat()),
            [b'%', b'2', b'5', tail @ ..] => (tail, [&bytes[..], b"%"].concat()),
            _ => (tail, [&bytes[..], &[*first]].concat()),
        };
    }
    bytes
}

/// Seconds and nanoseconds of a record like `-1.500000000`.
pub(crate) fn time(text: &[u8]) -> (i64, u32) {
    let text = std::str::from_utf8(text).unwrap();
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let nanos: u32 = format!("{fraction:0<9}").parse().unwrap();
    let seconds: i64 = seconds.parse().unwrap();
    match (text.starts_with('-'), nanos) {
        (true, 1..) => (seconds - 1, 1_000_000_000 - nanos),
        _ => (seconds, nanos),
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |b: u8| char::from(b).to_digit(16).unwrap() as u8;
    text.as_bytes().chunks(2).map(|pair| digit(pair[0]) * 16 + digit(pair[1])).collect()
}
