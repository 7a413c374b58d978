//! One request with its context, and the error responses that several layers send.

use std::sync::Arc;

use hyper::Response;
use hyper::http::request::Parts;

use super::app::App;
use super::catalog::records::Node;
use super::clock::http_date;
use super::connection::ConnectionControl;
use super::errors::ServiceError;
use super::faults::FaultAction;
use super::reply::{Disconnect, ReplyBody, response};

/// A request head with its context.
pub(super) struct ApiCall {
    pub(super) app: Arc<App>,
    pub(super) head: Parts,
    pub(super) request_id: String,
    /// Start of presigned URLs, such as `http://127.0.0.1:8080`.
    pub(super) base: String,
    pub(super) control: Arc<ConnectionControl>,
}

impl ApiCall {
    /// Whether listings and searches have a new object already.
    pub(super) fn is_listed(&self, node: &Node) -> bool {
        match self.app.config.quirks.listing_lag_ms {
            0 => true,
            lag_ms => node.created_ms.saturating_add(i64::from(lag_ms)) <= self.app.clock.now_ms(),
        }
    }

    /// Makes the connection end with a reset.
    pub(super) fn reset(&self) -> Disconnect {
        self.control.reset();
        Disconnect
    }
}

/// The response, or the end of the connection.
pub(super) type HttpResult = Result<Response<ReplyBody>, Disconnect>;

/// An error in the form of the service or of its gateway.
pub(super) fn error_response(call: &ApiCall, error: &ServiceError) -> HttpResult {
    let mut headers = vec![("x-ca-request-id", call.request_id.clone())];
    // The server's clock: a test may have advanced it.
    headers.extend(http_date(call.app.clock.now_ms()).map(|date| ("date", date)));
    if error.from_gateway {
        headers.push(("x-ca-error-code", error.code.clone()));
        headers.push(("x-ca-error-message", error.message.clone()));
        return response(error.status, &headers, ReplyBody::whole(""));
    }
    headers.push(("content-type", "application/json; charset=UTF-8".to_owned()));
    response(error.status, &headers, ReplyBody::whole(error.body()))
}

/// The retry headers of an injected error.
pub(super) fn retry_headers(action: &FaultAction) -> Vec<(&'static str, String)> {
    let FaultAction::Status { retry_after_s, x_retry_after_ms, .. } = action else { return Vec::new() };
    let seconds = retry_after_s.map(|s| ("retry-after", s.to_string()));
    let milliseconds = x_retry_after_ms.map(|ms| ("x-retry-after", ms.to_string()));
    seconds.into_iter().chain(milliseconds).collect()
}
