//! `codchifs list`.

use super::args::{Global, List};
use super::text::{columns, wrapped, write_json};
use super::{Context, Failure, Outcome, progress};
use crate::backend::{Facts, Location, Power};
use crate::codchi::Found;
use crate::machine::{Machine, Status};
use crate::quote::{self, padded};
use serde_json::{Value, json};
use std::io::Write;

struct Row {
    name: String,
    state: &'static str,
    location: Option<Location>,
    home: Option<String>,
    size: Option<u64>,
    reason: Option<String>,
    warnings: Vec<String>,
    facts: Facts,
}

impl Row {
    /// The name in a table.
    fn shown(&self) -> String {
        quote::message(&self.name)
    }

    fn rootfs(&self) -> Option<String> {
        self.location.as_ref().map(|l| quote::path(&l.rootfs).to_string())
    }

    fn driver(&self) -> Option<&'static str> {
        self.location.as_ref().map(|l| l.driver.as_str())
    }

    fn pool(&self) -> Option<&str> {
        self.location.as_ref()?.pool.as_deref()
    }

    fn shifted(&self) -> Option<bool> {
        self.location.as_ref().map(|l| l.maps.rootfs.is_some())
    }

    /// How old what is known of it is, where its daemon is silent.
    fn stale(&self) -> Option<String> {
        let told = |why: &&String| self.reason.as_ref().is_some_and(|r| r.contains(why.as_str()));
        let why = self.facts.why.as_ref().filter(|why| !told(why))?;
        let source = match self.facts.online {
            Some(at) => format!("as of {}", humantime::format_rfc3339_seconds(at)),
            None => "from backup.yaml".into(),
        };
        Some(format!("{source}: {why}"))
    }
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
                    state: state(&machine),
                    location: machine.location.clone(),
                    size: machine
                        .exports
                        .as_ref()
                        .filter(|_| list.size)
                        .and_then(|exports| exports.lookup().ok())
                        .map(|generation| generation.size()),
                    facts: machine.facts(),
                    home: Some(quote::path(&machine.home).to_string()),
                    reason: machine.tree.as_ref().err().cloned(),
                    warnings: machine.warnings().to_vec(),
                });
                machines.forget(&name);
            }
            Found::Invalid { name, reason } => rows.push(Row {
                name: quote::path(&name).to_string(),
                state: "broken",
                location: None,
                home: None,
                size: None,
                facts: Facts::default(),
                warnings: Vec::new(),
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
                    "name": r.name, "state": r.state, "driver": r.driver(), "pool": r.pool(), "shifted": r.shifted(), "size": r.size,
                    "rootfs": r.rootfs(), "facts": r.stale(), "home": r.home, "reason": r.reason,
                    "warnings": r.warnings,
                })
            })
            .collect();
        write_json(&mut out, &rows.into(), true)?;
        return Ok(Outcome::Done);
    }
    if rows.is_empty() {
        super::complain(&format!(
            "no code machines in {}; is it the right user? `--user NAME` as root; `codchi init` makes a machine",
            quote::path(&config_dir.join("machine"))
        ));
        return Ok(Outcome::Done);
    }
    let columns = columns(&out);
    table(&mut out, &rows, list.size, columns)?;
    Ok(Outcome::Done)
}

/// Where a row would not fit between the edges of a terminal, the path has a line of its own.
fn table(
    out: &mut impl Write,
    rows: &[Row],
    sizes: bool,
    columns: Option<usize>,
) -> std::io::Result<()> {
    let width =
        |text: fn(&Row) -> usize, least| rows.iter().map(text).max().unwrap_or(0).max(least);
    let pool_width = width(|r| quote::width(&quote::message(r.pool().unwrap_or("-"))), 4);
    let name_width = rows.iter().map(|r| quote::width(&r.shown())).max().unwrap_or(0).max(4);
    let state_width = width(|r| r.state.len(), 5);
    // A column of its own only for who asked.
    let size = |text: &str| if sizes { format!("  {text:8}") } else { String::new() };
    let line = |name: &str, state: &str, driver: &str, pool: &str, shifted: &str, bytes: &str| {
        format!(
            "{}  {state:state_width$}  {driver:6}  {}  {shifted:7}{}",
            padded(name, name_width),
            padded(pool, pool_width),
            size(bytes)
        )
    };
    let title = line("NAME", "STATE", "DRIVER", "POOL", "SHIFTED", "SIZE");
    let longest = width(|r| r.rootfs().map_or(1, |path| quote::width(&path)), 6);
    let fits = columns.is_none_or(|columns| title.len() + 2 + longest <= columns);
    if fits {
        writeln!(out, "{title}  ROOTFS")?;
    } else {
        writeln!(out, "{}", title.trim_end())?;
    }
    for r in rows {
        let shifted = r.shifted().map_or("-", |s| if s { "yes" } else { "no" });
        let bytes = r.size.map_or_else(|| "-".into(), progress::size);
        let (driver, pool) = (r.driver().unwrap_or("-"), quote::message(r.pool().unwrap_or("-")));
        let row = line(&r.shown(), r.state, driver, &pool, shifted, &bytes);
        let path = r.rootfs();
        if fits {
            writeln!(out, "{row}  {}", path.as_deref().unwrap_or("-"))?;
        } else {
            writeln!(out, "{}", row.trim_end())?;
        }
        let path = path.filter(|_| !fits);
        for text in path.iter().chain(&r.reason).chain(&r.warnings).chain(&r.stale()) {
            let room = columns.map_or(usize::MAX, |columns| columns.saturating_sub(name_width + 2));
            for line in wrapped(&quote::message(text), room) {
                writeln!(out, "{:name_width$}  {line}", "")?;
            }
        }
    }
    Ok(())
}

/// Running or stopped where that is known.
fn state(machine: &Machine) -> &'static str {
    match (machine.state, machine.location.as_ref().and_then(|l| l.power)) {
        (Status::Ready, Some(Power::Running)) => "running",
        (Status::Ready, Some(Power::Stopped)) => "stopped",
        (state, _) => state.as_str(),
    }
}
