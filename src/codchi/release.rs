//! Which release of NixOS a machine is locked to.

use super::driver::DRIVER;
use serde_json::Value;

/// The release that a lock's nixpkgs is asked for by name, like `24.05`; none where it is another branch. `module` is the input
/// that nixpkgs comes with, if it is not Codchi's own.
pub(super) fn of(lock: &str, module: Option<&str>) -> Option<String> {
    let lock: Value = serde_json::from_str(lock).ok()?;
    let nodes = lock.get("nodes")?;
    let input = |node: &str, name: &str| nodes.get(node)?.get("inputs")?.get(name)?.as_str();
    let from = input(lock.get("root")?.as_str()?, module.unwrap_or(DRIVER))?;
    let original = nodes.get(input(from, "nixpkgs")?)?.get("original")?;
    release_of(original.get("ref")?.as_str()?).map(str::to_owned)
}

/// `nixos-24.05`, `nixos-24.05-small`, `release-24.05`.
fn release_of(branch: &str) -> Option<&str> {
    let release = branch.strip_prefix("nixos-").or_else(|| branch.strip_prefix("release-"))?;
    let release = release.strip_suffix("-small").unwrap_or(release);
    let (year, month) = release.split_once('.')?;
    let is_number = |part: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
    (is_number(year) && is_number(month)).then_some(release)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_branch_of_the_nixpkgs_that_the_machine_takes_says_the_release() {
        let lock = json!({ "root": "r", "nodes": {
            "r": { "inputs": { "codchi_driver": "d", "own": "o" } },
            "d": { "inputs": { "nixpkgs": "n" } }, "o": { "inputs": { "nixpkgs": "n_2" } },
            "n": { "original": { "ref": "nixos-24.05" } }, "n_2": { "original": { "ref": "release-23.11" } } } });
        assert_eq!(of(&lock.to_string(), None).as_deref(), Some("24.05"));
        assert_eq!(of(&lock.to_string(), Some("own")).as_deref(), Some("23.11"));
        for other in [json!({}), json!([1]), json!({ "root": "r", "nodes": { "r": {} } })] {
            assert_eq!(of(&other.to_string(), None), None);
        }
        for (branch, release) in [
            ("nixos-24.05-small", Some("24.05")),
            ("nixos-unstable", None),
            ("nixos-24.5", None),
            ("nixos-24.05'; id", None),
            ("master", None),
        ] {
            assert_eq!(release_of(branch), release, "{branch}");
        }
    }
}
