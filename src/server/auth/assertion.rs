//! Assertions (JWT) of service apps: RS256, verified by ring with the public key of the app.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use serde::Deserialize;

use super::subject::Subject;
use crate::server::app::{App, DOMAIN_ID};
use crate::server::errors::ServiceError;

/// Bound on the lifetime of an assertion.
const LIFETIME_S_MAX: i64 = 900;
/// How far `iat` may lie in the future.
const SKEW_S_MAX: i64 = 5;

/// An assertion that is valid unless it was used before.
pub(super) struct VerifiedAssertion {
    /// Records its use in the catalog.
    pub(super) key: String,
    pub(super) expires_ms: i64,
    pub(super) subject: Subject,
}

#[derive(Deserialize)]
struct AssertionHeader {
    alg: String,
}

#[derive(Deserialize)]
struct AssertionClaims {
    iss: String,
    sub: String,
    #[serde(default)]
    sub_type: String,
    aud: String,
    jti: String,
    exp: i64,
    iat: i64,
}

fn invalid_assertion(detail: &str) -> ServiceError {
    ServiceError::invalid("assertion", detail)
}

fn decode_json<T: serde::de::DeserializeOwned>(part: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

/// Verifies signature and claims, but not whether the assertion was used before.
pub(super) fn verify(app: &App, client_id: &str, text: &str) -> Result<VerifiedAssertion, ServiceError> {
    let apps = &app.config.logins.service_apps;
    let service = apps.iter().find(|service| app.signer.constant_time_eq(client_id, &service.client_id));
    let service = service.ok_or_else(|| ServiceError::new(403, "Forbidden", "The client is not known."))?;
    let (signed, signature) = text.rsplit_once('.').ok_or_else(|| invalid_assertion("It is not a JWT."))?;
    let (header, claims) = signed.split_once('.').ok_or_else(|| invalid_assertion("It is not a JWT."))?;
    let header: AssertionHeader =
        decode_json(header).ok_or_else(|| invalid_assertion("Its header cannot be read."))?;
    if header.alg != "RS256" {
        return Err(invalid_assertion("It must be signed with RS256."));
    }
    let signature =
        URL_SAFE_NO_PAD.decode(signature).map_err(|_| invalid_assertion("Its signature cannot be read."))?;
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &service.public_key)
        .verify(signed.as_bytes(), &signature)
        .map_err(|_| invalid_assertion("Its signature is not that of the app's key."))?;
    let claims: AssertionClaims =
        decode_json(claims).ok_or_else(|| invalid_assertion("Its claims cannot be read."))?;
    let now_s = app.clock.now_ms() / 1000;
    if let Some(reason) = claims.refusal(&service.client_id, now_s) {
        return Err(invalid_assertion(reason));
    }
    let key = app.signer.fingerprint(&format!("assertion {} {}", claims.iss, claims.jti));
    let subject = if claims.sub_type == "service" { Subject::Service } else { Subject::User };
    Ok(VerifiedAssertion { key, expires_ms: claims.exp.saturating_mul(1000), subject })
}

impl AssertionClaims {
    /// Why the claims are not valid for this client.
    fn refusal(&self, client_id: &str, now_s: i64) -> Option<&'static str> {
        let subject = match self.sub_type.as_str() {
            "service" => DOMAIN_ID,
            "user" => "owner",
            _ => return Some("Its sub_type is neither user nor service."),
        };
        if self.iss != client_id {
            Some("Its iss is not the client.")
        } else if self.aud != DOMAIN_ID {
            Some("Its aud is not the domain.")
        } else if self.sub != subject {
            Some("Its sub is not a member of the domain.")
        } else if self.jti.is_empty() {
            Some("It has no jti.")
        } else if self.exp <= now_s {
            Some("It has expired.")
        } else if self.iat > now_s + SKEW_S_MAX {
            Some("Its iat is in the future.")
        } else if self.exp.saturating_sub(self.iat) > LIFETIME_S_MAX {
            Some("It is valid for too long.")
        } else {
            None
        }
    }
}

/// Fuzz target: header and claims of an assertion, each in base64.
#[cfg(any(test, fuzzing))]
pub(in crate::server) fn check_claims(text: &str, now_s: i64) {
    let Some((header, claims)) = text.split_once('.') else { return };
    drop(decode_json::<AssertionHeader>(header));
    let Some(claims) = decode_json::<AssertionClaims>(claims) else { return };
    if claims.refusal("app", now_s).is_none() {
        assert!(claims.exp > now_s && claims.exp <= now_s + SKEW_S_MAX + LIFETIME_S_MAX, "{}", claims.exp);
    }
}
