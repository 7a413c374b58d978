//! Attributes of objects that exist: modification time and tags, many objects per call.

use std::collections::BTreeSet;
use std::time::SystemTime;

use serde::de::IgnoredAny;

use super::{Drive, meta};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::FileId;
use crate::pds::retry::Sent;
use crate::pds::types::{
    BatchBody, BatchItem, BatchRequest, BatchResponse, DeleteTagsRequest, PutTagsRequest, UpdateRequest,
    UserTag,
};
use crate::posix::Tags;

/// Sub-requests of one `/v2/batch`.
const BATCH_MAX: usize = 100;

/// What changes of one object.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct AttrChange {
    /// The modification time (milliseconds).
    pub mtime: Option<SystemTime>,
    /// All tags that it shall have: some services take the new ones for all.
    pub tags: Option<Tags>,
    /// Tags that it shall not have any more.
    pub stale: BTreeSet<String>,
}

/// A call by its path without `/v2`, as batches name it.
type NamedCall<'a> = (&'static str, BatchBody<'a>);

impl Drive {
    /// Changes attributes of objects; the outcome of each, in order.
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
        if self.0.metadata && !change.stale.is_empty() {
            let key_list = change.stale.iter().map(String::as_str).collect();
            let body = DeleteTagsRequest { drive_id, file_id, key_list };
            calls.push(("/file/delete_usertags", BatchBody::DeleteTags(body)));
        }
        calls
    }

    /// The form of tags in a request; none where the mount keeps none.
    pub(super) fn user_tags(&self, tags: &Tags) -> Vec<UserTag> {
        let tags = tags.iter().filter(|_| self.0.metadata);
        tags.map(|(key, value)| UserTag { key: key.clone(), value: value.clone() }).collect()
    }

    async fn call_one(&self, (path, body): &NamedCall<'_>) -> Result<()> {
        let answer = self.ask::<Option<IgnoredAny>>(&format!("/v2{path}"), body).await;
        answer.map(|_| ()).map_err(|failure| failure.error)
    }

    /// The outcome of each, in order.
    async fn call_all<'a>(&self, calls: &[(usize, NamedCall<'a>)]) -> Vec<Result<()>> {
        if let [(_, call)] = calls {
            return vec![self.call_one(call).await];
        }
        let item = |(index, (_, (url, body))): (usize, &(usize, NamedCall<'a>))| BatchItem {
            id: index.to_string(),
            method: "POST",
            url,
            body: body.clone(),
        };
        let requests = calls.iter().enumerate().map(item).collect();
        let answer =
            self.ask::<BatchResponse>("/v2/batch", &BatchRequest { resource: "file", requests }).await;
        let answer = match answer {
            Ok(answer) => answer,
            // It says nothing of the objects: some of them may not be to blame, or batches are not offered.
            Err(failure) if failure.sent == Sent::Answered => {
                let mut outcomes = Vec::with_capacity(calls.len());
                for (_, call) in calls {
                    outcomes.push(self.call_one(call).await);
                }
                return outcomes;
            }
            Err(failure) => return vec![Err(failure.error); calls.len()],
        };
        let left_out = Error::new(ErrorKind::Protocol, "the batch answer leaves this one out");
        let mut outcomes = vec![Err(left_out); calls.len()];
        for response in answer.responses {
            let index = response.id.parse::<usize>().ok();
            if let Some(outcome) = index.and_then(|index| outcomes.get_mut(index)) {
                *outcome = outcome_of(response.status);
            }
        }
        outcomes
    }
}

fn outcome_of(status: u16) -> Result<()> {
    let (kind, detail) = match status {
        200..300 => return Ok(()),
        404 => (ErrorKind::NotFound, "the object is gone".to_owned()),
        400 => (ErrorKind::Invalid, "a change in a batch was refused".to_owned()),
        403 => (ErrorKind::Denied, "a change in a batch is not allowed".to_owned()),
        status => (ErrorKind::Io, format!("a change in a batch: status {status}")),
    };
    Err(Error::new(kind, detail))
}
