use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

fn request(args: &[&str]) -> Result<Request, Failure> {
    translate(&args.iter().map(OsString::from).collect::<Vec<_>>())
}

/// The arguments joined by spaces, or `CODE text`.
fn outcome(args: &[&str]) -> String {
    match request(args) {
        Ok(request) => request
            .args
            .iter()
            .map(|arg| arg.to_string_lossy().into_owned())
            .collect::<Vec<_>>()
            .join(" "),
        Err(failure) => format!("{} {}", failure.code, failure.text),
    }
}

#[test]
fn arguments() {
    let table: &[(&[&str], &str)] = &[
        // What mount(8) gives for `mount -t codchifs codchi /mnt`.
        (&["codchi", "/mnt", "-o", "rw"], "mount --source=codchi -- /mnt"),
        // What it gives for a plain user and an fstab line with `user`.
        (
            &["codchi", "/mnt", "-o", "rw,noexec,nosuid,nodev,user=al,_netdev,nofail"],
            "--user=al mount --source=codchi -o noexec -- /mnt",
        ),
        (&["alice", "/mnt", "-o", "ro"], "--user=alice mount --source=alice -- /mnt"),
        (&["alice", "/mnt", "-o", "user=alice"], "--user=alice mount --source=alice -- /mnt"),
        (&["alice", "/mnt", "-o", "user=bob"], "1 two users are given: 'alice' and 'bob'"),
        (&["codchi", "/mnt", "-o", "user=../bob"], "1 option user: '../bob' is no user's name"),
        (&["/dev/sda1", "/mnt"], "1 source '/dev/sda1' is neither 'codchi' nor a user's name"),
        (&["", "/mnt"], "1 source '' is neither 'codchi' nor a user's name"),
        (&["codchi"], "1 DIRECTORY is missing; --help says more"),
        (&[], "1 SOURCE and DIRECTORY are missing; --help says more"),
        (&["codchi", "/mnt", "x"], "1 unexpected argument 'x'"),
        (&["codchi", "--", "-dash"], "mount --source=codchi -- -dash"),
        // Flags in any order and form.
        (&["-sfnv", "codchi", "/mnt"], "-v mount --source=codchi --fake -- /mnt"),
        (&["codchi", "/mnt", "-t", "codchifs"], "mount --source=codchi -- /mnt"),
        (&["codchi", "/mnt", "-tfuse.codchifs"], "mount --source=codchi -- /mnt"),
        (&["codchi", "/mnt", "-t", "ext4"], "1 type 'ext4' is not codchifs"),
        (&["codchi", "/mnt", "-vo", "machine=a"], "-v mount --source=codchi --machine=a -- /mnt"),
        (&["codchi", "/mnt", "-o"], "1 -o needs a value"),
        (&["codchi", "/mnt", "-x"], "1 unknown flag -x"),
        (&["codchi", "/mnt", "--sloppy"], "1 unknown argument '--sloppy'"),
        (&["codchi", "/mnt", "-N", "/proc/1/ns/mnt"], "mount --source=codchi -- /mnt"),
        (&["codchi", "/mnt", "-N"], "1 -N needs a value"),
        // Options.
        (
            &["codchi", "/mnt", "-o", "machine=a,config-dir=/c,machine=b", "-o", "data-dir=/d"],
            "--config-dir=/c --data-dir=/d mount --source=codchi --machine=a --machine=b -- /mnt",
        ),
        (
            &["codchi", "/mnt", "-o", "driver=dir,rootfs-dir=/r,exclude=*.o,include=/etc/x"],
            "--driver=dir --rootfs-dir=/r mount --source=codchi --exclude=*.o --include=/etc/x -- /mnt",
        ),
        (
            &["codchi", "/mnt", "-o", "allow_other,allow_other,allow_root"],
            "mount --source=codchi -o allow_other,allow_root -- /mnt",
        ),
        (&["codchi", "/mnt", "-o", "allow_other=1"], "1 option allow_other takes no value"),
        (&["codchi", "/mnt", "-o", "machine"], "1 option machine needs a value"),
        (&["codchi", "/mnt", "-o", "machine="], "1 option machine needs a value"),
        (&["codchi", "/mnt", "-o", "user"], "mount --source=codchi -- /mnt"),
        (&["codchi", "/mnt", "-o", ",,ro,"], "mount --source=codchi -- /mnt"),
        (&["codchi", "/mnt", "-o", "noexec,exec"], "mount --source=codchi -- /mnt"),
        (&["codchi", "/mnt", "-o", "exec,noexec"], "mount --source=codchi -o noexec -- /mnt"),
        (&["codchi", "/mnt", "-o", "nosymfollow,symfollow"], "mount --source=codchi -- /mnt"),
        (&["codchi", "/mnt", "-o", "rw,inode32"], "mount --source=codchi -o inode32 -- /mnt"),
        (
            &["codchi", "/mnt", "-o", "symfollow,nosymfollow,exec"],
            "mount --source=codchi -o nosymfollow -- /mnt",
        ),
        (
            &["codchi", "/mnt", "-o", "ro,remount"],
            "1 option remount: a codchifs cannot be remounted: unmount it, and mount it with the new options",
        ),
        (&["codchi", "/mnt", "-s", "-o", "bind"], "1 option bind: only mount(8) itself binds"),
        // Every word that may stand in an fstab, and asks for nothing here.
        (
            &[
                "codchi",
                "/mnt",
                "-o",
                "rw,noauto,auto,nofail,_netdev,user,users,owner,group,nouser,noatime,suid,dev,async,sync,loud",
            ],
            "mount --source=codchi -- /mnt",
        ),
        (
            &["codchi", "/mnt", "-o", "comment=a,x-systemd.automount,x-gvfs-show"],
            "mount --source=codchi -- /mnt",
        ),
        (
            &["codchi", "/mnt", "-o", "subvol=x"],
            "1 unknown option 'subvol=x' (-s leaves out unknown options)",
        ),
        (
            &["codchi", "/mnt", "-s", "-o", "subvol=x,machine=a"],
            "mount --source=codchi --machine=a -- /mnt",
        ),
    ];
    for (args, expected) in table {
        assert_eq!(outcome(args), *expected, "for {args:?}");
    }
}

#[test]
fn escapes() {
    let table: &[(&str, Result<&[&str], &str>)] = &[
        ("", Ok(&[""])),
        ("a,b", Ok(&["a", "b"])),
        (r"exclude=a\,b,ro", Ok(&["exclude=a,b", "ro"])),
        (r"exclude=a\\,ro", Ok(&[r"exclude=a\", "ro"])),
        (r"exclude=\*.o", Ok(&[r"exclude=\*.o"])),
        (r"data-dir=/My\040Data\011x", Ok(&["data-dir=/My Data\tx"])),
        (r"exclude=a\054b", Ok(&["exclude=a,b"])),
        (r"exclude=a\134b", Ok(&[r"exclude=a\b"])),
        (r"exclude=\400", Ok(&[r"exclude=\400"])),
        (r#"exclude="q,r",ro"#, Ok(&["exclude=q,r", "ro"])),
        (r#"exclude=a"b"#, Ok(&[r#"exclude=a"b"#])),
        (r#"exclude=\"a"#, Ok(&[r#"exclude="a"#])),
        (r"exclude=a\", Err("options end in a lone backslash")),
        (r#"exclude="a,b"#, Err("a double quote in the options is not closed")),
        (r"exclude=\000", Err("an option holds a NUL byte")),
    ];
    for (text, expected) in table {
        let expected = match expected {
            Ok(options) => Ok(options.iter().map(|o| o.as_bytes().to_vec()).collect()),
            Err(text) => Err(usage(*text)),
        };
        assert_eq!(split(text.as_bytes()), expected, "for {text}");
    }
}

#[test]
fn bytes_that_are_not_utf8_arrive_unchanged() {
    let raw = OsString::from_vec(b"data-dir=/\xff".to_vec());
    let directory = OsString::from_vec(b"/mnt/\xfe".to_vec());
    let request = translate(&["codchi".into(), directory.clone(), "-o".into(), raw]).unwrap();
    assert_eq!(request.args[0].as_bytes(), b"--data-dir=/\xff");
    assert_eq!(request.args.last(), Some(&directory));
}

#[test]
fn flags_reach_the_request() {
    let verbose = request(&["codchi", "/mnt", "-fvs", "-o", "odd,ro"]).unwrap();
    assert!(verbose.verbose);
    assert_eq!(verbose.left_out, ["odd"]);
    for (given, file) in [("77", "/proc/77/ns/mnt"), ("/run/ns", "/run/ns"), ("7/x", "7/x")] {
        let request = request(&["codchi", "mnt", "-N", given]).unwrap();
        assert_eq!(request.namespace, Some(file.into()));
        // Whoever enters a namespace starts at its root.
        assert_eq!(request.directory, std::env::current_dir().unwrap().join("mnt"));
        assert_eq!(request.args.last(), Some(&request.directory.into()));
    }
    for (arg, text) in [("--help", HELP), ("-h", HELP), ("--version", VERSION), ("-V", VERSION)] {
        assert_eq!(translate(&[arg.into()]).unwrap().help, Some(text));
    }
}

#[test]
fn tables_are_sorted_and_apart() {
    for table in [WITH_VALUE, GLOBAL, FORWARDED, IGNORED, IGNORED_PREFIXES] {
        assert!(table.is_sorted(), "{table:?}");
    }
    assert!(GLOBAL.iter().all(|word| WITH_VALUE.contains(word)));
    assert!(REFUSED.is_sorted() && REFUSED.iter().all(|(word, _)| !IGNORED.contains(word)));
    assert!(FORWARDED.iter().all(|word| !IGNORED.contains(word) && !WITH_VALUE.contains(word)));
}

#[test]
fn shown_arguments_can_be_pasted() {
    let args = ["--exclude=a b".into(), "it's".into(), "".into(), "-v".into()];
    assert_eq!(display(&args), r"'--exclude=a b' 'it'\''s' '' -v");
}

/// As somebody would who knows the rules: what splits or closes is written as its octal number.
fn escaped(value: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    for byte in value {
        match byte {
            b',' | b'\\' | b'"' => text.extend(format!("\\{byte:03o}").bytes()),
            _ => text.push(*byte),
        }
    }
    text
}

proptest! {
    #[test]
    fn what_is_escaped_arrives(values in vec(vec(1..=255u8, 1..12), 1..6)) {
        let mut options = Vec::new();
        for value in &values {
            options.extend(b"exclude=");
            options.extend(escaped(value));
            options.push(b',');
        }
        let args = ["codchi".into(), "/mnt".into(), "-o".into(), os(&options)];
        let request = translate(&args).unwrap();
        let mut expected: Vec<_> = values.iter().map(|value| long("exclude", value)).collect();
        expected.splice(0..0, ["mount".into(), "--source=codchi".into()]);
        expected.extend(["--".into(), "/mnt".into()]);
        prop_assert_eq!(request.args, expected);
    }

    #[test]
    fn any_arguments_are_translated_or_refused(
        args in vec(prop_oneof![
            3 => vec(any::<u8>(), 0..20),
            2 => r#"-[fhnsvoNt]{0,4}|[a-z]{1,6}|/mnt|user=[a-z]|[,="\\\\0-7a]{0,12}"#.prop_map(String::into_bytes),
        ], 0..7)
    ) {
        let args: Vec<_> = args.iter().map(|arg| os(arg)).collect();
        match translate(&args) {
            // Nothing that was given comes before the command that it is for, but in one word of its own.
            Ok(request) if request.help.is_none() => {
                let at = request.args.iter().position(|arg| arg == "mount").unwrap();
                let starts = |arg: &OsString| {
                    let known = GLOBAL.iter().any(|key| arg.as_bytes().starts_with(format!("--{key}=").as_bytes()));
                    known || arg == "-v"
                };
                prop_assert!(request.args[..at].iter().all(starts), "{:?}", request.args);
                prop_assert_eq!(&request.args[request.args.len() - 2], "--");
            }
            Ok(_) => {}
            Err(failure) => prop_assert!(failure.code == EX_USAGE && !failure.text.is_empty()),
        }
    }

    #[test]
    fn what_is_split_comes_apart_at_commas_only(words in vec("[a-z]{0,5}(=[a-z/*.]{0,5})?", 1..8)) {
        let split = split(words.join(",").as_bytes()).unwrap();
        let words: Vec<_> = words.into_iter().map(String::into_bytes).collect();
        prop_assert_eq!(split, words);
    }
}
