//! Every command of root's × every path that a user controls × everything that the user can plant there. Nothing foreign is
//! read, nothing foreign is written, and nothing that the user controls is waited for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::lxd::{Host, UID, shifted, user};
use common::mounted::mounts_on;
use common::plants::{Hung, Namespace};
use common::played::played;
use common::{Done, contains, program, run, wait_until};
use rustix::fs::{CWD, FileType, Mode, RenameFlags, mknodat, renameat_with};
use std::cell::Cell;
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{PermissionsExt as _, chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

/// In every file that is none of the user's.
const MARKER: &str = "marker-7c40d9";
/// Another user of the host.
const OTHER: u32 = 1001;

/// Codchi's directories and a home, all with the marker.
fn marked(top: &Path, uid: u32) -> Vec<PathBuf> {
    fs::create_dir_all(top.join("machine/demo/srv")).unwrap();
    let json = format!(r#"{{"nixpkgs_from":null,"modules":{{}},"secrets":{{"m":"{MARKER}"}}}}"#);
    for file in ["config.json", "flake.nix", "flake.lock", "file", "srv/file"] {
        fs::write(top.join("machine/demo").join(file), &json).unwrap();
    }
    fs::write(top.join("config.toml"), format!("data_dir = \"/{MARKER}\"\n")).unwrap();
    fs::write(top.join("machine/demo").join(MARKER), MARKER).unwrap();
    let listed = run(program("find", [top])).ok().out();
    let all: Vec<PathBuf> = listed.lines().map(PathBuf::from).collect();
    for path in &all {
        chown(path, Some(uid), Some(uid)).unwrap();
    }
    all
}

/// What nobody may have changed: names, owners, modes, sizes, times, contents.
fn state(top: &Path) -> String {
    let listed = run(program("find", [top]).args(["-printf", "%p %U %m %s %T@ %l\\n"])).ok().out();
    let sums = run(program("sh", ["-c", "find \"$0\" -type f -exec sha256sum {} +"]).arg(top));
    listed + &sums.ok().out()
}

/// The stage of one table: the user's machine, and what is not the user's.
struct Stage {
    host: Host,
    /// Root's, in a directory of root's.
    secret: tempfile::TempDir,
    /// Another user's, readable for that user alone.
    other: PathBuf,
    /// Another user's home of a machine and config, mounted in the user's own namespace below directories of the user's.
    namespace: Namespace,
    /// Where the user has more to lead to.
    own: PathBuf,
    /// Whether config.toml says where the homes are, and not the command line.
    by_settings: Cell<bool>,
}

impl Stage {
    fn new() -> Self {
        let host = played();
        let secret = tempfile::Builder::new().prefix("secret-").tempdir_in("/root").unwrap();
        marked(secret.path(), 0);
        let other = host.path().join("other");
        // The home of a machine of theirs has an owner whom all maps have.
        for path in marked(&other, OTHER) {
            if path.starts_with(other.join("machine/demo")) {
                chown(&path, Some(shifted(1000)), Some(shifted(100))).unwrap();
            }
        }
        fs::set_permissions(&other, fs::Permissions::from_mode(0o711)).unwrap();
        fs::set_permissions(other.join("machine"), fs::Permissions::from_mode(0o711)).unwrap();
        for (path, mode) in [("machine/demo", 0o700), ("config.toml", 0o600)] {
            fs::set_permissions(other.join(path), fs::Permissions::from_mode(mode)).unwrap();
        }
        let own = host.path().join("own");
        fs::create_dir(&own).unwrap();
        chown(&own, Some(UID), Some(UID)).unwrap();
        let namespace = Namespace::new(
            UID,
            "mount -t tmpfs none /mnt; mkdir -p /mnt/machine/demo; \
             mount --bind \"$0/machine/demo\" /mnt/machine/demo",
            &[&other],
        );
        Self { host, secret, other, namespace, own, by_settings: Cell::new(false) }
    }

    /// All that must stay as it is and must not be seen.
    fn foreign(&self) -> String {
        state(self.secret.path()) + &state(&self.other)
    }

    /// What `place` is called in a tree that [`marked`] made.
    fn counterpart(&self, place: &Path) -> PathBuf {
        let below = place
            .strip_prefix(self.host.config())
            .or_else(|_| place.strip_prefix(self.host.data()));
        below.unwrap().to_owned()
    }

    fn link(&self, target: &Path, place: &Path) {
        symlink(target, place).unwrap();
        lchown(place, Some(UID), Some(UID)).unwrap();
    }
}

/// A path that the user controls.
type Place = (&'static str, fn(&Host) -> PathBuf);

const READ: &[Place] = &[
    ("the config directory", Host::config),
    ("config.toml", |host| host.config().join("config.toml")),
    ("the machines' config directory", |host| host.config().join("machine")),
    ("the machine's config directory", |host| host.config().join("machine/demo")),
    ("config.json", |host| host.config().join("machine/demo/config.json")),
    ("flake.nix", |host| host.config().join("machine/demo/flake.nix")),
    ("flake.lock", |host| host.config().join("machine/demo/flake.lock")),
    ("the data directory", Host::data),
    ("the way to the home", |host| host.data().join("machine")),
    ("the home", |host| host.home("demo")),
];

/// What is planted, and for as long as it is kept.
struct Plant {
    hung: Vec<Hung>,
    _racing: Option<Racing>,
    _held: Vec<File>,
    _socket: Option<UnixListener>,
    /// Where the command is to stand.
    directory: Option<PathBuf>,
}

impl Plant {
    fn none() -> Self {
        Self { hung: Vec::new(), _racing: None, _held: Vec::new(), _socket: None, directory: None }
    }
}

/// Two names that change places all the time.
struct Racing(Option<(std::sync::mpsc::Sender<()>, std::thread::JoinHandle<u64>)>);

impl Racing {
    fn new(one: &Path, two: &Path) -> Self {
        let (one, two) = (one.to_owned(), two.to_owned());
        let (stop, stopped) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut rounds = 0;
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                for _ in 0..2 {
                    renameat_with(CWD, &one, CWD, &two, RenameFlags::EXCHANGE).unwrap();
                }
                rounds += 1;
                std::thread::yield_now();
            }
            rounds
        });
        Self(Some((stop, thread)))
    }
}

impl Drop for Racing {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.0.take() {
            drop(stop);
            let rounds = thread.join().unwrap();
            assert!(rounds > 0 || std::thread::panicking(), "nothing was tried");
        }
    }
}

/// How something is planted at a place that is free; `kept` is what was there.
type Planting = (&'static str, fn(&Stage, place: &Path, kept: &Path) -> Plant);

const PLANTS: &[Planting] = &[
    ("a link to root's", |stage, place, _| {
        stage.link(&stage.secret.path().join(stage.counterpart(place)), place);
        Plant::none()
    }),
    ("a link to another user's", |stage, place, _| {
        stage.link(&stage.other.join(stage.counterpart(place)), place);
        Plant::none()
    }),
    ("a link to another user's, mounted in a namespace of the user's", |stage, place, _| {
        let below = Path::new("/mnt").join(stage.counterpart(place));
        stage.link(&stage.namespace.path(below.to_str().unwrap()), place);
        Plant::none()
    }),
    ("a link to where the command stands", |stage, place, _| {
        let like = stage.secret.path().join(stage.counterpart(place));
        let (standing, target) = match like.is_dir() {
            true => (like, PathBuf::from("/proc/self/cwd")),
            false => (
                like.parent().unwrap().to_owned(),
                Path::new("/proc/self/cwd").join(like.file_name().unwrap()),
            ),
        };
        stage.link(&target, place);
        Plant { directory: Some(standing), ..Plant::none() }
    }),
    ("a link to what the command has open", |stage, place, _| {
        let held = File::open(stage.secret.path().join(stage.counterpart(place))).unwrap();
        rustix::io::fcntl_setfd(&held, rustix::io::FdFlags::empty()).unwrap();
        stage.link(&PathBuf::from(format!("/dev/fd/{}", held.as_raw_fd())), place);
        Plant { _held: vec![held], ..Plant::none() }
    }),
    ("a link through the root of the command", |stage, place, _| {
        let like = stage.secret.path().join(stage.counterpart(place));
        stage.link(&Path::new("/proc/self/root").join(like.strip_prefix("/").unwrap()), place);
        Plant::none()
    }),
    ("a link to itself", |stage, place, _| {
        stage.link(place, place);
        Plant::none()
    }),
    ("a FIFO", |_, place, _| {
        mknodat(CWD, place, FileType::Fifo, Mode::from(0o644), 0).unwrap();
        chown(place, Some(UID), Some(UID)).unwrap();
        Plant::none()
    }),
    ("a link to a FIFO", |stage, place, _| {
        let fifo = stage.own.join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::from(0o644), 0).unwrap();
        chown(&fifo, Some(UID), Some(UID)).unwrap();
        stage.link(&fifo, place);
        Plant::none()
    }),
    ("a socket", |_, place, _| {
        let socket = UnixListener::bind(place).unwrap();
        Plant { _socket: Some(socket), ..Plant::none() }
    }),
    ("a huge file", |_, place, _| {
        File::create(place).unwrap().set_len(1 << 42).unwrap();
        chown(place, Some(UID), Some(UID)).unwrap();
        Plant::none()
    }),
    ("a link to a terminal", |stage, place, _| {
        stage.link(Path::new("/dev/ptmx"), place);
        Plant::none()
    }),
    ("a link to endless zeros", |stage, place, _| {
        stage.link(Path::new("/dev/zero"), place);
        Plant::none()
    }),
    ("a FUSE that does not answer", |_, place, kept| {
        match kept.is_dir() {
            true => fs::create_dir(place).unwrap(),
            false => drop(File::create(place).unwrap()),
        }
        chown(place, Some(UID), Some(UID)).unwrap();
        Plant { hung: vec![Hung::new(place, UID, "fuse.evil")], ..Plant::none() }
    }),
    ("a link into a FUSE that does not answer", |stage, place, _| {
        let at = stage.own.join("hung");
        fs::create_dir(&at).unwrap();
        stage.link(&at.join("deeper/still"), place);
        Plant { hung: vec![Hung::new(&at, UID, "fuse.codchifs")], ..Plant::none() }
    }),
    ("what changes places with a link to root's", |stage, place, kept| {
        run(program("cp", ["-a"]).arg(kept).arg(place)).ok();
        let link = stage.own.join("link");
        stage.link(&stage.secret.path().join(stage.counterpart(place)), &link);
        Plant { _racing: Some(Racing::new(place, &link)), ..Plant::none() }
    }),
    ("what changes places with a link into a namespace of the user's", |stage, place, kept| {
        run(program("cp", ["-a"]).arg(kept).arg(place)).ok();
        let link = stage.own.join("link");
        let below = Path::new("/mnt").join(stage.counterpart(place));
        stage.link(&stage.namespace.path(below.to_str().unwrap()), &link);
        Plant { _racing: Some(Racing::new(place, &link)), ..Plant::none() }
    }),
];

/// Takes away what is at `place`, whatever it is.
fn remove(path: &Path) {
    let _ = run(program("rm", ["-rf", "--one-file-system"]).arg(path)).ok();
}

/// A command of root's that looks at the user's machines.
type Looking = (&'static str, fn(&Stage, &dyn Fn(&mut Command)) -> Vec<Vec<u8>>);

fn words(stage: &Stage, prepare: &dyn Fn(&mut Command), words: &[&str]) -> Vec<Vec<u8>> {
    // The data directory is what config.toml says it is, or where it is if there is none.
    let mut command = stage.host.command_of(&user(), &stage.host.config(), None);
    if !stage.by_settings.get() {
        command.arg("--data-dir").arg(stage.host.data());
    }
    command.args(words);
    prepare(&mut command);
    let Done { stdout, stderr, .. } = run(&mut command);
    vec![stdout, stderr]
}

const LOOKING: &[Looking] = &[
    ("list", |stage, prepare| words(stage, prepare, &["list"])),
    ("list --size --json", |stage, prepare| words(stage, prepare, &["list", "--size", "--json"])),
    ("export", |stage, prepare| words(stage, prepare, &["export", "demo", "-q", "-o", "-"])),
    ("manifest", |stage, prepare| words(stage, prepare, &["manifest", "demo"])),
    ("manifest --sums", |stage, prepare| words(stage, prepare, &["manifest", "demo", "--sums"])),
    ("migrate", |stage, prepare| words(stage, prepare, &["migrate", "demo"])),
    ("verify", |stage, prepare| {
        let copy = stage.host.path().join("copy.tar");
        words(stage, prepare, &["verify", "demo", copy.to_str().unwrap()])
    }),
    ("doctor", |stage, prepare| words(stage, prepare, &["doctor"])),
    ("status", |stage, prepare| words(stage, prepare, &["status"])),
    ("completion", |stage, prepare| {
        let mut command = stage.host.command_of(&user(), &stage.host.config(), None);
        let asked: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        command.args(["export", ""]);
        let mut shell = program(env!("CARGO_BIN_EXE_codchifs"), ["--", "codchifs"]);
        common::without_variables(&mut shell);
        shell.env("CODCHIFS_COMPLETE", "bash").env("_CLAP_IFS", "\n").args(asked);
        shell.env("_CLAP_COMPLETE_INDEX", "6").args(["export", ""]);
        prepare(&mut shell);
        let done = run(&mut shell);
        vec![done.stdout, done.stderr]
    }),
    ("mount", |stage, prepare| {
        let point = stage.host.path().join("mnt");
        let mut all =
            words(stage, prepare, &["mount", "-o", "allow_root", point.to_str().unwrap()]);
        if !mounts_on(&point).is_empty() {
            let shown = "find \"$0\" -printf '%P %l\\n'; find \"$0\" -type f -exec cat {} +";
            let read = run(program("sh", ["-c", shown]).arg(&point));
            all.extend([read.stdout, read.stderr]);
            // Another test's look at all mounts may be inside at this moment.
            wait_until("nobody to use the mount", || {
                stage.host.run(&["unmount", point.to_str().unwrap()]).code == Some(0)
            });
        }
        all
    }),
];

/// Plants one thing after the other at each of `places`, runs every command, and takes all away again.
fn table(places: &[Place], plants: &[Planting]) {
    let stage = Stage::new();
    let host = &stage.host;
    let copy = host.path().join("copy.tar");
    host.run(&["export", "demo", "-q", "-o", copy.to_str().unwrap()]).ok();
    // So that a link in place of config.toml has something to lead to.
    let kept = host.path().join("kept");
    let foreign = stage.foreign();
    for (what, place) in places {
        let place = place(host);
        for (plant, planting) in plants {
            let toml = place.ends_with("config.toml");
            stage.by_settings.set(toml);
            if toml {
                fs::write(&place, format!("data_dir = {:?}\n", host.data())).unwrap();
                chown(&place, Some(UID), Some(UID)).unwrap();
            }
            // What is not always there.
            let missing = !place.exists();
            if missing {
                fs::write(&place, "{}").unwrap();
            }
            fs::rename(&place, &kept).unwrap();
            let mut planted = planting(&stage, &place, &kept);
            for (command, looking) in LOOKING {
                let cell = format!("{command}, {what} is {plant}");
                let directory = planted.directory.clone();
                let prepare = |command: &mut Command| {
                    if let Some(directory) = &directory {
                        command.current_dir(directory);
                    }
                };
                for said in looking(&stage, &prepare) {
                    let text = String::from_utf8_lossy(&said);
                    assert!(!contains(&said, MARKER.as_bytes()), "{cell}: {text}");
                }
                for hung in &mut planted.hung {
                    assert_eq!(hung.requests(), [0; 0], "{cell}: the FUSE was asked");
                }
            }
            drop(planted);
            remove(&place);
            remove(&stage.own);
            fs::create_dir(&stage.own).unwrap();
            chown(&stage.own, Some(UID), Some(UID)).unwrap();
            fs::rename(&kept, &place).unwrap();
            if toml || missing {
                fs::remove_file(&place).unwrap();
            }
            assert_eq!(stage.foreign(), foreign, "{what} is {plant}");
        }
    }
    let whole = host.run(&["export", "demo", "-q", "-o", "-"]).ok();
    assert!(contains(&whole.stdout, b"hello"), "without a plant the machine is exported");
}

#[test]
fn no_command_of_root_reads_or_waits_for_what_a_user_plants_in_the_config() {
    table(&READ[..4], PLANTS);
}

#[test]
fn no_command_of_root_reads_or_waits_for_what_a_user_plants_for_a_machine() {
    table(&READ[4..7], PLANTS);
}

#[test]
fn no_command_of_root_reads_or_waits_for_what_a_user_plants_on_the_way_to_a_home() {
    table(&READ[7..], PLANTS);
}

#[test]
fn what_users_have_for_good_reasons_is_read() {
    let host = played();
    let whole = host.run(&["export", "demo", "-q", "-o", "-"]).ok().stdout;
    let own = host.path().join("own");
    fs::create_dir(&own).unwrap();
    chown(&own, Some(UID), Some(UID)).unwrap();
    // Dotfiles: the config directory and config.toml are links of the user's, by absolute and by relative paths.
    let config = host.config();
    fs::rename(&config, own.join("codchi")).unwrap();
    symlink("own/../own/codchi", &config).unwrap();
    lchown(&config, Some(UID), Some(UID)).unwrap();
    let toml = own.join("settings.toml");
    fs::write(&toml, format!("data_dir = {:?}\n", host.data())).unwrap();
    chown(&toml, Some(UID), Some(UID)).unwrap();
    symlink(&toml, config.join("config.toml")).unwrap();
    // The data on another disk of root's, the machine's home on a third one, and config.json bound from elsewhere.
    let disk = host.path().join("disk");
    fs::create_dir(&disk).unwrap();
    run(program("mount", ["-t", "tmpfs", "none"]).arg(&disk)).silent();
    run(program("cp", ["-a"]).arg(host.data()).arg(&disk)).ok();
    let home = disk.join("data/machine/demo");
    run(program("mount", ["--bind"]).arg(host.home("demo")).arg(&home)).silent();
    fs::rename(host.data(), host.path().join("before")).unwrap();
    symlink(disk.join("data"), host.data()).unwrap();
    lchown(host.data(), Some(UID), Some(UID)).unwrap();
    let json = own.join("config.json");
    fs::copy(config.join("machine/demo/config.json"), &json).unwrap();
    chown(&json, Some(UID), Some(UID)).unwrap();
    let bound = own.join("codchi/machine/demo/config.json");
    run(program("mount", ["--bind"]).args([&json, &bound])).silent();
    let mut command = host.command_of(&user(), &config, None);
    let again = run(command.args(["export", "demo", "-q", "-o", "-"])).ok().stdout;
    assert!(again == whole, "another archive");
}

#[test]
fn a_home_on_a_mount_that_cannot_be_cloned_is_refused() {
    let host = played();
    let home = host.home("demo");
    run(program("mount", ["--bind"]).args([&home, &home])).silent();
    run(program("mount", ["--make-unbindable"]).arg(&home)).silent();
    let done = host.run(&["export", "demo", "-q", "-o", "-"]).exits(1);
    assert!(
        done.stdout.is_empty() && done.err().contains("cannot open the home"),
        "{}",
        done.err()
    );
    run(program("mount", ["--make-private"]).arg(&home)).silent();
    host.run(&["export", "demo", "-q", "-o", "-"]).ok();
}
