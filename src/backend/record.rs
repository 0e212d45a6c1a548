//! What LXD and Incus record of an instance: the same object in their API and in `backup.yaml` beside the rootfs.

use super::yaml::{self, YamlError};
use crate::idmap::{IdMap, IdMapError};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::{Component, Path, PathBuf};

/// Where Codchi mounts the home.
const HOME: &str = "/home/codchi";
/// The key of the rootfs's map.
const LAST_STATE: &str = "volatile.last_state.idmap";

/// How a machine's ids are shifted on the disk. `None`: not shifted, or nothing is recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMaps {
    /// `volatile.last_state.idmap`: that of the rootfs.
    pub rootfs: Option<IdMap>,
    /// `volatile.idmap.current`, else `.next`: that of the home, which is always stored shifted.
    pub home: Option<IdMap>,
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
    /// `Running`, `Stopped` …; as of when the record was made.
    pub(super) status: String,
    pub(super) pool: Option<String>,
    /// The pool's driver, where the record says it (backup.yaml).
    pub(super) pool_driver: Option<String>,
    raw_idmap: String,
    maps: Result<IdMaps, MapError>,
    /// Whether the map of the rootfs is recorded, if only as `[]`.
    mapped: bool,
    pub(super) home: Option<PathBuf>,
    pub(super) disks: Vec<Device>,
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
}

impl Instance {
    /// Reads the text of a backup.yaml.
    pub(super) fn from_backup(text: &str) -> Result<Self, RecordError> {
        let document = yaml::read(text)?;
        let object = document.get("container").or_else(|| document.get("instance"));
        let mut instance = Self::from_record(object.ok_or(RecordError::NoInstance)?)?;
        instance.pool_driver =
            document.pointer("/pool/driver").and_then(Value::as_str).map(str::to_owned);
        Ok(instance)
    }

    /// Reads an instance as `GET /1.0/instances?recursion=1` lists it.
    pub(super) fn from_record(record: &Value) -> Result<Self, RecordError> {
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
        let at = |path: &str| {
            disks.iter().find(|d| {
                let have = d.get("path").and_then(Value::as_str).unwrap_or_default();
                have == path || have.strip_suffix('/') == Some(path)
            })
        };
        Ok(Self {
            name: text(record, "name").ok_or(RecordError::NoName)?,
            project: text(record, "project").unwrap_or_else(|| "default".into()),
            status: text(record, "status").unwrap_or_default(),
            pool: at("/").and_then(|d| text(d, "pool")),
            pool_driver: None,
            raw_idmap: text(config, "raw.idmap").unwrap_or_default(),
            maps: maps(config),
            mapped: text(config, LAST_STATE).is_some_and(|map| !map.is_empty()),
            home: at(HOME).and_then(|d| text(d, "source")).map(PathBuf::from),
            disks: disks
                .iter()
                .filter_map(|d| {
                    Some(Device {
                        path: text(d, "path")?,
                        source: text(d, "source").unwrap_or_default(),
                    })
                })
                .collect(),
        })
    }

    /// Whether the record proves that the machine is `uid`'s: that user is root in it (`raw.idmap`), and its home lies
    /// in the user's `data_dir`. Anybody may write a config.json with somebody else's machine name.
    pub(super) fn belongs_to(&self, uid: u32, data_dir: &Path) -> bool {
        let plain = |p: &Path| {
            p.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)))
        };
        maps_to_root(&self.raw_idmap, uid)
            && self.home.as_ref().is_none_or(|home| plain(home) && home.starts_with(data_dir))
    }

    /// How its ids are shifted; an error says why nobody knows. A daemon always records the map of the rootfs: where there
    /// is none, the record was cut off.
    pub(super) fn maps(&self) -> Result<IdMaps, String> {
        if !self.mapped {
            return Err(format!("it has no {LAST_STATE}: nobody knows who owns its files"));
        }
        self.maps.clone().map_err(|e| e.to_string())
    }

    /// Directory of the instance in its pool; `None` where the record's names are no names.
    pub(super) fn directory(&self) -> Option<(String, String)> {
        let name = |s: &str| !s.is_empty() && s != "." && s != ".." && !s.contains(['/', '\0']);
        let pool = self.pool.clone()?;
        let directory = match self.project.as_str() {
            "default" => self.name.clone(),
            project => format!("{project}_{}", self.name),
        };
        (name(&pool) && name(&directory)).then_some((pool, directory))
    }
}

/// `raw.idmap` has lines `uid|gid|both HOST INSIDE`, each a number or a range (LXD's doc/userns-idmap.md).
fn maps_to_root(raw_idmap: &str, uid: u32) -> bool {
    raw_idmap.lines().any(|line| {
        let mut words = line.split_whitespace();
        let (kind, host, inside) = (words.next(), words.next(), words.next());
        let start = |word: Option<&str>| word?.split('-').next()?.parse::<u32>().ok();
        matches!(kind, Some("uid" | "both")) && start(host) == Some(uid) && start(inside) == Some(0)
    })
}

fn maps(config: &Value) -> Result<IdMaps, MapError> {
    let map = |key: &'static str| match config.get(key).and_then(Value::as_str) {
        None | Some("") => Ok(None),
        Some(text) => IdMap::parse(text).map_err(|source| MapError { key, source }),
    };
    let current = map("volatile.idmap.current")?;
    Ok(IdMaps {
        rootfs: map(LAST_STATE)?,
        home: if current.is_some() { current } else { map("volatile.idmap.next")? },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let maps = |text: &str| Instance::from_backup(text).unwrap().maps().unwrap();
        let all = maps(&text(&entry(10), &entry(20), &entry(30)));
        assert_eq!(all.rootfs.unwrap().uid(11), Some(1));
        assert_eq!(all.home.unwrap().uid(22), Some(2));
        let never_started = maps(&text("[]", "", &entry(30)));
        assert_eq!(never_started.rootfs, None);
        assert_eq!(never_started.home.unwrap().uid(30), Some(0));
        let cut = Instance::from_backup("instance: {name: x, config: {}}").unwrap().maps();
        assert!(cut.unwrap_err().starts_with("it has no volatile.last_state.idmap"));
    }

    #[test]
    fn refuses_what_is_no_record() {
        for (text, why) in [
            ("", RecordError::NoInstance),
            ("- 1", RecordError::NoInstance),
            ("instance: {}", RecordError::NoName),
        ] {
            assert_eq!(Instance::from_backup(text), Err(why), "{text:?}");
        }
        assert!(matches!(Instance::from_backup("a: ["), Err(RecordError::Yaml(_))));
        let bad =
            Instance::from_backup("container: {name: x, config: {volatile.last_state.idmap: '{'}}")
                .unwrap();
        assert_eq!(
            bad.maps().unwrap_err(),
            "volatile.last_state.idmap: the id map is not a JSON list of ranges (line 1, column 0)"
        );
    }

    #[test]
    fn a_machine_is_whose_uid_is_its_root() {
        let of = |idmap: &str, source: &str| {
            Instance::from_record(&serde_json::json!({
                "name": "codchi-dev", "config": {"raw.idmap": idmap},
                "devices": {"h": {"type": "disk", "path": "/home/codchi", "source": source}},
            }))
            .unwrap()
        };
        let data = Path::new("/home/a/.local/share/codchi");
        let home = "/home/a/.local/share/codchi/machine/dev";
        for (idmap, source, yes) in [
            ("uid 1000 0\ngid 1000 0", home, true),
            ("both 1000 0", home, true),
            ("both 1000-1001 0-1", home, true),
            ("gid 1000 0", home, false),
            ("uid 1001 0", home, false),
            ("uid 1000 1000", home, false),
            ("", home, false),
            ("uid 1000 0", "/home/b/.local/share/codchi/machine/dev", false),
            ("uid 1000 0", "/home/a/.local/share/codchi/../../../../b/x", false),
            ("uid 1000 0", "/home/a/.local/share/codchi-other/dev", false),
        ] {
            assert_eq!(of(idmap, source).belongs_to(1000, data), yes, "{idmap:?} {source}");
        }
    }

    #[test]
    fn names_that_are_paths_make_no_directory() {
        let of = |pool: &str, project: &str, name: &str| {
            let record = serde_json::json!({
                "name": name, "project": project,
                "expanded_devices": {"root": {"type": "disk", "path": "/", "pool": pool}},
            });
            Instance::from_record(&record).unwrap().directory()
        };
        assert_eq!(of("p", "default", "codchi-x"), Some(("p".into(), "codchi-x".into())));
        assert_eq!(of("p", "work", "codchi-x"), Some(("p".into(), "work_codchi-x".into())));
        for (pool, project, name) in [
            ("..", "default", "x"),
            ("a/b", "default", "x"),
            ("p", "a/..", "x"),
            ("p", "default", ".."),
        ] {
            assert_eq!(of(pool, project, name), None);
        }
    }
}
