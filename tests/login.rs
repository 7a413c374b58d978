//! Logins with the built binary and the embedded server. A plain HTTP client plays the browser.

// This crate has only tests, so its helpers may panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]
#![allow(clippy::zombie_processes, clippy::needless_pass_by_value, reason = "short tests")]

#[path = "mount/certificates.rs"]
mod certificates;
#[allow(dead_code, reason = "shared with server_suite, which uses more of it")]
#[path = "server_suite/http.rs"]
mod http;
#[path = "login/rig.rs"]
mod rig;

#[path = "login/browser.rs"]
mod browser;
#[path = "login/credentials.rs"]
mod credentials;
#[path = "login/doctor.rs"]
mod doctor;
#[path = "login/terminal.rs"]
mod terminal;
#[path = "login/tls.rs"]
mod tls;
