//! pdsfs: an Alibaba Cloud PDS drive as a Linux directory whose files are uploaded while they are
//! written. `ARCHITECTURE.md` is the map.

mod auth;
pub mod cli;
mod clock;
mod config;
mod content;
mod control;
mod crc64;
mod daemon;
mod desktop;
mod error;
mod escape;
mod fuse;
#[cfg(any(test, fuzzing))]
pub mod fuzz_targets;
mod host_header;
mod ids;
mod local_disk;
mod logging;
mod messages;
mod name_patterns;
mod pds;
mod posix;
mod rolling_sha1;
#[cfg(feature = "server")]
pub mod server;
mod status;
mod supervised;
mod tcp_peer;
mod tree;
mod units;
mod vfs;

#[cfg(all(test, feature = "server"))]
mod tests;

pub use control::types as control_api;

const _: () = assert!(usize::BITS == 64, "pdsfs needs a 64-bit platform");
