//! `codchifs mount` and `codchifs unmount`.

use super::args::{Global, Mount, MountWord, Passthrough, Unmount};
use super::{Context, Failure, Outcome, complain};
use crate::fuse::{self, MountOptions};
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;

/// What the background process says on its stdout when the mount can be used.
const READY: &str = "ready";

pub(super) fn run(global: &Global, mount: &Mount) -> Result<Outcome, Failure> {
    if !mount.foreground && !global.background_child {
        return in_background(mount);
    }
    if global.background_child {
        // Out of the terminal's session: closing the terminal must not end the mount.
        rustix::process::setsid()?;
    }
    let context = Context::new(global)?;
    let options = MountOptions {
        mountpoint: mount.mountpoint.clone(),
        uid: context.user.uid,
        gid: context.user.gid,
        allow_other: mount.options.contains(&MountWord::AllowOther),
        allow_root: mount.options.contains(&MountWord::AllowRoot),
        threads: 2,
        passthrough: mount.passthrough == Passthrough::Auto,
    };
    let machines = Arc::new(context.machines(mount.wishes.clone().into(), mount.machine.clone())?);
    for name in &mount.machine {
        if machines.get(name.as_str().as_bytes()).is_none() {
            complain(&format!("{name}: no such machine yet; it shows when Codchi has it"));
        }
    }
    // Before anything is mounted: what cannot be opened must end this with an error that somebody reads.
    let outputs = match global.background_child {
        true => Some(Outputs::open(mount)?),
        false => None,
    };
    let ready = || {
        if let Some(Err(why)) = outputs.map(Outputs::let_go) {
            tracing::error!(%why, "cannot let go of the terminal");
        }
    };
    fuse::serve(machines, &options, ready)
        .map_err(|why| format!("mount {}: {why}", mount.mountpoint.display()))?;
    Ok(Outcome::Done)
}

/// Starts this program again, and returns when it says that the mount is ready.
fn in_background(mount: &Mount) -> Result<Outcome, Failure> {
    let exe = std::env::current_exe()?;
    let mut child = Command::new(exe)
        .arg("--background-child")
        .args(std::env::args_os().skip(1))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    if line.trim_end() == READY {
        return Ok(Outcome::Done);
    }
    let status = child.wait()?;
    match status.code() {
        // It has said why.
        Some(_) => Ok(Outcome::Incomplete),
        None => Err(format!(
            "mount {}: the serving process ended: {status}",
            mount.mountpoint.display()
        )
        .into()),
    }
}

/// What stands in for the terminal in the background.
struct Outputs {
    log: File,
    null: File,
}

impl Outputs {
    fn open(mount: &Mount) -> Result<Self, Failure> {
        let null = || OpenOptions::new().write(true).open("/dev/null");
        let log = match &mount.log_file {
            Some(path) => {
                let log = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
                log.map_err(|why| format!("--log-file {}: {why}", path.display()))?
            }
            None => null()?,
        };
        Ok(Self { log, null: null()? })
    }

    /// Tells the waiting parent, and gives up every descriptor of the terminal.
    fn let_go(self) -> Result<(), Failure> {
        std::env::set_current_dir("/")?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{READY}")?;
        out.flush()?;
        rustix::stdio::dup2_stdout(&self.null)?;
        rustix::stdio::dup2_stderr(&self.log)?;
        Ok(())
    }
}

pub(super) fn unmount(unmount: &Unmount) -> Result<Outcome, Failure> {
    fuse::unmount(&unmount.mountpoint, unmount.lazy)
        .map_err(|why| format!("unmount {}: {why}", unmount.mountpoint.display()))?;
    Ok(Outcome::Done)
}
