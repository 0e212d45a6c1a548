//! The system calls that the server may make (seccomp(2)), each with its reason.
//!
//! The list is what `strace -f` shows of the server in the tests of mounts, and what older kernels and C libraries take instead.
//! A filter sees numbers alone, so a call whose arguments lie behind a pointer is here only if nothing that they can say does
//! harm. Calls that take a path reach what the server has open: its root directory is that of its descriptors.

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// Calls with any arguments.
const ALLOWED: &[libc::c_long] = &[
    // Memory of its own. What may be mapped is below; madvise(2) with more than advice takes CAP_SYS_ADMIN.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Threads of its own: start, names, signal masks and stacks, waiting, end.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_gettid,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    // Goes on with a call after the process was stopped.
    libc::SYS_restart_syscall,
    // Time: mostly without the kernel, but not with every clock source.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    // Seeds of hash maps.
    libc::SYS_getrandom,
    // Whether it is root, and a thread that looks with the user's rights drops its capability (`credentials`). Capabilities can be
    // dropped and never be taken back: the bounding set is empty.
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_geteuid,
    // Descriptors: the kernel's requests, files and directories of machines, two kinds of sockets (to the host, to its log). All
    // files are opened for reading. The sockets are connected streams: sending to another address is an error (unix(7), EISCONN),
    // and descriptors that are sent along come from the server itself.
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_read,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_write,
    libc::SYS_writev,
    // Whether the kernel asks no more.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    // Names and attributes.
    libc::SYS_newfstatat,
    libc::SYS_readlinkat,
    libc::SYS_statx,
    // Extended attributes, before Linux 6.13 by path.
    libc::SYS_lgetxattr,
    libc::SYS_llistxattr,
    // getxattrat and listxattrat, which libc does not name yet.
    464,
    465,
];

/// openat2(2) has its flags behind a pointer, where no filter looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Openat2 {
    /// Landlock keeps it from opening anything for writing.
    Confined,
    /// It is not allowed: `tree` then opens step by step with openat(2).
    Missing,
}

/// What pthread_create(3) asks clone(2) for. musl adds CLONE_DETACHED, which the kernel ignores.
const THREAD: libc::c_int = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID;

/// fcntl(2): copies of descriptors, and what they are. No owner of signals and no O_ASYNC, which would make the kernel send
/// signals as the user; no locks and leases, which others wait for.
const FCNTLS: [libc::c_int; 3] = [libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_GETFL];

/// FS_IOC_FIEMAP (linux/fs.h): where a file's data are.
const FIEMAP: u64 = 0xc020_660b;

/// What is not allowed does not exist: every caller that tries what is newer than itself is prepared for ENOSYS.
pub(super) fn restrict(openat2: Openat2) -> Result<(), seccompiler::Error> {
    let arch = std::env::consts::ARCH;
    let Ok(arch) = TargetArch::try_from(arch) else {
        tracing::warn!(arch, "no system call is refused on this architecture");
        return Ok(());
    };
    seccompiler::apply_filter(&filter(arch, openat2)?)
}

/// One argument of a call.
fn only(
    argument: u8,
    length: SeccompCmpArgLen,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, length, operator, value)?])
}

fn filter(arch: TargetArch, openat2: Openat2) -> Result<BpfProgram, BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    use SeccompCmpOp::{Eq, MaskedEq};
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    if openat2 == Openat2::Confined {
        rules.insert(libc::SYS_openat2, Vec::new());
    }
    let mut allow = |call, rule| rules.entry(call).or_default().push(rule);
    // Nothing is opened to be written.
    let writing = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND) as u64;
    let reading = |flags| only(flags, Dword, MaskedEq(writing), libc::O_RDONLY as u64);
    allow(libc::SYS_openat, reading(2)?);
    #[cfg(target_arch = "x86_64")]
    allow(libc::SYS_open, reading(1)?);
    // No memory becomes code.
    let code = libc::PROT_EXEC as u64;
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        allow(call, only(2, Qword, MaskedEq(code), 0)?);
    }
    // Threads, but no process. clone3 is not allowed, since its flags are behind a pointer: glibc then calls clone.
    let others = !(CLONE_DETACHED as u64);
    allow(libc::SYS_clone, only(0, Qword, MaskedEq(others), THREAD as u64)?);
    for command in FCNTLS {
        allow(libc::SYS_fcntl, only(1, Dword, Eq, command as u64)?);
    }
    allow(libc::SYS_ioctl, only(1, Dword, Eq, FIEMAP)?);
    // A shared lock of Codchi's lock file, and no waiting for it.
    let shared = (libc::LOCK_SH | libc::LOCK_NB) as u64;
    allow(libc::SYS_flock, only(1, Dword, Eq, shared)?);
    // Threads get names; nothing else of a process is changed.
    allow(libc::SYS_prctl, only(0, Dword, Eq, libc::PR_SET_NAME as u64)?);
    let missing = SeccompAction::Errno(libc::ENOSYS as u32);
    SeccompFilter::new(rules, missing, SeccompAction::Allow, arch)?.try_into()
}

/// linux/sched.h; libc has it deprecated.
const CLONE_DETACHED: u32 = 0x0040_0000;
