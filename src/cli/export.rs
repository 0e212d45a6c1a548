//! `codchifs export`: a machine's tar without a mount.

use super::args::{Export, Global, Reflink, Secrets};
use super::output::{Output, shares_blocks};
use super::progress::{Progress, size};
use super::target::Target;
use super::text::write_json;
use super::{Context, Failure, Outcome, complain};
use crate::backend::Power;
use crate::credentials::as_user;
use crate::export::{Change, Generation, Sink, StreamError, write_all};
use crate::machine::Settings;
use crate::quote;
use crate::walk;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

pub(super) fn run(global: &Global, export: &Export) -> Result<Outcome, Failure> {
    let name = export.name.as_str();
    let redacted = if export.wishes.secrets == Secrets::Omit { "-redacted" } else { "" };
    let suffix = if export.zstd.is_some() { ".zst" } else { "" };
    let output = export.output.clone();
    let output = output.unwrap_or_else(|| PathBuf::from(format!("{name}{redacted}.tar{suffix}")));
    let to_stdout = output == Path::new("-");
    if to_stdout && export.json {
        return Err(
            "export: the tar and JSON cannot both go to stdout; -o FILE, or no --json".into()
        );
    }
    if to_stdout && io::stdout().is_terminal() {
        return Err("export: a tar on a terminal helps nobody; -o FILE, or a pipe".into());
    }
    let not_written = |why| format!("export {name}: cannot write {}: {why}", quote::path(&output));
    // Before all else: what is in the way shows at once.
    let place = match to_stdout {
        true => None,
        false => Some(Output::find(&output).map_err(not_written)?),
    };
    if let Some(Output::Open(file)) = &place
        && file.is_terminal()
    {
        return Err("export: a tar on a terminal helps nobody; -o FILE, or a pipe".into());
    }
    let mut settings = Settings::from(export.wishes.clone());
    let shared = matches!(&place, Some(Output::Place(place)) if shares_blocks(place));
    settings.options.align = export.reflink == Reflink::Auto && shared;
    let context = Context::new(global)?;
    let user = context.user;
    let machines = context.machines(settings, Vec::new())?;
    let machine = machines
        .get(name.as_bytes())
        .ok_or_else(|| format!("export {name}: no such machine; `codchifs list` names them"))?;
    let exports = match (&machine.tree, &machine.exports) {
        (Ok(_), Some(exports)) => exports,
        (Err(why), _) => return Err(format!("export {name}: {why}").into()),
        (Ok(_), None) => return Err(format!("export {name}: nothing to export").into()),
    };
    if machine.location.as_ref().is_some_and(|l| l.power == Some(Power::Running)) {
        complain(&format!(
            "{name} runs: what changes during the export makes it incomplete; stop the machine first"
        ));
    }
    for path in machine.missing_includes() {
        complain(&format!(
            "{name}: --include {path}: there is nothing of this name in the machine"
        ));
    }
    let stopped = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // The second one ends the process at once, in case a write hangs.
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stopped))?;
        signal_hook::flag::register(signal, Arc::clone(&stopped))?;
    }
    let target = place.map(Target::create).transpose().map_err(not_written)?;
    let rootfs = machine.location.as_ref().map(|l| pin_directory(&l.rootfs));
    let home = as_user(user, || walk::pin(&machine.home)).map(Result::ok);
    let own = [rootfs.transpose().ok().flatten(), home.ok().flatten()];
    if let Some(target) = &target
        && own.iter().flatten().any(|directory| target.is_below(directory))
    {
        target.discard();
        let output = quote::path(&output);
        return Err(format!("export {name}: {output} lies in the machine itself, and would be in its own archive; write it elsewhere").into());
    }
    let generation = exports.lookup_or_why().map_err(|why| {
        target.iter().for_each(Target::discard);
        format!("export {name}: {why}")
    })?;
    let started = Instant::now();
    let progress = Progress::new(generation.size(), export.quiet);
    let copy = |out: &File| {
        let so_far = |done| {
            progress.at(done);
            match stopped.load(Ordering::Relaxed) {
                true => Err(io::Error::other("stopped by a signal")),
                false => Ok(()),
            }
        };
        let result = match export.zstd {
            None if to_stdout => write_all(&generation, Sink::File(out), so_far),
            None => write_all(&generation, Sink::Own(out), so_far),
            Some(level) => compressed(&generation, out, level, so_far),
        };
        progress.end();
        result
    };
    let Some(target) = target else {
        let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        match copy(&stdout) {
            Err(StreamError::Write(e)) if e.kind() == io::ErrorKind::BrokenPipe => {
                return Err(e.into());
            }
            other => other.map_err(|why| format!("export {name}: stdout: {why}"))?,
        }
        return Ok(verdict(name, &generation, None));
    };
    if let Err(why) = copy(&target.file) {
        verdict(name, &generation, None);
        let what = format!("export {name}: {}: {why}", quote::path(&output));
        let hint = match &why {
            StreamError::Write(e) if e.kind() == io::ErrorKind::StorageFull => {
                format!("; the export needs {}", size(generation.size()))
            }
            _ => String::new(),
        };
        target.discard();
        return Err(format!("{what}{hint}; nothing was kept").into());
    }
    let written = target.file.metadata()?.len();
    let tell = |path: &Path| -> io::Result<()> {
        let all = json!({
            "schema": 1, "name": name, "output": quote::path(path).to_string(), "complete": !generation.torn(),
            "generation": format!("{:016x}", generation.id()), "members": generation.members(),
            "size": generation.size(), "written": written,
            "seconds": started.elapsed().as_secs_f64(),
            "changes": generation.status().changes().lines().0.iter().map(|c| &c.path).collect::<Vec<_>>(),
        });
        match export.json {
            true => write_json(&mut io::stdout().lock(), &all, true),
            false => Ok(()),
        }
    };
    if generation.torn() {
        let kept = target.keep()?.unwrap_or_else(|| output.clone());
        tell(&kept)?;
        return Ok(verdict(name, &generation, Some(&kept)));
    }
    target.finish().map_err(|why| format!("export {name}: {}: {why}", quote::path(&output)))?;
    tell(&output)?;
    if !export.quiet && io::stderr().is_terminal() {
        let rate = generation.size() as f64 / started.elapsed().as_secs_f64().max(0.001);
        complain(&format!(
            "{name}: {} members, {} in {:.1} s ({}/s) -> {}",
            generation.members(),
            size(generation.size()),
            started.elapsed().as_secs_f64(),
            size(rate as u64),
            quote::path(&output)
        ));
    }
    Ok(verdict(name, &generation, None))
}

fn pin_directory(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// Writes the archive through zstd, on its own threads.
fn compressed(
    generation: &Arc<Generation>,
    out: &File,
    level: i32,
    progress: impl FnMut(u64) -> io::Result<()>,
) -> Result<(), StreamError> {
    let mut encoder = zstd::Encoder::new(out, level)?;
    encoder.include_checksum(true)?;
    encoder.multithread(std::thread::available_parallelism().map_or(1, |n| n.get() as u32))?;
    write_all(generation, Sink::Writer(&mut encoder), progress)?;
    encoder.finish()?.flush()?;
    Ok(())
}

/// Says what is not as the scan saw it. A torn export has failed, however many of its bytes are right.
fn verdict(name: &str, generation: &Generation, kept: Option<&Path>) -> Outcome {
    let (changes, more) = generation.status().changes().lines();
    for change in &changes {
        complain(&format!("{name}: {}: {}", change.path, change.reason.while_exported()));
    }
    if more > 0 {
        complain(&format!("{name}: {more} more changed while it was exported"));
    }
    if !generation.torn() {
        return Outcome::Done;
    }
    let left_out = generation.left_out();
    for line in left_out.lines.iter().filter(|l| l.reason == "unreadable") {
        complain(&format!("{name}: {}: {}", line.path, line.text));
    }
    let kept = kept
        .map(|path| format!("; what was written is {}", quote::path(&path)))
        .unwrap_or_default();
    complain(&format!("export {name}: incomplete: {}{kept}", remedy(generation)));
    Outcome::Incomplete
}

/// What to do where a generation is torn.
pub(super) fn remedy(generation: &Generation) -> &'static str {
    let (changes, _) = generation.status().changes().lines();
    match changes.iter().any(|c| c.torn && c.reason != Change::Unreadable) {
        true => "stop the machine and try again",
        false => {
            "only root reads all of a machine; a disk that fails must be repaired, or the file left \
             out with --exclude"
        }
    }
}
