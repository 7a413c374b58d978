//! What the catalog keeps, in the form in which it is stored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{DriveId, FileId, RevisionId, UploadId};
use crate::pds::types::{CheckNameMode, FileType};
use crate::server::digest::Midstate;

/// A drive.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(clippy::struct_field_names)] // Named as on the wire.
pub(in crate::server) struct Drive {
    pub(in crate::server) drive_id: DriveId,
    pub(in crate::server) name: String,
    pub(in crate::server) created_ms: i64,
    /// Follows from the revisions; counted anew at start.
    #[serde(skip)]
    pub(in crate::server) used_bytes: u64,
}

/// One committed content of a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(clippy::struct_field_names)] // Named as on the wire.
pub(in crate::server) struct Revision {
    pub(in crate::server) revision_id: RevisionId,
    /// The blob.
    pub(in crate::server) hash: String,
    pub(in crate::server) size: u64,
    pub(in crate::server) crc64: u64,
    pub(in crate::server) created_ms: i64,
    /// Counts from 1.
    pub(in crate::server) version: u64,
    pub(in crate::server) keep_forever: bool,
    pub(in crate::server) description: String,
}

/// What a node is. A file has at least one revision, the newest last.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::server) enum Kind {
    Folder,
    File { revisions: Vec<Revision> },
}

/// What a client says about an object and only it cares about.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(in crate::server) struct Traits {
    pub(in crate::server) content_type: Option<String>,
    pub(in crate::server) local_created_at: Option<String>,
    pub(in crate::server) local_modified_at: Option<String>,
    pub(in crate::server) hidden: bool,
    pub(in crate::server) starred: bool,
    pub(in crate::server) description: Option<String>,
    pub(in crate::server) labels: Vec<String>,
    pub(in crate::server) user_meta: Option<String>,
    pub(in crate::server) user_tags: BTreeMap<String, String>,
}

/// A file or folder that others can see.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::server) struct Node {
    pub(in crate::server) file_id: FileId,
    pub(in crate::server) drive_id: DriveId,
    pub(in crate::server) parent: FileId,
    pub(in crate::server) name: String,
    pub(in crate::server) kind: Kind,
    pub(in crate::server) created_ms: i64,
    pub(in crate::server) updated_ms: i64,
    /// When it was put into the recycle bin. What is below it has no mark of its own.
    pub(in crate::server) trashed_ms: Option<i64>,
    pub(in crate::server) traits: Traits,
}

impl Node {
    pub(in crate::server) fn file_type(&self) -> FileType {
        match self.kind {
            Kind::Folder => FileType::Folder,
            Kind::File { .. } => FileType::File,
        }
    }

    pub(in crate::server) fn is_folder(&self) -> bool {
        matches!(self.kind, Kind::Folder)
    }

    pub(in crate::server) fn revisions(&self) -> &[Revision] {
        match &self.kind {
            Kind::Folder => &[],
            Kind::File { revisions } => revisions,
        }
    }

    /// The newest revision of a file.
    pub(in crate::server) fn newest(&self) -> Option<&Revision> {
        self.revisions().last()
    }

    pub(in crate::server) fn size(&self) -> u64 {
        self.newest().map_or(0, |revision| revision.size)
    }

    /// Bytes that the node takes of the quota.
    pub(in crate::server) fn held_bytes(&self) -> u64 {
        self.revisions().iter().map(|revision| revision.size).sum()
    }
}

/// What an upload becomes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::server) enum Target {
    /// A new file.
    New { parent: FileId, name: String, mode: CheckNameMode },
    /// A new revision of a file.
    Revision,
}

/// Declared states by part number.
pub(in crate::server) type Midstates = BTreeMap<u32, Midstate>;

/// An upload that was begun. The file is invisible until it is completed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(clippy::struct_field_names)] // Named as on the wire.
pub(in crate::server) struct Upload {
    pub(in crate::server) upload_id: UploadId,
    pub(in crate::server) drive_id: DriveId,
    pub(in crate::server) file_id: FileId,
    pub(in crate::server) revision_id: RevisionId,
    pub(in crate::server) target: Target,
    pub(in crate::server) parallel: bool,
    pub(in crate::server) declared_size: Option<u64>,
    pub(in crate::server) declared_hash: Option<String>,
    pub(in crate::server) created_ms: i64,
    pub(in crate::server) traits: Traits,
    /// States that `create` declared. Those of `get_upload_url` travel in the URL and are
    /// remembered in memory only.
    pub(in crate::server) midstates: Midstates,
    /// Stored one by one.
    #[serde(skip)]
    pub(in crate::server) parts: BTreeMap<u32, Part>,
    /// Part numbers that are being received, with the number of requests.
    #[serde(skip)]
    pub(in crate::server) receiving: BTreeMap<u32, u32>,
    /// A `complete` is at work.
    #[serde(skip)]
    pub(in crate::server) completing: bool,
}

/// A part that was received whole.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::server) struct Part {
    /// Its file in the upload's folder; of no other part, and of no other reception of this part.
    pub(in crate::server) file: String,
    pub(in crate::server) len: u64,
    pub(in crate::server) crc64: u64,
    /// Without quotes.
    pub(in crate::server) etag: String,
    /// The declared state before the part, if any.
    pub(in crate::server) start: Option<Midstate>,
    /// The state after the part in hex, if it was hashed.
    pub(in crate::server) end: Option<String>,
    /// SHA-1 of the first KiB of the part; only of part 1.
    pub(in crate::server) head: Option<String>,
}

/// Content: files whose concatenation it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::server) struct BlobRecord {
    pub(in crate::server) hash: String,
    pub(in crate::server) size: u64,
    pub(in crate::server) crc64: u64,
    /// SHA-1 of the first KiB.
    pub(in crate::server) pre_hash: String,
    /// Folder, relative to the folder of all blobs.
    pub(in crate::server) dir: String,
    /// File names in it and their lengths.
    pub(in crate::server) parts: Vec<(String, u64)>,
}

/// One entry of the change feed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::server) struct Delta {
    pub(in crate::server) seq: u64,
    pub(in crate::server) drive_id: DriveId,
    pub(in crate::server) file_id: FileId,
    pub(in crate::server) op: Op,
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::server) enum Op {
    Create,
    Overwrite,
    Delete,
    Update,
    Move,
    Trash,
    Restore,
    Rename,
}

/// A token that was handed out, keyed by its keyed hash.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::server) enum Token {
    Access {
        expires_ms: i64,
    },
    Refresh,
    /// A code that the page of consent gave out, and what its exchange must show.
    Code {
        client_id: String,
        redirect_uri: String,
        challenge: Option<String>,
        expires_ms: i64,
    },
    /// An assertion that was used.
    Assertion {
        expires_ms: i64,
    },
    /// A refresh token or code that must not be taken again.
    Spent,
}
