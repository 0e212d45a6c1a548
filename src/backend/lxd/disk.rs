//! What the disk tells while a daemon is silent: the `backup.yaml` beside each instance's rootfs.

use super::super::place::Place;
use super::super::record::Instance;
use super::super::{Query, read_small};
use super::{cannot_read, first, names, views};
use crate::codchi::INSTANCE_PREFIX;
use crate::quote;
use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// An instance's directory without a record that can be used.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) place: Place,
    /// As [`Instance::writers`].
    writers: Vec<u32>,
    /// Where its backup.yaml would be.
    pub(super) at: PathBuf,
    pub(super) why: Why,
}

#[derive(Debug)]
pub(super) enum Why {
    /// There is no backup.yaml, or it cannot be read.
    Look(io::Error),
    /// It is nonsense.
    Record(String),
}

impl Fault {
    /// Whose instance it is, nobody knows; but that of another user who was root in it is not this one's.
    pub(super) fn is_of(&self, query: &Query<'_>) -> bool {
        self.place.name == query.instance
            && self.writers.iter().all(|uid| [0, query.uid].contains(uid))
    }
}

/// What the disk tells without the daemon.
#[derive(Debug, Default)]
pub(super) struct Disk {
    /// Each with when its backup.yaml was written.
    pub(super) instances: Vec<(Instance, SystemTime)>,
    pub(super) faults: Vec<Fault>,
    /// Where instances may be that are in neither list, and why.
    pub(super) unseen: Vec<String>,
}

/// Every machine's backup.yaml.
pub(super) fn read(base: &Path) -> Disk {
    let (views, mut disk) = (views(base), Disk::default());
    let mut pools = BTreeSet::new();
    for view in &views {
        let at = view.join("storage-pools");
        match names(&at) {
            Ok(found) => pools.extend(found),
            // A daemon that was never started has none.
            Err(e) if e.kind() == ErrorKind::NotFound && base.is_dir() => {}
            Err(e) => disk.unseen.push(cannot_read(&at, &e)),
        }
    }
    for pool in pools {
        let below = Path::new("storage-pools").join(&pool).join("containers");
        let (at, containers) = first(&views, &below, names);
        let containers = match containers {
            Ok(containers) => containers,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let at = quote::path(&at);
                let pool = quote::path(&pool);
                disk.unseen.push(format!("the pool {pool} is not mounted: there is no {at}"));
                continue;
            }
            Err(e) => {
                disk.unseen.push(cannot_read(&at, &e));
                continue;
            }
        };
        for place in containers.iter().filter_map(|name| Place::of_directory(&pool, name)) {
            if place.name.starts_with(INSTANCE_PREFIX) {
                disk.look(&views, &place);
            }
        }
    }
    disk
}

impl Disk {
    /// Takes one instance's record from its directory.
    fn look(&mut self, views: &[PathBuf], place: &Place) {
        let (at, read) = first(views, &place.path().join("backup.yaml"), read_small);
        // LXD and Incus give the directory to who is root in the instance while it runs. That user can put another record
        // there, but nobody else can.
        let directory = at.parent().map(Path::symlink_metadata);
        let mut writers: Vec<u32> =
            directory.and_then(Result::ok).map(|m| m.uid()).into_iter().collect();
        let read = read.and_then(|(text, meta)| {
            writers.push(meta.uid());
            Ok((text, meta.modified()?))
        });
        let read = read.map_err(Why::Look).and_then(|(text, written)| {
            let read = Instance::from_backup(&text, place);
            Ok((read.map_err(|e| Why::Record(e.to_string()))?, written))
        });
        match read {
            Ok((mut instance, written)) => {
                // As of when it was written: a machine outlives its daemon.
                instance.status.clear();
                instance.writers = writers;
                self.instances.push((instance, written));
            }
            Err(why) => self.faults.push(Fault { place: place.clone(), writers, at, why }),
        }
    }
}
