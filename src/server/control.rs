//! Calls for the owner of the server, of no service: faults, statistics, the clock.

use hyper::Method;
use serde::Deserialize;

use super::auth::bearer;
use super::errors::ApiError;
use super::faults::FaultPlan;
use super::http::{Call, Outcome, refused};
use super::reply::{Answer, ReplyBody, response};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Advance {
    advance_s: u64,
}

/// Answers `/_pdsfs/...`. Only the owner's own token is taken, revoked or not.
pub(super) async fn handle(call: &Call, body: &[u8]) -> Outcome {
    let is_owner =
        bearer(&call.head).is_some_and(|token| call.app.signer.same(token, call.app.config.token.expose()));
    if !is_owner {
        return refused(
            call,
            &ApiError::new(401, "AccessTokenInvalid", "Only the owner's token may do this."),
        );
    }
    match answer(call, body).await {
        Ok(answer) => {
            let headers = [
                ("content-type", "application/json; charset=UTF-8".to_owned()),
                ("x-ca-request-id", call.request_id.clone()),
            ];
            response(answer.status, &headers, ReplyBody::whole(answer.body))
        }
        Err(error) => refused(call, &error),
    }
}

async fn answer(call: &Call, body: &[u8]) -> Result<Answer, ApiError> {
    let app = &call.app;
    let bad = |error: serde_json::Error| ApiError::new(400, "InvalidRequestJSONFormat", error.to_string());
    match (&call.head.method, call.head.uri.path()) {
        (&Method::GET, "/_pdsfs/stats") => Answer::json(200, &app.stats()),
        (&Method::GET, "/_pdsfs/uploads") => Answer::json(200, &app.stats().open_uploads),
        (&Method::GET, "/_pdsfs/faults") => {
            let (plan, hits) = (app.faults.plan(), app.faults.hits());
            Answer::json(200, &serde_json::json!({ "rules": plan.rules, "hits": hits }))
        }
        (&Method::POST, "/_pdsfs/faults") => {
            let plan: FaultPlan = serde_json::from_slice(body).map_err(bad)?;
            app.faults.set(plan);
            Answer::json(200, &serde_json::json!({}))
        }
        (&Method::POST, "/_pdsfs/revoke") => {
            app.revoke_all_tokens().await?;
            Answer::json(200, &serde_json::json!({}))
        }
        (&Method::POST, "/_pdsfs/clock") => {
            let advance: Advance = serde_json::from_slice(body).map_err(bad)?;
            app.clock.advance(std::time::Duration::from_secs(advance.advance_s));
            app.sweep_uploads().await;
            Answer::json(200, &serde_json::json!({ "now": super::clock::rfc3339(app.clock.now_ms()) }))
        }
        _ => Err(ApiError::no_route()),
    }
}
