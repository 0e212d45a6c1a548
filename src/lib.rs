//! codchifs: every Codchi code machine as a directory.
#![forbid(unsafe_code)]

pub mod export;
pub mod idmap;
pub mod machine;
pub mod tar;
pub mod tree;
