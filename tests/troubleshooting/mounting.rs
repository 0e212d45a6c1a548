//! What keeps a mount from coming up, and from going.

use crate::Case;
use crate::common::asked::Asked;
use crate::common::fixture::Fixture;
use crate::common::mounted::Mounted;
use crate::common::played::played;
use crate::common::processes::kill;
use crate::common::sandboxed::without;
use crate::common::stage::Stage;
use crate::common::{program, run};
use rustix::process::Signal;
use std::fs;

pub(crate) const CASES: &[Case] = &[
    ("there is no such directory", || {
        let fixture = Fixture::new();
        let point = fixture.path().join("none").display().to_string();
        let said = fixture.run(["mount", &point]).exits(1).err();
        run(program("mkdir", ["-p", &point])).silent();
        fixture.run(["mount", &point]).silent();
        fixture.run(["unmount", &point]).silent();
        said
    }),
    ("already mounted there", || {
        let fixture = Fixture::new();
        let point = fixture.mount_point().display().to_string();
        fixture.run(["mount", &point]).silent();
        let said = fixture.run(["mount", &point]).exits(1).err();
        fixture.run(["unmount", &point]).silent();
        fixture.run(["mount", &point]).silent();
        fixture.run(["unmount", &point]).silent();
        said
    }),
    ("is too old", || {
        let fixture = Fixture::new();
        let mut command =
            program("setarch", ["--uname-2.6", env!("CARGO_BIN_EXE_codchifs"), "mount"]);
        let said = run(command.arg(fixture.mount_point())).exits(1).err();
        fixture.run(["doctor", "-v"]);
        said
    }),
    ("files of machines cannot be read", || {
        let fixture = Fixture::new();
        let mut command = fixture.command(["mount"]);
        without(&[libc::SYS_llistxattr, 465], libc::EPERM, command.arg(fixture.mount_point()))
            .exits(1)
            .err()
    }),
    ("nobody but the service would see the mount", || {
        let fixture = Fixture::new();
        let socket = fixture.path().join("notify");
        let _manager = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
        let mount = fixture.command(["mount", "--foreground"]);
        let mut command = program("unshare", ["--mount", "--propagation", "slave"]);
        command.arg(mount.get_program()).args(mount.get_args()).arg(fixture.mount_point());
        run(command.env("NOTIFY_SOCKET", &socket)).exits(78).err()
    }),
    ("a dash must be escaped", || {
        let fixture = Fixture::new();
        let point = fixture.mount_point();
        let said =
            fixture.run(["--user", "an/na", "mount", point.to_str().unwrap()]).exits(1).err();
        let escaped = run(program("systemd-escape", ["an-na"])).ok().out();
        let name = run(program("systemd-escape", ["--unescape", escaped.trim_end()])).ok().out();
        assert_eq!(name, "an-na\n");
        said
    }),
    ("cannot open /dev/fuse", || {
        let fixture = Fixture::new();
        let codchifs = fixture.command(["mount", "--foreground"]);
        let script = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && exec \"$@\"";
        let mut command = program("unshare", ["--mount", "--propagation", "private"]);
        command.args(["sh", "-ec", script, "sh"]).arg(codchifs.get_program());
        command.args(codchifs.get_args()).arg(fixture.mount_point());
        let gone = run(command).exits(1).err();
        let denied = by_user("600", "", COMES_AND_GOES, 1);
        by_user("666", "", COMES_AND_GOES, 0);
        gone + &denied
    }),
    ("needs fusermount3", || {
        by_user("666", "", "setpriv --no-new-privs \"$@\" mount \"$point\"", 1)
    }),
    ("user_allow_other", || {
        let script = COMES_AND_GOES.replace("\" mount", "\" mount -o allow_root");
        by_user("666", "user_allow_other\n", &script, 0);
        by_user("666", "", &script, 1)
    }),
    ("no write access to mountpoint", || {
        let host = played();
        let look = "shift; \"$@\" mount /srv";
        let said = Asked { fuse: "666", conf: "", look }.run(&host).exits(1).err();
        by_user("666", "", COMES_AND_GOES, 0);
        said
    }),
    ("only root may use --user", || {
        let host = played();
        host.run(&["list"]).ok();
        let look = "shift; \"$1\" --user root list";
        Asked { fuse: "666", conf: "", look }.run(&host).exits(1).err()
    }),
    ("unknown filesystem type", || {
        on_stage(
            r#"
            rm "$AT"/sbin/mount.*codchifs
            c mount -t codchifs codchi "$M" -o "$O"
            "#,
        )
    }),
    ("there is no codchifs beside mount.codchifs", || {
        on_stage(
            r#"
            mv "$AT/sbin/codchifs" "$AT/elsewhere"
            for at in /usr/bin /usr/local/bin; do
                [ ! -e $at/codchifs ] || mount -t tmpfs none $at
            done
            c env -i PATH=/bin mount -t codchifs codchi "$M" -o "$O"
            c env CODCHIFS="$AT/elsewhere" mount -t codchifs codchi "$M" -o "$O"
            c umount "$M"
            "#,
        )
    }),
    ("unknown option", || {
        on_stage(
            r#"
            c mount -t codchifs codchi "$M" -o "$O,exclude=a,b"
            c mount -t codchifs codchi "$M" -o "$O,exclude=a\\054b"
            c umount "$M"
            "#,
        )
    }),
    ("cannot be remounted", || {
        on_stage(
            r#"
            c mount -t codchifs codchi "$M" -o "$O"
            c mount -o remount,allow_root "$M"
            c umount "$M"
            c mount -t codchifs codchi "$M" -o "$O,allow_root"
            c umount "$M"
            "#,
        )
    }),
    ("the serving process ended", || {
        let fixture = Fixture::new();
        fixture.empty("m");
        let mut mounted = Mounted::new(&fixture);
        kill(mounted.server(), Signal::KILL);
        mounted.wait();
        Mounted::new(&fixture).unmount();
        mounted.log()
    }),
];

pub(crate) const UNMOUNTING: &[Case] = &[
    ("it is in use", || {
        let fixture = Fixture::new();
        fixture.sample("m");
        let mounted = Mounted::new(&fixture);
        let point = mounted.point().display().to_string();
        let open = fs::File::open(mounted.tar("m")).unwrap();
        let said = fixture.run(["unmount", &point]).exits(1).err();
        let said = said + &run(program("umount", [&point])).exits(32).err();
        fixture.run(["unmount", "--lazy", &point]).silent();
        let read = std::io::copy(&mut &open, &mut std::io::sink()).unwrap();
        assert_eq!(read, open.metadata().unwrap().len());
        said
    }),
    ("if root mounted it", || {
        let host = played();
        let mounted = host.mount("root");
        let point = mounted.point().display().to_string();
        let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        let mut command = program("setpriv", nobody);
        command.arg(env!("CARGO_BIN_EXE_codchifs")).args(["unmount", &point]);
        let said = run(command).exits(1).err();
        host.run(&["unmount", &point]).silent();
        said
    }),
    ("no codchifs is mounted there", || {
        let fixture = Fixture::new();
        fixture.run(["unmount", fixture.mount_point().to_str().unwrap()]).exits(1).err()
    }),
];

const COMES_AND_GOES: &str = "\"$@\" mount \"$point\"; \"$1\" unmount \"$point\"";

/// What is said to a user, who has the mount point `$point` and codchifs with its options as `$@`.
fn by_user(fuse: &str, conf: &str, script: &str, code: i32) -> String {
    let look = format!("point=$1; shift; {script}");
    Asked { fuse, conf, look: &look }.run(&played()).exits(code).err()
}

/// What was said to the one command of the script that fails.
fn on_stage(script: &str) -> String {
    let done = Stage::new().play("", script);
    let failed: Vec<_> = done.iter().filter(|done| done.code != Some(0)).collect();
    assert_eq!(failed.len(), 1, "{done:#?}");
    failed[0].err()
}
