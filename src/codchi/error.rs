//! What can be wrong with Codchi's state, in words for the person who has to repair it.
//!
//! No text and no `Debug` output here holds anything that was read from a file but names, since the
//! files hold secrets and URLs hold tokens.

use super::MachineName;
use super::url::UrlError;
use crate::quote::{self, word};
use std::io;
use std::path::PathBuf;

/// Why Codchi's state, or one machine in it, cannot be read.
///
/// Each text says what was attempted, on which machine and path, and the remedy. It is lower-case,
/// without a full stop, and never holds a secret. Causes are in the text, not in `source()`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory of a machine cannot be opened or read.
    #[error(
        "cannot read {} of machine {machine}: {cause}; check that it exists and that its owner may \
         read it",
        quote::path(path)
    )]
    Read {
        /// The machine it belongs to.
        machine: MachineName,
        /// What was opened.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// A link, directory, FIFO or device stands where a machine's file should be.
    #[error(
        "cannot read {} of machine {machine}: it is not a regular file; put the real file there",
        quote::path(path)
    )]
    NotAFile {
        /// The machine it belongs to.
        machine: MachineName,
        /// What was looked at.
        path: PathBuf,
    },
    /// A machine's file is larger than anything Codchi writes.
    #[error(
        "cannot read {} of machine {machine}: it is larger than {limit}, the most that is read of it; \
         restore it from a backup",
        quote::path(path)
    )]
    TooLarge {
        /// The machine it belongs to.
        machine: MachineName,
        /// What was read.
        path: PathBuf,
        /// The limit, with its unit.
        limit: String,
    },
    /// A machine's file is not UTF-8 text.
    #[error(
        "cannot read {} of machine {machine}: it is not UTF-8 text; restore it from a backup",
        quote::path(path)
    )]
    NotText {
        /// The machine it belongs to.
        machine: MachineName,
        /// What was read.
        path: PathBuf,
    },
    /// A machine's config.json is empty: Codchi creates it so, and takes it as "no such machine".
    #[error(
        "cannot use {} of machine {machine}: it is empty; run `codchi init {}` or restore it \
         from a backup", quote::path(path), word(machine.as_str().as_bytes())
    )]
    Empty {
        /// The machine it belongs to.
        machine: MachineName,
        /// What was read.
        path: PathBuf,
    },
    /// Codchi holds the lock and what is in the file is no whole config yet. The last good one
    /// stays valid.
    #[error(
        "cannot read {} of machine {machine}: codchi holds its lock and has not finished writing; \
         finish or stop the running codchi command and try again",
        quote::path(path)
    )]
    Busy {
        /// The machine it belongs to.
        machine: MachineName,
        /// What was read.
        path: PathBuf,
    },
    /// A file is not the JSON it should be. Only the place and the kind of fault are kept, since
    /// the parser's own text quotes values.
    #[error(
        "cannot parse {} of machine {machine}: {fault} at line {line} column {column}; repair it or \
         restore it from a backup",
        quote::path(path)
    )]
    Json {
        /// The machine it belongs to.
        machine: MachineName,
        /// What was parsed.
        path: PathBuf,
        /// The kind of fault.
        fault: &'static str,
        /// Line of the fault, from 1; 0 where the parser does not know.
        line: usize,
        /// Column of the fault in bytes, from 1; 0 where the parser does not know.
        column: usize,
    },
    /// A flake.lock is JSON, but not a lock file as nix writes it.
    #[error(
        "cannot rewrite {} of machine {machine}: {fault}; run `codchi rebuild {}` to have it \
         written anew", quote::path(path), word(machine.as_str().as_bytes())
    )]
    Lock {
        /// The machine it belongs to.
        machine: MachineName,
        /// What was parsed.
        path: PathBuf,
        /// What is missing or wrong.
        fault: &'static str,
    },
    /// A module's URL is none that Codchi knows.
    #[error(
        "cannot use module {} of machine {machine} in {}: {cause}; correct it with `codchi \
         module set`",
        quote::quotation(module),
        quote::path(path)
    )]
    ModuleUrl {
        /// The machine it belongs to.
        machine: MachineName,
        /// The config.json it is written in.
        path: PathBuf,
        /// The module's name.
        module: String,
        /// What is wrong with the URL.
        cause: UrlError,
    },
    /// A module's name cannot be an input of a flake.
    #[error(
        "cannot use module {} of machine {machine} in {}: {fault}; rename it with `codchi \
         module set --new-name`",
        quote::quotation(module),
        quote::path(path)
    )]
    ModuleName {
        /// The machine it belongs to.
        machine: MachineName,
        /// The config.json it is written in.
        path: PathBuf,
        /// The module's name.
        module: String,
        /// Why it cannot be used.
        fault: &'static str,
    },
    /// Codchi's machine directory cannot be listed.
    #[error(
        "cannot list the code machines in {}: {cause}; check that it is codchi's config directory \
         and that its owner may read it",
        quote::path(path)
    )]
    List {
        /// What was listed.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// Codchi's own config.toml cannot be read.
    #[error(
        "cannot read codchi's settings in {}: {cause}; repair or remove the file",
        quote::path(path)
    )]
    Settings {
        /// What was read.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// Codchi's own config.toml is no TOML, or `data_dir` is no text.
    #[error(
        "cannot parse codchi's settings in {}: fault at line {line}; repair the file",
        quote::path(path)
    )]
    Toml {
        /// What was parsed.
        path: PathBuf,
        /// Line of the fault, from 1; 0 where the parser does not know.
        line: usize,
    },
    /// A directory is not given as an absolute path.
    #[error(
        "cannot use {what} {}: it is not an absolute path; write it in full, from /",
        quote::path(path)
    )]
    Relative {
        /// Which directory it is, and who says so.
        what: &'static str,
        /// As it was written.
        path: PathBuf,
    },
    /// There is nothing to find the home directory by.
    #[error(
        "cannot find Codchi's state of uid {uid}: $HOME is not set and this host has no such user; \
         set $HOME or name codchi's config and data directories"
    )]
    NoHome {
        /// Whose state it was to be.
        uid: u32,
    },
    /// The host has no user of this name.
    #[error(
        "cannot find Codchi's state of user \"{user}\", named by {by}: this host has no such user; \
         {}",
        user_remedy(user)
    )]
    UnknownUser {
        /// The name, quoted.
        user: String,
        /// Who named it: `--user` or `$SUDO_USER`.
        by: &'static str,
    },
    /// The sources of users beside /etc/passwd gave no answer.
    #[error(
        "cannot find Codchi's state of user \"{user}\", named by {by}: /etc/passwd does not have it, and \
         the other sources of users gave no answer in time; see /etc/nsswitch.conf, and try: getent passwd"
    )]
    NoAnswerOfUser {
        /// The name, quoted.
        user: String,
        /// Who named it: `--user` or `$SUDO_USER`.
        by: &'static str,
    },
    /// Somebody who is not root asks for the state of somebody else.
    #[error(
        "cannot read Codchi's state of user \"{user}\": only root may use --user for somebody else; run it as root"
    )]
    UserNeedsRoot {
        /// The name, quoted.
        user: String,
    },
}

impl Error {
    /// Whether it stays so until somebody changes something.
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::UnknownUser { .. } | Self::UserNeedsRoot { .. })
    }
}

/// systemd takes a dash in an instance's name for a slash (systemd.unit(5)).
fn user_remedy(user: &str) -> &'static str {
    match user.contains('/') {
        true => {
            "in a unit's name a dash must be escaped: systemctl start \"codchifs@$(systemd-escape USER)\""
        }
        false => "check the name with: getent passwd",
    }
}

impl Error {
    /// Whether the state is only being written right now, so that the last good one still holds.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Busy { .. })
    }
}

/// Why a name cannot be a code machine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It has no characters.
    #[error("a machine's name must not be empty")]
    Empty,
    /// It is longer than 248 bytes, so that `codchi-NAME` is no file name.
    #[error("a machine's name must not be longer than 248 bytes")]
    TooLong,
    /// It holds a slash, or is `.` or `..`: it would lead out of the machine directory.
    #[error("a machine's name must not hold a slash or be a path")]
    Path,
    /// It starts with a dot, as the hidden directories of the mounted tree do.
    #[error("a machine's name must not start with a dot")]
    Hidden,
    /// It holds a NUL or another control character.
    #[error("a machine's name must not hold control characters")]
    Control,
    /// It is not UTF-8.
    #[error("a machine's name must be UTF-8")]
    NotText,
}
