//! What this kernel can do.

use super::Check;
use crate::sys;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use std::fs;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};

/// openat2.
const LEAST: (u32, u32) = (5, 6);
const PASSTHROUGH: (u32, u32) = (6, 9);
const SUBVOL: (u32, u32) = (6, 10);

pub(super) fn checks() -> Vec<Check> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let version = version(&release);
    let since = |(major, minor): (u32, u32)| format!("Linux {major}.{minor} or later has it");
    let mut all = vec![if version >= LEAST {
        Check::ok("kernel", format!("Linux {release}"))
    } else {
        let (major, minor) = LEAST;
        let text = format!("Linux {release}: codchifs needs {major}.{minor} or later");
        Check::error("kernel", text, "boot a newer kernel")
    }];

    all.push(match (version >= PASSTHROUGH, configured("CONFIG_FUSE_PASSTHROUGH")) {
        (false, _) => Check::warning(
            "passthrough",
            format!("Linux {release} has no FUSE passthrough: large files cannot be read at the speed of the disk"),
            since(PASSTHROUGH),
        ),
        (true, Some(false)) => Check::warning(
            "passthrough",
            "the kernel has no CONFIG_FUSE_PASSTHROUGH: large files cannot be read at the speed of the disk",
            "boot a kernel that has it",
        ),
        (true, Some(true)) => Check::ok("passthrough", "FUSE passthrough is there"),
        (true, None) => Check::ok("passthrough", "FUSE passthrough should be there"),
    });

    all.push(match has_xattr_calls() {
        Ok(()) => Check::ok("xattr-calls", "listxattrat and getxattrat are there"),
        Err(why) => Check::warning(
            "xattr-calls",
            format!("there is no listxattrat ({why}): scans are slower"),
            since((6, 13)),
        ),
    });

    all.push(match sys::landlock_abi() {
        Ok(abi) => Check::ok("landlock", format!("Landlock is there, ABI {abi}")),
        Err(Errno::OPNOTSUPP) => Check::warning(
            "landlock",
            "Landlock is built in but not enabled: what serves a mount has one wall less before writing",
            "boot with landlock in the parameter lsm=",
        ),
        Err(why) => Check::warning(
            "landlock",
            format!("there is no Landlock ({why}): what serves a mount has one wall less before writing"),
            "boot a kernel with CONFIG_SECURITY_LANDLOCK, 5.13 or later",
        ),
    });

    all.push(if version >= SUBVOL {
        Check::ok("subvolumes", "statx tells btrfs subvolumes apart")
    } else {
        Check::warning(
            "subvolumes",
            format!("statx of Linux {release} does not tell btrfs subvolumes apart: renamed ones get new inode numbers"),
            since(SUBVOL),
        )
    });
    all
}

/// `6.1.0-12-amd64` is 6.1; what is no version is older than all.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn has_xattr_calls() -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, "/", flags, Mode::empty())?;
    match sys::list_xattr_at(root.as_fd(), c"proc", &mut []) {
        Err(Errno::NOSYS) => Err(Errno::NOSYS),
        _ => Ok(()),
    }
}

/// Whether the kernel was built with it, `None` where nobody tells.
fn configured(option: &str) -> Option<bool> {
    let text = config()?;
    Some(
        text.lines().any(|line| {
            line.strip_prefix(option).is_some_and(|value| matches!(value, "=y" | "=m"))
        }),
    )
}

fn config() -> Option<String> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    if let Ok(text) = fs::read_to_string(format!("/boot/config-{release}")) {
        return Some(text);
    }
    if !fs::exists("/proc/config.gz").unwrap_or(false) {
        return None;
    }
    let mut child = Command::new("gzip")
        .args(["-dc", "/proc/config.gz"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut text = String::new();
    let read = child.stdout.take()?.read_to_string(&mut text);
    let done = child.wait().ok()?;
    (read.is_ok() && done.success()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn reads_versions() {
        for (release, expected) in [
            ("6.1.0-12-amd64", (6, 1)),
            ("6.18.44", (6, 18)),
            ("6.9-rc1", (6, 9)),
            ("7", (7, 0)),
            ("odd", (0, 0)),
            ("", (0, 0)),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
    }
}
