//! Daemons that systemd starts when somebody connects to their socket (systemd.socket(5)): a look must not start one that its
//! owner has stopped.
//!
//! Who listens on a socket cannot be asked without connecting. But a daemon that runs also listens on the socket that its
//! instances get (`devlxd/sock` of LXD, `guestapi/sock` of Incus), and systemd never does.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Sockets of a running daemon, below its base directory.
const GUESTS: [&str; 2] = ["devlxd/sock", "guestapi/sock"];

/// Where units are (systemd.unit(5)).
const UNITS: [&str; 4] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// Bytes of a unit that are read.
const MAX_UNIT: u64 = 64 << 10;

/// Whether nobody but systemd listens on the socket of a daemon, to start it.
pub(super) fn would_start(socket: &Path) -> bool {
    let table = fs::read("/proc/net/unix").unwrap_or_default();
    is_asleep(&table, socket) && is_of_a_unit(socket)
}

/// Whether somebody listens on `socket`, and nobody on what a daemon that runs has beside it, by the table of /proc/net/unix.
fn is_asleep(table: &[u8], socket: &Path) -> bool {
    let Some(base) = socket.parent() else { return false };
    let listens = |path: &Path| {
        table
            .split(|byte| *byte == b'\n')
            .any(|line| listener(line) == Some(path.as_os_str().as_bytes()))
    };
    listens(socket) && !GUESTS.iter().any(|guests| listens(&base.join(guests)))
}

/// `Num: RefCount Protocol Flags Type St Inode Path`; a socket that is listened on has __SO_ACCEPTCON among its flags.
fn listener(line: &[u8]) -> Option<&[u8]> {
    const ACCEPTS: u32 = 1 << 16;
    let flags = line.split(|byte| *byte == b' ').filter(|field| !field.is_empty()).nth(3)?;
    let flags = u32::from_str_radix(str::from_utf8(flags).ok()?, 16).ok()?;
    // Columns before are padded with blanks, and have no slash. An abstract name begins with an @.
    let blank = line.windows(2).position(|pair| pair == b" /")?;
    (flags & ACCEPTS != 0).then(|| line.get(blank + 1..)).flatten()
}

/// Whether a socket unit of this host is for it.
fn is_of_a_unit(socket: &Path) -> bool {
    let names_it = |line: &str| {
        line.strip_prefix("ListenStream=").is_some_and(|path| Path::new(path.trim()) == socket)
    };
    let units =
        UNITS.iter().filter_map(|directory| fs::read_dir(directory).ok()).flatten().flatten();
    units
        .map(|unit| unit.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "socket"))
        .filter(|path| {
            fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() <= MAX_UNIT)
        })
        .any(|path| fs::read_to_string(path).is_ok_and(|text| text.lines().any(names_it)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_without_its_daemon_is_told_from_one_with_it() {
        let temp = tempfile::tempdir().unwrap();
        let at = temp.path();
        let table = || fs::read("/proc/net/unix").unwrap();
        let socket = at.join("unix.socket");
        assert!(!is_asleep(&table(), &socket));
        let _systemd = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(is_asleep(&table(), &socket));
        // No unit of this host names it, so it is connected to.
        assert!(!would_start(&socket));
        for guests in GUESTS {
            let path = at.join(guests);
            fs::create_dir(path.parent().unwrap()).unwrap();
            let daemon = std::os::unix::net::UnixListener::bind(&path).unwrap();
            assert!(!is_asleep(&table(), &socket));
            drop(daemon);
            // The file stays, as that of a daemon that was killed does.
            assert!(path.exists() && is_asleep(&table(), &socket));
        }
        assert!(!is_asleep(&table(), &at.join("other/unix.socket")));
    }

    #[test]
    fn a_line_is_one_that_listens_or_not() {
        let line =
            b"0000000000000000: 00000002 00000000 00010000 0001 01 24 /var/lib/a b/unix.socket";
        assert_eq!(listener(line), Some(&b"/var/lib/a b/unix.socket"[..]));
        for other in [
            &b"0000000000000000: 00000003 00000000 00000000 0001 03 24 /var/lib/unix.socket"[..],
            b"0000000000000000: 00000002 00000000 00010000 0001 01 24 @/var/lib/unix.socket",
            b"0000000000000000: 00000002 00000000 00010000 0001 01 24",
            b"Num       RefCount Protocol Flags    Type St Inode Path",
            b"",
        ] {
            assert_eq!(listener(other), None);
        }
    }
}
