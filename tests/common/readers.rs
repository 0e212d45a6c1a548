//! Programs nobody here wrote that read tars.

use super::{program, run};
use std::path::Path;

/// A tar reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    Gnu,
    Bsd,
    Python,
}

pub(crate) const READERS: [Reader; 3] = [Reader::Gnu, Reader::Bsd, Reader::Python];

pub(crate) const LOCALES: [&str; 2] = ["C", "C.UTF-8"];

const PYTHON_LIST: &str = "
import sys, tarfile
for member in tarfile.open(sys.argv[1], 'r:'):
    print(member.name.encode(sys.getfilesystemencoding(), 'surrogateescape').hex())
";

const PYTHON_EXTRACT: &str = "
import sys, tarfile
kind = {'filter': 'fully_trusted'} if hasattr(tarfile, 'fully_trusted_filter') else {}
with tarfile.open(sys.argv[1], 'r:', errorlevel=2) as archive:
    archive.extractall(sys.argv[2], numeric_owner=True, **kind)
";

impl Reader {
    /// Names of all members in order, raw, without the leading `./` and a directory's last slash.
    pub(crate) fn list(self, archive: &Path, locale: &str) -> Vec<Vec<u8>> {
        let (members, warnings) = self.list_and_warnings(archive, locale);
        assert_eq!(warnings, "", "warnings of {self:?} in {locale}");
        members
    }

    /// Fails unless `copy`, of an archive of `size` bytes, lacks no more than the last page, and every reader gets to its
    /// end. Returns its members; puts the page, which is all zeros, in its place.
    #[track_caller]
    pub(crate) fn check_torn(copy: &Path, size: u64) -> Vec<Vec<u8>> {
        let copied = std::fs::metadata(copy).unwrap().len();
        let last_page = (size / 4096 - 1) * 4096;
        assert!([size, last_page].contains(&copied), "{copied} bytes of {size} were copied");
        let members = Self::check_listed(copy);
        std::fs::File::options().write(true).open(copy).unwrap().set_len(size).unwrap();
        members
    }

    /// Fails unless every reader gets to the end of an archive that may lack its last page, and meets the same members.
    #[track_caller]
    pub(crate) fn check_listed(copy: &Path) -> Vec<Vec<u8>> {
        let lists = READERS.map(|reader| {
            let (members, warnings) = reader.list_and_warnings(copy, "C");
            // The other zero block was in the page.
            let lone = |line: &str| line.starts_with("tar: A lone zero block at ");
            assert!(warnings.lines().all(lone), "{reader:?}: {warnings}");
            members
        });
        assert!(lists.iter().all(|list| *list == lists[0]), "the readers list different members");
        lists[0].clone()
    }

    fn list_and_warnings(self, archive: &Path, locale: &str) -> (Vec<Vec<u8>>, String) {
        let mut command = match self {
            Self::Gnu => program("tar", ["--quoting-style=escape", "-tf"]),
            Self::Bsd => program("bsdtar", ["-tf"]),
            Self::Python => program("python3", ["-c", PYTHON_LIST]),
        };
        let done = run(command.arg(archive).env("LC_ALL", locale)).ok();
        let lines = done.stdout.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        let members = lines
            .map(|line| if self == Self::Python { unhex(line) } else { unescape(line) })
            .map(|name| {
                let name = name.strip_suffix(b"/").unwrap_or(&name);
                name.strip_prefix(b"./").unwrap_or(name).to_vec()
            })
            .collect();
        (members, done.err())
    }

    /// Extracts everything, with owners and modes.
    pub(crate) fn extract(self, archive: &Path, directory: &Path, locale: &str) {
        let mut command = match self {
            Self::Gnu => program("tar", ["--numeric-owner", "--warning=no-timestamp", "-xpf"]),
            Self::Bsd => program("bsdtar", ["--numeric-owner", "-xpf"]),
            Self::Python => program("python3", ["-c", PYTHON_EXTRACT]),
        };
        command.arg(archive).env("LC_ALL", locale);
        if self != Self::Python {
            command.arg("-C");
        }
        run(command.arg(directory)).silent();
    }
}

fn unhex(line: &[u8]) -> Vec<u8> {
    let digit = |b: u8| char::from(b).to_digit(16).unwrap() as u8;
    line.chunks(2).map(|pair| digit(pair[0]) * 16 + digit(pair[1])).collect()
}

/// `\n`, `\\`, `\ooo` and the like, as GNU tar and bsdtar print what a terminal should not see.
fn unescape(line: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = line;
    while let [byte, tail @ ..] = rest {
        rest = tail;
        match (*byte, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                bytes.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = tail;
            }
            (b'\\', [letter, tail @ ..]) => {
                bytes.push(match letter {
                    b'a' => 7,
                    b'b' => 8,
                    b't' => b'\t',
                    b'n' => b'\n',
                    b'v' => 11,
                    b'f' => 12,
                    b'r' => b'\r',
                    b'?' => 0x7f,
                    other => *other,
                });
                rest = tail;
            }
            (byte, _) => bytes.push(byte),
        }
    }
    bytes
}
