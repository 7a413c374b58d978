//! Many calls in one.

use serde::{Deserialize, Serialize};

use super::one;
use super::request::{list, parse};
use crate::server::errors::ApiError;
use crate::server::faults::FaultAction;
use crate::server::http::Call;
use crate::server::reply::Answer;

/// Most calls in one batch.
const REQUESTS_MAX: usize = 100;

/// What may be called in a batch. Beginning an upload and completing one may not.
const ALLOWED: [&str; 18] = [
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
    "recyclebin/trash",
    "recyclebin/restore",
    "async_task/get",
    "drive/get",
    "drive/get_default_drive",
    "drive/list_my_drives",
    "drive/list",
];

#[derive(Deserialize)]
struct Batch {
    #[serde(default, deserialize_with = "list")]
    requests: Vec<Sub>,
}

#[derive(Deserialize)]
struct Sub {
    id: Option<String>,
    method: Option<String>,
    url: Option<String>,
    #[serde(default)]
    body: serde_json::Value,
}

#[derive(Serialize)]
struct SubAnswer {
    id: String,
    status: u16,
    body: serde_json::Value,
}

/// `batch`. Each call succeeds or fails for itself, in the order given.
pub(super) async fn run(call: &Call, body: &[u8]) -> Result<Answer, ApiError> {
    let batch: Batch = parse(body)?;
    if batch.requests.is_empty() || batch.requests.len() > REQUESTS_MAX {
        return Err(ApiError::invalid("requests", "There must be 1 to 100."));
    }
    let mut responses = Vec::with_capacity(batch.requests.len());
    for sub in batch.requests {
        let id = sub.id.clone().unwrap_or_default();
        let answer = answer(call, sub).await;
        responses.push(match answer {
            Ok(answer) => {
                let body =
                    if answer.body.is_empty() { serde_json::Value::Null } else { parse(&answer.body)? };
                SubAnswer { id, status: answer.status, body }
            }
            Err(error) => SubAnswer { id, status: error.status, body: parse(&error.body())? },
        });
    }
    Answer::json(200, &serde_json::json!({ "responses": responses }))
}

async fn answer(call: &Call, sub: Sub) -> Result<Answer, ApiError> {
    let url = sub.url.unwrap_or_default();
    let endpoint = url.trim_start_matches('/');
    if !ALLOWED.contains(&endpoint) {
        return Err(ApiError::new(400, "InvalidParameterNotSupported.Url", "The url cannot be in a batch."));
    }
    if sub.method.is_some_and(|method| !method.eq_ignore_ascii_case("POST")) {
        return Err(ApiError::invalid("method", "It must be POST."));
    }
    // Of all faults only errors make sense inside of an answer.
    let verdict = call.app.faults.judge(endpoint, None);
    if let Some(FaultAction::Status { status, code, message, .. }) = verdict.action {
        return Err(ApiError::new(status, code, message));
    }
    let body = if sub.body.is_null() { Vec::new() } else { sub.body.to_string().into_bytes() };
    one(call, endpoint, &body).await
}
