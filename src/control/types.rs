//! The shapes of the control API, in one place for both ends.
//!
//! Times are milliseconds since 1970, durations milliseconds, sizes bytes. A reader takes what it knows and
//! passes over the rest: a word that it does not know is `Unknown`, a field that is missing has its default.

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
    /// The last files that could not be saved, or whose attributes were refused, oldest first; at most 50.
    pub failures: Vec<LogEntry>,
}

/// Why nothing is sent.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
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
    /// Objects whose attributes the drive has refused, until they are given others; the newest 1,024.
    pub attributes_refused: u64,
    /// How long the oldest of the files has been pending.
    pub oldest_ms: u64,
}

/// One file that is not on the drive yet.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Happening {
    /// A file is on the drive, verified.
    Committed,
    /// A file is not on the drive; the program that wrote it was told.
    Failed,
    /// The drive does not keep the attributes that a file was given; no program was told.
    AttributesRefused,
    /// Something that somebody should know.
    Warning,
    /// Events that nobody can be told any more: they came faster than they were asked for.
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
    /// Grows by one with each event.
    pub seq: u64,
    /// When.
    pub at_ms: u64,
    /// What.
    pub what: Happening,
    /// Path below the mount, for what happened to a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Its size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// How long it took, from the first byte to the commit.
    #[serde(skip_serializing_if = "Option::is_none")]
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
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Unsaved {
    /// Path below the mount.
    pub path: String,
    /// Why.
    pub error: String,
}

/// An error of the API.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Refusal {
    /// What was wrong, for people.
    pub error: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_a_newer_daemon_is_understood_as_far_as_possible() {
        let newer = r#"{"version": "9.0.0", "drive_id": "1", "mood": {"x": [1]}, "pending": {"files": 2, "ghosts": 1},
            "paused": {"reason": "moon_phase", "since_ms": 5},
            "transfers": [{"path": "/f", "state": "teleporting", "bytes": 7}, {"state": "committing"}],
            "failures": [{"seq": 3, "what": "evaporated", "path": "/g", "color": "red"}]}"#;
        let status: Status = serde_json::from_str(newer).unwrap();
        assert_eq!((status.drive_id.as_str(), status.pending.files), ("1", 2));
        let paused = status.paused.unwrap();
        assert_eq!((paused.reason, paused.since_ms), (PauseReason::Unknown, 5));
        let states: Vec<_> = status.transfers.iter().map(|file| (file.state, file.bytes)).collect();
        assert_eq!(states, [(Stage::Unknown, 7), (Stage::Committing, 0)]);
        assert_eq!((status.failures[0].what, status.failures[0].seq), (Happening::Unknown, 3));
        let drained: Drained = serde_json::from_str(r#"{"unsaved": [{"path": "/f"}]}"#).unwrap();
        assert_eq!(drained.unsaved[0].path, "/f");
        assert_eq!(serde_json::from_str::<Refusal>("{}").unwrap().error, "");
    }

    #[test]
    fn words_are_written_as_they_are_read() {
        for (what, word) in
            [(Happening::AttributesRefused, "attributes_refused"), (Happening::Failed, "failed")]
        {
            assert_eq!(serde_json::to_value(what).unwrap(), word);
            assert_eq!(serde_json::from_value::<Happening>(word.into()).unwrap(), what);
        }
        assert_eq!(serde_json::to_value(Stage::Staged).unwrap(), Stage::Staged.name());
    }
}
