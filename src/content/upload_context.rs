//! The shared state of all open files and uploads of a mount.

use std::sync::{Arc, Weak};

use super::buffer_pool::BufferPool;
use super::cached_files::CachedFiles;
use super::commit_target::TargetResolver;
use super::disk_quota::DiskQuota;
use super::reader::Reader;
use super::tee_queue::TeeQueue;
use super::upload_limiter::UploadLimiter;
use crate::ids::PartSize;
use crate::local_disk::LocalDisk;
use crate::pds::drive::Drive;

/// One per mount.
#[derive(Debug)]
pub struct UploadContext {
    pub resolver: Weak<dyn TargetResolver>,
    pub drive: Drive,
    pub buffer_pool: Arc<BufferPool>,
    pub upload_limiter: Arc<UploadLimiter>,
    pub part_size: PartSize,
    /// Most bytes of a file that no program wrote and that are uploaded as zeros.
    pub zero_fill_max: u64,
    /// The disk of staged files, and of parts that do not fit into memory.
    pub disk: Arc<LocalDisk>,
    /// Quota of staged and cached files.
    pub quota: Arc<DiskQuota>,
    /// Quota of files that are never uploaded. The same as `quota`, unless that is disabled.
    pub local_quota: Arc<DiskQuota>,
    /// Quota of parts that do not fit into memory. The same as `quota`, unless that is disabled.
    pub spill_quota: Arc<DiskQuota>,
    /// The queue of all tees.
    pub tees: Arc<TeeQueue>,
    /// Committed content that is still on this machine.
    pub cached_files: Arc<CachedFiles>,
    /// Reads the base of staged files.
    pub reader: Arc<Reader>,
    /// Runs the upload tasks: writes come from threads outside the runtime.
    pub runtime: tokio::runtime::Handle,
}

impl UploadContext {
    /// Whether every file is staged before it is sent: the service begins no upload without the size.
    pub(super) fn stages_all(&self) -> bool {
        self.drive.needs_size() && !self.quota.is_disabled()
    }
}
