//! A machine's directories, found and opened: by this process, or by the one that has the rights for it.
//!
//! A mount made by root is served by a process that can open next to nothing (`sandbox`): the [`Host`], which stays root,
//! finds and opens for it, and its [`Client`] is told by name which machine is meant, and nothing else. So whose a machine
//! is, is decided on the host's side alone.

mod channel;
mod client;
mod direct;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod host;
mod wire;

pub use client::Client;
pub use direct::{Direct, Vouched};
pub use host::{Host, is_killed};
pub use wire::{Control, Greeted, Greeting, receive_greeting, send_greeting};

use crate::backend::{Facts, LocateError, Location, bytes};
use crate::codchi::MachineName;
use crate::tree::Root;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;

/// Where a machine is, and which directories that are at the moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Located {
    /// What the daemon, or whoever keeps it, says.
    pub location: Location,
    /// The home that the instance has, else where Codchi puts it.
    #[serde(with = "bytes")]
    pub home: PathBuf,
    /// The rootfs and the home: a machine that was deleted and made again is another one.
    roots: [Option<Found>; 2],
}

/// Index of the rootfs among a machine's directories.
const ROOTFS: usize = 0;
/// Index of the home.
const HOME: usize = 1;

impl Located {
    /// What others have mounted something over, below one of the two.
    fn covered(&self, root: usize) -> Vec<PathBuf> {
        self.roots
            .get(root)
            .and_then(Option::as_ref)
            .map_or_else(Vec::new, |found| found.covered.clone())
    }
}

/// A directory as it is found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Found {
    /// Device and inode number.
    identity: (u32, u32, u64),
    /// What others have mounted something over.
    #[serde(with = "bytes::list")]
    covered: Vec<PathBuf>,
}

/// A machine's directories, opened.
#[derive(Debug)]
pub struct Roots {
    /// The container's root directory.
    pub rootfs: Root,
    /// What is `/home/codchi` in it.
    pub home: Root,
}

/// Who finds and opens.
#[derive(Debug)]
pub enum Opener {
    /// This process.
    Direct(Direct),
    /// The host that started it.
    Asked(Arc<Client>),
}

impl Opener {
    /// Finds a machine. Waits for a daemon at most once, and then not longer than a few seconds.
    pub fn locate(&self, name: &MachineName) -> (Result<Located, LocateError>, Facts) {
        match self {
            Self::Direct(direct) => direct.locate(name),
            Self::Asked(client) => client.locate(name),
        }
    }

    /// Opens a machine's directories. The error is a text for people.
    pub fn open(&self, name: &MachineName, located: &Located) -> Result<Roots, String> {
        match self {
            Self::Direct(direct) => direct.open(located),
            Self::Asked(client) => client.open(name, located),
        }
    }
}
