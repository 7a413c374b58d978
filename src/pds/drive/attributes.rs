//! Changes of attributes: modification time and tags, for many objects per call.
//!
//! A service that does not take a modification time gets it as a tag, see `posix.rs`.

use std::collections::BTreeSet;
use std::time::SystemTime;

use serde::Deserialize;

use super::{Drive, meta};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::FileId;
use crate::pds::retry::Delivery;
use crate::pds::types::{
    BatchBody, BatchHeaders, BatchItem, BatchRequest, BatchResponse, DeleteTagsRequest, File, FileRequest,
    PutTagsRequest, UpdateRequest, UserTag,
};
use crate::posix::{self, Tags};

/// Largest number of requests in one `/v2/batch`.
const BATCH_MAX: usize = 100;

/// The attribute changes of one object.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct AttrChange {
    /// Modification time, with a resolution of milliseconds.
    pub mtime: Option<SystemTime>,
    /// All tags of the object: some services replace all tags by the new ones.
    pub tags: Tags,
    /// Whether the tags have changed.
    pub sends_tags: bool,
    /// Keys of tags to delete.
    pub stale: BTreeSet<String>,
}

/// The path without `/v2`, as in a batch, and the body.
type NamedCall<'a> = (&'static str, BatchBody<'a>);

/// What an answer to a change says.
#[derive(Clone, Default, Debug, Deserialize)]
struct Changed {
    /// The modification time that the object has now.
    #[serde(default)]
    local_modified_at: Option<String>,
}

impl Drive {
    /// Changes attributes of objects. Returns one result per object, in order.
    pub async fn set_attributes(&self, changes: &[(FileId, AttrChange)]) -> Vec<Result<()>> {
        let calls: Vec<_> = changes
            .iter()
            .enumerate()
            .flat_map(|(index, (file, change))| {
                self.calls(file, change).into_iter().map(move |call| (index, call))
            })
            .collect();
        let mut outcomes = vec![Ok(()); changes.len()];
        for batch in calls.chunks(BATCH_MAX) {
            for ((index, call), outcome) in batch.iter().zip(self.call_all(batch).await) {
                let (file, change) = &changes[*index];
                let outcome = match (&call.1, change.mtime) {
                    (BatchBody::Update(_), Some(mtime)) => {
                        self.keep_mtime(file, change, mtime, outcome).await
                    }
                    _ => outcome.map(|_| ()),
                };
                if outcomes[*index].is_ok() {
                    outcomes[*index] = outcome;
                }
            }
        }
        outcomes
    }

    /// Keeps a modification time as a tag if the service has refused or ignored it.
    async fn keep_mtime(
        &self,
        file_id: &FileId,
        change: &AttrChange,
        mtime: SystemTime,
        outcome: Result<Changed>,
    ) -> Result<()> {
        let field = match outcome {
            Ok(Changed { local_modified_at: None }) => return Ok(()),
            Ok(Changed { local_modified_at: Some(field) }) => {
                if meta::parse_time(Some(&field)) == Some(posix::at_drive_resolution(mtime)) {
                    return Ok(());
                }
                Some(field)
            }
            Err(error) if is_refused_form(&error) && self.0.keeps_metadata => {
                let request = FileRequest { drive_id: self.id(), file_id };
                self.call_safe::<File>("/v2/file/get", &request).await?.local_modified_at
            }
            Err(error) => return Err(error),
        };
        let mut tags = change.tags.clone();
        tags.extend(posix::bound_mtime(mtime, meta::parse_time(field.as_deref())));
        let user_tags = self.user_tags(&tags);
        if user_tags.is_empty() {
            return Ok(());
        }
        let body = PutTagsRequest { drive_id: self.id(), file_id, user_tags };
        self.call_one(&("/file/put_usertags", BatchBody::PutTags(body))).await.map(|_| ())
    }

    fn calls<'a>(&'a self, file_id: &'a FileId, change: &'a AttrChange) -> Vec<NamedCall<'a>> {
        let drive_id = self.id();
        let mut calls = Vec::new();
        let user_tags = if change.sends_tags { self.user_tags(&change.tags) } else { Vec::new() };
        if !user_tags.is_empty() {
            let body = PutTagsRequest { drive_id, file_id, user_tags };
            calls.push(("/file/put_usertags", BatchBody::PutTags(body)));
        }
        if self.0.keeps_metadata && !change.stale.is_empty() {
            let key_list = change.stale.iter().map(String::as_str).collect();
            let body = DeleteTagsRequest { drive_id, file_id, key_list };
            calls.push(("/file/delete_usertags", BatchBody::DeleteTags(body)));
        }
        if let Some(mtime) = change.mtime {
            let local_modified_at = meta::wire_time(mtime);
            let body =
                UpdateRequest { drive_id, file_id, name: None, check_name_mode: None, local_modified_at };
            calls.push(("/file/update", BatchBody::Update(body)));
        }
        calls
    }

    /// The tags of a request. Empty if the mount keeps no metadata.
    pub(super) fn user_tags(&self, tags: &Tags) -> Vec<UserTag> {
        let tags = tags.iter().filter(|_| self.0.keeps_metadata);
        tags.map(|(key, value)| UserTag { key: key.clone(), value: value.clone() }).collect()
    }

    async fn call_one(&self, (path, body): &NamedCall<'_>) -> Result<Changed> {
        let answer = self.call_safe::<Option<Changed>>(&format!("/v2{path}"), body).await;
        answer.map(Option::unwrap_or_default).map_err(|failure| failure.error)
    }

    /// Returns one result per call, in order. A call that the service refuses in a batch is sent alone: the batch may
    /// be the cause, and the answer to the single call says what is wrong.
    async fn call_all(&self, calls: &[(usize, NamedCall<'_>)]) -> Vec<Result<Changed>> {
        let answers = if calls.len() > 1 { self.call_batch(calls).await } else { Ok(vec![None]) };
        let answers = match answers {
            Ok(answers) => answers,
            Err(error) => return vec![Err(error); calls.len()],
        };
        let mut outcomes = Vec::with_capacity(calls.len());
        for ((_, call), answer) in calls.iter().zip(answers) {
            outcomes.push(match answer {
                Some(outcome) => outcome,
                None => self.call_one(call).await,
            });
        }
        outcomes
    }

    /// Sends calls as one batch. Returns one outcome per call, `None` for a call that must be sent alone: for all of
    /// them if the service answers nothing usable, for example because the domain has no batches.
    async fn call_batch(&self, calls: &[(usize, NamedCall<'_>)]) -> Result<Vec<Option<Result<Changed>>>> {
        let requests = calls.iter().enumerate().map(|(index, (_, (url, body)))| BatchItem {
            id: index.to_string(),
            method: "POST",
            url,
            headers: BatchHeaders::JSON,
            body: body.clone(),
        });
        let request = BatchRequest { resource: "file", requests: requests.collect() };
        let mut outcomes = vec![None; calls.len()];
        match self.call_safe::<BatchResponse>("/v2/batch", &request).await {
            Ok(answer) => {
                for response in answer.responses {
                    let index = response.id.parse::<usize>().ok();
                    if let Some(outcome) = index.and_then(|index| outcomes.get_mut(index)) {
                        let changed = response.body.and_then(|body| Changed::deserialize(body).ok());
                        *outcome = outcome_of(response.status, changed.unwrap_or_default());
                    }
                }
                Ok(outcomes)
            }
            Err(failure) if failure.delivery == Delivery::Answered => Ok(outcomes),
            Err(failure) => Err(failure.error),
        }
    }
}

/// The outcome of a call of a batch; `None` for a refusal.
fn outcome_of(status: u16, changed: Changed) -> Option<Result<Changed>> {
    match status {
        200..300 => Some(Ok(changed)),
        404 => Some(Err(Error::new(ErrorKind::NotFound, "the object does not exist"))),
        // The next batch comes later.
        429 | 500.. => {
            Some(Err(Error::new(ErrorKind::Io, format!("a batch request failed with status {status}"))))
        }
        _ => None,
    }
}

/// Whether the service refused the form of a change, not the change itself.
fn is_refused_form(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Protocol | ErrorKind::Invalid | ErrorKind::Unsupported)
}
