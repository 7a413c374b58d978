//! Tests of several modules together, in process against the embedded server or the recorded requests.
//!
//! They use private interfaces, so they live in the crate. Tests of the built binary are in `tests/`.

// A whole module of tests: helpers may fail as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod call_limits;
mod contract;
mod golden;
mod quirks;
mod token_refresh;
mod vfs;
