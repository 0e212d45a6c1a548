//! codchifs: every Codchi code machine as a directory.
#![forbid(unsafe_code)]

pub mod export;
pub mod fuse;
pub mod machine;
pub mod tree;
pub mod vfs;
