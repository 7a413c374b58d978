//! The recycle bin, permanent removal, and work that is answered before it is done.

use serde::Deserialize;

use super::request::{lenient, need};
use crate::ids::{DriveId, FileId};
use crate::server::DOMAIN_ID;
use crate::server::clock::{random_hex, rfc3339};
use crate::server::errors::ApiError;
use crate::server::http::Call;
use crate::server::reply::Answer;

#[derive(Deserialize)]
pub(super) struct Removal {
    #[serde(default, deserialize_with = "lenient")]
    drive_id: Option<DriveId>,
    #[serde(default, deserialize_with = "lenient")]
    file_id: Option<FileId>,
    check_folder_empty: Option<bool>,
}

/// The answer to work on an object: the plain one, or 202 and a task for folders where the server
/// is asked to be asynchronous. The work itself is done either way; the task only says so later.
pub(super) fn accepted(
    call: &Call,
    drive: &DriveId,
    file: &FileId,
    is_folder: bool,
    done: Answer,
) -> Result<Answer, ApiError> {
    let Some(polls) = call.app.config.quirks.async_polls.filter(|_| is_folder) else { return Ok(done) };
    let task = random_hex(16)?;
    call.app.catalog.touch(|state| state.accept_task(&task, polls));
    let body = serde_json::json!({
        "domain_id": DOMAIN_ID, "drive_id": drive.as_str(), "file_id": file.as_str(), "async_task_id": task,
    });
    Answer::json(202, &body)
}

fn check_granted(call: &Call) -> Result<(), ApiError> {
    if call.app.config.quirks.deletion_forbidden {
        return Err(ApiError::new(403, "Forbidden", "No permission. CheckRouterAccessFailed"));
    }
    Ok(())
}

/// `recyclebin/trash`.
pub(super) async fn trash(call: &Call, ask: Removal) -> Result<Answer, ApiError> {
    check_granted(call)?;
    let drive = need(ask.drive_id, "drive_id")?;
    let file = need(ask.file_id, "file_id")?;
    let now_ms = call.app.clock.now_ms();
    let is_folder = call
        .app
        .catalog
        .change(|state| {
            let is_folder = state.live(&drive, &file)?.is_folder();
            if ask.check_folder_empty == Some(true) {
                state.check_empty(&drive, &file)?;
            }
            state.trash(&drive, &file, now_ms)?;
            Ok(is_folder)
        })
        .await?;
    accepted(call, &drive, &file, is_folder, Answer::empty(204))
}

/// `file/delete`, of objects in the recycle bin too.
pub(super) async fn delete(call: &Call, ask: Removal) -> Result<Answer, ApiError> {
    check_granted(call)?;
    let drive = need(ask.drive_id, "drive_id")?;
    let file = need(ask.file_id, "file_id")?;
    let is_folder = call
        .app
        .catalog
        .change(|state| {
            let is_folder = state.any(&drive, &file)?.is_folder();
            if ask.check_folder_empty == Some(true) {
                state.check_empty(&drive, &file)?;
            }
            state.delete(&drive, &file)?;
            Ok(is_folder)
        })
        .await?;
    accepted(call, &drive, &file, is_folder, Answer::empty(204))
}

/// `recyclebin/restore`.
pub(super) async fn restore(call: &Call, ask: Removal) -> Result<Answer, ApiError> {
    let drive = need(ask.drive_id, "drive_id")?;
    let file = need(ask.file_id, "file_id")?;
    let now_ms = call.app.clock.now_ms();
    let is_folder = call
        .app
        .catalog
        .change(|state| {
            state.restore(&drive, &file, now_ms)?;
            Ok(state.any(&drive, &file)?.is_folder())
        })
        .await?;
    accepted(call, &drive, &file, is_folder, Answer::empty(204))
}

/// `recyclebin/clear` and `recyclebin/clear_all`, always with a task.
pub(super) async fn clear(call: &Call, ask: Removal) -> Result<Answer, ApiError> {
    check_granted(call)?;
    let drive = need(ask.drive_id, "drive_id")?;
    call.app.catalog.change(|state| state.clear_bin(&drive)).await?;
    let task = random_hex(16)?;
    let polls = call.app.config.quirks.async_polls.unwrap_or(0);
    call.app.catalog.touch(|state| state.accept_task(&task, polls));
    let body = serde_json::json!({ "domain_id": DOMAIN_ID, "drive_id": drive.as_str(), "task_id": task, "async_task_id": task });
    Answer::json(202, &body)
}

#[derive(Deserialize)]
pub(super) struct Task {
    #[serde(default, deserialize_with = "lenient")]
    async_task_id: Option<String>,
}

/// `async_task/get`.
pub(super) fn task(call: &Call, ask: Task) -> Result<Answer, ApiError> {
    let task = need(ask.async_task_id, "async_task_id")?;
    let runs = call.app.catalog.touch(|state| state.poll_task(&task));
    let runs = runs.ok_or_else(|| ApiError::not_found("AsyncTask"))?;
    let state = if runs { "Running" } else { "Succeed" };
    let body = serde_json::json!({
        "async_task_id": task,
        "state": state,
        "status": state,
        "consumed_process": u8::from(!runs),
        "total_process": 1,
        "error_code": "",
        "error_message": "",
        "created_at": rfc3339(call.app.clock.now_ms()),
    });
    Answer::json(200, &body)
}
