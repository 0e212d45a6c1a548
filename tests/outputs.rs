//! Where commands write to: what others have put there leads nowhere, and nothing that cannot be written passes for success.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::Fixture;
use common::lxd::{UID, user};
use common::plants::Hung;
use common::{Done, contains, program, run, wait_until};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Somebody who is neither root nor the user.
const OTHER: u32 = 1001;

/// Root's, which nobody else may write.
struct Victim {
    _directory: tempfile::TempDir,
    file: PathBuf,
    absent: PathBuf,
}

fn victim() -> Victim {
    let directory = tempfile::Builder::new().prefix("victim-").tempdir_in("/root").unwrap();
    let (file, absent) = (directory.path().join("file"), directory.path().join("absent"));
    fs::write(&file, "root's").unwrap();
    Victim { _directory: directory, file, absent }
}

impl Victim {
    #[track_caller]
    fn is_untouched(&self, what: &str) {
        assert_eq!(fs::read_to_string(&self.file).unwrap(), "root's", "{what}");
        let names = fs::read_dir(self.file.parent().unwrap()).unwrap().count();
        assert_eq!(names, 1, "{what}: something was made beside root's file");
    }
}

/// A directory that everybody may write, as /tmp.
fn sticky(fixture: &Fixture) -> PathBuf {
    let directory = fixture.scratch("sticky");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o1777)).unwrap();
    directory
}

fn link(uid: u32, target: &Path, at: &Path) {
    symlink(target, at).unwrap();
    lchown(at, Some(uid), Some(uid)).unwrap();
}

/// `export` and `mount --log-file`, to `output`: both by root.
fn write_to(fixture: &Fixture, output: &Path) -> Vec<(&'static str, Done)> {
    let export = run(fixture.command(["export", "m", "-q", "-o"]).arg(output));
    let point = fixture.mount_point();
    let mut mount = fixture.command(["mount", "--log-file"]);
    let mount = run(mount.arg(output).arg(&point));
    if mount.code == Some(0) {
        wait_until("the end of the mount", || {
            run(fixture.command(["unmount"]).arg(&point)).code == Some(0)
        });
    }
    vec![("export", export), ("log", mount)]
}

/// How `uid` plants something at a path that is to lead to the victim.
type Planting = (&'static str, fn(u32, &Path, &Victim) -> Option<Hung>);

const PLANTS: &[Planting] = &[
    ("a link to root's file", |uid, at, victim| {
        link(uid, &victim.file, at);
        None
    }),
    ("a link to where root could make one", |uid, at, victim| {
        link(uid, &victim.absent, at);
        None
    }),
    ("a link through /proc", |uid, at, victim| {
        let target = Path::new("/proc/self/root").join(victim.file.strip_prefix("/").unwrap());
        link(uid, &target, at);
        None
    }),
    ("a link to stdout", |uid, at, _| {
        link(uid, Path::new("/dev/stdout"), at);
        None
    }),
    ("a link to a link to root's file", |uid, at, victim| {
        let second = at.with_extension("second");
        link(uid, &victim.file, &second);
        link(uid, second.file_name().unwrap().as_ref(), at);
        None
    }),
    ("a link to itself", |uid, at, _| {
        link(uid, at, at);
        None
    }),
    ("a FIFO", |uid, at, _| {
        mknodat(CWD, at, FileType::Fifo, Mode::from(0o666), 0).unwrap();
        chown(at, Some(uid), Some(uid)).unwrap();
        None
    }),
    ("a FUSE file", |uid, at, _| {
        File::create(at).unwrap();
        chown(at, Some(uid), Some(uid)).unwrap();
        Some(Hung::new(at, uid, "fuse.evil"))
    }),
];

/// In the name itself, and in the directory that it is in.
#[test]
fn what_others_plant_where_root_writes_leads_nowhere() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let victim = victim();
    let own = fixture.scratch("own");
    chown(&own, Some(UID), Some(UID)).unwrap();
    for (uid, directory) in [(OTHER, sticky(&fixture)), (UID, own)] {
        for (plant, planting) in PLANTS {
            let at = directory.join("out.tar");
            let mut hung = planting(uid, &at, &victim);
            for (what, done) in write_to(&fixture, &at) {
                let cell = format!("{what}, {plant} in {}: {}", directory.display(), done.err());
                assert_eq!(done.code, Some(1), "{cell}");
                assert!(done.stdout.is_empty(), "{cell}");
                victim.is_untouched(&cell);
                let requests = hung.iter_mut().flat_map(Hung::requests).count();
                assert_eq!(requests, 0, "{cell}");
            }
            drop(hung);
            for entry in fs::read_dir(&directory).unwrap() {
                fs::remove_file(entry.unwrap().path()).unwrap();
            }
        }
        // Above it.
        let at = directory.join("above");
        link(uid, victim.file.parent().unwrap(), &at);
        for (what, done) in write_to(&fixture, &at.join("absent")) {
            assert_eq!(done.code, Some(1), "{what}: {}", done.err());
            victim.is_untouched(what);
        }
        fs::remove_file(&at).unwrap();
        // Under the name that is written before.
        let partial = directory.join("out.tar.partial");
        for hard in [false, true] {
            match hard {
                true => fs::hard_link(&victim.file, &partial).unwrap_or_default(),
                false => link(uid, &victim.file, &partial),
            }
            let done = fixture.run([
                "export",
                "m",
                "-q",
                "-o",
                directory.join("out.tar").to_str().unwrap(),
            ]);
            assert!(done.code == Some(1) || !partial.exists(), "{}", done.err());
            assert_eq!(fs::read_to_string(&victim.file).unwrap(), "root's");
            let _ = fs::remove_file(&partial);
            let _ = fs::remove_file(directory.join("out.tar"));
        }
    }
}

#[test]
fn generate_makes_no_directory_where_a_user_leads_root() {
    let fixture = Fixture::new();
    let victim = tempfile::Builder::new().prefix("victim-").tempdir_in("/root").unwrap();
    let own = fixture.scratch("own");
    chown(&own, Some(UID), Some(UID)).unwrap();
    link(UID, victim.path(), &own.join("link"));
    for at in ["link", "link/new", "link/../link/new"] {
        let done = run(fixture.command(["generate"]).arg(own.join(at))).exits(1);
        assert!(done.err().contains("refused"), "{at}: {}", done.err());
        assert_eq!(fs::read_dir(victim.path()).unwrap().count(), 0, "{at}");
    }
    run(fixture.command(["generate"]).arg(own.join("new/deep"))).silent();
    assert!(own.join("new/deep/man/codchifs.1").exists());
}

#[test]
fn an_export_into_a_sticky_directory_works_where_nothing_hostile_is() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let whole = fixture.run(["export", "m", "-q", "-o", "-"]).ok().stdout;
    let out = sticky(&fixture).join("dev.tar");
    for _ in 0..2 {
        fixture.run(["export", "m", "-q", "-o", out.to_str().unwrap()]).silent();
        assert!(fs::read(&out).unwrap() == whole);
        let meta = out.metadata().unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o600, 0));
    }
    // Another user's file there is not replaced.
    fs::remove_file(&out).unwrap();
    fs::write(&out, "another's").unwrap();
    chown(&out, Some(OTHER), Some(OTHER)).unwrap();
    let done = fixture.run(["export", "m", "-q", "-o", out.to_str().unwrap()]).exits(1);
    assert!(done.err().contains("is uid 1001's"), "{}", done.err());
    assert_eq!(fs::read_to_string(&out).unwrap(), "another's");
    // As a plain user, the same.
    let mut plain = program("setpriv", ["--clear-groups"]);
    plain.args([format!("--reuid={UID}"), format!("--regid={UID}")]);
    let export = fixture.command(["export", "m", "-q", "-o"]);
    plain.arg(export.get_program()).args(export.get_args()).arg(&out).env("HOME", "/");
    let done = run(&mut plain).exits(1);
    assert_eq!(fs::read_to_string(&out).unwrap(), "another's", "{}", done.err());
    let _ = user();
}

#[test]
fn an_export_goes_to_what_ones_own_link_leads_to() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let whole = fixture.run(["export", "m", "-q", "-o", "-"]).ok().stdout;
    let (here, there) = (fixture.scratch("here"), fixture.scratch("there"));
    let out = here.join("m.tar");
    for (what, target, file) in [
        ("an existing file", there.join("old.tar"), there.join("old.tar")),
        ("no file yet", there.join("new.tar"), there.join("new.tar")),
        ("a relative path", "../there/relative.tar".into(), there.join("relative.tar")),
    ] {
        if what == "an existing file" {
            fs::write(&file, "old").unwrap();
        }
        symlink(&target, &out).unwrap();
        fixture.run(["export", "m", "-q", "-o", out.to_str().unwrap()]).silent();
        assert_eq!(fs::read_link(&out).unwrap(), target, "{what}: the link stays");
        assert!(fs::read(&file).unwrap() == whole, "{what}");
        let names = fs::read_dir(&here).unwrap().count();
        assert_eq!(names, 1, "{what}: nothing but the link is here");
        fs::remove_file(&out).unwrap();
    }
    // The user's own, by root: to what is the user's.
    let own = fixture.scratch("own");
    fs::create_dir(own.join("deeper")).unwrap();
    for path in [&own, &own.join("deeper")] {
        chown(path, Some(UID), Some(UID)).unwrap();
    }
    link(UID, Path::new("deeper/m.tar"), &own.join("m.tar"));
    fixture.run(["export", "m", "-q", "-o", own.join("m.tar").to_str().unwrap()]).silent();
    assert!(fs::read(own.join("deeper/m.tar")).unwrap() == whole);
    for (what, target, says) in [
        ("a loop", out.clone(), "symbolic links"),
        ("a directory", there.clone(), "name the file to write"),
        ("no directory", here.join("missing/m.tar"), "No such file"),
    ] {
        symlink(&target, &out).unwrap();
        let done = fixture.run(["export", "m", "-q", "-o", out.to_str().unwrap()]).exits(1);
        assert!(done.err().contains(says), "{what}: {}", done.err());
        assert_eq!(fs::read_link(&out).unwrap(), target);
        fs::remove_file(&out).unwrap();
    }
    for directory in [there.to_str().unwrap(), "/", "..", "new/"] {
        let mut command = fixture.command(["export", "m", "-q", "-o", directory]);
        let done = run(command.current_dir(&here)).exits(1);
        assert!(done.err().contains("it is a directory; name the file to write"), "{}", done.err());
    }
}

#[test]
fn an_export_goes_to_pipes_devices_and_descriptors() {
    let fixture = Fixture::new();
    fixture.sample("m");
    let whole = fixture.run(["export", "m", "-q", "-o", "-"]).ok().stdout;
    let fifo = fixture.path().join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::from(0o600), 0).unwrap();
    let reader = {
        let fifo = fifo.clone();
        std::thread::spawn(move || fs::read(fifo).unwrap())
    };
    fixture.run(["export", "m", "-q", "-o", fifo.to_str().unwrap()]).silent();
    assert!(reader.join().unwrap() == whole, "through a FIFO");
    assert!(fifo.symlink_metadata().is_ok(), "the FIFO stays");
    fixture.run(["export", "m", "-q", "-o", "/dev/null"]).silent();
    assert!(Path::new("/dev/null").metadata().unwrap().rdev() != 0);
    let link = fixture.path().join("link");
    symlink("/dev/stdout", &link).unwrap();
    for output in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", link.to_str().unwrap()] {
        let done = fixture.run(["export", "m", "-q", "-o", output]).ok();
        assert!(done.stdout == whole, "{output}: {}", done.err());
    }
    let done = fixture.run(["export", "m", "-q", "-o", "/dev/fd/77"]).exits(1);
    assert!(done.err().contains("Bad file descriptor"), "{}", done.err());
    // What the shell has opened is written where it is.
    let (prefix, file) = (b"before ".as_slice(), fixture.path().join("appended"));
    fs::write(&file, prefix).unwrap();
    let appended = File::options().append(true).open(&file).unwrap();
    let mut command = fixture.command(["export", "m", "-q", "-o", "/dev/stdout"]);
    assert!(command.stdout(appended).status().unwrap().success());
    assert!(fs::read(&file).unwrap() == [prefix, &whole].concat());
}

/// Every command that prints, with what makes it print.
fn printing(fixture: &Fixture) -> Vec<Vec<String>> {
    let copy = fixture.path().join("copy.tar");
    fixture.run(["export", "m", "-q", "-o", copy.to_str().unwrap()]).ok();
    let out = fixture.path().join("out.tar");
    let all: [&[&str]; 17] = [
        &["list"],
        &["list", "--json"],
        &["list", "--size"],
        &["status"],
        &["status", "--json"],
        &["doctor"],
        &["doctor", "--json"],
        &["export", "m", "-q", "-o", "-"],
        &["export", "m", "-q", "--json", "-o", out.to_str().unwrap()],
        &["manifest", "m"],
        &["manifest", "m", "--sums"],
        &["migrate", "m"],
        &["migrate", "m", "--json"],
        &["verify", "m", "--json", copy.to_str().unwrap()],
        &["--help"],
        &["export", "--help"],
        &["--version"],
    ];
    all.iter().map(|words| words.iter().map(|word| (*word).to_owned()).collect()).collect()
}

#[test]
fn what_cannot_be_printed_is_a_failure_with_a_reason() {
    let fixture = Fixture::new();
    fixture.sample("m");
    for words in printing(&fixture) {
        for (redirected, says) in [(">&-", "stdout is closed"), (">/dev/full", "No space left")] {
            let command = fixture.command(&words);
            let mut shell = program("sh", ["-c", &format!("exec \"$@\" {redirected}"), "sh"]);
            shell.arg(command.get_program()).args(command.get_args());
            let done = run(&mut shell).exits(1);
            assert!(done.err().contains(says), "{words:?} {redirected}: {}", done.err());
        }
        // Whoever closes a pipe has had enough.
        let mut command = fixture.command(&words);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let status = child.wait().unwrap();
        assert!(!contains(said.as_bytes(), b"Broken pipe"), "{words:?}: {said}");
        assert!(status.code() == Some(0) || words[0] == "doctor", "{words:?}: {status} {said}");
        fixture.command(&words).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    }
}
