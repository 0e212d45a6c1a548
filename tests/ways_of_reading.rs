//! Whatever is under the mount has the same bytes and the same end by every way that Linux has for reading a file.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::{Fixture, Maker};
use common::mounted::Mounted;
use common::reading::{BLOCKS, Reading, WAYS};
use common::{npm, program, run, wait_until};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes without a pattern that a block in a wrong place could match.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2) | 1;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 33) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// A machine with files around the sizes where something changes: pages, blocks that are read ahead, passthrough.
fn machine(fixture: &Fixture) -> Vec<(String, Vec<u8>)> {
    let place = fixture.configured(
        "m",
        r#"{"modules":{"a":"https://example.org/a?#x"},"secrets":{"TOKEN":"PlantedSecret"}}"#,
    );
    let home = Maker::new(&place.home);
    let sizes = [0, 1, 4095, 4096, 4097, 131_071, 131_072, 131_073, 1 << 20, (3 << 20) + 777];
    let files: Vec<_> =
        sizes.iter().map(|size| (format!("f{size}"), noise(*size as u64 + 1, *size))).collect();
    for (name, content) in &files {
        home.file(name, content);
    }
    home.own("f1", 71, 71).holes("holes", (2 << 20) + 5);
    files
}

/// Every file that a mount has for a machine, with the bytes that it must have.
fn all_files(fixture: &Fixture, mounted: &Mounted) -> Vec<(PathBuf, Vec<u8>)> {
    let top = mounted.point().join("m");
    let archive = fixture.path().join("reference.tar");
    run(fixture.command(["export", "-q", "m", "-o"]).arg(&archive)).ok();
    let archive = fs::read(archive).unwrap();
    let size = fs::metadata(top.join("export.tar")).unwrap().len();
    assert_eq!(size, archive.len() as u64);
    let id = mounted.report("m")["generation"]["id"].as_str().unwrap().to_owned();
    let list = run(fixture.command(["manifest", "m"])).ok().stdout;
    let mut files = vec![
        (top.join("export.tar"), archive.clone()),
        (top.join(".generations").join(id).join("export.tar"), archive),
        (top.join("manifest.mtree"), list),
    ];
    // What there is no other source for, by the way that every program has.
    for name in ["report.json", "MIGRATE.md", ".transfers"] {
        files.push((top.join(name), fs::read(top.join(name)).unwrap()));
    }
    let etc = top.join("rootfs/etc");
    for name in ["nixos/flake.nix", "nixos/codchi-owners", "codchi-env"] {
        files.push((etc.join(name), fs::read(etc.join(name)).unwrap()));
    }
    let home = top.join("rootfs/home/codchi");
    for entry in fs::read_dir(fixture.place("m").home).unwrap() {
        let entry = entry.unwrap();
        files.push((home.join(entry.file_name()), fs::read(entry.path()).unwrap()));
    }
    files
}

#[test]
fn every_way_of_reading_gives_the_same_bytes_and_the_same_end() {
    let fixture = Fixture::new();
    machine(&fixture);
    for options in [&[][..], &["--passthrough=no"]] {
        let mounted = Mounted::with(&fixture, options);
        let reading = Reading::new(fixture.path());
        let mut files = all_files(&fixture, &mounted);
        assert!(files.len() > 15);
        // Only large files of the tree are read otherwise then.
        files.retain(|(path, bytes)| {
            options.is_empty() || path.starts_with(mounted.rootfs("m")) && bytes.len() > 100_000
        });
        for (at, (path, expected)) in files.iter().enumerate() {
            for (number, way) in WAYS.iter().enumerate() {
                // Millions of calls say nothing more.
                let blocks = BLOCKS.iter().filter(|block| expected.len() / **block < 20_000);
                // Each way meets each size, of some file of each kind.
                for block in blocks.cycle().skip(at + number).step_by(2).take(2) {
                    let (done, copy) = reading.copy(way, *block, path);
                    let what = format!("{way} in blocks of {block}: {}", path.display());
                    assert_eq!(done.code, Some(0), "{what}: {}", done.err());
                    if copy != *expected && is_text(path) {
                        // It has another one when a scan ends.
                        assert_eq!(copy, fs::read(path).unwrap(), "{what}");
                        continue;
                    }
                    assert_eq!(copy.len(), expected.len(), "{what}: another end");
                    assert!(copy == *expected, "{what}: other bytes");
                }
            }
        }
    }
}

/// Whether a file may have another content at any time.
fn is_text(path: &Path) -> bool {
    ["report.json", "MIGRATE.md", ".transfers"].iter().any(|name| path.ends_with(name))
}

#[test]
fn readers_in_all_ways_at_once_get_the_same_bytes() {
    let fixture = Fixture::new();
    machine(&fixture);
    let mounted = Mounted::new(&fixture);
    let mut files = all_files(&fixture, &mounted);
    files.retain(|(path, _)| !is_text(path));
    let reading = Reading::new(fixture.path());
    let source = fixture.place("m").home;
    std::thread::scope(|scope| {
        for (number, ways) in WAYS.chunks(WAYS.len().div_ceil(8)).enumerate() {
            let (files, reading, source) = (&files, &reading, &source);
            scope.spawn(move || {
                for (at, way) in ways.iter().enumerate() {
                    for (path, expected) in files {
                        let block = [4095, 65_536, 1_000_003][(number + at) % 3];
                        let (done, copy) = reading.copy(way, block, path);
                        let what = format!("{way} in blocks of {block}: {}", path.display());
                        if done.code == Some(0) {
                            assert!(copy == *expected, "{what}: other bytes");
                            continue;
                        }
                        // A large file of the machine that others have open is read by the kernel from the disk itself: what
                        // O_DIRECT refuses there it refuses here.
                        assert!(way.starts_with("direct-"), "{what}: {}", done.err());
                        let (native, _) =
                            reading.copy(way, block, &source.join(path.file_name().unwrap()));
                        assert_eq!(done.err(), native.err(), "{what}");
                    }
                }
            });
        }
    });
}

/// Whoever met the tear: each way has an archive open that another reader finds torn, and gets an error for it.
#[test]
fn every_way_of_reading_is_told_that_an_archive_is_torn() {
    let fixture = Fixture::new();
    let home = fixture.empty("m").home;
    // The first is more than what is read ahead of a reader.
    for (name, content) in
        [("a", noise(1, 6 << 20)), ("m", noise(2, 900_000)), ("z", noise(3, 70_001))]
    {
        Maker::new(&home).file(name, &content);
    }
    let reading = Reading::new(fixture.path());
    for met_by_itself in [true, false] {
        let place = home.join("m");
        fs::write(&place, noise(4 + u64::from(met_by_itself), 900_000)).unwrap();
        let mounted = Mounted::new(&fixture);
        let tar = mounted.tar("m");
        let mut whole = Vec::new();
        for (number, way) in WAYS.iter().enumerate() {
            // Of the last torn one nothing is left.
            fs::write(&place, noise(100 + number as u64, 900_000)).unwrap();
            wait_until("an archive of the whole machine", || {
                fs::metadata(&tar).unwrap().len() > 7_200_000
            });
            let (open, other) = (File::open(&tar).unwrap(), File::open(&tar).unwrap());
            let size = open.metadata().unwrap().len();
            let last_page = size - 4096;
            whole.resize(size as usize, 0);
            if !met_by_itself {
                other.read_exact_at(&mut whole, 0).unwrap();
            }
            File::options().write(true).open(&place).unwrap().set_len(1000).unwrap();
            if !met_by_itself {
                let mut buffer = vec![0; 1 << 20];
                let fresh = File::open(&tar).unwrap();
                assert_eq!(fresh.metadata().unwrap().ino(), open.metadata().unwrap().ino());
                // Past the cache, where everything is already.
                rustix::fs::fcntl_setfl(&fresh, rustix::fs::OFlags::DIRECT).unwrap();
                let mut at = 0;
                while let Ok(count @ 1..) = fresh.read_at(&mut buffer, at) {
                    at += count as u64;
                }
                wait_until("the last page is refused", || {
                    other.read_at(&mut [0; 4096], last_page).is_err()
                });
            }
            // For populating a mapping the kernel tries a page that cannot be read without end, on any file system.
            let way = way.replace("-populate", "");
            let (done, copy) = reading.copy_open(&way, 65_536, open);
            assert_eq!(done.code, Some(1), "{way} took a torn archive for whole");
            assert!(done.err().contains("Input/output error"), "{way}: {}", done.err());
            assert!(copy.len() as u64 <= size, "{way}");
            let changed = &mounted.report("m");
            assert!(changed.to_string().contains("shrank"), "{way}: {changed}");
            drop(other);
        }
        mounted.unmount();
    }
}

/// The texts change under their readers: whoever has one open has that one to its end, and whoever opens one has the new one.
#[test]
fn a_text_that_changes_is_read_whole_in_every_way() {
    let fixture = Fixture::new();
    let home = fixture.empty("m").home;
    let mounted = Mounted::new(&fixture);
    let reading = Reading::new(fixture.path());
    let top = mounted.point().join("m");
    let tar = top.join("export.tar");
    fs::metadata(&tar).unwrap();
    // Each text needs a scan.
    for (number, way) in WAYS.iter().step_by(4).enumerate() {
        for name in ["report.json", "MIGRATE.md"] {
            let path = top.join(name);
            let before = fs::read(&path).unwrap();
            let (open, part) = (File::open(&path).unwrap(), File::open(&path).unwrap());
            // What the kernel has of it is not to be mixed with the next one.
            part.read_exact_at(&mut [0; 100], 0).unwrap();
            let socket = format!("{}-{number}", "s".repeat(60 + number));
            Maker::new(&home).socket(&socket);
            Maker::new(&home).file(&format!("{name}-{number}"), &noise(1, 5000 * (number + 1)));
            wait_until("another text", || {
                fs::metadata(&tar).unwrap();
                fs::read(&path).unwrap() != before
            });
            let after = fs::read(&path).unwrap();
            assert_eq!(open.metadata().unwrap().len(), before.len() as u64);
            let (done, copy) = reading.copy_open(way, 1000, open);
            assert_eq!(done.code, Some(0), "{way}: {}", done.err());
            assert!(copy == before, "{way}: what was open is not what it was");
            let (done, copy) = reading.copy(way, 1000, &path);
            assert_eq!(done.code, Some(0), "{way}: {}", done.err());
            // A scan may have ended meanwhile.
            let later = fs::read(&path).unwrap();
            assert!(copy == after || copy == later, "{way}: neither text");
        }
    }
}

/// `.transfers` is another text at each look.
#[test]
fn transfers_are_whole_while_they_change() {
    let fixture = Fixture::new();
    machine(&fixture);
    let mounted = Mounted::new(&fixture);
    let reading = Reading::new(fixture.path());
    let path = mounted.point().join("m/.transfers");
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut open = Vec::new();
                while !ended.load(Ordering::SeqCst) {
                    open.push(File::open(mounted.tar("m")).unwrap());
                    open.last().unwrap().read_at(&mut [0; 4096], 0).unwrap();
                    if open.len() > 5 {
                        open.clear();
                    }
                }
            });
        }
        let work: Vec<_> = WAYS
            .chunks(WAYS.len().div_ceil(3))
            .map(|ways| {
                let (reading, path) = (&reading, &path);
                scope.spawn(move || {
                    for way in ways {
                        for block in [7, 4096] {
                            let (done, copy) = reading.copy(way, block, path);
                            assert_eq!(done.code, Some(0), "{way}: {}", done.err());
                            let all = serde_json::from_slice::<serde_json::Value>(&copy);
                            let all = all.unwrap_or_else(|error| {
                                panic!("{way}: {error}: {}", String::from_utf8_lossy(&copy))
                            });
                            assert!(all["transfers"].is_array(), "{way}");
                        }
                    }
                })
            })
            .collect();
        let results: Vec<_> = work.into_iter().map(|thread| thread.join()).collect();
        ended.store(true, Ordering::SeqCst);
        results.into_iter().for_each(|result| result.unwrap());
    });
}

/// A file of the machine that has another size than the kernel was told a moment ago.
#[test]
fn a_file_that_has_just_changed_its_size_is_read_to_its_end() {
    let fixture = Fixture::new();
    let home = fixture.empty("m").home;
    let file = home.join("log");
    for options in [&[][..], &["--passthrough=no"]] {
        fs::write(&file, b"").unwrap();
        let mounted = Mounted::with(&fixture, options);
        let reading = Reading::new(fixture.path());
        let seen = mounted.rootfs("m").join("home/codchi/log");
        let sizes = [1000, 5000, 4096, 200_000, 100, 300_000, 0, 9000];
        for (number, way) in WAYS.iter().enumerate() {
            let content = noise(number as u64, sizes[number % sizes.len()] + number);
            fs::metadata(&seen).unwrap();
            // Within the second for which the kernel believes what it was told.
            fs::write(&file, &content).unwrap();
            let (done, copy) = reading.copy(way, 4096, &seen);
            assert_eq!(done.code, Some(0), "{way}: {}", done.err());
            assert_eq!(copy.len(), content.len(), "{way} {options:?}: another end");
            assert!(copy == content, "{way}: other bytes");
        }
    }
}

/// With libuv on io_uring (20.9 has it so, later ones where they are told), and without.
#[test]
fn node_reads_what_is_there() {
    let fixture = Fixture::new();
    machine(&fixture);
    let mounted = Mounted::new(&fixture);
    let mut files = all_files(&fixture, &mounted);
    files.retain(|(path, _)| !path.ends_with(".transfers"));
    let list: Vec<_> = files
        .iter()
        .map(|(path, bytes)| {
            // The report has the time of the last scan, and the guide goes with it: each read may meet another text.
            let text = path.ends_with("report.json") || path.ends_with("MIGRATE.md");
            let sum = if text { "-".repeat(64) } else { sha256(bytes) };
            format!("{sum} {}", path.display())
        })
        .collect();
    let list_file = fixture.path().join("list");
    fs::write(&list_file, list.join("\n")).unwrap();
    for version in ["20.9.0", "24.21.0"] {
        let package = format!("node@{version}");
        let node = npm(&package).join("node_modules/node/bin/node");
        let node = node.to_str().unwrap();
        let shown = run(program(node, ["--version"])).ok().out();
        assert_eq!(shown.trim(), format!("v{version}"));
        for uring in ["0", "1"] {
            let mut command = program(node, ["-e", NODE]);
            let done = run(command.arg(&list_file).env("UV_USE_IO_URING", uring)).ok();
            assert_eq!(done.out(), "", "node {version}, io_uring {uring}");
        }
    }
}

/// Prints each way that gives other bytes than the list says, or for a text than it has just before or just after.
const NODE: &str = r#"
const fs = require('fs'), crypto = require('crypto');
const lines = fs.readFileSync(process.argv[1], 'utf8').split('\n');
const hash = (bytes) => crypto.createHash('sha256').update(bytes).digest('hex');
const stream = (path, options) => new Promise((resolve, reject) => {
  const hash = crypto.createHash('sha256');
  let seen = 0;
  fs.createReadStream(path, options).on('error', reject).on('end', () => resolve(hash.digest('hex')))
    .on('data', (part) => {
      hash.update(part);
      if ((seen += part.length) > 1 << 28) reject(new Error('no end'));
    });
});
const ways = {
  readFileSync: async (path) => hash(fs.readFileSync(path)),
  readFile: (path) => new Promise((resolve, reject) =>
    fs.readFile(path, (error, bytes) => error ? reject(error) : resolve(hash(bytes)))),
  promises: async (path) => hash(await fs.promises.readFile(path)),
  stream: (path) => stream(path),
  smallStream: (path) => stream(path, { highWaterMark: 5000 }),
  position: async (path) => {
    const file = await fs.promises.open(path), parts = [];
    for (let sum = 0; sum < 1 << 28;) {
      const { bytesRead, buffer } = await file.read(Buffer.alloc(100001), 0, 100001, null);
      if (!bytesRead) break;
      parts.push(buffer.subarray(0, bytesRead));
      sum += bytesRead;
    }
    await file.close();
    return hash(Buffer.concat(parts));
  },
  copyFile: async (path) => {
    await fs.promises.copyFile(path, process.argv[1] + '.copy');
    return hash(fs.readFileSync(process.argv[1] + '.copy'));
  },
};
(async () => {
  for (const line of lines) {
    const path = line.slice(65), text = line[0] === '-';
    const now = () => text ? hash(fs.readFileSync(path)) : line.slice(0, 64);
    for (const [name, way] of Object.entries(ways)) {
      const before = now(), found = await way(path);
      if (found !== before && found !== now()) console.log(name, path);
    }
    // And all of them at once.
    const before = now();
    const all = await Promise.all(Object.values(ways).slice(0, 6).map((way) => way(path)));
    const after = now();
    if (!all.every((found) => found === before || found === after)) console.log('at once', path);
  }
})();
"#;

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest as _, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// nginx with sendfile(2), with its threads and O_DIRECT, and with read(2).
#[test]
fn a_web_server_sends_what_is_there() {
    let fixture = Fixture::new();
    machine(&fixture);
    let mounted = Mounted::with(&fixture, &["-o", "allow_other"]);
    let files = all_files(&fixture, &mounted);
    for (number, how) in
        ["sendfile on;", "sendfile on; aio threads;", "aio threads; directio 4k;", "sendfile off;"]
            .iter()
            .enumerate()
    {
        let directory = fixture.scratch(&format!("nginx-{number}"));
        let socket = directory.join("socket");
        let config = format!(
            "daemon off; user root; pid {0}/pid; error_log {0}/log; events {{}}\nhttp {{ access_log off; \
             client_body_temp_path {0}/a; proxy_temp_path {0}/b; fastcgi_temp_path {0}/c; uwsgi_temp_path {0}/d; \
             scgi_temp_path {0}/e; {how} server {{ listen unix:{0}/socket; root {1}; }} }}",
            directory.display(),
            mounted.point().display()
        );
        fs::write(directory.join("nginx.conf"), config).unwrap();
        let mut nginx = program("nginx", ["-c"]);
        let child = nginx
            .arg(directory.join("nginx.conf"))
            .stderr(File::create(directory.join("err")).unwrap());
        let _server = Server(child.spawn().unwrap());
        wait_until("nginx", || socket.exists());
        for (path, expected) in &files {
            let url = format!("http://x/{}", path.strip_prefix(mounted.point()).unwrap().display());
            let curl = |more: &[&str]| {
                let mut curl = program("curl", ["-sf", "--unix-socket", socket.to_str().unwrap()]);
                run(curl.args(more).arg(&url)).ok().stdout
            };
            let got = curl(&[]);
            if is_text(path) {
                let whole = got == *expected || got == fs::read(path).unwrap();
                assert!(whole || path.ends_with(".transfers"), "{how} {}", path.display());
                continue;
            }
            assert!(got == *expected, "{how} {}", path.display());
            if expected.len() > 5000 {
                let middle = curl(&["-r", "4000-4999"]);
                assert!(middle == expected[4000..5000], "{how} {}", path.display());
            }
        }
    }
}

/// Ended with the test.
struct Server(std::process::Child);

impl Drop for Server {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}
