//! `MIGRATE.md`: the way of this very machine to a NixOS elsewhere, as commands to paste.

mod found;

use super::lately::Lately;
use super::{Machine, Redacted, export_name};
use crate::backend::{Driver, Power};
use crate::codchi::{MachineConfig, driver};
use crate::export::{Exports, Generation, MEMBERS};
use crate::quote::{code, fenced, word, words};
use crate::tree::{HOME, Tree};
use found::{Found, Programs};
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;

/// Where the copy lies on the target, whatever the machine is called.
const COPY: &str = "/root/codchi-export.tar";
const RENUMBER: &str = include_str!("guide/renumber.sh");
/// Everything that an export holds arrives with these.
///
/// The target's own directories stay as they are, but not those of an extraction that was cut off: tar gives a directory
/// its owner and mode when it is done with what is in it. A mark tells that there was one.
const EXTRACT: &str = "tar $(mkdir /root/codchi-extracting 2>/dev/null && echo --no-overwrite-dir || \
     echo --overwrite-dir) --numeric-owner --xattrs --xattrs-include='*' --acls -S -xpf COPY -C /";

/// How whoever reads the page has come to it, and so what its commands must say.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// Where the machines are mounted; `None` where they are not.
    pub mount: Option<PathBuf>,
    /// Words before the command of codchifs: options that say whose machines, and where.
    pub global: Vec<Vec<u8>>,
    /// Options that say what of a machine is taken along.
    pub wishes: Vec<Vec<u8>>,
}

/// What is known of a machine for its guide.
#[derive(Debug, Default)]
pub(super) struct Guide {
    shown: Shown,
    /// Paths below the home of modules that are the machine's own.
    modules: Vec<String>,
    /// Nix needs git to fetch the flake's inputs.
    git: bool,
    /// The flake's input of Codchi is too old: what the new one changes besides.
    old_driver: Option<Nixpkgs>,
    found: Lately<Arc<Found>>,
}

/// Where a machine's nixpkgs comes from.
#[derive(Clone, Copy, Debug)]
enum Nixpkgs {
    /// With Codchi's own module.
    Codchis,
    /// With a module of the machine.
    Modules,
}

impl Guide {
    pub(super) fn new(shown: Shown, config: &MachineConfig) -> Self {
        let modules = config.modules.values().filter_map(|url| url.local_path());
        let nixpkgs = config.nixpkgs_module().map_or(Nixpkgs::Codchis, |_| Nixpkgs::Modules);
        Self {
            shown,
            modules: modules.map(str::to_owned).collect(),
            git: config.needs_git(),
            old_driver: config.has_old_driver().then_some(nixpkgs),
            found: Lately::default(),
        }
    }
}

impl Machine {
    /// The text of `MIGRATE.md`, made now. Never scans.
    pub fn guide(&self) -> Vec<u8> {
        let mut page = Page { text: String::new(), machine: self };
        // A String takes all that is written to it.
        let _ = match (&self.tree, &self.exports) {
            (Ok(tree), Some(exports)) => match self.unanswered() {
                Some(why) => page.broken(&why),
                None => page.write(tree, exports),
            },
            (Err(why), _) => page.broken(why),
            (Ok(_), None) => Ok(()),
        };
        page.text.into_bytes()
    }
}

struct Page<'a> {
    text: String,
    machine: &'a Machine,
}

type Written = Result<(), std::fmt::Error>;

impl Page<'_> {
    fn say(&mut self, text: &str) {
        self.text.push_str(text.trim_end());
        self.text.push_str("\n\n");
    }

    fn heading(&mut self, text: &str) {
        self.say(&format!("## {text}"));
    }

    fn block(&mut self, place: &str, commands: &str) {
        self.say(&format!("{place}:\n\n{}", fenced("sh", commands)));
    }

    fn here(&mut self, commands: &str) {
        self.block("On this host", commands);
    }

    fn there(&mut self, commands: &str) {
        self.block("On the target, as root", commands);
    }

    fn broken(&mut self, why: &str) -> Written {
        self.say(&format!("# {} cannot leave as it is", code(&*self.machine.name)));
        self.say(&code(why));
        self.say("`codchifs list` says what is wrong with each machine. This page is made anew when it is repaired.");
        Ok(())
    }

    fn write(&mut self, tree: &Arc<Tree>, exports: &Exports) -> Written {
        let machine = self.machine;
        let at = Arc::clone(tree);
        let Some(found) = machine.guide.found.or_find(move || Arc::new(found::find(&at))) else {
            return self.broken(super::NO_DISK);
        };
        self.say(&format!("# {} leaves Codchi", code(&*machine.name)));
        self.say(
            "The steps of Codchi's guide *Migrating away from Codchi*, for this machine: paste them from top to bottom. \
             Each says where it runs. The target is a NixOS with bash that you reach as root.",
        );
        self.state(exports)?;
        self.heading("1. Say where it goes");
        self.here("TARGET=root@vm");
        self.stop();
        self.room(exports);
        self.copy();
        self.heading("5. Extract");
        self.say("Already done where you chose the pipe or rsync of the tree. If it was interrupted, run it once more.");
        self.there(&extract(COPY));
        self.configuration(&found);
        if let Some(redacted) = &machine.redacted {
            self.fill_in(redacted);
        }
        self.heading("7. Rebuild");
        self.there("nixos-rebuild switch --flake /etc/nixos#nixos");
        self.owners();
        self.programs(&found.programs);
        self.verify();
        self.left_behind()
    }

    /// What is known of the machine and its export now.
    fn state(&mut self, exports: &Exports) -> Written {
        let name = export_name(self.machine.redacted.is_some());
        match exports.last() {
            None => {
                self.say(&format!(
                    "Not scanned yet: its size is known after the first look at `{name}`, and this page then has it."
                ));
            }
            Some(generation) => self.scanned(&generation)?,
        }
        if let Some(why) = exports.failed() {
            self.say(&format!("**The last scan failed:** {}", code(why.to_string())));
        }
        if let Some(why) = self.machine.facts().why {
            self.say(&format!(
                "What is known of the instance may be old, as its daemon does not answer: {}",
                code(why)
            ));
        }
        Ok(())
    }

    fn scanned(&mut self, generation: &Generation) -> Written {
        let (at, took) = generation.status().scanned();
        self.say(&format!(
            "Scanned {} in {:.1} s: {} members, {} bytes.",
            humantime::format_rfc3339_seconds(at),
            took.as_secs_f64(),
            generation.members(),
            generation.size()
        ));
        if generation.incomplete() {
            self.say("**A part of the machine could not be read: `report.json` names it. No copy is whole until that is repaired.**");
        } else if generation.torn() {
            self.say("**A file changed while it was copied: that copy is not whole. The next look at the tar makes another one; stop the machine first.**");
        }
        Ok(())
    }

    fn stop(&mut self) {
        let machine = self.machine;
        self.heading("2. Stop the machine");
        let location = machine.location.as_ref();
        let stale = machine.facts().why.is_some();
        match location.and_then(|l| l.power) {
            Some(Power::Running) => {
                self.say("**It runs.** What changes while it is copied makes the copy fail; what is only in its memory is not in the copy.");
            }
            Some(Power::Stopped) if stale => self.say(
                "It was stopped when its daemon last answered, and may have been started since. A copy of one that runs may be \
                 torn, and then fails."
            ),
            Some(Power::Stopped) => self.say("It is stopped already."),
            None => self.say("It is not known whether it runs. A copy of one that runs may be torn, and then fails."),
        }
        let client = match location.map(|l| l.driver) {
            Some(Driver::Lxd) => "lxc",
            Some(Driver::Incus) => "incus",
            _ => return,
        };
        if stale || location.and_then(|l| l.power) != Some(Power::Stopped) {
            let instance = format!("codchi-{}", machine.name);
            let mut stop = format!("{client} stop {}", word(instance.as_bytes()));
            if let Some(project) = location.and_then(|l| l.project.as_ref()) {
                stop += &format!(" --project {}", word(project.as_bytes()));
            }
            self.here(&stop);
        }
    }

    fn room(&mut self, exports: &Exports) {
        self.heading("3. Is there room");
        self.here(r#"ssh "$TARGET" df -h / /root /home /var"#);
        match exports.last() {
            Some(generation) => {
                let (tar, files) = (generation.size(), generation.extracted());
                self.say(&format!(
                    "Extracted it takes {} MiB. With the tar in `/root` beside it, until that is removed, {} MiB.",
                    mib(files),
                    mib(tar.saturating_add(files))
                ));
            }
            None => self.say("How much it takes is not known before the first scan."),
        }
    }

    fn copy(&mut self) {
        let machine = self.machine;
        self.heading("4. Copy: one of these");
        match &machine.guide.shown.mount {
            Some(mount) => {
                let dir = mount.join(&*machine.name);
                let tar = dir.join(export_name(machine.redacted.is_some()));
                let tar = word(tar.as_os_str().as_bytes());
                let tree = word(dir.join("rootfs/").as_os_str().as_bytes());
                self.say("The tar, by rsync. After an interruption the same command goes on where it stopped:");
                self.here(&format!(
                    r#"rsync --append-verify --progress -- {tar} "$TARGET":{COPY}"#
                ));
                self.say("The tar, by scp:");
                self.here(&format!(r#"scp -- {tar} "$TARGET":{COPY}"#));
                self.say("No file on the target: extracted as it arrives. Nothing can be resumed.");
                self.here(&piped(&format!("cat -- {tar}")));
                self.say(
                    "The tree, by rsync, which resumes as well and sends a second time only what changed. Never with \
                     `--delete`: it would delete the target. Never `scp -r`: it follows the machine's links into this \
                     host. The filter keeps ACLs on a target with XFS."
                );
                self.here(&format!(
                    "rsync -aHAXS --numeric-ids --filter='-x trusted.SGI_ACL_*' -- {tree} \"$TARGET\":/"
                ));
            }
            None => {
                let export = self.program("export", &["-o", "-"]);
                self.say("No file on the target: extracted as it arrives. Nothing can be resumed.");
                self.here(&piped(&export));
                self.say("As a file on both sides; after an interruption the second command goes on where it stopped:");
                let export = self.program("export", &["-o", "codchi-export.tar"]);
                self.here(&format!(
                    "{export}\nrsync --append-verify --progress -- codchi-export.tar \"$TARGET\":{COPY}"
                ));
            }
        }
        self.say("A command that fails has not copied all of it. `report.json` says why.");
    }

    /// codchifs as it must be called for this machine.
    fn program(&self, command: &str, rest: &[&str]) -> String {
        let guide = &self.machine.guide;
        let mut all: Vec<&[u8]> = vec![b"codchifs"];
        all.extend(guide.shown.global.iter().map(Vec::as_slice));
        all.push(command.as_bytes());
        all.extend(guide.shown.wishes.iter().map(Vec::as_slice));
        all.extend(rest.iter().map(|rest| rest.as_bytes()));
        all.push(b"--");
        all.push(self.machine.name.as_bytes());
        words(all)
    }

    fn configuration(&mut self, found: &Found) {
        self.heading("6. Before the rebuild");
        self.say(
            "The machine's flake takes `configuration.nix` and `hardware-configuration.nix` of the target where they are \
             there. They must be: the boot loader, the file systems and the network are in them.",
        );
        self.there(
            "cd /etc/nixos && ls configuration.nix hardware-configuration.nix || nixos-generate-config",
        );
        self.say(
            "**The rebuild sets the password of the user `codchi` to `codchi` and lets that user become root without one.** \
             Make another one, and put these lines into `configuration.nix` before sshd lets anybody in:",
        );
        self.there("(umask 077; rm -f /root/codchi-password; mkpasswd >/root/codchi-password)");
        self.say(
            "```nix\nusers.users.codchi.hashedPasswordFile = \"/root/codchi-password\";\n\
             services.openssh.settings.PasswordAuthentication = false;\n```",
        );
        self.old_driver();
        self.state_version(found.release.as_deref());
        if !found.postgresql.is_empty() {
            let list: Vec<_> =
                found.postgresql.iter().map(|v| code(format!("/var/lib/postgresql/{v}"))).collect();
            self.say(&format!(
                "There is data of PostgreSQL in {}. Another major version would start with an empty cluster: where \
                 `stateVersion` does not choose it, set `services.postgresql.package` to that one.",
                list.join(", ")
            ));
        }
        self.say("Nix sees of a git repository only what git knows. Where `/etc/nixos` is one:");
        self.there(
            "cd /etc/nixos && if git rev-parse --git-dir >/dev/null 2>&1; then git add -N .; fi",
        );
        let Guide { modules, git, .. } = &self.machine.guide;
        if *git {
            self.say("Nix calls git to fetch modules of this machine:");
            self.there("command -v git || echo 'git is missing: run nix-shell -p git, and the rebuild in it'");
        }
        if !modules.is_empty() {
            let mut commands = String::new();
            for module in modules {
                let path = word(format!("{HOME}/{module}").as_bytes());
                let _ = writeln!(commands, "git config --global --add safe.directory {path}");
            }
            self.say(
                "The machine has modules of its own in its home. Git refuses root the repositories of another user, unless \
                 they are named:",
            );
            self.there(&commands);
        }
    }

    /// The flake of an old Codchi does not evaluate on the target, or does not start there.
    fn old_driver(&mut self) {
        let Some(nixpkgs) = self.machine.guide.old_driver else { return };
        self.say(
            "**This machine is locked to a Codchi from before 0.3.1.5, which makes nothing but containers:** the rebuild \
             would fail, or give a system that does not start. Take a newer one; the rebuild locks it:",
        );
        let url = driver::NEW_URL;
        self.there(&format!(
            "sed -i -E 's|^( *codchi_driver\\.url = ).*|\\1\"{url}\";|' /etc/nixos/flake.nix\n\
             grep -F 'codchi_driver.url' /etc/nixos/flake.nix"
        ));
        self.say(match nixpkgs {
            Nixpkgs::Codchis => {
                "The machine's nixpkgs comes with Codchi: it becomes NixOS 24.11. `system.stateVersion` below stays as it is."
            }
            Nixpkgs::Modules => "The machine's nixpkgs comes with a module of its own, and stays as it is.",
        });
    }

    /// What a module of the machine says counts; else NixOS takes the release, and that of the machine must stay.
    ///
    /// Two definitions that differ are an error in NixOS, so that of the target gives way: its priority is below `mkDefault`
    /// and above the option's own default. It is written out, since `lib` need not be an argument of the file.
    fn state_version(&mut self, release: Option<&str>) {
        self.say(
            "`system.stateVersion` must stay what it is in the machine, or services start with newer formats beside the old \
             data. Where a module of the machine sets it, the line in `configuration.nix` would contradict it.",
        );
        let to = match release {
            Some(release) => {
                self.say(&format!(
                    "The machine runs {release}, which is its `stateVersion` unless a module says otherwise. This line lets \
                     the module win (it is `lib.mkOverride 1400 \"{release}\"`):"
                ));
                format!(
                    r#"\1system.stateVersion = {{ _type = "override"; priority = 1400; content = "{release}"; }};"#
                )
            }
            None => {
                self.say(
                    "With that line made a comment, what the machine's modules and its nixpkgs say counts, as in the machine:",
                );
                r"\1\/* system.stateVersion =\2 *\/".to_owned()
            }
        };
        self.there(&format!(
            "sed -i -E 's/^([^#]*)system\\.stateVersion *=([^;]*;)/{to}/' /etc/nixos/configuration.nix\n\
             grep stateVersion /etc/nixos/configuration.nix"
        ));
    }

    fn fill_in(&mut self, redacted: &Redacted) {
        self.say("### Secrets to fill in");
        self.say("This export was made without the secrets that Codchi knows. Before the rebuild:");
        let mut lines = String::new();
        for name in &redacted.secrets {
            let _ = writeln!(lines, "- {} in `/etc/codchi-env`", code(format!("CODCHI_{name}")));
        }
        for module in &redacted.modules {
            let _ = writeln!(lines, "- the token of {} in `/etc/nixos/flake.nix`", code(module));
        }
        if lines.is_empty() {
            lines.push_str("- nothing: there are none\n");
        }
        self.say(&lines);
        self.say(
            "A value stands in single quotes; in it, write `'\\''` for a quote and `\\\\` for a backslash. `report.json` \
             lists the files with credentials that are still inside.",
        );
    }

    fn owners(&mut self) {
        self.heading("8. Give the services their files");
        self.say(
            "NixOS gives most services an id of their own, and another one on another system. The rebuild has made them; now \
             the members of the export, and nothing else, go to the owners of the same name:",
        );
        self.there(&format!(
            "rm -f /root/codchi-renumber\ncat >/root/codchi-renumber <<'END OF SCRIPT'\n{}\nEND OF SCRIPT\nbash /root/codchi-renumber",
            RENUMBER.trim_end()
        ));
        self.say("Then start everything on its own files:");
        self.there("reboot");
    }

    fn programs(&mut self, programs: &Programs) {
        if *programs == Programs::default() {
            return;
        }
        self.heading("9. Install by hand what was installed by hand");
        self.say(
            "What `nix profile` and `nix-env` installed is links into the old store, which does not come along. The \
             user `codchi` on the target removes the dangling profile and installs again.",
        );
        if !programs.installables.is_empty() {
            let list = words(&programs.installables);
            self.block(
                "On the target, as codchi",
                &format!("for link in ~/.nix-profile ~/.local/state/nix/profiles/profile*; do [ -e \"$link\" ] || rm -f -- \"$link\"; done\n\
 nix profile install {list}"),
            );
        }
        if !programs.names.is_empty() {
            let names: Vec<_> = programs.names.iter().map(code).collect();
            self.say(&format!("And these, wherever they came from: {}.", names.join(", ")));
        }
        if programs.elsewhere {
            self.say("The list is not on this disk: `nix profile list` and `nix-env -q` in the machine have it.");
        }
        if programs.more {
            self.say("There are more than these: `nix profile list` in the machine has all.");
        }
    }

    fn verify(&mut self) {
        self.heading("10. Check");
        self.say("The copy on the target, against the machine. It says what is damaged, and what changed in the machine since:");
        let verify = self.program("verify", &[]);
        self.here(&format!(r#"ssh "$TARGET" cat {COPY} | {verify} -"#));
        self.say("The contents of the extracted files, with nothing but coreutils on the target:");
        let sums = self.program("manifest", &["--sums"]);
        self.here(&format!(r#"{sums} | ssh "$TARGET" 'cd / && sha256sum --quiet --check -'"#));
        self.say(
            "Owners and modes as well, right after step 5: `manifest.mtree` beside this page, which is not listed, is for mtree(8), with \
             checksums (`mtree -e -f manifest.mtree -p /`). What step 7 made anew differs afterwards, and so do the ids that \
             step 8 changed.",
        );
        self.there(&format!(
            "rm -rf {COPY} {MEMBERS} /root/codchi-renumber /root/codchi-extracting"
        ));
    }

    fn left_behind(&mut self) -> Written {
        self.heading("What stays behind");
        self.say(
            "`report.json` beside this page names all that is not in the export, after a scan: `/nix`, which the rebuild makes \
             anew, and files of `/etc` that were made by hand, like keys of ssh. The latter come along with `--include`.",
        );
        let devices = self.machine.location.iter().flat_map(|l| &l.foreign);
        let mut lines = String::new();
        for device in devices {
            writeln!(lines, "- {}, from {}", code(&device.path), code(&device.source))?;
        }
        if !lines.is_empty() {
            self.say("Further disks of the instance are to be copied on their own:");
            self.say(&lines);
        }
        while self.text.ends_with("\n\n") {
            self.text.pop();
        }
        Ok(())
    }
}

fn extract(from: &str) -> String {
    EXTRACT.replace("COPY", from)
}

/// A tar that goes through ssh into tar; the status of each of them counts.
fn piped(source: &str) -> String {
    let there = word(extract("-").as_bytes());
    format!(
        "(set -o pipefail; {source} | ssh \"$TARGET\" {there}) && echo arrived || echo 'NOT whole: copy it again'"
    )
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}
