//! Opens that no link and no mount leads out of a directory.
//!
//! openat2(2) does it in one call. A process that may not call it goes step by step: below Linux 5.6, under a seccomp filter
//! that does not know the call, and in a server whose kernel has nothing else that looks at its flags (`sandbox`).

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, openat, openat2, statx,
};
use rustix::io::Errno;
use rustix::path::Arg;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// No path leads out of the directory that it begins in.
const CONFINED: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Pins whatever is there, a link as well.
pub(crate) const PIN: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Set where openat2 does not exist.
static WITHOUT_OPENAT2: AtomicBool = AtomicBool::new(false);

/// Set where the root directory is that of this process's descriptors (`sandbox`).
static ROOT_HAS_OWN_FDS: AtomicBool = AtomicBool::new(false);

/// Whether opens go step by step.
pub(crate) fn is_stepwise() -> bool {
    WITHOUT_OPENAT2.load(Ordering::Relaxed)
}

/// Opens `path` below `dir`, on the same mount and through no link: ELOOP and XDEV else.
pub(crate) fn open(dir: impl AsFd, path: impl Arg + Copy, flags: OFlags) -> Result<OwnedFd, Errno> {
    open_as(dir, path, flags, CONFINED)
}

/// Pins whatever `path` below `dir` is, without opening it.
pub(crate) fn pin(dir: impl AsFd, path: impl Arg + Copy) -> Result<OwnedFd, Errno> {
    open(dir, path, PIN)
}

/// The same, of what is mounted there.
pub(crate) fn pin_mounted(dir: impl AsFd, path: impl Arg + Copy) -> Result<OwnedFd, Errno> {
    open_as(dir, path, PIN, CONFINED & !ResolveFlags::NO_XDEV)
}

fn open_as(
    dir: impl AsFd,
    path: impl Arg + Copy,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    if !is_stepwise() {
        match openat2(&dir, path, flags, Mode::empty(), resolve) {
            // A filter may have EPERM for what it does not know. The call itself has it for O_NOATIME alone.
            Err(Errno::NOSYS) => {}
            Err(Errno::PERM) if !flags.contains(OFlags::NOATIME) => {}
            opened => return opened,
        }
        tracing::debug!("there is no openat2: opening step by step");
        WITHOUT_OPENAT2.store(true, Ordering::Relaxed);
    }
    path.into_with_c_str(|path| stepwise(&dir, path.to_bytes(), flags, resolve))
}

/// Each step pins what a name is, looks at it, and goes on from there: what the machine puts in its place is not asked again.
fn stepwise(
    dir: &impl AsFd,
    path: &[u8],
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    // With these a link in the last place is opened as itself (openat2(2), RESOLVE_NO_SYMLINKS).
    let link = flags.contains(OFlags::PATH | OFlags::NOFOLLOW);
    if path.is_empty() {
        return Err(Errno::NOENT);
    }
    if path.starts_with(b"/") {
        return Err(Errno::XDEV);
    }
    let directory = flags.contains(OFlags::DIRECTORY) || path.ends_with(b"/");
    let first = stat_pinned(dir)?;
    let mut names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).peekable();
    let mut pinned: Option<OwnedFd> = None;
    while let Some(name) = names.next() {
        if name == b".." {
            return Err(Errno::XDEV);
        }
        let next = match &pinned {
            Some(above) => openat(above, name, PIN, Mode::empty())?,
            None => openat(dir, name, PIN, Mode::empty())?,
        };
        let st = stat_pinned(&next)?;
        if resolve.contains(ResolveFlags::NO_XDEV) && !same_mount(&first, &st) {
            return Err(Errno::XDEV);
        }
        let last = names.peek().is_none();
        match FileType::from_raw_mode(u32::from(st.stx_mode)) {
            FileType::Directory if last => return finish_directory(next, flags),
            FileType::Directory => pinned = Some(next),
            FileType::Symlink if last && link && !directory => return Ok(next),
            FileType::Symlink => return Err(Errno::LOOP),
            _ if !last || directory => return Err(Errno::NOTDIR),
            _ if flags.contains(OFlags::PATH) => return Ok(next),
            _ => return reopen(&next, flags),
        }
    }
    // Slashes alone.
    Err(Errno::NOENT)
}

fn finish_directory(pinned: OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    match flags.contains(OFlags::PATH) {
        true => Ok(pinned),
        false => openat(pinned, ".", flags, Mode::empty()),
    }
}

/// What is pinned may be mounted there: nobody is asked.
fn stat_pinned(fd: impl AsFd) -> Result<Statx, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    statx(fd, "", flags, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)
}

/// Tells that the root directory of this process is now the one of its descriptors.
pub(crate) fn root_has_own_fds() {
    ROOT_HAS_OWN_FDS.store(true, Ordering::Relaxed);
}

/// Where this process's descriptors are; ends in a slash.
pub(crate) fn own_fds_path() -> &'static str {
    match ROOT_HAS_OWN_FDS.load(Ordering::Relaxed) {
        true => "/",
        false => "/proc/self/fd/",
    }
}

/// This process's descriptors, opened once.
fn own_fds() -> Result<BorrowedFd<'static>, Errno> {
    static FDS: OnceLock<Result<OwnedFd, Errno>> = OnceLock::new();
    FDS.get_or_init(|| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(own_fds_path(), flags, Mode::empty())
    })
    .as_ref()
    .map(AsFd::as_fd)
    .map_err(|e| *e)
}

/// Opens the very object that is pinned: a magic link of our own table leads there and nowhere else.
pub(crate) fn reopen(pinned: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    let number = rustix::path::DecInt::from_fd(pinned);
    openat(own_fds()?, number.as_c_str(), flags & !OFlags::NOFOLLOW, Mode::empty())
}

/// Before Linux 5.8 a mount has no number; what is mounted there from the same file system then passes for the machine's.
fn same_mount(one: &Statx, other: &Statx) -> bool {
    match (one.stx_mask & other.stx_mask) & StatxFlags::MNT_ID.bits() {
        0 => (one.stx_dev_major, one.stx_dev_minor) == (other.stx_dev_major, other.stx_dev_minor),
        _ => one.stx_mnt_id == other.stx_mnt_id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, create_dir_all, write};
    use std::os::unix::fs::symlink;

    /// What both ways answer, with the contents where it is a file.
    fn both(dir: &File, path: &str, flags: OFlags) -> [Result<u64, Errno>; 2] {
        [
            openat2(dir, path, flags, Mode::empty(), CONFINED),
            stepwise(&dir, path.as_bytes(), flags, CONFINED),
        ]
        .map(|opened| opened.and_then(stat_pinned).map(|st| st.stx_ino))
    }

    #[test]
    fn step_by_step_is_what_openat2_does() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        create_dir_all(at("d/e")).unwrap();
        write(at("d/e/file"), "text").unwrap();
        for (link, target) in
            [("d/link", "e"), ("d/out", "/"), ("d/up", "../.."), ("d/e/l", "file"), ("d/none", "x")]
        {
            symlink(target, at(link)).unwrap();
        }
        let dir = File::open(temp.path()).unwrap();
        let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let list = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut answers = std::collections::BTreeSet::new();
        for path in [
            ".",
            "d",
            "d/",
            "d//e",
            "d/./e",
            "d/e/file",
            "d/e/file/",
            "d/e/file/x",
            "d/link",
            "d/link/file",
            "d/out",
            "d/out/etc",
            "d/up",
            "d/e/l",
            "d/none",
            "none",
            "none/x",
            "d/../d",
            "..",
            "/",
            "/etc",
            "",
            "d/e/..",
        ] {
            for flags in [read, list, PIN] {
                let [one, other] = both(&dir, path, flags);
                // openat2 goes up inside of the directory; nobody here asks for that.
                if path.contains("/..") {
                    assert_eq!(other, Err(Errno::XDEV), "{path}");
                    continue;
                }
                assert_eq!(one, other, "{path}, {flags:?}");
                answers.insert(format!("{other:?}"));
            }
        }
        assert!(answers.len() > 7, "{answers:?}");
    }

    #[test]
    fn step_by_step_no_mount_is_entered() {
        assert!(rustix::process::geteuid().is_root(), "run the tests as root");
        let root = File::open("/").unwrap();
        for (path, flags) in [("proc", PIN), ("proc/self", PIN), ("proc/version", OFlags::RDONLY)] {
            let [one, other] = both(&root, path, flags);
            assert_eq!((one, other), (Err(Errno::XDEV), Err(Errno::XDEV)), "{path}");
        }
    }
}
