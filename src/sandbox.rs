//! What a process gives up that serves what it does not trust: everything but reading machines.
//!
//! A machine's tree and Codchi's state are hostile input, and the server parses both. So whatever goes wrong in it, it is
//! the user whose machines they are, has one capability, executes nothing, talks to nobody and opens nothing for writing
//! (seccomp, Landlock), and sees no file but those that are handed to it: its root directory is that of its own descriptors.

use crate::credentials::User;
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
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

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
    restrict_files(quiet)?;
    restrict_calls()
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
fn restrict_files(quiet: bool) -> Result<(), SandboxError> {
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
    if status.ruleset == RulesetStatus::NotEnforced {
        tracing::debug!("this kernel has no Landlock: seccomp alone keeps the server from writing");
    }
    Ok(())
}

/// Calls that the server makes, whatever their arguments. Memory, threads, time, reading.
const ALLOWED: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fcntl,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_futex,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    // Its flags are behind a pointer: that it opens nothing for writing is Landlock's.
    libc::SYS_openat2,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_write,
    libc::SYS_writev,
    // getxattrat and listxattrat, which libc does not name yet.
    464,
    465,
];

/// Those that only this architecture has.
#[cfg(target_arch = "x86_64")]
const OLD: &[libc::c_long] =
    &[libc::SYS_dup2, libc::SYS_poll, libc::SYS_readlink, libc::SYS_stat, libc::SYS_lstat];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[libc::c_long] = &[];

/// ioctl(2)s: what a file's holes are, what a terminal is, and that of /dev/fuse.
const IOCTLS: [u64; 3] = [
    // FS_IOC_FIEMAP, TCGETS.
    0xc020_660b,
    0x5401,
    // FUSE_DEV_IOC_CLONE (linux/fuse.h).
    0x8004_e500,
];

/// seccomp(2). What is not allowed does not exist: ENOSYS is what every caller is prepared for that tries what is newer
/// than itself.
fn restrict_calls() -> Result<(), SandboxError> {
    let what = "other system calls";
    let arch = std::env::consts::ARCH;
    let Ok(arch) = TargetArch::try_from(arch) else {
        tracing::warn!(arch, "no system call is refused on this architecture");
        return Ok(());
    };
    let program = filter(arch).map_err(cannot(what))?;
    seccompiler::apply_filter(&program).map_err(cannot(what))
}

fn filter(arch: TargetArch) -> Result<BpfProgram, seccompiler::BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().chain(OLD).map(|call| (*call, Vec::new())).collect();
    let only = |argument, length, operator, value| {
        SeccompRule::new(vec![SeccompCondition::new(argument, length, operator, value)?])
    };
    // Nothing is opened to be written.
    let writing = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND) as u64;
    let read = only(2, Dword, SeccompCmpOp::MaskedEq(writing), libc::O_RDONLY as u64)?;
    rules.insert(libc::SYS_openat, vec![read]);
    #[cfg(target_arch = "x86_64")]
    rules.insert(
        libc::SYS_open,
        vec![only(1, Dword, SeccompCmpOp::MaskedEq(writing), libc::O_RDONLY as u64)?],
    );
    // Threads, but no process. clone3 is not allowed, since its flags are behind a pointer: glibc then calls clone.
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![only(0, Qword, SeccompCmpOp::MaskedEq(thread), thread)?]);
    // Threads get names; nothing else of a process is changed.
    let name = libc::PR_SET_NAME as u64;
    rules.insert(libc::SYS_prctl, vec![only(0, Dword, SeccompCmpOp::Eq, name)?]);
    // Limits are read, never set: prlimit64's third argument points to new ones.
    rules.insert(libc::SYS_prlimit64, vec![only(2, Qword, SeccompCmpOp::Eq, 0)?]);
    let ioctls = IOCTLS.iter().map(|call| only(1, Dword, SeccompCmpOp::Eq, *call));
    rules.insert(libc::SYS_ioctl, ioctls.collect::<Result<_, _>>()?);
    let missing = SeccompAction::Errno(libc::ENOSYS as u32);
    SeccompFilter::new(rules, missing, SeccompAction::Allow, arch)?.try_into()
}
