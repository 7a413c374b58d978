//! Settings, valid by construction.
//!
//! Flags override environment variables, and those override the configuration file. The table in `settings`
//! defines names, bounds and defaults; every bound is checked there, so the rest of the daemon uses a
//! [`MountConfig`] without further checks. The module reads the environment and the configuration file, and
//! nothing else. `daemon::resolve` completes the settings that depend on the account and the machine.

use std::path::PathBuf;

pub mod dirs;
pub mod drive_path;
pub mod edit;
pub mod file;
mod host_patterns;
mod notation;
pub mod parse;
pub mod reference;
pub mod secret_variables;
pub mod settings;
pub mod trusted_file;

use self::drive_path::DrivePath;
pub use self::host_patterns::HostPatterns;
pub use self::settings::{MountOptions, Owners, RemoveMode};
pub use crate::auth::Credential;
use crate::ids::{DriveId, FileId};

/// The configuration of one mount.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// The name of the drive in the configuration file.
    pub name: Option<String>,
    /// Base URL of the API, without a path: `https://{domain_id}.api.aliyunpds.com`.
    pub endpoint: url::Url,
    pub drive_id: DriveId,
    /// The drive folder that becomes the root of the mount.
    pub root_id: FileId,
    /// The path from `root_id` to the drive folder to mount; empty once `root_id` is that folder.
    pub folder: DrivePath,
    pub credential: Credential,
    /// The socket of the broker, which mounts for a daemon without rights.
    pub broker: Option<PathBuf>,
    /// An existing directory.
    pub mountpoint: PathBuf,
    /// The source in the mount table. Programs treat a mount as remote if this contains a colon.
    pub source: String,
    /// Owner of objects without an owner on the drive.
    pub uid: u32,
    /// Group of objects without a group on the drive.
    pub gid: u32,
    /// An existing directory, for staged files, cached files and spilled parts.
    pub spill_dir: PathBuf,
    pub options: MountOptions,
}

impl MountConfig {
    /// A drive with every default: owned by root, without a mountpoint, spilling into the system's temporary
    /// directory.
    pub fn new(endpoint: url::Url, drive_id: DriveId, credential: Credential) -> Self {
        Self {
            name: None,
            source: format!("pds:{drive_id}"),
            endpoint,
            drive_id,
            root_id: FileId::root(),
            folder: DrivePath::default(),
            credential,
            broker: None,
            mountpoint: PathBuf::new(),
            uid: 0,
            gid: 0,
            spill_dir: std::env::temp_dir(),
            options: MountOptions::default(),
        }
    }

    /// Whether the mount is one of root.
    pub fn is_by_root(&self) -> bool {
        self.broker.is_some() || rustix::process::geteuid().is_root()
    }
}
