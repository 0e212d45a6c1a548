use super::*;
use crate::codchi::{MachineName, Secret};
use std::path::Path;

fn config(json: &str) -> MachineConfig {
    let name = MachineName::new("web").unwrap();
    MachineConfig::parse(&name, Path::new("/c"), json).unwrap()
}

fn input_of(url: &str) -> String {
    input(&url.parse().unwrap())
}

#[test]
fn inputs_by_kind() {
    let rev = "0123456789abcdef0123456789abcdef01234567";
    for (url, expected) in [
        (
            "file://a b/c?ref=x".to_owned(),
            r#".url = "git+file:///home/codchi/a%20b/c?ref=x""#.into(),
        ),
        ("file:///x/?#".to_owned(), r#".url = "git+file:///home/codchi/x""#.to_owned()),
        (
            format!("github://github.com/o/r?commit={rev}&ref=main#"),
            format!(r#".url = "github:o/r?rev={rev}&host=github.com""#),
        ),
        (
            "github://ghe.corp/o/r?ref=feat/x%C3%BC&token=T&dir=sub&submodules=1&x#".to_owned(),
            r#".url = "github:o/r?ref=feat/x%C3%BC&host=ghe.corp""#.to_owned(),
        ),
        (
            "github://github.com/o/r/feat/x".to_owned(),
            r#".url = "github:o/r?ref=feat/x&host=github.com""#.to_owned(),
        ),
        (
            "sourcehut://git.sr.ht/~me/r?#".to_owned(),
            r#".url = "sourcehut:~me/r?host=git.sr.ht""#.to_owned(),
        ),
        (
            "gitlab://gitlab.com/g/r?#".to_owned(),
            r#".url = "gitlab:g/r?host=gitlab.com""#.to_owned(),
        ),
        (
            format!("gitlab://gl/a/b/c?ref=x&commit={rev}#"),
            format!(
                r#" = {{ type = "gitlab"; owner = "a%2Fb"; repo = "c"; host = "gl"; rev = "{rev}"; }}"#
            ),
        ),
        (
            format!("ssh://git@h:22/r.git?commit={rev}&ref=m#"),
            format!(r#".url = "git+ssh://git@h:22/r.git?ref=m&rev={rev}""#),
        ),
        (
            "https://h/r?token=u:t&ref=${x}\"#".to_owned(),
            r#".url = "git+https://u:t@h/r?ref=%24%7Bx%7D%22""#.to_owned(),
        ),
        // Escapes are undone by nix, in Codchi as here.
        (
            "file://a%20b/100%25/%C3%BC#".to_owned(),
            r#".url = "git+file:///home/codchi/a%20b/100%25/%C3%BC""#.to_owned(),
        ),
    ] {
        assert_eq!(input_of(&url), expected, "{url}");
    }
}

#[test]
fn only_a_full_commit_id_is_a_revision() {
    let full = "0123456789ABCDEF0123456789abcdef01234567";
    let small = full.to_ascii_lowercase();
    let sha256 = "0123456789abcdef".repeat(4);
    for (commit, rev) in [
        (full, Some(&*small)),
        (&full.replace('0', "%30"), Some(&*small)),
        ("0123456", None),
        (&sha256, None),
        ("v1.2", None),
        ("main", None),
        ("", None),
        ("%20", None),
        (&full.replace('f', "g"), None),
        (&format!("sha1:{full}"), None),
        (&format!("{full}%0a"), None),
    ] {
        let rev = rev.map(|rev| format!("rev={rev}")).unwrap_or_default();
        let both = |other: &str| match rev.is_empty() {
            true => other.to_owned(),
            false => format!("{other}&{rev}"),
        };
        // A forge takes no branch beside a commit.
        let forge = if rev.is_empty() { "ref=b" } else { &*rev };
        for (place, expected) in [
            ("https://h/r", format!("git+https://h/r?{}", both("ref=b"))),
            ("ssh://git@h/r", format!("git+ssh://git@h/r?{}", both("ref=b"))),
            ("file://r", format!("git+file:///home/codchi/r?{}", both("ref=b"))),
            ("github://github.com/o/r", format!("github:o/r?{forge}&host=github.com")),
            ("sourcehut://git.sr.ht/~o/r", format!("sourcehut:~o/r?{forge}&host=git.sr.ht")),
        ] {
            let url = format!("{place}?commit={commit}&ref=b#a");
            assert_eq!(input_of(&url), format!(".url = \"{expected}\""), "{url}");
        }
        let found = config(&format!(r#"{{"modules": {{"m": "https://h/r?commit={commit}#a"}}}}"#));
        let warned = found.warnings().iter().any(|text| text.contains("module \"m\""));
        assert_eq!(warned, rev.is_empty() && !commit.is_empty(), "{commit}");
    }
}

#[test]
fn nix_strings_and_attributes() {
    assert_eq!(quote("a\"\\${b}$c$${d}\n\r\t"), r#""a\"\\\${b}$c$\${d}\n\r\t""#);
    let url: ModuleUrl = "file://x?#nixosModules.or.a'b-c.\"${x}\".1".parse().unwrap();
    assert_eq!(attribute_path(&url), r#"nixosModules."or".a'b-c."\${x}"."1""#);
}

#[test]
fn nixpkgs_of_a_module_that_is_gone() {
    let text = render(&config(r#"{"nixpkgs_from": "gone"}"#), System::Aarch64);
    assert!(text.contains("= inputs.codchi_driver.inputs.nixpkgs.lib.nixosSystem {"), "{text}");
    assert!(text.contains(r#"system = "aarch64-linux";"#), "{text}");
}

#[test]
fn redacted_has_no_tokens() {
    let mut config = config(r#"{"modules": {"m": "https://h/r?token=hunter2#a"}}"#);
    let driver = r#"{ inputs.codchi_driver.url = "git+https://hunter2@h/driver"; }"#;
    config.flake_nix = Some(Secret::new(driver));
    assert!(config.has_token() && render(&config, System::X86_64).contains("hunter2@h/driver"));
    let redacted = config.redacted();
    let text = render(&redacted, System::X86_64);
    assert!(!redacted.has_token() && !text.contains("hunter2"), "{text}");
    assert!(text.contains("git+https://h/driver") && text.contains("git+https://h/r"), "{text}");
}
