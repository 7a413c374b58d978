//! What is not on the drive yet, summed up over all files: for one line of text, and for deciding
//! whether the machine may sleep.

use std::fmt;
use std::time::Duration;

use super::eta;

/// What is not on the drive at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Unsaved {
    /// Files that are being written or committed, or wait here for that.
    pub files: u64,
    /// Of these, files that a program has open and may write on.
    pub open: u64,
    /// Of these, files that are written to their end.
    pub committing: u64,
    /// Files that could not be saved and are still open. They are none of these.
    pub failed_open: u64,
    /// Bytes that were written, or are known to come, and that the drive has not acknowledged.
    pub bytes: u64,
    /// Since when the oldest of them is on its way.
    pub oldest: Duration,
    /// Time that they take at the rate of now; `None` while there is no rate.
    pub eta: Option<Duration>,
}

impl Unsaved {
    /// The same, where so many bytes are acknowledged in a second.
    #[must_use]
    pub fn at_rate(self, rate_bytes_s: u64) -> Self {
        Self { eta: eta(self.bytes, rate_bytes_s).filter(|_| self.bytes > 0), ..self }
    }
}

impl fmt::Display for Unsaved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = if self.files == 1 { "file" } else { "files" };
        write!(f, "{} {files}, {} left", self.files, Size(self.bytes))
    }
}

/// Bytes in three digits or so.
#[derive(Clone, Copy, Debug)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut unit = "B";
        for larger in ["KiB", "MiB", "GiB", "TiB"] {
            // Below this, rounding does not give a fourth digit.
            if value < 999.5 {
                break;
            }
            (value, unit) = (value / 1024.0, larger);
        }
        let digits = usize::from(value < 9.95);
        write!(f, "{value:.digits$} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits_where_a_unit_allows() {
        let table = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (10_188, "9.9 KiB"),
            (10_190, "10 KiB"),
            (1_023_480, "999 KiB"),
            (1_023_488, "1.0 MiB"),
            (1_234_567_890, "1.1 GiB"),
            (5_000_000_000_000_000, "4547 TiB"),
        ];
        for (bytes, text) in table {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }

    #[test]
    fn without_a_rate_there_is_no_time() {
        let unsaved = Unsaved { files: 2, bytes: 1_200_000_000, ..Unsaved::default() };
        assert_eq!(unsaved.to_string(), "2 files, 1.1 GiB left");
        assert_eq!(unsaved.at_rate(0).eta, None);
        assert_eq!(unsaved.at_rate(600_000_000).eta, Some(Duration::from_secs(2)));
        assert_eq!(Unsaved::default().at_rate(5).eta, None);
    }

    #[test]
    fn a_copy_is_left_by_its_known_size() {
        let progress = crate::status::Progress::new();
        let copy = progress.begin("a");
        copy.expect_bytes(1000);
        copy.committing();
        assert_eq!(copy.look().bytes_left, 1000);
        copy.part_done(400, true);
        assert_eq!(copy.look().bytes_left, 600);
    }
}
