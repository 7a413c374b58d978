//! Whether a mount gets on with what it does. Stopping takes as long as that is so, and no longer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use crate::config::quantities::show_duration;
use crate::error::{Error, ErrorKind};
use crate::pds::drive::Drive;
use crate::status::Progress;

/// How often is looked.
const GRAIN: Duration = Duration::from_secs(1);

/// What moves in a mount: files that come to their end, bytes, attributes and names.
#[derive(Clone, Debug)]
pub(super) struct Movement {
    progress: Arc<Progress>,
    drive: Drive,
}

impl Movement {
    pub(super) fn new(progress: Arc<Progress>, drive: Drive) -> Self {
        Self { progress, drive }
    }

    /// Numbers that differ when anything was done.
    fn seen(&self) -> [u64; 6] {
        let totals = self.progress.totals();
        let ended = totals.files_committed() + totals.files_failed + totals.files_abandoned;
        [
            self.progress.live(),
            ended,
            totals.bytes_written,
            self.progress.bytes_worked(),
            self.progress.steps(),
            self.drive.bytes_moved(),
        ]
    }

    /// Resolves when nothing has moved for `limit`. `moved` is called at once, and whenever something has.
    pub(super) async fn standstill(&self, limit: Duration, moved: impl Fn()) -> Error {
        let mut seen = self.seen();
        let mut moved_at = Instant::now();
        moved();
        let mut ticks = tokio::time::interval(GRAIN);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let now = self.seen();
            if now != seen {
                (seen, moved_at) = (now, Instant::now());
                moved();
            }
            if moved_at.elapsed() > limit {
                return Error::new(
                    ErrorKind::Timeout,
                    format!("nothing has moved for {}", show_duration(limit)),
                );
            }
        }
    }
}
