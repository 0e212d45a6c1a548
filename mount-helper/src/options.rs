//! mount(8)'s arguments to those of `codchifs mount`. Pure.
//!
//! ```text
//! mount.codchifs SOURCE DIRECTORY [-sfnv] [-N namespace] [-o options] [-t type]
//! ```
//!
//! In a value of `-o`, `\,` is a comma, `\\` a backslash, `\040` (three octal digits, as in fstab) that byte, and double
//! quotes around a value keep its commas. A backslash before anything else stays, since patterns use it.

use crate::quote;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

/// Mounted.
pub(crate) const EX_OK: u8 = 0;
/// Wrong arguments or options.
pub(crate) const EX_USAGE: u8 = 1;
/// The system lacks something: the program, memory, processes.
pub(crate) const EX_SYSTEM: u8 = 2;
/// codchifs crashed.
pub(crate) const EX_SOFTWARE: u8 = 4;
/// The user interrupted it. (16 and 64 of mount(8) cannot happen here: there is no mtab, and one mount.)
pub(crate) const EX_USER: u8 = 8;
/// The mount failed.
pub(crate) const EX_FAIL: u8 = 32;

/// The source that means the caller's own machines.
const OWN_STATE: &[u8] = b"codchi";

/// Options with a value that `codchifs` has under the same name. Sorted.
const WITH_VALUE: &[&str] = &[
    "config-dir",
    "data-dir",
    "driver",
    "exclude",
    "include",
    "log-file",
    "lxd-dir",
    "machine",
    "mtime",
    "on-change",
    "passthrough",
    "rootfs-dir",
    "secrets",
    "sparse",
    "stop-timeout",
    "user",
];

/// Those of them that stand before the word `mount`. Sorted.
const GLOBAL: &[&str] = &["config-dir", "data-dir", "driver", "lxd-dir", "rootfs-dir", "user"];

/// Words that `codchifs mount -o` takes as they are, but for those of [`TAKES_BACK`]. mount(8) adds `noexec` to `user`, `users`,
/// `owner` and `group`. Sorted.
const FORWARDED: &[&str] =
    &["allow_other", "allow_root", "exec", "inode32", "noexec", "nosymfollow", "symfollow"];

/// Words that take back an earlier one.
const TAKES_BACK: &[(&str, &str)] = &[("exec", "noexec"), ("symfollow", "nosymfollow")];

/// Words of mount(8), fstab and systemd that ask for nothing, or for what every codchifs mount is (`ro`, `nosuid`,
/// `nodev`). mount(8) itself adds `rw` where neither is given, so `rw` cannot be refused. Sorted.
const IGNORED: &[&str] = &[
    "_netdev",
    "_rnetdev",
    "async",
    "atime",
    "auto",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "group",
    "iversion",
    "lazytime",
    "loud",
    "noatime",
    "noauto",
    "nodev",
    "nodiratime",
    "nofail",
    "nogroup",
    "noiversion",
    "nolazytime",
    "nomand",
    "noowner",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nouser",
    "nousers",
    "owner",
    "relatime",
    "ro",
    "rw",
    "silent",
    "strictatime",
    "suid",
    "sync",
    "user",
    "users",
];

/// What only fits a mount that is there already, or one of another kind.
const REFUSED: &[(&str, &str)] = &[
    ("bind", "only mount(8) itself binds"),
    ("move", "only mount(8) itself moves a mount"),
    ("rbind", "only mount(8) itself binds"),
    ("remount", "a codchifs cannot be remounted: unmount it, and mount it with the new options"),
];

/// The same, as beginnings. Sorted.
const IGNORED_PREFIXES: &[&str] = &["X-", "comment=", "x-"];

const HELP: &str = "\
usage: mount.codchifs SOURCE DIRECTORY [-sfnv] [-N NAMESPACE] [-t codchifs]
                      [-o OPTION[,OPTION]...]

SOURCE     a user's name: that user's machines; codchi: the caller's
-f         do everything but mount
-N         the mount namespace to run in: a file like /proc/PID/ns/mnt, or a PID
-n         ignored, there is no mtab
-o         options: config-dir= data-dir= driver= lxd-dir= rootfs-dir= user=
           machine= exclude= include= secrets= sparse= mtime= on-change=
           passthrough= log-file= stop-timeout= allow_other allow_root
           inode32 noexec nosymfollow, and the words of fstab(5), which are
           ignored; in a value, \\054 is a comma and \\040 a space
-s         leave out unknown options instead of failing
-t         codchifs or fuse.codchifs
-v         say what is run
-V         say the version

Exit status: 0 mounted, 1 wrong arguments, 2 no codchifs to run, 4 it crashed,
             8 interrupted, 32 not mounted. There is no mtab, so never 16; 64 is
             for `mount -a` alone.
";

const VERSION: &str = concat!("mount.codchifs ", env!("CODCHIFS_VERSION"), "\n");

/// What to run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    /// Arguments of `codchifs`.
    pub(crate) args: Vec<OsString>,
    /// Where to; for messages.
    pub(crate) directory: PathBuf,
    /// The file of the mount namespace to run in.
    pub(crate) namespace: Option<OsString>,
    /// `-v`
    pub(crate) verbose: bool,
    /// Unknown options that `-s` left out.
    pub(crate) left_out: Vec<String>,
    /// To be printed instead of anything else.
    pub(crate) help: Option<&'static str>,
}

/// Why not, with mount(8)'s exit status.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    pub(crate) text: String,
}

fn usage(text: impl Into<String>) -> Failure {
    Failure { code: EX_USAGE, text: text.into() }
}

/// What mount(8) gave, before its options are looked at.
#[derive(Debug, Default)]
struct Given<'a> {
    operands: Vec<&'a [u8]>,
    options: Vec<&'a [u8]>,
    namespace: Option<&'a [u8]>,
    fake: bool,
    sloppy: bool,
    verbose: bool,
    help: Option<&'static str>,
}

/// Arguments (without the program's name) to a request.
pub(crate) fn translate(args: &[OsString]) -> Result<Request, Failure> {
    let given = given(args)?;
    if given.help.is_some() {
        return Ok(Request { help: given.help, ..Request::default() });
    }
    let (source, directory) = match given.operands.as_slice() {
        [source, directory] => (*source, *directory),
        [] => return Err(usage("SOURCE and DIRECTORY are missing; --help says more")),
        [_] => return Err(usage("DIRECTORY is missing; --help says more")),
        [_, _, extra, ..] => {
            return Err(usage(format!("unexpected argument '{}'", shown(extra))));
        }
    };

    let mut global = Vec::new();
    let mut local = Vec::new();
    let mut words = Vec::new();
    let mut user = user_of(source)?.map(<[u8]>::to_vec);
    let mut left_out = Vec::new();
    for option in given.options.iter().try_fold(Vec::new(), |mut all, text| {
        all.extend(split(text)?);
        Ok(all)
    })? {
        match classify(&option)? {
            Class::Nothing => {}
            Class::Value("user", value) => set_user(&mut user, value)?,
            Class::Value(key, value) => {
                let target = if GLOBAL.contains(&key) { &mut global } else { &mut local };
                target.push(long(key, value));
            }
            Class::Word(word) => match TAKES_BACK.iter().find(|(later, _)| *later == word) {
                Some((_, earlier)) => words.retain(|word| word != earlier),
                None if words.contains(&word) => {}
                None => words.push(word),
            },
            Class::Unknown if given.sloppy => left_out.push(shown(&option)),
            Class::Unknown => {
                return Err(usage(format!(
                    "unknown option '{}' (-s leaves out unknown options)",
                    shown(&option)
                )));
            }
        }
    }

    let mut args = global;
    if let Some(user) = user {
        args.push(long("user", &user));
    }
    if given.verbose {
        args.push("-v".into());
    }
    args.push("mount".into());
    args.push(long("source", source));
    if given.fake {
        args.push("--fake".into());
    }
    args.append(&mut local);
    if !words.is_empty() {
        args.push("-o".into());
        args.push(words.join(",").into());
    }
    args.push("--".into());
    let mut directory = PathBuf::from(os(directory));
    let namespace = given.namespace.map(namespace_file);
    if namespace.is_some() {
        // mount(8) leaves it as it was typed there, and whoever enters a namespace starts at its root.
        directory = std::path::absolute(&directory)
            .map_err(|why| usage(format!("{}: {why}", quote::path(&directory))))?;
    }
    args.push(directory.clone().into());
    let verbose = given.verbose;
    Ok(Request { args, directory, namespace, verbose, left_out, help: None })
}

/// The file of a namespace that is given as such, or as a process that is in it.
fn namespace_file(given: &[u8]) -> OsString {
    match given.iter().all(u8::is_ascii_digit) {
        true => Path::new("/proc").join(os(given)).join("ns/mnt").into(),
        false => os(given),
    }
}

/// The arguments as a line for people, quoted for a shell where it matters.
pub(crate) fn display(args: &[OsString]) -> String {
    quote::words(args.iter().map(|arg| arg.as_bytes()))
}

fn given(args: &[OsString]) -> Result<Given<'_>, Failure> {
    let mut given = Given::default();
    let mut args = args.iter().map(|arg| arg.as_bytes());
    let mut operands_only = false;
    while let Some(arg) = args.next() {
        match arg {
            _ if operands_only => given.operands.push(arg),
            b"--" => operands_only = true,
            b"--help" => given.help = Some(HELP),
            b"--version" => given.help = Some(VERSION),
            [b'-', b'-', ..] => return Err(usage(format!("unknown argument '{}'", shown(arg)))),
            [b'-', flags @ ..] if !flags.is_empty() => given.flags(flags, &mut args)?,
            _ => given.operands.push(arg),
        }
    }
    Ok(given)
}

impl<'a> Given<'a> {
    /// One argument of short flags; the value of a flag is the rest of it, else the next argument.
    fn flags(
        &mut self,
        mut flags: &'a [u8],
        rest: &mut impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), Failure> {
        while let [flag, tail @ ..] = flags {
            flags = tail;
            match flag {
                b'f' => self.fake = true,
                b'h' => self.help = Some(HELP),
                b'V' => self.help = Some(VERSION),
                b'n' => {}
                b's' => self.sloppy = true,
                b'v' => self.verbose = true,
                b'N' | b'o' | b't' => {
                    let value = if tail.is_empty() {
                        rest.next()
                    } else {
                        Some(std::mem::take(&mut flags))
                    };
                    let Some(value) = value else {
                        return Err(usage(format!("-{} needs a value", char::from(*flag))));
                    };
                    self.flag_value(*flag, value)?;
                }
                _ => return Err(usage(format!("unknown flag -{}", shown(&[*flag])))),
            }
        }
        Ok(())
    }

    fn flag_value(&mut self, flag: u8, value: &'a [u8]) -> Result<(), Failure> {
        match (flag, value) {
            (b'o', options) => self.options.push(options),
            (b't', b"codchifs" | b"fuse.codchifs") => {}
            (b't', other) => {
                return Err(usage(format!("type '{}' is not codchifs", shown(other))));
            }
            (_, b"") => return Err(usage("-N needs a value")),
            (_, namespace) => self.namespace = Some(namespace),
        }
        Ok(())
    }
}

/// `None` for the caller's own state.
fn user_of(source: &[u8]) -> Result<Option<&[u8]>, Failure> {
    match source {
        OWN_STATE => Ok(None),
        name if is_user_name(name) => Ok(Some(name)),
        other => {
            Err(usage(format!("source '{}' is neither 'codchi' nor a user's name", shown(other))))
        }
    }
}

fn is_user_name(name: &[u8]) -> bool {
    let inner = |b: u8| b.is_ascii_graphic() && !b"/:,\\\"'".contains(&b) || b >= 0x80;
    !name.is_empty() && !name.starts_with(b"-") && name.iter().all(|b| inner(*b))
}

/// mount(8) adds `user=NAME` itself when a plain user mounts; that must not become somebody else's state.
fn set_user(user: &mut Option<Vec<u8>>, value: &[u8]) -> Result<(), Failure> {
    if !is_user_name(value) {
        return Err(usage(format!("option user: '{}' is no user's name", shown(value))));
    }
    match user {
        Some(before) if before != value => {
            Err(usage(format!("two users are given: '{}' and '{}'", shown(before), shown(value))))
        }
        _ => {
            *user = Some(value.to_vec());
            Ok(())
        }
    }
}

/// What an option asks for.
enum Class<'a> {
    Nothing,
    Value(&'static str, &'a [u8]),
    Word(&'static str),
    Unknown,
}

fn classify(option: &[u8]) -> Result<Class<'_>, Failure> {
    if option.is_empty() || IGNORED_PREFIXES.iter().any(|p| option.starts_with(p.as_bytes())) {
        return Ok(Class::Nothing);
    }
    let mut halves = option.splitn(2, |b| *b == b'=');
    let key = halves.next().unwrap_or_default();
    let value = halves.next();
    let known = |table: &[&'static str]| table.iter().copied().find(|w| w.as_bytes() == key);
    if let Some((word, why)) = REFUSED.iter().find(|(word, _)| word.as_bytes() == key) {
        return Err(usage(format!("option {word}: {why}")));
    }
    match value {
        Some(value) => match known(WITH_VALUE) {
            Some(name) if value.is_empty() => Err(usage(format!("option {name} needs a value"))),
            Some(name) => Ok(Class::Value(name, value)),
            None if known(FORWARDED).is_some() => {
                Err(usage(format!("option {} takes no value", shown(key))))
            }
            None => Ok(Class::Unknown),
        },
        None => Ok(match (known(IGNORED), known(FORWARDED), known(WITH_VALUE)) {
            (Some(_), _, _) => Class::Nothing,
            (_, Some(word), _) => Class::Word(word),
            (_, _, Some(name)) => return Err(usage(format!("option {name} needs a value"))),
            _ => Class::Unknown,
        }),
    }
}

/// Splits at commas and takes out the escapes.
fn split(text: &[u8]) -> Result<Vec<Vec<u8>>, Failure> {
    let mut options = Vec::new();
    let mut option = Vec::new();
    let mut quoted = false;
    let mut rest = text;
    while let [byte, tail @ ..] = rest {
        rest = tail;
        match (*byte, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                option.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = tail;
            }
            (b'\\', [c @ (b',' | b'\\' | b'"'), tail @ ..]) => {
                option.push(*c);
                rest = tail;
            }
            (b'\\', []) => return Err(usage("options end in a lone backslash")),
            (b'"', _) if quoted || option.ends_with(b"=") => quoted = !quoted,
            (b',', _) if !quoted => options.push(std::mem::take(&mut option)),
            (byte, _) => option.push(byte),
        }
    }
    if quoted {
        return Err(usage("a double quote in the options is not closed"));
    }
    options.push(option);
    if options.iter().any(|option| option.contains(&0)) {
        return Err(usage("an option holds a NUL byte"));
    }
    Ok(options)
}

fn long(key: &str, value: &[u8]) -> OsString {
    let mut arg = OsString::from(format!("--{key}="));
    arg.push(OsStr::from_bytes(value));
    arg
}

fn os(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

fn shown(bytes: &[u8]) -> String {
    quote::message(bytes)
}

#[cfg(test)]
mod tests;
