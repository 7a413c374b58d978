//! Calls for one object: get, update, move, copy, tag, download.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::item::ItemParams;
use super::removal::maybe_async;
use super::request::{
    USER_TAGS_MAX, check_description, check_labels, check_name, check_tags, check_time, lenient, list, mode,
    require,
};
use super::view::{DirSize, FileView, download_url};
use crate::ids::{DriveId, FileId};
use crate::pds::types::UserTag;
use crate::server::app::DOMAIN_ID;
use crate::server::call::{ApiCall, HttpResult, error_response};
use crate::server::catalog::{CatalogState, Edits};
use crate::server::clock::rfc3339;
use crate::server::errors::ServiceError;
use crate::server::reply::{ApiResponse, ReplyBody, response};

/// Bound on the lifetime of a download URL.
const DOWNLOAD_TTL_MAX_S: u32 = 115_200;

#[derive(Deserialize)]
pub(super) struct GetRequest {
    #[serde(default, deserialize_with = "lenient")]
    drive_id: Option<DriveId>,
    #[serde(default, deserialize_with = "lenient")]
    file_id: Option<FileId>,
    #[serde(flatten)]
    item: ItemParams,
}

/// `file/get`.
pub(super) fn get(call: &ApiCall, request: GetRequest) -> Result<ApiResponse, ServiceError> {
    let drive = require(request.drive_id, "drive_id")?;
    let file = require(request.file_id, "file_id")?;
    request.item.check()?;
    let no_tags = BTreeMap::new();
    call.app.catalog.read(|state| {
        if file.as_str() == "root" && call.app.config.quirks.get_root {
            return ApiResponse::json(200, &FileView::of_root(state.drive(&drive)?, &file, &no_tags));
        }
        let node = state.live(&drive, &file)?;
        let mut view = FileView::of(call, node);
        // Without `fields`, `get` returns the URL; `list` does not.
        let item = &request.item;
        let has_url = item.fields.is_none() || item.names("url") || item.names("*");
        item.add_urls(call, node, &mut view, has_url);
        if node.is_folder() && item.names("dir_size") {
            let (size, count) = dir_size(state, &drive, &file);
            view.size = Some(size);
            view.dir_size_info = Some(count);
        }
        ApiResponse::json(200, &view)
    })
}

fn dir_size(state: &CatalogState, drive: &DriveId, folder: &FileId) -> (u64, DirSize) {
    let (mut size, mut count) = (0, DirSize { dir_count: 0, file_count: 0 });
    for node in state.below(drive, folder).iter().skip(1).filter_map(|id| state.node(drive, id).ok()) {
        size += node.size();
        if node.is_folder() {
            count.dir_count += 1;
        } else {
            count.file_count += 1;
        }
    }
    (size, count)
}

#[derive(Deserialize)]
pub(super) struct GetByPathRequest {
    #[serde(default, deserialize_with = "lenient")]
    drive_id: Option<DriveId>,
    file_path: Option<String>,
}

/// `file/get_by_path`.
pub(super) fn get_by_path(call: &ApiCall, request: GetByPathRequest) -> Result<ApiResponse, ServiceError> {
    if call.app.config.quirks.no_get_by_path {
        return Err(ServiceError::no_route());
    }
    let drive = require(request.drive_id, "drive_id")?;
    let path = require(request.file_path, "file_path")?;
    call.app.catalog.read(|state| ApiResponse::json(200, &FileView::of(call, state.by_path(&drive, &path)?)))
}

#[derive(Deserialize)]
pub(super) struct UpdateParams {
    #[serde(default, deserialize_with = "lenient")]
    drive_id: Option<DriveId>,
    #[serde(default, deserialize_with = "lenient")]
    file_id: Option<FileId>,
    #[serde(default, deserialize_with = "lenient")]
    name: Option<String>,
    check_name_mode: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    local_modified_at: Option<String>,
    hidden: Option<bool>,
    starred: Option<bool>,
    description: Option<String>,
    labels: Option<Vec<String>>,
    user_meta: Option<String>,
    custom_index_key: Option<String>,
}

/// `file/update`.
pub(super) async fn update(call: &ApiCall, request: UpdateParams) -> Result<ApiResponse, ServiceError> {
    let app = &call.app;
    let drive = require(request.drive_id, "drive_id")?;
    let file = require(request.file_id, "file_id")?;
    if let Some(name) = &request.name {
        check_name(name)?;
    }
    check_time(request.local_modified_at.as_ref(), "local_modified_at")?;
    check_description(request.description.as_ref())?;
    check_labels(request.labels.as_deref().unwrap_or_default())?;
    let edits = Edits {
        name: request.name,
        mode: mode(request.check_name_mode.as_deref(), None)?,
        local_modified_at: request.local_modified_at,
        hidden: request.hidden,
        starred: request.starred,
        description: request.description,
        labels: request.labels,
        user_meta: request.user_meta,
        custom_index_key: request.custom_index_key,
    };
    let now_ms = app.clock.now_ms();
    let conflicts = app.config.quirks.update_conflict;
    app.catalog
        .change(|state| {
            let updated = match state.update(&drive, &file, edits, now_ms)? {
                Ok(()) => &file,
                Err(_) if conflicts => return Err(ServiceError::name_exists()),
                // Nothing was changed. The answer is the object that has the name.
                Err(sibling) => &sibling.clone(),
            };
            ApiResponse::json(200, &FileView::of(call, state.live(&drive, updated)?))
        })
        .await
}

#[derive(Deserialize)]
pub(super) struct MoveParams {
    #[serde(default, deserialize_with = "lenient")]
    drive_id: Option<DriveId>,
    #[serde(default, deserialize_with = "lenient")]
    file_id: Option<FileId>,
    #[serde(default, deserialize_with = "lenient")]
    to_parent_file_id: Option<FileId>,
    #[serde(default, deserialize_with = "lenient")]
    to_drive_id: Option<DriveId>,
    #[serde(default, deserialize_with = "lenient")]
    new_name: Option<String>,
    check_name_mode: Option<String>,
    auto_rename: Option<bool>,
}

/// `file/move`.
pub(super) async fn move_file(call: &ApiCall, request: MoveParams) -> Result<ApiResponse, ServiceError> {
    let app = &call.app;
    let drive = require(request.drive_id, "drive_id")?;
    let file = require(request.file_id, "file_id")?;
    let to = require(request.to_parent_file_id, "to_parent_file_id")?;
    let mode = mode(request.check_name_mode.as_deref(), request.auto_rename)?;
    if let Some(name) = &request.new_name {
        check_name(name)?;
    }
    if request.to_drive_id.is_some_and(|to_drive| to_drive != drive) {
        return Err(ServiceError::invalid("to_drive_id", "An object cannot be moved to another drive."));
    }
    let now_ms = app.clock.now_ms();
    let (moved, is_folder) = app
        .catalog
        .change(|state| {
            let is_folder = state.live(&drive, &file)?.is_folder();
            let moved = state.move_node(&drive, &file, &to, request.new_name.as_deref(), mode, now_ms)?;
            let body = if let Err(sibling) = moved {
                serde_json::json!({
                    "domain_id": DOMAIN_ID, "drive_id": drive.as_str(), "file_id": sibling.as_str(),
                    "exist": true, "async_task_id": "",
                })
            } else {
                let node = state.live(&drive, &file)?;
                serde_json::json!({
                    "domain_id": DOMAIN_ID, "drive_id": drive.as_str(), "file_id": file.as_str(),
                    "file_name": node.name, "async_task_id": "", "updated_at": rfc3339(node.updated_ms),
                    "revision_id": node.newest().map(|revision| revision.revision_id.as_str()),
                })
            };
            Ok((body, is_folder))
        })
        .await?;
    let done = ApiResponse::json(200, &moved)?;
    if moved.get("exist").is_some() { Ok(done) } else { maybe_async(call, &drive, &file, is_folder, done) }
}

/// `file/copy`.
pub(super) async fn copy(call: &ApiCall, request: MoveParams) -> Result<ApiResponse, ServiceError> {
    let app = &call.app;
    let drive = require(request.drive_id, "drive_id")?;
    let file = require(request.file_id, "file_id")?;
    let to = require(request.to_parent_file_id, "to_parent_file_id")?;
    let to_drive = request.to_drive_id.unwrap_or_else(|| drive.clone());
    let mode = mode(request.check_name_mode.as_deref(), request.auto_rename)?;
    if let Some(name) = &request.new_name {
        check_name(name)?;
    }
    let now_ms = app.clock.now_ms();
    let (new_id, is_folder) = app
        .catalog
        .change(|state| {
            let is_folder = state.live(&drive, &file)?.is_folder();
            let name = request.new_name.as_deref();
            Ok((state.copy((&drive, &file), (&to_drive, &to), name, mode, now_ms)?, is_folder))
        })
        .await?;
    let body = serde_json::json!({
        "domain_id": DOMAIN_ID, "drive_id": to_drive.as_str(), "file_id": new_id.as_str(),
    });
    maybe_async(call, &to_drive, &new_id, is_folder, ApiResponse::json(201, &body)?)
}

#[derive(Deserialize)]
#[allow(clippy::struct_field_names)] // Named as on the wire.
pub(super) struct TagsRequest {
    #[serde(default, deserialize_with = "lenient")]
    drive_id: Option<DriveId>,
    #[serde(default, deserialize_with = "lenient")]
    file_id: Option<FileId>,
    #[serde(default, deserialize_with = "list")]
    user_tags: Vec<UserTag>,
    #[serde(default, deserialize_with = "list")]
    key_list: Vec<String>,
}

/// `file/put_usertags`.
pub(super) async fn put_usertags(call: &ApiCall, request: TagsRequest) -> Result<ApiResponse, ServiceError> {
    let app = &call.app;
    let drive = require(request.drive_id, "drive_id")?;
    let file = require(request.file_id, "file_id")?;
    let given = check_tags(request.user_tags)?;
    let replaces = app.config.quirks.replace_user_tags;
    let now_ms = app.clock.now_ms();
    app.catalog
        .change(|state| {
            state.tag(&drive, &file, now_ms, |tags| {
                if replaces {
                    tags.clear();
                }
                tags.extend(given);
                if tags.len() > USER_TAGS_MAX {
                    return Err(ServiceError::invalid("user_tags", "There are more than 1000."));
                }
                Ok(())
            })
        })
        .await?;
    ApiResponse::json(200, &serde_json::json!({ "file_id": file.as_str() }))
}

/// `file/delete_usertags`.
pub(super) async fn delete_usertags(
    call: &ApiCall,
    request: TagsRequest,
) -> Result<ApiResponse, ServiceError> {
    let app = &call.app;
    let drive = require(request.drive_id, "drive_id")?;
    let file = require(request.file_id, "file_id")?;
    let now_ms = app.clock.now_ms();
    app.catalog
        .change(|state| {
            state.tag(&drive, &file, now_ms, |tags| {
                tags.retain(|key, _| !request.key_list.contains(key));
                Ok(())
            })
        })
        .await?;
    Ok(ApiResponse::empty(204))
}

#[derive(Deserialize)]
pub(super) struct DownloadUrlParams {
    #[serde(default, deserialize_with = "lenient")]
    drive_id: Option<DriveId>,
    #[serde(default, deserialize_with = "lenient")]
    file_id: Option<FileId>,
    #[serde(default, deserialize_with = "lenient")]
    revision_id: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    expire_sec: Option<u32>,
}

/// `file/get_download_url`.
pub(super) fn get_download_url(
    call: &ApiCall,
    request: DownloadUrlParams,
) -> Result<ApiResponse, ServiceError> {
    let drive = require(request.drive_id, "drive_id")?;
    let file = require(request.file_id, "file_id")?;
    let ttl_s = request.expire_sec.unwrap_or(call.app.config.url_ttl_s);
    if !(1..=DOWNLOAD_TTL_MAX_S).contains(&ttl_s) {
        return Err(ServiceError::invalid("expire_sec", "It is not within 1 to 115200."));
    }
    call.app.catalog.read(|state| {
        let node = state.live(&drive, &file)?;
        if node.is_folder() {
            return Err(ServiceError::invalid("file_id", "It is not a file."));
        }
        let revision = match &request.revision_id {
            None => node.newest(),
            Some(id) => node.revisions().iter().find(|revision| revision.revision_id.as_str() == id),
        };
        let revision = revision.ok_or_else(|| ServiceError::not_found("Revision"))?;
        let (url, expires_s) = download_url(call, node, revision, ttl_s);
        let mut body = serde_json::json!({
            "domain_id": DOMAIN_ID,
            "drive_id": drive.as_str(),
            "file_id": file.as_str(),
            "url": url,
            "internal_url": "",
            "cdn_url": "",
            "expiration": rfc3339(expires_s * 1000),
            "method": "GET",
            "size": revision.size,
        });
        let quirks = &call.app.config.quirks;
        if !quirks.unversioned_urls {
            body["revision_id"] = revision.revision_id.as_str().into();
        }
        if !quirks.unversioned_urls && !quirks.no_hashes {
            body["crc64_hash"] = revision.crc64.to_string().into();
            body["content_hash"] = revision.hash.as_str().into();
            body["content_hash_name"] = quirks.hash_name.as_str().into();
        }
        ApiResponse::json(200, &body)
    })
}

/// `GET /v2/file/download`: a redirect to the download URL.
pub(in crate::server) fn download(call: &ApiCall) -> HttpResult {
    let query: serde_json::Map<_, _> =
        url::form_urlencoded::parse(call.head.uri.query().unwrap_or("").as_bytes())
            .map(|(key, value)| (key.into_owned(), value.into_owned().into()))
            .collect();
    let body = serde_json::Value::Object(query).to_string();
    let answer = super::request::parse(body.as_bytes()).and_then(|request| get_download_url(call, request));
    let url = answer.and_then(|answer| {
        let body: serde_json::Value = super::request::parse(&answer.body)?;
        body["url"].as_str().map(str::to_owned).ok_or_else(|| ServiceError::not_found("File"))
    });
    match url {
        Ok(url) => {
            let headers = [("location", url), ("x-ca-request-id", call.request_id.clone())];
            response(302, &headers, ReplyBody::whole(""))
        }
        Err(error) => error_response(call, &error),
    }
}
