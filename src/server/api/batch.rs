//! `batch`: several calls in one request.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use super::request::{list, parse};
use super::share_access::dispatch;
use crate::server::call::ApiCall;
use crate::server::errors::ServiceError;
use crate::server::faults::FaultAction;
use crate::server::reply::ApiResponse;

/// Bound on the calls of one batch.
const REQUESTS_MAX: usize = 100;

/// The endpoints allowed in a batch. `file/create` and `file/complete` are not.
const BATCHABLE: [&str; 25] = [
    "file/get",
    "file/get_by_path",
    "file/update",
    "file/search",
    "file/list",
    "file/copy",
    "file/move",
    "file/delete",
    "file/get_download_url",
    "file/put_usertags",
    "file/delete_usertags",
    "file/pre_create_check",
    "recyclebin/trash",
    "recyclebin/restore",
    "async_task/get",
    "drive/get",
    "drive/get_default_drive",
    "drive/list_my_drives",
    "drive/list",
    "share_link/create",
    "share_link/update",
    "share_link/cancel",
    "share_link/list",
    "share_link/get",
    "share_link/get_share_token",
];

#[derive(Deserialize)]
struct BatchParams {
    #[serde(default, deserialize_with = "list")]
    requests: Vec<SubRequest>,
}

#[derive(Deserialize)]
struct SubRequest {
    #[serde(default)]
    id: String,
    method: Option<String>,
    url: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    body: serde_json::Value,
}

#[derive(Serialize)]
struct SubResponse {
    id: String,
    status: u16,
    body: serde_json::Value,
}

/// Executes the calls in order. Each succeeds or fails independently.
pub(super) async fn run(call: &ApiCall, body: &[u8]) -> Result<ApiResponse, ServiceError> {
    if call.app.config.quirks.batch_forbidden {
        return Err(ServiceError::new(403, "Forbidden", "No permission. CheckRouterAccessFailed"));
    }
    let batch: BatchParams = parse(body)?;
    if batch.requests.is_empty() || batch.requests.len() > REQUESTS_MAX {
        return Err(ServiceError::invalid("requests", "There must be 1 to 100."));
    }
    let ids: HashSet<_> = batch.requests.iter().map(|sub| &sub.id).collect();
    if ids.len() < batch.requests.len() {
        return Err(ServiceError::invalid("requests.id", "Each request needs an id of its own."));
    }
    let mut responses = Vec::with_capacity(batch.requests.len());
    for sub in batch.requests {
        let id = sub.id.clone();
        let answer = answer(call, sub).await;
        responses.push(match answer {
            Ok(answer) => {
                let body =
                    if answer.body.is_empty() { serde_json::Value::Null } else { parse(&answer.body)? };
                SubResponse { id, status: answer.status, body }
            }
            Err(error) => SubResponse { id, status: error.status, body: parse(&error.body())? },
        });
    }
    ApiResponse::json(200, &serde_json::json!({ "responses": responses }))
}

async fn answer(call: &ApiCall, sub: SubRequest) -> Result<ApiResponse, ServiceError> {
    let url = sub.url.unwrap_or_default();
    let endpoint = url.trim_start_matches('/');
    if !BATCHABLE.contains(&endpoint) {
        return Err(ServiceError::new(
            400,
            "InvalidParameterNotSupported.Url",
            "The url cannot be in a batch.",
        ));
    }
    if sub.method.is_some_and(|method| !method.eq_ignore_ascii_case("POST")) {
        return Err(ServiceError::invalid("method", "It must be POST."));
    }
    let content_type = sub.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-type"));
    if !sub.body.is_null() && content_type.is_none_or(|(_, value)| value != "application/json") {
        return Err(ServiceError::invalid("headers", "Content-Type must be application/json."));
    }
    // Of all faults, only error responses are possible in a batch.
    let decision = call.app.faults.decide(endpoint, None);
    if let Some(FaultAction::Status { status, code, message, .. }) = decision.action {
        return Err(ServiceError::new(status, code, message));
    }
    let body = if sub.body.is_null() { Vec::new() } else { sub.body.to_string().into_bytes() };
    dispatch(call, endpoint, &body).await
}
