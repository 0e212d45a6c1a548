//! Why a member cannot be in an archive.

/// Why a member cannot be in the archive.
///
/// `name` is its last path component, escaped for display.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LayoutError {
    /// The name is empty, `.` or `..`, holds `/` or NUL, or is longer than 65535 bytes.
    #[error("cannot archive \"{name}\": not a file name")]
    Name {
        /// The offending name.
        name: String,
    },
    /// The parent was not pushed before, or is no directory.
    #[error("cannot archive \"{name}\": its parent is no earlier directory")]
    Parent {
        /// The member's name.
        name: String,
    },
    /// The link does not go with the kind, its target is empty or holds NUL, or the first name of a hard link was not
    /// pushed before or is a directory or itself a hard link.
    #[error("cannot archive \"{name}\": its link target is missing or not valid")]
    Link {
        /// The member's name.
        name: String,
    },
    /// Nanoseconds of 1000000000 or more.
    #[error("cannot archive \"{name}\": its mtime has {nsec} nanoseconds, more than a second")]
    Time {
        /// The member's name.
        name: String,
        /// The offending nanoseconds.
        nsec: u32,
    },
    /// A device number of 2^31 or more, which GNU tar refuses.
    #[error("cannot archive \"{name}\": device number {major}:{minor} exceeds 2^31 - 1")]
    Device {
        /// The member's name.
        name: String,
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
    /// The archive would be larger than 2^63 - 1 bytes.
    #[error("cannot archive \"{name}\" of {size} bytes: the archive would exceed 2^63 - 1 bytes")]
    Size {
        /// The member's name.
        name: String,
        /// Bytes of its body.
        size: u64,
    },
    /// A path of [`super::MAX_PATH`] bytes or more, or a link target of 2^32.
    #[error("cannot archive \"{name}\": its path or link target exceeds 64 MiB")]
    Path {
        /// The member's name.
        name: String,
    },
    /// A sparse file whose extents are not as [`super::super::Extent`] says.
    #[error("cannot archive \"{name}\": the map of its holes makes no sense")]
    Holes {
        /// The member's name.
        name: String,
    },
    /// A PAX keyword that no header can hold.
    #[error("cannot archive \"{name}\": an attribute's name is empty or has a '='")]
    Keyword {
        /// The member's name.
        name: String,
    },
    /// The PAX records of all members together are too much to keep in memory.
    #[error(
        "cannot archive \"{name}\": the extended attributes of the machine exceed 512 MiB; leave \
         a part of it out with --exclude"
    )]
    Records {
        /// The member's name.
        name: String,
    },
    /// More than 2^32 - 2 members.
    #[error("cannot archive \"{name}\": the archive already has 2^32 - 2 members")]
    Members {
        /// The member's name.
        name: String,
    },
    /// All names and symlink targets together are 2^32 bytes or more.
    #[error("cannot archive \"{name}\": all names together exceed 2^32 - 1 bytes")]
    Names {
        /// The member's name.
        name: String,
    },
}
