//! The JSON of the control API, for both ends.
//!
//! Times are milliseconds since 1970, durations are milliseconds, sizes are bytes. A reader ignores unknown
//! fields, uses the default for missing ones, and reads an unknown word as `Unknown`. The types of the daemon
//! are closed: conversions from them are here, so a new state of the daemon does not change the API by
//! accident.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::messages::Cause;
use crate::status;
use crate::vfs;

/// The answer to `GET /v1/status`: one mount at one moment.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Name of the drive in the configuration.
    pub name: Option<String>,
    /// Id of the drive.
    pub drive_id: String,
    /// Absolute path of the mountpoint.
    pub mountpoint: String,
    /// Whether the mount refuses changes.
    pub read_only: bool,
    /// Time of the mount.
    pub mounted_at_ms: u64,
    /// Sequence number of the newest event, for `GET /v1/events?since=`.
    pub last_seq: u64,
    /// Set while uploads are paused.
    pub paused: Option<Paused>,
    /// Totals of unsaved files and attributes.
    pub pending: PendingTotals,
    /// Totals since the mount.
    pub totals: Totals,
    /// Unsaved files, oldest first; at most 1,000.
    pub transfers: Vec<TransferStatus>,
    /// Number of unsaved files beyond those.
    pub transfers_left_out: u64,
    /// Files that could not be saved, or whose attributes were refused, and that were not saved since: each once, the
    /// last failure last; the newest 50. Their sequence numbers are 0.
    pub failures: Vec<LogEntry>,
}

/// Why uploads are paused.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Paused {
    /// The condition that the uploads wait for.
    pub reason: PauseCause,
    /// Details in words.
    pub detail: String,
    /// The cause as a code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// Start of the pause.
    pub since_ms: u64,
}

/// The condition that paused uploads wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseCause {
    /// A login by the user.
    LoginNeeded,
    /// The network or the service.
    Offline,
    /// A word of another version.
    #[default]
    #[serde(other)]
    Unknown,
}

impl From<status::PauseReason> for PauseCause {
    fn from(reason: status::PauseReason) -> Self {
        match reason {
            status::PauseReason::LoginNeeded => Self::LoginNeeded,
            status::PauseReason::Offline => Self::Offline,
        }
    }
}

/// Totals of unsaved files and attributes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PendingTotals {
    /// Files with unsaved content.
    pub files: u64,
    /// Those of them that are open for writing.
    pub files_open: u64,
    /// Files that could not be saved, and were not saved, removed or dismissed since; at most 1,000.
    pub files_failed: u64,
    /// Open files that could not be saved.
    pub files_failed_open: u64,
    /// Written bytes that the drive has not acknowledged.
    pub bytes: u64,
    /// Bytes of unsaved files that were sent.
    pub bytes_sent: u64,
    /// Bytes of unsaved files that were not sent yet.
    pub bytes_waiting: u64,
    /// Whether the final size of every unsaved file is known.
    pub size_known: bool,
    /// Time for the waiting bytes at the current rate; absent without a rate, or if a size is not known.
    pub eta_ms: Option<u64>,
    /// Objects with unsaved attributes.
    pub attributes: u64,
    /// Objects whose attributes the drive refused, until their attributes change again; the newest 1,024.
    pub attributes_refused: u64,
    /// Age of the oldest unsaved file.
    pub oldest_ms: u64,
}

/// Totals since the mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Files committed by an upload.
    pub files_uploaded: u64,
    /// Files committed without an upload: the service had the same bytes.
    pub files_instant: u64,
    /// Files saved with the bytes that they had before; nothing was sent.
    pub files_unchanged: u64,
    /// Files that could not be committed.
    pub files_failed: u64,
    /// Files deleted before their commit.
    pub files_abandoned: u64,
    /// Bytes of all committed files.
    pub bytes_committed: u64,
    /// Bytes written by programs.
    pub bytes_written: u64,
    /// Bytes of acknowledged parts.
    pub bytes_acked: u64,
    /// Bytes that were sent, without those of failed attempts.
    pub bytes_sent: u64,
    /// Current upload rate of all files together.
    pub rate_bytes_s: u64,
}

impl PendingTotals {
    /// The figures of all unsaved files, at the rate of the mount.
    pub(crate) fn figures(&self, rate_bytes_s: u64) -> status::Figures {
        let (sent, waiting, is_size_known) = (self.bytes_sent, self.bytes_waiting, self.size_known);
        status::Figures { sent, waiting, is_size_known, rate_bytes_s }
    }
}

impl TransferStatus {
    /// The repeated request, if there is one.
    pub(crate) fn retry(&self) -> Option<status::Retry> {
        let reason = self.retry_reason.as_deref().unwrap_or_default().into();
        (self.retries > 0).then_some(status::Retry { times: self.retries, reason })
    }

    /// The figures of the file.
    pub(crate) fn figures(&self) -> status::Figures {
        let (sent, waiting, is_size_known) = (self.bytes_sent, self.bytes_waiting, self.size_known);
        status::Figures { sent, waiting, is_size_known, rate_bytes_s: self.rate_bytes_s }
    }
}

impl From<status::ProgressTotals> for Totals {
    fn from(totals: status::ProgressTotals) -> Self {
        Self {
            files_uploaded: totals.files_uploaded,
            files_instant: totals.files_instant,
            files_unchanged: totals.files_unchanged,
            files_failed: totals.files_failed,
            files_abandoned: totals.files_abandoned,
            bytes_committed: totals.bytes_committed,
            bytes_written: totals.bytes_written,
            bytes_acked: totals.bytes_acked,
            bytes_sent: totals.bytes_sent,
            rate_bytes_s: totals.rate_bytes_s,
        }
    }
}

/// One unsaved file.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TransferStatus {
    /// Path below the mountpoint, with a leading `/`.
    pub path: String,
    /// How far the file is.
    pub state: TransferStage,
    /// Size as far as it is known.
    pub bytes: u64,
    /// Bytes that the drive has acknowledged.
    pub bytes_acked: u64,
    /// Bytes that were sent, without those of failed attempts.
    pub bytes_sent: u64,
    /// Known bytes that were not sent yet.
    pub bytes_waiting: u64,
    /// Whether the final size is known: the sum of sent and waiting bytes.
    pub size_known: bool,
    /// Parts being sent.
    pub parts_in_flight: u32,
    /// Current upload rate.
    pub rate_bytes_s: u64,
    /// Time for the waiting bytes at that rate; absent without a rate, or if the size is not known.
    pub eta_ms: Option<u64>,
    /// Time since the first write, if it is known.
    pub age_ms: u64,
    /// Why the file failed.
    pub error: Option<String>,
    /// The cause of `error` as a code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// How often a request of the file is being repeated; 0 if none is.
    pub retries: u32,
    /// Why it is repeated.
    pub retry_reason: Option<String>,
}

/// How far a file is on its way to the drive.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransferStage {
    /// Open for writing; written data is being uploaded.
    Writing,
    /// Open for writing; written data is in a staged file and is uploaded at close.
    Staged,
    /// Completely written; the remaining parts and the commit are under way.
    Committing,
    /// The commit failed.
    Failed,
    /// The drive has the content, or the file was deleted.
    Saved,
    /// The file stays on this machine, because of its name.
    Local,
    /// A word of another version.
    #[default]
    #[serde(other)]
    Unknown,
}

impl TransferStage {
    /// The word of the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Writing => "writing",
            Self::Staged => "staged",
            Self::Committing => "committing",
            Self::Failed => "failed",
            Self::Saved => "saved",
            Self::Local => "local",
            Self::Unknown => "unknown",
        }
    }
}

impl From<vfs::Stage> for TransferStage {
    fn from(stage: vfs::Stage) -> Self {
        match stage {
            vfs::Stage::Writing => Self::Writing,
            vfs::Stage::Staged => Self::Staged,
            vfs::Stage::Committing => Self::Committing,
            vfs::Stage::Failed => Self::Failed,
            vfs::Stage::Saved => Self::Saved,
            vfs::Stage::Local => Self::Local,
        }
    }
}

/// The kind of an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A file was committed and verified.
    Committed,
    /// A file could not be saved; the program that wrote it got the error.
    Failed,
    /// The drive refused the attributes of an object; no program got an error.
    AttributesRefused,
    /// A warning of the daemon.
    Warning,
    /// Events were lost: they came faster than they were read.
    Missed,
    /// A word of another version.
    #[default]
    #[serde(other)]
    Unknown,
}

/// One event.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LogEntry {
    /// Sequence number; grows by one with each event.
    pub seq: u64,
    /// Time of the event.
    pub at_ms: u64,
    /// The kind of the event.
    pub what: EventKind,
    /// Path below the mountpoint, for an event of a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Size of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Time from the first write to the commit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elapsed_ms: Option<u64>,
    /// How the file was committed (`uploaded`, `instant`, `unchanged`), the error, or the warning.
    pub text: String,
    /// The cause of the error as a code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// The answer of the service: its call, code and request id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// The answer to `POST /v1/drain` and `GET /v1/end`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Drained {
    /// Files and attributes that are not on the drive.
    pub unsaved: Vec<UnsavedEntry>,
    /// Whether the time limit ended the drain; `unsaved` may then be incomplete.
    pub timed_out: bool,
}

/// A file, or the attributes, that could not be saved.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct UnsavedEntry {
    /// Path below the mountpoint.
    pub path: String,
    /// Why it could not be saved.
    pub error: String,
    /// The cause as a code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
}

impl UnsavedEntry {
    pub(crate) fn new(path: String, error: &Error) -> Self {
        Self { path, error: error.to_string(), cause: error.cause().cloned() }
    }
}

/// The answer to `GET /v1/versions`: the versions of one file, the newest first.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Versions {
    /// At least the latest one, unless the domain keeps none.
    pub versions: Vec<Version>,
}

/// One version of a file.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Version {
    /// Id of the revision.
    pub id: String,
    /// Its number, counted from 1, if the service numbers versions.
    pub number: Option<u64>,
    /// Time of the upload.
    pub at_ms: Option<u64>,
    /// Size of the content.
    pub bytes: Option<u64>,
    /// The user who uploaded it, if the service names it.
    pub author: Option<String>,
    /// SHA-1 of the content in upper-case hex, if the service reports it.
    pub sha1: Option<String>,
    /// A note that another client has made.
    pub description: Option<String>,
    /// Whether it is the content of the file now.
    pub latest: bool,
    /// Whether the service never deletes it by itself.
    pub keep_forever: bool,
}

/// The answer to `GET /v1/trash`: what the recycle bin has of this mount.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Trash {
    /// The last one that was deleted comes first.
    pub items: Vec<TrashedItem>,
}

/// A deleted file or directory.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TrashedItem {
    /// Id of the object.
    pub id: String,
    /// Where it was: the path below the mountpoint, with a leading `/`.
    pub path: String,
    /// Whether it is a directory, with everything in it.
    pub directory: bool,
    /// Size of a file; 0 for directories.
    pub bytes: u64,
    /// Time of the deletion.
    pub at_ms: Option<u64>,
}

/// The answer to `POST /v1/trash/restore`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Restored {
    /// The path below the mountpoint, with a leading `/`.
    pub path: String,
}

/// The body of an answer with a status of 400 or more.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ApiError {
    /// The error in words.
    pub error: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_of_newer_daemon_is_read() {
        let newer = r#"{"version": "9.0.0", "drive_id": "1", "mood": {"x": [1]}, "pending": {"files": 2, "ghosts": 1},
            "paused": {"reason": "moon_phase", "since_ms": 5},
            "transfers": [{"path": "/f", "state": "teleporting", "bytes": 7}, {"state": "committing"}],
            "failures": [{"seq": 3, "what": "evaporated", "path": "/g", "color": "red"}]}"#;
        let status: Status = serde_json::from_str(newer).unwrap();
        assert_eq!((status.drive_id.as_str(), status.pending.files), ("1", 2));
        let paused = status.paused.unwrap();
        assert_eq!((paused.reason, paused.since_ms), (PauseCause::Unknown, 5));
        let states: Vec<_> = status.transfers.iter().map(|file| (file.state, file.bytes)).collect();
        assert_eq!(states, [(TransferStage::Unknown, 7), (TransferStage::Committing, 0)]);
        assert_eq!((status.failures[0].what, status.failures[0].seq), (EventKind::Unknown, 3));
        let drained: Drained = serde_json::from_str(r#"{"unsaved": [{"path": "/f"}]}"#).unwrap();
        assert_eq!(drained.unsaved[0].path, "/f");
        assert_eq!(serde_json::from_str::<ApiError>("{}").unwrap().error, "");
    }

    #[test]
    fn words_read_back() {
        for (what, word) in
            [(EventKind::AttributesRefused, "attributes_refused"), (EventKind::Failed, "failed")]
        {
            assert_eq!(serde_json::to_value(what).unwrap(), word);
            assert_eq!(serde_json::from_value::<EventKind>(word.into()).unwrap(), what);
        }
        assert_eq!(serde_json::to_value(PauseCause::LoginNeeded).unwrap(), "login_needed");
    }

    #[test]
    fn stages_have_the_words_of_the_xattr() {
        for stage in [
            vfs::Stage::Writing,
            vfs::Stage::Staged,
            vfs::Stage::Committing,
            vfs::Stage::Failed,
            vfs::Stage::Saved,
            vfs::Stage::Local,
        ] {
            let wire = TransferStage::from(stage);
            assert_eq!(wire.name(), stage.name());
            assert_eq!(serde_json::to_value(wire).unwrap(), stage.name());
        }
    }
}
