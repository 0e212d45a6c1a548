//! codchifs: every Codchi code machine as a directory.
//!
//! ```text
//!   cli ──────── arguments, terminals, exit status
//!    ├─ doctor ─── whether this host works
//!    ├─ verify ─── a copy compared with a machine
//!    └─ fuse ─── kernel protocol, mounting            (the only importer of fuser)
//!        └─ vfs ─── names under the mount point, inodes, handles
//!            └─ machine ─── one user's machines: Codchi's state + where the files are
//!                ├─ export ─── generations: a frozen layout of a tree, and its bytes
//!                │    ├─ tar ─── header, layout, reader; does no I/O
//!                │    └─ tree ─── rootfs − exclusions + home + generated files; confined opens
//!                ├─ codchi ─── Codchi's own files; flake, lock and codchi-env rendered
//!                └─ backend ─── where a machine's directories and id maps are
//!
//!   quote ────── foreign text in our output
//!   sys ──────── the system calls that no crate wraps    (the only unsafe code)
//! ```
//!
//! Words: a *code machine* is what Codchi manages; its *rootfs* is the container's root directory on the host; its
//! *home* is grafted at `/home/codchi`. A *member* is one entry of the tar, a *layout* the frozen list of members with
//! their offsets, a *generation* one layout of one machine. `docs/SEMANTICS.md` says what is promised.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod accounts;
pub mod backend;
pub mod cli;
pub mod codchi;
mod confined;
pub mod credentials;
pub mod doctor;
pub mod export;
mod filesystem;
pub mod fuse;
pub mod idmap;
pub mod kernel;
mod look;
pub mod machine;
mod mountinfo;
pub mod nar;
pub mod opener;
pub mod quote;
pub mod sandbox;
mod sys;
pub mod tar;
pub mod tree;
pub mod verify;
pub mod vfs;
mod walk;
mod worker;
