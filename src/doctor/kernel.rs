//! What this kernel can do.

use super::{Check, parted};
use crate::kernel::{self, Feature, PASSTHROUGH, SUBVOLUMES, Sign, XATTR_CALLS, release, version};
use crate::sys;
use crate::tree;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use std::fs;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};

pub(super) fn checks() -> Vec<Check> {
    let release = release();
    let version = version(&release);
    let since = |feature: Feature| {
        let (major, minor) = feature.since;
        format!("Linux {major}.{minor} or later has it")
    };
    let mut all = vec![match kernel::too_old() {
        None => Check::ok("kernel", format!("Linux {release}")),
        Some(why) => {
            let (text, remedy) = parted(&why, "boot a newer kernel");
            Check::error("kernel", text, remedy)
        }
    }];
    all.push(reading());

    all.push(match (version >= PASSTHROUGH.since, configured("CONFIG_FUSE_PASSTHROUGH")) {
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
            since(XATTR_CALLS),
        ),
    });

    all.push(match sys::landlock_abi() {
        Ok(abi) => Check::ok("landlock", format!("Landlock is there, ABI {abi}")),
        Err(Errno::OPNOTSUPP) => Check::warning(
            "landlock",
            "Landlock is built in but not enabled: mounts open files by more system calls",
            "boot with landlock in the parameter lsm=",
        ),
        Err(why) => Check::warning(
            "landlock",
            format!("there is no Landlock ({why}): mounts open files by more system calls"),
            "boot a kernel with CONFIG_SECURITY_LANDLOCK, 5.13 or later",
        ),
    });

    all.push(if version >= SUBVOLUMES.since {
        Check::ok("subvolumes", "statx tells btrfs subvolumes apart")
    } else {
        Check::warning(
            "subvolumes",
            format!("statx of Linux {release} does not tell btrfs subvolumes apart: renamed ones get new inode numbers"),
            since(SUBVOLUMES),
        )
    });
    all
}

/// Whether a sandbox refuses what reading takes.
fn reading() -> Check {
    const NAME: &str = "reading";
    let read = tree::sample().and_then(|sample| {
        sample.map_or(Ok(()), |at| tree::open_sample(at).and_then(tree::check_reading))
    });
    match read {
        Ok(()) => Check::ok(NAME, "the calls by which files are read work"),
        Err(why) => {
            let (text, remedy) = parted(&why.to_string(), "run codchifs outside of a sandbox");
            Check::error(NAME, text, remedy)
        }
    }
}

/// What newer kernels bring, and whether this one has it.
pub(super) fn features() -> Vec<(Feature, bool)> {
    kernel::FEATURES.iter().map(|feature| (*feature, is_there(feature))).collect()
}

fn is_there(feature: &Feature) -> bool {
    let is_new = version(&release()) >= feature.since;
    match feature.sign {
        Sign::Version => is_new,
        Sign::Landlock(least) => sys::landlock_abi().is_ok_and(|abi| abi >= least),
        Sign::XattrCalls => has_xattr_calls().is_ok(),
        Sign::Built(option) => is_new && configured(option) != Some(false),
        Sign::Parameter(path) => fs::exists(path).unwrap_or(false),
    }
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
    let release = release();
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
