//! Every message of docs/TROUBLESHOOTING.md is provoked as a user meets it, and compared with what stands there; what the
//! page says is to be done is then done.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "troubleshooting/copying.rs"]
mod copying;
#[path = "troubleshooting/finding.rs"]
mod finding;
#[path = "troubleshooting/mounting.rs"]
mod mounting;
#[path = "troubleshooting/moved.rs"]
mod moved;

use std::collections::BTreeSet;
use std::path::Path;

/// A heading of the page, and what has what stands below it printed: all that was said.
type Case = (&'static str, fn() -> String);

const SECTIONS: &[(&str, &[Case])] = &[
    ("Mounting", mounting::CASES),
    ("Finding machines", finding::CASES),
    ("Copying", copying::CASES),
    ("Extracting", moved::EXTRACTING),
    ("Verifying", moved::VERIFYING),
    ("Unmounting", mounting::UNMOUNTING),
];

/// What stands for anything.
const PLACEHOLDERS: [&str; 9] = ["NAME", "USER", "UID", "PATH", "FILE", "N", "SIZE", "WHAT", "WHY"];

/// An entry of the page.
#[derive(Debug)]
struct Entry {
    section: String,
    heading: String,
    messages: Vec<String>,
}

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/TROUBLESHOOTING.md");
    std::fs::read_to_string(path).unwrap()
}

fn entries() -> Vec<Entry> {
    let page = page();
    let (mut section, mut entries) = ("", Vec::<Entry>::new());
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(title) = line.strip_prefix("## ") {
            section = title;
        } else if let Some(heading) = line.strip_prefix("### ") {
            let (section, heading) = (section.to_owned(), heading.to_owned());
            entries.push(Entry { section, heading, messages: Vec::new() });
        } else if line == "```text" {
            let folded: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
            entries.last_mut().unwrap().messages.push(folded.join(" "));
        }
    }
    entries
}

/// The fixed parts of a message.
fn parts(message: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    for word in message.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let end = word.trim_end_matches(|c: char| c.is_ascii_alphanumeric()).len();
        let end = if end == 0 { word.len() } else { word.len() - 1 };
        match PLACEHOLDERS.contains(&&word[..end]) {
            true => parts.push(word[end..].to_owned()),
            false => parts.last_mut().unwrap().push_str(word),
        }
    }
    parts
}

/// Whether a line is this message.
fn is(message: &str, line: &str) -> bool {
    let parts = parts(message);
    let [first, middle @ .., last] = &parts[..] else { return message == line };
    let Some(mut rest) = line.strip_prefix(&**first).and_then(|rest| rest.strip_suffix(&**last))
    else {
        return false;
    };
    middle.iter().all(|part| match rest.find(&**part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

/// Provokes all of a section.
fn section(title: &str) {
    let (_, cases) = SECTIONS.iter().find(|(name, _)| *name == title).unwrap();
    let entries: Vec<_> = entries().into_iter().filter(|e| e.section == title).collect();
    let mut faults = Vec::new();
    for (heading, provoke) in *cases {
        let Some(entry) = entries.iter().find(|entry| entry.heading == *heading) else {
            faults.push(format!("not in the page: {heading}"));
            continue;
        };
        let said = provoke();
        for message in &entry.messages {
            if !said.lines().any(|line| is(message, line.trim())) {
                faults.push(format!("{heading}:\npage: {message}\nsaid: {said}"));
            }
        }
    }
    for entry in &entries {
        if !cases.iter().any(|(heading, _)| entry.heading == *heading) {
            faults.push(format!("nothing provokes: {}", entry.heading));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn mounting() {
    section("Mounting");
}

#[test]
fn finding_machines() {
    section("Finding machines");
}

#[test]
fn copying() {
    section("Copying");
}

#[test]
fn extracting() {
    section("Extracting");
}

#[test]
fn verifying() {
    section("Verifying");
}

#[test]
fn unmounting() {
    section("Unmounting");
}

#[test]
fn the_page_can_be_searched_for_what_is_printed() {
    let (entries, page) = (entries(), page());
    let titles: BTreeSet<_> = SECTIONS.iter().map(|(title, _)| *title).collect();
    let mut headings = BTreeSet::new();
    for Entry { section, heading, messages } in &entries {
        assert!(titles.contains(&**section), "no test of the section {section}");
        assert!(headings.insert(heading), "twice: {heading}");
        assert!(messages.iter().any(|message| message.contains(&**heading)), "{heading}");
        // One that would be found in anything that is printed says nothing.
        for message in messages {
            let fixed: usize = parts(message).iter().map(String::len).sum();
            assert!(fixed >= 20, "{message}");
        }
    }
    let intro = page.split("\n## ").next().unwrap();
    for word in PLACEHOLDERS {
        assert!(intro.contains(&format!("`{word}`")), "the page does not say what {word} is");
    }
    let wide: Vec<_> = page.lines().filter(|line| line.chars().count() > 128).collect();
    assert!(wide.is_empty(), "{wide:#?}");
}

#[test]
fn a_message_is_told_from_another() {
    for (message, line, expected) in [
        ("a PATH: b", "a /x y: b", true),
        ("a PATH: b", "a /x: c", false),
        ("codchi-NAME runs", "codchi-dev runs", true),
        ("NAME: N bytes", "dev: 12 bytes", true),
        ("NAME: N bytes", "dev: 12 bits", false),
        ("LXD: PATH", "LXD: /x", true),
        ("plain", "plain", true),
        ("plain", "plain too", false),
        ("UID, N", "1, 2", true),
        ("PATH", "", true),
    ] {
        assert_eq!(is(message, line), expected, "{message} {line}");
    }
}
