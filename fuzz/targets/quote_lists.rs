//! Any name in a list for mtree(5), in one of checksums, and in a table of mounts: bsdtar, sha256sum and we read back the name.
#![no_main]

mod judge;

use codchifs::quote;
use libfuzzer_sys::fuzz_target;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

/// A directory that is removed.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn judged(names: &[Vec<u8>]) -> Result<(), String> {
    let names: BTreeSet<_> = names.iter().map(|name| [b"n", name.as_slice()].concat()).collect();
    let mut list = String::from("#mtree v2.0\n");
    for name in &names {
        list += &format!("./{} type=dir mode=0755 uid=0 gid=0 time=0.0\n", quote::vis(name));
    }
    let archive = judge::fed("bsdtar", &["-cf", "-", "--format=pax", "@-"], list.as_bytes())?;
    let mut archive = tar::Archive::new(&*archive);
    let mut read = BTreeSet::new();
    for entry in archive.entries().map_err(|why| why.to_string())? {
        let path = entry.map_err(|why| why.to_string())?.path_bytes().into_owned();
        let path = path.strip_prefix(b"./").unwrap_or(&path);
        read.insert(path.strip_suffix(b"/").unwrap_or(path).to_vec());
    }
    if read != names {
        return Err("bsdtar reads other names".into());
    }
    // Each file has its own content, so that a line that leads to another one is found.
    let scratch =
        Scratch(std::env::temp_dir().join(format!("codchifs-fuzz.{}", std::process::id())));
    fs::create_dir(&scratch.0).map_err(|why| why.to_string())?;
    let mut sums = Vec::new();
    for (at, name) in names.iter().enumerate() {
        let (path, content) = (scratch.0.join(OsStr::from_bytes(name)), at.to_string());
        let sum: String =
            Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(path, content).map_err(|why| why.to_string())?;
        let (name, escaped) = quote::sum_name(name);
        let escape = if escaped { b"\\".as_slice() } else { b"" };
        sums.extend([escape, sum.as_bytes(), b"  ", &name, b"\n"].concat());
    }
    judge::fed_in(&scratch.0, "sha256sum", &["--check", "--strict", "--quiet"], &sums).map(drop)
}

fuzz_target!(|name: &[u8]| {
    // The kernel writes these four so.
    let escaped: Vec<u8> = name
        .iter()
        .flat_map(|byte| match byte {
            b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
            byte => vec![*byte],
        })
        .collect();
    assert_eq!(quote::unescape_octal(&escaped), name);
    assert_eq!(quote::unvis(quote::vis(name).as_bytes()).as_deref(), Some(name));
    if name.len() < 255 && !name.contains(&0) && !name.contains(&b'/') {
        judge::batched(name, judged);
    }
});
