//! Codchi's module URLs, as `config.json` holds them.
//!
//! `SCHEME://PLACE?KEY=VALUE&...#ATTRIBUTE.PATH`, where the place is a path below `/home/codchi` for
//! `file`, and `HOST/REPOSITORY` for all others. As in Codchi, the text is cut at the first `#`, then
//! at the first `?`; `token`, `commit` and `ref` are known, other keys are ignored. Codchi always
//! writes `?` and `#`; without them all is default.
//!
//! # Commits
//!
//! Codchi hands `commit=` to nix under that name, which nix does not know: the machine runs what its lock names. A full
//! commit id becomes nix's `rev=`; anything else (a short id, a tag, an id of SHA-256) is one that nix refuses there, and so
//! stays ignored, with a warning.
//!
//! # Credentials
//!
//! A login in front of the host is one if it has a password (`user:PASSWORD@`), and under HTTP also without, since a token
//! is often the whole of it. A mere name is none where it cannot be a token: `git` everywhere, and any name of an ssh user
//! that does not look like a token. Codchi's `token=` is such a login; forges do not get it. In URLs of flakes and locks,
//! every query parameter that nix does not know is one, since it goes to the server as it is.

use crate::quote;
use std::fmt;
use std::str::FromStr;

/// The attribute path that is used where a URL names none: the one every module flake has that is
/// meant for users.
const DEFAULT_ATTR: [&str; 2] = ["nixosModules", "default"];

/// Where a module comes from. Neither `Debug` nor `Display` shows its token.
#[derive(Clone, PartialEq, Eq)]
pub struct ModuleUrl {
    pub(super) source: Source,
    /// `user:token` or `token`, as written: percent escapes in it are meant as such.
    token: Option<String>,
    /// A branch or tag, as written.
    branch: Option<String>,
    /// A commit id, as written.
    commit: Option<String>,
    attr: Vec<String>,
}

/// The place a URL names, as written.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// A git repository below `/home/codchi`, without slashes around and without escapes.
    Local { path: String },
    /// A forge that nix knows by itself.
    Forge { forge: &'static str, host: String, owner: Vec<String>, repo: String },
    /// A git repository behind a URL. `login` is what stands before the `@`.
    Git { scheme: &'static str, login: Option<String>, host: String, repo: String },
}

/// Why a text is no module URL. Holds none of the text but a scheme that looks like one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// There is no `://`.
    #[error("its URL has no scheme such as https://")]
    NoScheme,
    /// The scheme is none of Codchi's.
    #[error(
        "its URL has the unknown scheme {}, codchi knows file, github, gitlab, sourcehut, http, \
         https and ssh",
        quote::quotation(.0)
    )]
    UnknownScheme(String),
    /// There is no host, or nothing after it.
    #[error("its URL must name a host and a repository, as in SCHEME://HOST/REPOSITORY")]
    NoRepository,
    /// A forge's URL has no owner.
    #[error("its URL must name an owner and a repository, as in SCHEME://HOST/OWNER/REPOSITORY")]
    NoOwner,
    /// A forge's URL names a branch behind the repository and another one in the query.
    #[error("its URL names a branch twice, in its path and in its query")]
    TwoBranches,
    /// A local module outside of the home.
    #[error("its URL must be a path below /home/codchi, without '..', as in file://PROJECT")]
    LeavesHome,
    /// A branch or tag that no repository of git can have.
    #[error("its URL names a branch or tag that git allows no such name for (ref=)")]
    Ref,
    /// What follows the `#` is no attribute path.
    #[error("its URL must end in an attribute path, as in #nixosModules.default")]
    Attribute,
}

impl FromStr for ModuleUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::NoScheme)?;
        let (rest, attr) = rest.split_once('#').unwrap_or((rest, ""));
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let value = |key: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.rfind(|(k, v)| *k == key && !v.is_empty()).map(|(_, v)| v.to_owned())
        };
        let (token, commit, mut branch) = (value("token"), value("commit"), value("ref"));
        let source = match scheme {
            "file" => local(place)?,
            "github" => forge("github", place, value("host"), &mut branch)?,
            "gitlab" => forge("gitlab", place, value("host"), &mut branch)?,
            "sourcehut" => forge("sourcehut", place, value("host"), &mut branch)?,
            "http" => git("http", place)?,
            "https" => git("https", place)?,
            "ssh" => git("ssh", place)?,
            other => return Err(unknown(other)),
        };
        // Nix refuses the whole flake for it.
        if branch.as_deref().is_some_and(|name| !is_ref_name(&decode(name))) {
            return Err(UrlError::Ref);
        }
        Ok(Self { source, token, branch, commit, attr: attribute_path(attr)? })
    }
}

/// Keeps only what surely is a scheme: a token may have slipped in front of the URL.
fn unknown(scheme: &str) -> UrlError {
    let plain = |c: char| c.is_ascii_lowercase() || c == '+';
    if scheme.len() <= 16 && scheme.chars().all(plain) {
        UrlError::UnknownScheme(scheme.to_owned())
    } else {
        UrlError::UnknownScheme("?".to_owned())
    }
}

/// A path below the login user's home. Codchi makes it a URL by joining, so that nix undoes the escapes in it, and `..`
/// would name something that neither the machine nor its export has.
fn local(place: &str) -> Result<Source, UrlError> {
    let place = decode(place);
    let path = place.trim_matches('/');
    if path.contains('\0') || path.split('/').any(|part| part == "..") {
        return Err(UrlError::LeavesHome);
    }
    Ok(Source::Local { path: path.to_owned() })
}

/// Whether git allows a branch or tag of this name (git-check-ref-format(1)). Nix takes no other.
fn is_ref_name(name: &str) -> bool {
    let part = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    let odd = |c: char| c.is_ascii_control() || " ~^:?*[\\".contains(c);
    name.split('/').all(part)
        && !name.contains(odd)
        && !name.contains("..")
        && !name.contains("@{")
        && !name.ends_with('.')
        && name != "@"
}

fn forge(
    forge: &'static str,
    place: &str,
    query_host: Option<String>,
    branch: &mut Option<String>,
) -> Result<Source, UrlError> {
    let (host, path) = place.split_once('/').ok_or(UrlError::NoRepository)?;
    let host = if host.is_empty() { query_host.unwrap_or_default() } else { host.to_owned() };
    let host = host.rsplit('@').next().unwrap_or_default().to_owned();
    if host.is_empty() {
        return Err(UrlError::NoRepository);
    }
    let mut parts = path.split('/').filter(|part| !part.is_empty()).map(str::to_owned);
    if forge == "gitlab" {
        let mut owner: Vec<String> = parts.collect();
        let repo = owner.pop().ok_or(UrlError::NoRepository)?;
        if owner.is_empty() {
            return Err(UrlError::NoOwner);
        }
        return Ok(Source::Forge { forge, host, owner, repo });
    }
    let owner = parts.next().ok_or(UrlError::NoRepository)?;
    let repo = parts.next().ok_or(UrlError::NoOwner)?;
    // Nix reads what follows as a branch, and Codchi hands it on.
    let rest: Vec<String> = parts.collect();
    if !rest.is_empty() && branch.replace(rest.join("/")).is_some() {
        return Err(UrlError::TwoBranches);
    }
    Ok(Source::Forge { forge, host, owner: vec![owner], repo })
}

fn git(scheme: &'static str, place: &str) -> Result<Source, UrlError> {
    let (authority, repo) = place.split_once('/').ok_or(UrlError::NoRepository)?;
    let (login, host) = match authority.rsplit_once('@') {
        Some((login, host)) => (Some(login.to_owned()).filter(|login| !login.is_empty()), host),
        None => (None, authority),
    };
    let repo = repo.trim_start_matches('/');
    if host.is_empty() || repo.is_empty() {
        return Err(UrlError::NoRepository);
    }
    Ok(Source::Git { scheme, login, host: host.to_owned(), repo: repo.to_owned() })
}

/// Splits at dots that are not inside double quotes.
fn attribute_path(text: &str) -> Result<Vec<String>, UrlError> {
    if text.is_empty() {
        return Ok(DEFAULT_ATTR.map(str::to_owned).to_vec());
    }
    let mut path = vec![String::new()];
    let mut quoted = false;
    for c in text.chars() {
        match c {
            '\0' => return Err(UrlError::Attribute),
            '"' => quoted = !quoted,
            '.' if !quoted => path.push(String::new()),
            _ => path.iter_mut().last().ok_or(UrlError::Attribute)?.push(c),
        }
    }
    if quoted || path.iter().any(String::is_empty) {
        return Err(UrlError::Attribute);
    }
    Ok(path)
}

impl ModuleUrl {
    /// Whether the generated flake has a credential of this URL.
    pub fn has_token(&self) -> bool {
        self.token_is_secret() || self.login_is_secret()
    }

    /// The same URL without its credentials.
    pub fn without_token(&self) -> Self {
        let mut url = self.clone();
        // That of a forge goes nowhere, and stays nowhere.
        if self.token_is_secret() || matches!(self.source, Source::Forge { .. }) {
            url.token = None;
        }
        if let Source::Git { login, .. } = &mut url.source
            && self.login_is_secret()
        {
            *login = None;
        }
        url
    }

    /// Of `token=`, only that of a repository behind a URL gets into the flake. Where it is called a token, no other name is
    /// believed to be harmless.
    fn token_is_secret(&self) -> bool {
        let token = self.token.as_deref().filter(|token| decode(token) != HARMLESS_LOGIN);
        matches!(self.source, Source::Git { .. }) && token.is_some()
    }

    fn login_is_secret(&self) -> bool {
        matches!(&self.source, Source::Git { scheme, login: Some(login), .. }
            if is_credential(scheme, login))
    }

    /// The attributes below the flake that lead to the NixOS module. Never empty.
    pub fn attribute_path(&self) -> &[String] {
        &self.attr
    }

    /// The path below `/home/codchi` where the module is the machine's own.
    pub fn local_path(&self) -> Option<&str> {
        match &self.source {
            Source::Local { path } => Some(path),
            _ => None,
        }
    }

    /// Whether nix needs git to fetch it.
    pub fn needs_git(&self) -> bool {
        !matches!(self.source, Source::Forge { .. })
    }

    /// The commit it is pinned to, as nix takes it: in full, in small letters.
    pub(super) fn rev(&self) -> Option<String> {
        let commit = decode(self.commit.as_deref()?);
        let full = commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
        full.then(|| commit.to_ascii_lowercase())
    }

    /// Whether its `commit=` is no full commit id, which nix ignores.
    pub fn has_ignored_commit(&self) -> bool {
        self.commit.is_some() && self.rev().is_none()
    }

    /// The branch or tag that nix is to be told. Forges take no branch beside a commit.
    pub(super) fn branch(&self) -> Option<String> {
        let forge = matches!(self.source, Source::Forge { .. });
        self.branch.as_deref().filter(|_| !(forge && self.rev().is_some())).map(decode)
    }

    /// A forge's owner and repository as nix keeps them. A subgroup's slash is escaped.
    pub(super) fn owner_repo(&self) -> Option<(String, String)> {
        let Source::Forge { owner, repo, .. } = &self.source else { return None };
        let encode = |part: &String| encode(part, SEGMENT, true);
        let owner: Vec<String> = owner.iter().map(encode).collect();
        Some((owner.join("%2F"), encode(repo)))
    }

    /// The repository as the `url` of nix's git fetcher: no query, credentials included.
    pub(super) fn git_url(&self) -> Option<String> {
        match &self.source {
            Source::Local { path } => {
                Some(format!("file:///home/codchi/{}", encode(path, PATH, false)))
            }
            Source::Forge { .. } => None,
            Source::Git { scheme, login, host, repo } => {
                let login = self.token.as_ref().or(login.as_ref());
                let login = login.map(|login| encode(login, LOGIN, true) + "@");
                let (host, repo) = (encode(host, HOST, true), encode(repo, PATH, true));
                Some(format!("{scheme}://{}{host}/{repo}", login.unwrap_or_default()))
            }
        }
    }
}

impl fmt::Display for ModuleUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Local { path } => write!(f, "file://{}?", path.replace('%', "%25"))?,
            Source::Forge { forge, host, owner, repo } => {
                write!(f, "{forge}://{host}/{}/{repo}?", owner.join("/"))?;
            }
            Source::Git { scheme, login, host, repo } => {
                let login = if login.is_some() { "***@" } else { "" };
                write!(f, "{scheme}://{login}{host}/{repo}?")?;
            }
        }
        let token = self.token.as_ref().map(|_| "***".to_owned());
        let fields = [("token", &token), ("commit", &self.commit), ("ref", &self.branch)];
        let query: Vec<String> = fields
            .iter()
            .filter_map(|(key, value)| value.as_ref().map(|value| format!("{key}={value}")))
            .collect();
        write!(f, "{}#{}", query.join("&"), self.attr.join("."))
    }
}

impl fmt::Debug for ModuleUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ModuleUrl").field(&self.to_string()).finish()
    }
}

/// What stays as it is in a path or a query value, besides letters and digits.
pub(super) const PATH: &[u8] = b"-._~/:@";
const SEGMENT: &[u8] = b"-._~";
const LOGIN: &[u8] = b"-._~:!$&'()*+,;=";
const HOST: &[u8] = b"-._~:[]";

/// Percent-encodes all but ASCII letters, digits and `keep`; with `escapes` also leaves alone what is
/// an escape already.
pub(super) fn encode(text: &str, keep: &[u8], escapes: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let escape = escapes && byte == b'%' && escaped(tail).is_some();
        if byte.is_ascii_alphanumeric() || keep.contains(&byte) || escape {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        rest = tail;
    }
    out
}

/// Undoes percent escapes; those that are none, or give no UTF-8, stay as they are.
pub(super) fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match (byte, escaped(tail)) {
            (b'%', Some(decoded)) => {
                out.push(decoded);
                rest = tail.get(2..).unwrap_or_default();
            }
            _ => out.push(byte),
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

/// The byte that two hex digits after a `%` stand for.
fn escaped(tail: &[u8]) -> Option<u8> {
    let digits = tail.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
    u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
}

/// Keys of a flake URL's query that say what is to be fetched. All others go to the server as they are: `token`,
/// `private_token`, `access_token` and whatever else forges have thought of.
const PLAIN_KEYS: [&str; 13] = [
    "allRefs",
    "dir",
    "exportIgnore",
    "host",
    "lastModified",
    "lfs",
    "name",
    "narHash",
    "ref",
    "rev",
    "revCount",
    "shallow",
    "submodules",
];

/// Cuts out of any URL all that may be a credential: the login, what of the query is none of [`PLAIN_KEYS`], and a
/// fragment that is no attribute path, since somebody may take it for a query. One that has nothing of it stays as it is.
pub(super) fn strip_secrets(url: &str) -> String {
    let url = strip_login(url);
    let (place, fragment) = url.split_at(url.find('#').unwrap_or(url.len()));
    let kept = if fragment.contains(['=', '&', '?']) { "" } else { fragment };
    let Some((place, query)) = place.split_once('?') else { return format!("{place}{kept}") };
    let mut pairs: Vec<String> = Vec::new();
    let mut same = kept == fragment;
    for pair in query.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let plain = pair.is_empty() || PLAIN_KEYS.contains(&key);
        let host = (key == "host").then(|| strip_host(value)).filter(|host| host != value);
        same &= plain && host.is_none();
        match host {
            Some(host) => pairs.push(format!("host={host}")),
            None if plain => pairs.push(pair.to_owned()),
            None => {}
        }
    }
    if same {
        return url;
    }
    let mark = if pairs.is_empty() { "" } else { "?" };
    format!("{place}{mark}{}{kept}", pairs.join("&"))
}

/// A forge's host without a login before it.
pub(super) fn strip_host(host: &str) -> String {
    let decoded = decode(host);
    match decoded.rsplit_once('@') {
        Some((_, host)) => host.to_owned(),
        None => host.to_owned(),
    }
}

/// Whether a text is a URL rather than a path or a name: it begins with a scheme.
pub(super) fn is_url(text: &str) -> bool {
    text.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    })
}

/// Cuts the login out of any URL, where it may be a credential.
pub(super) fn strip_login(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    match authority.rsplit_once('@') {
        Some((login, host)) if is_credential(scheme, login) => format!("{scheme}://{host}{path}"),
        _ => url.to_owned(),
    }
}

/// The name that everybody logs in with where git is served.
const HARMLESS_LOGIN: &str = "git";
/// Bytes of the longest name of a user (useradd(8)). Most tokens are longer.
const MAX_USER_NAME: usize = 32;
/// What tokens of forges begin with.
const TOKENS: [&str; 11] = [
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "gldt-",
    "glrt-",
    "glcbt-",
    "atbb",
];

/// Whether what stands before the `@` may be a credential.
fn is_credential(scheme: &str, login: &str) -> bool {
    let login = decode(login);
    let http = scheme.to_ascii_lowercase().contains("http");
    if login == HARMLESS_LOGIN {
        return false;
    }
    let part = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let name = login.len() <= MAX_USER_NAME && login.chars().all(part);
    let lower = login.to_ascii_lowercase();
    let token = TOKENS.iter().any(|start| lower.starts_with(start));
    http || !name || token
}

#[cfg(test)]
mod tests;
