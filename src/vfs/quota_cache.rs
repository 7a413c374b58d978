//! The last known quota of the drive, reported as the space of a file system.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use parking_lot::Mutex;

use super::types::Statfs;
use crate::pds::drive::{BinUsage, Quota};

/// Free space that is reported if the drive has no limit, or the limit is not known yet, in bytes.
const FREE_BYTES_ASSUMED: u64 = 1 << 50;

/// The last known quota of the drive.
#[derive(Debug, Default)]
pub(super) struct QuotaCache {
    /// A leaf lock.
    pub(super) last: Mutex<Option<(Instant, Quota)>>,
    /// Held during a request to the drive.
    pub(super) refreshing: tokio::sync::Mutex<()>,
    pub(super) free_space: FreeSpace,
}

impl QuotaCache {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn get(&self) -> Option<(Instant, Quota)> {
        *self.last.lock()
    }
}

/// Written bytes before the first look at the free space, and between looks while the quota is not known.
pub(super) const UNKNOWN_STEP_BYTES: u64 = 8 << 20;

/// When the free space is looked at, and what is known of the recycle bin.
#[derive(Debug)]
pub(super) struct FreeSpace {
    /// A write beyond this count of written bytes looks at the free space.
    pub(super) look_at: AtomicU64,
    /// The committed bytes at the last answer about the quota.
    pub(super) committed: AtomicU64,
    /// Something was removed here since the last answer about the quota.
    pub(super) has_removed: AtomicBool,
    /// A leaf lock.
    pub(super) bin: Mutex<Option<(Instant, BinUsage)>>,
}

impl Default for FreeSpace {
    fn default() -> Self {
        let look_at = AtomicU64::new(UNKNOWN_STEP_BYTES);
        Self {
            look_at,
            committed: AtomicU64::new(0),
            has_removed: AtomicBool::new(false),
            bin: Mutex::default(),
        }
    }
}

impl FreeSpace {
    /// An answer about the quota counts what was committed before the question.
    pub(super) fn note_answer(&self, committed: u64) {
        self.committed.store(committed, Relaxed);
    }

    pub(super) fn note_removal(&self) {
        self.has_removed.store(true, Relaxed);
    }
}

pub(super) fn statfs_of(quota: Option<Quota>) -> Statfs {
    let block = u64::from(Statfs::BLOCK_BYTES);
    let used = quota.map_or(0, |quota| quota.used_bytes);
    let free = match quota.and_then(|quota| quota.total_bytes) {
        Some(total) => total.saturating_sub(used),
        None => FREE_BYTES_ASSUMED,
    };
    Statfs { blocks: (used + free) / block, blocks_free: free / block }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statfs_reports_the_quota() {
        let quota = |total_bytes, used_bytes| statfs_of(Some(Quota { total_bytes, used_bytes }));
        assert_eq!(quota(Some(8192), 4096), Statfs { blocks: 2, blocks_free: 1 });
        assert_eq!(quota(Some(4096), 8192).blocks_free, 0);
        assert!(quota(None, 4096).blocks_free > 1 << 30);
        assert!(statfs_of(None).blocks_free > 1 << 30);
    }
}
