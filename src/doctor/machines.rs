//! Codchi's state, the daemons, and each machine.

use super::{Check, LONG, Probe, SHORT, Status, Subject, late, parted};
use crate::accounts::{self, Key, Membership};
use crate::backend::{Backend, Daemon, Driver, HomeIds, Location};
use crate::codchi::Found;
use crate::machine::{self, Machines};
use crate::opener::{Direct, Opener};
use crate::quote;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

/// Daemons and machines at once, each with a deadline.
pub(super) fn checks(subject: Subject) -> Vec<Check> {
    let Subject { state, user, backend, vouched } = subject;
    let mut probes = Vec::new();
    let mut all = Vec::new();
    match &backend {
        Backend::Directories(_) => {
            all.push(Check::ok("daemon", "machines are plain directories: no daemon is asked"));
        }
        Backend::Daemons(daemons) if Daemon::installed(daemons).is_empty() => {
            all.push(Check::error(
                "daemon",
                "neither LXD nor Incus is on this host",
                "install one, or say where machines are with --lxd-dir or --rootfs-dir",
            ));
        }
        Backend::Daemons(daemons) => {
            for daemon in &Daemon::installed(daemons) {
                let name =
                    format!("{} {}", daemon.kind().driver().as_str(), quote::path(daemon.base()));
                let (daemon, subject) = (daemon.clone(), name.clone());
                let probe = Probe::start(LONG, move || of_daemon(&daemon, &subject));
                probes.push(("daemon", name, probe));
            }
        }
    }
    let config_dir = state.config_dir.clone();
    let opener = Opener::Direct(Direct::new(backend, user, state.clone(), vouched));
    let machines = match Machines::new(state, user, opener, Default::default(), Vec::new()) {
        Ok(machines) => machines,
        Err(why) => return vec![Check::error("state", why.to_string(), "report this as a bug")],
    };
    let finder = Arc::clone(&machines);
    let found = Probe::start(SHORT, move || finder.found().map_err(|why| why.to_string())).wait();
    let shown = config_dir.join("machine");
    match found {
        None => all.push(late("state", SHORT)),
        Some(Err(why)) => {
            let (text, remedy) = parted(&why, "check who may read it");
            all.push(Check::error("state", text, remedy));
        }
        Some(Ok(found)) if found.is_empty() => all.push(Check::warning(
            "state",
            format!("no code machines in {}", quote::path(&shown)),
            "is it the right user? `--user NAME` as root; `codchi init` makes a machine",
        )),
        Some(Ok(found)) => {
            let count = found.len();
            let s = if count == 1 { "" } else { "s" };
            all.push(Check::ok(
                "state",
                format!("{count} code machine{s} in {}", quote::path(&shown)),
            ));
            for found in found {
                match found {
                    Found::Machine(name) => {
                        let (name, machines) = (name.to_string(), Arc::clone(&machines));
                        let subject = name.clone();
                        let probe = Probe::start(LONG, move || of_machine(&machines, &name));
                        probes.push(("machine", subject, probe));
                    }
                    Found::Invalid { name, reason } => {
                        let name = quote::path(&name).to_string();
                        let check =
                            Check::error("machine", reason.to_string(), "rename it with codchi");
                        all.push(check.of(name));
                    }
                }
            }
        }
    }
    for (check, subject, probe) in probes {
        all.extend(probe.wait().unwrap_or_else(|| vec![late(check, LONG).of(subject)]));
    }
    all
}

fn of_daemon(daemon: &Daemon, subject: &str) -> Vec<Check> {
    let api = match daemon.reach() {
        Ok(()) => Check::ok("daemon", "answers"),
        Err(why) => {
            let (text, remedy) = parted(&why, "restart it");
            // The disk tells the same.
            Check::warning("daemon", text, remedy)
        }
    };
    [Some(api), group(daemon), snap(daemon)].into_iter().flatten().map(|c| c.of(subject)).collect()
}

/// Whether this process is in the group of the socket.
fn group(daemon: &Daemon) -> Option<Check> {
    const NAME: &str = "group";
    if rustix::process::geteuid().is_root() {
        return Some(Check::ok(NAME, "root needs no group"));
    }
    let gid = daemon.socket().symlink_metadata().ok()?.gid();
    let user = accounts::find(Key::Uid(rustix::process::geteuid().as_raw())).ok()??;
    let Ok(Membership { name, is_member }) = accounts::membership(gid, user.name()) else {
        let text = "the sources of groups beside /etc/group gave no answer in time";
        return Some(Check::warning(NAME, text, "see /etc/nsswitch.conf, and try: getent group"));
    };
    let (group, user) = (name.unwrap_or(gid.to_string()), quote::path(user.name()).to_string());
    let own = rustix::process::getegid().as_raw() == gid
        || rustix::process::getgroups().is_ok_and(|all| all.iter().any(|g| g.as_raw() == gid));
    Some(match (own, is_member) {
        (true, _) => Check::ok(NAME, format!("this process is in the group {group}")),
        (false, true) => Check::warning(
            NAME,
            format!("{user} is in the group {group}, but not since this session began"),
            "log out and in again",
        ),
        (false, false) => Check::warning(
            NAME,
            format!("{user} is not in the group {group}, whose socket it is"),
            format!(
                "{}, then log in again; or run codchifs as root",
                quote::words(["sudo", "usermod", "-aG", &*group, &*user])
            ),
        ),
    })
}

/// The snap mounts its pools in a mount namespace of its own.
fn snap(daemon: &Daemon) -> Option<Check> {
    const NAME: &str = "snap";
    let view = daemon.snap_view()?;
    Some(match view.read_dir() {
        Ok(_) => Check::ok(NAME, format!("the pools of the snap show in {}", quote::path(&view))),
        Err(why) => {
            let text =
                format!("the pools of the snap do not show in {}: {why}", quote::path(&view));
            let remedy = match why.kind() {
                ErrorKind::PermissionDenied => "run as root".to_owned(),
                _ => format!("run codchifs with `nsenter --mount={}`", Daemon::SNAP_MOUNTS),
            };
            Check::warning(NAME, text, remedy)
        }
    })
}

/// The machine as a whole, then its directories and id maps where they are known.
fn of_machine(machines: &Arc<Machines>, name: &str) -> Vec<Check> {
    let Some(machine) = machines.get(name.as_bytes()) else {
        return vec![Check::warning("machine", "it vanished meanwhile", "look again").of(name)];
    };
    let mut all = vec![match &machine.tree {
        Ok(_) => Check::ok("machine", "can be exported"),
        Err(why) => {
            // A name that looks like what to do is none of what we say.
            let why = why.replace(name, &quote::name(name).to_string());
            let (text, remedy) = parted(&why, "`codchifs list` has what is known of it");
            let status = match machine.state {
                machine::Status::NotInstalled => Status::Warning,
                _ => Status::Error,
            };
            Check { status, ..Check::error("machine", text, remedy) }
        }
    }];
    if let Some(location) = &machine.location {
        all.push(readable("rootfs", &location.rootfs, machines.rootfs_readable(&location.rootfs)));
        all.push(readable("home", &machine.home, machines.home_readable(&machine.home)));
        all.push(id_maps(location));
    }
    all.into_iter().map(|check| check.of(name)).collect()
}

fn readable(check: &'static str, path: &Path, result: Result<(), String>) -> Check {
    match result {
        Ok(()) => Check::ok(check, format!("{} can be read", quote::path(&path))),
        Err(why) => {
            let (text, remedy) = parted(&why, "is it mounted? does it exist?");
            Check::error(check, text, remedy)
        }
    }
}

fn id_maps(location: &Location) -> Check {
    const NAME: &str = "id-maps";
    match (location.driver, &location.maps.rootfs, &location.maps.home) {
        (Driver::Dir, ..) => Check::ok(NAME, "plain directories have none"),
        (_, _, HomeIds::Unrecorded) => Check::warning(
            NAME,
            "no id map is recorded for the home: all in it is shown as 1000:100",
            "start the machine once",
        ),
        (_, None, HomeIds::Same) => {
            Check::ok(NAME, "the machine is privileged: ids are the host's")
        }
        (_, None, HomeIds::Mapped(_)) => {
            Check::ok(NAME, "the rootfs is not shifted on the disk; the home has its map")
        }
        (_, Some(_), _) => Check::ok(NAME, "rootfs and home have their maps"),
    }
}
