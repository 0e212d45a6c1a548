//! What a plain user meets.

use super::lxd::{Host, UID};
use super::{Done, program, run};
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};

/// As the user, in a mount namespace with a /dev/fuse of mode `$FUSE` and a fuse.conf that says `$CONF`.
const SCRIPT: &str = r#"
mknod "$AT/fuse" c 10 229
chmod "$FUSE" "$AT/fuse"
mount --bind "$AT/fuse" /dev/fuse
printf %s "$CONF" >"$AT/fuse.conf"
mount --bind "$AT/fuse.conf" /etc/fuse.conf
cd /
setpriv --reuid "$UID_OF_USER" --regid "$UID_OF_USER" --clear-groups sh -ec "$LOOK" sh "$@"
"#;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) fuse: &'a str,
    pub(crate) conf: &'a str,
    /// `$0` is sh, `$1` the mount point, the rest is codchifs with its options.
    pub(crate) look: &'a str,
}

impl Asked<'_> {
    pub(crate) fn run(&self, host: &Host) -> Done {
        let at = tempfile::Builder::new().prefix("ask-").tempdir_in(host.path()).unwrap();
        fs::set_permissions(at.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let point = at.path().join("mnt");
        fs::create_dir(&point).unwrap();
        chown(&point, Some(UID), Some(UID)).unwrap();
        let codchifs = host.command(&[]);
        let mut command = program("unshare", ["--mount", "--propagation", "private"]);
        command.args(["sh", "-ec", SCRIPT, "sh"]).arg(&point).arg(codchifs.get_program());
        // Not --user: that is for root.
        command.args(codchifs.get_args().skip(2));
        command.env("LXD_DIR", &host.lxd).env("INCUS_DIR", &host.incus).env("AT", at.path());
        command.env("FUSE", self.fuse).env("CONF", self.conf).env("LOOK", self.look);
        run(command.env("UID_OF_USER", UID.to_string()))
    }
}
