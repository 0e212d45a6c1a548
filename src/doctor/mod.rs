//! Everything that decides whether this host works, looked at without changing anything.
//!
//! Each probe runs in a thread of its own and has a deadline: what one of them waits for, a stuck mount or a silent daemon,
//! is itself a finding. A thread that hangs is left behind; it ends with the process.

mod host;
mod kernel;
mod machines;

use crate::backend::Backend;
use crate::codchi::State;
use crate::credentials::User;
use crate::kernel::Feature;
use crate::opener::Vouched;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// For one look at a file, a device, a mount, a small program.
const SHORT: Duration = Duration::from_secs(5);
/// For what waits for a daemon, which has its own deadlines below this.
const LONG: Duration = Duration::from_secs(15);

/// How bad it is. The worst of all is last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// As it should be.
    Ok,
    /// Something works less well, or not for everybody.
    Warning,
    /// Something does not work.
    Error,
}

impl Status {
    /// As JSON and people have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was looked at: a fixed name (`docs/doctor.schema.json` has all).
    pub check: &'static str,
    /// Which of several: a machine, a daemon, a mount.
    pub subject: Option<String>,
    /// How it is.
    pub status: Status,
    /// What was found, on one line.
    pub text: String,
    /// What to do, on one line; there for all that is not `Ok`.
    pub remedy: Option<String>,
}

impl Check {
    fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, subject: None, status: Status::Ok, text: text.into(), remedy: None }
    }

    fn warning(check: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into());
        Self { status: Status::Warning, remedy, ..Self::ok(check, text) }
    }

    fn error(check: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { status: Status::Error, ..Self::warning(check, text, remedy) }
    }

    fn of(self, subject: impl Into<String>) -> Self {
        Self { subject: Some(subject.into()), ..self }
    }
}

/// Whose machines, and where they are looked for.
#[derive(Debug)]
pub struct Subject {
    /// Codchi's state.
    pub state: State,
    /// The user it belongs to.
    pub user: User,
    /// Where machines are.
    pub backend: Backend,
    /// Which of Codchi's directories the command line names.
    pub vouched: Vouched,
}

/// What newer kernels bring, and whether this one has it.
pub fn kernel_features() -> Vec<(Feature, bool)> {
    kernel::features()
}

/// Looks at everything, for no longer than half a minute. `subject` runs under a deadline, too: a home may be on a mount that
/// hangs.
pub fn examine(subject: impl FnOnce() -> Result<Subject, String> + Send + 'static) -> Vec<Check> {
    let subject = Probe::start(SHORT, subject);
    let of_host = [
        ("kernel", Probe::start(SHORT, kernel::checks)),
        ("fuse-device", Probe::start(SHORT, host::fuse)),
        ("apparmor", Probe::start(SHORT, host::apparmor)),
        ("updatedb", Probe::start(SHORT, host::updatedb)),
        ("mount-helper", Probe::start(SHORT, host::helper)),
        ("mount", Probe::start(LONG, host::mounts)),
    ];
    let of_machines = match subject.wait() {
        Some(Ok(subject)) => machines::checks(subject),
        Some(Err(why)) => {
            let (text, remedy) =
                parted(&why, "name the directories with --config-dir and --data-dir");
            vec![Check::error("state", text, remedy)]
        }
        None => vec![late("state", SHORT)],
    };
    let mut all = Vec::new();
    for (check, probe) in of_host {
        let limit = probe.limit;
        all.extend(probe.wait().unwrap_or_else(|| vec![late(check, limit)]));
    }
    all.extend(of_machines);
    all
}

/// What is said where an answer does not come.
fn late(check: &'static str, limit: Duration) -> Check {
    Check::error(
        check,
        format!("no answer within {} s: something that is looked at hangs", limit.as_secs()),
        "look for a stuck mount with `findmnt`, and detach it with `umount -l`",
    )
}

/// Our error texts say what to do after the last semicolon.
fn parted(why: &str, otherwise: &str) -> (String, String) {
    match why.rsplit_once("; ") {
        Some((text, remedy)) => (text.to_owned(), remedy.to_owned()),
        None => (why.to_owned(), otherwise.to_owned()),
    }
}

/// Something that may hang.
struct Probe<T> {
    limit: Duration,
    end: Instant,
    answer: Receiver<T>,
}

impl<T: Send + 'static> Probe<T> {
    fn start(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Self {
        let (tell, answer) = channel();
        // Without a thread nobody answers, and that is said.
        let _ = std::thread::Builder::new().name("codchifs-doctor".into()).spawn(move || {
            // Nobody listens any more after the deadline.
            let _ = tell.send(work());
        });
        Self { limit, end: Instant::now() + limit, answer }
    }

    fn wait(self) -> Option<T> {
        self.answer.recv_timeout(self.end.saturating_duration_since(Instant::now())).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_hangs_is_named_and_waited_for_no_longer() {
        let (_keep, never) = channel::<()>();
        let probe = Probe::start(Duration::from_millis(20), move || never.recv());
        assert!(probe.wait().is_none());
        assert_eq!(Probe::start(SHORT, || 1).wait(), Some(1));
        let check = late("state", SHORT);
        assert!(check.status == Status::Error && check.text.contains("within 5 s"));
    }

    #[test]
    fn a_reason_is_parted_from_what_to_do() {
        for (why, text, remedy) in [
            ("no; do it", "no", "do it"),
            ("a; b; do it", "a; b", "do it"),
            ("no", "no", "otherwise"),
        ] {
            assert_eq!(parted(why, "otherwise"), (text.into(), remedy.into()));
        }
    }
}
