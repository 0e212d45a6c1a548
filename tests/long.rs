//! What takes minutes: `tests/run --long`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "fidelity/mod.rs"]
mod fidelity;

use common::disk::{Disk, DiskKind};
use common::fixture::Fixture;
use common::{cached, program, run};
use fidelity::routes::{ROUTES, Route};
use fidelity::travel::{compared, nine_gib, travels_by};
use std::fs;

/// A project whose dependencies are some 40,000 files.
const PROJECT: &str =
    r#"{"name": "large", "private": true, "dependencies": {"react-scripts": "5.0.1"}}"#;

#[test]
fn a_large_npm_project_arrives() {
    let project = cached("npm", |to| {
        fs::write(to.join("package.json"), PROJECT).unwrap();
        // No program of theirs is run.
        let arguments = ["install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"];
        run(program("npm", arguments).current_dir(to)).ok();
    });
    let disk = Disk::new(DiskKind::Xfs);
    let fixture = Fixture::below(&disk.path());
    let place = fixture.empty("m");
    run(program("cp", ["-a"]).arg(project).arg(place.home.join("project"))).silent();
    fs::create_dir_all(place.rootfs.join("home/codchi")).unwrap();
    for path in [place.config.join("config.json"), place.rootfs.join("home")] {
        run(program("touch", ["-d", "@1500000000"]).arg(path)).silent();
    }
    let count = run(program("find", [place.home.as_os_str()])).ok().out().lines().count();
    assert!(count > 10_000, "{count} files");
    travels_by(&fixture, &ROUTES, |arrival| {
        if arrival.route == Route::Gnu {
            compared(arrival);
        }
    });
}

#[test]
fn nine_gib_without_holes_arrive_in_a_stream() {
    let disk = Disk::new(DiskKind::Xfs);
    let fixture = nine_gib(&disk.path());
    let script = "set -eo pipefail; cd \"$2\"
        \"$1\" \"${@:3}\" | tar -xOf - ./srv/huge ./srv/huge-and-then | cmp - <(cat huge huge-and-then)";
    let export = fixture.command(["export", "m", "--sparse=no", "-q", "-o", "-"]);
    let mut bash = program("bash", ["-c", script, "bash"]);
    bash.arg(export.get_program()).arg(fixture.place("m").rootfs.join("srv"));
    run(bash.args(export.get_args())).silent();
}
