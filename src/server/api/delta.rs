//! The change feed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::request::{lenient, limit, require};
use super::view::FileView;
use crate::ids::{DriveId, FileId};
use crate::server::call::ApiCall;
use crate::server::catalog::Changed;
use crate::server::catalog::records::CatalogOp;
use crate::server::errors::ServiceError;
use crate::server::reply::ApiResponse;

/// Start of a decoded cursor.
const CURSOR: &str = "delta:";

/// The documents have 100; clients send up to 1000, and the service answers them.
const CHANGES_MAX: u32 = 1000;

#[derive(Deserialize)]
pub(super) struct DeltaRequest {
    #[serde(default, deserialize_with = "lenient")]
    drive_id: Option<DriveId>,
    #[serde(default, deserialize_with = "lenient")]
    cursor: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    limit: Option<u32>,
    #[serde(default, deserialize_with = "lenient")]
    sync_root_id: Option<FileId>,
}

/// A cursor is opaque for clients.
fn encode(seq: u64) -> String {
    STANDARD.encode(format!("{CURSOR}{seq}"))
}

fn decode(cursor: &str) -> Option<u64> {
    let text = String::from_utf8(STANDARD.decode(cursor).ok()?).ok()?;
    text.strip_prefix(CURSOR)?.parse().ok()
}

/// `file/get_last_cursor`.
pub(super) fn get_last_cursor(call: &ApiCall, request: DeltaRequest) -> Result<ApiResponse, ServiceError> {
    let drive = require(request.drive_id, "drive_id")?;
    call.app.catalog.read(|state| {
        state.drive(&drive)?;
        ApiResponse::json(200, &json!({ "cursor": encode(state.last_cursor()) }))
    })
}

/// An item of the feed. An object that was deleted or is in the recycle bin is its id only. An update of
/// attributes has the object without name, type and size.
fn item_of(call: &ApiCall, (delta, node): &Changed<'_>) -> Result<Value, serde_json::Error> {
    let mut item = json!({ "file_id": delta.file_id.as_str(), "op": delta.op });
    if let Some(node) = node {
        let mut file = serde_json::to_value(FileView::of(call, node))?;
        if let (CatalogOp::Update, Some(file)) = (delta.op, file.as_object_mut()) {
            file.retain(|member, _| !["name", "type", "size"].contains(&member.as_str()));
        }
        item["file"] = file;
    }
    Ok(item)
}

/// `file/list_delta`.
pub(super) fn list_delta(call: &ApiCall, request: DeltaRequest) -> Result<ApiResponse, ServiceError> {
    let quirks = &call.app.config.quirks;
    let drive = require(request.drive_id, "drive_id")?;
    let limit = limit(request.limit, 100, CHANGES_MAX)?;
    let foreign = || ServiceError::invalid("cursor", "The server did not issue it.");
    let given = request.cursor.map(|text| decode(&text).ok_or_else(foreign)).transpose()?;
    call.app.catalog.read(|state| {
        let cursor = match given {
            Some(cursor) => cursor,
            None if quirks.delta_empty_cursor_is_now => state.last_cursor(),
            None => state.first_cursor(),
        };
        let (deltas, next, has_more) = if quirks.delta_always_empty {
            state.drive(&drive)?;
            (Vec::new(), cursor, false)
        } else {
            state.deltas(&drive, request.sync_root_id.as_ref(), cursor, limit)?
        };
        let items: Result<Vec<_>, _> = deltas.iter().map(|changed| item_of(call, changed)).collect();
        let items = items.map_err(|error| ServiceError::internal(error.to_string()))?;
        ApiResponse::json(200, &json!({ "items": items, "cursor": encode(next), "has_more": has_more }))
    })
}
