use super::*;
use crate::filesystem;
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
        let (tree, history) = (Arc::new(self.tree()), Arc::new(history));
        Exports::new(tree, Time::default(), Options::default(), history)
    }

    fn tree(&self) -> Tree {
        let source = Source {
            rootfs: Root::new(open_layer(&self.dir.path().join("rootfs")).unwrap(), Vec::new())
                .unwrap(),
            rootfs_owners: Owners::AsOnDisk,
            home: Some(
                Root::new(open_layer(&self.dir.path().join("home")).unwrap(), Vec::new()).unwrap(),
            ),
            home_owners: Owners::All(1000, 100),
        };
        let env = GeneratedFile {
            path: b"/etc/codchi-env",
            content: Some(Arc::from(*b"export DEBUG=''\n")),
            perm: 0o644,
            uid: 0,
            gid: 0,
        };
        Tree::new(source, &Selection::default(), vec![env], Time::default()).unwrap()
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
fn one_id_is_one_generation_whoever_scans() {
    let s = Sample::new();
    fs::write(s.path("a"), [b'1'; 4096]).unwrap();
    // As after SIGHUP: the machine is put together anew while somebody reads it.
    let before = s.exports();
    let (history, g) = (Arc::clone(before.history()), before.lookup().unwrap());
    let open = history.open(&g);
    drop((before, g));
    let anew = || {
        let (tree, history) = (Arc::new(s.tree()), Arc::clone(&history));
        Exports::new(tree, Time::default(), Options::default(), history)
    };
    let after = anew();
    let again = after.lookup().unwrap();
    assert!(Arc::ptr_eq(open.generation(), &again));
    // Also while nobody has it open.
    let second = anew();
    drop((open, after));
    assert!(Arc::ptr_eq(&second.lookup().unwrap(), &again));
    // What tears it is known to all.
    fs::remove_file(s.path("a")).unwrap();
    all(&again);
    assert!(second.fresh().is_none());
    assert_ne!(second.lookup().unwrap().id(), again.id());
    assert_ne!(anew().lookup().unwrap().id(), again.id());
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
fn a_long_line_of_the_manifest_is_made_once_for_whoever_reads_in_order() {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    let s = Sample::new();
    let name = "n".repeat(255);
    let mut at = openat(CWD, s.path(""), OFlags::PATH, Mode::empty()).unwrap();
    for _ in 0..300 {
        mkdirat(&at, &name, Mode::RWXU).unwrap();
        at = openat(&at, &name, OFlags::PATH, Mode::empty()).unwrap();
    }
    let file = openat(&at, "file", OFlags::WRONLY | OFlags::CREATE, Mode::RWXU).unwrap();
    rustix::io::write(&file, b"content").unwrap();
    let manifest = s.exports().lookup().unwrap().manifest();
    let read = |part: usize| {
        let (mut all, mut buf) = (Vec::new(), vec![0; part]);
        while (all.len() as u64) < manifest.size() {
            let count = manifest.read_at(all.len() as u64, &mut buf, &|| true).unwrap();
            all.extend_from_slice(&buf[..count]);
        }
        all
    };
    let made = || manifest.made.swap(0, std::sync::atomic::Ordering::SeqCst);
    let whole = read(usize::try_from(manifest.size()).unwrap());
    let long = whole.split(|byte| *byte == b'\n').filter(|line| line.len() >= 64 << 10).count();
    assert!(long > 40, "{long}");
    assert_eq!(made(), long);
    let sum = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73";
    assert!(String::from_utf8_lossy(&whole).contains(&format!(" sha256digest={sum}\n")));
    // Parts of one line, and of two.
    for part in [16 << 10, 50_001] {
        assert!(read(part) == whole, "{part}");
        assert_eq!(made(), long, "{part}");
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

#[test]
fn a_scan_asks_nothing_twice_that_a_ctime_answers() {
    use super::known::Known;
    use rustix::fs::{CWD, XattrFlags, lsetxattr, symlinkat};
    let sample = Sample::new();
    for name in ["bare", "marked", "later", "linked"] {
        fs::write(sample.path(name), name).unwrap();
    }
    fs::create_dir(sample.path("dir")).unwrap();
    fs::hard_link(sample.path("linked"), sample.path("another")).unwrap();
    symlinkat("bare", CWD, sample.path("symlink")).unwrap();
    let mark = |name: &str, value: &[u8]| {
        lsetxattr(sample.path(name), c"user.mark", value, XattrFlags::empty()).unwrap();
    };
    mark("marked", b"first");
    let tree = sample.tree();
    let at = |known: Option<&Known<'_>>, sec| {
        scan::scan(&tree, Options::default(), 2, known, Time { sec, nsec: 0 }).unwrap()
    };
    let digest = |scan: &scan::Scan| scan.layout.digest(|_, _| ());
    // Long after all that was done, which is as if it had been done long ago.
    let first = at(None, i64::MAX);
    let known = Known::new(&first.layout, &first.bare);
    let names = |scan: &scan::Scan| {
        let members = scan.layout.iter().filter(|member| scan.bare.has(*member));
        members.map(|member| scan.layout.name(member).to_vec()).collect::<Vec<_>>()
    };
    let directory = std::fs::File::open(sample.dir.path()).unwrap();
    if filesystem::of(&directory) == Ok(filesystem::TMPFS) {
        assert!(names(&first).is_empty(), "tmpfs may change attributes without a ctime");
        return;
    }
    let mut bare = names(&first);
    bare.sort();
    let expected: [&[u8]; 7] =
        [b"another", b"bare", b"codchi", b"dir", b"later", b"opt", b"symlink"];
    assert_eq!(bare, expected);
    // What is known is believed: a wrong word would show.
    for member in first.layout.iter().filter(|member| first.bare.has(*member)) {
        let tag = *first.layout.tag(member).unwrap();
        assert!(known.has(&tag), "{:?}", first.layout.name(member));
    }
    assert_eq!(digest(&at(Some(&known), i64::MAX)), digest(&first));
    for (name, value) in [("later", b"new".as_slice()), ("marked", b"second"), ("dir", b"new")] {
        mark(name, value);
    }
    lsetxattr(sample.path("linked"), c"user.mark", b"new", XattrFlags::empty()).unwrap();
    assert_eq!(digest(&at(Some(&known), i64::MAX)), digest(&at(None, i64::MAX)));
    // Now: another change may yet get the ctimes that there are.
    assert!(names(&at(None, 0)).is_empty());
}

#[test]
fn a_panic_beside_the_listing_of_a_directory_ends_the_scan_and_keeps_nobody_waiting() {
    let sample = Sample::new();
    for n in 0..50 {
        fs::create_dir_all(sample.path(&format!("d{n}/e/f"))).unwrap();
    }
    fs::create_dir(sample.path("d7/panic in merge")).unwrap();
    let exports = sample.exports();
    let why = exports.lookup_or_why().map(drop).unwrap_err().to_string();
    assert!(why.contains("a bug"), "{why}");
    fs::remove_dir(sample.path("d7/panic in merge")).unwrap();
    sample.exports().lookup().unwrap();
}
