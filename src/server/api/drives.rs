//! Drives and quota.

use serde::Deserialize;

use super::request::{lenient, limit, need};
use super::view::DriveView;
use crate::ids::DriveId;
use crate::server::errors::ApiError;
use crate::server::http::Call;
use crate::server::reply::Answer;

#[derive(Deserialize)]
pub(super) struct OfDrive {
    #[serde(default, deserialize_with = "lenient")]
    drive_id: Option<DriveId>,
    #[serde(default, deserialize_with = "lenient")]
    limit: Option<u32>,
    #[serde(default, deserialize_with = "lenient")]
    marker: Option<DriveId>,
}

/// `drive/get`.
pub(super) fn get(call: &Call, ask: OfDrive) -> Result<Answer, ApiError> {
    let drive = need(ask.drive_id, "drive_id")?;
    call.app
        .catalog
        .read(|state| Answer::json(200, &DriveView::of(state.drive(&drive)?, state.quota_bytes())))
}

/// `drive/get_default_drive`: the first one.
pub(super) fn get_default(call: &Call) -> Result<Answer, ApiError> {
    call.app.catalog.read(|state| {
        let drive = state.drives().next().ok_or_else(|| ApiError::not_found("Drive"))?;
        Answer::json(200, &DriveView::of(drive, state.quota_bytes()))
    })
}

/// `drive/list_my_drives` and `drive/list`. The marker is the last id of the page before.
pub(super) fn list(call: &Call, ask: &OfDrive) -> Result<Answer, ApiError> {
    let limit = limit(ask.limit, 100, 100)?;
    call.app.catalog.read(|state| {
        let quota = state.quota_bytes();
        let after = |drive: &&crate::server::catalog::records::Drive| {
            ask.marker.as_ref().is_none_or(|marker| drive.drive_id > *marker)
        };
        let mut rest = state.drives().filter(after);
        let page: Vec<_> = rest.by_ref().take(limit).collect();
        let last = page.last().map(|drive| drive.drive_id.to_string());
        let next_marker = rest.next().and(last).unwrap_or_default();
        let items: Vec<_> = page.into_iter().map(|drive| DriveView::of(drive, quota)).collect();
        Answer::json(200, &serde_json::json!({ "items": items, "next_marker": next_marker }))
    })
}

/// `drive/list_my_group_drive`: there are none.
pub(super) fn list_group() -> Result<Answer, ApiError> {
    Answer::json(200, &serde_json::json!({ "items": [], "root_group_drive": null, "next_marker": "" }))
}

/// `domain/get_quota`: all drives together.
pub(super) fn domain_quota(call: &Call) -> Result<Answer, ApiError> {
    call.app.catalog.read(|state| {
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let drives = u64::try_from(state.drives().count()).unwrap_or(u64::MAX);
        let used: u64 = state.drives().map(|drive| drive.used_bytes).sum();
        let quota = state.quota_bytes().map_or(-1, |bytes| signed(bytes.saturating_mul(drives)));
        let body = serde_json::json!({
            "size_quota": quota,
            "size_used": signed(used),
            "user_count_quota": 1,
            "user_count_used": 1,
        });
        Answer::json(200, &body)
    })
}
