//! Counters of requests and bytes, and the open uploads.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;

use super::catalog::records::{Upload, UploadTarget};
use super::clock::rfc3339;
use crate::ids::{DriveId, FileId, UploadId};

/// Counters since the start of the server, and the uploads that are open now.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Stats {
    /// Ended requests by endpoint: the path below `/v2/`, `put_part` or `get_object`.
    pub requests: BTreeMap<String, u64>,
    /// Ended requests by endpoint and HTTP status, such as `file/create 201`. Status 0: the connection was
    /// closed without a response.
    pub statuses: BTreeMap<String, u64>,
    /// Received bytes of part bodies, including truncated ones.
    pub received_bytes: u64,
    /// Bytes of content in the responses to downloads, counted when they are given to the connection.
    pub sent_bytes: u64,
    /// Open connections.
    pub connections: u64,
    /// Most connections that were open at a time.
    pub connections_peak: u64,
    /// Upload sessions that are not complete, oldest first.
    pub open_uploads: Vec<OpenUpload>,
}

impl Stats {
    /// Number of ended requests to `endpoint`.
    pub fn count(&self, endpoint: &str) -> u64 {
        self.requests.get(endpoint).copied().unwrap_or(0)
    }
}

/// An upload session that is not complete.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct OpenUpload {
    /// Id from the response to `file/create`.
    pub upload_id: UploadId,
    /// The new file, or the file that gets a new revision.
    pub file_id: FileId,
    /// The drive of the file.
    pub drive_id: DriveId,
    /// The folder of a new file. `None` for a new revision.
    pub parent_file_id: Option<FileId>,
    /// The name of a new file. `None` for a new revision.
    pub name: Option<String>,
    /// Whether parts are accepted in any order.
    pub parallel_upload: bool,
    /// Time of `file/create`, in RFC 3339.
    pub created_at: String,
    /// Complete parts, by number.
    pub parts: Vec<ReceivedPart>,
    /// Numbers of the parts that are being received.
    pub receiving: Vec<u32>,
}

/// A complete part of an upload session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct ReceivedPart {
    /// 1 to 10,000.
    pub part_number: u32,
    /// In bytes.
    pub part_size: u64,
}

impl From<&Upload> for OpenUpload {
    fn from(upload: &Upload) -> Self {
        let (parent_file_id, name) = match &upload.target {
            UploadTarget::New { parent, name, .. } => (Some(parent.clone()), Some(name.clone())),
            UploadTarget::Revision => (None, None),
        };
        let part = |(number, part): (&u32, &super::catalog::records::PartRecord)| ReceivedPart {
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

/// The counters of a running server.
#[derive(Debug)]
pub(super) struct Counters {
    /// A leaf lock.
    stats: Mutex<Stats>,
    changes: watch::Sender<u64>,
}

impl Default for Counters {
    fn default() -> Self {
        Self { stats: Mutex::default(), changes: watch::Sender::new(0) }
    }
}

impl Counters {
    /// Counts an ended request. Status 0: no response.
    pub(super) fn count(&self, endpoint: &str, status: u16) {
        self.edit(|stats| {
            increment(&mut stats.requests, endpoint);
            increment(&mut stats.statuses, &format!("{endpoint} {status}"));
        });
    }

    pub(super) fn received(&self, bytes: u64) {
        self.edit(|stats| stats.received_bytes += bytes);
    }

    pub(super) fn sent(&self, bytes: u64) {
        self.edit(|stats| stats.sent_bytes += bytes);
    }

    pub(super) fn connected(&self) {
        self.edit(|stats| {
            stats.connections += 1;
            stats.connections_peak = stats.connections_peak.max(stats.connections);
        });
    }

    pub(super) fn disconnected(&self) {
        self.edit(|stats| stats.connections -= 1);
    }

    pub(super) fn snapshot(&self) -> Stats {
        self.stats.lock().clone()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn edit(&self, edit: impl FnOnce(&mut Stats)) {
        edit(&mut self.stats.lock());
        self.changes.send_modify(|n| *n += 1);
    }
}

/// Bound on the counted endpoints: a client can request any path.
const ENDPOINTS_MAX: usize = 1000;

fn increment(counts: &mut BTreeMap<String, u64>, key: &str) {
    if let Some(count) = counts.get_mut(key) {
        *count += 1;
    } else if counts.len() < ENDPOINTS_MAX {
        counts.insert(key.to_owned(), 1);
    }
}
