//! The recycle bin, permanent deletion, and asynchronous tasks.

use serde::Deserialize;

use super::request::{lenient, require};
use crate::ids::{DriveId, FileId};
use crate::server::app::DOMAIN_ID;
use crate::server::archive;
use crate::server::call::ApiCall;
use crate::server::clock::{random_hex, rfc3339};
use crate::server::errors::ServiceError;
use crate::server::reply::ApiResponse;

#[derive(Deserialize)]
pub(super) struct RemovalRequest {
    #[serde(default, deserialize_with = "lenient")]
    drive_id: Option<DriveId>,
    #[serde(default, deserialize_with = "lenient")]
    file_id: Option<FileId>,
    check_folder_empty: Option<bool>,
}

/// Returns `done`, or 202 with a task if the object is a folder and the quirk `async_polls` is set. The work
/// is already done in both cases; the task only reports it later.
pub(super) fn maybe_async(
    call: &ApiCall,
    drive: &DriveId,
    file: &FileId,
    is_folder: bool,
    done: ApiResponse,
) -> Result<ApiResponse, ServiceError> {
    let Some(polls) = call.app.config.quirks.async_polls.filter(|_| is_folder) else { return Ok(done) };
    let task = random_hex(16)?;
    call.app.catalog.change_in_memory(|state| state.accept_task(&task, polls));
    let body = serde_json::json!({
        "domain_id": DOMAIN_ID, "drive_id": drive.as_str(), "file_id": file.as_str(), "async_task_id": task,
    });
    ApiResponse::json(202, &body)
}

fn check_deletion_allowed(call: &ApiCall) -> Result<(), ServiceError> {
    if call.app.config.quirks.deletion_forbidden {
        return Err(ServiceError::new(403, "Forbidden", "No permission. CheckRouterAccessFailed"));
    }
    Ok(())
}

/// `recyclebin/trash`.
pub(super) async fn trash(call: &ApiCall, request: RemovalRequest) -> Result<ApiResponse, ServiceError> {
    check_deletion_allowed(call)?;
    let drive = require(request.drive_id, "drive_id")?;
    let file = require(request.file_id, "file_id")?;
    let now_ms = call.app.clock.now_ms();
    let is_folder = call
        .app
        .catalog
        .change(|state| {
            let is_folder = state.live(&drive, &file)?.is_folder();
            if request.check_folder_empty == Some(true) {
                state.check_empty(&drive, &file)?;
            }
            state.trash(&drive, &file, now_ms)?;
            Ok(is_folder)
        })
        .await?;
    maybe_async(call, &drive, &file, is_folder, ApiResponse::empty(204))
}

/// `file/delete`, of objects in the recycle bin too.
pub(super) async fn delete(call: &ApiCall, request: RemovalRequest) -> Result<ApiResponse, ServiceError> {
    check_deletion_allowed(call)?;
    let drive = require(request.drive_id, "drive_id")?;
    let file = require(request.file_id, "file_id")?;
    let is_folder = call
        .app
        .catalog
        .change(|state| {
            let is_folder = state.node(&drive, &file)?.is_folder();
            if request.check_folder_empty == Some(true) {
                state.check_empty(&drive, &file)?;
            }
            state.delete(&drive, &file)?;
            Ok(is_folder)
        })
        .await?;
    maybe_async(call, &drive, &file, is_folder, ApiResponse::empty(204))
}

/// `recyclebin/restore`.
pub(super) async fn restore(call: &ApiCall, request: RemovalRequest) -> Result<ApiResponse, ServiceError> {
    let drive = require(request.drive_id, "drive_id")?;
    let file = require(request.file_id, "file_id")?;
    let now_ms = call.app.clock.now_ms();
    let is_folder = call
        .app
        .catalog
        .change(|state| {
            state.restore(&drive, &file, now_ms)?;
            Ok(state.node(&drive, &file)?.is_folder())
        })
        .await?;
    maybe_async(call, &drive, &file, is_folder, ApiResponse::empty(204))
}

/// Empties the recycle bin of a drive. Returns its task.
async fn clear_drive(call: &ApiCall, drive: &DriveId) -> Result<serde_json::Value, ServiceError> {
    call.app.catalog.change(|state| state.clear_bin(drive)).await?;
    let task = random_hex(16)?;
    let polls = call.app.config.quirks.async_polls.unwrap_or(0);
    call.app.catalog.change_in_memory(|state| state.accept_task(&task, polls));
    Ok(serde_json::json!({
        "domain_id": DOMAIN_ID, "drive_id": drive.as_str(), "task_id": task, "async_task_id": task,
    }))
}

/// `recyclebin/clear`, always with a task.
pub(super) async fn clear(call: &ApiCall, request: RemovalRequest) -> Result<ApiResponse, ServiceError> {
    check_deletion_allowed(call)?;
    let drive = require(request.drive_id, "drive_id")?;
    ApiResponse::json(202, &clear_drive(call, &drive).await?)
}

/// `recyclebin/clear_all`: the recycle bins of all drives, each with a task.
pub(super) async fn clear_all(call: &ApiCall) -> Result<ApiResponse, ServiceError> {
    check_deletion_allowed(call)?;
    let drives: Vec<_> =
        call.app.catalog.read(|state| state.drives().map(|drive| drive.drive_id.clone()).collect());
    let mut items = Vec::with_capacity(drives.len());
    for drive in drives {
        items.push(clear_drive(call, &drive).await?);
    }
    ApiResponse::json(202, &serde_json::json!({ "items": items }))
}

#[derive(Deserialize)]
pub(super) struct TaskRequest {
    #[serde(default, deserialize_with = "lenient")]
    async_task_id: Option<String>,
}

/// `async_task/get`.
pub(super) fn task(call: &ApiCall, request: TaskRequest) -> Result<ApiResponse, ServiceError> {
    let task = require(request.async_task_id, "async_task_id")?;
    let runs = call.app.catalog.change_in_memory(|state| state.poll_task(&task));
    let runs = runs.ok_or_else(|| ServiceError::not_found("AsyncTask"))?;
    let state = if runs { "Running" } else { "Succeed" };
    let mut body = serde_json::json!({
        "async_task_id": task,
        "state": state,
        "status": state,
        "consumed_process": u8::from(!runs),
        "total_process": 1,
        "error_code": "",
        "error_message": "",
        "created_at": rfc3339(call.app.clock.now_ms()),
    });
    let drive = call.app.catalog.read(|state| Some(state.archive(&task)?.drive.clone()));
    if let Some(drive) = drive.filter(|_| !runs) {
        body["url"] = archive::url(call, &drive, &task)?.into();
    }
    ApiResponse::json(200, &body)
}
