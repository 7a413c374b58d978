//! The calls that hand tokens out, and what their refusals mean.
//!
//! A 4xx is final: the same thing asked again gets the same answer. Everything else may pass.

use std::time::Duration;

use serde::{Deserialize, Deserializer};
use url::Url;

use super::{Trouble, check_token, jwt, now_s};
use crate::account::{AccessToken, Grant, RefreshBy};
use crate::error::{Error, ErrorKind};
use crate::ids::{DriveId, Secret};
use crate::pds::endpoint;
use crate::pds::retry::{Failure, Idempotency, RetryPolicy, Sent};
use crate::pds::transport::{Call, Transport};

const OAUTH_PATH: &str = "/v2/oauth/token";
const ACCOUNT_PATH: &str = "/v2/account/token";
const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
/// Longest life of an access token that is believed.
const LIFETIME_MAX: Duration = Duration::from_secs(400 * 86_400);

/// What a token call gave.
#[derive(Clone, Debug)]
pub struct Granted {
    /// The access token.
    pub access: AccessToken,
    /// The next refresh token, where there is one.
    pub refresh_token: Option<Secret<String>>,
    /// The drive of the user, where the service says so.
    pub default_drive_id: Option<DriveId>,
    /// For people.
    pub user: String,
}

/// A code that a browser brought back.
#[derive(Clone, Debug)]
pub struct CodeAnswer {
    /// Of the app.
    pub client_id: String,
    /// Of apps that keep one.
    pub client_secret: Option<Secret<String>>,
    /// The code.
    pub code: Secret<String>,
    /// The same as the browser was sent away with.
    pub redirect_uri: String,
    /// Proof that we are who sent the browser.
    pub verifier: Secret<String>,
}

/// The wire form. Some deployments leave fields out or `null`.
#[derive(Deserialize)]
struct TokenAnswer {
    access_token: String,
    #[serde(default, deserialize_with = "or_default")]
    refresh_token: String,
    #[serde(default, deserialize_with = "or_default")]
    expires_in: u64,
    #[serde(default, deserialize_with = "or_default")]
    default_drive_id: String,
    #[serde(default, deserialize_with = "or_default")]
    user_name: String,
    #[serde(default, deserialize_with = "or_default")]
    nick_name: String,
}

fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

impl TokenAnswer {
    fn granted(self) -> Result<Granted, Trouble> {
        check_token(&self.access_token).map_err(Trouble::Passing)?;
        let lifetime_s = self.expires_in.min(LIFETIME_MAX.as_secs());
        let text = |text: String| Some(text).filter(|text| !text.is_empty());
        Ok(Granted {
            access: AccessToken {
                token: Secret::new(self.access_token),
                expires_at_s: (lifetime_s > 0).then(|| now_s() + lifetime_s),
            },
            refresh_token: text(self.refresh_token).map(Secret::new),
            default_drive_id: DriveId::new(&self.default_drive_id).ok(),
            user: text(self.nick_name).or(text(self.user_name)).unwrap_or_default(),
        })
    }
}

/// A token for a code.
pub async fn by_code(
    answer: &CodeAnswer,
    auth_endpoint: &Url,
    transport: &Transport,
) -> Result<Granted, Trouble> {
    let mut fields = vec![
        ("grant_type", "authorization_code"),
        ("client_id", &answer.client_id),
        ("code", answer.code.expose()),
        ("redirect_uri", &answer.redirect_uri),
        ("code_verifier", answer.verifier.expose()),
    ];
    if let Some(secret) = &answer.client_secret {
        fields.push(("client_secret", secret.expose()));
    }
    let advice = "run pdsfs login again; check that the client id, the client secret and the redirect URI are \
        those of the app in the console of the service";
    oauth(auth_endpoint, fields, advice, transport).await
}

/// The next token. `None` where the grant has no way to one.
pub async fn by_grant(
    grant: &Grant,
    auth_endpoint: Option<&Url>,
    transport: &Transport,
) -> Result<Option<Granted>, Trouble> {
    let Some(auth_endpoint) = auth_endpoint else { return Ok(None) };
    let granted = match grant {
        Grant::Fixed | Grant::AccessKey { .. } => return Ok(None),
        Grant::Refresh { client_id, refresh_token, by: RefreshBy::Account, .. } => {
            let url = endpoint::at(auth_endpoint, ACCOUNT_PATH);
            let body = serde_json::json!({
                "app_id": client_id, "grant_type": "refresh_token", "refresh_token": refresh_token.expose(),
            });
            let answer = transport.json::<TokenAnswer>(call(&url), &body).await;
            answer.map_err(|failure| judge(failure, "the login has ended"))?.granted()
        }
        Grant::Refresh { client_id, client_secret, refresh_token, by: RefreshBy::Oauth } => {
            let mut fields = vec![
                ("grant_type", "refresh_token"),
                ("client_id", client_id),
                ("refresh_token", refresh_token.expose()),
            ];
            if let Some(secret) = client_secret {
                fields.push(("client_secret", secret.expose()));
            }
            oauth(auth_endpoint, fields, "the login has ended", transport).await
        }
        Grant::ServiceApp { client_id, subject, subject_kind, domain_id, key_pem } => {
            let assertion = jwt::assertion(client_id, subject, *subject_kind, domain_id, key_pem)
                .map_err(Trouble::Dead)?;
            let fields = vec![
                ("grant_type", JWT_BEARER),
                ("client_id", client_id.as_str()),
                ("assertion", assertion.expose()),
            ];
            let advice = "check that the key belongs to the app, that the app may act for that user or domain, \
                and that the clock of this machine is right";
            oauth(auth_endpoint, fields, advice, transport).await
        }
    };
    granted.map(Some)
}

fn call(url: &Url) -> Call<'_> {
    Call { url, authorization: None, idempotency: Idempotency::Once, policy: RetryPolicy::INTERACTIVE }
}

async fn oauth(
    auth_endpoint: &Url,
    mut fields: Vec<(&str, &str)>,
    advice: &str,
    transport: &Transport,
) -> Result<Granted, Trouble> {
    let url = endpoint::at(auth_endpoint, OAUTH_PATH);
    if let Some(domain) = endpoint::domain_id(auth_endpoint) {
        fields.push(("domain_id", domain));
    }
    let answer = transport.form::<TokenAnswer>(call(&url), &fields).await;
    answer.map_err(|failure| judge(failure, advice))?.granted()
}

/// Final is what the service has answered and means.
fn judge(failure: Failure, advice: &str) -> Trouble {
    let passing = matches!(
        failure.error.kind(),
        ErrorKind::Throttled | ErrorKind::Timeout | ErrorKind::Io | ErrorKind::Unreachable
    );
    // An answer that cannot be read has no code: a proxy in between, most likely.
    if passing || failure.sent != Sent::Answered || failure.code.is_empty() {
        return Trouble::Passing(failure.error.context("no access token"));
    }
    Trouble::Dead(Error::new(ErrorKind::Unauthenticated, format!("{} ({advice})", failure.error)))
}
