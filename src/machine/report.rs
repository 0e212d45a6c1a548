//! `report.json`: what of a machine is not in its export and why, and what changed under whoever reads it.
//!
//! `docs/report.schema.json` describes its shape, `docs/REPORT.md` its meaning. A new key may come at any time; anything
//! else is a new [`SCHEMA`].

use super::{Machine, Redacted, credentials, export_name};
use crate::backend::{Facts, Location, Power};
use crate::export::{ChangeLine, Exports, Generation, Note, Status};
use crate::quote;
use crate::tree::Tree;
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::SystemTime;

/// The version of the report's shape.
const SCHEMA: u32 = 1;
/// Lines of what changed in each earlier generation.
const MAX_PAST_LINES: usize = 100;
/// Devices of an instance that are named.
const MAX_DEVICES: usize = 100;

#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    machine: &'a str,
    state: &'static str,
    #[serde(flatten)]
    place: Option<Place<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    daemon: Option<Value>,
    /// Why a machine that is not ready is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    redacted: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    left_out: Option<&'a Note>,
    #[serde(skip_serializing_if = "Option::is_none")]
    changed: Option<Vec<ChangeLine>>,
    #[serde(skip_serializing_if = "is_zero")]
    changed_not_listed: u64,
    /// Earlier generations under whose readers something changed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    earlier: Vec<Value>,
}

#[derive(Serialize)]
struct Place<'a> {
    driver: &'a str,
    pool: Option<&'a str>,
    running: Option<bool>,
    devices_not_exported: Vec<Value>,
}

impl Machine {
    /// The bytes of `report.json`, made now. Never scans.
    pub fn report(&self) -> Vec<u8> {
        let unanswered = self.unanswered();
        let reason = unanswered.as_deref().or(self.tree.as_ref().err().map(String::as_str));
        let mut report = Report {
            schema: SCHEMA,
            machine: &self.name,
            state: unanswered.as_ref().map_or(self.state, |_| super::Status::Broken).as_str(),
            place: self.location.as_ref().map(place),
            daemon: daemon(self.facts()),
            reason,
            warnings: self.warnings().to_vec(),
            note: None,
            redacted: None,
            generation: None,
            left_out: None,
            changed: None,
            changed_not_listed: 0,
            earlier: Vec::new(),
        };
        if self.location.as_ref().is_some_and(|l| l.power == Some(Power::Running)) {
            let warning = "the machine runs: what changes while it is copied makes a copy fail; stop it first";
            report.warnings.push(warning.into());
        }
        // Nothing is asked of a disk that does not answer.
        let tree = self.tree.as_ref().ok().filter(|_| unanswered.is_none());
        for path in tree.map(|_| self.missing_includes()).unwrap_or_default() {
            let warning = format!("--include {path}: there is nothing of this name in the machine");
            report.warnings.push(warning);
        }
        let last = self.exports.as_ref().and_then(|exports| exports.last());
        let left_out = last.as_ref().map(|generation| generation.left_out());
        if let Some(exports) = &self.exports {
            report.redacted = self.redacted.as_ref().map(|redacted| fill_in(redacted, tree));
            report.left_out = left_out.as_deref();
            report.of_exports(exports, last.as_deref(), export_name(self.redacted.is_some()));
        }
        let text = serde_json::to_string_pretty(&report).unwrap_or_default();
        format!("{}\n", quote::json(&text)).into_bytes()
    }
}

impl Report<'_> {
    fn of_exports(&mut self, exports: &Exports, last: Option<&Generation>, export_name: &str) {
        let failed = exports.failed().map(|why| format!("the last scan failed: {why}"));
        let Some(generation) = last else {
            let note = "not scanned yet: the first look at the tar scans";
            self.note = Some(failed.unwrap_or_else(|| note.into()));
            return;
        };
        self.note = failed;
        self.generation = Some(of_generation(generation, export_name));
        let (lines, more) = generation.status().changes().lines();
        (self.changed, self.changed_not_listed) = (Some(lines), more);
        let earlier = exports.history().changed();
        let earlier = earlier.iter().filter(|past| past.id() != generation.id());
        self.earlier = earlier.map(|past| of_past(past)).collect();
    }
}

fn place(location: &Location) -> Place<'_> {
    let device = |d: &crate::backend::Device| json!({"path": d.path, "source": d.source});
    Place {
        driver: location.driver.as_str(),
        pool: location.pool.as_deref(),
        running: location.power.map(|p| p == Power::Running),
        devices_not_exported: location.foreign.iter().take(MAX_DEVICES).map(device).collect(),
    }
}

fn daemon(facts: Facts) -> Option<Value> {
    let as_of = facts.online.map(stamp);
    facts.why.map(|why| json!({"silent": why, "facts_as_of": as_of}))
}

fn stamp(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

fn id(id: u64) -> String {
    format!("{id:016x}")
}

fn of_generation(generation: &Generation, export_name: &str) -> Value {
    let (at, took) = generation.status().scanned();
    json!({
        "id": id(generation.id()),
        "size": generation.size(),
        "members": generation.members(),
        "scanned": stamp(at),
        "scan_seconds": took.as_secs_f64(),
        "torn": generation.torn(),
        "complete": !generation.incomplete(),
        "resume": format!(".generations/{}/{export_name}", id(generation.id())),
    })
}

fn of_past(past: &Status) -> Value {
    let (lines, more) = past.changes().first_lines(MAX_PAST_LINES);
    let mut value = json!({
        "id": id(past.id()),
        "size": past.size(),
        "scanned": stamp(past.scanned().0),
        "torn": past.torn(),
        "changed": lines,
    });
    if more > 0
        && let Some(value) = value.as_object_mut()
    {
        value.insert("changed_not_listed".into(), more.into());
    }
    value
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What the receiver of an export without secrets must know.
fn fill_in(redacted: &Redacted, tree: Option<&Arc<Tree>>) -> Value {
    json!({
        "secrets": redacted.secrets.iter().map(|name| format!("CODCHI_{name}")).collect::<Vec<_>>(),
        "tokens_of_modules": redacted.modules,
        "credentials_still_inside": tree.map_or_else(credentials::unknown, |tree| redacted.inside.list(tree)),
    })
}
