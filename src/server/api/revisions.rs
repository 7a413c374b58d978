//! The revisions of a file.

use serde::{Deserialize, Serialize};

use super::request::{check_description, lenient, limit, require};
use super::view::{FileView, download_url};
use crate::ids::{DriveId, FileId, RevisionId};
use crate::server::app::{DOMAIN_ID, USER_ID};
use crate::server::call::ApiCall;
use crate::server::catalog::records::{Node, Revision};
use crate::server::clock::rfc3339;
use crate::server::errors::ServiceError;
use crate::server::reply::ApiResponse;

#[derive(Deserialize)]
pub(super) struct RevisionRequest {
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
    #[serde(default, deserialize_with = "lenient")]
    fields: Option<String>,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    content_hash: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_hash_name: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    crc64_hash: Option<String>,
    is_latest_version: bool,
    keep_forever: bool,
    created_at: String,
    updated_at: String,
    /// Not in a list.
    #[serde(skip_serializing_if = "Option::is_none")]
    download_url: Option<String>,
    /// In a list only with `fields`.
    #[serde(skip_serializing_if = "Option::is_none")]
    creator_id: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    creator_name: Option<&'static str>,
}

impl<'a> RevisionView<'a> {
    fn of(call: &ApiCall, node: &'a Node, revision: &'a Revision) -> Self {
        let quirks = &call.app.config.quirks;
        let hashed = Some(revision).filter(|_| !quirks.no_hashes);
        Self {
            domain_id: DOMAIN_ID,
            drive_id: &node.drive_id,
            file_id: &node.file_id,
            revision_id: &revision.revision_id,
            revision_name: &node.name,
            revision_version: revision.version,
            revision_description: &revision.description,
            size: revision.size,
            content_hash: hashed.map(|revision| revision.hash.as_str()),
            content_hash_name: hashed.map(|_| quirks.hash_name.as_str()),
            crc64_hash: hashed.map(|revision| revision.crc64.to_string()),
            is_latest_version: node.newest().is_some_and(|n| n.revision_id == revision.revision_id),
            keep_forever: revision.keep_forever,
            created_at: rfc3339(revision.created_ms),
            updated_at: rfc3339(revision.created_ms),
            download_url: Some(download_url(call, node, revision, call.app.config.url_ttl_s).0),
            creator_id: Some(USER_ID),
            creator_name: Some(USER_ID),
        }
    }
}

fn find<'a>(node: &'a Node, id: &str) -> Result<&'a Revision, ServiceError> {
    let found = node.revisions().iter().find(|revision| revision.revision_id.as_str() == id);
    found.ok_or_else(|| ServiceError::not_found("Revision"))
}

impl RevisionView<'_> {
    /// As an item of a list.
    fn listed(self, names_creator: bool) -> Self {
        let creator = Some(USER_ID).filter(|_| names_creator);
        Self { download_url: None, creator_id: creator, creator_name: creator, ..self }
    }
}

/// `file/revision/list`, newest first. The marker is the last id of the previous page.
pub(super) fn list(call: &ApiCall, request: RevisionRequest) -> Result<ApiResponse, ServiceError> {
    let drive = require(request.drive_id, "drive_id")?;
    let file = require(request.file_id, "file_id")?;
    let limit = limit(request.limit, 50, 100)?;
    let names_creator = request.fields.as_deref().is_some_and(|fields| !fields.is_empty());
    call.app.catalog.read(|state| {
        let node = state.live(&drive, &file)?;
        let mut rest = node.revisions().iter().rev();
        if let Some(marker) = &request.marker
            && rest.find(|revision| revision.revision_id.as_str() == marker).is_none()
        {
            return Err(ServiceError::invalid("marker", "The server did not issue it."));
        }
        let items: Vec<_> = rest
            .by_ref()
            .take(limit)
            .map(|revision| RevisionView::of(call, node, revision).listed(names_creator))
            .collect();
        let last = items.last().map(|item| item.revision_id.to_string());
        let next_marker = rest.next().and(last).unwrap_or_default();
        ApiResponse::json(200, &serde_json::json!({ "items": items, "next_marker": next_marker }))
    })
}

/// `file/revision/get`.
pub(super) fn get(call: &ApiCall, request: RevisionRequest) -> Result<ApiResponse, ServiceError> {
    let (drive, file, id) = named(request.drive_id, request.file_id, request.revision_id)?;
    call.app.catalog.read(|state| {
        let node = state.live(&drive, &file)?;
        ApiResponse::json(200, &RevisionView::of(call, node, find(node, &id)?))
    })
}

/// `file/revision/update`.
pub(super) async fn update(call: &ApiCall, request: RevisionRequest) -> Result<ApiResponse, ServiceError> {
    let (drive, file, id) = named(request.drive_id, request.file_id, request.revision_id)?;
    check_description(request.revision_description.as_ref())?;
    let now_ms = call.app.clock.now_ms();
    call.app
        .catalog
        .change(|state| {
            find(state.live(&drive, &file)?, &id)?;
            state.update_revision(&file, &id, request.keep_forever, request.revision_description, now_ms)?;
            let node = state.live(&drive, &file)?;
            ApiResponse::json(200, &RevisionView::of(call, node, find(node, &id)?))
        })
        .await
}

/// The three required ids of a revision.
fn named(
    drive: Option<DriveId>,
    file: Option<FileId>,
    revision: Option<String>,
) -> Result<(DriveId, FileId, String), ServiceError> {
    Ok((require(drive, "drive_id")?, require(file, "file_id")?, require(revision, "revision_id")?))
}

/// `file/revision/restore`: adds a new revision with the content of an old one.
pub(super) async fn restore(call: &ApiCall, request: RevisionRequest) -> Result<ApiResponse, ServiceError> {
    let (drive, file, id) = named(request.drive_id, request.file_id, request.revision_id)?;
    let now_ms = call.app.clock.now_ms();
    call.app
        .catalog
        .change(|state| {
            let node = state.live(&drive, &file)?;
            let old = find(node, &id)?.clone();
            if node.newest().is_some_and(|newest| newest.revision_id == old.revision_id) {
                return Err(is_latest_error());
            }
            state.restore_revision(&drive, &file, old, now_ms)?;
            ApiResponse::json(200, &FileView::of(call, state.live(&drive, &file)?))
        })
        .await
}

/// `file/revision/delete`. The newest revision cannot be deleted.
pub(super) async fn delete(call: &ApiCall, request: RevisionRequest) -> Result<ApiResponse, ServiceError> {
    let (drive, file, id) = named(request.drive_id, request.file_id, request.revision_id)?;
    let now_ms = call.app.clock.now_ms();
    call.app
        .catalog
        .change(|state| {
            let node = state.live(&drive, &file)?;
            let old = find(node, &id)?;
            if node.newest().is_some_and(|newest| newest.revision_id == old.revision_id) {
                return Err(is_latest_error());
            }
            state.delete_revision(&file, &id, now_ms)
        })
        .await?;
    Ok(ApiResponse::empty(204))
}

fn is_latest_error() -> ServiceError {
    ServiceError::new(400, "FileLatestRevisionCannotBeRestore", "It is the latest revision.")
}
