//! Tags of objects, and many calls in one.

use serde::{Deserialize, Serialize};

use super::{UpdateRequest, UserTag};
use crate::ids::{DriveId, FileId};

/// `POST /v2/file/put_usertags`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PutTagsRequest<'a> {
    /// The drive.
    pub drive_id: &'a DriveId,
    /// The object.
    pub file_id: &'a FileId,
    /// At most 1,000.
    pub user_tags: Vec<UserTag>,
}

/// `POST /v2/file/delete_usertags`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct DeleteTagsRequest<'a> {
    /// The drive.
    pub drive_id: &'a DriveId,
    /// The object.
    pub file_id: &'a FileId,
    /// Keys that it may or may not have.
    pub key_list: Vec<&'a str>,
}

/// `POST /v2/batch`: up to 100 calls in one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct BatchRequest<'a> {
    /// `file`.
    pub resource: &'static str,
    /// The calls.
    pub requests: Vec<BatchItem<'a>>,
}

/// One call of a batch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct BatchItem<'a> {
    /// Chosen by us, echoed.
    pub id: String,
    /// `POST`.
    pub method: &'static str,
    /// Without `/v2`.
    pub url: &'static str,
    /// What the call itself takes.
    pub body: BatchBody<'a>,
}

/// What a call of a batch takes.
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

/// The outcome of one call of a batch.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct BatchOutcome {
    /// As sent.
    pub id: String,
    /// HTTP status.
    pub status: u16,
}
