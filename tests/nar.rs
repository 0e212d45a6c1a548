//! The archive of a store path is the one that nix makes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use codchifs::nar::{Layout, LayoutBuilder, Node, Source, read_at};
use common::run;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The files of a store path, read where the layout says.
struct OnDisk(PathBuf);

impl Source for OnDisk {
    type Error = io::Error;

    fn read_body(
        &self,
        layout: &Layout,
        entry: u32,
        offset: u64,
        buf: &mut [u8],
    ) -> io::Result<()> {
        let path = layout.path(entry);
        let path =
            if path.is_empty() { self.0.clone() } else { self.0.join(OsStr::from_bytes(&path)) };
        File::open(path)?.read_exact_at(buf, offset)
    }
}

fn push(path: &Path, name: &[u8], builder: &mut LayoutBuilder) {
    let meta = path.symlink_metadata().unwrap();
    if meta.is_symlink() {
        builder
            .push(name, Node::Symlink(path.read_link().unwrap().as_os_str().as_bytes()))
            .unwrap();
    } else if meta.is_file() {
        let executable = meta.permissions().mode() & 0o100 != 0;
        builder.push(name, Node::File { size: meta.len(), executable }).unwrap();
    } else {
        builder.push(name, Node::Directory).unwrap();
        let mut entries: Vec<_> =
            fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name()).collect();
        entries.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        entries.iter().for_each(|name| push(&path.join(name), name.as_bytes(), builder));
        builder.close().unwrap();
    }
}

/// The archive of `path`, read in blocks of a size that divides nothing.
fn archive(path: &Path) -> Vec<u8> {
    let mut builder = LayoutBuilder::default();
    push(path, b"", &mut builder);
    let layout = builder.finish().unwrap();
    let source = OnDisk(path.to_owned());
    let (mut whole, mut block) = (Vec::new(), vec![0; 4099]);
    loop {
        let count = read_at(&layout, &source, whole.len() as u64, &mut block).unwrap();
        if count == 0 {
            break;
        }
        whole.extend_from_slice(&block[..count]);
    }
    assert_eq!(layout.size(), whole.len() as u64);
    whole
}

/// One of everything that a store path can be made of, and what only looks special.
fn one_of_everything(top: &Path) {
    let at = |name: &[u8]| top.join(OsStr::from_bytes(name));
    for dir in [&b"empty"[..], b"a", b"a/b", b"a/b/c", b"a/b/c/d"] {
        fs::create_dir_all(at(dir)).unwrap();
    }
    for (name, content) in [
        (&b"nothing"[..], vec![]),
        (b"eight", b"12345678".to_vec()),
        (b"nine", b"123456789".to_vec()),
        (b"large", (0..3_000_001u32).map(|n| (n >> 7) as u8).collect()),
        (b"a/b/c/d/deep", b"x".to_vec()),
        // Byte order is not the order of any locale, and a slash does not count.
        (b"a.b", b"1".to_vec()),
        (b"a0", b"2".to_vec()),
        (b"B", b"3".to_vec()),
        (b"b", b"4".to_vec()),
        (b"\xff\xfe not UTF-8", b"5".to_vec()),
        (b"with\nnewline and \x01", b"6".to_vec()),
        // What nix on macOS writes for names that differ in case only; on Linux it is a name like any other.
        (b"x~nix~case~hack~1", b"7".to_vec()),
        (&[b'n'; 255], b"8".to_vec()),
    ] {
        fs::write(at(name), content).unwrap();
    }
    for (name, mode) in [(&b"eight"[..], 0o555), (b"nine", 0o444), (b"b", 0o411), (b"B", 0o744)] {
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::hard_link(at(b"nine"), at(b"nine again")).unwrap();
    File::create(at(b"hole")).unwrap().set_len(1 << 20).unwrap();
    symlink("/nowhere/\u{fc}", at(b"dangling")).unwrap();
    symlink("x".repeat(4000), at(b"far")).unwrap();
    symlink(OsStr::from_bytes(b"\xff"), at(b"a/link")).unwrap();
}

#[test]
fn an_archive_is_the_one_that_nix_makes() {
    let temp = tempfile::tempdir().unwrap();
    let top = temp.path().join("path");
    fs::create_dir(&top).unwrap();
    one_of_everything(&top);
    for path in [&b""[..], b"empty", b"nothing", b"nine", b"eight", b"dangling", b"a/b", b"hole"] {
        let path = if path.is_empty() { top.clone() } else { top.join(OsStr::from_bytes(path)) };
        let dumped = run(Command::new("nix-store").arg("--dump").arg(&path)).exits(0).stdout;
        assert!(archive(&path) == dumped, "{} differs from what nix-store makes", path.display());
    }
}

#[test]
fn a_reader_of_somebody_else_finds_what_is_on_the_disk() {
    let temp = tempfile::tempdir().unwrap();
    let top = temp.path().join("path");
    fs::create_dir(&top).unwrap();
    // It takes UTF-8 only.
    fs::create_dir(top.join("bin")).unwrap();
    fs::write(top.join("bin/tool"), [7; 1234]).unwrap();
    symlink("bin/tool", top.join("tool")).unwrap();
    let archive = archive(&top);
    let decoder = nix_nar::Decoder::new(&archive[..]).unwrap();
    let mut found = Vec::new();
    for entry in decoder.entries().unwrap() {
        let entry = entry.unwrap();
        let mut content = Vec::new();
        let what = match entry.content {
            nix_nar::Content::Directory => "directory".to_owned(),
            nix_nar::Content::Symlink { target } => format!("link to {target}"),
            nix_nar::Content::File { executable, size, mut data, .. } => {
                data.read_to_end(&mut content).unwrap();
                assert_eq!(content.len() as u64, size);
                format!("{executable} {}", content.iter().filter(|byte| **byte == 7).count())
            }
        };
        found.push((entry.path.map(|path| path.to_string()).unwrap_or_default(), what));
    }
    let expected = [
        ("", "directory"),
        ("bin", "directory"),
        ("bin/tool", "false 1234"),
        ("tool", "link to bin/tool"),
    ];
    assert_eq!(found, expected.map(|(path, what)| (path.to_owned(), what.to_owned())));
}
