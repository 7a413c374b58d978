//! Does one more PUT in flight raise the throughput?
//!
//! If each connection has a rate of its own, a PUT takes equally long with few and with many others in
//! flight. If all connections share a line, it takes longer in proportion to their number. So the times of
//! recent PUTs are compared with the numbers in flight by linear regression. The result is the relative slope:
//! 0 for separate connections, 1 for a shared line.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Most samples.
const SAMPLES_MAX: usize = 128;
/// Fewest samples of a verdict.
const SAMPLES_MIN: usize = 4;
/// Samples count for this many PUT times.
const WINDOW_PUTS: f64 = 4.0;
/// Least relative standard deviation of the number in flight for a verdict.
const SPREAD_MIN: f64 = 0.1;
/// Relative slope from which on the line is the bottleneck.
const SLOPE_OF_LINE: f64 = 0.5;
/// The slope must differ from [`SLOPE_OF_LINE`] by this many standard errors.
const ERRORS_MIN: f64 = 2.0;
/// PUTs without a verdict after which the number in flight should vary.
const PROBE_AFTER: usize = 16;
/// Mean number in flight from which on it can vary.
const VARIABLE_FROM: f64 = 1.5;
/// A verdict for the connections ends when PUTs take this many times as long, or the inverse.
const CHANGE_MAX: f64 = 1.5;

/// What the recent PUTs say about the line.
#[derive(Debug, Default)]
pub(super) struct Scaling {
    /// Oldest first.
    samples: VecDeque<Sample>,
    /// Mean PUT time in seconds when connections were found to be the bottleneck. `None` for the line, which
    /// is also the assumption before the first verdict.
    by_connections: Option<f64>,
    /// PUTs since the last verdict.
    undecided: usize,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    put_seconds: f64,
    /// Mean number of PUTs in flight during this one.
    in_flight: f64,
}

impl Scaling {
    /// Adds a completed PUT of a full part.
    pub(super) fn record(&mut self, at: Instant, put_seconds: f64, in_flight: f64) {
        self.samples.push_back(Sample { at, put_seconds, in_flight });
        let window = Duration::from_secs_f64(WINDOW_PUTS * self.mean(|sample| sample.put_seconds));
        while self.samples.len() > SAMPLES_MAX
            || self.samples.front().is_some_and(|first| at.duration_since(first.at) > window)
        {
            self.samples.pop_front();
        }
        self.undecided += 1;
        let put_seconds = self.mean(|sample| sample.put_seconds);
        if let Some((slope, error)) = self.relative_slope()
            && (slope - SLOPE_OF_LINE).abs() > ERRORS_MIN * error
        {
            self.by_connections = (slope < SLOPE_OF_LINE).then_some(put_seconds);
            self.undecided = 0;
        }
        let has_changed =
            |before: &mut f64| put_seconds > *before * CHANGE_MAX || put_seconds * CHANGE_MAX < *before;
        self.by_connections.take_if(has_changed);
    }

    /// Whether more PUTs in flight raise the throughput.
    pub(super) fn is_by_connections(&self) -> bool {
        self.by_connections.is_some()
    }

    /// Whether the number in flight should vary, because no verdict was possible for long. A slow writer has one
    /// part in flight at any lead.
    pub(super) fn needs_variation(&self) -> bool {
        self.undecided >= PROBE_AFTER && self.mean(|sample| sample.in_flight) > VARIABLE_FROM
    }

    fn mean(&self, value: impl Fn(&Sample) -> f64) -> f64 {
        self.samples.iter().map(value).sum::<f64>() / self.samples.len() as f64
    }

    /// Relative slope of the PUT time over the number in flight, and its standard error. `None` if the number
    /// hardly varied.
    fn relative_slope(&self) -> Option<(f64, f64)> {
        let count = self.samples.len();
        let put_seconds = self.mean(|sample| sample.put_seconds);
        let in_flight = self.mean(|sample| sample.in_flight);
        let (mut nn, mut ns, mut ss) = (0.0, 0.0, 0.0);
        for sample in &self.samples {
            let (n, s) = (sample.in_flight - in_flight, sample.put_seconds - put_seconds);
            (nn, ns, ss) = (nn + n * n, ns + n * s, ss + s * s);
        }
        if count < SAMPLES_MIN || nn < count as f64 * (SPREAD_MIN * in_flight).powi(2) {
            return None;
        }
        let (slope, scale) = (ns / nn, in_flight / put_seconds);
        let residual = (ss - slope * ns).max(0.0) / (count - 2) as f64;
        Some((slope * scale, (residual / nn).sqrt() * scale))
    }
}
