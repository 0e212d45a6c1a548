//! Whose code is built in, and under which conditions: what deny.toml says, without `cargo deny` and its network.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use semver::{Version, VersionReq};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

fn read<T: serde::de::DeserializeOwned>(path: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    toml::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[derive(Deserialize)]
struct Deny {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    skip: Vec<Skip>,
}

#[derive(Deserialize)]
struct Skip {
    #[serde(rename = "crate")]
    name: String,
}

#[derive(Deserialize)]
struct Lock {
    package: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: Version,
    source: Option<String>,
}

#[derive(Deserialize)]
struct Advisories {
    crates: BTreeSet<String>,
    advisory: Vec<Advisory>,
}

#[derive(Deserialize)]
struct Advisory {
    #[serde(rename = "crate")]
    name: String,
    id: String,
    safe: Vec<VersionReq>,
}

/// The packages that are built into our programs, with what Cargo knows of them.
fn built_in() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline", "--all-features"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut edges = BTreeMap::new();
    for node in metadata["resolve"]["nodes"].as_array().unwrap() {
        let linked = node["deps"].as_array().unwrap().iter().filter(|dep| {
            dep["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"] != "dev")
        });
        edges.insert(text(&node["id"]), linked.map(|dep| text(&dep["pkg"])).collect::<Vec<_>>());
    }
    let mut seen = BTreeSet::new();
    let mut next: Vec<_> =
        metadata["workspace_members"].as_array().unwrap().iter().map(text).collect();
    while let Some(id) = next.pop() {
        if seen.insert(id.clone()) {
            next.extend(edges[&id].iter().cloned());
        }
    }
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages.filter(|package| seen.contains(&text(&package["id"]))).cloned().collect()
}

/// Whether an SPDX expression is satisfied by licenses that are allowed.
fn satisfied(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let result = any(&mut words, allowed);
    assert_eq!(words.next(), None, "{expression}");
    result
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: &mut Words<'_>, allowed: &[String]) -> bool {
    let mut result = all(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        result |= all(words, allowed);
    }
    result
}

fn all(words: &mut Words<'_>, allowed: &[String]) -> bool {
    let mut result = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        result &= one(words, allowed);
    }
    result
}

fn one(words: &mut Words<'_>, allowed: &[String]) -> bool {
    let word = words.next().unwrap();
    if word == "(" {
        let result = any(words, allowed);
        assert_eq!(words.next(), Some(")"));
        return result;
    }
    let plain = allowed.iter().any(|name| name == word);
    // An exception is another license.
    plain & (words.next_if_eq(&"WITH").and_then(|_| words.next()).is_none())
}

#[test]
fn every_license_is_one_that_deny_toml_allows() {
    let allowed = read::<Deny>("deny.toml").licenses.allow;
    assert!(satisfied("(MIT OR GPL-3.0) AND Zlib", &allowed));
    assert!(!satisfied("MIT AND GPL-3.0", &allowed));
    assert!(!satisfied("GPL-3.0", &allowed));
    assert!(!satisfied("Apache-2.0 WITH LLVM-exception", &allowed));
    let packages = built_in();
    assert!(packages.len() > 50, "{}", packages.len());
    for package in packages {
        let license = package["license"].as_str().unwrap_or("");
        let name = &package["name"];
        assert!(!license.is_empty() && satisfied(license, &allowed), "{name}: {license:?}");
    }
}

#[test]
fn no_crate_is_built_in_twice_but_those_that_deny_toml_names() {
    let skipped: Vec<_> = read::<Deny>("deny.toml").bans.skip;
    let skipped: Vec<_> = skipped.iter().map(|skip| skip.name.split_once('@').unwrap()).collect();
    let mut versions: BTreeMap<String, Vec<Version>> = BTreeMap::new();
    for package in built_in() {
        let name = package["name"].as_str().unwrap();
        let version: Version = package["version"].as_str().unwrap().parse().unwrap();
        let is_skipped = skipped.iter().any(|(skip, wanted)| {
            *skip == name && VersionReq::parse(wanted).unwrap().matches(&version)
        });
        if !is_skipped {
            versions.entry(name.to_owned()).or_default().push(version);
        }
    }
    versions.retain(|_, versions| versions.len() > 1);
    assert!(versions.is_empty(), "{versions:?}");
}

#[test]
fn every_crate_comes_from_the_registry() {
    for path in ["Cargo.lock", "fuzz/Cargo.lock"] {
        for Package { name, source, .. } in read::<Lock>(path).package {
            let ours = name.starts_with("codchifs") || name == "mount-codchifs";
            let registry = source.as_ref().is_some_and(|source| source.starts_with("registry+"));
            assert!(registry || (ours && source.is_none()), "{path}: {name} from {source:?}");
        }
    }
}

#[test]
fn no_crate_has_an_advisory_of_the_list() {
    let Advisories { crates, advisory } = read("tests/dependencies/advisories.toml");
    let concerned = |name: &str, version: &Version| {
        let of = advisory.iter().filter(|advisory| advisory.name == name);
        let open = of.filter(|advisory| !advisory.safe.iter().any(|safe| safe.matches(version)));
        open.map(|advisory| advisory.id.clone()).collect::<Vec<_>>()
    };
    // One that is known, of an older release.
    assert_eq!(
        concerned("tar", &Version::new(0, 4, 44)),
        ["RUSTSEC-2026-0067", "RUSTSEC-2026-0068"]
    );
    let mut faults = Vec::new();
    for path in ["Cargo.lock", "fuzz/Cargo.lock"] {
        for Package { name, version, .. } in read::<Lock>(path).package {
            if !crates.contains(&name) {
                faults.push(format!("{path}: {name} was never looked up (docs/CONTRIBUTING.md)"));
            }
            for id in concerned(&name, &version) {
                faults.push(format!("{path}: {name} {version} has {id}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
