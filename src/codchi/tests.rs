use super::*;
use rustix::fs::{CWD, FlockOperation, flock, mknodat};
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::{Duration, Instant};

struct Fixture {
    dir: tempfile::TempDir,
    state: State,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state =
            State { config_dir: dir.path().to_owned(), data_dir: "/data".into(), ways: Vec::new() };
        Self { dir, state }
    }

    fn file(&self, path: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn load(&self, name: &str) -> Result<MachineConfig, Error> {
        self.state.load(&MachineName::new(name).unwrap())
    }

    /// The error text, with the fixture's directory as `C`.
    fn fault(&self, name: &str) -> String {
        let fault = self.load(name).unwrap_err();
        assert!(!format!("{fault:?} {fault}").contains("hunter2"), "{fault:?}");
        fault.to_string().replace(self.dir.path().to_str().unwrap(), "C")
    }
}

fn fifo(path: &Path) {
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    mknodat(CWD, path, FileType::Fifo, mode, 0).unwrap();
}

#[test]
fn names() {
    for (name, fault) in [
        ("", NameError::Empty),
        (".", NameError::Path),
        ("..", NameError::Path),
        ("../x", NameError::Path),
        ("a/b", NameError::Path),
        (".generations", NameError::Hidden),
        ("a\0b", NameError::Control),
        ("a\nb", NameError::Control),
        ("a\u{85}", NameError::Control),
        (&"a".repeat(249), NameError::TooLong),
    ] {
        assert_eq!(MachineName::new(name), Err(fault), "{name:?}");
    }
    for name in ["a", "a.b", "ü b", "-x", &"a".repeat(248)] {
        assert_eq!(name.parse::<MachineName>().unwrap().instance(), format!("codchi-{name}"));
    }
    assert_eq!(MachineName::from_os(OsStr::from_bytes(b"\xff")), Err(NameError::NotText));
}

#[test]
fn finds_machines_and_touches_nothing() {
    let fixture = Fixture::new();
    assert_eq!(fixture.state.machine_names().unwrap(), []);
    for dir in ["b", "a", "\u{e9}", ".hidden", "a\nb"] {
        fixture.file(&format!("machine/{dir}/config.json"), "{}");
    }
    fixture.file("machine/empty/config.json", "");
    fixture.file("machine/none/flake.nix", "");
    fixture.file("machine/file", "");
    let top = fixture.dir.path().join("machine");
    symlink(top.join("a"), top.join("link")).unwrap();
    fs::create_dir_all(top.join("dir/config.json")).unwrap();
    fs::create_dir(top.join(OsStr::from_bytes(b"\xff"))).unwrap();
    fs::write(top.join(OsStr::from_bytes(b"\xff")).join("config.json"), "{}").unwrap();
    let machine = |name| Found::Machine(MachineName::new(name).unwrap());
    let invalid =
        |name: &[u8], reason| Found::Invalid { name: OsStr::from_bytes(name).to_owned(), reason };
    let before = fs::metadata(&top).unwrap().modified().unwrap();
    let expected = [
        invalid(b".hidden", NameError::Hidden),
        machine("a"),
        invalid(b"a\nb", NameError::Control),
        machine("b"),
        machine("dir"),
        machine("\u{e9}"),
        invalid(b"\xff", NameError::NotText),
    ];
    assert_eq!(fixture.state.machine_names().unwrap(), expected);
    assert_eq!(fs::metadata(&top).unwrap().modified().unwrap(), before);
    let broken = State { config_dir: top.join("file"), data_dir: "/data".into(), ways: Vec::new() };
    let fault = broken.machine_names().unwrap_err().to_string();
    assert!(fault.contains("cannot list the code machines in"), "{fault}");
}

#[test]
fn loads_with_times() {
    let fixture = Fixture::new();
    fixture.file("machine/a/config.json", r#"{"secrets": {"A": "hunter2"}}"#);
    let name = MachineName::new("a").unwrap();
    assert_eq!(fixture.state.home(&name), Path::new("/data/machine/a"));
    let config = fixture.load("a").unwrap();
    assert_eq!(config.secrets["A"].expose(), "hunter2");
    assert_eq!((&config.flake_nix, &config.flake_lock), (&None, &None));
    assert_eq!(config.times, fixture.state.times(&name).unwrap());
    assert!(config.times.flake_nix_ctime.is_none() && config.times.config_mtime.sec > 0);

    let driver = r#"{ inputs.codchi_driver.url = "github:a/b/c"; }"#;
    fixture.file("machine/a/flake.nix", driver);
    fixture.file("machine/a/flake.lock", "\n");
    let config = fixture.load("a").unwrap();
    assert_eq!(config.driver_url(), "github:a/b/c");
    assert!(config.flake_lock.is_none() && config.times.flake_lock_ctime.is_some());
    assert_eq!(config.times, fixture.state.times(&name).unwrap());
    assert_eq!(lock::rewrite(&config).unwrap(), None);
}

#[test]
fn broken_machines() {
    let fixture = Fixture::new();
    let machine = fixture.dir.path().join("machine");
    for name in ["dir", "fifo", "link", "missing", "beside"] {
        fs::create_dir_all(machine.join(name)).unwrap();
    }
    fs::create_dir(machine.join("dir/config.json")).unwrap();
    fifo(&machine.join("fifo/config.json"));
    let target = fixture.file("target", "{}");
    symlink(target, machine.join("link/config.json")).unwrap();
    symlink(machine.join("beside"), machine.join("linked")).unwrap();
    fixture.file("machine/beside/config.json", "{}");
    fifo(&machine.join("beside/flake.lock"));
    fixture.file("machine/bytes/config.json", "");
    fs::write(machine.join("bytes/config.json"), b"{\"secrets\": {\"A\": \"hunter2\xff\"}}")
        .unwrap();
    fixture.file("machine/empty/config.json", "");
    fixture.file("machine/cut/config.json", r#"{"secrets": {"A": "hunter2"#);
    File::create(fixture.file("machine/large/config.json", "")).unwrap().set_len(17 << 20).unwrap();

    let regular = "it is not a regular file; put the real file there";
    for (name, text) in [
        ("dir", format!("cannot read C/machine/dir/config.json of machine dir: {regular}")),
        ("fifo", format!("cannot read C/machine/fifo/config.json of machine fifo: {regular}")),
        ("link", format!("cannot read C/machine/link/config.json of machine link: {regular}")),
        ("beside", format!("cannot read C/machine/beside/flake.lock of machine beside: {regular}")),
        (
            "missing",
            "cannot read C/machine/missing/config.json of machine missing: No such file or \
             directory (os error 2); check that it exists and that its owner may read it"
                .to_owned(),
        ),
        (
            "linked",
            "cannot read C/machine/linked of machine linked: Not a directory (os error 20); check \
             that it exists and that its owner may read it"
                .to_owned(),
        ),
        (
            "bytes",
            "cannot read C/machine/bytes/config.json of machine bytes: it is not UTF-8 text; \
             restore it from a backup"
                .to_owned(),
        ),
        (
            "large",
            "cannot read C/machine/large/config.json of machine large: it is larger than 2 MiB, the \
             most that is read of it; restore it from a backup"
                .to_owned(),
        ),
        (
            "empty",
            "cannot use C/machine/empty/config.json of machine empty: it is empty; run `codchi \
             init empty` or restore it from a backup"
                .to_owned(),
        ),
        (
            "cut",
            "cannot parse C/machine/cut/config.json of machine cut: the text ends too early at line \
             1 column 26; repair it or restore it from a backup"
                .to_owned(),
        ),
    ] {
        assert_eq!(fixture.fault(name), text);
    }
}

#[test]
fn waits_for_a_writer_but_not_for_ever() {
    let fixture = Fixture::new();
    let whole = fixture.file("machine/a/config.json", "{}");
    let cut = fixture.file("machine/cut/config.json", "{\"secrets\": {\"A\": \"hunter2");
    let lock = |path| {
        let file = File::options().write(true).open(path).unwrap();
        flock(&file, FlockOperation::LockExclusive).unwrap();
        file
    };
    let (_whole, _cut) = (lock(&whole), lock(&cut));
    let start = Instant::now();
    fixture.load("a").unwrap();
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(450), "{waited:?}");
    assert!(fixture.load("cut").unwrap_err().is_busy());
    assert_eq!(
        fixture.fault("cut"),
        "cannot read C/machine/cut/config.json of machine cut: codchi holds its lock and has not \
         finished writing; finish or stop the running codchi command and try again"
    );
    drop((_whole, _cut));
    // Readers do not exclude each other, and nobody is kept from writing afterwards.
    let shared = File::open(&cut).unwrap();
    flock(&shared, FlockOperation::LockShared).unwrap();
    assert!(!fixture.load("cut").unwrap_err().is_busy());
    drop(shared);
    flock(File::open(&cut).unwrap(), FlockOperation::NonBlockingLockExclusive).unwrap();
}

#[test]
fn locates_by_config_toml() {
    let fixture = Fixture::new();
    let home = fixture.dir.path().to_owned();
    let owner = dirs::Owner { uid: 1, gid: None, home: home.clone(), is_caller: true };
    let locate = |data: Option<&Path>| {
        State::locate(&owner, None, data, &|_| None).map_err(|fault| fault.to_string())
    };
    let config_dir = home.join(".config/codchi");
    let data_dir = home.join(".local/share/codchi");
    let found = locate(None).unwrap();
    assert_eq!((found.config_dir, found.data_dir), (config_dir.clone(), data_dir));
    let real = fixture.file("dotfiles/config.toml", "data_dir = \"/big\"");
    fs::create_dir_all(&config_dir).unwrap();
    symlink(&real, config_dir.join("config.toml")).unwrap();
    assert_eq!(locate(None).unwrap().data_dir, Path::new("/big"));
    assert_eq!(locate(Some(Path::new("/given"))).unwrap().data_dir, Path::new("/given"));
    fs::remove_file(config_dir.join("config.toml")).unwrap();
    fifo(&config_dir.join("config.toml"));
    let fault = locate(None).unwrap_err();
    let expected = format!(
        "cannot read codchi's settings in {}: it is not a regular file; repair or remove the file",
        config_dir.join("config.toml").display()
    );
    assert_eq!(fault, expected);
}

#[test]
fn unreadable_for_others() {
    let fixture = Fixture::new();
    let path = fixture.file("machine/a/config.json", "{}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    // Root reads all the same; anyone else is told.
    match fixture.load("a") {
        Ok(_) => assert!(rustix::process::geteuid().is_root()),
        Err(fault) => assert!(fault.to_string().contains("Permission denied"), "{fault}"),
    }
}
