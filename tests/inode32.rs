//! Programs that take no inode number of 2^32 or more: those of 32 bits that were built without large-file support.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::{Fixture, Maker};
use common::list::listed;
use common::mounted::Mounted;
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;

#[test]
fn programs_of_32_bits_without_large_files_see_everything_with_inode32() {
    let fixture = Fixture::new();
    let mut expected = HashSet::new();
    for machine in ["a", "b"] {
        let place = fixture.configured(machine, r#"{"modules":{},"secrets":{"TOKEN":"Secret"}}"#);
        for top in [&place.rootfs.join("srv"), &place.home] {
            fs::create_dir_all(top).unwrap();
            let maker = Maker::new(top);
            for number in 0..30 {
                maker.file(&format!("d{}/f{number}", number % 3), b"content");
            }
            fs::hard_link(top.join("d0/f0"), top.join("again")).unwrap();
            std::os::unix::fs::symlink("d0/f3", top.join("link")).unwrap();
        }
        expected.insert(format!("./{machine}/rootfs/home/codchi/d2/f29"));
        expected.insert(format!("./{machine}/rootfs/srv/again"));
        expected.insert(format!("./{machine}/export.tar"));
    }
    // Why there is such an option.
    let mounted = Mounted::new(&fixture);
    let error = listed("-m32", mounted.point()).unwrap_err();
    assert!(error.contains("Value too large for defined data type"), "{error}");
    mounted.unmount();

    let mut before = None;
    for round in 0..2 {
        let mounted = Mounted::with(&fixture, &["-o", "inode32"]);
        let short = listed("-m32", mounted.point()).unwrap();
        let long = listed("-m64", mounted.point()).unwrap();
        assert!(short.keys().eq(long.keys()), "{short:#?}, not {long:#?}");
        // Beside it there are texts, which change.
        assert!(long.iter().all(|(path, of)| !path.contains("/rootfs") || short[path] == *of));
        assert!(expected.iter().all(|path| short.contains_key(path)), "{short:#?}");
        let mut numbers = BTreeMap::<u64, Vec<&str>>::new();
        for (path, [listed, number, _]) in &short {
            // What only a lookup finds has a number of its own in a listing.
            let in_tree = path.contains("/rootfs/") && !path.contains("/etc/");
            assert!(listed == number || !in_tree, "{path}: {listed}, {number}");
            numbers.entry(*number).or_default().push(path);
        }
        for (number, paths) in &numbers {
            let links = short[paths[0]][2];
            let is_link = paths[0].ends_with("/again") || paths[0].ends_with("/d0/f0");
            assert_eq!(paths.len() as u64, if is_link { links } else { 1 }, "{number}: {paths:?}");
        }
        // As git has them in its index: those of the first home that is looked at, at least.
        let mut same = 0;
        for entry in fs::read_dir(fixture.place("a").home.join("d1")).unwrap() {
            let name = entry.as_ref().unwrap().file_name().into_string().unwrap();
            let [_, number, _] = short[&format!("./a/rootfs/home/codchi/d1/{name}")];
            let ino = entry.unwrap().metadata().unwrap().ino();
            same += u64::from(u64::from(ino as u32) == number);
        }
        assert_eq!(same, 10, "round {round}");
        let kept = short.into_iter().filter(|(path, _)| path.contains("/rootfs/"));
        let kept: BTreeMap<_, _> = kept.collect();
        assert!(before.is_none_or(|before| before == kept), "other numbers after a remount");
        before = Some(kept);
        mounted.unmount();
    }
}
