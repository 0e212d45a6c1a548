//! What a process gives up that serves what it does not trust: everything but reading machines.
//!
//! A machine's tree and Codchi's state are hostile input, and the server parses both. So whatever goes wrong in it, it is
//! the user whose machines they are, has one capability, executes nothing, talks to nobody and opens nothing for writing
//! (seccomp, Landlock), and sees no file but those that are handed to it: its root directory is that of its own descriptors.

mod calls;

use crate::credentials::User;
use crate::sys;
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus,
    Scope,
};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{
    DumpableBehavior, Gid, Resource, Rlimit, Signal, Uid, chroot, fchdir, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{self, CapabilitySet, CapabilitySets};

/// The version of Landlock that keeps a file that is opened for reading from being cut.
const LEAST_TRUNCATE: usize = 3;

/// Why the process is not confined: it must not serve then.
#[derive(Debug, thiserror::Error)]
#[error("cannot give up {what}: {why}")]
pub struct SandboxError {
    what: &'static str,
    why: String,
}

fn cannot<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> SandboxError {
    move |why| SandboxError { what, why: why.to_string() }
}

/// Becomes `user` with CAP_DAC_READ_SEARCH, able to read what is below its open directories and nothing else. `quiet`: through
/// no directory that it will ever have is anything written. For good, and before the process has a second thread.
pub fn enter(user: User, quiet: bool) -> Result<(), SandboxError> {
    // A core would hold the user's secrets.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(cannot("core dumps"))?;
    leave_files().map_err(cannot("other files"))?;
    change_ids(user)?;
    thread::set_no_new_privs(true).map_err(cannot("new privileges"))?;
    // Nobody of the same user may attach to it; the changes of ids have reset the signal.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(cannot("being traced"))?;
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(cannot("outliving its host"))?;
    let openat2 = match restrict_files(quiet)? {
        true => calls::Openat2::Confined,
        false => calls::Openat2::Missing,
    };
    calls::restrict(openat2).map_err(cannot("other system calls"))
}

/// Makes the directory of this process's descriptors its root, on a mount that is nowhere: paths lead to what it has open,
/// and `..` to nothing above. Descriptors are needed by path where system calls take nothing else.
fn leave_files() -> Result<(), Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let own = open_tree(CWD, "/proc/self/fd", flags)?;
    fchdir(&own)?;
    chroot(".")
}

fn change_ids(user: User) -> Result<(), SandboxError> {
    let what = "other users' rights";
    for capability in CapabilitySet::all().iter() {
        // Those that this kernel does not have are not there to be dropped.
        if let Err(why) = thread::remove_capability_from_bounding_set(capability)
            && why != Errno::INVAL
        {
            tracing::debug!(%why, ?capability, "stays in the bounding set");
        }
    }
    thread::set_keep_capabilities(true).map_err(cannot(what))?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    match thread::set_thread_groups(&[gid]) {
        // A user namespace may forbid it (user_namespaces(7)); its root keeps groups that are nobody's outside.
        Err(Errno::PERM) if uid == rustix::process::geteuid() => {}
        set => set.map_err(cannot(what))?,
    }
    thread::set_thread_res_gid(gid, gid, gid).map_err(cannot(what))?;
    thread::set_thread_res_uid(uid, uid, uid).map_err(cannot(what))?;
    let only = CapabilitySet::DAC_READ_SEARCH;
    let sets =
        CapabilitySets { effective: only, permitted: only, inheritable: CapabilitySet::empty() };
    thread::set_capabilities(None, sets).map_err(cannot("capabilities"))
}

/// Landlock (Documentation/userspace-api/landlock.rst): as much of it as the kernel has. It does not restrict reading: for each
/// open that it restricts, the kernel goes up from the file to the root, which costs a tenth of reading small files.
///
/// Whether nothing is opened for writing, by whatever call.
fn restrict_files(quiet: bool) -> Result<bool, SandboxError> {
    let mut write = AccessFs::from_write(ABI::V5);
    if quiet {
        // The kernel looks for it at every open, whatever it is for.
        write.remove(AccessFs::Truncate);
    }
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(write | AccessFs::Execute)
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(ABI::V5)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(ABI::V6)))
        .and_then(|ruleset| ruleset.create())
        .and_then(|ruleset| ruleset.restrict_self())
        .map_err(cannot("other directories"))?;
    let abi = match status.ruleset {
        RulesetStatus::NotEnforced => 0,
        _ => sys::landlock_abi().unwrap_or(0),
    };
    let restricted = abi >= LEAST_TRUNCATE || (quiet && abi > 0);
    if !restricted {
        tracing::debug!(abi, "without Landlock the server opens files without openat2");
    }
    Ok(restricted)
}
