//! A mount by a plain user, with fusermount3's help.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::asked::Asked;
use common::lxd::{Host, UID, shifted};
use common::played::{MAP, directory, on_disk, played, pretend, record, sync};
use common::{program, run};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// All of it belongs to the user.
fn give(top: &Path) {
    run(program("chown", ["-hR", &format!("{UID}:{UID}")]).arg(top)).silent();
}

/// `mine` can be read by the user, of `demo` not all.
fn host() -> Host {
    let host = played();
    on_disk(&host, &host.lxd, "mine", MAP, shifted);
    let records = ["demo", "mine"].map(|machine| record(&host, machine, "Stopped", MAP));
    let socket = host.lxd.join("unix.socket");
    pretend(&socket, Some(sync(&records)));
    fs::set_permissions(socket, fs::Permissions::from_mode(0o666)).unwrap();
    give(&directory(&host.lxd, "mine"));
    give(&host.home("mine"));
    host
}

const LOOK: &str = r#"
point=$1; shift
"$@" mount "$point"
set -- "$1" "$point"
trap "'$1' unmount --lazy '$2'" EXIT
grep " $2 " /proc/self/mountinfo
id -u
ls "$2"
tar -tf "$2/mine/export.tar" | grep -c srv/root
cat "$2/demo/export.tar" >/dev/null && echo whole || echo torn
cat "$2/demo/report.json"
"#;

#[test]
fn a_user_mounts_what_the_user_can_read_and_is_told_what_is_missing() {
    let host = host();
    let done = Asked { fuse: "666", conf: "", look: LOOK }.run(&host).ok();
    let said = done.out();
    let first = said.lines().next().unwrap();
    for word in ["fuse.codchifs", "ro", "nosuid", "nodev", &format!("user_id={UID}")] {
        assert!(first.split([' ', ',']).any(|have| have == word), "{word}: {said}");
    }
    let lines: Vec<_> = said.lines().skip(1).take(4).collect();
    assert_eq!(lines, [&UID.to_string(), "demo", "mine", "1"], "{said}\n{}", done.err());
    // srv/service is 0700 of an id that is not the user's.
    assert!(said.contains("/srv/service") && said.contains("unreadable"), "{said}");
}

#[test]
fn what_keeps_a_user_from_mounting_is_said_with_what_to_do() {
    let host = host();
    let mount = |options: &str| format!("point=$1; shift; \"$@\" mount {options} \"$point\"");
    for (fuse, conf, options, words) in [
        ("600", "", "", &["/dev/fuse", "Permission denied", "run as root"][..]),
        ("666", "", "-o allow_other", &["allow_other", "user_allow_other", "/etc/fuse.conf"]),
        ("666", "", "-o allow_root", &["user_allow_other", "/etc/fuse.conf"]),
    ] {
        let done = Asked { fuse, conf, look: &mount(options) }.run(&host);
        assert_eq!(done.code, Some(1), "{options}: {}", done.err());
        for word in words {
            assert!(done.err().contains(word), "{options}: {word}: {}", done.err());
        }
    }
    let look = mount("-o allow_other") + "; \"$1\" unmount \"$point\"";
    Asked { fuse: "666", conf: "user_allow_other\n", look: &look }.run(&host).ok();
}

/// Each jump is seen by the server, whose clock is the file, and by nobody else; then what the machine writes shows, and the
/// next scan is of that time.
const JUMPS: &str = r#"
point=$1; shift
clock=$(mktemp /tmp/codchifs-clock.XXXXXX)
echo +0 >"$clock"
libfaketime=$(faketime -m -f +0 printenv LD_PRELOAD)
LD_PRELOAD=$libfaketime FAKETIME_TIMESTAMP_FILE=$clock FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1 \
    "$@" mount "$point"
set -- "$1" "$point"
trap "'$1' unmount --lazy '$2'; rm '$clock'" EXIT
point=$2
old=$(sha256sum <"$point/mine/export.tar")
exec 9<"$point/mine/export.tar"
for jump in +3650d -7300d +0; do
    echo "$jump" >"$clock"
    echo "$jump" >"$DISK/srv/after$jump"
    until cat "$point/mine/rootfs/srv/after$jump" 2>/dev/null; do :; done
    until tar -tf "$point/mine/export.tar" | grep -q "srv/after$jump"; do :; done
    sed -n 's/.*"scanned": "\([0-9]*\).*/\1/p' "$point/mine/report.json"
done
[ "$(sha256sum <&9)" = "$old" ]
"#;

#[test]
fn a_clock_that_jumps_stops_nothing_and_keeps_nothing_from_showing() {
    let host = host();
    let year = || run(program("date", ["-u", "+%Y"])).ok().out().trim().parse::<i64>().unwrap();
    let disk = directory(&host.lxd, "mine").join("rootfs");
    let asked =
        Asked { fuse: "666", conf: "", look: &format!("DISK='{}'\n{JUMPS}", disk.display()) };
    let said = asked.run(&host).ok().out();
    let said: Vec<_> = said.lines().collect();
    let [first, then, later, before, now, at_last] = said[..] else { panic!("{said:?}") };
    assert_eq!([first, later, now], ["+3650d", "-7300d", "+0"]);
    let years = [then, before, at_last].map(|year| year.parse::<i64>().unwrap());
    for (seen, jump) in years.into_iter().zip([10, -20, 0]) {
        assert!((year() + jump - seen).abs() <= 1, "{said:?}");
    }
}
