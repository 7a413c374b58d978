//! Token requests, and the classification of their failures.
//!
//! A 4xx answer with a service code is final, because the same request gets the same answer. Other failures
//! are transient.

use std::time::Duration;

use serde::{Deserialize, Deserializer};
use url::Url;

use super::auth_state::AuthError;
use crate::auth::{AccessToken, Grant, IssuedToken, RefreshBy, check_token, endpoint, jwt, unix_now_s};
use crate::error::{Error, ErrorKind};
use crate::ids::{DriveId, Secret};
use crate::messages::Cause;
use crate::pds::retry::{Delivery, Idempotency, RequestFailure, RetryPolicy};
use crate::pds::transport::{Call, CallPriority, Transport};

const OAUTH_PATH: &str = "/v2/oauth/token";
const ACCOUNT_PATH: &str = "/v2/account/token";
const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
/// Longest lifetime of an access token; a longer one is shortened to it.
const LIFETIME_MAX: Duration = Duration::from_secs(400 * 86_400);
/// Longest display name of a user, in characters.
const USER_CHARS_MAX: usize = 200;
/// The cause if a refresh is refused; the credential store knows the remedy.
const REFRESH_REFUSED: Cause = Cause::LoginRefused;
/// Secret fields of a token request.
const SECRET_FIELDS: [&str; 5] = ["refresh_token", "client_secret", "code", "code_verifier", "assertion"];

/// The authorization code of a browser login.
#[derive(Clone, Debug)]
pub struct AuthorizationCode {
    pub client_id: String,
    /// Only of confidential apps.
    pub client_secret: Option<Secret<String>>,
    pub code: Secret<String>,
    /// Must equal the one in the authorization request.
    pub redirect_uri: String,
    /// The PKCE verifier.
    pub verifier: Secret<String>,
}

/// The JSON answer. Deployments omit fields, send them as `null`, or send numbers as strings.
#[derive(Default, Deserialize)]
#[serde(default)]
struct TokenResponse {
    access_token: LooseText,
    token_type: LooseText,
    refresh_token: LooseText,
    expires_in: LooseText,
    default_drive_id: LooseText,
    user_name: LooseText,
    nick_name: LooseText,
}

/// A string, or a number as a string; empty for anything else.
#[derive(Default)]
struct LooseText(String);

impl<'de> Deserialize<'de> for LooseText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => text,
            serde_json::Value::Number(number) => number.to_string(),
            _ => String::new(),
        }))
    }
}

impl LooseText {
    /// `None` if empty.
    fn text(self) -> Option<String> {
        Some(self.0).filter(|text| !text.is_empty())
    }

    /// Shortened, and without control characters, which could move the cursor of a terminal.
    fn display_text(self) -> Option<String> {
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        self.text().map(|text| text.chars().take(USER_CHARS_MAX).map(plain).collect())
    }
}

impl TokenResponse {
    fn into_token(self) -> Result<IssuedToken, AuthError> {
        let invalid = |what: &str| AuthError::Transient(Error::new(ErrorKind::Protocol, what));
        let usable = |token: &str, what: &str| {
            check_token(token).map_err(|e| invalid(&format!("the service returned an unusable {what}: {e}")))
        };
        let access_token =
            self.access_token.text().ok_or_else(|| invalid("the service returned no access token"))?;
        usable(&access_token, "access token")?;
        if self.token_type.text().is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
            return Err(invalid("the service returned a token that is not a bearer token"));
        }
        let refresh_token = self.refresh_token.text();
        if let Some(token) = &refresh_token {
            usable(token, "refresh token")?;
        }
        // Anything but a positive number of seconds counts as unknown.
        let lifetime_s = self.expires_in.0.trim().parse().map_or(0.0, |s: f64| s.max(0.0)) as u64;
        let lifetime_s = lifetime_s.min(LIFETIME_MAX.as_secs());
        Ok(IssuedToken {
            access: AccessToken {
                token: Secret::new(access_token),
                expires_at_s: (lifetime_s > 0).then(|| unix_now_s() + lifetime_s),
            },
            refresh_token: refresh_token.map(Secret::new),
            default_drive_id: DriveId::new(&self.default_drive_id.0).ok(),
            user: self.nick_name.display_text().or(self.user_name.display_text()).unwrap_or_default(),
        })
    }
}

/// Exchanges an authorization code for a token.
pub async fn redeem_code(
    code: &AuthorizationCode,
    auth_endpoint: &Url,
    transport: &Transport,
) -> Result<IssuedToken, AuthError> {
    let mut fields = vec![
        ("grant_type", "authorization_code"),
        ("client_id", &code.client_id),
        ("code", code.code.expose()),
        ("redirect_uri", &code.redirect_uri),
        ("code_verifier", code.verifier.expose()),
    ];
    if let Some(secret) = &code.client_secret {
        fields.push(("client_secret", secret.expose()));
    }
    post_token_form(auth_endpoint, fields, Cause::LoginRefused, transport).await
}

/// Requests the next token of a grant. `None` if the grant cannot get another one.
pub async fn request_token(
    grant: &Grant,
    auth_endpoint: Option<&Url>,
    transport: &Transport,
) -> Result<Option<IssuedToken>, AuthError> {
    let Some(auth_endpoint) = auth_endpoint else { return Ok(None) };
    let issued = match grant {
        Grant::Fixed | Grant::AccessKey { .. } => return Ok(None),
        Grant::Refresh { client_id, refresh_token, by: RefreshBy::Account, .. } => {
            let url = endpoint::with_path(auth_endpoint, ACCOUNT_PATH);
            let body = serde_json::json!({
                "app_id": client_id, "grant_type": "refresh_token", "refresh_token": refresh_token.expose(),
            });
            let secrets = [refresh_token.expose().as_str()];
            let answer = transport.json::<TokenResponse>(token_call(&url, &secrets), &body).await;
            answer.map_err(|failure| classify_failure(failure, REFRESH_REFUSED))?.into_token()
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
            post_token_form(auth_endpoint, fields, REFRESH_REFUSED, transport).await
        }
        Grant::ServiceApp { client_id, subject, subject_kind, domain_id, key_pem } => {
            let assertion = jwt::assertion(client_id, subject, *subject_kind, domain_id, key_pem)
                .map_err(AuthError::Revoked)?;
            let fields = vec![
                ("grant_type", JWT_BEARER),
                ("client_id", client_id.as_str()),
                ("assertion", assertion.expose()),
            ];
            post_token_form(auth_endpoint, fields, Cause::AppKeyRefused, transport).await
        }
    };
    issued.map(Some)
}

fn token_call<'a>(url: &'a Url, secrets: &'a [&'a str]) -> Call<'a> {
    Call {
        url,
        authorization: None,
        secrets,
        idempotency: Idempotency::NonReplayable,
        policy: RetryPolicy::INTERACTIVE,
        priority: CallPriority::Commit,
    }
}

async fn post_token_form(
    auth_endpoint: &Url,
    mut fields: Vec<(&str, &str)>,
    refused: Cause,
    transport: &Transport,
) -> Result<IssuedToken, AuthError> {
    let url = endpoint::with_path(auth_endpoint, OAUTH_PATH);
    if let Some(domain) = endpoint::domain_id(auth_endpoint) {
        fields.push(("domain_id", domain));
    }
    let secrets = fields.iter().filter(|(name, _)| SECRET_FIELDS.contains(name));
    let secrets: Vec<_> = secrets.map(|(_, value)| *value).collect();
    let answer = transport.form::<TokenResponse>(token_call(&url, &secrets), &fields).await;
    answer.map_err(|failure| classify_failure(failure, refused))?.into_token()
}

/// `refused` is the cause if the service refuses for good.
fn classify_failure(failure: RequestFailure, refused: Cause) -> AuthError {
    let is_transient = matches!(
        failure.error.kind(),
        ErrorKind::Throttled | ErrorKind::Timeout | ErrorKind::Io | ErrorKind::Unreachable
    );
    // An answer without a service code most likely comes from a proxy.
    if is_transient || failure.delivery != Delivery::Answered || failure.code.is_empty() {
        return AuthError::Transient(failure.error.context("cannot get an access token"));
    }
    let text = failure.error.to_string();
    let cause = match failure.error.cause() {
        Some(clock @ Cause::ClockWrong { .. }) => clock.clone(),
        _ => refused,
    };
    AuthError::Revoked(Error::from_cause(
        ErrorKind::Unauthenticated,
        cause,
        failure.error.detail().unwrap_or(&text),
    ))
}

/// Fuzz target: the answer to a token request.
#[cfg(any(test, fuzzing))]
pub fn check_token_answer(data: &[u8]) {
    let Ok(answer) = serde_json::from_slice::<TokenResponse>(data) else { return };
    match answer.into_token() {
        Ok(issued) => {
            let header = format!("Bearer {}", issued.access.token.expose());
            assert!(hyper::header::HeaderValue::from_str(&header).is_ok(), "a token that is no header");
            assert!(!issued.user.contains(char::is_control), "{:?}", issued.user);
            let latest = unix_now_s() + LIFETIME_MAX.as_secs();
            assert!(issued.access.expires_at_s.is_none_or(|end| end <= latest));
        }
        Err(error) => {
            let text = Error::from(error).to_string();
            assert!(!text.contains(char::is_control), "{text:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pds::transport::{TransportLimits, TrustedPeers};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn parse(json: &str) -> Result<IssuedToken, Error> {
        serde_json::from_str::<TokenResponse>(json).unwrap().into_token().map_err(Error::from)
    }

    /// The result of a refresh with the refresh token `OLD-SECRET` and this answer.
    async fn refresh_with_answer(status: &str, body: &str) -> Result<Option<IssuedToken>, AuthError> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let length = body.len();
        let answer =
            format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !String::from_utf8_lossy(&request).contains("OLD-SECRET") {
                assert!(stream.read_buf(&mut request).await.unwrap() > 0, "the request has no refresh token");
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        let wait = Duration::from_secs(20);
        let timeouts = TransportLimits { connect: wait, call: wait, idle: wait, calls_max: 1 };
        let grant = Grant::Refresh {
            client_id: "app".to_owned(),
            client_secret: None,
            refresh_token: Secret::new("OLD-SECRET".to_owned()),
            by: RefreshBy::Oauth,
        };
        let transport = Transport::new(timeouts, &url, TrustedPeers::default()).unwrap();
        let outcome = request_token(&grant, Some(&url), &transport).await;
        server.await.unwrap();
        outcome
    }

    #[test]
    fn answers_of_all_deployments_are_parsed() {
        let end = |json: &str| parse(json).unwrap().access.expires_at_s;
        let now = unix_now_s();
        for (json, left_s) in [
            (r#"{"access_token":"AT","expires_in":7200}"#, 7200),
            (r#"{"access_token":"AT","expires_in":"7200","token_type":"bearer","scope":["x"],"x":{}}"#, 7200),
            (r#"{"access_token":"AT","expires_in":7200.5,"token_type":"BEARER"}"#, 7200),
            (r#"{"access_token":"AT","expires_in":1e300,"token_type":null}"#, LIFETIME_MAX.as_secs()),
        ] {
            let left = end(json).unwrap() - now;
            assert!((left_s..left_s + 20).contains(&left), "{json}: {left}");
        }
        for json in [
            r#"{"access_token":"AT"}"#,
            r#"{"access_token":"AT","expires_in":null,"refresh_token":null}"#,
            r#"{"access_token":"AT","expires_in":"soon"}"#,
            r#"{"access_token":"AT","expires_in":-5}"#,
        ] {
            assert_eq!(end(json), None, "{json}");
        }
        let full =
            r#"{"access_token":"AT","refresh_token":"RT","default_drive_id":7,"user_name":"a\u001bb"}"#;
        let full = parse(full).unwrap();
        assert_eq!(full.refresh_token.unwrap().expose(), "RT");
        assert_eq!((full.default_drive_id.unwrap().as_str(), full.user.as_str()), ("7", "a b"));
    }

    #[test]
    fn invalid_tokens_are_rejected() {
        let long = format!(r#"{{"access_token":"{}"}}"#, "S".repeat(65 << 10));
        for (json, phrase) in [
            ("{}", "no access token"),
            (r#"{"access_token":["S"]}"#, "no access token"),
            (r#"{"access_token":"S\r\nx-evil: 1"}"#, "characters"),
            (r#"{"access_token":"S","refresh_token":"S\nS"}"#, "refresh token"),
            (r#"{"access_token":"S","token_type":"mac"}"#, "bearer"),
            (long.as_str(), "bytes"),
        ] {
            let error = parse(json).unwrap_err().to_string();
            assert!(error.contains(phrase) && !error.contains('S'), "{error}");
        }
    }

    #[tokio::test]
    async fn token_errors_quote_no_secret() {
        // The secret lies across the end of the text that is shown.
        let cut = format!(r#"{{"code":"InvalidParameter","message":"{}OLD-SECRET"}}"#, "x".repeat(494));
        for (status, body, phrase) in [
            ("400 Bad Request", cut.as_str(), "xxx***"),
            ("200 OK", r#""NEW-SECRET""#, "line 1, column"),
            ("200 OK", r#"{"access_token": NEW-SECRET}"#, "line 1, column"),
            ("200 OK", r#"{"access_token":"NEW-SECRET\n"}"#, "unusable access token"),
            (
                "400 Bad Request",
                r#"{"code":"InvalidParameter","message":"OLD-SECRET is spent"}"#,
                "*** is spent",
            ),
            ("502 Bad Gateway", "<p>NEW-SECRET OLD-SECRET</p>", "502"),
        ] {
            let error = Error::from(refresh_with_answer(status, body).await.unwrap_err());
            let error = format!("{error} {}", error.detail().unwrap_or_default());
            assert!(error.contains(phrase) && !error.contains("SECRET"), "{body}: {error}");
        }
    }
}
