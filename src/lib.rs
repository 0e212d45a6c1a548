//! codchifs: every Codchi code machine as a directory.
#![forbid(unsafe_code)]
