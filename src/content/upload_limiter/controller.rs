//! The calculation of the limit of PUTs in flight, and of how far a writer may be ahead. Pure: the caller
//! passes the time.
//!
//! Two questions are answered. *Does a PUT queue?* The rule of TCP Vegas: the quickest recent PUT shows how
//! long a part takes when nothing queues, and the extra time of later PUTs shows how many only queue. With
//! few queueing parts the limit grows, with many it shrinks. *Do more PUTs help?* See [`Scaling`]. If they
//! do, nothing queues, however quick earlier PUTs were.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::scaling::Scaling;

/// Lowest limit.
pub(super) const LIMIT_MIN: usize = 4;
/// Bytes that may be in flight before anything is known, if that is more than [`LIMIT_MIN`] parts.
const START_BYTES: u64 = 32 << 20;
/// Full parts that may wait for a permit, at least.
const WAITING_MIN: usize = 3;
/// Part of the limit that may wait.
const WAITING_FRACTION: usize = 4;
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
/// The same, in parts of one stream, if that is more.
pub(super) const PARTS_AHEAD_MIN: usize = 2;

#[derive(Debug)]
pub(super) struct ConcurrencyController {
    limit: usize,
    limit_min: usize,
    limit_max: usize,
    part_bytes: u64,
    /// No part has queued yet: the limit triples with every round instead of doubling.
    is_starting: bool,
    /// Time of a PUT when nothing queues, in seconds.
    base_put_seconds: f64,
    scaling: Scaling,
    /// Parts completed after `measured_since`, oldest first.
    completed: VecDeque<CompletedPart>,
    /// The end of the last idle time, or of the last part that no longer counts.
    measured_since: Option<Instant>,
    /// Bytes per second before the last idle time.
    last_rate: Option<f64>,
    throttled_at: Option<Instant>,
    /// The last start of a PUT that took the last free place.
    full_at: Option<Instant>,
    in_flight: usize,
    /// The integral of `in_flight` up to `integrated_to`, in seconds.
    in_flight_seconds: f64,
    integrated_to: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct CompletedPart {
    at: Instant,
    bytes: u64,
    elapsed: Duration,
}

/// The start of a PUT.
#[derive(Clone, Copy, Debug)]
pub(super) struct PutStart {
    at: Instant,
    in_flight_seconds: f64,
}

impl ConcurrencyController {
    pub(super) fn new(limit_max: usize, part_bytes: u64) -> Self {
        let limit_max = limit_max.max(1);
        let limit_min = LIMIT_MIN.min(limit_max);
        Self {
            limit: ((START_BYTES / part_bytes.max(1)) as usize).clamp(limit_min, limit_max),
            limit_min,
            limit_max,
            part_bytes,
            is_starting: true,
            base_put_seconds: f64::INFINITY,
            scaling: Scaling::default(),
            completed: VecDeque::new(),
            measured_since: None,
            last_rate: None,
            throttled_at: None,
            full_at: None,
            in_flight: 0,
            in_flight_seconds: 0.0,
            integrated_to: None,
        }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    fn integrate(&mut self, now: Instant) {
        if let Some(before) = self.integrated_to.replace(now) {
            self.in_flight_seconds += self.in_flight as f64 * now.duration_since(before).as_secs_f64();
        }
    }

    pub(super) fn started(&mut self, now: Instant) -> PutStart {
        self.integrate(now);
        if self.in_flight == 0 {
            self.last_rate = self.rate();
            self.completed.clear();
            self.measured_since = Some(now);
        }
        self.in_flight += 1;
        if self.in_flight >= self.limit {
            self.full_at = Some(now);
        }
        PutStart { at: now, in_flight_seconds: self.in_flight_seconds }
    }

    /// The PUT of a part of `bytes` was stored.
    pub(super) fn finished(&mut self, now: Instant, start: PutStart, bytes: u64) {
        self.abandoned(now);
        let elapsed = now.duration_since(start.at);
        self.completed.push_back(CompletedPart { at: now, bytes, elapsed });
        self.forget_old(now);
        if bytes < self.part_bytes {
            return;
        }
        let elapsed = elapsed.as_secs_f64().max(1e-9);
        let in_flight = ((self.in_flight_seconds - start.in_flight_seconds) / elapsed).max(1.0);
        self.scaling.record(now, elapsed, in_flight);
        if self.scaling.is_by_connections() {
            self.base_put_seconds = elapsed;
        }
        self.base_put_seconds = (self.base_put_seconds * BASE_DECAY).min(elapsed);
        let queueing = self.limit as f64 * (1.0 - self.base_put_seconds / elapsed);
        self.is_starting &= queueing < QUEUEING_HIGH;
        let more = if self.is_starting { 2 } else { usize::from(queueing < QUEUEING_LOW) };
        // PUTs end in bursts, faster than the writer begins new parts. So what counts is whether the limit was
        // reached while this one was in flight, and not whether it is reached at its end.
        let was_full = self.full_at.is_some_and(|full_at| full_at >= start.at);
        if more > 0 && was_full {
            self.limit = (self.limit + more).min(self.limit_max);
        } else if queueing > QUEUEING_HIGH {
            self.limit = (self.limit - 1).max(self.limit_min);
        }
    }

    /// A PUT ended without a stored part.
    pub(super) fn abandoned(&mut self, now: Instant) {
        self.integrate(now);
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// The store asked for fewer requests. Parts that were on their way at the last such answer do not count
    /// again.
    pub(super) fn throttled(&mut self, now: Instant, start: PutStart) {
        self.abandoned(now);
        if self.throttled_at.is_some_and(|before| start.at <= before) {
            return;
        }
        self.throttled_at = Some(now);
        self.is_starting = false;
        self.limit = (self.limit / 2).max(self.limit_min);
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

    /// Full parts of all streams that may be unacknowledged.
    pub(super) fn parts_ahead_max(&self) -> usize {
        let by_count = self.limit + (self.limit / WAITING_FRACTION).max(WAITING_MIN);
        if self.scaling.is_by_connections() {
            // A part takes its time however few are ahead of it.
            return by_count;
        }
        let Some(rate) = self.rate() else { return self.limit };
        let by_rate = (rate * WRITER_LEAD.as_secs_f64() / self.part_bytes as f64) as usize;
        // On a shared line, one PUT less in flight costs no throughput.
        let variation = usize::from(self.scaling.needs_variation());
        (by_rate.max(PARTS_AHEAD_MIN) - variation).min(by_count)
    }
}

#[cfg(test)]
mod tests;
