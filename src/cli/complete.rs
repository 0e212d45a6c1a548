//! What a shell offers after TAB: the options by clap, names by looking at what there is.

use super::Context;
use super::args::{Args, Global};
use crate::codchi::Found;
use crate::credentials::as_user;
use crate::mountinfo;
use clap::{CommandFactory as _, Parser as _};
use clap_complete::CompleteEnv;
use clap_complete::engine::CompletionCandidate;
use std::ffi::{OsStr, OsString};

/// By which a shell's script asks; not clap's own `COMPLETE`, which may be anybody's.
pub(super) const VARIABLE: &str = "CODCHIFS_COMPLETE";

/// Answers a shell, and then does not return; returns at once to everybody else.
pub(super) fn answer() {
    CompleteEnv::with_factory(Args::command).var(VARIABLE).complete();
}

/// The machines of whom the words so far name. Only Codchi's own directories are looked at: no daemon, nothing slow.
pub(super) fn machines(current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else { return Vec::new() };
    let names = names(std::env::args_os().skip_while(|word| word != "--").skip(2));
    let names = names.unwrap_or_default().into_iter();
    names.filter(|name| name.starts_with(current)).map(CompletionCandidate::new).collect()
}

/// What can be unmounted.
pub(super) fn mounts(current: &OsStr) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy();
    let table = mountinfo::read().unwrap_or_default().into_iter();
    let ours = table.filter(|mount| mount.fstype == "fuse.codchifs").map(|mount| mount.mountpoint);
    ours.filter(|path| path.to_string_lossy().starts_with(&*current))
        .map(CompletionCandidate::new)
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
