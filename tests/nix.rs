//! The real nix judges the generated flake.nix and flake.lock, and what MIGRATE.md has people do to them.

// Clippy knows `#[test]` functions, not what they call.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use codchifs::codchi::flake::{self, System};
use codchifs::codchi::{MachineConfig, MachineName, Secret, driver, lock};
use common::fixture::{Fixture, Maker};
use common::mounted::Mounted;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const REV: &str = "0123456789abcdef0123456789abcdef01234567";

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(path)
}

fn config(json: &str) -> MachineConfig {
    let name = MachineName::new("web").unwrap();
    MachineConfig::parse(&name, Path::new("/config/machine/web"), json).unwrap()
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|fault| panic!("{command:?} is needed for this test: {fault}"))
}

fn succeed(command: &mut Command) -> String {
    let out = run(command);
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Evaluates a flake.nix, or a directory with one, with stubs in place of all inputs.
fn eval(flake: &Path, driver: &str, inputs: &[String]) -> serde_json::Value {
    let eval = here("nix-stubs/eval.sh");
    let text = succeed(Command::new("bash").arg(eval).arg(flake).arg(driver).args(inputs));
    serde_json::from_str(&text).unwrap()
}

#[test]
fn golden_files() {
    let dir = tempfile::tempdir().unwrap();
    for case in ["a", "b", "d", "e5"] {
        let text = |file| fs::read_to_string(here("golden").join(case).join(file)).unwrap();
        let rendered = flake::render(&config(&text("config.json")), System::X86_64);
        assert_eq!(rendered, text("flake.nix"), "{case}");
        let path = dir.path().join("flake.nix");
        fs::write(&path, rendered).unwrap();
        succeed(Command::new("nix-instantiate").arg("--parse").arg(&path));
        let secrets = format!("codchi-secrets={}", here("nix-stubs/driver-new").display());
        let inputs = match case {
            "b" => vec![secrets],
            "d" => vec!["codchi-base".to_owned()],
            "e5" => vec!["proj-default".to_owned()],
            _ => Vec::new(),
        };
        for driver in ["old", "new"] {
            let found = eval(&path, driver, &inputs);
            assert_eq!(found["driver"], "none", "{case} {driver}");
            assert_eq!(found["isNixpkgs"], true, "{case} {driver}");
            assert_eq!(found["secrets"], case == "b", "{case} {driver}");
        }
    }
}

#[test]
fn every_kind_of_module_evaluates() {
    let urls = [
        "file://a b/ü?ref=main#nixosModules.base".to_owned(),
        format!("file://x?commit={REV}&ref=main#nixosModules.default"),
        "github://github.com/o/r?ref=feat/x#nixosModules.default".to_owned(),
        format!("github://github.com/o/r?commit={REV}&ref=main"),
        "gitlab://gitlab.com/o/r?token=T#nixosModules.default".to_owned(),
        format!("gitlab://gitlab.com/a/b/c?commit={REV}&ref=main#nixosModules.default"),
        "sourcehut://git.sr.ht/~o/r?#nixosModules.base".to_owned(),
        format!("https://h:8443/o/r.git?token=u:t${{x}}&commit={REV}&ref=a@b#nixosModules.default"),
        "http://h/o/r?#nixosModules.default".to_owned(),
        "ssh://git@h/o/r?ref=main#nixosModules.default".to_owned(),
        "ssh://h/o/r?token=git&ref=main#nixosModules.default".to_owned(),
        // What nix takes for no commit, and what Codchi knows nothing of.
        "https://h/o/r?commit=0123456&ref=main#nixosModules.default".to_owned(),
        format!("github://github.com/o/r?commit={REV}{}#nixosModules.default", &REV[..24]),
        "gitlab://gitlab.com/o/r?commit=v1.2&ref=feat/x#nixosModules.default".to_owned(),
        format!("sourcehut://git.sr.ht/~o/r?commit={}#nixosModules.default", REV.to_uppercase()),
        "file://a%20b/%C3%BC?dir=sub&submodules=1&shallow&rev=x#nixosModules.default".to_owned(),
    ];
    let names: Vec<String> = (0..urls.len()).map(|n| format!("m{n}")).collect();
    let modules: serde_json::Map<_, _> =
        names.iter().cloned().zip(urls.iter().map(|url| url.clone().into())).collect();
    let json = serde_json::json!({ "nixpkgs_from": "m3", "modules": modules }).to_string();
    let dir = tempfile::tempdir().unwrap();
    for (system, text) in [(System::X86_64, "x86_64-linux"), (System::Aarch64, "aarch64-linux")] {
        fs::write(dir.path().join("flake.nix"), flake::render(&config(&json), system)).unwrap();
        for driver in ["old", "new"] {
            let found = eval(dir.path(), driver, &names);
            assert_eq!(found["marks"].as_array().unwrap().len(), urls.len());
            assert_eq!(found["system"], text);
            assert_eq!(found["host"], serde_json::Value::Null);
        }
    }
    let own = "{ lib, ... }: { networking.hostName = \"moved\"; }\n";
    fs::write(dir.path().join("configuration.nix"), own).unwrap();
    for driver in ["old", "new"] {
        assert_eq!(eval(dir.path(), driver, &names)["host"], "moved");
    }
}

#[test]
fn every_name_that_a_module_can_have_evaluates() {
    let names = [
        "nixpkgs",
        "let",
        "in",
        "rec",
        "with",
        "inherit",
        "if",
        "or",
        "true",
        "inputs",
        "outputs",
        "url",
        "follows",
        "lib",
        "root",
        "a.b",
        ".",
        "..",
        "a b",
        "1a",
        "-",
        "a'b",
        "\u{fc}",
        "a\"b",
        "${x}",
        "$",
        "a\\b",
        "#",
        "__functor",
        "_module",
        "codchi_driver2",
        "a\nb",
        "/",
        "a/b",
        "=",
        ";",
        "Self",
    ];
    let modules: serde_json::Map<_, _> = names
        .iter()
        .map(|name| ((*name).to_owned(), "file://x?#nixosModules.default".into()))
        .collect();
    let json = serde_json::json!({ "nixpkgs_from": "nixpkgs", "modules": modules }).to_string();
    let nix = Nix::new();
    nix.stub("module", "home/x");
    nix.stub("driver-new", "driver");
    let flake = flake::render(&config(&json), System::X86_64);
    fs::write(nix.path("export/flake.nix"), nix.with_own_inputs(&flake)).unwrap();
    let marks = nix.config("marks");
    assert_eq!(marks.as_array().unwrap().len(), names.len());
}

#[test]
fn a_module_with_inputs_of_its_own_evaluates() {
    let json = r#"{"modules": {"m": "file://x?#nixosModules.own-inputs"}}"#;
    let file = tempfile::tempdir().unwrap().keep().join("flake.nix");
    fs::write(&file, flake::render(&config(json), System::X86_64)).unwrap();
    let found = eval(&file, "new", &["m".to_owned()]);
    fs::remove_dir_all(file.parent().unwrap()).unwrap();
    assert_eq!(found["marks"], serde_json::json!(["own"]));
}

/// A nix with a store of its own, and a directory that is the machine's home.
struct Nix {
    dir: tempfile::TempDir,
}

impl Nix {
    fn new() -> Self {
        // Not below /home, which the judge covers.
        let nix = Self { dir: tempfile::tempdir_in("/tmp").unwrap() };
        for dir in ["etc", "store", "user", "home", "codchi", "export"] {
            fs::create_dir(nix.path(dir)).unwrap();
        }
        let settings = "experimental-features = nix-command flakes\nsubstituters =\n\
             flake-registry =\nbuild-users-group =\nsandbox = false\n";
        fs::write(nix.path("etc/nix.conf"), settings).unwrap();
        nix
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (variable, dir) in [
            ("NIX_STORE_DIR", "store"),
            ("NIX_STATE_DIR", "var"),
            ("NIX_LOG_DIR", "log"),
            ("NIX_CONF_DIR", "etc"),
            ("HOME", "user"),
            ("XDG_CACHE_HOME", "user/cache"),
            ("XDG_CONFIG_HOME", "user/config"),
            ("XDG_DATA_HOME", "user/data"),
        ] {
            command.env(variable, self.path(dir));
        }
        command.env("NIX_REMOTE", "local").env("NIX_USER_CONF_FILES", "/dev/null");
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
        command
    }

    /// Makes a git repository with a flake in it, and returns its commit.
    fn repository(&self, path: &str, flake: &str) -> String {
        let dir = self.path(path);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("flake.nix"), flake).unwrap();
        let git = |args: &[&str]| succeed(self.command("git").current_dir(&dir).args(args));
        git(&["init", "-q", "-b", "main"]);
        git(&["add", "."]);
        git(&["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]);
        git(&["rev-parse", "HEAD"]).trim().to_owned()
    }

    /// What the target does, where the machine's home is `/home/codchi`.
    fn judge(&self) -> Output {
        let script = "mount -t tmpfs none /home && mkdir /home/codchi && \
             mount --bind \"$1\" /home/codchi && \
             exec nix flake metadata --offline --no-update-lock-file \"path:$2\"";
        let namespace = if rustix::process::geteuid().is_root() { "-m" } else { "-rm" };
        run(self
            .command("unshare")
            .args([namespace, "bash", "-c", script, "-"])
            .arg(self.path("home"))
            .arg(self.path("export")))
    }

    fn assert_accepted(&self) {
        let out = self.judge();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }

    /// One of the stubs as a git repository, with the stub of nixpkgs.
    fn stub(&self, name: &str, path: &str) {
        let from = here("nix-stubs").join(name);
        fs::create_dir_all(self.path(path)).unwrap();
        for file in fs::read_dir(&from).unwrap().map(|entry| entry.unwrap()) {
            fs::copy(file.path(), self.path(path).join(file.file_name())).unwrap();
        }
        let nixpkgs = format!("path:{}", here("nix-stubs/nixpkgs").display());
        let flake = fs::read_to_string(from.join("flake.nix")).unwrap();
        self.repository(path, &flake.replace("github:NixOS/nixpkgs/nixos-24.11", &nixpkgs));
    }

    /// A generated flake.nix with what is here in place of what it takes from elsewhere.
    fn with_own_inputs(&self, flake: &str) -> String {
        let top = self.dir.path().display();
        flake
            .replace("git+file:///home/codchi", &format!("git+file://{top}/home"))
            .replace("github:aformatik/codchi/master", &format!("git+file://{top}/driver"))
    }

    /// What the exported flake says of this option, where its inputs can be had.
    fn config(&self, option: &str) -> serde_json::Value {
        serde_json::from_str(&succeed(&mut self.config_command(option))).unwrap()
    }

    fn evaluates(&self, option: &str) -> bool {
        run(&mut self.config_command(option)).status.success()
    }

    fn config_command(&self, option: &str) -> Command {
        let export = self.path("export");
        let flake = format!("path:{}#nixosConfigurations.nixos.config", export.display());
        let apply = format!("config: config.{option}");
        let mut nix = self.command("nix");
        nix.args(["eval", "--offline", "--no-write-lock-file", "--json", &flake]);
        nix.args(["--apply", &apply]);
        nix
    }

    /// The flake.lock that nix makes in Codchi's config, for Codchi's way to write these inputs.
    fn codchi_lock(&self, inputs: &str) -> String {
        let text = format!("{{ inputs = {{\n{inputs}\n}}; outputs = _: {{ }}; }}");
        fs::write(self.path("codchi/flake.nix"), text).unwrap();
        let flake = format!("path:{}", self.path("codchi").display());
        succeed(self.command("nix").args(["flake", "lock", "--offline", &flake]));
        fs::read_to_string(self.path("codchi/flake.lock")).unwrap()
    }

    fn write(&self, config: &MachineConfig) -> String {
        let text = lock::rewrite(config).unwrap().unwrap();
        fs::write(self.path("export/flake.lock"), &text).unwrap();
        fs::write(self.path("export/flake.nix"), flake::render(config, System::X86_64)).unwrap();
        text
    }
}

#[test]
fn nix_accepts_the_rewritten_lock() {
    let nix = Nix::new();
    let top = nix.dir.path().display().to_string();
    let module = "{ outputs = _: { nixosModules.default = { }; }; }";
    nix.repository("nixpkgs", "{ outputs = _: { lib = { }; }; }");
    let with_nixpkgs = format!(
        "{{ inputs.nixpkgs.url = \"git+file://{top}/nixpkgs\"; outputs = _: {{ nixosModules.default = \
         {{ }}; }}; }}"
    );
    nix.repository("driver", &with_nixpkgs);
    nix.repository("home/plain", &with_nixpkgs);
    nix.repository("home/sub dir/ü", module);
    let rev = nix.repository("home/pinned", module);
    nix.repository(
        "home/gone",
        &format!("{{ inputs.only-gone.url = \"git+file://{top}/nixpkgs\"; outputs = _: {{ }}; }}"),
    );
    let driver = format!("git+file://{top}/driver?token=hunter2&ref=main&x=hunter2");
    let codchi = nix.codchi_lock(&format!(
        "codchi_driver.url = \"{driver}\";
         \"plain\".url = \"git+file://{top}/home/plain?\";
         \"branch\".url = \"git+file://{top}/home/sub%20dir/%C3%BC?ref=main\";
         \"pinned\".url = \"git+file://{top}/home/pinned?commit={rev}\";
         \"both\".url = \"git+file://{top}/home/pinned?commit={rev}&ref=main\";
         \"gone\".url = \"git+file://{top}/home/gone?\";"
    ));
    assert!(codchi.contains("only-gone"));
    // What needs the network is locked by hand, in nix's words.
    let mut codchi: serde_json::Value = serde_json::from_str(&codchi).unwrap();
    let hash = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let mut add = |name: &str, original: serde_json::Value| {
        let mut locked = original.clone();
        locked["rev"] = REV.into();
        if original["type"] == "github" {
            locked.as_object_mut().unwrap().remove("ref");
        }
        locked["narHash"] = hash.into();
        locked["lastModified"] = 1.into();
        codchi["nodes"][name] = serde_json::json!({ "locked": locked, "original": original });
        codchi["nodes"]["root"]["inputs"][name] = name.into();
    };
    let github = |host: &str| serde_json::json!({ "type": "github", "owner": "o", "repo": "r", "host": host });
    add("gh", github("github.com"));
    add("gh-pinned", github("ghe.corp"));
    let mut branch = github("github.com");
    branch["ref"] = "feat/x_y".into();
    add("gh-branch", branch);
    add(
        "srht",
        serde_json::json!({ "type": "sourcehut", "owner": "~o", "repo": "r", "host": "git.sr.ht" }),
    );
    add(
        "https",
        serde_json::json!({ "type": "git", "url": "https://old@h/o/r.git", "ref": "main" }),
    );
    add(
        "https-pinned",
        serde_json::json!({ "type": "git", "url": format!("https://h/r?commit={REV}"), "ref": "main" }),
    );

    let json = serde_json::json!({ "nixpkgs_from": "plain", "modules": {
        "plain": "file://plain?#nixosModules.default",
        "branch": "file://sub dir/ü?ref=main#nixosModules.default",
        "pinned": format!("file://pinned?commit={rev}#nixosModules.default"),
        "both": format!("file://pinned?commit={rev}&ref=main#nixosModules.default"),
        "gh": "github://github.com/o/r?#nixosModules.default",
        "gh-pinned": format!("github://ghe.corp/o/r?commit={REV}&ref=main#nixosModules.default"),
        "gh-branch": "github://github.com/o/r?ref=feat/x_y#nixosModules.default",
        "srht": "sourcehut://git.sr.ht/~o/r?#nixosModules.default",
        "https": "https://h/o/r.git?token=u:hunter2&ref=main#nixosModules.default",
        "https-pinned": format!("https://h/r?commit={REV}&ref=main#nixosModules.default"),
    } });
    let mut config = config(&json.to_string());
    let driver = format!("{{ inputs.codchi_driver.url = \"{driver}\"; }}");
    config.flake_nix = Some(Secret::new(driver));
    config.flake_lock = Some(Secret::new(codchi.to_string()));
    let text = nix.write(&config);
    assert!(!text.contains("gone") && !text.contains("?commit=") && text.contains("u:hunter2@h"));
    assert!(!text.contains(&format!("{top}/home")), "{text}");
    nix.assert_accepted();

    // Written anew it is the same text.
    config.flake_lock = Some(Secret::new(text.clone()));
    assert_eq!(lock::rewrite(&config).unwrap().unwrap(), text);

    assert!(text.contains("driver?token=hunter2"), "nix keeps what it does not know: {text}");
    let mut more: serde_json::Value = serde_json::from_str(&text).unwrap();
    for side in ["locked", "original"] {
        more["nodes"]["codchi_driver"][side]["token"] = "hunter2".into();
    }
    config.flake_lock = Some(Secret::new(more.to_string()));
    let text = nix.write(&config.redacted());
    let flake = fs::read_to_string(nix.path("export/flake.nix")).unwrap();
    assert!(!text.contains("hunter2") && !flake.contains("hunter2"), "{flake}{text}");
    nix.assert_accepted();

    // The judge does judge: the lock as Codchi has it is refused.
    fs::write(nix.path("export/flake.lock"), codchi.to_string()).unwrap();
    assert!(!nix.judge().status.success());
}

#[test]
fn a_lock_never_pins_another_source() {
    let nix = Nix::new();
    let top = nix.dir.path().display().to_string();
    let module = "{ outputs = _: { }; }";
    nix.repository("driver", module);
    nix.repository("home/old", module);
    nix.repository("home/dirty", module);
    nix.repository("home/kept", module);
    fs::write(nix.path("home/dirty/flake.nix"), "{ outputs = _: { a = 1; }; }").unwrap();
    let codchi = nix.codchi_lock(&format!(
        "codchi_driver.url = \"git+file://{top}/driver\";
         a.url = \"git+file://{top}/home/old?\";
         b.url = \"git+file://{top}/home/dirty?\";
         c.url = \"git+file://{top}/home/kept?\";"
    ));
    let json =
        r#"{"modules": {"a": "file://new?#x", "b": "file://dirty?#x", "c": "file://kept?#x"}}"#;
    let mut config = config(json);
    config.flake_nix =
        Some(Secret::new(format!("{{ inputs.codchi_driver.url = \"git+file://{top}/driver\"; }}")));
    config.flake_lock = Some(Secret::new(codchi));
    let text: serde_json::Value = serde_json::from_str(&nix.write(&config)).unwrap();
    let kept: Vec<&String> = text["nodes"]["root"]["inputs"].as_object().unwrap().keys().collect();
    assert_eq!(kept, ["c", "codchi_driver"]);
    assert_eq!(text["nodes"]["c"]["locked"]["url"], "file:///home/codchi/kept");
}

#[test]
fn a_commit_that_nix_cannot_take_is_ignored_and_the_lock_keeps_what_the_machine_runs() {
    let nix = Nix::new();
    let top = nix.dir.path().display().to_string();
    let module = "{ outputs = _: { nixosModules.default = { }; }; }";
    nix.repository("driver", module);
    let first = nix.repository("home/x", module);
    // Codchi's nix has locked the branch, whatever the commit was said to be; and the branch went on.
    let odd =
        ["0123456", "v1.2", &"0123456789abcdef".repeat(4), "%20x", "HEAD", &first.to_uppercase()];
    let names: Vec<String> = (0..odd.len()).map(|n| format!("m{n}")).collect();
    let inputs: String = odd
        .iter()
        .zip(&names)
        .map(|(commit, name)| {
            format!("{name}.url = \"git+file://{top}/home/x?commit={commit}\";\n")
        })
        .collect();
    let codchi =
        nix.codchi_lock(&format!("codchi_driver.url = \"git+file://{top}/driver\";\n{inputs}"));
    nix.repository("home/x", "{ outputs = _: { other = 1; }; }");
    let modules: serde_json::Map<_, _> = odd
        .iter()
        .zip(&names)
        .map(|(commit, name)| (name.clone(), format!("file://x?commit={commit}#").into()))
        .collect();
    let mut config = config(&serde_json::json!({ "modules": modules }).to_string());
    config.flake_nix =
        Some(Secret::new(format!("{{ inputs.codchi_driver.url = \"git+file://{top}/driver\"; }}")));
    config.flake_lock = Some(Secret::new(codchi));
    let text: serde_json::Value = serde_json::from_str(&nix.write(&config)).unwrap();
    for name in &names {
        assert_eq!(text["nodes"][name]["locked"]["rev"], first, "{name}");
    }
    nix.assert_accepted();
    // A full one in capitals is one; of the others there is a warning each.
    assert_eq!(config.warnings().len(), odd.len() - 1);
    // The judge does judge: nix takes none of them as a revision.
    let flake = fs::read_to_string(nix.path("export/flake.nix")).unwrap();
    for commit in &odd[..5] {
        let taken =
            flake.replacen("/home/codchi/x\"", &format!("/home/codchi/x?rev={commit}\""), 1);
        fs::write(nix.path("export/flake.nix"), taken).unwrap();
        assert!(!nix.judge().status.success(), "{commit}");
    }
}

#[test]
fn writes_a_lock_as_nix_does() {
    let nix = Nix::new();
    let top = nix.dir.path().display().to_string();
    nix.repository("nixpkgs", "{ outputs = _: { }; }");
    let driver = format!(
        "{{ inputs.b.url = \"git+file://{top}/nixpkgs\"; inputs.a.follows = \"b\"; outputs = _: {{ }}; }}"
    );
    nix.repository("driver", &driver);
    let codchi = nix.codchi_lock(&format!("codchi_driver.url = \"git+file://{top}/driver\";"));
    let mut config = config("{}");
    config.flake_lock = Some(Secret::new(&codchi));
    assert_eq!(lock::rewrite(&config).unwrap().unwrap(), codchi);
}

/// The commands of the page's block with `part`, on the files in `nixos` instead of those of the target.
fn prepare(nixos: &Path) {
    let script = "mount -t tmpfs none /mnt && mkdir /mnt/up /mnt/work && export HOME=/mnt &&
        mount -t overlay none /etc -o lowerdir=/etc,upperdir=/mnt/up,workdir=/mnt/work && mkdir -p /etc/nixos &&
        mount --bind \"$1\" /etc/nixos && mount -t tmpfs none /var/lib && echo secret >/mnt/password &&
        exec bash /etc/nixos/codchi-arrive prepare --password-file /mnt/password";
    succeed(Command::new("unshare").args(["-m", "bash", "-c", script, "-"]).arg(nixos));
}

const OLD: i64 = 1_737_620_840;

/// A lock of Codchi's own module, from a commit of that time.
fn driver_lock(made: i64) -> String {
    let locked = serde_json::json!({ "type": "github", "owner": "aformatik", "repo": "codchi", "rev": REV,
        "narHash": "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "lastModified": made });
    let original =
        serde_json::json!({ "type": "github", "owner": "aformatik", "repo": "codchi", "rev": REV });
    serde_json::json!({ "version": 7, "root": "root", "nodes": {
        "root": { "inputs": { "codchi_driver": "codchi_driver" } },
        "codchi_driver": { "locked": locked, "original": original } } })
    .to_string()
}

#[test]
fn a_machine_with_an_old_codchi_is_told_what_to_pin_and_then_evaluates() {
    let fixture = Fixture::new();
    let driver = format!("{{ inputs.codchi_driver.url = \"github:aformatik/codchi/{REV}\"; }}");
    let module = r#"{"nixpkgs_from":"m","modules":{"m":"file://x?#nixosModules.default"}}"#;
    for (name, json, made) in
        [("old", "{}", OLD), ("own", module, OLD), ("new", "{}", 1_738_573_990)]
    {
        let place = fixture.configured(name, json);
        fs::write(place.config.join("flake.nix"), &driver).unwrap();
        fs::write(place.config.join("flake.lock"), driver_lock(made)).unwrap();
    }
    // Codchi's nixpkgs comes with it, a module's own does not.
    let words = "codchi_driver is older than Codchi 0.3.1.5";
    let list = fixture.run(["list"]).ok().out();
    assert_eq!(list.matches(words).count(), 2, "{list}");
    assert_eq!(list.matches(driver::NEW_URL).count(), 2, "{list}");
    let list: serde_json::Value =
        serde_json::from_slice(&fixture.run(["list", "--json"]).ok().stdout).unwrap();
    for machine in list.as_array().unwrap() {
        let warnings = machine["warnings"].as_array().unwrap();
        assert_eq!(warnings.len(), usize::from(machine["name"] != "new"), "{machine}");
        assert_eq!(machine["state"], "ready", "it can be exported all the same");
    }
    let mounted = Mounted::new(&fixture);
    let page =
        |name: &str| fs::read_to_string(mounted.point().join(name).join("MIGRATE.md")).unwrap();
    assert!(mounted.report("old")["warnings"].to_string().contains(words));
    assert!(mounted.report("new")["warnings"].is_null());
    assert!(!page("new").contains("0.3.1.5"));
    assert!(page("old").contains("from before 0.3.1.5") && page("own").contains("0.3.1.5"));

    // What codchi-arrive does, with a driver of the new kind where it takes it from.
    let nix = Nix::new();
    nix.stub("driver-new", "driver");
    // An old one refuses the flake.
    let no_none = "{ outputs = _: { nixosModules.default = { config, ... }: { nix.driver =
        if config.codchi.driver.name == \"none\" then throw \"not one of wsl, lxd\" else 1; }; }; }";
    nix.repository("old", no_none);
    let exported = mounted.rootfs("old").join("etc/nixos");
    let script = |name: &str| {
        fs::read_to_string(mounted.rootfs(name).join("etc/nixos/codchi-arrive")).unwrap()
    };
    let pin = format!("new_driver={}\n", driver::NEW_URL);
    assert!(script("old").contains(&format!("{pin}driver_has_nixpkgs=yes\n")));
    assert!(script("own").contains(&format!("{pin}driver_has_nixpkgs=no\n")));
    assert!(script("new").contains("new_driver=''\n"));
    fs::write(nix.path("export/configuration.nix"), "{ }\n").unwrap();
    for name in ["flake.nix", "flake.lock", "codchi-arrive"] {
        fs::copy(exported.join(name), nix.path("export").join(name)).unwrap();
    }
    prepare(&nix.path("export"));
    mounted.unmount();
    let own = |flake: String| {
        let top = nix.dir.path().display();
        flake.replace(driver::NEW_URL, &format!("git+file://{top}/driver"))
    };
    let at = nix.path("export/flake.nix");
    let pinned = own(fs::read_to_string(&at).unwrap());
    assert!(!pinned.contains("github:"), "{pinned}");
    fs::write(&at, pinned).unwrap();
    // The lock is still that of the old one: nix locks the one input anew.
    assert_eq!(nix.config("nix.driver"), "none");
}

#[test]
fn the_state_version_of_a_module_wins_and_else_the_release_of_the_lock_stays() {
    let fixture = Fixture::new();
    let nix = Nix::new();
    nix.stub("driver-new", "driver");
    let driver = "{ inputs.nixpkgs.url = \"NIXPKGS\"; outputs = _: { nixosModules.default = { codchi.x = 1; }; }; }";
    let nixpkgs = format!("path:{}", here("nix-stubs/nixpkgs").display());
    nix.repository("driver", &driver.replace("NIXPKGS", &nixpkgs));
    let sets = "{ outputs = _: { nixosModules.default = { system.stateVersion = \"23.05\"; }; }; }";
    let leaves = "{ outputs = _: { nixosModules.default = { other = 1; }; }; }";
    nix.repository("home/sets", sets);
    nix.repository("home/leaves", leaves);
    let config = |name: &str| format!(r#"{{"modules":{{"m":"file://{name}?#"}}}}"#);
    let lock = serde_json::json!({ "version": 7, "root": "root", "nodes": {
        "root": { "inputs": { "codchi_driver": "d" } }, "d": { "inputs": { "nixpkgs": "n" } },
        "n": { "original": { "ref": "nixos-24.05" } } } });
    for name in ["sets", "leaves"] {
        let place = fixture.configured(name, config(name));
        fs::write(place.config.join("flake.lock"), lock.to_string()).unwrap();
        // What was built last is not what is declared.
        let system = "/nix/store/h-nixos-system-m-22.11.20240601.abc";
        Maker::new(&place.rootfs).symlink(system, "nix/var/nix/profiles/system");
    }
    // Of these nobody knows the release.
    fixture.configured("sets-unknown", config("sets"));
    fixture.configured("leaves-unknown", config("leaves"));
    // As nixos-generate-config writes it, and as people do.
    let generated = "{ config, lib, pkgs, ... }:\n\n{\n  boot.x = 1;\n  system.stateVersion = \"24.11\"; # Did you read the comment?\n}\n";
    let older = "{ config, pkgs, ... }:\n{\n  # system.stateVersion = \"1\";\n\tsystem.stateVersion=\"24.11\";networking.hostName = \"x\";\n}\n";
    let nested = "{ ... }: { system.stateVersion = \"24.11\"; }\n";
    for configuration in [generated, older, nested] {
        for (name, expected) in [
            ("sets", Some("23.05")),
            ("leaves", Some("24.05")),
            ("sets-unknown", Some("23.05")),
            ("leaves-unknown", None),
        ] {
            let export = nix.path("export");
            fs::remove_dir_all(&export).unwrap();
            fs::create_dir(&export).unwrap();
            let rendered = fixture.run(["export", name, "-q", "-o", "-"]).ok().stdout;
            fs::write(nix.path("copy.tar"), rendered).unwrap();
            let mut tar = Command::new("tar");
            tar.arg("-xf").arg(nix.path("copy.tar")).arg("-C").arg(&export);
            succeed(tar.args(["--strip-components=3", "./etc/nixos"]));
            let _ = fs::remove_file(export.join("flake.lock"));
            let flake = fs::read_to_string(export.join("flake.nix")).unwrap();
            fs::write(export.join("flake.nix"), nix.with_own_inputs(&flake)).unwrap();
            fs::write(export.join("configuration.nix"), configuration).unwrap();
            // Where a module sets it, the target's line is a contradiction.
            let option = "system.stateVersion or null";
            if name.starts_with("sets") {
                assert!(!nix.evaluates(option), "{name}: the stub judges nothing");
            }
            prepare(&export);
            let found = nix.config(option);
            assert_eq!(found.as_str(), expected, "{name}: {configuration}");
        }
    }
}
