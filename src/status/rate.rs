//! The upload rate: a sliding window over a count of sent bytes.
//!
//! Pure: the time is an argument. A fast line has many samples and a slow one few, so the window spans [`WINDOW`],
//! but at least [`SAMPLES_MIN`] and at most [`SAMPLES_MAX`] samples. The rate of a stalled transfer falls, and is 0
//! after a silence that is long compared with the time between samples.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Length of the window with frequent samples.
const WINDOW: Duration = Duration::from_secs(5);
/// Samples that stay in the window at any age.
const SAMPLES_MIN: usize = 4;
/// Limit on memory. With more frequent samples, the window is shorter than [`WINDOW`].
const SAMPLES_MAX: usize = 256;
/// Shortest time that a rate is computed over, so that early bytes give no absurd rate. Bytes within this time are
/// one sample.
pub(super) const SPAN_MIN: Duration = Duration::from_millis(100);
/// Silence before the rate is 0, in mean times between samples; at least [`WINDOW`].
const SILENT_INTERVALS_MAX: u32 = 3;

/// Samples of the count, oldest first. The first one marks the start of the window.
#[derive(Debug)]
pub(super) struct RateWindow {
    samples: VecDeque<(Instant, u64)>,
}

impl RateWindow {
    /// A window that starts now, with this count.
    pub(super) fn new(now: Instant, count: u64) -> Self {
        Self { samples: VecDeque::from([(now, count)]) }
    }

    /// Adds a sample if the count has changed. A lower count takes bytes back: they never counted.
    pub(super) fn observe(&mut self, now: Instant, count: u64) {
        let Some(&(last, last_count)) = self.samples.back() else { return };
        if count < last_count {
            self.samples.iter_mut().for_each(|(_, sample)| *sample = count.min(*sample));
        }
        if count > last_count {
            // Bytes added to the first sample would not count.
            let is_one = self.samples.len() > 1 && now.saturating_duration_since(last) < SPAN_MIN;
            match self.samples.back_mut().filter(|_| is_one) {
                Some((_, sample)) => *sample = count,
                None => self.samples.push_back((now, count)),
            }
        }
        self.prune(now);
    }

    /// Bytes per second over the window that ends now; 0 after a long silence.
    pub(super) fn bytes_per_s(&mut self, now: Instant) -> u64 {
        self.prune(now);
        let (Some(&(opened, first)), Some(&(last, count))) = (self.samples.front(), self.samples.back())
        else {
            return 0;
        };
        if self.is_silent(now, opened, last) {
            return 0;
        }
        let span = now.saturating_duration_since(opened).max(SPAN_MIN);
        let rate = u128::from(count.saturating_sub(first)) * 1_000_000_000 / span.as_nanos();
        u64::try_from(rate).unwrap_or(u64::MAX)
    }

    fn is_silent(&self, now: Instant, opened: Instant, last: Instant) -> bool {
        let intervals = u32::try_from(self.samples.len() - 1).unwrap_or(u32::MAX).max(1);
        let mean = last.saturating_duration_since(opened) / intervals;
        now.saturating_duration_since(last) > WINDOW.max(mean * SILENT_INTERVALS_MAX)
    }

    /// Moves the start of the window forward, sample by sample.
    fn prune(&mut self, now: Instant) {
        while let Some(&(second, _)) = self.samples.get(1) {
            let old = now.saturating_duration_since(second) >= WINDOW && self.samples.len() > SAMPLES_MIN;
            if !old && self.samples.len() <= SAMPLES_MAX {
                return;
            }
            self.samples.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A window, and the count so far.
    struct Line(RateWindow, u64);

    impl Line {
        fn new(now: Instant) -> Self {
            Self(RateWindow::new(now, 0), 0)
        }

        fn add(&mut self, now: Instant, bytes: u64) {
            self.1 += bytes;
            self.0.observe(now, self.1);
        }

        fn bytes_per_s(&mut self, now: Instant) -> u64 {
            self.0.bytes_per_s(now)
        }
    }

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn steady_stream_has_its_rate() {
        let start = Instant::now();
        let mut window = Line::new(start);
        for ms in (100..=20_000).step_by(100) {
            window.add(at(start, ms), MIB);
        }
        assert_eq!(window.bytes_per_s(at(start, 20_000)), 10 * MIB);
    }

    #[test]
    fn old_burst_leaves_the_window() {
        let start = Instant::now();
        let mut window = Line::new(start);
        window.add(at(start, 100), 1000 * MIB);
        for s in 1..=20 {
            window.add(at(start, 1000 * s), MIB);
        }
        assert_eq!(window.bytes_per_s(at(start, 20_000)), MIB);
    }

    #[test]
    fn rare_parts_of_a_slow_line_have_a_rate() {
        let start = Instant::now();
        let mut window = Line::new(start);
        for part in 1..=6 {
            window.add(at(start, 8000 * part), 8 * MIB);
        }
        assert_eq!(window.bytes_per_s(at(start, 48_000)), MIB);
    }

    #[test]
    fn stall_lowers_the_rate_to_zero() {
        let start = Instant::now();
        let mut window = Line::new(start);
        for ms in (100..=3_000).step_by(100) {
            window.add(at(start, ms), MIB);
        }
        let rates: Vec<_> = (3..=8).map(|s| window.bytes_per_s(at(start, s * 1000))).collect();
        assert!(rates.windows(2).all(|pair| pair[0] > pair[1]), "{rates:?}");
        assert_eq!((rates[0], window.bytes_per_s(at(start, 8_001))), (10 * MIB, 0));
        // The rate returns with the next part.
        window.add(at(start, 60_000), MIB);
        assert!(window.bytes_per_s(at(start, 60_000)) > 0);
    }

    #[test]
    fn slow_line_may_be_silent_for_longer() {
        let start = Instant::now();
        let mut window = Line::new(start);
        for part in 1..=6 {
            window.add(at(start, 8000 * part), 8 * MIB);
        }
        let falling = window.bytes_per_s(at(start, 64_000));
        assert!(falling > 0 && falling < MIB, "{falling}");
        assert_eq!(window.bytes_per_s(at(start, 73_000)), 0);
    }

    #[test]
    fn parts_that_end_together_are_one_sample() {
        let start = Instant::now();
        let mut window = Line::new(start);
        for round in 1..=3 {
            (0..8).for_each(|ms| window.add(at(start, 64_000 * round + ms), 8 * MIB));
        }
        let rate = window.bytes_per_s(at(start, 64_000 * 3 + 10_000));
        assert!((MIB * 8 / 10..=MIB).contains(&rate), "{rate}");
    }

    #[test]
    fn bytes_that_are_taken_back_never_counted() {
        let start = Instant::now();
        let mut window = Line::new(start);
        window.add(at(start, 1000), 4 * MIB);
        window.add(at(start, 2000), 8 * MIB);
        // The attempt with the last 8 MiB has failed.
        window.1 -= 8 * MIB;
        window.0.observe(at(start, 3000), window.1);
        assert_eq!(window.bytes_per_s(at(start, 4000)), MIB);
        window.add(at(start, 4000), 4 * MIB);
        assert_eq!(window.bytes_per_s(at(start, 4000)), 2 * MIB);
    }

    #[test]
    fn shortest_span_and_sample_count_are_bounded() {
        let start = Instant::now();
        let mut window = Line::new(start);
        assert_eq!(window.bytes_per_s(start), 0);
        window.add(start, MIB);
        assert_eq!(window.bytes_per_s(start), 10 * MIB, "computed over the shortest span");
        for _ in 0..10_000 {
            window.add(start, 1);
        }
        assert!(window.0.samples.len() <= SAMPLES_MAX);
    }
}
