//! The fenced blocks of the project's own pages.

use std::fs;
use std::path::Path;

/// One block as it stands there.
#[derive(Debug)]
pub(crate) struct Fenced {
    /// Relative to the top.
    pub(crate) page: String,
    pub(crate) language: String,
    pub(crate) text: String,
}

/// A command of a `console` block, and what is shown below it.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) command: String,
    pub(crate) shown: Vec<String>,
}

impl Fenced {
    pub(crate) fn steps(&self) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        for line in self.text.lines() {
            match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => {
                    steps.push(Step { command: command.into(), shown: Vec::new() })
                }
                (None, Some(step)) => step.shown.push(line.into()),
                (None, None) => panic!("{}: output of no command:\n{}", self.page, self.text),
            }
        }
        steps
    }
}

/// Of every page below these, which are files or directories relative to `top`.
pub(crate) fn fenced(top: &Path, places: &[&str]) -> Vec<Fenced> {
    let mut pages = Vec::new();
    for place in places {
        match fs::read_dir(top.join(place)) {
            Ok(entries) => pages.extend(
                entries
                    .map(|entry| format!("{place}/{}", entry.unwrap().file_name().display()))
                    .filter(|name| name.ends_with(".md")),
            ),
            Err(_) => pages.push((*place).to_owned()),
        }
    }
    pages.sort();
    pages.iter().flat_map(|page| of(page, &fs::read_to_string(top.join(page)).unwrap())).collect()
}

fn of(page: &str, text: &str) -> Vec<Fenced> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(language) = line.strip_prefix("```") else { continue };
        let inside: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
        blocks.push(Fenced {
            page: page.into(),
            language: language.into(),
            text: inside.join("\n") + "\n",
        });
    }
    blocks
}

/// Words and columns without what differs from run to run: numbers, sizes, dates, paths.
pub(crate) fn loose(line: &str) -> Vec<String> {
    const VARY: [&str; 17] = [
        "B", "KiB", "MiB", "GiB", "TiB", "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug",
        "Sep", "Oct", "Nov", "Dec",
    ];
    let word = |word: &str| {
        let varies =
            word.contains(|c: char| c.is_ascii_digit() || c == '/') || VARY.contains(&word);
        if varies { "*".to_owned() } else { word.to_owned() }
    };
    line.split_whitespace().map(word).collect()
}
