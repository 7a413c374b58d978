//! Tests through real mounts of the built binary, with the embedded server.

// This crate has only tests, so its helpers may panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

#[path = "mount/certificates.rs"]
mod certificates;
#[path = "mount/drive_client.rs"]
mod drive_client;
#[allow(dead_code, reason = "shared with the suite of the server, which uses more of it")]
#[path = "server_suite/http.rs"]
mod http;
#[path = "mount/rig.rs"]
mod rig;
#[path = "mount/slow_disk.rs"]
mod slow_disk;

#[path = "mount/accounts.rs"]
mod accounts;
#[path = "mount/batches.rs"]
mod batches;
#[path = "mount/broker.rs"]
mod broker;
#[path = "mount/cache_size.rs"]
mod cache_size;
#[path = "mount/commit_races.rs"]
mod commit_races;
#[path = "mount/configuration.rs"]
mod configuration;
#[path = "mount/copy_and_seek.rs"]
mod copy_and_seek;
#[path = "mount/crash.rs"]
mod crash;
#[path = "mount/desktop_extensions.rs"]
mod desktop_extensions;
#[path = "mount/device_nodes.rs"]
mod device_nodes;
#[path = "mount/directory_streams.rs"]
mod directory_streams;
#[path = "mount/doctor.rs"]
mod doctor;
#[path = "mount/enterprise.rs"]
mod enterprise;
#[path = "mount/faults.rs"]
mod faults;
#[path = "mount/full_drive.rs"]
mod full_drive;
#[path = "mount/hung_disk.rs"]
mod hung_disk;
#[path = "mount/killed_writers.rs"]
mod killed_writers;
#[path = "mount/limits.rs"]
mod limits;
#[path = "mount/local_only.rs"]
mod local_only;
#[path = "mount/metadata.rs"]
mod metadata;
#[path = "mount/model.rs"]
mod model;
#[path = "mount/model_local_only.rs"]
mod model_local_only;
#[path = "mount/model_operations.rs"]
mod model_operations;
#[path = "mount/monitoring.rs"]
mod monitoring;
#[path = "mount/mountpoints.rs"]
mod mountpoints;
#[path = "mount/mounts_of_others.rs"]
mod mounts_of_others;
#[path = "mount/namespace.rs"]
mod namespace;
#[path = "mount/network.rs"]
mod network;
#[path = "mount/open_flags.rs"]
mod open_flags;
#[path = "mount/owners.rs"]
mod owners;
#[path = "mount/programs.rs"]
mod programs;
#[path = "mount/progress.rs"]
mod progress;
#[path = "mount/quirks.rs"]
mod quirks;
#[path = "mount/random_writes.rs"]
mod random_writes;
#[path = "mount/remote_changes.rs"]
mod remote_changes;
#[path = "mount/service.rs"]
mod service;
#[path = "mount/set_id_bits.rs"]
mod set_id_bits;
#[path = "mount/setup.rs"]
mod setup;
#[path = "mount/shared_files.rs"]
mod shared_files;
#[path = "mount/staged_files.rs"]
mod staged_files;
#[path = "mount/stopping.rs"]
mod stopping;
#[path = "mount/streaming.rs"]
mod streaming;
#[path = "mount/throughput.rs"]
mod throughput;
#[path = "mount/times.rs"]
mod times;
#[path = "mount/tls.rs"]
mod tls;
#[path = "mount/trash.rs"]
mod trash;
#[path = "mount/trash_command.rs"]
mod trash_command;
#[path = "mount/users.rs"]
mod users;
#[path = "mount/versions.rs"]
mod versions;
#[path = "mount/zero_fill.rs"]
mod zero_fill;
