//! The records of the catalog, in their stored form.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{DriveId, FileId, RevisionId, UploadId};
use crate::pds::types::{CheckNameMode, FileType};
use crate::server::digest::Midstate;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(clippy::struct_field_names)] // Named as on the wire.
pub(in crate::server) struct DriveRecord {
    pub(in crate::server) drive_id: DriveId,
    pub(in crate::server) name: String,
    pub(in crate::server) created_ms: i64,
    /// Computed from the revisions at start.
    #[serde(skip)]
    pub(in crate::server) used_bytes: u64,
}

/// The objects of an archive.
#[derive(Clone, Debug)]
pub(in crate::server) struct Archive {
    pub(in crate::server) drive: DriveId,
    pub(in crate::server) files: Vec<FileId>,
}

/// One committed content of a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(clippy::struct_field_names)] // Named as on the wire.
pub(in crate::server) struct Revision {
    pub(in crate::server) revision_id: RevisionId,
    /// Key of the blob.
    pub(in crate::server) hash: String,
    pub(in crate::server) size: u64,
    pub(in crate::server) crc64: u64,
    pub(in crate::server) created_ms: i64,
    /// Counts from 1.
    pub(in crate::server) version: u64,
    pub(in crate::server) keep_forever: bool,
    pub(in crate::server) description: String,
}

/// Invariant: a file has at least one revision. The newest is last.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::server) enum NodeKind {
    Folder,
    File { revisions: Vec<Revision> },
}

/// Attributes that clients set and the server only stores.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(in crate::server) struct ClientAttrs {
    pub(in crate::server) content_type: Option<String>,
    pub(in crate::server) local_created_at: Option<String>,
    pub(in crate::server) local_modified_at: Option<String>,
    pub(in crate::server) hidden: bool,
    pub(in crate::server) starred: bool,
    pub(in crate::server) description: Option<String>,
    pub(in crate::server) labels: Vec<String>,
    pub(in crate::server) user_meta: Option<String>,
    pub(in crate::server) user_tags: BTreeMap<String, String>,
    /// The key under which `file/list_by_custom_index_key` finds the object.
    pub(in crate::server) custom_index_key: Option<String>,
}

/// A committed file, or a folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::server) struct Node {
    pub(in crate::server) file_id: FileId,
    pub(in crate::server) drive_id: DriveId,
    pub(in crate::server) parent: FileId,
    pub(in crate::server) name: String,
    pub(in crate::server) kind: NodeKind,
    pub(in crate::server) created_ms: i64,
    pub(in crate::server) updated_ms: i64,
    /// Time of its move to the recycle bin. The objects below it have no mark of their own.
    pub(in crate::server) trashed_ms: Option<i64>,
    #[serde(rename = "traits")]
    pub(in crate::server) attrs: ClientAttrs,
}

impl Node {
    pub(in crate::server) fn file_type(&self) -> FileType {
        match self.kind {
            NodeKind::Folder => FileType::Folder,
            NodeKind::File { .. } => FileType::File,
        }
    }

    pub(in crate::server) fn is_folder(&self) -> bool {
        matches!(self.kind, NodeKind::Folder)
    }

    pub(in crate::server) fn revisions(&self) -> &[Revision] {
        match &self.kind {
            NodeKind::Folder => &[],
            NodeKind::File { revisions } => revisions,
        }
    }

    /// The newest revision of a file.
    pub(in crate::server) fn newest(&self) -> Option<&Revision> {
        self.revisions().last()
    }

    pub(in crate::server) fn size(&self) -> u64 {
        self.newest().map_or(0, |revision| revision.size)
    }

    /// Bytes counted against the quota: all revisions.
    pub(in crate::server) fn held_bytes(&self) -> u64 {
        self.revisions().iter().map(|revision| revision.size).sum()
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::server) enum UploadTarget {
    New {
        parent: FileId,
        name: String,
        mode: CheckNameMode,
    },
    /// A new revision of the existing file [`Upload::file_id`].
    Revision,
}

/// Declared midstates by part number.
pub(in crate::server) type Midstates = BTreeMap<u32, Midstate>;

/// An upload session. Its file is invisible until it is complete.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(clippy::struct_field_names)] // Named as on the wire.
pub(in crate::server) struct Upload {
    pub(in crate::server) upload_id: UploadId,
    pub(in crate::server) drive_id: DriveId,
    pub(in crate::server) file_id: FileId,
    pub(in crate::server) revision_id: RevisionId,
    pub(in crate::server) target: UploadTarget,
    pub(in crate::server) parallel: bool,
    pub(in crate::server) declared_size: Option<u64>,
    pub(in crate::server) declared_hash: Option<String>,
    pub(in crate::server) created_ms: i64,
    #[serde(rename = "traits")]
    pub(in crate::server) attrs: ClientAttrs,
    /// Only those of `create` are stored. Those of `get_upload_url` are in the URL, and here in memory.
    pub(in crate::server) midstates: Midstates,
    /// Stored in a table of their own.
    #[serde(skip)]
    pub(in crate::server) parts: BTreeMap<u32, PartRecord>,
    /// Numbers of the parts being received, with the number of requests.
    #[serde(skip)]
    pub(in crate::server) receiving: BTreeMap<u32, u32>,
    /// A `complete` is running.
    #[serde(skip)]
    pub(in crate::server) completing: bool,
}

/// A complete part.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::server) struct PartRecord {
    /// Its file in the folder of the upload. Every request that sends a part writes a file of its own.
    pub(in crate::server) file: String,
    pub(in crate::server) len: u64,
    pub(in crate::server) crc64: u64,
    /// Without quotes.
    pub(in crate::server) etag: String,
    /// The declared midstate before the part.
    pub(in crate::server) start: Option<Midstate>,
    /// The hash state after the part in hex; `None` if the part was not hashed.
    pub(in crate::server) end: Option<String>,
    /// SHA-1 of the first KiB of part 1.
    pub(in crate::server) head: Option<String>,
}

/// One entry of the change feed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::server) struct Delta {
    pub(in crate::server) seq: u64,
    pub(in crate::server) drive_id: DriveId,
    pub(in crate::server) file_id: FileId,
    pub(in crate::server) op: CatalogOp,
    /// The folder of the object; before it the former one, if it was moved. For `sync_root_id`.
    #[serde(default)]
    pub(in crate::server) parents: Vec<FileId>,
}

/// The kind of a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::server) enum CatalogOp {
    Create,
    Overwrite,
    Delete,
    Update,
    Move,
    Trash,
    Restore,
    Rename,
}

/// An issued token. Its key in the catalog is its fingerprint (an HMAC).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::server) enum Token {
    Access {
        expires_ms: i64,
    },
    Refresh,
    /// A refresh token of a service app that acts for the domain.
    ServiceRefresh,
    /// An authorization code of the consent page, with the values that its exchange must repeat.
    Code {
        client_id: String,
        redirect_uri: String,
        challenge: Option<String>,
        expires_ms: i64,
    },
    /// A used assertion.
    Assertion {
        expires_ms: i64,
    },
    /// A used refresh token or authorization code.
    Spent,
}
