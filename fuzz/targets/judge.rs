//! The programs that read what `quote` writes, for those targets that ask them.
#![allow(dead_code)]

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;

/// Finds a program, since it gets a `PATH` that leads to none: a text that gets out of its quotes must start nothing.
fn found(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut all = std::env::split_paths(&path).map(|dir| dir.join(program));
    let is_file = |path: &PathBuf| path.metadata().is_ok_and(|meta| meta.mode() & 0o111 != 0);
    all.find(is_file).unwrap_or_else(|| panic!("{program} is missing: tests/setup installs it"))
}

fn command(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(found(program));
    command.args(args).env_clear().envs([
        ("LC_ALL", "C.UTF-8"),
        ("HOME", "~"),
        ("PATH", "/nonexistent"),
    ]);
    command.current_dir("/proc").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// A program that stays, and answers each line that it is given.
pub struct Reader {
    program: String,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    _child: Child,
}

impl Reader {
    pub fn new(program: &str, args: &[&str]) -> Self {
        let mut child = command(program, args).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { program: program.to_owned(), input, output: BufReader::new(output), _child: child }
    }

    pub fn tell(&mut self, text: &str) {
        self.input.write_all(text.as_bytes()).unwrap();
        self.input.flush().unwrap();
    }

    /// Up to `end`, which is taken away.
    pub fn answer(&mut self, end: u8) -> Vec<u8> {
        let mut answer = Vec::new();
        self.output.read_until(end, &mut answer).unwrap();
        assert_eq!(answer.pop(), Some(end), "{} has ended", self.program);
        answer
    }

    /// A shell says what it takes a word for, and that nothing else was left to do.
    pub fn assert_word(&mut self, word: &str, expected: &[u8]) {
        self.tell(&format!("printf '%s\\0' {word}\nprintf 'next\\0'\n"));
        for expected in [expected, b"next"] {
            let answer = self.answer(0);
            assert!(answer == expected, "{}: {word}: {}", self.program, answer.escape_ascii());
        }
    }
}

/// What a program that ends makes of `input`.
pub fn fed(program: &str, args: &[&str], input: &[u8]) -> Result<Vec<u8>, String> {
    fed_in(Path::new("/proc"), program, args, input)
}

pub fn fed_in(dir: &Path, program: &str, args: &[&str], input: &[u8]) -> Result<Vec<u8>, String> {
    let child = command(program, args).current_dir(dir).spawn();
    let mut child = child.map_err(|why| why.to_string())?;
    let mut to = child.stdin.take().unwrap();
    let done = std::thread::scope(|scope| {
        // One that refuses its input does not read all of it.
        scope.spawn(move || drop(to.write_all(input)));
        child.wait_with_output().unwrap()
    });
    match done.status.success() {
        true => Ok(done.stdout),
        false => Err(format!("{program}: {}", done.status)),
    }
}

static WAITING: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// Has many texts judged at once, since a program takes longer to start than to read them: as many as `QUOTE_BATCH` says. With 1
/// an input that was found fails again by itself.
pub fn batched(text: &[u8], judge: impl Fn(&[Vec<u8>]) -> Result<(), String>) {
    let most = std::env::var("QUOTE_BATCH").ok().and_then(|text| text.parse().ok()).unwrap_or(1000);
    let mut waiting = WAITING.lock().unwrap();
    waiting.push(text.to_vec());
    if waiting.len() < most {
        return;
    }
    let mut texts = std::mem::take(&mut *waiting);
    let Err(mut why) = judge(&texts) else { return };
    // One of them is enough, or the fewest that fail together.
    while texts.len() > 1 {
        let right = texts.split_off(texts.len() / 2);
        match (judge(&texts), judge(&right)) {
            (Err(of_left), _) => why = of_left,
            (_, Err(of_right)) => (texts, why) = (right, of_right),
            _ => {
                texts.extend(right);
                break;
            }
        }
    }
    let mut shown = String::new();
    for text in &texts {
        let _ = writeln!(shown, "{}", text.escape_ascii());
    }
    panic!("{why}; the texts are:\n{shown}");
}
