//! `MIGRATE.md`: the way of this very machine to a NixOS elsewhere, in five steps that fit a screen or two.

mod found;
mod page;

use super::lately::Lately;
use super::{Machine, Redacted, export_name};
use crate::backend::{Driver, Power};
use crate::codchi::MachineConfig;
use crate::export::{Exports, Generation};
use crate::tree::Tree;
use found::Programs;
use page::{Page, Piece, shown};
use std::path::PathBuf;
use std::sync::Arc;

/// Where the copy lies on the target, whatever the machine is called.
const COPY: &str = "/root/codchi-export.tar";
/// Items of a list that are shown: the page must not grow with the machine.
const MAX_LISTED: usize = 2;
/// Programs that are shown, and bytes of each.
const MAX_PROGRAMS: usize = 6;
const MAX_NAME: usize = 40;

/// How whoever reads the page has come to it, and so what its commands must say.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// Where the machines are mounted; `None` where they are not.
    pub mount: Option<PathBuf>,
    /// Whoever reads it is not root, and codchifs must be.
    pub sudo: bool,
    /// Words before the command of codchifs: options that say whose machines, and where.
    pub global: Vec<Vec<u8>>,
    /// Options that say what of a machine is taken along.
    pub wishes: Vec<Vec<u8>>,
}

/// What is known of a machine for its guide.
#[derive(Debug, Default)]
pub(super) struct Guide {
    shown: Shown,
    /// The flake's input of Codchi is too old.
    old_driver: bool,
    programs: Lately<Arc<Programs>>,
}

impl Guide {
    pub(super) fn new(shown: Shown, config: &MachineConfig) -> Self {
        Self { shown, old_driver: config.has_old_driver(), programs: Lately::default() }
    }
}

impl Machine {
    /// The text of `MIGRATE.md`, made now. Never scans.
    pub fn guide(&self) -> Vec<u8> {
        let mut guide = Writer { page: Page::default(), machine: self };
        match (&self.tree, &self.exports) {
            (Ok(tree), Some(exports)) => match self.unanswered() {
                Some(why) => guide.broken(&why),
                None => guide.write(tree, exports),
            },
            (Err(why), _) => guide.broken(why),
            (Ok(_), None) => {}
        }
        guide.page.into_bytes()
    }
}

struct Writer<'a> {
    page: Page,
    machine: &'a Machine,
}

impl Writer<'_> {
    fn broken(&mut self, why: &str) {
        self.page.heading(&format!("# {} cannot leave as it is", shown(&*self.machine.name)));
        self.page.whole(why);
        self.page.say(
            "`codchifs list` says what is wrong with each machine. This page is made anew when it is repaired.",
        );
    }

    fn write(&mut self, tree: &Arc<Tree>, exports: &Exports) {
        let at = Arc::clone(tree);
        let programs = &self.machine.guide.programs;
        let Some(programs) = programs.or_find(move || Arc::new(found::programs(&at))) else {
            return self.broken(super::NO_DISK);
        };
        self.page.heading(&format!("# {} leaves Codchi", shown(&*self.machine.name)));
        self.state(exports);
        self.page.heading("## 1. Install NixOS");
        self.page.say(
            "On the target, with a user `codchi` and an ssh key for root. Then, on this host:",
        );
        self.page.commands(&[&[Piece::Ours("TARGET=root@vm")]]);
        self.copy();
        self.extract();
        self.rebuild();
        self.look(&programs);
    }

    /// What is known of the machine and its export now.
    fn state(&mut self, exports: &Exports) {
        let mut text = match exports.last() {
            None => {
                let name = export_name(self.machine.redacted.is_some());
                format!("Not scanned yet: the size is known after the first look at `{name}`.")
            }
            Some(generation) => scanned(&generation),
        };
        if let Some(why) = exports.failed() {
            text += &format!(" **The last scan failed:** {}.", shown(why.to_string()));
        }
        if let Some(why) = self.machine.facts().why {
            text += &format!(" What is known of the instance may be old: {}.", shown(why));
        }
        if self.machine.guide.old_driver {
            text += " **It is locked to a Codchi from before 0.3.1.5, which makes containers only;** step 4 takes a newer one.";
        }
        self.page.say(&text);
    }

    /// What to do with the machine, and the command that stops it where it may run.
    fn stop(&self) -> (&'static str, Option<Vec<Piece<'static>>>) {
        let machine = self.machine;
        let location = machine.location.as_ref();
        let stale = machine.facts().why.is_some();
        let power = location.and_then(|l| l.power);
        let text = match power {
            Some(Power::Running) => {
                "**It runs:** stop it (or pause it, on ZFS or LVM, which unmount what is stopped). What changes during a \
                 copy makes the copy fail, and what is in memory only is not in it. On this host:"
            }
            Some(Power::Stopped) if !stale => "It is stopped already. On this host:",
            Some(Power::Stopped) => {
                "It was stopped when its daemon last answered. A copy of one that runs may be torn, and then fails. On this host:"
            }
            None => {
                "It is not known whether it runs. A copy of one that runs may be torn, and then fails. On this host:"
            }
        };
        let client = match location.map(|l| l.driver) {
            Some(Driver::Lxd) => "lxc stop",
            Some(Driver::Incus) => "incus stop",
            _ => return (text, None),
        };
        if power == Some(Power::Stopped) && !stale {
            return (text, None);
        }
        let mut command =
            vec![Piece::Ours(client), Piece::word(format!("codchi-{}", machine.name))];
        if let Some(project) = location.and_then(|l| l.project.as_ref()) {
            command.extend([Piece::Ours("--project"), Piece::word(project.as_bytes())]);
        }
        (text, Some(command))
    }

    fn copy(&mut self) {
        self.page.heading("## 2. Copy");
        let (text, stop) = self.stop();
        self.page.say(text);
        let shown = &self.machine.guide.shown;
        let to = Piece::Ours("\"$TARGET\":/root/codchi-export.tar");
        let rsync = [Piece::Ours("rsync --append-verify --progress --")];
        let (export, from) = match &shown.mount {
            Some(mount) => {
                let tar = export_name(self.machine.redacted.is_some());
                let tar = mount.join(&*self.machine.name).join(tar);
                (None, Piece::word(tar.into_os_string().into_encoded_bytes()))
            }
            None => {
                let file = "codchi-export.tar";
                // Of a root command, whoever called sudo could not read a file of mode 0600.
                let export = match shown.sudo {
                    true => [
                        vec![Piece::Ours("(umask 077;")],
                        self.program("export", &["-o", "-"]),
                        vec![Piece::Ours(">codchi-export.tar)")],
                    ]
                    .concat(),
                    false => self.program("export", &["-o", file]),
                };
                (Some(export), Piece::Ours(file))
            }
        };
        let copy = [rsync.as_slice(), &[from, to]].concat();
        let all: Vec<_> = stop.into_iter().chain(export).chain([copy]).collect();
        let all: Vec<&[Piece<'_>]> = all.iter().map(Vec::as_slice).collect();
        self.page.commands(&all);
        self.page.say(
            "Interrupted, `rsync` goes on where it stopped. If a command fails, the copy is not whole: `report.json` says why.",
        );
    }

    /// codchifs as it must be called for this machine.
    fn program(&self, command: &'static str, rest: &[&'static str]) -> Vec<Piece<'static>> {
        let shown = &self.machine.guide.shown;
        let words = |words: &[Vec<u8>]| words.iter().map(|w| Piece::word(&**w)).collect::<Vec<_>>();
        let mut all = Vec::new();
        if shown.sudo {
            all.push(Piece::Ours("sudo"));
        }
        all.push(Piece::Ours("codchifs"));
        all.extend(words(&shown.global));
        all.push(Piece::Ours(command));
        all.extend(words(&shown.wishes));
        all.extend(rest.iter().copied().map(Piece::Ours));
        all.extend([Piece::Ours("--"), Piece::word(self.machine.name.as_bytes())]);
        all
    }

    fn extract(&mut self) {
        self.page.heading("## 3. Extract");
        self.page.say(
            "This says what is in the way before it changes anything, keeps a copy of each file that it overwrites, and compares \
             what it extracted. On the target, as root:",
        );
        self.page.commands(&[
            &[
                Piece::Ours("tar --occurrence -xOf"),
                Piece::Ours(COPY),
                Piece::Ours("./etc/nixos/codchi-arrive"),
                Piece::Ours(">/run/codchi-arrive"),
            ],
            &[Piece::Ours("bash /run/codchi-arrive extract")],
        ]);
        self.page.say("To compare every byte with the machine itself, on this host:");
        let sums = self.program("manifest", &["--sums"]);
        let check = [
            vec![Piece::Ours("(set -o pipefail;")],
            sums,
            vec![
                Piece::Ours("|"),
                Piece::Ours("ssh \"$TARGET\""),
                Piece::Ours("bash /etc/nixos/codchi-arrive verify -)"),
            ],
        ]
        .concat();
        self.page.commands(&[&check]);
    }

    fn rebuild(&mut self) {
        self.page.heading("## 4. Rebuild");
        if let Some(redacted) = &self.machine.redacted {
            self.fill_in(redacted);
        }
        self.page.say(
            "This builds the system, asks for a password for `codchi` unless there is one, and gives the services their files \
             before they start. Run again, it goes on where it stopped. On the target, as root:",
        );
        self.page.commands(&[&[Piece::Ours("bash /etc/nixos/codchi-arrive all && reboot")]]);
    }

    fn fill_in(&mut self, redacted: &Redacted) {
        let secrets: Vec<_> =
            redacted.secrets.iter().map(|name| shown(format!("CODCHI_{name}"))).collect();
        let modules: Vec<_> = redacted.modules.iter().map(shown).collect();
        let mut text =
            "Secrets that Codchi knows are not in this export. Before the rebuild, fill in"
                .to_owned();
        if !secrets.is_empty() {
            text += &format!(
                " {} in `/etc/codchi-env` (between quotes, `'\\''` is a quote and `\\\\` a backslash)",
                listed(&secrets)
            );
        }
        if !modules.is_empty() {
            let and = if secrets.is_empty() { "" } else { " and" };
            text += &format!("{and} the token of {} in `/etc/nixos/flake.nix`", listed(&modules));
        }
        if secrets.is_empty() && modules.is_empty() {
            text += " nothing: there are none";
        }
        self.page.say(&format!("{text}."));
    }

    fn look(&mut self, programs: &Programs) {
        self.page.heading("## 5. Look");
        self.page.say(
            "Log in as `codchi`, look into a project, ask a database for a row that you know. When all is well, remove the copy, \
             which has the secrets. On the target, as root:",
        );
        self.page.commands(&[
            &[Piece::Ours("systemctl --failed")],
            &[Piece::Ours("rm -f"), Piece::Ours(COPY)],
        ]);
        self.programs(programs);
        let devices = self.machine.location.iter().flat_map(|l| &l.foreign);
        let devices: Vec<_> =
            devices.map(|d| format!("{} from {}", shown(&d.path), shown(&d.source))).collect();
        if !devices.is_empty() {
            self.page.say(&format!(
                "Copy further disks of the instance on their own: {}.",
                listed(&devices)
            ));
        }
        self.page.say(
            "`report.json` names all that is not in the export, such as `/nix`, which is made anew. A step fails, or you want \
             another way: docs/MIGRATION.md of codchifs.",
        );
    }

    fn programs(&mut self, programs: &Programs) {
        if *programs == Programs::default() {
            return;
        }
        // Those that are longer would take lines of their own.
        let fits = |name: &&String| name.len() <= MAX_NAME;
        let words: Vec<_> = programs.installables.iter().filter(fits).take(MAX_PROGRAMS).collect();
        if !words.is_empty() {
            self.page.say("What was installed by hand is links into the old store. As `codchi`, on the target:");
            let mut command = vec![Piece::Ours("nix profile install")];
            command.extend(words.iter().map(|word| Piece::word(word.as_bytes())));
            self.page.commands(&[&command]);
        }
        let names: Vec<_> =
            programs.names.iter().filter(fits).take(MAX_PROGRAMS).map(shown).collect();
        let mut text = String::new();
        if !names.is_empty() {
            text += &format!("Installed by hand, from wherever: {}.", names.join(", "));
        }
        let all = programs.installables.len() + programs.names.len();
        if programs.elsewhere || programs.more || words.len() + names.len() < all {
            text += " `nix profile list` and `nix-env -q` in the machine name all.";
        }
        if !text.is_empty() {
            self.page.say(&text);
        }
    }
}

fn scanned(generation: &Generation) -> String {
    let (at, took) = generation.status().scanned();
    let (tar, files) = (generation.size(), generation.extracted());
    let mut text = format!(
        "Scanned {} in {:.1} s: {} members, {} bytes. The target needs {} MiB, or {} MiB while the copy is there as well, and room \
         for `/nix`.",
        humantime::format_rfc3339_seconds(at),
        took.as_secs_f64(),
        generation.members(),
        tar,
        mib(files),
        mib(tar.saturating_add(files))
    );
    if generation.incomplete() {
        text += " **A part of the machine could not be read: `report.json` names it. No copy is whole until that is repaired.**";
    } else if generation.torn() {
        text += " **A file changed while it was copied, and that copy is not whole. Stop the machine, then copy again.**";
    }
    text
}

/// The first ones, and how many there are besides.
fn listed(all: &[String]) -> String {
    let first = all.get(..MAX_LISTED).unwrap_or(all).join(", ");
    match all.len().saturating_sub(MAX_LISTED) {
        0 => first,
        more => format!("{first} and {more} more, which `report.json` names,"),
    }
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}
