//! FUSE, mount(8), and what else of the host has a say.

use super::{Check, Status};
use crate::fuse::{self, Health};
use crate::quote;
use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const DEVICE: &str = "/dev/fuse";
const FUSE_CONF: &str = "/etc/fuse.conf";
const UPDATEDB_CONF: &str = "/etc/updatedb.conf";
const HELPERS: [&str; 2] = ["/sbin/mount.codchifs", "/usr/sbin/mount.codchifs"];
const SETUID: u32 = 0o4000;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The device, the program that mounts for plain users, and its configuration.
pub(super) fn fuse() -> Vec<Check> {
    vec![device(), fusermount(), fuse_conf()]
}

fn device() -> Check {
    const NAME: &str = "fuse-device";
    let opened =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE);
    let why = match opened {
        Ok(_) => return Check::ok(NAME, format!("{DEVICE} can be opened")),
        Err(why) => why,
    };
    let remedy = match why.raw_os_error() {
        Some(libc::ENOENT) => {
            "modprobe fuse; in a container, give it the device /dev/fuse".to_owned()
        }
        Some(libc::EACCES) => format!("chmod 666 {DEVICE}, as udev does, or run as root"),
        Some(libc::EPERM) => "the container may not: allow it the device c 10:229".to_owned(),
        _ => "modprobe fuse".to_owned(),
    };
    Check::error(NAME, format!("{DEVICE} cannot be opened: {why}"), remedy)
}

fn fusermount() -> Check {
    const NAME: &str = "fusermount3";
    // Root mounts without it.
    let status = if is_root() { Status::Warning } else { Status::Error };
    let bad = |text, remedy| Check { status, ..Check::warning(NAME, text, remedy) };
    let Some(path) = in_path("fusermount3") else {
        return bad(
            "there is no fusermount3: only root can mount".to_owned(),
            "install the package fuse3",
        );
    };
    let shown = quote::path(&path);
    match fs::metadata(&path) {
        Ok(meta) if meta.mode() & SETUID != 0 && meta.uid() == 0 => {
            Check::ok(NAME, format!("{shown} is there and setuid root"))
        }
        Ok(_) => bad(
            format!("{shown} is not setuid root: only root can mount"),
            "chown root, chmod 4755 it; or install fuse3 anew",
        ),
        Err(why) => bad(format!("{shown}: {why}"), "install fuse3 anew"),
    }
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file())
}

fn fuse_conf() -> Check {
    const NAME: &str = "fuse-conf";
    let text = fs::read_to_string(FUSE_CONF);
    let allowed = text.is_ok_and(|t| t.lines().any(|line| line.trim() == "user_allow_other"));
    match (allowed, is_root()) {
        (true, _) => Check::ok(NAME, format!("{FUSE_CONF} has user_allow_other")),
        (false, true) => {
            Check::ok(NAME, format!("{FUSE_CONF} has no user_allow_other; root needs none"))
        }
        (false, false) => Check::warning(
            NAME,
            format!(
                "{FUSE_CONF} has no user_allow_other: -o allow_other and allow_root are refused"
            ),
            format!("add the line user_allow_other to {FUSE_CONF}, or mount as root"),
        ),
    }
}

/// Ubuntu confines fusermount3 to some directories, and what has no profile of its own in user namespaces.
pub(super) fn apparmor() -> Vec<Check> {
    const NAME: &str = "apparmor";
    let first = |path: &str| fs::read_to_string(path).ok().and_then(|text| text.chars().next());
    if first("/sys/module/apparmor/parameters/enabled") != Some('Y') {
        return vec![Check::ok(NAME, "AppArmor is not in use")];
    }
    let profile = Path::new("/etc/apparmor.d/fusermount3");
    let confined = profile.exists() && !Path::new("/etc/apparmor.d/disable/fusermount3").exists();
    let local = fs::read_to_string("/etc/apparmor.d/local/fusermount3");
    let restricted = first("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some('1');
    let userns = if restricted {
        "; user namespaces are restricted, which codchifs does not need"
    } else {
        ""
    };
    vec![match (confined, local.is_ok_and(|rules| rules.contains("codchi"))) {
        (false, _) => Check::ok(NAME, format!("AppArmor does not confine fusermount3{userns}")),
        (true, true) => Check::ok(
            NAME,
            format!("AppArmor confines fusermount3, with rules for codchifs{userns}"),
        ),
        (true, false) if is_root() => Check::ok(
            NAME,
            format!("AppArmor confines fusermount3, which root does not need{userns}"),
        ),
        (true, false) => Check::warning(
            NAME,
            format!(
                "AppArmor lets fusermount3 mount below $HOME, /mnt, /media, /tmp and the like only{userns}"
            ),
            "mount there, or append packaging/apparmor/fusermount3 to /etc/apparmor.d/local/fusermount3",
        ),
    }]
}

/// `locate` would walk through every machine.
pub(super) fn updatedb() -> Vec<Check> {
    const NAME: &str = "updatedb";
    let text = match fs::read_to_string(UPDATEDB_CONF) {
        Ok(text) => text,
        Err(why) if why.kind() == ErrorKind::NotFound => {
            return vec![Check::ok(NAME, "there is no updatedb")];
        }
        Err(why) => {
            let text = format!("{UPDATEDB_CONF}: {why}");
            return vec![Check::warning(NAME, text, "look at it as root")];
        }
    };
    let mut pruned = text.lines().filter_map(|line| {
        let value = line.trim().strip_prefix("PRUNEFS")?.trim_start().strip_prefix('=')?;
        Some(value.trim().trim_matches('"'))
    });
    let ours = |word: &str| word.eq_ignore_ascii_case("fuse.codchifs");
    vec![match pruned.next_back().is_some_and(|value| value.split_whitespace().any(ours)) {
        true => Check::ok(NAME, "updatedb leaves codchifs out"),
        false => Check::warning(
            NAME,
            "updatedb reads through every machine that is mounted, where it gets in",
            format!("add fuse.codchifs to PRUNEFS in {UPDATEDB_CONF}: packaging/updatedb-prune"),
        ),
    }]
}

/// What mount(8) runs.
pub(super) fn helper() -> Vec<Check> {
    const NAME: &str = "mount-helper";
    const OURS: &str = env!("CODCHIFS_VERSION");
    const INSTALL: &str = "install target/release/mount-codchifs /usr/sbin/mount.codchifs";
    let Some(path) = HELPERS.iter().find(|path| Path::new(path).exists()) else {
        return vec![Check::warning(
            NAME,
            format!("there is no {}: `mount -t codchifs` and fstab do not work", HELPERS[0]),
            INSTALL,
        )];
    };
    let said = Command::new(path).arg("--version").stdin(Stdio::null()).output();
    let version = match &said {
        Ok(said) if said.status.success() => quote::message(said.stdout.trim_ascii()),
        Ok(said) => format!("{}", said.status),
        Err(why) => why.to_string(),
    };
    vec![if version == format!("mount.codchifs {OURS}") {
        Check::ok(NAME, format!("{path} is of this version, {OURS}"))
    } else {
        let text = format!("{path} is not of this version, {OURS}: {version}");
        Check::warning(NAME, text, INSTALL)
    }]
}

/// Every codchifs that is mounted, also of others.
pub(super) fn mounts() -> Vec<Check> {
    const NAME: &str = "mount";
    let found = match fuse::mounted() {
        Ok(found) => found,
        Err(why) => return vec![Check::error(NAME, why.to_string(), "is /proc mounted?")],
    };
    if found.is_empty() {
        return vec![Check::ok(NAME, "no codchifs is mounted")];
    }
    let check = |(path, health): (PathBuf, Health)| {
        let detach = format!("codchifs unmount --lazy {}", quote::path_word(&path));
        let check = match health {
            Health::Served => Check::ok(NAME, "is served"),
            Health::Stale => Check::error(
                NAME,
                "nobody serves it (Transport endpoint is not connected): its process was killed",
                detach,
            ),
            Health::Silent => Check::error(NAME, "it does not answer", detach),
        };
        check.of(quote::path(&path).to_string())
    };
    found.into_iter().map(check).collect()
}
