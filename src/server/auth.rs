//! Who is asking: bearer tokens, signed requests, the calls that hand tokens out, and the page of consent.

mod assertion;
pub(super) mod consent;
mod signed;
mod tokens;

use hyper::header::AUTHORIZATION;
use hyper::http::request::Parts;

use super::App;
use super::catalog::records::Token;
use super::errors::ApiError;

pub use assertion::ServiceApp;
pub(super) use tokens::{TokenRequest, grant};

/// The bearer token of a request, if it has one.
pub(super) fn bearer(head: &Parts) -> Option<&str> {
    head.headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ").map(str::trim)
}

/// Lets a request through, or 401.
pub(super) fn check(app: &App, head: &Parts, body: &[u8]) -> Result<(), ApiError> {
    if let Some(token) = bearer(head) {
        return check_bearer(app, token);
    }
    let authorization = head.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    match authorization {
        Some(text) if text.starts_with("acs ") => signed::check(app, head, &text[4..]),
        Some(text) if text.starts_with("ACS4-HMAC-SHA256 ") => signed::check_v4(app, head, &text[17..], body),
        _ => Err(ApiError::new(401, "AccessTokenInvalid", "AccessToken is missing.")),
    }
}

fn check_bearer(app: &App, token: &str) -> Result<(), ApiError> {
    let invalid =
        || ApiError::new(401, "AccessTokenInvalid", "AccessToken is invalid. ErrValidateTokenFailed");
    if app.faults.is_revoked(token) {
        return Err(invalid());
    }
    if app.signer.same(token, app.config.token.expose()) {
        return Ok(());
    }
    let key = app.signer.fingerprint(token);
    match app.catalog.read(|state| state.token(&key).cloned()) {
        Some(Token::Access { expires_ms }) if expires_ms > app.clock.now_ms() => Ok(()),
        Some(Token::Access { .. }) => {
            Err(ApiError::new(401, "AccessTokenExpired", "AccessToken is expired."))
        }
        _ => Err(invalid()),
    }
}

/// Reads padded base64.
pub(super) fn unbase64(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => Some(c - b'A'),
        b'a'..=b'z' => Some(c - b'a' + 26),
        b'0'..=b'9' => Some(c - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let text = text.trim();
    let digits = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let (mut out, mut bits, mut held) = (Vec::new(), 0u32, 0u32);
    for c in digits.bytes() {
        bits = bits << 6 | u32::from(digit(c)?);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push(u8::try_from(bits >> held & 0xff).ok()?);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_reads() {
        assert_eq!(unbase64("aGVsbG8=").unwrap(), b"hello");
        assert_eq!(unbase64("aGVsbG8h").unwrap(), b"hello!");
        assert_eq!(unbase64("aA==").unwrap(), b"h");
        assert!(unbase64("aGVsbG8").is_none() && unbase64("a*==").is_none());
    }
}
