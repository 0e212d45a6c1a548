//! The command line: the only importer of `clap`, and the only printer.

mod args;
mod complete;
mod demo;
mod doctor;
mod export;
mod generate;
mod help;
mod journal;
mod list;
mod log;
mod manifest;
mod migrate;
mod mount;
mod notify;
mod output;
mod progress;
mod status;
mod target;
mod text;
mod verify;

use args::{Command, Driver, Global};
use clap::error::{ContextValue, ErrorKind};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use crate::accounts;
use crate::backend::{Backend, Daemon, Directories, Kind};
use crate::codchi::{MachineName, State, dirs};
use crate::credentials::{User, as_user};
use crate::look;
use crate::machine::{Machines, Settings};
use crate::opener::{Direct, Opener, Vouched};
use crate::quote;
use crate::sys;

/// A failure as a person reads it: what was attempted, why it failed, what to do.
type Failure = Box<dyn std::error::Error>;

/// How a command ended that did not fail outright.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    /// Something is missing or broken, and has been said.
    Incomplete,
    /// What was asked could not be found out, and that has been said.
    Unknown,
    /// It cannot be done until somebody changes something, and that has been said.
    Refused,
}

/// The exit status of a mount in the foreground that need not be tried again: that of sysexits.h, which systemd knows by name.
const EX_CONFIG: i32 = 78;

/// Parses the arguments, runs the command. Exit status: 0 done, 1 failed or incomplete, 2 usage.
pub fn main() -> ExitCode {
    if let Some(status) = look::answer().or_else(accounts::answer) {
        return status;
    }
    complete::answer();
    let args = match args::parse() {
        Ok(args) => args,
        Err(help) if !help.use_stderr() => {
            return match to_stdout(|| help.print()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(why) => failed(&*why),
            };
        }
        Err(help) if help.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = help.print();
            return ExitCode::from(2);
        }
        Err(usage) => {
            let text = quoted(usage).to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
            let _ = writeln!(std::io::stderr(), "codchifs: {}", quote::lines(text));
            return ExitCode::from(2);
        }
    };
    log::start(args.global.verbose);
    let run = || match &args.command {
        Command::Mount(mount) => mount::run(&args.global, mount),
        Command::Unmount(unmount) => mount::unmount(unmount),
        Command::List(list) => list::run(&args.global, list),
        Command::Export(export) => export::run(&args.global, export),
        Command::Verify(verify) => verify::run(&args.global, verify),
        Command::Manifest(manifest) => manifest::run(&args.global, manifest),
        Command::Migrate(migrate) => migrate::run(&args.global, migrate),
        Command::Demo(demo) => demo::run(demo),
        Command::Doctor(doctor) => doctor::run(&args.global, doctor),
        Command::Status(status) => status::run(status),
        Command::Generate(wanted) => generate::run(wanted),
    };
    let result = match args.command.prints() {
        true => to_stdout(run),
        false => run(),
    };
    log::flush();
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Incomplete) => ExitCode::FAILURE,
        Ok(Outcome::Unknown) => ExitCode::from(2),
        Ok(Outcome::Refused) => ExitCode::from(EX_CONFIG as u8),
        Err(why) => failed(&*why),
    }
}

/// What has failed, said.
fn failed(why: &(dyn std::error::Error + 'static)) -> ExitCode {
    // Whoever closed the pipe has all that it wanted.
    if is_broken_pipe(why) {
        return ExitCode::SUCCESS;
    }
    say(tracing::Level::ERROR, &why.to_string());
    match why.is::<mount::Permanent>() {
        true => ExitCode::from(EX_CONFIG as u8),
        false => ExitCode::FAILURE,
    }
}

/// Runs what prints, to the last byte: what cannot be written is a failure, even where nothing of it is left over.
fn to_stdout<T, E: Into<Failure>>(print: impl FnOnce() -> Result<T, E>) -> Result<T, Failure> {
    if sys::stdout_was_closed() {
        return Err(
            "stdout is closed, and nothing would be printed; name a file with -o, or `>/dev/null`"
                .into(),
        );
    }
    let printed = print().map_err(Into::into)?;
    std::io::stdout().flush()?;
    Ok(printed)
}

fn is_broken_pipe(why: &(dyn std::error::Error + 'static)) -> bool {
    why.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// What a mistake in the arguments says of them, on one line each.
fn quoted(mut usage: clap::Error) -> clap::Error {
    let strings = usage.context().filter_map(|(kind, value)| match value {
        ContextValue::String(text) => Some((kind, ContextValue::String(quote::message(text)))),
        ContextValue::Strings(texts) => {
            let texts = texts.iter().map(quote::message).collect();
            Some((kind, ContextValue::Strings(texts)))
        }
        _ => None,
    });
    let strings: Vec<_> = strings.collect();
    for (kind, value) in strings {
        usage.insert(kind, value);
    }
    usage
}

/// One line on stderr in the program's name, whatever is in `text`.
fn complain(text: &str) {
    say(tracing::Level::WARN, text);
}

fn say(level: tracing::Level, text: &str) {
    let line = format!("{}{}", journal::prefix(level), quote::message(text));
    let _ = writeln!(std::io::stderr(), "{}", log::cut(&line));
}

/// Whose machines, and where.
struct Context {
    user: User,
    state: State,
    backend: Backend,
    /// What the command line names.
    vouched: Vouched,
}

impl Context {
    fn new(global: &Global) -> Result<Self, Failure> {
        let env = |name: &str| std::env::var_os(name);
        let caller = rustix::process::getuid().as_raw();
        let owner = dirs::owner(caller, global.user.as_deref(), &env, &accounts::find)?;
        let gid = owner.gid.unwrap_or_else(|| rustix::process::getgid().as_raw());
        let user = User { uid: owner.uid, gid };
        let absolute =
            |path: &Option<PathBuf>| path.as_deref().map(std::path::absolute).transpose();
        let config_dir = absolute(&global.config_dir)?;
        let data_dir = absolute(&global.data_dir)?;
        let vouched = Vouched { config: config_dir.is_some(), data: data_dir.is_some() };
        let state = as_user(user, || {
            State::locate(&owner, config_dir.as_deref(), data_dir.as_deref(), &env)
        })??;
        let rootfs_dir = absolute(&global.rootfs_dir)?;
        let lxd_dir = absolute(&global.lxd_dir)?;
        let backend = backend(global.driver, rootfs_dir, lxd_dir, &env)?;
        Ok(Self { user, state, backend, vouched })
    }

    fn machines(
        self,
        settings: Settings,
        only: Vec<MachineName>,
    ) -> Result<Arc<Machines>, Failure> {
        let direct = Direct::new(self.backend, self.user, self.state.clone(), self.vouched);
        Ok(Machines::new(self.state, self.user, Opener::Direct(direct), settings, only)?)
    }
}

fn backend(
    driver: Driver,
    rootfs_dir: Option<PathBuf>,
    lxd_dir: Option<PathBuf>,
    env: &dyn Fn(&str) -> Option<std::ffi::OsString>,
) -> Result<Backend, Failure> {
    let daemons = |kind| match &lxd_dir {
        Some(dir) => vec![Daemon::at(kind, dir.clone())],
        None => Daemon::discover(kind, env),
    };
    match (driver, rootfs_dir) {
        (Driver::Dir | Driver::Auto, Some(dir)) => Ok(Backend::Directories(Directories::new(dir))),
        (Driver::Dir, None) => {
            Err("--driver dir: where are the machines? --rootfs-dir DIR holds codchi-NAME/rootfs"
                .into())
        }
        (_, Some(_)) => Err("--rootfs-dir goes with --driver dir".into()),
        (Driver::Lxd, None) => Ok(Backend::Daemons(daemons(Kind::Lxd))),
        (Driver::Incus, None) => Ok(Backend::Daemons(daemons(Kind::Incus))),
        (Driver::Auto, None) if lxd_dir.is_some() => Ok(Backend::Daemons(daemons(Kind::Lxd))),
        (Driver::Auto, None) => {
            let mut all = daemons(Kind::Lxd);
            all.extend(daemons(Kind::Incus));
            Ok(Backend::Daemons(all))
        }
    }
}

/// What `fuzz/` calls; in no other build.
#[cfg(feature = "fuzzing")]
#[allow(missing_docs)]
pub mod fuzzing {
    /// What bash inserts for `value` where a word was begun.
    pub fn completed(value: &[u8], begun: &[u8]) -> Option<String> {
        super::complete::inserted(value, begun)
    }
}
