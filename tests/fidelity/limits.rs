//! What a reader cannot do, as narrow as it can be said. docs/READERS.md has the same table in words.

use super::python;
use super::routes::{GNU, Route};
use crate::common::disk::{Disk, DiskKind};
use crate::common::snapshot::Node;
use crate::common::xattr::{self, Xattrs};
use crate::common::{program, run};
use rustix::fs::FileType;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub(crate) struct Limit {
    pub(crate) reader: Route,
    pub(crate) property: &'static str,
    /// Makes of the node that went out the one that this reader makes of it; `true` where the limit applies. What no
    /// rule tells is taken from the second, which is what came in.
    pub(crate) apply: fn(&mut Node, &Node) -> bool,
    /// Shows it in a new directory, on an archive that is not ours.
    pub(crate) proof: fn(&Path),
}

pub(crate) const LIMITS: &[Limit] = &[
    Limit {
        reader: Route::Bsd,
        property: "a name of an attribute with = or % stays encoded",
        apply: |out, _| {
            let odd = |name: &[u8]| name.contains(&b'=') || name.contains(&b'%');
            let (odd, plain): (Xattrs, Xattrs) =
                std::mem::take(&mut out.xattrs).into_iter().partition(|(name, _)| odd(name));
            let applies = !odd.is_empty();
            out.xattrs = plain;
            out.xattrs.extend(odd.into_iter().map(|(name, value)| (encoded(&name), value)));
            applies
        },
        proof: |dir| {
            let file = dir.join("from/file");
            for name in ["user.a=b", "user.c%d"] {
                xattr::set(&file, name.as_bytes(), b"x").unwrap();
            }
            let names = |file: &Path| xattr::read(file).unwrap().into_keys().collect::<Vec<_>>();
            assert_eq!(names(&through(Route::Gnu, dir)), [b"user.a=b", b"user.c%d"]);
            assert_eq!(names(&through(Route::Bsd, dir)), [b"user.a%3Db", b"user.c%25d"]);
            // And it fails where that is longer than any name may be.
            xattr::set(&file, &[b"user.".as_slice(), &[b'%'; 100]].concat(), b"x").unwrap();
            through(Route::Gnu, dir);
            let mut bsdtar = program("bsdtar", ["-xpf"]);
            let done = run(bsdtar.arg(dir.join("tar")).arg("-C").arg(dir.join("to-Bsd"))).exits(1);
            assert!(done.err().contains("Cannot restore extended attributes"), "{}", done.err());
        },
    },
    Limit {
        reader: Route::Bsd,
        property: "the fraction of a time before 1970 goes the wrong way",
        apply: |out, _| {
            let applies = out.mtime < 0 && out.nsec > 0;
            if applies {
                (out.mtime, out.nsec) = (out.mtime + 1, 1_000_000_000 - out.nsec);
            }
            applies
        },
        proof: |dir| {
            run(program("touch", ["-d", "@-86401.25"]).arg(dir.join("from/file"))).silent();
            let time = |file: PathBuf| {
                let meta = fs::metadata(file).unwrap();
                (meta.mtime(), meta.mtime_nsec())
            };
            assert_eq!(time(through(Route::Gnu, dir)), (-86_402, 750_000_000));
            assert_eq!(time(through(Route::Bsd, dir)), (-86_401, 250_000_000));
        },
    },
    Limit {
        reader: Route::Bsd,
        property: "an id of 2^31 or more in an ACL becomes 2^31 - 1",
        apply: |out, _| {
            let mut applies = false;
            for name in [xattr::ACCESS, xattr::DEFAULT] {
                let Some(acl) = out.xattrs.get_mut(name) else { continue };
                for entry in acl[4..].chunks_mut(8) {
                    let named = matches!(entry[0], 2 | 8);
                    if named && entry[7] >= 0x80 {
                        entry[4..].copy_from_slice(&i32::MAX.to_le_bytes());
                        applies = true;
                    }
                }
            }
            applies
        },
        proof: |dir| {
            let id = 1_u32 << 31;
            xattr::set(&dir.join("from/file"), xattr::ACCESS, &of_id(id)).unwrap();
            let acl = |file: PathBuf| xattr::read(&file).unwrap()[xattr::ACCESS].clone();
            assert_eq!(acl(through(Route::Gnu, dir)), of_id(id));
            assert_eq!(acl(through(Route::Bsd, dir)), of_id(id - 1));
        },
    },
    Limit {
        reader: Route::Python,
        property: "no extended attribute, capability or ACL is restored",
        apply: |out, _| !std::mem::take(&mut out.xattrs).is_empty(),
        proof: |dir| {
            let file = dir.join("from/file");
            xattr::set(&file, b"user.x", b"y").unwrap();
            xattr::set(&file, xattr::CAPABILITY, &xattr::capability(1, None)).unwrap();
            assert_eq!(xattr::read(&through(Route::Gnu, dir)).unwrap().len(), 2);
            assert_eq!(xattr::read(&through(Route::Python, dir)).unwrap(), Xattrs::new());
        },
    },
    Limit {
        reader: Route::Python,
        property: "the time of a symbolic link is not set",
        apply: |out, copy| {
            let applies = out.kind == FileType::Symlink;
            if applies {
                (out.mtime, out.nsec) = (copy.mtime, copy.nsec);
            }
            applies
        },
        proof: |dir| {
            let file = dir.join("from/file");
            fs::remove_file(&file).unwrap();
            std::os::unix::fs::symlink("nowhere", &file).unwrap();
            run(program("touch", ["-h", "-d", "@1000000000"]).arg(&file)).silent();
            let time = |file: PathBuf| fs::symlink_metadata(file).unwrap().mtime();
            assert_eq!(time(through(Route::Gnu, dir)), 1_000_000_000);
            assert_ne!(time(through(Route::Python, dir)), 1_000_000_000);
        },
    },
    Limit {
        reader: Route::Python,
        property: "a time is a floating point number",
        apply: |out, copy| {
            let nanos =
                |node: &Node| i128::from(node.mtime) * 1_000_000_000 + i128::from(node.nsec);
            let (sent, got) = (nanos(out), nanos(copy));
            // 53 bits, for the number and for its way back into nanoseconds.
            let most = ((i128::from(out.mtime).abs() * 1_000_000_000) >> 52) + 1;
            let applies = sent != got && (sent - got).abs() <= most;
            if applies {
                (out.mtime, out.nsec) = (copy.mtime, copy.nsec);
            }
            applies
        },
        proof: |dir| {
            run(program("touch", ["-d", "@1700000000.123456789"]).arg(dir.join("from/file")))
                .silent();
            let nanos = |file: PathBuf| fs::metadata(file).unwrap().mtime_nsec();
            assert_eq!(nanos(through(Route::Gnu, dir)), 123_456_789);
            assert_ne!(nanos(through(Route::Python, dir)), 123_456_789);
        },
    },
    Limit {
        reader: Route::Python,
        property: "a file of several names gets the time in the last name's header",
        // Further names have whole seconds there, unless something else needs a pax header.
        apply: |out, copy| {
            let applies = out.same_as.is_some() && copy.nsec == 0;
            if applies {
                out.nsec = 0;
            }
            applies
        },
        proof: |dir| {
            let archive = dir.join("tar");
            run(program("python3", ["-c", TWO_NAMES]).arg(&archive)).silent();
            for (reader, nsec) in [(Route::Gnu, 500_000_000), (Route::Python, 0)] {
                let to = dir.join(format!("to-{reader:?}"));
                fs::create_dir(&to).unwrap();
                reader.copy(&archive, Path::new(""), &to);
                assert_eq!(fs::metadata(to.join("first")).unwrap().mtime_nsec(), nsec);
            }
        },
    },
    Limit {
        reader: Route::Python,
        property: "of further names of a symbolic link, it changes what the link leads to",
        // Such members are not given to it: as root it would change files of this host.
        apply: |_, _| false,
        proof: |dir| {
            let file = dir.join("from/file");
            fs::write(dir.join("victim"), b"").unwrap();
            fs::remove_file(&file).unwrap();
            std::os::unix::fs::symlink(dir.join("victim"), &file).unwrap();
            fs::hard_link(&file, dir.join("from/second")).unwrap();
            run(program("chown", ["-h", "71:71"]).arg(&file)).silent();
            let owner = || fs::metadata(dir.join("victim")).unwrap().uid();
            through(Route::Gnu, dir);
            assert_eq!(owner(), 0);
            fs::create_dir(dir.join("to-all")).unwrap();
            python::extract_all(&dir.join("tar"), &dir.join("to-all"));
            assert_eq!(owner(), 71);
        },
    },
    Limit {
        reader: Route::Rsync,
        property: "without a filter, a sticky directory's ACL loses what its group and its mask share",
        // The route has the filter.
        apply: |_, _| false,
        proof: |_| {
            // On xfs, the second form of the ACL hides it.
            let disk = Disk::new(DiskKind::Tmpfs);
            let dir = disk.path();
            let of = |group| xattr::acl(&[('U', 0, 7), ('G', 0, group), ('m', 0, 5), ('o', 0, 0)]);
            let inner = dir.join("from/inner");
            fs::create_dir_all(&inner).unwrap();
            fs::set_permissions(&inner, Permissions::from_mode(0o1777)).unwrap();
            xattr::set(&inner, xattr::ACCESS, &of(5)).unwrap();
            let (plain, filtered) = two_ways_of_rsync(&dir.join("from"), &dir);
            assert_eq!(plain[xattr::ACCESS], of(0));
            assert_eq!(filtered[xattr::ACCESS], of(5));
        },
    },
    Limit {
        reader: Route::Rsync,
        property: "without a filter, ACLs of files with attributes are lost on xfs",
        // The route has the filter.
        apply: |_, _| false,
        proof: |dir| {
            let source = Disk::new(DiskKind::Tmpfs);
            let (from, acl) = (source.path().join("from"), of_id(71));
            fs::create_dir_all(from.join("inner")).unwrap();
            xattr::set(&from.join("inner"), b"user.x", b"y").unwrap();
            xattr::set(&from.join("inner"), xattr::DEFAULT, &acl).unwrap();
            let (plain, filtered) = two_ways_of_rsync(&from, dir);
            assert_eq!(plain.get(xattr::DEFAULT), None);
            assert_eq!(filtered[xattr::DEFAULT], acl);
        },
    },
    Limit {
        reader: Route::Rsync,
        property: "the fraction of a directory's time is not set where the second is right already",
        // Machines are dated in the past.
        apply: |_, _| false,
        proof: |dir| {
            for (top, fraction) in [("from", "125"), ("to", "875")] {
                fs::create_dir_all(dir.join(top).join("inner")).unwrap();
                let time = format!("@1700000000.{fraction}");
                run(program("touch", ["-d", &time]).arg(dir.join(top).join("inner"))).silent();
            }
            Route::Rsync.copy(Path::new(""), &dir.join("from"), &dir.join("to"));
            assert_eq!(fs::metadata(dir.join("to/inner")).unwrap().mtime_nsec(), 875_000_000);
        },
    },
    Limit {
        reader: Route::Pipe,
        property: "further names of a FIFO or a device become one of their own",
        apply: |out, _| is_special(out.kind) && out.same_as.take().is_some(),
        proof: |dir| {
            let from = dir.join("from");
            fs::remove_file(from.join("file")).unwrap();
            run(program("mkfifo", [from.join("file")])).silent();
            fs::hard_link(from.join("file"), from.join("second")).unwrap();
            assert_eq!(fs::metadata(through(Route::Gnu, dir)).unwrap().nlink(), 1);
        },
    },
];

/// Two names of a file, the first with half a second in its pax header.
const TWO_NAMES: &str = "
import sys, tarfile
with tarfile.open(sys.argv[1], 'w', format=tarfile.PAX_FORMAT) as archive:
    first, second = tarfile.TarInfo('first'), tarfile.TarInfo('second')
    first.mtime, second.mtime = 77.5, 77
    second.type, second.linkname = tarfile.LNKTYPE, 'first'
    archive.addfile(first)
    archive.addfile(second)
";

/// The attributes of `inner` after rsync without a filter, and with the route's.
fn two_ways_of_rsync(from: &Path, dir: &Path) -> (Xattrs, Xattrs) {
    let to = dir.join("plain");
    run(program("rsync", ["-aAX"]).arg(from.join("")).arg(&to)).silent();
    let filtered = dir.join("filtered");
    fs::create_dir(&filtered).unwrap();
    Route::Rsync.copy(Path::new(""), from, &filtered);
    [to, filtered].map(|to| xattr::read(&to.join("inner")).unwrap()).into()
}

/// An ACL with an entry for one user.
fn of_id(id: u32) -> Vec<u8> {
    xattr::acl(&[('U', 0, 6), ('u', id, 4), ('G', 0, 4), ('m', 0, 4), ('o', 0, 4)])
}

fn is_special(kind: FileType) -> bool {
    matches!(kind, FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice)
}

/// `from/file` of `dir`, after a way through an archive of GNU tar.
fn through(reader: Route, dir: &Path) -> PathBuf {
    let (archive, to) = (dir.join("tar"), dir.join(format!("to-{reader:?}")));
    let mut tar = program("tar", GNU.split(' '));
    tar.args(["--format=posix", "-cf"]).arg(&archive).arg("-C").arg(dir.join("from")).arg(".");
    run(tar).silent();
    let _ = fs::create_dir(&to);
    reader.copy(&archive, Path::new(""), &to);
    to.join("file")
}

pub(crate) fn encoded(name: &[u8]) -> Vec<u8> {
    let text = |byte: &u8| match byte {
        b'%' => b"%25".to_vec(),
        b'=' => b"%3D".to_vec(),
        other => vec![*other],
    };
    name.iter().flat_map(text).collect()
}
