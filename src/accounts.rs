//! The users and groups of the host: those in `/etc/passwd`, then those that only the other sources in nsswitch.conf(5) have (LDAP, sssd,
//! systemd-homed …).
//!
//! The latter are asked for in a process of its own. libc loads foreign code for it, which may wait for a server that does not
//! answer, start threads and leave sockets open: none of that may be in a process that is to answer a mount.

use crate::quote;
use crate::worker::Worker;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};
use uzers::os::unix::UserExt as _;

/// The first argument of such a process.
const WORD: &str = "--account";
/// How long the other sources may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A user of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    name: Vec<u8>,
    /// The user's id.
    pub uid: u32,
    /// The user's main group.
    pub gid: u32,
    home: Vec<u8>,
}

impl Account {
    /// The login name.
    pub fn name(&self) -> &OsStr {
        OsStr::from_bytes(&self.name)
    }

    /// The home directory, as it is written there.
    pub fn home(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.home))
    }
}

/// A group of the host, and whether a user is in it, as all sources together say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The group's name, if it has one.
    pub name: Option<String>,
    /// Whether a session that the user begins now is in it.
    pub is_member: bool,
}

/// Who is looked for.
#[derive(Clone, Copy, Debug)]
pub enum Key<'a> {
    /// The user of this name.
    Name(&'a OsStr),
    /// The first user with this id.
    Uid(u32),
    /// The same, in `/etc/passwd` alone: where one that is not found there does no harm.
    Listed(u32),
}

/// The other sources did not answer in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoAnswer;

/// What finds users: [`find`], but for tests.
pub type Find<'a> = &'a dyn Fn(Key<'_>) -> Result<Option<Account>, NoAnswer>;

/// The user of the host that is meant.
pub fn find(key: Key<'_>) -> Result<Option<Account>, NoAnswer> {
    let passwd = std::fs::read("/etc/passwd").unwrap_or_default();
    let (kind, word) = match (listed(&passwd, key), key) {
        (Some(found), _) => return Ok(Some(found)),
        (None, Key::Listed(_)) => return Ok(None),
        (None, Key::Name(name)) => ("name", name.to_owned()),
        (None, Key::Uid(uid)) => ("uid", uid.to_string().into()),
    };
    ask([kind.into(), word])
}

/// Whether a user is in the group with this id. No one source knows: a user of LDAP may be in a group of `/etc/group`, and the
/// other way round.
pub fn membership(gid: u32, user: &OsStr) -> Result<Membership, NoAnswer> {
    ask([gid.to_string().into(), user.to_owned()])
}

/// Asks all sources, in a process of its own.
fn ask<T: DeserializeOwned>(words: [OsString; 2]) -> Result<T, NoAnswer> {
    let words = [OsString::from(WORD)].into_iter().chain(words);
    let worker = Worker::start(words, Stdio::null()).map_err(|_| NoAnswer)?;
    worker.wait(Instant::now() + TIMEOUT).ok_or(NoAnswer)
}

/// A line of a passwd(5) or group(5): `NAME:PASSWORD:ID:REST`.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) id: u32,
    /// The fields behind the id.
    pub(crate) rest: Vec<&'a [u8]>,
}

/// The lines of such a file; those that are not whole are skipped, as libc does.
pub(crate) fn lines(text: &[u8]) -> impl Iterator<Item = Line<'_>> {
    text.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let _password = fields.next()?;
        Some(Line { name, id: number(fields.next()?)?, rest: fields.collect() })
    })
}

fn number(field: &[u8]) -> Option<u32> {
    str::from_utf8(field).ok()?.parse().ok()
}

/// The user in the text of a passwd(5).
pub fn listed(passwd: &[u8], key: Key<'_>) -> Option<Account> {
    let accounts = lines(passwd).filter_map(|line| {
        let [gid, _gecos, home, ..] = line.rest[..] else { return None };
        let (name, home) = (line.name.to_vec(), home.to_vec());
        Some(Account { name, uid: line.id, gid: number(gid)?, home })
    });
    let is_meant = |account: &Account| match key {
        Key::Name(name) => account.name() == name,
        Key::Uid(uid) | Key::Listed(uid) => account.uid == uid,
    };
    { accounts }.find(is_meant)
}

/// Answers as such a process, if this is one.
pub(crate) fn answer() -> Option<ExitCode> {
    let mut words = std::env::args_os().skip(1);
    if words.next()? != WORD {
        return None;
    }
    let (kind, word) = (words.next()?, words.next()?);
    let said = match kind.to_str()? {
        "name" => serde_json::to_vec(&uzers::get_user_by_name(&word).map(account)),
        "uid" => {
            let found = uzers::get_user_by_uid(word.to_str()?.parse().ok()?);
            serde_json::to_vec(&found.map(account))
        }
        gid => serde_json::to_vec(&asked_membership(gid.parse().ok()?, &word)),
    };
    let said = said.ok()?;
    Some(match std::io::stdout().write_all(&said) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

fn account(user: uzers::User) -> Account {
    Account {
        name: user.name().as_bytes().to_vec(),
        uid: user.uid(),
        gid: user.primary_group_id(),
        home: user.home_dir().as_os_str().as_bytes().to_vec(),
    }
}

fn asked_membership(gid: u32, user: &OsStr) -> Membership {
    let name = uzers::get_group_by_gid(gid).map(|group| quote::path(group.name()).to_string());
    let user = uzers::get_user_by_name(user);
    let groups = user.and_then(|user| user.groups()).unwrap_or_default();
    Membership { name, is_member: groups.iter().any(|group| group.gid() == gid) }
}
