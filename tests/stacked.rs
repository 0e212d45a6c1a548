//! A root file system that is an overlay of several file systems, as container engines and some live systems have it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::{Fixture, Maker};
use common::mounted::Mounted;
use common::{program, run};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Mounts, taken away again in reverse.
struct Mounts(Vec<PathBuf>);

impl Mounts {
    fn tmpfs(&mut self, at: PathBuf) -> PathBuf {
        fs::create_dir_all(&at).unwrap();
        mount("none", &at, "tmpfs", MountFlags::empty(), None).unwrap();
        self.0.push(at.clone());
        at
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for at in self.0.iter().rev() {
            let _ = unmount(at, UnmountFlags::DETACH);
        }
    }
}

/// Names by what file they are of.
fn files(top: &Path) -> Vec<Vec<String>> {
    let mut by_number: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for directory in ["a", "b", "c", "d"] {
        for entry in fs::read_dir(top.join("srv").join(directory)).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{directory}/{}", entry.file_name().to_str().unwrap());
            by_number.entry(entry.metadata().unwrap().ino()).or_default().push(name);
        }
    }
    let mut groups: Vec<_> = by_number.into_values().collect();
    groups.iter_mut().for_each(|group| group.sort());
    groups.sort();
    groups
}

#[test]
fn hard_links_over_the_layers_of_an_overlay_are_one_file_and_others_are_not() {
    for xino in ["off", "auto", "on"] {
        let fixture = Fixture::new();
        let place = fixture.empty("m");
        let mut mounts = Mounts(Vec::new());
        let lower: Vec<_> =
            ["one", "two"].map(|name| mounts.tmpfs(fixture.path().join(name))).into();
        let upper = mounts.tmpfs(fixture.path().join("three"));
        // New file systems give out the same numbers: only the device tells the files of one from those of the other.
        for (layer, (first, second)) in lower.iter().zip([("a", "b"), ("c", "d")]) {
            let maker = Maker::new(layer);
            for number in 0..20 {
                let name = |directory| format!("srv/{directory}/f{number}");
                maker.file(&name(first), layer.to_str().unwrap().as_bytes());
                maker.link(&name(first), &name(second));
            }
            maker.file(&format!("srv/{first}/alone"), b"x");
        }
        for name in ["upper", "work"] {
            fs::create_dir(upper.join(name)).unwrap();
        }
        let options = format!(
            "lowerdir={}:{},upperdir={}/upper,workdir={2}/work,xino={xino}",
            lower[0].display(),
            lower[1].display(),
            upper.display(),
        );
        run(program("mount", ["-t", "overlay", "overlay", "-o", &options]).arg(&place.rootfs)).ok();
        mounts.0.push(place.rootfs.clone());
        Maker::new(&place.rootfs).file("srv/a/upper", b"y").link("srv/a/upper", "srv/d/upper");

        let shown = Mounted::new(&fixture);
        let groups = files(&shown.rootfs("m"));
        let mut expected: Vec<Vec<String>> = vec![
            vec!["a/alone".into()],
            vec!["c/alone".into()],
            vec!["a/upper".into(), "d/upper".into()],
        ];
        for number in 0..20 {
            expected.push(vec![format!("a/f{number}"), format!("b/f{number}")]);
            expected.push(vec![format!("c/f{number}"), format!("d/f{number}")]);
        }
        expected.sort();
        assert_eq!(groups, expected, "xino={xino}");
        // In the archive as well: a link of each pair, and the content of its own file.
        let to = fixture.scratch("extracted");
        run(program("tar", ["-xpf"]).arg(shown.tar("m")).arg("-C").arg(&to)).ok();
        assert_eq!(files(&to), expected, "xino={xino}");
        for directory in ["a", "b", "c", "d"] {
            let name = format!("srv/{directory}/f7");
            let source = fs::read(place.rootfs.join(&name)).unwrap();
            assert_eq!(fs::read(to.join(&name)).unwrap(), source, "{name}");
            assert_eq!(fs::read(shown.rootfs("m").join(&name)).unwrap(), source, "{name}");
        }
        drop(shown);
    }
}
