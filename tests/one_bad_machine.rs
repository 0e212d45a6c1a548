//! Machines whose disk does not answer, beside healthy ones: these cost the others nothing, and whoever waits for them can be
//! killed. Each disk is a bindfs that is stopped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::alone::runs_unseen;
use common::fixture::{Fixture, Place};
use common::mounted::{Mounted, mounts_on};
use common::processes::{is_alive, kill, resident, threads};
use common::{Done, program, run, wait_until, within};
use rustix::process::Signal;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Each kind of call that a reader waits in.
const CALLS: [&str; 10] =
    ["stat", "fstat", "open", "read", "mmap", "readdir", "readlink", "getxattr", "statfs", "lseek"];

/// Says that it is ready, waits for a line, and makes one call about a file that nobody has looked at since the disk was last
/// well. Says what the call gave.
const READER: &str = r#"
import mmap, os, sys, time
call, top, number = sys.argv[1:]
path = lambda name: f'{top}/{name}-{number}'
file = os.open(path('file'), os.O_RDONLY) if call in ('fstat', 'read', 'mmap', 'getxattr', 'statfs', 'lseek') else None
name = os.open(path('file'), os.O_PATH) if call == 'open' else None
link = os.open(path('link'), os.O_PATH | os.O_NOFOLLOW) if call == 'readlink' else None
directory = os.open(path('directory'), os.O_RDONLY) if call == 'readdir' else None
def fstat():
    # The kernel believes attributes for a second.
    while True:
        found = os.fstat(file).st_size
        if time.monotonic() > begun + 1.5:
            return found
calls = {
    'stat': lambda: os.stat(path('file')).st_size,
    'fstat': fstat,
    'open': lambda: os.read(os.open(f'/proc/self/fd/{name}', os.O_RDONLY), 100),
    'read': lambda: os.pread(file, 100, 0),
    'mmap': lambda: mmap.mmap(file, 0, mmap.MAP_SHARED, mmap.PROT_READ)[:100],
    'readdir': lambda: os.listdir(directory),
    'readlink': lambda: os.readlink('', dir_fd=link),
    'getxattr': lambda: os.getxattr(file, 'user.some'),
    'statfs': lambda: os.statvfs(file).f_namemax,
    'lseek': lambda: os.lseek(file, 0, os.SEEK_HOLE),
}
print('ready', flush=True)
sys.stdin.readline()
begun = time.monotonic()
print(calls[call](), flush=True)
"#;

/// One that any user may run.
const PYTHON: &str = "/usr/bin/python3";

/// Bytes of a file, different in each.
fn content(number: usize, large: bool) -> Vec<u8> {
    let line = format!("the bytes of file {number}\n");
    if large { line.repeat(20_000).into_bytes() } else { line.into_bytes() }
}

/// A directory that a bindfs has mounted over itself; its files come when it is not stopped.
struct Disk {
    bindfs: Child,
    at: PathBuf,
}

impl Disk {
    fn over(at: &Path) -> Self {
        // Nothing of it is kept in a cache, so that each call asks it.
        let options = "attr_timeout=0,entry_timeout=0,negative_timeout=0,allow_other";
        let mut bindfs = program("bindfs", ["-f", "-o", options]);
        let child = bindfs.args([at, at]).stdout(Stdio::null()).stderr(Stdio::null());
        let disk = Self { bindfs: child.spawn().unwrap(), at: at.to_owned() };
        wait_until("the bindfs", || !mounts_on(at).is_empty());
        disk
    }

    fn stop(&self) {
        kill(self.bindfs.id(), Signal::STOP);
        let stat = format!("/proc/{}/stat", self.bindfs.id());
        wait_until("the stop", || fs::read_to_string(&stat).unwrap().contains(") T "));
    }

    fn go_on(&self) {
        kill(self.bindfs.id(), Signal::CONT);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH);
        let _ = self.bindfs.kill();
        let _ = self.bindfs.wait();
    }
}

/// A machine with what [`READER`] looks at, for readers up to this number, in its home and in its root file system.
fn machine(fixture: &Fixture, name: &str, readers: usize) -> Place {
    let place = fixture.empty(name);
    for top in [place.rootfs.join("srv"), place.home.clone()] {
        fs::create_dir_all(&top).unwrap();
        for number in 0..readers {
            let file = top.join(format!("file-{number}"));
            fs::write(&file, content(number, number % 2 == 1)).unwrap();
            run(program("setfattr", ["-n", "user.some", "-v", "value"]).arg(&file)).ok();
            symlink(format!("target-{number}"), top.join(format!("link-{number}"))).unwrap();
            fs::create_dir_all(top.join(format!("directory-{number}/inside"))).unwrap();
        }
    }
    place
}

/// One that waits in a call, killed when it is dropped.
struct Reader {
    call: &'static str,
    number: usize,
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Reader {
    fn new(before: &[&str], top: &Path, number: usize) -> Self {
        let call = CALLS[number % CALLS.len()];
        let mut words = before.iter().map(OsStr::new);
        let mut command = match words.next() {
            Some(first) => program(first.to_str().unwrap(), words.chain([OsStr::new(PYTHON)])),
            None => program(PYTHON, std::iter::empty::<&str>()),
        };
        command.args(["-c", READER, call]).arg(top).arg(number.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { call, number, child, out }
    }

    /// Waits until it has what it opens before the disk stops.
    fn is_ready(&mut self) {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "{} {}", self.call, self.number);
    }

    fn begin(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    }

    /// Whether it is still in its call.
    fn waits(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    fn is_gone(&mut self) {
        let what = format!("the end of {} {}", self.call, self.number);
        wait_until(&what, || self.child.try_wait().unwrap().is_some());
    }

    /// The same, unless the kernel has asked for another reader, who is still there, and has this one wait for what that gets.
    fn is_gone_or_behind_another(&mut self) {
        const BEHIND_ANOTHER: [&str; 2] = ["d_alloc_parallel", "folio_wait_bit_common"];
        let wchan = format!("/proc/{}/wchan", self.child.id());
        wait_until(&format!("the end of {} {}", self.call, self.number), || {
            self.child.try_wait().unwrap().is_some()
                || fs::read_to_string(&wchan).is_ok_and(|at| BEHIND_ANOTHER.contains(&&*at))
        });
    }

    /// What the call gave.
    fn result(mut self) -> String {
        self.is_gone();
        let mut text = String::new();
        self.out.read_to_string(&mut text).unwrap();
        text.trim_end().to_owned()
    }

    /// What it is to give.
    fn expected(&self, home: &Path) -> String {
        let (number, large) = (self.number, self.number % 2 == 1);
        let (bytes, line) = (content(number, large), format!("the bytes of file {number}\\n"));
        let first: String =
            line.replace("\\n", "\n").repeat(10).chars().take(100.min(bytes.len())).collect();
        match self.call {
            "stat" | "fstat" | "lseek" => bytes.len().to_string(),
            "open" | "read" | "mmap" => format!("b'{}'", first.replace('\n', "\\n")),
            "readdir" => "['inside']".into(),
            "readlink" => format!("target-{number}"),
            "getxattr" => "b'value'".into(),
            _ => {
                let done = run(program("stat", ["-f", "-c", "%l"]).arg(home)).ok();
                done.out().trim().to_owned()
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Some healthy machines and some bad ones, mounted.
struct Scene {
    bad: Vec<String>,
    disks: Vec<Disk>,
    /// Dropped before the disks and the machines.
    readers: Vec<Reader>,
    mounted: Mounted,
    fixture: Fixture,
    /// Words before a command of the user whose mount it is.
    user: &'static [&'static str],
}

const HEALTHY: [&str; 2] = ["good", "well"];
const READERS: usize = 64;
const PLAIN: u32 = 65534;
const AS_PLAIN: &[&str] = &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];

impl Scene {
    fn new(bad: usize, options: &[&str], user: &'static [&'static str]) -> Self {
        let fixture = Fixture::new();
        for name in HEALTHY {
            machine(&fixture, name, 4);
        }
        let bad: Vec<_> = (0..bad).map(|number| format!("bad{number}")).collect();
        let per_machine = READERS.div_ceil(bad.len());
        let mut disks = Vec::new();
        for name in &bad {
            let place = machine(&fixture, name, READERS.max(per_machine));
            if !user.is_empty() {
                run(program("chown", ["-R", "65534:65534"]).arg(fixture.path())).ok();
            }
            disks.extend([Disk::over(&place.rootfs), Disk::over(&place.home)]);
        }
        let log = fixture.path().join("log");
        let mut command = fixture.command(["mount", "--foreground"]);
        command.args(options);
        if let Some((first, rest)) = user.split_first() {
            // As udev makes it.
            fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).unwrap();
            chown(fixture.path(), Some(PLAIN), Some(PLAIN)).unwrap();
            let mut plain = program(first, rest);
            plain.arg(command.get_program()).args(command.get_args());
            command = plain;
        }
        let mounted = match user {
            [] => Mounted::of(command, fixture.mount_point(), log),
            // Nobody else gets in.
            _ => Mounted::unseen(command, fixture.mount_point(), log),
        };
        Self { bad, disks, readers: Vec::new(), mounted, fixture, user }
    }

    /// A command of the user whose mount it is.
    fn command(&self, name: &str) -> Command {
        match self.user.split_first() {
            Some((first, rest)) => program(first, rest.iter().chain([&name])),
            None => program(name, std::iter::empty::<&str>()),
        }
    }

    #[track_caller]
    fn run<S: AsRef<OsStr>>(&self, name: &str, args: impl IntoIterator<Item = S>) -> Done {
        run(self.command(name).args(args))
    }

    /// The process that answers the kernel.
    fn server(&self) -> u32 {
        if self.user.is_empty() { self.mounted.server() } else { self.mounted.host() }
    }

    /// Starts the readers, stops the disks, and has the readers make their calls.
    fn get_stuck(&mut self) {
        // A machine that nobody has ever seen is an error after a while.
        for machine in &self.bad {
            self.run("ls", [self.mounted.rootfs(machine)]).ok();
        }
        for number in 0..READERS {
            let machine = &self.bad[number % self.bad.len()];
            let top = ["srv", "home/codchi"][number / CALLS.len() % 2];
            let top = self.mounted.rootfs(machine).join(top);
            self.readers.push(Reader::new(self.user, &top, number));
        }
        self.readers.iter_mut().for_each(Reader::is_ready);
        self.disks.iter().for_each(Disk::stop);
        self.readers.iter_mut().for_each(Reader::begin);
    }

    fn all_wait(&mut self) {
        for reader in &mut self.readers {
            assert!(reader.waits(), "{} {} has ended", reader.call, reader.number);
        }
    }

    /// Programs that read healthy machines end, and get what is there.
    fn healthy_ones_are_read(&self, round: &str) {
        let names: Vec<_> =
            HEALTHY.into_iter().map(str::to_owned).chain(self.bad.clone()).collect();
        let listed = self.run("ls", [self.mounted.point()]).ok().out();
        let mut listed: Vec<_> = listed.lines().map(str::to_owned).collect();
        listed.sort();
        let mut names = names;
        names.sort();
        assert_eq!(listed, names);
        for name in HEALTHY {
            let place = self.fixture.place(name);
            // Something that nobody has looked at.
            fs::write(place.home.join(format!("new-{round}")), round).unwrap();
            let (root, tar) = (self.mounted.rootfs(name), self.mounted.tar(name));
            self.run("ls", [OsStr::new("-lR"), root.as_os_str()]).ok();
            self.run("stat", [&tar]).ok();
            let copy = self.fixture.path().join(format!("{name}-{round}.tar"));
            // The archive may be some seconds old.
            wait_until("a copy with the new file", || {
                fs::write(&copy, self.run("cat", [&tar]).ok().stdout).unwrap();
                self.fixture.run(["verify", name, copy.to_str().unwrap()]).code == Some(0)
            });
            let found =
                self.run("find", [root.as_os_str(), OsStr::new("-name"), OsStr::new("new-*")]).ok();
            assert!(found.out().contains(&format!("new-{round}")), "{}", found.out());
            let to = self.fixture.scratch(&format!("{name}-{round}"));
            if !self.user.is_empty() {
                chown(&to, Some(PLAIN), Some(PLAIN)).unwrap();
            }
            self.run(
                "rsync",
                [OsStr::new("-aX"), root.join("home/codchi").as_os_str(), to.as_os_str()],
            )
            .ok();
            run(program("diff", ["-r", "--no-dereference"]).args([&to.join("codchi"), &place.home])).silent();
            for text in ["report.json", "MIGRATE.md", ".transfers"] {
                self.run("cat", [self.mounted.point().join(name).join(text)]).ok();
            }
        }
    }

    /// What the server takes while it waits.
    fn is_bounded(&self) {
        let (threads, memory) = (threads(self.server()).len(), resident(self.server()) >> 10);
        assert!(threads < 300, "{threads} threads");
        assert!(memory < 150, "{memory} MiB of memory");
    }

    /// Kills all readers; those that are killed first are gone before the others are.
    fn kill_readers(&mut self) {
        let half = self.readers.len() / 2;
        let mut first: Vec<_> = self.readers.drain(..half).collect();
        first.iter_mut().for_each(|reader| reader.child.kill().unwrap());
        first.iter_mut().for_each(Reader::is_gone_or_behind_another);
        self.all_wait();
        let mut rest: Vec<_> = self.readers.drain(..).collect();
        rest.iter_mut().for_each(|reader| reader.child.kill().unwrap());
        first.iter_mut().chain(&mut rest).for_each(Reader::is_gone);
    }

    fn unmount(&self, words: &[&str]) {
        let point = self.mounted.point().to_str().unwrap().to_owned();
        let codchifs = env!("CARGO_BIN_EXE_codchifs");
        self.run(codchifs, ["unmount"].iter().chain(words).copied().chain([&*point])).silent();
    }
}

/// Root with a host and passthrough or without, and a plain user.
const WAYS: [(&[&str], &[&str]); 3] = [(&[], &[]), (&["--passthrough=no"], &[]), (&[], AS_PLAIN)];

#[test]
fn a_machine_whose_disk_does_not_answer_costs_the_others_nothing() {
    if runs_unseen("a_machine_whose_disk_does_not_answer_costs_the_others_nothing") {
        return;
    }
    for (options, user) in WAYS {
        let mut scene = Scene::new(1, options, user);
        scene.healthy_ones_are_read("before");
        let threads_before = threads(scene.server()).len();
        scene.get_stuck();
        scene.healthy_ones_are_read("meanwhile");
        scene.all_wait();
        scene.is_bounded();
        // All is right when it answers again.
        scene.disks.iter().for_each(Disk::go_on);
        let home = scene.fixture.place("bad0").home;
        for reader in std::mem::take(&mut scene.readers) {
            let (what, expected) =
                (format!("{} {}", reader.call, reader.number), reader.expected(&home));
            assert_eq!(reader.result(), expected, "{what}");
        }
        let shown = scene.mounted.rootfs("bad0").join("home/codchi");
        let diff = ["-r", "--no-dereference", shown.to_str().unwrap(), home.to_str().unwrap()];
        scene.run("diff", diff).silent();
        wait_until("the end of the threads", || threads(scene.server()).len() <= threads_before);
        scene.unmount(&[]);
        assert!(scene.mounted.wait().success(), "{}", scene.mounted.log());
    }
}

#[test]
fn many_bad_machines_cost_the_others_nothing() {
    if runs_unseen("many_bad_machines_cost_the_others_nothing") {
        return;
    }
    for machines in [5, 20] {
        let mut scene = Scene::new(machines, &["--passthrough=no"], &[]);
        scene.get_stuck();
        scene.healthy_ones_are_read("meanwhile");
        scene.all_wait();
        scene.is_bounded();
        scene.kill_readers();
        scene.unmount(&[]);
        assert!(scene.mounted.wait().success(), "{}", scene.mounted.log());
    }
}

#[test]
fn whoever_waits_for_a_disk_can_be_killed_and_the_mount_ends() {
    if runs_unseen("whoever_waits_for_a_disk_can_be_killed_and_the_mount_ends") {
        return;
    }
    for (options, user) in WAYS {
        for words in [&[][..], &["--lazy"]] {
            let mut scene = Scene::new(1, options, user);
            scene.get_stuck();
            scene.healthy_ones_are_read("meanwhile");
            if words.is_empty() {
                scene.kill_readers();
                scene.unmount(words);
            } else {
                scene.unmount(words);
                scene.all_wait();
                scene.kill_readers();
            }
            assert!(mounts_on(scene.mounted.point()).is_empty());
            // Although the disk never answers. (A process that has files open on it waits for it at its very end.)
            let host = scene.mounted.host();
            wait_until("the end of the mount", || !is_alive(host));
            scene.disks.iter().for_each(Disk::go_on);
            assert!(scene.mounted.wait().success(), "{}", scene.mounted.log());
        }
    }
}

#[test]
fn a_server_or_a_host_that_is_killed_lets_everybody_go() {
    if runs_unseen("a_server_or_a_host_that_is_killed_lets_everybody_go") {
        return;
    }
    for (options, user) in WAYS {
        for host in [false, true] {
            if host && !user.is_empty() {
                continue;
            }
            let mut scene = Scene::new(1, options, user);
            scene.get_stuck();
            scene.healthy_ones_are_read("meanwhile");
            let (host_pid, server) = (scene.mounted.host(), scene.server());
            kill(if host { host_pid } else { server }, Signal::KILL);
            // A process that ends closes its files first, and waits for their disks. The host ends the connection meanwhile; where
            // it is gone itself, or there is none, nobody can.
            if host || !user.is_empty() {
                scene.disks.iter().for_each(Disk::go_on);
            }
            for mut reader in scene.readers.drain(..) {
                // What the kernel reads from the disk by itself waits for the disk.
                if options.is_empty() && user.is_empty() {
                    let _ = reader.child.kill();
                }
                reader.is_gone();
            }
            scene.mounted.wait();
            scene.disks.iter().for_each(Disk::go_on);
            wait_until("the end of the server", || !is_alive(server));
            let point = scene.mounted.point().to_owned();
            let found = within("a look", move || fs::read_dir(point).map(|dir| dir.count()));
            assert!(found.is_err() || found.unwrap() == 0);
        }
    }
}

/// What is told of a file waits for who reads it, and that one for the server.
#[test]
fn a_server_that_is_killed_while_the_kernel_is_told_something_ends() {
    if runs_unseen("a_server_that_is_killed_while_the_kernel_is_told_something_ends") {
        return;
    }
    let fixture = Fixture::new();
    let home = fixture.empty("m").home;
    fs::File::create(home.join("endless")).unwrap().set_len(8 << 40).unwrap();
    fs::write(home.join("small"), "small").unwrap();
    let mut mounted = Mounted::new(&fixture);
    let list = mounted.point().join("m/manifest.mtree");
    let open = fs::File::open(&list).unwrap();
    let mut reader =
        program("cat", [&list]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let server = mounted.server();
    let names = || {
        threads(server).into_iter().filter_map(move |thread| {
            fs::read_to_string(format!("/proc/{server}/task/{thread}/comm")).ok()
        })
    };
    wait_until("the work", || names().any(|name| name == "codchifs-slow\n"));
    let mut tar = fs::File::open(mounted.tar("m")).unwrap();
    fs::write(home.join("small"), "less").unwrap();
    within("the archive", move || std::io::copy(&mut tar, &mut std::io::sink())).unwrap_err();
    drop(open);
    kill(server, Signal::KILL);
    wait_until("the end of the reader", || reader.try_wait().unwrap().is_some());
    wait_until("the end of the server", || !is_alive(server));
    mounted.wait();
    assert!(mounts_on(mounted.point()).is_empty());
}

#[test]
fn a_machine_whose_disk_does_not_answer_says_so() {
    if runs_unseen("a_machine_whose_disk_does_not_answer_says_so") {
        return;
    }
    for user in [&[][..], AS_PLAIN] {
        let mut scene = Scene::new(1, &[], user);
        scene.healthy_ones_are_read("before");
        let report = scene.mounted.point().join("bad0/report.json");
        let state = || {
            let text = scene.run("cat", [&report]).ok().out();
            let report: serde_json::Value = serde_json::from_str(&text).unwrap();
            (report["state"].as_str().unwrap().to_owned(), report["reason"].to_string())
        };
        assert_eq!(state().0, "ready");
        scene.disks.iter().for_each(Disk::stop);
        wait_until("a report that says so", || {
            let (state, reason) = state();
            state == "broken" && reason.contains("has not answered since")
        });
        let guide = scene.run("cat", [report.with_file_name("MIGRATE.md")]).ok().out();
        assert!(guide.contains("has not answered since"), "{guide}");
        scene.disks.iter().for_each(Disk::go_on);
        wait_until("a report of a machine that is well", || state().0 == "ready");
        scene.readers.clear();
    }
}
