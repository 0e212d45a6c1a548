//! What Codchi's state holds in confidence is in the export and nowhere else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use codchifs::codchi::{MachineConfig, MachineName};
use common::fixture::{Fixture, Maker, Place};
use common::mounted::Mounted;
use common::readers::Reader;
use common::snapshot::Snapshot;
use common::{Done, contains, program, run};
use std::fs;
use std::path::{Path, PathBuf};

/// In every secret of these tests.
const PLANTED: &str = "Planted";

const CONFIG: &str = r#"{
    "nixpkgs_from": "tokened",
    "modules": {
        "tokened": "https://git.example/repo?token=PlantedToken&ref=main#nixosModules.default",
        "user": "https://someone:PlantedLogin@git.example/repo#nixosModules.default",
        "plain": "github://github.com/a/b?#nixosModules.default"
    },
    "secrets": {"api_key": "PlantedValue", "QUOTED": "it's PlantedQuote\n"}
}"#;

const FLAKE: &str = r#"{ inputs.codchi_driver.url = "git+https://x:PlantedDriver@git.example/codchi?token=PlantedQuery&ref=main"; outputs = _: { }; }"#;

const LOCK: &str = r#"{
    "nodes": {
        "root": {"inputs": {"tokened": "tokened", "codchi_driver": "codchi_driver"}},
        "codchi_driver": {
            "locked": {"type": "git", "url": "https://x:PlantedDriver@git.example/codchi?token=PlantedQuery",
                "ref": "main", "rev": "0123456789012345678901234567890123456789"},
            "original": {"type": "git", "url": "https://x:PlantedDriver@git.example/codchi?token=PlantedQuery",
                "ref": "main"},
            "inputs": {"archive": "archive"}
        },
        "archive": {
            "locked": {"type": "tarball", "token": "PlantedField",
                "url": "https://git.example/a.tgz?private_token=PlantedTarball&access_token=PlantedTarball"},
            "original": {"type": "tarball", "token": "PlantedField",
                "url": "https://git.example/a.tgz?private_token=PlantedTarball"}
        },
        "tokened": {
            "locked": {"type": "git", "url": "https://PlantedToken@git.example/repo", "ref": "main",
                "rev": "0123456789012345678901234567890123456789"},
            "original": {"type": "git", "url": "https://PlantedToken@git.example/repo", "ref": "main"},
            "inputs": {"other": "other"}
        },
        "other": {
            "locked": {"type": "git", "url": "https://x:PlantedLock@git.example/other",
                "rev": "0123456789012345678901234567890123456789"},
            "original": {"type": "git", "url": "https://x:PlantedLock@git.example/other"}
        }
    },
    "root": "root",
    "version": 7
}"#;

/// What the default export holds.
const IN_THE_EXPORT: &[&str] = &[
    "PlantedToken",
    "PlantedLogin",
    "PlantedValue",
    "PlantedQuote",
    "PlantedDriver",
    "PlantedLock",
    "PlantedQuery",
    "PlantedTarball",
    "PlantedField",
];

/// Configs that cannot be read, with a secret where the fault is.
const BROKEN: &[(&str, &str)] = &[
    ("cut", r#"{"modules":{},"secrets":{"a":"PlantedCut"#),
    ("after", r#"{"modules":{},"secrets":{"a":"Planted" "PlantedAfter"}}"#),
    ("bare", r#"{"modules":{},"secrets":{"a":PlantedBare}}"#),
    ("escape", r#"{"modules":{},"secrets":{"a":"\qPlantedEscape"}}"#),
    ("list", r#"{"modules":{},"secrets":["PlantedList"]}"#),
    ("nested", r#"{"modules":{},"secrets":{"a":{"b":"PlantedNested"}}}"#),
    ("text", r#"{"modules":"PlantedText","secrets":{}}"#),
    ("whole", r#""PlantedWhole""#),
    ("doubled", r#"{"modules":{},"secrets":{},"secrets":{"a":"PlantedDoubled"}}"#),
    ("scheme", r#"{"modules":{"x":"PlantedScheme://host/y?token=PlantedToken#z"},"secrets":{}}"#),
    ("no-scheme", r#"{"modules":{"x":"PlantedToken@git.example/y#z"},"secrets":{}}"#),
    ("no-host", r#"{"modules":{"x":"https://PlantedToken?token=PlantedToken#z"},"secrets":{}}"#),
    ("fragment", r#"{"modules":{"x":"https://h/y?token=PlantedToken#a..b"},"secrets":{}}"#),
    (
        "branch",
        r#"{"modules":{"x":"github://h/o/r/b?ref=PlantedRef&token=PlantedToken#a"},"secrets":{}}"#,
    ),
    ("name", r#"{"nixpkgs_from":{"a":"PlantedName"},"modules":{},"secrets":{}}"#),
];

/// Flakes and locks that cannot be used, of machines that can.
const BROKEN_FILES: &[(&str, &str, &str)] = &[
    ("lock-cut", "flake.lock", r#"{"nodes":{"x":{"locked":{"url":"https://PlantedToken@h"#),
    ("lock-no-root", "flake.lock", r#"{"nodes":{"PlantedNode":{}},"root":"PlantedRoot"}"#),
    ("lock-text", "flake.lock", r#""https://PlantedToken@h""#),
    ("flake-cut", "flake.nix", r#"{ inputs.codchi_driver.url = "https://PlantedToken@h"#),
    (
        "flake-computed",
        "flake.nix",
        r#"{ inputs.codchi_driver.url = "https://${"PlantedToken"}@h"; }"#,
    ),
];

fn planted(fixture: &Fixture) -> Place {
    let place = fixture.configured("m", CONFIG);
    fs::write(place.config.join("flake.nix"), FLAKE).unwrap();
    fs::write(place.config.join("flake.lock"), LOCK).unwrap();
    for (name, config) in BROKEN {
        fixture.configured(name, config);
    }
    for (name, file, content) in BROKEN_FILES {
        fs::write(fixture.empty(name).config.join(file), content).unwrap();
    }
    place
}

fn names() -> Vec<&'static str> {
    let broken = BROKEN.iter().map(|(name, _)| *name);
    ["m"].into_iter().chain(broken).chain(BROKEN_FILES.iter().map(|(name, ..)| *name)).collect()
}

#[track_caller]
fn holds_nothing(what: &str, text: impl AsRef<[u8]>) {
    let text = text.as_ref();
    if let Some(at) = text.windows(PLANTED.len()).position(|bytes| bytes == PLANTED.as_bytes()) {
        let part = &text[at.saturating_sub(200)..(at + 100).min(text.len())];
        panic!("{what} holds a secret: ...{}...", String::from_utf8_lossy(part));
    }
}

/// Both outputs of a program.
fn said_nothing(what: &str, done: &Done) {
    holds_nothing(what, &done.stdout);
    holds_nothing(what, &done.stderr);
}

#[test]
fn nothing_that_is_printed_or_logged_holds_a_secret() {
    let fixture = Fixture::new();
    planted(&fixture);
    for arguments in [&["list"][..], &["list", "--json"], &["-vvv", "list"]] {
        said_nothing(&arguments.join(" "), &fixture.run(arguments));
    }
    let output = fixture.path().join("m.tar");
    for name in names() {
        let arguments = ["-vvv", "export", name, "-o", output.to_str().unwrap()];
        let done = fixture.run(arguments);
        said_nothing(&format!("export {name}"), &done);
        let broken = BROKEN.iter().any(|(broken, _)| *broken == name);
        assert!(!broken || done.code == Some(1), "{name} is not broken: {}", done.err());
    }

    let mut command = fixture.command(["-vvv", "mount", "--foreground"]);
    command.env("CODCHIFS_LOG", "trace");
    let mounted = Mounted::of(command, fixture.mount_point(), fixture.path().join("log"));
    for name in names() {
        let directory = mounted.point().join(name);
        let mut listed: Vec<PathBuf> =
            fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        listed.retain(|path| path.extension().is_some_and(|kind| kind == "json" || kind == "md"));
        assert!(!listed.is_empty());
        let before: Vec<_> = listed.iter().map(|path| fs::read(path).unwrap()).collect();
        let _ = fs::copy(mounted.tar(name), &output);
        let after: Vec<_> = listed.iter().map(|path| fs::read(path).unwrap()).collect();
        for bytes in before.into_iter().chain(after) {
            holds_nothing(&format!("a file beside the export of {name}"), bytes);
        }
    }
    Snapshot::of(&mounted.rootfs("m"));
    let log = mounted.log();
    assert!(log.contains("READ"), "a trace of nothing");
    holds_nothing("the log", log);
    mounted.unmount();
}

#[test]
fn debug_output_holds_no_secret() {
    let name = MachineName::new("m").unwrap();
    let good = MachineConfig::parse(&name, Path::new("/c"), CONFIG).unwrap();
    holds_nothing("Debug of a config", format!("{good:?} {good:#?}"));
    for (what, config) in BROKEN {
        let error = MachineConfig::parse(&name, Path::new("/c"), config);
        let error = error.map(drop).expect_err(what);
        holds_nothing(what, format!("{error} {error:?}"));
    }
}

/// The archive at `path`, extracted.
fn extracted(fixture: &Fixture, path: &Path, to: &str) -> PathBuf {
    let directory = fixture.scratch(to);
    Reader::Gnu.extract(path, &directory, "C");
    directory
}

#[test]
fn an_export_without_secrets_has_another_name_and_says_what_is_missing() {
    let fixture = Fixture::new();
    let place = planted(&fixture);
    let home = Maker::new(&place.home);
    let credentials = [".ssh/id_ed25519", ".git-credentials", ".bash_history"];
    for path in credentials {
        home.file(path, b"a credential\n");
    }
    home.file(".ssh/known_hosts", b"no credential\n");

    let whole = Mounted::new(&fixture);
    let bytes = fs::read(whole.tar("m")).unwrap();
    for secret in IN_THE_EXPORT {
        assert!(contains(&bytes, secret.as_bytes()), "{secret} was not planted");
    }
    assert!(fs::symlink_metadata(whole.point().join("m/export-redacted.tar")).is_err());
    whole.unmount();

    let mounted = Mounted::with(&fixture, &["--secrets=omit"]);
    assert!(fs::symlink_metadata(mounted.tar("m")).is_err(), "there is an export.tar as well");
    let copy = fixture.path().join("copy.tar");
    run(program("cp", [mounted.point().join("m/export-redacted.tar"), copy.clone()])).silent();
    holds_nothing("the redacted archive", fs::read(&copy).unwrap());
    let tree = extracted(&fixture, &copy, "out");
    let env = fs::read_to_string(tree.join("etc/codchi-env")).unwrap();
    assert!(env.contains("export CODCHI_QUOTED=''\n"), "{env}");
    let flake = fs::read_to_string(tree.join("etc/nixos/flake.nix")).unwrap();
    for part in
        ["\"git+https://git.example/repo?ref=main\"", "\"git+https://git.example/codchi?ref=main\""]
    {
        assert!(flake.contains(part), "{flake}");
    }
    let lock = fs::read_to_string(tree.join("etc/nixos/flake.lock")).unwrap();
    for url in ["repo", "codchi", "a.tgz", "other"] {
        assert!(lock.contains(&format!("\"https://git.example/{url}\"")), "{url}: {lock}");
    }

    let report = mounted.report("m");
    holds_nothing("report.json", report.to_string());
    let list = |key: &str| -> Vec<String> {
        let value = report["redacted"][key].as_array().unwrap_or_else(|| panic!("{key}: {report}"));
        value.iter().map(|item| item.as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(list("secrets"), ["CODCHI_QUOTED", "CODCHI_api_key"]);
    assert_eq!(list("tokens_of_modules"), ["codchi_driver", "tokened", "user"]);
    let mut inside = list("credentials_still_inside");
    inside.sort();
    let mut expected = credentials.map(|path| format!("/home/codchi/{path}"));
    expected.sort();
    assert_eq!(inside, expected);

    // The same bytes without a mount, under a name that tells.
    let mut export = fixture.command(["export", "m", "--secrets=omit"]);
    run(export.current_dir(fixture.outside())).ok();
    run(program("cmp", [copy, fixture.outside().join("m-redacted.tar")])).silent();
    mounted.unmount();
}
