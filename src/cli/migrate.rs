//! `codchifs migrate`: a machine's guide, without a mount.

use super::args::{Global, Migrate};
use super::text::write_json;
use super::{Context, Failure, Outcome};
use crate::machine::Status;
use serde_json::json;
use std::io::Write as _;

pub(super) fn run(global: &Global, migrate: &Migrate) -> Result<Outcome, Failure> {
    let name = migrate.name.as_str();
    let settings = migrate.wishes.shown(global, None);
    let machines = Context::new(global)?.machines(settings, Vec::new())?;
    let machine = machines
        .get(name.as_bytes())
        .ok_or_else(|| format!("migrate {name}: no such machine; `codchifs list` names them"))?;
    if let Some(exports) = machine.exports.as_ref().filter(|_| migrate.size) {
        exports.lookup_or_why().map_err(|why| format!("migrate {name}: {why}"))?;
    }
    let (mut out, guide) = (std::io::stdout().lock(), machine.guide());
    match migrate.json {
        true => {
            let last = machine.exports.as_ref().filter(|_| migrate.size).and_then(|e| e.last());
            let all = json!({
                "name": name, "state": machine.state.as_str(), "size": last.map(|g| g.size()),
                "guide": str::from_utf8(&guide)?,
            });
            write_json(&mut out, &all, true)?;
        }
        false => out.write_all(&guide)?,
    }
    out.flush()?;
    Ok(match machine.state {
        Status::Ready => Outcome::Done,
        _ => Outcome::Incomplete,
    })
}
