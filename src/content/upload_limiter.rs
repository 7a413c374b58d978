//! The upload limiter: how many parts of a mount are in flight at once.
//!
//! On a fast connection four are enough. If the TCP window limits each connection, 32 are three times as
//! fast. The rule is that of TCP Vegas. The quickest recent PUT shows how long a part takes when nothing
//! queues. The extra time of later PUTs shows how many parts only queue. With few queueing parts the limit
//! grows, quickly until the first ones queue. With many it shrinks. A throttled answer halves it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Lowest limit.
const LIMIT_MIN: usize = 4;
/// Full parts of one file that may wait for a permit, at least. The limit grows only while parts wait.
const WAITING_MIN: usize = 8;
/// Below this many queueing parts, each completed part raises the limit by one.
const QUEUEING_LOW: f64 = 2.0;
/// Above this many, each completed part lowers the limit by one.
const QUEUEING_HIGH: f64 = 4.0;
/// Growth of the base PUT time per completed part, so that it follows a path that became longer.
const BASE_DECAY: f64 = 1.002;
/// Completed parts that count for the rate at any age.
const COMPLETED_MIN: usize = 4;
/// Parts that end within this fraction of their PUT time form one burst.
const BURST_FRACTION: u32 = 8;
/// The span over which the upload rate is measured.
const RATE_SPAN: Duration = Duration::from_secs(3);
/// How far a writer may be ahead of the drive, as time of upload.
const WRITER_LEAD: Duration = Duration::from_secs(3);

/// The calculation of the limit. Pure: the caller passes the time.
#[derive(Debug)]
struct ConcurrencyController {
    limit: usize,
    limit_max: usize,
    part_bytes: u64,
    /// No part has queued yet: the limit triples with every round instead of doubling.
    is_starting: bool,
    /// Time of a PUT when nothing queues, in seconds.
    base_put_seconds: f64,
    /// Parts completed after `measured_since`, oldest first.
    completed: VecDeque<CompletedPart>,
    /// The end of the last idle time, or of the last part that no longer counts.
    measured_since: Option<Instant>,
    /// Bytes per second before the last idle time.
    last_rate: Option<f64>,
    in_flight: usize,
}

#[derive(Clone, Copy, Debug)]
struct CompletedPart {
    at: Instant,
    bytes: u64,
    elapsed: Duration,
}

impl ConcurrencyController {
    fn new(limit_max: usize, part_bytes: u64) -> Self {
        let limit_max = limit_max.max(1);
        Self {
            limit: LIMIT_MIN.min(limit_max),
            limit_max,
            part_bytes,
            is_starting: true,
            base_put_seconds: f64::INFINITY,
            completed: VecDeque::new(),
            measured_since: None,
            last_rate: None,
            in_flight: 0,
        }
    }

    fn started(&mut self, now: Instant) {
        if self.in_flight == 0 {
            self.last_rate = self.rate();
            self.completed.clear();
            self.measured_since = Some(now);
        }
        self.in_flight += 1;
    }

    fn finished(&mut self, now: Instant, bytes: u64, elapsed: Duration, others_wait: bool) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.completed.push_back(CompletedPart { at: now, bytes, elapsed });
        self.forget_old(now);
        if bytes < self.part_bytes {
            return;
        }
        let elapsed = elapsed.as_secs_f64().max(1e-9);
        self.base_put_seconds = (self.base_put_seconds * BASE_DECAY).min(elapsed);
        let queueing = self.limit as f64 * (1.0 - self.base_put_seconds / elapsed);
        self.is_starting &= queueing < QUEUEING_HIGH;
        let more = if self.is_starting { 2 } else { usize::from(queueing < QUEUEING_LOW) };
        if more > 0 && others_wait {
            self.limit = (self.limit + more).min(self.limit_max);
        } else if queueing > QUEUEING_HIGH {
            self.limit = (self.limit - 1).max(LIMIT_MIN.min(self.limit_max));
        }
    }

    fn abandoned(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    fn throttled(&mut self) {
        self.is_starting = false;
        self.limit = (self.limit / 2).max(LIMIT_MIN.min(self.limit_max));
    }

    /// Drops parts that are too old for the rate. Parts that share a connection end in a burst, which is
    /// dropped as a whole: the rate of the remaining parts counts from the end of the last dropped one.
    fn forget_old(&mut self, now: Instant) {
        while let Some(first) = self.completed.front().copied() {
            let burst_span = first.elapsed / BURST_FRACTION;
            let in_burst = |part: &&CompletedPart| part.at.duration_since(first.at) <= burst_span;
            let count = self.completed.iter().take_while(in_burst).count();
            let last = self.completed.get(count - 1).map_or(first.at, |part| part.at);
            if self.completed.len() < count + COMPLETED_MIN || now.duration_since(last) <= RATE_SPAN {
                return;
            }
            self.completed.drain(..count);
            self.measured_since = Some(last);
        }
    }

    /// Recent bytes per second; `None` before enough bytes were sent.
    fn rate(&self) -> Option<f64> {
        let (Some(last), Some(since)) = (self.completed.back(), self.measured_since) else {
            return self.last_rate;
        };
        let bytes: u64 = self.completed.iter().map(|part| part.bytes).sum();
        let span = last.at.duration_since(since).as_secs_f64();
        // Small files measure the time of a request, not the rate of bytes.
        (span > 0.0 && bytes >= self.part_bytes).then(|| bytes as f64 / span).or(self.last_rate)
    }

    /// Full parts of one file that may be unacknowledged.
    fn parts_ahead_max(&self) -> usize {
        let by_count = self.limit + (self.limit / 2).max(WAITING_MIN);
        let by_rate = match self.rate() {
            Some(rate) => (rate * WRITER_LEAD.as_secs_f64() / self.part_bytes as f64) as usize,
            None => LIMIT_MIN,
        };
        by_rate.clamp(2, by_count)
    }
}

/// Limits the parts in flight of a mount.
#[derive(Debug)]
pub struct UploadLimiter {
    permits: Arc<Semaphore>,
    /// A leaf lock.
    state: Mutex<LimiterState>,
}

#[derive(Debug)]
struct LimiterState {
    controller: ConcurrencyController,
    /// Permits above a lowered limit: they are removed when their holders return them.
    excess_permits: usize,
}

/// The permit to send one part. Dropping it returns it.
#[derive(Debug)]
pub(super) struct UploadPermit {
    limiter: Arc<UploadLimiter>,
    started: Instant,
    outcome: PermitOutcome,
    permit: Option<OwnedSemaphorePermit>,
}

#[derive(Clone, Copy, Debug)]
enum PermitOutcome {
    Abandoned,
    Stored { bytes: u64, throttled: bool },
}

impl UploadLimiter {
    /// A limiter for parts of `part_bytes`, at most `in_flight_max` of them.
    pub fn new(in_flight_max: usize, part_bytes: u64) -> Arc<Self> {
        let controller = ConcurrencyController::new(in_flight_max, part_bytes);
        let permits = Arc::new(Semaphore::new(controller.limit));
        Arc::new(Self { permits, state: Mutex::new(LimiterState { controller, excess_permits: 0 }) })
    }

    /// Changes the controller, then sets the number of permits to its limit.
    fn adjust<T>(&self, change: impl FnOnce(&mut ConcurrencyController) -> T) -> T {
        let mut state = self.state.lock();
        let before = state.controller.limit;
        let result = change(&mut state.controller);
        let after = state.controller.limit;
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
        let started = Instant::now();
        self.adjust(|controller| controller.started(started));
        UploadPermit { limiter: self.clone(), started, outcome: PermitOutcome::Abandoned, permit }
    }

    /// Full parts of one file that may be unacknowledged now.
    pub(super) fn parts_ahead_max(&self) -> usize {
        self.adjust(|controller| controller.parts_ahead_max())
    }

    /// Parts that may be in flight now.
    pub fn limit(&self) -> usize {
        self.adjust(|controller| controller.limit)
    }
}

impl UploadPermit {
    /// Returns the permit of a stored part. `throttled`: the store asked for fewer requests.
    pub(super) fn record_stored(mut self, bytes: u64, throttled: bool) {
        self.outcome = PermitOutcome::Stored { bytes, throttled };
    }

    /// Restarts the clock of the PUT: the earlier time says nothing about the connection.
    pub(super) fn restart_clock(&mut self) {
        self.started = Instant::now();
    }
}

impl Drop for UploadPermit {
    fn drop(&mut self) {
        let now = Instant::now();
        let others_wait = self.limiter.permits.available_permits() == 0;
        let elapsed = now.duration_since(self.started);
        self.limiter.adjust(|controller| match self.outcome {
            PermitOutcome::Stored { bytes, throttled } => {
                controller.finished(now, bytes, elapsed, others_wait);
                if throttled {
                    controller.throttled();
                }
            }
            PermitOutcome::Abandoned => controller.abandoned(),
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

    fn run(controller: &mut ConcurrencyController, parts: usize, elapsed_ms: impl Fn(usize) -> u64) {
        let mut now = Instant::now();
        for _ in 0..parts {
            controller.started(now);
            let elapsed = Duration::from_millis(elapsed_ms(controller.limit));
            now += elapsed / controller.limit as u32;
            controller.finished(now, PART, elapsed, true);
        }
    }

    #[test]
    fn window_limited_connection_gets_the_full_limit() {
        let mut controller = ConcurrencyController::new(32, PART);
        run(&mut controller, 60, |_| 160);
        assert_eq!(controller.limit, 32);
    }

    #[test]
    fn limit_reaches_its_maximum_in_two_rounds() {
        let mut controller = ConcurrencyController::new(32, PART);
        run(&mut controller, 4, |_| 160);
        assert_eq!(controller.limit, 12);
        run(&mut controller, 10, |_| 160);
        assert_eq!(controller.limit, 32);
    }

    #[test]
    fn shared_bottleneck_keeps_the_limit_low() {
        let mut controller = ConcurrencyController::new(32, PART);
        run(&mut controller, 1, |_| 10);
        run(&mut controller, 200, |in_flight| 10 * in_flight as u64);
        assert!(controller.limit <= 8, "{}", controller.limit);
    }

    #[test]
    fn throttling_halves_the_limit() {
        let mut controller = ConcurrencyController::new(32, PART);
        run(&mut controller, 60, |_| 160);
        controller.throttled();
        assert_eq!(controller.limit, 16);
        for _ in 0..9 {
            controller.throttled();
        }
        assert_eq!(controller.limit, LIMIT_MIN);
    }

    #[test]
    fn slow_drive_holds_the_writer_back() {
        let start = Instant::now();
        let ahead = |seconds_per_part: u64| {
            let mut controller = ConcurrencyController::new(32, PART);
            controller.started(start);
            assert_eq!(controller.parts_ahead_max(), LIMIT_MIN);
            let mut now = start;
            for _ in 1..10 {
                controller.started(now);
                now += Duration::from_secs(seconds_per_part);
                controller.finished(now, PART, Duration::from_secs(seconds_per_part), false);
            }
            controller.parts_ahead_max()
        };
        // Three seconds of upload are less than a part, and the minimum is two parts.
        assert_eq!(ahead(8), 2);
        assert_eq!(ahead(1), 3);
    }

    /// Parts that share a connection end almost at once: their time together counts.
    #[test]
    fn burst_does_not_inflate_the_rate() {
        let mut controller = ConcurrencyController::new(32, PART);
        let (start, mut now) = (Instant::now(), Instant::now());
        for round in 0..5_u32 {
            (0..4).for_each(|_| controller.started(now));
            let elapsed = Duration::from_millis(3200);
            for part in 0..4 {
                now = start + elapsed * (round + 1) + Duration::from_millis(part * 30);
                controller.finished(now, PART, elapsed, true);
                // 10 MiB/s.
                assert!((2..=3).contains(&controller.parts_ahead_max()), "{round} {part}");
            }
        }
    }

    #[test]
    fn small_files_do_not_set_the_rate() {
        let mut controller = ConcurrencyController::new(32, PART);
        let now = Instant::now();
        controller.started(now);
        controller.finished(now + Duration::from_millis(20), 100, Duration::from_millis(20), false);
        assert_eq!(controller.parts_ahead_max(), LIMIT_MIN);
    }

    #[test]
    fn rate_is_remembered_over_a_pause() {
        let mut controller = ConcurrencyController::new(32, PART);
        let mut now = Instant::now();
        for _ in 0..10 {
            controller.started(now);
            controller.started(now);
            now += Duration::from_secs(4);
            controller.finished(now, PART, Duration::from_secs(4), false);
            controller.finished(now, PART, Duration::from_secs(4), false);
        }
        now += Duration::from_secs(3600);
        controller.started(now);
        assert_eq!(controller.parts_ahead_max(), 2);
    }

    #[tokio::test]
    async fn lower_limit_takes_effect_as_parts_finish() {
        let limiter = UploadLimiter::new(32, PART);
        limiter.adjust(|controller| controller.limit = 8);
        let mut permits = Vec::new();
        for _ in 0..8 {
            permits.push(limiter.acquire().await);
        }
        limiter.adjust(|controller| controller.limit = 5);
        permits.drain(..3).for_each(|permit| permit.record_stored(1, false));
        assert_eq!(limiter.permits.available_permits(), 0);
        permits.drain(..).for_each(|permit| permit.record_stored(1, false));
        assert_eq!(limiter.permits.available_permits(), 5);
    }

    #[tokio::test]
    async fn abandoned_part_does_not_halve_the_limit() {
        let limiter = UploadLimiter::new(32, PART);
        limiter.adjust(|controller| controller.limit = 16);
        drop(limiter.acquire().await);
        assert_eq!(limiter.limit(), 16);
        limiter.acquire().await.record_stored(1, true);
        assert_eq!(limiter.limit(), 8);
    }

    #[tokio::test]
    async fn limit_bounds_the_permits() {
        let limiter = UploadLimiter::new(4, PART);
        let mut permits = Vec::new();
        for _ in 0..4 {
            permits.push(limiter.acquire().await);
        }
        assert_eq!(limiter.permits.available_permits(), 0);
        if let Some(permit) = permits.pop() {
            permit.record_stored(PART, false);
        }
        assert_eq!(limiter.permits.available_permits(), 1);
        limiter.acquire().await.record_stored(1, false);
    }
}
