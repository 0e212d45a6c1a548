//! `codchifs list`.

use super::args::{Global, List};
use super::{Context, Failure, Outcome};
use crate::codchi::Found;
use serde_json::{Value, json};
use std::io::Write as _;

struct Row {
    name: String,
    state: &'static str,
    rootfs: Option<String>,
    home: Option<String>,
    reason: Option<String>,
}

pub(super) fn run(global: &Global, list: &List) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    let config_dir = context.state.config_dir.clone();
    let machines = context.machines(Default::default(), Vec::new())?;
    let mut rows = Vec::new();
    for found in machines.found()? {
        match found {
            Found::Machine(name) => {
                let Some(machine) = machines.get(name.as_str().as_bytes()) else { continue };
                rows.push(Row {
                    name: name.to_string(),
                    state: machine.state.as_str(),
                    rootfs: machine.rootfs.as_ref().map(|p| p.display().to_string()),
                    home: Some(machine.home.display().to_string()),
                    reason: machine.tree.as_ref().err().cloned(),
                });
            }
            Found::Invalid { name, reason } => rows.push(Row {
                name: name.to_string_lossy().escape_debug().to_string(),
                state: "broken",
                rootfs: None,
                home: None,
                reason: Some(reason.to_string()),
            }),
        }
    }
    let mut out = std::io::stdout().lock();
    if list.json {
        let rows: Vec<Value> = rows
            .iter()
            .map(|r| {
                json!({
                    "name": r.name, "state": r.state, "driver": "dir",
                    "rootfs": r.rootfs, "home": r.home, "reason": r.reason,
                })
            })
            .collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&rows)?)?;
        return Ok(Outcome::Done);
    }
    if rows.is_empty() {
        super::complain(&format!("no code machines in {}", config_dir.join("machine").display()));
        return Ok(Outcome::Done);
    }
    let width =
        |text: fn(&Row) -> usize, least| rows.iter().map(text).max().unwrap_or(0).max(least);
    let name_width = width(|r| r.name.chars().count(), 4);
    let state_width = width(|r| r.state.len(), 5);
    writeln!(out, "{:name_width$}  {:state_width$}  DRIVER  ROOTFS", "NAME", "STATE")?;
    for r in &rows {
        let rootfs = r.rootfs.as_deref().unwrap_or("-");
        writeln!(out, "{:name_width$}  {:state_width$}  dir     {rootfs}", r.name, r.state)?;
        if let Some(reason) = &r.reason {
            writeln!(out, "{:name_width$}  {reason}", "")?;
        }
    }
    Ok(Outcome::Done)
}
