//! The shapes of the control API, in one place for both ends.
//!
//! Times are milliseconds since 1970, durations milliseconds, sizes bytes. A reader takes what it knows and
//! passes over the rest.

use serde::{Deserialize, Serialize};

pub use crate::status::{PauseReason, Totals};
pub use crate::vfs::Stage;

/// What `GET /v1/status` answers: one mount at one moment.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Version of the program that serves the mount.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// What the mount is called in the configuration.
    pub name: Option<String>,
    /// The drive.
    pub drive_id: String,
    /// Where it is mounted.
    pub mountpoint: String,
    /// Whether every change is refused.
    pub read_only: bool,
    /// When it was mounted.
    pub mounted_at_ms: u64,
    /// The number of the newest event, for `GET /v1/events?since=`.
    pub last_seq: u64,
    /// Why nothing is sent, where that is so.
    pub paused: Option<Paused>,
    /// What is not on the drive yet.
    pub pending: Pending,
    /// Sums since it was mounted.
    pub totals: Totals,
    /// Files that are not on the drive yet, oldest first; at most 1,000.
    pub transfers: Vec<Transfer>,
    /// Files beyond those.
    pub transfers_left_out: u64,
    /// The last files that could not be saved, oldest first; at most 50.
    pub failures: Vec<LogEntry>,
}

/// Why nothing is sent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Paused {
    /// What is missing.
    pub reason: PauseReason,
    /// More about it, for people.
    pub detail: String,
    /// Since when.
    pub since_ms: u64,
}

/// What is not on the drive yet.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Pending {
    /// Files with content that the drive does not have.
    pub files: u64,
    /// Those of them that a program has open and may write on.
    pub files_open: u64,
    /// Files that could not be saved, while a program still has them open.
    pub files_failed_open: u64,
    /// Bytes that were written and not acknowledged.
    pub bytes: u64,
    /// Objects whose attributes are still to be told.
    pub attributes: u64,
    /// How long the oldest of the files has been pending.
    pub oldest_ms: u64,
}

/// One file that is not on the drive yet.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Transfer {
    /// Path below the mount, beginning with `/`.
    pub path: String,
    /// Where it is.
    pub state: Stage,
    /// Its size as far as it is known.
    pub bytes: u64,
    /// How much of it the drive has acknowledged.
    pub bytes_acked: u64,
    /// Parts being sent.
    pub parts_in_flight: u32,
    /// How fast it goes lately.
    pub rate_bytes_s: u64,
    /// How long the rest takes at that rate; absent while there is no rate.
    pub eta_ms: Option<u64>,
    /// Time since it was first written to, where that is known.
    pub age_ms: u64,
    /// Why it failed.
    pub error: Option<String>,
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Happening {
    /// A file is on the drive, verified.
    Committed,
    /// A file is not on the drive; the program that wrote it was told.
    Failed,
    /// Something that somebody should know.
    Warning,
    /// Events that nobody can be told any more: they came faster than they were asked for.
    Missed,
}

/// One event.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LogEntry {
    /// Grows by one with each event.
    pub seq: u64,
    /// When.
    pub at_ms: u64,
    /// What.
    pub what: Happening,
    /// Path below the mount, for what happened to a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Its size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// How long it took, from the first byte to the commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elapsed_ms: Option<u64>,
    /// How the drive came to have it (`uploaded`, `instant`, `unchanged`), or why it does not, or the
    /// warning.
    pub text: String,
}

/// What `POST /v1/drain` and `GET /v1/end` answer.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Drained {
    /// What is not on the drive.
    pub unsaved: Vec<Unsaved>,
    /// Whether the time was up before everything was tried; then files may be missing in `unsaved`.
    pub timed_out: bool,
}

/// Something that is not on the drive.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Unsaved {
    /// Path below the mount.
    pub path: String,
    /// Why.
    pub error: String,
}

/// An error of the API.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// What was wrong, for people.
    pub error: String,
}
