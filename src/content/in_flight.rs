//! How many parts are on their way at once, over the whole mount.
//!
//! On a fast connection four are enough; where a connection is limited by its window, 32 are three
//! times as fast. The rule is that of TCP Vegas: the quickest PUT seen lately tells how long a part
//! takes when nothing queues; how much longer parts take now tells how many of those in flight are
//! only queueing. Few: send more; quickly until the first time that some do queue. Many: send
//! fewer. A throttled answer halves the number.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Parts in flight at the least.
pub const IN_FLIGHT_MIN: usize = 4;
/// Full parts of one file that may wait for their turn, at the least: with fewer, a connection that
/// could carry more would never be asked to, as finding that out takes parts that wait.
const WAITING_MIN: usize = 8;
/// Below this many queueing parts, one more is allowed per finished part.
const QUEUEING_LOW: f64 = 2.0;
/// Above this many, one fewer.
const QUEUEING_HIGH: f64 = 4.0;
/// How much the quickest PUT is forgotten per part: a path that became longer is learnt of in time.
const QUICKEST_DECAY: f64 = 1.002;
/// Finished parts that count for the rate however old they are.
const DONE_KEPT_MIN: usize = 4;
/// Parts that end within this fraction of the time they took have ended together.
const TOGETHER: u32 = 8;
/// The span over which the upload rate is measured.
const RATE_SPAN: Duration = Duration::from_secs(3);
/// How many seconds of upload a writer may be ahead of the drive.
const AHEAD: Duration = Duration::from_secs(3);

/// The numbers behind the gate: pure, told the time.
#[derive(Debug)]
struct Control {
    limit: usize,
    limit_max: usize,
    part_bytes: u64,
    /// No queueing was seen yet: the number triples with every round instead of doubling.
    is_starting: bool,
    /// How long a part takes when nothing queues, in seconds.
    quickest: f64,
    /// Parts that were finished after `since`, the oldest first.
    done: VecDeque<Done>,
    /// When the drive was last idle, or parts that count no more were finished.
    since: Option<Instant>,
    /// Bytes per second before the drive was last idle.
    last_rate: Option<f64>,
    in_flight: usize,
}

/// A part that was finished.
#[derive(Clone, Copy, Debug)]
struct Done {
    at: Instant,
    bytes: u64,
    elapsed: Duration,
}

impl Control {
    fn new(limit_max: usize, part_bytes: u64) -> Self {
        let limit_max = limit_max.max(1);
        Self {
            limit: IN_FLIGHT_MIN.min(limit_max),
            limit_max,
            part_bytes,
            is_starting: true,
            quickest: f64::INFINITY,
            done: VecDeque::new(),
            since: None,
            last_rate: None,
            in_flight: 0,
        }
    }

    fn started(&mut self, now: Instant) {
        if self.in_flight == 0 {
            self.last_rate = self.rate();
            self.done.clear();
            self.since = Some(now);
        }
        self.in_flight += 1;
    }

    fn finished(&mut self, now: Instant, bytes: u64, elapsed: Duration, others_wait: bool) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.done.push_back(Done { at: now, bytes, elapsed });
        self.forget_old(now);
        if bytes < self.part_bytes {
            return;
        }
        let elapsed = elapsed.as_secs_f64().max(1e-9);
        self.quickest = (self.quickest * QUICKEST_DECAY).min(elapsed);
        let queueing = self.limit as f64 * (1.0 - self.quickest / elapsed);
        self.is_starting &= queueing < QUEUEING_HIGH;
        let more = if self.is_starting { 2 } else { usize::from(queueing < QUEUEING_LOW) };
        if more > 0 && others_wait {
            self.limit = (self.limit + more).min(self.limit_max);
        } else if queueing > QUEUEING_HIGH {
            self.limit = (self.limit - 1).max(IN_FLIGHT_MIN.min(self.limit_max));
        }
    }

    fn abandoned(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    fn throttled(&mut self) {
        self.is_starting = false;
        self.limit = (self.limit / 2).max(IN_FLIGHT_MIN.min(self.limit_max));
    }

    /// Forgets parts that were finished long ago. Parts that share a line end together: those go together,
    /// because the bytes of one that stays count from where the last one that goes has ended.
    fn forget_old(&mut self, now: Instant) {
        while let Some(first) = self.done.front().copied() {
            let apart = first.elapsed / TOGETHER;
            let count = self.done.iter().take_while(|done| done.at.duration_since(first.at) <= apart).count();
            let last = self.done.get(count - 1).map_or(first.at, |done| done.at);
            if self.done.len() < count + DONE_KEPT_MIN || now.duration_since(last) <= RATE_SPAN {
                return;
            }
            self.done.drain(..count);
            self.since = Some(last);
        }
    }

    /// Bytes per second of late; `None` until enough has been seen.
    fn rate(&self) -> Option<f64> {
        let (Some(last), Some(since)) = (self.done.back(), self.since) else { return self.last_rate };
        let bytes: u64 = self.done.iter().map(|done| done.bytes).sum();
        let span = last.at.duration_since(since).as_secs_f64();
        // Small files say how long a request takes, not how fast bytes go.
        (span > 0.0 && bytes >= self.part_bytes).then(|| bytes as f64 / span).or(self.last_rate)
    }

    /// How many full parts of one file may be unacknowledged.
    fn parts_ahead_max(&self) -> usize {
        let by_count = self.limit + (self.limit / 2).max(WAITING_MIN);
        let by_rate = match self.rate() {
            Some(rate) => (rate * AHEAD.as_secs_f64() / self.part_bytes as f64) as usize,
            None => IN_FLIGHT_MIN,
        };
        by_rate.clamp(2, by_count)
    }
}

/// Lets parts through, as many at once as pays.
#[derive(Debug)]
pub struct Gate {
    slots: Arc<Semaphore>,
    /// A leaf lock.
    control: Mutex<Balance>,
}

/// The limit, and the permits that are to be taken back when their holders are done.
#[derive(Debug)]
struct Balance {
    control: Control,
    debt: usize,
}

/// The right to send one part.
#[derive(Debug)]
pub struct Slot {
    gate: Arc<Gate>,
    started: Instant,
    outcome: Outcome,
    permit: Option<OwnedSemaphorePermit>,
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    Abandoned,
    Stored { bytes: u64, throttled: bool },
}

impl Gate {
    /// At most `in_flight_max` parts of `part_bytes`.
    pub fn new(in_flight_max: usize, part_bytes: u64) -> Arc<Self> {
        let control = Control::new(in_flight_max, part_bytes);
        let slots = Arc::new(Semaphore::new(control.limit));
        Arc::new(Self { slots, control: Mutex::new(Balance { control, debt: 0 }) })
    }

    /// Changes the numbers and makes the semaphore follow the limit.
    fn adjust<T>(&self, change: impl FnOnce(&mut Control) -> T) -> T {
        let mut balance = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let before = balance.control.limit;
        let result = change(&mut balance.control);
        let after = balance.control.limit;
        if after > before {
            let forgiven = balance.debt.min(after - before);
            balance.debt -= forgiven;
            self.slots.add_permits(after - before - forgiven);
        } else if after < before {
            balance.debt += before - after - self.slots.forget_permits(before - after);
        }
        result
    }

    /// Whether a permit that is given back must be taken away.
    fn collect_debt(&self) -> bool {
        let mut balance = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let owed = balance.debt > 0;
        balance.debt -= usize::from(owed);
        owed
    }

    /// Waits for a turn; first come, first served.
    pub async fn enter(self: &Arc<Self>) -> Slot {
        // The semaphore is never closed, so there is always a permit.
        let permit = self.slots.clone().acquire_owned().await.ok();
        let started = Instant::now();
        self.adjust(|control| control.started(started));
        Slot { gate: self.clone(), started, outcome: Outcome::Abandoned, permit }
    }

    /// How many full parts of one file may be unacknowledged now.
    pub fn parts_ahead_max(&self) -> usize {
        self.adjust(|control| control.parts_ahead_max())
    }

    /// Parts that may be in flight now.
    pub fn limit(&self) -> usize {
        self.adjust(|control| control.limit)
    }
}

impl Slot {
    /// The store has the part; on the way it may have asked for fewer requests.
    pub fn stored(mut self, bytes: u64, throttled: bool) {
        self.outcome = Outcome::Stored { bytes, throttled };
    }

    /// The time of the PUT starts again: what was before was not the connection's doing.
    pub fn restart(&mut self) {
        self.started = Instant::now();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let now = Instant::now();
        let others_wait = self.gate.slots.available_permits() == 0;
        let elapsed = now.duration_since(self.started);
        self.gate.adjust(|control| match self.outcome {
            Outcome::Stored { bytes, throttled } => {
                control.finished(now, bytes, elapsed, others_wait);
                if throttled {
                    control.throttled();
                }
            }
            Outcome::Abandoned => control.abandoned(),
        });
        if self.gate.collect_debt()
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

    fn run(control: &mut Control, parts: usize, elapsed_ms: impl Fn(usize) -> u64) {
        let mut now = Instant::now();
        for _ in 0..parts {
            control.started(now);
            let elapsed = Duration::from_millis(elapsed_ms(control.limit));
            now += elapsed / control.limit as u32;
            control.finished(now, PART, elapsed, true);
        }
    }

    #[test]
    fn a_window_limited_connection_gets_all_the_parts() {
        let mut control = Control::new(32, PART);
        run(&mut control, 60, |_| 160);
        assert_eq!(control.limit, 32);
    }

    #[test]
    fn the_start_takes_two_rounds() {
        let mut control = Control::new(32, PART);
        run(&mut control, 4, |_| 160);
        assert_eq!(control.limit, 12);
        run(&mut control, 10, |_| 160);
        assert_eq!(control.limit, 32);
    }

    #[test]
    fn a_shared_bottleneck_stays_with_few() {
        let mut control = Control::new(32, PART);
        run(&mut control, 1, |_| 10);
        run(&mut control, 200, |in_flight| 10 * in_flight as u64);
        assert!(control.limit <= 8, "{}", control.limit);
    }

    #[test]
    fn throttling_halves_the_number() {
        let mut control = Control::new(32, PART);
        run(&mut control, 60, |_| 160);
        control.throttled();
        assert_eq!(control.limit, 16);
        for _ in 0..9 {
            control.throttled();
        }
        assert_eq!(control.limit, IN_FLIGHT_MIN);
    }

    #[test]
    fn a_slow_drive_keeps_the_writer_close() {
        let start = Instant::now();
        let ahead = |seconds_per_part: u64| {
            let mut control = Control::new(32, PART);
            control.started(start);
            assert_eq!(control.parts_ahead_max(), IN_FLIGHT_MIN);
            let mut now = start;
            for _ in 1..10 {
                control.started(now);
                now += Duration::from_secs(seconds_per_part);
                control.finished(now, PART, Duration::from_secs(seconds_per_part), false);
            }
            control.parts_ahead_max()
        };
        // Three seconds of upload are less than a part, and two parts are the least.
        assert_eq!(ahead(8), 2);
        assert_eq!(ahead(1), 3);
    }

    /// Parts that go over one line at once end almost at once: what they took together counts.
    #[test]
    fn parts_that_end_together_are_not_taken_for_a_fast_drive() {
        let mut control = Control::new(32, PART);
        let (start, mut now) = (Instant::now(), Instant::now());
        for round in 0..5_u32 {
            (0..4).for_each(|_| control.started(now));
            let elapsed = Duration::from_millis(3200);
            for part in 0..4 {
                now = start + elapsed * (round + 1) + Duration::from_millis(part * 30);
                control.finished(now, PART, elapsed, true);
                // 10 MiB/s.
                assert!((2..=3).contains(&control.parts_ahead_max()), "{round} {part}");
            }
        }
    }

    #[test]
    fn small_files_say_nothing_about_the_speed() {
        let mut control = Control::new(32, PART);
        let now = Instant::now();
        control.started(now);
        control.finished(now + Duration::from_millis(20), 100, Duration::from_millis(20), false);
        assert_eq!(control.parts_ahead_max(), IN_FLIGHT_MIN);
    }

    #[test]
    fn the_rate_is_remembered_over_a_pause() {
        let mut control = Control::new(32, PART);
        let mut now = Instant::now();
        for _ in 0..10 {
            control.started(now);
            control.started(now);
            now += Duration::from_secs(4);
            control.finished(now, PART, Duration::from_secs(4), false);
            control.finished(now, PART, Duration::from_secs(4), false);
        }
        now += Duration::from_secs(3600);
        control.started(now);
        assert_eq!(control.parts_ahead_max(), 2);
    }

    #[tokio::test]
    async fn a_lower_limit_takes_effect_as_parts_finish() {
        let gate = Gate::new(32, PART);
        gate.adjust(|control| control.limit = 8);
        let mut slots = Vec::new();
        for _ in 0..8 {
            slots.push(gate.enter().await);
        }
        gate.adjust(|control| control.limit = 5);
        slots.drain(..3).for_each(|slot| slot.stored(1, false));
        assert_eq!(gate.slots.available_permits(), 0);
        slots.drain(..).for_each(|slot| slot.stored(1, false));
        assert_eq!(gate.slots.available_permits(), 5);
    }

    #[tokio::test]
    async fn a_throttled_part_halves_the_number_and_an_abandoned_one_does_not() {
        let gate = Gate::new(32, PART);
        gate.adjust(|control| control.limit = 16);
        drop(gate.enter().await);
        assert_eq!(gate.limit(), 16);
        gate.enter().await.stored(1, true);
        assert_eq!(gate.limit(), 8);
    }

    #[tokio::test]
    async fn no_more_than_the_limit_get_through() {
        let gate = Gate::new(4, PART);
        let mut slots = Vec::new();
        for _ in 0..4 {
            slots.push(gate.enter().await);
        }
        assert_eq!(gate.slots.available_permits(), 0);
        if let Some(slot) = slots.pop() {
            slot.stored(PART, false);
        }
        assert_eq!(gate.slots.available_permits(), 1);
        gate.enter().await.stored(1, false);
    }
}
