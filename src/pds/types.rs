//! The shapes of the PDS HTTP API (version 2022-03-01), and nothing else.
//!
//! Field names are the wire's. Unknown fields are ignored in both directions, optional fields that
//! are absent are not sent. Sizes are bytes, times RFC 3339 UTC. These structs never travel past
//! `drive.rs` (client) or `api.rs` (server).

mod batch;

use serde::{Deserialize, Serialize};

use crate::ids::{DriveId, FileId, PartNumber, RevisionId, UploadId};
use crate::rolling_sha1::Sha1Ctx;

pub use batch::{
    BatchBody, BatchItem, BatchOutcome, BatchRequest, BatchResponse, DeleteTagsRequest, PutTagsRequest,
};

/// `parallel_sha1_ctx`: the SHA-1 state before a part (API page `UploadPartInfo`).
///
/// The first part carries `h: []`, as the official client sends it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WireSha1Ctx {
    /// Empty for the first part, else five words.
    #[serde(default)]
    pub h: Vec<u64>,
    /// File bytes before the part, a multiple of 64.
    #[serde(default)]
    pub part_offset: u64,
}

impl From<Sha1Ctx> for WireSha1Ctx {
    fn from(ctx: Sha1Ctx) -> Self {
        let h =
            if ctx.part_offset == 0 { Vec::new() } else { ctx.h.iter().map(|&word| word.into()).collect() };
        Self { h, part_offset: ctx.part_offset }
    }
}

/// `file` or `folder`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileType {
    /// A file with content.
    File,
    /// A folder.
    Folder,
}

/// What `create`, `update` and `move` do when a sibling has the name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckNameMode {
    /// Two siblings of one name come to be.
    #[default]
    Ignore,
    /// The service appends a time stamp to the new name.
    AutoRename,
    /// Nothing is created; the answer describes the sibling (`exist: true`).
    Refuse,
}

/// One `{key, value}` of `user_tags` on input.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UserTag {
    /// Not empty, without `#`.
    pub key: String,
    /// Without `#`; key and value together at most 2,000 bytes.
    #[serde(default)]
    pub value: String,
}

/// One part asked for in `create` or `get_upload_url`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PartRequest {
    /// 1 to 10,000.
    pub part_number: PartNumber,
    /// The SHA-1 state before the part; only in parallel mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel_sha1_ctx: Option<WireSha1Ctx>,
}

/// `POST /v2/file/create`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct CreateRequest<'a> {
    /// The drive.
    pub drive_id: &'a DriveId,
    /// `root` or a folder.
    pub parent_file_id: &'a FileId,
    /// At most 1,024 bytes, without `/` and `\`.
    pub name: &'a str,
    /// File or folder.
    #[serde(rename = "type")]
    pub file_type: FileType,
    /// What to do when the name is taken.
    pub check_name_mode: CheckNameMode,
    /// The file to overwrite with a new revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_id: Option<&'a FileId>,
    /// Bytes, where already known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// `true` to upload parts in any order with SHA-1 contexts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallel_upload: Option<bool>,
    /// Parts whose URLs shall come with the answer.
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
    /// Small texts of ours and of others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub user_tags: Vec<UserTag>,
}

/// The answer to `create` (HTTP 201).
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct CreateResponse {
    /// The new, overwritten or (with `exist`) already present object.
    pub file_id: FileId,
    /// The name that was given in the end.
    #[serde(default)]
    pub file_name: Option<String>,
    /// File or folder.
    #[serde(rename = "type", default)]
    pub file_type: Option<FileType>,
    /// Set where an upload was begun.
    #[serde(default, deserialize_with = "empty_is_none")]
    pub upload_id: Option<UploadId>,
    /// The name was taken and nothing was created.
    #[serde(default)]
    pub exist: bool,
    /// The service had the bytes: the file is complete.
    #[serde(default)]
    pub rapid_upload: bool,
    /// `available` where the file is complete.
    #[serde(default)]
    pub status: Option<String>,
    /// The revision made by an instant upload.
    #[serde(default, deserialize_with = "empty_is_none")]
    pub revision_id: Option<RevisionId>,
    /// One URL for each part that was asked for, in that order; one where none was.
    #[serde(default)]
    pub part_info_list: Vec<PartUrl>,
}

/// Where a part goes.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct PartUrl {
    /// 1 to 10,000.
    pub part_number: PartNumber,
    /// Absolute, signed: never printed.
    pub upload_url: String,
    /// If not empty, the PUT must carry exactly this `Content-Type`.
    #[serde(default)]
    pub content_type: Option<String>,
}

impl std::fmt::Debug for PartUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartUrl").field("part_number", &self.part_number).finish_non_exhaustive()
    }
}

/// `POST /v2/file/get_upload_url`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct UploadUrlRequest<'a> {
    /// The drive.
    pub drive_id: &'a DriveId,
    /// The file being uploaded.
    pub file_id: &'a FileId,
    /// The upload session.
    pub upload_id: &'a UploadId,
    /// Not empty.
    pub part_info_list: Vec<PartRequest>,
}

/// The answer to `get_upload_url`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct UploadUrlResponse {
    /// In the order asked for.
    #[serde(default)]
    pub part_info_list: Vec<PartUrl>,
}

/// `POST /v2/file/complete`, and the two ids it shares with other calls.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct CompleteRequest<'a> {
    /// The drive.
    pub drive_id: &'a DriveId,
    /// The file being uploaded.
    pub file_id: &'a FileId,
    /// The upload session.
    pub upload_id: &'a UploadId,
    /// Decimal CRC-64/XZ of the content; the service verifies it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crc64_hash: Option<String>,
}

/// A file or folder, as `get`, `list`, `complete`, `update` and the change feed give it.
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub struct File {
    /// The object.
    pub file_id: FileId,
    /// The folder it is in.
    #[serde(default, deserialize_with = "empty_is_none")]
    pub parent_file_id: Option<FileId>,
    /// Its name there.
    #[serde(default)]
    pub name: String,
    /// File or folder.
    #[serde(rename = "type")]
    pub file_type: FileType,
    /// Bytes; absent for folders.
    #[serde(default)]
    pub size: Option<u64>,
    /// `available` or `uploading`.
    #[serde(default)]
    pub status: Option<String>,
    /// Hash of the content in hex.
    #[serde(default, deserialize_with = "empty_is_none")]
    pub content_hash: Option<String>,
    /// `sha1`, or `sha256` on such domains.
    #[serde(default, deserialize_with = "empty_is_none")]
    pub content_hash_name: Option<String>,
    /// Decimal CRC-64/XZ of the content.
    #[serde(default, deserialize_with = "empty_is_none")]
    pub crc64_hash: Option<String>,
    /// When the object came to be.
    #[serde(default, deserialize_with = "empty_is_none")]
    pub created_at: Option<String>,
    /// When the service last changed it.
    #[serde(default, deserialize_with = "empty_is_none")]
    pub updated_at: Option<String>,
    /// The client's own modification time.
    #[serde(default, deserialize_with = "empty_is_none")]
    pub local_modified_at: Option<String>,
    /// The revision of the content.
    #[serde(default, deserialize_with = "empty_is_none")]
    pub revision_id: Option<RevisionId>,
    /// Small texts of ours and of others.
    #[serde(default)]
    pub user_tags: Option<std::collections::BTreeMap<String, String>>,
}

/// `POST /v2/file/list`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ListRequest<'a> {
    /// The drive.
    pub drive_id: &'a DriveId,
    /// The folder.
    pub parent_file_id: &'a FileId,
    /// 1 to 100.
    pub limit: u32,
    /// The `next_marker` of the page before; empty for the first page.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub marker: &'a str,
    /// `name`: the one order that stays stable while files change.
    pub order_by: &'static str,
    /// `ASC`.
    pub order_direction: &'static str,
    /// `*`: everything, so that the tags come too.
    pub fields: &'static str,
}

/// A page of a listing. An empty page with a marker is not the end.
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub struct ListResponse {
    /// The entries.
    #[serde(default)]
    pub items: Vec<File>,
    /// Empty or absent at the end.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub next_marker: String,
}

/// `get`, `trash`, `delete` and every other call that takes just the object.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct FileRequest<'a> {
    /// The drive.
    pub drive_id: &'a DriveId,
    /// The object.
    pub file_id: &'a FileId,
}

/// `POST /v2/file/update`: rename, and modification time.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct UpdateRequest<'a> {
    /// The drive.
    pub drive_id: &'a DriveId,
    /// The object.
    pub file_id: &'a FileId,
    /// The new name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    /// What to do when the name is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check_name_mode: Option<CheckNameMode>,
    /// `yyyy-MM-ddTHH:mm:ss.SSSZ`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_modified_at: Option<String>,
}

/// `POST /v2/file/move`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct MoveRequest<'a> {
    /// The drive.
    pub drive_id: &'a DriveId,
    /// The object.
    pub file_id: &'a FileId,
    /// The folder it goes to.
    pub to_parent_file_id: &'a FileId,
    /// What to do when the name is taken there.
    pub check_name_mode: CheckNameMode,
}

/// The answer to `move`, `trash`, `delete` and `copy` where it has a body.
///
/// [`Option`] where the answer may be empty.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct AsyncResponse {
    /// The name was taken and nothing was moved.
    pub exist: bool,
    /// Empty where the work is done; else to be asked for with `async_task/get`.
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
    /// `Running`, `Succeed`, `PartialSucceed` or `Failed`; some deployments call it `status`.
    #[serde(alias = "status")]
    pub state: String,
    /// A service code.
    #[serde(deserialize_with = "null_is_empty")]
    pub error_code: String,
    /// For people.
    #[serde(deserialize_with = "null_is_empty")]
    pub error_message: String,
}

/// `POST /v2/file/get_download_url`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct DownloadUrlRequest<'a> {
    /// The drive.
    pub drive_id: &'a DriveId,
    /// The file.
    pub file_id: &'a FileId,
    /// A revision that is not the newest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision_id: Option<&'a RevisionId>,
    /// Seconds, 1 to 115,200.
    pub expire_sec: u32,
}

/// The answer to `get_download_url`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct DownloadUrlResponse {
    /// Absolute, signed: never printed.
    pub url: String,
    /// When the URL ends.
    #[serde(default, deserialize_with = "empty_is_none")]
    pub expiration: Option<String>,
    /// Bytes of the content.
    #[serde(default)]
    pub size: Option<u64>,
    /// Hash of the content.
    #[serde(default, deserialize_with = "empty_is_none")]
    pub content_hash: Option<String>,
    /// The revision that the URL serves.
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
    /// The drive.
    pub drive_id: &'a DriveId,
}

/// A drive.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct DriveInfo {
    /// The drive.
    pub drive_id: DriveId,
    /// For people.
    #[serde(default)]
    pub drive_name: String,
    /// Bytes; -1 is unlimited.
    #[serde(default)]
    pub total_size: i64,
    /// Bytes.
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

/// A page of drives.
#[derive(Clone, Debug, Deserialize)]
pub struct DriveList {
    /// Its entries.
    #[serde(default)]
    pub items: Vec<DriveInfo>,
    /// Of groups: the drive of the domain itself.
    #[serde(default)]
    pub root_group_drive: Option<DriveInfo>,
    /// Empty at the end.
    #[serde(default)]
    pub next_marker: String,
}

/// The body of a service error. Documents print it capitalised, services in lower case.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServiceError {
    /// `Class.Resource`; match on the class.
    #[serde(alias = "Code")]
    pub code: String,
    /// For people.
    #[serde(alias = "Message")]
    pub message: String,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(d)?.unwrap_or_default())
}

/// Services write absent values as `""`, `null` or not at all, and numbers as strings or numbers.
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
    use crate::rolling_sha1::RollingSha1;

    #[test]
    fn the_first_part_has_an_empty_context() {
        let ctx = RollingSha1::default().ctx().map(WireSha1Ctx::from);
        assert_eq!(serde_json::to_string(&ctx).unwrap(), r#"{"h":[],"part_offset":0}"#);
    }

    #[test]
    fn absent_null_and_empty_are_the_same() {
        for extra in ["", r#","revision_id":null"#, r#","revision_id":"""#] {
            let text = format!(r#"{{"file_id":"a","type":"file"{extra}}}"#);
            assert_eq!(serde_json::from_str::<File>(&text).unwrap().revision_id, None);
        }
    }

    #[test]
    fn signed_urls_do_not_print() {
        let url = PartUrl {
            part_number: PartNumber::FIRST,
            upload_url: "http://h/p?Signature=s".into(),
            content_type: None,
        };
        assert!(!format!("{url:?}").contains("Signature"));
    }
}
