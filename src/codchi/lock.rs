//! Rewrites a machine's `flake.lock` for the generated `flake.nix`.
//!
//! Nix accepts a lock without changing it where, for every input, `original` is exactly what it
//! reads out of the flake.nix. So `original` of each module is written as nix would, as long as the
//! old one names the same source: a lock must never pin a revision of another repository. Where it
//! does not, the node stays as it is and nix locks that one input anew.

use super::config::json_error;
use super::driver::DRIVER;
use super::url::{Source, decode, is_url, strip_host, strip_login, strip_secrets};
use super::{Error, MachineConfig, ModuleUrl};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

type Object = Map<String, Value>;

/// The text of `/etc/nixos/flake.lock`, or `None` where the machine has no lock: nix rejects an empty
/// one.
///
/// Modules in the machine's home point to `/home/codchi`; those that are not locked to a commit are
/// dropped, as are inputs that the config no longer has and all that only they needed. Fails where
/// the machine's file is no lock file.
pub fn rewrite(config: &MachineConfig) -> Result<Option<String>, Error> {
    let Some(text) = &config.flake_lock else { return Ok(None) };
    let path = || config.dir.join("flake.lock");
    let fail = |fault| Error::Lock { machine: config.name.clone(), path: path(), fault };
    let mut lock: Object = serde_json::from_str(text.expose())
        .map_err(|fault| json_error(&config.name, path(), &fault))?;

    let root = lock.get("root").and_then(Value::as_str).ok_or_else(|| fail("it has no root"))?;
    let root = root.to_owned();
    let nodes = lock.get_mut("nodes").and_then(Value::as_object_mut);
    let nodes = nodes.ok_or_else(|| fail("it has no nodes"))?;
    let root_node = nodes.get_mut(&root).and_then(Value::as_object_mut);
    let root_node = root_node.ok_or_else(|| fail("its root is not among its nodes"))?;
    let Value::Object(mut inputs) =
        root_node.remove("inputs").unwrap_or_else(|| Object::new().into())
    else {
        return Err(fail("the inputs of its root are no object"));
    };

    inputs.retain(|name, target| match config.modules.get(name) {
        None => name == DRIVER,
        Some(url) => match target.as_str().and_then(|node| nodes.get_mut(node)) {
            Some(node) => update(node, url),
            // An input that follows another one; Codchi writes none.
            None => target.is_array(),
        },
    });
    if let Some(root_node) = nodes.get_mut(&root).and_then(Value::as_object_mut) {
        root_node.insert("inputs".to_owned(), inputs.into());
    }
    drop_unreachable(nodes, &root);
    if config.redacted {
        nodes.values_mut().for_each(redact_node);
        // Nix reads nothing else.
        lock.retain(|key, _| ["nodes", "root", "version"].contains(&key.as_str()));
    }

    let mut text = Bounded(Vec::new());
    let written = serde_json::to_writer_pretty(&mut text, &sorted(lock.into()));
    written.map_err(|_| fail("it is nested deeper than nix writes any"))?;
    text.0.push(b'\n');
    String::from_utf8(text.0).map(Some).map_err(|_| fail("it is no text"))
}

/// Bytes of a lock that is written anew. Indentation makes the same values longer, and where they are nested deeply, a
/// hundred times.
const MAX_TEXT: usize = 16 << 20;

/// A text that may not become longer than that.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_TEXT {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes a module's node fit its URL. False where it has to go.
fn update(node: &mut Value, url: &ModuleUrl) -> bool {
    let field = |side: &str, key: &str| Some(node.get(side)?.get(key)?.as_str()?.to_owned());
    let locked_rev = field("locked", "rev");
    let same = same_source(node.get("original"), url);
    if url.local_path().is_some() && (locked_rev.is_none() || !same) {
        return false;
    }
    if !same {
        return true;
    }
    if let Some(git_url) = url.git_url() {
        for side in ["original", "locked"] {
            if let Some(side) = node.get_mut(side).and_then(Value::as_object_mut) {
                side.insert("url".to_owned(), git_url.clone().into());
            }
        }
    }
    if url.rev().is_none_or(|rev| locked_rev.as_deref() == Some(&rev))
        && let Some(node) = node.as_object_mut()
    {
        let original = original(url).into_iter().map(|(key, value)| (key.to_owned(), value.into()));
        node.insert("original".to_owned(), Value::Object(original.collect()));
    }
    true
}

/// What nix reads out of the flake.nix for this module: host, ref and rev without escapes, the rest
/// with them.
fn original(url: &ModuleUrl) -> BTreeMap<&'static str, String> {
    let mut attrs = BTreeMap::new();
    if let Source::Forge { forge, host, .. } = &url.source {
        let (owner, repo) = url.owner_repo().unwrap_or_default();
        attrs.extend([("owner", owner), ("repo", repo)]);
        attrs.extend([("type", (*forge).to_owned()), ("host", host.clone())]);
    } else {
        attrs.extend([("type", "git".to_owned()), ("url", url.git_url().unwrap_or_default())]);
    }
    attrs.extend(url.branch().map(|branch| ("ref", branch)));
    attrs.extend(url.rev().map(|rev| ("rev", rev)));
    attrs
}

/// Whether a node was locked from the repository and branch that `url` names now.
fn same_source(original: Option<&Value>, url: &ModuleUrl) -> bool {
    let field = |key: &str| Some(decode(original?.get(key)?.as_str()?));
    let agrees = |key, wanted: Option<&str>| match (field(key), wanted) {
        (Some(found), Some(wanted)) => found == decode(wanted),
        _ => true,
    };
    let wanted = self::original(url);
    let wanted = |key| wanted.get(key).map(String::as_str);
    if field("type").as_deref() != wanted("type") || !agrees("rev", wanted("rev")) {
        return false;
    }
    // Without a commit the branch is what was locked; with one, the commit is compared elsewhere.
    if url.rev().is_none() && field("ref").as_deref() != wanted("ref") {
        return false;
    }
    let found = original.and_then(|attrs| attrs.get("url")?.as_str()?.split('?').next());
    match (url.local_path(), url.git_url()) {
        (Some(path), _) => found.map(decode).is_some_and(|found| {
            let below = format!("/{path}");
            found.starts_with("file:")
                && (path.is_empty() || found.trim_end_matches('/').ends_with(&below))
        }),
        (None, Some(git_url)) => {
            found.is_some_and(|found| decode(&strip_login(found)) == decode(&strip_login(&git_url)))
        }
        (None, None) => {
            let (owner, repo) = (wanted("owner").map(decode), wanted("repo").map(decode));
            field("owner") == owner && field("repo") == repo && agrees("host", wanted("host"))
        }
    }
}

/// Drops the nodes that no input leads to any more, and the `follows` of what is left that lead
/// through an input of the root that is gone.
fn drop_unreachable(nodes: &mut Object, root: &str) {
    let top: BTreeSet<String> = nodes
        .get(root)
        .and_then(|node| node.get("inputs")?.as_object())
        .map(|inputs| inputs.keys().cloned().collect())
        .unwrap_or_default();
    let mut reached = BTreeSet::new();
    let mut queue = vec![root.to_owned()];
    while let Some(name) = queue.pop() {
        let Some(node) = nodes.get_mut(&name) else { continue };
        if !reached.insert(name) {
            continue;
        }
        let Some(inputs) = node.get_mut("inputs").and_then(Value::as_object_mut) else { continue };
        inputs.retain(|_, target| match target.as_array().and_then(|path| path.first()) {
            Some(first) => first.as_str().is_some_and(|first| top.contains(first)),
            None => true,
        });
        queue.extend(inputs.values().filter_map(|target| Some(target.as_str()?.to_owned())));
    }
    nodes.retain(|name, _| reached.contains(name));
}

/// Takes all that may be a credential out of a node. Its inputs are names, chosen by people: `secrets` is a common one.
fn redact_node(node: &mut Value) {
    let Some(node) = node.as_object_mut() else { return };
    node.retain(|key, _| !is_secret(key));
    node.iter_mut().filter(|(key, _)| *key != "inputs").for_each(|(_, value)| redact(value));
}

fn redact(value: &mut Value) {
    match value {
        Value::String(text) if is_url(text) => *text = strip_secrets(text),
        Value::Array(items) => items.iter_mut().for_each(redact),
        Value::Object(fields) => {
            fields.retain(|key, _| !is_secret(key));
            fields.values_mut().for_each(redact);
            if let Some(Value::String(host)) = fields.get_mut("host") {
                *host = strip_host(host);
            }
        }
        _ => {}
    }
}

/// Whether a field of this name smells of a credential. None of nix's own does.
fn is_secret(field: &str) -> bool {
    const PARTS: [&str; 12] = [
        "accesskey",
        "apikey",
        "authorization",
        "bearer",
        "cookie",
        "credential",
        "login",
        "netrc",
        "passw",
        "privatekey",
        "secret",
        "token",
    ];
    let letters = field.chars().filter(char::is_ascii_alphanumeric);
    let plain: String = letters.map(|c| c.to_ascii_lowercase()).collect();
    ["auth", "pass", "passphrase", "pat"].contains(&plain.as_str())
        || PARTS.iter().any(|part| plain.contains(part))
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields: BTreeMap<String, Value> =
                fields.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            Value::Object(fields.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
