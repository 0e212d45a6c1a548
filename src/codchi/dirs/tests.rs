use super::*;
use crate::accounts::{NoAnswer, listed};

const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\nbroken\n\xff:x:5:5::/x:\n\
    ann:x:1000:100:Ann,,:/home/ann:/bin/bash\nrel:x:1001:100::home:/bin/sh\n";

fn env<'a>(set: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<OsString> + 'a {
    move |name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into())
}

fn found(uid: u32, user: Option<&str>, set: &[(&str, &str)]) -> Result<Owner, String> {
    owner(uid, user, &env(set), &|key| Ok(listed(PASSWD, key))).map_err(|fault| fault.to_string())
}

#[test]
fn whose_state() {
    let ann = |home: &str, is_caller| {
        Ok(Owner { uid: 1000, gid: Some(100), home: home.into(), is_caller })
    };
    let root = Ok(Owner { uid: 0, gid: Some(0), home: "/root".into(), is_caller: true });
    assert_eq!(found(1000, None, &[]), ann("/home/ann", true));
    assert_eq!(found(1000, None, &[("HOME", "/h"), ("SUDO_USER", "rel")]), ann("/h", true));
    assert_eq!(found(1000, Some("ann"), &[("HOME", "/h")]), ann("/h", true));
    assert_eq!(found(0, None, &[("HOME", "/root")]), root);
    assert_eq!(found(0, None, &[("SUDO_USER", "")]), root);
    assert_eq!(found(0, None, &[("SUDO_USER", "ann"), ("HOME", "/h")]), ann("/home/ann", false));
    assert_eq!(found(0, Some("ann"), &[("SUDO_USER", "rel")]), ann("/home/ann", false));
    assert_eq!(found(0, Some("root"), &[("SUDO_USER", "ann")]), root);
    for (fault, text) in [
        (
            found(1000, Some("root"), &[]),
            "cannot read Codchi's state of user \"root\": only root may use --user for somebody else; \
             run it as root",
        ),
        (
            found(0, Some("bob"), &[]),
            "cannot find Codchi's state of user \"bob\", named by --user: this host has no such user; \
             check the name with: getent passwd",
        ),
        (
            found(0, None, &[("SUDO_USER", "bob")]),
            "cannot find Codchi's state of user \"bob\", named by $SUDO_USER: this host has no such \
             user; check the name with: getent passwd",
        ),
        (
            found(7, None, &[]),
            "cannot find Codchi's state of uid 7: $HOME is not set and this host has no such user; \
             set $HOME or name codchi's config and data directories",
        ),
        (
            found(0, Some("rel"), &[]),
            "cannot use the user's home directory home: it is not an absolute path; write \
             it in full, from /",
        ),
    ] {
        assert_eq!(fault.unwrap_err(), text);
    }
    let silent = owner(0, Some("bob"), &env(&[]), &|_| Err(NoAnswer));
    assert_eq!(
        silent.unwrap_err().to_string(),
        "cannot find Codchi's state of user \"bob\", named by --user: /etc/passwd does not have it, and \
         the other sources of users gave no answer in time; see /etc/nsswitch.conf, and try: getent passwd"
    );
}

#[test]
fn where_it_is() {
    let xdg = [("XDG_CONFIG_HOME", "/xc"), ("XDG_DATA_HOME", "/xd")];
    let relative = [("XDG_CONFIG_HOME", "xc"), ("XDG_DATA_HOME", "")];
    let mut owner =
        Owner { uid: 1000, gid: None, home: PathBuf::from("/home/ann"), is_caller: true };
    let config = |owner: &Owner, set| config_dir(owner, None, &env(set)).unwrap();
    let data = |owner: &Owner, set, toml| {
        data_dir(owner, None, &env(set), Path::new("/c"), toml).map_err(|fault| fault.to_string())
    };
    assert_eq!(config(&owner, &xdg), Path::new("/xc/codchi"));
    assert_eq!(config(&owner, &relative), Path::new("/home/ann/.config/codchi"));
    assert_eq!(data(&owner, &xdg, None), Ok("/xd/codchi".into()));
    assert_eq!(data(&owner, &relative, Some("")), Ok("/home/ann/.local/share/codchi".into()));
    let toml = "tray.autostart = false\ndata_dir = \"/big/codchi\"\n[other]\n";
    assert_eq!(data(&owner, &xdg, Some(toml)), Ok("/big/codchi".into()));
    for (toml, text) in [
        (
            "a = 1\ndata_dir = 5",
            "cannot parse codchi's settings in /c/config.toml: fault at line 2; repair the file",
        ),
        (
            "data_dir = \"rel\"",
            "cannot use data_dir of codchi's config.toml rel: it is not an absolute path; write it \
             in full, from /",
        ),
    ] {
        assert_eq!(data(&owner, &[], Some(toml)).unwrap_err(), text);
    }
    owner.is_caller = false;
    assert_eq!(config(&owner, &xdg), Path::new("/home/ann/.config/codchi"));
    assert_eq!(data(&owner, &xdg, None), Ok("/home/ann/.local/share/codchi".into()));
    let given = Some(Path::new("/given"));
    assert_eq!(config_dir(&owner, given, &env(&xdg)).unwrap(), Path::new("/given"));
    let data = data_dir(&owner, given, &env(&xdg), Path::new("/c"), Some(toml));
    assert_eq!(data.unwrap(), Path::new("/given"));
}
