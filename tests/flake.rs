//! The flake of the project: its package and its module for NixOS, evaluated by nix with stubs of nixpkgs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::fixture::Fixture;
use common::{Done, program, run};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// The package, and what the module makes of these settings of `services.codchifs`.
fn evaluate(settings: &str) -> Done {
    let temp = tempfile::tempdir().unwrap();
    let mut nix = program("nix-instantiate", ["--eval", "--strict", "--json"]);
    for name in ["NIX_STATE_DIR", "NIX_STORE_DIR", "NIX_LOG_DIR", "NIX_CONF_DIR", "HOME"] {
        nix.env(name, temp.path().join(name));
    }
    nix.env("NIX_REMOTE", "local").arg(top().join("tests/nix-stubs/module.nix"));
    nix.args(["--arg", "flake"]).arg(top().join("flake.nix")).args(["--arg", "settings", settings]);
    run(nix)
}

fn evaluated(settings: &str) -> Value {
    serde_json::from_slice(&evaluate(settings).ok().stdout).unwrap()
}

#[test]
fn no_name_in_the_nix_files_is_undefined() {
    for file in ["flake.nix", "packaging/nix/package.nix", "packaging/nix/module.nix"] {
        run(program("nix-instantiate", ["--parse"]).arg(top().join(file))).ok();
    }
}

#[test]
fn a_module_that_is_off_sets_nothing_and_odd_settings_are_refused() {
    assert_eq!(evaluated("{ users.alice = { }; }")["config"], json!({}));
    for (settings, words) in [
        ("{ enable = true; users.alice.alow = \"root\"; }", "no option alow"),
        ("{ enable = true; users.alice.allow = \"all\"; }", "no word of root other nobody"),
        ("{ enable = true; users.alice.machines = \"m\"; }", "no list"),
    ] {
        let err = evaluate(settings).exits(1).err();
        assert!(err.contains(words), "{words}: {err}");
    }
}

#[test]
fn each_user_has_a_service_whose_line_codchifs_takes() {
    let users = r#"
        root = { };
        alice = { allow = "other"; machines = [ "m" ]; mountPoint = "/home/alice/my $machines";
            exclude = [ "*.o" "100%" ]; secrets = "omit"; extraArgs = [ "--sparse=no" ]; };
        bob.allow = "nobody";
    "#;
    let value =
        evaluated(&format!("{{ enable = true; userAllowOther = true; users = {{{users}}}; }}"));
    let config = &value["config"];
    assert_eq!(config["programs"]["fuse"]["userAllowOther"], true);
    assert_eq!(config["system"]["fsPackages"], config["systemd"]["packages"]);
    let services = &config["systemd"]["services"];
    let fixture = Fixture::new();
    fixture.sample("m");
    for (user, point, words) in [
        ("root", "/mnt/codchi/root", &["-o", "allow_root"][..]),
        (
            "alice",
            "/home/alice/my $machines",
            &["allow_other", "--machine=m", "--exclude=100%", "--secrets=omit", "--sparse=no"],
        ),
        ("bob", "/mnt/codchi/bob", &["--secrets=include"]),
    ] {
        let service = &services[format!("codchifs@{user}")];
        assert_eq!(service["overrideStrategy"], "asDropin", "{service}");
        let lines = &service["serviceConfig"];
        assert_eq!(unescaped(&lines["ExecStartPre"]), ["/coreutils/bin/mkdir", "-p", point]);
        let line = unescaped(&lines["ExecStart"]);
        assert!(words.iter().all(|word| line.iter().any(|found| found == word)), "{line:?}");
        // The same, of the machines that there are, where something can be mounted.
        let [program, option, name, args @ .., last] = &line[..] else { panic!("{line:?}") };
        let here = ["/package/bin/codchifs", "--user", user, point];
        assert_eq!([program, option, name, last], here, "{line:?}");
        let mut command = fixture.command(args);
        run(command.arg("--fake").arg(fixture.mount_point())).ok();
    }
    let wrong = evaluated("{ enable = true; users.root.extraArgs = [ \"--sparse=maybe\" ]; }");
    let line = unescaped(
        &wrong["config"]["systemd"]["services"]["codchifs@root"]["serviceConfig"]["ExecStart"],
    );
    let args = &line[3..line.len() - 1];
    fixture.run(args.iter().map(String::as_str).chain(["--fake", "/mnt"])).exits(2);
}

/// The words of a line, after the empty one that takes away what the unit has.
fn unescaped(lines: &Value) -> Vec<String> {
    let [Value::String(empty), Value::String(line)] = &lines.as_array().unwrap()[..] else {
        panic!("{lines}")
    };
    assert_eq!(empty, "");
    // A dash: it may fail.
    let line = line.strip_prefix('-').unwrap_or(line);
    let words = serde_json::Deserializer::from_str(line).into_iter::<String>();
    words.map(|word| word.unwrap().replace("%%", "%").replace("$$", "$")).collect()
}

/// systemd reads the unit of the package with the drop-in of the module as NixOS writes it.
#[test]
fn a_service_of_the_module_is_the_packages_and_as_hardened() {
    let value = evaluated("{ enable = true; users.alice = { }; users.bob.allow = \"other\"; }");
    let out = installed(&value);
    let at = out.path().join("lib/systemd/system");
    let template = at.join("codchifs@.service");
    // Where it looks whether the programs are there.
    let real = |text: &str| {
        let bin = out.path().join("bin/codchifs");
        text.replace("/package/bin/codchifs", bin.to_str().unwrap())
            .replace("/coreutils/bin/", "/usr/bin/")
    };
    let unit = real(&fs::read_to_string(&template).unwrap());
    fs::write(&template, &unit).unwrap();
    let bin = out.path().join("bin/codchifs");
    let packaged = fs::read_to_string(top().join("packaging/systemd/codchifs@.service")).unwrap();
    assert_eq!(unit, packaged.replace("/usr/bin/codchifs", bin.to_str().unwrap()));

    let services = value["config"]["systemd"]["services"].as_object().unwrap();
    assert_eq!(services.len(), 2);
    let exposure = |name: &str| {
        let words = ["security", "--offline=true", "--no-pager", "--json=short"];
        let mut analyze = program("systemd-analyze", words);
        run(analyze.arg(name).env("SYSTEMD_UNIT_PATH", &at).current_dir(&at)).ok().out()
    };
    let of_package = exposure("codchifs@carol.service");
    assert!(of_package.contains("MemoryDenyWriteExecute"), "{of_package}");
    for (name, service) in services {
        let mut text = String::from("[Service]\n");
        for (key, lines) in service["serviceConfig"].as_object().unwrap() {
            for line in lines.as_array().unwrap() {
                text += &format!("{key}={}\n", real(line.as_str().unwrap()));
            }
        }
        let directory = at.join(format!("{name}.service.d"));
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("overrides.conf"), text).unwrap();
        let instance = format!("{name}.service");
        let mut verify = program("systemd-analyze", ["verify", "--man=no", &instance]);
        run(verify.env("SYSTEMD_UNIT_PATH", format!("{}:", at.display()))).silent();
        assert_eq!(exposure(&instance), of_package, "{name}");
    }
}

/// Its phase of installation is run as nix would after cargo's part.
fn installed(value: &Value) -> tempfile::TempDir {
    let out = tempfile::tempdir().unwrap();
    let bin = out.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let built = Path::new(env!("CARGO_BIN_EXE_codchifs")).parent().unwrap();
    for name in ["codchifs", "mount-codchifs"] {
        fs::copy(built.join(name), bin.join(name)).unwrap();
    }
    let mut shell = program("bash", ["-euc", value["postInstall"].as_str().unwrap()]);
    run(shell.env("out", out.path()).current_dir(top())).silent();
    out
}

#[test]
fn the_package_installs_the_helper_its_pages_and_a_unit_without_paths_of_other_systems() {
    let value = evaluated("{ enable = true; }");
    assert_eq!(value["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(value["lock"], true);
    let out = installed(&value);
    let bin = out.path().join("bin");
    for name in ["mount.codchifs", "mount.fuse.codchifs"] {
        run(program(bin.join(name).to_str().unwrap(), ["--help"])).ok();
    }
    let unit = out.path().join("lib/systemd/system/codchifs@.service");
    let unit = fs::read_to_string(unit).unwrap();
    let start = format!("ExecStart={}/codchifs --user %I mount ", bin.display());
    assert!(unit.contains(&start) && unit.contains("ExecStartPre=-/coreutils/bin/mkdir"), "{unit}");
    assert!(!unit.contains("/usr/"), "{unit}");
    let made = tempfile::tempdir().unwrap();
    run(program(bin.join("codchifs").to_str().unwrap(), ["generate"]).arg(made.path())).silent();
    for (there, here) in [
        ("man/man1/codchifs.1", "man/codchifs.1"),
        ("man/man8/mount.codchifs.8", "man/mount.codchifs.8"),
        ("man/man8/mount.fuse.codchifs.8", "man/mount.codchifs.8"),
        ("bash-completion/completions/codchifs", "completions/codchifs.bash"),
        ("zsh/site-functions/_codchifs", "completions/_codchifs"),
        ("fish/vendor_completions.d/codchifs.fish", "completions/codchifs.fish"),
    ] {
        let there = out.path().join("share").join(there);
        run(program("cmp", [there, made.path().join(here)])).silent();
    }
    assert!(out.path().join("lib/tmpfiles.d/codchifs.conf").exists());
}
