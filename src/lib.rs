//! codchifs: every Codchi code machine as a directory.
#![forbid(unsafe_code)]

pub mod codchi;
pub mod export;
pub mod machine;
pub mod tree;
