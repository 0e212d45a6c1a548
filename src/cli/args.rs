//! What can be typed.

use super::help;
use crate::codchi::MachineName;
use crate::export::Options;
use crate::machine::{Settings, Shown};
use crate::tree::Selection;
use clap::{
    Args as ClapArgs, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum,
    ValueHint,
};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Code machines of Codchi as directories: browse them, or take them along as one tar
///
/// Each machine is a directory of the mount. In it, export.tar is what is to be taken along, made while it is read; rootfs/
/// is the same as a tree; report.json says what is left out, and why; MIGRATE.md is the way of this machine to a NixOS
/// elsewhere, as commands to paste. Nothing can be written.
#[derive(Debug, Parser)]
#[command(
    name = "codchifs",
    version = env!("CODCHIFS_VERSION"),
    max_term_width = 80,
    after_help = help::ALL
)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Clone, Debug, ClapArgs)]
pub(super) struct Global {
    /// Codchi's config directory [default: $XDG_CONFIG_HOME/codchi, ~/.config/codchi]
    #[arg(
        long,
        value_name = "DIR",
        env = "CODCHIFS_CONFIG_DIR",
        hide_env_values = true,
        global = true,
        help_heading = "Codchi"
    )]
    pub(super) config_dir: Option<PathBuf>,
    /// Codchi's data directory [default: data_dir of its config.toml, ~/.local/share/codchi]
    #[arg(
        long,
        value_name = "DIR",
        env = "CODCHIFS_DATA_DIR",
        hide_env_values = true,
        global = true,
        help_heading = "Codchi"
    )]
    pub(super) data_dir: Option<PathBuf>,
    /// Whose machines; somebody else's as root only [default: $SUDO_USER, else the caller]
    #[arg(
        long,
        value_name = "NAME",
        env = "CODCHIFS_USER",
        hide_env_values = true,
        global = true,
        help_heading = "Codchi"
    )]
    pub(super) user: Option<String>,
    /// Where machines live
    #[arg(
        long,
        value_enum,
        default_value = "auto",
        env = "CODCHIFS_DRIVER",
        hide_env_values = true,
        global = true,
        help_heading = "Machines"
    )]
    pub(super) driver: Driver,
    /// The base directory of LXD or Incus [default: $LXD_DIR, $INCUS_DIR, where they are installed]
    #[arg(
        long,
        value_name = "DIR",
        env = "CODCHIFS_LXD_DIR",
        hide_env_values = true,
        global = true,
        help_heading = "Machines"
    )]
    pub(super) lxd_dir: Option<PathBuf>,
    /// The directory that holds codchi-NAME/rootfs
    #[arg(
        long,
        value_name = "DIR",
        env = "CODCHIFS_ROOTFS_DIR",
        hide_env_values = true,
        global = true,
        help_heading = "Machines"
    )]
    pub(super) rootfs_dir: Option<PathBuf>,
    /// Say more on stderr; -vv and -vvv say even more (CODCHIFS_LOG takes a filter)
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub(super) verbose: u8,
    /// Say `ready` on stdout once mounted, then let go of the terminal: how `mount` starts its own background process.
    /// Global, so that it can stand before everything the user typed.
    #[arg(long, hide = true, global = true)]
    pub(super) background_child: bool,
    /// Be the process that answers the kernel: a socket to the one that started it is on stdin.
    #[arg(long, hide = true, global = true)]
    pub(super) server: bool,
}

/// Commands that look for no machine: what says whose, and where, is taken there and not offered.
const ANYWHERE: [&str; 3] = ["demo", "status", "unmount"];

pub(super) fn parse() -> Result<Args, clap::Error> {
    Args::from_arg_matches_mut(&mut command().try_get_matches()?)
}

/// The command line as it is read, and as `--help` shows it.
fn command() -> clap::Command {
    let mut command = Args::command();
    command.build();
    command.mut_subcommands(|mut sub| {
        // An error's own usage names what the environment sets as if it had been typed.
        let usage = sub.render_usage().ansi().to_string();
        if let Some((_, usage)) = usage.split_once(' ') {
            sub = sub.override_usage(usage.trim_end().to_owned());
        }
        let hidden = ANYWHERE.contains(&sub.get_name());
        let shared = [Some("Codchi"), Some("Machines")];
        sub.mut_args(|arg| match hidden && shared.contains(&arg.get_help_heading()) {
            true => arg.hide(true),
            false => arg,
        })
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Driver {
    /// Every LXD and Incus of this host; plain directories where --rootfs-dir is given
    Auto,
    /// LXD
    Lxd,
    /// Incus
    Incus,
    /// Plain directories
    Dir,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    // To look.
    /// Name the machines, and say what is wrong with those that are broken
    #[command(after_help = help::LIST)]
    List(List),
    /// Show the mounts, their machines, and who reads an export.tar
    #[command(after_help = help::STATUS)]
    Status(Status),
    /// Say what on this host is in the way, and what to do about it
    #[command(after_help = help::DOCTOR)]
    Doctor(Doctor),
    // To mount.
    /// Show every machine below MOUNTPOINT
    #[command(after_help = help::MOUNT)]
    Mount(Mount),
    /// End a mount
    #[command(visible_alias = "umount", after_help = help::UNMOUNT)]
    Unmount(Unmount),
    // To take along.
    /// Write a machine's tar, without a mount
    #[command(after_help = help::EXPORT)]
    Export(Export),
    /// Print the way of a machine to a NixOS elsewhere, as commands to paste
    #[command(after_help = help::MIGRATE)]
    Migrate(Migrate),
    // To check.
    /// Compare a copy with its machine, or with a manifest
    #[command(after_help = help::VERIFY)]
    Verify(Verify),
    /// Print the list of what is in an export, with checksums, as mtree(5)
    #[command(after_help = help::MANIFEST)]
    Manifest(Manifest),
    // To try.
    /// Do the main job on a sample machine, from nothing
    #[command(after_help = help::DEMO)]
    Demo(Demo),
    /// Write manual pages and completions below DIR, for packages
    #[command(hide = true)]
    Generate(Generate),
}

impl Command {
    /// Whether what it finds goes to stdout.
    pub(super) fn prints(&self) -> bool {
        match self {
            Self::Mount(_) | Self::Unmount(_) | Self::Generate(_) => false,
            Self::Export(export) => export.json || export.output.as_deref() == Some(Path::new("-")),
            Self::Verify(verify) => !verify.quiet,
            _ => true,
        }
    }
}

#[derive(Clone, Debug, Default, ClapArgs)]
#[command(next_help_heading = "What is taken along")]
pub(super) struct Select {
    /// Leave out what matches a gitignore-style pattern (anchored when it holds a slash); can be repeated
    #[arg(long, value_name = "PATTERN")]
    pub(super) exclude: Vec<String>,
    /// Keep a path that is left out by default, like /etc/ssh; can be repeated
    #[arg(long, value_name = "PATH")]
    pub(super) include: Vec<String>,
}

/// What of a machine is taken along, and how.
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "What is taken along")]
pub(super) struct Wishes {
    #[command(flatten)]
    pub(super) select: Select,
    /// `omit`: no secret that Codchi knows, for an export that is handed to somebody else
    #[arg(long, value_enum, value_name = "WHAT", default_value = "include")]
    pub(super) secrets: Secrets,
    /// `no`: write holes out; busybox reads no sparse files
    #[arg(long, value_enum, value_name = "YES|NO", default_value = "yes")]
    pub(super) sparse: Sparse,
    /// Times of files in whole seconds or in nanoseconds
    #[arg(long, value_enum, value_name = "UNIT", default_value = "s")]
    pub(super) mtime: Mtime,
    /// `fail`: end a read at the first file that is not as it was scanned
    #[arg(long, value_enum, value_name = "WHAT", default_value = "report")]
    pub(super) on_change: OnChange,
}

/// Whether values of secrets are in the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Secrets {
    /// As Codchi does
    Include,
    /// Names without values; URLs without tokens
    Omit,
}

/// Whether files with holes become sparse members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Sparse {
    /// Those with holes of 1 MiB or more
    Yes,
    /// Never
    No,
}

/// How exact times are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Mtime {
    /// Seconds
    S,
    /// Nanoseconds
    Ns,
}

/// What happens when a file is not as it was scanned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum OnChange {
    /// Go on, name it in report.json, and fail at the end if bytes are missing
    Report,
    /// An error at once
    Fail,
}

impl From<Wishes> for Settings {
    fn from(wishes: Wishes) -> Self {
        let Select { exclude, include } = wishes.select;
        Self {
            selection: Selection { exclude, include },
            options: Options {
                mtime_ns: wishes.mtime == Mtime::Ns,
                sparse: wishes.sparse == Sparse::Yes,
                strict: wishes.on_change == OnChange::Fail,
                align: false,
            },
            redact: wishes.secrets == Secrets::Omit,
            shown: Shown::default(),
        }
    }
}

/// An option as it is typed.
fn option(name: &str, value: impl AsRef<OsStr>) -> Vec<u8> {
    [format!("--{name}=").as_bytes(), value.as_ref().as_bytes()].concat()
}

/// An option that is none of the default's.
fn chosen<T: ValueEnum + PartialEq>(name: &str, value: T, default: T) -> Option<Vec<u8>> {
    let text = value.to_possible_value().filter(|_| value != default)?;
    Some(option(name, text.get_name()))
}

impl Global {
    /// The options that say whose machines, and where, as they are to be typed again: by whomever, and wherever.
    pub(super) fn words(&self) -> Vec<Vec<u8>> {
        let user = self.user.clone().map(OsString::from);
        // Whoever pastes may be root by other means than sudo.
        let is_root = rustix::process::getuid().is_root();
        let user = user.or_else(|| std::env::var_os("SUDO_USER").filter(|_| is_root));
        let path = |path: &Option<PathBuf>| {
            let path = path.as_ref()?;
            Some(std::path::absolute(path).unwrap_or_else(|_| path.clone()).into_os_string())
        };
        let all = [
            ("user", user),
            ("config-dir", path(&self.config_dir)),
            ("data-dir", path(&self.data_dir)),
            ("lxd-dir", path(&self.lxd_dir)),
            ("rootfs-dir", path(&self.rootfs_dir)),
        ];
        let given = all.into_iter().filter_map(|(name, value)| Some(option(name, value?)));
        chosen("driver", self.driver, Driver::Auto).into_iter().chain(given).collect()
    }
}

impl Wishes {
    /// The same as they are to be typed again.
    pub(super) fn words(&self) -> Vec<Vec<u8>> {
        let exclude = self.select.exclude.iter().map(|pattern| option("exclude", pattern));
        let include = self.select.include.iter().map(|path| option("include", path));
        let chosen = [
            chosen("secrets", self.secrets, Secrets::Include),
            chosen("sparse", self.sparse, Sparse::Yes),
            chosen("mtime", self.mtime, Mtime::S),
            chosen("on-change", self.on_change, OnChange::Report),
        ];
        exclude.chain(include).chain(chosen.into_iter().flatten()).collect()
    }

    /// Settings, and what the commands of a machine's guide must say to have the same again.
    pub(super) fn shown(&self, global: &Global, mount: Option<&Path>) -> Settings {
        let mount = mount.map(|path| std::path::absolute(path).unwrap_or_else(|_| path.into()));
        // A mount of root's is for its user, and so is its page.
        let is_root = rustix::process::getuid().is_root();
        let is_users = mount.is_some() && global.user.is_some();
        let sudo = is_root && (is_users || std::env::var_os("SUDO_USER").is_some());
        let shown = Shown { mount, sudo, global: global.words(), wishes: self.words() };
        Settings { shown, ..self.clone().into() }
    }
}

#[derive(Debug, ClapArgs)]
pub(super) struct Mount {
    /// An empty directory
    #[arg(value_hint = ValueHint::DirPath)]
    pub(super) mountpoint: PathBuf,
    /// Stay in the foreground
    #[arg(short, long)]
    pub(super) foreground: bool,
    /// Mount options, comma-separated: allow_other, allow_root, inode32, noexec, nosymfollow, ro
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    pub(super) options: Vec<MountWord>,
    /// Only this machine; can be repeated
    #[arg(long, value_name = "NAME")]
    pub(super) machine: Vec<MachineName>,
    /// Append log lines to FILE once in the background
    #[arg(long, value_name = "FILE")]
    pub(super) log_file: Option<PathBuf>,
    /// After a signal, cut off who still uses the mount after SECONDS [default: at a second signal]
    #[arg(long, value_name = "SECONDS")]
    pub(super) stop_timeout: Option<u64>,
    /// What the mount table has as the source: mount(8) finds a line of fstab again by it
    #[arg(long, value_name = "NAME", default_value = "codchifs", hide = true)]
    pub(super) source: String,
    /// Do everything but mount
    #[arg(long, hide = true)]
    pub(super) fake: bool,
    /// `auto`: the kernel reads large files of rootfs/ from the disk itself where it can
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto")]
    pub(super) passthrough: Passthrough,
    #[command(flatten)]
    pub(super) wishes: Wishes,
}

/// Whether the kernel reads files of `rootfs/` by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Passthrough {
    /// Large ones, where kernel, rights and file system allow it
    Auto,
    /// Every read is answered by codchifs
    No,
}

/// A word of `-o`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(super) enum MountWord {
    /// Other users get in, with the permissions that `ls -l` shows
    AllowOther,
    /// Root gets in besides the mounting user
    AllowRoot,
    /// Inode numbers below 2^32, for 32-bit programs without large-file support
    Inode32,
    /// No program in it can be run
    Noexec,
    /// Programs that follow a link in it get an error (Linux 5.14)
    Nosymfollow,
    /// Always so
    Ro,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Unmount {
    /// Where it is mounted
    pub(super) mountpoint: PathBuf,
    /// Detach now, even while it is in use
    #[arg(short, long)]
    pub(super) lazy: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct List {
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Scan every machine for the size of its export
    #[arg(long)]
    pub(super) size: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Status {
    /// Look again every second, until it is interrupted
    #[arg(short, long)]
    pub(super) watch: bool,
    /// As JSON; with --watch a line for each look
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Generate {
    /// Made where it is missing
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(super) directory: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Export {
    /// The machine's name
    pub(super) name: MachineName,
    /// Where to; `-` is stdout [default: NAME.tar, without secrets NAME-redacted.tar]
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// No progress
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Say on stdout what was written, as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Compress, with a level from 1 to 22 [default level: 3]
    #[arg(
        long,
        value_name = "LEVEL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "3",
        value_parser = clap::value_parser!(i32).range(1..=22),
        conflicts_with = "reflink"
    )]
    pub(super) zstd: Option<i32>,
    /// `auto`: where source and target are on one btrfs or XFS, share the blocks of large files; other bytes than
    /// export.tar, the same content
    #[arg(long, value_enum, value_name = "WHEN", default_value = "never")]
    pub(super) reflink: Reflink,
    #[command(flatten)]
    pub(super) wishes: Wishes,
}

/// When blocks are shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Reflink {
    /// The bytes of export.tar
    Never,
    /// Where the file system can
    Auto,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Verify {
    /// The machine's name
    pub(super) name: MachineName,
    /// A copied tar, also compressed with zstd, or a directory that it was extracted to; `-` is a tar on stdin
    #[arg(value_name = "FILE|DIR")]
    pub(super) copy: PathBuf,
    /// Compare with this list in place of the machine, as `manifest` prints it
    #[arg(long, value_name = "FILE")]
    pub(super) manifest: Option<PathBuf>,
    /// DIR is the root of a system that runs and whose services have their files: expect the owners of the same names,
    /// and leave the times of directories aside
    #[arg(long)]
    pub(super) renumbered: bool,
    /// A line of JSON for each difference, and one for all
    #[arg(long)]
    pub(super) json: bool,
    /// No progress
    #[arg(short, long)]
    pub(super) quiet: bool,
    #[command(flatten)]
    pub(super) wishes: Wishes,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Manifest {
    /// The machine's name
    pub(super) name: MachineName,
    /// Only the checksums of files, for `sha256sum --check`
    #[arg(long)]
    pub(super) sums: bool,
    #[command(flatten)]
    pub(super) wishes: Wishes,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Migrate {
    /// The machine's name
    pub(super) name: MachineName,
    /// Scan the machine for the size of its export
    #[arg(long)]
    pub(super) size: bool,
    /// As JSON: name, state, size, and the page as one string
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) wishes: Wishes,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Demo {
    /// Leave it mounted, and say how to look around
    #[arg(long)]
    pub(super) keep: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Doctor {
    /// As JSON (docs/doctor.schema.json)
    #[arg(long)]
    pub(super) json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_sound() {
        super::Args::command().debug_assert();
    }
}
