//! `mount.codchifs`: what mount(8) runs for `mount -t codchifs SOURCE DIRECTORY` and for a line of fstab.
//!
//! It translates mount(8)'s arguments into those of `codchifs mount`, runs that, and translates the exit status back.
//! It knows nothing of machines or of FUSE.
#![forbid(unsafe_code)]

mod options;

use options::{EX_FAIL, EX_OK, EX_SYSTEM, EX_USAGE, EX_USER, Failure, Request};
use std::ffi::OsString;
use std::io::{ErrorKind, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, ExitStatus};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match run(&args) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            say(&failure.text);
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
        say(&format!("option '{word}' is not known, left out (-s)"));
    }
    let program = program();
    if request.verbose {
        say(&format!("{} {}", program.display(), options::display(&request.args)));
    }
    if request.fake {
        return Ok(EX_OK);
    }
    mount(&program, &request)
}

/// Waits for `codchifs mount`, which returns when the mount is ready to use. Not exec: its exit statuses mean other
/// things than mount(8)'s.
fn mount(program: &PathBuf, request: &Request) -> Result<u8, Failure> {
    match Command::new(program).args(&request.args).status() {
        Ok(status) => Ok(translate_status(status)),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(Failure {
            code: EX_SYSTEM,
            text: format!("{}: not found; set CODCHIFS to the program's path", program.display()),
        }),
        Err(error) => Err(Failure {
            code: EX_SYSTEM,
            text: format!("{}: cannot be run: {error}", program.display()),
        }),
    }
}

/// The program `codchifs`: `$CODCHIFS`, else the one beside this program, else whatever `PATH` has.
fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("CODCHIFS").filter(|path| !path.is_empty()) {
        return path.into();
    }
    std::env::current_exe()
        .ok()
        .and_then(|helper| helper.parent().map(|directory| directory.join("codchifs")))
        .filter(|program| program.is_file())
        .unwrap_or_else(|| PathBuf::from("codchifs"))
}

/// codchifs says 0 done, 1 failed, 2 usage.
fn translate_status(status: ExitStatus) -> u8 {
    const SIGINT: i32 = 2;
    match (status.code(), status.signal()) {
        (Some(0), _) => EX_OK,
        (Some(2), _) => EX_USAGE,
        (None, Some(SIGINT)) => EX_USER,
        _ => EX_FAIL,
    }
}

fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "mount.codchifs: {text}");
}
