//! `file/archive_files`: some objects as one download.

use serde::Deserialize;
use serde_json::json;

use super::request::{check_name, lenient, list, require};
use crate::ids::{DriveId, FileId};
use crate::server::app::DOMAIN_ID;
use crate::server::call::ApiCall;
use crate::server::catalog::records::Archive;
use crate::server::clock::random_hex;
use crate::server::errors::ServiceError;
use crate::server::reply::ApiResponse;

/// Bound on the objects of a request.
const FILES_MAX: usize = 100;

#[derive(Deserialize)]
pub(super) struct ArchiveRequest {
    #[serde(default, deserialize_with = "lenient")]
    drive_id: Option<DriveId>,
    name: Option<String>,
    /// The form of the JS SDK.
    #[serde(default, deserialize_with = "list")]
    files: Vec<ArchivedFile>,
    /// The form of the Python SDK.
    #[serde(default, deserialize_with = "list")]
    file_ids: Vec<FileId>,
}

#[derive(Deserialize)]
struct ArchivedFile {
    #[serde(default, deserialize_with = "lenient")]
    file_id: Option<FileId>,
}

/// `file/archive_files`. The result of the task has the URL.
pub(super) fn archive_files(call: &ApiCall, request: ArchiveRequest) -> Result<ApiResponse, ServiceError> {
    let drive = require(request.drive_id, "drive_id")?;
    check_name(&require(request.name, "name")?)?;
    let files = request.files.into_iter().map(|file| require(file.file_id, "file_id"));
    let files: Vec<FileId> = files.chain(request.file_ids.into_iter().map(Ok)).collect::<Result<_, _>>()?;
    if !(1..=FILES_MAX).contains(&files.len()) {
        return Err(ServiceError::invalid("files", "There must be 1 to 100."));
    }
    let archive = Archive { drive: drive.clone(), files };
    call.app.catalog.read(|state| state.archive_entries(&archive).map(|_| ()))?;
    let task = random_hex(16)?;
    let polls = call.app.config.quirks.async_polls.unwrap_or(0);
    call.app.catalog.change_in_memory(|state| {
        state.accept_task(&task, polls);
        state.accept_archive(&task, archive);
    });
    let body = json!({ "domain_id": DOMAIN_ID, "drive_id": drive.as_str(), "async_task_id": task });
    ApiResponse::json(202, &body)
}
