//! The process that answers the kernel: the user, and nearly nothing that a user can do.

use super::super::args::Global;
use super::super::{Failure, Outcome};
use super::{Mount, name_missing, options};
use crate::codchi::{State, Way};
use crate::credentials::User;
use crate::fuse;
use crate::machine::Machines;
use crate::opener::{Client, Control, Greeted, Opener, receive_greeting};
use crate::tree::Root;
use crate::{sandbox, tree};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

pub(super) fn run(global: &Global, mount: &Mount) -> Result<Outcome, Failure> {
    // It was started as /proc/self/exe, and "exe" is nothing that anybody would look for.
    rustix::thread::set_name(c"codchifs-server")?;
    leave_signals_to_the_host()?;
    let control = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    let (greeting, Greeted { device, sample, sockets, ways }) = receive_greeting(&control)?;
    // Paths of the command line are as of where the user was; from here on, that can be unmounted.
    let settings = mount.wishes.shown(global, Some(&greeting.mountpoint));
    let host = Arc::new(Client::new(sockets)?);
    let opener = Opener::Asked(Arc::clone(&host));
    let user = User { uid: greeting.uid, gid: greeting.gid };
    sandbox::enter(user, greeting.apart.is_quiet())?;
    host.start()?;
    tree::all_is_handed_over(greeting.apart);
    if let Some(sample) = sample {
        tree::check_reading(Root::handed_over(sample, Vec::new()))?;
    }

    let options = options(mount, user, greeting.mountpoint);
    let ways =
        ways.into_iter().zip(greeting.ways).map(|(from, rest)| Way { from: Arc::new(from), rest });
    let state = State {
        config_dir: greeting.config_dir,
        data_dir: greeting.data_dir,
        ways: ways.collect(),
    };
    let machines = Machines::new(state, user, opener, settings, mount.machine.clone())?;
    name_missing(&machines, mount);
    let to_reread = Arc::clone(&machines);
    let end = control.try_clone()?;
    std::thread::Builder::new()
        .name("codchifs-control".into())
        .spawn(move || listen(&end, &to_reread))?;
    fuse::answer(machines, &options, host, device, || {
        if let Err(why) = Control::Ready.send(&control) {
            tracing::error!(%why, "nobody hears that the mount is ready");
        }
    })?;
    Ok(Outcome::Done)
}

/// Whoever ends a service tells all processes of it: that the mount ends in order is the host's to see to. One that ended by
/// itself would cut off who reads.
fn leave_signals_to_the_host() -> Result<(), Failure> {
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        signal_hook::flag::register(signal, Arc::default())?;
    }
    Ok(())
}

/// Until the host ends: without it no machine is found any more, and nobody unmounts.
fn listen(host: &UnixStream, machines: &Machines) {
    loop {
        match Control::receive(host) {
            Ok(Control::Reread) => machines.reread(),
            Ok(Control::Ready) => {}
            Err(why) => {
                tracing::error!(%why, "the process that mounted this has ended");
                std::process::exit(1);
            }
        }
    }
}
