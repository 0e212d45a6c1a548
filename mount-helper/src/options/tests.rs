use super::*;

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
        (&["codchi", "/mnt", "-o", "rw"], "mount -- /mnt"),
        // What it gives for a plain user and an fstab line with `user`.
        (
            &["codchi", "/mnt", "-o", "rw,noexec,nosuid,nodev,user=al,_netdev,nofail"],
            "--user=al mount -- /mnt",
        ),
        (&["alice", "/mnt", "-o", "ro"], "--user=alice mount -- /mnt"),
        (&["alice", "/mnt", "-o", "user=alice"], "--user=alice mount -- /mnt"),
        (&["alice", "/mnt", "-o", "user=bob"], "1 two users are given: 'alice' and 'bob'"),
        (&["codchi", "/mnt", "-o", "user=../bob"], "1 option user: '../bob' is no user's name"),
        (&["/dev/sda1", "/mnt"], "1 source '/dev/sda1' is neither 'codchi' nor a user's name"),
        (&["", "/mnt"], "1 source '' is neither 'codchi' nor a user's name"),
        (&["codchi"], "1 DIRECTORY is missing; --help says more"),
        (&[], "1 SOURCE and DIRECTORY are missing; --help says more"),
        (&["codchi", "/mnt", "x"], "1 unexpected argument 'x'"),
        (&["codchi", "--", "-dash"], "mount -- -dash"),
        // Flags in any order and form.
        (&["-sfnv", "codchi", "/mnt"], "-v mount -- /mnt"),
        (&["codchi", "/mnt", "-t", "codchifs"], "mount -- /mnt"),
        (&["codchi", "/mnt", "-tfuse.codchifs"], "mount -- /mnt"),
        (&["codchi", "/mnt", "-t", "ext4"], "1 type 'ext4' is not codchifs"),
        (&["codchi", "/mnt", "-vo", "machine=a"], "-v mount --machine=a -- /mnt"),
        (&["codchi", "/mnt", "-o"], "1 -o needs a value"),
        (&["codchi", "/mnt", "-x"], "1 unknown flag -x"),
        (&["codchi", "/mnt", "--sloppy"], "1 unknown argument '--sloppy'"),
        (
            &["codchi", "/mnt", "-N", "/proc/1/ns/mnt"],
            "1 -N: mounting into another namespace is not supported; use nsenter(1)",
        ),
        // Options.
        (
            &["codchi", "/mnt", "-o", "machine=a,config-dir=/c,machine=b", "-o", "data-dir=/d"],
            "--config-dir=/c --data-dir=/d mount --machine=a --machine=b -- /mnt",
        ),
        (
            &["codchi", "/mnt", "-o", "driver=dir,rootfs-dir=/r,exclude=*.o,include=/etc/x"],
            "--driver=dir --rootfs-dir=/r mount --exclude=*.o --include=/etc/x -- /mnt",
        ),
        (
            &["codchi", "/mnt", "-o", "allow_other,allow_other,allow_root"],
            "mount -o allow_other,allow_root -- /mnt",
        ),
        (&["codchi", "/mnt", "-o", "allow_other=1"], "1 option allow_other takes no value"),
        (&["codchi", "/mnt", "-o", "machine"], "1 option machine needs a value"),
        (&["codchi", "/mnt", "-o", "machine="], "1 option machine needs a value"),
        (&["codchi", "/mnt", "-o", "user"], "mount -- /mnt"),
        (&["codchi", "/mnt", "-o", ",,ro,"], "mount -- /mnt"),
        (&["codchi", "/mnt", "-o", "comment=a,x-systemd.automount,x-gvfs-show"], "mount -- /mnt"),
        (
            &["codchi", "/mnt", "-o", "subvol=x"],
            "1 unknown option 'subvol=x' (-s leaves out unknown options)",
        ),
        (&["codchi", "/mnt", "-s", "-o", "subvol=x,machine=a"], "mount --machine=a -- /mnt"),
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
    let request = request(&["codchi", "/mnt", "-fvs", "-o", "odd,ro"]).unwrap();
    assert!(request.fake && request.verbose);
    assert_eq!(request.left_out, ["odd"]);
    assert_eq!(translate(&["--help".into()]).unwrap().help, Some(HELP));
}

#[test]
fn tables_are_sorted_and_apart() {
    for table in [WITH_VALUE, GLOBAL, FORWARDED, IGNORED, IGNORED_PREFIXES] {
        assert!(table.is_sorted(), "{table:?}");
    }
    assert!(GLOBAL.iter().all(|word| WITH_VALUE.contains(word)));
    assert!(FORWARDED.iter().all(|word| !IGNORED.contains(word) && !WITH_VALUE.contains(word)));
}

#[test]
fn shown_arguments_can_be_pasted() {
    let args = ["--exclude=a b".into(), "it's".into(), "".into(), "-v".into()];
    assert_eq!(display(&args), r"'--exclude=a b' 'it'\''s' '' -v");
}
