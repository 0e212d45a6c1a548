//! `codchifs status`: the mounts, their machines, and who reads an `export.tar`.

use super::args::Status;
use super::progress;
use super::text::{columns, write_json};
use super::{Failure, Outcome};
use crate::credentials::{User, become_owner};
use crate::fuse::{self, Health};
use crate::mountinfo;
use crate::quote;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// How long a mount may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Where the look before the last one left each reader: its mount and machine, generation, pid.
type Before = HashMap<(PathBuf, String, String, u64), (Instant, u64)>;

pub(super) fn run(status: &Status) -> Result<Outcome, Failure> {
    let (mut before, mut first) = (Before::new(), true);
    loop {
        let (mounts, outcome) = look(&mut before)?;
        let mut out = io::stdout().lock();
        if status.json {
            let all = json!({ "schema": 1, "mounts": mounts });
            write_json(&mut out, &all, !status.watch)?;
        } else {
            let mut text = Vec::new();
            print(&mut text, &mounts)?;
            match columns(&out).filter(|_| status.watch) {
                Some(columns) => redraw(&mut out, &String::from_utf8_lossy(&text), columns, first)?,
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

fn look(before: &mut Before) -> Result<(Vec<Value>, Outcome), Failure> {
    let table = mountinfo::read()?;
    let (mut mounts, mut outcome, mut now) = (Vec::new(), Outcome::Done, Before::new());
    for (point, health) in fuse::mounted().map_err(|why| format!("status: {why}"))? {
        let owner = table.iter().rfind(|m| m.mountpoint == point).and_then(|m| m.owner);
        let (health, machines) = match health {
            Health::Stale => ("stale", Err("nobody serves it: `codchifs unmount` ends it".into())),
            Health::Silent => ("silent", Err(SILENT.into())),
            Health::Served => ("served", machines(&point, owner)),
        };
        let (mut machines, why) = match machines {
            Ok(machines) => (machines, None),
            Err(why) => (Vec::new(), Some(why)),
        };
        for (name, transfers) in &mut machines {
            for transfer in transfers {
                complete(transfer, &point, name, before, &mut now);
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

/// What is said of a mount that does not answer.
const SILENT: &str =
    "there is no answer from who serves it: wait, or end it with `codchifs unmount --lazy`";

type Machines = Vec<(String, Vec<Value>)>;

/// What is to be seen in a mount by its owner, who alone gets into all of them.
fn machines(point: &Path, owner: Option<(u32, u32)>) -> Result<Machines, String> {
    let (answer, answered) = mpsc::channel();
    let point = point.to_owned();
    // It may hang, and then it does so alone.
    let look = move || {
        let root = rustix::process::geteuid().is_root();
        let owned = match owner.filter(|_| root) {
            Some((uid, gid)) => become_owner(User { uid, gid }),
            None => Ok(()),
        };
        let _ = answer.send(owned.map_err(io::Error::from).and_then(|()| read(&point)));
    };
    let started = std::thread::Builder::new().name("codchifs-look".into()).spawn(look);
    started.map_err(|why| why.to_string())?;
    match answered.recv_timeout(PATIENCE) {
        Ok(found) => found.map_err(|why| match why.kind() {
            io::ErrorKind::PermissionDenied => {
                format!("{why}: only its owner, or root, can look into it")
            }
            _ => why.to_string(),
        }),
        Err(_) => Err(SILENT.into()),
    }
}

fn read(point: &Path) -> io::Result<Machines> {
    let mut machines = Machines::new();
    for entry in fs::read_dir(point)? {
        let entry = entry?;
        // One that is gone meanwhile is no fault.
        let Ok(text) = fs::read(entry.path().join(".transfers")) else { continue };
        let mut all: Value = serde_json::from_slice(&text)?;
        let transfers = match all.get_mut("transfers").map(Value::take) {
            Some(Value::Array(transfers)) => transfers,
            _ => Vec::new(),
        };
        machines.push((entry.file_name().to_string_lossy().into_owned(), transfers));
    }
    machines.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(machines)
}

/// Adds the command, which the serving process cannot see, and the rate since the last look, if there was one.
fn complete(transfer: &mut Value, point: &Path, name: &str, before: &Before, now: &mut Before) {
    let number = |key: &str| transfer.get(key).and_then(Value::as_u64);
    let pid = number("pid");
    let bytes = number("bytes").unwrap_or(0);
    let generation = transfer.get("generation").and_then(Value::as_str).unwrap_or_default();
    let key = (point.to_owned(), name.to_owned(), generation.to_owned(), pid.unwrap_or(0));
    let at = Instant::now();
    if let Some((then, had)) = before.get(&key).filter(|(_, had)| *had <= bytes) {
        let seconds = at.duration_since(*then).as_secs_f64().max(0.001);
        if let Some(rate) = transfer.get_mut("rate") {
            *rate = json!(((bytes - had) as f64 / seconds) as u64);
        }
    }
    now.insert(key, (at, bytes));
    if let Some(fields) = transfer.as_object_mut() {
        fields.insert("command".into(), json!(pid.and_then(command)));
    }
}

/// The command line of a process, or of the one that a thread belongs to.
fn command(pid: u64) -> Option<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = line.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    let words: Vec<_> = words.map(|word| String::from_utf8_lossy(word)).collect();
    match words.is_empty() {
        true => fs::read_to_string(format!("/proc/{pid}/comm")).ok().map(|name| name.trim().into()),
        false => Some(words.join(" ")),
    }
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
