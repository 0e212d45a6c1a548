//! Commands in a sandbox like a service manager's or a container's.

use super::{Done, run};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use std::process::Command;

/// Runs a command in a sandbox in which these calls end with this error.
pub(crate) fn without(calls: &[i64], error: i32, command: &mut Command) -> Done {
    sandboxed(calls, error, || run(command))
}

/// Does `work` in such a sandbox; what it starts stays in it.
pub(crate) fn sandboxed<T: Send>(calls: &[i64], error: i32, work: impl FnOnce() -> T + Send) -> T {
    let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
    let refused = SeccompAction::Errno(error.cast_unsigned());
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, arch).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    std::thread::scope(|scope| {
        // A filter is the thread's, and of what it starts.
        let sandbox = scope.spawn(|| {
            seccompiler::apply_filter(&program).unwrap();
            work()
        });
        sandbox.join().unwrap()
    })
}
