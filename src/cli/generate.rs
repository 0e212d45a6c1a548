//! `codchifs generate`: manual pages and completions, out of the definition of the command line.

use super::args::{Args, Generate};
use super::complete::Bash;
use super::output::{Output, make_directories};
use super::target::Target;
use super::{Failure, Outcome, complete};
use crate::quote;
use clap::{Arg, Command, CommandFactory as _};
use clap_complete::env::{EnvCompleter, Fish, Zsh};
use clap_mangen::Man;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// What no definition knows: the sections behind the options, and all of the helper's page but its options.
const MANUAL: &str = include_str!("man/codchifs.1");
const HELPER: &str = include_str!("man/mount.codchifs.8");

/// Options of `codchifs mount` that mount(8) has words of its own for.
const NOT_IN_FSTAB: [&str; 4] = ["foreground", "source", "fake", "verbose"];

pub(super) fn run(wanted: &Generate) -> Result<Outcome, Failure> {
    let write = |name: &str, content: Vec<u8>| -> Result<(), Failure> {
        let path = wanted.directory.join(name);
        let made = make_directories(path.parent().unwrap_or(Path::new(".")));
        made.and_then(|()| replace(&path, &content))
            .map_err(|why| format!("generate: {}: {why}", quote::path(&path)).into())
    };
    write("man/codchifs.1", manual()?.into())?;
    write("man/mount.codchifs.8", helper().into())?;
    write("completions/codchifs.bash", script(&Bash)?)?;
    write("completions/codchifs.fish", script(&Fish)?)?;
    let mut zsh = script(&Zsh)?;
    // The first time, zsh runs the file to complete something, and not only to define how.
    zsh.extend(b"\n[[ $funcstack[1] != _codchifs ]] || _clap_dynamic_completer_codchifs \"$@\"\n");
    write("completions/_codchifs", zsh)?;
    Ok(Outcome::Done)
}

/// Writes a file that everybody may read, whole or not at all.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut target = Target::create(Output::find(path)?)?;
    target.file.write_all(content)?;
    target.file.set_permissions(fs::Permissions::from_mode(0o644))?;
    target.finish()
}

fn script(shell: &dyn EnvCompleter) -> Result<Vec<u8>, Failure> {
    let mut script = Vec::new();
    let name = "codchifs";
    shell.write_registration(complete::VARIABLE, name, name, name, &mut script)?;
    Ok(script)
}

/// codchifs(1).
fn manual() -> Result<String, Failure> {
    let command = Args::command().disable_help_subcommand(true);
    let visible = command.get_subcommands().filter(|sub| !sub.is_hide_set());
    let subcommands: Vec<Command> = visible.cloned().collect();
    let page = Man::new(command);
    // Without a date: a build of the same source gives the same page.
    let title = concat!(".TH codchifs 1 \"\" \"codchifs ", env!("CARGO_PKG_VERSION"), "\"");
    let mut out = format!("{title} \"User Commands\"\n").into_bytes();
    page.render_name_section(&mut out)?;
    out.extend(b".SH SYNOPSIS\n\\fBcodchifs\\fR [\\fIOPTIONS\\fR] \\fICOMMAND\\fR\n");
    page.render_description_section(&mut out)?;
    let mut out = String::from_utf8(out)?;
    let mut options = Vec::new();
    page.render_options_section(&mut options)?;
    let mut commands = String::new();
    for mut sub in subcommands {
        let full = format!("codchifs {}", sub.get_name());
        sub = sub.bin_name(full).disable_help_flag(true);
        let usage = sub.render_usage().to_string();
        let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
        let title = sub.get_name().to_owned();
        let page = Man::new(sub);
        let mut part = Vec::new();
        page.render_description_section(&mut part)?;
        page.render_options_section(&mut part)?;
        let usage = escaped(usage.trim_start_matches("Usage: "));
        let _ = writeln!(commands, ".SS {title}\n{usage}\n.PP");
        for line in String::from_utf8(part)?.lines() {
            match line.strip_prefix(".SH ") {
                Some("DESCRIPTION" | "OPTIONS") => {}
                Some(heading) => {
                    let heading = heading.trim_matches('"').to_lowercase();
                    let _ = writeln!(commands, ".PP\n\\fI{heading}\\fR:");
                }
                // Preambles of each part.
                None if line.starts_with(".ie ") || line.starts_with(".el ") => {}
                None => commands = commands + line + "\n",
            }
        }
        commands += &as_typed(&help);
    }
    let _ = write!(out, ".SH COMMANDS\n{commands}");
    // Behind the commands: they are the same for all.
    out += &String::from_utf8(options)?
        .lines()
        .filter(|line| !line.starts_with(".ie ") && !line.starts_with(".el "))
        .fold(String::new(), |all, line| all + line + "\n");
    // They are around paragraphs and do nothing there.
    Ok(out.replace("\n.br\n", "\n").replace("\n.br\n", "\n") + MANUAL)
}

/// mount.codchifs(8), with the options that `codchifs mount` has.
fn helper() -> String {
    let command = Args::command();
    let mount = command.find_subcommand("mount");
    let own = mount.into_iter().flat_map(Command::get_arguments);
    let with_value = |arg: &&Arg| arg.get_action().takes_values() && !arg.is_hide_set();
    let mut all: Vec<&Arg> = command.get_arguments().chain(own).filter(with_value).collect();
    all.sort_by_key(|arg| arg.get_long());
    let mut options = String::new();
    for arg in all {
        let Some(long) = arg.get_long().filter(|long| !NOT_IN_FSTAB.contains(long)) else {
            continue;
        };
        let value = arg.get_value_names().and_then(|names| names.first()).map(|name| &**name);
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let choices: Vec<String> =
            arg.get_possible_values().iter().map(|v| v.get_name().to_owned()).collect();
        let value = match choices.is_empty() {
            true => value.unwrap_or("VALUE").to_owned(),
            false => choices.join("|"),
        };
        let help = escaped(&help);
        let _ = writeln!(options, ".TP\n\\fB{}\\fR=\\fI{}\\fR\n{help}", escaped(long), value);
    }
    let version = env!("CARGO_PKG_VERSION");
    HELPER.replace("@VERSION@", version).replace("@OPTIONS@\n", &options)
}

/// Lines that are to stay as they are.
fn as_typed(text: &str) -> String {
    format!(".PP\n.nf\n{}\n.fi\n", escaped(text))
}

/// Text in which roff(7) finds no request and no escape.
fn escaped(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let line = line.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
        if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line }
    });
    lines.collect::<Vec<_>>().join("\n")
}
