//! A Debian that debootstrap made, with git repositories in its home: no tree of ours.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "fidelity/mod.rs"]
mod fidelity;

use common::disk::{Disk, DiskKind};
use common::fixture::Fixture;
use common::snapshot::Snapshot;
use common::xattr::CAPABILITY;
use common::{cached, program, run};
use fidelity::routes::{ROUTES, Route};
use fidelity::travel::{compared, travels_by};
use std::fs;
use std::path::Path;

const REPOSITORIES: [&str; 3] = ["loose", "packed", "linked"];

/// Name of the running release and its mirror, as apt is configured.
fn release_and_mirror() -> (String, String) {
    let text = fs::read_to_string("/etc/os-release").unwrap();
    let codename = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let codename = codename.expect("a codename in /etc/os-release").trim_matches('"').to_owned();
    let format = "$(CREATED_BY) $(COMPONENT) $(RELEASE) $(SITE)";
    let targets = run(program("apt-get", ["indextargets", "--format", format])).ok().out();
    let start = format!("Packages main {codename} ");
    let mirror = targets.lines().find_map(|line| line.strip_prefix(&start));
    let mirror = mirror.unwrap_or_else(|| panic!("apt knows no mirror of {codename}:\n{targets}"));
    (codename.clone(), mirror.to_owned())
}

/// Made once, for all runs.
fn debian() -> std::path::PathBuf {
    cached("debian", |to| {
        let (codename, mirror) = release_and_mirror();
        // ping has a file capability.
        let mut debootstrap =
            program("debootstrap", ["--variant=minbase", "--include=iputils-ping", &codename]);
        run(debootstrap.arg(to).arg(mirror)).ok();
    })
}

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
