//! What is quoted cannot be left, in the programs that read it: shells, nix, jq, CommonMark, a terminal.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use codchifs::quote;
use common::fixture::{Fixture, Maker};
use common::mounted::Mounted;
use common::terminals::{Shells, on_terminal};
use common::{Done, program, run, wait_until, xattr};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::num::NonZeroU16;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::{Child, Stdio};

/// What means something to somebody; the rest is drawn.
const PIECES: &[&[u8]] = &[
    b"'",
    b"\"",
    b"`",
    b"``",
    b"```",
    b"\\",
    b"\\x41",
    b"\\n",
    b"\\047",
    b"$(touch PWNED)",
    b"`touch PWNED`",
    b"${x}",
    b"$$",
    b"${",
    b"''${",
    b"$",
    b";",
    b"&",
    b"|",
    b">PWNED",
    b"<",
    b"*",
    b"?",
    b"[a]",
    b"{a,b}",
    b"~",
    b"=",
    b"#",
    b"!",
    b"!!",
    b"%",
    b"-",
    b" ",
    b"\t",
    b"\n",
    b"\r",
    b"\r\n",
    b"\x1b[2J",
    b"\x1b]0;PWNED\x07",
    b"\x9b2J",
    b"\x07",
    b"\x08",
    b"\x7f",
    b"\x01",
    "\u{9b}2J".as_bytes(),
    "\u{85}".as_bytes(),
    "\u{202e}".as_bytes(),
    "\u{2066}".as_bytes(),
    "\u{200b}".as_bytes(),
    "\u{2028}".as_bytes(),
    "\u{feff}".as_bytes(),
    "\u{e0041}".as_bytes(),
    "\u{fc}".as_bytes(),
    "\u{4e16}".as_bytes(),
    "e\u{301}".as_bytes(),
    "\u{1f600}".as_bytes(),
    b"\xff",
    b"\xc3",
    b"\xe2\x80",
    b"\xf0\x9f",
    b"</code>",
    b"<b>",
    b"[a](b)",
    b"*b*",
    b"&amp;",
    b"END OF SCRIPT",
    b"0",
    b"a",
    b"1F",
];

/// The same ones in each run, so that a failure can be repeated.
fn drawn<T: std::fmt::Debug>(strategy: impl Strategy<Value = T>, count: usize) -> Vec<T> {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    (0..count).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect()
}

/// Names without a NUL: each piece alone, then some in a row.
fn hostile() -> Vec<Vec<u8>> {
    let piece = prop_oneof![
        4 => prop::sample::select(PIECES).prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(1..=255_u8, 1..4),
    ];
    let many = prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat());
    let alone = PIECES.iter().map(|piece| piece.to_vec());
    alone.chain(drawn(many, 600)).collect()
}

/// The same as text.
fn texts() -> Vec<String> {
    hostile().iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
}

/// `program` with `input`, in an empty directory that it leaves empty.
fn fed(name: &str, args: &[&str], input: &[u8]) -> Done {
    let (dir, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(input).unwrap();
    let mut command = program("sh", ["-c", "exec \"$@\" <\"$0\""]);
    command.arg(file.path()).arg(name).args(args).current_dir(dir.path()).env("HOME", home.path());
    let done = run(command.env("LC_ALL", "C.UTF-8"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{name} did what a text says");
    done
}

#[track_caller]
fn assert_words(shell: &str, args: &[&str], script: &str, expected: &[Vec<u8>]) {
    let done = fed(shell, args, script.as_bytes()).ok();
    assert_eq!(done.err(), "", "{shell}");
    let mut words: Vec<&[u8]> = done.stdout.split(|byte| *byte == 0).collect();
    assert_eq!(words.pop(), Some(&b""[..]), "{shell}");
    for (word, expected) in words.iter().zip(expected) {
        assert_eq!(word, expected, "{shell} has {:?}", quote::name(*word).to_string());
    }
    assert_eq!(words.len(), expected.len(), "{shell}");
}

#[test]
fn a_word_to_paste_is_one_word_with_these_bytes() {
    let names = hostile();
    let line = |name: &Vec<u8>| format!("printf '%s\\0' {}\n", quote::word(name));
    let script: String = names.iter().map(line).collect();
    fed("bash", &["-n"], script.as_bytes()).silent();
    assert!(script.lines().count() == names.len(), "a word has more than one line");
    for (shell, args) in [("bash", &["--norc"][..]), ("zsh", &["-f"])] {
        assert_words(shell, args, &script, &names);
    }
    // A shell for people looks for `!` in what is typed, and for comments.
    assert_words("bash", &["--norc", "-o", "history", "-H"], &script, &names);
    let all = format!("printf '%s\\0' {}\n", quote::words(&names));
    assert_words("bash", &["--norc"], &all, &names);
}

#[test]
fn a_literal_is_one_word_in_every_shell() {
    let texts = texts();
    let line = |text: &String| format!("printf '%s\\0' {}\n", quote::literal(text));
    let script: String = texts.iter().map(line).collect();
    let expected: Vec<_> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    for (shell, args) in [
        ("bash", &["--norc"][..]),
        ("dash", &[]),
        ("zsh", &["-f"]),
        ("busybox", &["sh"]),
        ("fish", &["--no-config"]),
    ] {
        assert_words(shell, args, &script, &expected);
    }
}

#[test]
fn nix_reads_back_the_text_and_evaluates_nothing() {
    let texts = texts();
    let list: Vec<_> = texts.iter().map(|text| quote::nix_string(text)).collect();
    let source = format!("[ {} ]", list.join(" "));
    fed("nix-instantiate", &["--parse", "-"], source.as_bytes()).ok();
    let eval = ["--eval", "--strict", "--json", "-"];
    let back = fed("nix-instantiate", &eval, source.as_bytes()).ok();
    assert_eq!(serde_json::from_slice::<Vec<String>>(&back.stdout).unwrap(), texts);
    let attributes: Vec<_> = texts.iter().map(|text| quote::nix_attribute(text)).collect();
    let mut unique = attributes.clone();
    unique.sort();
    unique.dedup();
    let sets = unique.iter().map(|name| format!("(let s.{name} = 1; in s.{name})"));
    let source = format!("[ {} ]", sets.collect::<Vec<_>>().join(" "));
    let back = fed("nix-instantiate", &eval, source.as_bytes()).ok();
    assert_eq!(serde_json::from_slice::<Vec<u8>>(&back.stdout).unwrap(), vec![1; unique.len()]);
}

#[test]
fn jq_reads_back_the_value_and_its_text_shows_nothing_hidden() {
    let texts = texts();
    let value: serde_json::Value = texts
        .iter()
        .enumerate()
        .map(|(n, text)| (format!("{n}{text}"), text.clone().into()))
        .collect::<serde_json::Map<_, _>>()
        .into();
    for text in [value.to_string(), format!("{value:#}")] {
        let quoted = quote::json(&text);
        assert!(!quoted.chars().any(|c| c != '\n' && quote::is_hidden(c)));
        let back = fed("jq", &["-c", "."], quoted.as_bytes()).ok();
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&back.stdout).unwrap(), value);
    }
}

#[test]
fn code_of_markdown_is_code_and_nothing_else() {
    let names = hostile();
    let mut page = String::new();
    for name in &names {
        page += &format!(
            "a {} b\n\n{}\n\n",
            quote::code(name),
            quote::fenced("sh", &quote::word(name))
        );
    }
    let xml = fed("cmark", &["-t", "xml"], page.as_bytes()).ok().out();
    let unescaped = |text: &str| {
        text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&")
    };
    // Paragraphs and blocks of code take turns, and in a paragraph there is text, code, text.
    let mut lines = xml.lines().map(str::trim).skip_while(|line| !line.starts_with("<document"));
    lines.next();
    let mut next = |begin: &str, end: &str| {
        let mut text = lines.next().unwrap().to_owned();
        while !text.ends_with(end) {
            text += "\n";
            text += lines.next().unwrap();
        }
        let text = text.strip_prefix(begin).and_then(|text| text.strip_suffix(end));
        unescaped(text.unwrap_or_else(|| panic!("no {begin} in {xml}")))
    };
    for name in &names {
        next("<paragraph>", "");
        assert_eq!(next("<text xml:space=\"preserve\">", "</text>"), "a ");
        let expected =
            quote::name(if name.is_empty() { b"  ".as_slice() } else { name }).to_string();
        assert_eq!(next("<code xml:space=\"preserve\">", "</code>"), expected);
        assert_eq!(next("<text xml:space=\"preserve\">", "</text>"), " b");
        next("</paragraph>", "");
        let word = next("<code_block info=\"sh\" xml:space=\"preserve\">", "</code_block>");
        assert_eq!(word.trim_end(), quote::word(name).trim_end());
    }
    next("</document>", "");
}

const ROWS: NonZeroU16 = NonZeroU16::new(4).unwrap();
const COLUMNS: NonZeroU16 = NonZeroU16::new(2000).unwrap();

/// What a terminal shows after `bytes`, and everything about it that could have been changed.
fn screen_after(bytes: &[u8]) -> (String, String) {
    let mut terminal = vt100::Parser::new(ROWS, COLUMNS, 0);
    terminal.process(bytes);
    let screen = terminal.screen();
    let rows: Vec<_> = screen.rows(0, COLUMNS.get()).collect();
    let rest = rows[1..].concat();
    let state = format!(
        "{rest}{:?}{:?}{}{}{}{}",
        screen.cursor_position().0,
        screen.attributes_formatted(),
        screen.hide_cursor(),
        screen.alternate_screen(),
        screen.application_keypad(),
        screen.bracketed_paste(),
    );
    (rows[0].clone(), state)
}

#[test]
fn a_terminal_shows_a_name_and_changes_nothing() {
    let (_, untouched) = screen_after(b"");
    let mut seen = std::collections::HashMap::new();
    for name in hostile() {
        let message = str::from_utf8(&name).map(quote::message).ok();
        for text in [quote::name(&name).to_string()].into_iter().chain(message) {
            let (shown, state) = screen_after(text.as_bytes());
            assert_eq!(state, untouched, "{text:?}");
            assert_eq!(shown.trim_end(), text.trim_end(), "{text:?}");
            let mut terminal = vt100::Parser::new(ROWS, COLUMNS, 0);
            terminal.process(text.as_bytes());
            let column = usize::from(terminal.screen().cursor_position().1);
            assert_eq!(column, quote::width(&text), "{text:?}");
        }
        let shown = quote::name(&name).to_string();
        if let Some(other) = seen.insert(shown, name.clone()) {
            assert_eq!(other, name, "two names look the same");
        }
    }
}

#[test]
fn bsdtar_reads_back_the_names_of_a_manifest() {
    let mut names = hostile();
    names.retain(|name| !name.is_empty() && !name.contains(&b'/'));
    names.sort();
    names.dedup();
    let line = |name: &Vec<u8>| {
        format!(
            "./{} type=dir mode=0755 uid=0 gid=0 time=0.0\n",
            quote::vis(&[b"n", &**name].concat())
        )
    };
    let list = String::from("#mtree v2.0\n") + &names.iter().map(line).collect::<String>();
    assert!(list.is_ascii());
    let tar = fed("bsdtar", &["-cf", "-", "@-"], list.as_bytes()).ok().stdout;
    let mut archive = Vec::new();
    for entry in &names {
        assert_eq!(quote::unvis(quote::vis(entry).as_bytes()).as_ref(), Some(entry));
        archive.push([b"./n", &**entry].concat());
    }
    let back = fed("python3", &["-c", LIST], &tar).ok().stdout;
    let back: Vec<_> = back.split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    assert_eq!(back.len(), archive.len());
    for (back, name) in back.iter().zip(&archive) {
        assert_eq!(back.strip_suffix(b"/").unwrap_or(back), name);
    }
}

const LIST: &str = "import sys, tarfile, os
for member in tarfile.open(fileobj=sys.stdin.buffer, mode='r|', errors='surrogateescape'):
    sys.stdout.buffer.write(os.fsencode(member.name) + b'\\0')";

/// Names of machines, each with another first character, so that this and TAB is the whole name.
const MACHINES: [&str; 20] = [
    "a$(touch PWNED)",
    "b`touch PWNED`",
    "c d",
    "e\"x'y",
    "f;touch PWNED",
    "g\\h",
    "i&touch PWNED",
    "j*",
    "k>PWNED",
    "l|touch PWNED",
    "m#x",
    "n!x",
    "o~",
    "q{a,b}",
    "r<x",
    "s[0]",
    "t=x",
    "u:v",
    "v' $(touch PWNED) '",
    "w\" $(touch PWNED) \"",
];

#[test]
fn each_shell_inserts_a_hostile_name_as_one_word() {
    let fixture = Fixture::new();
    for name in MACHINES {
        fixture.empty(name);
    }
    // Never offered: a control character, a name that reads as another one, an option.
    for name in ["y\nx", "y\u{202e}x", "-y"] {
        fs::create_dir_all(fixture.config().join("machine").join(name)).unwrap();
        fs::write(fixture.config().join("machine").join(name).join("config.json"), "{}").unwrap();
    }
    let point = fixture.path().join("h $(touch PWNED) 'x");
    fs::create_dir(&point).unwrap();
    let bin = fixture.scratch("bin");
    let files = fixture.scratch("files");
    fs::create_dir(files.join("z$(touch PWNED) d")).unwrap();
    // Says what it was called with, and completes as the real one does.
    let got = fixture.path().join("got");
    let wrapper = format!(
        "#!/bin/bash\n[[ -z ${{CODCHIFS_COMPLETE-}} ]] || exec {} \"$@\"\nprintf '%s\\0' \"$@\" >{}.new && mv {}.new {}\n",
        env!("CARGO_BIN_EXE_codchifs"),
        got.display(),
        got.display(),
        got.display()
    );
    fs::write(bin.join("codchifs"), wrapper).unwrap();
    fs::set_permissions(bin.join("codchifs"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let mounted = Mounted::of(
        fixture.command(["mount", "--foreground"]),
        point.clone(),
        fixture.path().join("log"),
    );
    let shells = Shells::new(&fixture, &bin);
    for shell in shells.each() {
        let name_of = shell.name;
        let words_of = |typed: &str, end: &str| {
            shell.complete(typed);
            // The line is longer when it was completed; what cannot be stays as it is, and the wrapper tells.
            shell.keys(&["-l", end]);
            shell.keys(&["Enter"]);
            wait_until(&format!("{name_of}: {typed}: {}", shell.screen()), || got.exists());
            let words = fs::read(&got).unwrap();
            fs::remove_file(&got).unwrap();
            shell.keys(&["C-l"]);
            assert!(!shell.screen().is_empty());
            let words: Vec<_> = words.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
            words
                .into_iter()
                .map(|word| String::from_utf8(word).unwrap())
                .filter(|word| !word.is_empty())
                .collect::<Vec<_>>()
        };
        for name in MACHINES {
            let words = words_of(&format!("codchifs migrate {}", &name[..1]), "");
            assert_eq!(words, ["migrate", name], "{name_of}");
        }
        let words = words_of("codchifs migrate y", "");
        assert_eq!(words, ["migrate", "y"], "{name_of} offers what must not be offered");
        let begun = format!("codchifs unmount {}/h", fixture.path().display());
        assert_eq!(words_of(&begun, ""), ["unmount", point.to_str().unwrap()], "{name_of}");
        let begun = format!("codchifs --config-dir {}/z", files.display());
        let dir = files.join("z$(touch PWNED) d");
        let words = words_of(&begun, "");
        assert_eq!(words[1].trim_end_matches('/'), dir.to_str().unwrap(), "{name_of}");
        // In quotes that are open already.
        for (begin, end) in [("codchifs migrate \"a", "\""), ("codchifs migrate 'b", "'")] {
            let words = words_of(begin, end);
            assert_eq!(words.len(), 2, "{name_of}: {words:?}");
        }
        for dir in [shells.home(), &files, fixture.path()] {
            assert!(!dir.join("PWNED").exists(), "{name_of} executed a name");
        }
    }
    mounted.unmount();
}

/// What a terminal, a log or a list would take for more than a name: a title, an empty screen, colours of either set of control
/// characters, text that runs the other way or is not there, and a line of its own.
const FORGED: &str =
    "\x1b]0;FORGED\x07\x1b[2J\u{9b}31m\u{202e}\u{200b}\r\nFORGED: all is well\t\x08";

/// The same with more than a log or a terminal has room for, and a line at the end.
fn long() -> String {
    format!("{FORGED}{}{FORGED}", "x".repeat(10_000))
}

/// Ended when dropped.
struct Reader(Child);

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Fails if anything but lines of visible text, and colours of ours, was printed.
fn assert_shows(what: &str, bytes: &[u8], colours: bool) {
    let mut text = String::from_utf8(bytes.to_vec())
        .unwrap_or_else(|_| panic!("{what}: not UTF-8: {}", quote::name(bytes)));
    if colours {
        for ours in [
            "\r", "\x1b[0m", "\x1b[2m", "\x1b[3m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[34m",
            "\x1b[35m", "\x1b[K",
        ] {
            text = text.replace(ours, "");
        }
    }
    let hidden = text.chars().find(|c| *c != '\n' && quote::is_hidden(*c));
    assert_eq!(hidden, None, "{what}: {}", quote::lines(&text));
    let forged = text.lines().find(|line| line.trim_start().starts_with("FORGED"));
    assert_eq!(forged, None, "{what}: {text}");
}

/// A state in which everything that a user or a machine chooses is hostile.
fn forged(fixture: &Fixture) -> PathBuf {
    let data = fixture.path().join(format!("data {FORGED}"));
    fs::create_dir_all(data.join("machine")).unwrap();
    let quoted = serde_json::to_string(data.to_str().unwrap()).unwrap();
    fs::write(fixture.config().join("config.toml"), format!("data_dir = {quoted}\n")).unwrap();
    for machine in ["m", "b\u{202e}d $(touch PWNED)"] {
        let config = serde_json::json!({"modules": {FORGED: format!("file://{FORGED}?#x"), "x": "file://p?#x", long(): format!("file://{}?#x", long())},
            "secrets": {FORGED: "x"}, "nixpkgs_from": FORGED});
        let place = fixture.configured(machine, config.to_string());
        let home = data.join("machine").join(machine);
        fs::create_dir_all(&home).unwrap();
        let root = Maker::new(&place.rootfs);
        root.file(&format!("srv/{FORGED}"), b"x\n")
            .file("srv/z", b"x\n")
            .file("etc/passwd", FORGED.as_bytes());
        root.file(&format!("etc/{FORGED}"), b"x")
            .symlink(&format!("/nix/store/a-nixos-system-{FORGED}-24.05"), "sbin/init");
        Maker::new(&home)
            .file(&format!(".ssh/id_{FORGED}"), b"-----BEGIN OPENSSH PRIVATE KEY-----\n");
        root.socket("s\x1b[2J\u{202e}");
        Maker::new(&home).file(
            ".nix-profile/manifest.json",
            serde_json::json!({"version": 3, "elements": {FORGED: {}}}).to_string().as_bytes(),
        );
        xattr::set(&place.rootfs.join("srv/z"), "user.\u{202e}x".as_bytes(), b"x").unwrap();
    }
    for (machine, config) in [
        ("no json", FORGED.to_owned()),
        ("no url", serde_json::json!({"modules": {FORGED: FORGED}}).to_string()),
        ("long", serde_json::json!({"modules": {long(): "nothing"}}).to_string()),
        (
            "long url",
            serde_json::json!({"modules": {"x": format!("{}://x/y", long())}}).to_string(),
        ),
        ("wrong", serde_json::json!({FORGED: FORGED, "modules": FORGED}).to_string()),
        ("not there", "{\"modules\":{}}".to_owned()),
        (FORGED, "{}".to_owned()),
    ] {
        let dir = fixture.config().join("machine").join(machine);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("config.json"), config).unwrap();
    }
    let lock = fixture.config().join("machine/no url/flake.lock");
    fs::write(lock, FORGED).unwrap();
    data
}

#[test]
fn no_command_prints_what_a_user_or_a_machine_chose() {
    let fixture = Fixture::new();
    forged(&fixture);
    let point = fixture.path().join(format!("mnt {FORGED}"));
    fs::create_dir(&point).unwrap();
    let command = |words: &[&OsStr]| {
        let mut command = program(env!("CARGO_BIN_EXE_codchifs"), std::iter::empty::<&str>());
        common::without_variables(&mut command);
        command
            .arg("--config-dir")
            .arg(fixture.config())
            .args(["--driver", "dir", "--rootfs-dir"])
            .arg(fixture.rootfs_dir());
        command.args(words).env("NO_COLOR", "");
        command
    };
    let log = fixture.path().join("log");
    let mut mount = command(&["-vvv", "mount", "--foreground"].map(OsStr::new));
    mount.env("CODCHIFS_LOG", "codchifs=trace");
    let mounted = Mounted::of(mount, point.clone(), log.clone());
    let copy = fixture.scratch("copy");
    let tar = fixture.path().join("m.tar");
    run(command(&[OsStr::new("export"), OsStr::new("m"), OsStr::new("-o"), tar.as_os_str()])).ok();
    run(program("tar", ["-xf"]).arg(&tar).arg("-C").arg(&copy)).ok();
    let listed = copy.join("srv").join(FORGED);
    fs::write(&listed, "other").unwrap();
    fs::write(copy.join(format!("srv/beside {FORGED}")), "other").unwrap();
    // Somebody who reads the export, under a name of their choice.
    let reader = std::process::Command::new("bash")
        .args(["-c", "exec 3<\"$1\"; read -r -n 1 <&3; exec -a \"$2\" sleep 1000", "-"])
        .arg(mounted.tar("m"))
        .arg(FORGED)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let reader = Reader(reader);
    wait_until("the reader", || {
        let status = run(command(&["status", "--json"].map(OsStr::new)));
        String::from_utf8_lossy(&status.stdout).contains("FORGED: all is well")
    });
    let evil = OsStr::new("b\u{202e}d $(touch PWNED)");
    let (point, missing) = (point.as_os_str(), OsStr::new(FORGED));
    let (w, long) = (OsStr::new, long());
    let long = OsStr::new(&long);
    let (m, copy) = (w("m"), copy.as_os_str());
    let commands: &[&[&OsStr]] = &[
        &[w("list")],
        &[w("list"), w("--size")],
        &[w("list"), w("--json")],
        &[w("status")],
        &[w("status"), w("--json")],
        &[w("doctor")],
        &[w("doctor"), w("--json")],
        &[w("-vvv"), w("list")],
        &[w("migrate"), m],
        &[w("migrate"), m, w("--json")],
        &[w("migrate"), m, w("--size"), w("--secrets=omit")],
        &[w("migrate"), evil],
        &[w("migrate"), w("no json")],
        &[w("migrate"), w("no url")],
        &[w("migrate"), w("wrong")],
        &[w("migrate"), w("not there")],
        &[w("migrate"), missing],
        &[w("migrate"), long],
        &[w("migrate"), w("long")],
        &[w("migrate"), w("long url")],
        &[w("export"), m, w("-o"), long],
        &[w("mount"), long],
        &[w("unmount"), long],
        &[w("--data-dir"), long, w("list")],
        &[w("--user"), long, w("list")],
        &[w("export"), missing, w("-o"), w("/dev/null")],
        &[w("export"), m, w("-o"), missing, w("--exclude"), missing],
        &[w("export"), m, w("-o"), point],
        &[w("export"), m, w("--include"), missing, w("-o"), w("/nonexistent/x")],
        &[w("export"), w("no url"), w("-o"), w("/dev/null")],
        &[w("manifest"), m],
        &[w("manifest"), m, w("--sums")],
        &[w("manifest"), w("wrong")],
        &[w("verify"), m, copy],
        &[w("verify"), m, copy, w("--json")],
        &[w("verify"), m, missing],
        &[w("verify"), m, w("/etc/passwd")],
        &[w("verify"), w("not there"), copy],
        &[w("verify"), m, copy, w("--manifest"), missing],
        &[w("mount"), missing],
        &[w("mount"), point],
        &[w("unmount"), missing],
        &[w("mount"), w("--machine"), missing, missing],
        &[w("--config-dir"), missing, w("list")],
        &[w("--data-dir"), missing, w("list")],
        &[w("--user"), missing, w("list")],
        &[w("--driver"), missing, w("list")],
        &[missing],
        &[w("list"), missing],
        &[w("generate"), w("/proc/x\x1b[2J\nFORGED")],
    ];
    let mut quoted = 0;
    for words in commands {
        let what = format!("{words:?}");
        let shown = on_terminal(command(words).current_dir(fixture.path()));
        assert_shows(&format!("{what} on a terminal"), &shown.stdout, true);
        let piped = run(command(words).current_dir(fixture.path()));
        assert!(piped.err().lines().all(|line| line.len() <= 16 << 10), "{what}: {}", piped.err());
        assert_shows(&what, &piped.stderr, false);
        let all = [shown.stdout, piped.stderr.clone()].concat();
        quoted += usize::from(common::contains(&all, br"\x1b]0;FORGED"));
        // Sums are for sha256sum, which has to get the very names.
        if !words.contains(&w("--sums")) {
            assert_shows(&what, &piped.stdout, false);
        }
        if words.contains(&w("--json")) && !words.contains(&w("verify")) {
            serde_json::from_slice::<serde_json::Value>(&piped.stdout).unwrap();
        }
    }
    assert!(quoted > commands.len() / 2, "{quoted} commands had anything to quote");
    for (machine, files) in [
        ("m", &["report.json", "MIGRATE.md", ".transfers", "manifest.mtree"][..]),
        ("no json", &["report.json", "MIGRATE.md"]),
        ("wrong", &["report.json", "MIGRATE.md"]),
        ("not there", &["report.json", "MIGRATE.md"]),
    ] {
        for file in files {
            let text = fs::read(mounted.point().join(machine).join(file)).unwrap();
            assert_shows(&format!("{machine}/{file}"), &text, false);
        }
    }
    drop(reader);
    mounted.unmount();
    assert_shows("the log", &fs::read(log).unwrap(), false);
    assert!(!fixture.path().join("PWNED").exists());
}

#[test]
fn the_journal_gets_one_entry_for_each_line_with_a_level_of_ours() {
    let fixture = Fixture::new();
    forged(&fixture);
    let stderr = fs::File::create(fixture.path().join("stderr")).unwrap();
    let meta = stderr.metadata().unwrap();
    // Its level would be read as one of the journal's.
    let alarm = format!("<0>{FORGED}<0>x\n<0>y{}", long());
    for words in [
        &["-vv", "list", "--size"][..],
        &["export", "m", "-o", &alarm],
        &["mount", "--foreground", &alarm],
        &["unmount", &alarm],
        &["migrate", "long"],
        &["--user", &alarm, "list"],
    ] {
        let mut command = fixture.command(words);
        command.env("JOURNAL_STREAM", format!("{}:{}", meta.dev(), meta.ino()));
        command.current_dir(fixture.path()).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(stderr.try_clone().unwrap()).status().unwrap();
    }
    let text = fs::read_to_string(fixture.path().join("stderr")).unwrap();
    assert!(text.lines().count() >= 5 && text.contains("<0>x"), "{text}");
    assert_shows("the journal", text.as_bytes(), false);
    for line in text.lines() {
        let level = line.get(..3).unwrap_or_default();
        assert!(["<3>", "<4>", "<6>", "<7>"].contains(&level), "{line}");
        assert!(line.len() <= 16 << 10, "{line}");
    }
}
