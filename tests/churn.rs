//! A machine that never holds still, and eight readers that copy it over and over: whatever a copy holds, a file once
//! held, or the reader was told.
//!
//! `CHURN_SECONDS` says for how long.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::Fixture;
use common::mounted::Mounted;
use common::readers::Reader;
use common::{Done, program, run};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use writers::{Kind, MARKER, Random, WRITERS, churn, prepare, recognized};

#[path = "churn/writers.rs"]
mod writers;

const PAGE: u64 = 4096;

/// A way to copy an export.
struct Way {
    name: &'static str,
    copy: fn(&Fixture, from: &Path, to: &Path) -> Done,
    /// What it leaves when it was refused the last page parses to the end.
    leaves_the_rest: bool,
}

fn of(name: &str, args: &[&str], from: &Path, to: &Path) -> Done {
    run(program(name, args).args([from, to]))
}

const WAYS: [Way; 8] = [
    Way { name: "cp", copy: |_, f, t| of("cp", &[], f, t), leaves_the_rest: true },
    Way {
        name: "cat",
        copy: |_, f, t| of("sh", &["-c", "exec cat -- \"$0\" >\"$1\""], f, t),
        leaves_the_rest: true,
    },
    Way {
        name: "dd bs=64K",
        copy: |_, f, t| of("sh", &["-c", "exec dd bs=64K if=\"$0\" of=\"$1\" status=none"], f, t),
        leaves_the_rest: true,
    },
    Way {
        name: "dd bs=1M iflag=direct",
        copy: |_, f, t| {
            let script = "exec dd bs=1M iflag=direct if=\"$0\" of=\"$1\" status=none";
            of("sh", &["-c", script], f, t)
        },
        // The whole of its last read is refused.
        leaves_the_rest: false,
    },
    Way { name: "rsync", copy: |_, f, t| of("rsync", &[], f, t), leaves_the_rest: true },
    Way { name: "busybox cp", copy: |_, f, t| of("busybox", &["cp"], f, t), leaves_the_rest: true },
    Way { name: "codchifs export", copy: export, leaves_the_rest: true },
    Way { name: "random reads", copy: |_, f, t| random_reads(f, t), leaves_the_rest: true },
];

fn export(fixture: &Fixture, _: &Path, to: &Path) -> Done {
    let done = fixture.run(["export", "m", "-o", to.to_str().unwrap()]);
    let mut partial = to.as_os_str().to_owned();
    partial.push(".partial");
    assert_eq!(done.code == Some(0), to.exists(), "{}", done.err());
    // What is not whole has another name.
    let _ = fs::rename(PathBuf::from(partial), to);
    done
}

/// Reads in any order, and the last page once more at the end, which tells whether what was read is whole.
fn random_reads(from: &Path, to: &Path) -> Done {
    const PIECE: u64 = 65536;
    let done = |code, stderr: String| Done {
        line: "random reads".into(),
        code: Some(code),
        stdout: Vec::new(),
        stderr: stderr.into_bytes(),
    };
    let file = match File::open(from) {
        Ok(file) => file,
        Err(error) => return done(1, error.to_string()),
    };
    let size = file.metadata().unwrap().len();
    let last_page = size / PAGE * PAGE - PAGE;
    let copy = File::create(to).unwrap();
    let mut random = Random::new(size);
    let mut pieces: Vec<u64> = (0..last_page.div_ceil(PIECE)).collect();
    for at in (1..pieces.len()).rev() {
        pieces.swap(at, random.below(at as u64 + 1) as usize);
    }
    for piece in pieces {
        let at = piece * PIECE;
        let mut buffer = vec![0; PIECE.min(last_page - at) as usize];
        file.read_exact_at(&mut buffer, at).unwrap();
        copy.write_all_at(&buffer, at).unwrap();
    }
    let mut page = vec![0; (size - last_page) as usize];
    match file.read_exact_at(&mut page, last_page) {
        Ok(()) => {
            copy.write_all_at(&page, last_page).unwrap();
            done(0, String::new())
        }
        Err(error) => done(1, error.to_string()),
    }
}

/// Paths that changed under the readers of one generation: whether each is torn.
type Changes = BTreeMap<String, bool>;

fn changes(value: &serde_json::Value) -> Changes {
    let lines = value["changed"].as_array().into_iter().flatten();
    lines.map(|l| (l["path"].as_str().unwrap().to_owned(), l["torn"].as_bool().unwrap())).collect()
}

/// What `report.json` says of the current generation and those before, by id.
fn reported(mounted: &Mounted) -> BTreeMap<String, Changes> {
    let report = mounted.report("m");
    let mut generation = report["generation"].clone();
    generation["changed"] = report["changed"].clone();
    let earlier = report["earlier"].as_array().cloned().unwrap_or_default();
    [generation]
        .iter()
        .chain(&earlier)
        .filter_map(|g| {
            let mut told = changes(g);
            // A directory that became a link under the scan: no copy may pass for whole, and no reader met a change.
            if g["complete"] == false {
                told.insert("what the scan could not read".into(), true);
            }
            Some((g["id"].as_str()?.to_owned(), told))
        })
        .collect()
}

/// What `codchifs export` says it met.
fn complained(done: &Done) -> Changes {
    let err = done.err();
    let lines = err.lines().filter_map(|line| {
        let (path, what) = line.strip_prefix("codchifs: m: ")?.split_once(": ")?;
        let whole = ["changed", "grew"].iter().any(|reason| what.starts_with(reason));
        path.starts_with('/').then(|| (path.to_owned(), !whole))
    });
    lines.collect()
}

/// Members of a copy that no file ever was, and those that are not all of a version.
fn faults(copy: &Path) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut never, mut partial) = (BTreeSet::new(), BTreeSet::new());
    let mut archive = tar::Archive::new(File::open(copy).unwrap());
    for entry in archive.entries().unwrap() {
        let Ok(mut entry) = entry else { break };
        let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let path = path.strip_prefix('.').unwrap().to_owned();
        if !path.starts_with("/home/codchi/churn/") || !entry.header().entry_type().is_file() {
            continue;
        }
        let mut content = Vec::new();
        // The end of what was cut off.
        if entry.read_to_end(&mut content).is_err() || content.len() as u64 != entry.size() {
            break;
        }
        assert!(!content.starts_with(MARKER), "{path}: what a link leads to was copied");
        match recognized(&content) {
            None => never.insert(path),
            Some((Kind::Kept | Kind::InPlace | Kind::Replaced, false)) => partial.insert(path),
            Some(_) => continue,
        };
    }
    (never, partial)
}

#[derive(Debug, Default)]
struct Tally {
    whole: AtomicU64,
    torn: AtomicU64,
    /// Met a retired generation at its open, twice.
    refused: AtomicU64,
    /// Torn, and its generation was no longer in the report.
    forgotten: AtomicU64,
}

/// The path of the current generation that stays, and its id.
fn current(mounted: &Mounted, handle: &File) -> Option<(String, PathBuf)> {
    let id = mounted.report("m")["generation"]["id"].as_str()?.to_owned();
    let path = mounted.point().join("m/.generations").join(&id).join("export.tar");
    let same = fs::metadata(&path).ok()?.ino() == handle.metadata().ok()?.ino();
    same.then_some((id, path))
}

/// Copies once, and checks the copy against what was told. `exact`: of a generation that is known.
fn copy_once(
    fixture: &Fixture,
    mounted: &Mounted,
    way: &Way,
    to: &Path,
    exact: bool,
    tally: &Tally,
) {
    let count = |counter: &AtomicU64| {
        counter.fetch_add(1, Ordering::Relaxed);
    };
    let _ = fs::remove_file(to);
    let handle = if exact { File::open(mounted.tar("m")).ok() } else { None };
    let known = handle.as_ref().and_then(|handle| current(mounted, handle));
    let from = known.as_ref().map_or_else(|| mounted.tar("m"), |(_, path)| path.clone());
    let done = (way.copy)(fixture, &from, to);
    let told = reported(mounted);
    let whole = done.code == Some(0);
    let what = format!("{} of {}: {:?} {}", way.name, from.display(), done.code, done.err());

    // What is said of the very generation that was copied, where that is known; else of any.
    let of_this = match (&known, way.name) {
        (_, "codchifs export") => Some(complained(&done)),
        // It may have tried again, and copied another one.
        (_, "rsync") => None,
        (Some((id, _)), _) => told.get(id).cloned(),
        (None, _) => None,
    };
    let of_any: Changes = told.values().flatten().fold(Changes::new(), |mut all, (path, torn)| {
        *all.entry(path.clone()).or_default() |= torn;
        all
    });
    let told = of_this.as_ref().unwrap_or(&of_any);
    if whole {
        count(&tally.whole);
    } else if fs::metadata(to).map_or(0, |copy| copy.len()) == 0 {
        return count(&tally.refused);
    } else if told.values().any(|torn| *torn) {
        count(&tally.torn);
    } else {
        assert!(of_this.is_none(), "{what}: failed, and nothing is torn: {told:?}");
        count(&tally.forgotten);
    }
    if whole || way.leaves_the_rest {
        Reader::check_listed(to);
    }
    let (never, partial) = faults(to);
    if whole || way.name == "rsync" {
        assert!(never.is_empty(), "{what}: no file ever held {never:?}; told: {told:?}");
    }
    for path in never {
        let is_told = told.get(&path) == Some(&true);
        assert!(is_told || of_this.is_none(), "{what}: {path} is torn, told: {told:?}");
    }
    if let Some(told) = &of_this {
        for path in partial {
            assert!(told.contains_key(&path), "{what}: {path} is cut off, told: {told:?}");
        }
    }
}

#[test]
fn what_a_copy_holds_a_file_once_held_or_the_reader_is_told() {
    let seconds = std::env::var("CHURN_SECONDS").map_or(15, |text| text.parse().unwrap());
    let fixture = Fixture::new();
    let top = fixture.empty("m").home.join("churn");
    prepare(&top, &fixture.outside());
    let mounted = Mounted::new(&fixture);
    let end = Instant::now() + Duration::from_secs(seconds);
    let changes: Vec<AtomicU64> = WRITERS.iter().map(|_| AtomicU64::new(0)).collect();
    let tallies: Vec<Tally> = WAYS.iter().map(|_| Tally::default()).collect();
    // Whoever fails ends everybody.
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut stops = Vec::new();
        for (seed, (writer, done)) in WRITERS.iter().zip(&changes).enumerate() {
            let (stop, told) = channel();
            stops.push(stop);
            let (top, over) = (&top, &over);
            scope.spawn(move || churn(writer, top, seed as u64 + 1, &told, done, over));
        }
        let mut readers = Vec::new();
        for (way, tally) in WAYS.iter().zip(&tallies) {
            let (fixture, mounted, over) = (&fixture, &mounted, &over);
            readers.push(scope.spawn(move || {
                let to = fixture.path().join(format!("copy of {}.tar", way.name));
                let mut exact = false;
                while Instant::now() < end && !over.load(Ordering::Relaxed) {
                    let copy = || copy_once(fixture, mounted, way, &to, exact, tally);
                    let copied = std::panic::catch_unwind(std::panic::AssertUnwindSafe(copy));
                    if let Err(panic) = copied {
                        over.store(true, Ordering::Relaxed);
                        std::panic::resume_unwind(panic);
                    }
                    exact = !exact;
                }
            }));
        }
        let results: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
        drop(stops);
        for result in results {
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    for (writer, done) in WRITERS.iter().zip(&changes) {
        println!("{}: {} times", writer.name, load(done));
        assert!(load(done) > 10, "{}: changed next to nothing", writer.name);
    }
    for (way, tally) in WAYS.iter().zip(&tallies) {
        println!("{}: {tally:?}", way.name);
    }
    let sum =
        |pick: fn(&Tally) -> &AtomicU64| -> u64 { tallies.iter().map(|t| load(pick(t))).sum() };
    let (whole, torn) = (sum(|t| &t.whole), sum(|t| &t.torn));
    assert!(whole > 0 && torn > 0, "{whole} whole and {torn} torn copies show nothing");
    let copies = whole + torn + sum(|t| &t.refused) + sum(|t| &t.forgotten);
    assert!(sum(|t| &t.refused) < copies / 2, "half of the copies could not even begin");
    mounted.unmount();
}
