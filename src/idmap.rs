//! Ids of the host and ids inside a machine, and the map between them.
//!
//! LXD and Incus shift a container's ids by ranges (`volatile.last_state.idmap` and friends, a JSON list of
//! `{"Isuid":true,"Isgid":false,"Hostid":1000,"Nsid":0,"Maprange":1}`). Everything the export shows carries the
//! machine's own ids, so each id read from the disk passes through here exactly once.

use serde::{Deserialize, Serialize};

/// What an id outside the map is shown as (the kernel's overflow id, `/proc/sys/kernel/overflowuid`).
pub const NOBODY: u32 = 65534;

/// Bytes of a map's text that are parsed at most. The kernel takes 340 ranges for users and as many for groups, and a
/// range is some 80 bytes; anybody who may configure one instance can record a million, which all others would wait for.
const MOST_TEXT: usize = 256 << 10;

/// One range of the map: `count` ids from `host` on the host are `inside` and up in the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Range {
    host: u32,
    inside: u32,
    count: u32,
}

/// A map from host ids to machine ids, for users and groups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    uids: Vec<Range>,
    gids: Vec<Range>,
}

/// Why an id map cannot be used.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdMapError {
    /// Not the JSON that LXD and Incus write.
    #[error("the id map is not a JSON list of ranges (line {line}, column {column})")]
    Json {
        /// Line of the text, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// More than any kernel takes.
    #[error(
        "the id map is {0} bytes long: no kernel takes more than 340 ranges, and codchifs reads no more than {MOST_TEXT} bytes"
    )]
    Long(usize),
    /// A number that is no id.
    #[error(
        "the id map has a range that is no range of ids: host {host}, machine {inside}, {count} ids"
    )]
    Range {
        /// `Hostid`.
        host: i64,
        /// `Nsid`.
        inside: i64,
        /// `Maprange`.
        count: i64,
    },
    /// Two ranges claim the same host id: which owner a file had cannot be told.
    #[error("the id map has two ranges for the host id {0}")]
    Overlap(u32),
    /// Two ranges claim the same id of the machine.
    #[error("the id map has two ranges for the machine's id {0}")]
    Inside(u32),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Raw {
    isuid: bool,
    isgid: bool,
    hostid: i64,
    nsid: i64,
    maprange: i64,
}

impl IdMap {
    /// Parses the JSON of `volatile.*.idmap`. `None` for `[]`, and for the `null` that LXD writes after some migrations:
    /// what is on the disk is not shifted.
    pub fn parse(json: &str) -> Result<Option<Self>, IdMapError> {
        if json.len() > MOST_TEXT {
            return Err(IdMapError::Long(json.len()));
        }
        let raw: Option<Vec<Raw>> = serde_json::from_str(json)
            .map_err(|e| IdMapError::Json { line: e.line(), column: e.column() })?;
        let raw = raw.unwrap_or_default();
        if raw.is_empty() {
            return Ok(None);
        }
        let mut map = Self::default();
        for r in raw {
            let bad = || IdMapError::Range { host: r.hostid, inside: r.nsid, count: r.maprange };
            let range = Range {
                host: u32::try_from(r.hostid).map_err(|_| bad())?,
                inside: u32::try_from(r.nsid).map_err(|_| bad())?,
                count: u32::try_from(r.maprange).map_err(|_| bad())?,
            };
            // 2^32 - 1 is no id (setresuid(2) takes it as "leave alone").
            let end = |start: u32| u64::from(start) + u64::from(range.count);
            if range.count == 0
                || end(range.host) > u64::from(u32::MAX)
                || end(range.inside) > u64::from(u32::MAX)
            {
                return Err(bad());
            }
            if r.isuid {
                map.uids.push(range);
            }
            if r.isgid {
                map.gids.push(range);
            }
        }
        for ranges in [&mut map.uids, &mut map.gids] {
            // No kernel takes a map in which two ranges meet on either side.
            if let Some(id) = shared(ranges, |r| r.inside) {
                return Err(IdMapError::Inside(id));
            }
            if let Some(id) = shared(ranges, |r| r.host) {
                return Err(IdMapError::Overlap(id));
            }
        }
        Ok(Some(map))
    }

    /// The map of a mount that shows ids as they are on the disk, of those that exist inside.
    pub fn of_inside(&self) -> Self {
        let same = |ranges: &[Range]| {
            let mut all: Vec<_> = ranges.iter().map(|r| Range { host: r.inside, ..*r }).collect();
            all.sort_by_key(|r| r.host);
            all
        };
        Self { uids: same(&self.uids), gids: same(&self.gids) }
    }

    /// The machine's uid of a host uid, `None` outside the map.
    pub fn uid(&self, host: u32) -> Option<u32> {
        find(&self.uids, host)
    }

    /// The machine's gid of a host gid, `None` outside the map.
    pub fn gid(&self, host: u32) -> Option<u32> {
        find(&self.gids, host)
    }
}

/// Sorts by where ranges start, drops those that are there twice (LXD wrote `both` lines of raw.idmap so until 2024), and
/// finds an id that two of them claim.
fn shared(ranges: &mut Vec<Range>, start: fn(&Range) -> u32) -> Option<u32> {
    ranges.sort_by_key(|r| (start(r), r.host, r.inside, r.count));
    ranges.dedup();
    ranges.windows(2).find_map(|pair| match pair {
        [a, b] => {
            (u64::from(start(a)) + u64::from(a.count) > u64::from(start(b))).then(|| start(b))
        }
        _ => None,
    })
}

fn find(ranges: &[Range], host: u32) -> Option<u32> {
    let at = ranges.partition_point(|r| r.host <= host).checked_sub(1)?;
    let range = ranges.get(at)?;
    let within = host.checked_sub(range.host)?;
    (within < range.count).then(|| range.inside.checked_add(within))?
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODCHI: &str = r#"[{"Isuid":true,"Isgid":false,"Hostid":1000,"Nsid":0,"Maprange":1},
        {"Isuid":false,"Isgid":true,"Hostid":1000,"Nsid":0,"Maprange":1},
        {"Isuid":true,"Isgid":true,"Hostid":100001,"Nsid":1,"Maprange":10000000}]"#;

    #[test]
    fn maps_what_codchi_configures() {
        let map = IdMap::parse(CODCHI).unwrap().unwrap();
        for (host, inside) in
            [(1000, Some(0)), (100001, Some(1)), (101000, Some(1000)), (0, None), (999, None)]
        {
            assert_eq!(map.uid(host), inside, "uid {host}");
            assert_eq!(map.gid(host), inside, "gid {host}");
        }
        assert_eq!(map.uid(100001 + 9_999_999), Some(10_000_000));
        assert_eq!(map.uid(100001 + 10_000_000), None);
    }

    #[test]
    fn takes_as_many_ranges_as_the_kernel() {
        let range = |n: u32, user: bool| {
            let (id, group) = (4_000_000_000 + n, !user);
            format!(r#"{{"Isuid":{user},"Isgid":{group},"Hostid":{id},"Nsid":{id},"Maprange":1}}"#)
        };
        let all: Vec<_> = (0..680).map(|n| range(n, n % 2 == 0)).collect();
        let map = IdMap::parse(&format!("[{}]", all.join(","))).unwrap().unwrap();
        assert_eq!((map.uids.len(), map.gids.len()), (340, 340));
    }

    #[test]
    fn refuses_what_is_no_map() {
        let one = |h: i64, n: i64, c: i64| {
            format!(r#"[{{"Isuid":true,"Isgid":true,"Hostid":{h},"Nsid":{n},"Maprange":{c}}}]"#)
        };
        assert_eq!(IdMap::parse("[]"), Ok(None));
        assert!(matches!(IdMap::parse("{"), Err(IdMapError::Json { .. })));
        assert!(matches!(IdMap::parse(&one(-1, 0, 1)), Err(IdMapError::Range { .. })));
        assert!(matches!(IdMap::parse(&one(0, 0, 0)), Err(IdMapError::Range { .. })));
        assert!(matches!(
            IdMap::parse(&one(i64::from(u32::MAX), 0, 2)),
            Err(IdMapError::Range { .. })
        ));
        let blank = |bytes: usize| format!("[{}]", " ".repeat(bytes - 2));
        assert_eq!(IdMap::parse(&blank(MOST_TEXT)), Ok(None));
        assert_eq!(IdMap::parse(&blank(MOST_TEXT + 1)), Err(IdMapError::Long(MOST_TEXT + 1)));
        let twice = r#"[{"Isuid":true,"Isgid":false,"Hostid":5,"Nsid":0,"Maprange":10},
            {"Isuid":true,"Isgid":false,"Hostid":9,"Nsid":100,"Maprange":10}]"#;
        assert_eq!(IdMap::parse(twice), Err(IdMapError::Overlap(9)));
        let inside = twice.replace(r#""Hostid":9,"Nsid":100"#, r#""Hostid":100,"Nsid":4"#);
        assert_eq!(IdMap::parse(&inside), Err(IdMapError::Inside(4)));
        // The same start, but not the same.
        let longer = twice.replace(
            r#""Hostid":9,"Nsid":100,"Maprange":10"#,
            r#""Hostid":5,"Nsid":0,"Maprange":11"#,
        );
        assert_eq!(IdMap::parse(&longer), Err(IdMapError::Inside(0)));
    }

    #[test]
    fn takes_ranges_that_are_there_twice_and_null() {
        // LXD 5.0.2, of `raw.idmap: both 1000 0`.
        let both = r#"[{"Isuid":true,"Isgid":true,"Hostid":1000,"Nsid":0,"Maprange":1},
            {"Isuid":true,"Isgid":false,"Hostid":100001,"Nsid":1,"Maprange":10000000},
            {"Isuid":true,"Isgid":true,"Hostid":1000,"Nsid":0,"Maprange":1},
            {"Isuid":false,"Isgid":true,"Hostid":100001,"Nsid":1,"Maprange":10000000}]"#;
        assert_eq!(IdMap::parse(both), IdMap::parse(CODCHI));
        assert_eq!(IdMap::parse("null"), Ok(None));
        for bad in ["0", "\"\"", "{}", "[null]", "[[]]", ""] {
            assert!(matches!(IdMap::parse(bad), Err(IdMapError::Json { .. })), "{bad:?}");
        }
    }

    #[test]
    fn ids_that_a_mount_shows_as_they_are_end_where_the_machine_ends() {
        let map = IdMap::parse(CODCHI).unwrap().unwrap().of_inside();
        let ids = [0, 1, 1000, 10_000_000, 10_000_001].map(|id| map.uid(id));
        assert_eq!(ids, [Some(0), Some(1), Some(1000), Some(10_000_000), None]);
    }
}
