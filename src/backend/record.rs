//! What LXD and Incus record of an instance: the same object in their API and in `backup.yaml` beside the rootfs.

use super::place::{DEFAULT, Place, is_name};
use super::yaml::{self, YamlError};
use super::{Power, Query};
use crate::idmap::{IdMap, IdMapError};
use crate::quote::quotation;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::{Component, Path, PathBuf};

/// Where Codchi mounts the home.
const HOME: &str = "/home/codchi";
/// The key of the rootfs's map.
pub(super) const LAST_STATE: &str = "volatile.last_state.idmap";

/// How a machine's ids are shifted on the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMaps {
    /// `volatile.last_state.idmap`; `None`: not shifted.
    pub rootfs: Option<IdMap>,
    /// Of the home, which is a directory of the host.
    pub home: HomeIds,
}

/// Whose ids the files of a home have on the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HomeIds {
    /// Nothing is recorded.
    #[default]
    Unrecorded,
    /// The machine's: it is privileged.
    Same,
    /// The host's, by the map that the machine runs with; or the machine's, as far as the map goes, where the home is
    /// mounted with `shift=true`.
    Mapped(IdMap),
}

impl HomeIds {
    /// The map, where there is one.
    pub fn map(&self) -> Option<&IdMap> {
        match self {
            Self::Mapped(map) => Some(map),
            Self::Same | Self::Unrecorded => None,
        }
    }
}

/// What an instance has at `/home/codchi`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// No disk of its own.
    None,
    /// A directory of the host.
    Directory(PathBuf),
    /// A volume of a storage pool.
    Volume { pool: String, volume: String },
}

/// A disk device of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Where the instance sees it.
    pub path: String,
    /// What it is on the host.
    pub source: String,
}

/// An instance as its daemon recorded it. Strings are the user's: nothing of them is a path until it is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Instance {
    pub(super) name: String,
    pub(super) project: String,
    /// That of its root disk, as recorded.
    pool: Option<String>,
    /// Where it lies; `None` where a daemon names no pool, or one that is no directory's name.
    pub(super) place: Option<Place>,
    /// What in the record contradicts the directory that it lies in, or itself: it then opens nothing.
    pub(super) contradiction: Option<String>,
    /// Host uids that can have written the record: owners of the file and of its directory. A daemon's answer has none.
    pub(super) writers: Vec<u32>,
    /// `Running`, `Stopped` …; as of when the record was made.
    pub(super) status: String,
    /// The pool's driver, where the record says it (backup.yaml).
    pub(super) pool_driver: Option<String>,
    raw_idmap: String,
    maps: Result<IdMaps, MapError>,
    /// Whether the map of the rootfs is recorded, if only as `[]`.
    mapped: bool,
    pub(super) home: Home,
    pub(super) disks: Vec<Device>,
    /// The member of a cluster that has its files.
    pub(super) member: Option<String>,
    /// Neither configuration nor devices are in the record: a daemon lists an instance so that it cannot load, or that is on
    /// a member of the cluster that does not answer.
    pub(super) says_nothing: bool,
}

/// A map in a record is unusable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {source}")]
pub(super) struct MapError {
    /// The configuration key.
    pub key: &'static str,
    /// What is wrong with it.
    pub source: IdMapError,
}

/// Why a record cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecordError {
    /// Not YAML that a daemon writes.
    #[error("{0}")]
    Yaml(#[from] YamlError),
    /// No instance in it.
    #[error("it has neither `container` nor `instance`")]
    NoInstance,
    /// An instance without a name.
    #[error("an instance without a name")]
    NoName,
    /// A name that no instance can have.
    #[error("an instance or project with an impossible name")]
    Name,
}

/// What a record claims of its own place: the claim, and what the directory says instead.
struct Claims<'a> {
    place: &'a Place,
    wrong: Option<String>,
}

impl Claims<'_> {
    /// Old records lack some of these.
    fn expect(&mut self, what: &str, claimed: Option<&Value>, is: &str) {
        let claimed = match claimed {
            None | Some(Value::Null) => return,
            Some(Value::String(claimed)) if claimed == is => return,
            Some(claimed) => claimed,
        };
        let claimed = claimed.as_str().map_or("no text".into(), quotation);
        self.wrong.get_or_insert_with(|| {
            format!("it lies where {} is, but says that its {what} is {claimed}", self.place)
        });
    }

    /// Version 1 has one pool and volume, version 2 (LXD 6) a list of each, with further volumes that the instance uses.
    fn expect_storage(&mut self, document: &Value) {
        let Place { pool, project, name } = self.place;
        self.expect("pool", document.pointer("/pool/name"), pool);
        let list = |key: &str| document.get(key).and_then(Value::as_array).into_iter().flatten();
        let mut pools = list("pools").map(|pool| pool.get("name")).peekable();
        if let Some(first) = pools.peek().copied()
            && !pools.any(|one| one.and_then(Value::as_str) == Some(pool))
        {
            self.expect("pool", Some(first.unwrap_or(&Value::Bool(false))), pool);
        }
        for volume in document.get("volume").into_iter().chain(list("volumes")) {
            if volume.get("type").is_some_and(|kind| kind == "custom") {
                continue;
            }
            self.expect("volume", volume.get("name"), name);
            self.expect("volume's project", volume.get("project"), project);
            self.expect("volume's pool", volume.get("pool"), pool);
        }
    }
}

impl Instance {
    /// Reads the text of a backup.yaml. Which instance it is of, its place says.
    pub(super) fn from_backup(text: &str, place: &Place) -> Result<Self, RecordError> {
        let document = yaml::read(text)?;
        let [container, instance] = objects(&document);
        let object = container.or(instance).ok_or(RecordError::NoInstance)?;
        let mut claims = Claims { place, wrong: None };
        claims.expect("name", object.get("name"), &place.name);
        claims.expect("project", object.get("project"), &place.project);
        claims.expect("type", object.get("type"), "container");
        claims.expect_storage(&document);
        let mut read = Self::read(object, place.name.clone(), place.project.clone())?;
        claims.expect(
            "root disk's pool",
            read.pool.as_deref().map(Value::from).as_ref(),
            &place.pool,
        );
        read.contradiction = claims.wrong.or(read.contradiction);
        if container.is_some() && instance.is_some() && container != instance {
            let twice = "it has both `container` and `instance`, which differ";
            read.contradiction.get_or_insert_with(|| twice.into());
        }
        read.place = Some(place.clone());
        read.pool_driver = pool_driver(&document, &place.pool);
        Ok(read)
    }

    /// Reads the text of a backup.yaml that somebody has put beside a copy of a machine: what it says of its place is of no
    /// interest.
    pub(super) fn of_copy(text: &str) -> Result<Self, RecordError> {
        let document = yaml::read(text)?;
        let [container, instance] = objects(&document);
        let object = container.or(instance).ok_or(RecordError::NoInstance)?;
        Self::read(object, String::new(), String::new())
    }

    /// Reads an instance as `GET /1.0/instances?recursion=1` lists it.
    /// Servers that do not list all projects at once are asked for each `project`, and then do not say it.
    pub(super) fn from_record(record: &Value, project: Option<&str>) -> Result<Self, RecordError> {
        let text = |key: &str| record.get(key).and_then(Value::as_str);
        let name = text("name").ok_or(RecordError::NoName)?;
        let project = text("project").or(project).unwrap_or(DEFAULT);
        // Whatever the pool is.
        Place::new("pool", project, name).ok_or(RecordError::Name)?;
        Self::read(record, name.into(), project.into())
    }

    fn read(record: &Value, name: String, project: String) -> Result<Self, RecordError> {
        let text =
            |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let empty = Value::Object(Map::new());
        let section = |name: &str| {
            let expanded = record.get(format!("expanded_{name}")).filter(|v| v.is_object());
            expanded.or_else(|| record.get(name)).unwrap_or(&empty)
        };
        let (config, devices) = (section("config"), section("devices"));
        let disks: Vec<&Value> = devices
            .as_object()
            .into_iter()
            .flat_map(Map::values)
            .filter(|d| d.get("type").and_then(Value::as_str) == Some("disk"))
            .collect();
        // LXD takes the device with exactly this path and no source for the root disk.
        let root = disks.iter().find(|d| {
            d.get("path").and_then(Value::as_str) == Some("/")
                && d.get("source").and_then(Value::as_str).unwrap_or_default().is_empty()
        });
        let pool = root.and_then(|d| text(d, "pool"));
        let (home, shifting, twice) = home(&disks);
        let maps = maps(config, shifting);
        let member = text(record, "location").filter(|m| m != "none" && is_name(m));
        Ok(Self {
            place: pool.as_ref().and_then(|pool| Place::new(pool, &project, &name)),
            pool,
            contradiction: contradiction(record).or(twice),
            writers: Vec::new(),
            name,
            project,
            status: text(record, "status").unwrap_or_default(),
            pool_driver: None,
            raw_idmap: text(config, "raw.idmap").unwrap_or_default(),
            maps,
            mapped: text(config, LAST_STATE).is_some_and(|map| !map.is_empty()),
            home,
            disks: disks
                .iter()
                .filter_map(|d| {
                    Some(Device {
                        path: inside(&text(d, "path")?),
                        source: text(d, "source").unwrap_or_default(),
                    })
                })
                .collect(),
            member,
            says_nothing: [config, devices].iter().all(|s| s.as_object().is_none_or(Map::is_empty)),
        })
    }

    /// Whether it runs, by what may change files. A frozen instance may go on at any moment, and holds in memory what is not
    /// in its files. `None` where the daemon cannot tell, or nobody asked it.
    pub(super) fn power(&self) -> Option<Power> {
        match self.status.as_str() {
            "Stopped" => Some(Power::Stopped),
            "Running" | "Ready" | "Started" | "Starting" | "Stopping" | "Aborting" | "Freezing"
            | "Frozen" | "Thawed" => Some(Power::Running),
            _ => None,
        }
    }

    /// Whether the record proves that the machine is `uid`'s: that user is root in it (`raw.idmap`), and its home lies
    /// in the user's `data_dir`. Anybody may write a config.json with somebody else's machine name. Nobody but root can
    /// write a record that says it of another user.
    pub(super) fn belongs_to(&self, query: &Query<'_>) -> bool {
        let uid = query.uid;
        self.writers.iter().all(|writer| [0, uid].contains(writer))
            && maps_to_root(&self.raw_idmap, uid)
            && match &self.home {
                Home::Directory(home) => is_below(home, query),
                Home::None | Home::Volume { .. } => true,
            }
    }

    /// Whether the map of the rootfs is recorded.
    pub(super) fn is_mapped(&self) -> bool {
        self.mapped
    }

    /// How its ids are shifted; an error says why nobody knows. A daemon always records the map of the rootfs: where there
    /// is none, the record was cut off.
    pub(super) fn maps(&self) -> Result<IdMaps, String> {
        if let Some(why) = &self.contradiction {
            return Err(why.clone());
        }
        if !self.mapped {
            return Err(format!("it has no {LAST_STATE}: nobody knows who owns its files"));
        }
        self.maps.clone().map_err(|e| e.to_string())
    }
}

/// LXD 6 says `instance`, all others `container`.
fn objects(document: &Value) -> [Option<&Value>; 2] {
    ["container", "instance"].map(|key| document.get(key).filter(|object| !object.is_null()))
}

/// The keys that decide whose an instance is and which owners its files have.
const DECISIVE: [&str; 5] = [
    "raw.idmap",
    "security.privileged",
    LAST_STATE,
    "volatile.idmap.current",
    "volatile.idmap.next",
];

/// An instance's own settings prevail over those of its profiles. So where a daemon has both, they are the same.
fn contradiction(record: &Value) -> Option<String> {
    let differs = |section: &str, key: &str| {
        let own = record.get(section)?.get(key)?;
        let expanded = record.get(format!("expanded_{section}"))?.get(key)?;
        (own != expanded)
            .then(|| format!("its {section} and expanded_{section} differ in {}", quotation(key)))
    };
    let devices = record.get("devices").and_then(Value::as_object).into_iter().flat_map(Map::keys);
    DECISIVE
        .into_iter()
        .find_map(|key| differs("config", key))
        .or_else(|| devices.into_iter().find_map(|name| differs("devices", name)))
}

fn pool_driver(document: &Value, pool: &str) -> Option<String> {
    let pools = document.get("pools").and_then(Value::as_array).into_iter().flatten();
    let mut all = document.get("pool").into_iter().chain(pools);
    let one = all.find(|one| one.get("name").and_then(Value::as_str) == Some(pool))?;
    one.get("driver").and_then(Value::as_str).map(str::to_owned)
}

/// `raw.idmap` has lines `uid|gid|both HOST INSIDE`, each a number or a range (LXD's doc/userns-idmap.md). Where several
/// lines make somebody root, nobody knows which one counts.
fn maps_to_root(raw_idmap: &str, uid: u32) -> bool {
    let mut roots = raw_idmap.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (kind, host, inside) = (words.next(), words.next(), words.next());
        let start = |word: Option<&str>| word?.split('-').next()?.parse::<u32>().ok();
        let to_root = matches!(kind, Some("uid" | "both")) && start(inside) == Some(0);
        to_root.then(|| start(host))
    });
    roots.next() == Some(Some(uid)) && roots.all(|root| root == Some(uid))
}

/// `shifting`: the home is mounted with `shift=true`.
fn maps(config: &Value, shifting: bool) -> Result<IdMaps, MapError> {
    let map = |key: &'static str| match config.get(key).and_then(Value::as_str) {
        None | Some("") => Ok(None),
        Some(text) => IdMap::parse(text).map(Some).map_err(|source| MapError { key, source }),
    };
    let rootfs = map(LAST_STATE)?.flatten();
    // As LXD does: without a current map it runs with the last one, and one that never ran gets the next.
    let recorded = match map("volatile.idmap.current")? {
        Some(current) => Some(current),
        None if rootfs.is_some() => Some(rootfs.clone()),
        None => map("volatile.idmap.next")?,
    };
    let home = match recorded {
        Some(Some(map)) if shifting => HomeIds::Mapped(map.of_inside()),
        Some(Some(map)) => HomeIds::Mapped(map),
        Some(None) => HomeIds::Same,
        None if is_true(config.get("security.privileged")) || shifting => HomeIds::Same,
        None => HomeIds::Unrecorded,
    };
    Ok(IdMaps { rootfs, home })
}

/// The values that LXD takes for true.
fn is_true(value: Option<&Value>) -> bool {
    let text = match value {
        Some(Value::Bool(yes)) => return *yes,
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::String(text)) => text.to_ascii_lowercase(),
        _ => return false,
    };
    matches!(text.as_str(), "true" | "1" | "yes" | "on")
}

/// A path in the instance without the spellings that the kernel takes for the same.
fn inside(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    format!("/{}", names.join("/"))
}

/// What is at `/home/codchi`: the device there, else what the lowest one above it has there; whether it is mounted with
/// shifted ids; and an error where two are there, of which nobody knows which is on top.
fn home(disks: &[&Value]) -> (Home, bool, Option<String>) {
    let text = |d: &Value, key: &str| d.get(key).and_then(Value::as_str).map(str::to_owned);
    let mut over: Vec<(String, &Value)> = disks
        .iter()
        .filter_map(|d| Some((inside(&text(d, "path")?), *d)))
        .filter(|(at, _)| at != "/" && Path::new(HOME).starts_with(at))
        .collect();
    over.sort_by_key(|(at, _)| at.len());
    let Some((at, device)) = over.pop() else { return (Home::None, false, None) };
    let twice = over.last().is_some_and(|(other, _)| *other == at);
    let twice = twice.then(|| format!("it has more than one disk at {at}"));
    let below = Path::new(HOME).strip_prefix(&at).unwrap_or(Path::new(""));
    let source = text(device, "source").unwrap_or_default();
    let home = match text(device, "pool").filter(|pool| !pool.is_empty()) {
        Some(pool) => Home::Volume { pool, volume: source },
        // A join with nothing would end in a slash.
        None if below.as_os_str().is_empty() => Home::Directory(source.into()),
        None => Home::Directory(Path::new(&source).join(below)),
    };
    (home, is_true(device.get("shift")), twice)
}

/// Whether a home lies in the user's data directory: by its path, or, as either may be recorded through a link, by where the
/// user gets on it.
fn is_below(home: &Path, query: &Query<'_>) -> bool {
    let mut parts = home.components();
    let plain = parts.next() == Some(Component::RootDir)
        && parts.all(|c| matches!(c, Component::Normal(_)));
    let resolved = |home: &Path| {
        let parent = (query.resolve)(home.parent()?)?;
        Some(parent.starts_with((query.resolve)(query.data_dir)?))
    };
    plain && (home.starts_with(query.data_dir) || resolved(home) == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup(text: &str) -> Result<Instance, RecordError> {
        Instance::from_backup(text, &Place::new("default", "default", "x").unwrap())
    }

    fn query(data_dir: &Path) -> Query<'_> {
        Query { instance: "codchi-dev", uid: 1000, data_dir, resolve: &|_| None }
    }

    fn entry(host: u32) -> String {
        format!(r#"[{{"Isuid":true,"Isgid":true,"Hostid":{host},"Nsid":0,"Maprange":9}}]"#)
    }

    #[test]
    fn takes_each_map_from_its_own_key() {
        let text = |last: &str, current: &str, next: &str| {
            format!(
                "container:\n  name: x\n  config:\n    volatile.last_state.idmap: '{last}'\n    volatile.idmap.current: '{current}'\n    volatile.idmap.next: '{next}'\n"
            )
        };
        let maps = |text: &str| backup(text).unwrap().maps().unwrap();
        let all = maps(&text(&entry(10), &entry(20), &entry(30)));
        assert_eq!(all.rootfs.unwrap().uid(11), Some(1));
        assert_eq!(all.home.map().unwrap().uid(22), Some(2));
        let never_started = maps(&text("[]", "", &entry(30)));
        assert_eq!(never_started.rootfs, None);
        assert_eq!(never_started.home.map().unwrap().uid(30), Some(0));
        let cut = backup("instance: {name: x, config: {}}").unwrap().maps();
        assert!(cut.unwrap_err().starts_with("it has no volatile.last_state.idmap"));
    }

    #[test]
    fn refuses_what_is_no_record() {
        for (text, why) in [
            ("", RecordError::NoInstance),
            ("- 1", RecordError::NoInstance),
            ("instance: null", RecordError::NoInstance),
        ] {
            assert_eq!(backup(text), Err(why), "{text:?}");
        }
        assert!(matches!(backup("a: ["), Err(RecordError::Yaml(_))));
        let bad = backup("container: {name: x, config: {volatile.last_state.idmap: '{'}}").unwrap();
        assert_eq!(
            bad.maps().unwrap_err(),
            "volatile.last_state.idmap: the id map is not a JSON list of ranges (line 1, column 0)"
        );
    }

    #[test]
    fn a_machine_is_whose_uid_is_its_root() {
        let of = |idmap: &str, source: &str| {
            let record = serde_json::json!({
                "name": "codchi-dev", "config": {"raw.idmap": idmap},
                "devices": {"h": {"type": "disk", "path": "/home/codchi", "source": source}},
            });
            Instance::from_record(&record, None).unwrap()
        };
        let data = Path::new("/home/a/.local/share/codchi");
        let home = "/home/a/.local/share/codchi/machine/dev";
        for (idmap, source, yes) in [
            ("uid 1000 0\ngid 1000 0", home, true),
            ("both 1000 0", home, true),
            ("both 1000-1001 0-1", home, true),
            ("gid 1000 0", home, false),
            ("uid 1001 0", home, false),
            ("uid 1000 0\nuid 1001 0", home, false),
            ("uid 1001 0\nboth 1000 0", home, false),
            ("uid 999-1001 0-2", home, false),
            ("uid 1000 0\ngid 1001 0\nuid 1001 1001", home, true),
            ("uid 1000 1000", home, false),
            ("", home, false),
            ("uid 1000 0", "/home/b/.local/share/codchi/machine/dev", false),
            ("uid 1000 0", "/home/a/.local/share/codchi/../../../../b/x", false),
            ("uid 1000 0", "/home/a/.local/share/codchi-other/dev", false),
        ] {
            assert_eq!(of(idmap, source).belongs_to(&query(data)), yes, "{idmap:?} {source}");
        }
    }
}
