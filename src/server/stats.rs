//! What the server has done, for tests and for people: counts of requests, and the uploads that
//! are not complete yet.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use tokio::sync::watch;

use super::catalog::records::{Target, Upload};
use super::clock::rfc3339;
use crate::ids::{DriveId, FileId, UploadId};

/// A look at the server.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Stats {
    /// Requests that were answered or ended, by endpoint: a path below `/v2/`, `put_part` or
    /// `get_object`.
    pub requests: BTreeMap<String, u64>,
    /// The same, by endpoint and HTTP status, such as `file/create 201`; 0 is no answer.
    pub statuses: BTreeMap<String, u64>,
    /// Bytes of parts that were received, also of those that were cut.
    pub received_bytes: u64,
    /// Bytes of content that were asked for.
    pub sent_bytes: u64,
    /// Uploads that are not complete, oldest first.
    pub open_uploads: Vec<OpenUpload>,
}

impl Stats {
    /// How often an endpoint was called.
    pub fn count(&self, endpoint: &str) -> u64 {
        self.requests.get(endpoint).copied().unwrap_or(0)
    }
}

/// An upload that is not complete.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct OpenUpload {
    /// The upload.
    pub upload_id: UploadId,
    /// The file that it becomes.
    pub file_id: FileId,
    /// The drive.
    pub drive_id: DriveId,
    /// The folder, of a new file.
    pub parent_file_id: Option<FileId>,
    /// The name, of a new file.
    pub name: Option<String>,
    /// Parts come in any order.
    pub parallel_upload: bool,
    /// When it was begun.
    pub created_at: String,
    /// Parts that the server has.
    pub parts: Vec<ReceivedPart>,
    /// Numbers of the parts that are on their way.
    pub receiving: Vec<u32>,
}

/// A part that the server has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct ReceivedPart {
    /// Its number.
    pub part_number: u32,
    /// Its size in bytes.
    pub part_size: u64,
}

impl From<&Upload> for OpenUpload {
    fn from(upload: &Upload) -> Self {
        let (parent_file_id, name) = match &upload.target {
            Target::New { parent, name, .. } => (Some(parent.clone()), Some(name.clone())),
            Target::Revision => (None, None),
        };
        let part = |(number, part): (&u32, &super::catalog::records::Part)| ReceivedPart {
            part_number: *number,
            part_size: part.len,
        };
        Self {
            upload_id: upload.upload_id.clone(),
            file_id: upload.file_id.clone(),
            drive_id: upload.drive_id.clone(),
            parent_file_id,
            name,
            parallel_upload: upload.parallel,
            created_at: rfc3339(upload.created_ms),
            parts: upload.parts.iter().map(part).collect(),
            receiving: upload.receiving.keys().copied().collect(),
        }
    }
}

/// Counts while the server runs.
#[derive(Debug)]
pub(super) struct Counters {
    counted: Mutex<Stats>,
    changes: watch::Sender<u64>,
}

impl Default for Counters {
    fn default() -> Self {
        Self { counted: Mutex::default(), changes: watch::Sender::new(0) }
    }
}

impl Counters {
    /// Counts a request that ended; status 0 is no answer.
    pub(super) fn count(&self, endpoint: &str, status: u16) {
        self.edit(|stats| {
            bump(&mut stats.requests, endpoint);
            bump(&mut stats.statuses, &format!("{endpoint} {status}"));
        });
    }

    pub(super) fn received(&self, bytes: u64) {
        self.edit(|stats| stats.received_bytes += bytes);
    }

    pub(super) fn sent(&self, bytes: u64) {
        self.edit(|stats| stats.sent_bytes += bytes);
    }

    pub(super) fn snapshot(&self) -> Stats {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn edit(&self, edit: impl FnOnce(&mut Stats)) {
        edit(&mut self.counted.lock().unwrap_or_else(PoisonError::into_inner));
        self.changes.send_modify(|n| *n += 1);
    }
}

/// Endpoints are few, but a client may ask for any path.
const KEYS_MAX: usize = 1000;

fn bump(counts: &mut BTreeMap<String, u64>, key: &str) {
    if let Some(count) = counts.get_mut(key) {
        *count += 1;
    } else if counts.len() < KEYS_MAX {
        counts.insert(key.to_owned(), 1);
    }
}
