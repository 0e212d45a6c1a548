use super::*;
use crate::tree::{GeneratedFile, Owners, Root, Selection, Source, open_layer};
use crate::tree::{Time, Tree};
use rustix::io::Errno;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

struct Sample {
    dir: tempfile::TempDir,
}

impl Sample {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("rootfs/opt")).unwrap();
        fs::create_dir_all(dir.path().join("home")).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("rootfs/opt").join(name)
    }

    fn exports(&self) -> Exports {
        self.exports_with(History::default())
    }

    fn exports_with(&self, history: History) -> Exports {
        let source = Source {
            rootfs: Root::new(open_layer(&self.dir.path().join("rootfs")).unwrap(), Vec::new()),
            rootfs_owners: Owners::AsOnDisk,
            home: Some(Root::new(open_layer(&self.dir.path().join("home")).unwrap(), Vec::new())),
            home_owners: Owners::All(1000, 100),
        };
        let env = GeneratedFile {
            path: b"/etc/codchi-env",
            content: Some(Arc::from(*b"export DEBUG=''\n")),
            perm: 0o644,
            uid: 0,
            gid: 0,
        };
        let tree = Tree::new(source, &Selection::default(), vec![env], Time::default()).unwrap();
        Exports::new(Arc::new(tree), Time::default(), Options::default(), Arc::new(history))
    }
}

fn changes(g: &Generation) -> Vec<ChangeLine> {
    g.status().changes().lines().0
}

fn all(g: &Arc<Generation>) -> Vec<u8> {
    let mut out = Vec::new();
    write_all(g, Sink::Writer(&mut out), |_| Ok(())).unwrap();
    assert_eq!(out.len() as u64, g.size());
    out
}

#[test]
fn the_same_tree_gives_the_same_generation() {
    let s = Sample::new();
    fs::write(s.path("a"), "one").unwrap();
    let (first, second) = (s.exports().lookup().unwrap(), s.exports().lookup().unwrap());
    assert_eq!(
        (first.id(), first.mtime(), all(&first)),
        (second.id(), second.mtime(), all(&second))
    );
    fs::write(s.path("b"), "two").unwrap();
    assert_ne!(s.exports().lookup().unwrap().id(), first.id());
}

#[test]
fn a_change_before_the_first_read_is_served_and_told() {
    let s = Sample::new();
    fs::write(s.path("a"), "1111").unwrap();
    fs::write(s.path("b"), "1111").unwrap();
    let g = s.exports().lookup().unwrap();
    fs::write(s.path("a"), "2222").unwrap();
    fs::write(s.path("b"), "22223333").unwrap();
    let bytes = all(&g);
    assert!(!g.torn());
    assert_eq!(bytes.windows(4).filter(|w| w == b"2222").count(), 2);
    assert!(!bytes.windows(4).any(|w| w == b"1111" || w == b"3333"));
    let changes: Vec<_> = changes(&g).into_iter().map(|c| (c.path, c.reason)).collect();
    assert_eq!(changes, [("/opt/a".into(), Change::Changed), ("/opt/b".into(), Change::Grew)]);
    let mut last = [0; 4096];
    assert_eq!(g.read_at(g.last_page(), &mut last), Ok(4096));
}

#[test]
fn what_shrinks_or_vanishes_tears() {
    for (what, reason) in
        [("shrink", Change::Shrank), ("remove", Change::Vanished), ("link", Change::Vanished)]
    {
        let s = Sample::new();
        fs::write(s.path("a"), "1111").unwrap();
        fs::write(s.path("b"), "after").unwrap();
        let exports = s.exports();
        let g = exports.lookup().unwrap();
        match what {
            "shrink" => fs::write(s.path("a"), "2").unwrap(),
            "remove" => fs::remove_file(s.path("a")).unwrap(),
            _ => {
                fs::remove_file(s.path("a")).unwrap();
                std::os::unix::fs::symlink("/etc/passwd", s.path("a")).unwrap();
            }
        }
        let bytes = all(&g);
        assert!(g.torn(), "{what}");
        assert!(bytes.windows(5).any(|w| w == b"after"));
        assert_eq!(changes(&g).first().map(|c| (c.reason, c.torn)), Some((reason, true)), "{what}");
        let mut page = [0; 4096];
        assert_eq!(g.read_at(g.last_page(), &mut page), Err(Errno::IO));
        assert_eq!(g.read_at(g.last_page() - 512, &mut page[..512]), Ok(512));
        assert!(exports.fresh().is_none());
        assert_ne!(exports.lookup().unwrap().id(), g.id());
    }
}

#[test]
fn a_rewrite_between_two_reads_tears() {
    let s = Sample::new();
    fs::write(s.path("a"), [b'1'; 4096]).unwrap();
    let g = s.exports().lookup().unwrap();
    let bytes = all(&g);
    let start = bytes.windows(64).position(|w| w.iter().all(|b| *b == b'1')).unwrap();
    let mut half = [0; 2048];
    g.read_at(start as u64, &mut half).unwrap();
    fs::write(s.path("a"), [b'2'; 4096]).unwrap();
    g.read_at(start as u64 + 2048, &mut half).unwrap();
    assert!(g.torn());
    assert_eq!(changes(&g).first().map(|c| c.reason), Some(Change::Rewritten));
}

#[test]
fn a_torn_layout_that_did_not_change_gets_another_id() {
    let s = Sample::new();
    fs::write(s.path("a"), "1111").unwrap();
    let exports = s.exports();
    let g = exports.lookup().unwrap();
    fs::rename(s.path("a"), s.path("../a")).unwrap();
    all(&g);
    assert!(g.torn());
    assert_ne!(exports.lookup().unwrap().id(), g.id());
}

#[test]
fn the_reader_sees_only_what_it_asks_for() {
    let s = Sample::new();
    for i in 0..300 {
        fs::write(s.path(&format!("f{i}")), format!("{i}").repeat(i)).unwrap();
    }
    let g = s.exports().lookup().unwrap();
    let whole = all(&g);
    for (offset, len) in [
        (0, 1),
        (511, 2),
        (1000, 70_000),
        (g.size() - 1, 1),
        (g.size() - 5000, 9000),
        (g.size(), 10),
    ] {
        let mut buf = vec![0xaa; len];
        let n = g.read_at(offset, &mut buf).unwrap();
        let at = offset as usize;
        assert_eq!(&buf[..n], &whole[at..(at + len).min(whole.len())]);
    }
}

#[test]
fn generations_that_are_open_are_never_more_than_fit_into_memory() {
    let s = Sample::new();
    fs::write(s.path("a"), "1").unwrap();
    let size = s.exports().lookup().unwrap().heap_bytes();
    let exports = s.exports_with(History::bounded(size * 5 / 2));
    let mut number = 0;
    let mut next = || {
        number += 1;
        fs::write(s.path("a"), number.to_string()).unwrap();
        exports.renew();
        exports.lookup_or_why()
    };
    let history = exports.history();
    let holds = [history.open(&next().unwrap()), history.open(&next().unwrap())];
    let why = next().unwrap_err();
    assert!(matches!(*why, ScanError::Held { open: 2 }), "{why}");
    exports.renew();
    assert_eq!(exports.lookup().unwrap_err(), Errno::NFILE);
    // One that is closed gives way, though it would be kept if there were room.
    let [first, second] = holds;
    let id = first.generation().id();
    drop(first);
    assert!(exports.by_id(id).is_some());
    let third = next().unwrap();
    assert!(exports.by_id(id).is_none());
    let still = second.generation().id();
    assert!(exports.by_id(still).is_some() && exports.by_id(third.id()).is_some());
}
