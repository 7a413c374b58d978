//! Changes of attributes: modification time and tags, for many objects per call.

use std::collections::BTreeSet;
use std::time::SystemTime;

use serde::de::IgnoredAny;

use super::{Drive, meta};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::FileId;
use crate::pds::retry::Delivery;
use crate::pds::types::{
    BatchBody, BatchItem, BatchRequest, BatchResponse, DeleteTagsRequest, PutTagsRequest, UpdateRequest,
    UserTag,
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

    /// Returns one result per call, in order.
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
            self.call_safe::<BatchResponse>("/v2/batch", &BatchRequest { resource: "file", requests }).await;
        let answer = match answer {
            Ok(answer) => answer,
            // The batch as a whole failed: one object may be the cause, or the domain has no batches. Each
            // call is sent alone.
            Err(failure) if failure.delivery == Delivery::Answered => {
                let mut outcomes = Vec::with_capacity(calls.len());
                for (_, call) in calls {
                    outcomes.push(self.call_one(call).await);
                }
                return outcomes;
            }
            Err(failure) => return vec![Err(failure.error); calls.len()],
        };
        let missing = Error::new(ErrorKind::Protocol, "the batch answer has no result for this object");
        let mut outcomes = vec![Err(missing); calls.len()];
        for response in answer.responses {
            let index = response.id.parse::<usize>().ok();
            if let Some(outcome) = index.and_then(|index| outcomes.get_mut(index)) {
                *outcome = result_of(response.status);
            }
        }
        outcomes
    }
}

fn result_of(status: u16) -> Result<()> {
    let (kind, detail) = match status {
        200..300 => return Ok(()),
        404 => (ErrorKind::NotFound, "the object does not exist".to_owned()),
        400 => (ErrorKind::Invalid, "a batch request was rejected as invalid".to_owned()),
        403 => (ErrorKind::Denied, "a batch request was denied".to_owned()),
        status => (ErrorKind::Io, format!("a batch request failed with status {status}")),
    };
    Err(Error::new(kind, detail))
}
