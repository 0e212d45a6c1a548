//! A root of Debian that debootstrap made.

use super::{cached, program, run, run_for};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// A mirror may be far away.
const DOWNLOAD: Duration = Duration::from_secs(30 * 60);

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

/// A small one, made once for all runs. ping has a file capability.
pub(crate) fn debian() -> PathBuf {
    with("debian", "iputils-ping")
}

/// A small one with what the package depends on.
pub(crate) fn debian_with_fuse() -> PathBuf {
    with("debian-fuse", "fuse3")
}

/// bash 5.1, of Debian 11.
pub(crate) fn older_bash() -> PathBuf {
    let at = cached("bash-5.1", |to| {
        let script = "mkdir -p state/lists/partial cache/archives/partial && echo \"deb $1 bullseye main\" >list &&
            apt() { apt-get -qq -o Dir::State=\"$PWD/state\" -o Dir::Cache=\"$PWD/cache\" -o Dir::State::status=/dev/null \\
                -o Dir::Etc::SourceList=\"$PWD/list\" -o Dir::Etc::SourceParts=/dev/null -o APT::Sandbox::User=root \"$@\"; }
            apt update && apt download bash && dpkg-deb -x bash_*.deb root";
        let mut bash = program("bash", ["-euc", script, "-", &release_and_mirror().1]);
        run_for(DOWNLOAD, bash.current_dir(to)).ok();
    });
    at.join("root/bin/bash")
}

fn with(name: &str, packages: &str) -> PathBuf {
    cached(name, |to| {
        let (codename, mirror) = release_and_mirror();
        let include = format!("--include={packages}");
        // What it mounts in there, and every process of it, is gone with it.
        let mut debootstrap = program("unshare", ["--mount", "--pid", "--fork", "--kill-child"]);
        debootstrap.args(["debootstrap", "--variant=minbase", &include, &codename]);
        run_for(DOWNLOAD, debootstrap.arg(to).arg(mirror)).ok();
    })
}
