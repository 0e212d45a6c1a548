//! Which kernel this is, which is the oldest that codchifs runs on, and what a newer one brings.

use crate::quote;

/// Major and minor version.
pub type Version = (u32, u32);

/// The oldest that codchifs is tested on, and runs on.
pub const OLDEST: Version = (5, 10);

/// Something that not every kernel from [`OLDEST`] on has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// The call, the option or the module.
    pub name: &'static str,
    /// The first kernel that has it, where it is built in.
    pub since: Version,
    /// What codchifs does with it.
    pub with: &'static str,
    /// How it does without.
    pub without: &'static str,
    /// How to tell whether it is there.
    pub sign: Sign,
}

/// How a feature shows. Distributions build without one, boot without it, or bring it to an older kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// By the version alone.
    Version,
    /// Landlock has this ABI, or a later one.
    Landlock(usize),
    /// listxattrat(2) is known.
    XattrCalls,
    /// The kernel was built with this option.
    Built(&'static str),
    /// This parameter of a module is there.
    Parameter(&'static str),
}

/// FUSE passthrough.
pub const PASSTHROUGH: Feature = Feature {
    name: "FUSE passthrough",
    since: (6, 9),
    with: "the kernel reads large files of rootfs/ itself, at the speed of the disk",
    without: "the server reads them: about half as fast",
    sign: Sign::Built("CONFIG_FUSE_PASSTHROUGH"),
};

/// listxattrat(2) and getxattrat(2).
pub const XATTR_CALLS: Feature = Feature {
    name: "listxattrat, getxattrat",
    since: (6, 13),
    with: "attributes are listed with one call a file",
    without: "attributes are listed by a path below /proc/self/fd: scans are slower",
    sign: Sign::XattrCalls,
};

/// STATX_SUBVOL.
pub const SUBVOLUMES: Feature = Feature {
    name: "STATX_SUBVOL",
    since: (6, 10),
    with: "btrfs subvolumes keep their inode numbers when they are renamed",
    without: "a renamed btrfs subvolume gets new inode numbers",
    sign: Sign::Version,
};

/// All of them, the newest last.
pub const FEATURES: [Feature; 10] = [
    Feature {
        name: "close_range with CLOEXEC",
        since: (5, 11),
        with: "one call keeps foreign descriptors from the server",
        without: "one call for each descriptor",
        sign: Sign::Version,
    },
    Feature {
        name: "Landlock",
        since: (5, 13),
        with: "the server is also kept from writing, from running programs and from moving files by Landlock",
        without: "by its user, its one capability, its root directory and seccomp alone",
        sign: Sign::Landlock(1),
    },
    Feature {
        name: "mount_setattr with NOSYMFOLLOW",
        since: (5, 14),
        with: "machines are read through mounts of their own, read-only, without links and access times",
        without: "each open is checked step by step: small files are slower, access times may move",
        sign: Sign::Version,
    },
    Feature {
        name: "Landlock ABI 3",
        since: (6, 2),
        with: "Landlock refuses truncate(2) as well",
        without: "seccomp refuses it",
        sign: Sign::Landlock(3),
    },
    Feature {
        name: "Landlock ABI 4",
        since: (6, 7),
        with: "Landlock refuses TCP as well",
        without: "seccomp refuses sockets",
        sign: Sign::Landlock(4),
    },
    PASSTHROUGH,
    SUBVOLUMES,
    Feature {
        name: "Landlock ABI 6",
        since: (6, 12),
        with: "the server cannot signal processes outside of itself, nor connect to abstract sockets",
        without: "seccomp refuses the calls for that",
        sign: Sign::Landlock(6),
    },
    XATTR_CALLS,
    Feature {
        name: "FUSE over io_uring",
        since: (6, 14),
        with: "nothing, whatever fuse.enable_uring says: codchifs answers over /dev/fuse, and has the kernel read large files itself",
        without: "nothing is lost",
        sign: Sign::Parameter("/sys/module/fuse/parameters/enable_uring"),
    },
];

/// As `uname -r` has it.
pub fn release() -> String {
    quote::name(rustix::system::uname().release().to_bytes()).to_string()
}

/// `6.1.0-12-amd64` is 6.1; what is no version is older than all.
pub fn version(release: &str) -> Version {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Why codchifs does not run here, if this kernel is too old.
pub fn too_old() -> Option<String> {
    let release = release();
    let (major, minor) = OLDEST;
    (version(&release) < OLDEST).then(|| {
        format!(
            "Linux {release} is too old: codchifs needs {major}.{minor} or later; boot a newer kernel"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn the_newest_feature_is_the_last() {
        assert!(FEATURES.is_sorted_by_key(|feature| feature.since));
    }
}
