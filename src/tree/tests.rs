use super::*;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;

struct Sample {
    _dir: tempfile::TempDir,
    root: PathBuf,
    home: PathBuf,
}

fn sample() -> Sample {
    let dir = tempfile::tempdir().unwrap();
    let (root, home) = (dir.path().join("rootfs"), dir.path().join("home"));
    for d in [
        "etc/ssh",
        "nix/store",
        "opt/bin",
        "usr/bin",
        "usr/lib",
        "var/lib/nixos",
        "var/lib/pg",
        "home/codchi",
    ] {
        fs::create_dir_all(root.join(d)).unwrap();
    }
    for f in [
        "etc/ssh/key",
        "etc/passwd",
        "nix/store/x",
        "opt/bin/tool",
        "usr/bin/env",
        "usr/bin/x",
        "home/codchi/hidden",
    ] {
        fs::write(root.join(f), f).unwrap();
    }
    fs::create_dir_all(home.join("bin")).unwrap();
    fs::write(home.join(".Xauthority"), "cookie").unwrap();
    fs::write(home.join("bin/.Xauthority"), "not the host's").unwrap();
    Sample { _dir: dir, root, home }
}

fn open(s: &Sample, selection: Selection) -> Tree {
    let source = Source {
        rootfs: Root::new(open_layer(&s.root).unwrap(), Vec::new()).unwrap(),
        rootfs_owners: Owners::AsOnDisk,
        home: Some(Root::new(open_layer(&s.home).unwrap(), Vec::new()).unwrap()),
        home_owners: Owners::All(1000, 100),
    };
    let made = GeneratedFile {
        path: b"/etc/nixos/flake.nix",
        content: Some(Arc::from(*b"{ }")),
        perm: 0o644,
        uid: 0,
        gid: 0,
    };
    Tree::new(source, &selection, vec![made], Time { sec: 7, nsec: 0 }).unwrap()
}

fn walk(tree: &Tree, dir: &Dir, out: &mut Vec<String>) {
    for e in tree.read_dir(dir).unwrap() {
        out.push(format!(
            "{}/{}",
            String::from_utf8_lossy(dir.path()),
            String::from_utf8_lossy(&e.name)
        ));
        assert_eq!(tree.lookup(dir, &e.name).unwrap(), e.attr);
        if e.attr.kind == Kind::Directory {
            walk(tree, &tree.open_dir(dir, &e.name).unwrap().0, out);
        }
    }
}

fn paths(tree: &Tree) -> Vec<String> {
    let mut out = Vec::new();
    walk(tree, &tree.root().unwrap().0, &mut out);
    out
}

#[test]
fn debug_of_an_opened_file_has_none_of_its_bytes() {
    let s = sample();
    let tree = open(&s, Selection::default());
    let dir = ["etc", "nixos"]
        .iter()
        .fold(tree.root().unwrap().0, |dir, name| tree.open_dir(&dir, name.as_bytes()).unwrap().0);
    let (file, _) = tree.open_file(&dir, b"flake.nix").unwrap();
    assert_eq!(format!("{file:?}"), "Generated { bytes: Some(3) }");
    assert_eq!(format!("{:?}", File::Generated(None)), "Generated { bytes: None }");
}

#[test]
fn excludes_whole_names_at_the_root_only() {
    let s = sample();
    assert_eq!(
        paths(&open(&s, Selection::default())),
        [
            "/etc",
            "/etc/nixos",
            "/etc/nixos/flake.nix",
            "/home",
            "/home/codchi",
            "/home/codchi/bin",
            "/home/codchi/bin/.Xauthority",
            "/opt",
            "/opt/bin",
            "/opt/bin/tool",
            "/usr",
            "/usr/bin",
            "/usr/bin/x",
            "/usr/lib",
            "/var",
            "/var/lib",
            "/var/lib/pg",
        ]
    );
}

#[test]
fn an_include_wins_and_an_exclude_changes_nothing_else() {
    let s = sample();
    let all = paths(&open(&s, Selection::default()));
    let with = Selection { include: vec!["/etc/ssh".into()], ..Selection::default() };
    let mut more = paths(&open(&s, with));
    more.retain(|p| !all.contains(p));
    assert_eq!(more, ["/etc/ssh", "/etc/ssh/key"]);

    let without = Selection { exclude: vec!["bin/".into()], ..Selection::default() };
    let mut expected = all;
    expected.retain(|p| !p.split('/').any(|c| c == "bin"));
    assert_eq!(paths(&open(&s, without)), expected);

    for bad in ["etc", "/etc/../x", "/a//b", "/"] {
        let selection = Selection { include: vec![bad.into()], ..Selection::default() };
        assert!(Rules::new(&selection, &[], false).is_err(), "{bad}");
    }
}

#[test]
fn generated_directories_stand_over_a_link() {
    let s = sample();
    fs::remove_dir_all(s.root.join("etc")).unwrap();
    symlink("/root", s.root.join("etc")).unwrap();
    fs::remove_dir_all(s.root.join("home")).unwrap();
    symlink("/root", s.root.join("home")).unwrap();
    let tree = open(&s, Selection::default());
    let (root, attr) = tree.root().unwrap();
    assert_eq!((attr.perm, attr.uid, attr.gid), (0o755, 0, 0));
    let (etc, attr) = tree.open_dir(&root, b"etc").unwrap();
    assert_eq!((attr.kind, attr.perm, attr.mtime.sec), (Kind::Directory, 0o755, 7));
    assert_eq!(tree.read_dir(&etc).unwrap().len(), 1);
    let (home, _) = tree.open_dir(&root, b"home").unwrap();
    let codchi = tree.lookup(&home, b"codchi").unwrap();
    assert_eq!((codchi.uid, codchi.gid), (1000, 100));
    assert_eq!(paths(&tree).iter().filter(|p| p.starts_with("/home")).count(), 4);
}

#[test]
fn never_follows_and_never_opens_what_is_no_file() {
    let s = sample();
    symlink("/etc/shadow", s.root.join("opt/shadow")).unwrap();
    symlink("/", s.root.join("opt/dir")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, s.root.join("opt/fifo"), rustix::fs::Mode::RUSR).unwrap();
    let tree = open(&s, Selection::default());
    let (opt, _) = tree.open_dir(&tree.root().unwrap().0, b"opt").unwrap();
    assert_eq!(tree.open_file(&opt, b"shadow").unwrap_err(), Errno::LOOP);
    assert_eq!(tree.open_dir(&opt, b"dir").unwrap_err(), Errno::LOOP);
    assert_eq!(tree.open_file(&opt, b"fifo").unwrap_err(), Errno::NXIO);
    assert_eq!(tree.open_file(&opt, b"bin").unwrap_err(), Errno::ISDIR);
    assert_eq!(tree.read_link(&opt, b"shadow").unwrap(), b"/etc/shadow");
    assert_eq!(tree.lookup(&opt, b"fifo").unwrap().kind, Kind::Fifo);
}

#[test]
fn identity_is_the_disks() {
    let s = sample();
    fs::hard_link(s.root.join("opt/bin/tool"), s.root.join("usr/bin/tool")).unwrap();
    let tree = open(&s, Selection::default());
    let root = tree.root().unwrap().0;
    let at = |a: &[u8], b: &[u8]| {
        let (dir, _) = tree.open_dir(&tree.open_dir(&root, a).unwrap().0, b).unwrap();
        tree.lookup(&dir, b"tool").unwrap()
    };
    let ino = fs::metadata(s.root.join("opt/bin/tool")).unwrap().ino();
    assert_eq!(at(b"opt", b"bin").id, ObjectId::Disk { layer: 0, subvol: 0, ino });
    assert_eq!(at(b"opt", b"bin"), at(b"usr", b"bin"));
    assert_eq!(at(b"usr", b"bin").nlink, 2);
}

#[test]
fn sockets_are_left_out_and_told() {
    let s = sample();
    let _socket = std::os::unix::net::UnixListener::bind(s.root.join("opt/sock")).unwrap();
    let tree = open(&s, Selection::default());
    let (opt, _) = tree.open_dir(&tree.root().unwrap().0, b"opt").unwrap();
    let mut told = Vec::new();
    let room = std::sync::atomic::AtomicUsize::new(0);
    let wants = Wants {
        holes: true,
        details: &|_| true,
        room: &room,
        known_bare: &|_| false,
        settled: Time::default(),
    };
    let listing =
        tree.scan_dir(&opt, &wants, &mut |name, why| told.push((name.to_vec(), why))).unwrap();
    assert_eq!(listing.entries().len(), 1);
    assert_eq!(told, [(b"sock".to_vec(), LeftOut::Socket)]);
}
