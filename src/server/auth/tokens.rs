//! The token endpoints. A grant is a refresh token, an authorization code or an assertion.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::assertion;
use super::subject::Subject;
use crate::server::app::App;
use crate::server::catalog::CatalogState;
use crate::server::catalog::records::Token;
use crate::server::clock::{random_hex, rfc3339};
use crate::server::errors::ServiceError;

const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// The request of both token endpoints, as JSON or as a form.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::server) struct TokenRequest {
    #[serde(alias = "app_id")]
    client_id: String,
    client_secret: String,
    grant_type: String,
    refresh_token: String,
    code: String,
    code_verifier: String,
    redirect_uri: String,
    assertion: String,
}

/// The response of both token endpoints.
#[derive(Debug, Serialize)]
pub(in crate::server) struct TokenReply {
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

/// `key` is the fingerprint of the secret, its key in the catalog. `configured`: the secret comes from
/// [`crate::server::Logins`].
enum TokenGrant {
    Refresh { key: String, configured: bool },
    Code { key: String, configured: bool },
    Assertion(assertion::VerifiedAssertion),
}

/// `oauth/token` and `account/token`.
pub(in crate::server) async fn grant(app: &App, request: TokenRequest) -> Result<TokenReply, ServiceError> {
    let grant = parse_grant(app, &request)?;
    let logins = &app.config.logins;
    let access = random_hex(24)?;
    let refresh = match &grant {
        TokenGrant::Refresh { .. } if !app.config.quirks.rotate_refresh_token => {
            request.refresh_token.clone()
        }
        _ => random_hex(24)?,
    };
    let now_ms = app.clock.now_ms();
    let ttl = logins.token_ttl;
    let expires_ms = now_ms.saturating_add(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX));
    let access_key = app.signer.fingerprint(&access);
    let refresh_key = app.signer.fingerprint(&refresh);
    let outcome = app
        .catalog
        .change(|state| {
            state.drop_expired_tokens(now_ms);
            let subject = match redeem(state, &grant, &request, now_ms)? {
                Ok(subject) => subject,
                // The grant stays spent.
                Err(refusal) => return Ok(Err(refusal)),
            };
            state.put_token(&refresh_key, subject.refresh_token())?;
            state.put_token(&access_key, Token::Access { expires_ms })?;
            Ok(Ok(subject))
        })
        .await?;
    let subject = outcome?;
    Ok(TokenReply {
        access_token: access,
        refresh_token: refresh,
        token_type: "Bearer",
        expires_in: ttl.as_secs(),
        expire_time: rfc3339(expires_ms),
        user_id: "owner",
        user_name: "owner",
        nick_name: "owner",
        domain_id: crate::server::app::DOMAIN_ID,
        default_drive_id: "1",
        role: subject.role(),
        status: "enabled",
    })
}

/// Parses the grant and checks the client. The catalog is not consulted yet.
fn parse_grant(app: &App, request: &TokenRequest) -> Result<TokenGrant, ServiceError> {
    let logins = &app.config.logins;
    let fingerprint_of = |text: &str, name: &str| {
        if text.is_empty() { Err(ServiceError::missing(name)) } else { Ok(app.signer.fingerprint(text)) }
    };
    if request.grant_type == JWT_BEARER && !logins.service_apps.is_empty() {
        fingerprint_of(&request.assertion, "assertion")?;
        return assertion::verify(app, &request.client_id, &request.assertion).map(TokenGrant::Assertion);
    }
    let known = |id: &String| app.signer.constant_time_eq(&request.client_id, id);
    // A service app has no secret: its first grant proves its key.
    let is_service = logins.service_apps.iter().any(|service| known(&service.client_id));
    if !is_service && !logins.client_ids.is_empty() && !logins.client_ids.iter().any(known) {
        return Err(ServiceError::new(403, "Forbidden", "The client is not known."));
    }
    if let Some(secret) = &logins.client_secret
        && !is_service
        && !app.signer.constant_time_eq(&request.client_secret, secret.expose())
    {
        return Err(ServiceError::new(403, "Forbidden", "The client secret is wrong."));
    }
    match request.grant_type.as_str() {
        "refresh_token" => {
            let key = fingerprint_of(&request.refresh_token, "refresh_token")?;
            let same = |token: &crate::ids::Secret<String>| {
                app.signer.constant_time_eq(&request.refresh_token, token.expose())
            };
            Ok(TokenGrant::Refresh { key, configured: logins.refresh_token.as_ref().is_some_and(same) })
        }
        "authorization_code" | "code" => {
            let key = fingerprint_of(&request.code, "code")?;
            let same =
                |code: &crate::ids::Secret<String>| app.signer.constant_time_eq(&request.code, code.expose());
            Ok(TokenGrant::Code { key, configured: logins.codes.iter().any(same) })
        }
        "" => Err(ServiceError::missing("grant_type")),
        _ => {
            let message = "The grant type is not supported.";
            Err(ServiceError::new(400, "InvalidParameterNotSupported.GrantType", message))
        }
    }
}

/// Spends the grant and returns the subject of its tokens. The inner error refuses it, and the grant stays spent.
fn redeem(
    state: &mut CatalogState,
    grant: &TokenGrant,
    request: &TokenRequest,
    now_ms: i64,
) -> Result<Result<Subject, ServiceError>, ServiceError> {
    let used = |name: &str| Ok(Err(ServiceError::invalid(name, "It is not valid, or was used before.")));
    let subject = match grant {
        TokenGrant::Refresh { key, configured } => {
            let subject = match state.token(key) {
                Some(Token::Refresh) => Subject::User,
                Some(Token::ServiceRefresh) => Subject::Service,
                None if *configured => Subject::User,
                _ => return used("refresh_token"),
            };
            state.put_token(key, Token::Spent)?;
            subject
        }
        TokenGrant::Code { key, configured } => {
            let code = state.token(key).cloned();
            match code {
                Some(Token::Code { .. }) => {}
                None if *configured => {}
                _ => return used("code"),
            }
            state.put_token(key, Token::Spent)?;
            if let Some(Token::Code { client_id, redirect_uri, challenge, expires_ms }) = code {
                if expires_ms <= now_ms {
                    return Ok(Err(ServiceError::invalid("code", "It has expired.")));
                }
                if client_id != request.client_id {
                    return Ok(Err(ServiceError::invalid("code", "It was issued to another client.")));
                }
                if redirect_uri != request.redirect_uri {
                    return Ok(Err(ServiceError::invalid(
                        "redirect_uri",
                        "It differs from that of the authorization request.",
                    )));
                }
                let proven = || URL_SAFE_NO_PAD.encode(Sha256::digest(request.code_verifier.as_bytes()));
                if challenge.is_some_and(|challenge| challenge != proven()) {
                    return Ok(Err(ServiceError::invalid(
                        "code_verifier",
                        "It does not prove the challenge.",
                    )));
                }
            }
            Subject::User
        }
        TokenGrant::Assertion(checked) => {
            if state.token(&checked.key).is_some() {
                return Ok(Err(ServiceError::invalid("assertion", "Its jti was used before.")));
            }
            state.put_token(&checked.key, Token::Assertion { expires_ms: checked.expires_ms })?;
            checked.subject
        }
    };
    Ok(Ok(subject))
}
