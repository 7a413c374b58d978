//! Detects a stop that makes no progress. A stop with progress has no time limit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use crate::error::{Error, ErrorKind};
use crate::pds::drive::Drive;
use crate::status::Progress;
use crate::units::exact_duration;

/// Interval between two checks.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Counters of one mount that grow with any progress: ended files, bytes, attributes and names.
#[derive(Clone, Debug)]
pub(super) struct ProgressWatch {
    progress: Arc<Progress>,
    drive: Drive,
}

impl ProgressWatch {
    pub(super) fn new(progress: Arc<Progress>, drive: Drive) -> Self {
        Self { progress, drive }
    }

    /// Two snapshots are equal if there was no progress between them.
    fn snapshot(&self) -> [u64; 6] {
        let totals = self.progress.totals();
        let ended = totals.files_committed() + totals.files_failed + totals.files_abandoned;
        [
            self.progress.live_transfers(),
            ended,
            totals.bytes_written,
            self.progress.bytes_processed(),
            self.progress.metadata_saves(),
            self.drive.bytes_uploaded(),
        ]
    }

    /// Resolves after `limit` without progress. Calls `on_progress` at once and after each progress.
    pub(super) async fn stalled(&self, limit: Duration, on_progress: impl Fn()) -> Error {
        let mut last = self.snapshot();
        let mut progress_at = Instant::now();
        on_progress();
        let mut ticks = tokio::time::interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let now = self.snapshot();
            if now != last {
                (last, progress_at) = (now, Instant::now());
                on_progress();
            }
            if progress_at.elapsed() > limit {
                return Error::new(ErrorKind::Timeout, format!("no progress for {}", exact_duration(limit)));
            }
        }
    }
}
