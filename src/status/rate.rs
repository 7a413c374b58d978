//! The upload rate: a sliding window over acknowledged parts.
//!
//! Pure: the time is an argument. Bytes are acknowledged part by part, so a window of fixed length would be
//! empty on a slow line and noisy on a fast one. The window spans [`WINDOW`], but at least [`SAMPLES_MIN`]
//! and at most [`SAMPLES_MAX`] samples. Parts that share a line end at the same time and make one sample. The
//! rate of a stalled transfer falls, and is 0 after a silence that is long compared with the time between
//! samples.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Length of the window with frequent samples.
const WINDOW: Duration = Duration::from_secs(5);
/// Samples that stay in the window at any age.
const SAMPLES_MIN: usize = 4;
/// Limit on memory. With more frequent samples, the window is shorter than [`WINDOW`].
const SAMPLES_MAX: usize = 256;
/// Shortest time that a rate is computed over, so that one early part gives no absurd rate. Acknowledgements
/// within this time are one sample.
const SPAN_MIN: Duration = Duration::from_millis(100);
/// Silence before the rate is 0, in mean times between samples; at least [`WINDOW`].
const SILENT_INTERVALS_MAX: u32 = 3;

/// Samples, oldest first. The first one marks the start of the window; its bytes do not count.
#[derive(Debug)]
pub(super) struct RateWindow {
    samples: VecDeque<(Instant, u64)>,
    /// Sum of all samples except the first.
    bytes: u64,
}

impl RateWindow {
    /// A window that starts now.
    pub(super) fn new(now: Instant) -> Self {
        Self { samples: VecDeque::from([(now, 0)]), bytes: 0 }
    }

    /// Adds acknowledged bytes.
    pub(super) fn add(&mut self, now: Instant, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        // Bytes added to the first sample would not count.
        let is_open = self.samples.len() > 1;
        match self.samples.back_mut().filter(|_| is_open) {
            Some((at, sample)) if now.saturating_duration_since(*at) < SPAN_MIN => {
                *sample = sample.saturating_add(bytes);
            }
            _ => self.samples.push_back((now, bytes)),
        }
        self.prune(now);
    }

    /// Bytes per second over the window that ends now; 0 after a long silence.
    pub(super) fn bytes_per_s(&mut self, now: Instant) -> u64 {
        self.prune(now);
        if self.is_silent(now) {
            return 0;
        }
        let Some(&(opened, _)) = self.samples.front() else { return 0 };
        let span = now.saturating_duration_since(opened).max(SPAN_MIN);
        let rate = u128::from(self.bytes) * 1_000_000_000 / span.as_nanos();
        u64::try_from(rate).unwrap_or(u64::MAX)
    }

    fn is_silent(&self, now: Instant) -> bool {
        let (Some((opened, _)), Some((last, _))) = (self.samples.front(), self.samples.back()) else {
            return true;
        };
        let intervals = u32::try_from(self.samples.len() - 1).unwrap_or(u32::MAX).max(1);
        let mean = last.saturating_duration_since(*opened) / intervals;
        now.saturating_duration_since(*last) > WINDOW.max(mean * SILENT_INTERVALS_MAX)
    }

    /// Moves the start of the window forward, sample by sample.
    fn prune(&mut self, now: Instant) {
        while let Some(&(second, second_bytes)) = self.samples.get(1) {
            let old = now.saturating_duration_since(second) >= WINDOW && self.samples.len() > SAMPLES_MIN;
            if !old && self.samples.len() <= SAMPLES_MAX {
                return;
            }
            self.samples.pop_front();
            self.bytes -= second_bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn steady_stream_has_its_rate() {
        let start = Instant::now();
        let mut window = RateWindow::new(start);
        for ms in (100..=20_000).step_by(100) {
            window.add(at(start, ms), MIB);
        }
        assert_eq!(window.bytes_per_s(at(start, 20_000)), 10 * MIB);
    }

    #[test]
    fn old_burst_leaves_the_window() {
        let start = Instant::now();
        let mut window = RateWindow::new(start);
        window.add(at(start, 100), 1000 * MIB);
        for s in 1..=20 {
            window.add(at(start, 1000 * s), MIB);
        }
        assert_eq!(window.bytes_per_s(at(start, 20_000)), MIB);
    }

    #[test]
    fn rare_parts_of_a_slow_line_have_a_rate() {
        let start = Instant::now();
        let mut window = RateWindow::new(start);
        for part in 1..=6 {
            window.add(at(start, 8000 * part), 8 * MIB);
        }
        assert_eq!(window.bytes_per_s(at(start, 48_000)), MIB);
    }

    #[test]
    fn stall_lowers_the_rate_to_zero() {
        let start = Instant::now();
        let mut window = RateWindow::new(start);
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
        let mut window = RateWindow::new(start);
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
        let mut window = RateWindow::new(start);
        for round in 1..=3 {
            (0..8).for_each(|ms| window.add(at(start, 64_000 * round + ms), 8 * MIB));
        }
        let rate = window.bytes_per_s(at(start, 64_000 * 3 + 10_000));
        assert!((MIB * 8 / 10..=MIB).contains(&rate), "{rate}");
    }

    #[test]
    fn shortest_span_and_sample_count_are_bounded() {
        let start = Instant::now();
        let mut window = RateWindow::new(start);
        assert_eq!(window.bytes_per_s(start), 0);
        window.add(start, MIB);
        assert_eq!(window.bytes_per_s(start), 10 * MIB, "computed over the shortest span");
        for _ in 0..10_000 {
            window.add(start, 1);
        }
        assert!(window.samples.len() <= SAMPLES_MAX);
        assert_eq!(window.bytes, window.samples.iter().skip(1).map(|s| s.1).sum::<u64>());
    }
}
