//! An instance's id map.
//!
//! Each range maps its ends, and nothing beside it that no other range has; what is refused has a short reason.
#![no_main]

use codchifs::idmap::IdMap;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|text: &str| {
    let map = match IdMap::parse(text) {
        Ok(Some(map)) => map,
        Ok(None) => {
            let value: Value = serde_json::from_str(text).unwrap();
            assert!(value.is_null() || value == Value::Array(vec![]), "{value}");
            return;
        }
        Err(why) => {
            assert!(why.to_string().len() < 200, "{why}");
            return;
        }
    };
    let raw: Vec<Value> = serde_json::from_str(text).unwrap();
    // Serde also fills a struct from an array, in the order of its fields.
    let field = |range: &Value, key: &str, at: usize| {
        range.get(key).or_else(|| range.get(at)).cloned().unwrap_or_default()
    };
    let number = |range: &Value, key, at| field(range, key, at).as_u64().unwrap() as u32;
    let ranges = |key: &'static str, at: usize| {
        let of = move |range: &&Value| field(range, key, at) == Value::Bool(true);
        let raw = raw.iter().filter(of);
        raw.map(move |r| (number(r, "Hostid", 2), number(r, "Nsid", 3), number(r, "Maprange", 4)))
    };
    for (key, at, find) in [
        ("Isuid", 0, &(|id| map.uid(id)) as &dyn Fn(u32) -> Option<u32>),
        ("Isgid", 1, &|id| map.gid(id)),
    ] {
        let inside = |id: u32| {
            ranges(key, at)
                .find(|(host, _, count)| id.checked_sub(*host).is_some_and(|d| d < *count))
        };
        for (host, machine, count) in ranges(key, at) {
            assert_eq!(find(host), Some(machine));
            assert_eq!(find(host + (count - 1)), Some(machine + (count - 1)));
            for id in [host.wrapping_sub(1), host.wrapping_add(count), 0, u32::MAX] {
                assert_eq!(find(id), inside(id).map(|(h, m, _)| m + (id - h)), "{id}");
            }
        }
    }
});
