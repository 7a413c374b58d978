//! Unsaved files in total: for status lines, and to decide whether the machine may sleep.

use std::fmt;
use std::time::Duration;

use super::view::eta;
use crate::units::{Size, count};

/// Unsaved files at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct UnsavedSummary {
    /// Files that are being written or committed, or are staged.
    pub files: u64,
    /// Those of them that are open for writing.
    pub open: u64,
    /// Those of them that are completely written.
    pub committing: u64,
    /// Open files that could not be saved; not part of `files`.
    pub failed_open: u64,
    /// Known bytes (written or expected) that the drive has not acknowledged.
    pub bytes: u64,
    /// Age of the oldest transfer.
    pub oldest: Duration,
    /// Time for `bytes` at the current rate; `None` without a rate.
    pub eta: Option<Duration>,
}

impl UnsavedSummary {
    /// The same with the ETA for this rate.
    #[must_use]
    pub fn at_rate(self, rate_bytes_s: u64) -> Self {
        Self { eta: eta(self.bytes, rate_bytes_s).filter(|_| self.bytes > 0), ..self }
    }
}

impl fmt::Display for UnsavedSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} left", count(self.files, "file"), Size(self.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eta_needs_a_rate_and_bytes() {
        let unsaved = UnsavedSummary { files: 2, bytes: 1_200_000_000, ..UnsavedSummary::default() };
        assert_eq!(unsaved.to_string(), "2 files, 1.1 GiB left");
        assert_eq!(unsaved.at_rate(0).eta, None);
        assert_eq!(unsaved.at_rate(600_000_000).eta, Some(Duration::from_secs(2)));
        assert_eq!(UnsavedSummary::default().at_rate(5).eta, None);
    }
}
