//! The command line: the only importer of `clap`, and the only printer.

mod args;
mod demo;
mod export;
mod list;
mod mount;
mod progress;

use args::{Args, Command, Global};
use clap::Parser as _;
use std::io::Write as _;
use std::process::ExitCode;

use crate::backend::Directories;
use crate::codchi::{MachineName, State, dirs};
use crate::machine::Machines;
use crate::tree::Selection;

/// A failure as a person reads it: what was attempted, why it failed, what to do.
type Failure = Box<dyn std::error::Error>;

/// How a command ended that did not fail outright.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    /// Something is missing or broken, and has been said.
    Incomplete,
}

/// Parses the arguments, runs the command. Exit status: 0 done, 1 failed or incomplete, 2 usage.
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(help_or_usage) => {
            let _ = help_or_usage.print();
            return ExitCode::from(if help_or_usage.use_stderr() { 2 } else { 0 });
        }
    };
    start_logging(&args.global);
    let result = match &args.command {
        Command::Mount(mount) => mount::run(&args.global, mount),
        Command::Unmount(unmount) => mount::unmount(unmount),
        Command::List(list) => list::run(&args.global, list),
        Command::Export(export) => export::run(&args.global, export),
        Command::Demo(demo) => demo::run(demo),
    };
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Incomplete) => ExitCode::FAILURE,
        // Whoever closed the pipe has all that it wanted.
        Err(why) if is_broken_pipe(&*why) => ExitCode::SUCCESS,
        Err(why) => {
            complain(&why.to_string());
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(why: &(dyn std::error::Error + 'static)) -> bool {
    why.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// One line on stderr in the program's name.
fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "codchifs: {text}");
}

fn start_logging(global: &Global) {
    let level = match global.verbose {
        0 => "warn",
        1 => "codchifs=info,warn",
        2 => "codchifs=debug,info",
        _ => "trace",
    };
    let filter = std::env::var("CODCHIFS_LOG")
        .ok()
        .and_then(|text| tracing_subscriber::EnvFilter::try_new(text).ok())
        .unwrap_or_else(|| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

/// Whose machines, and where.
struct Context {
    owner: dirs::Owner,
    state: State,
    backend: Directories,
}

impl Context {
    fn new(global: &Global) -> Result<Self, Failure> {
        let env = |name: &str| std::env::var_os(name);
        let passwd = std::fs::read("/etc/passwd").unwrap_or_default();
        let caller = rustix::process::getuid().as_raw();
        let owner = dirs::owner(caller, global.user.as_deref(), &env, &passwd)?;
        let absolute = |path: &Option<std::path::PathBuf>| {
            path.as_deref().map(std::path::absolute).transpose()
        };
        let config_dir = absolute(&global.config_dir)?;
        let data_dir = absolute(&global.data_dir)?;
        let state = State::locate(&owner, config_dir.as_deref(), data_dir.as_deref(), &env)?;
        let rootfs_dir = absolute(&global.rootfs_dir)?.ok_or(
            "where are the machines? --rootfs-dir DIR names the directory that holds codchi-NAME/rootfs",
        )?;
        Ok(Self { owner, state, backend: Directories::new(rootfs_dir) })
    }

    fn machines(self, selection: Selection, only: Vec<MachineName>) -> Result<Machines, Failure> {
        Ok(Machines::new(self.state, self.backend, selection, only)?)
    }
}
