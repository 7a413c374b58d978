//! How fast bytes arrive at the drive: a sliding window over acknowledged parts.
//!
//! Pure: the time is an argument. Acknowledgements come in lumps of a part, so a window of fixed
//! length would show nothing on a slow line and noise on a fast one. The window therefore spans
//! [`WINDOW`], but never fewer than [`SAMPLES_MIN`] lumps and never more than [`SAMPLES_MAX`]. A
//! transfer that stalls shows a rate that falls, never the last good one.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How far back the rate looks where lumps are frequent.
const WINDOW: Duration = Duration::from_secs(5);
/// Lumps that stay in the window however old they are.
const SAMPLES_MIN: usize = 4;
/// Bound on memory: with lumps more frequent than this the window is shorter than [`WINDOW`].
const SAMPLES_MAX: usize = 256;
/// Shortest time that a rate is computed over; below it one early part would look like a rocket.
const SPAN_MIN: Duration = Duration::from_millis(100);

/// Acknowledged lumps, oldest first. The bytes of the first one lie before the window.
#[derive(Debug)]
pub(super) struct RateWindow {
    samples: VecDeque<(Instant, u64)>,
    /// Sum of all samples but the first.
    bytes: u64,
}

impl RateWindow {
    /// A window that opens now, with nothing acknowledged yet.
    pub(super) fn new(now: Instant) -> Self {
        Self { samples: VecDeque::from([(now, 0)]), bytes: 0 }
    }

    /// Takes one acknowledged lump.
    pub(super) fn add(&mut self, now: Instant, bytes: u64) {
        self.samples.push_back((now, bytes));
        self.bytes = self.bytes.saturating_add(bytes);
        self.prune(now);
    }

    /// Bytes per second over the window that ends now.
    pub(super) fn bytes_per_s(&mut self, now: Instant) -> u64 {
        self.prune(now);
        let Some(&(opened, _)) = self.samples.front() else { return 0 };
        let span = now.saturating_duration_since(opened).max(SPAN_MIN);
        let rate = u128::from(self.bytes) * 1_000_000_000 / span.as_nanos();
        u64::try_from(rate).unwrap_or(u64::MAX)
    }

    /// Moves the opening of the window forward, lump by lump.
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
    fn a_steady_stream_shows_its_rate() {
        let start = Instant::now();
        let mut window = RateWindow::new(start);
        for ms in (100..=20_000).step_by(100) {
            window.add(at(start, ms), MIB);
        }
        assert_eq!(window.bytes_per_s(at(start, 20_000)), 10 * MIB);
    }

    #[test]
    fn the_window_forgets_an_old_burst() {
        let start = Instant::now();
        let mut window = RateWindow::new(start);
        window.add(at(start, 100), 1000 * MIB);
        for s in 1..=20 {
            window.add(at(start, 1000 * s), MIB);
        }
        assert_eq!(window.bytes_per_s(at(start, 20_000)), MIB);
    }

    #[test]
    fn a_slow_line_with_rare_parts_is_not_zero() {
        let start = Instant::now();
        let mut window = RateWindow::new(start);
        for part in 1..=6 {
            window.add(at(start, 8000 * part), 8 * MIB);
        }
        assert_eq!(window.bytes_per_s(at(start, 48_000)), MIB);
    }

    #[test]
    fn a_stall_makes_the_rate_fall() {
        let start = Instant::now();
        let mut window = RateWindow::new(start);
        for ms in (100..=3_000).step_by(100) {
            window.add(at(start, ms), MIB);
        }
        let before = window.bytes_per_s(at(start, 3_000));
        let after = window.bytes_per_s(at(start, 60_000));
        assert!(after < before / 100, "{before} fell only to {after}");
    }

    #[test]
    fn the_first_instant_and_the_number_of_samples_are_bounded() {
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
