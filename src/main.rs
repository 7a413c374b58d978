//! The `pdsfs` program.
fn main() {}
