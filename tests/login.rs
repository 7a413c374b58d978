//! Logging in, with the built binary and against the embedded server; browsers are played by a plain HTTP client.

// A whole file of tests: helpers may fail as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

#[allow(dead_code, reason = "shared with the suite of the server, which uses more of it")]
#[path = "server_suite/http.rs"]
mod http;
#[path = "login/rig.rs"]
mod rig;

#[path = "login/browser.rs"]
mod browser;
#[path = "login/keys.rs"]
mod keys;
#[path = "login/sharing.rs"]
mod sharing;
