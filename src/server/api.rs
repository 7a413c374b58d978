//! The API: one thin function for each endpoint.
//!
//! Requests are parsed leniently, as the official clients require: unknown fields are ignored, ids can be
//! numbers, and an absent value can be `null` or `""`.

mod archives;
mod batch;
mod delta;
mod domain;
mod drives;
mod endpoints;
mod files;
mod item;
mod listing;
mod odd_items;
mod parts;
mod query;
#[cfg(any(test, fuzzing))]
pub(super) use query::check_query;
mod removal;
mod request;
mod revisions;
mod search;
mod share_access;
mod shares;
mod uploads;
mod view;

use hyper::Method;

use super::auth::{self, TokenRequest};
use super::call::ApiCall;
use super::errors::ServiceError;
use super::reply::ApiResponse;

pub(super) use self::endpoints::{CONSENT, needs_no_token};
pub(super) use self::files::download;
pub(super) use self::share_access::is_visitor;

/// Whether the server has this call. Requests for others are refused before their credentials are looked at.
pub(super) fn is_route(method: &Method, endpoint: &str) -> bool {
    match *method {
        Method::POST => endpoint == "batch" || needs_no_token(endpoint) || endpoints::is_known(endpoint),
        Method::GET => matches!(endpoint, CONSENT | "file/download"),
        _ => false,
    }
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
        _ => share_access::dispatch(call, endpoint, body).await,
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
