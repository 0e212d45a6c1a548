//! mount(8)'s arguments, separated by NUL.
//!
//! They are translated or refused with mount(8)'s code for that; nothing that was given comes before the subcommand as
//! anything but the value of an option of ours, and what is escaped arrives as it was.
#![no_main]
#![allow(dead_code)]

#[path = "../../mount-helper/src/options.rs"]
mod options;

// What options.rs has beside it.
use codchifs::quote;
use libfuzzer_sys::fuzz_target;
use options::translate;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

fn escaped(value: &[u8]) -> Vec<u8> {
    let mut text = b"exclude=".to_vec();
    for byte in value {
        match byte {
            b',' | b'\\' | b'"' => text.extend(format!("\\{byte:03o}").bytes()),
            _ => text.push(*byte),
        }
    }
    text
}

fuzz_target!(|data: &[u8]| {
    let args: Vec<OsString> =
        data.split(|byte| *byte == 0).map(|arg| OsStr::from_bytes(arg).to_owned()).collect();
    match translate(&args) {
        Ok(request) if request.help.is_none() => {
            let at = request.args.iter().position(|arg| arg == "mount").unwrap();
            let known = ["--config-dir=", "--data-dir=", "--driver=", "--lxd-dir=", "--rootfs-dir=", "--user="];
            for arg in &request.args[..at] {
                let ours = known.iter().any(|key| arg.as_bytes().starts_with(key.as_bytes()));
                assert!(ours || arg == "-v", "{:?}", request.args);
            }
            assert_eq!(request.args[request.args.len() - 2], "--");
            assert!(request.args.iter().all(|arg| !arg.as_bytes().contains(&0)));
            assert!(!options::display(&request.args).is_empty());
        }
        Ok(_) => {}
        Err(failure) => assert!(failure.code == 1 && !failure.text.is_empty()),
    }
    // The same bytes as values.
    let values: Vec<_> = args.iter().map(|arg| arg.as_bytes()).filter(|v| !v.is_empty()).collect();
    let text = values.iter().map(|value| escaped(value)).collect::<Vec<_>>().join(&b',');
    let line: Vec<OsString> =
        vec!["codchi".into(), "/mnt".into(), "-o".into(), OsStr::from_bytes(&text).to_owned()];
    let request = translate(&line).unwrap_or_else(|why| panic!("{why:?}: {line:?}"));
    let arrived: Vec<_> =
        request.args.iter().filter_map(|arg| arg.as_bytes().strip_prefix(b"--exclude=")).collect();
    assert_eq!(arrived, values);
});
