//! The documents keep up with the code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{program, run, stage};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn every_promise_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = ["SEMANTICS.md", "SECURITY.md"].map(|name| {
        let text = fs::read_to_string(root.join("docs").join(name)).unwrap();
        text.split_once("\n## ").unwrap().1.to_owned()
    });
    // Cases of the machines that are booted.
    let mut cases = String::new();
    for entry in fs::read_dir(root.join("tests/machines.d/cases")).unwrap() {
        cases += &fs::read_to_string(entry.unwrap().path()).unwrap();
    }
    let mut faults = Vec::new();
    for promise in text.iter().flat_map(|text| text.split("\n- ").skip(1)) {
        let promise = promise.split("\n\n## ").next().unwrap();
        let tests: Vec<_> = promise.split('`').filter_map(|word| word.split_once("::")).collect();
        let open = ["Not yet: ", "Known limit: "].iter().any(|word| promise.starts_with(word));
        if tests.is_empty() && !open {
            faults.push(format!("no test: {promise}"));
        }
        for (file, test) in tests {
            let source =
                fs::read_to_string(root.join(format!("tests/{file}.rs"))).unwrap_or_default();
            let is_case = file == "machines" && cases.contains(&format!("\ncase_{test}() {{"));
            if !is_case && !source.contains(&format!("fn {test}(")) {
                faults.push(format!("no such test: {file}::{test}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Whether there is a test of that name: `file::test` in `tests/`, `module::path::test` in `src/`.
fn is_test(root: &Path, name: &str) -> bool {
    let (path, test) = name.rsplit_once("::").unwrap();
    let candidates = match path.contains("::") {
        false => vec![format!("tests/{path}.rs")],
        true => {
            let path = path.replace("::", "/");
            let of = path.strip_suffix("/tests").unwrap_or(&path);
            [&path, of].map(|path| format!("src/{path}.rs")).to_vec()
        }
    };
    let has = |text: String| {
        text.contains(&format!("#[test]\nfn {test}()"))
            || text.contains(&format!("#[test]\n    fn {test}()"))
    };
    candidates.iter().any(|file| fs::read_to_string(root.join(file)).is_ok_and(has))
}

#[test]
fn every_fault_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = read("docs/FAULTS.md");
    let rows: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"))
        .filter(|row| !row.starts_with("fault |"))
        .collect();
    assert!(rows.len() > 25, "{}", rows.len());
    let mut faults = Vec::new();
    for row in rows {
        let [_, tests, also] = row.split('|').collect::<Vec<_>>()[..] else { panic!("{row}") };
        let named = |text: &str| {
            text.split('`')
                .filter(|word| word.contains("::"))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        if named(tests).is_empty() {
            faults.push(format!("no test: {row}"));
        }
        for test in named(tests).into_iter().chain(named(also)) {
            if !is_test(root, &test) {
                faults.push(format!("no such test: {test}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_function_with_unsafe_code_is_reviewed() {
    let page = read("docs/SECURITY.md");
    let table = page.split_once("\n### Unsafe code\n").unwrap().1;
    let source = read("src/sys.rs");
    let source = source.split("#[cfg(test)]\nmod tests").next().unwrap();
    let mut reviewed = 0;
    for function in source.split("fn ").skip(1).filter(|text| text.contains("unsafe {")) {
        let name = function.split(['(', '<']).next().unwrap();
        assert!(table.contains(&format!("`{name}`")), "SECURITY.md does not review {name}");
        reviewed += 1;
    }
    assert!(reviewed > 5);
}

/// An option as `--help` has it, or the page.
#[derive(Debug, Default, PartialEq, Eq)]
struct Described {
    short: Option<String>,
    default: Option<String>,
    values: BTreeSet<String>,
    variable: Option<String>,
}

/// What stands between two words.
fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let rest = &text[text.find(before)? + before.len()..];
    Some(&rest[..rest.find(after)?])
}

/// Options by name, from the output of `--help`.
fn in_help(help: &str) -> BTreeMap<String, Described> {
    let mut blocks: Vec<Vec<&str>> = Vec::new();
    for line in help.lines().skip_while(|line| !line.contains("Options:")) {
        let words = line.trim_start();
        // What is said of it stands further right.
        if words.starts_with('-') && line.len() - words.len() < 10 {
            blocks.push(vec![words]);
        } else if let Some(block) = blocks.last_mut() {
            block.push(words);
        }
    }
    let described = |block: Vec<&str>| {
        let (head, text) = (block[0], block[1..].join(" "));
        let mut names = head.split([' ', ',', '[', '=']).filter(|word| word.starts_with('-'));
        let (first, second) = (names.next().unwrap(), names.next());
        let long = second.unwrap_or(first).trim_end_matches("...").to_owned();
        let default = between(&text, "[default", "]").map(|rest| format!("Default{rest}"));
        let variable = between(&text, "[env: ", "]").map(str::to_owned);
        let values = block[1..].iter().filter_map(|line| line.strip_prefix("- "));
        let values = values.filter_map(|line| Some(line.split_once(':')?.0.to_owned())).collect();
        (long, Described { short: second.map(|_| first.to_owned()), default, values, variable })
    };
    let all = blocks.into_iter().map(described);
    all.filter(|(name, _)| !["--help", "--version", "--verbose"].contains(&&**name)).collect()
}

/// The items of lists in the page: the code before the first colon, and all of the text.
fn items(page: &str) -> Vec<(Vec<String>, String)> {
    let mut items = Vec::<String>::new();
    let mut inside = false;
    for line in page.lines() {
        if let Some(first) = line.strip_prefix("- ") {
            items.push(first.to_owned());
            inside = true;
        } else if let (true, Some(more)) = (inside, line.strip_prefix("  ")) {
            *items.last_mut().unwrap() += &format!(" {more}");
        } else {
            inside = false;
        }
    }
    let codes = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    let item = |text: String| (codes(text.split("`: ").next().unwrap()), text);
    items.into_iter().map(item).collect()
}

/// The sentence that begins so, without marks of code.
fn sentence(text: &str, begin: &str) -> Option<String> {
    let text = format!("{} ", text.replace('`', ""));
    Some(format!("{begin}{}", between(&text, begin, ". ")?))
}

#[test]
fn the_configuration_is_that_of_help() {
    let page = read("docs/CONFIGURATION.md");
    let help = |command: &str| {
        let codchifs = env!("CARGO_BIN_EXE_codchifs");
        in_help(&run(program(codchifs, [command, "--help"])).ok().out())
    };
    let mut wanted = help("mount");
    let words = wanted.remove("-o").unwrap().values;
    wanted.extend(help("export"));
    let helper = run(program(stage::helper().to_str().unwrap(), ["--help"])).ok().out();
    let names = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    let all: BTreeSet<String> = names(&page);
    let (mut found, mut flags) = (BTreeSet::new(), BTreeSet::new());
    let (mut admitted, mut faults) = (BTreeSet::new(), Vec::new());
    for (codes, text) in items(&page) {
        let Some(code) = codes.first() else { continue };
        let name = code.split([' ', '[']).next().unwrap().to_owned();
        match wanted.get(&name) {
            Some(described) => {
                let short = codes.get(1).map(|code| code.split(' ').next().unwrap().to_owned());
                let quoted: BTreeSet<String> = names(&text);
                if short != described.short {
                    faults.push(format!("{name}: {short:?}, not {:?}", described.short));
                }
                let default = sentence(&text, "Default");
                if default != described.default {
                    faults.push(format!("{name}: {default:?}, not {:?}", described.default));
                }
                let variable = sentence(&text, "Variable: ").map(|s| s.replace("Variable: ", ""));
                if variable != described.variable {
                    faults.push(format!("{name}: {variable:?}, not {:?}", described.variable));
                }
                faults.extend(
                    described.values.difference(&quoted).map(|v| format!("{name}: no {v}")),
                );
                assert!(found.insert(name), "twice: {text}");
            }
            None if name.starts_with("--") => faults.push(format!("no such option: {name}")),
            None if name.starts_with('-') => drop(flags.insert(name)),
            None if words.contains(&name) => drop(admitted.insert(name)),
            None => {}
        }
    }
    let wanted: BTreeSet<_> = wanted.into_keys().collect();
    assert_eq!(found, wanted);
    assert_eq!(admitted, words);
    // mount(8) has its words in its own line of help, and its flags below.
    let lines = helper.lines().filter(|line| line.starts_with('-') && !line.starts_with("-o"));
    let of_helper: BTreeSet<_> = lines.map(|line| line[..2].to_owned()).collect();
    assert_eq!(flags, of_helper);
    let options = between(&helper, "options: ", ", and the words").unwrap();
    for word in options.split_whitespace() {
        let known = match word.strip_suffix('=') {
            Some(name) => wanted.contains(&format!("--{name}")),
            None => words.contains(word),
        };
        assert!(known, "{word}");
    }
    // Any other option that is named anywhere.
    let named = all.iter().flat_map(|code| code.split([' ', '['])).filter(|w| w.starts_with("--"));
    faults.extend(named.filter(|w| !wanted.contains(*w)).map(|w| format!("no such option: {w}")));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// All sources of a directory, but for tests.
fn sources(directory: &Path, all: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
            *all += &fs::read_to_string(path).unwrap();
        }
    }
}

#[test]
fn the_variables_are_those_that_are_read() {
    let page = read("docs/CONFIGURATION.md");
    let section = between(&page, "\n## Environment\n", "\n## ").unwrap();
    let listed: BTreeSet<String> =
        items(section).into_iter().flat_map(|(codes, _)| codes).collect();
    let mut source = String::new();
    for directory in ["src", "mount-helper/src"] {
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(directory), &mut source);
    }
    for name in &listed {
        assert!(source.contains(&format!("\"{name}\"")), "nobody reads {name}");
    }
    let reads =
        ["var_os(\"", "env::var(\"", "set(env, \"", "set(\"", " env = \"", "xdg(owner, env, \""];
    for read in reads {
        for found in source.split(read).skip(1) {
            let name = found.split('"').next().unwrap();
            // Where programs are; every one has it.
            assert!(listed.contains(name) || name == "PATH", "not in the page: {name}");
        }
    }
}

#[test]
fn the_options_of_the_module_are_those_of_the_page() {
    let page = read("docs/CONFIGURATION.md");
    let module = read("packaging/nix/module.nix");
    let mut wanted = BTreeMap::from([("enable".to_owned(), Some("Default: false".to_owned()))]);
    let mut name = String::new();
    for line in module.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        if let [option, "=", "mkOption", "{"] = words[..] {
            name = option.to_owned();
            wanted.insert(name.clone(), None);
        } else if let ["default", "=", ..] = words[..]
            && let Some(default @ None) = wanted.get_mut(&name)
        {
            let value = line.split_once(" = ").unwrap().1.trim_end_matches(';');
            *default = Some(format!("Default: {value}"));
        }
    }
    let section = between(&page, "\n### NixOS\n", "\n### ").unwrap();
    let found: BTreeMap<_, _> = items(section)
        .into_iter()
        .map(|(codes, text)| {
            let name = codes[0].rsplit('.').next().unwrap().to_owned();
            (name, sentence(&text, "Default"))
        })
        .collect();
    assert_eq!(found, wanted);
}

/// What the page says of times and sizes, and where the code says it.
const FIGURES: &[(&str, &str, &str)] = &[
    ("src/machine.rs", "LOOK_AGAIN: Duration = Duration::from_millis(500)", "500 ms old"),
    ("src/export/exports.rs", "AGE_PER_SCAN: u32 = 2;", "twice the time that its scan took"),
    ("src/export/exports.rs", "LEAST_AGE: Duration = Duration::from_secs(2)", "at least 2 s"),
    ("src/export/exports.rs", "MOST_AGE: Duration = Duration::from_secs(30)", "at most 30 s"),
    ("src/export/history.rs", "KEEP: Duration = Duration::from_secs(60 * 60)", "for an hour"),
    ("src/export/history.rs", "MOST_CLOSED: usize = 8;", "the last 8 closed ones"),
    ("src/export/history.rs", "MOST_BYTES: usize = 1 << 30;", "less than 1 GiB"),
    ("src/vfs/mod.rs", "BRIEF: Duration = Duration::from_secs(1)", "for 1 s at most"),
    ("src/backend/lxd.rs", "DEADLINE: Duration = Duration::from_secs(3)", "has 3 s to answer"),
    ("src/opener/client.rs", "PATIENCE: Duration = Duration::from_secs(15)", "than 15 s"),
    ("src/fuse/mounts.rs", "PATIENCE: Duration = Duration::from_secs(5)", "wait 5 s for a mount"),
    ("src/fuse/mounts.rs", "PATIENCE: Duration = Duration::from_secs(5)", "wait 5 s for a mount"),
    ("src/tree/scan.rs", "LEAST_HOLE: u64 = 1 << 20;", "holes of 1 MiB or more"),
];

#[test]
fn figures_in_the_configuration_are_those_of_the_code() {
    let page = read("docs/CONFIGURATION.md").split_whitespace().collect::<Vec<_>>().join(" ");
    for (file, code, words) in FIGURES {
        assert!(read(file).contains(code), "{file} has no {code}: is the page still right?");
        assert!(page.contains(words), "no {words}");
    }
}

#[test]
fn the_journey_has_the_steps_of_the_page_of_a_machine() {
    let guide = read("src/machine/guide.rs");
    let in_guide: BTreeSet<_> = guide
        .split("heading(\"## ")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap().to_owned())
        .collect();
    let page = read("docs/MIGRATION.md");
    let titles: BTreeSet<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .filter(|title| title.as_bytes()[0].is_ascii_digit())
        .map(str::to_owned)
        .collect();
    assert_eq!(titles, in_guide);
}

#[test]
fn links_between_documents_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for entry in fs::read_dir(root.join("docs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1) {
            let link = link.split([')', '#']).next().unwrap();
            let is_file = !link.is_empty() && !link.contains("://");
            let at = path.parent().unwrap().join(link);
            assert!(!is_file || at.exists(), "{}: {link}", path.display());
        }
        for name in text.split('`').skip(1).step_by(2).filter(|code| code.starts_with("packaging/"))
        {
            assert!(root.join(name).exists(), "{}: {name}", path.display());
        }
    }
}
