//! How fast bytes arrive at the drive: a sliding window over acknowledged parts.
//!
//! Pure: the time is an argument. Acknowledgements come in lumps of a part, so a window of fixed
//! length would show nothing on a slow line and noise on a fast one. The window therefore spans
//! [`WINDOW`], but never fewer than [`SAMPLES_MIN`] lumps and never more than [`SAMPLES_MAX`]. Parts that
//! share a line end at once: they are one lump. A transfer that stalls shows a rate that falls, never the last
//! good one; after a silence that is long beside the time between lumps, it shows none.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How far back the rate looks where lumps are frequent.
const WINDOW: Duration = Duration::from_secs(5);
/// Lumps that stay in the window however old they are.
const SAMPLES_MIN: usize = 4;
/// Bound on memory: with lumps more frequent than this the window is shorter than [`WINDOW`].
const SAMPLES_MAX: usize = 256;
/// Shortest time that a rate is computed over; below it one early part would look like a rocket. What is
/// acknowledged within it is one lump.
const SPAN_MIN: Duration = Duration::from_millis(100);
/// Of the usual times between lumps so many may pass in silence before nothing is said to move. Never less than
/// [`WINDOW`].
const SILENT_LUMPS_MAX: u32 = 3;

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
        self.bytes = self.bytes.saturating_add(bytes);
        // The first one lies before the window: nothing is added to it.
        let is_open = self.samples.len() > 1;
        match self.samples.back_mut().filter(|_| is_open) {
            Some((at, lump)) if now.saturating_duration_since(*at) < SPAN_MIN => {
                *lump = lump.saturating_add(bytes);
            }
            _ => self.samples.push_back((now, bytes)),
        }
        self.prune(now);
    }

    /// Bytes per second over the window that ends now; none where nothing has moved for long.
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
        let lumps = u32::try_from(self.samples.len() - 1).unwrap_or(u32::MAX).max(1);
        let usual = last.saturating_duration_since(*opened) / lumps;
        now.saturating_duration_since(*last) > WINDOW.max(usual * SILENT_LUMPS_MAX)
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
        let rates: Vec<_> = (3..=8).map(|s| window.bytes_per_s(at(start, s * 1000))).collect();
        assert!(rates.windows(2).all(|pair| pair[0] > pair[1]), "{rates:?}");
        assert_eq!((rates[0], window.bytes_per_s(at(start, 8_001))), (10 * MIB, 0));
        // What moves again shows a rate again.
        window.add(at(start, 60_000), MIB);
        assert!(window.bytes_per_s(at(start, 60_000)) > 0);
    }

    #[test]
    fn a_slow_line_is_silent_for_longer_before_it_shows_nothing() {
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
    fn parts_that_end_together_are_one_lump() {
        let start = Instant::now();
        let mut window = RateWindow::new(start);
        for round in 1..=3 {
            (0..8).for_each(|ms| window.add(at(start, 64_000 * round + ms), 8 * MIB));
        }
        let rate = window.bytes_per_s(at(start, 64_000 * 3 + 10_000));
        assert!((MIB * 8 / 10..=MIB).contains(&rate), "{rate}");
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
