//! Real shells source the rendered codchi-env to exactly the values that went in.

// Clippy knows `#[test]` functions, not what they call.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use codchifs::codchi::{MachineConfig, MachineName, Secret, env};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Command;

/// Each with what makes it stop at the first fault, so that no export is lost unseen.
const SHELLS: [(&str, &[&str]); 5] = [
    ("bash", &["bash", "--norc", "-euc", ". \"$F\"; exec /usr/bin/env -0"]),
    ("dash", &["dash", "-euc", ". \"$F\"; exec /usr/bin/env -0"]),
    ("zsh", &["zsh", "-feuc", ". \"$F\"; exec /usr/bin/env -0"]),
    ("busybox", &["busybox", "sh", "-euc", ". \"$F\"; exec /usr/bin/env -0"]),
    ("fish", &["fish", "--no-config", "-c", "source $F; or exit 1; exec /usr/bin/env -0"]),
];

type Variables = BTreeMap<String, String>;

/// Every `CODCHI_` variable that `shell` has after it sourced the file for `secrets`.
fn sourced(shell: &str, secrets: &Variables) -> Variables {
    let name = MachineName::new("web").unwrap();
    let mut config = MachineConfig::parse(&name, Path::new("/c"), "{}").unwrap();
    config.secrets =
        secrets.iter().map(|(name, value)| (name.clone(), Secret::new(value))).collect();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(env::render(&config).as_bytes()).unwrap();
    let home = tempfile::tempdir().unwrap();
    let (_, argv) = SHELLS.iter().find(|(name, _)| *name == shell).unwrap();
    let out = Command::new(argv[0])
        .args(&argv[1..])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", home.path())
        .env("LC_ALL", "C.UTF-8")
        .env("F", file.path())
        .output()
        .unwrap_or_else(|fault| panic!("{shell} is needed for this test: {fault}"));
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && stderr.is_empty(), "{shell}: {} {stderr}", out.status);
    let text = String::from_utf8(out.stdout).unwrap();
    text.split('\0')
        .filter_map(|line| line.strip_prefix("CODCHI_")?.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn expected(secrets: &Variables) -> Variables {
    let mut expected = secrets.clone();
    expected.insert("DEBUG".to_owned(), String::new());
    expected.insert("MACHINE_NAME".to_owned(), "web".to_owned());
    expected
}

#[test]
fn exact_in_every_shell() {
    let values = [
        "",
        " ",
        "plain",
        "it's",
        "''",
        "'",
        "\"",
        "$HOME ${HOME} $(id) `id`",
        "a\nb",
        "\n",
        "\n\n",
        "a\n",
        "\\",
        "\\\\",
        "\\'",
        "'\\",
        "\\n",
        "a\\\n",
        "end\\",
        "#!;&|<>*?[]{}~",
        "ü€😀\u{301}",
        "\u{1}\u{7f}\t\r",
        "!!",
        "-n",
        "=",
        "a=b=c",
        "a:b:c",
        "\u{feff}",
    ];
    let mut secrets = Variables::new();
    for (number, value) in values.iter().enumerate() {
        secrets.insert(format!("V{number}"), (*value).to_owned());
    }
    secrets.insert("1".to_owned(), "digit".to_owned());
    secrets.insert("DEBUG".to_owned(), "overridden".to_owned());
    for (shell, _) in SHELLS {
        assert_eq!(sourced(shell, &secrets), expected(&secrets), "{shell}");
    }
}

#[test]
fn names_no_shell_can_export_are_left_out() {
    let odd =
        ["A-B", "A.B", "A:B", "A B", "é", "A\nexport CODCHI_PWNED=1\n", "$(exit 9)", "'", "\r"];
    let secrets: Variables = odd.iter().map(|name| ((*name).into(), "value".into())).collect();
    for (shell, _) in SHELLS {
        assert_eq!(sourced(shell, &secrets), expected(&Variables::new()), "{shell}");
    }
}

fn value() -> impl Strategy<Value = String> {
    let hostile = "['\"\\\\$`\n\r\t !#(){}a\u{e9}]{0,12}";
    prop_oneof![hostile, any::<String>().prop_map(|text| text.replace('\0', ""))]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]
    #[test]
    fn exact_for_any_value(values in prop::collection::vec(value(), 1..8)) {
        let secrets: Variables =
            values.into_iter().enumerate().map(|(n, value)| (format!("V{n}"), value)).collect();
        for (shell, _) in SHELLS {
            prop_assert_eq!(sourced(shell, &secrets), expected(&secrets), "{}", shell);
        }
    }

    #[test]
    fn any_name_stays_on_its_line(name in any::<String>()) {
        let secrets = Variables::from([(name.clone(), "value".to_owned())]);
        for shell in ["dash", "bash"] {
            let mut found = sourced(shell, &secrets);
            found.remove(&name);
            let mut expected = expected(&Variables::new());
            expected.remove(&name);
            prop_assert_eq!(found, expected, "{}", shell);
        }
    }
}
