//! A program that lists a tree, built for 32 bits without large-file support, or for 64.

use super::{cached, program, run};
use std::collections::BTreeMap;
use std::path::Path;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/inode32/list.c");

/// What a program of 32 bits, or the same of 64, lists: numbers by readdir(3) and stat(2), and links, by path.
pub(crate) fn listed(bits: &str, top: &Path) -> Result<BTreeMap<String, [u64; 3]>, String> {
    let made = cached(&format!("list-{bits}"), |directory| {
        let mut compiler = program("gcc", ["-O1", "-Wall", "-Werror", bits, "-o"]);
        run(compiler.arg(directory.join("list")).arg(SOURCE)).ok();
    });
    let done = run(program(made.join("list").to_str().unwrap(), ["."]).current_dir(top));
    if done.code != Some(0) {
        return Err(done.out());
    }
    let line = |line: &str| {
        let words: Vec<_> = line.split(' ').collect();
        let [path, numbers @ ..] = &words[..] else { panic!("{line}") };
        let numbers: Vec<u64> = numbers.iter().map(|number| number.parse().unwrap()).collect();
        ((*path).to_owned(), numbers.try_into().unwrap())
    };
    Ok(done.out().lines().map(line).collect())
}
