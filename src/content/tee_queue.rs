//! What all tees of a mount share: a bound on their unwritten parts, and one allowance for pauses of streams.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::disk_quota::DiskQuota;

/// Unwritten parts at which streams begin to wait for the disk, unless the buffer pool is small.
const PARTS_SOFT_MAX: usize = 8;
/// The longest pause of streams, if they have not paused for a while.
const PAUSE_MAX: Duration = Duration::from_millis(300);
/// The share of the time that streams may pause: one part in this many.
const PAUSE_FRACTION: u32 = 20;
/// A stream that pauses asks again at least this often.
pub const PAUSE_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// One per mount.
#[derive(Debug)]
pub struct TeeQueue {
    quota: Arc<DiskQuota>,
    soft_max: usize,
    parts_max: usize,
    /// Parts that tees have yet to write. They hold memory that streams need.
    parts: AtomicUsize,
    part_written: Notify,
    /// A leaf lock.
    allowance: Mutex<PauseAllowance>,
}

impl TeeQueue {
    /// A queue for tees of streams whose buffer pool has room for `pool_parts` parts. Most of that memory is
    /// left to the streams, also if the disk hangs.
    pub fn new(quota: Arc<DiskQuota>, pool_parts: u64) -> Arc<Self> {
        let share = |divisor: u64, max: usize| ((pool_parts / divisor) as usize).clamp(1, max);
        Arc::new(Self {
            quota,
            soft_max: share(4, PARTS_SOFT_MAX),
            // Several streams may pass the soft limit at once.
            parts_max: share(2, 2 * PARTS_SOFT_MAX),
            parts: AtomicUsize::new(0),
            part_written: Notify::new(),
            allowance: Mutex::new(PauseAllowance::new()),
        })
    }

    pub(super) fn quota(&self) -> &Arc<DiskQuota> {
        &self.quota
    }

    /// Counts one more part to write. `false` if too many are queued.
    pub(super) fn add_part(&self) -> bool {
        let fits = |parts: usize| (parts < self.parts_max).then_some(parts + 1);
        self.parts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    /// Removes written or dropped parts from the count.
    pub(super) fn finish_parts(&self, parts: usize) {
        self.parts.fetch_sub(parts, Ordering::Relaxed);
        self.part_written.notify_waiters();
    }

    /// Resolves when a part is written or dropped after this call.
    pub fn part_written(&self) -> tokio::sync::futures::Notified<'_> {
        self.part_written.notified()
    }

    /// Whether a stream should wait for the disk before its next part.
    pub(super) fn pause(&self) -> Pause {
        let is_behind = self.parts.load(Ordering::Relaxed) >= self.soft_max;
        self.allowance.lock().ask(is_behind, Instant::now())
    }
}

/// The answer to a stream that may have to wait for the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pause {
    /// The disk keeps up.
    No,
    Yes,
    /// The disk is behind, and streams have waited long enough: the stream drops its tee.
    UsedUp,
}

/// How long the streams of a mount may still pause: at most [`PAUSE_MAX`]. Refills with the time. So a disk
/// that is slower than the drive delays one stream once, and later streams by a small share of their time.
#[derive(Debug)]
struct PauseAllowance {
    left: Duration,
    is_pausing: bool,
    /// The last question.
    asked_at: Option<Instant>,
}

impl PauseAllowance {
    fn new() -> Self {
        Self { left: PAUSE_MAX, is_pausing: false, asked_at: None }
    }

    fn ask(&mut self, is_behind: bool, now: Instant) -> Pause {
        let elapsed =
            self.asked_at.replace(now).map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let paused = if self.is_pausing { elapsed.min(2 * PAUSE_CHECK_INTERVAL) } else { Duration::ZERO };
        self.left = (self.left + elapsed / PAUSE_FRACTION).saturating_sub(paused).min(PAUSE_MAX);
        // A pause begins with enough for one interval, so that streams do not stop and go all the time.
        let is_enough = self.left > if self.is_pausing { Duration::ZERO } else { PAUSE_CHECK_INTERVAL };
        self.is_pausing = is_behind && is_enough;
        match (is_behind, self.is_pausing) {
            (false, _) => Pause::No,
            (true, true) => Pause::Yes,
            (true, false) => Pause::UsedUp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local_disk::LocalDisk;

    /// Streams that ask every `interval` while the disk is behind. Returns how long they pause.
    fn pause_of_stream(allowance: &mut PauseAllowance, now: &mut Instant, interval: Duration) -> Duration {
        let start = *now;
        while allowance.ask(true, *now) == Pause::Yes {
            *now += interval;
        }
        *now - start
    }

    #[test]
    fn streams_share_one_pause_allowance() {
        let (mut allowance, mut now) = (PauseAllowance::new(), Instant::now());
        let interval = Duration::from_millis(10);
        let first = pause_of_stream(&mut allowance, &mut now, interval);
        assert!(first >= PAUSE_MAX && first <= 2 * PAUSE_MAX, "{first:?}");
        let mut others = Duration::ZERO;
        let start = now;
        for _ in 0..1000 {
            now += interval;
            others += pause_of_stream(&mut allowance, &mut now, interval);
        }
        let total = now - start;
        assert!(others <= total / PAUSE_FRACTION + PAUSE_MAX, "{others:?} of {total:?}");
        assert!(others > total / PAUSE_FRACTION / 2, "{others:?} of {total:?}");
    }

    #[test]
    fn disk_that_keeps_up_pauses_no_stream() {
        let (mut allowance, mut now) = (PauseAllowance::new(), Instant::now());
        assert_eq!(allowance.ask(false, now), Pause::No);
        pause_of_stream(&mut allowance, &mut now, PAUSE_CHECK_INTERVAL);
        assert_eq!(allowance.ask(false, now), Pause::No);
        // The allowance is full again after a while, also if no stream has asked.
        now += PAUSE_MAX * PAUSE_FRACTION;
        assert!(pause_of_stream(&mut allowance, &mut now, PAUSE_CHECK_INTERVAL) >= PAUSE_MAX);
    }

    #[test]
    fn queue_leaves_memory_to_streams() {
        let dir = tempfile::tempdir().unwrap();
        let quota = DiskQuota::new(LocalDisk::of(&dir), None, 0);
        for (pool_parts, soft_max, parts_max) in [(1, 1, 1), (2, 1, 1), (8, 2, 4), (32, 8, 16), (999, 8, 16)]
        {
            let queue = TeeQueue::new(quota.clone(), pool_parts);
            assert_eq!((queue.soft_max, queue.parts_max), (soft_max, parts_max), "{pool_parts}");
            let added = std::iter::repeat_with(|| queue.add_part()).take_while(|added| *added).count();
            assert_eq!(added, parts_max);
            assert_eq!(queue.pause(), Pause::Yes);
            queue.finish_parts(added);
            assert_eq!(queue.pause(), Pause::No);
        }
    }
}
