//! `codchifs manifest`: the list of what is in an export, without a mount.

use super::args::{Global, Manifest};
use super::{Context, Failure, Outcome, complain, export};
use crate::export::sum_line;
use crate::quote;
use std::io::{IsTerminal as _, Write as _};

/// Bytes of the list that are made at once.
const AT_ONCE: usize = 256 << 10;

pub(super) fn run(global: &Global, wanted: &Manifest) -> Result<Outcome, Failure> {
    let name = wanted.name.as_str();
    let failed = |why: String| -> Failure { format!("manifest {name}: {why}").into() };
    let machines = Context::new(global)?.machines(wanted.wishes.clone().into(), Vec::new())?;
    let machine = machines
        .get(name.as_bytes())
        .ok_or_else(|| failed("no such machine; `codchifs list` names them".into()))?;
    let exports = match (&machine.tree, &machine.exports) {
        (Ok(_), Some(exports)) => exports,
        (tree, _) => return Err(failed(tree.as_ref().err().cloned().unwrap_or_default())),
    };
    let generation = exports.lookup_or_why().map_err(|why| failed(why.to_string()))?;
    let manifest = generation.manifest();
    let mut out = std::io::stdout().lock();
    // For people, names are quoted; a program gets what `sha256sum --check` reads.
    let people = out.is_terminal();
    if wanted.sums {
        for member in generation.ids_from(0) {
            let digest = manifest.content(member).map_err(|why| failed(why.to_string()))?;
            if let Some(digest) = digest {
                let line = sum_line(&generation.entry(member).path, &digest);
                match people {
                    true => writeln!(out, "{}", quote::name(line.trim_ascii_end()))?,
                    false => out.write_all(&line)?,
                }
            }
        }
    } else {
        let (mut at, mut part) = (0, vec![0; AT_ONCE]);
        while at < manifest.size() && !generation.torn() {
            let count = match manifest.read_at(at, &mut part, &|| true) {
                // Said below.
                Err(_) if generation.torn() => break,
                other => other.map_err(|why| failed(why.to_string()))?,
            };
            out.write_all(part.get(..count).unwrap_or_default())?;
            at += count as u64;
        }
    }
    out.flush()?;
    if !generation.torn() {
        return Ok(Outcome::Done);
    }
    for change in generation.status().changes().lines().0 {
        complain(&format!("{name}: {}: {}", change.path, change.reason.while_exported()));
    }
    complain(&format!("manifest {name}: incomplete: {}", export::remedy(&generation)));
    Ok(Outcome::Incomplete)
}
