//! Older contents of a file.

use serde::{Deserialize, Serialize};

use super::request::{check_description, lenient, limit, need};
use super::view::{FileView, download_url};
use crate::ids::{DriveId, FileId, RevisionId};
use crate::server::DOMAIN_ID;
use crate::server::catalog::records::{Node, Revision};
use crate::server::clock::rfc3339;
use crate::server::errors::ApiError;
use crate::server::http::Call;
use crate::server::reply::Answer;

#[derive(Deserialize)]
pub(super) struct OfRevision {
    #[serde(default, deserialize_with = "lenient")]
    drive_id: Option<DriveId>,
    #[serde(default, deserialize_with = "lenient")]
    file_id: Option<FileId>,
    #[serde(default, deserialize_with = "lenient")]
    revision_id: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    limit: Option<u32>,
    #[serde(default, deserialize_with = "lenient")]
    marker: Option<String>,
    keep_forever: Option<bool>,
    revision_description: Option<String>,
}

#[derive(Serialize)]
struct RevisionView<'a> {
    domain_id: &'static str,
    drive_id: &'a DriveId,
    file_id: &'a FileId,
    revision_id: &'a RevisionId,
    revision_name: &'a str,
    revision_version: u64,
    revision_description: &'a str,
    size: u64,
    content_hash: &'a str,
    content_hash_name: &'static str,
    crc64_hash: String,
    is_latest_version: bool,
    keep_forever: bool,
    created_at: String,
    updated_at: String,
    download_url: String,
}

impl<'a> RevisionView<'a> {
    fn of(call: &Call, node: &'a Node, revision: &'a Revision) -> Self {
        Self {
            domain_id: DOMAIN_ID,
            drive_id: &node.drive_id,
            file_id: &node.file_id,
            revision_id: &revision.revision_id,
            revision_name: &node.name,
            revision_version: revision.version,
            revision_description: &revision.description,
            size: revision.size,
            content_hash: &revision.hash,
            content_hash_name: call.app.config.quirks.hash_name.as_str(),
            crc64_hash: revision.crc64.to_string(),
            is_latest_version: node.newest().is_some_and(|n| n.revision_id == revision.revision_id),
            keep_forever: revision.keep_forever,
            created_at: rfc3339(revision.created_ms),
            updated_at: rfc3339(revision.created_ms),
            download_url: download_url(call, node, revision, call.app.config.url_ttl_s).0,
        }
    }
}

fn find<'a>(node: &'a Node, id: &str) -> Result<&'a Revision, ApiError> {
    let found = node.revisions().iter().find(|revision| revision.revision_id.as_str() == id);
    found.ok_or_else(|| ApiError::not_found("Revision"))
}

/// `file/revision/list`, newest first. The marker is the last id of the page before.
pub(super) fn list(call: &Call, ask: OfRevision) -> Result<Answer, ApiError> {
    let drive = need(ask.drive_id, "drive_id")?;
    let file = need(ask.file_id, "file_id")?;
    let limit = limit(ask.limit, 50, 100)?;
    call.app.catalog.read(|state| {
        let node = state.live(&drive, &file)?;
        let mut rest = node.revisions().iter().rev();
        if let Some(marker) = &ask.marker
            && rest.find(|revision| revision.revision_id.as_str() == marker).is_none()
        {
            return Err(ApiError::invalid("marker", "It was never given."));
        }
        let items: Vec<_> =
            rest.by_ref().take(limit).map(|revision| RevisionView::of(call, node, revision)).collect();
        let last = items.last().map(|item| item.revision_id.to_string());
        let next_marker = rest.next().and(last).unwrap_or_default();
        Answer::json(200, &serde_json::json!({ "items": items, "next_marker": next_marker }))
    })
}

/// `file/revision/get`.
pub(super) fn get(call: &Call, ask: OfRevision) -> Result<Answer, ApiError> {
    let (drive, file, id) = named(ask.drive_id, ask.file_id, ask.revision_id)?;
    call.app.catalog.read(|state| {
        let node = state.live(&drive, &file)?;
        Answer::json(200, &RevisionView::of(call, node, find(node, &id)?))
    })
}

/// `file/revision/update`.
pub(super) async fn update(call: &Call, ask: OfRevision) -> Result<Answer, ApiError> {
    let (drive, file, id) = named(ask.drive_id, ask.file_id, ask.revision_id)?;
    check_description(ask.revision_description.as_ref())?;
    let now_ms = call.app.clock.now_ms();
    call.app
        .catalog
        .change(|state| {
            find(state.live(&drive, &file)?, &id)?;
            state.update_revision(&file, &id, ask.keep_forever, ask.revision_description, now_ms)?;
            let node = state.live(&drive, &file)?;
            Answer::json(200, &RevisionView::of(call, node, find(node, &id)?))
        })
        .await
}

/// The three ids that name a revision.
fn named(
    drive: Option<DriveId>,
    file: Option<FileId>,
    revision: Option<String>,
) -> Result<(DriveId, FileId, String), ApiError> {
    Ok((need(drive, "drive_id")?, need(file, "file_id")?, need(revision, "revision_id")?))
}

/// `file/revision/restore`: an old content becomes the newest, as a revision of its own.
pub(super) async fn restore(call: &Call, ask: OfRevision) -> Result<Answer, ApiError> {
    let (drive, file, id) = named(ask.drive_id, ask.file_id, ask.revision_id)?;
    let now_ms = call.app.clock.now_ms();
    call.app
        .catalog
        .change(|state| {
            let node = state.live(&drive, &file)?;
            let old = find(node, &id)?.clone();
            if node.newest().is_some_and(|newest| newest.revision_id == old.revision_id) {
                return Err(latest());
            }
            state.restore_revision(&drive, &file, old, now_ms)?;
            Answer::json(200, &FileView::of(call, state.live(&drive, &file)?))
        })
        .await
}

/// `file/revision/delete`, of all but the newest.
pub(super) async fn delete(call: &Call, ask: OfRevision) -> Result<Answer, ApiError> {
    let (drive, file, id) = named(ask.drive_id, ask.file_id, ask.revision_id)?;
    let now_ms = call.app.clock.now_ms();
    call.app
        .catalog
        .change(|state| {
            let node = state.live(&drive, &file)?;
            let old = find(node, &id)?;
            if node.newest().is_some_and(|newest| newest.revision_id == old.revision_id) {
                return Err(latest());
            }
            state.delete_revision(&file, &id, now_ms)
        })
        .await?;
    Ok(Answer::empty(204))
}

fn latest() -> ApiError {
    ApiError::new(400, "FileLatestRevisionCannotBeRestore", "It is the latest revision.")
}
