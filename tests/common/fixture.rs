//! Codchi's state and the machines' files, in a temporary directory.

use super::mounted::mounts_below;
use super::{Done, program, require_root, run, without_variables};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, makedev, mknodat,
};
use rustix::mount::{UnmountFlags, unmount};
use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// What is not exported, anchored at the root: the contract's list, typed in once more.
pub(crate) const EXCLUDED: &[&str] = &[
    ".files",
    "bin",
    "boot",
    "dev",
    "etc",
    "init",
    "lib",
    "lib32",
    "lib64",
    "libx32",
    "nix",
    "proc",
    "run",
    "sbin",
    "sys",
    "tmp",
    "usr/bin/env",
    "var/.updated",
    "var/cache",
    "var/empty",
    "var/lib/codchi-arrive",
    "var/lib/nixos",
    "var/lib/systemd",
    "var/lock",
    "var/log",
];

/// Paths that only look like excluded ones: each has content in the hostile machine and must be exported.
pub(crate) const LOOKALIKES: &[&str] = &[
    "home/other/etc/x",
    "libfoo",
    "opt/bin/x",
    "opt/etc/x",
    "opt/init",
    "opt/nix/x",
    "root/.cargo/bin/x",
    "root/nixfiles",
    "srv/tmp/x",
    "srv/var/log/x",
    "usr/bin/envoy",
    "usr/lib/x",
    "var/cachefiles",
    "var/db/x",
    "var/lib/nixos-containers/x",
    "var/lib/postgresql/x",
    "var/spool/cron/x",
];

/// Whether the export leaves a path of the rootfs out.
pub(crate) fn is_excluded(path: &[u8]) -> bool {
    EXCLUDED.iter().any(|excluded| is_at_or_below(path, excluded.as_bytes()))
}

/// Whether `path` is `top` or below it.
pub(crate) fn is_at_or_below(path: &[u8], top: &[u8]) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// A state with any number of machines. Everything goes when it is dropped.
#[derive(Debug)]
pub(crate) struct Fixture {
    temp: TempDir,
}

/// Where the files of one machine are.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) rootfs: PathBuf,
    pub(crate) home: PathBuf,
    /// Directory of its `config.json`.
    pub(crate) config: PathBuf,
}

impl Drop for Fixture {
    /// Detaches what a failed test left mounted, so that the directory can be removed.
    fn drop(&mut self) {
        for point in mounts_below(self.path()) {
            let _ = unmount(&point, UnmountFlags::DETACH);
        }
    }
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::below(&std::env::temp_dir())
    }

    /// In a new directory of `parent`.
    pub(crate) fn below(parent: &Path) -> Self {
        require_root();
        let temp = tempfile::Builder::new().prefix("codchifs-test-").tempdir_in(parent).unwrap();
        let fixture = Self { temp };
        for directory in [
            fixture.config().join("machine"),
            fixture.data().join("machine"),
            fixture.rootfs_dir(),
            fixture.mount_point(),
            fixture.outside(),
        ] {
            fs::create_dir_all(directory).unwrap();
        }
        fixture
    }

    pub(crate) fn path(&self) -> &Path {
        self.temp.path()
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.path().join("config")
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    pub(crate) fn rootfs_dir(&self) -> PathBuf {
        self.path().join("containers")
    }

    pub(crate) fn mount_point(&self) -> PathBuf {
        self.path().join("mnt")
    }

    /// A directory that no machine may show.
    pub(crate) fn outside(&self) -> PathBuf {
        self.path().join("outside")
    }

    /// A new directory for output.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    }

    pub(crate) fn place(&self, name: &str) -> Place {
        Place {
            rootfs: self.rootfs_dir().join(format!("codchi-{name}")).join("rootfs"),
            home: self.data().join("machine").join(name),
            config: self.config().join("machine").join(name),
        }
    }

    /// codchifs on this state.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = program(env!("CARGO_BIN_EXE_codchifs"), std::iter::empty::<&str>());
        without_variables(&mut command);
        command
            .arg("--config-dir")
            .arg(self.config())
            .arg("--data-dir")
            .arg(self.data())
            .args(["--driver", "dir", "--rootfs-dir"])
            .arg(self.rootfs_dir())
            .args(args);
        command
    }

    #[track_caller]
    pub(crate) fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Done {
        run(&mut self.command(args))
    }

    /// `config.json` and two empty directories.
    pub(crate) fn empty(&self, name: &str) -> Place {
        self.configured(name, r#"{"nixpkgs_from":null,"modules":{},"secrets":{}}"#)
    }

    /// The same with a `config.json` of these bytes.
    pub(crate) fn configured(&self, name: &str, config: impl AsRef<[u8]>) -> Place {
        let place = self.place(name);
        for directory in [&place.rootfs, &place.home, &place.config] {
            fs::create_dir_all(directory).unwrap();
        }
        fs::write(place.config.join("config.json"), config).unwrap();
        place
    }

    /// What a friendly user has: a git repository, data of a service, links, a setuid program, a long path.
    pub(crate) fn sample(&self, name: &str) -> Place {
        let place = self.configured(
            name,
            r#"{"nixpkgs_from":"project","modules":{"project":"file://project?ref=main#nixosModules.default"},"secrets":{"token":"it's"}}"#,
        );
        let home = Maker::new(&place.home);
        home.file("project/README", b"hello\n").file(".bash_history", b"ls\n");
        home.file("project/flake.nix", b"{ outputs = _: { nixosModules.default = { }; }; }\n");
        let repository = place.home.join("project");
        for args in [
            &["init", "-q", "-b", "main"][..],
            &["add", "."],
            &["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first"],
        ] {
            run(program("git", args).current_dir(&repository)).ok();
        }
        let root = Maker::new(&place.rootfs);
        root.file(
            "etc/passwd",
            b"root:x:0:0::/root:/bin/sh\npostgres:x:71:71::/var/empty:/bin/sh\n",
        );
        root.file("nix/store/thing/bin/tool", b"not exported\n");
        root.file("var/lib/postgresql/PG_VERSION", b"15\n").own("var/lib/postgresql", 71, 71);
        root.own("var/lib/postgresql/PG_VERSION", 71, 71).mode("var/lib/postgresql", 0o700);
        root.file("opt/tool", b"#!/bin/sh\n").mode("opt/tool", 0o4755);
        root.link("opt/tool", "opt/tool-again").symlink("/run/current-system/sw/bin/sh", "opt/sh");
        root.file(&format!("srv/{}/file", ["directory-of-a-long-path"; 12].join("/")), b"long\n");
        place
    }

    /// Everything that breaks archivers, except paths over 4095 bytes ([`Fixture::add_long_path`]).
    pub(crate) fn hostile(&self, name: &str) -> Place {
        let place = self.configured(
            name,
            r#"{"nixpkgs_from":null,"modules":{},"secrets":{"quote":"a'b\\","dollar":"$HOME `id`\n"}}"#,
        );
        let root = Maker::new(&place.rootfs);
        self.hostile_names(&root);
        self.hostile_links(&root);
        hostile_kinds(&root);
        excluded_content(&root);
        owners_modes_times(&root);
        hostile_home(&Maker::new(&place.home));
        place
    }

    fn hostile_names(&self, root: &Maker) {
        for name in hostile_file_names() {
            let path = [b"srv/names/".as_slice(), &name].concat();
            root.file(&path, &[b"content of ".as_slice(), &name].concat());
            root.dir([b"srv/names/".as_slice(), &cut(&name, 251), b".dir"].concat());
        }
        let long = "a".repeat(255);
        root.symlink(&"t".repeat(300), "srv/names-long-target");
        root.file(&format!("srv/deep/{}/bottom", vec!["d"; 200].join("/")), b"deep\n");
        root.file(&format!("srv/{long}/{long}/{long}/file"), b"several records\n");
        for length in [97, 98, 99, 100, 101, 153, 154, 155, 156, 157, 253, 254] {
            root.file(
                &format!("{}/{}", "p".repeat(length / 2), "n".repeat(length - length / 2)),
                b"edge\n",
            );
        }
    }

    fn hostile_links(&self, root: &Maker) {
        let marker = self.outside().join("marker");
        root.symlink("/etc/shadow", "srv/links/shadow");
        root.symlink("../../../../../../../../etc/shadow", "srv/links/up");
        root.symlink("../..", "srv/links/above").symlink("loop-b", "srv/links/loop-a");
        root.symlink("loop-a", "srv/links/loop-b").symlink(".", "srv/links/self");
        root.symlink("/nowhere/at all", "srv/links/dangling");
        root.symlink(b"\xff\xfe\n", "srv/links/raw")
            .symlink(&"x/".repeat(2000), "srv/links/longest");
        root.symlink(marker.to_str().unwrap(), "srv/links/marker");
        root.symlink(self.outside().to_str().unwrap(), "srv/links/outside");
        root.file("opt/one", b"three names\n")
            .link("opt/one", "opt/two")
            .link("opt/one", "srv/three");
        root.file("nix/a", b"its first name is not exported\n")
            .link("nix/a", "opt/a")
            .link("nix/a", "srv/a");
        root.file("nix/b", b"one name is left\n").link("nix/b", "opt/b");
    }

    /// A member whose path no system call takes in one piece.
    pub(crate) fn add_long_path(&self, name: &str) -> Vec<u8> {
        // Its directory is shorter: bsdtar cannot set the owner of a directory over 4095 bytes.
        let component = "l".repeat(250);
        let path = format!("srv/long/{}/{}", vec![component; 16].join("/"), "f".repeat(200));
        Maker::new(&self.place(name).rootfs).file(&path, b"far away\n");
        path.into_bytes()
    }
}

/// Names that some program somewhere trips over.
pub(crate) fn hostile_file_names() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = [
        "-rf",
        "--checkpoint-action=exec=false",
        " leading",
        "trailing ",
        "a b",
        "new\nline",
        "\n",
        "tab\t",
        "quote'",
        "double\"",
        "back\\slash",
        "\\n",
        "$HOME",
        "`id`",
        "*",
        "?",
        "[a]",
        "#x",
        "~",
        "a:b",
        "@x",
        "%s",
        "...",
        "\u{1}",
        "\u{7f}",
        "\u{1b}[31m",
        "ümläut",
        "u\u{308}",
        "日本語",
        "\u{1f600}",
        "\u{202e}rtl",
        "x=1",
        "GNUSparseFile.0",
        "PaxHeaders.0",
        "././@LongLink",
    ]
    .iter()
    .filter(|name| !name.contains('/'))
    .map(|name| name.as_bytes().to_vec())
    .collect();
    names.extend([
        b"\xff".to_vec(),
        b"caf\xe9".to_vec(),
        b"\xc3".to_vec(),
        b"a\x80b\xffc".to_vec(),
    ]);
    names.push(vec![b'n'; 255]);
    names.push(vec![0xfe; 255]);
    names.push("ä".repeat(127).into_bytes());
    names
}

fn cut(name: &[u8], length: usize) -> Vec<u8> {
    name[..name.len().min(length)].to_vec()
}

fn hostile_kinds(root: &Maker) {
    root.fifo("srv/kinds/fifo").char("srv/kinds/null", 1, 3).block("srv/kinds/loop", 7, 250);
    root.char("srv/kinds/large-numbers", 2000, 70000).socket("srv/kinds/socket");
    root.dir("srv/kinds/empty").file("srv/kinds/empty-file", b"").holes("srv/kinds/holes", 300_000);
    for length in [1, 511, 512, 513, 4095, 4096, 4097, 1_000_000] {
        let content: Vec<u8> = (0..length).map(|i: usize| (i * 31 % 251) as u8).collect();
        root.file(&format!("srv/sizes/{length}"), &content);
    }
}

fn excluded_content(root: &Maker) {
    for path in EXCLUDED {
        match *path {
            "init" | ".files" | "usr/bin/env" | "var/.updated" => {
                root.file(path, b"NOT-EXPORTED\n")
            }
            "nix" => root.file("nix/store/x/bin/y", b"NOT-EXPORTED\n"),
            "etc" => root
                .file("etc/passwd", b"root:x:0:0::/root:/bin/sh\npostgres:x:71:71::/:/bin/sh\n")
                .file("etc/group", b"root:x:0:\npostgres:x:71:\nusers:x:100:\n")
                .file("etc/ssh/ssh_host_ed25519_key", b"NOT-EXPORTED\n")
                .file("etc/nixos/configuration.nix", b"NOT-EXPORTED\n"),
            directory => root.file(&format!("{directory}/hidden"), b"NOT-EXPORTED\n"),
        };
    }
    root.symlink("/run/x", "bin/link")
        .fifo("run/fifo")
        .file("home/codchi/hidden", b"NOT-EXPORTED\n");
    for path in LOOKALIKES {
        root.file(path, b"exported\n");
    }
}

fn owners_modes_times(root: &Maker) {
    root.file("srv/owners/71", b"x").own("srv/owners/71", 71, 71);
    root.file("srv/owners/nobody", b"x").own("srv/owners/nobody", 65534, 65534);
    root.file("srv/owners/user", b"x").own("srv/owners/user", 1000, 100);
    root.file("srv/owners/large", b"x").own("srv/owners/large", 3_000_000, 4_000_000);
    root.time("srv/owners/large", 1_700_000_000, 250_000_000);
    root.symlink("x", "srv/owners/link").own("srv/owners/link", 71, 1000);
    root.dir("srv/owners/dir").own("srv/owners/dir", 998, 997).mode("srv/owners/dir", 0o2770);
    for mode in [0, 0o400, 0o600, 0o644, 0o755, 0o777, 0o1777, 0o2755, 0o4755, 0o6711, 0o7777] {
        let (file, directory) = (format!("srv/modes/f{mode:o}"), format!("srv/modes/d{mode:o}"));
        root.file(&file, b"x").mode(&file, mode).file(&format!("{directory}/in"), b"x");
        root.mode(&directory, mode);
    }
    let times = [
        ("zero", 0, 0),
        ("before", -1, 0),
        ("long-before", -1_000_000_000, 0),
        ("fraction", -86_401, 750_000_000),
        ("nanos", 1_600_000_000, 123_456_789),
        ("year-2242", 8_589_934_597, 0),
    ];
    for (name, seconds, nanos) in times {
        let path = format!("srv/times/{name}");
        root.file(&path, b"x").time(&path, seconds, nanos);
    }
    root.file("srv/times/dir/in", b"x").time("srv/times/dir", 1_000_000_000, 0);
    root.symlink("x", "srv/times/link").time("srv/times/link", 1_111_111_111, 0);
}

fn hostile_home(home: &Maker) {
    home.file(".Xauthority", b"NOT-EXPORTED\n").file("work/.Xauthority", b"exported\n");
    home.file("bin/x", b"exported\n").file("etc/x", b"exported\n").file("nix/x", b"exported\n");
    home.file(".cache/x", b"exported\n")
        .file("caf\u{e9}/x", b"exported\n")
        .file(b"\xff/\xfe", b"raw\n");
    home.file("of-the-host", b"x").own("of-the-host", 100_998, 100_997);
    home.file("setuid", b"x").mode("setuid", 0o4755).link("setuid", "setuid-again");
    home.symlink("/nix/store/x", "result").symlink("../../../..", "up").fifo("fifo");
}

/// Makes entries below one directory, component by component, so that paths may have any length.
#[derive(Debug)]
pub(crate) struct Maker {
    root: OwnedFd,
    path: PathBuf,
}

impl Maker {
    pub(crate) fn new(path: &Path) -> Self {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, path, flags, Mode::empty()).unwrap();
        Self { root, path: path.into() }
    }

    /// The directory of `path`, made where it is missing, and the last component.
    fn parent<'a>(&self, path: &'a [u8]) -> (OwnedFd, &'a [u8]) {
        let mut fd = self.root.try_clone().unwrap();
        let mut components: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
        let name = components.pop().unwrap();
        for component in components {
            let _ = rustix::fs::mkdirat(&fd, component, Mode::from(0o755));
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            fd = rustix::fs::openat(&fd, component, flags, Mode::empty()).unwrap();
        }
        (fd, name)
    }

    pub(crate) fn dir(&self, path: impl AsRef<[u8]>) -> &Self {
        let (parent, name) = self.parent(path.as_ref());
        rustix::fs::mkdirat(&parent, name, Mode::from(0o755)).unwrap();
        self
    }

    pub(crate) fn file(&self, path: &(impl AsRef<[u8]> + ?Sized), content: &[u8]) -> &Self {
        let (parent, name) = self.parent(path.as_ref());
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&parent, name, flags, Mode::from(0o644)).unwrap();
        std::io::Write::write_all(&mut fs::File::from(fd), content).unwrap();
        self
    }

    /// A file with a hole between its first and its last byte.
    pub(crate) fn holes(&self, path: &str, size: u64) -> &Self {
        self.file(path, b"first");
        let file = fs::OpenOptions::new().write(true).open(self.path.join(path)).unwrap();
        file.set_len(size).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"last", size - 4).unwrap();
        self
    }

    pub(crate) fn symlink(
        &self,
        target: &(impl AsRef<[u8]> + ?Sized),
        path: &(impl AsRef<[u8]> + ?Sized),
    ) -> &Self {
        let (parent, name) = self.parent(path.as_ref());
        rustix::fs::symlinkat(target.as_ref(), &parent, name).unwrap();
        self
    }

    pub(crate) fn link(&self, old: &str, new: &str) -> &Self {
        let ((from, old), (to, new)) = (self.parent(old.as_bytes()), self.parent(new.as_bytes()));
        rustix::fs::linkat(&from, old, &to, new, AtFlags::empty()).unwrap();
        self
    }

    pub(crate) fn fifo(&self, path: &str) -> &Self {
        self.node(path, FileType::Fifo, 0)
    }

    pub(crate) fn char(&self, path: &str, major: u32, minor: u32) -> &Self {
        self.node(path, FileType::CharacterDevice, makedev(major, minor))
    }

    pub(crate) fn block(&self, path: &str, major: u32, minor: u32) -> &Self {
        self.node(path, FileType::BlockDevice, makedev(major, minor))
    }

    fn node(&self, path: &str, kind: FileType, device: u64) -> &Self {
        let (parent, name) = self.parent(path.as_bytes());
        mknodat(&parent, name, kind, Mode::from(0o640), device).unwrap();
        self
    }

    /// A socket, made under a short name since those names are limited to 108 bytes.
    pub(crate) fn socket(&self, path: &str) -> &Self {
        let (parent, name) = self.parent(path.as_bytes());
        let temp = tempfile::tempdir_in(&self.path).unwrap();
        drop(UnixListener::bind(temp.path().join("s")).unwrap());
        rustix::fs::renameat(CWD, temp.path().join("s"), &parent, name).unwrap();
        self
    }

    pub(crate) fn own(&self, path: &str, uid: u32, gid: u32) -> &Self {
        let (parent, name) = self.parent(path.as_bytes());
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(&parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        self
    }

    pub(crate) fn mode(&self, path: &str, mode: u32) -> &Self {
        let (parent, name) = self.parent(path.as_bytes());
        rustix::fs::chmodat(&parent, name, Mode::from(mode), AtFlags::empty()).unwrap();
        self
    }

    pub(crate) fn time(&self, path: &str, seconds: i64, nanos: i64) -> &Self {
        let (parent, name) = self.parent(path.as_bytes());
        let time = Timespec { tv_sec: seconds, tv_nsec: nanos };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(&parent, name, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        self
    }
}
