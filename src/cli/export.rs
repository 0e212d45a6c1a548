//! `codchifs export`: a machine's tar without a mount.

use super::args::{Export, Global, Secrets};
use super::progress::{Progress, size};
use super::{Context, Failure, Outcome, complain};
use crate::backend::Power;
use crate::export::{Change, Generation, StreamError, write_all};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, IsTerminal as _, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

pub(super) fn run(global: &Global, export: &Export) -> Result<Outcome, Failure> {
    let name = export.name.as_str();
    let machines = Context::new(global)?.machines(export.wishes.clone().into(), Vec::new())?;
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
    let redacted = if export.wishes.secrets == Secrets::Omit { "-redacted" } else { "" };
    let output = export.output.clone();
    let output = output.unwrap_or_else(|| PathBuf::from(format!("{name}{redacted}.tar")));
    let to_stdout = output == Path::new("-");
    if to_stdout && io::stdout().is_terminal() {
        return Err("export: a tar on a terminal helps nobody; -o FILE, or a pipe".into());
    }
    let stopped = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // The second one ends the process at once, in case a write hangs.
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stopped))?;
        signal_hook::flag::register(signal, Arc::clone(&stopped))?;
    }
    // Before the scan: what is in the way shows at once.
    let target =
        match to_stdout {
            true => None,
            false => Some(Target::create(&output).map_err(|why| {
                format!("export {name}: cannot write {}: {why}", output.display())
            })?),
        };
    let own = machine.location.iter().map(|l| &l.rootfs).chain([&machine.home]);
    if let Some(target) = target.as_ref().filter(|t| own.into_iter().any(|dir| t.is_below(dir))) {
        target.discard();
        let output = output.display();
        return Err(format!("export {name}: {output} lies in the machine itself, and would be in its own archive; write it elsewhere").into());
    }
    let generation = exports.lookup_or_why().map_err(|why| {
        target.iter().for_each(Target::discard);
        format!("export {name}: {why}")
    })?;
    let started = Instant::now();
    let mut progress = Progress::new(generation.size(), export.quiet);
    let mut copy = |out: &mut dyn Write| {
        let result = write_all(&generation, out, |done| {
            progress.at(done);
            match stopped.load(Ordering::Relaxed) {
                true => Err(io::Error::other("stopped by a signal")),
                false => Ok(()),
            }
        });
        progress.end();
        result
    };
    let Some(target) = target else {
        match copy(&mut io::stdout().lock()) {
            Err(StreamError::Write(e)) if e.kind() == io::ErrorKind::BrokenPipe => {
                return Err(e.into());
            }
            other => other.map_err(|why| format!("export {name}: stdout: {why}"))?,
        }
        return Ok(verdict(name, &generation, None));
    };
    if let Err(why) = copy(&mut &target.file) {
        verdict(name, &generation, None);
        let what = format!("export {name}: {}: {why}", output.display());
        let hint = match &why {
            StreamError::Write(e) if e.kind() == io::ErrorKind::StorageFull => {
                format!("; the export needs {}", size(generation.size()))
            }
            _ => String::new(),
        };
        target.discard();
        return Err(format!("{what}{hint}; nothing was kept").into());
    }
    if generation.torn() {
        let kept = target.keep()?;
        return Ok(verdict(name, &generation, Some(&kept)));
    }
    target.finish().map_err(|why| format!("export {name}: {}: {why}", output.display()))?;
    if !export.quiet && io::stderr().is_terminal() {
        let rate = generation.size() as f64 / started.elapsed().as_secs_f64().max(0.001);
        complain(&format!(
            "{name}: {} members, {} in {:.1} s ({}/s) -> {}",
            generation.members(),
            size(generation.size()),
            started.elapsed().as_secs_f64(),
            size(rate as u64),
            output.display()
        ));
    }
    Ok(verdict(name, &generation, None))
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
    let moved = changes.iter().any(|c| c.torn && c.reason != Change::Unreadable);
    let remedy = match moved {
        true => "stop the machine and export again",
        false => {
            "only root reads all of a machine; a disk that fails must be repaired, or the file left \
             out with --exclude"
        }
    };
    let kept =
        kept.map(|path| format!("; what was written is {}", path.display())).unwrap_or_default();
    complain(&format!("export {name}: incomplete: {remedy}{kept}"));
    Outcome::Incomplete
}

/// The file being written: under another name until it is whole and on the disk.
struct Target {
    file: File,
    output: PathBuf,
    /// `None` where the output is no regular file (a pipe, a device) and is written as it is.
    partial: Option<PathBuf>,
}

impl Target {
    fn create(output: &Path) -> io::Result<Self> {
        let special = output.metadata().is_ok_and(|m| !m.is_file());
        if special {
            let file = OpenOptions::new().write(true).open(output)?;
            return Ok(Self { file, output: output.into(), partial: None });
        }
        // Through a link to the file that is meant.
        let output = output.canonicalize().unwrap_or_else(|_| output.into());
        let mut partial = output.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW);
        // Another export may finish between the open and the lock, and take the name away.
        let file = loop {
            let file = options.open(&partial)?;
            flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|why| match why {
                Errno::WOULDBLOCK => {
                    io::Error::other(format!("another export is writing {}", partial.display()))
                }
                why => why.into(),
            })?;
            let (ours, named) = (file.metadata()?, partial.symlink_metadata());
            if named.is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino())) {
                break file;
            }
        };
        // It holds a person's secrets: for nobody else from its first byte on.
        let meta = file.metadata()?;
        if meta.uid() != rustix::process::geteuid().as_raw() || meta.nlink() != 1 {
            return Err(io::Error::other(format!(
                "{} is there and not ours; remove it",
                partial.display()
            )));
        }
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.set_len(0)?;
        Ok(Self { file, output, partial: Some(partial) })
    }

    /// Whether it lies in one of the machine's own directories, and so would be in its own archive.
    fn is_below(&self, directory: &Path) -> bool {
        self.partial.is_some()
            && directory.canonicalize().is_ok_and(|directory| {
                let parent = self.output.parent().filter(|p| !p.as_os_str().is_empty());
                parent
                    .unwrap_or(Path::new("."))
                    .canonicalize()
                    .is_ok_and(|p| p.starts_with(directory))
            })
    }

    fn finish(self) -> io::Result<()> {
        let Some(partial) = &self.partial else { return Ok(()) };
        let named = self.file.sync_all().and_then(|()| std::fs::rename(partial, &self.output));
        if let Err(why) = named {
            self.discard();
            return Err(why);
        }
        // The rename is on the disk when its directory is.
        let dir = self.output.parent().filter(|d| !d.as_os_str().is_empty());
        File::open(dir.unwrap_or(Path::new(".")))?.sync_all()
    }

    /// Leaves what was written under its other name.
    fn keep(self) -> io::Result<PathBuf> {
        self.file.sync_all()?;
        Ok(self.partial.unwrap_or(self.output))
    }

    fn discard(&self) {
        if let Some(partial) = &self.partial {
            let _ = std::fs::remove_file(partial);
        }
    }
}
