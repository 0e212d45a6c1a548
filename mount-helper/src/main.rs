//! `mount.codchifs`: what mount(8) runs for `mount -t codchifs SOURCE DIRECTORY` and for a line of fstab.
//!
//! It translates mount(8)'s arguments into those of `codchifs mount`, runs that, and translates the exit status back.
//! It knows nothing of machines or of FUSE.
#![forbid(unsafe_code)]

mod options;
// The module of codchifs itself: depending on codchifs would compile all of it. No doc comment here, which would change
// where the links in the documentation of the module lead.
#[path = "../../src/quote/mod.rs"]
#[allow(dead_code, unreachable_pub, unused_imports)]
mod quote;

use options::{EX_FAIL, EX_OK, EX_SOFTWARE, EX_SYSTEM, EX_USAGE, EX_USER, Failure, Request};
use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

/// Where the program is looked for after `PATH`: systemd, for one, gives a mount a short one.
const USUAL: [&str; 4] = ["/usr/local/bin", "/usr/bin", "/usr/local/sbin", "/usr/sbin"];

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    // mount(8), as well, begins with the directory.
    let directory = match args.as_slice() {
        [_, directory, ..] => format!("{}: ", quote::path(directory)),
        _ => String::new(),
    };
    match run(&args) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            say(&format!("{directory}{}", failure.text));
            ExitCode::from(failure.code)
        }
    }
}

fn run(args: &[OsString]) -> Result<u8, Failure> {
    let request = options::translate(args)?;
    if let Some(text) = &request.help {
        let _ = write!(std::io::stdout(), "{text}");
        return Ok(EX_OK);
    }
    for word in &request.left_out {
        say(&format!(
            "{}: option '{word}' is not known, left out (-s)",
            quote::path(&request.directory)
        ));
    }
    let program = program()?;
    if request.verbose {
        say(&format!("{} {}", quote::path_word(&program), options::display(&request.args)));
    }
    mount(&program, &request)
}

/// Waits for `codchifs mount`, which returns when the mount is ready to use. Not exec: its exit statuses mean other
/// things than mount(8)'s.
fn mount(program: &Path, request: &Request) -> Result<u8, Failure> {
    let mut command = match &request.namespace {
        None => Command::new(program),
        Some(namespace) => {
            // nsenter(1) has one exit status for all that fails.
            File::open(namespace).map_err(|error| Failure {
                code: EX_SYSTEM,
                text: format!("-N {}: {error}", quote::path(namespace)),
            })?;
            let mut argument = OsString::from("--mount=");
            argument.push(namespace);
            let mut command = Command::new("nsenter");
            command.arg(argument).arg("--").arg(program);
            command
        }
    };
    match command.args(&request.args).status() {
        Ok(status) => Ok(translate_status(status)),
        Err(error) => {
            let name = quote::path(command.get_program());
            Err(Failure { code: EX_SYSTEM, text: format!("{name}: cannot be run: {error}") })
        }
    }
}

/// The program `codchifs`: `$CODCHIFS`, else the one beside this program, else in `PATH`, else where it is installed.
fn program() -> Result<PathBuf, Failure> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(path) = set("CODCHIFS") {
        return Ok(path.into());
    }
    let beside = std::env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned));
    let path = set("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain(std::env::split_paths(&path).filter(|directory| directory.is_absolute()))
        .chain(USUAL.map(PathBuf::from))
        .map(|directory| directory.join("codchifs"))
        .find(|program| program.is_file())
        .ok_or_else(|| Failure {
            code: EX_SYSTEM,
            text:
                "there is no codchifs beside mount.codchifs, nor in PATH; set CODCHIFS to its path"
                    .into(),
        })
}

/// codchifs says 0 done, 1 failed, 2 usage, and 101 where it panics.
fn translate_status(status: ExitStatus) -> u8 {
    const SIGINT: i32 = 2;
    const PANIC: i32 = 101;
    // SIGILL, SIGABRT, SIGBUS, SIGFPE, SIGSEGV.
    const CRASHES: [i32; 5] = [4, 6, 7, 8, 11];
    match (status.code(), status.signal()) {
        (Some(0), _) => EX_OK,
        (Some(2), _) => EX_USAGE,
        (Some(PANIC), _) => EX_SOFTWARE,
        (_, Some(signal)) if CRASHES.contains(&signal) => EX_SOFTWARE,
        (_, Some(SIGINT)) => EX_USER,
        _ => EX_FAIL,
    }
}

fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "mount.codchifs: {text}");
}
