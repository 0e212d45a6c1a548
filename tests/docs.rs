//! The documents keep up with the code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::path::Path;

#[test]
fn every_promise_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = ["SEMANTICS.md", "SECURITY.md"].map(|name| {
        let text = fs::read_to_string(root.join("docs").join(name)).unwrap();
        text.split_once("\n## ").unwrap().1.to_owned()
    });
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
            if !source.contains(&format!("fn {test}(")) {
                faults.push(format!("no such test: {file}::{test}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
