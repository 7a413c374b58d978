//! The JSON bodies of the PDS HTTP API (version 2022-03-01), shared with the embedded server.
//!
//! Field names are those of the wire. Unknown fields are ignored in both directions, and absent optional
//! fields are not sent. Sizes are bytes, times RFC 3339 UTC. Only [`FileType`], [`CheckNameMode`] and
//! [`PartUrl`] are used outside of `pds/` and the server.

mod batch;
mod items;
mod recycle_bin;
mod revisions;
mod upload;

use serde::{Deserialize, Serialize};

use crate::ids::{DriveId, FileId, RevisionId, UploadId};

pub use batch::{
    BatchBody, BatchHeaders, BatchItem, BatchRequest, BatchResponse, DeleteTagsRequest, PutTagsRequest,
};
pub use items::Items;
pub use recycle_bin::RecycleBinRequest;
pub use revisions::{RevisionItem, RevisionListRequest, RevisionListResponse, RevisionRequest};
pub use upload::{
    CompleteRequest, PartRequest, PartUrl, SignatureInfo, UploadUrlRequest, UploadUrlResponse, WireSha1Ctx,
};

/// `file` or `folder`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileType {
    File,
    Folder,
}

/// The behaviour of `create`, `update` and `move` if a sibling has the name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckNameMode {
    /// The result is two siblings of one name.
    #[default]
    Ignore,
    /// The service appends a timestamp to the new name.
    AutoRename,
    /// Nothing is created, and the answer describes the sibling (`exist: true`).
    Refuse,
}

/// One `{key, value}` of `user_tags` on input.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UserTag {
    /// Not empty, without `#`.
    pub key: String,
    /// Without `#`. Key and value together have at most 2,000 bytes.
    #[serde(default)]
    pub value: String,
}

/// `POST /v2/file/create`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct CreateRequest<'a> {
    pub drive_id: &'a DriveId,
    /// `root` or a folder.
    pub parent_file_id: &'a FileId,
    /// At most 1,024 bytes, without `/` and `\`.
    pub name: &'a str,
    #[serde(rename = "type")]
    pub file_type: FileType,
    pub check_name_mode: CheckNameMode,
    /// The file to overwrite with a new revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_id: Option<&'a FileId>,
    /// Sent if it is known already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// `true` to upload parts in any order with SHA-1 midstates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallel_upload: Option<bool>,
    /// The parts to presign URLs for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub part_info_list: Vec<PartRequest>,
    /// Upper-case SHA-1 of the whole content, for instant upload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_hash: Option<String>,
    /// `sha1`, with `content_hash`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_hash_name: Option<&'static str>,
    /// `yyyy-MM-ddTHH:mm:ss.SSSZ`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_modified_at: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub user_tags: Vec<UserTag>,
}

/// The answer to `create` (HTTP 201).
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct CreateResponse {
    /// The new, overwritten or (with `exist`) existing object.
    pub file_id: FileId,
    /// The final name, which may have a timestamp appended.
    #[serde(default)]
    pub file_name: Option<String>,
    #[serde(default, deserialize_with = "empty_is_none")]
    pub parent_file_id: Option<FileId>,
    #[serde(rename = "type", default)]
    pub file_type: Option<FileType>,
    /// Set if an upload was begun.
    #[serde(default, deserialize_with = "empty_is_none")]
    pub upload_id: Option<UploadId>,
    /// The name was taken, and nothing was created.
    #[serde(default)]
    pub exist: bool,
    /// The service already had the content, so the file is complete.
    #[serde(default)]
    pub rapid_upload: bool,
    /// `available` if the file is complete.
    #[serde(default)]
    pub status: Option<String>,
    /// The revision of an instant upload.
    #[serde(default, deserialize_with = "empty_is_none")]
    pub revision_id: Option<RevisionId>,
    /// One URL per requested part, in that order; a single URL if none was requested.
    #[serde(default)]
    pub part_info_list: Vec<PartUrl>,
}

/// A file or folder in the answers of `get`, `list`, `complete`, `update` and the change feed.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[allow(clippy::struct_field_names, reason = "the wire names the fields")]
pub struct File {
    pub file_id: FileId,
    #[serde(default, deserialize_with = "empty_is_none")]
    pub parent_file_id: Option<FileId>,
    #[serde(default)]
    pub name: String,
    #[serde(rename = "type")]
    pub file_type: FileType,
    /// Absent for folders.
    #[serde(default)]
    pub size: Option<u64>,
    /// `available` or `uploading`.
    #[serde(default)]
    pub status: Option<String>,
    /// Hash of the content in hex.
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
    /// When the service last changed it.
    #[serde(default, deserialize_with = "empty_is_none")]
    pub updated_at: Option<String>,
    /// The modification time that the client set.
    #[serde(default, deserialize_with = "empty_is_none")]
    pub local_modified_at: Option<String>,
    /// Only in the recycle bin.
    #[serde(default, deserialize_with = "empty_is_none")]
    pub trashed_at: Option<String>,
    #[serde(default)]
    pub trashed: Option<bool>,
    #[serde(default, deserialize_with = "empty_is_none")]
    pub revision_id: Option<RevisionId>,
    #[serde(default)]
    pub user_tags: Option<std::collections::BTreeMap<String, String>>,
    /// Presigned, of the latest revision. Only in listings.
    #[serde(default)]
    pub download_url: Option<ListedUrl>,
}

/// A presigned URL, which is never printed.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct ListedUrl(pub String);

impl std::fmt::Debug for ListedUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// `POST /v2/file/list`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ListRequest<'a> {
    pub drive_id: &'a DriveId,
    pub parent_file_id: &'a FileId,
    /// 1 to 100.
    pub limit: u32,
    /// The `next_marker` of the previous page; empty for the first page.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub marker: &'a str,
    /// `name`: the only order that is stable while files change.
    pub order_by: &'static str,
    /// `ASC`.
    pub order_direction: &'static str,
    /// Comma-separated. `*` does not include the tags (API page `ListFile`).
    pub fields: &'static str,
}

/// A page of a listing. An empty page with a marker is not the last one.
#[derive(Clone, Debug, Deserialize)]
pub struct ListResponse {
    #[serde(default)]
    pub items: Items<File>,
    /// Empty or absent at the end.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub next_marker: String,
}

/// The request of `get`, `trash`, `delete` and other calls about one object.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct FileRequest<'a> {
    pub drive_id: &'a DriveId,
    pub file_id: &'a FileId,
}

/// `POST /v2/file/update`: changes the name or the modification time.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct UpdateRequest<'a> {
    pub drive_id: &'a DriveId,
    pub file_id: &'a FileId,
    /// The new name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check_name_mode: Option<CheckNameMode>,
    /// `yyyy-MM-ddTHH:mm:ss.SSSZ`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_modified_at: Option<String>,
}

/// `POST /v2/file/move`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct MoveRequest<'a> {
    pub drive_id: &'a DriveId,
    pub file_id: &'a FileId,
    pub to_parent_file_id: &'a FileId,
    pub check_name_mode: CheckNameMode,
}

/// The answer to `move`, `trash`, `delete` and `copy`, which may be empty.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct AsyncResponse {
    /// The name was taken, and nothing was moved.
    pub exist: bool,
    /// The revision of a file that was moved at once.
    #[serde(deserialize_with = "empty_is_none")]
    pub revision_id: Option<RevisionId>,
    /// Empty if the call is finished, otherwise the task to poll with `async_task/get`.
    #[serde(deserialize_with = "null_is_empty")]
    pub async_task_id: String,
}

/// `POST /v2/async_task/get`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct AsyncTaskRequest<'a> {
    /// From [`AsyncResponse`].
    pub async_task_id: &'a str,
}

/// The answer to `async_task/get`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct AsyncTask {
    /// `Running`, `Succeed`, `PartialSucceed` or `Failed`.
    #[serde(deserialize_with = "null_is_empty")]
    pub state: String,
    /// The older name of `state`. The service sends both (API page `GetAsyncTask`), other deployments one of
    /// them.
    #[serde(deserialize_with = "null_is_empty")]
    pub status: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub error_code: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub error_message: String,
}

/// `POST /v2/file/get_download_url`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct DownloadUrlRequest<'a> {
    pub drive_id: &'a DriveId,
    pub file_id: &'a FileId,
    /// Absent for the latest revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision_id: Option<&'a RevisionId>,
    /// Seconds, 1 to 115,200.
    pub expire_sec: u32,
}

/// The answer to `get_download_url`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct DownloadUrlResponse {
    /// Absolute. Presigned, so it is never printed.
    pub url: String,
    #[serde(default, deserialize_with = "empty_is_none")]
    pub expiration: Option<String>,
    #[serde(default)]
    pub size: Option<u64>,
    #[serde(default, deserialize_with = "empty_is_none")]
    pub content_hash: Option<String>,
    #[serde(default, deserialize_with = "empty_is_none")]
    pub revision_id: Option<RevisionId>,
}

impl std::fmt::Debug for DownloadUrlResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DownloadUrlResponse").field("size", &self.size).finish_non_exhaustive()
    }
}

/// `POST /v2/drive/get`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct DriveRequest<'a> {
    pub drive_id: &'a DriveId,
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct DriveInfo {
    pub drive_id: DriveId,
    #[serde(default)]
    pub drive_name: String,
    /// -1 is unlimited. 0, or no value, says nothing about a limit.
    #[serde(default)]
    pub total_size: i64,
    #[serde(default)]
    pub used_size: i64,
    /// `normal`, `large` and others.
    #[serde(default)]
    pub drive_type: String,
    /// `user` or `group`.
    #[serde(default)]
    pub owner_type: String,
    /// `enabled` or `disabled`.
    #[serde(default)]
    pub status: String,
}

impl DriveInfo {
    /// Bytes of the texts.
    pub fn bytes(&self) -> u64 {
        let texts = [&self.drive_name, &self.drive_type, &self.owner_type, &self.status];
        texts.iter().map(|text| text.len() as u64).sum()
    }
}

#[derive(Clone, Debug, Deserialize)]
pub struct DriveList {
    #[serde(default)]
    pub items: Items<DriveInfo>,
    /// The drive of the domain itself; only in the list of group drives.
    #[serde(default)]
    pub root_group_drive: Option<DriveInfo>,
    /// Empty or absent at the end.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub next_marker: String,
}

/// The body of an error answer. The documents capitalise the field names, services send them in lower case.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServiceError {
    /// `Class.Resource`. Callers match the class.
    #[serde(alias = "Code")]
    pub code: String,
    #[serde(alias = "Message")]
    pub message: String,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(d)?.unwrap_or_default())
}

/// Services send absent values as `""`, as `null` or not at all, and numbers as strings or numbers.
fn empty_is_none<'de, D, T>(d: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    use serde::de::Error;
    let text = Option::<LenientText>::deserialize(d)?.filter(|text| !text.0.is_empty());
    text.map(|text| text.0.parse().map_err(D::Error::custom)).transpose()
}

/// A JSON string, or an integer as its digits.
struct LenientText(String);

impl<'de> Deserialize<'de> for LenientText {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        crate::ids::lenient_string(d).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_null_and_empty_are_equal() {
        for extra in ["", r#","revision_id":null"#, r#","revision_id":"""#] {
            let text = format!(r#"{{"file_id":"a","type":"file"{extra}}}"#);
            assert_eq!(serde_json::from_str::<File>(&text).unwrap().revision_id, None);
        }
    }
}
