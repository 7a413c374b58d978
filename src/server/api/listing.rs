//! Calls that return pages: folders, the whole drive, searches, the recycle bin, the change feed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::files::{includes_field, names_field};
use super::odd_items::odd_items;
use super::query::Query;
use super::request::{lenient, limit, require};
use super::view::{FileView, category, download_url};
use crate::ids::{DriveId, FileId};
use crate::pds::types::FileType;
use crate::server::call::ApiCall;
use crate::server::catalog::records::{CatalogOp, Node};
use crate::server::catalog::{Marker, SortOrder, compare};
use crate::server::clock::{decode_hex, hex};
use crate::server::errors::ServiceError;
use crate::server::reply::ApiResponse;

/// Bound on the entries examined for one page. A selective filter makes short pages.
const EXAMINED_MAX: usize = 10_000;

static NO_TAGS: BTreeMap<String, String> = BTreeMap::new();

/// Longest query of a search.
const QUERY_CHARS_MAX: usize = 4096;

#[derive(Deserialize)]
pub(super) struct ListParams {
    #[serde(default, deserialize_with = "lenient")]
    drive_id: Option<DriveId>,
    #[serde(default, deserialize_with = "lenient")]
    parent_file_id: Option<FileId>,
    #[serde(default, deserialize_with = "lenient")]
    limit: Option<u32>,
    #[serde(default, deserialize_with = "lenient")]
    marker: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    order_by: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    order_direction: Option<String>,
    #[serde(rename = "type")]
    #[serde(default, deserialize_with = "lenient")]
    file_type: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    category: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    status: Option<String>,
    starred: Option<bool>,
    fields: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    url_expire_sec: Option<u32>,
    #[serde(default, deserialize_with = "lenient")]
    query: Option<String>,
    return_total_count: Option<bool>,
}

#[derive(Serialize)]
struct ListReply<'a> {
    items: Vec<FileView<'a>>,
    next_marker: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_count: Option<usize>,
}

fn order(text: Option<&str>) -> Result<SortOrder, ServiceError> {
    match text {
        None | Some("created_at") => Ok(SortOrder::CreatedAt),
        Some("updated_at") => Ok(SortOrder::UpdatedAt),
        Some("size") => Ok(SortOrder::Size),
        Some("name" | "name_enhanced") => Ok(SortOrder::Name),
        Some(_) => Err(ServiceError::invalid("order_by", "It is created_at, updated_at, size or name.")),
    }
}

fn is_descending(text: Option<&str>) -> Result<bool, ServiceError> {
    match text {
        None => Ok(false),
        Some(text) if text.eq_ignore_ascii_case("asc") => Ok(false),
        Some(text) if text.eq_ignore_ascii_case("desc") => Ok(true),
        Some(_) => Err(ServiceError::invalid("order_direction", "It is ASC or DESC.")),
    }
}

impl ListParams {
    fn matches(&self, node: &Node) -> bool {
        let is_type = self.file_type.as_deref().is_none_or(|wanted| match node.file_type() {
            FileType::File => wanted == "file",
            FileType::Folder => wanted == "folder",
        });
        is_type
            && self
                .category
                .as_deref()
                .is_none_or(|wanted| !node.is_folder() && category(&node.name) == wanted)
            && self.starred.is_none_or(|wanted| node.attrs.starred == wanted)
    }

    fn view<'a>(&self, call: &ApiCall, node: &'a Node) -> FileView<'a> {
        let mut view = FileView::of(call, node);
        if !names_field(self.fields.as_deref(), "user_tags") {
            view.user_tags = &NO_TAGS;
        }
        if let Some(newest) = node.newest()
            && includes_field(self.fields.as_deref(), "url")
        {
            let ttl_s = self.url_expire_sec.unwrap_or(call.app.config.url_ttl_s);
            view.download_url = Some(download_url(call, node, newest, ttl_s).0);
        }
        view
    }
}

/// `file/list`.
pub(super) fn list(call: &ApiCall, request: &ListParams) -> Result<ApiResponse, ServiceError> {
    let quirks = &call.app.config.quirks;
    let drive = require(request.drive_id.clone(), "drive_id")?;
    let parent = require(request.parent_file_id.clone(), "parent_file_id")?;
    let limit = limit(request.limit, 50, 200)?.min(quirks.list_page_max.max(1) as usize);
    let (order, descending) =
        (order(request.order_by.as_deref())?, is_descending(request.order_direction.as_deref())?);
    let fresh =
        Marker { order, descending, parent: parent.clone(), last: None, empty_page: quirks.list_empty_pages };
    let marker = match &request.marker {
        None => fresh,
        Some(word) => Marker::decode(word)
            .filter(|m| m.order == order && m.descending == descending && m.parent == parent)
            .ok_or_else(|| ServiceError::invalid("marker", "It belongs to another listing."))?,
    };
    if marker.empty_page {
        let next_marker = Marker { empty_page: false, ..marker }.encode();
        return ApiResponse::json(200, &ListReply { items: Vec::new(), next_marker, total_count: None });
    }
    call.app.catalog.read(|state| {
        state.check_folder(&drive, &parent)?;
        if request.status.as_deref() == Some("uploading") {
            let here = state.uploads().filter(|upload| upload.drive_id == drive);
            let views = here.filter_map(FileView::of_upload).filter(|view| view.is_in(&parent));
            return ApiResponse::json(
                200,
                &ListReply { items: views.collect(), next_marker: String::new(), total_count: None },
            );
        }
        let (mut items, mut last, mut examined, mut is_end) = (Vec::new(), marker.last.clone(), 0, true);
        if let Some(folder) = state.folder(&drive, &parent) {
            for entry in folder.walk(order, descending, marker.last.as_ref()) {
                let Ok(node) = state.node(&drive, &entry.1) else { continue };
                let is_taken = request.matches(node);
                if (is_taken && items.len() == limit) || examined == EXAMINED_MAX {
                    is_end = false;
                    break;
                }
                examined += 1;
                last = Some(entry.clone());
                if is_taken {
                    items.push(request.view(call, node));
                }
            }
        }
        let next = Marker { last, empty_page: quirks.list_empty_pages, ..marker.clone() };
        let next_marker = match (is_end, quirks.endless_list) {
            (false, _) => next.encode(),
            (true, false) => String::new(),
            (true, true) => Marker { last: None, ..marker }.encode(),
        };
        let page = ListReply { items, next_marker, total_count: None };
        if quirks.odd_list_items {
            return add_odd_items(&page, parent.as_str());
        }
        ApiResponse::json(200, &page)
    })
}

/// The page with items that contradict the documentation, before and between its own.
fn add_odd_items(page: &ListReply<'_>, parent: &str) -> Result<ApiResponse, ServiceError> {
    let mut body = serde_json::to_value(page).map_err(|error| ServiceError::internal(error.to_string()))?;
    if let Some(items) = body["items"].as_array_mut() {
        for (index, odd) in odd_items(parent).into_iter().enumerate() {
            items.insert((2 * index).min(items.len()), odd);
        }
    }
    ApiResponse::json(200, &body)
}

/// `file/scan` and `file/walk`: all objects of the drive by id. The marker is the last id.
pub(super) fn scan(call: &ApiCall, request: &ListParams) -> Result<ApiResponse, ServiceError> {
    let drive = require(request.drive_id.clone(), "drive_id")?;
    let limit = limit(request.limit, 100, 5000)?;
    let after = match &request.marker {
        None => None,
        Some(id) => Some(
            FileId::new(id).map_err(|_| ServiceError::invalid("marker", "The server did not issue it."))?,
        ),
    };
    call.app.catalog.read(|state| {
        state.drive(&drive)?;
        let mut rest = state.scan(&drive, after.as_ref()).filter(|node| request.matches(node));
        let page: Vec<_> = rest.by_ref().take(limit).collect();
        let last = page.last().map(|node| node.file_id.to_string());
        let next_marker = rest.next().and(last).unwrap_or_default();
        let items = page.into_iter().map(|node| request.view(call, node)).collect();
        ApiResponse::json(200, &ListReply { items, next_marker, total_count: None })
    })
}

/// `file/search`. The marker is the number of preceding results.
pub(super) fn search(call: &ApiCall, request: &ListParams) -> Result<ApiResponse, ServiceError> {
    let drive = require(request.drive_id.clone(), "drive_id")?;
    let limit = limit(request.limit, 100, 100)?;
    let text = request.query.clone().unwrap_or_default();
    if text.chars().count() > QUERY_CHARS_MAX {
        return Err(ServiceError::invalid("query", "It has more than 4096 characters."));
    }
    let query = Query::parse(&text)?;
    let orders = orders(request.order_by.as_deref().unwrap_or(""))?;
    let skip: usize = match &request.marker {
        None => 0,
        Some(marker) => {
            marker.parse().map_err(|_| ServiceError::invalid("marker", "The server did not issue it."))?
        }
    };
    call.app.catalog.read(|state| {
        state.drive(&drive)?;
        let mut found: Vec<_> = state.scan(&drive, None).filter(|node| query.matches(node)).collect();
        found.sort_by(|a, b| {
            orders
                .iter()
                .map(|(order, descending)| {
                    let ordering = compare(*order, a, b);
                    if *descending { ordering.reverse() } else { ordering }
                })
                .find(|ordering| ordering.is_ne())
                .unwrap_or_else(|| a.file_id.cmp(&b.file_id))
        });
        let total = found.len();
        let items: Vec<_> =
            found.into_iter().skip(skip).take(limit).map(|node| request.view(call, node)).collect();
        let seen = skip + items.len();
        let next_marker = if seen < total { seen.to_string() } else { String::new() };
        let total_count = (request.return_total_count == Some(true)).then_some(total);
        ApiResponse::json(200, &ListReply { items, next_marker, total_count })
    })
}

/// `name ASC,created_at DESC`.
fn orders(text: &str) -> Result<Vec<(SortOrder, bool)>, ServiceError> {
    text.split(',')
        .map(str::trim)
        .filter(|one| !one.is_empty())
        .map(|one| {
            let (by, direction) = one.split_once(' ').map_or((one, None), |(by, d)| (by, Some(d.trim())));
            Ok((order(Some(by))?, is_descending(direction)?))
        })
        .collect()
}

/// `recyclebin/list`, newest first.
pub(super) fn bin(call: &ApiCall, request: &ListParams) -> Result<ApiResponse, ServiceError> {
    let drive = require(request.drive_id.clone(), "drive_id")?;
    let limit = limit(request.limit, 50, 200)?;
    let bad = || ServiceError::invalid("marker", "The server did not issue it.");
    let after = match &request.marker {
        None => None,
        Some(word) => {
            let raw = decode_hex(word).ok_or_else(bad)?;
            Some(serde_json::from_slice::<(i64, FileId)>(&raw).map_err(|_| bad())?)
        }
    };
    call.app.catalog.read(|state| {
        state.drive(&drive)?;
        let mut rest = state.bin(&drive, after.as_ref());
        let page: Vec<_> = rest.by_ref().take(limit).collect();
        let last = page.last().and_then(|(entry, _)| serde_json::to_vec(entry).ok()).map(|raw| hex(&raw));
        let next_marker = rest.next().and(last).unwrap_or_default();
        let items = page.into_iter().map(|(_, node)| request.view(call, node)).collect();
        ApiResponse::json(200, &ListReply { items, next_marker, total_count: None })
    })
}

#[derive(Deserialize)]
pub(super) struct DeltaRequest {
    #[serde(default, deserialize_with = "lenient")]
    drive_id: Option<DriveId>,
    #[serde(default, deserialize_with = "lenient")]
    cursor: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    limit: Option<u32>,
}

#[derive(Serialize)]
struct DeltaView<'a> {
    file_id: &'a FileId,
    op: CatalogOp,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<FileView<'a>>,
}

/// `file/get_last_cursor`.
pub(super) fn get_last_cursor(call: &ApiCall, request: DeltaRequest) -> Result<ApiResponse, ServiceError> {
    let drive = require(request.drive_id, "drive_id")?;
    call.app.catalog.read(|state| {
        state.drive(&drive)?;
        ApiResponse::json(200, &serde_json::json!({ "cursor": state.last_cursor().to_string() }))
    })
}

/// `file/list_delta`. An object that was deleted or is in the recycle bin is returned as its id only.
pub(super) fn list_delta(call: &ApiCall, request: DeltaRequest) -> Result<ApiResponse, ServiceError> {
    let quirks = &call.app.config.quirks;
    let drive = require(request.drive_id, "drive_id")?;
    let limit = limit(request.limit, 100, 100)?;
    let given: Option<u64> = match &request.cursor {
        None => None,
        Some(text) => {
            Some(text.parse().map_err(|_| ServiceError::invalid("cursor", "The server did not issue it."))?)
        }
    };
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
            state.deltas(&drive, cursor, limit)?
        };
        let view = |(delta, node): (&'_ crate::server::catalog::records::Delta, Option<&'_ Node>)| {
            serde_json::to_value(DeltaView {
                file_id: &delta.file_id,
                op: delta.op,
                file: node.map(|node| FileView::of(call, node)),
            })
        };
        let items: Vec<_> = deltas.into_iter().filter_map(|delta| view(delta).ok()).collect();
        let body = serde_json::json!({ "items": items, "cursor": next.to_string(), "has_more": has_more });
        ApiResponse::json(200, &body)
    })
}
