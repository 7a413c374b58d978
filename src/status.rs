//! Progress of uploads: current transfers, rates, and how transfers end.
//!
//! `content` reports, and the front ends read. No I/O here.

mod event;
mod failed_files;
mod figures;
mod part_attempt;
mod pause;
mod progress;
mod rate;
mod retry;
mod sent_bytes;
pub mod systemd;
mod unsaved;
mod view;

pub use event::{CommitMethod, ProgressEvent};
pub use failed_files::{FailedFile, FailedObject};
pub use figures::Figures;
pub use part_attempt::{AttemptMeter, PartAttempt};
pub use pause::{Pause, PauseReason};
pub use progress::{PartCount, Progress, Transfer};
pub use retry::Retry;
pub use unsaved::UnsavedSummary;
pub use view::{ProgressTotals, TransferState, TransferView};
