//! Share links: the calls of their creator, and the two calls that need no token.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::query::{Getter, Query, Searchable};
use super::request::{check_description, check_time, lenient, limit, list, require};
use crate::ids::{DriveId, FileId};
use crate::server::app::{DOMAIN_ID, USER_ID};
use crate::server::call::ApiCall;
use crate::server::catalog::{Share, ShareSettings, ShareStatus, ShareUse};
use crate::server::clock::{random_hex, rfc3339, timestamp_ms};
use crate::server::errors::ServiceError;
use crate::server::password_gate::Guess;
use crate::server::reply::ApiResponse;

/// Bound on the objects of a share.
const FILES_MAX: usize = 100;
const NAME_CHARS_MAX: usize = 128;
const PASSWORD_BYTES_MAX: usize = 64;
/// Longest and default lifetime of a share token.
const TOKEN_TTL_MAX_S: u32 = 7200;

/// Members that the creator does not set at the creation.
const COUNTERS: [&str; 7] = [
    "access_count",
    "preview_count",
    "save_count",
    "download_count",
    "report_count",
    "video_preview_count",
    "status",
];

#[derive(Deserialize)]
pub(super) struct ShareParams {
    #[serde(default, deserialize_with = "lenient")]
    share_id: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    drive_id: Option<DriveId>,
    share_all_files: Option<bool>,
    #[serde(default, deserialize_with = "list")]
    file_id_list: Vec<FileId>,
    /// Accepted instead of a list of one.
    #[serde(default, deserialize_with = "lenient")]
    file_id: Option<FileId>,
    #[serde(default, deserialize_with = "lenient")]
    expire_sec: Option<u32>,
    /// The members of [`ShareSettings`], and members that the server does not know.
    #[serde(flatten)]
    settings: Map<String, Value>,
}

/// The settings with the members that a request has.
fn merged(old: &ShareSettings, request: Map<String, Value>) -> Result<ShareSettings, ServiceError> {
    let invalid =
        |error: serde_json::Error| ServiceError::new(400, "InvalidParameterWrongFormat", error.to_string());
    let mut members = serde_json::to_value(old).map_err(invalid)?;
    for (name, value) in request {
        if let Some(member) = members.get_mut(&name).filter(|_| !value.is_null()) {
            *member = value;
        }
    }
    let settings: ShareSettings = serde_json::from_value(members).map_err(invalid)?;
    if settings.share_name.chars().count() > NAME_CHARS_MAX {
        return Err(ServiceError::invalid("share_name", "It has more than 128 characters."));
    }
    let password = &settings.share_pwd;
    if password.len() > PASSWORD_BYTES_MAX || !password.bytes().all(|c| c.is_ascii_graphic()) {
        return Err(ServiceError::invalid("share_pwd", "It is not 0 to 64 visible ASCII characters."));
    }
    check_description(Some(&settings.description))?;
    if !settings.expiration.is_empty() {
        check_time(Some(&settings.expiration), "expiration")?;
    }
    Ok(settings)
}

/// A share as its creator sees it.
fn view(call: &ApiCall, share: &Share) -> Result<Value, ServiceError> {
    let mut view =
        serde_json::to_value(&share.settings).map_err(|error| ServiceError::internal(error.to_string()))?;
    let more = json!({
        "domain_id": DOMAIN_ID,
        "share_id": share.share_id,
        "drive_id": share.drive_id.as_str(),
        "share_all_files": share.share_all_files,
        "file_id_list": share.file_id_list,
        "file_id": share.file_id_list.first(),
        "creator": USER_ID,
        "expired": is_expired(call, share),
        "share_url": "",
        "share_policy": "url",
        "created_at": rfc3339(share.created_ms),
        "updated_at": rfc3339(share.updated_ms),
    });
    if let (Value::Object(view), Value::Object(more)) = (&mut view, more) {
        view.extend(more);
    }
    Ok(view)
}

pub(super) fn is_expired(call: &ApiCall, share: &Share) -> bool {
    timestamp_ms(&share.settings.expiration).is_some_and(|at_ms| at_ms <= call.app.clock.now_ms())
}

/// `share_link/create`.
pub(super) async fn create(call: &ApiCall, mut request: ShareParams) -> Result<ApiResponse, ServiceError> {
    let drive = require(request.drive_id, "drive_id")?;
    let share_all_files = request.share_all_files == Some(true);
    let mut files = request.file_id_list;
    if files.is_empty() {
        files.extend(request.file_id);
    }
    if share_all_files {
        files.clear();
    } else if !(1..=FILES_MAX).contains(&files.len()) {
        return Err(ServiceError::invalid("file_id_list", "There must be 1 to 100."));
    }
    request.settings.retain(|name, _| !COUNTERS.contains(&name.as_str()));
    let settings = merged(&ShareSettings::default(), request.settings)?;
    let now_ms = call.app.clock.now_ms();
    let share_id = random_hex(8)?;
    call.app
        .catalog
        .change(|state| {
            let mut name = state.drive(&drive)?.name.clone();
            for (index, file) in files.iter().enumerate() {
                let node = state.live(&drive, file)?;
                if index == 0 {
                    name.clone_from(&node.name);
                }
            }
            let mut settings = settings;
            if settings.share_name.is_empty() {
                settings.share_name = name.chars().take(NAME_CHARS_MAX).collect();
            }
            let share = Share {
                share_id,
                drive_id: drive,
                share_all_files,
                file_id_list: files,
                created_ms: now_ms,
                updated_ms: now_ms,
                settings,
            };
            let body = view(call, &share)?;
            state.put_share(share)?;
            ApiResponse::json(201, &body)
        })
        .await
}

/// `share_link/get`.
pub(super) fn get(call: &ApiCall, request: ShareParams) -> Result<ApiResponse, ServiceError> {
    let id = require(request.share_id, "share_id")?;
    call.app.catalog.read(|state| ApiResponse::json(200, &view(call, state.share(&id)?)?))
}

/// `share_link/update`.
pub(super) async fn update(call: &ApiCall, request: ShareParams) -> Result<ApiResponse, ServiceError> {
    let id = require(request.share_id, "share_id")?;
    let now_ms = call.app.clock.now_ms();
    call.app
        .catalog
        .change(|state| {
            let old = state.share(&id)?.clone();
            let settings = merged(&old.settings, request.settings)?;
            let share = Share { settings, updated_ms: now_ms, ..old };
            let body = view(call, &share)?;
            state.put_share(share)?;
            ApiResponse::json(200, &body)
        })
        .await
}

/// `share_link/cancel`.
pub(super) async fn cancel(call: &ApiCall, request: ShareParams) -> Result<ApiResponse, ServiceError> {
    let id = require(request.share_id, "share_id")?;
    let now_ms = call.app.clock.now_ms();
    call.app
        .catalog
        .change(|state| {
            let mut share = state.share(&id)?.clone();
            share.settings.status = ShareStatus::Disabled;
            share.updated_ms = now_ms;
            state.put_share(share)
        })
        .await?;
    Ok(ApiResponse::empty(204))
}

#[derive(Deserialize)]
pub(super) struct ShareSearch {
    #[serde(default, deserialize_with = "lenient")]
    creator: Option<String>,
    #[serde(default, deserialize_with = "list")]
    creators: Vec<String>,
    include_cancelled: Option<bool>,
    #[serde(default, deserialize_with = "lenient")]
    query: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    order_by: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    order_direction: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    limit: Option<u32>,
    /// The number of preceding shares.
    #[serde(default, deserialize_with = "lenient")]
    marker: Option<usize>,
    return_total_count: Option<bool>,
}

impl Searchable for Share {
    fn getter(field: &str) -> Option<Getter<Self>> {
        Some(match field {
            "share_name_for_fuzzy" => Getter::Name(|share| &share.settings.share_name),
            "status" => Getter::Text(|share| match share.settings.status {
                ShareStatus::Enabled => "enabled",
                ShareStatus::Disabled => "disabled",
            }),
            "created_at" => Getter::Number(|share| share.created_ms),
            "updated_at" => Getter::Number(|share| share.updated_ms),
            // Shares that never expire have 1970-01-01T00:00:00.
            "expired_time" => Getter::Number(|share| timestamp_ms(&share.settings.expiration).unwrap_or(0)),
            _ => return None,
        })
    }
}

/// `share_link/list`: without cancelled shares, unless asked for.
pub(super) fn list_shares(call: &ApiCall, request: &ShareSearch) -> Result<ApiResponse, ServiceError> {
    let has_cancelled = request.include_cancelled == Some(true);
    page(call, request, |share| has_cancelled || share.settings.status == ShareStatus::Enabled)
}

/// `share_link/search`.
pub(super) fn search(call: &ApiCall, request: &ShareSearch) -> Result<ApiResponse, ServiceError> {
    let query = Query::parse(request.query.as_deref().unwrap_or(""))?;
    page(call, request, |share| query.matches(share, &|_, _| false))
}

fn page(
    call: &ApiCall,
    request: &ShareSearch,
    is_wanted: impl Fn(&Share) -> bool,
) -> Result<ApiResponse, ServiceError> {
    let limit = limit(request.limit, 100, 100)?;
    let order = request.order_by.as_deref().unwrap_or("created_at");
    let key: fn(&Share) -> (i64, &str) = match order {
        "created_at" => |share| (share.created_ms, ""),
        "updated_at" => |share| (share.updated_ms, ""),
        "share_name" => |share| (0, &share.settings.share_name),
        "description" => |share| (0, &share.settings.description),
        _ => {
            let detail = "It is created_at, updated_at, share_name or description.";
            return Err(ServiceError::invalid("order_by", detail));
        }
    };
    let descending = match request.order_direction.as_deref() {
        None => matches!(order, "created_at" | "updated_at"),
        direction => super::listing::is_descending(direction)?,
    };
    let is_own = request.creator.iter().chain(&request.creators).all(|creator| creator == USER_ID);
    call.app.catalog.read(|state| {
        let mut found: Vec<_> = state.shares().filter(|share| is_own && is_wanted(share)).collect();
        found.sort_by(|a, b| {
            let ordering = (key(a), &a.share_id).cmp(&(key(b), &b.share_id));
            if descending { ordering.reverse() } else { ordering }
        });
        let (total, skip) = (found.len(), request.marker.unwrap_or(0));
        let items = found.into_iter().skip(skip).take(limit).map(|share| view(call, share));
        let items = items.collect::<Result<Vec<_>, _>>()?;
        let seen = skip.saturating_add(items.len());
        let next = if seen < total && !items.is_empty() { seen.to_string() } else { String::new() };
        let mut body = json!({ "items": items, "next_marker": next });
        if request.return_total_count == Some(true) {
            body["total_count"] = total.into();
        }
        ApiResponse::json(200, &body)
    })
}

/// 403 for a share that is cancelled or has expired.
pub(super) fn check_open(call: &ApiCall, share: &Share) -> Result<(), ServiceError> {
    if share.settings.status == ShareStatus::Disabled {
        return Err(ServiceError::new(403, "ShareLink.Cancelled", "The share was cancelled."));
    }
    if is_expired(call, share) {
        return Err(ServiceError::new(403, "ShareLink.Expired", "The share has expired."));
    }
    Ok(())
}

/// `share_link/get_by_anonymous`.
pub(super) fn get_by_anonymous(call: &ApiCall, request: ShareParams) -> Result<ApiResponse, ServiceError> {
    let id = require(request.share_id, "share_id")?;
    call.app.catalog.read(|state| {
        let share = state.share(&id)?;
        check_open(call, share)?;
        let own = &share.settings;
        ApiResponse::json(
            200,
            &json!({
                "share_name": own.share_name, "has_pwd": !own.share_pwd.is_empty(), "expiration": own.expiration,
                "creator_id": USER_ID, "creator_name": "o***r", "creator_phone": "", "avatar": "",
                "disable_preview": own.disable_preview, "disable_save": own.disable_save,
                "disable_download": own.disable_download, "require_login": own.require_login,
                "enable_upload": own.creatable,
                "preview_limit": own.preview_limit, "save_limit": own.save_limit,
                "download_limit": own.download_limit, "save_download_limit": own.save_download_limit,
                "access_count": own.access_count, "preview_count": own.preview_count,
                "save_count": own.save_count, "download_count": own.download_count,
                "report_count": own.report_count, "video_preview_count": own.video_preview_count,
                "updated_at": rfc3339(share.updated_ms),
            }),
        )
    })
}

/// `share_link/get_share_token`.
pub(super) async fn get_token(call: &ApiCall, request: ShareParams) -> Result<ApiResponse, ServiceError> {
    let app = &call.app;
    let id = require(request.share_id, "share_id")?;
    let ttl_s = request.expire_sec.filter(|s| *s > 0).unwrap_or(TOKEN_TTL_MAX_S);
    if ttl_s > TOKEN_TTL_MAX_S {
        return Err(ServiceError::invalid("expire_sec", "It is more than 7200."));
    }
    let password = app.catalog.read(|state| {
        let share = state.share(&id)?;
        check_open(call, share)?;
        Ok::<_, ServiceError>(share.settings.share_pwd.clone())
    })?;
    let given = request.settings.get("share_pwd").and_then(Value::as_str).unwrap_or("");
    if !password.is_empty() {
        match app.share_guesses.check(|| app.signer.constant_time_eq(given, &password)).await {
            Guess::Right => {}
            Guess::Wrong => {
                return Err(ServiceError::new(
                    403,
                    "InvalidResource.SharePwd",
                    "The share_pwd is not valid.",
                ));
            }
            Guess::Busy => {
                return Err(ServiceError::new(
                    429,
                    "TooManyRequests",
                    "Too many passwords are being checked.",
                ));
            }
        }
    }
    app.catalog.change(|state| state.use_share(&id, ShareUse::Access)).await?;
    let expires_ms = app.clock.now_ms() + i64::from(ttl_s) * 1000;
    ApiResponse::json(
        200,
        &json!({
            "share_token": app.signer.share_token(&id, expires_ms),
            "expires_in": ttl_s,
            "expire_time": rfc3339(expires_ms),
        }),
    )
}
