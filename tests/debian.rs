//! A Debian that debootstrap made, with git repositories in its home: no tree of ours.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "fidelity/mod.rs"]
mod fidelity;

use common::debian::debian;
use common::disk::{Disk, DiskKind};
use common::fixture::Fixture;
use common::snapshot::Snapshot;
use common::xattr::CAPABILITY;
use common::{program, run};
use fidelity::routes::{ROUTES, Route};
use fidelity::travel::{compared, travels_by};
use std::fs;
use std::path::Path;

const REPOSITORIES: [&str; 3] = ["loose", "packed", "linked"];

/// One with loose objects, one packed, one whose objects are hard links to those of the first.
fn repositories(home: &Path) {
    let git = |at: &Path, arguments: &[&str]| {
        let who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "gc.auto=0"];
        run(program("git", who).args(arguments).current_dir(at)).ok();
    };
    let loose = home.join("loose");
    fs::create_dir_all(&loose).unwrap();
    git(&loose, &["init", "-q", "-b", "main"]);
    for i in 0..20 {
        fs::write(loose.join(format!("file{i}")), format!("{i}\n").repeat(i * 100)).unwrap();
        git(&loose, &["add", "."]);
        git(&loose, &["commit", "-qm", &format!("commit {i}")]);
    }
    git(home, &["clone", "-q", "loose", "packed"]);
    git(&home.join("packed"), &["repack", "-adq"]);
    git(home, &["clone", "-q", "loose", "linked"]);
}

#[test]
fn a_debian_with_git_repositories_arrives() {
    let disk = Disk::new(DiskKind::Xfs);
    let fixture = Fixture::below(&disk.path());
    let place = fixture.empty("m");
    run(program("cp", ["-a"]).arg(debian().join(".")).arg(&place.rootfs)).silent();
    // The home is grafted into it.
    fs::create_dir_all(place.rootfs.join("home/codchi")).unwrap();
    repositories(&place.home);
    for path in [place.config.join("config.json"), place.rootfs.join("home")] {
        run(program("touch", ["-d", "@1500000000"]).arg(path)).silent();
    }

    let tree = Snapshot::full(&place.rootfs);
    let usr = || tree.nodes.iter().filter(|(path, _)| path.starts_with(b"usr/")).map(|(_, n)| n);
    assert!(usr().any(|node| node.xattrs.contains_key(CAPABILITY)), "no file capability");
    assert!(usr().any(|node| node.mode & 0o4000 != 0), "no setuid program");
    assert!(usr().any(|node| node.same_as.is_some()), "no hard link");
    assert!(usr().count() > 2000, "{} files", usr().count());

    travels_by(&fixture, &ROUTES, |arrival| {
        if arrival.route == Route::Gnu {
            compared(arrival);
        }
        for repository in REPOSITORIES {
            for check in ["fsck --full --strict --no-progress", "status --porcelain"] {
                let mut git = program("git", ["-c", "safe.directory=*"]);
                git.args(check.split(' '));
                run(git.current_dir(arrival.to.join("home/codchi").join(repository))).silent();
            }
        }
    });
}
