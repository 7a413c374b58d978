//! Drives.

use serde::Deserialize;

use super::request::{lenient, limit, require};
use super::view::{DriveView, owner_type};
use crate::ids::DriveId;
use crate::server::app::USER_ID;
use crate::server::call::ApiCall;
use crate::server::catalog::records::DriveRecord;
use crate::server::errors::ServiceError;
use crate::server::reply::ApiResponse;

#[derive(Deserialize)]
pub(super) struct DriveParams {
    #[serde(default, deserialize_with = "lenient")]
    drive_id: Option<DriveId>,
    #[serde(default, deserialize_with = "lenient")]
    limit: Option<u32>,
    #[serde(default, deserialize_with = "lenient")]
    marker: Option<DriveId>,
    /// Only drives of this kind of owner; all are those of the one user.
    #[serde(default, deserialize_with = "lenient")]
    owner_type: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    owner: Option<String>,
}

/// `drive/get`.
pub(super) fn get(call: &ApiCall, request: DriveParams) -> Result<ApiResponse, ServiceError> {
    let drive = require(request.drive_id, "drive_id")?;
    call.app
        .catalog
        .read(|state| ApiResponse::json(200, &DriveView::of(call, state.drive(&drive)?, state.quota_bytes())))
}

/// `drive/get_default_drive`: the first drive.
pub(super) fn get_default(call: &ApiCall) -> Result<ApiResponse, ServiceError> {
    call.app.catalog.read(|state| {
        let drive = state.drives().next().ok_or_else(|| ServiceError::not_found("Drive"))?;
        ApiResponse::json(200, &DriveView::of(call, drive, state.quota_bytes()))
    })
}

/// `drive/list_my_drives`: drives of the user, not of a group.
pub(super) fn list_mine(call: &ApiCall, request: DriveParams) -> Result<ApiResponse, ServiceError> {
    list(call, &DriveParams { owner_type: Some("user".into()), ..request })
}

/// `drive/list` and `drive/search`. The marker is the last id of the previous page.
pub(super) fn list(call: &ApiCall, request: &DriveParams) -> Result<ApiResponse, ServiceError> {
    let (items, next_marker) = page(call, request)?;
    ApiResponse::json(200, &serde_json::json!({ "items": items, "next_marker": next_marker }))
}

/// `drive/list_my_group_drive`: drives of a group. There is no drive of the whole domain.
pub(super) fn list_group(call: &ApiCall, request: DriveParams) -> Result<ApiResponse, ServiceError> {
    let (items, next_marker) = page(call, &DriveParams { owner_type: Some("group".into()), ..request })?;
    let body = serde_json::json!({ "items": items, "root_group_drive": null, "next_marker": next_marker });
    ApiResponse::json(200, &body)
}

/// The drives of a page and the marker of the next one.
fn page(call: &ApiCall, request: &DriveParams) -> Result<(Vec<serde_json::Value>, String), ServiceError> {
    let limit = limit(request.limit, 100, 100)?;
    call.app.catalog.read(|state| {
        let quota = state.quota_bytes();
        let is_owned = request.owner_type.as_deref().is_none_or(|kind| kind == owner_type(call))
            && request.owner.as_deref().is_none_or(|owner| owner == USER_ID);
        let after = |drive: &&DriveRecord| {
            is_owned && request.marker.as_ref().is_none_or(|marker| drive.drive_id > *marker)
        };
        let mut rest = state.drives().filter(after);
        let page: Vec<_> = rest.by_ref().take(limit).collect();
        let last = page.last().map(|drive| drive.drive_id.to_string());
        let next_marker = rest.next().and(last).unwrap_or_default();
        let view = |drive| serde_json::to_value(DriveView::of(call, drive, quota));
        let items = page.into_iter().map(view).collect::<Result<_, _>>();
        Ok((items.map_err(|e| ServiceError::internal(e.to_string()))?, next_marker))
    })
}
