//! Changes of attributes: modification time and tags, for many objects per call.

use std::collections::BTreeSet;
use std::time::SystemTime;

use serde::de::IgnoredAny;

use super::{Drive, meta};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::FileId;
use crate::pds::retry::Delivery;
use crate::pds::types::{
    BatchBody, BatchHeaders, BatchItem, BatchRequest, BatchResponse, DeleteTagsRequest, PutTagsRequest,
    UpdateRequest, UserTag,
};
use crate::posix::Tags;

/// Largest number of requests in one `/v2/batch`.
const BATCH_MAX: usize = 100;

/// The attribute changes of one object.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct AttrChange {
    /// Modification time, with a resolution of milliseconds.
    pub mtime: Option<SystemTime>,
    /// All tags of the object: some services replace all tags by the new ones.
    pub tags: Option<Tags>,
    /// Keys of tags to delete.
    pub stale: BTreeSet<String>,
}

/// The path without `/v2`, as in a batch, and the body.
type NamedCall<'a> = (&'static str, BatchBody<'a>);

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
            for ((index, _), outcome) in batch.iter().zip(self.call_all(batch).await) {
                if outcomes[*index].is_ok() {
                    outcomes[*index] = outcome;
                }
            }
        }
        outcomes
    }

    fn calls<'a>(&'a self, file_id: &'a FileId, change: &'a AttrChange) -> Vec<NamedCall<'a>> {
        let drive_id = self.id();
        let mut calls = Vec::new();
        if let Some(mtime) = change.mtime {
            let local_modified_at = meta::wire_time(mtime);
            let body =
                UpdateRequest { drive_id, file_id, name: None, check_name_mode: None, local_modified_at };
            calls.push(("/file/update", BatchBody::Update(body)));
        }
        let user_tags = change.tags.as_ref().map(|tags| self.user_tags(tags)).unwrap_or_default();
        if !user_tags.is_empty() {
            let body = PutTagsRequest { drive_id, file_id, user_tags };
            calls.push(("/file/put_usertags", BatchBody::PutTags(body)));
        }
        if self.0.keeps_metadata && !change.stale.is_empty() {
            let key_list = change.stale.iter().map(String::as_str).collect();
            let body = DeleteTagsRequest { drive_id, file_id, key_list };
            calls.push(("/file/delete_usertags", BatchBody::DeleteTags(body)));
        }
        calls
    }

    /// The tags of a request. Empty if the mount keeps no metadata.
    pub(super) fn user_tags(&self, tags: &Tags) -> Vec<UserTag> {
        let tags = tags.iter().filter(|_| self.0.keeps_metadata);
        tags.map(|(key, value)| UserTag { key: key.clone(), value: value.clone() }).collect()
    }

    async fn call_one(&self, (path, body): &NamedCall<'_>) -> Result<()> {
        let answer = self.call_safe::<Option<IgnoredAny>>(&format!("/v2{path}"), body).await;
        answer.map(|_| ()).map_err(|failure| failure.error)
    }

    /// Returns one result per call, in order. A call that the service refuses in a batch is sent alone: the batch may
    /// be the cause, and the answer to the single call says what is wrong.
    async fn call_all(&self, calls: &[(usize, NamedCall<'_>)]) -> Vec<Result<()>> {
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
    async fn call_batch(&self, calls: &[(usize, NamedCall<'_>)]) -> Result<Vec<Option<Result<()>>>> {
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
                        *outcome = outcome_of(response.status);
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
fn outcome_of(status: u16) -> Option<Result<()>> {
    match status {
        200..300 => Some(Ok(())),
        404 => Some(Err(Error::new(ErrorKind::NotFound, "the object does not exist"))),
        // The next batch comes later.
        429 | 500.. => {
            Some(Err(Error::new(ErrorKind::Io, format!("a batch request failed with status {status}"))))
        }
        _ => None,
    }
}
