use super::*;
use crate::codchi::MachineName;
use std::path::Path;

fn rendered(json: &str) -> String {
    let name = MachineName::new("web").unwrap();
    render(&MachineConfig::parse(&name, Path::new("/c"), json).unwrap())
}

#[test]
fn quotes_sorts_and_overrides() {
    let json = r#"{"secrets": {"Z": "it's $A `b` \"c\" \\", "DEBUG": "1", "1": "ü\n\u0000",
        "A-B": "v", "evil\nexport PWNED=1 #": "v", "MACHINE_NAME": "other", "é": "v"}}"#;
    let expected = r#"export CODCHI_1='ü
'
# CODCHI_A-B: left out, no shell can export a variable of this name
export CODCHI_DEBUG=''
export CODCHI_MACHINE_NAME='web'
export CODCHI_Z='it'\''s $A `b` "c" '\\''
# CODCHI_evil\x0aexport PWNED=1 #: left out, no shell can export a variable of this name
# CODCHI_é: left out, no shell can export a variable of this name
"#;
    assert_eq!(rendered(json), expected);
}

#[test]
fn redacted_keeps_names_only() {
    let name = MachineName::new("web").unwrap();
    let config = MachineConfig::parse(&name, Path::new("/c"), r#"{"secrets": {"T": "hunter2"}}"#);
    let text = render(&config.unwrap().redacted());
    assert!(text.contains("export CODCHI_T=''\n") && !text.contains("hunter2"), "{text}");
}
