//! Renders `/etc/codchi-env`, which shells source to get a machine's secrets.

use super::MachineConfig;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The text of `/etc/codchi-env`: one `export` per secret, sorted by name, exact in bash, dash, zsh,
/// busybox and fish.
///
/// As in Codchi, `DEBUG` (empty) and `MACHINE_NAME` win over secrets of the same names. A name that
/// no shell can export becomes a comment, since dash would stop there.
pub fn render(config: &MachineConfig) -> String {
    let secrets = config.secrets.iter().map(|(name, value)| (name.as_str(), value.expose()));
    let mut variables: BTreeMap<&str, &str> = secrets.collect();
    variables.insert("DEBUG", "");
    variables.insert("MACHINE_NAME", config.name.as_str());
    let mut out = String::new();
    for (name, value) in variables {
        // Writing to a string cannot fail.
        let _ = if name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            writeln!(out, "export CODCHI_{name}={}", quote(value))
        } else {
            writeln!(
                out,
                "# CODCHI_{}: left out, no shell can export a variable of this name",
                printable(name)
            )
        };
    }
    out
}

/// Puts a value in single quotes. A backslash goes outside them, as fish reads escapes inside; NUL
/// is dropped, as no variable can hold one.
fn quote(value: &str) -> String {
    let mut out = String::with_capacity(value.len() + 2);
    out.push('\'');
    for c in value.chars() {
        match c {
            '\'' => out.push_str(r"'\''"),
            '\\' => out.push_str(r"'\\'"),
            '\0' => {}
            c => out.push(c),
        }
    }
    out.push('\'');
    out
}

/// A name that stays on its line, whatever it holds.
fn printable(name: &str) -> String {
    name.chars()
        .flat_map(|c| {
            let breaks = c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
            let (plain, escape) = if breaks { (None, Some(c)) } else { (Some(c), None) };
            plain.into_iter().chain(escape.into_iter().flat_map(char::escape_default))
        })
        .collect()
}

#[cfg(test)]
mod tests;
