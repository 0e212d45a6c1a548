//! Mount namespaces of their own: for commands that look at every mount of the host (`doctor`, `status`, completions), where
//! no mounts of other tests are, and for tests whose mounts must not be looked at by others.

use super::{program, without_variables};
use std::path::Path;
use std::process::Command;

/// For a shell in a mount namespace of its own, with `$OWN` for the test's directory: takes away what other tests have mounted
/// as codchifs. A mount that ends at this moment cannot be unmounted.
pub(crate) const LEAVE: &str = r#"
awk -v own="$OWN/" '/ - fuse.codchifs / && index($5, own) != 1 { print $5 }' /proc/self/mountinfo |
    while IFS= read -r point; do umount -l "$(printf '%b' "$point")" || :; done
"#;

/// The same command there. `own` is the directory below which the test's own mounts are.
pub(crate) fn alone(own: &Path, command: &Command) -> Command {
    let mut alone = program("unshare", ["--mount", "--propagation", "private", "sh", "-ec"]);
    alone.arg(format!("{LEAVE}exec \"$@\"")).arg("sh").env("OWN", own);
    alone.arg(command.get_program()).args(command.get_args());
    without_variables(&mut alone);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => alone.env(name, value),
            None => alone.env_remove(name),
        };
    }
    alone
}

/// Runs a test of this program once more, where nobody else sees its mounts. `true` for who called it first, and then all is
/// done. A mount that does not answer stops every program of the host that looks at all of them, as mkfs and LXD do.
pub(crate) fn runs_unseen(test: &str) -> bool {
    const UNSEEN: &str = "CODCHIFS_TEST_IS_UNSEEN";
    if std::env::var_os(UNSEEN).is_some() {
        return false;
    }
    let mut again = program("unshare", ["--mount", "--propagation", "private"]);
    again.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]);
    let done = again.env(UNSEEN, "1").output().unwrap();
    let out = String::from_utf8_lossy(&done.stdout);
    assert!(
        done.status.success() && out.contains("1 passed"),
        "{out}\n{}",
        String::from_utf8_lossy(&done.stderr)
    );
    true
}
