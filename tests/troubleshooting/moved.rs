//! What becomes of a copy.

use crate::Case;
use crate::common::asked::Asked;
use crate::common::fixture::Fixture;
use crate::common::mounted::Mounted;
use crate::common::played::played;
use crate::common::{program, run};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

pub(crate) const EXTRACTING: &[Case] = &[
    ("Cannot change ownership", || {
        let copied = Copied::new();
        let to = copied.fixture.scratch("vm");
        fs::set_permissions(copied.fixture.path(), Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&to, Permissions::from_mode(0o777)).unwrap();
        fs::set_permissions(&copied.tar, Permissions::from_mode(0o644)).unwrap();
        let extract = ["--numeric-owner", "--same-owner", "-xpf"];
        let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "tar"];
        let mut command = program("setpriv", nobody);
        command.args(extract).arg(&copied.tar).arg("-C").arg(&to);
        let said = run(command).exits(2).err();
        let again = copied.fixture.scratch("again");
        run(program("tar", extract).arg(&copied.tar).arg("-C").arg(again)).silent();
        said
    }),
    ("Unexpected EOF in archive", || {
        let copied = Copied::new();
        copied.cut();
        let extract = |to: &str| {
            let to = copied.fixture.scratch(to);
            run(program("tar", ["-xf"]).arg(&copied.tar).arg("-C").arg(to))
        };
        let said = extract("cut").exits(2).err();
        copied.complete();
        extract("whole").silent();
        said
    }),
    ("Use --zstd option", || {
        let copied = Copied::new();
        let zst = copied.fixture.path().join("m.tar.zst").display().to_string();
        copied.fixture.run(["export", "m", "-q", "--zstd", "-o", &zst]).silent();
        let through = |command: &str| {
            run(program("bash", ["-o", "pipefail", "-c", &format!("cat '{zst}' | {command}")]))
        };
        let said = through("tar -t").exits(2).err();
        through("tar --zstd -t").ok();
        through("zstd -d | tar -t").ok();
        assert!(through("busybox tar -t").exits(1).err().contains("invalid tar magic"));
        said
    }),
    ("dubious ownership", || {
        let fixture = Fixture::new();
        let project = fixture.sample("m").home.join("project");
        run(program("chown", ["-R", "1000:100"]).arg(&project)).silent();
        let home = fixture.scratch("root");
        let git = |words: &[&str]| {
            let mut command = program("git", words);
            command.current_dir(&project).env("HOME", &home).env_remove("SUDO_UID");
            run(command.env("GIT_CONFIG_NOSYSTEM", "1"))
        };
        let said = git(&["status"]).exits(128).err();
        let project = project.to_str().unwrap();
        git(&["config", "--global", "--add", "safe.directory", project]).silent();
        git(&["status"]).ok();
        said
    }),
];

pub(crate) const VERIFYING: &[Case] = &[
    ("the copy is cut off", || {
        let copied = Copied::new();
        copied.cut();
        let said = copied.verify(1);
        copied.complete();
        copied.verify(0);
        said
    }),
    ("bytes of the copy are damaged", || {
        let copied = Copied::new();
        let bytes = fs::read(&copied.tar).unwrap();
        let at = |needle: &[u8]| bytes.windows(needle.len()).position(|w| w == needle).unwrap();
        let (readme, tool) = (at(b"./home/codchi/project/README\0"), at(b"./opt/tool\0"));
        let mut damaged = bytes.clone();
        damaged[readme + 512] ^= 1;
        damaged[tool + 101] ^= 1;
        fs::write(&copied.tar, damaged).unwrap();
        // In the second of the machine's last change nobody could tell which came first.
        run(program("touch", ["-d", "1 hour"]).arg(&copied.tar)).silent();
        let said = copied.verify(1);
        run(program("cp", [copied.mounted.tar("m"), copied.tar.clone()])).silent();
        copied.verify(0);
        said
    }),
    ("changed in the machine since", || {
        let copied = Copied::new();
        let readme = copied.fixture.place("m").home.join("project/README");
        let time = fs::metadata(&readme).unwrap().modified().unwrap();
        fs::write(&readme, "HELLO\n").unwrap();
        File::options().write(true).open(&readme).unwrap().set_modified(time).unwrap();
        run(program("touch", ["-d", "-1 hour"]).arg(&copied.tar)).silent();
        copied.verify(1)
    }),
    ("it is compressed", || {
        let copied = Copied::new();
        run(program("gzip", ["-k1"]).arg(&copied.tar)).silent();
        let name = format!("{}.gz", copied.tar.display());
        let said = copied.fixture.run(["verify", "m", &name]).exits(2).err();
        let pipe = format!("gzip -dc {name} | \"$@\" -");
        let mut command = program("bash", ["-euo", "pipefail", "-c", &pipe, "-"]);
        let verify = copied.fixture.command(["verify", "m"]);
        run(command.arg(verify.get_program()).args(verify.get_args())).ok();
        said
    }),
    ("the copy is empty", || {
        let copied = Copied::new();
        fs::write(&copied.tar, "").unwrap();
        copied.verify(1)
    }),
    ("in another order", || {
        let copied = Copied::new();
        let tar = copied.tar.with_file_name("tree.tar");
        let mut command = program("tar", ["-cf"]);
        command.arg(&tar).arg("-C").arg(copied.mounted.rootfs("m"));
        run(command.args(["./srv", "./opt", "./home", "./var", "./etc"])).ok();
        let said = copied.fixture.run(["verify", "m", tar.to_str().unwrap()]).exits(2).err();
        let directory = copied.fixture.scratch("vm");
        let extract = ["--numeric-owner", "--xattrs", "--acls", "-xpf"];
        run(program("tar", extract).arg(&copied.tar).arg("-C").arg(&directory)).silent();
        copied.fixture.run(["verify", "m", directory.to_str().unwrap()]).ok();
        said
    }),
    ("a part of the machine cannot be read", || {
        let host = played();
        let tar = host.path().join("demo.tar").display().to_string();
        host.run(&["export", "demo", "-q", "-o", &tar]).silent();
        fs::set_permissions(&tar, Permissions::from_mode(0o644)).unwrap();
        let look = format!("shift; \"$@\" verify demo {tar}");
        let said = Asked { fuse: "666", conf: "", look: &look }.run(&host).err();
        host.run(&["verify", "demo", &tar]).ok();
        said
    }),
];

/// Bytes of the last large file in it: half of them from the end is within.
const LARGE: u64 = 1 << 20;

/// A machine with a device and a copy of its export.
struct Copied {
    mounted: Mounted,
    fixture: Fixture,
    tar: PathBuf,
}

impl Copied {
    fn new() -> Self {
        let fixture = Fixture::new();
        let place = fixture.sample("m");
        run(program("mknod", [place.rootfs.join("opt/null")]).args(["c", "1", "3"])).silent();
        fs::write(place.rootfs.join("var/large"), vec![b'x'; usize::try_from(LARGE).unwrap()])
            .unwrap();
        let mounted = Mounted::new(&fixture);
        let tar = fixture.path().join("m.tar");
        run(program("cp", [mounted.tar("m"), tar.clone()])).silent();
        Self { mounted, fixture, tar }
    }

    fn cut(&self) {
        let file = File::options().write(true).open(&self.tar).unwrap();
        file.set_len(file.metadata().unwrap().len() - LARGE / 2).unwrap();
    }

    fn complete(&self) {
        let mut rsync = program("rsync", ["--append-verify"]);
        run(rsync.args([self.mounted.tar("m"), self.tar.clone()])).silent();
    }

    /// All that is said.
    fn verify(&self, code: i32) -> String {
        let done = self.fixture.run(["verify", "m", self.tar.to_str().unwrap()]).exits(code);
        done.out() + &done.err()
    }
}
