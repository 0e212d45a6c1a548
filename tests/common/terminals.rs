//! Terminals, by tmux: what a person types into them and sees.

use super::fixture::Fixture;
use super::{Done, program, run, wait_until};
use std::ffi::OsStr;
use std::fs;
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

/// bash, zsh and fish as people have them, each on a terminal of its own and with codchifs's completion.
#[allow(dead_code)]
pub(crate) struct Shells {
    terminals: Terminals,
    home: PathBuf,
    completions: PathBuf,
    environment: String,
}

#[allow(dead_code)]
impl Shells {
    /// `bin` has the program `codchifs`. The machines are those of the fixture.
    pub(crate) fn new(fixture: &Fixture, bin: &Path) -> Self {
        let (home, generated) = (fixture.scratch("home"), fixture.path().join("generated"));
        run(fixture.command(["generate"]).arg(&generated)).silent();
        let completions = generated.join("completions");
        let scripts = completions.display();
        let prompt = "PS1='ready> '";
        let bashrc = format!("{prompt}\n. {scripts}/codchifs.bash\n");
        fs::write(home.join("bashrc"), bashrc).unwrap();
        let zshrc =
            format!("{prompt}\nfpath=({scripts} $fpath)\nautoload -U compinit\ncompinit -u -D\n");
        fs::write(home.join(".zshrc"), zshrc).unwrap();
        let environment = format!(
            "cd {home}; exec env HOME={home} ZDOTDIR={home} PATH={}:$PATH CODCHIFS_CONFIG_DIR={} TERM=xterm LC_ALL=C.UTF-8",
            bin.display(),
            fixture.config().display(),
            home = home.display()
        );
        let terminals = Terminals(fixture.path().join("tmux"));
        Self { terminals, home, completions, environment }
    }

    /// Where they stand.
    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// Each of them, started when it is its turn.
    pub(crate) fn each(&self) -> impl Iterator<Item = Shell<'_>> {
        let fishrc = format!(
            "source {}/codchifs.fish; function fish_prompt; echo -n 'ready> '; end",
            self.completions.display()
        );
        let all = [
            ("bash", format!("bash --noprofile --rcfile {}/bashrc -i", self.home.display())),
            ("zsh", "zsh -o no_global_rcs -i".to_owned()),
            ("fish", format!("fish --no-config -C \"{fishrc}\"")),
        ];
        all.into_iter().map(|(name, command)| {
            let line = format!("{} {command}", self.environment);
            let new = ["new-session", "-d", "-s", name, "-x", "250", "-y", "24", &line];
            self.terminals.tmux(&new).ok();
            Shell { terminals: &self.terminals, name }
        })
    }
}

/// One shell that waits for what is typed.
#[allow(dead_code)]
pub(crate) struct Shell<'a> {
    terminals: &'a Terminals,
    pub(crate) name: &'static str,
}

#[allow(dead_code)]
impl Shell<'_> {
    pub(crate) fn screen(&self) -> String {
        self.terminals.tmux(&["capture-pane", "-p", "-J", "-t", self.name]).out()
    }

    /// Keys by tmux's names, or a text after `-l`.
    pub(crate) fn keys(&self, words: &[&str]) {
        self.terminals.tmux(&[&["send-keys", "-t", self.name], words].concat()).ok();
    }

    /// Types a text on an empty line, and TAB. Whatever is typed before the prompt is there may be lost.
    pub(crate) fn complete(&self, typed: &str) {
        wait_until(&format!("{}'s prompt", self.name), || self.screen().trim_end() == "ready>");
        self.keys(&["-l", typed]);
        wait_until(&format!("the echo of {typed}"), || self.screen().contains(typed));
        self.keys(&["Tab"]);
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
