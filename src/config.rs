//! Settings, valid by construction.
//!
//! A setting comes from the configuration file, the environment or a flag, each over the one before
//! (`settings`, `file`). Every bound is checked there, so the rest of the daemon takes a
//! [`MountConfig`] as it is.

use std::path::PathBuf;
use std::time::Duration;

pub mod dirs;
pub mod file;
pub mod folder;
pub mod quantities;
pub mod settings;

use self::folder::FolderPath;
use crate::ids::{DriveId, FileId, PartSize};
use crate::name_patterns::NamePatterns;
pub use crate::pds::auth::Credential;

/// What happens to a file that is unlinked or a folder that is removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RemoveMode {
    /// To the drive's recycle bin.
    #[default]
    Trash,
    /// For good.
    Delete,
}

/// Everything that one mount needs to know.
#[allow(clippy::struct_excessive_bools, reason = "each is a setting of its own, with nothing to combine")]
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// What the configuration calls the drive.
    pub name: Option<String>,
    /// Base URL of the API, without a path: `https://{domain_id}.api.aliyunpds.com`.
    pub endpoint: url::Url,
    /// The drive.
    pub drive_id: DriveId,
    /// The folder of the drive that becomes the root of the mount.
    pub root_id: FileId,
    /// The way down from `root_id` to the folder that is meant; empty once `root_id` is that folder.
    pub folder: FolderPath,
    /// Where the bearer token comes from.
    pub credential: Credential,
    /// Where to mount; an existing folder.
    pub mountpoint: PathBuf,
    /// What the kernel shows as what is mounted. With a colon, programs take it for remote.
    pub source: String,
    /// Mount over a folder that holds something.
    pub allow_non_empty: bool,
    /// Let other users in.
    pub allow_other: bool,
    /// Refuse every change.
    pub read_only: bool,
    /// Let no program of the drive run.
    pub noexec: bool,
    /// Owner of what has none on the drive.
    pub uid: u32,
    /// Group of what has none on the drive.
    pub gid: u32,
    /// Permission bits taken away from 0777 (folders) and 0666 (files).
    pub umask: u16,
    /// Size of upload parts.
    pub part_size: PartSize,
    /// Upper bound of parts in flight; the number adapts between 4 and this.
    pub parts_in_flight_max: usize,
    /// All write buffers together, in bytes.
    pub buffer_bytes_max: u64,
    /// Blocks kept for reading, in bytes.
    pub read_cache_bytes_max: u64,
    /// How long names and attributes are taken as true.
    pub metadata_ttl: Duration,
    /// How long close waits for the drive, while no byte moves, before it reports an error.
    pub commit_timeout: Duration,
    /// Longest wait for the answer of one metadata call, in one attempt.
    pub call_timeout: Duration,
    /// Longest time without a byte moving in a transfer before the attempt is given up.
    pub stall_timeout: Duration,
    /// What unlink does.
    pub remove: RemoveMode,
    /// Modes, owners, links and extended attributes are kept on the drive.
    pub metadata: bool,
    /// Where parts go that do not fit into memory, and staged copies; an existing folder.
    pub spill_dir: PathBuf,
    /// All staged copies together, in bytes; `None` for a tenth of the disk, at most 20 GiB.
    pub staged_bytes_max: Option<u64>,
    /// What staged copies leave free on the disk, in bytes.
    pub free_bytes_min: u64,
    /// Names of files that live on this machine only: they are never uploaded and gone after the mount.
    pub local_only: NamePatterns,
    /// Where the figures for Prometheus are served, if they are.
    pub metrics_listen: Option<std::net::SocketAddr>,
    /// Whether the desktop is told of files that could not be saved.
    pub notifies_desktop: bool,
}

impl MountConfig {
    /// A drive with every default: owned by root, mounted nowhere yet, parts put aside in the system's
    /// temporary folder.
    pub fn new(endpoint: url::Url, drive_id: DriveId, credential: Credential) -> Self {
        Self {
            name: None,
            source: format!("pds:{drive_id}"),
            endpoint,
            drive_id,
            root_id: FileId::root(),
            folder: FolderPath::default(),
            credential,
            mountpoint: PathBuf::new(),
            allow_non_empty: false,
            allow_other: false,
            read_only: false,
            noexec: false,
            uid: 0,
            gid: 0,
            umask: 0o022,
            part_size: PartSize::DEFAULT,
            parts_in_flight_max: Self::PARTS_IN_FLIGHT_MAX,
            buffer_bytes_max: Self::BUFFER_BYTES_MAX,
            read_cache_bytes_max: Self::READ_CACHE_BYTES_MAX,
            metadata_ttl: Self::METADATA_TTL,
            commit_timeout: Self::COMMIT_TIMEOUT,
            call_timeout: Self::CALL_TIMEOUT,
            stall_timeout: Self::STALL_TIMEOUT,
            remove: RemoveMode::default(),
            metadata: true,
            spill_dir: std::env::temp_dir(),
            staged_bytes_max: None,
            free_bytes_min: Self::FREE_BYTES_MIN,
            local_only: NamePatterns::junk(),
            metrics_listen: None,
            notifies_desktop: true,
        }
    }

    /// Default of [`Self::parts_in_flight_max`].
    pub const PARTS_IN_FLIGHT_MAX: usize = 32;
    /// Default of [`Self::buffer_bytes_max`]: 256 MiB.
    pub const BUFFER_BYTES_MAX: u64 = 256 << 20;
    /// Default of [`Self::read_cache_bytes_max`]: 64 MiB.
    pub const READ_CACHE_BYTES_MAX: u64 = 64 << 20;
    /// Default of [`Self::free_bytes_min`]: 512 MiB.
    pub const FREE_BYTES_MIN: u64 = 512 << 20;
    /// Default of [`Self::metadata_ttl`]: 15 s.
    pub const METADATA_TTL: Duration = Duration::from_secs(15);
    /// Default of [`Self::call_timeout`]: 30 s.
    pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);
    /// Default of [`Self::stall_timeout`]: 60 s.
    pub const STALL_TIMEOUT: Duration = Duration::from_secs(60);
    /// Default of [`Self::commit_timeout`]: 10 min.
    pub const COMMIT_TIMEOUT: Duration = Duration::from_secs(600);
}
