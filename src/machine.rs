//! Every machine of one user: Codchi's state joined with where its files are.

use crate::export::Exports;
use crate::tree::Tree;
use std::sync::Arc;

/// One code machine, as found at the last look.
#[derive(Debug)]
pub struct Machine {
    /// Its name, valid as a path component.
    pub name: Arc<str>,
    /// The exported tree, or why there is none (broken, not installed): a text for people.
    pub tree: Result<Arc<Tree>, String>,
    /// Its generations of `export.tar`. `None` exactly where `tree` is an error.
    pub exports: Option<Arc<Exports>>,
}

/// Finds machines live.
#[derive(Debug)]
pub struct Machines {}

impl Machines {
    /// Names of all machines, sorted. Reads Codchi's config directory; never scans.
    pub fn names(&self) -> Vec<Arc<str>> {
        todo!()
    }
    /// The machine of that name, re-read when its state changed (looked at most once a second), else the same `Arc`.
    pub fn get(&self, _name: &[u8]) -> Option<Arc<Machine>> {
        todo!()
    }
}

impl Machine {
    /// The bytes of `report.json`, made now. Never scans.
    pub fn report(&self) -> Vec<u8> {
        todo!()
    }
}
