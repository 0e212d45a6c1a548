//! Programs that read an export in part, each with what it makes of what it does not know. docs/READERS.md has the same in
//! words.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::{Fixture, Maker};
use common::{DEADLINE, cached, npm, program, run, run_for};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Extracts `export.tar` of the directory above into the one that it runs in.
const READERS: &[(&str, &str, Sparse)] = &[
    ("GNU tar", "tar -xf ../export.tar", Sparse::Right),
    ("bsdtar", "bsdtar -xf ../export.tar", Sparse::Right),
    (
        "Python's tarfile",
        "python3 -c 'import tarfile; tarfile.open(\"../export.tar\").extractall()'",
        Sparse::Right,
    ),
    (
        "tar2sqfs",
        "tar2sqfs -qf ../image <../export.tar && unsquashfs -q -f -d . ../image",
        Sparse::Right,
    ),
    ("Go's archive/tar", "\"$GO_TAR\" <../export.tar", Sparse::Right),
    ("busybox tar", "busybox tar -xf ../export.tar", Sparse::Map),
    ("7z", "7z x -y ../export.tar", Sparse::Map),
    ("cpio", "cpio -id <../export.tar", Sparse::Map),
    ("pax", "pax -r <../export.tar", Sparse::Map),
    (
        "Perl's Archive::Tar",
        "perl -MArchive::Tar -e 'Archive::Tar->extract_archive(\"../export.tar\") or die'",
        Sparse::Map,
    ),
    (
        "sqfstar",
        "rm -f ../image; sqfstar ../image <../export.tar && unsquashfs -q -f -d . ../image",
        Sparse::Map,
    ),
    (
        "node-tar",
        "node -e 'require(process.env.TAR).x({ file: \"../export.tar\", sync: true })'",
        Sparse::Map,
    ),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sparse {
    Right,
    /// The map of the data becomes content, and the exit status is 0.
    Map,
}

/// A program in Go that extracts what it reads.
fn go_tar() -> PathBuf {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tar_readers/extract.go");
    let made = cached("go-tar", |directory| {
        let mut go = program("go", ["build", "-o"]);
        go.arg(directory.join("extract")).arg(source);
        // Nothing but the standard library, and nothing outside of the directory.
        go.env("GOCACHE", directory.join("cache")).env("GO111MODULE", "off");
        run_for(5 * DEADLINE, go.env("GOPATH", directory.join("path"))).ok();
    });
    made.join("extract")
}

/// The command of a reader.
fn reading(name: &str, script: &str) -> Command {
    let mut shell = program("sh", ["-c", script]);
    match name {
        "node-tar" => shell.env("TAR", npm("tar@7.5.23").join("node_modules/tar")),
        "Go's archive/tar" => shell.env("GO_TAR", go_tar()),
        _ => &mut shell,
    };
    shell
}

fn extracted(fixture: &Fixture, name: &str, script: &str) -> PathBuf {
    let to = tempfile::tempdir_in(fixture.path()).unwrap().keep();
    let done = run(reading(name, script).current_dir(&to));
    // It takes no comment as long as that with which the last member ends on a page.
    match name {
        "pax" if done.code != Some(0) => {
            assert!(done.err().contains("record length"), "{}", done.err())
        }
        _ => drop(done.ok()),
    }
    to
}

/// A record `GNU.sparse.name` would not help: with the name of the header sqfstar refuses the archive, and without its ./
/// GNU tar does not find the member below a directory that is asked for.
#[test]
fn sparse_members_are_read_as_the_docs_say_and_written_out_by_all() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/READERS.md");
    let page = fs::read_to_string(page).unwrap();
    let right = page.lines().find(|line| line.starts_with("Sparse members are read by")).unwrap();
    let wrong =
        page.lines().find(|line| line.starts_with("Their map is taken for content by")).unwrap();
    let fixture = Fixture::new();
    let home = fixture.empty("m").home;
    Maker::new(&home).holes("holes", (3 << 20) + 5).file("plain", b"plain");
    let source = fs::read(home.join("holes")).unwrap();
    let archive = fixture.path().join("export.tar");
    for sparse in ["yes", "no"] {
        let option = format!("--sparse={sparse}");
        run(fixture.command(["export", "-q", &option, "m", "-o"]).arg(&archive)).ok();
        for (name, script, expected) in READERS {
            let to = extracted(&fixture, name, script);
            let copy = fs::read(to.join("home/codchi/holes")).unwrap();
            let whole = sparse == "no" || *expected == Sparse::Right;
            assert_eq!(copy == source, whole, "{name}, --sparse={sparse}");
            assert_eq!(fs::read(to.join("home/codchi/plain")).unwrap(), b"plain", "{name}");
            let line = if *expected == Sparse::Right { right } else { wrong };
            assert!(line.contains(name), "{name} is not in its line of docs/READERS.md");
        }
    }
    // The crate of that name, which cargo and many tools in Rust use.
    run(fixture.command(["export", "-q", "m", "-o"]).arg(&archive)).ok();
    let to = fixture.scratch("crate");
    tar::Archive::new(File::open(&archive).unwrap()).unpack(&to).unwrap();
    assert_ne!(fs::read(to.join("home/codchi/holes")).unwrap(), source);
    assert!(wrong.contains("tar-rs"));
}

/// What the page says of readers that cut, by the beginning of its line.
fn line(page: &str, begin: &str) -> String {
    let mut lines = page.lines().filter_map(|line| line.strip_prefix("- "));
    lines.find(|line| line.starts_with(begin)).unwrap().to_owned()
}

/// Long names and targets are in records of GNU tar, and everything else that needs more room in a PAX header before them.
#[test]
fn long_names_of_files_with_attributes_arrive_but_where_the_docs_say() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/READERS.md");
    let page = fs::read_to_string(page).unwrap();
    let names = line(&page, "Names of more than 100 bytes are cut by");
    let targets = line(&page, "Targets of links of more than 100 bytes are cut by");
    let fixture = Fixture::new();
    let home = fixture.empty("m").home;
    let (name, target) = ("n".repeat(170), "t".repeat(170));
    for name in [&*name, "short"] {
        fs::write(home.join(name), b"long").unwrap();
        common::xattr::set(&home.join(name), b"user.x", b"y").unwrap();
    }
    // An owner that needs a PAX header.
    let link = |name: &str| {
        symlink(&target, home.join(name)).unwrap();
        lchown(home.join(name), Some(3_000_000), Some(3_000_000)).unwrap();
    };
    link("link");
    let archive = fixture.path().join("export.tar");
    let export = || run(fixture.command(["export", "-q", "m", "-o"]).arg(&archive)).ok();
    let arrived = |to: &Path, reader: &str| {
        let at = to.join("home/codchi");
        let whole = |name: &str| fs::read(at.join(name)).is_ok_and(|bytes| bytes == b"long");
        assert!(whole("short"), "{reader}");
        assert_eq!(whole(&name), !names.contains(reader), "the name: {reader}");
        let found = fs::read_link(at.join("link")).unwrap();
        assert_eq!(found == Path::new(&target), !targets.contains(reader), "the target: {reader}");
    };
    export();
    for (reader, script, _) in READERS {
        arrived(&extracted(&fixture, reader, script), reader);
    }
    let to = fixture.scratch("crate");
    tar::Archive::new(File::open(&archive).unwrap()).unpack(&to).unwrap();
    arrived(&to, "tar-rs");
    // Both in one member.
    link(&"l".repeat(170));
    export();
    for (reader, script, _) in READERS {
        let to = tempfile::tempdir_in(fixture.path()).unwrap().keep();
        let done = run(reading(reader, script).current_dir(&to));
        let there = fs::read_link(to.join("home/codchi").join("l".repeat(170)));
        let whole = there.is_ok_and(|found| found == Path::new(&target));
        let cuts = [&names, &targets].iter().any(|line| line.contains(reader));
        assert_eq!(whole, !cuts, "{reader}: {}", done.err());
    }
}

/// `from` as an archive of GNU tar, which is not ours.
fn archive(from: &Path, to: &Path) {
    run(program("tar", ["--format=posix", "-cf"]).arg(to).arg("-C").arg(from).arg(".")).silent();
}

#[test]
fn what_other_readers_refuse_or_lose_is_as_the_docs_say() {
    let fixture = Fixture::new();
    let from = fixture.scratch("from");
    let tar = fixture.path().join("a.tar");
    // Python's filter, which will be the default: a link to where Nix has its store ends everything.
    symlink("/nix/store/x", from.join("result")).unwrap();
    archive(&from, &tar);
    let script =
        "import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter='data')";
    let python =
        program("python3", ["-c", script]).arg(&tar).arg(fixture.scratch("python")).output();
    let error = String::from_utf8(python.unwrap().stderr).unwrap();
    assert!(error.contains("AbsoluteLinkError"), "{error}");
    // The filter between that and none takes the link, and changes modes.
    fs::write(from.join("mode"), b"x").unwrap();
    fs::set_permissions(from.join("mode"), fs::Permissions::from_mode(0o4775)).unwrap();
    archive(&from, &tar);
    let to = fixture.scratch("python-tar");
    let script = script.replace("data", "tar");
    run(program("python3", ["-c", &script]).arg(&tar).arg(&to)).ok();
    assert_eq!(fs::read_link(to.join("result")).unwrap(), Path::new("/nix/store/x"));
    assert_eq!(fs::metadata(to.join("mode")).unwrap().mode() & 0o7777, 0o755);
    fs::remove_file(from.join("result")).unwrap();
    // busybox: times of directories.
    fs::create_dir(from.join("directory")).unwrap();
    fs::write(from.join("directory/file"), b"x").unwrap();
    let time = Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, from.join("directory"), &times, AtFlags::empty()).unwrap();
    archive(&from, &tar);
    let to = fixture.scratch("busybox");
    run(program("busybox", ["tar", "-xpf"]).arg(&tar).arg("-C").arg(&to)).ok();
    assert_ne!(fs::metadata(to.join("directory")).unwrap().mtime(), 1_000_000_000);
    // busybox: the longest target that a link can have.
    symlink("t".repeat(4095), from.join("long")).unwrap();
    run(program("tar", ["--format=gnu", "-cf"]).arg(&tar).arg("-C").arg(&from).arg(".")).silent();
    let mut busybox = program("busybox", ["tar", "-xf"]);
    let done = run(busybox.arg(&tar).arg("-C").arg(fixture.scratch("busybox-long")));
    assert_ne!(done.code, Some(0), "{}", done.err());
    // rsync: what it keeps owners in for --fake-super, as a store of backups in a home has it.
    let stored = from.join("stored");
    fs::write(&stored, b"x").unwrap();
    common::xattr::set(&stored, b"user.rsync.%stat", b"100644 0,0 71:72").unwrap();
    for (option, count) in [("-aX", 0), ("-aXX", 1)] {
        let to = fixture.scratch(&format!("rsync{option}"));
        run(program("rsync", [option]).arg(&stored).arg(&to)).silent();
        assert_eq!(common::xattr::read(&to.join("stored")).unwrap().len(), count, "{option}");
    }
    // Attributes of inodes are in no tar.
    let disk = common::disk::Disk::new(common::disk::DiskKind::Xfs);
    let file = disk.path().join("file");
    fs::write(&file, b"x").unwrap();
    File::open(&file).unwrap().read_at(&mut [0], 0).unwrap();
    run(program("chattr", ["+i"]).arg(&file)).ok();
    archive(&disk.path(), &tar);
    run(program("chattr", ["-i"]).arg(&file)).ok();
    fs::remove_file(&file).unwrap();
    run(program("tar", ["-xpf"]).arg(&tar).arg("-C").arg(disk.path())).ok();
    let flags = run(program("lsattr", ["-l"]).arg(&file)).ok().out();
    assert!(!flags.contains("Immutable"), "{flags}");
}
