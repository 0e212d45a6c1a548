//! The version with its commit: from `CODCHIFS_COMMIT`, git's own files, or what `cargo package` left.
//!
//! Nothing is run: git need not be there, nor like whoever builds. A tarball has no commit, and neither has its version.

use std::fs;
use std::path::{Path, PathBuf};

fn main() {
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let package = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    // The helper's package is a directory of the source.
    let root = match package.file_name().is_some_and(|name| name == "mount-helper") {
        true => package.join(".."),
        false => package,
    };
    println!("cargo::rerun-if-changed={}", root.join("build.rs").display());
    println!("cargo::rerun-if-env-changed=CODCHIFS_COMMIT");
    let given = std::env::var("CODCHIFS_COMMIT").ok();
    let commit = given.or_else(|| packaged(&root)).or_else(|| checked_out(&root));
    let short = commit.as_deref().map(str::trim).filter(|id| is_id(id)).and_then(|id| id.get(..12));
    let shown = short.map(|id| format!("{version} ({id})")).unwrap_or(version);
    println!("cargo::rustc-env=CODCHIFS_VERSION={shown}");
}

fn is_id(text: &str) -> bool {
    text.len() >= 12 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Reads a file that cargo is to look at again.
fn watched(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    println!("cargo::rerun-if-changed={}", path.display());
    Some(text)
}

/// `.cargo_vcs_info.json` of a package: `"sha1": "ID"`.
fn packaged(root: &Path) -> Option<String> {
    let text = watched(&root.join(".cargo_vcs_info.json"))?;
    let (_, rest) = text.split_once("\"sha1\"")?;
    rest.split('"').nth(1).map(str::to_owned)
}

/// What HEAD of this very directory's repository is, not of one around it.
fn checked_out(root: &Path) -> Option<String> {
    let dot = root.join(".git");
    // A worktree has a file that says where its directory is.
    let own = match fs::read_to_string(&dot) {
        Ok(text) => root.join(text.strip_prefix("gitdir:")?.trim()),
        Err(_) => dot,
    };
    let common = fs::read_to_string(own.join("commondir"));
    let common = common.map_or_else(|_| own.clone(), |text| own.join(text.trim()));
    let head = watched(&own.join("HEAD"))?;
    let Some(name) = head.trim().strip_prefix("ref: ") else { return Some(head) };
    // A commit that packs references, or unpacks one, writes the log as well.
    watched(&own.join("logs/HEAD"));
    watched(&common.join(name)).or_else(|| {
        let packed = watched(&common.join("packed-refs"))?;
        let line = packed.lines().find(|line| line.split(' ').nth(1) == Some(name))?;
        line.split(' ').next().map(str::to_owned)
    })
}
