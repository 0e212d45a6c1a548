//! Looking at what a user controls with that user's rights.
//!
//! codchifs runs as root to read machines, but Codchi's state belongs to a user who may plant links in it. What that
//! user could not read must not be read on their behalf.

use crate::sys;
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

/// A user's ids on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// The user.
    pub uid: u32,
    /// The user's main group, the only one that counts.
    pub gid: u32,
}

/// Runs `look` with the rights of `user` and nothing more; as whoever runs this, where that is not root.
///
/// A thread of its own, since changing the ids of this one could not be taken back safely. Root's acts on files as the user,
/// without any capability, and stays root in its real, effective and saved ids: whoever has one of those may signal the
/// whole process (kill(2)), or throttle the thread that it waits for (sched_setaffinity(2), setpriority(2)). A process that
/// is the user already, but with a capability, drops that in the thread. Without the change, nothing runs.
pub fn as_user<T: Send>(user: User, look: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    let root = rustix::process::geteuid().is_root();
    if user.uid == 0 || (!root && capabilities(None)?.effective.is_empty()) {
        return Ok(look());
    }
    let drop_rights = move || {
        if root {
            set_thread_groups(&[Gid::from_raw(user.gid)])?;
            sys::set_file_system_ids(user.uid, user.gid)?;
        }
        let none = CapabilitySet::empty();
        let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
        set_capabilities(None, sets)
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("codchifs-user".into()).spawn_scoped(
            scope,
            move || {
                drop_rights()?;
                Ok(look())
            },
        )?;
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Makes this thread the user in every id, for good: a FUSE mount admits nobody who is its owner in some ids only
/// (fs/fuse/dir.c, `fuse_permissible_uidgid`). The user can then signal the whole process: for commands that look and end.
pub fn become_owner(user: User) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_reads_what_the_user_may() {
        assert!(rustix::process::geteuid().is_root(), "run the tests as root");
        let nobody = User { uid: 65534, gid: 65534 };
        let status = as_user(nobody, || std::fs::read_to_string("/proc/thread-self/status"))
            .unwrap()
            .unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        // Real, effective, saved, and that of the file system.
        assert_eq!(field("Uid:"), ["0", "0", "0", "65534"]);
        assert_eq!(field("Gid:"), ["0", "0", "0", "65534"]);
        assert_eq!(field("Groups:"), ["65534"]);
        assert_eq!(field("CapEff:"), ["0000000000000000"]);
        assert_eq!(field("CapPrm:"), ["0000000000000000"]);
        assert!(as_user(nobody, || std::fs::File::open("/etc/shadow")).unwrap().is_err());
        assert!(std::fs::File::open("/etc/shadow").is_ok(), "this thread keeps its rights");
    }
}
