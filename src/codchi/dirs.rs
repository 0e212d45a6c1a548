//! Whose Codchi state is meant, and where it is. The only file that knows XDG.
//!
//! All of it is pure: the environment and the users of the host are arguments.

use super::Error;
use crate::accounts::{Find, Key};
use crate::quote;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// Looks up a variable of the environment, as [`std::env::var_os`] does.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The user whose state is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The user's id on the host.
    pub uid: u32,
    /// The user's main group, where it is known.
    pub gid: Option<u32>,
    /// The user's home directory on the host.
    pub home: PathBuf,
    /// Whether it is the caller's own state. Only then do the caller's `XDG_*` variables count.
    pub is_caller: bool,
}

/// Whose state it is: the caller's; for root that of `--user`, else of `$SUDO_USER`, else root's.
///
/// Anyone but root can name nobody else with `--user`; a name that the host does not know is an error.
pub fn owner(
    caller_uid: u32,
    user: Option<&str>,
    env: Env<'_>,
    find: Find<'_>,
) -> Result<Owner, Error> {
    if caller_uid != 0 {
        let own = |user: &str| {
            let found = find(Key::Name(OsStr::new(user)));
            matches!(found, Ok(Some(account)) if account.uid == caller_uid)
        };
        return match user {
            Some(user) if !own(user) => {
                Err(Error::UserNeedsRoot { user: quote::name(user).to_string() })
            }
            _ => caller(caller_uid, env, find),
        };
    }
    let named = match user {
        Some(user) => Some((OsString::from(user), "--user")),
        None => set(env, "SUDO_USER").map(|user| (user, "$SUDO_USER")),
    };
    let Some((user, by)) = named else { return caller(caller_uid, env, find) };
    let shown = || quote::path(&user).to_string();
    let found = find(Key::Name(&user)).map_err(|_| Error::NoAnswerOfUser { user: shown(), by })?;
    let found = found.ok_or_else(|| Error::UnknownUser { user: shown(), by })?;
    if found.uid == caller_uid {
        return caller(caller_uid, env, find);
    }
    let home = absolute("the user's home directory", found.home())?;
    Ok(Owner { uid: found.uid, gid: Some(found.gid), home, is_caller: false })
}

fn caller(uid: u32, env: Env<'_>, find: Find<'_>) -> Result<Owner, Error> {
    let home = set(env, "HOME").map(PathBuf::from);
    // Where $HOME says where the state is, the group is not worth waiting for.
    let key = if home.is_some() { Key::Listed(uid) } else { Key::Uid(uid) };
    let found = find(key).ok().flatten();
    let gid = found.as_ref().map(|account| account.gid);
    let home = home
        .or_else(|| found.map(|account| account.home().to_owned()))
        .ok_or(Error::NoHome { uid })?;
    Ok(Owner { uid, gid, home: absolute("the home directory $HOME", &home)?, is_caller: true })
}

/// Codchi's config dir: the explicit one, else `$XDG_CONFIG_HOME/codchi`, else
/// `HOME/.config/codchi`. As XDG demands, a relative `$XDG_CONFIG_HOME` counts as unset.
pub fn config_dir(owner: &Owner, explicit: Option<&Path>, env: Env<'_>) -> Result<PathBuf, Error> {
    match explicit {
        Some(path) => absolute("codchi's config directory", path),
        None => Ok(xdg(owner, env, "XDG_CONFIG_HOME", ".config")),
    }
}

/// Codchi's data dir: the explicit one, else `data_dir` of `config.toml` in `config_dir`, whose
/// text is `settings`, else `$XDG_DATA_HOME/codchi`, else `HOME/.local/share/codchi`.
pub fn data_dir(
    owner: &Owner,
    explicit: Option<&Path>,
    env: Env<'_>,
    config_dir: &Path,
    settings: Option<&str>,
) -> Result<PathBuf, Error> {
    if let Some(path) = explicit {
        return absolute("codchi's data directory", path);
    }
    #[derive(serde::Deserialize)]
    struct Settings {
        data_dir: Option<PathBuf>,
    }
    let text = settings.unwrap_or_default();
    let settings: Settings = toml::from_str(text).map_err(|fault| Error::Toml {
        path: config_dir.join("config.toml"),
        line: fault
            .span()
            .and_then(|span| text.get(..span.start))
            .map_or(0, |before| before.matches('\n').count() + 1),
    })?;
    match settings.data_dir {
        Some(path) => absolute("data_dir of codchi's config.toml", &path),
        None => Ok(xdg(owner, env, "XDG_DATA_HOME", ".local/share")),
    }
}

fn xdg(owner: &Owner, env: Env<'_>, variable: &str, below_home: &str) -> PathBuf {
    let base = if owner.is_caller { set(env, variable) } else { None };
    base.map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .unwrap_or_else(|| owner.home.join(below_home))
        .join("codchi")
}

/// A variable that is set and not empty.
fn set(env: Env<'_>, variable: &str) -> Option<OsString> {
    env(variable).filter(|value| !value.is_empty())
}

fn absolute(what: &'static str, path: &Path) -> Result<PathBuf, Error> {
    if path.is_absolute() {
        Ok(path.to_owned())
    } else {
        Err(Error::Relative { what, path: path.to_owned() })
    }
}

#[cfg(test)]
mod tests;
