//! The calls that hand tokens out, each for a proof of its own: a code, a refresh token, an assertion.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::assertion;
use crate::server::App;
use crate::server::catalog::State;
use crate::server::catalog::records::Token;
use crate::server::clock::{random_hex, rfc3339};
use crate::server::errors::ApiError;

const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// What both token endpoints ask for, in JSON or as a form.
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

/// The answer of both token endpoints.
#[derive(Debug, Serialize)]
pub(in crate::server) struct TokenAnswer {
    access_token: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
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

/// What was shown in return for a token.
enum Proof {
    Refresh { key: String, configured: bool },
    Code { key: String, configured: bool },
    Assertion(assertion::Checked),
}

/// `oauth/token` and `account/token`.
pub(in crate::server) async fn grant(app: &App, request: TokenRequest) -> Result<TokenAnswer, ApiError> {
    let proof = proof(app, &request)?;
    let logins = &app.config.logins;
    let access = random_hex(24)?;
    let refresh = match &proof {
        Proof::Refresh { .. } if !app.config.quirks.rotate_refresh_token => {
            Some(request.refresh_token.clone())
        }
        Proof::Refresh { .. } | Proof::Code { .. } => Some(random_hex(24)?),
        Proof::Assertion(_) => None,
    };
    let now_ms = app.clock.now_ms();
    let ttl = logins.token_ttl;
    let expires_ms = now_ms.saturating_add(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX));
    let access_key = app.signer.fingerprint(&access);
    let refresh_key = refresh.as_deref().map(|token| app.signer.fingerprint(token));
    let judged = app
        .catalog
        .change(|state| {
            state.drop_expired_tokens(now_ms);
            if let Err(refusal) = spend(state, &proof, &request, now_ms)? {
                // What was spent stays so.
                return Ok(Err(refusal));
            }
            if let Some(key) = &refresh_key {
                state.put_token(key, Token::Refresh)?;
            }
            state.put_token(&access_key, Token::Access { expires_ms })?;
            Ok(Ok(()))
        })
        .await?;
    judged?;
    Ok(TokenAnswer {
        access_token: access,
        refresh_token: refresh,
        token_type: "Bearer",
        expires_in: ttl.as_secs(),
        expire_time: rfc3339(expires_ms),
        user_id: "owner",
        user_name: "owner",
        nick_name: "owner",
        domain_id: crate::server::DOMAIN_ID,
        default_drive_id: "1",
        role: "user",
        status: "enabled",
    })
}

/// What the request shows, as far as no record is needed to judge it.
fn proof(app: &App, request: &TokenRequest) -> Result<Proof, ApiError> {
    let logins = &app.config.logins;
    let shown = |text: &str, name: &str| {
        if text.is_empty() { Err(ApiError::missing(name)) } else { Ok(app.signer.fingerprint(text)) }
    };
    if request.grant_type == JWT_BEARER && !logins.service_apps.is_empty() {
        shown(&request.assertion, "assertion")?;
        return assertion::check(app, &request.client_id, &request.assertion).map(Proof::Assertion);
    }
    let known = |id: &String| app.signer.same(&request.client_id, id);
    if !logins.client_ids.is_empty() && !logins.client_ids.iter().any(known) {
        return Err(ApiError::new(403, "Forbidden", "The client is not known."));
    }
    if let Some(secret) = &logins.client_secret
        && !app.signer.same(&request.client_secret, secret.expose())
    {
        return Err(ApiError::new(403, "Forbidden", "The client secret is not that of the client."));
    }
    match request.grant_type.as_str() {
        "refresh_token" => {
            let key = shown(&request.refresh_token, "refresh_token")?;
            let same =
                |token: &crate::ids::Secret<String>| app.signer.same(&request.refresh_token, token.expose());
            Ok(Proof::Refresh { key, configured: logins.refresh_token.as_ref().is_some_and(same) })
        }
        "authorization_code" | "code" => {
            let key = shown(&request.code, "code")?;
            let same = |code: &crate::ids::Secret<String>| app.signer.same(&request.code, code.expose());
            Ok(Proof::Code { key, configured: logins.codes.iter().any(same) })
        }
        "" => Err(ApiError::missing("grant_type")),
        _ => {
            let message = "The grant type is not supported.";
            Err(ApiError::new(400, "InvalidParameterNotSupported.GrantType", message))
        }
    }
}

/// Takes the proof, once. The inner error refuses it; what it spent stays spent.
fn spend(
    state: &mut State,
    proof: &Proof,
    request: &TokenRequest,
    now_ms: i64,
) -> Result<Result<(), ApiError>, ApiError> {
    let used = |name: &str| Ok(Err(ApiError::invalid(name, "It is not valid, or was used before.")));
    match proof {
        Proof::Refresh { key, configured } => {
            match state.token(key) {
                Some(Token::Refresh) => {}
                None if *configured => {}
                _ => return used("refresh_token"),
            }
            state.put_token(key, Token::Spent)?;
        }
        Proof::Code { key, configured } => {
            let code = state.token(key).cloned();
            match code {
                Some(Token::Code { .. }) => {}
                None if *configured => {}
                _ => return used("code"),
            }
            state.put_token(key, Token::Spent)?;
            if let Some(Token::Code { client_id, redirect_uri, challenge, expires_ms }) = code {
                if expires_ms <= now_ms {
                    return Ok(Err(ApiError::invalid("code", "It has expired.")));
                }
                if client_id != request.client_id {
                    return Ok(Err(ApiError::invalid("code", "It was given to another client.")));
                }
                if redirect_uri != request.redirect_uri {
                    return Ok(Err(ApiError::invalid("redirect_uri", "It is not that of the code.")));
                }
                let proven = || URL_SAFE_NO_PAD.encode(Sha256::digest(request.code_verifier.as_bytes()));
                if challenge.is_some_and(|challenge| challenge != proven()) {
                    return Ok(Err(ApiError::invalid("code_verifier", "It does not prove the challenge.")));
                }
            }
        }
        Proof::Assertion(checked) => {
            if state.token(&checked.key).is_some() {
                return Ok(Err(ApiError::invalid("assertion", "Its jti was used before.")));
            }
            state.put_token(&checked.key, Token::Assertion { expires_ms: checked.expires_ms })?;
        }
    }
    Ok(Ok(()))
}
