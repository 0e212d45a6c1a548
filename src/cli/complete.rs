//! What a shell offers after TAB: the options by clap, names by looking at what there is.

mod bash;

use super::Context;
use super::args::{Args, Global};
use crate::codchi::Found;
use crate::credentials::as_user;
use crate::mountinfo;
use crate::quote::is_hidden;
pub(super) use bash::Bash;
#[cfg(feature = "fuzzing")]
pub(super) use bash::inserted;
use clap::{Command, CommandFactory as _, Parser as _};
use clap_complete::CompleteEnv;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::{Fish, Shells, Zsh};
use std::ffi::{OsStr, OsString};

/// By which a shell's script asks; not clap's own `COMPLETE`, which may be anybody's.
pub(super) const VARIABLE: &str = "CODCHIFS_COMPLETE";

/// Answers a shell, and then does not return; returns at once to everybody else. zsh and fish quote what they insert; other
/// shells are not known to.
pub(super) fn answer() {
    const SHELLS: Shells<'static> = Shells(&[&Bash, &Zsh, &Fish]);
    CompleteEnv::with_factory(command).var(VARIABLE).shells(SHELLS).complete();
}

/// What finds the names that begin with what was typed.
type Names = fn(&OsStr) -> Vec<CompletionCandidate>;

/// Arguments that are names of what there is: the subcommand, its argument, and what finds the names.
const NAMES: [(&str, &str, Names); 6] = [
    ("mount", "machine", machines),
    ("unmount", "mountpoint", mounts),
    ("export", "name", machines),
    ("migrate", "name", machines),
    ("verify", "name", machines),
    ("manifest", "name", machines),
];

fn command() -> Command {
    NAMES.into_iter().fold(Args::command(), |command, (subcommand, argument, names)| {
        command.mut_subcommand(subcommand, |subcommand| {
            subcommand.mut_arg(argument, |arg| arg.add(ArgValueCompleter::new(names)))
        })
    })
}

/// What a name can be offered as; `None` for one that has no line of its own, or is shown as something else. A name that
/// begins with `-` would be an option.
fn candidate(name: &str) -> Option<CompletionCandidate> {
    let shown = !name.starts_with('-') && !name.chars().any(is_hidden);
    shown.then(|| CompletionCandidate::new(name))
}

/// The machines of whom the words so far name. Only Codchi's own directories are looked at: no daemon, nothing slow.
fn machines(current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else { return Vec::new() };
    let names = names(std::env::args_os().skip_while(|word| word != "--").skip(2));
    let names = names.unwrap_or_default().into_iter();
    names.filter(|name| name.starts_with(current)).filter_map(|name| candidate(&name)).collect()
}

/// What can be unmounted.
fn mounts(current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else { return Vec::new() };
    let table = mountinfo::read().unwrap_or_default().into_iter();
    let ours = table.filter(|mount| mount.fstype == "fuse.codchifs").map(|mount| mount.mountpoint);
    ours.filter_map(|path| {
        path.to_str().filter(|path| path.starts_with(current)).and_then(candidate)
    })
    .collect()
}

fn names(words: impl Iterator<Item = OsString>) -> Option<Vec<String>> {
    let Context { user, state, .. } = Context::new(&global(words)?).ok()?;
    let found = as_user(user, || state.machine_names()).ok()?.ok()?;
    let valid = |found| match found {
        Found::Machine(name) => Some(name.as_str().to_owned()),
        _ => None,
    };
    Some(found.into_iter().filter_map(valid).collect())
}

/// The options that say whose machines, out of words that make no whole command yet.
fn global(words: impl Iterator<Item = OsString>) -> Option<Global> {
    let known = |word: &str| {
        let command = Args::command();
        let mut all = command.get_arguments().filter(|arg| arg.get_action().takes_values());
        all.any(|arg| arg.get_long().is_some_and(|long| word.strip_prefix("--") == Some(long)))
    };
    let mut line: Vec<OsString> = vec!["codchifs".into()];
    let mut words = words;
    while let Some(word) = words.next() {
        let Some(text) = word.to_str() else { continue };
        match text.split_once('=') {
            Some((name, _)) if known(name) => line.push(word),
            None if known(text) => line.extend([word.clone(), words.next()?]),
            _ => {}
        }
    }
    line.push("list".into());
    Args::try_parse_from(line).ok().map(|args| args.global)
}
