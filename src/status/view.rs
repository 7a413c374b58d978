//! Copies of the progress at one moment.

use std::sync::Arc;
use std::time::Duration;

use super::figures::Figures;
use super::retry::Retry;

/// How far a transfer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransferState {
    /// The file is open and may still be written.
    Writing,
    /// The file is completely written; the last parts and the commit are under way.
    Committing,
}

/// One transfer at one moment.
#[derive(Clone, Debug)]
pub struct TransferView {
    /// Unique in this process; a younger transfer has a larger id.
    pub id: u64,
    /// Path of the file below the mountpoint.
    pub name: Arc<str>,
    pub state: TransferState,
    /// Bytes that programs have written.
    pub bytes_written: u64,
    /// Bytes in acknowledged parts.
    pub bytes_acked: u64,
    pub figures: Figures,
    /// Set while a request of the file is repeated.
    pub retry: Option<Retry>,
    pub parts_in_flight: u32,
    /// Time since the start of the transfer.
    pub age: Duration,
}

/// Totals since the mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ProgressTotals {
    /// Files committed by an upload.
    pub files_uploaded: u64,
    /// Files committed without an upload, because the service had the same bytes.
    pub files_instant: u64,
    /// Files committed with the bytes that they had before.
    pub files_unchanged: u64,
    pub files_failed: u64,
    /// Files deleted before their commit.
    pub files_abandoned: u64,
    pub bytes_committed: u64,
    /// Bytes that programs have written.
    pub bytes_written: u64,
    /// Bytes in acknowledged parts.
    pub bytes_acked: u64,
    /// Bytes that connections have accepted, without those of failed attempts.
    pub bytes_sent: u64,
    /// Current rate of sent bytes, over all files.
    pub rate_bytes_s: u64,
}

impl ProgressTotals {
    pub fn files_committed(&self) -> u64 {
        self.files_uploaded + self.files_instant + self.files_unchanged
    }
}
