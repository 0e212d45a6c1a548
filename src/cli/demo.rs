//! `codchifs demo`: the main job, on a sample machine, from nothing.

use super::args::Demo;
use super::text::wrapped;
use super::{Failure, Outcome};
use crate::{mountinfo, quote};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// Columns of what is said, behind its mark.
const WIDTH: usize = 78;
/// Whose machines the commands are for, and which codchifs they run. The machines are of whoever runs the demo, and not of
/// the user who called sudo.
const ENV: &str = "\
export PATH=\"$PWD/.bin:$PATH\"
export CODCHIFS_CONFIG_DIR=\"$PWD/config\" CODCHIFS_DATA_DIR=\"$PWD/data\"
export CODCHIFS_ROOTFS_DIR=\"$PWD/rootfs\" CODCHIFS_DRIVER=dir
unset SUDO_USER CODCHIFS_USER
";
/// A shell of whoever keeps the demo: nothing of it is left when that ends.
const SHELL: &str = "cd \"$(dirname \"$0\")\" && . ./env && exec \"${SHELL:-sh}\"\n";

pub(super) fn run(demo: &Demo) -> Result<Outcome, Failure> {
    let started = SystemTime::now();
    let dir = Scratch::new()?;
    say(
        "Two code machines as Codchi has them on a host: a configuration, a root file system, a home.",
    )?;
    sample(&dir.path)?;
    let shell = Shell::new(&dir.path)?;
    shell.run("codchifs list")?;

    say("Mounted, each of them is a directory. Nothing is scanned or copied yet.")?;
    shell.run("codchifs mount mnt")?;
    let mounted = Mounted { shell: &shell, done: false };
    shell.run("ls -l mnt/dev")?;
    shell.run("ls -A mnt/dev/rootfs mnt/dev/rootfs/home/codchi")?;

    say(
        "The machine leaves through cp. The archive is made while it is read; its size is known before.",
    )?;
    shell.run("cp mnt/dev/export.tar dev.tar")?;
    shell.run("tar -tvf dev.tar | sed -n '1,12p'")?;

    say("Extracted, as in a VM, and compared with the machine: no difference is printed.")?;
    shell.run("mkdir vm && tar --no-overwrite-dir -xpf dev.tar -C vm")?;
    shell.run("tar -df dev.tar -C mnt/dev/rootfs")?;
    shell.run("diff -r --no-dereference data/machine/dev vm/home/codchi")?;
    shell.run("diff -r --no-dereference rootfs/codchi-dev/rootfs/var/lib vm/var/lib")?;

    say(
        "It brings its own flake: `nixos-rebuild switch --flake /etc/nixos#nixos` is all the VM needs.",
    )?;
    shell.run("cat vm/etc/nixos/flake.nix")?;

    say("The same bytes come without a mount.")?;
    shell.run("codchifs export dev -o - | cmp - dev.tar")?;
    if demo.keep {
        mounted.keep();
        let path = dir.keep();
        let word = |below: &str| quote::path_word(&path.join(below));
        say("It stays mounted. This is a shell where all of these commands work:")?;
        writeln!(std::io::stdout(), "  sh {}", word("shell"))?;
        say("And this ends it:")?;
        writeln!(
            std::io::stdout(),
            "  {} unmount {} && rm -r {}",
            word(".bin/codchifs"),
            word("mnt"),
            quote::path_word(&path)
        )?;
        return Ok(Outcome::Done);
    }
    mounted.unmount()?;
    let took = started.elapsed().unwrap_or_default();
    say(&format!("Done in {:.1} s: every byte arrived.", took.as_secs_f64()))?;
    Ok(Outcome::Done)
}

fn say(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out)?;
    for line in wrapped(text, WIDTH) {
        writeln!(out, "# {line}")?;
    }
    Ok(out.flush()?)
}

/// Runs commands as a person would type them, in the demo's directory.
struct Shell {
    dir: PathBuf,
}

impl Shell {
    fn new(dir: &Path) -> Result<Self, Failure> {
        // `codchifs` in what is shown must be this very program.
        let bin = dir.join(".bin");
        fs::create_dir(&bin)?;
        symlink(std::env::current_exe()?, bin.join("codchifs"))?;
        fs::write(dir.join("env"), ENV)?;
        fs::write(dir.join("shell"), SHELL)?;
        Ok(Self { dir: dir.into() })
    }

    fn run(&self, command: &str) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "$ {command}")?;
        out.flush()?;
        drop(out);
        let status = Command::new("sh")
            .args(["-c", &format!(". ./env\n{command}")])
            .current_dir(&self.dir)
            .status()?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("demo: `{command}` failed: {status}").into())
        }
    }
}

/// Ends the mount, also when a step fails.
struct Mounted<'a> {
    shell: &'a Shell,
    done: bool,
}

impl Mounted<'_> {
    fn unmount(mut self) -> Result<(), Failure> {
        self.done = true;
        self.shell.run("codchifs unmount mnt")
    }

    fn keep(mut self) {
        self.done = true;
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if !self.done {
            let _ = self.shell.run("codchifs unmount --lazy mnt");
        }
    }
}

/// A directory of the demo's own, removed at its end.
struct Scratch {
    path: PathBuf,
    kept: bool,
}

impl Scratch {
    fn new() -> Result<Self, Failure> {
        let base = std::env::temp_dir();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let path =
            base.join(format!("codchifs-demo.{}.{}", std::process::id(), now.subsec_nanos()));
        fs::create_dir(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
        Ok(Self { path, kept: false })
    }

    fn keep(mut self) -> PathBuf {
        self.kept = true;
        self.path.clone()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Never through a mount that could not be ended.
        let none_below = || {
            mountinfo::read()
                .is_ok_and(|all| all.iter().all(|m| !m.mountpoint.starts_with(&self.path)))
        };
        if !self.kept && none_below() {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Real files: what Codchi, a NixOS container and a developer leave on a host.
fn sample(dir: &Path) -> Result<(), Failure> {
    fs::create_dir(dir.join("mnt"))?;
    for (name, config) in [
        (
            "dev",
            r#"{"nixpkgs_from": "tools", "modules": {
                "tools": "github://github.com/NixOS/templates?ref=master#nixosModules.default",
                "project": "file://project#nixosModules.default"},
              "secrets": {"GREETING": "it's \"quoted\"", "TOKEN": "$not-expanded"}}"#,
        ),
        ("web", r#"{"modules": {}, "secrets": {}}"#),
    ] {
        write(&dir.join("config/machine").join(name).join("config.json"), config)?;
        let (rootfs, home) = (
            dir.join("rootfs").join(format!("codchi-{name}")).join("rootfs"),
            dir.join("data/machine").join(name),
        );
        for (path, text) in [
            ("etc/passwd", "root:x:0:0::/root:/bin/sh\n"),
            ("nix/store/0-hello/bin/hello", "rebuilt in the VM, so not exported"),
            ("usr/bin/env", "NixOS makes its own"),
            ("usr/local/bin/backup", "#!/bin/sh\nexit 0\n"),
            ("root/.cargo/bin/cargo", "a bin/ below the root is no /bin\n"),
            ("var/lib/postgresql/16/base/1/pg_filenode.map", "a database\n"),
            ("var/log/messages", "not exported\n"),
        ] {
            write(&rootfs.join(path), text)?;
        }
        fs::set_permissions(
            rootfs.join("usr/local/bin/backup"),
            fs::Permissions::from_mode(0o4755),
        )?;
        symlink("../../var/lib/postgresql", rootfs.join("root/db"))?;
        write(&home.join("notes ü.txt"), "names are bytes\n")?;
        let deep = format!(
            "project/{}/index.js",
            ["node_modules/a-package-with-a-long-name"; 6].join("/")
        );
        write(&home.join(deep), "module.exports = 1\n")?;
        write(
            &home.join("project/flake.nix"),
            "{ outputs = _: { nixosModules.default = { }; }; }\n",
        )?;
        fs::hard_link(home.join("project/flake.nix"), home.join("project/linked.nix"))?;
        symlink("/nix/var/nix/profiles/per-user/codchi", home.join(".nix-profile"))?;
        repository(&home.join("project"))?;
    }
    if rustix::process::geteuid().is_root() {
        chown(dir.join("rootfs/codchi-dev/rootfs/var/lib/postgresql"), Some(71), Some(71))?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    Ok(fs::write(path, text)?)
}

/// A git repository with a commit; without git on this host, an empty one.
fn repository(dir: &Path) -> Result<(), Failure> {
    let git = |args: &[&str]| {
        Command::new("git")
            .args([
                "-c",
                "user.name=demo",
                "-c",
                "user.email=demo@localhost",
                "-c",
                "init.defaultBranch=main",
            ])
            .args(args)
            .current_dir(dir)
            .output()
            .is_ok_and(|out| out.status.success())
    };
    if git(&["init", "-q"]) && git(&["add", "flake.nix"]) && git(&["commit", "-qm", "Start"]) {
        return Ok(());
    }
    write(&dir.join(".git/HEAD"), "ref: refs/heads/main\n")?;
    write(&dir.join(".git/config"), "[core]\n\trepositoryformatversion = 0\n")?;
    fs::create_dir_all(dir.join(".git/objects"))?;
    Ok(fs::create_dir_all(dir.join(".git/refs"))?)
}
