//! The status of unsaved files, alone and in total.

use std::time::Duration;

pub use crate::content::open_file::{FileStatus, Stage};
use crate::status::{Figures, UnsavedSummary};

/// An open file, or a closed one whose commit still runs.
#[derive(Clone, Debug)]
pub struct UnsavedFileStatus {
    /// Path below the mountpoint, with a leading `/`.
    pub path: String,
    pub status: FileStatus,
    /// Open for writing.
    pub is_open: bool,
}

impl UnsavedFileStatus {
    /// Known bytes that the drive has not acknowledged.
    fn bytes_left(&self) -> u64 {
        let acked = self.status.transfer.as_ref().map_or(0, |view| view.bytes_acked);
        self.status.figures().size().saturating_sub(acked)
    }
}

/// The totals over unsaved files, at the rate of the mount. All interfaces report these.
pub fn summarize(files: &[UnsavedFileStatus], rate_bytes_s: u64) -> UnsavedSummary {
    let unsaved = files.iter().filter(|file| file.status.stage != Stage::Failed);
    let figures = Figures::sum(unsaved.map(|file| file.status.figures()), rate_bytes_s);
    let mut sum = UnsavedSummary { figures, ..UnsavedSummary::default() };
    for file in files {
        if file.status.stage == Stage::Failed {
            sum.failed_open += 1;
            continue;
        }
        let is_committing = file.status.stage == Stage::Committing;
        sum.files += 1;
        sum.open += u64::from(file.is_open && !is_committing);
        sum.committing += u64::from(is_committing);
        sum.bytes = sum.bytes.saturating_add(file.bytes_left());
        let age = file.status.transfer.as_ref().map_or(Duration::ZERO, |view| view.age);
        sum.oldest = sum.oldest.max(age);
    }
    sum
}

/// Usage of the bounded resources.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ResourceUsage {
    /// Bytes of write buffers.
    pub buffer_bytes: u64,
    /// Bytes of staged and cached files.
    pub copy_bytes: u64,
    /// Current limit of parts in flight.
    pub parts_in_flight_max: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Ino;
    use crate::status::Progress;

    fn file(stage: Stage, bytes: u64, is_open: bool) -> UnsavedFileStatus {
        let status = FileStatus { stage, name: "f".to_owned(), bytes, transfer: None, error: None };
        UnsavedFileStatus { path: "/f".to_owned(), status, is_open }
    }

    #[test]
    fn summary_counts_every_unsaved_file() {
        let progress = Progress::new();
        let transfer = progress.begin(Ino(1), "a");
        transfer.wrote(500);
        transfer.part_stored(200, None);
        let sending = UnsavedFileStatus {
            status: FileStatus {
                transfer: Some(transfer.snapshot()),
                ..file(Stage::Writing, 500, true).status
            },
            ..file(Stage::Writing, 500, true)
        };
        let files = [
            sending,
            file(Stage::Staged, 1000, true),
            file(Stage::Committing, 30, true),
            file(Stage::Failed, 7, true),
        ];
        let sum = summarize(&files, 7);
        assert_eq!((sum.files, sum.open, sum.committing, sum.failed_open, sum.bytes), (3, 2, 1, 1, 1330));
        let figures = sum.figures;
        assert_eq!((figures.sent, figures.waiting, figures.is_size_known), (200, 1330, false));
        assert_eq!(figures.rate_bytes_s, 7);
    }
}
