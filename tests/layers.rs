//! The direction between modules: lower ones know nothing of higher ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A module may use those of a lower rank, and none of its own.
const RANKS: &[(&str, u32)] = &[
    ("error", 0),
    ("quote", 0),
    ("sys", 0),
    ("idmap", 1),
    ("kernel", 1),
    ("mountinfo", 1),
    ("credentials", 1),
    ("sandbox", 2),
    ("confined", 1),
    ("worker", 1),
    ("accounts", 2),
    ("walk", 2),
    ("look", 2),
    ("codchi", 3),
    ("nar", 3),
    ("tar", 3),
    ("backend", 4),
    ("tree", 4),
    ("export", 5),
    ("opener", 5),
    ("machine", 6),
    ("verify", 6),
    ("vfs", 7),
    ("fuse", 8),
    ("doctor", 9),
    ("cli", 10),
];

/// More than the ranks say: the module, and what it must not use.
const FORBIDDEN: &[(&str, &str)] = &[
    ("tree", "codchi"),
    ("tree", "tar"),
    ("opener", "tar"),
    ("backend", "tar"),
    ("export", "backend"),
    ("export", "codchi"),
];

/// Crates (or modules of std) that only these modules may use.
const RESERVED: &[(&str, &[&str])] = &[("fuser", &["fuse", "sys"]), ("clap", &["cli"])];

/// Sans-IO: none of these in that module.
const PURE: &[(&str, &[&str])] = &[("tar", IO), ("nar", IO)];

const IO: &[&str] = &["rustix", "std::fs", "std::net", "std::process", "libc"];

fn sources(directory: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// The text of every file by module, without comments; `lib.rs` and `main.rs` stand above all.
fn modules() -> BTreeMap<String, Vec<(PathBuf, String)>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(!files.is_empty(), "no sources below {}", root.display());
    let mut modules: BTreeMap<String, Vec<(PathBuf, String)>> = BTreeMap::new();
    for file in files {
        let below = file.strip_prefix(&root).unwrap();
        let first = below.components().next().unwrap().as_os_str().to_str().unwrap();
        let module = first.strip_suffix(".rs").unwrap_or(first).to_owned();
        if !["lib", "main"].contains(&module.as_str()) {
            let text = code(&fs::read_to_string(&file).unwrap());
            modules.entry(module).or_default().push((below.to_owned(), text));
        }
    }
    modules
}

/// Without line comments.
fn code(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Top-level modules named after `crate::`, also in `crate::{a, b::c}`.
fn used(text: &str) -> Vec<String> {
    let ident = |text: &str| -> String {
        text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let mut names = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        if text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &text[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            names.push(ident(rest));
            continue;
        };
        let mut depth = 0;
        let mut start = true;
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                c if start && !c.is_whitespace() => {
                    names.push(ident(&group[at..]));
                    start = false;
                }
                _ => {}
            }
        }
    }
    names
}

/// Whether the path `name` (a crate or `std::fs`) is used.
fn uses_path(text: &str, name: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    text.match_indices(name).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + name.len()..]);
        !before.ends_with(word) && (after.starts_with("::") || after.starts_with(';'))
    })
}

fn rank(module: &str) -> Option<u32> {
    RANKS.iter().find(|(name, _)| *name == module).map(|(_, rank)| *rank)
}

#[test]
fn every_module_uses_lower_ones_only() {
    let modules = modules();
    let mut faults = Vec::new();
    for (module, files) in &modules {
        let Some(own) = rank(module) else {
            faults.push(format!("src/{module} has no rank in tests/layers.rs"));
            continue;
        };
        for (file, text) in files {
            for used in used(text).iter().filter(|used| *used != module) {
                let forbidden = FORBIDDEN.contains(&(module.as_str(), used.as_str()));
                match rank(used) {
                    Some(rank) if rank < own && !forbidden => {}
                    Some(_) => faults.push(format!("src/{}: {module} uses {used}", file.display())),
                    // An item of lib.rs, say a macro: not a module.
                    None => assert!(!modules.contains_key(used)),
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn foreign_crates_stay_in_their_module() {
    let mut faults = Vec::new();
    for (module, files) in modules() {
        for (file, text) in files {
            for (name, allowed) in RESERVED {
                if !allowed.contains(&module.as_str()) && uses_path(&text, name) {
                    faults.push(format!("src/{}: only {allowed:?} may use {name}", file.display()));
                }
            }
            for (pure, denied) in PURE.iter().filter(|(pure, _)| *pure == module) {
                for name in denied.iter().filter(|name| uses_path(&text, name)) {
                    faults.push(format!("src/{}: {pure} must not use {name}", file.display()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// What writes text without `quote`: as Rust has it in its sources, or with what is not UTF-8 left out.
const UNQUOTED: &[&str] =
    &[".display()", ":?}", ":#?}", "escape_debug", "escape_default", "escape_ascii", "_lossy("];

/// Where one of these stands all the same: the text of a file, what it has, and why.
const NOT_FOREIGN: &[(&str, &str, &str)] = &[
    ("backend/mod.rs", ":?}", "compared by the fuzz targets, and not shown"),
    ("cli/log.rs", ":?}", "tracing hands values over in that form only; quoted at once"),
    ("mountinfo.rs", "_lossy(", "options are looked for, and not shown"),
    ("verify/directory.rs", "_lossy(", "ids are looked for, and not shown"),
    ("verify/kind.rs", "_lossy(", "the kind of a file is looked for, and its text not shown"),
];

/// What is left of a source without its unit tests.
fn without_tests(text: &str) -> &str {
    text.split_once("#[cfg(test)]\nmod tests").map_or(text, |(before, _)| before)
}

#[test]
fn foreign_text_is_quoted_in_one_module() {
    let (mut faults, mut allowed) = (Vec::new(), Vec::new());
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for top in ["src", "mount-helper/src"].map(|top| root.join(top)) {
        let mut files = Vec::new();
        sources(&top, &mut files);
        files.retain(|file| file.file_name().is_some_and(|name| name != "tests.rs"));
        for file in files {
            let below = file.strip_prefix(&top).unwrap().to_str().unwrap().to_owned();
            let text = code(&fs::read_to_string(&file).unwrap());
            for written in UNQUOTED.iter().filter(|part| without_tests(&text).contains(**part)) {
                match NOT_FOREIGN.iter().any(|(file, part, _)| (*file, *part) == (&below, written))
                {
                    true => allowed.push((below.clone(), *written)),
                    false => faults.push(format!("{}: `{written}`: use quote", file.display())),
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert_eq!(allowed.len(), NOT_FOREIGN.len(), "no longer there: {allowed:?}");
}

#[test]
fn the_scanner_sees_what_rust_sees() {
    let text = "use crate::tree::{Attr, Kind};\nuse crate::{\n    codchi::{self, X},\n    tar,\n};\nlet x = crate::vfs::f();\nuse mycrate::no;";
    assert_eq!(used(text), ["tree", "codchi", "tar", "vfs"]);
    assert!(uses_path("use fuser::X;", "fuser") && uses_path("use clap;", "clap"));
    assert!(!uses_path("use my_fuser::X;", "fuser") && !uses_path("fuser_x::y", "fuser"));
    assert!(uses_path("a(std::fs::read())", "std::fs") && !uses_path("std::fscache::x", "std::fs"));
    assert_eq!(without_tests("a {x:?}\n#[cfg(test)]\nmod tests {\n.display()"), "a {x:?}\n");
    assert_eq!(code("// use crate::x;\n/// crate::y\nz"), "z");
}
