//! Terminals, by tmux: what a person types into them and sees.

use super::{Done, program, run};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A server of terminals at this socket, ended when dropped.
pub(crate) struct Terminals(pub(crate) PathBuf);

impl Terminals {
    pub(crate) fn tmux(&self, words: &[&str]) -> Done {
        run(program("tmux", ["-f", "/dev/null", "-S"])
            .arg(&self.0)
            .args(words)
            .env("LC_ALL", "C.UTF-8"))
    }
}

impl Drop for Terminals {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

/// A command on a terminal of 80 columns.
pub(crate) fn on_terminal(command: &Command) -> Done {
    let quoted = |word: &OsStr| {
        let inside = word.as_bytes().split(|byte| *byte == b'\'').collect::<Vec<_>>();
        [b"'".as_slice(), &inside.join(br"'\''".as_slice()), b"'"].concat()
    };
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line = words.map(quoted).collect::<Vec<_>>().join(b" ".as_slice());
    let line = [b"stty cols 80 rows 24 && exec ".as_slice(), &line].concat();
    let mut script =
        program("script", [OsStr::new("-qec"), OsStr::from_bytes(&line), OsStr::new("/dev/null")]);
    script.env("TERM", "xterm-256color");
    script.current_dir(command.get_current_dir().unwrap_or(Path::new(".")));
    script.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    run(script)
}
