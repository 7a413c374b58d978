//! Authentication: bearer tokens, signed requests, the token endpoints and the consent page.

mod assertion;
pub(super) mod consent;
mod signed;
mod subject;
mod tokens;

use bytes::Bytes;
use hyper::header::AUTHORIZATION;
use hyper::http::request::Parts;

use super::app::App;
use super::catalog::records::Token;
use super::errors::ServiceError;

#[cfg(any(test, fuzzing))]
pub(super) use assertion::check_claims;
pub(super) use tokens::{TokenRequest, grant};

/// The bearer token of a request.
pub(super) fn bearer(head: &Parts) -> Option<&str> {
    head.headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ").map(str::trim)
}

/// A request whose head has valid credentials.
pub(super) struct Authenticated(Option<signed::SignedBody>);

impl Authenticated {
    /// Returns the body, or 401 if its signature is that of another one.
    pub(super) fn check_body(&self, body: Bytes) -> Result<Bytes, ServiceError> {
        self.0.as_ref().map_or(Ok(()), |signed| signed.check(&body))?;
        Ok(body)
    }
}

/// Accepts the head of a request, or returns 401.
pub(super) fn authenticate(app: &App, head: &Parts) -> Result<Authenticated, ServiceError> {
    let unsigned = |()| Authenticated(None);
    if let Some(token) = bearer(head) {
        return check_bearer(app, token).map(unsigned);
    }
    let authorization = head.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    match authorization {
        Some(text) if text.starts_with("acs ") => signed::check(app, head, &text[4..]).map(unsigned),
        Some(text) if text.starts_with("ACS4-HMAC-SHA256 ") => {
            signed::check_v4(app, head, &text[17..]).map(|body| Authenticated(Some(body)))
        }
        _ => Err(ServiceError::new(401, "AccessTokenInvalid", "AccessToken is missing.")),
    }
}

fn check_bearer(app: &App, token: &str) -> Result<(), ServiceError> {
    let invalid =
        || ServiceError::new(401, "AccessTokenInvalid", "AccessToken is invalid. ErrValidateTokenFailed");
    if app.faults.is_revoked(token) {
        return Err(invalid());
    }
    if app.signer.constant_time_eq(token, app.config.token.expose()) {
        return Ok(());
    }
    let key = app.signer.fingerprint(token);
    match app.catalog.read(|state| state.token(&key).cloned()) {
        Some(Token::Access { expires_ms }) if expires_ms > app.clock.now_ms() => Ok(()),
        Some(Token::Access { .. }) => {
            Err(ServiceError::new(401, "AccessTokenExpired", "AccessToken is expired."))
        }
        _ => Err(invalid()),
    }
}
