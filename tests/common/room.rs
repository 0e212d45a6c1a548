//! A root directory of the host's own, in which a command may do anything: an overlay that is thrown away, in a mount and a pid
//! namespace. There is a user alice with code machines of a real LXD, and over ssh a host `vm`.

use super::lxd::{LXD, Server, UID, plant, shifted};
use super::stage::helper;
use super::target::Target;
use super::{DEADLINE, Done, program, run_for, without_variables};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Around the script. `$AT` is an empty directory, `$HOST` has the machines.
const ENTER: &str = r#"
mount -t tmpfs none "$AT"
mkdir "$AT"/{root,upper,work,source,source-work}
r=$AT/root
overlay() { mount -t overlay none "$4" -o "lowerdir=$1,upperdir=$2,workdir=$3"; }
overlay / "$AT/upper" "$AT/work" "$r"
mkdir -p "$r/root/codchifs" "$r/root/work" "$r/root/.ssh"
overlay "$TOP" "$AT/source" "$AT/source-work" "$r/root/codchifs"
mount -t proc proc "$r/proc"
mount --rbind /sys "$r/sys"
mount --rbind /dev "$r/dev"
[ -e /dev/fuse ] || { touch "$AT/fuse"; rm "$AT/fuse"; mknod -m 666 /dev/fuse c 10 229; }
for directory in run mnt var/lib/incus; do
    mkdir -p "$r/$directory"
    mount -t tmpfs none "$r/$directory"
done
mkdir -p "$r$HOST" "$r/var/lib/lxd" "$r/home/alice/.config" "$r/mnt/codchi" "$r/run/mount"
mount --bind "$HOST" "$r$HOST"
mount --bind "$HOST/lxd" "$r/var/lib/lxd"
cp -a "$HOST/config" "$r/home/alice/.config/codchi"
echo "data_dir = \"$HOST/data\"" >"$r/home/alice/.config/codchi/config.toml"
for machine in "$r"/home/alice/.config/codchi/machine/*; do
    case " $MACHINES " in *" ${machine##*/} "*) ;; *) rm -r "$machine" ;; esac
done
sed -i "/^alice:/d; /^[^:]*:[^:]*:$OWNER:/d" "$r/etc/passwd"
echo "alice:x:$OWNER:$OWNER::/home/alice:/bin/bash" >>"$r/etc/passwd"
chown -R "$OWNER:$OWNER" "$r/home/alice"
cp "$HOST/ssh_config" "$r/root/.ssh/config"
if [ "$INSTALLED" = yes ]; then
    ln -sfn "$CODCHIFS" "$r/usr/bin/codchifs"
    ln -sfn "$HELPER" "$r/usr/sbin/mount.codchifs"
    cp "$TOP/packaging/systemd/codchifs@.service" "$r/usr/lib/systemd/system/"
else
    # Whatever the host has of its own.
    rm -f "$r"/usr/{local/,}{bin/codchifs,sbin/mount.codchifs,sbin/mount.fuse.codchifs}
fi
# What cargo would have built.
if [ "$LONG" = no ]; then
    rm -rf "$r/root/codchifs/target/release"
    mkdir -p "$r/root/codchifs/target/release"
    ln -s "$CODCHIFS" "$r/root/codchifs/target/release/codchifs"
    ln -s "$HELPER" "$r/root/codchifs/target/release/mount-codchifs"
else
    mount --bind "$TOP/target" "$r/root/codchifs/target"
fi
# As a child: systemctl knows by the root of process 1 that there is nothing to start.
chroot "$r" env HOME=/root SUDO_USER=alice DEBIAN_FRONTEND=noninteractive COMPRESSION=none TMPDIR=/tmp \
    bash -c "$SCRIPT" || exit
"#;

/// What takes long is done for real in the long run; else that there is such a command with such options.
const HEAVY: &str = r#"
heavy() {
    local program=$1 help word
    shift
    case $program in
        cargo) help=$(command cargo "$1" --help) || return ;;
        *) help=$(command "$program" --help) || return ;;
    esac
    for word; do
        case $word in
            --) break ;;
            --*) grep -qFe "${word%%=*}" <<<"$help" || { echo "$program has no $word"; return 1; } ;;
        esac
    done
}
tests/run() { heavy tests/run "$@"; }
if [[ $LONG == no ]]; then
    cargo() {
        heavy cargo "$@" || return
        [[ $1 != run ]] || { while [[ $1 != -- ]]; do shift; done; shift; target/release/codchifs "$@"; }
    }
    benches/compare() { heavy benches/compare "$@"; }
    fuzz/run() { heavy fuzz/run "$@"; }
fi
"#;

/// What the rooms share.
#[derive(Debug)]
pub(crate) struct House {
    server: Server,
    _target: Target,
}

/// How a room is furnished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// codchifs and mount.codchifs are installed; in an empty directory.
    Host,
    /// Nothing of codchifs is; in a checkout.
    Source,
}

impl House {
    pub(crate) fn new() -> Self {
        let server = Server::new(LXD, "dir");
        for machine in ["dev", "NAME"] {
            server.create(machine);
            let instance = format!("codchi-{machine}");
            server.client(&["start", &instance]).ok();
            server.client(&["stop", "-f", &instance]).ok();
            let home =
                [("home/codchi/project/README", 1000, 100, 0o644, Some("hello\n"))].as_slice();
            plant(&server.host.home(machine), home, shifted);
            let data = [("var/lib/postgresql/PG_VERSION", 71, 71, 0o644, Some("15\n"))].as_slice();
            plant(&server.rootfs(machine), data, shifted);
        }
        let at = server.host.path();
        fs::create_dir(at.join("room")).unwrap();
        fs::create_dir(at.join("out")).unwrap();
        let target = Target::new(&at.join("vm"));
        let config = target.sshd.client_config("vm") + "User root\n";
        fs::write(at.join("ssh_config"), config).unwrap();
        Self { server, _target: target }
    }

    /// Where a room sees it as well.
    pub(crate) fn out(&self) -> std::path::PathBuf {
        self.server.host.path().join("out")
    }

    /// Runs a script of bash; `machines` are there.
    pub(crate) fn run(&self, room: Room, machines: &str, script: &str) -> Done {
        let place = match room {
            Room::Host => "/root/work",
            Room::Source => "/root/codchifs",
        };
        let mut command =
            program("unshare", ["--mount", "--pid", "--fork", "--kill-child", "--propagation"]);
        command.args(["private", "bash", "-ec", ENTER]);
        without_variables(&mut command);
        command.env_remove("LXD_DIR");
        let at = self.server.host.path();
        command.env("AT", at.join("room")).env("HOST", at).env("OUT", self.out());
        command.env("TOP", Path::new(env!("CARGO_MANIFEST_DIR"))).env("OWNER", UID.to_string());
        command.env("CODCHIFS", env!("CARGO_BIN_EXE_codchifs")).env("HELPER", helper());
        command.env("INSTALLED", if room == Room::Host { "yes" } else { "no" });
        command.env("LONG", if long() { "yes" } else { "no" }).env("MACHINES", machines);
        command.env("SCRIPT", format!("{HEAVY}\ncd {place}\n{script}"));
        // A build of everything, for example.
        let limit = if long() { Duration::from_secs(3600) } else { DEADLINE };
        run_for(limit, command)
    }
}

/// Whether what takes minutes is run for real.
pub(crate) fn long() -> bool {
    std::env::var_os("COMMANDS_LONG").is_some()
}
