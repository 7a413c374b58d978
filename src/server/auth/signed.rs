//! Requests signed with an access key, in both signature schemes of the gateway.
//!
//! Both sign the method, the path with its query, four standard headers and every `x-acs-*` header. The first
//! uses HMAC-SHA1. The second uses HMAC-SHA256 over a hash, signs the hash of the body, and derives its key
//! from the scope in the credential.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use hyper::http::request::Parts;
use jiff::Timestamp;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use crate::server::app::App;
use crate::server::clock::{decode_hex, hex};
use crate::server::config::AcceptedAccessKey;
use crate::server::errors::ServiceError;

fn bad_signature(detail: &str) -> ServiceError {
    ServiceError::new(401, "SignatureNotMatch", format!("The request signature is not valid: {detail}."))
}

fn header<'a>(head: &'a Parts, name: &str) -> &'a str {
    head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
}

fn resource(head: &Parts) -> &str {
    head.uri.path_and_query().map_or("/", |path| path.as_str())
}

/// The signed headers as text, and the names of the `x-acs-*` headers joined by semicolons.
fn headers(head: &Parts) -> (String, String) {
    let mut names: Vec<_> = head
        .headers
        .keys()
        .map(hyper::header::HeaderName::as_str)
        .filter(|name| name.starts_with("x-acs-"))
        .collect();
    names.sort_unstable();
    let mut text: String = ["accept", "content-md5", "content-type", "date"]
        .into_iter()
        .flat_map(|name| [header(head, name), "\n"])
        .collect();
    for name in &names {
        text.extend([*name, ":", header(head, name).trim(), "\n"]);
    }
    (text, names.join(";"))
}

/// The time of a request: `x-acs-date` (RFC 3339) if there is one, else `Date` (RFC 1123).
fn date_of(head: &Parts) -> Option<Timestamp> {
    match header(head, "x-acs-date") {
        "" => jiff::fmt::rfc2822::parse(header(head, "date")).ok().map(|at| at.timestamp()),
        text => text.parse().ok(),
    }
}

/// The date in the scope of the second scheme. Gateways that send `x-acs-date` have `20261123` there, older ones
/// the first ten characters of `Date`.
fn scope_date(head: &Parts) -> String {
    match header(head, "x-acs-date") {
        "" => header(head, "date").chars().take(10).collect(),
        text => text.chars().take(10).filter(|c| *c != '-').collect(),
    }
}

/// The access key with this id, if the date of the request is within the allowed skew.
fn key<'a>(app: &'a App, head: &Parts, id: &str) -> Result<&'a AcceptedAccessKey, ServiceError> {
    let key = app.config.access_key.as_ref().filter(|key| app.signer.constant_time_eq(id, &key.id));
    let key = key.ok_or_else(|| bad_signature("unknown access key"))?;
    let at = date_of(head).ok_or_else(|| bad_signature("no date"))?;
    let skew_s = at.as_second() - app.clock.now_ms() / 1000;
    if skew_s.unsigned_abs() > key.date_skew_max.as_secs() {
        return Err(bad_signature("the date differs too much from the server's clock"));
    }
    Ok(key)
}

/// `acs <id>:<base64>`; `credential` is the text after `acs `.
pub(super) fn check(app: &App, head: &Parts, credential: &str) -> Result<(), ServiceError> {
    let (id, given) = credential.split_once(':').ok_or_else(|| bad_signature("no signature"))?;
    let key = key(app, head, id)?;
    let given = STANDARD.decode(given.trim()).map_err(|_| bad_signature("it is not base64"))?;
    let text = format!("{}\n{}{}", head.method, headers(head).0, resource(head));
    let mut mac = Hmac::<Sha1>::new_from_slice(key.secret.expose().as_bytes())
        .map_err(|_| bad_signature("the key cannot be used"))?;
    mac.update(text.as_bytes());
    mac.verify_slice(&given).map_err(|_| bad_signature("it does not match the request"))
}

fn hmac256(key: &[u8], text: &[u8]) -> Result<Hmac<Sha256>, ServiceError> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).map_err(|_| bad_signature("the key cannot be used"))?;
    mac.update(text);
    Ok(mac)
}

/// `ACS4-HMAC-SHA256 Credential=<id>/<scope>,SignedHeaders=<names>,Signature=<hex>`; `fields` is the text
/// after the first word. The date in the scope can contain a comma. The signature covers the hash of the body that
/// the head announces.
pub(super) fn check_v4(app: &App, head: &Parts, fields: &str) -> Result<SignedBody, ServiceError> {
    let parsed = fields.strip_prefix("Credential=").and_then(|rest| {
        let (credential, rest) = rest.split_once(",SignedHeaders=")?;
        let (names, signature) = rest.split_once(",Signature=")?;
        Some((credential, names, decode_hex(signature)?))
    });
    let (credential, names, given) = parsed.ok_or_else(|| bad_signature("no signature"))?;
    let mut scope = credential.split('/');
    let key = key(app, head, scope.next().unwrap_or(""))?;
    if scope.clone().next() != Some(&scope_date(head)) {
        return Err(bad_signature("the scope has another date"));
    }
    let body_hash = header(head, "x-acs-content-sha256");
    let (text, all_names) = headers(head);
    if names != all_names {
        return Err(bad_signature("not all headers are signed"));
    }
    let canonical = format!("{}\n{}\n{text}\n{names}\n{body_hash}", head.method, resource(head));
    let text = format!("ACS4-HMAC-SHA256\n{}", hex(&Sha256::digest(canonical.as_bytes())));
    let mut derived = format!("aliyun_v4{}", key.secret.expose()).into_bytes();
    for step in scope {
        derived = hmac256(&derived, step.as_bytes())?.finalize().into_bytes().to_vec();
    }
    let mac = hmac256(&derived, text.as_bytes())?;
    mac.verify_slice(&given).map_err(|_| bad_signature("it does not match the request"))?;
    Ok(SignedBody { sha256: body_hash.to_owned() })
}

/// The body that a signature covers.
pub(super) struct SignedBody {
    /// In hexadecimal.
    sha256: String,
}

impl SignedBody {
    pub(super) fn check(&self, body: &[u8]) -> Result<(), ServiceError> {
        if hex(&Sha256::digest(body)) == self.sha256 {
            Ok(())
        } else {
            Err(bad_signature("the hash of the body does not match"))
        }
    }
}
