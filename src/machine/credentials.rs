//! Well-known files of a machine that hold credentials: whoever hands an export over should know of them.

use super::lately::Lately;
use super::path::{open, walk};
use crate::quote;
use crate::tree::{Dir, HOME, Kind, Tree};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Keys of one home that are named; nobody reads on.
const MOST_KEYS: usize = 100;

/// Files of a home that hold credentials, or what was typed.
const CREDENTIALS: &[&str] = &[
    ".aws/credentials",
    ".azure/msal_token_cache.json",
    ".bash_history",
    ".cargo/credentials",
    ".cargo/credentials.toml",
    ".config/gcloud/credentials.db",
    ".config/gh/hosts.yml",
    ".config/git/credentials",
    ".config/glab-cli/config.yml",
    ".config/nix/nix.conf",
    ".config/op/config",
    ".config/rclone/rclone.conf",
    ".config/sops/age/keys.txt",
    ".docker/config.json",
    ".git-credentials",
    ".gnupg/private-keys-v1.d",
    ".kube/config",
    ".local/share/fish/fish_history",
    ".local/share/keyrings",
    ".mysql_history",
    ".netrc",
    ".npmrc",
    ".password-store",
    ".pgpass",
    ".psql_history",
    ".pypirc",
    ".python_history",
    ".terraform.d/credentials.tfrc.json",
    ".vault-token",
    ".yarnrc.yml",
    ".zsh_history",
];
/// What of `~/.ssh` is no secret.
const SSH_PUBLIC: &[&[u8]] = &[b"authorized_keys", b"config", b"known_hosts", b"known_hosts.old"];

/// The list, as made last: a home may be large.
#[derive(Debug, Default)]
pub(super) struct Credentials(Lately<Vec<String>>);

impl Credentials {
    /// The well-known ones in the home and in root's, at most some seconds old. Looks at names only.
    pub(super) fn list(&self, tree: &Arc<Tree>) -> Vec<String> {
        let tree = Arc::clone(tree);
        let found = self.0.or_find(move || find(&tree));
        found.unwrap_or_else(unknown)
    }
}

/// What is said where nobody could look: an empty list would be taken for a promise.
pub(super) fn unknown() -> Vec<String> {
    vec![format!("not known: {}", super::NO_DISK)]
}

fn find(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for home in [HOME, "/root"] {
        let Some(dir) = walk(tree, home) else { continue };
        for path in CREDENTIALS {
            let (way, name) = path.rsplit_once('/').unwrap_or(("", path));
            let there =
                open(tree, &dir, way).is_some_and(|dir| tree.lookup(&dir, name.as_bytes()).is_ok());
            if there {
                found.push(format!("{home}/{path}"));
            }
        }
        match tree.lookup(&dir, b".ssh").map(|attr| attr.kind) {
            Ok(Kind::Directory) => {
                if let Some(ssh) = open(tree, &dir, ".ssh") {
                    keys(tree, &ssh, &format!("{home}/.ssh"), &mut found);
                }
            }
            // Its keys are where it leads to.
            Ok(Kind::Symlink) => found.push(format!("{home}/.ssh")),
            _ => {}
        }
    }
    found
}

/// Whatever of `~/.ssh` may be a key, links too: what they lead to is most likely inside as well. Beyond the first ones,
/// by name, says only how many there are.
fn keys(tree: &Tree, ssh: &Dir, path: &str, found: &mut Vec<String>) {
    let (mut first, mut more) = (BTreeSet::<Box<[u8]>>::new(), 0_u64);
    let read = tree.names(ssh, |name| {
        if SSH_PUBLIC.contains(&name) || name.ends_with(b".pub") {
            return;
        }
        first.insert(name.into());
        if first.len() > MOST_KEYS {
            first.pop_last();
            more += 1;
        }
    });
    for name in &first {
        let kind = tree.lookup(ssh, name).map(|attr| attr.kind);
        if matches!(kind, Ok(Kind::File | Kind::Symlink)) {
            found.push(format!("{path}/{}", quote::name(name)));
        }
    }
    if more > 0 {
        found.push(format!("{path}: {more} more names, of which none was looked at"));
    }
    if let Err(why) = read {
        found.push(format!("{path}: cannot be listed: {why}"));
    }
}
