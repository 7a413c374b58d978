//! The upload limiter: how many parts of a mount are in flight at once.
//!
//! On a fast connection four are enough. If each connection has a rate of its own, 32 are eight times as fast.
//! [`controller`] calculates the limit. A part has a permit only while it is being sent, not while it waits to
//! be sent again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::pds::put_control::PutEnd;
use controller::{ConcurrencyController, PARTS_AHEAD_MIN, PutStart};

mod controller;
mod scaling;

/// Limits the parts in flight of a mount.
#[derive(Debug)]
pub struct UploadLimiter {
    permits: Arc<Semaphore>,
    /// Full parts of all streams that the drive has not acknowledged.
    ahead: Arc<AtomicUsize>,
    /// A leaf lock.
    state: Mutex<LimiterState>,
}

/// One full part of a stream that the drive has not acknowledged.
#[derive(Debug)]
pub(super) struct PartAhead(Arc<AtomicUsize>);

impl Drop for PartAhead {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[derive(Debug)]
struct LimiterState {
    controller: ConcurrencyController,
    /// Permits above a lowered limit: they are removed when their holders return them.
    excess_permits: usize,
}

/// The permit of one attempt to send a part. Dropping it returns it.
#[derive(Debug)]
pub(super) struct UploadPermit {
    limiter: Arc<UploadLimiter>,
    start: PutStart,
    end: PutEnd,
    bytes: u64,
    permit: Option<OwnedSemaphorePermit>,
}

impl UploadLimiter {
    /// A limiter for parts of `part_bytes`, at most `in_flight_max` of them.
    pub fn new(in_flight_max: usize, part_bytes: u64) -> Arc<Self> {
        let controller = ConcurrencyController::new(in_flight_max, part_bytes);
        let permits = Arc::new(Semaphore::new(controller.limit()));
        let state = Mutex::new(LimiterState { controller, excess_permits: 0 });
        Arc::new(Self { permits, ahead: Arc::default(), state })
    }

    /// Changes the controller, then sets the number of permits to its limit.
    fn adjust<T>(&self, change: impl FnOnce(&mut ConcurrencyController) -> T) -> T {
        let mut state = self.state.lock();
        let before = state.controller.limit();
        let result = change(&mut state.controller);
        let after = state.controller.limit();
        if after > before {
            let kept = state.excess_permits.min(after - before);
            state.excess_permits -= kept;
            self.permits.add_permits(after - before - kept);
        } else if after < before {
            state.excess_permits += before - after - self.permits.forget_permits(before - after);
        }
        result
    }

    /// Whether a returned permit is above the limit and must be removed.
    fn take_excess_permit(&self) -> bool {
        let mut state = self.state.lock();
        let is_excess = state.excess_permits > 0;
        state.excess_permits -= usize::from(is_excess);
        is_excess
    }

    /// Waits for a permit, in the order of the calls.
    pub(super) async fn acquire(self: &Arc<Self>) -> UploadPermit {
        // The semaphore is never closed, so there is always a permit.
        let permit = self.permits.clone().acquire_owned().await.ok();
        let start = self.adjust(|controller| controller.started(Instant::now()));
        UploadPermit { limiter: self.clone(), start, end: PutEnd::Failed, bytes: 0, permit }
    }

    /// Whether a stream with `own` unacknowledged parts may begin another one. The lead is that of the whole
    /// mount, but each stream may have a few parts.
    pub(super) fn may_begin_part(&self, own: usize) -> bool {
        let max = self.adjust(|controller| controller.parts_ahead_max());
        own < max.min(PARTS_AHEAD_MIN) || self.ahead.load(Relaxed) < max
    }

    /// Counts a part for the lead.
    pub(super) fn count_ahead(&self) -> PartAhead {
        self.ahead.fetch_add(1, Relaxed);
        PartAhead(self.ahead.clone())
    }

    /// Parts that may be in flight now.
    pub fn limit(&self) -> usize {
        self.adjust(|controller| controller.limit())
    }
}

impl UploadPermit {
    /// Returns the permit after an attempt to send a part of `bytes`.
    pub(super) fn end(mut self, end: PutEnd, bytes: u64) {
        (self.end, self.bytes) = (end, bytes);
    }
}

impl Drop for UploadPermit {
    fn drop(&mut self) {
        self.limiter.adjust(|controller| {
            let now = Instant::now();
            match self.end {
                PutEnd::Stored => controller.finished(now, self.start, self.bytes),
                PutEnd::Throttled => controller.throttled(now, self.start),
                PutEnd::Failed => controller.abandoned(now),
            }
        });
        if self.limiter.take_excess_permit()
            && let Some(permit) = self.permit.take()
        {
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: u64 = 8 << 20;

    async fn acquire(limiter: &Arc<UploadLimiter>, count: usize) -> Vec<UploadPermit> {
        let mut permits = Vec::new();
        for _ in 0..count {
            permits.push(limiter.acquire().await);
        }
        permits
    }

    #[tokio::test]
    async fn lower_limit_takes_effect_as_parts_finish() {
        // Small parts begin with all permits.
        let limiter = UploadLimiter::new(16, 1 << 10);
        let mut permits = acquire(&limiter, 16).await;
        permits.remove(0).end(PutEnd::Throttled, 0);
        assert_eq!(limiter.limit(), 8);
        permits.truncate(8);
        assert_eq!(limiter.permits.available_permits(), 0);
        drop(permits);
        assert_eq!(limiter.permits.available_permits(), 8);
    }

    #[tokio::test]
    async fn parts_throttled_together_count_once() {
        let limiter = UploadLimiter::new(32, 1 << 10);
        let permits = acquire(&limiter, 4).await;
        drop(limiter.acquire().await);
        assert_eq!(limiter.limit(), 32);
        for permit in permits {
            permit.end(PutEnd::Throttled, 0);
        }
        assert_eq!(limiter.limit(), 16);
        limiter.acquire().await.end(PutEnd::Throttled, 0);
        assert_eq!(limiter.limit(), 8);
    }

    #[tokio::test]
    async fn limit_bounds_the_permits() {
        let limiter = UploadLimiter::new(4, PART);
        let mut permits = acquire(&limiter, 4).await;
        assert_eq!(limiter.permits.available_permits(), 0);
        if let Some(permit) = permits.pop() {
            permit.end(PutEnd::Stored, PART);
        }
        assert_eq!(limiter.permits.available_permits(), 1);
        limiter.acquire().await.end(PutEnd::Stored, 1);
    }
}
