//! What all tees of a mount share: a bound on their unwritten bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use super::disk_quota::DiskQuota;

/// The share of the buffer pool that unwritten parts may hold: one byte in this many. The streams need the rest,
/// also while the disk hangs.
const POOL_SHARE: u64 = 4;

/// One per mount.
#[derive(Debug)]
pub struct TeeQueue {
    quota: Arc<DiskQuota>,
    bytes_max: u64,
    /// Bytes that tees have yet to write. They hold memory that streams need.
    bytes: AtomicU64,
    part_written: Notify,
}

impl TeeQueue {
    /// A queue for tees of streams whose buffer pool has `pool_bytes`.
    pub fn new(quota: Arc<DiskQuota>, pool_bytes: u64) -> Arc<Self> {
        let bytes_max = pool_bytes / POOL_SHARE;
        Arc::new(Self { quota, bytes_max, bytes: AtomicU64::new(0), part_written: Notify::new() })
    }

    pub(super) fn quota(&self) -> &Arc<DiskQuota> {
        &self.quota
    }

    /// Counts a part to write. `false` if the disk is too far behind. One part always fits.
    pub(super) fn add_part(&self, bytes: u64) -> bool {
        let fits = |queued: u64| (queued == 0 || queued + bytes <= self.bytes_max).then_some(queued + bytes);
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    /// Removes the bytes of written or dropped parts from the count.
    pub(super) fn finish_parts(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.part_written.notify_waiters();
    }

    /// Resolves when a part is written or dropped after this call.
    pub(super) fn part_written(&self) -> tokio::sync::futures::Notified<'_> {
        self.part_written.notified()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local_disk::LocalDisk;

    #[test]
    fn queue_leaves_memory_to_streams() {
        let dir = tempfile::tempdir().unwrap();
        let quota = DiskQuota::new(LocalDisk::of(&dir), None, 0);
        for (pool_bytes, parts_max) in [(64, 1), (128, 1), (512, 2), (2048, 8), (6400, 25)] {
            let queue = TeeQueue::new(quota.clone(), pool_bytes);
            let added = std::iter::repeat_with(|| queue.add_part(64)).take_while(|added| *added).count();
            assert_eq!(added, parts_max, "{pool_bytes}");
            queue.finish_parts(64 * added as u64);
            assert!(queue.add_part(64));
        }
    }
}
