//! Completion in bash, which inserts candidates into the line as they are.

use super::VARIABLE;
use crate::quote;
use clap::Command;
use clap_complete::env::EnvCompleter;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;

/// The word as it stands on the line, with its quotes.
const WORD: &str = "CODCHIFS_WORD";
const INDEX: &str = "CODCHIFS_WORD_INDEX";

/// What bash runs. A candidate that ends in `=`, `/` or `:` goes on.
const SCRIPT: &str = r#"_@COMPLETER@() {
    local words=("${COMP_WORDS[@]}")
    words[COMP_CWORD]=$2
    mapfile -t COMPREPLY < <(@VARIABLE@=bash @WORD@=${COMP_WORDS[COMP_CWORD]} @INDEX@=$COMP_CWORD @COMPLETER@ -- "${words[@]}")
    [[ ${COMPREPLY-} != *[=/:] ]] || compopt -o nospace
}
complete -o bashdefault -F _@COMPLETER@ @COMMAND@
"#;

/// In place of clap_complete's, which does not quote.
#[derive(Clone, Copy, Debug)]
pub(in crate::cli) struct Bash;

impl EnvCompleter for Bash {
    fn name(&self) -> &'static str {
        "bash"
    }

    fn is(&self, name: &str) -> bool {
        name == self.name()
    }

    fn write_registration(
        &self,
        _: &str,
        _: &str,
        command: &str,
        completer: &str,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let names = [("VARIABLE", VARIABLE), ("WORD", WORD), ("INDEX", INDEX)];
        let ours = [("COMMAND", command), ("COMPLETER", completer)];
        let script =
            names.into_iter().chain(ours).fold(SCRIPT.to_owned(), |script, (name, value)| {
                script.replace(&format!("@{name}@"), value)
            });
        out.write_all(script.as_bytes())
    }

    fn write_complete(
        &self,
        command: &mut Command,
        words: Vec<OsString>,
        dir: Option<&Path>,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let index = std::env::var(INDEX).ok().and_then(|index| index.parse().ok());
        let index = index.unwrap_or_else(|| words.len().saturating_sub(1));
        let begun = std::env::var_os(WORD).unwrap_or_default();
        for candidate in clap_complete::engine::complete(command, words, index, dir)? {
            let value = candidate.get_value().as_encoded_bytes();
            if let Some(text) = inserted(value, begun.as_encoded_bytes()) {
                writeln!(out, "{text}")?;
            }
        }
        Ok(())
    }
}

/// A candidate as one word of bash, in the place of a word that was begun; `None` if that is not possible.
pub(in crate::cli) fn inserted(value: &[u8], begun: &[u8]) -> Option<String> {
    if quote::is_plain_word(value) {
        return Some(quote::word(value));
    }
    // What is inserted into quotes stands in them, and an escape may be half there.
    if begun.iter().any(|byte| b"'\"\\$`".contains(byte)) {
        return None;
    }
    // A home directory is one without quotes only.
    Some(match value.strip_prefix(b"~/") {
        Some([]) => "~/".to_owned(),
        Some(below) => format!("~/{}", quote::word(below)),
        None => quote::word(value),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_candidate_is_one_word() {
        for (value, begun, expected) in [
            ("dev", "d", Some("dev")),
            ("dev", "\"d", Some("dev")),
            ("--config-dir", "--c", Some("--config-dir")),
            ("x$(touch pwn)", "x", Some("'x$(touch pwn)'")),
            ("x$(touch pwn)", "\"x", None),
            ("x y", "'x", None),
            ("x y", "x\\", None),
            ("x\ny", "x", Some(r"$'x\012y'")),
            ("~/a b", "~/a", Some("~/'a b'")),
            ("~/", "~", Some("~/")),
            ("~x", "", Some("'~x'")),
            ("*", "", Some("'*'")),
        ] {
            let text = inserted(value.as_bytes(), begun.as_bytes());
            assert_eq!(text.as_deref(), expected, "{value:?} {begun:?}");
        }
    }
}
