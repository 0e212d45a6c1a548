//! Extended attributes, ACLs and capabilities of machines of a real LXD and a real Incus: what containers in the machine
//! keep, and what LXD shifts together with the owners.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::docker::{NET_RAW, Overlay, plant_overlay, plant_subvolumes, timeless, told};
use common::lxd::{Host, INCUS, Kind, LXD, Server, shifted};
use common::{program, run};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::Path;

const EXTRACT: [&str; 5] = ["--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls", "-xpf"];

/// What is at `below` in a copy of the machine by rsync, and in the extracted export.
fn copies(host: &Host, below: &str, check: impl Fn(&str, &Path)) {
    let mounted = host.mount("mnt");
    check("rootfs/", &mounted.rootfs("demo").join(below));
    let copied = host.path().join("copied");
    let source = format!("{}/", mounted.rootfs("demo").display());
    run(program("rsync", ["-aHAX", "--numeric-ids", &source]).arg(&copied)).silent();
    check("rsync", &copied.join(below));
    fs::remove_dir_all(&copied).unwrap();
    let extracted = host.path().join("extracted");
    fs::create_dir(&extracted).unwrap();
    run(program("tar", EXTRACT).arg(mounted.tar("demo")).arg("-C").arg(&extracted)).silent();
    check("tar", &extracted.join(below));
    fs::remove_dir_all(&extracted).unwrap();
    mounted.unmount();
}

#[track_caller]
fn same(here: &str, there: &str, what: &str) {
    let lines = |a: &str, b: &str, sign| {
        let missing = a.lines().filter(|line| !b.lines().any(|other| other == *line));
        missing.map(|line| format!("{sign} {line}\n")).collect::<String>()
    };
    assert!(here == there, "{what}:\n{}{}", lines(here, there, '-'), lines(there, here, '+'));
}

#[test]
fn what_docker_and_podman_keep_makes_the_round_trip() {
    let server = Server::new(LXD, "btrfs");
    let host = &server.host;
    let docker = server.rootfs("demo").join("var/lib/docker");
    fs::create_dir_all(&docker).unwrap();
    plant_overlay(&docker.join("overlay2"), Overlay::User, |id| id);
    plant_subvolumes(&docker.join("btrfs/subvolumes"), |id| id);
    let before = told(&docker);
    for part in ["user.overlay.redirect", "security.capability", "user.layer", "0:0"] {
        assert!(before.contains(part), "{part}: {before}");
    }
    // Of a Docker that was root on the host. No Docker in such an instance can make these, and what serves a mount sees none.
    let of_root = "srv/of-root";
    plant_overlay(&server.rootfs("demo").join(of_root), Overlay::Trusted, |id| id);
    let trusted = told(&server.rootfs("demo").join(of_root));
    assert!(trusted.contains("trusted.overlay.redirect"), "{trusted}");
    // In the home, Podman without root; the id map is known before the first start.
    let podman = host.home("demo").join(".local/share/containers/storage/overlay");
    fs::create_dir_all(podman.parent().unwrap()).unwrap();
    plant_overlay(&podman, Overlay::User, shifted);
    let twin = host.path().join("twin");
    plant_overlay(&twin, Overlay::User, |id| id);
    let rootless = timeless(&told(&twin));
    for stage in ["never started", "started"] {
        if stage == "started" {
            server.client(&["start", "codchi-demo"]).ok();
            assert_eq!(docker.metadata().unwrap().uid(), shifted(0), "LXD shifts on the disk");
        }
        copies(host, "var/lib/docker", |how, at| {
            same(&before, &told(at), &format!("{how}, {stage}"));
        });
        copies(host, "home/codchi/.local/share/containers/storage/overlay", |how, at| {
            same(&rootless, &timeless(&told(at)), &format!("{how}, {stage}"));
        });
        let (archive, to) = (host.path().join("demo.tar"), host.path().join("exported"));
        host.run(&["export", "demo", "-o", archive.to_str().unwrap()]).ok();
        fs::create_dir(&to).unwrap();
        run(program("tar", EXTRACT).arg(&archive).arg("-C").arg(&to)).silent();
        same(&trusted, &told(&to.join(of_root)), &format!("export, {stage}"));
        fs::remove_dir_all(&to).unwrap();
    }
}

/// Makes `srv/acl` in `top`, with ACLs for the ids 71 and 1000 and with capabilities; ids of the disk are `ids` of them.
fn plant_acls(top: &Path, ids: fn(u32) -> u32) {
    let at = top.join("srv/acl");
    fs::create_dir_all(at.join("shared")).unwrap();
    for name in ["file", "ping", "shared/new"] {
        fs::write(at.join(name), name).unwrap();
    }
    let entries = format!("u:{0}:rw,u:{1}:r,g:{0}:rx,g:{1}:-,m::rwx", ids(71), ids(1000));
    let setfacl = |args: &[&str], name: &str| {
        run(program("setfacl", ["-n"]).args(args).arg(&entries).arg(at.join(name))).silent();
    };
    setfacl(&["-m"], "file");
    setfacl(&["-m"], "shared");
    setfacl(&["-d", "-m"], "shared");
    for name in ["", "file", "ping", "shared", "shared/new"] {
        chown(at.join(name), Some(ids(0)), Some(ids(71))).unwrap();
    }
}

/// Whose root a capability is: that of the host's id, `None` for revision 2, which is nobody's in particular.
fn setcap(at: &Path, root: Option<u32>) {
    let mut command = program("setcap", std::iter::empty::<&str>());
    if let Some(root) = root {
        command.args(["-n", &root.to_string()]);
    }
    run(command.arg("cap_net_raw+ep").arg(at)).silent();
}

/// The raw value, which getfattr has from the very file system.
fn capability(at: &Path) -> Vec<u8> {
    let mut value = [0; 64];
    let length = rustix::fs::lgetxattr(at, "security.capability", &mut value).unwrap();
    value[..length].to_vec()
}

const ACLS: &str = "find srv/acl | sort | xargs getfacl -n";

fn acls(top: &Path) -> String {
    let script = format!("cd \"$0\"; {ACLS}");
    run(program("sh", ["-ec", &script]).arg(top)).ok().out()
}

/// What a program in the running instance has from its kernel.
fn inside(server: &Server, script: &str) -> String {
    let state = server.client(&["query", "/1.0/instances/codchi-demo/state"]).ok().out();
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    let pid = state["pid"].to_string();
    let enter = "cd \"/proc/$0/root\"; exec nsenter --user --target \"$0\" sh -ec \"$1\"";
    run(program("sh", ["-ec", enter, &pid, script])).ok().out()
}

fn acls_are_the_machines(kind: &'static Kind, pool: &str) {
    let server = Server::new(kind, pool);
    let host = &server.host;
    let rootfs = server.rootfs("demo");
    plant_acls(&rootfs, |id| id);
    plant_acls(&host.home("demo"), shifted);
    let ping = Path::new("srv/acl/ping");
    setcap(&rootfs.join(ping), None);
    setcap(&host.home("demo").join(ping), Some(shifted(0)));
    assert_eq!(capability(&rootfs.join(ping)), NET_RAW);
    let planted = acls(&rootfs);
    for entry in ["user:71:rw-", "user:1000:r--", "group:71:r-x", "default:group:1000:---"] {
        assert!(planted.contains(entry), "{entry}: {planted}");
    }
    let compare = |stage: &str, expected: &str| {
        copies(host, "", |how, top| {
            same(expected, &acls(top), &format!("{how}, {stage}"));
            let home = top.join("home/codchi");
            same(&planted, &acls(&home), &format!("home, {how}, {stage}"));
            for at in [top.join(ping), home.join(ping)] {
                assert_eq!(capability(&at), NET_RAW, "{how}, {stage}, {}", at.display());
                let shown = run(program("getcap", ["-n"]).arg(&at)).ok().out();
                assert!(shown.ends_with("ping cap_net_raw=ep\n"), "{how}, {stage}: {shown}");
            }
        });
    };
    compare("never started", &planted);

    server.client(&["start", "codchi-demo"]).ok();
    let moved = host.row("demo")["shifted"] == true;
    if moved {
        // LXD moves the ids in there as well, and the capability has its root.
        let on_disk = acls(&rootfs);
        assert!(on_disk.contains(&format!("user:{}:rw-", shifted(71))), "{on_disk}");
        let (value, root) = (capability(&rootfs.join(ping)), shifted(0).to_le_bytes());
        assert_eq!((value.len(), value.ends_with(&root)), (24, true), "{value:?}");
    }
    // LXD 5.0.2 leaves an entry for the id 1000 as it is, which makes it root's: what the instance sees is what counts.
    let seen = inside(&server, ACLS);
    assert!(seen.contains("user:71:rw-") && seen.contains("default:group:71:r-x"), "{seen}");
    let hex = inside(&server, "getfattr -e hex -n security.capability srv/acl/ping");
    let expected: String = NET_RAW.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(hex.contains(&format!("=0x{expected}\n")), "{hex}");
    same(&planted, &inside(&server, &format!("cd home/codchi; {ACLS}")), "home");
    compare("started", &seen);

    // Of another root, which is the machine's id 5: as it is there, with the machine's number.
    let service = rootfs.join("srv/acl/file");
    let other = if moved { shifted(5) } else { 5 };
    setcap(&service, Some(other));
    let mounted = host.mount("other");
    let value = capability(&mounted.rootfs("demo").join("srv/acl/file"));
    assert_eq!((value.len(), value.ends_with(&5u32.to_le_bytes())), (24, true), "{value:?}");
}

#[test]
fn acls_and_capabilities_have_the_machines_ids_in_lxd() {
    acls_are_the_machines(LXD, "dir");
    acls_are_the_machines(LXD, "btrfs");
}

#[test]
fn acls_and_capabilities_have_the_machines_ids_in_incus() {
    acls_are_the_machines(INCUS, "dir");
}
