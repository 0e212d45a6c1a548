//! Looks at mounts that somebody else serves, each in a process of its own.
//!
//! Whoever serves a mount may not answer, answer without end, and, as the kernel lets a mount's owner alone in, has to be asked
//! with the owner's ids: the owner can then end, stop and slow down whoever asks. So root's commands do not ask themselves. They
//! start this program once more, with nothing but the root of the mount, and wait for a bounded time for a bounded answer, which
//! is parsed as what a stranger wrote. A process that was ended, or says nonsense, has not answered.

use crate::credentials::{User, become_owner};
use crate::quote;
use crate::worker::{MAX_ANSWER, Worker};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{self, AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::fmt::Formatter;
use std::io::{Read as _, Write as _};
use std::process::{ExitCode, Stdio};
use std::time::Instant;

/// The first argument of such a process.
const WORD: &str = "--look";
/// Bytes of what one machine says.
const MAX_TRANSFERS: u64 = 1 << 20;
/// Machines of one mount, and copies of one machine.
const MAX_MACHINES: usize = 10_000;
const MAX_COPIES: usize = 1_000;
/// Bytes of a command line that is shown.
const MAX_COMMAND: u64 = 1 << 10;
/// Seconds of a processor.
const MAX_SECONDS: u64 = 10;

/// The error of a mount that says what no codchifs says.
pub(crate) const NO_CODCHIFS: Errno = Errno::PROTO;
/// The error of one that says more than is shown.
pub(crate) const TOO_MUCH: Errno = Errno::FBIG;

/// What is found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Whether anybody serves the mount.
    Health,
    /// Its machines, and who reads their exports.
    Transfers,
}

impl What {
    const ALL: [(Self, &'static str); 2] =
        [(Self::Health, "health"), (Self::Transfers, "transfers")];
}

/// One reader of an `export.tar`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Transfer {
    /// What is read.
    #[serde(default)]
    pub(crate) file: String,
    /// Of which generation.
    #[serde(default)]
    pub(crate) generation: String,
    /// The thread that opened it.
    pub(crate) pid: Option<u64>,
    /// How far it is.
    #[serde(default)]
    pub(crate) offset: u64,
    /// How large it is.
    #[serde(default)]
    pub(crate) size: u64,
    /// Bytes that were read.
    #[serde(default)]
    pub(crate) bytes: u64,
    /// Seconds since it was opened.
    #[serde(default)]
    pub(crate) seconds: f64,
    /// Bytes a second.
    #[serde(default)]
    pub(crate) rate: u64,
    /// The command line.
    #[serde(default)]
    pub(crate) command: Option<String>,
}

#[derive(Deserialize)]
struct Transfers {
    transfers: Copies,
}

/// The readers of one machine: at most [`MAX_COPIES`], or a short text (`[{},{},…`) would take a hundred times its size.
#[derive(Debug, Default)]
struct Copies(Vec<Transfer>);

impl<'de> Deserialize<'de> for Copies {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Self::default())
    }
}

impl<'de> Visitor<'de> for Copies {
    type Value = Self;

    fn expecting(&self, to: &mut Formatter<'_>) -> std::fmt::Result {
        write!(to, "at most {MAX_COPIES} transfers")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut all: A) -> Result<Self, A::Error> {
        while let Some(transfer) = all.next_element()? {
            if self.0.len() == MAX_COPIES {
                return Err(A::Error::invalid_length(MAX_COPIES + 1, &self));
            }
            self.0.push(transfer);
        }
        Ok(self)
    }
}

/// Each machine with its readers.
pub(crate) type Machines = BTreeMap<String, Vec<Transfer>>;

/// What such a process says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// The kernel's number of an error.
    Failed(i32),
    /// Somebody serves it.
    Served,
    /// These are in it.
    Machines(Machines),
}

impl Answer {
    /// About how many bytes of memory it takes.
    pub(crate) fn weight(&self) -> usize {
        let Self::Machines(machines) = self else { return 0 };
        let of_one = |transfer: &Transfer| {
            let command = transfer.command.as_ref().map_or(0, String::len);
            size_of::<Transfer>() + transfer.file.len() + transfer.generation.len() + command
        };
        let of_machine = |(name, all): (&String, &Vec<Transfer>)| {
            size_of::<Transfer>() + name.len() + all.iter().map(of_one).sum::<usize>()
        };
        machines.iter().map(of_machine).sum()
    }
}

/// A look that goes on. Ends its process when it is dropped.
#[derive(Debug)]
pub(crate) struct Look(Worker);

impl Look {
    /// Starts one at the mount with this root, as its owner where that can be.
    pub(crate) fn start(
        root: OwnedFd,
        owner: Option<(u32, u32)>,
        what: What,
    ) -> std::io::Result<Self> {
        let name = What::ALL.iter().find(|(one, _)| *one == what).map_or("", |(_, name)| name);
        let (uid, gid) = owner.unwrap_or((0, 0));
        let words = [WORD, name, &uid.to_string(), &gid.to_string()];
        Worker::start(words, Stdio::from(root)).map(Self)
    }

    /// What it says until then; `None` if it says nothing that can be understood.
    pub(crate) fn wait(self, end: Instant) -> Option<Answer> {
        self.0.wait(end)
    }
}

/// Answers as such a process, if this is one.
pub(crate) fn answer() -> Option<ExitCode> {
    let mut words = std::env::args_os().skip(1);
    if words.next()? != WORD {
        return None;
    }
    let mut words = words.filter_map(|word| word.into_string().ok());
    let what = words.next()?;
    let what = What::ALL.iter().find(|(_, name)| *name == what)?.0;
    let (uid, gid) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let answer = look(what, User { uid, gid })
        .unwrap_or_else(|why: Errno| Answer::Failed(why.raw_os_error()));
    let said = serde_json::to_vec(&answer).ok()?;
    Some(match std::io::stdout().write_all(&said) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

fn look(what: What, owner: User) -> Result<Answer, Errno> {
    let limit = |most| Rlimit { current: Some(most), maximum: Some(most) };
    setrlimit(Resource::Core, limit(0))?;
    setrlimit(Resource::Cpu, limit(MAX_SECONDS))?;
    rustix::thread::set_no_new_privs(true)?;
    if rustix::process::geteuid().is_root() && owner.uid != 0 {
        match rustix::thread::set_thread_groups(&[]) {
            // A user namespace may forbid it (user_namespaces(7)).
            Err(Errno::PERM) => {}
            set => set?,
        }
        become_owner(owner)?;
    }
    let root = std::io::stdin();
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    fs::statx(root.as_fd(), "", flags, StatxFlags::BASIC_STATS)?;
    match what {
        What::Health => Ok(Answer::Served),
        What::Transfers => machines().map(Answer::Machines),
    }
}

fn machines() -> Result<Machines, Errno> {
    let root = std::io::stdin();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = fs::openat(root.as_fd(), ".", flags, Mode::empty())?;
    let (mut machines, mut answer_size) = (Machines::new(), 0);
    for (count, entry) in fs::Dir::read_from(&top)?.enumerate() {
        if count == MAX_MACHINES {
            return Err(TOO_MUCH);
        }
        let entry = entry?;
        let name = match entry.file_name().to_str() {
            Ok(name) => name.to_owned(),
            Err(_) => quote::name(entry.file_name().to_bytes()).to_string(),
        };
        if name.starts_with('.') {
            continue;
        }
        let path = [entry.file_name().to_bytes(), b"/.transfers"].concat();
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        // One that is gone meanwhile is no fault.
        let Ok(file) = fs::openat(&top, path, flags, Mode::empty()) else { continue };
        let mut text = Vec::new();
        let read = std::fs::File::from(file).take(MAX_TRANSFERS + 1).read_to_end(&mut text);
        if text.len() as u64 > MAX_TRANSFERS {
            return Err(TOO_MUCH);
        }
        let parsed = read.ok().and_then(|_| serde_json::from_slice(&text).ok());
        let Transfers { transfers: Copies(mut transfers) } = parsed.ok_or(NO_CODCHIFS)?;
        for transfer in &mut transfers {
            transfer.command = transfer.pid.and_then(command);
        }
        let said = serde_json::to_vec(&(&name, &transfers)).map_err(|_| NO_CODCHIFS)?;
        answer_size += said.len();
        // With what is around it.
        if answer_size as u64 > MAX_ANSWER / 2 {
            return Err(TOO_MUCH);
        }
        machines.insert(name, transfers);
    }
    Ok(machines)
}

/// The command line of a process, or of the one that a thread belongs to. Its owner can have this wait, too: its memory may be
/// that of a file of a FUSE.
fn command(pid: u64) -> Option<String> {
    let file = std::fs::File::open(format!("/proc/{pid}/cmdline")).ok()?;
    let mut line = Vec::new();
    file.take(MAX_COMMAND).read_to_end(&mut line).ok()?;
    let words = line.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    let words: Vec<_> = words.collect();
    let line = match words.is_empty() {
        true => std::fs::read(format!("/proc/{pid}/comm")).ok()?,
        false => words.join(&b' '),
    };
    Some(quote::message(line.trim_ascii()))
}
