//! How old Codchi's own module is that a machine is locked to.
//!
//! Before Codchi 0.3.1.3 the option `codchi.driver.name` has no value `none`, so that the exported flake does not evaluate;
//! before 0.3.1.5 it does, and gives a container without nix, which does not boot as anything else (nix/nixos/driver of
//! Codchi, before its commit "Support VM export" of 2025-01-24).

use super::driver::DRIVER;
use super::url::decode;
use serde_json::Value;

/// The first version whose module makes a NixOS outside of Codchi.
pub(super) const VM_EXPORT_VERSION: &str = "0.3.1.5";
/// No commit before this moment has it, 2025-01-24 at midnight, and every one after it has.
const VM_EXPORT: f64 = 1_737_676_800.0;
/// That version, to be compared.
const VM_EXPORT_PARTS: [u32; 4] = [0, 3, 1, 5];

/// Whether the module at `url` is one from before. What the lock says counts, as long as it is of the URL that flake.nix has, else
/// the version that the URL names. What neither of them tells is taken for new: the default is.
pub(super) fn is_too_old(url: &str, lock: Option<&str>) -> bool {
    let pinned = pin(url);
    let made = lock.and_then(|lock| made(lock, pinned.as_deref()));
    match made {
        Some(made) => made < VM_EXPORT,
        None => pinned.is_some_and(|pin| is_old_version(&pin)),
    }
}

/// When the locked commit was made, if it was locked for what is `pinned`.
fn made(lock: &str, pinned: Option<&str>) -> Option<f64> {
    let lock: Value = serde_json::from_str(lock).ok()?;
    let nodes = lock.get("nodes")?;
    let node = nodes.get(lock.get("root")?.as_str()?)?.get("inputs")?.get(DRIVER)?.as_str()?;
    let node = nodes.get(node)?;
    let text = |key: &str| node.get("original")?.get(key)?.as_str();
    let original = text("rev").or_else(|| text("ref"));
    if node.get("original").is_some() && original != pinned {
        return None;
    }
    node.get("locked")?.get("lastModified")?.as_f64()
}

/// The commit, else the branch or tag, that a flake's URL names.
fn pin(url: &str) -> Option<String> {
    let (place, query) = url.split_once('?').unwrap_or((url, ""));
    let value = |key: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(k, value)| *k == key && !value.is_empty()).map(|(_, value)| decode(value))
    };
    let forge = ["github:", "gitlab:", "sourcehut:"].iter().find_map(|f| place.strip_prefix(f));
    let behind = || forge?.splitn(3, '/').nth(2).map(decode);
    value("rev").or_else(|| value("ref")).or_else(behind).filter(|pin| !pin.is_empty())
}

/// Whether a tag is that of a version before.
fn is_old_version(tag: &str) -> bool {
    let tag = tag.strip_prefix("refs/tags/").unwrap_or(tag);
    let Some(version) = tag.strip_prefix('v') else { return false };
    let parts: Result<Vec<u32>, _> = version.split('.').map(str::parse).collect();
    parts.is_ok_and(|parts| parts < VM_EXPORT_PARTS.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn is_old(url: &str, lock: Option<Value>) -> bool {
        is_too_old(url, lock.map(|lock| lock.to_string()).as_deref())
    }

    fn lock(original: Value, last_modified: Value) -> Option<Value> {
        Some(json!({ "version": 7, "root": "r", "nodes": {
            "r": { "inputs": { "codchi_driver": "d_2" } },
            "d_2": { "locked": { "lastModified": last_modified }, "original": original } } }))
    }

    #[test]
    fn the_lock_tells_as_long_as_it_is_of_the_url() {
        let rev = "0123456789abcdef0123456789abcdef01234567";
        let by_rev = format!("github:aformatik/codchi/{rev}");
        let of_rev = |made: i64| lock(json!({ "type": "github", "rev": rev }), made.into());
        // The last commits before, v0.3.1.4 and v0.3.1.3, and the first with it.
        for (made, old) in [(0, true), (1_737_552_652, true), (1_737_620_840, true)]
            .into_iter()
            .chain([(1_738_068_427, false), (1_738_573_990, false), (1_800_000_000, false)])
        {
            assert_eq!(is_old(&by_rev, of_rev(made)), old, "{made}");
        }
        let master = json!({ "type": "github", "ref": "master" });
        assert!(is_old("github:aformatik/codchi/master", lock(master.clone(), 1.into())));
        assert!(is_old("github:aformatik/codchi?ref=master", lock(master.clone(), 1.into())));
        assert!(is_old("git+https://h/codchi?ref=master", lock(master.clone(), 1.into())));
        assert!(is_old("github:aformatik/codchi", lock(json!({ "type": "github" }), 1.into())));
        // Locked for something else: nix locks it anew.
        assert!(!is_old(&by_rev, lock(master.clone(), 1.into())));
        assert!(!is_old("github:aformatik/codchi/v0.3.1.7", lock(master.clone(), 1.into())));
        assert!(is_old("github:aformatik/codchi/v0.3.1.4", lock(master, 1_800_000_000.into())));
        // Nothing that can be read.
        for made in [json!("1"), Value::Null, json!({})] {
            assert!(!is_old(&by_rev, lock(json!({ "rev": rev }), made)));
        }
        assert!(!is_old(&by_rev, None) && !is_old(&by_rev, Some(json!([1]))));
        assert!(!is_old(&by_rev, lock(json!({ "rev": rev }), json!(1e300))));
    }

    #[test]
    fn a_version_tells_where_there_is_no_lock() {
        for (url, old) in [
            ("github:aformatik/codchi/v0.3.1.4", true),
            ("github:aformatik/codchi/v0.2.4.11", true),
            ("github:aformatik/codchi?ref=refs/tags/v0.3.0", true),
            ("git+ssh://git@h/codchi?ref=v0.3.1.4&rev=", true),
            ("github:aformatik/codchi/v0.3.1.5", false),
            ("github:aformatik/codchi/v0.3.1.10", false),
            ("github:aformatik/codchi/v1.0", false),
            ("github:aformatik/codchi/vendor", false),
            ("github:aformatik/codchi/master", false),
            ("github:aformatik/codchi", false),
            ("path:/x", false),
        ] {
            assert_eq!(is_old(url, None), old, "{url}");
        }
    }
}
