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
/// Longest name of a user that is shown, in characters.
const SHOWN_CHARS_MAX: usize = 200;
/// Fields of a token call that are secret.
const SECRET_FIELDS: [&str; 5] = ["refresh_token", "client_secret", "code", "code_verifier", "assertion"];
/// Shorter ones are not looked for in answers: they are in any text.
const SECRET_BYTES_MIN: usize = 4;

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

/// The wire form. Deployments leave fields out, have them as `null`, or write numbers as texts.
#[derive(Default, Deserialize)]
#[serde(default)]
struct TokenAnswer {
    access_token: Loose,
    token_type: Loose,
    refresh_token: Loose,
    expires_in: Loose,
    default_drive_id: Loose,
    user_name: Loose,
    nick_name: Loose,
}

/// A text, or a number as a text; empty where it is anything else.
#[derive(Default)]
struct Loose(String);

impl<'de> Deserialize<'de> for Loose {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => text,
            serde_json::Value::Number(number) => number.to_string(),
            _ => String::new(),
        }))
    }
}

impl Loose {
    /// Nothing where it is empty.
    fn text(self) -> Option<String> {
        Some(self.0).filter(|text| !text.is_empty())
    }

    /// For people: nothing in it moves the cursor of a terminal.
    fn shown(self) -> Option<String> {
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        self.text().map(|text| text.chars().take(SHOWN_CHARS_MAX).map(plain).collect())
    }
}

impl TokenAnswer {
    fn granted(self) -> Result<Granted, Trouble> {
        let odd = |what: &str| Trouble::Passing(Error::new(ErrorKind::Protocol, what));
        let usable = |token: &str, what: &str| {
            check_token(token).map_err(|e| odd(&format!("the service gave {what} that cannot be used: {e}")))
        };
        let access_token = self.access_token.text().ok_or_else(|| odd("the service gave no access token"))?;
        usable(&access_token, "an access token")?;
        if self.token_type.text().is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
            return Err(odd("the service gave a token that is no bearer token; only those are known"));
        }
        let refresh_token = self.refresh_token.text();
        if let Some(token) = &refresh_token {
            usable(token, "a refresh token")?;
        }
        // What is no number of seconds says nothing.
        let lifetime_s = self.expires_in.0.trim().parse().map_or(0.0, |s: f64| s.max(0.0)) as u64;
        let lifetime_s = lifetime_s.min(LIFETIME_MAX.as_secs());
        Ok(Granted {
            access: AccessToken {
                token: Secret::new(access_token),
                expires_at_s: (lifetime_s > 0).then(|| now_s() + lifetime_s),
            },
            refresh_token: refresh_token.map(Secret::new),
            default_drive_id: DriveId::new(&self.default_drive_id.0).ok(),
            user: self.nick_name.shown().or(self.user_name.shown()).unwrap_or_default(),
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
            let secrets = [refresh_token.expose().as_str()];
            answer.map_err(|failure| judge(&failure, "the login has ended", &secrets))?.granted()
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
    Call { url, authorization: None, idempotency: Idempotency::Spends, policy: RetryPolicy::INTERACTIVE }
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
    let secret = fields.iter().filter(|(name, _)| SECRET_FIELDS.contains(name));
    let secrets: Vec<_> = secret.map(|(_, value)| *value).collect();
    answer.map_err(|failure| judge(&failure, advice, &secrets))?.granted()
}

/// Final is what the service has answered and means. What it says may quote what it was sent.
fn judge(failure: &Failure, advice: &str, secrets: &[&str]) -> Trouble {
    let secrets = secrets.iter().filter(|secret| secret.len() >= SECRET_BYTES_MIN);
    let said = secrets.fold(failure.error.to_string(), |said, secret| said.replace(secret, "***"));
    let passing = matches!(
        failure.error.kind(),
        ErrorKind::Throttled | ErrorKind::Timeout | ErrorKind::Io | ErrorKind::Unreachable
    );
    // An answer that cannot be read has no code: a proxy in between, most likely.
    if passing || failure.sent != Sent::Answered || failure.code.is_empty() {
        return Trouble::Passing(Error::new(failure.error.kind(), format!("no access token: {said}")));
    }
    Trouble::Dead(Error::new(ErrorKind::Unauthenticated, format!("{said} ({advice})")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pds::transport::Timeouts;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn granted(json: &str) -> Result<Granted, Error> {
        serde_json::from_str::<TokenAnswer>(json).unwrap().granted().map_err(Error::from)
    }

    /// What comes of a refresh with `OLD-SECRET` that somebody answers like this.
    async fn answered(status: &str, body: &str) -> Result<Option<Granted>, Trouble> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let length = body.len();
        let answer =
            format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !String::from_utf8_lossy(&request).contains("OLD-SECRET") {
                assert!(stream.read_buf(&mut request).await.unwrap() > 0, "no refresh token came");
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        let wait = Duration::from_secs(20);
        let timeouts = Timeouts { connect: wait, call: wait, stall: wait };
        let grant = Grant::Refresh {
            client_id: "app".to_owned(),
            client_secret: None,
            refresh_token: Secret::new("OLD-SECRET".to_owned()),
            by: RefreshBy::Oauth,
        };
        let outcome = by_grant(&grant, Some(&url), &Transport::new(timeouts, true).unwrap()).await;
        server.await.unwrap();
        outcome
    }

    #[test]
    fn answers_are_read_as_deployments_write_them() {
        let end = |json: &str| granted(json).unwrap().access.expires_at_s;
        let now = now_s();
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
        let full = granted(full).unwrap();
        assert_eq!(full.refresh_token.unwrap().expose(), "RT");
        assert_eq!((full.default_drive_id.unwrap().as_str(), full.user.as_str()), ("7", "a b"));
    }

    #[test]
    fn what_is_no_token_is_not_taken_for_one() {
        let long = format!(r#"{{"access_token":"{}"}}"#, "S".repeat(65 << 10));
        for (json, says) in [
            ("{}", "no access token"),
            (r#"{"access_token":["S"]}"#, "no access token"),
            (r#"{"access_token":"S\r\nx-evil: 1"}"#, "characters"),
            (r#"{"access_token":"S","refresh_token":"S\nS"}"#, "refresh token"),
            (r#"{"access_token":"S","token_type":"mac"}"#, "bearer"),
            (long.as_str(), "bytes"),
        ] {
            let error = granted(json).unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains('S'), "{error}");
        }
    }

    #[tokio::test]
    async fn no_error_of_a_token_call_quotes_a_secret() {
        for (status, body, says) in [
            ("200 OK", r#""NEW-SECRET""#, "line 1, column"),
            ("200 OK", r#"{"access_token": NEW-SECRET}"#, "line 1, column"),
            ("200 OK", r#"{"access_token":"NEW-SECRET\n"}"#, "cannot be used"),
            (
                "400 Bad Request",
                r#"{"code":"InvalidParameter","message":"OLD-SECRET is spent"}"#,
                "*** is spent",
            ),
            ("502 Bad Gateway", "<p>NEW-SECRET OLD-SECRET</p>", "502"),
        ] {
            let error = Error::from(answered(status, body).await.unwrap_err()).to_string();
            assert!(error.contains(says) && !error.contains("SECRET"), "{body}: {error}");
        }
    }
}
