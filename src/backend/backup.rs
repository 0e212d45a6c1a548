//! `backup.yaml`, where LXD and Incus leave an instance's configuration beside its rootfs.

use crate::idmap::{IdMap, IdMapError};
use yaml_rust2::{Yaml, YamlLoader};

/// How a machine's ids are shifted on the disk. `None`: not shifted, or nothing is recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMaps {
    /// `volatile.last_state.idmap`: that of the rootfs.
    pub rootfs: Option<IdMap>,
    /// `volatile.idmap.current`, else `.next`: that of the home, which is always stored shifted.
    pub home: Option<IdMap>,
}

/// Why a backup.yaml cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Not YAML.
    #[error("not YAML (line {line})")]
    Yaml {
        /// Line of the text, from 1.
        line: usize,
    },
    /// No instance in it.
    #[error("it has neither `container` nor `instance`")]
    NoInstance,
    /// A map in it is unusable.
    #[error("{key}: {source}")]
    Map {
        /// The configuration key.
        key: &'static str,
        /// What is wrong with it.
        source: IdMapError,
    },
}

impl IdMaps {
    /// Reads the text of a backup.yaml.
    pub fn parse(text: &str) -> Result<Self, BackupError> {
        let documents = YamlLoader::load_from_str(text)
            .map_err(|e| BackupError::Yaml { line: e.marker().line() })?;
        let document = documents.first().ok_or(BackupError::NoInstance)?;
        let field = |yaml: &Yaml, key: &str| {
            yaml.as_hash().and_then(|h| h.get(&Yaml::String(key.into())).cloned())
        };
        let instance = field(document, "container")
            .or_else(|| field(document, "instance"))
            .ok_or(BackupError::NoInstance)?;
        let config = field(&instance, "config");
        let map = |key: &'static str| {
            let text = config.as_ref().and_then(|c| field(c, key));
            match text.as_ref().and_then(Yaml::as_str).filter(|text| !text.is_empty()) {
                Some(text) => IdMap::parse(text).map_err(|source| BackupError::Map { key, source }),
                None => Ok(None),
            }
        };
        let current = map("volatile.idmap.current")?;
        Ok(Self {
            rootfs: map("volatile.last_state.idmap")?,
            home: match current {
                Some(current) => Some(current),
                None => map("volatile.idmap.next")?,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_each_map_from_its_own_key() {
        let entry = |host| {
            format!(r#"[{{"Isuid":true,"Isgid":true,"Hostid":{host},"Nsid":0,"Maprange":9}}]"#)
        };
        let text = |last: &str, current: &str, next: &str| {
            format!(
                "container:\n  config:\n    volatile.last_state.idmap: '{last}'\n    volatile.idmap.current: '{current}'\n    volatile.idmap.next: '{next}'\n"
            )
        };
        let maps = IdMaps::parse(&text(&entry(10), &entry(20), &entry(30))).unwrap();
        assert_eq!(maps.rootfs.unwrap().uid(11), Some(1));
        assert_eq!(maps.home.unwrap().uid(22), Some(2));
        let maps = IdMaps::parse(&text("[]", "", &entry(30))).unwrap();
        assert_eq!(maps.rootfs, None);
        assert_eq!(maps.home.unwrap().uid(30), Some(0));
        assert_eq!(IdMaps::parse("instance: {config: {}}").unwrap(), IdMaps::default());
    }

    #[test]
    fn refuses_what_would_guess_owners() {
        for (text, says) in [
            ("", "it has neither `container` nor `instance`"),
            ("- 1", "it has neither `container` nor `instance`"),
            (
                "container: {config: {volatile.last_state.idmap: '{'}}",
                "volatile.last_state.idmap: the id map is not a JSON list of ranges (line 1, column 1)",
            ),
            ("a: [", "not YAML (line 2)"),
        ] {
            let said = IdMaps::parse(text).unwrap_err().to_string();
            assert!(said.starts_with(says.split(" (line").next().unwrap()), "{text:?}: {said}");
        }
    }
}
