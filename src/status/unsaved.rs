//! What is not on the drive yet, summed up over all files: for one line of text, and for deciding
//! whether the machine may sleep.

use std::fmt;
use std::time::Duration;

use super::{Progress, TransferState, eta};

/// What is on its way to the drive at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Unsaved {
    /// Files that are being written or committed.
    pub files: u64,
    /// Of these, files that are written to their end.
    pub committing: u64,
    /// Bytes that were written, or are known to come, and that the drive has not acknowledged.
    pub bytes: u64,
    /// Time that they take at the rate of now; `None` while there is no rate.
    pub eta: Option<Duration>,
}

impl fmt::Display for Unsaved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uploads = if self.files == 1 { "upload" } else { "uploads" };
        write!(f, "{} {uploads}, {} left", self.files, Size(self.bytes))
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

impl Progress {
    /// What is on its way now.
    pub fn unsaved(&self) -> Unsaved {
        let mut sum = Unsaved::default();
        for transfer in self.snapshot() {
            sum.files += 1;
            sum.committing += u64::from(transfer.state == TransferState::Committing);
            sum.bytes = sum.bytes.saturating_add(transfer.bytes_left);
        }
        sum.eta = eta(sum.bytes, self.totals().rate_bytes_s).filter(|_| sum.bytes > 0);
        sum
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
    fn what_is_written_and_not_acknowledged_is_left() {
        let progress = Progress::new();
        assert_eq!(progress.unsaved(), Unsaved::default());
        let (one, two) = (progress.begin("a"), progress.begin("b"));
        one.wrote(1_200_000_000);
        two.wrote(500);
        two.part_started();
        two.part_done(500, true);
        two.committing();
        let unsaved = progress.unsaved();
        assert_eq!((unsaved.files, unsaved.committing, unsaved.bytes), (2, 1, 1_200_000_000));
        assert!(unsaved.eta.is_some());
        assert_eq!(unsaved.to_string(), "2 uploads, 1.1 GiB left");
        drop((one, two));
        assert_eq!((progress.unsaved().files, progress.unsaved().bytes), (0, 0));
    }

    #[test]
    fn a_copy_is_left_by_its_known_size() {
        let progress = Progress::new();
        let copy = progress.begin("a");
        copy.expect_bytes(1000);
        copy.committing();
        assert_eq!(progress.unsaved().bytes, 1000);
        copy.part_done(400, true);
        assert_eq!(progress.unsaved().bytes, 600);
    }
}
