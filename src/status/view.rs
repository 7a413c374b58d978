//! Copies of the progress at one moment.

use std::sync::Arc;
use std::time::Duration;

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
    /// Known bytes (written or expected) that are not acknowledged.
    pub bytes_left: u64,
    pub parts_in_flight: u32,
    /// Current rate of acknowledged parts.
    pub rate_bytes_s: u64,
    /// Time for [`Self::bytes_left`] at that rate; `None` without a rate.
    pub eta: Option<Duration>,
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
    /// Current rate of acknowledged parts, over all files.
    pub rate_bytes_s: u64,
}

impl ProgressTotals {
    pub fn files_committed(&self) -> u64 {
        self.files_uploaded + self.files_instant + self.files_unchanged
    }
}

/// The time for `bytes_left` at this rate; `None` without a rate.
pub(super) fn eta(bytes_left: u64, rate_bytes_s: u64) -> Option<Duration> {
    let left_ms = u128::from(bytes_left) * 1000;
    let ms = left_ms.checked_div(u128::from(rate_bytes_s))?;
    Some(Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX)))
}
