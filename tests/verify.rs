//! A copy against its machine: `codchifs verify`, the manifest, and the programs that read it elsewhere.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::disk::{Disk, DiskKind};
use common::fixture::{Fixture, Maker, Place};
use common::mounted::Mounted;
use common::readers::Reader;
use common::{Done, program, run, wait_until, xattr};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// As `MIGRATE.md` has it.
const EXTRACT: [&str; 8] = [
    "--warning=no-timestamp",
    "--no-overwrite-dir",
    "--numeric-owner",
    "--xattrs",
    "--xattrs-include=*",
    "--acls",
    "-S",
    "-xpf",
];

/// A hostile machine with attributes, ACLs, holes and links of every kind.
fn machine(fixture: &Fixture) -> Place {
    let place = fixture.hostile("m");
    let root = Maker::new(&place.rootfs);
    root.holes("srv/sparse", 40 << 20).file("srv/plain", &[7; 300_000]);
    root.file("srv/acl", b"acl\n").file("srv/cap", b"cap\n").mode("srv/cap", 0o755);
    let at = |name: &str| place.rootfs.join("srv").join(name);
    run(program("setfacl", ["-m", "u:71:rw,g:72:r"]).arg(at("acl"))).silent();
    run(program("setcap", ["cap_net_raw+ep"]).arg(at("cap"))).silent();
    run(program("setfattr", ["-n", "user.note", "-v", "a\nb=%"]).arg(at("plain"))).silent();
    place
}

/// A copy of the tar, and a directory that it was extracted to.
fn copies(fixture: &Fixture, mounted: &Mounted) -> (PathBuf, PathBuf) {
    let (tar, dir) = (fixture.path().join("copy.tar"), fixture.scratch("copy"));
    run(program("cp", [&mounted.tar("m"), &tar])).silent();
    extract(&tar, &dir);
    (tar, dir)
}

fn extract(tar: &Path, dir: &Path) {
    run(program("tar", EXTRACT).arg(tar).arg("-C").arg(dir)).silent();
}

fn verify(fixture: &Fixture, copy: &Path, more: &[&str]) -> Done {
    run(fixture.command(["verify", "m", "--json"]).arg(copy).args(more))
}

/// The differences as `PATH: WHAT, WHAT (BECAUSE)`, and the summary.
fn differences(done: &Done) -> (Vec<String>, Value) {
    let mut lines: Vec<Value> = done
        .out()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    let summary = lines.pop().unwrap_or_else(|| panic!("nothing was said: {done:?}"));
    let text = |line: &Value| {
        let what: Vec<_> =
            line["differs"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
        format!(
            "{}: {} ({})",
            line["path"].as_str().unwrap(),
            what.join(", "),
            line["because"].as_str().unwrap()
        )
    };
    (lines.iter().map(text).collect(), summary)
}

#[track_caller]
fn assert_identical(done: Done) {
    let done = done.ok();
    let (lines, summary) = differences(&done);
    assert_eq!((lines.len(), &summary["identical"]), (0, &Value::Bool(true)), "{}", done.out());
    assert!(summary["compared"].as_u64().unwrap() > 200, "{summary}");
}

#[test]
fn a_whole_copy_is_identical_in_every_form() {
    let fixture = Fixture::new();
    machine(&fixture);
    let long = fixture.add_long_path("m");
    let mounted = Mounted::new(&fixture);
    let tar = fixture.path().join("copy.tar");
    run(program("cp", [&mounted.tar("m"), &tar])).silent();
    assert_identical(verify(&fixture, &tar, &[]));
    run(program("zstd", ["-q", "-k"]).arg(&tar)).silent();
    assert_identical(verify(&fixture, &tar.with_extension("tar.zst"), &[]));
    let mut piped = program(
        "sh",
        [
            "-c",
            "cat \"$1\" | \"$2\" \"$3\" \"$4\" \"$5\" \"$6\" --driver dir --rootfs-dir \"$7\" verify m --json -",
            "sh",
        ],
    );
    piped.arg(&tar).arg(env!("CARGO_BIN_EXE_codchifs")).arg("--config-dir").arg(fixture.config());
    piped.arg("--data-dir").arg(fixture.data()).arg(fixture.rootfs_dir());
    assert_identical(run(piped));
    // The same machine as another archive: what a copy holds counts, not its bytes.
    let other = fixture.path().join("other.tar");
    fixture
        .run(["export", "m", "-q", "--sparse=no", "--mtime=ns", "-o", other.to_str().unwrap()])
        .ok();
    assert_identical(verify(&fixture, &other, &[]));
    let list = fixture.path().join("list");
    fs::write(&list, fixture.run(["manifest", "m"]).ok().stdout).unwrap();
    let list = ["--manifest", list.to_str().unwrap()];
    assert_identical(verify(&fixture, &tar, &list));

    // No path of a directory is that long for most programs.
    let dir = fixture.scratch("copy");
    let long = format!("./{}", String::from_utf8(long).unwrap());
    let mut command = program("tar", EXTRACT);
    command.arg(&tar).args(["--exclude", &long, "-C"]);
    run(command.arg(&dir)).silent();
    for more in [&[][..], &list] {
        let (lines, summary) = differences(&verify(&fixture, &dir, more).exits(1));
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("missing"), "{lines:?}");
        assert_eq!(summary["others"], 0);
    }
}

#[test]
fn what_is_damaged_is_told_from_what_changed_since() {
    let fixture = Fixture::new();
    let place = machine(&fixture);
    let mounted = Mounted::new(&fixture);
    let (tar, _) = copies(&fixture, &mounted);
    let bytes = fs::read(&tar).unwrap();
    let at = |needle: &[u8]| bytes.windows(needle.len()).position(|w| w == needle).unwrap();
    let plain = at(b"./srv/plain\0");
    let damaged = |damage: &dyn Fn(&mut Vec<u8>)| {
        let path = fixture.path().join("damaged.tar");
        let mut copy = bytes.clone();
        damage(&mut copy);
        fs::write(&path, copy).unwrap();
        // Within the second of the machine's last change nobody could tell which came first.
        run(program("touch", ["-d", "1 hour"]).arg(&path)).silent();
        differences(&verify(&fixture, &path, &[]).exits(1))
    };
    // A byte of a file.
    let (lines, summary) = damaged(&|copy| copy[plain + 512 + 100_000] ^= 1);
    assert_eq!(lines, ["/srv/plain: content (damaged)"]);
    assert_eq!(summary["damaged_bytes"], 0);
    // A header: its member cannot be told any more, the others can.
    let (lines, summary) = damaged(&|copy| copy[plain + 101] ^= 1);
    assert_eq!(lines, ["/srv/plain: missing (damaged)"]);
    assert!(summary["damaged_bytes"].as_u64().unwrap() >= 300_000, "{summary}");
    // Blocks that never reached the disk.
    let (lines, _) = damaged(&|copy| copy[plain - 512..plain + 1024].fill(0));
    assert!(lines.iter().any(|line| line == "/srv/plain: missing (damaged)"), "{lines:?}");
    // An end that is missing.
    for end in [plain + 512 + 1000, bytes.len() - 4096, bytes.len() - 1, 100] {
        let (lines, summary) = damaged(&|copy| copy.truncate(end));
        assert_eq!(lines, [""; 0], "cut off at {end}");
        assert_eq!(summary["cut_off_at"], end);
    }
    assert_eq!(damaged(&|copy| copy.clear()).1["cut_off_at"], 0);
    // The machine goes on.
    let root = Maker::new(&place.rootfs);
    root.file("srv/new", b"new\n").file("srv/plain", &[8; 300_001]).mode("srv/cap", 0o700);
    fs::remove_file(place.rootfs.join("srv/acl")).unwrap();
    let kept = place.rootfs.join("srv/sizes/1000000");
    let times = fs::metadata(&kept).unwrap();
    fs::File::options().write(true).open(&kept).unwrap().write_all_at(b"!", 0).unwrap();
    fs::File::options()
        .write(true)
        .open(&kept)
        .unwrap()
        .set_modified(times.modified().unwrap())
        .unwrap();
    // As long ago as makes the order of things certain.
    run(program("touch", ["-d", "-1 hour"]).arg(&tar)).silent();
    let (mut lines, _) = differences(&verify(&fixture, &tar, &[]).exits(1));
    // The list of members has one less.
    let others =
        ["/srv: mtime (changed-since)", "/etc/codchi-members: content, size (changed-since)"];
    lines.retain(|line| !others.contains(&line.as_str()));
    assert_eq!(
        lines,
        [
            "/srv/acl: unexpected (changed-since)",
            "/srv/cap: mode (changed-since)",
            "/srv/new: missing (changed-since)",
            "/srv/plain: content, size, mtime (changed-since)",
            "/srv/sizes/1000000: content (changed-since)",
        ]
    );
}

#[test]
fn a_directory_is_compared_in_everything_that_an_export_holds() {
    let fixture = Fixture::new();
    let place = machine(&fixture);
    // It is extracted for every line below.
    let large = ["names", "deep", "modes", "sizes"].map(|name| place.rootfs.join("srv").join(name));
    run(program("rm", ["-rf"]).args(large)).silent();
    let mounted = Mounted::new(&fixture);
    let (tar, dir) = copies(&fixture, &mounted);
    verify(&fixture, &dir, &[]).ok();
    let sh = |script: &str| {
        run(program("bash", ["-euc", script]).current_dir(dir.join("srv"))).ok();
    };
    for (script, expected) in [
        ("chmod 4755 plain", "/srv/plain: mode (unknown)"),
        ("chown 5 plain", "/srv/plain: owner (unknown)"),
        ("chgrp 5 plain", "/srv/plain: group (unknown)"),
        ("touch plain", "/srv/plain: mtime (changed-there)"),
        // In the second in which the machine's was made.
        ("touch -d @$(stat -c %Y plain).999999999 plain", "/srv/plain: mtime (changed-there)"),
        (
            "touch -r plain ../t; printf x | dd of=plain conv=notrunc status=none; touch -r ../t plain; rm ../t",
            "/srv/plain: content (damaged)",
        ),
        ("setfattr -x user.note plain", "/srv/plain: xattr user.note (unknown)"),
        ("setfattr -n user.more -v x plain", "/srv/plain: xattr user.more (unknown)"),
        ("setfacl -n -m u:71:r acl", "/srv/acl: ACL (unknown)"),
        ("setcap -r cap", "/srv/cap: xattr security.capability (unknown)"),
        ("rm plain", "/srv/plain: missing (unknown)"),
        ("rm plain; ln -s x plain", "/srv/plain: type (changed-there)"),
        (
            "cd links; t=$(stat -c %Y self); ln -sfn .. self; touch -hd @$t self",
            "/srv/links/self: link target (unknown)",
        ),
        (
            "cd kinds; touch -r null ../t; rm null; mknod -m 640 null c 1 5; touch -r ../t null; rm ../t",
            "/srv/kinds/null: device (unknown)",
        ),
        (
            "touch -r .. ../t; cp -a three 3; mv 3 three; touch -r ../t ..; rm ../t",
            "/srv/three: hard link (unknown)",
        ),
    ] {
        sh(script);
        let (mut lines, summary) = differences(&verify(&fixture, &dir, &[]).exits(1));
        // The times of directories that a script had to change.
        let way =
            ["/srv", "/srv/links", "/srv/kinds"].map(|d| format!("{d}: mtime (changed-there)"));
        lines.retain(|line| !way.contains(line));
        assert_eq!(lines, [expected], "{script}");
        assert_eq!(summary["others"], 0, "{script}");
        run(program("rm", ["-rf"]).arg(&dir)).silent();
        fs::create_dir(&dir).unwrap();
        extract(&tar, &dir);
    }
    // What the target has besides is not the export's business, and no link is followed on the way.
    sh(
        "touch other ../etc/other; mkdir ../other; touch ../other/in; mv links ../other; ln -s ../other/links links",
    );
    let (lines, summary) = differences(&verify(&fixture, &dir, &[]).exits(1));
    assert!(lines.contains(&"/srv/links/self: missing (unknown)".to_owned()), "{lines:?}");
    assert_eq!(summary["others"], 3);
}

#[test]
fn what_cannot_be_compared_is_neither_the_same_nor_different() {
    let fixture = Fixture::new();
    machine(&fixture);
    let mounted = Mounted::new(&fixture);
    let (tar, _) = copies(&fixture, &mounted);
    let list = fixture.path().join("list");
    for (text, complaint) in [
        ("", None),
        ("#mtree\n. type=dir\n", Some("line 1")),
        ("#mtree v2.0\n./b type=file\n./a type=file\n", Some("line 3")),
        ("#mtree v2.0\n./a type=file mode=9\n", Some("line 2")),
        ("#mtree v2.0\n./a\\9 type=file\n", Some("line 2")),
    ] {
        fs::write(&list, text).unwrap();
        let done = verify(&fixture, &tar, &["--manifest", list.to_str().unwrap()]);
        match complaint {
            Some(complaint) => assert!(done.exits(2).err().contains(complaint), "{text}"),
            None => drop(done.exits(1)),
        }
    }
    assert!(verify(&fixture, Path::new("/nowhere"), &[]).exits(2).err().contains("/nowhere"));
    let done = fixture.run(["verify", "none", tar.to_str().unwrap()]).exits(2);
    assert!(done.err().contains("no such machine"), "{}", done.err());
    // Members in an order that no export has.
    let foreign = fixture.path().join("foreign.tar");
    let two = [
        "--format=ustar",
        "-cf",
        foreign.to_str().unwrap(),
        "-C",
        "/usr",
        "./share/doc",
        "./include",
    ];
    run(program("tar", two)).ok();
    assert!(verify(&fixture, &foreign, &[]).exits(2).err().contains("another order"));
}

#[test]
fn what_is_no_archive_of_codchifs_is_called_what_it_is() {
    let fixture = Fixture::new();
    machine(&fixture);
    let mounted = Mounted::new(&fixture);
    let (tar, dir) = copies(&fixture, &mounted);
    let at = |name: &str| fixture.path().join(name);
    let sh = |script: &str| run(program("bash", ["-euc", script]).current_dir(fixture.path())).ok();
    sh("gzip -k1 copy.tar; xz -k0 copy.tar; bzip2 -k1 copy.tar; zstd -qk copy.tar");
    // As pzstd writes it.
    sh(r"{ printf '\x50\x2a\x4d\x18\4\0\0\0abcd'; cat copy.tar.zst; } >skippable.zst");
    sh("gzip -c1 copy.tar | zstd -q -o twice.zst");
    sh(
        "tar -tf copy.tar >names; ls -lR copy >list; cp copy.tar cut.tar; truncate -s 300000 cut.tar",
    );
    sh("truncate -s 1M zeros; truncate -s 300 short-zeros; : >empty; head -c 1 copy.tar >one");
    sh(
        "truncate -s 8M disk; mkfs.ext4 -q disk; { printf 'QFI\\373'; head -c 9000 /dev/zero; } >qcow2",
    );
    sh(
        "{ printf '\\377\\377'; head -c 508 /dev/urandom; printf '\\x55\\xaa'; head -c 4096 /dev/zero; } >mbr",
    );
    sh("{ printf '\\377\\377'; head -c 300000 /dev/urandom; } >noise");
    sh("tar --sort=name -cf with-root.tar -C copy .; tar -cf no-dots.tar -C copy etc srv");
    sh(
        "cd copy; tar --format=v7 -cf ../v7.tar ./etc; find ./etc | cpio -o --quiet -H newc >../cpio",
    );
    sh(
        "cd copy; git init -q x; cd x; echo a >a; git add a; git -c user.name=a -c user.email=a@b commit -qm x; \
        git archive --format=tar -o ../../commit.tar HEAD; cd ..; rm -rf x",
    );
    fs::write(at("page"), "\n<!DOCTYPE html>\n<html><body>Not found</body></html>\n").unwrap();
    fs::write(at("manifest"), fixture.run(["manifest", "m"]).ok().stdout).unwrap();
    for (name, words) in [
        ("copy.tar.gz", "compressed with gzip; gzip -dc FILE"),
        ("copy.tar.xz", "compressed with xz; xz -dc FILE"),
        ("copy.tar.bz2", "compressed with bzip2"),
        ("twice.zst", "compressed with gzip"),
        ("names", "a text file"),
        ("list", "a text file"),
        ("page", "a web page"),
        ("manifest", "give it as --manifest FILE"),
        ("zeros", "nothing but zeros"),
        ("short-zeros", "nothing but zeros"),
        ("disk", "no tar archive"),
        ("qcow2", "an image of a disk (qcow2)"),
        ("mbr", "an image of a disk"),
        ("noise", "no tar archive"),
        ("with-root.tar", "another program: it has a member for the root"),
        ("no-dots.tar", "another program: its names do not begin with ./"),
        ("v7.tar", "another program, of a form that is older"),
        ("cpio", "a cpio archive"),
        ("commit.tar", "another program: it begins with what no export has"),
    ] {
        let done = verify(&fixture, &at(name), &[]).exits(2);
        let said = done.err();
        assert!(said.contains("the copy is no archive of codchifs: it is "), "{name}: {said}");
        assert!(said.contains(words) && !said.contains("rsync"), "{name}: {said}");
        assert!(done.stdout.is_empty(), "{name}: {}", done.out());
    }
    assert_identical(verify(&fixture, &at("skippable.zst"), &[]));
    // What has only begun is a copy all the same.
    for (name, words) in [
        ("empty", "the copy is empty; copy it again"),
        ("one", "cut off after 1 bytes; `rsync --append-verify` completes it"),
        ("cut.tar", "cut off after 300000 bytes; `rsync --append-verify` completes it"),
    ] {
        let done = verify(&fixture, &at(name), &[]).exits(1);
        assert!(done.err().contains(words), "{name}: {}", done.err());
    }
    sh("head -c $(($(stat -c %s copy.tar.zst) / 2)) copy.tar.zst >cut.zst");
    let said = verify(&fixture, &at("cut.zst"), &[]).exits(1).err();
    assert!(said.contains("; copy it again") && !said.contains("rsync"), "{said}");
    // A copy whose first bytes are damaged is damaged.
    for damage in [
        "printf X | dd of=copy.tar conv=notrunc status=none",
        "head -c 512 /dev/zero | dd of=copy.tar conv=notrunc status=none",
    ] {
        run(program("cp", [&mounted.tar("m"), &tar])).silent();
        sh(damage);
        let (_, summary) = differences(&verify(&fixture, &tar, &[]).exits(1));
        assert!(summary["damaged_bytes"].as_u64().unwrap() >= 512, "{damage}: {summary}");
    }
    verify(&fixture, &dir, &[]).ok();
}

#[test]
fn more_than_one_archive_and_odd_names_of_attributes_are_called_what_they_are() {
    let fixture = Fixture::new();
    let place = machine(&fixture);
    let mounted = Mounted::new(&fixture);
    let (tar, dir) = copies(&fixture, &mounted);
    let bytes = fs::read(&tar).unwrap();
    for more in [&bytes[..], &bytes[..20_480]] {
        let path = fixture.path().join("twice.tar");
        fs::write(&path, [&bytes[..], more].concat()).unwrap();
        let done = verify(&fixture, &path, &[]).exits(2);
        assert!(done.err().contains("more than one archive"), "{}", done.err());
    }
    // GNU tar writes these names encoded; nobody else knows them so.
    for name in ["user.a=b", "user.50%", "user.%3D"] {
        xattr::set(&place.rootfs.join("srv/plain"), name.as_bytes(), b"x").unwrap();
    }
    for copy in [&tar, &dir] {
        let (lines, _) = differences(&verify(&fixture, copy, &[]).exits(1));
        let line = lines.iter().find(|line| line.starts_with("/srv/plain: ")).unwrap();
        for name in ["xattr user.a=b", "xattr user.50%", "xattr user.%3D"] {
            assert!(line.contains(name), "{line}");
        }
    }
}

#[test]
fn what_is_mounted_over_a_file_of_a_copy_is_compared() {
    let fixture = Fixture::new();
    machine(&fixture);
    let mounted = Mounted::new(&fixture);
    let (_, dir) = copies(&fixture, &mounted);
    let over = |what: &Path, name: &str| {
        let at = dir.join("srv").join(name);
        run(program("mount", [Path::new("--bind"), what, &at])).silent();
        at
    };
    let same = fixture.path().join("same");
    run(program("cp", ["-a"]).arg(dir.join("srv/plain")).arg(&same)).silent();
    let at = over(&same, "plain");
    assert_identical(verify(&fixture, &dir, &[]));
    fs::write(&same, [7; 300_001]).unwrap();
    let (lines, _) = differences(&verify(&fixture, &dir, &[]).exits(1));
    assert_eq!(lines, ["/srv/plain: content, size, mtime (changed-there)"]);
    run(program("umount", [&at])).silent();
    // So is a directory, and what is no file is not opened.
    let other = fixture.scratch("other");
    run(program("cp", ["-a"]).arg(dir.join("srv/links")).arg(other.join("links"))).silent();
    let links = over(&other.join("links"), "links");
    let null = over(Path::new("/dev/null"), "plain");
    let (lines, _) = differences(&verify(&fixture, &dir, &[]).exits(1));
    for at in [links, null] {
        run(program("umount", [&at])).silent();
    }
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].starts_with("/srv/plain: type ("), "{lines:?}");
}

#[test]
fn a_size_that_a_damaged_copy_promises_is_not_hashed() {
    let fixture = Fixture::new();
    let place = fixture.empty("m");
    let root = Maker::new(&place.rootfs);
    root.file("srv/list", b"").holes("srv/large", 1 << 40).file("srv/z", b"z\n");
    let mounted = Mounted::new(&fixture);
    let copy = fixture.path().join("copy.tar");
    run(program("cp", [&mounted.tar("m"), &copy])).silent();
    // Nobody hashes so much within the time that a command has.
    let mut bytes = fs::read(&copy).unwrap();
    let size = b"realsize=1099511627776";
    let at = bytes.windows(size.len()).position(|w| w == size).unwrap();
    bytes[at..at + size.len()].copy_from_slice(b"realsize=9999999999999");
    fs::write(&copy, &bytes).unwrap();
    run(program("touch", ["-d", "1 hour"]).arg(&copy)).silent();
    let found = |list: &[&str]| {
        let (lines, summary) = differences(&verify(&fixture, &copy, list).exits(1));
        (lines, summary["compared"].as_u64().unwrap())
    };
    let (lines, compared) = found(&[]);
    assert_eq!(lines, ["/srv/large: content, size (changed-since)"]);
    // Where there is no such file, one of another kind, or one of another size.
    let large = place.rootfs.join("srv/large");
    let of =
        |lines: Vec<String>| lines.into_iter().filter(|l| l.starts_with("/srv/large: ")).collect();
    fs::remove_file(&large).unwrap();
    let (lines, without) = found(&[]);
    let lines: Vec<_> = of(lines);
    assert_eq!(
        (lines, without),
        (vec!["/srv/large: unexpected (changed-since)".into()], compared - 1)
    );
    fs::create_dir(&large).unwrap();
    let lines: Vec<_> = of(found(&[]).0);
    assert_eq!(lines, ["/srv/large: type (changed-since)"]);
    fs::remove_dir(&large).unwrap();
    fs::write(&large, "small").unwrap();
    let list = fixture.path().join("list");
    fs::write(&list, fixture.run(["manifest", "m"]).ok().stdout).unwrap();
    let lines: Vec<String> = of(found(&["--manifest", list.to_str().unwrap()]).0);
    assert!(lines.iter().all(|line| line.starts_with("/srv/large: content, size")), "{lines:?}");
    assert_eq!(lines.len(), 1);
    // A map that goes beyond what is promised is damage all the same.
    let map = b"\n1099511623680\n4096\n";
    let at = bytes.windows(map.len()).position(|w| w == map).unwrap();
    bytes[at + 1] = b'x';
    fs::write(&copy, &bytes).unwrap();
    let lines: Vec<String> = of(found(&[]).0);
    assert_eq!(lines, ["/srv/large: missing (damaged)"]);
}

#[test]
fn more_attributes_on_one_file_than_64_mib_are_no_damage() {
    let disk = Disk::new(DiskKind::Xfs);
    let fixture = Fixture::below(&disk.path());
    let srv = fixture.empty("m").rootfs.join("srv");
    fs::create_dir(&srv).unwrap();
    fs::write(srv.join("file"), b"x").unwrap();
    let value: Vec<u8> = (0..64 << 10).map(|n: u32| n.to_le_bytes()[1]).collect();
    for n in 0..1030 {
        xattr::set(&srv.join("file"), format!("user.{n:04}").as_bytes(), &value).unwrap();
    }
    let tar = fixture.path().join("copy.tar");
    fixture.run(["export", "m", "-q", "-o", tar.to_str().unwrap()]).ok();
    assert!(fs::metadata(&tar).unwrap().len() > 64 << 20);
    verify(&fixture, &tar, &[]).ok();
    // Its line in the list is 200 MB long.
    let list = fixture.path().join("list");
    fs::write(&list, fixture.run(["manifest", "m"]).ok().stdout).unwrap();
    verify(&fixture, &tar, &["--manifest", list.to_str().unwrap()]).ok();
    // One value that is another is one.
    let last = srv.join("file");
    xattr::set(&last, b"user.1029", b"other").unwrap();
    let (lines, _) = differences(&verify(&fixture, &tar, &[]).exits(1));
    assert_eq!(lines, ["/srv/file: xattr user.1029 (changed-since)"]);
}

/// The list of a generation.
fn kept_path(mounted: &Mounted, id: &str) -> PathBuf {
    mounted.point().join("m/.generations").join(id).join("manifest.mtree")
}

#[test]
fn the_manifest_has_its_size_before_a_file_is_read() {
    let fixture = Fixture::new();
    let place = machine(&fixture);
    let mounted = Mounted::new(&fixture);
    let at = mounted.point().join("m/manifest.mtree");
    let printed = fixture.run(["manifest", "m"]).ok().stdout;
    let meta = fs::metadata(&at).unwrap();
    assert_eq!((meta.len(), meta.mode() & 0o777), (printed.len() as u64, 0o600));
    // Not one of the names that a backup of the directory walks over.
    let names = fs::read_dir(mounted.point().join("m")).unwrap().map(|e| e.unwrap().file_name());
    assert!(names.into_iter().all(|name| name != "manifest.mtree"));
    let to = |name: &str| fixture.path().join(name);
    run(program("cp", [&at, &to("cp")])).silent();
    run(program("rsync", ["-t"]).arg(&at).arg(to("rsync"))).silent();
    run(program("dd", ["bs=997", "status=none"])
        .arg(format!("if={}", at.display()))
        .arg(format!("of={}", to("dd").display())))
    .silent();
    run(program("bash", ["-c", "cat \"$0\" >\"$1\""]).arg(&at).arg(to("cat"))).silent();
    for name in ["cp", "rsync", "dd", "cat"] {
        assert!(fs::read(to(name)).unwrap() == printed, "{name}");
    }
    let id = mounted.report("m")["generation"]["id"].as_str().unwrap().to_owned();
    assert!(fs::read(kept_path(&mounted, &id)).unwrap() == printed);
    assert!(printed.windows(id.len()).any(|part| part == id.as_bytes()), "of another generation");
    let tar = fs::metadata(mounted.tar("m")).unwrap();
    assert_eq!((meta.mtime(), meta.ctime_nsec()), (tar.mtime(), tar.ctime_nsec()));
    // It is of one state of the machine, or it fails. Of a list that was read, the kernel may still have the pages.
    let file = fs::File::open(&at).unwrap();
    let mut read = vec![0; printed.len()];
    file.read_exact_at(&mut read, 0).unwrap();
    for round in 0..3 {
        fs::write(place.rootfs.join("srv/plain"), format!("state {round}")).unwrap();
        for reader in [&file, &fs::File::open(kept_path(&mounted, &id)).unwrap()] {
            read.fill(0);
            let whole = reader.read_exact_at(&mut read, 0).is_ok();
            assert!(!whole || read == printed, "a list of two states passed for whole");
        }
    }
    drop(file);
    // Here of a state of which nobody has read a list yet.
    fs::write(place.rootfs.join("srv/plain"), "another state").unwrap();
    wait_until("a list of the new state", || fs::metadata(&at).unwrap().ino() != meta.ino());
    let file = fs::File::open(&at).unwrap();
    fs::write(place.rootfs.join("srv/plain"), "short").unwrap();
    let size = usize::try_from(file.metadata().unwrap().len()).unwrap();
    let mut read = vec![0; size];
    assert!(file.read_exact_at(&mut read, 0).is_err(), "a torn list passed for whole");
}

#[test]
fn who_reads_the_manifest_of_large_files_keeps_nobody_waiting() {
    // More than the threads that answer everybody else.
    const READERS: usize = 4;
    let fixture = Fixture::new();
    let large = fixture.empty("m").rootfs.join("large");
    // Much to be hashed, and nothing to be written.
    fs::File::create(large).unwrap().set_len(100 << 30).unwrap();
    fixture.sample("other");
    let mounted = Mounted::new(&fixture);
    let at = mounted.point().join("m/manifest.mtree");
    let spawn =
        |_| program("cat", [&at]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut readers: Vec<_> = (0..READERS).map(spawn).collect();
    for reader in &readers {
        let of = |name: &str| Path::new("/proc").join(reader.id().to_string()).join(name);
        wait_until("a read of the manifest", || {
            let fds = fs::read_dir(of("fd")).into_iter().flatten();
            let open = fds.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok()).any(|p| p == at);
            // read(2) is call 0 on x86_64, 63 on aarch64.
            let call = fs::read_to_string(of("syscall")).unwrap_or_default();
            open && ["0 ", "63 "].iter().any(|number| call.starts_with(number))
        });
    }
    run(program("ls", ["-l"]).arg(mounted.point().join("m"))).ok();
    run(program("cp", [mounted.tar("other"), fixture.path().join("other.tar")])).silent();
    for reader in &mut readers {
        assert!(reader.try_wait().unwrap().is_none(), "the others were answered afterwards");
    }
    // Its end ends them.
    drop(mounted);
    readers.iter_mut().for_each(|reader| drop(reader.wait()));
}

#[test]
fn programs_that_nobody_here_wrote_read_the_manifest() {
    let fixture = Fixture::new();
    let place = machine(&fixture);
    // mtree takes these for patterns, however they are written.
    let patterns = ["-depth", "-name", r"*[][*?]*", "-delete"];
    run(program("find", [place.rootfs.join("srv/names")]).args(patterns)).silent();
    let mounted = Mounted::new(&fixture);
    let (tar, dir) = copies(&fixture, &mounted);
    let list = fixture.path().join("list");
    run(program("cp", [&mounted.point().join("m/manifest.mtree"), &list])).silent();
    fs::write(dir.join("other"), "the target's own").unwrap();
    let mtree = || run(program("mtree", ["-e", "-f"]).arg(&list).arg("-p").arg(&dir));
    assert_eq!(mtree().ok().out(), "");
    let names = run(program("bsdtar", ["-tf"]).arg(&list)).ok();
    let members = names.out().lines().filter(|line| *line != ".").count();
    assert_eq!(members, Reader::Bsd.list(&tar, "C").len());
    let sums = fixture.path().join("sums");
    fs::write(&sums, fixture.run(["manifest", "m", "--sums"]).ok().stdout).unwrap();
    let sha256sum =
        || run(program("sha256sum", ["--quiet", "--check"]).arg(&sums).current_dir(&dir));
    // Debian 12's knows no escaped CR, and nothing of ours has one.
    sha256sum().silent();
    let plain = fs::File::options().write(true).open(dir.join("srv/plain")).unwrap();
    plain.write_all_at(b"!", 0).unwrap();
    let said = mtree().exits(2).out();
    assert!(said.contains("srv/plain") && said.contains("sha256"), "{said}");
    assert!(sha256sum().exits(1).out().contains("srv/plain: FAILED"));
}
