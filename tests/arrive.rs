//! `/etc/nixos/codchi-arrive`: what it says before it changes anything, and that it ends verified, whatever stops it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::debian::older_bash;
use common::fixture::{Fixture, Maker};
use common::snapshot::{Snapshot, show};
use common::target::{STAND_IN, Target};
use common::xattr::{self, ACCESS};
use common::{Done, program, run};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

const COPY: &str = "/root/codchi-export.tar";
const SCRIPT: &str = "/etc/nixos/codchi-arrive";
const CONFIG: &str = r#"{"nixpkgs_from": null, "modules": {}, "secrets": {"token": "it's"}}"#;
/// Names that a list, a shell or a terminal takes for more than a name.
const ODD: [&[u8]; 6] =
    [b"a b", b"new\nline", b"it's \"x\" $(id)", b"\xff\\n\x1b[2J", b"-rf", b"\xe2\x80\xae"];

/// A machine `m`, and a NixOS that it moves to.
struct Move {
    fixture: Fixture,
    target: Target,
}

impl Move {
    fn new() -> Self {
        let fixture = Fixture::new();
        furnish(&fixture);
        let target = Target::new(&fixture.path().join("target"));
        Self { fixture, target }
    }

    /// With the copy there, and the script out of it.
    fn copied() -> Self {
        let moved = Self::new();
        moved.copy();
        moved
    }

    fn copy(&self) {
        let copy = self.target.at(&COPY[1..]);
        self.fixture.run(["export", "m", "-q", "-o", copy.to_str().unwrap()]).ok();
        let take = format!("tar --occurrence -xOf {COPY} .{SCRIPT} >/run/codchi-arrive");
        self.target.paste(&take).ok();
    }

    fn first(&self, words: &str) -> Done {
        self.target.paste(&format!("bash /run/codchi-arrive {words}"))
    }

    fn arrive(&self, words: &str) -> Done {
        self.target.paste(&format!("bash {SCRIPT} {words}"))
    }

    /// All files of the machine, with the owners that its services have here.
    #[track_caller]
    fn assert_arrived(&self, what: &str) {
        let place = self.fixture.place("m");
        for (here, top) in [(place.rootfs.join("srv"), "srv"), (place.home, "home/codchi")] {
            let is_home = top != "srv";
            let here = Snapshot::full(&here).map(|_, node| {
                node.nsec = 0;
                if is_home {
                    (node.uid, node.gid) = (1000, 100);
                }
                (node.uid, node.gid) = (swapped(node.uid), swapped(node.gid));
                if let Some(acl) = node.xattrs.get_mut(ACCESS) {
                    for ace in acl[4..].chunks_mut(8) {
                        let id = swapped(u32::from_le_bytes(ace[4..].try_into().unwrap()));
                        ace[4..].copy_from_slice(&id.to_le_bytes());
                    }
                }
            });
            let there = Snapshot::full(&self.target.at(top)).map(|_, node| node.nsec = 0);
            here.assert_same(&there, &format!("{top}, {what}"));
        }
    }

    /// All of the target's own.
    fn everything(&self) -> Snapshot {
        let mut nodes = Snapshot::default();
        for top in ["etc", "home", "root", "srv", "var", "nix/var/nix/profiles"] {
            let at = self.target.at(top);
            if at.exists() {
                nodes = nodes.graft(top.as_bytes(), Snapshot::full(&at));
            }
        }
        // What nix keeps for itself.
        nodes.filtered(|path| !path.starts_with(b"root/.cache/"))
    }

    /// Has `program` count its calls with such words, and do `how` at the call `number`: `$me` is the real one, `stop` kills
    /// the script.
    fn at_call(&self, program: &str, with: &str, number: usize, how: &str) {
        let path = format!("{STAND_IN}/{program}");
        let real = self.target.at(&format!("{STAND_IN}/.{program}")[1..]);
        let at = self.target.at(&path[1..]);
        // Not one of an earlier call.
        let is_ours = fs::read_to_string(&at).is_ok_and(|text| text.contains("/run/arrive.pid"));
        if at.exists() && !is_ours {
            fs::rename(&at, &real).unwrap();
        }
        let real = if real.exists() {
            format!("{STAND_IN}/.{program}")
        } else {
            format!("/usr/bin/{program}")
        };
        let text = format!(
            "#!/bin/bash\nme={real}\nstop() {{ kill -9 \"$(</run/arrive.pid)\"; exit 1; }}\n\
             calls=/run/calls.{program}\nn=$(($(cat $calls 2>/dev/null) + 1))\n\
             if [[ $* == {with} ]]; then echo $n >$calls; else n=; fi\n\
             if [[ $n == {number} ]]; then\n{how}\nfi\nexec \"$me\" \"$@\"\n"
        );
        fs::write(&at, text).unwrap();
        fs::set_permissions(&at, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// One run of all of it, which a stand-in may end.
    fn run_all(&self, words: &str) -> Done {
        let calls = "rm -f /run/calls.*; echo $$ >/run/arrive.pid;";
        let script =
            if self.target.at(&SCRIPT[1..]).exists() { SCRIPT } else { "/run/codchi-arrive" };
        self.target.paste(&format!("{calls} exec bash {script} all --yes {words}"))
    }
}

fn swapped(id: u32) -> u32 {
    match id {
        71 => 302,
        302 => 71,
        id => id,
    }
}

fn furnish(fixture: &Fixture) {
    let place = fixture.configured("m", CONFIG);
    let root = Maker::new(&place.rootfs);
    let names = b"root:x:0:0::/:\npostgres:x:71:71::/:\nweb:x:302:302::/:\n";
    root.file("etc/passwd", names).file("etc/group", b"postgres:x:71:\nweb:x:302:\n");
    for name in ODD {
        let path = [b"srv/".as_slice(), name].concat();
        root.file(&path, b"of the machine\n");
    }
    root.file("srv/tool", b"#!/bin/sh\n")
        .file("srv/data", &[7; 300_000])
        .file("srv/shared", b"x\n");
    root.file("srv/db", b"15\n")
        .own("srv/db", 71, 71)
        .own("srv/tool", 302, 71)
        .mode("srv/tool", 0o6755);
    let acl = xattr::acl(&[('U', 0, 6), ('u', 71, 4), ('G', 0, 0), ('m', 0, 4), ('o', 0, 0)]);
    xattr::set(&place.rootfs.join("srv/shared"), ACCESS, &acl).unwrap();
    root.own("srv/shared", 302, 302);
    Maker::new(&place.home).file("project/README", b"of the machine\n");
}

/// Where a run is cut off: the program, its words, and what happens then.
const FAULTS: &[(&str, &str, &str, &str)] = &[
    ("killed before and after each renaming", "mv", "*", "((n % 2)) || \"$me\" \"$@\"; stop"),
    ("killed while copies are kept", "cp", "*", "stop"),
    ("killed at each tar", "tar", "*", "stop"),
    (
        "killed in the middle of the extraction",
        "tar",
        "*-xpf*",
        "head -c 200000 /root/codchi-export.tar >/run/half; \"$me\" \"${@/\\/root\\/codchi-export.tar//run/half}\"; stop",
    ),
    (
        "killed at each step of the rebuild",
        "nixos-rebuild",
        "*",
        "((n % 2)) || \"$me\" \"$@\"; stop",
    ),
    ("a rebuild that fails", "nixos-rebuild", "*", "echo error: attribute missing >&2; exit 1"),
    ("killed before a file is given away", "chown", "*", "stop"),
    ("killed after a file is given away", "chown", "*", "\"$me\" \"$@\"; stop"),
    ("killed while modes are set", "chmod", "*", "stop"),
    ("killed while ACLs are set", "setfacl", "*", "((n % 2)) || \"$me\" \"$@\"; stop"),
];

#[test]
fn whatever_stops_it_a_further_run_ends_verified_and_one_more_changes_nothing() {
    for (what, program, with, how) in FAULTS {
        let moved = Move::copied();
        let own = moved.target.at("home/codchi/project/README");
        fs::create_dir_all(own.parent().unwrap()).unwrap();
        fs::write(&own, "the target's\n").unwrap();
        // A directory that is there keeps its owner.
        std::os::unix::fs::chown(own.parent().unwrap(), Some(1000), Some(100)).unwrap();
        let mut cut_off = 0;
        // One call later each time: a program that is not called so often lets the run end.
        for number in 1.. {
            assert!(number < 60, "{what}: it never ends");
            moved.at_call(program, with, number, how);
            let done = moved.run_all("");
            if done.code == Some(0) {
                break;
            }
            cut_off += 1;
        }
        assert!(cut_off > 0, "{what}: nothing was cut off");
        assert!(moved.target.at("var/lib/codchi-arrive/verified").exists(), "{what}");
        moved.assert_arrived(what);
        let kept = moved.target.at("var/lib/codchi-arrive/before/home/codchi/project/README");
        assert_eq!(fs::read_to_string(kept).unwrap(), "the target's\n", "{what}");
        let before = moved.everything();
        moved.run_all("").ok();
        before.assert_same(&moved.everything(), what);
    }
}

#[test]
fn a_disk_that_is_full_is_said_and_nothing_is_lost() {
    let moved = Move::copied();
    let srv = moved.target.at("srv");
    run(program("mount", ["-t", "tmpfs", "-o", "size=128k", "none"]).arg(&srv)).silent();
    let done = moved.run_all("").exits(1);
    assert!(done.err().contains("not all was extracted"), "{}", done.err());
    assert!(!moved.target.at("var/lib/codchi-arrive/verified").exists());
    run(program("mount", ["-o", "remount,size=16m"]).arg(&srv)).silent();
    moved.run_all("").ok();
    moved.assert_arrived("after there was room");
}

#[test]
fn a_copy_that_is_cut_off_changes_nothing() {
    let moved = Move::copied();
    let copy = fs::File::options().write(true).open(moved.target.at(&COPY[1..])).unwrap();
    copy.set_len(copy.metadata().unwrap().len() / 2).unwrap();
    let done = moved.first("extract --yes").exits(1);
    assert!(done.err().contains("no whole archive, and nothing was changed"), "{}", done.err());
    assert!(
        !moved.target.at("srv/data").exists() && !moved.target.at("etc/codchi-members").exists()
    );
}

/// Changes of a target, as a script, and what is said of each. `?` can be agreed to, STOP cannot.
const FINDINGS: &[(&str, &str)] = &[
    ("rm /etc/NIXOS", "STOP  this is no NixOS"),
    ("rm /etc/nixos/hardware-configuration.nix", "STOP  the rebuild takes the boot loader"),
    (
        "sed -i '/^codchi:/d' /etc/passwd; echo 'alice:x:1000:100::/:' >>/etc/passwd",
        "?     alice has the id 1000",
    ),
    (
        "sed -i '/^codchi:/d' /etc/passwd; echo 'alice:x:1000:100::/:' >>/etc/passwd; sed -i 's/networking/users.users.alice.isNormalUser = true; &/' /etc/nixos/configuration.nix",
        "STOP  alice has the id 1000",
    ),
    ("sed -i 's/^codchi:x:1000/codchi:x:1001/' /etc/passwd", "STOP  codchi has the id 1001"),
    (
        "echo 'bob:x:1002:100::/:' >>/etc/passwd",
        "drops these users, who are not declared in /etc/nixos:\n       bob ",
    ),
    (
        "echo 'bob:x:1002:100::/:' >>/etc/passwd; echo 'bob:$6$x:1::::::' >>/etc/shadow; sed -i 's/networking/users.users.bob.isNormalUser = true; &/' /etc/nixos/configuration.nix",
        "locks the passwords of these users, who have none declared:\n       bob.",
    ),
    ("sed -i 's/^root:[^:]*/root:$6$x/' /etc/shadow", "have none declared:\n       root."),
    ("rm /root/.ssh/authorized_keys", "?     root has no ssh key"),
    ("echo '{ }' >/etc/nixos/flake.nix", "?     this system has a flake of its own"),
    (
        "sed -i 's/24.05/25.11/' /etc/os-release",
        "?     this is NixOS 25.11, and the machine is NixOS 24.05",
    ),
    ("touch -d '+2 days' /run/codchi-arrive", "?     the clock is behind"),
    (
        "printf '#!/bin/sh\\necho riscv64\\n' >/run/stand-in/uname; chmod +x /run/stand-in/uname",
        "STOP  the machine is for",
    ),
];

#[test]
fn what_is_in_the_way_is_said_before_anything_is_changed() {
    let moved = Move::new();
    let lock = serde_json::json!({ "version": 7, "root": "r", "nodes": {
        "r": { "inputs": { "codchi_driver": "d" } }, "d": { "inputs": { "nixpkgs": "n" } },
        "n": { "original": { "ref": "nixos-24.05" } } } });
    fs::write(moved.fixture.place("m").config.join("flake.lock"), lock.to_string()).unwrap();
    moved.copy();
    let save = "tar -C / -cf /run/saved.tar etc root/.ssh run/codchi-arrive";
    moved.target.paste(save).ok();
    moved.first("check").ok();
    let few = "mkdir /run/few; ln -s /usr/bin/* /run/few/; cd /run/few; rm git getent; PATH=/run/stand-in:/run/few";
    let done = moved.target.paste(&format!("{few} bash /run/codchi-arrive check")).exits(1);
    let said = "STOP  missing here: getent git. For this run, type:\n      nix-shell -p getent git --run 'bash ";
    assert!(done.out().contains(said), "{}", done.out());
    for (change, said) in FINDINGS {
        moved.target.paste(change).ok();
        let before = moved.everything();
        let done = moved.first("check");
        assert!(done.out().contains(said), "{change}: {}", done.out());
        let stops = said.starts_with("STOP");
        assert_eq!(done.code, Some(i32::from(stops)), "{change}: {}", done.out());
        // Whoever is not there agrees to nothing; `--yes` does not mend what is broken.
        moved.first("extract").exits(if stops { 1 } else { 3 });
        if stops {
            moved.first("extract --yes").exits(1);
        }
        let state = |path: &[u8]| !path.starts_with(b"var/lib/codchi-arrive") && path != b"var/lib";
        before.filtered(state).assert_same(&moved.everything().filtered(state), change);
        let back = "rm -rf /etc/nixos/* /run/stand-in/uname; tar -C / -xpf /run/saved.tar";
        moved.target.paste(back).ok();
    }
}

#[test]
fn nobody_at_the_keyboard_is_told_what_to_type() {
    let moved = Move::copied();
    moved.target.paste("rm /root/.ssh/authorized_keys; sed -i '/^codchi:/d' /etc/shadow").ok();
    let done = moved.first("extract").exits(3);
    assert!(done.out().contains("bash /run/codchi-arrive extract --yes"), "{}", done.out());
    moved.first("extract --yes").ok();
    let done = moved.arrive("all --yes").exits(3);
    assert!(
        done.out().contains(&format!("bash {SCRIPT} all --password-file FILE --yes")),
        "{}",
        done.out()
    );
    assert!(!moved.target.at("etc/nixos/codchi-arrive.nix").exists());
    fs::write(moved.target.at("run/password"), "it's $(id)\n").unwrap();
    moved.arrive("all --yes --password-file /run/password").ok();
    let hash = fs::read_to_string(moved.target.at("var/lib/codchi-arrive/password")).unwrap();
    let crypt = "import crypt, sys; print(crypt.crypt(sys.argv[1], sys.argv[2]))";
    let again = run(program("python3", ["-Wignore", "-c", crypt, "it's $(id)", hash.trim()]));
    assert_eq!(again.ok().out(), hash);
    let mode = moved.target.at("var/lib/codchi-arrive/password").metadata().unwrap().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let nix = fs::read_to_string(moved.target.at("etc/nixos/codchi-arrive.nix")).unwrap();
    assert!(nix.contains("hashedPasswordFile = \"/var/lib/codchi-arrive/password\""), "{nix}");
    for usage in ["", "nothing", "all x", "--no", "keep", "check --password-file"] {
        moved.arrive(usage).exits(2);
    }
}

#[test]
fn somebody_at_the_keyboard_is_asked() {
    let moved = Move::copied();
    moved.target.paste("rm /root/.ssh/authorized_keys; sed -i '/^codchi:/d' /etc/shadow").ok();
    let typed = |answers: &str, words: &str| {
        let terminals =
            "mkdir -p /dev/pts && mount -t devpts -o newinstance,ptmxmode=666 none /dev/pts &&
            ln -sf pts/ptmx /dev/ptmx && { [ -e /dev/tty ] || mknod -m 666 /dev/tty c 5 0; }";
        let inner = format!("bash /run/codchi-arrive {words}");
        moved
            .target
            .paste(&format!("{terminals} && printf '{answers}' | script -qec '{inner}' /dev/null"))
    };
    let done = typed("n\\n", "extract").exits(1);
    assert!(done.out().contains("Nothing more was changed"), "{}", done.out());
    assert!(!moved.target.at("srv").join("data").exists());
    typed("y\\n", "extract").ok();
    // What was agreed to is not asked again.
    let done = typed("secret\\nother\\n", "all").exits(1);
    assert!(
        done.err().contains("not the same") || done.out().contains("not the same"),
        "{}",
        done.out()
    );
    typed("secret\\nsecret\\n", "all").ok();
    moved.assert_arrived("with answers");
}

#[test]
fn nothing_of_the_target_is_overwritten_without_a_kept_copy() {
    let moved = Move::new();
    let home = moved.fixture.place("m").home;
    Maker::new(&home).file("dir/x", b"x\n").file(".ssh/config", b"of the machine\n");
    moved.copy();
    let target = Maker::new(&moved.target.root);
    for name in ODD {
        target.file(
            &[b"srv/".as_slice(), name].concat(),
            &[b"of the target: ".as_slice(), name].concat(),
        );
    }
    target.file("etc/nixos/flake.nix", b"{ own = 1; }\n").file("srv/other", b"untouched\n");
    target.symlink("/srv", "home/codchi/dir").file("home/codchi/.ssh/config", b"of the target\n");
    let own = Snapshot::full(&moved.target.at("srv"));
    moved.first("extract --yes").ok();
    let kept = moved.target.at("var/lib/codchi-arrive/before");
    let of_srv = own.filtered(|path| path != b"other");
    of_srv.assert_same(&Snapshot::full(&kept.join("srv")), "kept copies");
    assert_eq!(fs::read_link(kept.join("home/codchi/dir")).unwrap(), Path::new("/srv"));
    assert_eq!(
        fs::read(moved.target.at("etc/nixos/flake.nix.before-codchi")).unwrap(),
        b"{ own = 1; }\n"
    );
    assert_eq!(fs::read(moved.target.at("srv/other")).unwrap(), b"untouched\n");
    assert!(!moved.target.at("srv/x").exists(), "a link of the target was followed");
    // A newer copy, before all is done: what it overwrites is the machine's, but for names that are new.
    Maker::new(&home).file("project/README", b"newer\n").file("late", b"of the machine\n");
    target.file("home/codchi/late", b"of the target\n");
    moved.copy();
    let before = Snapshot::full(&kept).nodes.len();
    moved.run_all("").ok();
    assert_eq!(Snapshot::full(&kept).nodes.len(), before + 1);
    assert_eq!(fs::read(kept.join("home/codchi/late")).unwrap(), b"of the target\n");
    assert_eq!(fs::read(moved.target.at("home/codchi/project/README")).unwrap(), b"newer\n");
    // One that comes when all is done asks, and keeps what has become of the files since.
    target.file("home/codchi/project/README", b"worked on\n");
    Maker::new(&home).file("project/README", b"newest of all\n");
    moved.copy();
    moved.arrive("extract").exits(3);
    moved.arrive("extract --yes").ok();
    assert_eq!(fs::read(kept.join("home/codchi/project/README")).unwrap(), b"worked on\n");
    assert!(kept.with_file_name("before.1").join("home/codchi/late").exists());
}

#[test]
fn a_list_of_names_keeps_copies_for_a_stream_and_for_rsync() {
    let moved = Move::new();
    let target = Maker::new(&moved.target.root);
    target.file(b"srv/new\nline", b"of the target\n");
    let mounted = common::mounted::Mounted::new(&moved.fixture);
    let rootfs = mounted.rootfs("m");
    let names = run(program("find", [".", "-print0"]).current_dir(&rootfs)).ok().stdout;
    fs::write(moved.target.at("run/names"), names).unwrap();
    fs::copy(rootfs.join(&SCRIPT[1..]), moved.target.at("run/codchi-arrive")).unwrap();
    moved.target.paste("bash /run/codchi-arrive keep - </run/names").ok();
    let kept = moved.target.at("var/lib/codchi-arrive/before/srv/new\nline");
    assert_eq!(fs::read(kept).unwrap(), b"of the target\n");
    let copy = moved.target.at("run/stream.tar");
    run(program("cp", [mounted.tar("m"), copy])).silent();
    moved.target.paste("bash /run/codchi-arrive extract - --yes </run/stream.tar").ok();
    let sums = moved.fixture.run(["manifest", "--sums", "m"]).ok().stdout;
    fs::write(moved.target.at("run/sums"), sums).unwrap();
    moved.target.paste(&format!("bash {SCRIPT} verify - </run/sums")).ok();
    moved.arrive("all").ok();
    moved.assert_arrived("through a stream");
    mounted.unmount();
}

#[test]
fn damage_is_found_before_a_service_starts_and_said_without_a_raw_byte() {
    let moved = Move::copied();
    moved.first("extract").ok();
    let sums = moved.fixture.run(["manifest", "--sums", "m"]).ok().stdout;
    let damage = |path: &str, text: &[u8]| {
        let at = moved.target.at("srv").join(path);
        let times = at.metadata().unwrap().modified().unwrap();
        let file = fs::File::options().write(true).open(&at).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, text, 0).unwrap();
        file.set_modified(times).unwrap();
    };
    let odd = "new\nline";
    for (by, list) in [("sums", "</run/sums"), ("archive", "")] {
        let verify = || match by {
            "sums" => moved.target.paste(&format!("bash {SCRIPT} verify - {list}")),
            _ => moved
                .target
                .paste(&format!("rm -f /var/lib/codchi-arrive/sums; bash {SCRIPT} verify")),
        };
        fs::write(moved.target.at("run/sums"), &sums).unwrap();
        verify().ok();
        for path in ["data", odd] {
            damage(path, b"!");
            let done = verify().exits(1);
            let shown = show(format!("/srv/{path}").as_bytes());
            let printed = done.err();
            assert!(
                printed.contains("/srv/data") || printed.contains("/srv/new\\nline"),
                "{by} {shown}: {printed}"
            );
            assert!(
                printed.bytes().all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte)),
                "{printed}"
            );
            moved.arrive("all").exits(1);
            let right = if path == "data" { &[7_u8][..] } else { &b"o"[..] };
            damage(path, right);
        }
        let (file, aside) = (moved.target.at("srv/-rf"), moved.target.at("run/aside"));
        fs::rename(&file, &aside).unwrap();
        let done = verify().exits(1);
        assert!(done.err().contains("/srv/-rf"), "{}", done.err());
        fs::rename(&aside, &file).unwrap();
    }
    // A list that is no list, or of which a part is none, proves nothing.
    for list in [b"".to_vec(), b"<html>\n".to_vec(), [&sums[..], &b"abc\n"[..]].concat()] {
        fs::write(moved.target.at("run/sums"), list).unwrap();
        moved.target.paste(&format!("bash {SCRIPT} verify - </run/sums")).exits(1);
    }
}

#[test]
fn nothing_that_a_machine_can_forge_decides_anything() {
    let moved = Move::new();
    let root = Maker::new(&moved.fixture.place("m").rootfs);
    // Its own state of an arrival, its own copy of itself, a script, keys, a password, settings of git.
    for name in ["verified", "names", "password", "agreed", "rebuilt", "arrived", "own-key", "sums"]
    {
        root.file(&format!("var/lib/codchi-arrive/{name}"), b"forged\n");
    }
    root.file("etc/codchi-members", b"f 302 302\0/root/victim\0\0\0");
    root.file("etc/nixos/codchi-arrive", b"touch /PWNED\n")
        .file("etc/nixos/codchi-owners", b"user root 302\n");
    root.file("root/codchi-export.tar", b"forged\n")
        .file("root/.ssh/authorized_keys", b"ssh-ed25519 EVIL\n");
    root.file("etc/NIXOS", b"").file("srv/\x1b]0;x\x07", b"x\n");
    moved.copy();
    let copy = fs::read(moved.target.at(&COPY[1..])).unwrap();
    fs::write(moved.target.at("root/victim"), "x\n").unwrap();
    std::os::unix::fs::chown(moved.target.at("root/victim"), Some(302), Some(302)).unwrap();
    let mut printed = moved.first("extract").ok();
    assert!(!moved.target.at("var/lib/codchi-arrive/password").exists());
    assert!(
        fs::read(moved.target.at(&COPY[1..])).unwrap() == copy,
        "the copy was replaced by the machine's"
    );
    let keys = fs::read_to_string(moved.target.at("root/.ssh/authorized_keys")).unwrap();
    assert_eq!(keys, "ssh-ed25519 AAAA admin\n");
    for words in ["all", "status", "check"] {
        let done = moved.arrive(words).ok();
        printed.stdout.extend(done.stdout);
        printed.stderr.extend(done.stderr);
    }
    let raw = |byte: &u8| *byte != b'\n' && !(b' '..=b'~').contains(byte);
    assert!(!printed.stdout.iter().chain(&printed.stderr).any(raw), "{:?}", printed.out());
    let victim = moved.target.at("root/victim").metadata().unwrap();
    assert_eq!((victim.uid(), victim.gid()), (302, 302));
    assert!(!moved.target.at("PWNED").exists());
    moved.assert_arrived("a hostile machine");
}

#[test]
fn postgresql_of_another_version_is_named_before_it_starts_empty() {
    let moved = Move::new();
    Maker::new(&moved.fixture.place("m").rootfs).file("var/lib/postgresql/15/PG_VERSION", b"15\n");
    moved.copy();
    let unit = |version: u32| {
        let add = format!(
            "mkdir -p \"$system/etc/systemd/system\"; echo 'ExecStart=/nix/store/x-postgresql-{version}.4/bin/postgres' >\"$system/etc/systemd/system/postgresql.service\""
        );
        let at = moved.target.at(&format!("{STAND_IN}/nixos-rebuild")[1..]);
        let text = fs::read_to_string(&at).unwrap();
        let text =
            text.lines().filter(|line| !line.contains("postgresql")).collect::<Vec<_>>().join("\n");
        fs::write(&at, format!("{text}\n{add}\n")).unwrap();
    };
    unit(16);
    let done = moved.run_all("").exits(1);
    assert!(done.err().contains("pkgs.postgresql_15"), "{}", done.err());
    assert!(!moved.target.at("nix/var/nix/profiles/system").exists(), "it would start");
    unit(15);
    moved.run_all("").ok();
}

#[test]
fn shellcheck_has_nothing_to_say() {
    let moved = Move::copied();
    run(program("shellcheck", ["--severity=style"]).arg(moved.target.at("run/codchi-arrive")))
        .silent();
}

#[test]
fn an_older_bash_runs_it_as_well() {
    let moved = Move::copied();
    let own = Maker::new(&moved.target.root);
    own.file(b"srv/new\nline", b"of the target\n");
    fs::copy(older_bash(), moved.target.at(&format!("{STAND_IN}/bash")[1..])).unwrap();
    let version = moved.target.paste("echo $BASH_VERSION").ok().out();
    assert!(version.starts_with("5.1."), "{version}");
    moved.run_all("").ok();
    moved.assert_arrived("by an older bash");
    let kept = moved.target.at("var/lib/codchi-arrive/before/srv/new\nline");
    assert_eq!(fs::read(kept).unwrap(), b"of the target\n");
    let before = moved.everything();
    moved.run_all("").ok();
    before.assert_same(&moved.everything(), "run twice");
}
