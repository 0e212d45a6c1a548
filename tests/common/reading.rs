//! The ways that Linux has for reading a file, by `tests/ways_of_reading/reader.c`.

use super::{Done, program, run, run_with_input};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Every way, also of a file opened with O_DIRECT.
pub(crate) const WAYS: &[&str] = &[
    "read",
    "pread",
    "pread-backwards",
    "readv",
    "preadv",
    "preadv2",
    "nowait",
    "mmap",
    "mmap-private",
    "mmap-populate",
    "sendfile",
    "sendfile-offset",
    "splice",
    "splice-offset",
    "copy-file-range",
    "copy-file-range-offset",
    "libaio",
    "uring",
    "uring-fixed",
    "uring-readv",
    "uring-registered",
    "uring-polled",
    "uring-position",
    "uring-position-fixed",
    "uring-position-readv",
    "uring-position-linked",
    "direct-read",
    "direct-pread",
    "direct-pread-backwards",
    "direct-readv",
    "direct-preadv2",
    "direct-nowait",
    "direct-mmap",
    "direct-sendfile",
    "direct-splice",
    "direct-copy-file-range",
    "direct-libaio",
    "direct-uring",
    "direct-uring-fixed",
    "direct-uring-registered",
    "direct-uring-position",
    "direct-uring-position-fixed",
    "direct-uring-position-linked",
];

/// Bytes that are asked for at once: fewer than any file has, across pages and across the end, and more than all there is.
pub(crate) const BLOCKS: [usize; 5] = [511, 4096, 65_536, 1_000_003, 16 << 20];

/// The compiled program, and where it copies to.
#[derive(Debug)]
pub(crate) struct Reading {
    program: PathBuf,
    directory: PathBuf,
    copies: AtomicU64,
}

impl Reading {
    pub(crate) fn new(directory: &Path) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ways_of_reading/reader.c");
        let directory = tempfile::tempdir_in(directory).unwrap().keep();
        let compiled = directory.join("reader");
        let flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-D_FILE_OFFSET_BITS=64", "-o"];
        let mut compiler = program("gcc", flags);
        run(compiler.arg(&compiled).arg(source).args(["-luring", "-laio"])).silent();
        Self { program: compiled, directory, copies: AtomicU64::new(0) }
    }

    /// What a way gives of a file, in blocks of that size.
    pub(crate) fn copy(&self, way: &str, block: usize, file: &Path) -> (Done, Vec<u8>) {
        self.copied(way, block, |command, to| run(command.arg(file).arg(to)))
    }

    /// Of a file that is open. Its reader closes it last.
    pub(crate) fn copy_open(&self, way: &str, block: usize, file: File) -> (Done, Vec<u8>) {
        self.copied(way, block, |command, to| run_with_input(command.arg("-").arg(to), file))
    }

    fn copied(
        &self,
        way: &str,
        block: usize,
        run: impl FnOnce(&mut std::process::Command, &Path) -> Done,
    ) -> (Done, Vec<u8>) {
        let number = self.copies.fetch_add(1, Ordering::Relaxed);
        let to = self.directory.join(format!("copy-{number}"));
        let program = self.program.to_str().unwrap();
        let done = run(&mut super::program(program, [way, &block.to_string()]), &to);
        let copy = fs::read(&to).unwrap_or_default();
        let _ = fs::remove_file(&to);
        (done, copy)
    }
}
