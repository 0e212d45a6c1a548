//! Machines, hosts and users that race the readers: links, directories and mounts that change places all the time. Whatever
//! is read, no byte of it comes from outside of the machine.
//!
//! `ESCAPE_SECONDS` is how long each of them lasts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::{Fixture, Maker};
use common::lxd::{Host, UID};
use common::mounted::Mounted;
use common::played::played;
use common::{contains, program, run};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{lchown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const MARKER: &[u8] = b"MARKER-OUTSIDE-OF-THE-MACHINE";

/// How often what breaks a whole machine is tried: nothing would be read otherwise.
const SELDOM: Duration = Duration::from_millis(50);

fn lasts() -> Duration {
    let seconds = std::env::var("ESCAPE_SECONDS").map_or(6, |seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds)
}

/// Threads that change something over and over until they are ended.
#[derive(Default)]
struct Races {
    stop: Arc<AtomicBool>,
    layers: Vec<File>,
    threads: Vec<(String, JoinHandle<u64>)>,
}

impl Races {
    fn add(&mut self, what: impl Into<String>, mut once: impl FnMut() + Send + 'static) {
        let stop = Arc::clone(&self.stop);
        let thread = std::thread::spawn(move || {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                once();
                rounds += 1;
                // The readers share the processors with them.
                std::thread::yield_now();
            }
            rounds
        });
        self.threads.push((what.into(), thread));
    }

    /// A path to a directory that leads there whatever its name is meanwhile.
    fn layer(&mut self, path: &Path) -> PathBuf {
        let directory = File::open(path).unwrap();
        let steady = format!("/proc/self/fd/{}", directory.as_raw_fd());
        self.layers.push(directory);
        steady.into()
    }

    /// Two entries that are there change places.
    fn exchange(&mut self, one: &Path, two: &Path) {
        self.exchange_every(Duration::ZERO, one, two);
    }

    /// They change places; with a `pause`, they are back before it.
    fn exchange_every(&mut self, pause: Duration, one: &Path, two: &Path) {
        // Directories above them may be away as well.
        let [from, to] = [one, two]
            .map(|path| self.layer(path.parent().unwrap()).join(path.file_name().unwrap()));
        self.add(format!("{} <-> {}", one.display(), two.display()), move || {
            for _ in 0..if pause.is_zero() { 1 } else { 2 } {
                renameat_with(CWD, &from, CWD, &to, RenameFlags::EXCHANGE).unwrap();
            }
            std::thread::park_timeout(pause);
        });
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for (what, thread) in self.threads {
            let rounds = thread.join().unwrap();
            assert!(rounds > 20, "{what}: only {rounds} rounds, nothing was tried");
        }
    }
}

/// Calls `look` until the time is up; what it returns is searched. Ends `races` in any case.
fn read_during(inside: &str, races: Races, look: impl Fn(u64, &mut dyn FnMut(&str, &[u8]))) {
    let end = Instant::now() + lasts();
    let (mut seen, mut round) = (0, 0);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        while Instant::now() < end {
            look(round, &mut |what, read| {
                seen += u64::from(contains(read, inside.as_bytes()));
                assert!(!contains(read, MARKER), "round {round}: {what} has the marker");
            });
            round += 1;
        }
    }));
    races.end();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
    assert!(seen > 5, "in {round} rounds nothing was read");
}

/// Directories outside with the shape of those inside, and the marker in each file and name.
fn plant_outside(top: &Path) {
    for directory in ["", "deeper", "deeper/still", "srv", "srv/a", "srv/a/deeper"] {
        fs::create_dir_all(top.join(directory)).unwrap();
        for file in ["file", "other", "config.json", "flake.lock", "flake.nix"] {
            fs::write(top.join(directory).join(file), MARKER).unwrap();
        }
        let name = String::from_utf8(MARKER.to_vec()).unwrap();
        fs::write(top.join(directory).join(name), MARKER).unwrap();
    }
}

/// Everything below `top` that can be read: the names as well.
fn read_tree(top: &Path, read: &mut dyn FnMut(&str, &[u8])) {
    let mut left = vec![top.to_path_buf()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            read("a name", path.as_os_str().as_encoded_bytes());
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => left.push(path),
                Ok(kind) if kind.is_file() => {
                    read(&path.display().to_string(), &fs::read(&path).unwrap_or_default());
                }
                _ => {}
            }
        }
    }
}

/// What the machine does to itself, in the rootfs and in the home.
fn machine_races(races: &mut Races, layer: &Path, outside: &Path) {
    let maker = Maker::new(layer);
    for number in 0..30 {
        maker.file(&format!("srv/a/deeper/still/file-{number}"), b"inside\n");
        maker.file(&format!("srv/b/deeper/still/file-{number}"), b"inside\n");
    }
    for directory in
        ["srv/a", "srv/a/deeper", "srv/b", "srv/b/deeper", "srv/c", "srv/mounted", "srv/over"]
    {
        for file in ["file", "other"] {
            maker.file(&format!("{directory}/{file}"), b"inside\n");
        }
    }
    let at = |path: &str| layer.join(path);
    let link = |path: &str, target: &Path| symlink(target, at(path)).unwrap();
    link("srv/link-to-directory", outside);
    link("srv/link-up", Path::new("../../../../../../../../../../"));
    link("srv/link-to-file", &outside.join("file"));
    link("srv/link-to-deeper", &outside.join("deeper"));
    races.exchange(&at("srv/a"), &at("srv/link-to-directory"));
    races.exchange(&at("srv/b/deeper"), &at("srv/link-to-deeper"));
    races.exchange(&at("srv/b"), &at("srv/c"));
    races.exchange(&at("srv/c/other"), &at("srv/link-to-file"));
    // Out of the machine and back, while somebody is in it: what is above it is not the machine's.
    let (inside, away) = (at("srv/over"), outside.join("away"));
    races.add("a directory that leaves and comes back", move || {
        let _ = fs::rename(&inside, &away);
        let _ = fs::rename(&away, &inside);
    });
}

/// What the host mounts over places of the machine.
fn host_races(races: &mut Races, layer: &Path, outside: &Path) {
    let (point, from) = (layer.join("srv/mounted"), outside.to_owned());
    races.add("a bind mount", move || {
        mount_bind(&from, &point).unwrap();
        unmount(&point, UnmountFlags::DETACH).unwrap();
    });
    let (point, from) = (layer.join("srv/mounted-file"), outside.join("file"));
    fs::write(&point, "inside\n").unwrap();
    races.add("a bind mount of a file", move || {
        mount_bind(&from, &point).unwrap();
        unmount(&point, UnmountFlags::DETACH).unwrap();
    });
    let point = layer.join("srv/tmpfs");
    fs::create_dir(&point).unwrap();
    fs::write(point.join("file"), "inside\n").unwrap();
    races.add("a tmpfs", move || {
        mount("none", &point, "tmpfs", MountFlags::empty(), None).unwrap();
        fs::write(point.join("file"), MARKER).unwrap();
        unmount(&point, UnmountFlags::DETACH).unwrap();
    });
}

/// A machine whose rootfs and home race, and one that is left alone.
fn racing() -> (Fixture, Races) {
    let fixture = Fixture::new();
    let place = fixture.empty("m");
    fixture.sample("calm");
    let mut races = Races::default();
    for (name, layer) in [("rootfs", &place.rootfs), ("home", &place.home)] {
        let (layer, outside) = (races.layer(layer), fixture.outside().join(name));
        plant_outside(&outside);
        machine_races(&mut races, &layer, &outside);
        host_races(&mut races, &layer, &outside);
    }
    // The machine's directories themselves, as the host's admin may do it.
    for (path, link) in [(place.rootfs, "rootfs-link"), (place.home, "home-link")] {
        let link = fixture.path().join(link);
        symlink(fixture.outside(), &link).unwrap();
        races.exchange_every(SELDOM, &path, &link);
    }
    (fixture, races)
}

#[test]
fn an_export_holds_no_byte_from_outside() {
    let (fixture, races) = racing();
    read_during("inside\n", races, |_, read| {
        let done = fixture.run(["export", "m", "-q", "-o", "-"]);
        assert!(matches!(done.code, Some(0 | 1)), "{:?} {}", done.code, done.err());
        read("the export", &done.stdout);
        read("what it says", &done.stderr);
        read("the other", &fixture.run(["export", "calm", "-q", "-o", "-"]).ok().stdout);
    });
}

#[test]
fn a_mount_shows_no_byte_from_outside() {
    let (fixture, races) = racing();
    let mounted = Mounted::new(&fixture);
    let copies = fixture.scratch("copies");
    let rootfs = mounted.rootfs("m");
    // cp goes by paths, and would follow a link that has taken the place of a directory by itself.
    run(program("mount", ["-o", "remount,bind,ro,nosuid,nodev,nosymfollow"]).arg(mounted.point()))
        .silent();
    let direct = |read: &mut dyn FnMut(&str, &[u8])| {
        for layer in ["", "home/codchi"] {
            for name in [
                "a",
                "a/deeper",
                "b/deeper",
                "c",
                "mounted",
                "tmpfs",
                "over",
                "",
                "link-to-directory",
            ] {
                for file in ["file", "other", "mounted-file", "deeper/still/file-7", "link-to-file"]
                {
                    let path = rootfs.join(layer).join("srv").join(name).join(file);
                    read(&path.display().to_string(), &fs::read(&path).unwrap_or_default());
                }
            }
        }
    };
    read_during("inside\n", races, |round, read| {
        let copy = copies.join(round.to_string());
        fs::create_dir(&copy).unwrap();
        run(program("cp", [mounted.tar("m"), copy.join("m.tar")]));
        read("export.tar", &fs::read(copy.join("m.tar")).unwrap_or_default());
        run(program("cp", ["-a"]).arg(&rootfs).arg(copy.join("rootfs")));
        read_tree(&copy.join("rootfs"), read);
        direct(read);
        read("report.json", &fs::read(mounted.point().join("m/report.json")).unwrap_or_default());
        read("the other", &fs::read(mounted.tar("calm")).unwrap());
        fs::remove_dir_all(&copy).unwrap();
    });
    assert!(!contains(mounted.log().as_bytes(), MARKER));
}

/// A link of the user's beside `place`, to root's counterpart of it.
fn users_link(host: &Host, place: &Path, target: &Path, races: &mut Races) {
    let link: PathBuf =
        place.with_file_name(format!("{}-link", place.file_name().unwrap().to_str().unwrap()));
    symlink(target, &link).unwrap();
    lchown(&link, Some(UID), Some(UID)).unwrap();
    races.exchange_every(SELDOM, place, &link);
    assert!(link.starts_with(host.path()));
}

#[test]
fn a_users_state_that_changes_places_with_links_gives_nothing_that_is_not_the_users() {
    let host = played();
    let secret = tempfile::Builder::new().prefix("secret-").tempdir_in("/root").unwrap();
    plant_outside(secret.path());
    plant_outside(&secret.path().join("machine/demo"));
    let mut races = Races::default();
    let config = host.config().join("machine/demo");
    let demo = secret.path().join("machine/demo");
    users_link(&host, &config.join("config.json"), &demo.join("config.json"), &mut races);
    let lock = r#"{"nodes":{"root":{}},"root":"root","version":7}"#;
    for (file, text) in [("flake.lock", lock), ("flake.nix", "{ }")] {
        fs::write(config.join(file), text).unwrap();
        users_link(&host, &config.join(file), &demo.join(file), &mut races);
    }
    users_link(&host, &config, &demo, &mut races);
    users_link(&host, &host.home("demo"), &demo, &mut races);
    users_link(&host, &host.data().join("machine"), &secret.path().join("machine"), &mut races);
    users_link(&host, &host.config(), secret.path(), &mut races);
    let mounted = host.mount("mnt");
    let shadow = fs::read_to_string("/etc/shadow").unwrap();
    let shadow = shadow.lines().next().unwrap().to_owned();
    read_during("a service's\n", races, |_, read| {
        for args in [&["list"][..], &["export", "demo", "-q", "-o", "-"]] {
            let done = host.run(args);
            read("stdout", &done.stdout);
            read("stderr", &done.stderr);
            assert!(!contains(&done.stdout, shadow.as_bytes()));
        }
        for _ in 0..10 {
            read_tree(mounted.point(), read);
        }
    });
    assert!(!contains(mounted.log().as_bytes(), MARKER));
}
