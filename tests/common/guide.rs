//! The commands of a `MIGRATE.md`, as a person finds them there.

use std::path::Path;

/// A block of commands.
#[derive(Debug)]
pub(crate) struct Block {
    /// The nearest heading above it.
    pub(crate) heading: String,
    /// The line above it: where they are to be pasted.
    pub(crate) place: String,
    pub(crate) commands: String,
}

/// All blocks of shell commands of the page at `path`.
pub(crate) fn blocks(path: &Path) -> Vec<Block> {
    let page = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    of_text(&String::from_utf8(page).expect("the page is UTF-8"))
}

/// A block begins and ends with as many backticks.
fn is_fence(line: &str) -> bool {
    line.len() >= 3 && line.bytes().all(|byte| byte == b'`')
}

pub(crate) fn of_text(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let (mut heading, mut place) = ("", "");
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(title) = line.strip_prefix("## ") {
            heading = title;
        } else if let Some(fence) = line.strip_suffix("sh").filter(|fence| is_fence(fence)) {
            let commands: Vec<_> = lines.by_ref().take_while(|line| *line != fence).collect();
            let (heading, place) = (heading.to_owned(), place.to_owned());
            blocks.push(Block { heading, place, commands: commands.join("\n") + "\n" });
        } else if !line.is_empty() {
            place = line;
        }
    }
    assert!(!blocks.is_empty(), "no commands in:\n{page}");
    blocks
}

/// A page without its line breaks.
pub(crate) fn one_line(page: &str) -> String {
    page.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The one block whose commands hold `part`.
#[track_caller]
pub(crate) fn with<'a>(blocks: &'a [Block], part: &str) -> &'a Block {
    let found: Vec<_> = blocks.iter().filter(|block| block.commands.contains(part)).collect();
    assert_eq!(found.len(), 1, "blocks with {part}: {found:?}");
    found[0]
}
