//! `codchifs mount` and `codchifs unmount`.

mod host;
mod relay;
mod server;

use super::args::{Global, Mount, MountWord, Passthrough, Unmount};
use super::notify::{self, Manager};
use super::output::Output;
use super::{Context, Failure, Outcome, complain, journal, log};
use crate::credentials::User;
use crate::fuse::{self, MountError, MountOptions};
use crate::machine::Machines;
use crate::quote;
use crate::tree::{self, CannotRead};
use crate::{codchi, sandbox};
use rustix::process::Uid;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// What the background process says on its stdout when the mount can be used.
const READY: &str = "ready";

/// Threads that take requests from the kernel, and answer most of them: as many as there is work for, and two that wait. Each takes
/// some megabytes of addresses.
fn threads() -> usize {
    let processors = std::thread::available_parallelism().map_or(2, usize::from);
    processors.saturating_add(2).clamp(4, 16)
}

pub(super) fn run(global: &Global, mount: &Mount) -> Result<Outcome, Failure> {
    let failed = |why: Failure| -> Failure {
        let text = format!("mount {}: {why}", quote::path(&mount.mountpoint));
        match mount.foreground && is_permanent(&*why) {
            true => Permanent(text).into(),
            false => text.into(),
        }
    };
    if global.server {
        return server::run(global, mount).map_err(failed);
    }
    if !mount.foreground && !global.background_child && !mount.fake {
        return in_background(mount);
    }
    run_here(global, mount).map_err(failed)
}

/// A failure that stays so until somebody changes something: a service manager need not try again.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Permanent(String);

fn is_permanent(why: &(dyn std::error::Error + 'static)) -> bool {
    why.downcast_ref::<MountError>().is_some_and(MountError::is_permanent)
        || why.downcast_ref::<codchi::Error>().is_some_and(codchi::Error::is_permanent)
        || why.is::<tree::RuleError>()
        || why.is::<CannotRead>()
        || why.is::<sandbox::SandboxError>()
}

fn run_here(global: &Global, mount: &Mount) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    let options = options(mount, context.user, mount.mountpoint.clone());
    // Before anything is mounted: what cannot be used or opened must end this with an error that somebody reads.
    let settings = mount.wishes.shown(global, Some(&mount.mountpoint));
    settings.selection.check()?;
    let outputs = match global.background_child {
        true => Some(Outputs::open(mount)?),
        false => None,
    };
    if mount.fake {
        fuse::check(&options)?;
        return Ok(Outcome::Done);
    }
    log::start_queue()?;
    let socket = if mount.foreground { std::env::var_os("NOTIFY_SOCKET") } else { None };
    let manager = Manager::new(socket);
    let is_root = rustix::process::geteuid().is_root();
    let shut_out = is_root && !Uid::from_raw(context.user.uid).is_root();
    let shut_out = shut_out && !options.allow_other && !options.allow_root;
    let ready = || {
        manager.tell(notify::READY);
        if shut_out && std::io::stderr().is_terminal() {
            let point = quote::path(&mount.mountpoint);
            complain(&format!(
                "{point}: only its user gets in, not root; -o allow_root admits both"
            ));
        }
        let_go(outputs);
    };
    let served = if is_root {
        host::run(context, &options, ready)
    } else {
        if let Some(sample) = tree::sample()? {
            tree::check_reading(tree::open_sample(sample)?)?;
        }
        let machines = context.machines(settings, mount.machine.clone())?;
        name_missing(&machines, mount);
        fuse::serve(machines, &options, ready).map(|()| Outcome::Done).map_err(Failure::from)
    };
    manager.tell(notify::STOPPING);
    served
}

fn options(mount: &Mount, user: User, mountpoint: PathBuf) -> MountOptions {
    MountOptions {
        mountpoint,
        uid: user.uid,
        gid: user.gid,
        allow_other: mount.options.contains(&MountWord::AllowOther),
        allow_root: mount.options.contains(&MountWord::AllowRoot),
        noexec: mount.options.contains(&MountWord::Noexec),
        nosymfollow: mount.options.contains(&MountWord::Nosymfollow),
        inode32: mount.options.contains(&MountWord::Inode32),
        source: mount.source.clone(),
        threads: threads(),
        passthrough: mount.passthrough == Passthrough::Auto,
        of_service: mount.foreground && std::env::var_os("NOTIFY_SOCKET").is_some(),
        stop_timeout: mount.stop_timeout.map(Duration::from_secs),
    }
}

fn name_missing(machines: &Arc<Machines>, mount: &Mount) {
    for name in &mount.machine {
        if machines.get(name.as_str().as_bytes()).is_none() {
            complain(&format!("{name}: no such machine yet; it shows when Codchi has it"));
        }
    }
}

fn let_go(outputs: Option<Outputs>) {
    let Some(outputs) = outputs else { return };
    // Closing the terminal must not end the mount. Not before it is mounted: until then autofs lets nobody on the mount point
    // but the process group of the mount that it started (autofs_oz_mode() in fs/autofs), and whoever else comes waits for that.
    if let Err(why) = rustix::process::setsid() {
        tracing::debug!(%why, "stays in the session that started it");
    }
    let let_go =
        std::env::set_current_dir("/").map_err(Failure::from).and_then(|()| outputs.let_go());
    if let Err(why) = let_go {
        tracing::error!(%why, "nobody waits for the mount any more: unmounting");
        // Whoever was interrupted in waiting does not expect a mount that comes later.
        fuse::signal_self();
    }
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
            quote::path(&mount.mountpoint)
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
                let log = match Output::find(path) {
                    Ok(Output::Open(file)) => Ok(file),
                    Ok(Output::Place(place)) => place.open_log(),
                    Err(why) => Err(why),
                };
                log.map_err(|why| {
                    format!(
                        "--log-file {}: {why}; name a file in a directory where you may write",
                        quote::path(&path)
                    )
                })?
            }
            None => null()?,
        };
        Ok(Self { log, null: null()? })
    }

    /// Tells the waiting parent, and gives up every descriptor of the terminal.
    fn let_go(self) -> Result<(), Failure> {
        log::flush();
        let mut out = std::io::stdout().lock();
        writeln!(out, "{READY}")?;
        out.flush()?;
        rustix::stdio::dup2_stdout(&self.null)?;
        rustix::stdio::dup2_stderr(&self.log)?;
        journal::leave();
        Ok(())
    }
}

pub(super) fn unmount(unmount: &Unmount) -> Result<Outcome, Failure> {
    fuse::unmount(&unmount.mountpoint, unmount.lazy)
        .map_err(|why| format!("unmount {}: {why}", quote::path(&unmount.mountpoint)))?;
    Ok(Outcome::Done)
}
