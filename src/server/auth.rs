//! Who is asking: bearer tokens, signed requests, and the calls that hand tokens out.

mod signed;

use hyper::header::AUTHORIZATION;
use hyper::http::request::Parts;
use serde::{Deserialize, Serialize};

use super::App;
use super::catalog::records::Token;
use super::clock::{random_hex, rfc3339};
use super::errors::ApiError;

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

/// What both token endpoints ask for, in JSON or as a form.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TokenRequest {
    #[serde(alias = "app_id")]
    client_id: String,
    grant_type: String,
    refresh_token: String,
    code: String,
}

/// The answer of both token endpoints.
#[derive(Debug, Serialize)]
pub(super) struct TokenAnswer {
    access_token: String,
    refresh_token: String,
    token_type: &'static str,
    expires_in: u64,
    expire_time: String,
    user_id: &'static str,
    user_name: &'static str,
    nick_name: &'static str,
    domain_id: &'static str,
    default_drive_id: &'static str,
    role: &'static str,
    status: &'static str,
}

/// `oauth/token` and `account/token`.
pub(super) async fn grant(app: &App, request: TokenRequest) -> Result<TokenAnswer, ApiError> {
    let clients = &app.config.logins.client_ids;
    if !clients.is_empty() && !clients.iter().any(|id| app.signer.same(&request.client_id, id)) {
        return Err(ApiError::new(403, "Forbidden", "The client is not known."));
    }
    let (presented, wanted) = match request.grant_type.as_str() {
        "refresh_token" => (&request.refresh_token, "refresh_token"),
        "authorization_code" | "code" => (&request.code, "code"),
        "" => return Err(ApiError::missing("grant_type")),
        _ => {
            return Err(ApiError::new(
                400,
                "InvalidParameterNotSupported.GrantType",
                "The grant type is not supported.",
            ));
        }
    };
    if presented.is_empty() {
        return Err(ApiError::missing(wanted));
    }
    let presented_key = app.signer.fingerprint(presented);
    let is_code = wanted == "code";
    let is_configured = if is_code {
        app.config.logins.codes.iter().any(|code| app.signer.same(presented, code.expose()))
    } else {
        let configured = app.config.logins.refresh_token.as_ref();
        configured.is_some_and(|token| app.signer.same(presented, token.expose()))
    };
    let access = random_hex(24)?;
    let rotates = is_code || app.config.quirks.rotate_refresh_token;
    let refresh = if rotates { random_hex(24)? } else { presented.clone() };
    let now_ms = app.clock.now_ms();
    let ttl = app.config.logins.token_ttl;
    let expires_ms = now_ms.saturating_add(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX));
    let (access_key, refresh_key) = (app.signer.fingerprint(&access), app.signer.fingerprint(&refresh));
    app.catalog
        .change(|state| {
            let known = match state.token(&presented_key) {
                Some(Token::Refresh) => !is_code,
                Some(_) => false,
                None => is_configured,
            };
            if !known {
                return Err(ApiError::invalid(wanted, "It is not valid, or was used before."));
            }
            state.drop_expired_tokens(now_ms);
            if rotates {
                state.put_token(&presented_key, Token::Spent)?;
                state.put_token(&refresh_key, Token::Refresh)?;
            }
            state.put_token(&access_key, Token::Access { expires_ms })
        })
        .await?;
    Ok(TokenAnswer {
        access_token: access,
        refresh_token: refresh,
        token_type: "Bearer",
        expires_in: ttl.as_secs(),
        expire_time: rfc3339(expires_ms),
        user_id: "owner",
        user_name: "owner",
        nick_name: "owner",
        domain_id: super::DOMAIN_ID,
        default_drive_id: "1",
        role: "user",
        status: "enabled",
    })
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
