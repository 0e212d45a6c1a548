//! Renders `/etc/codchi-env`, which shells source to get a machine's secrets.

use super::MachineConfig;
use crate::quote::{literal, name as name_of};
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
            writeln!(out, "export CODCHI_{name}={}", literal(value))
        } else {
            writeln!(
                out,
                "# CODCHI_{}: left out, no shell can export a variable of this name",
                name_of(name)
            )
        };
    }
    out
}

#[cfg(test)]
mod tests;
