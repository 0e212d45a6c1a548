//! The direction between modules: lower ones know nothing of higher ones, and no files know each other in a circle.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A module may use those of a lower rank, and none of its own.
const RANKS: &[(&str, u32)] = &[
    ("error", 0),
    ("quote", 0),
    ("sys", 0),
    ("idmap", 1),
    ("filesystem", 0),
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

/// The text of every file by the path of its module, without comments and tests. That of lib.rs is empty.
fn modules() -> Modules {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(!files.is_empty(), "no sources below {}", root.display());
    let mut modules = Modules::new();
    for file in files {
        let below = file.strip_prefix(&root).unwrap().with_extension("");
        let mut module: Module =
            below.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        match module.last().unwrap().as_str() {
            "tests" | "main" => continue,
            "mod" | "lib" => drop(module.pop()),
            _ => {}
        }
        modules.insert(module, code(&fs::read_to_string(&file).unwrap()));
    }
    modules
}

/// The path of a module from the root of the crate.
type Module = Vec<String>;
type Modules = BTreeMap<Module, String>;

/// Without line comments, and without modules of tests at the end of a file.
fn code(text: &str) -> String {
    let text = text.split("\n#[cfg(test)]\nmod ").next().unwrap();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The text apart from its `use` declarations, and these, each without `use` and semicolon.
fn declarations(text: &str) -> (String, Vec<&str>) {
    let (mut rest, mut found) = (String::new(), Vec::new());
    for part in text.split(';') {
        let is_use = |line: &str| {
            let line = line.trim_start();
            let line = line
                .strip_prefix("pub")
                .map_or(line, |line| line.split_once(' ').map_or(line, |(_, rest)| rest));
            line.starts_with("use ")
        };
        let mut at = part.len();
        for line in part.split_inclusive('\n').rev() {
            at -= line.len();
            if is_use(line) {
                rest.push_str(&part[..at]);
                found.push(part[at..].split_once("use ").unwrap().1);
                break;
            }
            if at == 0 {
                rest.push_str(part);
            }
        }
        rest.push(';');
    }
    (rest, found)
}

/// What the file's `use` declarations bring: a path, and the name that it has here.
fn imports(tree: &str, above: &[&str], into: &mut Vec<(Vec<String>, String)>) {
    let segments = |text: &str| {
        let own = text.split("::").map(str::trim).filter(|part| !part.is_empty());
        above.iter().copied().chain(own).map(str::to_owned).collect::<Vec<_>>()
    };
    if let Some((before, group)) = tree.split_once('{') {
        let above = segments(before);
        let above: Vec<_> = above.iter().map(String::as_str).collect();
        let group = group.rsplit_once('}').unwrap().0;
        let mut depth = 0;
        let items = group.split(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            c == ',' && depth == 0
        });
        items.filter(|item| !item.trim().is_empty()).for_each(|item| imports(item, &above, into));
        return;
    }
    let (path, alias) = tree.split_once(" as ").map_or((tree, None), |(a, b)| (a, Some(b.trim())));
    let mut path = segments(path);
    path.pop_if(|last| last == "self");
    let name = alias.map_or_else(|| path.last().cloned().unwrap_or_default(), str::to_owned);
    into.push((path, name));
}

/// Paths in code that begin with `crate`, `super` or `self`.
fn paths(text: &str) -> Vec<Vec<String>> {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in text.match_indices(start) {
            if text[..at].ends_with(|c| word(c) || c == ':' || c == '$') {
                continue;
            }
            let path: String = text[at..].chars().take_while(|c| word(*c) || *c == ':').collect();
            let parts = path.split("::").filter(|part| !part.is_empty());
            found.push(parts.map(str::to_owned).collect());
        }
    }
    found
}

/// What each file names: the path as it is written, and the module where that is defined.
struct Graph<'a> {
    modules: &'a Modules,
    imports: BTreeMap<&'a Module, Vec<(Vec<String>, String)>>,
}

impl<'a> Graph<'a> {
    fn new(modules: &'a Modules) -> Self {
        let imports = modules.iter().map(|(module, text)| {
            let mut all = Vec::new();
            declarations(text).1.iter().for_each(|tree| imports(tree, &[], &mut all));
            (module, all)
        });
        Self { modules, imports: imports.collect() }
    }

    /// The module that defines what `path` is in `module`; `None` for another crate's.
    fn resolve(&self, module: &Module, path: &[String], depth: usize) -> Option<Module> {
        let mut at = module.clone();
        let mut path = path.iter().peekable();
        match path.peek()?.as_str() {
            "crate" => {
                at.clear();
                path.next();
            }
            "self" => drop(path.next()),
            "super" => {
                while path.next_if(|part| *part == "super").is_some() {
                    at.pop();
                }
            }
            child => {
                at.push(child.to_owned());
                let known = self.modules.contains_key(&at);
                at.pop();
                if !known {
                    return None;
                }
            }
        }
        while let Some(part) = path.peek() {
            at.push((*part).clone());
            if !self.modules.contains_key(&at) {
                at.pop();
                break;
            }
            path.next();
        }
        let Some(item) = path.peek() else { return Some(at) };
        // Defined there, or brought from elsewhere by a `use`.
        let brought =
            self.imports.get(&at)?.iter().find(|(from, name)| name == *item && from.len() > 1);
        match brought.filter(|_| depth < 16) {
            Some((from, _)) => self.resolve(&at, from, depth + 1),
            None => Some(at),
        }
    }

    /// What a file names in others, as it is written.
    fn named(&self, module: &Module) -> Vec<(String, Module)> {
        let (rest, _) = declarations(&self.modules[module]);
        let imported = self.imports[module].iter().map(|(path, _)| path.clone());
        let all = imported.chain(paths(&rest));
        let resolved =
            all.filter_map(|path| Some((path.join("::"), self.resolve(module, &path, 0)?)));
        resolved.filter(|(_, other)| other != module).collect()
    }

    /// What is named in a circle: of modules that are in the same one, each with all files below it. What a file and those below
    /// it name of each other is no circle: they are one module.
    fn circles(&self) -> Vec<String> {
        let mut named = Vec::new();
        for module in self.modules.keys() {
            for (path, other) in self.named(module) {
                let shared = module.iter().zip(&other).take_while(|(a, b)| a == b).count();
                if shared < module.len().min(other.len()) {
                    let whole = |module: &Module| module[..=shared].to_vec();
                    named.push((
                        whole(module),
                        whole(&other),
                        format!("{} names {path}", module.join("::")),
                    ));
                }
            }
        }
        let mut edges: BTreeMap<&Module, BTreeSet<&Module>> = BTreeMap::new();
        for (from, to, _) in &named {
            edges.entry(from).or_default().insert(to);
        }
        let reaches = |from, to: &Module| {
            let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
            while let Some(module) = next.pop() {
                if seen.insert(module) {
                    next.extend(edges.get(module).into_iter().flatten());
                }
            }
            seen.contains(to)
        };
        named
            .iter()
            .filter(|(from, to, _)| reaches(to, from))
            .map(|(_, _, text)| text.clone())
            .collect()
    }

    /// Modules that use one of their own rank, of a higher one, or one that they must not use.
    fn upwards(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for module in self.modules.keys().filter(|module| !module.is_empty()) {
            let Some(own) = rank(&module[0]) else {
                faults.push(format!("src/{} has no rank in tests/layers.rs", module[0]));
                continue;
            };
            for (path, other) in self.named(module) {
                let Some(used) = other.first().filter(|used| **used != module[0]) else { continue };
                let forbidden = FORBIDDEN.contains(&(module[0].as_str(), used.as_str()));
                if forbidden || rank(used).is_none_or(|rank| rank >= own) {
                    faults.push(format!("{} uses {path} of {used}", module.join("::")));
                }
            }
        }
        faults
    }
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
    let faults = Graph::new(&modules()).upwards();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn no_files_name_each_other_in_a_circle() {
    let faults = Graph::new(&modules()).circles();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn foreign_crates_stay_in_their_module() {
    let mut faults = Vec::new();
    for (module, text) in modules().iter().filter(|(module, _)| !module.is_empty()) {
        let (top, file) = (module[0].as_str(), module.join("::"));
        for (name, allowed) in RESERVED {
            if !allowed.contains(&top) && uses_path(text, name) {
                faults.push(format!("{file}: only {allowed:?} may use {name}"));
            }
        }
        for (pure, denied) in PURE.iter().filter(|(pure, _)| *pure == top) {
            for name in denied.iter().filter(|name| uses_path(text, name)) {
                faults.push(format!("{file}: {pure} must not use {name}"));
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
    ("opener/fuzzing.rs", ":?}", "compared by a fuzz target, and not shown"),
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

fn texts(texts: &[(&str, &str)]) -> Modules {
    fn module(path: &str) -> Module {
        path.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect()
    }
    texts.iter().map(|(path, text)| (module(path), (*text).to_owned())).collect()
}

#[test]
fn a_circle_is_found_however_it_is_written() {
    let circle = |all: &[(&str, &str)]| Graph::new(&texts(all)).circles();
    assert_eq!(
        circle(&[("", ""), ("a", "use crate::b::B;"), ("b", "fn f() -> crate::a::A {}")]),
        ["a names crate::b::B", "b names crate::a::A"]
    );
    // Siblings, and three of them.
    let m = ("m", "mod a;\nmod b;\nmod c;\npub use b::{self, B as Other};");
    let a = ("m::a", "use super::{\n    b::B,\n    x,\n};");
    assert_eq!(circle(&[m, a, ("m::b", "use super::a::A;")]).len(), 2);
    assert_eq!(circle(&[m, a, ("m::b", "use super::c;"), ("m::c", "super::a::f()")]).len(), 3);
    // By a name that the module above has from a file.
    assert_eq!(circle(&[m, ("m::a", "use super::Other;"), ("m::b", "use super::a::A;")]).len(), 2);
    // By what is below another module, which is a part of it.
    let below = [("n", "mod d;\nuse crate::o::O;"), ("n::d", ""), ("o", "use crate::n::d::D;")];
    assert_eq!(circle(&below).len(), 2);
    // None: one way, a file and what is below it, and other crates.
    assert!(circle(&[m, a, ("m::b", ""), ("m::c", "use super::b;")]).is_empty());
    assert!(circle(&[("n", "mod d;\nuse d::D;"), ("n::d", "use super::N;")]).is_empty());
    assert!(circle(&[("a", "use b::B; $crate::b::x()"), ("b", "use crate::a::A;")]).is_empty());
}

#[test]
fn an_import_upwards_is_found() {
    let upwards = |module, text| {
        let modules = ["tree", "codchi", "vfs", "machine"].map(|module| (module, ""));
        let mut modules = texts(&modules);
        modules.extend(texts(&[(module, text)]));
        Graph::new(&modules).upwards()
    };
    assert!(upwards("machine", "use crate::tree::T;\ncrate::codchi::c()").is_empty());
    assert_eq!(
        upwards("machine", "use crate::{tree, vfs::V};"),
        ["machine uses crate::vfs::V of vfs"]
    );
    assert_eq!(
        upwards("machine::x", "super::super::vfs::V"),
        ["machine::x uses super::super::vfs::V of vfs"]
    );
    assert_eq!(upwards("tree", "use crate::codchi::C;"), ["tree uses crate::codchi::C of codchi"]);
    assert_eq!(upwards("other", ""), ["src/other has no rank in tests/layers.rs"]);
}

#[test]
fn the_scanner_sees_what_rust_sees() {
    let text = "use a::{B, c::{self, D as E}};\npub(super) use f;\nlet x = crate::g::h(super::i);";
    let (rest, trees) = declarations(text);
    let mut all = Vec::new();
    trees.iter().for_each(|tree| imports(tree, &[], &mut all));
    let all: Vec<_> = all.iter().map(|(path, name)| (path.join("::"), name.as_str())).collect();
    let expected = [("a::B", "B"), ("a::c", "c"), ("a::c::D", "E"), ("f", "f")];
    assert_eq!(all, expected.map(|(path, name)| (path.to_owned(), name)));
    assert_eq!(paths(&rest), [vec!["crate", "g", "h"], vec!["super", "i"]]);
    assert!(uses_path("use fuser::X;", "fuser") && uses_path("use clap;", "clap"));
    assert!(!uses_path("use my_fuser::X;", "fuser") && !uses_path("fuser_x::y", "fuser"));
    assert!(uses_path("a(std::fs::read())", "std::fs") && !uses_path("std::fscache::x", "std::fs"));
    assert_eq!(without_tests("a {x:?}\n#[cfg(test)]\nmod tests {\n.display()"), "a {x:?}\n");
    assert_eq!(code("// use crate::x;\n/// crate::y\nz"), "z");
    assert_eq!(code("// use crate::x;\n/// crate::y\nz\n\n#[cfg(test)]\nmod tests;"), "z");
}
