//! The `peel` binary.
fn main() {}
