use super::*;
use crate::codchi::Time;

fn parse(text: &str) -> Result<MachineConfig, Error> {
    MachineConfig::parse(&MachineName::new("web").unwrap(), Path::new("/c/machine/web"), text)
}

#[test]
fn parses_what_codchi_writes() {
    let config = parse(
        r#"{"nixpkgs_from": "m", "modules": {"m": "https://h/r?token=hunter2#nixosModules.x"},
            "secrets": {"A": "hunter2"}, "unknown": [1]}"#,
    )
    .unwrap();
    assert_eq!(config.nixpkgs_from.as_deref(), Some("m"));
    assert_eq!(config.modules["m"].attribute_path(), ["nixosModules", "x"]);
    assert_eq!(config.secrets["A"].expose(), "hunter2");
    assert!(config.has_token() && !config.redacted().has_token());
    assert!(!format!("{config:?} {config:#?} {}", config.secrets["A"]).contains("hunter2"));
    assert_eq!(config.driver_url(), driver::DEFAULT_URL);
    let empty = parse("{}").unwrap();
    assert!(empty.modules.is_empty() && empty.secrets.is_empty() && empty.nixpkgs_from.is_none());
}

#[test]
fn knows_the_inputs_with_a_token() {
    let mut config = parse(
        r#"{"modules": {"z": "https://h/r?token=hunter2#a", "b": "https://hunter2@h/r?#a",
            "c": "github://h/o/r?#a"}}"#,
    )
    .unwrap();
    assert_eq!(config.inputs_with_token(), ["b", "z"]);
    config.modules.clear();
    for (driver, token) in [
        ("git+https://h/d?token=hunter2&ref=main", true),
        ("git+https://u:hunter2@h/d", true),
        ("git+https://h/d?ref=main", false),
        ("github:o/r", false),
    ] {
        let flake = format!("{{ inputs.codchi_driver.url = \"{driver}\"; }}");
        config.flake_nix = Some(Secret::new(flake));
        assert_eq!(config.has_token(), token, "{driver}");
        let expected = if token { vec![DRIVER] } else { Vec::new() };
        assert_eq!(config.inputs_with_token(), expected, "{driver}");
        let redacted = config.redacted();
        assert!(!redacted.has_token() && !redacted.driver_url().contains("hunter2"), "{driver}");
    }
}

#[test]
fn refuses_in_words_without_secrets() {
    let json = |fault: &str, place: &str| {
        format!(
            "cannot parse /c/machine/web/config.json of machine web: {fault} at {place}; repair it \
             or restore it from a backup"
        )
    };
    let module = |name: &str, fault: &str, remedy: &str| {
        format!(
            "cannot use module \"{name}\" of machine web in /c/machine/web/config.json: {fault}; \
             {remedy}"
        )
    };
    let rename = "rename it with `codchi module set --new-name`";
    for (text, expected) in [
        (
            "",
            "cannot use /c/machine/web/config.json of machine web: it is empty; run `codchi init \
             web` or restore it from a backup"
                .to_owned(),
        ),
        (r#"{"secrets": {"A": "hunter2"#, json("the text ends too early", "line 1 column 26")),
        (" \n", json("the text ends too early", "line 2 column 0")),
        ("hunter2", json("it is not valid JSON", "line 1 column 1")),
        (r#"{"secrets": "hunter2"}"#, json("a value has the wrong type", "line 1 column 21")),
        (r#"{"secrets": {"A": 1}}"#, json("a value has the wrong type", "line 1 column 19")),
        (
            r#"{"modules": {"A": ["hunter2"]}}"#,
            json("a value has the wrong type", "line 1 column 18"),
        ),
        ("[\"hunter2\"]", json("a value has the wrong type", "line 1 column 1")),
        (r#"{"secrets": {"A": "hunter2"}} x"#, json("it is not valid JSON", "line 1 column 31")),
        (
            r#"{"modules": {"m": "svn://h/r?token=hunter2#a"}}"#,
            module(
                "m",
                "its URL has the unknown scheme \"svn\", codchi knows file, github, gitlab, \
                 sourcehut, http, https and ssh",
                "correct it with `codchi module set`",
            ),
        ),
        (
            r#"{"modules": {"codchi_driver": "file://x"}}"#,
            module("codchi_driver", "the name is reserved for codchi's own module", rename),
        ),
        (
            r#"{"modules": {"self": "file://hunter2"}}"#,
            module("self", "nix keeps the name for the flake itself", rename),
        ),
        (r#"{"modules": {"": "file://hunter2"}}"#, module("", "nix allows no such name", rename)),
    ] {
        let fault = parse(text).unwrap_err();
        assert_eq!(fault.to_string(), expected);
        assert!(!format!("{fault:?}").contains("hunter2"), "{fault:?}");
    }
}

#[test]
fn newest_of_the_times() {
    let time = |sec| Time { sec, nsec: 5 };
    let mut times = Times { config_ctime: time(3), ..Times::default() };
    assert_eq!(times.newest_ctime(), time(3));
    times.flake_lock_ctime = Some(time(4));
    times.flake_nix_ctime = Some(time(2));
    assert_eq!(times.newest_ctime(), time(4));
}
