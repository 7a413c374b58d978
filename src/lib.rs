//! pdsfs: an Alibaba Cloud PDS drive as a Linux directory whose files are uploaded while they are
//! written. `src/ARCHITECTURE.md` is the map.

pub mod account;
pub mod cli;
pub mod config;
pub mod content;
pub mod control;
pub mod crc64;
pub mod desktop;
pub mod error;
pub mod fuse;
pub mod ids;
pub mod logging;
pub mod name_patterns;
pub mod pds;
pub mod posix;
pub mod printable;
pub mod rolling_sha1;
pub mod server;
pub mod status;
pub mod tree;
pub mod vfs;

pub use error::{Error, ErrorKind, Result};

const _: () = assert!(usize::BITS == 64, "pdsfs needs a 64-bit platform");
