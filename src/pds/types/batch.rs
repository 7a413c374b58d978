//! User tags, and batches of calls.

use serde::{Deserialize, Serialize};

use super::{UpdateRequest, UserTag};
use crate::ids::{DriveId, FileId};

/// `POST /v2/file/put_usertags`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PutTagsRequest<'a> {
    pub drive_id: &'a DriveId,
    pub file_id: &'a FileId,
    /// At most 1,000.
    pub user_tags: Vec<UserTag>,
}

/// `POST /v2/file/delete_usertags`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct DeleteTagsRequest<'a> {
    pub drive_id: &'a DriveId,
    pub file_id: &'a FileId,
    /// Keys need not exist.
    pub key_list: Vec<&'a str>,
}

/// `POST /v2/batch`: up to 100 calls in one request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct BatchRequest<'a> {
    /// `file`.
    pub resource: &'static str,
    pub requests: Vec<BatchItem<'a>>,
}

/// One call of a batch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct BatchItem<'a> {
    /// Chosen by the client, echoed in the answer.
    pub id: String,
    /// `POST`.
    pub method: &'static str,
    /// Without `/v2`.
    pub url: &'static str,
    pub headers: BatchHeaders,
    pub body: BatchBody<'a>,
}

/// The headers of one call of a batch. A call with a body must name its type (API page `Batch`).
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct BatchHeaders {
    #[serde(rename = "Content-Type")]
    pub content_type: &'static str,
}

impl BatchHeaders {
    /// Those of every call here.
    pub const JSON: Self = Self { content_type: "application/json" };
}

/// The body of one call of a batch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(untagged)]
pub enum BatchBody<'a> {
    /// `/file/update`.
    Update(UpdateRequest<'a>),
    /// `/file/put_usertags`.
    PutTags(PutTagsRequest<'a>),
    /// `/file/delete_usertags`.
    DeleteTags(DeleteTagsRequest<'a>),
}

/// The answer to `batch`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct BatchResponse {
    /// One per call, in any order.
    #[serde(default)]
    pub responses: Vec<BatchOutcome>,
}

/// The result of one call of a batch.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct BatchOutcome {
    /// That of the request.
    pub id: String,
    pub status: u16,
    /// The answer to the call.
    #[serde(default)]
    pub body: Option<serde_json::Value>,
}
