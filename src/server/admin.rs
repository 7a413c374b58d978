//! The calls below `/_pdsfs/`, which the service does not have: faults, statistics, open uploads, the clock.

use hyper::Method;
use hyper::body::Incoming;
use serde::Deserialize;

use super::auth::bearer;
use super::body::read_body;
use super::call::{ApiCall, HttpResult, error_response};
use super::errors::ServiceError;
use super::faults::FaultPlan;
use super::reply::{ApiResponse, ReplyBody, response};

/// Longest body of a call, in bytes.
const PLAN_BYTES_MAX: usize = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Advance {
    advance_s: u64,
}

/// Answers `/_pdsfs/...`. Accepts only the configured token, even while a fault has revoked it.
pub(super) async fn handle(call: &ApiCall, body: &mut Incoming) -> HttpResult {
    let is_owner = bearer(&call.head)
        .is_some_and(|token| call.app.signer.constant_time_eq(token, call.app.config.token.expose()));
    if !is_owner {
        return error_response(
            call,
            &ServiceError::new(401, "AccessTokenInvalid", "This call needs the token of the server's owner."),
        );
    }
    let outcome = match read_body(body, PLAN_BYTES_MAX).await {
        Ok(body) => answer(call, &body).await,
        Err(error) => Err(error),
    };
    match outcome {
        Ok(answer) => {
            let headers = [
                ("content-type", "application/json; charset=UTF-8".to_owned()),
                ("x-ca-request-id", call.request_id.clone()),
            ];
            response(answer.status, &headers, ReplyBody::whole(answer.body))
        }
        Err(error) => error_response(call, &error),
    }
}

async fn answer(call: &ApiCall, body: &[u8]) -> Result<ApiResponse, ServiceError> {
    let app = &call.app;
    let bad =
        |error: serde_json::Error| ServiceError::new(400, "InvalidRequestJSONFormat", error.to_string());
    match (&call.head.method, call.head.uri.path()) {
        (&Method::GET, "/_pdsfs/stats") => ApiResponse::json(200, &app.stats()),
        (&Method::GET, "/_pdsfs/uploads") => ApiResponse::json(200, &app.stats().open_uploads),
        (&Method::GET, "/_pdsfs/faults") => {
            let (plan, hits) = (app.faults.plan(), app.faults.hits());
            ApiResponse::json(200, &serde_json::json!({ "rules": plan.rules, "hits": hits }))
        }
        (&Method::POST, "/_pdsfs/faults") => {
            let plan: FaultPlan = serde_json::from_slice(body).map_err(bad)?;
            app.faults.set(plan);
            ApiResponse::json(200, &serde_json::json!({}))
        }
        (&Method::POST, "/_pdsfs/revoke") => {
            app.revoke_all_tokens().await?;
            ApiResponse::json(200, &serde_json::json!({}))
        }
        (&Method::POST, "/_pdsfs/clock") => {
            let advance: Advance = serde_json::from_slice(body).map_err(bad)?;
            app.clock.advance(std::time::Duration::from_secs(advance.advance_s));
            app.discard_expired_uploads().await;
            ApiResponse::json(200, &serde_json::json!({ "now": super::clock::rfc3339(app.clock.now_ms()) }))
        }
        _ => Err(ServiceError::no_route()),
    }
}
