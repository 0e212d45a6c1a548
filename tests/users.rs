//! Users that are not in `/etc/passwd`, but known to what else nsswitch.conf(5) names, as those of LDAP are.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::Fixture;
use common::{Done, program, run, without_variables};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

/// Beside those of `/etc/passwd`.
const CAROL: u32 = 47_110;

/// A host that also knows the users of libnss-extrausers, whose table is in a directory of the test.
struct Directory {
    fixture: Fixture,
    table: PathBuf,
}

impl Directory {
    /// Knows `carol`, who has one machine, and some whose lines are no use.
    fn new() -> Self {
        let fixture = Fixture::new();
        fixture.sample("dev");
        let (table, home) = (fixture.scratch("extrausers"), fixture.scratch("carol"));
        for (from, to) in [(fixture.config(), ".config"), (fixture.data(), ".local/share")] {
            fs::create_dir_all(home.join(to)).unwrap();
            run(program("cp", ["-a"]).arg(from).arg(home.join(to).join("codchi"))).silent();
        }
        run(program("chown", ["-R", &format!("{CAROL}:{CAROL}")]).arg(&home)).silent();
        let line =
            |name: &str, uid: u32, home: &str| format!("{name}:x:{uid}:{uid}::{home}:/bin/sh\n");
        let users = [
            line("carol", CAROL, home.to_str().unwrap()),
            line("carol@example.org", CAROL, home.to_str().unwrap()),
            line("relative", CAROL + 1, "home"),
            line("homeless", CAROL + 2, ""),
            // The first one counts, as for libc.
            line("root", CAROL, "/nowhere"),
        ];
        fs::write(table.join("passwd"), users.concat()).unwrap();
        // One group has a user of the table, the other one is beside it.
        fs::write(table.join("group"), "testers:x:47200:someone,carol\nothers:x:47201:someone\n")
            .unwrap();
        let sources = "passwd: files extrausers\ngroup: files extrausers\n";
        fs::write(fixture.path().join("nsswitch"), sources).unwrap();
        Self { fixture, table }
    }

    /// Runs a script there, with `$codchifs` and the `$point` of a mount.
    fn run(&self, script: &str) -> Done {
        const STAGE: &str = r#"
            mount --bind "$nsswitch" /etc/nsswitch.conf
            mount --bind "$table" /var/lib/extrausers
            codchifs="$codchifs --driver dir --rootfs-dir $rootfs"
            unset HOME
        "#;
        let mut command = program("unshare", ["--mount", "--propagation", "private", "sh", "-ec"]);
        without_variables(&mut command);
        command.arg(format!("{STAGE}\n{script}"));
        command.env("codchifs", env!("CARGO_BIN_EXE_codchifs")).env("table", &self.table);
        command.env("nsswitch", self.fixture.path().join("nsswitch"));
        command.env("rootfs", self.fixture.rootfs_dir()).env("point", self.fixture.mount_point());
        run(command)
    }
}

#[test]
fn a_user_of_ldap_is_one_of_the_host_for_sudo_for_user_and_for_a_mount() {
    let host = Directory::new();
    for script in [
        "SUDO_USER=carol $codchifs list",
        "$codchifs --user carol list",
        "$codchifs --user carol@example.org list",
        "setpriv --reuid 47110 --regid 47110 --clear-groups $codchifs list",
        "setpriv --reuid 47110 --regid 47110 --clear-groups $codchifs --user carol list",
    ] {
        let done = host.run(script).ok();
        assert!(
            done.out().lines().any(|line| line.starts_with("dev ")),
            "{script}: {}",
            done.out()
        );
    }
    let mounted = host.run(
        r#"
        SUDO_USER=carol $codchifs mount -o allow_root "$point"
        grep -F " $point " /proc/self/mountinfo
        ls "$point"
        test -s "$point/dev/report.json"
        # What libc loaded to find carol is in no process of the mount.
        for pid in $(pgrep -f "^[^ ]*codchifs .*$point"); do cat /proc/$pid/maps; done >"$table/maps"
        $codchifs unmount "$point""#,
    );
    let text = mounted.ok().out();
    assert!(text.contains("user_id=47110,group_id=47110") && text.contains("\ndev\n"), "{text}");
    let maps = fs::read_to_string(host.table.join("maps")).unwrap();
    assert!(maps.contains("codchifs") && !maps.contains("extrausers"), "{maps}");
}

#[test]
fn a_name_that_no_source_of_users_has_or_that_is_no_use_is_an_error_that_says_so() {
    let host = Directory::new();
    for (script, expected) in [
        (
            "$codchifs --user dave list",
            "user \"dave\", named by --user: this host has no such user",
        ),
        ("SUDO_USER=dave $codchifs list", "named by $SUDO_USER: this host has no such user"),
        ("$codchifs --user \"$(printf 'a\\nb')\" list", "this host has no such user"),
        (
            "$codchifs --user relative list",
            "the user's home directory home: it is not an absolute path",
        ),
        ("$codchifs --user homeless list", "the user's home directory"),
        (
            "setpriv --reuid 47110 --regid 47110 --clear-groups $codchifs --user relative list",
            "only root",
        ),
        (
            "setpriv --reuid 999999 --regid 1 --clear-groups $codchifs list",
            "uid 999999: $HOME is not set",
        ),
    ] {
        let done = host.run(script);
        assert!(done.code != Some(0) && done.err().contains(expected), "{script}: {}", done.err());
        assert_eq!(done.err().lines().count(), 1, "{script}: {}", done.err());
    }
    // What /etc/passwd has is not asked for elsewhere.
    assert!(!host.run("$codchifs --user root list").err().contains("nowhere"));
}

#[test]
fn a_source_of_users_that_does_not_answer_is_waited_for_for_a_bounded_time() {
    let host = Directory::new();
    fs::remove_file(host.table.join("passwd")).unwrap();
    // Nobody ever writes to it.
    run(program("mkfifo", [host.table.join("passwd")])).silent();
    let done = host.run("$codchifs --user carol list").exits(1);
    assert!(done.err().contains("gave no answer in time"), "{}", done.err());
    // Whoever is in /etc/passwd is found without it.
    assert!(!host.run("$codchifs --user root list").err().contains("no answer"));
}

#[test]
fn doctor_knows_groups_of_every_source() {
    let host = Directory::new();
    let check = |gid: u32, groups: &str| {
        let script = format!(
            r#"
            export LXD_DIR="$table/lxd"
            rm -rf "$LXD_DIR" && mkdir -p "$LXD_DIR/storage-pools"
            python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])' "$LXD_DIR/unix.socket"
            chgrp {gid} "$LXD_DIR/unix.socket"
            setpriv --reuid 47110 --regid 47110 {groups} ${{codchifs%% *}} doctor --json || true"#
        );
        let all: Value = serde_json::from_slice(&host.run(&script).ok().stdout).unwrap();
        let checks = all["checks"].as_array().unwrap();
        let group = checks.iter().find(|check| check["check"] == "group");
        group.unwrap_or_else(|| panic!("{all}")).to_string()
    };
    let clear = "--clear-groups";
    for (gid, groups, expected) in [
        (47_200, clear, "carol is in the group testers, but not since this session began"),
        (47_201, clear, "sudo usermod -aG others carol"),
        (47_202, clear, "carol is not in the group 47202"),
        (47_200, "--groups 47200", "this process is in the group testers"),
    ] {
        let said = check(gid, groups);
        assert!(said.contains(expected), "{expected}: {said}");
    }
}
