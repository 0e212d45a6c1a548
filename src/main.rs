//! codchifs
fn main() {}
