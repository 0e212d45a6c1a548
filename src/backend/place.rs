//! Where an instance lies on the disk, which is what says its name, its project and its pool.
//!
//! The text of a record can be written by whoever is root in the instance: LXD and Incus give the instance's directory to
//! that user while it runs. The directories above belong to root, so the path of a record cannot be forged.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};

/// Between a project and an instance's name in the name of its directory.
const SEPARATOR: char = '_';
/// The project whose instances have no prefix.
pub(super) const DEFAULT: &str = "default";

/// `storage-pools/POOL/containers/NAME`, or `…/PROJECT_NAME` outside of the project `default`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) pool: String,
    pub(super) project: String,
    pub(super) name: String,
}

/// One name of a path, and one that a message can hold: neither LXD nor Incus take any other.
pub(super) fn is_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && name.len() <= 255
        && !name.contains(|c: char| c == '/' || c.is_control())
}

impl Place {
    /// From what a daemon says; `None` where one of the names would lead elsewhere. The name of an instance is a host name
    /// (RFC 1123), so an underscore in it can only mean the directory of another project's instance.
    pub(super) fn new(pool: &str, project: &str, name: &str) -> Option<Self> {
        let directory_is_its_own = !name.contains(SEPARATOR);
        let all = [pool, project, name].into_iter().all(is_name);
        (directory_is_its_own && all).then(|| Self {
            pool: pool.into(),
            project: project.into(),
            name: name.into(),
        })
    }

    /// From the names of directories. Projects of old servers may have underscores, instances never: the last one separates.
    pub(super) fn of_directory(pool: &OsStr, directory: &OsStr) -> Option<Self> {
        let (pool, directory) = (pool.to_str()?, directory.to_str()?);
        let (project, name) = directory.rsplit_once(SEPARATOR).unwrap_or((DEFAULT, directory));
        let place = Self::new(pool, project, name)?;
        // `default_NAME` is no directory of an instance's.
        (place.directory() == directory).then_some(place)
    }

    /// The name of its directory.
    pub(super) fn directory(&self) -> String {
        match self.project.as_str() {
            DEFAULT => self.name.clone(),
            project => format!("{project}{SEPARATOR}{}", self.name),
        }
    }

    /// Below a daemon's base directory.
    pub(super) fn path(&self) -> PathBuf {
        Path::new("storage-pools").join(&self.pool).join("containers").join(self.directory())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (project {}, pool {})", self.name, self.project, self.pool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(directory: &str) -> Option<(String, String)> {
        let place = Place::of_directory(OsStr::new("p"), OsStr::new(directory))?;
        assert_eq!(place.path(), Path::new("storage-pools/p/containers").join(directory));
        Some((place.project, place.name))
    }

    #[test]
    fn a_directory_says_name_and_project() {
        let some = |project: &str, name: &str| Some((project.to_owned(), name.to_owned()));
        assert_eq!(of("codchi-x"), some("default", "codchi-x"));
        assert_eq!(of("work_codchi-x"), some("work", "codchi-x"));
        // LXD refuses such names of projects by now.
        assert_eq!(of("my_work_codchi-x"), some("my_work", "codchi-x"));
        // One project's name may look like an instance's.
        assert_eq!(of("codchi-a_codchi-b"), some("codchi-a", "codchi-b"));
        for none in
            ["_codchi-x", "work_", "_", "", ".", "..", "default_codchi-x", "a\nb", "a\u{9b}"]
        {
            assert_eq!(of(none), None, "{none:?}");
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_no_place() {
        assert!(Place::new("p", "default", "codchi-x").is_some());
        for (pool, project, name) in [
            ("..", "default", "x"),
            ("a/b", "default", "x"),
            ("", "default", "x"),
            ("p", "a/..", "x"),
            ("p", "", "x"),
            ("p", "..", "x"),
            ("p", "default", ".."),
            ("p", "default", "work_x"),
            ("p", "default", "a/x"),
            ("p", "default", "x\0"),
        ] {
            assert_eq!(Place::new(pool, project, name), None, "{pool:?} {project:?} {name:?}");
        }
    }
}
