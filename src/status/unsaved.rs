//! Unsaved files in total: for status lines, and to decide whether the machine may sleep.

use std::fmt;
use std::time::Duration;

use super::figures::Figures;
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
    /// The figures of all `files`.
    pub figures: Figures,
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
    fn text_has_files_and_bytes() {
        let unsaved = UnsavedSummary { files: 2, bytes: 1_200_000_000, ..UnsavedSummary::default() };
        assert_eq!(unsaved.to_string(), "2 files, 1.1 GiB left");
    }
}
