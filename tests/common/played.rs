//! Daemons that are none: machines as LXD leaves them on the disk, and whatever is to be answered over its socket.

use super::lxd::{FILES, HOME, Host, plant, shifted};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What a daemon that is none answers: the bytes of a whole response, or nothing, ever.
pub(crate) fn pretend(socket: &Path, response: Option<Vec<u8>>) {
    let _ = fs::remove_file(socket);
    fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            match &response {
                Some(bytes) => {
                    let _ = stream.read(&mut [0; 4096]);
                    let _ = stream.write_all(bytes);
                }
                None => kept.push(stream),
            }
        }
    });
}

/// A daemon that answers by path, on as many connections at once as there are.
pub(crate) fn serve(socket: &Path, answer: impl Fn(&str) -> Vec<u8> + Clone + Send + 'static) {
    let _ = fs::remove_file(socket);
    fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, answer) = (stream.unwrap(), answer.clone());
            std::thread::spawn(move || {
                let mut request = [0; 4096];
                let length = stream.read(&mut request).unwrap_or_default();
                let line = String::from_utf8_lossy(&request[..length]).into_owned();
                let path = line.split(' ').nth(1).unwrap_or_default();
                let _ = stream.write_all(&answer(path));
            });
        }
    });
}

/// Metadata in the envelope.
pub(crate) fn metadata(value: &Value) -> Vec<u8> {
    http("200 OK", &json!({"type": "sync", "status_code": 200, "metadata": value}).to_string())
}

/// A daemon whose answer changes, and who remembers when it was asked last.
#[derive(Debug)]
pub(crate) struct Played {
    state: Arc<Mutex<(Vec<u8>, Instant)>>,
}

impl Played {
    pub(crate) fn new(socket: &Path, response: Vec<u8>) -> Self {
        fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(socket).unwrap();
        let state = Arc::new(Mutex::new((response, Instant::now())));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 4096]);
                let mut state = shared.lock().unwrap();
                state.1 = Instant::now();
                let _ = stream.write_all(&state.0);
            }
        });
        Self { state }
    }

    /// Answers this from now on.
    pub(crate) fn says(&self, response: Vec<u8>) {
        self.state.lock().unwrap().0 = response;
    }

    /// How long nobody has asked.
    pub(crate) fn idle(&self) -> Duration {
        self.state.lock().unwrap().1.elapsed()
    }
}

pub(crate) fn http(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

pub(crate) fn sync(instances: &[Value]) -> Vec<u8> {
    http("200 OK", &json!({"type": "sync", "status_code": 200, "metadata": instances}).to_string())
}

pub(crate) const MAP: &str = r#"[{"Isuid":true,"Isgid":true,"Hostid":1000,"Nsid":0,"Maprange":1},{"Isuid":true,"Isgid":true,"Hostid":100001,"Nsid":1,"Maprange":999999}]"#;

/// The record of a machine as the API lists it.
pub(crate) fn record(host: &Host, machine: &str, status: &str, last_state: &str) -> Value {
    let config = json!({
        "raw.idmap": "uid 1000 0\ngid 1000 0",
        "security.nesting": "true",
        "volatile.last_state.idmap": last_state,
        "volatile.idmap.current": MAP,
        "volatile.idmap.next": MAP,
    });
    let devices = json!({
        "root": {"path": "/", "pool": "default", "type": "disk"},
        "home/codchi": {"path": "/home/codchi", "type": "disk", "source": host.home(machine)},
    });
    json!({
        "name": format!("codchi-{machine}"), "project": "default", "type": "container", "status": status,
        "config": config, "devices": devices, "expanded_config": config, "expanded_devices": devices,
    })
}

/// Where `base` keeps an instance.
pub(crate) fn directory(base: &Path, machine: &str) -> PathBuf {
    base.join(format!("storage-pools/default/containers/codchi-{machine}"))
}

/// A machine on disk, whose backup.yaml says the same as [`record`].
pub(crate) fn on_disk(
    host: &Host,
    base: &Path,
    machine: &str,
    last_state: &str,
    ids: fn(u32) -> u32,
) {
    host.configure(machine);
    let dir = directory(base, machine);
    let rootfs = dir.join("rootfs");
    fs::create_dir_all(&rootfs).unwrap();
    chown(&rootfs, Some(ids(0)), Some(ids(0))).unwrap();
    plant(&rootfs, FILES, ids);
    plant(&host.home(machine), HOME, shifted);
    let backup = json!({"container": record(host, machine, "Stopped", last_state)});
    // JSON is YAML.
    fs::write(dir.join("backup.yaml"), backup.to_string()).unwrap();
}

/// The machine `demo`, that an LXD which is played tells everybody of.
pub(crate) fn played() -> Host {
    let host = Host::new();
    on_disk(&host, &host.lxd, "demo", MAP, shifted);
    let socket = host.lxd.join("unix.socket");
    pretend(&socket, Some(sync(&[record(&host, "demo", "Stopped", MAP)])));
    fs::set_permissions(socket, fs::Permissions::from_mode(0o666)).unwrap();
    host
}
