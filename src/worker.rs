//! Runs this program once more, in a process that does one thing and gives one bounded answer.
//!
//! For what may not return, or must not be done in a process with other rights: the process is waited for until a deadline, and
//! killed.

use std::ffi::OsStr;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Bytes of an answer.
pub(crate) const MAX_ANSWER: u64 = 1 << 20;

/// Such a process. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Worker {
    child: Option<Child>,
    answer: Receiver<Vec<u8>>,
}

impl Worker {
    /// Starts one with these arguments and nothing of the environment.
    pub(crate) fn start<S: AsRef<OsStr>>(
        words: impl IntoIterator<Item = S>,
        stdin: Stdio,
    ) -> std::io::Result<Self> {
        crate::sys::keep_descriptors()?;
        let mut child = Command::new("/proc/self/exe")
            .arg0("codchifs")
            .args(words)
            .env_clear()
            .current_dir("/")
            // Keys typed at a terminal are for the command, and signals to this group for nobody else.
            .process_group(0)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let (sender, answer) = channel();
        let stdout = child.stdout.take();
        let worker = Self { child: Some(child), answer };
        if let Some(stdout) = stdout {
            std::thread::Builder::new().name("codchifs-worker".into()).spawn(move || {
                let mut text = Vec::new();
                // An answer that is cut off cannot be parsed.
                let _ = stdout.take(MAX_ANSWER).read_to_end(&mut text);
                // Nobody may wait any more.
                let _ = sender.send(text);
            })?;
        }
        Ok(worker)
    }

    /// The answer, if it comes until then and makes sense.
    pub(crate) fn wait<T: serde::de::DeserializeOwned>(self, end: Instant) -> Option<T> {
        let left = end.saturating_duration_since(Instant::now());
        let text = self.answer.recv_timeout(left.max(Duration::from_millis(1))).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let _ = child.kill();
        if matches!(child.try_wait(), Ok(None)) {
            // It may hang in the kernel for a while.
            let reap = move || drop(child.wait());
            let _ = std::thread::Builder::new().name("codchifs-reap".into()).spawn(reap);
        }
    }
}
