//! Calls through a share: their body has a `share_id` instead of a `drive_id`, and a header its token.
//!
//! Such a call needs no other credentials. It is executed as a call for the drive of the share, if the objects in
//! it belong to the share.

use hyper::header::AUTHORIZATION;
use serde_json::{Map, Value};

use super::endpoints::{dispatch_one, needs_no_token};
use super::listing;
use super::request::parse;
use super::shares::check_open;
use crate::ids::{DriveId, FileId, UploadId};
use crate::server::call::ApiCall;
use crate::server::catalog::records::UploadTarget;
use crate::server::catalog::{CatalogState, Share, ShareUse};
use crate::server::errors::ServiceError;
use crate::server::reply::ApiResponse;

/// The header with the token of a share.
const SHARE_TOKEN: &str = "x-share-token";

fn invalid_token(detail: &str) -> ServiceError {
    ServiceError::new(401, "ShareLinkTokenInvalid", format!("ShareLinkToken is invalid. {detail}"))
}

/// The share whose valid token the head of a call has.
fn share_of_token(call: &ApiCall) -> Option<Result<String, ServiceError>> {
    let token = call.head.headers.get(SHARE_TOKEN)?.to_str().unwrap_or("");
    let verified = call.app.signer.check_share_token(token, call.app.clock.now_ms());
    Some(verified.ok_or_else(|| invalid_token("expired")))
}

fn is_guest(call: &ApiCall) -> bool {
    !call.head.headers.contains_key(AUTHORIZATION)
}

/// Whether a call without other credentials has a valid share token.
pub(in crate::server) fn is_visitor(call: &ApiCall) -> Result<bool, ServiceError> {
    if !is_guest(call) {
        return Ok(false);
    }
    share_of_token(call).transpose().map(|share| share.is_some())
}

/// Answers a call of the table, also one of a batch.
pub(super) async fn dispatch(
    call: &ApiCall,
    endpoint: &str,
    body: &[u8],
) -> Result<ApiResponse, ServiceError> {
    if let Some(token) = share_of_token(call) {
        let mut request: Map<String, Value> = parse(body)?;
        let asked = request.remove("share_id").filter(|id| *id != "" && !id.is_null());
        if let Some(asked) = asked.filter(|_| endpoint.starts_with("file/")) {
            let share_id = token?;
            if asked != share_id.as_str() {
                return Err(invalid_token("It belongs to another share."));
            }
            return visit(call, endpoint, &share_id, request).await;
        }
    }
    if is_guest(call) && !needs_no_token(endpoint) {
        return Err(ServiceError::new(401, "AccessTokenInvalid", "AccessToken is missing."));
    }
    dispatch_one(call, endpoint, body).await
}

/// Executes a call through a share.
async fn visit(
    call: &ApiCall,
    endpoint: &str,
    share_id: &str,
    mut request: Map<String, Value>,
) -> Result<ApiResponse, ServiceError> {
    let (share, is_root_list) = call.app.catalog.read(|state| {
        let share = state.share(share_id)?;
        check_open(call, share)?;
        if share.settings.require_login && is_guest(call) {
            return Err(ServiceError::share_refused("The share needs a login."));
        }
        let is_root_list =
            endpoint == "file/list" && request.get("parent_file_id").is_some_and(|id| id == "root");
        let is_root_list = is_root_list && !share.share_all_files;
        if !is_root_list {
            check_scope(state, share, endpoint, &request)?;
        }
        Ok((share.clone(), is_root_list))
    })?;
    let usage = match endpoint {
        "file/get_download_url" if share.settings.disable_download => {
            return Err(ServiceError::share_refused("The share has no downloads."));
        }
        "file/copy" if share.settings.disable_save || is_guest(call) => {
            return Err(ServiceError::share_refused("Objects of the share cannot be saved."));
        }
        "file/get_download_url" => Some(ShareUse::Download),
        "file/copy" => Some(ShareUse::Save),
        _ => None,
    };
    if let Some(usage) = usage {
        call.app.catalog.change(|state| state.use_share(share_id, usage)).await?;
    }
    request.insert("drive_id".into(), share.drive_id.as_str().into());
    let body = Value::Object(request).to_string();
    let answer = if is_root_list {
        listing::list_shared(call, &share, &parse(body.as_bytes())?)?
    } else {
        dispatch_one(call, endpoint, body.as_bytes()).await?
    };
    as_visitor(&share, answer)
}

fn id_of(request: &Map<String, Value>, member: &str) -> Result<FileId, ServiceError> {
    let id = request.get(member).and_then(Value::as_str).ok_or_else(|| ServiceError::missing(member))?;
    FileId::new(id).map_err(|_| ServiceError::not_found("File"))
}

/// Whether the share permits the call for the objects in it.
fn check_scope(
    state: &CatalogState,
    share: &Share,
    endpoint: &str,
    request: &Map<String, Value>,
) -> Result<(), ServiceError> {
    let drive = &share.drive_id;
    let is_shared = |file: &FileId| {
        let is_inside = share.share_all_files || state.is_below_any(drive, file, &share.file_id_list);
        // The same answer as for an object that does not exist.
        if is_inside { Ok(()) } else { Err(ServiceError::not_found("File")) }
    };
    let is_creatable = |folder: &FileId| {
        let own = &share.settings;
        if own.creatable && state.is_below_any(drive, folder, &own.creatable_file_id_list) {
            return Ok(());
        }
        Err(ServiceError::share_refused("The share does not allow uploads here."))
    };
    match endpoint {
        "file/get" | "file/get_download_url" | "file/copy" => is_shared(&id_of(request, "file_id")?),
        "file/list" => is_shared(&id_of(request, "parent_file_id")?),
        "file/pre_create_check" => is_creatable(&id_of(request, "parent_file_id")?),
        "file/create" if request.get("file_id").is_none_or(|id| id.is_null() || *id == "") => {
            is_creatable(&id_of(request, "parent_file_id")?)
        }
        "file/get_upload_url" | "file/list_uploaded_parts" | "file/complete" => {
            is_creatable(&upload_parent(state, drive, request)?)
        }
        _ => Err(ServiceError::share_refused("A share does not have this call.")),
    }
}

/// The folder of an upload session for a new file.
fn upload_parent(
    state: &CatalogState,
    drive: &DriveId,
    request: &Map<String, Value>,
) -> Result<FileId, ServiceError> {
    let unknown = || ServiceError::not_found("UploadId");
    let id = request.get("upload_id").and_then(Value::as_str).ok_or_else(unknown)?;
    let id = UploadId::new(id).map_err(|_| unknown())?;
    match &state.upload(drive, &id_of(request, "file_id")?, &id)?.target {
        UploadTarget::New { parent, .. } => Ok(parent.clone()),
        UploadTarget::Revision => Err(unknown()),
    }
}

/// The answer as a visitor sees it: objects have the id of the share, and the shared ones are in the root.
fn as_visitor(share: &Share, answer: ApiResponse) -> Result<ApiResponse, ServiceError> {
    if answer.body.is_empty() {
        return Ok(answer);
    }
    let mut body: Value = parse(&answer.body)?;
    if let Some(items) = body.get_mut("items").and_then(Value::as_array_mut) {
        for item in items {
            hide(share, item);
        }
    }
    hide(share, &mut body);
    ApiResponse::json(answer.status, &body)
}

fn hide(share: &Share, item: &mut Value) {
    let Some(item) = item.as_object_mut().filter(|item| item.contains_key("file_id")) else { return };
    item.insert("share_id".into(), share.share_id.as_str().into());
    if share.settings.disable_download && item.get("type").is_some() {
        item.retain(|member, _| !["url", "download_url", "thumbnail_urls"].contains(&member.as_str()));
    }
    let is_top = item.get("file_id").and_then(Value::as_str);
    if is_top.is_some_and(|id| share.file_id_list.iter().any(|top| top.as_str() == id))
        && let Some(parent) = item.get_mut("parent_file_id")
    {
        *parent = "root".into();
    }
}
