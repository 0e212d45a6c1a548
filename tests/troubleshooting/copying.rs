//! What those meet who read a mount, or export.

use crate::Case;
use crate::common::asked::Asked;
use crate::common::fixture::Fixture;
use crate::common::list::listed;
use crate::common::mounted::Mounted;
use crate::common::played::{MAP, played, pretend, record, sync};
use crate::common::processes::{is_alive, kill};
use crate::common::{program, run, wait_until};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::Signal;
use std::fs::{self, File};
use std::path::Path;

/// Bytes of a file that takes more than one read.
const LARGE: usize = 9_000_000;

pub(crate) const CASES: &[Case] = &[
    ("Permission denied", || {
        let host = played();
        let point = host.path().join("mnt").display().to_string();
        host.run(&["mount", &point]).silent();
        let said = run(program("ls", [&point])).exits(2).err();
        host.run(&["unmount", &point]).silent();
        host.run(&["mount", "-o", "allow_root", &point]).silent();
        run(program("ls", [&point])).ok();
        said
    }),
    ("Transport endpoint is not connected", || {
        let fixture = Fixture::new();
        fixture.sample("m");
        let mounted = Mounted::new(&fixture);
        abandon(&mounted);
        let said = run(program("ls", [mounted.point()])).exits(2).err();
        let point = mounted.point().to_str().unwrap();
        fixture.run(["mount", point]).ok();
        run(program("ls", [point])).ok();
        fixture.run(["unmount", point]).silent();
        said
    }),
    ("nobody serves it", || {
        let fixture = Fixture::new();
        let mounted = Mounted::new(&fixture);
        abandon(&mounted);
        let said = run(fixture.command(["status"])).exits(1).out();
        fixture.run(["unmount", mounted.point().to_str().unwrap()]).silent();
        said
    }),
    ("there is no answer", || {
        let fixture = Fixture::new();
        let mounted = Mounted::new(&fixture);
        kill(mounted.server(), Signal::STOP);
        let said = run(fixture.command(["status"])).exits(1).out();
        kill(mounted.server(), Signal::CONT);
        fixture.run(["unmount", "--lazy", mounted.point().to_str().unwrap()]).silent();
        said
    }),
    ("Input/output error", || {
        let (fixture, large) = large();
        let mounted = Mounted::new(&fixture);
        let (tar, copy) = (mounted.tar("m"), fixture.path().join("copy.tar"));
        fs::metadata(&tar).unwrap();
        shrink(&large);
        let said = run(program("cp", [&tar, &copy])).exits(1).err();
        assert_eq!(mounted.report("m")["changed"][0]["path"], "/home/codchi/large");
        run(program("cp", [&tar, &copy])).silent();
        said
    }),
    ("Stale file handle", || {
        let fixture = Fixture::new();
        let place = fixture.sample("m");
        let mounted = Mounted::new(&fixture);
        let (there, real) = (mounted.rootfs("m").join("srv"), place.rootfs.join("srv"));
        let script =
            "cd \"$1\"; rm -r \"$2\"; ls; mkdir \"$2\"; until cd \"$1\" && ls; do cd /; done";
        run(program("sh", ["-c", script, "sh"]).args([there, real])).ok().err()
    }),
    ("Value too large for defined data type", || {
        let fixture = Fixture::new();
        fixture.sample("m");
        let mounted = Mounted::new(&fixture);
        let said = listed("-m32", &mounted.rootfs("m")).unwrap_err();
        mounted.unmount();
        let mounted = Mounted::with(&fixture, &["-o", "inode32"]);
        listed("-m32", &mounted.rootfs("m")).unwrap();
        said
    }),
    ("Read-only file system", || {
        let fixture = Fixture::new();
        fixture.sample("m");
        let mounted = Mounted::new(&fixture);
        run(program("touch", [mounted.rootfs("m").join("opt/tool")])).exits(1).err()
    }),
    ("File shrank", || {
        let (fixture, large) = large();
        let mounted = Mounted::new(&fixture);
        let mut tar = program("tar", ["-cf"]);
        tar.arg(fixture.path().join("tree.tar")).args(["--checkpoint=100", "-C"]);
        tar.arg(mounted.rootfs("m").join("home/codchi"));
        tar.arg(format!("--checkpoint-action=exec=truncate -s 1000 {}", large.display()));
        run(tar.arg("large")).exits(1).err()
    }),
    ("NAME runs", || {
        let host = played();
        let running = sync(&[record(&host, "demo", "Running", MAP)]);
        pretend(&host.lxd.join("unix.socket"), Some(running));
        host.run(&["export", "demo", "-q", "-o", "-"]).ok().err()
    }),
    ("incomplete: stop the machine", || {
        let (fixture, large) = large();
        // Who writes into a pipe waits until it is read.
        let pipe = fixture.path().join("pipe").display().to_string();
        let export = fixture.command(["export", "m", "-q", "-o", &pipe]);
        let script = format!(
            "mkfifo {pipe}; {export:?} & {{ head -c 1; truncate -s 1000 {large:?}; cat; }} <{pipe} >/dev/null; wait $!"
        );
        let said = run(program("bash", ["-c", &script])).exits(1).err();
        let out = fixture.path().join("m.tar").display().to_string();
        fixture.run(["export", "m", "-q", "-o", &out]).silent();
        said
    }),
    ("incomplete: only root reads all", || {
        let host = played();
        let look = "point=$1; shift; \"$@\" export demo -q -o \"$point/demo.tar\"";
        let said = Asked { fuse: "666", conf: "", look }.run(&host).exits(1).err();
        host.run(&["export", "demo", "-q", "-o", "-"]).ok();
        said
    }),
    ("another export is writing", || {
        let fixture = Fixture::new();
        fixture.sample("m");
        let out = fixture.path().join("m.tar");
        let other = File::create(out.with_extension("tar.partial")).unwrap();
        flock(&other, FlockOperation::LockExclusive).unwrap();
        let export = || fixture.run(["export", "m", "-q", "-o", out.to_str().unwrap()]);
        let said = export().exits(1).err();
        drop(other);
        export().silent();
        said
    }),
    ("nothing was kept", || {
        let fixture = Fixture::new();
        fixture.sample("m");
        fixture.run(["export", "m", "-q", "-o", "/dev/full"]).exits(1).err()
    }),
    ("there is nothing of this name", || {
        let fixture = Fixture::new();
        fixture.sample("m");
        fixture.run(["export", "m", "-q", "--include", "/etc/shh", "-o", "-"]).ok().err()
    }),
];

/// A machine with one file that takes a while to be read.
fn large() -> (Fixture, std::path::PathBuf) {
    let fixture = Fixture::new();
    let large = fixture.sample("m").home.join("large");
    fs::write(&large, vec![b'x'; LARGE]).unwrap();
    (fixture, large)
}

fn shrink(file: &Path) {
    File::options().write(true).open(file).unwrap().set_len(1000).unwrap();
}

/// Leaves a mount that nobody serves.
fn abandon(mounted: &Mounted) {
    let (host, server) = (mounted.host(), mounted.server());
    kill(host, Signal::KILL);
    wait_until("the end of both", || !is_alive(host) && !is_alive(server));
    // A process that has ended for /proc may have the device for a moment yet.
    let gone = Some(Errno::NOTCONN.raw_os_error());
    wait_until("the end of the connection", || {
        fs::read_dir(mounted.point()).is_err_and(|why| why.raw_os_error() == gone)
    });
}
