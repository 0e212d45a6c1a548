//! The readers, and archives to hand to them.

use std::convert::Infallible;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use codchifs::tar::{Kind, Layout, Link, Member, MemberId, Part, Source, read_at};

pub(crate) const LOCALES: [&str; 2] = ["C", "C.UTF-8"];

pub(crate) const PYTHON: &str = r#"
import sys, tarfile
archive = tarfile.open(fileobj=sys.stdin.buffer, mode="r|", encoding="utf-8", errors="surrogateescape")
raw = lambda text: text.encode("utf-8", "surrogateescape").hex()
for m in archive:
    print(raw(m.name), m.type.decode(), oct(m.mode)[2:], m.uid, m.gid, m.size, repr(m.mtime), raw(m.linkname),
          m.devmajor, m.devminor, raw(m.uname + m.gname))
"#;

/// Every byte of a body follows from the member and the offset.
pub(crate) struct Pattern;

pub(crate) fn pattern(member: MemberId, offset: u64) -> u8 {
    let mixed = (u64::from(member.0) << 40 ^ offset).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

impl<T> Source<T> for Pattern {
    type Error = Infallible;

    fn read_body(
        &self,
        _: &Layout<T>,
        member: MemberId,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), Infallible> {
        for (byte, at) in buf.iter_mut().zip(offset..) {
            *byte = pattern(member, at);
        }
        Ok(())
    }
}

/// Bodies of zeros, for sizes that take too long to fill.
pub(crate) struct Zeros;

impl<T> Source<T> for Zeros {
    type Error = Infallible;

    fn read_body(
        &self,
        _: &Layout<T>,
        _: MemberId,
        _: u64,
        buf: &mut [u8],
    ) -> Result<(), Infallible> {
        buf.fill(0);
        Ok(())
    }
}

pub(crate) fn member(name: &[u8], kind: Kind) -> Member<'_, ()> {
    Member {
        parent: None,
        name,
        kind,
        perm: if kind == Kind::Directory { 0o755 } else { 0o644 },
        uid: 1000,
        gid: 100,
        size: 0,
        extents: None,
        records: &[],
        mtime: (1_700_000_000, 0),
        link: Link::None,
        rdev: (0, 0),
        tag: (),
    }
}

/// Runs a reader on the archive, which it gets through a pipe, and answers what it printed.
///
/// The rest of the archive is drained once the reader has seen the end, as a shell's pipe would do it.
pub(crate) fn run<S>(
    layout: &Layout<()>,
    source: S,
    locale: &str,
    dir: &Path,
    argv: &[&str],
) -> Vec<u8>
where
    S: Source<(), Error = Infallible> + Sync + Send,
{
    let mut child = Command::new(argv[0])
        .args(&argv[1..])
        .env("LC_ALL", locale)
        .env("TZ", "UTC")
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{} must be installed: {error}", argv[0]));
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut buf = vec![0; 1 << 20];
            let mut offset = 0;
            loop {
                let Ok(len) = read_at(layout, &source, offset, &mut buf);
                if len == 0 || stdin.write_all(&buf[..len]).is_err() {
                    break;
                }
                offset += len as u64;
            }
        });
        child.wait_with_output().unwrap()
    });
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{argv:?} in {locale}: {stderr}");
    output.stdout
}

pub(crate) fn gnu(layout: &Layout<()>, locale: &str) -> Vec<u8> {
    let argv = ["tar", "--quoting-style=literal", "-tf", "-"];
    run(layout, Pattern, locale, Path::new("/"), &argv)
}

pub(crate) fn busybox(layout: &Layout<()>, locale: &str) -> Vec<u8> {
    run(layout, Pattern, locale, Path::new("/"), &["busybox", "tar", "-tf", "-"])
}

/// bsdtar writes what it cannot print with backslashes; this undoes it.
pub(crate) fn bsdtar(layout: &Layout<()>, locale: &str) -> Vec<u8> {
    let shown = run(layout, Pattern, locale, Path::new("/"), &["bsdtar", "-tf", "-"]);
    let mut raw = Vec::new();
    let mut bytes = shown.into_iter();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            raw.push(byte);
            continue;
        }
        raw.push(match bytes.next().unwrap() {
            b'a' => 7,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 11,
            b'\\' => b'\\',
            digit => [digit, bytes.next().unwrap(), bytes.next().unwrap()]
                .iter()
                .fold(0u32, |sum, digit| sum * 8 + u32::from(digit - b'0'))
                as u8,
        });
    }
    raw
}

/// One line per member: name, type, mode, uid, gid, size, mtime, link, major, minor, uname and gname; texts in hex.
pub(crate) fn python<S>(layout: &Layout<()>, source: S, locale: &str) -> Vec<String>
where
    S: Source<(), Error = Infallible> + Sync + Send,
{
    let shown = run(layout, source, locale, Path::new("/"), &["python3", "-c", PYTHON]);
    String::from_utf8(shown).unwrap().lines().map(str::to_owned).collect()
}

pub(crate) fn hex(text: &[u8]) -> String {
    text.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The archive's names as a listing shows them, one per line.
pub(crate) fn listing(layout: &Layout<()>) -> Vec<u8> {
    let mut lines = Vec::new();
    let mut path = Vec::new();
    for id in layout.iter() {
        layout.path(id, &mut path);
        lines.extend_from_slice(b"./");
        lines.extend_from_slice(&path);
        if layout.kind(id) == Kind::Directory {
            lines.push(b'/');
        }
        lines.push(b'\n');
    }
    lines
}

/// The longest name or link target, as shown in the archive, that busybox reads: it refuses the archive that has a
/// longer one ("bad archive").
pub(crate) const BUSYBOX_LONGEST: usize = 4094;

pub(crate) fn assert_names(layout: &Layout<()>, for_busybox: bool) {
    let names = listing(layout);
    for locale in LOCALES {
        let mut lists = vec![("tar", gnu(layout, locale)), ("bsdtar", bsdtar(layout, locale))];
        if for_busybox {
            lists.push(("busybox", busybox(layout, locale)));
        }
        for (reader, list) in lists {
            let (list, names) = (list.escape_ascii().to_string(), names.escape_ascii().to_string());
            assert_eq!(list, names, "{reader} in {locale}");
        }
        let mut path = Vec::new();
        let lines = python(layout, Pattern, locale);
        assert_eq!(lines.len(), layout.len(), "python3 in {locale}");
        for (id, line) in layout.iter().zip(lines) {
            layout.path(id, &mut path);
            let want = [b"./", path.as_slice()].concat();
            assert_eq!(line.split(' ').next(), Some(hex(&want).as_str()), "python3 in {locale}");
        }
    }
}

/// The archive as a sparse file: only headers are written, bodies are holes.
pub(crate) fn sparse(layout: &Layout<()>) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(layout.size()).unwrap();
    let mut offset = 0;
    while let Some(segment) = layout.find(offset) {
        if matches!(segment.part, Part::Header(_)) {
            let mut header = vec![0; segment.len as usize];
            let Ok(_) = read_at(layout, &Zeros, offset, &mut header);
            file.as_file().write_all_at(&header, offset).unwrap();
        }
        offset = segment.end();
    }
    file
}

/// Runs a reader on a file and answers its lines as words.
pub(crate) fn words(file: &Path, locale: &str, argv: &[&str]) -> Vec<Vec<String>> {
    let mut command = Command::new(argv[0]);
    command.args(&argv[1..]).arg(file).env("LC_ALL", locale).env("TZ", "UTC");
    let output = command.output().unwrap_or_else(|error| panic!("{}: {error}", argv[0]));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{argv:?} in {locale}: {stderr}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}
