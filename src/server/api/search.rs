//! Searches: of files, of the recycle bins, and of the objects with a `custom_index_key`.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::item::ItemParams;
use super::listing::{is_descending, order};
use super::query::Query;
use super::request::{lenient, limit, list, require};
use super::view::FileView;
use crate::ids::DriveId;
use crate::server::call::ApiCall;
use crate::server::catalog::records::Node;
use crate::server::catalog::{CatalogState, SortOrder, compare};
use crate::server::clock::{decode_hex, hex};
use crate::server::errors::ServiceError;
use crate::server::reply::ApiResponse;

/// Longest query of a search.
const QUERY_CHARS_MAX: usize = 4096;
/// Longest `order_by` of a search.
const ORDER_CHARS_MAX: usize = 128;
/// Results of a page; the documents have 50.
const LIMIT_DEFAULT: u32 = 50;

#[derive(Deserialize)]
pub(super) struct SearchParams {
    #[serde(default, deserialize_with = "lenient")]
    drive_id: Option<DriveId>,
    #[serde(default, deserialize_with = "list")]
    drive_id_list: Vec<DriveId>,
    #[serde(default, deserialize_with = "lenient")]
    limit: Option<u32>,
    #[serde(default, deserialize_with = "lenient")]
    marker: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    order_by: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    order_direction: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    query: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    custom_index_key: Option<String>,
    recursive: Option<bool>,
    return_total_count: Option<bool>,
    #[serde(flatten)]
    item: ItemParams,
}

#[derive(Serialize)]
struct SearchReply<'a> {
    items: Vec<FileView<'a>>,
    next_marker: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_count: Option<usize>,
}

/// Where a search continues, as an opaque word for the client. It contains the search: with a marker the other
/// parameters are ignored.
#[derive(Clone, Default, Serialize, Deserialize)]
struct SearchMarker {
    #[serde(rename = "q")]
    query: String,
    #[serde(rename = "r")]
    recursive: bool,
    #[serde(rename = "o")]
    order_by: String,
    /// Number of preceding results.
    #[serde(rename = "s")]
    skip: usize,
}

impl SearchMarker {
    fn of(request: &SearchParams) -> Result<Self, ServiceError> {
        if let Some(word) = &request.marker {
            let marker = decode_hex(word).and_then(|raw| serde_json::from_slice(&raw).ok());
            return marker.ok_or_else(|| ServiceError::invalid("marker", "The server did not issue it."));
        }
        let (query, order_by) = (
            request.query.clone().unwrap_or_default(),
            request.order_by.clone().unwrap_or_else(|| "created_at".to_owned()),
        );
        if query.chars().count() > QUERY_CHARS_MAX {
            return Err(ServiceError::invalid("query", "It has more than 4096 characters."));
        }
        if order_by.chars().count() > ORDER_CHARS_MAX {
            return Err(ServiceError::invalid("order_by", "It has more than 128 characters."));
        }
        Ok(Self { query, order_by, recursive: request.recursive == Some(true), skip: 0 })
    }
}

enum SearchOrder {
    Type,
    By(SortOrder),
}

impl SearchOrder {
    fn compare(&self, a: &Node, b: &Node) -> Ordering {
        match self {
            Self::Type => b.is_folder().cmp(&a.is_folder()),
            Self::By(order) => compare(*order, a, b),
        }
    }
}

/// `name ASC,created_at DESC`.
fn orders(text: &str) -> Result<Vec<(SearchOrder, bool)>, ServiceError> {
    text.split(',')
        .map(str::trim)
        .filter(|one| !one.is_empty())
        .map(|one| {
            let (by, direction) = one.split_once(' ').map_or((one, None), |(by, d)| (by, Some(d.trim())));
            let order = if by == "type" { SearchOrder::Type } else { SearchOrder::By(order(Some(by))?) };
            Ok((order, is_descending(direction)?))
        })
        .collect()
}

/// The page of a search among `found`.
fn page<'a>(
    call: &ApiCall,
    request: &SearchParams,
    search: &SearchMarker,
    mut found: Vec<&'a Node>,
) -> Result<SearchReply<'a>, ServiceError> {
    let limit = limit(request.limit, LIMIT_DEFAULT, 100)?;
    let orders = orders(&search.order_by)?;
    found.sort_by(|a, b| {
        orders
            .iter()
            .map(|(order, descending)| {
                let ordering = order.compare(a, b);
                if *descending { ordering.reverse() } else { ordering }
            })
            .find(|ordering| ordering.is_ne())
            .unwrap_or_else(|| a.file_id.cmp(&b.file_id))
    });
    let total = found.len();
    let items: Vec<_> =
        found.into_iter().skip(search.skip).take(limit).map(|node| request.item.listed(call, node)).collect();
    let next = SearchMarker { skip: search.skip.saturating_add(items.len()), ..search.clone() };
    let next_marker = if next.skip < total && !items.is_empty() {
        serde_json::to_vec(&next).map(|raw| hex(&raw)).unwrap_or_default()
    } else {
        String::new()
    };
    let total_count = (request.return_total_count == Some(true)).then_some(total);
    Ok(SearchReply { items, next_marker, total_count })
}

/// Whether an object is in a folder; if `recursive`, at any depth.
fn is_in(state: &CatalogState, node: &Node, folder: &str, recursive: bool) -> bool {
    let mut parent = &node.parent;
    loop {
        if parent.as_str() == folder {
            return true;
        }
        match state.node(&node.drive_id, parent) {
            Ok(above) if recursive => parent = &above.parent,
            _ => return false,
        }
    }
}

/// `file/search`.
pub(super) fn search(call: &ApiCall, request: &SearchParams) -> Result<ApiResponse, ServiceError> {
    request.item.check()?;
    let drives = match &request.drive_id {
        Some(drive) => std::slice::from_ref(drive),
        None if request.drive_id_list.is_empty() => return Err(ServiceError::missing("drive_id")),
        None => &request.drive_id_list,
    };
    let search = SearchMarker::of(request)?;
    let query = Query::<Node>::parse(&search.query)?;
    call.app.catalog.read(|state| {
        let mut found = Vec::new();
        for drive in drives {
            state.drive(drive)?;
            let is_in = |node: &Node, folder: &str| is_in(state, node, folder, search.recursive);
            let objects = state.scan(drive, None).filter(|node| call.is_listed(node));
            found.extend(objects.filter(|node| query.matches(node, &is_in)));
        }
        ApiResponse::json(200, &page(call, request, &search, found)?)
    })
}

/// `recyclebin/search_all`: the recycle bins of one drive, or of all.
pub(super) fn search_bins(call: &ApiCall, request: &SearchParams) -> Result<ApiResponse, ServiceError> {
    request.item.check()?;
    let search = SearchMarker::of(request)?;
    let query = Query::<Node>::parse(&search.query)?;
    call.app.catalog.read(|state| {
        let drives = state.drives().map(|drive| &drive.drive_id);
        let is_in = |node: &Node, folder: &str| is_in(state, node, folder, search.recursive);
        let found = drives
            .filter(|drive| request.drive_id.as_ref().is_none_or(|wanted| wanted == *drive))
            .flat_map(|drive| state.bin(drive, None).map(|(_, node)| node))
            .filter(|node| query.matches(node, &is_in))
            .collect();
        ApiResponse::json(200, &page(call, request, &search, found)?)
    })
}

/// `file/list_by_custom_index_key`, newest first.
pub(super) fn list_by_key(call: &ApiCall, request: &SearchParams) -> Result<ApiResponse, ServiceError> {
    request.item.check()?;
    let drive = require(request.drive_id.as_ref(), "drive_id")?;
    let key = require(request.custom_index_key.as_deref(), "custom_index_key")?;
    let direction = if request.order_direction.is_none() || is_descending(request.order_direction.as_deref())?
    {
        "DESC"
    } else {
        "ASC"
    };
    let fresh = SearchMarker { order_by: format!("updated_at {direction}"), ..SearchMarker::default() };
    let search = if request.marker.is_some() { SearchMarker::of(request)? } else { fresh };
    call.app.catalog.read(|state| {
        state.drive(drive)?;
        let has_key = |node: &&Node| node.attrs.custom_index_key.as_deref() == Some(key);
        let found = state.scan(drive, None).filter(has_key).collect();
        ApiResponse::json(200, &page(call, request, &search, found)?)
    })
}
