//! `statfs`: the space on the drive, from a cached quota. Programs call it often and expect it at once.

use std::time::{Duration, Instant};

use super::Vfs;
use super::quota_cache::statfs_of;
use super::types::Statfs;
use crate::error::{Error, ErrorKind, Result};
use crate::units::exact_size;

const QUOTA_TTL: Duration = Duration::from_secs(10);
/// How long the very first `statfs` waits for the drive.
const QUOTA_WAIT_MAX: Duration = Duration::from_secs(1);

impl Vfs {
    /// Does not wait for the network, except briefly in the very first call.
    pub async fn statfs(&self) -> Statfs {
        match self.quota.get() {
            Some((at, _)) if at.elapsed() < QUOTA_TTL => {}
            last => {
                if let Ok(vfs) = self.this() {
                    let request = self.upload_context.runtime.spawn(async move { vfs.refresh_quota().await });
                    if last.is_none() {
                        // If the answer is late or an error, the default is reported.
                        let _ = tokio::time::timeout(QUOTA_WAIT_MAX, request).await;
                    }
                }
            }
        }
        statfs_of(self.quota.get().map(|(_, quota)| quota))
    }

    /// `NoSpace` if the drive is known to have less free space.
    pub(super) async fn check_free_space(&self, bytes: u64) -> Result<()> {
        let lacks = |free: Statfs| free.blocks_free * u64::from(Statfs::BLOCK_BYTES) < bytes;
        if lacks(self.statfs().await) {
            // The last known quota may be older than a deletion.
            self.refresh_quota().await;
            if lacks(self.statfs().await) {
                let detail = format!("the drive has less than {} free", exact_size(bytes));
                return Err(Error::new(ErrorKind::NoSpace, detail));
            }
        }
        Ok(())
    }

    /// Asks for the quota, unless a call is running already.
    pub(super) async fn refresh_quota(&self) {
        let Ok(_one_at_a_time) = self.quota.refreshing.try_lock() else { return };
        let committed = self.progress.bytes_committed();
        match self.drive.quota().await {
            Ok(quota) => {
                self.quota.free_space.note_answer(committed);
                let mut last = self.quota.last.lock();
                *last = Some((Instant::now(), quota));
            }
            Err(error) => tracing::debug!(%error, "cannot read the quota of the drive"),
        }
    }
}
