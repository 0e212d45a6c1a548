//! What mount(8), umount(8) and a line of fstab do with codchifs, as root and as a plain user. Everything happens in a
//! mount namespace of its own, with its own /etc/fstab and its own /sbin, where mount(8) finds the helper.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::lxd::UID;
use common::played::pretend;
use common::stage::{Stage, helper};
use common::{Done, program, run};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Fails unless the commands ended with these, in order, and the second words are on stderr.
#[track_caller]
fn check(done: &[Done], expected: &[(i32, &str)]) {
    let codes: Vec<_> = done.iter().map(|done| done.code.unwrap()).collect();
    let wanted: Vec<_> = expected.iter().map(|(code, _)| *code).collect();
    let all: Vec<_> = done.iter().map(|d| format!("{}{}", d.out(), d.err())).collect();
    assert_eq!(codes, wanted, "{all:#?}");
    for (done, (code, words)) in done.iter().zip(expected) {
        assert!(done.err().contains(words), "{}: {words}: {}", done.line, done.err());
        assert_eq!(
            done.err().is_empty(),
            words.is_empty(),
            "{} ({code}): {}",
            done.line,
            done.err()
        );
    }
}

#[test]
fn the_helper_has_the_version_of_codchifs_with_its_commit() {
    let version = |path: &Path| run(program(path.to_str().unwrap(), ["--version"])).ok().out();
    let shown = format!("codchifs {}\n", env!("CODCHIFS_VERSION"));
    assert_eq!(version(Path::new(env!("CARGO_BIN_EXE_codchifs"))), shown);
    assert_eq!(version(helper()), format!("mount.{shown}"));
}

#[test]
fn mount_a_mounts_a_line_of_fstab_and_a_second_one_finds_it() {
    let stage = Stage::new();
    let line =
        stage.line(&stage.user, "mnt", "defaults,nofail,_netdev,x-systemd.automount,allow_root");
    let done = stage.play(
        &line,
        r#"
        c mount -a -T "$AT/fstab"
        c findmnt -n -t fuse.codchifs -M "$M" -o SOURCE,TARGET,FSTYPE
        c cat "$M/m/rootfs/srv/hello"
        c mount -a -T "$AT/fstab"
        c mount -a
        c findmnt -n -t fuse.codchifs -M "$M" -o SOURCE
        c mount "$M"
        c umount "$M"
        c findmnt -n -t fuse.codchifs -M "$M"
        c mount -T "$AT/fstab" "$M"
        c umount "$M"
    "#,
    );
    let already = "already mounted";
    check(
        &done,
        &[
            (0, ""),
            (0, ""),
            (0, ""),
            (0, ""),
            (0, ""),
            (0, ""),
            (32, already),
            (0, ""),
            (1, ""),
            (0, ""),
            (0, ""),
        ],
    );
    let row = done[1].out();
    let row: Vec<_> = row.split_whitespace().collect();
    let point = stage.fixture.mount_point();
    assert_eq!(row, [&stage.user, point.to_str().unwrap(), "fuse.codchifs"]);
    assert_eq!(done[2].out(), "hello\n");
    assert_eq!(done[5].out().lines().count(), 1, "one mount, not two");
}

#[test]
fn a_plain_user_mounts_and_unmounts() {
    let stage = Stage::new();
    let line = stage.line(&stage.user, "mnt", "noauto,user");
    let done = stage.play(
        &line,
        r#"
        c as mount "$M"
        c findmnt -n -o SOURCE,OPTIONS "$M"
        c as cat "$M/m/rootfs/srv/hello"
        c as "$M/m/rootfs/home/codchi/program"
        c setpriv --reuid 65534 --regid 65534 --clear-groups umount "$M"
        c as umount "$M"
        c as mount -t codchifs codchi "$M" -o "$O"
        c as "$M/m/rootfs/home/codchi/program"
        c as umount "$M"
        c as mount -t codchifs root "$M" -o "$O"
        c mount "$M"
        c as cat "$M/m/rootfs/srv/hello"
        c as umount "$M"
    "#,
    );
    check(
        &done,
        &[
            (0, ""),
            (0, ""),
            (0, ""),
            (126, "Permission denied"),
            (32, "must be superuser"),
            (0, ""),
            (0, ""),
            (0, ""),
            (0, ""),
            (32, "only root may use --user"),
            (0, ""),
            (0, ""),
            (0, ""),
        ],
    );
    let row = done[1].out();
    for word in ["ro,", "nosuid", "nodev", "noexec", &format!("user_id={UID}"), &stage.user] {
        assert!(row.contains(word), "{word}: {row}");
    }
    assert_eq!((done[2].out(), done[11].out()), ("hello\n".into(), "hello\n".into()));
}

#[test]
fn a_mount_in_use_is_busy_and_can_be_detached() {
    let stage = Stage::new();
    let done = stage.play(
        "",
        r#"
        c mount -t codchifs codchi "$M" -o "$O"
        exec 5<"$M/m/export.tar"
        c umount "$M"
        c mount -t codchifs codchi "$M" -o "$O"
        c umount -l "$M"
        c head -c 100 /dev/fd/5
        exec 5<&-
        c umount "$M"
    "#,
    );
    check(
        &done,
        &[(0, ""), (32, "target is busy"), (32, "already"), (0, ""), (0, ""), (32, "not mounted")],
    );
    assert!(done[4].out().starts_with("./"));
}

#[test]
fn systemd_mounts_as_it_does() {
    let stage = Stage::new();
    let done = stage.play(
        "",
        r#"
        export PATH=/usr/bin:/bin:/usr/sbin:/sbin
        # systemd.mount(5), mount_enter_mounting().
        c env -i PATH="$PATH" mount "$U" "$M" -t codchifs -o "$O,allow_root,x-systemd.automount"
        c ls "$M"
        c env -i umount "$M" -c
        # As autofs calls it: modules/mount_generic.c.
        c mount -t codchifs -s -o "$O,strange,allow_root" "$U" "$M"
        c umount "$M"
        c mount -n -i -t codchifs "$U" "$M"
    "#,
    );
    let strange = "option 'strange' is not known, left out (-s)";
    check(
        &done,
        &[
            (0, ""),
            (0, ""),
            (0, ""),
            (0, strange),
            (0, ""),
            // -i: without the helper. The kernel knows no such file system.
            (32, "unknown filesystem type"),
        ],
    );
    assert_eq!(done[1].out(), "m\n");
}

/// The kernel lets only the process group of the mount that it started through, and has everybody else wait for it.
#[test]
fn autofs_mounts_on_the_first_look_and_unmounts_when_nobody_looks() {
    let stage = Stage::new();
    let done = stage.play(
        "",
        r#"
        mkdir auto
        echo "$M -fstype=codchifs,$O,allow_root :$U" >auto/map
        echo "/- $AT/auto/map --timeout=1" >auto/master
        automount --foreground --dont-check-daemon --pid-file "$AT/auto/pid" "$AT/auto/master" 2>auto/log &
        for at in "" again; do
            until findmnt -n -t autofs -M "$M" >/dev/null; do sleep 0.1; done
            c timeout 100 ls "$M"
            c timeout 100 cat "$M/m/rootfs/srv/hello"
            c findmnt -n -o SOURCE -t fuse.codchifs -M "$M"
            until ! findmnt -n -t fuse.codchifs -M "$M" >/dev/null; do sleep 0.1; done
        done
        kill %1
        wait %1 || true
    "#,
    );
    check(&done, &[(0, ""); 6]);
    let said: Vec<_> = done.iter().map(Done::out).collect();
    let source = format!("{}\n", stage.user);
    assert_eq!(said, ["m\n", "hello\n", &source, "m\n", "hello\n", &source]);
}

#[test]
fn a_remount_is_refused_and_says_what_to_do() {
    let stage = Stage::new();
    let done = stage.play(
        "",
        r#"
        c mount -t codchifs codchi "$M" -o "$O"
        c mount -o remount,allow_other "$M"
        c mount -t codchifs codchi "$M" -o "remount,rw,$O"
        c cat "$M/m/rootfs/srv/hello"
        c umount "$M"
    "#,
    );
    let refused = "a codchifs cannot be remounted: unmount it, and mount it with the new options";
    check(&done, &[(0, ""), (1, refused), (1, refused), (0, ""), (0, "")]);
}

#[test]
fn names_with_blanks_and_commas_can_be_written_in_fstab() {
    let stage = Stage::new();
    let at = stage.fixture.path();
    fs::rename(stage.fixture.data(), at.join("my data")).unwrap();
    let (line, point) = (stage.line(&stage.user, "mnt", "allow_root"), at.join("my mnt"));
    fs::create_dir(&point).unwrap();
    let line = line.replace("/data,", r"/my\040data,").replace("/mnt ", r"/my\040mnt ");
    // mount(8) takes one layer of escapes off, and what is a comma then splits.
    let line = line.replace(" 0 0", r",exclude=/home/codchi/a\134054b\040* 0 0");
    let script = r#"
        M=$AT/my\ mnt
        c mount -a -T "$AT/fstab"
        c ls "$M/m/rootfs/home/codchi"
        c umount "$M"
        c mount -t codchifs "$U" "$M" -o "${O/\/data/\/my data},allow_root" -o 'exclude="/home/codchi/a,b *"'
        c ls "$M/m/rootfs/home/codchi"
        c umount "$M"
    "#;
    let done = stage.play(&line, script);
    check(&done, &[(0, ""); 6]);
    assert_eq!([done[1].out(), done[4].out()], ["program\n", "program\n"]);
}

#[test]
fn fake_does_everything_but_mount() {
    let stage = Stage::new();
    let done = stage.play(
        "",
        r#"
        c mount -fv -t codchifs codchi "$M" -o "$O"
        c findmnt -n -t fuse.codchifs -M "$M"
        c mount -f -t codchifs codchi "$M" -o "$O,exclude=[z-a]"
        c mount -f -t codchifs nobody-of-this-name "$M" -o "$O"
        c mount -f -t codchifs codchi "$AT/out" -o "$O"
        c mount -f -t codchifs codchi "$M/none" -o "$O"
        c mount -f -t codchifs codchi "$M" -o "$O,allow_other,allow_root"
        c mount -f -t codchifs codchi "$M" -o "$O,secrets=perhaps"
    "#,
    );
    let source = "mount --source=codchi --fake -- ";
    check(
        &done,
        &[
            (0, source),
            (1, ""),
            (32, "[z-a]"),
            (32, "nobody-of-this-name"),
            (32, "not empty"),
            (32, "none"),
            (32, "allow_root"),
            (1, "perhaps"),
        ],
    );
}

#[test]
fn the_mount_lands_in_the_namespace_that_is_named() {
    let stage = Stage::new();
    let done = stage.play(
        "",
        r#"
        coproc unshare --mount --propagation private sh -c 'echo; read wait'
        other=$COPROC_PID
        read -r _ <&"${COPROC[0]}"
        c mount -N "$other" -t codchifs codchi "$M" -o "$O"
        c findmnt -n -t fuse.codchifs -M "$M"
        c findmnt -N "$other" -n -t fuse.codchifs -M "$M" -o SOURCE
        c umount -N "$other" "$M"
        c mount.codchifs codchi mnt -N "$other" -o "$O"
        c umount -N "$other" "$M"
        c mount.codchifs codchi mnt -N "$AT/none" -o "$O"
        echo >&"${COPROC[1]}"
        wait "$other"
    "#,
    );
    let none = "No such file or directory";
    check(&done, &[(0, ""), (1, ""), (0, ""), (0, ""), (0, ""), (0, ""), (2, none)]);
    assert_eq!([done[1].out(), done[2].out()], ["", "codchi\n"]);
}

#[test]
fn the_type_that_the_table_shows_works_with_a_second_name() {
    let stage = Stage::new();
    let done = stage.play(
        "",
        r#"
        c mount -t fuse.codchifs codchi "$M" -o "$O"
        c cat "$M/m/rootfs/srv/hello"
        c umount "$M"
    "#,
    );
    check(&done, &[(0, ""); 3]);
}

#[test]
fn every_exit_code_of_mount() {
    let stage = Stage::new();
    fs::write(stage.fixture.path().join("noprogram"), "").unwrap();
    let good = stage.line(&stage.user, "mnt", "allow_root");
    let bad = stage.line("nobody-of-this-name", "other", "");
    let play = |fstab: &str, script: &str| stage.play(fstab, script);
    let done = play(
        &format!("{good}{bad}"),
        r#"
        c mount -t codchifs codchi "$M" -o "$O"
        c umount "$M"
        c mount -t codchifs codchi "$M" -o "$O,strange"
        c mount -t codchifs /dev/null "$M" -o "$O"
        c env CODCHIFS="$AT/noprogram" mount -t codchifs codchi "$M" -o "$O"
        c env CODCHIFS="$AT/none" mount -t codchifs codchi "$M" -o "$O"
        rm "$AT/sbin/codchifs"
        c env -i PATH=/bin mount -t codchifs codchi "$M" -o "$O"
        ln -s codchifs "$AT/sbin/codchifs"
        c mount -t codchifs codchi "$AT/fstab" -o "$O"
        c mount -a
        umount "$M"
    "#
        .replace("ln -s codchifs", &format!("ln -s {}", env!("CARGO_BIN_EXE_codchifs")))
        .as_str(),
    );
    check(
        &done,
        &[
            (0, ""),
            (0, ""),
            (1, "unknown option 'strange'"),
            (1, "source '/dev/null' is neither 'codchi' nor a user's name"),
            (2, "cannot be run: Permission denied"),
            (2, "cannot be run: No such file"),
            (2, "there is no codchifs"),
            (32, "not a directory"),
            // Of mount(8) alone: some of several.
            (64, "nobody-of-this-name"),
        ],
    );
    let none = play(&bad, "c mount -a\nc mount -t codchifs codchi \"$AT/none\" -o \"$O\"");
    check(&none, &[(32, "nobody-of-this-name"), (32, "none")]);
    // Each line is in mount's style.
    for done in done.iter().chain(&none).filter(|done| done.code != Some(0)) {
        let ours =
            |line: &str| line.starts_with("mount.codchifs: ") || line.starts_with("codchifs: ");
        assert!(done.err().lines().next().is_some_and(ours), "{}", done.err());
    }
}

/// mount(8) waits while codchifs asks a daemon that never answers, and is stopped there.
#[test]
fn an_interrupt_and_a_crash_have_codes_of_their_own() {
    let stage = Stage::new();
    let at = stage.fixture.path().to_owned();
    let silent = at.join("lxd");
    fs::create_dir(&silent).unwrap();
    pretend(&silent.join("unix.socket"), None);
    for (signal, code) in [("INT", 8), ("FPE", 4), ("ABRT", 4), ("TERM", 32)] {
        let script = format!(
            r#"
            O=${{O%driver=*}}lxd-dir=$AT/lxd,machine=m
            (
                until server=$(pgrep -f -- "codchifs --background-child .*$AT"); do :; done
                kill -{signal} $(ps -o ppid= -p "$server")
                # Or it would go on alone.
                kill "$server"
            ) &
            # Who starts the tests in the background has them ignore an interrupt.
            c env --default-signal=INT mount -t codchifs codchi "$M" -o "$O"
            wait
            "#
        );
        let done = stage.play("", &script);
        assert_eq!(done[0].code, Some(code), "SIG{signal}: {}", done[0].err());
    }
}

#[test]
fn the_helper_alone_says_how_it_is_called() {
    let text = run(Command::new(helper()).arg("--help")).ok().out();
    assert!(text.lines().all(|line| line.len() <= 100), "{text}");
    for code in ["0 mounted", "1 wrong", "2 no codchifs", "4 it crashed", "8 interrupted", "32 not"]
    {
        assert!(text.contains(code), "{code}: {text}");
    }
}

#[test]
fn a_line_of_fstab_names_a_user_whom_only_another_source_of_users_has() {
    let stage = Stage::new();
    let table = stage.fixture.scratch("extrausers");
    let home = stage.fixture.path().display();
    fs::write(table.join("passwd"), format!("carol:x:47110:47110::{home}:/bin/sh\n")).unwrap();
    fs::write(table.join("nsswitch"), "passwd: files extrausers\n").unwrap();
    // Codchi's state is hers.
    for path in [stage.fixture.config(), stage.fixture.data(), stage.fixture.rootfs_dir()] {
        run(program("chown", ["-R", "47110"]).arg(path)).silent();
    }
    let line = stage.line("carol", "mnt", "noauto,allow_root");
    let done = stage.play(
        &line,
        &format!(
            r#"
            mount --bind {0}/nsswitch /etc/nsswitch.conf
            mount --bind {0} /var/lib/extrausers
            c mount "$M"
            c findmnt -n -t fuse.codchifs -M "$M" -o SOURCE,OPTIONS
            c cat "$M/m/rootfs/srv/hello"
            c umount "$M"
            c mount -t codchifs dave "$M"
        "#,
            table.display()
        ),
    );
    check(&done, &[(0, ""), (0, ""), (0, ""), (0, ""), (32, "this host has no such user")]);
    assert!(done[1].out().contains("user_id=47110"), "{}", done[1].out());
    assert_eq!(done[2].out(), "hello\n");
}
