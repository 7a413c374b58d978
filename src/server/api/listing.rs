//! Calls that return pages: folders, the whole drive, the recycle bin.

use serde::{Deserialize, Serialize};

use super::item::ItemParams;
use super::odd_items::odd_items;
use super::request::{lenient, limit, require};
use super::view::{FileView, category};
use crate::ids::{DriveId, FileId};
use crate::pds::types::FileType;
use crate::server::call::ApiCall;
use crate::server::catalog::records::Node;
use crate::server::catalog::{Marker, Share, SortOrder};
use crate::server::clock::{decode_hex, hex};
use crate::server::errors::ServiceError;
use crate::server::reply::ApiResponse;

/// Bound on the entries examined for one page. A selective filter makes short pages.
const EXAMINED_MAX: usize = 10_000;

/// The members of an item of `file/scan` without `fields`. There is no name among them.
const SCANNED: [&str; 11] = [
    "file_id",
    "drive_id",
    "parent_file_id",
    "type",
    "created_at",
    "updated_at",
    "file_extension",
    "size",
    "starred",
    "status",
    "category",
];

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
    #[serde(flatten)]
    item: ItemParams,
}

#[derive(Serialize)]
struct ListReply<'a> {
    items: Vec<FileView<'a>>,
    next_marker: String,
}

pub(super) fn order(text: Option<&str>) -> Result<SortOrder, ServiceError> {
    match text {
        None | Some("created_at") => Ok(SortOrder::CreatedAt),
        Some("updated_at") => Ok(SortOrder::UpdatedAt),
        Some("size") => Ok(SortOrder::Size),
        Some("name" | "name_enhanced") => Ok(SortOrder::Name),
        Some(_) => Err(ServiceError::invalid("order_by", "It is created_at, updated_at, size or name.")),
    }
}

pub(super) fn is_descending(text: Option<&str>) -> Result<bool, ServiceError> {
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
}

/// `file/list`.
pub(super) fn list(call: &ApiCall, request: &ListParams) -> Result<ApiResponse, ServiceError> {
    let quirks = &call.app.config.quirks;
    let drive = require(request.drive_id.clone(), "drive_id")?;
    let parent = require(request.parent_file_id.clone(), "parent_file_id")?;
    let limit = limit(request.limit, 50, 200)?.min(quirks.list_page_max.max(1) as usize);
    request.item.check()?;
    // The documented default is ASC. The functional tests of the official JS SDK see the newest first.
    let is_unordered = request.order_by.is_none() && request.order_direction.is_none();
    let order = order(request.order_by.as_deref())?;
    let descending = is_unordered || is_descending(request.order_direction.as_deref())?;
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
        return ApiResponse::json(200, &ListReply { items: Vec::new(), next_marker });
    }
    call.app.catalog.read(|state| {
        state.check_folder(&drive, &parent)?;
        if request.status.as_deref() == Some("uploading") {
            let here = state.uploads().filter(|upload| upload.drive_id == drive);
            let views = here.filter_map(FileView::of_upload).filter(|view| view.is_in(&parent));
            return ApiResponse::json(200, &ListReply { items: views.collect(), next_marker: String::new() });
        }
        let (mut items, mut last, mut examined, mut is_end) = (Vec::new(), marker.last.clone(), 0, true);
        let is_hidden = quirks.empty_subfolders && parent.as_str() != "root";
        if let Some(folder) = state.folder(&drive, &parent).filter(|_| !is_hidden) {
            for entry in folder.walk(order, descending, marker.last.as_ref()) {
                let Ok(node) = state.node(&drive, &entry.1) else { continue };
                let is_taken = request.matches(node) && call.is_listed(node);
                if (is_taken && items.len() == limit) || examined == EXAMINED_MAX {
                    is_end = false;
                    break;
                }
                examined += 1;
                last = Some(entry.clone());
                if is_taken {
                    items.push(request.item.listed(call, node));
                }
            }
        }
        let next = Marker { last, empty_page: quirks.list_empty_pages, ..marker.clone() };
        let next_marker = match (is_end, quirks.endless_list) {
            (false, _) => next.encode(),
            (true, false) => String::new(),
            (true, true) => Marker { last: None, ..marker }.encode(),
        };
        let page = ListReply { items, next_marker };
        if quirks.odd_list_items {
            return add_odd_items(&page, parent.as_str());
        }
        ApiResponse::json(200, &page)
    })
}

/// `file/list` of the root of a share: the shared objects, on one page.
pub(super) fn list_shared(
    call: &ApiCall,
    share: &Share,
    request: &ListParams,
) -> Result<ApiResponse, ServiceError> {
    request.item.check()?;
    call.app.catalog.read(|state| {
        let wanted = state.shared_nodes(share).filter(|node| request.matches(node));
        let items = wanted.map(|node| request.item.listed(call, node)).collect();
        ApiResponse::json(200, &ListReply { items, next_marker: String::new() })
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

/// The members of an item that `file/scan` returns.
fn scanned(call: &ApiCall, request: &ListParams, node: &Node) -> Result<serde_json::Value, ServiceError> {
    let mut view = FileView::of(call, node);
    let has_all = request.item.names("*");
    request.item.add_urls(call, node, &mut view, has_all || request.item.names("url"));
    let mut item = serde_json::to_value(view).map_err(|error| ServiceError::internal(error.to_string()))?;
    if let Some(members) = item.as_object_mut().filter(|_| !has_all) {
        let has_names = request.item.fields.as_deref().is_some_and(|fields| !fields.is_empty());
        members.retain(
            |name, _| {
                if has_names { request.item.names(name) } else { SCANNED.contains(&name.as_str()) }
            },
        );
    }
    Ok(item)
}

/// `file/scan` and `file/walk`: all objects of the drive by id. The marker is the last id.
pub(super) fn scan(call: &ApiCall, request: &ListParams) -> Result<ApiResponse, ServiceError> {
    let drive = require(request.drive_id.clone(), "drive_id")?;
    let limit = limit(request.limit, 100, 5000)?;
    request.item.check()?;
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
        let items =
            page.into_iter().map(|node| scanned(call, request, node)).collect::<Result<Vec<_>, _>>()?;
        ApiResponse::json(200, &serde_json::json!({ "items": items, "next_marker": next_marker }))
    })
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
        let items = page.into_iter().map(|(_, node)| request.item.listed(call, node)).collect();
        ApiResponse::json(200, &ListReply { items, next_marker })
    })
}
