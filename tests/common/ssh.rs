//! A real sshd on 127.0.0.1 with keys and a configuration of its own.

use super::fixture::Fixture;
use super::target::STAND_IN;
use super::{program, run, wait_until};
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Where Debian has it.
const SFTP_SERVER: &str = "/usr/lib/openssh/sftp-server";

/// Ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Sshd {
    child: Child,
    directory: PathBuf,
    port: u16,
}

/// Keys, and a configuration for an sshd that sees them in `at`.
fn prepare(directory: &Path, at: &Path, subsystem: &str, more: &str) {
    for key in ["host", "user"] {
        let mut keygen = program("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f"]);
        run(keygen.arg(directory.join(key))).silent();
    }
    fs::copy(directory.join("user.pub"), directory.join("authorized")).unwrap();
    let at = at.display();
    let text = format!(
        "HostKey {at}/host\nAuthorizedKeysFile {at}/authorized\nPidFile none\nUsePAM no\n\
         StrictModes no\nPermitRootLogin prohibit-password\nSubsystem sftp {subsystem}\n{more}"
    );
    fs::write(directory.join("sshd_config"), text).unwrap();
}

impl Sshd {
    /// Starts one that runs its sftp server below `wrapper`.
    pub(crate) fn start(fixture: &Fixture, wrapper: &[String]) -> Self {
        let directory = tempfile::tempdir_in(fixture.path()).unwrap().keep();
        let server = [wrapper, &[SFTP_SERVER.to_owned()]].concat().join(" ");
        prepare(&directory, &directory, &server, "");
        // Where sshd locks itself in; its service makes it.
        fs::create_dir_all("/run/sshd").unwrap();
        Self::listen(program("/usr/sbin/sshd", [] as [&str; 0]), &directory, &directory)
    }

    /// Starts one whose root directory is `root`. Its files are in `root/run`.
    pub(crate) fn within(root: &Path) -> Self {
        fs::create_dir_all(root.join("run/sshd")).unwrap();
        let directory = tempfile::tempdir_in(root.join("run")).unwrap().keep();
        let inside = Path::new("/").join(directory.strip_prefix(root).unwrap());
        let path = format!("SetEnv PATH={STAND_IN}:/usr/sbin:/usr/bin\n");
        prepare(&directory, &inside, SFTP_SERVER, &path);
        let mut sshd = program("chroot", [root]);
        sshd.arg("/usr/sbin/sshd");
        Self::listen(sshd, &directory, &inside)
    }

    /// On a free port; `inside` is where it sees its directory.
    fn listen(mut sshd: Command, directory: &Path, inside: &Path) -> Self {
        sshd.args(["-D", "-e", "-o", "ListenAddress=127.0.0.1", "-f"])
            .arg(inside.join("sshd_config"));
        let settings = fs::read_to_string(directory.join("sshd_config")).unwrap();
        loop {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let log = File::create(directory.join("sshd.log")).unwrap();
            fs::write(directory.join("sshd_config"), format!("Port {port}\n{settings}")).unwrap();
            let child = sshd
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap();
            let mut sshd = Self { child, directory: directory.into(), port };
            let mut listens = false;
            // Whoever answers on the port may be another one.
            wait_until("sshd", || {
                listens = sshd.log().contains(&format!("listening on 127.0.0.1 port {port}"));
                listens || sshd.child.try_wait().unwrap().is_some()
            });
            if listens {
                return sshd;
            }
            assert!(sshd.log().contains("in use"), "sshd ended: {}", sshd.log());
        }
    }

    /// What a person has in `~/.ssh/config`: a host of this name that is this server.
    pub(crate) fn client_config(&self, host: &str) -> String {
        format!(
            "Host {host}\nHostName 127.0.0.1\nPort {}\nIdentityFile {}/user\nIdentitiesOnly yes\n\
             BatchMode yes\nLogLevel ERROR\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\n",
            self.port,
            self.directory.display()
        )
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.join("sshd.log")).unwrap_or_default()
    }

    /// `ssh`, `scp` or `sftp` with what leads to this server, but for the host and the rest.
    pub(crate) fn client(&self, name: &str) -> Command {
        let mut command = program(name, ["-F", "none", "-q", "-o", "BatchMode=yes"]);
        command.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        command.args(["-o", "IdentitiesOnly=yes", "-i"]).arg(self.directory.join("user"));
        command.arg("-o").arg(format!("Port={}", self.port)).env_remove("SSH_AUTH_SOCK");
        command
    }

    /// A path as scp and sftp name it.
    pub(crate) fn remote(path: &Path) -> String {
        format!("root@127.0.0.1:{}", path.display())
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("log of sshd:\n{}", self.log());
        }
    }
}
