//! A real LXD or Incus with one code machine as Codchi makes it, in a temporary directory, without a network.

use super::mounted::{Mounted, mounts_below};
use super::{Done, host_lock, program, require_root, run, wait_until, without_variables};
use rustix::mount::{UnmountFlags, unmount};
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use tempfile::TempDir;

/// The host user whose machines they are.
pub(crate) const UID: u32 = 1000;

/// A file of the machine: path, uid and gid inside, mode, content (`None`: a directory).
pub(crate) type Entry = (&'static str, u32, u32, u32, Option<&'static str>);

/// What the image holds beside a busybox.
pub(crate) const FILES: &[Entry] = &[
    ("srv/root", 0, 0, 0o644, Some("root's\n")),
    ("srv/user", 1000, 100, 0o640, Some("the user's\n")),
    ("srv/service", 71, 71, 0o700, None),
    ("srv/service/data", 71, 71, 0o600, Some("a service's\n")),
    ("srv/nobody", 65534, 65534, 0o444, Some("nobody's\n")),
    ("srv/setuid", 0, 0, 0o4755, Some("setuid\n")),
    ("srv/setgid", 0, 71, 0o2755, Some("setgid\n")),
    ("srv/both", 1000, 71, 0o6711, Some("both\n")),
    ("srv/shared", 71, 100, 0o3775, None),
];

/// What is in its home.
pub(crate) const HOME: &[Entry] = &[
    ("home/codchi/project", 1000, 100, 0o755, None),
    ("home/codchi/project/README", 1000, 100, 0o640, Some("hello\n")),
    ("home/codchi/root", 0, 0, 0o600, Some("root's in the home\n")),
    ("home/codchi/service", 71, 71, 0o4750, Some("a service's in the home\n")),
];

/// The host's id of one inside, by Codchi's raw.idmap.
pub(crate) fn shifted(id: u32) -> u32 {
    if id == 0 { UID } else { 100_000 + id }
}

/// The name of the user with [`UID`], whose group has the same number; who is made if there is none.
pub(crate) fn user() -> String {
    static NAME: OnceLock<String> = OnceLock::new();
    let find = || {
        let passwd = fs::read_to_string("/etc/passwd").unwrap();
        let mut lines = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let line = lines.find(|f| f.get(2) == Some(&"1000"))?;
        assert_eq!(
            line[3], "1000",
            "the tests act as user and group 1000, and {line:?} has another"
        );
        Some(line[0].to_owned())
    };
    let find_or_make = || {
        let _alone = host_lock("users");
        find().unwrap_or_else(|| {
            // A group of this number may be there without the user.
            let groups = fs::read_to_string("/etc/group").unwrap();
            if !groups.lines().any(|line| line.split(':').nth(2) == Some("1000")) {
                run(program("groupadd", ["--gid", "1000", "codchi-tester"])).ok();
            }
            let user = ["--uid", "1000", "--gid", "1000", "--no-create-home", "codchi-tester"];
            run(program("useradd", user)).ok();
            find().unwrap()
        })
    };
    NAME.get_or_init(find_or_make).clone()
}

/// newuidmap refuses Codchi's raw.idmap unless root may map the user.
fn allow_user_map() {
    let _alone = host_lock("users");
    for path in ["/etc/subuid", "/etc/subgid"] {
        let mut text = fs::read_to_string(path).unwrap_or_default();
        if text.lines().any(|line| line == "root:1000:1") {
            continue;
        }
        text.push_str("root:1000:1\n");
        // Whoever reads it meanwhile finds one of both, whole.
        let new = format!("{path}.codchifs");
        fs::write(&new, text).unwrap();
        fs::rename(new, path).unwrap();
    }
}

/// Codchi's state of one user, and a mount point, without any daemon.
#[derive(Debug)]
pub(crate) struct Host {
    temp: TempDir,
    /// Of `LXD_DIR`.
    pub(crate) lxd: PathBuf,
    /// Of `INCUS_DIR`.
    pub(crate) incus: PathBuf,
}

impl Drop for Host {
    fn drop(&mut self) {
        for point in mounts_below(self.path()) {
            let _ = unmount(&point, UnmountFlags::DETACH);
        }
    }
}

impl Host {
    pub(crate) fn new() -> Self {
        require_root();
        let temp = tempfile::Builder::new().prefix("codchifs-lxd-").tempdir().unwrap();
        // The user looks at the state with the user's rights.
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let (lxd, incus) = (temp.path().join("lxd"), temp.path().join("incus"));
        let host = Self { temp, lxd, incus };
        for directory in ["config/machine", "data/machine", "mnt"] {
            fs::create_dir_all(host.path().join(directory)).unwrap();
        }
        host
    }

    pub(crate) fn path(&self) -> &Path {
        self.temp.path()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.path().join("config")
    }

    pub(crate) fn home(&self, machine: &str) -> PathBuf {
        self.data().join("machine").join(machine)
    }

    /// Writes the machine's config and an empty home of the user.
    pub(crate) fn configure(&self, machine: &str) {
        let config = self.config().join("machine").join(machine);
        fs::create_dir_all(&config).unwrap();
        let json = r#"{"nixpkgs_from":null,"modules":{},"secrets":{}}"#;
        fs::write(config.join("config.json"), json).unwrap();
        fs::create_dir_all(self.home(machine)).unwrap();
        for path in [
            self.config(),
            self.config().join("machine"),
            config.join("config.json"),
            config,
            self.data(),
            self.data().join("machine"),
            self.home(machine),
        ] {
            chown(&path, Some(UID), Some(UID)).unwrap();
        }
    }

    /// codchifs as root, for a user, with nothing said about where machines are.
    pub(crate) fn command_of(&self, user: &str, config: &Path, data: Option<&Path>) -> Command {
        let mut command = program(env!("CARGO_BIN_EXE_codchifs"), std::iter::empty::<&str>());
        without_variables(&mut command);
        command.env("LXD_DIR", &self.lxd).env("INCUS_DIR", &self.incus);
        command.args(["--user", user, "--config-dir"]).arg(config);
        if let Some(data) = data {
            command.arg("--data-dir").arg(data);
        }
        command
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = self.command_of(&user(), &self.config(), Some(&self.data()));
        command.args(args);
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Done {
        run(&mut self.command(args))
    }

    pub(crate) fn mount(&self, point: &str) -> Mounted {
        let at = self.path().join(point);
        fs::create_dir_all(&at).unwrap();
        let log = self.path().join(format!("{point}.log"));
        Mounted::of(self.command(&["mount", "--foreground", "-o", "allow_root"]), at, log)
    }

    /// The row of a machine in `list --json`.
    pub(crate) fn row(&self, machine: &str) -> serde_json::Value {
        let out = self.run(&["list", "--json"]).ok().out();
        let rows: Vec<serde_json::Value> = serde_json::from_str(&out).unwrap();
        rows.into_iter()
            .find(|r| r["name"] == machine)
            .unwrap_or_else(|| panic!("{machine}: {out}"))
    }
}

/// Makes the files below `top`, with their ids moved by `ids`.
pub(crate) fn plant(top: &Path, files: &[Entry], ids: fn(u32) -> u32) {
    for (path, uid, gid, mode, content) in files {
        let path = top.join(path.strip_prefix("home/codchi/").unwrap_or(path));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match content {
            Some(text) => fs::write(&path, text).unwrap(),
            None => fs::create_dir_all(&path).unwrap(),
        }
        chown(&path, Some(ids(*uid)), Some(ids(*gid))).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
    }
}

pub(crate) fn entries() -> impl Iterator<Item = &'static Entry> + Clone {
    FILES.iter().chain(HOME)
}

pub(crate) fn expected() -> String {
    entries().map(|(path, uid, gid, mode, _)| format!("{uid} {gid} {mode:o} {path}\n")).collect()
}

/// Owners and modes as they are below `top`; the contents are compared on the way.
pub(crate) fn seen(top: &Path) -> String {
    entries()
        .map(|(path, _, _, _, content)| {
            let at = top.join(path);
            let meta = at.symlink_metadata().unwrap_or_else(|e| panic!("{}: {e}", at.display()));
            if let Some(content) = content {
                assert_eq!(fs::read_to_string(&at).unwrap(), *content, "{}", at.display());
            }
            format!("{} {} {:o} {path}\n", meta.uid(), meta.gid(), meta.mode() & 0o7777)
        })
        .collect()
}

/// The export of a machine, extracted, is what the instance sees; so is `rootfs`, of a mount.
pub(crate) fn check(host: &Host, stage: &str, rootfs: &Path) {
    assert_eq!(seen(rootfs), expected(), "rootfs/, {stage}");
    let out = host.path().join("extracted");
    let tar = host.path().join("demo.tar");
    host.run(&["export", "demo", "-q", "-o", tar.to_str().unwrap()]).ok();
    fs::create_dir(&out).unwrap();
    run(program("tar", ["--numeric-owner", "-xpf"]).arg(&tar).arg("-C").arg(&out)).silent();
    assert_eq!(seen(&out), expected(), "the extracted export, {stage}");
    fs::remove_dir_all(&out).unwrap();
    fs::remove_file(&tar).unwrap();
}

/// A daemon and its programs.
#[derive(Debug)]
pub(crate) struct Kind {
    /// As `list` writes it.
    pub(crate) name: &'static str,
    /// As it is spoken of.
    pub(crate) title: &'static str,
    pub(crate) client: &'static str,
    daemon: &'static str,
    /// The program with the commands `init`, `waitready` and `shutdown`.
    admin: &'static [&'static str],
    dir: &'static str,
    conf: &'static str,
    group: &'static str,
}

pub(crate) const LXD: &Kind = &Kind {
    name: "lxd",
    title: "LXD",
    client: "lxc",
    daemon: "lxd",
    admin: &["lxd"],
    dir: "LXD_DIR",
    conf: "LXD_CONF",
    group: "lxd",
};

pub(crate) const INCUS: &Kind = &Kind {
    name: "incus",
    title: "Incus",
    client: "incus",
    // Debian keeps it off the PATH.
    daemon: "/usr/libexec/incus/incusd",
    admin: &["incus", "admin"],
    dir: "INCUS_DIR",
    conf: "INCUS_CONF",
    group: "incus-admin",
};

/// A host with a real daemon; codchi-demo is made and not started.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) host: Host,
    pub(crate) kind: &'static Kind,
    daemon: Option<Child>,
    // One daemon at a time: two would share the names of cgroups. The last to be dropped.
    _turn: File,
}

impl Server {
    /// With a pool of this driver.
    pub(crate) fn new(kind: &'static Kind, driver: &str) -> Self {
        let turn = host_lock("daemon");
        let host = Host::new();
        allow_user_map();
        let mut server = Self { host, kind, daemon: None, _turn: turn };
        fs::create_dir_all(server.base()).unwrap();
        server.start_daemon();
        let size = if driver == "btrfs" { ", config: {size: 2GiB}" } else { "" };
        let preseed = format!(
            "storage_pools: [{{name: default, driver: {driver}{size}}}]\n\
             profiles: [{{name: default, devices: {{root: {{path: /, pool: default, type: disk}}}}}}]\n"
        );
        let file = server.host.path().join("preseed");
        fs::write(&file, preseed).unwrap();
        let script = "file=$1; shift; \"$@\" init --preseed <\"$file\"";
        let mut init = server.env(program("sh", ["-c", script, "sh"]));
        run(init.arg(&file).args(kind.admin)).ok();
        server.import();
        server.create("demo");
        plant(&server.host.home("demo"), HOME, shifted);
        server
    }

    /// Its base directory.
    pub(crate) fn base(&self) -> &Path {
        if self.kind.name == LXD.name { &self.host.lxd } else { &self.host.incus }
    }

    /// A command that knows which daemon is meant.
    pub(crate) fn env(&self, mut command: Command) -> Command {
        command.env(self.kind.dir, self.base());
        command.env(self.kind.conf, self.host.path().join("client"));
        command
    }

    /// The daemon's client.
    pub(crate) fn client(&self, args: &[&str]) -> Done {
        run(self.env(program(self.kind.client, ["-q"])).args(args))
    }

    fn admin(&self, args: &[&str]) -> Done {
        let (name, first) = self.kind.admin.split_first().unwrap();
        run(self.env(program(name, first)).args(args))
    }

    pub(crate) fn start_daemon(&mut self) {
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.host.path().join("daemon.log"))
            .unwrap();
        let mut command = self.env(program(self.kind.daemon, ["--group", self.kind.group]));
        let child =
            command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        self.daemon = Some(child.unwrap());
        self.admin(&["waitready", "--timeout=60"]).ok();
    }

    /// SIGKILL, as a crash does: the machines go on.
    pub(crate) fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    fn import(&self) {
        let image = self.host.path().join("image");
        let rootfs = image.join("rootfs");
        for directory in ["bin", "sbin", "etc"] {
            fs::create_dir_all(rootfs.join(directory)).unwrap();
        }
        fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
        std::os::unix::fs::symlink("busybox", rootfs.join("bin/sh")).unwrap();
        let init = rootfs.join("sbin/init");
        fs::write(&init, "#!/bin/sh\nwhile :; do /bin/busybox sleep 1; done\n").unwrap();
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(rootfs.join("etc/hostname"), "demo\n").unwrap();
        plant(&rootfs, FILES, |id| id);
        fs::write(image.join("metadata.yaml"), r#"{"architecture":"x86_64","creation_date":1}"#)
            .unwrap();
        let archive = self.host.path().join("image.tar.gz");
        run(program("tar", ["--numeric-owner", "-czf"])
            .arg(&archive)
            .arg("-C")
            .arg(&image)
            .arg("."))
        .ok();
        self.client(&["image", "import", archive.to_str().unwrap(), "--alias", "machine"]).ok();
    }

    /// An instance as Codchi makes it, without starting it.
    pub(crate) fn create(&self, machine: &str) {
        self.host.configure(machine);
        let instance = format!("codchi-{machine}");
        let source = format!("source={}", self.host.home(machine).display());
        self.client(&["init", "machine", &instance]).ok();
        self.client(&["config", "set", &instance, "security.nesting=true"]).ok();
        self.client(&["config", "set", &instance, "raw.idmap=uid 1000 0\ngid 1000 0"]).ok();
        let device = ["home/codchi", "disk", &source, "path=/home/codchi"];
        self.client(&[&["config", "device", "add", &instance][..], &device].concat()).ok();
    }

    /// What a program in the running codchi-demo sees of [`entries`].
    pub(crate) fn inside(&self) -> String {
        let script = "cd / && for f; do busybox stat -c '%u %g %a %n' $f; done";
        let paths = entries().map(|e| e.0);
        let exec = ["exec", "codchi-demo", "--", "/bin/busybox", "sh", "-c", script, "sh"];
        let all: Vec<_> = exec.into_iter().chain(paths).collect();
        let files = entries().filter(|e| e.4.is_some());
        let cat = ["exec", "codchi-demo", "--", "/bin/busybox", "cat"].map(str::to_owned);
        let cat: Vec<_> =
            cat.into_iter().chain(files.clone().map(|e| format!("/{}", e.0))).collect();
        let contents = self.client(&cat.iter().map(String::as_str).collect::<Vec<_>>()).ok().out();
        assert_eq!(contents, files.map(|e| e.4.unwrap()).collect::<String>());
        self.client(&all).ok().out()
    }

    pub(crate) fn rootfs(&self, machine: &str) -> PathBuf {
        self.base().join(format!("storage-pools/default/containers/codchi-{machine}/rootfs"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.host.path().join("daemon.log")).unwrap_or_default();
            eprintln!("log of {}:\n{log}", self.kind.title);
        }
        if self.daemon.is_none() {
            self.start_daemon();
        }
        let names = self.client(&["list", "--format", "csv", "--columns", "n"]).out();
        for name in names.lines() {
            let _ = self.client(&["delete", "-f", name]);
        }
        let _ = self.client(&["image", "delete", "machine"]);
        let _ = self.client(&["profile", "device", "remove", "default", "root"]);
        let _ = self.client(&["storage", "delete", "default"]);
        let _ = self.admin(&["shutdown", "--timeout", "20"]);
        if let Some(mut daemon) = self.daemon.take() {
            let mut ended = false;
            if !std::thread::panicking() {
                wait_until("the end of the daemon", || {
                    ended = daemon.try_wait().unwrap().is_some();
                    ended
                });
            }
            if !ended {
                let _ = daemon.kill();
                let _ = daemon.wait();
            }
        }
        // shmounts, devlxd.
        for point in mounts_below(self.host.path()) {
            let _ = unmount(&point, UnmountFlags::DETACH);
        }
    }
}
