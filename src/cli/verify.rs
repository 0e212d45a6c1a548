//! `codchifs verify`: a copy compared with its machine, or with a manifest.

use super::args::{Global, Verify};
use super::progress::Progress;
use super::text::write_json;
use super::{Context, Failure, Outcome, complain, export};
use crate::export::Generation;
use crate::quote;
use crate::verify::{
    self, Archive, Difference, Directory, Error, Item, List, Names, Now, Reference, Summary, Why,
};
use serde_json::json;
use std::fs::File;
use std::io::{self, BufReader, Read, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{channel, sync_channel};

/// Members that the copy may be ahead of the machine.
const AHEAD: usize = 256;
/// Whether a compressed file begins so: with a frame, or with one to be skipped, as pzstd(1) writes it (RFC 8878).
fn is_zstd(start: &[u8]) -> bool {
    matches!(start, [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18])
}

pub(super) fn run(global: &Global, wanted: &Verify) -> Result<Outcome, Failure> {
    match compare(global, wanted) {
        Ok(outcome) => Ok(outcome),
        Err(why) if super::is_broken_pipe(&*why) => Err(why),
        // 1 would say that the copy differs.
        Err(why) => {
            complain(&format!("verify {}: {why}", wanted.name));
            Ok(Outcome::Unknown)
        }
    }
}

fn compare(global: &Global, wanted: &Verify) -> Result<Outcome, Failure> {
    let (mut reference, generation) = reference(global, wanted)?;
    let mut out = io::stdout().lock();
    let mut each = |difference: Difference| match wanted.json {
        true => write_json(&mut out, &json_of(&difference), false),
        false => writeln!(out, "{}", text_of(&difference)),
    };
    let result = match wanted.copy.is_dir() {
        true => directory(&mut *reference, wanted, generation.as_deref(), &mut each),
        false => archive(&mut *reference, wanted, &mut each),
    };
    let summary = match result {
        Err(Failed::Compare(Error::Stopped(why))) => return Err(why.into()),
        Err(Failed::Compare(why)) => return Err(why.into()),
        Err(Failed::Other(why)) => return Err(why),
        Ok(summary) => summary,
    };
    // What changed under this very comparison was no reference.
    let changed = generation.as_ref().filter(|generation| generation.torn());
    if wanted.json {
        let summary = json!({
            "machine": wanted.name.as_str(),
            "identical": summary.is_identical() && changed.is_none(),
            "compared": summary.compared,
            "differences": summary.differences,
            "others": summary.others,
            "damaged_bytes": summary.damaged_bytes,
            "cut_off_at": summary.cut_off,
        });
        write_json(&mut out, &summary, false)?;
    }
    out.flush()?;
    drop(out);
    conclude(wanted, &summary);
    if let Some(generation) = changed {
        for change in generation.status().changes().lines().0 {
            complain(&format!(
                "{}: {}: {}",
                wanted.name,
                change.path,
                change.reason.while_exported()
            ));
        }
        let what = match generation.incomplete() {
            true => "a part of the machine cannot be read",
            false => "the machine changed",
        };
        complain(&format!("verify {}: {what}: {}", wanted.name, export::remedy(generation)));
    }
    Ok(match (summary.is_identical(), changed) {
        (false, _) => Outcome::Incomplete,
        (true, Some(_)) => Outcome::Unknown,
        (true, None) => Outcome::Done,
    })
}

type Compared = (Box<dyn Reference>, Option<Arc<Generation>>);

fn reference(global: &Global, wanted: &Verify) -> Result<Compared, Failure> {
    if let Some(path) = &wanted.manifest {
        let file = File::open(path).map_err(|why| format!("{}: {why}", quote::path(&path)))?;
        return Ok((Box::new(List::new(BufReader::new(file))), None));
    }
    let machines = Context::new(global)?.machines(wanted.wishes.clone().into(), Vec::new())?;
    let machine = machines
        .get(wanted.name.as_str().as_bytes())
        .ok_or("no such machine; `codchifs list` names them, --manifest FILE needs none")?;
    let exports = match (&machine.tree, &machine.exports) {
        (Ok(_), Some(exports)) => exports,
        (tree, _) => return Err(tree.as_ref().err().cloned().unwrap_or_default().into()),
    };
    let generation = exports.lookup_or_why().map_err(|why| why.to_string())?;
    Ok((Box::new(Now::new(Arc::clone(&generation))), Some(generation)))
}

enum Failed {
    Compare(Error),
    Other(Failure),
}

type Each<'a> = &'a mut dyn FnMut(Difference) -> io::Result<()>;

fn directory(
    reference: &mut dyn Reference,
    wanted: &Verify,
    generation: Option<&Generation>,
    each: Each<'_>,
) -> Result<Summary, Failed> {
    let cannot =
        |why: String| Failed::Other(format!("{}: {why}", quote::path(&wanted.copy)).into());
    let names = match wanted.renumbered {
        true => Some(Names::of(&wanted.copy).map_err(|why| {
            cannot(format!(
                "{why}; --renumbered is for the root of a system that the export is extracted to"
            ))
        })?),
        false => None,
    };
    let mut directory =
        Directory::open(&wanted.copy, names).map_err(|why| cannot(why.to_string()))?;
    let quiet = wanted.quiet || generation.is_none();
    let progress = Progress::new(generation.map_or(0, Generation::extracted), quiet);
    let mut each = |difference| progress.aside(|| each(difference));
    let mut done = 0_u64;
    let mut so_far = |bytes: u64| {
        done = done.saturating_add(bytes);
        progress.at(done);
    };
    let result = verify::directory(reference, &mut directory, &mut each, &mut so_far);
    progress.end();
    result.map_err(Failed::Compare)
}

fn archive(
    reference: &mut dyn Reference,
    wanted: &Verify,
    each: Each<'_>,
) -> Result<Summary, Failed> {
    let cannot =
        |why: io::Error| Failed::Other(format!("{}: {why}", quote::path(&wanted.copy)).into());
    let is_stdin = wanted.copy == Path::new("-");
    let mut input: Box<dyn Read + Send> = match is_stdin {
        true => Box::new(io::stdin()),
        false => Box::new(File::open(&wanted.copy).map_err(cannot)?),
    };
    let meta = wanted.copy.metadata().ok().filter(|_| !is_stdin);
    let made = meta.as_ref().filter(|meta| meta.is_file()).map(|meta| meta.mtime());
    let total = meta.map_or(0, |meta| meta.len());
    let mut start = Vec::new();
    input.by_ref().take(4).read_to_end(&mut start).map_err(cannot)?;
    let zstd = is_zstd(&start);
    let progress = Progress::new(total, wanted.quiet || total == 0);
    let mut each = |difference| progress.aside(|| each(difference));
    let input = io::Cursor::new(start).chain(input);
    let counted = Counted { input, read: 0, progress: &progress };
    let input: Box<dyn Read + Send + '_> = match zstd {
        true => Box::new(Torn(zstd::Decoder::new(counted).map_err(cannot)?)),
        false => Box::new(BufReader::with_capacity(1 << 20, counted)),
    };
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel(AHEAD);
        // The copy is hashed on its own thread while this one hashes the machine.
        scope.spawn(move || {
            let ask = send.clone();
            let mut archive = Archive::new(input, move |entry| {
                let (answer, answered) = channel();
                ask.send(Ok(Some(Item::Wanted(Box::new(entry.clone()), answer)))).is_ok()
                    && answered.recv().unwrap_or(false)
            });
            loop {
                let item = archive.item().map_err(Error::Copy);
                let last = !matches!(item, Ok(Some(_)));
                if send.send(item).is_err() || last {
                    return;
                }
            }
        });
        let next = || receive.recv().unwrap_or(Ok(None));
        let result = verify::archive(reference, next, made, &mut each);
        let result = result.map(|summary| Summary { compressed: zstd, ..summary });
        // A thread that waits for room must not wait for ever.
        drop(receive);
        progress.end();
        result.map_err(Failed::Compare)
    })
}

/// A reader that shows how much was read, also within a large member.
struct Counted<'a, R> {
    input: R,
    read: u64,
    progress: &'a Progress,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buf)?;
        self.read += count as u64;
        self.progress.at(self.read);
        Ok(count)
    }
}

/// A compressed archive that is damaged ends where the damage is.
struct Torn<R>(R);

impl<R: Read> Read for Torn<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buf) {
            Err(error)
                if error.kind() != io::ErrorKind::Interrupted && error.raw_os_error().is_none() =>
            {
                complain(&format!("the compressed copy: {error}"));
                Ok(0)
            }
            other => other,
        }
    }
}

fn shown(path: &[u8]) -> String {
    format!("/{}", quote::name(path))
}

fn because(why: Why) -> (&'static str, &'static str) {
    match why {
        Why::Since => ("changed-since", " (changed in the machine since)"),
        Why::There => ("changed-there", " (changed in the copy)"),
        Why::Damaged => ("damaged", " (damaged in the copy)"),
        Why::Unknown => ("unknown", ""),
    }
}

fn text_of(difference: &Difference) -> String {
    let what = difference.what.join(", ");
    format!("{}: {what}{}", shown(&difference.path), because(difference.why).1)
}

fn json_of(difference: &Difference) -> serde_json::Value {
    json!({
        "path": shown(&difference.path),
        "differs": difference.what,
        "because": because(difference.why).0,
    })
}

/// What all of it comes to, for people.
fn conclude(wanted: &Verify, summary: &Summary) {
    let name = &wanted.name;
    if summary.damaged_bytes > 0 {
        complain(&format!("{name}: {} bytes of the copy are damaged", summary.damaged_bytes));
    }
    if let Some(at) = summary.cut_off {
        complain(&match (at, summary.compressed || wanted.copy == Path::new("-")) {
            (0, _) => format!("{name}: the copy is empty; copy it again"),
            // Nobody can go on where it ends.
            (_, true) => format!("{name}: the copy is cut off after {at} bytes; copy it again"),
            (_, false) => format!(
                "{name}: the copy is cut off after {at} bytes; `rsync --append-verify` completes it"
            ),
        });
    }
    if wanted.quiet || wanted.json {
        return;
    }
    let others = match summary.others {
        0 => String::new(),
        n => format!("; {n} names beside them are not of the export"),
    };
    let result = match summary.is_identical() {
        true => "identical".to_owned(),
        false if summary.differences == 0 => "these are right, the copy is not whole".to_owned(),
        false => format!("{} differ", summary.differences),
    };
    complain(&format!("{name}: {} members compared: {result}{others}", summary.compared));
}
