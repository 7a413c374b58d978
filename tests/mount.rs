//! Tests through real mounts of the built binary, against the embedded server.

// A whole file of tests: helpers may fail as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

#[path = "mount/rig.rs"]
mod rig;

#[path = "mount/accounts.rs"]
mod accounts;
#[path = "mount/bounds.rs"]
mod bounds;
#[path = "mount/cache.rs"]
mod cache;
#[path = "mount/configured.rs"]
mod configured;
#[path = "mount/copies.rs"]
mod copies;
#[path = "mount/crash.rs"]
mod crash;
#[path = "mount/elsewhere.rs"]
mod elsewhere;
#[path = "mount/faults.rs"]
mod faults;
#[path = "mount/flags.rs"]
mod flags;
#[path = "mount/local_only.rs"]
mod local_only;
#[path = "mount/metadata.rs"]
mod metadata;
#[path = "mount/model.rs"]
mod model;
#[path = "mount/model_local.rs"]
mod model_local;
#[path = "mount/model_operations.rs"]
mod model_operations;
#[path = "mount/names.rs"]
mod names;
#[path = "mount/network.rs"]
mod network;
#[path = "mount/programs.rs"]
mod programs;
#[path = "mount/renames.rs"]
mod renames;
#[path = "mount/service.rs"]
mod service;
#[path = "mount/sights.rs"]
mod sights;
#[path = "mount/staged.rs"]
mod staged;
#[path = "mount/stopping.rs"]
mod stopping;
#[path = "mount/streaming.rs"]
mod streaming;
#[path = "mount/trash.rs"]
mod trash;
#[path = "mount/users.rs"]
mod users;
#[path = "mount/writes.rs"]
mod writes;
