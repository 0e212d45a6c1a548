//! The whole journey of a machine out of a real LXD, by the very commands that its `MIGRATE.md` shows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::{Fixture, Maker};
use common::guide::{Block, blocks, of_text, one_line, with};
use common::lxd::{Host, LXD, Server, UID};
use common::mounted::Mounted;
use common::snapshot::{Node, Snapshot};
use common::target::Target;
use common::xattr::{self, ACCESS};
use common::{Done, program, run, wait_until};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

const MACHINE: &str = "demo";
/// Where the machine has files that a target has none of.
const TOPS: [&str; 4] = ["home/codchi", "srv", "var/lib/postgresql", "var/lib/web"];
/// Large enough that a line may break while it travels.
const LARGE: usize = 12 << 20;
/// As the page has it, for whoever is not there to be asked.
const EXTRACT: &str =
    "tar --occurrence -xOf /root/codchi-export.tar ./etc/nixos/codchi-arrive >/run/codchi-arrive
    bash /run/codchi-arrive extract";
const OWNERS: &str = "bash /etc/nixos/codchi-arrive owners";
/// Bytes after which it does.
const BREAKS_AFTER: u32 = 3_000_000;

const CONFIG: &str = r##"{"nixpkgs_from": null,
    "modules": {"project": "file://project?ref=main#nixosModules.default"},
    "secrets": {"GREETING": "it's \"quoted\" $HOME"}}"##;

/// The databases and services of a developer, in a machine that was never started: its ids are not shifted yet.
fn furnish(server: &Server) {
    let rootfs = server.rootfs(MACHINE);
    let init = rootfs.join("sbin/init");
    fs::write(&init, "#!/bin/sh\ntrap 'exit 0' PWR TERM\nwhile :; do /bin/busybox sleep 1; done\n")
        .unwrap();
    let root = Maker::new(&rootfs);
    root.file(
        "etc/passwd",
        b"root:x:0:0::/root:/bin/sh\npostgres:x:71:71::/:\nweb:x:302:302::/:\n",
    );
    root.file("etc/group", b"root:x:0:\npostgres:x:71:\nweb:x:302:\n");
    let data: Vec<u8> = (0..LARGE).map(|i| (i / 3) as u8 ^ (i >> 9) as u8).collect();
    root.file("var/lib/postgresql/15/base/1", &data)
        .file("var/lib/postgresql/15/PG_VERSION", b"15\n");
    root.holes("var/lib/postgresql/15/pg_wal/1", 16 << 20);
    root.file("var/lib/postgresql/15/a new\nline -> 'x' \"y\" \\ $(id)", b"hostile\n");
    root.file(b"var/lib/postgresql/15/\xff\x01\x31", b"hostile\n")
        .symlink("15 -> 16", "var/lib/postgresql/a -> b");
    root.file("var/lib/web/tool", b"#!/bin/sh\n").file("var/lib/web/capable", b"#!/bin/sh\n");
    root.file("var/lib/web/shared", b"x\n").link("var/lib/web/shared", "var/lib/web/shared too");
    root.file("var/lib/web/root's", b"x\n").fifo("var/lib/web/fifo");
    let script = "chown -hR 71:71 postgresql && chmod 700 postgresql && chmod 600 postgresql/15/base/1
        chown -hR 302:302 web && chown 0:302 \"web/root's\" && chmod 6755 web/tool && setcap cap_net_bind_service+ep web/capable
        setfacl -m u:71:rw,g:71:r web/shared && setfacl -d -m u:71:rx web && setfattr -n user.note -v x web/tool";
    run(program("bash", ["-euc", script]).current_dir(rootfs.join("var/lib"))).silent();
    let home = server.host.home(MACHINE);
    Maker::new(&home).file(
        "project/flake.nix",
        b"{ outputs = _: { nixosModules.default = { marks = [ \"project\" ]; }; }; }\n",
    );
    let script = "cd \"$1/project\" && chown 0:0 . && git init -q -b main && git add . &&
        git -c user.name=a -c user.email=a@b commit -qm first && chown -R 101000:100100 .";
    run(program("bash", ["-euc", script, "-"]).arg(&home)).silent();
    fs::write(server.host.config().join("machine").join(MACHINE).join("config.json"), CONFIG)
        .unwrap();
}

/// The host's shell, where `vm` is a host of ssh as a person has it in `~/.ssh/config`.
struct Shell<'a> {
    server: &'a Server,
    bin: std::path::PathBuf,
}

impl<'a> Shell<'a> {
    fn new(server: &'a Server) -> Self {
        let bin = server.host.path().join("bin");
        fs::create_dir(&bin).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_codchifs"), bin.join("codchifs")).unwrap();
        for name in ["ssh", "scp"] {
            let config = bin.join("config");
            let text =
                format!("#!/bin/sh\nexec /usr/bin/{name} -F '{}' \"$@\"\n", config.display());
            fs::write(bin.join(name), text).unwrap();
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        // Whoever runs the tests is root already.
        fs::write(bin.join("sudo"), "#!/bin/sh\nexec \"$@\"\n").unwrap();
        fs::set_permissions(bin.join("sudo"), fs::Permissions::from_mode(0o755)).unwrap();
        Self { server, bin }
    }

    /// From now on `vm` is this one; with `breaks`, its line breaks after some megabytes.
    fn reach(&self, target: &Target, breaks: bool) {
        let proxy = format!(
            "ProxyCommand bash -c 'exec 3<>/dev/tcp/127.0.0.1/%p; cat <&3 & \
             dd bs=65536 count={BREAKS_AFTER} iflag=count_bytes status=none >&3; kill $!'\n"
        );
        let config = target.sshd.client_config("vm") + if breaks { &proxy } else { "" };
        fs::write(self.bin.join("config"), config).unwrap();
    }

    /// Commands of the page, after the one that says where it goes.
    fn paste(&self, page: &[Block], commands: &str) -> Done {
        let target = &with(page, "TARGET=").commands;
        let path = format!("{}:{}", self.bin.display(), std::env::var("PATH").unwrap());
        let script = format!("{target}\nset -e\n{commands}");
        let mut bash = self.server.env(program("bash", ["-c", &script]));
        run(bash.env("PATH", path).current_dir(self.server.host.path()))
    }
}

fn page(mounted: &Mounted) -> Vec<Block> {
    blocks(&mounted.point().join(MACHINE).join("MIGRATE.md"))
}

/// What a tar keeps: whole seconds.
fn seen(top: &Path) -> Snapshot {
    Snapshot::full(top).map(|_, node| node.nsec = 0)
}

fn assert_arrived(mounted: &Mounted, target: &Target, change: fn(&[u8], &mut Node), what: &str) {
    for top in TOPS {
        let there = seen(&target.at(top));
        let here = seen(&mounted.rootfs(MACHINE).join(top)).map(change);
        assert!(!here.nodes.is_empty(), "{top}");
        here.assert_same(&there, &format!("{top}, {what}"));
    }
}

/// Two services have each other's ids.
fn swapped(id: u32) -> u32 {
    match id {
        71 => 302,
        302 => 71,
        id => id,
    }
}

fn swap(_: &[u8], node: &mut Node) {
    (node.uid, node.gid) = (swapped(node.uid), swapped(node.gid));
    for acl in node.xattrs.iter_mut().filter(|(name, _)| name.starts_with(b"system.posix_acl_")) {
        for ace in acl.1[4..].chunks_mut(8) {
            let id = swapped(u32::from_le_bytes(ace[4..].try_into().unwrap()));
            ace[4..].copy_from_slice(&id.to_le_bytes());
        }
    }
}

/// Everything from the extracted files on, which a person does on the target.
fn settle(target: &Target, page: &[Block]) {
    let own = target.at("var/lib/own");
    fs::write(&own, "the target's own\n").unwrap();
    std::os::unix::fs::chown(&own, Some(71), Some(302)).unwrap();
    let done = target.paste(&with(page, "codchi-arrive all").commands).ok();
    assert!(!done.err().contains("left as it is"), "{}", done.err());
    let meta = own.metadata().unwrap();
    assert_eq!((meta.uid(), meta.gid()), (71, 302), "what is the target's own was renumbered");
    let configuration = fs::read_to_string(target.at("etc/nixos/configuration.nix")).unwrap();
    assert!(configuration.contains("/* system.stateVersion = \"22.05\"; */"), "{configuration}");
    let evaluated = fs::read_to_string(target.at("root/evaluated")).unwrap();
    let evaluated: serde_json::Value = serde_json::from_str(&evaluated).unwrap();
    let expected = serde_json::json!({"marks": ["project"], "driver": "none", "host": "moved"});
    assert_eq!(evaluated, expected, "the flake, with its local module and configuration.nix");
    let shadow = fs::read_to_string(target.at("etc/shadow")).unwrap();
    assert!(
        shadow.contains("\ncodchi:$6$own:"),
        "the password of the target's codchi is another one"
    );
}

/// Ways of docs/MIGRATION.md, for this machine.
fn ways(mounted: &Mounted) -> Vec<Block> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/MIGRATION.md"));
    let page =
        page.unwrap().replace("/mnt/codchi/NAME", mounted.point().join(MACHINE).to_str().unwrap());
    of_text(&page)
}

fn run_and_stop(server: &Server, shell: &Shell<'_>, mounted: &Mounted) {
    let says = |text: &str| {
        let page = mounted.point().join(MACHINE).join("MIGRATE.md");
        one_line(&fs::read_to_string(page).unwrap()).contains(text)
    };
    server.client(&["start", "codchi-demo"]).ok();
    wait_until("the warning", || says("**It runs:**"));
    let page = page(mounted);
    let stop = with(&page, "lxc stop").commands.lines().next().unwrap();
    shell.paste(&page, stop).ok();
    wait_until("the end of the warning", || says("stopped already"));
}

#[test]
fn a_machine_moves_by_the_commands_of_its_page() {
    let server = Server::new(LXD, "dir");
    furnish(&server);
    let host: &Host = &server.host;
    let mounted = host.mount("mnt");
    let shell = Shell::new(&server);
    run_and_stop(&server, &shell, &mounted);
    let size = fs::metadata(mounted.tar(MACHINE)).unwrap().len();
    wait_until("the scan in the page", || {
        let page = mounted.point().join(MACHINE).join("MIGRATE.md");
        fs::read_to_string(page).unwrap().contains(&size.to_string())
    });
    let page = page(&mounted);
    let command = |part: &str| &with(&page, part).commands;

    // By the page, over a line that breaks.
    let target = Target::new(&host.path().join("by-page"));
    let copy = target.at("root/codchi-export.tar");
    shell.reach(&target, true);
    let broken = shell.paste(&page, command("--append-verify"));
    assert_ne!(broken.code, Some(0), "the line did not break");
    // The other end may hear of it later.
    let partial = || copy.metadata().map_or(0, |meta| meta.len());
    wait_until("a part of the copy", || partial() > 0);
    assert!(partial() < size, "{} of {size}", partial());
    shell.reach(&target, false);
    shell.paste(&page, command("--append-verify")).ok();
    run(program("cmp", [&mounted.tar(MACHINE), &copy])).silent();

    target.paste(command("tar --occurrence")).ok();
    assert_arrived(&mounted, &target, |_, _| (), "extracted");
    shell.paste(&page, command("--sums")).ok();
    settle(&target, &page);
    assert_arrived(&mounted, &target, swap, "with the owners of the target");
    // Whoever runs it twice changes nothing.
    target.paste("bash /etc/nixos/codchi-arrive owners").ok();
    assert_arrived(&mounted, &target, swap, "renumbered twice");

    let verify = || host.run(&["verify", MACHINE, target.root.to_str().unwrap(), "--renumbered"]);
    let said = verify().exits(1).out();
    assert_eq!(said, "/etc/nixos/flake.nix: content, size, mtime (changed in the copy)\n");
    let as_user = "su - codchi -c 'git --no-optional-locks -C project status --porcelain && echo more >>project/flake.nix && printf %s \"$CODCHI_GREETING\"'";
    assert_eq!(target.paste(as_user).ok().out(), "it's \"quoted\" $HOME");
    let damaged = target.at("var/lib/postgresql/15/base/1");
    let times = damaged.metadata().unwrap().modified().unwrap();
    let file = fs::File::options().write(true).open(&damaged).unwrap();
    file.write_all_at(b"!", 4096).unwrap();
    file.set_modified(times).unwrap();
    let said = verify().exits(1).out();
    assert_eq!(
        said.lines().collect::<Vec<_>>(),
        [
            "/etc/nixos/flake.nix: content, size, mtime (changed in the copy)",
            "/home/codchi/project/flake.nix: content, size, mtime (changed in the copy)",
            "/var/lib/postgresql/15/base/1: content (damaged in the copy)"
        ]
    );
    target.paste("rm -f /root/codchi-export.tar").ok();
    assert!(!copy.exists());

    // The ways of docs/MIGRATION.md. Without a file on the target:
    let ways = ways(&mounted);
    let way = |part: &str| &with(&ways, part).commands;
    let target = Target::new(&host.path().join("by-pipe"));
    shell.reach(&target, false);
    shell.paste(&page, way("keep -")).ok();
    shell.reach(&target, true);
    assert!(shell.paste(&page, way("extract -")).out().contains("NOT whole"));
    shell.reach(&target, false);
    assert!(shell.paste(&page, way("extract -")).ok().out().contains("arrived"));
    shell.paste(&page, command("--sums")).ok();
    settle(&target, &page);
    assert_arrived(&mounted, &target, swap, "through a pipe");

    // The tree, over a line that breaks.
    let target = Target::new(&host.path().join("by-tree"));
    shell.reach(&target, false);
    shell.paste(&page, way("keep -")).ok();
    let tree = way("rsync -aHAXSn").replace("-aHAXSn", "-aHAXS");
    shell.reach(&target, true);
    assert_ne!(shell.paste(&page, &tree).code, Some(0), "the line did not break");
    shell.reach(&target, false);
    shell.paste(&page, &tree).ok();
    shell.paste(&page, command("--sums")).ok();
    settle(&target, &page);
    assert_arrived(&mounted, &target, swap, "as a tree");
    let acl = Snapshot::full(&target.at("var/lib/web")).nodes[b"shared".as_slice()].xattrs.clone();
    assert!(acl.contains_key(ACCESS), "no ACL was there to be renumbered");
    assert_eq!(host.home(MACHINE).metadata().unwrap().uid(), UID);
    mounted.unmount();
}

#[test]
fn renumbering_leaves_alone_what_the_target_has_made_of_a_member() {
    let fixture = Fixture::new();
    let root = Maker::new(&fixture.empty("m").rootfs);
    root.file("etc/passwd", b"web:x:302:302::/:\nghost:x:303:303::/:\n");
    for name in ["plain", "given away", "replaced", "sub/file", "of a ghost"] {
        let path = format!("var/lib/web/{name}");
        root.file(&path, b"x\n").own(&path, 302, 0);
    }
    root.own("var/lib/web/of a ghost", 303, 0);
    let target = Target::new(&fixture.path().join("target"));
    let copy = target.at("root/codchi-export.tar");
    fixture.run(["export", "m", "-q", "-o", copy.to_str().unwrap()]).ok();
    target.paste(EXTRACT).ok();
    let between = "cat /root/users >>/etc/passwd; cd /var/lib/web; chown 5 'given away'
        rm replaced; mkdir replaced; chown 302 replaced; mv sub /srv/elsewhere; ln -s /srv/elsewhere sub";
    target.paste(between).ok();
    let done = target.paste(OWNERS).exits(1);
    for name in ["given\\ away", "replaced", "sub/file"] {
        let line = format!("left as it is: /var/lib/web/{name}\n");
        assert!(done.err().contains(&line), "{name}: {}", done.err());
    }
    assert!(done.err().contains("no user ghost here"), "{}", done.err());
    let owners = ["plain", "given away", "replaced", "../../../srv/elsewhere/file", "of a ghost"]
        .map(|name| target.at("var/lib/web").join(name).metadata().unwrap().uid());
    assert_eq!(owners, [71, 5, 302, 302, 303]);
}

/// Lines that forge a member and its ACL where names are printed as they are, and records of codchi-members.
const FORGED: [&str; 3] = [
    "\n-rw------- 302/302 2 2026-01-01 00:00 \"./root/victim\"\n  a: user::rw-,user:302:rwx,group::r--,mask::rwx,other::rw-\n",
    "\n-rw-------+ 302/302 2 2026-01-01 00:00 ./root/victim\n",
    "\nf 302 302\n/root/victim\nuser::rw-,user:302:rwx,mask::rwx,other::rw-\n\n",
];
/// Names that a shell, a list or a terminal may take for more than a name; each is owned by the service.
const NAMES: [&[u8]; 16] = [
    b"-rf",
    b"--",
    b" ",
    b"a \n",
    b"f 302 302",
    b"a -> ..",
    b"'\"`touch PWNED`$(touch PWNED)\\",
    b"\\0302\\n\\x2f",
    b"*?[a-z]{a,b}",
    b"~",
    b"\xff\x9b\x80",
    b"\x1b]0;x\x07\x1b[2J\r",
    b"\xe2\x80\xae\xc2\x9b",
    b"end\n\n",
    b"...",
    b"|reboot;#",
];

#[test]
fn no_name_in_a_machine_decides_what_is_renumbered() {
    let fixture = Fixture::new();
    let place = fixture.empty("m");
    let passwd = b"web:x:302:302::/:\n$(touch /PWNED):x:303:0::/:\n-h:x:304:0::/:\na b:x:305:0::/:\n?:x:306:0::/:\n\
        *:x:307:0::/:\n\xff:x:308:0::/:\n:x:309:0::/:\nroot[$(touch /PWNED)]:x:310:0::/:\nx:x:311+x[$(touch /PWNED)]:0::/:\n";
    let root = Maker::new(&place.rootfs);
    root.file("etc/passwd", passwd).file("etc/group", passwd);
    let top = place.rootfs.join("srv/web");
    let forged = FORGED.map(|text| text.replace('/', "|"));
    let names = NAMES.iter().copied().chain(forged.iter().map(|text| text.as_bytes()));
    let names: Vec<_> = names.map(OsStr::from_bytes).collect();
    for (number, name) in names.iter().enumerate() {
        let dir = top.join(name);
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join(name);
        fs::write(&file, "x\n").unwrap();
        std::os::unix::fs::symlink(FORGED[0], dir.join("link")).unwrap();
        fs::hard_link(&file, dir.join("other")).unwrap();
        for attribute in FORGED.map(|text| format!("user.{text}")) {
            xattr::set(&file, attribute.as_bytes(), FORGED[0].as_bytes()).unwrap();
        }
        for odd in [&b"user.\xff\xfe"[..], b"user. \"'\\", b"user.=%3D"] {
            xattr::set(&dir, odd, FORGED[0].as_bytes()).unwrap();
        }
        let acl = xattr::acl(&[('U', 0, 6), ('u', 302, 4), ('G', 0, 0), ('m', 0, 4), ('o', 0, 0)]);
        xattr::set(&file, ACCESS, &acl).unwrap();
        for path in [&dir, &file, &dir.join("link")] {
            std::os::unix::fs::lchown(path, Some(302), Some(0)).unwrap();
        }
        let mode = if number % 2 == 0 { 0o4750 } else { 0o640 };
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    }
    // Another machine's user may own it, if no name says whose it is.
    for uid in 303..=311 {
        let path = format!("srv/of {uid}");
        root.file(&path, b"x\n").own(&path, uid, 0);
    }

    let target = Target::new(&fixture.path().join("target"));
    let copy = target.at("root/codchi-export.tar");
    fixture.run(["export", "m", "-q", "-o", copy.to_str().unwrap()]).ok();
    for victim in ["root/victim", "root/own", "etc/own"] {
        fs::write(target.at(victim), "x\n").unwrap();
        fs::set_permissions(target.at(victim), fs::Permissions::from_mode(0o600)).unwrap();
    }
    // Owned as the forged lines have it, so that nothing but the list keeps it from being given away.
    std::os::unix::fs::chown(target.at("root/victim"), Some(302), Some(302)).unwrap();
    // What tar prints has one line for each thing that is there.
    let listed = run(program("tar", ["--xattrs", "--acls", "-tvvvf"]).arg(&copy)).ok().out();
    assert!(!listed.lines().any(|line| line.ends_with("/root/victim")), "{listed}");

    target.paste(EXTRACT).ok();
    target.paste("cat /root/users >>/etc/passwd").ok();
    let check = || {
        let victim = Snapshot::full(&target.at("root"));
        let victim = &victim.nodes[b"victim".as_slice()];
        assert_eq!((victim.uid, victim.gid, victim.mode), (302, 302, 0o600));
        assert!(victim.xattrs.is_empty(), "{:?}", victim.xattrs);
        let here = seen(&place.rootfs.join("srv")).map(|path, node| {
            node.xattrs.retain(|name, _| !name.contains(&b'\n'));
            swap(path, node);
        });
        here.assert_same(&seen(&target.at("srv")), "what the service owns");
        for dir in ["", "root", "srv", "srv/web"] {
            assert!(!target.at(dir).join("PWNED").exists(), "a name was executed in /{dir}");
        }
    };
    let done = target.paste(OWNERS).ok();
    assert_eq!(done.err().matches("stays as it is").count(), 9, "{}", done.err());
    check();
    // Whoever runs it twice changes nothing.
    target.paste(OWNERS).ok();
    check();
}
