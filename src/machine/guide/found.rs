//! What a machine's disk tells of what was installed by hand.
//!
//! All of it is foreign text of a machine that may write anything. Links are read and taken apart here, never followed by
//! the system, and files are read up to a limit.

use super::super::path::walk;
use crate::tree::{File, HOME, Tree, read_full};
use serde_json::Value;
use std::collections::BTreeSet;

/// Bytes of a profile's manifest that are read at most.
const MOST_MANIFEST: usize = 1 << 20;
/// Packages that are named at most.
const MOST_PACKAGES: usize = 200;
/// Links in a row that lead to a profile at most: profile, generation, store.
const MOST_LINKS: usize = 8;

/// What was installed with `nix profile` or `nix-env`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Programs {
    /// As `nix profile install` takes them.
    pub(super) installables: BTreeSet<String>,
    /// Names of which it is not known, or not to be told, where they come from.
    pub(super) names: BTreeSet<String>,
    /// There is a profile, and what is in it is not on this disk.
    pub(super) elsewhere: bool,
    /// There are more than are named here.
    pub(super) more: bool,
}

pub(super) fn programs(tree: &Tree) -> Programs {
    let mut programs = Programs::default();
    let mut seen = BTreeSet::new();
    for profile in [".nix-profile", ".local/state/nix/profiles/profile"] {
        let path = format!("{HOME}/{profile}");
        if !is_there(tree, &path) {
            continue;
        }
        let Some(path) = resolve(tree, &path) else {
            programs.elsewhere = true;
            continue;
        };
        if !seen.insert(path.clone()) {
            continue;
        }
        let manifest = |name: &str| {
            let text = read(tree, &resolve(tree, &format!("{path}/{name}"))?)?;
            String::from_utf8(text).ok()
        };
        if let Some(json) = manifest("manifest.json") {
            programs.of_profile(&json);
        } else if let Some(nix) = manifest("manifest.nix") {
            programs.of_env(&nix);
        } else {
            programs.elsewhere = true;
        }
    }
    programs
}

impl Programs {
    /// Of a manifest.json: a list of elements up to version 2, an object of them by name since version 3.
    fn of_profile(&mut self, json: &str) {
        let Ok(Value::Object(manifest)) = serde_json::from_str(json) else {
            self.elsewhere = true;
            return;
        };
        let elements: Vec<(Option<&str>, &Value)> = match manifest.get("elements") {
            Some(Value::Array(list)) => list.iter().map(|element| (None, element)).collect(),
            Some(Value::Object(named)) => {
                named.iter().map(|(name, element)| (Some(name.as_str()), element)).collect()
            }
            _ => Vec::new(),
        };
        for (name, element) in elements {
            if element["active"] == Value::Bool(false) {
                continue;
            }
            let text = |key: &str| element[key].as_str();
            let attr = text("attrPath").and_then(short_attr);
            match (text("originalUrl").or(text("originalUri")).and_then(flake), attr) {
                (Some(flake), Some(attr)) => {
                    self.add(true, format!("{flake}#{attr}"));
                }
                (_, attr) => {
                    let stored =
                        element["storePaths"].get(0).and_then(Value::as_str).and_then(stored_name);
                    let name = name.and_then(plain).or(stored).or(attr);
                    self.add(false, name.unwrap_or("?").to_owned());
                }
            }
        }
    }

    /// Of nix-env's manifest.nix: a list of sets, each with `name = "PACKAGE-VERSION";` on its first level.
    fn of_env(&mut self, nix: &str) {
        for (at, key) in nix.match_indices("name = \"") {
            let word = |c: char| c.is_alphanumeric() || c == '_';
            if nix.get(..at).is_some_and(|before| before.ends_with(word)) {
                continue;
            }
            let value = nix.get(at + key.len()..).and_then(|rest| rest.split('"').next());
            if let Some(name) = value.and_then(plain) {
                self.add(false, name.to_owned());
            }
        }
    }

    fn add(&mut self, installable: bool, name: String) {
        if self.installables.len() + self.names.len() >= MOST_PACKAGES {
            self.more = true;
            return;
        }
        let to = if installable { &mut self.installables } else { &mut self.names };
        to.insert(name);
    }
}

/// Names of packages and attributes, as nixpkgs has them; all else is no name that would help.
fn plain(name: &str) -> Option<&str> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_-.+".contains(c);
    (!name.is_empty() && name.len() <= 128 && name.chars().all(fits)).then_some(name)
}

/// `legacyPackages.x86_64-linux.ripgrep` is `ripgrep` on any system.
fn short_attr(attr: &str) -> Option<&str> {
    let mut parts = attr.splitn(3, '.');
    match (parts.next(), parts.next(), parts.next()) {
        (Some("legacyPackages" | "packages"), Some(_), Some(rest)) => plain(rest),
        _ => plain(attr),
    }
}

/// A flake that anybody may know of: a name of the registry, or a repository of a forge. A URL may carry a token.
fn flake(url: &str) -> Option<&str> {
    let url = url.strip_prefix("flake:").unwrap_or(url);
    let place =
        ["github:", "gitlab:", "sourcehut:"].iter().find_map(|forge| url.strip_prefix(forge));
    let fits = |c: char| c.is_ascii_alphanumeric() || "_-./~".contains(c);
    let place = place.unwrap_or(url);
    let known = !place.is_empty() && place.len() <= 128 && place.chars().all(fits);
    (known && !place.starts_with(['.', '/', '-', '~'])).then_some(url)
}

/// `/nix/store/HASH-NAME` is `NAME`.
fn stored_name(path: &str) -> Option<&str> {
    path.strip_prefix("/nix/store/")?.split_once('-').and_then(|(_, name)| plain(name))
}

/// Where a path of the machine leads in the end, as a text: links in its last place are taken apart here.
fn resolve(tree: &Tree, path: &str) -> Option<String> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let Some(target) = link(tree, &path) else { return Some(path) };
        let target = String::from_utf8(target).ok()?;
        path = match target.strip_prefix('/') {
            Some(_) => target,
            None => format!("{}/{target}", path.rsplit_once('/')?.0),
        };
        let path = path.trim_end_matches('/');
        if path.len() > 4096 || path.split('/').any(|part| part == ".." || part == ".") {
            return None;
        }
    }
    None
}

fn of_home(path: &str) -> bool {
    path.strip_prefix(HOME).is_some_and(|rest| rest.starts_with('/'))
}

fn link(tree: &Tree, path: &str) -> Option<Vec<u8>> {
    if !of_home(path) {
        return tree.system_link(path.trim_start_matches('/'));
    }
    let (dir, name) = path.rsplit_once('/')?;
    tree.read_link(&walk(tree, dir)?, name.as_bytes()).ok()
}

fn is_there(tree: &Tree, path: &str) -> bool {
    let Some((dir, name)) = path.rsplit_once('/') else { return false };
    walk(tree, dir).is_some_and(|dir| tree.lookup(&dir, name.as_bytes()).is_ok())
}

/// A file that is no link and not too large.
fn read(tree: &Tree, path: &str) -> Option<Vec<u8>> {
    let mut text = if of_home(path) {
        let (dir, name) = path.rsplit_once('/')?;
        let (file, attr) = tree.open_file(&walk(tree, dir)?, name.as_bytes()).ok()?;
        let File::Disk(file) = file else { return None };
        let mut text = vec![0; usize::try_from(attr.size).ok()?.min(MOST_MANIFEST + 1)];
        let count = read_full(&file, 0, &mut text).ok()?;
        text.truncate(count);
        text
    } else {
        tree.system_file(path.trim_start_matches('/'))?
    };
    text.shrink_to_fit();
    (text.len() <= MOST_MANIFEST).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_packages_come_out_of_a_manifest() {
        let mut programs = Programs::default();
        programs.of_profile(
            r#"{"version": 2, "elements": [
                {"active": true, "attrPath": "legacyPackages.x86_64-linux.ripgrep", "originalUrl": "flake:nixpkgs"},
                {"attrPath": "packages.x86_64-linux.default", "originalUrl": "github:o/r"},
                {"attrPath": "packages.x86_64-linux.x", "originalUrl": "git+https://TOKEN@h/r",
                 "storePaths": ["/nix/store/hash-tool-1.2"]},
                {"attrPath": "a'; rm -rf /", "originalUrl": "flake:nixpkgs"},
                {"active": false, "attrPath": "packages.x86_64-linux.gone", "originalUrl": "flake:nixpkgs"}]}"#,
        );
        programs.of_profile(
            r#"{"version": 3, "elements": {"jq": {"originalUrl": "path:/home/x", "attrPath": "y"}, "\n": 7}}"#,
        );
        let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(programs.installables, set(&["nixpkgs#ripgrep", "github:o/r#default"]));
        assert_eq!(programs.names, set(&["tool-1.2", "jq", "?"]));
        let mut env = Programs::default();
        env.of_env(r#"[ { meta = { }; name = "hello-2.12.1"; pname = "no"; system = "x"; } { name = "$(id)"; } ]"#);
        assert_eq!(env.names, set(&["hello-2.12.1"]));
        let many: Vec<_> = (0..1000).map(|n| format!("\"p{n}\": {{}}")).collect();
        let mut most = Programs::default();
        most.of_profile(&format!("{{\"elements\": {{{}}}}}", many.join(",")));
        assert_eq!((most.names.len(), most.more), (MOST_PACKAGES, true));
    }
}
