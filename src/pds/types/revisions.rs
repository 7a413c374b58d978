//! The bodies of the calls about the revisions of a file.

use serde::{Deserialize, Serialize};

use super::{Items, empty_is_none, null_is_empty};
use crate::ids::{DriveId, FileId, RevisionId};

/// `POST /v2/file/revision/list`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RevisionListRequest<'a> {
    pub drive_id: &'a DriveId,
    pub file_id: &'a FileId,
    /// 1 to 100.
    pub limit: u32,
    /// The `next_marker` of the previous page; empty for the first page.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub marker: &'a str,
    /// `*`: without it, the answer does not name the creators.
    pub fields: &'static str,
}

/// A page of revisions.
#[derive(Clone, Debug, Deserialize)]
pub struct RevisionListResponse {
    #[serde(default)]
    pub items: Items<RevisionItem>,
    /// Empty or absent at the end.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub next_marker: String,
}

/// One revision of a file.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct RevisionItem {
    pub revision_id: RevisionId,
    /// Counts from 1.
    #[serde(default, deserialize_with = "empty_is_none")]
    pub revision_version: Option<u64>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub revision_description: String,
    #[serde(default)]
    pub size: Option<u64>,
    #[serde(default, deserialize_with = "empty_is_none")]
    pub content_hash: Option<String>,
    /// `sha1`, or `sha256` on some domains.
    #[serde(default, deserialize_with = "empty_is_none")]
    pub content_hash_name: Option<String>,
    /// Decimal CRC-64/XZ of the content.
    #[serde(default, deserialize_with = "empty_is_none")]
    pub crc64_hash: Option<String>,
    #[serde(default, deserialize_with = "empty_is_none")]
    pub created_at: Option<String>,
    #[serde(default)]
    pub is_latest_version: bool,
    #[serde(default)]
    pub keep_forever: bool,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub creator_name: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub creator_id: String,
}

/// `POST /v2/file/revision/restore`. The answer is not used.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[allow(clippy::struct_field_names, reason = "the wire names the fields")]
pub struct RevisionRequest<'a> {
    pub drive_id: &'a DriveId,
    pub file_id: &'a FileId,
    pub revision_id: &'a RevisionId,
}
