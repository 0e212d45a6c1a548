//! The ways a machine leaves by.

use crate::common::{program, run};
use std::path::Path;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// export.tar through GNU tar.
    Gnu,
    /// export.tar through bsdtar.
    Bsd,
    /// export.tar through Python's tarfile.
    Python,
    /// rootfs/ through `cp -a`.
    Cp,
    /// rootfs/ through rsync.
    Rsync,
    /// rootfs/ through GNU tar in a pipe.
    Pipe,
}

pub(crate) const ROUTES: [Route; 6] =
    [Route::Gnu, Route::Bsd, Route::Python, Route::Cp, Route::Rsync, Route::Pipe];

/// What GNU tar has to be told to restore everything.
pub(crate) const GNU: &str =
    "--numeric-owner --xattrs --xattrs-include=* --acls -S --warning=no-timestamp";

/// xfs shows ACLs as attributes as well; rsync takes them for such that the source does not have, and removes them.
pub(crate) const NOT_TWICE: &str = "--filter=-x trusted.SGI_ACL_*";

impl Route {
    pub(crate) const fn reads_the_archive(self) -> bool {
        matches!(self, Self::Gnu | Self::Bsd | Self::Python)
    }

    /// Copies to the directory `to`.
    #[track_caller]
    pub(crate) fn copy(self, archive: &Path, rootfs: &Path, to: &Path) {
        let inside = |path: &Path| path.join(".");
        let command = match self {
            Self::Gnu => {
                let mut tar = program("tar", GNU.split(' '));
                tar.arg("-xpf").arg(archive).arg("-C").arg(to);
                tar
            }
            Self::Bsd => {
                let mut tar = program("bsdtar", ["--numeric-owner", "-xpf"]);
                tar.arg(archive).arg("-C").arg(to);
                tar
            }
            Self::Python => return super::python::extract(archive, to),
            Self::Cp => {
                let mut cp = program("cp", ["-a", "--preserve=all,xattr", "--sparse=auto"]);
                cp.arg(inside(rootfs)).arg(to);
                cp
            }
            Self::Rsync => {
                let mut rsync = program("rsync", ["-aHAXS", "--numeric-ids", NOT_TWICE]);
                rsync.arg(inside(rootfs)).arg(to);
                rsync
            }
            Self::Pipe => {
                let script = format!(
                    "set -eo pipefail; set -f; tar {GNU} -cf - -C \"$1\" . | tar {GNU} -xpf - -C \"$2\""
                );
                let mut bash = program("bash", ["-c", &script, "bash"]);
                bash.arg(rootfs).arg(to);
                bash
            }
        };
        run(command).silent();
    }
}
