//! `codchifs doctor`.

use super::args::{Doctor, Global};
use super::text::{wrapped, write_json};
use super::{Context, Failure, Outcome};
use crate::doctor::{Check, Status, Subject, examine, kernel_features};
use crate::kernel::OLDEST;
use crate::quote::message;
use serde_json::json;
use std::io::{IsTerminal as _, Write};

/// Columns of a line.
const WIDTH: usize = 80;
/// Of what is said of a check, below its name.
const INDENT: usize = 9;

pub(super) fn run(global: &Global, doctor: &Doctor) -> Result<Outcome, Failure> {
    let global = global.clone();
    let verbose = global.verbose > 0;
    let checks = examine(move || {
        let Context { user, state, backend, vouched } =
            Context::new(&global).map_err(|e| e.to_string())?;
        Ok(Subject { state, user, backend, vouched })
    });
    let worst = checks.iter().map(|check| check.status).max().unwrap_or(Status::Ok);
    let mut out = std::io::stdout().lock();
    if doctor.json {
        let list: Vec<_> = checks.iter().map(as_json).collect();
        let all = json!({
            "schema": 1, "version": env!("CARGO_PKG_VERSION"), "status": worst.as_str(), "checks": list,
        });
        write_json(&mut out, &all, true)?;
    } else {
        let colours =
            out.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        for check in &checks {
            print(&mut out, check, colours)?;
        }
        if verbose {
            print_features(&mut out)?;
        }
        let count = |status| checks.iter().filter(|check| check.status == status).count();
        let (warnings, errors) = (count(Status::Warning), count(Status::Error));
        let s = |n: usize| if n == 1 { "" } else { "s" };
        writeln!(out, "{errors} error{}, {warnings} warning{}", s(errors), s(warnings))?;
    }
    Ok(if worst == Status::Error { Outcome::Incomplete } else { Outcome::Done })
}

fn as_json(check: &Check) -> serde_json::Value {
    json!({
        "check": check.check, "subject": check.subject, "status": check.status.as_str(),
        "text": check.text, "remedy": check.remedy,
    })
}

/// What each kernel brings, and what codchifs does without it.
fn print_features(out: &mut impl Write) -> std::io::Result<()> {
    let (major, minor) = OLDEST;
    writeln!(out, "\nKernels from {major}.{minor} on work. What newer ones bring:")?;
    for (feature, here) in kernel_features() {
        let (major, minor) = feature.since;
        let (here, what) = if here { ("yes", feature.with) } else { ("no", feature.without) };
        writeln!(out, "{:<9}{} ({major}.{minor})", here, feature.name)?;
        for line in wrapped(what, WIDTH - INDENT) {
            writeln!(out, "{:INDENT$}{line}", "")?;
        }
    }
    writeln!(out)
}

fn print(out: &mut impl Write, check: &Check, colours: bool) -> std::io::Result<()> {
    let status = check.status.as_str();
    let shown = format!("{status:INDENT$}");
    let shown = match (colours, check.status) {
        (false, _) => shown,
        (true, Status::Ok) => format!("\x1b[32m{shown}\x1b[0m"),
        (true, Status::Warning) => format!("\x1b[33m{shown}\x1b[0m"),
        (true, Status::Error) => format!("\x1b[31m{shown}\x1b[0m"),
    };
    let subject = check.subject.as_ref().map(|s| format!(" {}", message(s))).unwrap_or_default();
    let text = format!("{}{subject}: {}", check.check, message(&check.text));
    let mut lines = wrapped(&text, WIDTH - INDENT).into_iter();
    writeln!(out, "{shown}{}", lines.next().unwrap_or_default())?;
    let remedy =
        check.remedy.iter().flat_map(|r| wrapped(&format!("-> {}", message(r)), WIDTH - INDENT));
    for line in lines.chain(remedy) {
        writeln!(out, "{:INDENT$}{line}", "")?;
    }
    Ok(())
}
