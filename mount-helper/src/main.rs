//! mount.codchifs
fn main() {}
