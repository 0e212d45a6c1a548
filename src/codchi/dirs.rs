//! Whose Codchi state is meant, and where it is. The only file that knows XDG.
//!
//! All of it is pure: the environment and `/etc/passwd` are arguments.

use super::Error;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Looks up a variable of the environment, as [`std::env::var_os`] does.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The user whose state is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The user's id on the host.
    pub uid: u32,
    /// The user's main group, where `/etc/passwd` knows the user.
    pub gid: Option<u32>,
    /// The user's home directory on the host.
    pub home: PathBuf,
    /// Whether it is the caller's own state. Only then do the caller's `XDG_*` variables count.
    pub is_caller: bool,
}

/// Whose state it is: the caller's; for root that of `--user`, else of `$SUDO_USER`, else root's.
///
/// `passwd` is the text of `/etc/passwd`. Anyone but root can name nobody else with `--user`; a name
/// that is not in `passwd` is an error.
pub fn owner(
    caller_uid: u32,
    user: Option<&str>,
    env: Env<'_>,
    passwd: &[u8],
) -> Result<Owner, Error> {
    if caller_uid != 0 {
        let own =
            |user: &str| accounts(passwd).any(|a| a.name == user.as_bytes() && a.uid == caller_uid);
        return match user {
            Some(user) if !own(user) => Err(Error::UserNeedsRoot { user: user.to_owned() }),
            _ => caller(caller_uid, env, passwd),
        };
    }
    let named = match user {
        Some(user) => Some((OsString::from(user), "--user")),
        None => set(env, "SUDO_USER").map(|user| (user, "$SUDO_USER")),
    };
    let Some((user, by)) = named else { return caller(caller_uid, env, passwd) };
    let found = accounts(passwd).find(|account| account.name == user.as_bytes());
    let Some(found) = found else {
        return Err(Error::UnknownUser { user: user.to_string_lossy().into_owned(), by });
    };
    if found.uid == caller_uid {
        return caller(caller_uid, env, passwd);
    }
    let home = absolute("the home directory in /etc/passwd", found.home)?;
    Ok(Owner { uid: found.uid, gid: Some(found.gid), home, is_caller: false })
}

fn caller(uid: u32, env: Env<'_>, passwd: &[u8]) -> Result<Owner, Error> {
    let found = accounts(passwd).find(|account| account.uid == uid);
    let gid = found.as_ref().map(|account| account.gid);
    let home = set(env, "HOME")
        .map(PathBuf::from)
        .or_else(|| found.map(|account| account.home.to_owned()))
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

struct Account<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a Path,
}

/// The lines of passwd(5) that are whole; others are skipped, as libc does.
fn accounts(passwd: &[u8]) -> impl Iterator<Item = Account<'_>> {
    passwd.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let _password = fields.next()?;
        let mut id = || str::from_utf8(fields.next()?).ok()?.parse().ok();
        let (uid, gid) = (id()?, id()?);
        let _gecos = fields.next()?;
        let home = Path::new(OsStr::from_bytes(fields.next()?));
        Some(Account { name, uid, gid, home })
    })
}

#[cfg(test)]
mod tests;
