//! The figures of an upload: one calculation and one text for every interface.

use std::fmt;
use std::time::Duration;

use crate::units::{Elapsed, Size};

/// How far an upload is, or all uploads of a mount together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    /// Bytes that a connection has accepted. The bytes of a failed attempt are taken back.
    pub sent: u64,
    /// Known bytes that were not sent yet.
    pub waiting: u64,
    /// Whether the final size is known: `sent + waiting`. A program that still writes may declare it.
    pub is_size_known: bool,
    pub rate_bytes_s: u64,
}

impl Figures {
    /// The figures of content with `size` bytes so far.
    pub fn new(size: u64, sent: u64, is_size_known: bool, rate_bytes_s: u64) -> Self {
        let sent = sent.min(size);
        Self { sent, waiting: size - sent, is_size_known, rate_bytes_s }
    }

    /// The sum over files, at the rate of all of them.
    pub fn sum(files: impl IntoIterator<Item = Self>, rate_bytes_s: u64) -> Self {
        let none = Self { is_size_known: true, rate_bytes_s, ..Self::default() };
        files.into_iter().fold(none, |sum, file| Self {
            sent: sum.sent.saturating_add(file.sent),
            waiting: sum.waiting.saturating_add(file.waiting),
            is_size_known: sum.is_size_known && file.is_size_known,
            ..sum
        })
    }

    /// Bytes so far; the final size if that is known.
    pub fn size(&self) -> u64 {
        self.sent.saturating_add(self.waiting)
    }

    /// `None` while the final size is not known.
    pub fn percent(&self) -> Option<u64> {
        let percent = (u128::from(self.sent) * 100).checked_div(u128::from(self.size())).unwrap_or(0);
        self.is_size_known.then(|| u64::try_from(percent).unwrap_or(100))
    }

    /// The time for the waiting bytes. `None` without a rate, and while the final size is not known.
    pub fn eta(&self) -> Option<Duration> {
        eta(self.waiting, self.rate_bytes_s).filter(|_| self.is_size_known && self.waiting > 0)
    }

    /// The text without rate and time.
    pub fn progress(&self) -> String {
        match self.percent() {
            Some(percent) => format!("{percent} % of {}", Size(self.size())),
            None => format!("{} sent, {} waiting", Size(self.sent), Size(self.waiting)),
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.progress())?;
        if self.rate_bytes_s > 0 {
            write!(f, ", {}/s", Size(self.rate_bytes_s))?;
        }
        match self.eta() {
            Some(eta) => write!(f, ", {} left", Elapsed(eta)),
            None => Ok(()),
        }
    }
}

/// The time for `bytes_left` at this rate; `None` without a rate.
fn eta(bytes_left: u64, rate_bytes_s: u64) -> Option<Duration> {
    let left_ms = u128::from(bytes_left) * 1000;
    let ms = left_ms.checked_div(u128::from(rate_bytes_s))?;
    Some(Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn unknown_size_shows_no_percentage_and_no_time() {
        let figures = Figures::new(34 * MIB, 32 * MIB, false, 19 * MIB / 2);
        assert_eq!(figures.to_string(), "32 MiB sent, 2.0 MiB waiting, 9.5 MiB/s");
        assert_eq!((figures.percent(), figures.eta()), (None, None));
    }

    #[test]
    fn known_size_shows_percentage_and_time() {
        let figures = Figures::new(96 * MIB, 32 * MIB, true, 16 * MIB);
        assert_eq!(figures.to_string(), "33 % of 96 MiB, 16 MiB/s, 4.0 s left");
        let stalled = Figures { rate_bytes_s: 0, ..figures };
        assert_eq!(stalled.to_string(), "33 % of 96 MiB");
        assert_eq!(Figures::new(0, 0, true, 5).to_string(), "0 % of 0 B, 5 B/s");
        assert_eq!(Figures::new(MIB, 2 * MIB, true, MIB).to_string(), "100 % of 1.0 MiB, 1.0 MiB/s");
    }

    #[test]
    fn one_unknown_size_makes_the_sum_unknown() {
        let (known, unknown) = (Figures::new(4, 1, true, 9), Figures::new(6, 2, false, 9));
        let sum = Figures::sum([known, unknown], 1);
        assert_eq!(sum, Figures { sent: 3, waiting: 7, is_size_known: false, rate_bytes_s: 1 });
        assert_eq!(Figures::sum([known, known], 2).eta(), Some(Duration::from_secs(3)));
        assert_eq!(Figures::sum([], 2).eta(), None);
    }
}
