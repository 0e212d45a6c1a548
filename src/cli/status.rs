//! `codchifs status`: the mounts, their machines, and who reads an `export.tar`.

use super::args::Status;
use super::progress;
use super::text::{columns, write_json};
use super::{Failure, Outcome};
use crate::fuse::{self, Health};
use crate::look::{self, Transfer};
use crate::quote;
use rustix::io::Errno;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// Where the look before the last one left each reader: its mount and machine, generation, pid.
type Before = HashMap<(PathBuf, String, String, u64), (Instant, u64)>;

pub(super) fn run(status: &Status) -> Result<Outcome, Failure> {
    let (mut before, mut first) = (Before::new(), true);
    loop {
        let (mounts, outcome) = look_at_all(&mut before)?;
        let mut out = io::stdout().lock();
        if status.json {
            let all = json!({ "schema": 1, "mounts": mounts });
            write_json(&mut out, &all, !status.watch)?;
        } else {
            let mut text = Vec::new();
            print(&mut text, &mounts)?;
            match columns(&out).filter(|_| status.watch) {
                Some(columns) => redraw(&mut out, str::from_utf8(&text)?, columns, first)?,
                None => {
                    if !first {
                        writeln!(out)?;
                    }
                    out.write_all(&text)?;
                }
            }
        }
        first = false;
        out.flush()?;
        drop(out);
        if !status.watch {
            return Ok(outcome);
        }
        std::thread::sleep(EVERY);
    }
}

/// Over the last one, line by line: a screen that is cleared flickers, and fills what can be scrolled back to.
fn redraw(out: &mut impl Write, text: &str, columns: usize, first: bool) -> io::Result<()> {
    write!(out, "\x1b[H{}", if first { "\x1b[2J" } else { "" })?;
    for line in text.lines() {
        writeln!(out, "\x1b[K{}", quote::clipped(line, columns))?;
    }
    write!(out, "\x1b[J")
}

fn look_at_all(before: &mut Before) -> Result<(Vec<Value>, Outcome), Failure> {
    let (mut mounts, mut outcome, mut now) = (Vec::new(), Outcome::Done, Before::new());
    for (point, health, machines) in fuse::transfers().map_err(|why| format!("status: {why}"))? {
        let (health, why) = match (health, &machines) {
            (Health::Stale, _) => {
                ("stale", Some("nobody serves it: `codchifs unmount` ends it".into()))
            }
            (Health::Silent, _) => ("silent", Some(SILENT.to_owned())),
            (Health::Served, Err(why @ (Errno::ACCESS | Errno::PERM))) => {
                ("served", Some(format!("{why}: only its owner, or root, can look into it")))
            }
            (Health::Served, Err(look::NO_CODCHIFS)) => ("served", Some(NO_CODCHIFS.to_owned())),
            (Health::Served, Err(look::TOO_MUCH)) => ("served", Some(TOO_MUCH.to_owned())),
            (Health::Served, Err(why)) => ("served", Some(why.to_string())),
            (Health::Served, Ok(_)) => ("served", None),
        };
        let mut machines = machines.unwrap_or_default();
        for (name, transfers) in &mut machines {
            for transfer in transfers {
                measure(transfer, &point, name, before, &mut now);
            }
        }
        if why.is_some() {
            outcome = Outcome::Incomplete;
        }
        let machines: Vec<Value> = machines
            .into_iter()
            .map(|(name, transfers)| json!({ "name": name, "transfers": transfers }))
            .collect();
        mounts.push(json!({
            "mountpoint": quote::path(&point).to_string(), "state": health, "reason": why, "machines": machines,
        }));
    }
    *before = now;
    Ok((mounts, outcome))
}

/// What is said of a mount that answers what no codchifs does.
const NO_CODCHIFS: &str =
    "its answers make no sense: another program, or another version of codchifs, serves it";

/// What is said of a mount that has too many machines or readers, or none of the room for all mounts left.
const TOO_MUCH: &str = "it says more than can be shown: is it codchifs that serves it?";

/// What is said of a mount that does not answer.
const SILENT: &str =
    "there is no answer from who serves it: wait, or end it with `codchifs unmount --lazy`";

/// Takes the rate since the last look, if there was one.
fn measure(transfer: &mut Transfer, point: &Path, name: &str, before: &Before, now: &mut Before) {
    let Transfer { generation, pid, bytes, .. } = &*transfer;
    let key = (point.to_owned(), name.to_owned(), generation.clone(), pid.unwrap_or(0));
    let (at, bytes) = (Instant::now(), *bytes);
    if let Some((then, had)) = before.get(&key).filter(|(_, had)| *had <= bytes) {
        let seconds = at.duration_since(*then).as_secs_f64().max(0.001);
        transfer.rate = ((bytes - had) as f64 / seconds) as u64;
    }
    now.insert(key, (at, bytes));
}

fn print(out: &mut impl Write, mounts: &[Value]) -> io::Result<()> {
    let text = |value: &Value, key: &str| {
        let text = value.get(key).and_then(Value::as_str).unwrap_or("-");
        quote::message(text)
    };
    let list = |value: &Value, key: &str| {
        value.get(key).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    if mounts.is_empty() {
        writeln!(out, "nothing is mounted")?;
    }
    for mount in mounts {
        writeln!(out, "{}  {}", text(mount, "mountpoint"), text(mount, "state"))?;
        if mount.get("reason").is_some_and(Value::is_string) {
            writeln!(out, "  {}", text(mount, "reason"))?;
        }
        for machine in list(mount, "machines") {
            writeln!(out, "  {}", text(&machine, "name"))?;
            for transfer in list(&machine, "transfers") {
                let number = |key: &str| transfer.get(key).and_then(Value::as_u64).unwrap_or(0);
                let (at, total, rate) = (number("offset"), number("size"), number("rate"));
                let progress = progress::text(at, total, rate);
                writeln!(out, "    {progress}  pid {}", number("pid"))?;
                writeln!(out, "           {}", text(&transfer, "command"))?;
            }
        }
    }
    Ok(())
}
