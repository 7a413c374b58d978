//! The API: one thin function for each endpoint.
//!
//! Requests are parsed leniently, as the official clients require: unknown fields are ignored, ids can be
//! numbers, and an absent value can be `null` or `""`.

mod batch;
mod drives;
mod endpoints;
mod files;
mod listing;
mod odd_items;
mod parts;
mod query;
#[cfg(any(test, fuzzing))]
pub(super) use query::check_query;
mod removal;
mod request;
mod revisions;
mod uploads;
mod view;

use super::auth::{self, TokenRequest};
use super::call::ApiCall;
use super::errors::ServiceError;
use super::reply::ApiResponse;

pub(super) use self::files::download;

/// The endpoint of the consent page.
pub(super) const CONSENT: &str = "oauth/authorize";

/// Whether an endpoint needs no token.
pub(super) fn needs_no_token(endpoint: &str) -> bool {
    matches!(endpoint, "oauth/token" | "account/token" | CONSENT)
}

pub(super) async fn dispatch(
    call: &ApiCall,
    endpoint: &str,
    body: &[u8],
) -> Result<ApiResponse, ServiceError> {
    match endpoint {
        "batch" => batch::run(call, body).await,
        "oauth/token" => ApiResponse::json(200, &auth::grant(&call.app, token_form(body)?).await?),
        "account/token" => ApiResponse::json(200, &auth::grant(&call.app, request::parse(body)?).await?),
        _ => endpoints::dispatch_one(call, endpoint, body).await,
    }
}

pub(super) fn token_form(body: &[u8]) -> Result<TokenRequest, ServiceError> {
    let mut fields = serde_json::Map::new();
    for (key, value) in url::form_urlencoded::parse(body) {
        fields.insert(key.into_owned(), value.into_owned().into());
    }
    serde_json::from_value(fields.into())
        .map_err(|error| ServiceError::new(400, "InvalidParameterWrongFormat", error.to_string()))
}
