//! What makes a call ours: a bearer token, or a signature with an access key.
//!
//! Signatures follow the gateway of the official SDKs (scheme `acs`, HMAC-SHA1) and are pinned to requests that
//! such an SDK has sent. They hold for a quarter of an hour, so every attempt is signed anew.

use std::fmt::Write as _;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha1::Sha1;
use url::Url;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;

/// Version of the API that a signed request names.
const API_VERSION: &str = "2022-03-01";
/// The only form that answers come in.
const JSON: &str = "application/json";
/// Type of a signed body.
const SIGNED_TYPE: &str = "application/json; charset=utf-8";

/// An access key of a RAM user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AccessKey {
    /// The public half.
    pub id: String,
    /// The secret half.
    pub secret: Secret<String>,
    /// Of a temporary key (STS).
    pub security_token: Option<Secret<String>>,
}

/// What goes into the header of a call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Authorization {
    /// `Bearer`.
    Bearer(Secret<String>),
    /// Signed.
    Key(AccessKey),
}

/// What differs between two signatures of the same request.
#[derive(Clone, Debug)]
pub struct Moment {
    /// `Mon, 23 Nov 2026 17:56:33 GMT`.
    pub date: String,
    /// Never used again.
    pub nonce: String,
}

impl Moment {
    /// Now, with a fresh nonce.
    pub fn now() -> Result<Self> {
        Ok(Self { date: http_date(SystemTime::now())?, nonce: random_hex(16)? })
    }
}

/// The headers that a POST of JSON must carry, other than its length.
pub fn headers(authorization: &Authorization, url: &Url) -> Result<Vec<(&'static str, String)>> {
    match authorization {
        Authorization::Bearer(token) => Ok(vec![
            ("content-type", JSON.to_owned()),
            ("authorization", format!("Bearer {}", token.expose())),
        ]),
        Authorization::Key(key) => signed(key, url, &Moment::now()?),
    }
}

/// The headers of a signed POST.
pub fn signed(key: &AccessKey, url: &Url, moment: &Moment) -> Result<Vec<(&'static str, String)>> {
    let mut acs = vec![
        ("x-acs-action", action(url.path())),
        ("x-acs-signature-method", "HMAC-SHA1".to_owned()),
        ("x-acs-signature-nonce", moment.nonce.clone()),
        ("x-acs-signature-version", "1.0".to_owned()),
        ("x-acs-version", API_VERSION.to_owned()),
    ];
    if let Some(token) = &key.security_token {
        acs.push(("x-acs-accesskey-id", key.id.clone()));
        acs.push(("x-acs-security-token", token.expose().clone()));
    }
    acs.sort_unstable();
    // Method, accept, content-md5 (none), content-type, date, the x-acs headers by name, path and query.
    let mut text = format!("POST\n{JSON}\n\n{SIGNED_TYPE}\n{}\n", moment.date);
    for (name, value) in &acs {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{name}:{}", value.trim());
    }
    text.push_str(url.path());
    if let Some(query) = url.query() {
        let _ = write!(text, "?{query}");
    }
    let mut mac = Hmac::<Sha1>::new_from_slice(key.secret.expose().as_bytes())
        .map_err(|e| Error::new(ErrorKind::Invalid, format!("the access key cannot be used: {e}")))?;
    mac.update(text.as_bytes());
    let signature = STANDARD.encode(mac.finalize().into_bytes());
    acs.push(("accept", JSON.to_owned()));
    acs.push(("content-type", SIGNED_TYPE.to_owned()));
    acs.push(("date", moment.date.clone()));
    acs.push(("authorization", format!("acs {}:{signature}", key.id)));
    Ok(acs)
}

/// `/v2/file/get_upload_url` is `GetUploadUrl`, `/v2/file/list` is `ListFile`: verb first, and the area only where
/// the verb does not say it.
fn action(path: &str) -> String {
    let (area, verb) = path.trim_start_matches("/v2/").split_once('/').unwrap_or(("", path));
    let named = match (area, verb) {
        ("file", "put_usertags" | "delete_usertags") => return camel(&format!("file_{verb}")),
        ("file", "get_upload_url" | "get_download_url" | "list_uploaded_parts" | "list_delta")
        | ("drive", "get_default_drive" | "list_my_drives")
        | ("", _) => "",
        ("recyclebin", "trash") => "file",
        (area, _) => area,
    };
    let verb = verb.trim_start_matches('/');
    if named.is_empty() { camel(verb) } else { camel(&format!("{verb}_{named}")) }
}

fn camel(name: &str) -> String {
    let capital = |word: &str| {
        let mut letters = word.chars();
        let first = letters.next().map(|c| c.to_ascii_uppercase());
        first.into_iter().chain(letters).collect::<String>()
    };
    name.split('_').map(capital).collect()
}

/// The date format of HTTP.
fn http_date(at: SystemTime) -> Result<String> {
    let wrong = |e: jiff::Error| Error::new(ErrorKind::Io, format!("the clock of this machine: {e}"));
    let at = jiff::Timestamp::try_from(at).map_err(wrong)?;
    Ok(at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string())
}

/// Random bytes in lower-case hex.
pub fn random_hex(bytes: usize) -> Result<String> {
    let mut raw = vec![0; bytes];
    getrandom::fill(&mut raw).map_err(|e| Error::new(ErrorKind::Io, format!("no random bytes: {e}")))?;
    Ok(raw.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every signed request that an official SDK was seen to send.
    #[test]
    fn signatures_are_those_of_the_official_sdk() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/captures/py_parallel_20m_ak.json");
        let entries: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let key = AccessKey { id: "AKID".into(), secret: Secret::new("SECRET".into()), security_token: None };
        let mut compared = 0;
        for entry in &entries {
            let header = |name: &str| {
                let headers = entry["headers"].as_array().unwrap().iter();
                let found = headers.map(|pair| (pair[0].as_str().unwrap(), pair[1].as_str().unwrap()));
                found.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, v)| v.to_owned()).next()
            };
            let Some(nonce) = header("x-acs-signature-nonce") else { continue };
            let url = Url::parse("https://x").unwrap().join(entry["target"].as_str().unwrap()).unwrap();
            let ours = signed(&key, &url, &Moment { date: header("date").unwrap(), nonce }).unwrap();
            for (name, value) in ours {
                assert_eq!(Some(value), header(name), "{name} of {url}");
            }
            compared += 1;
        }
        assert_eq!(compared, 9);
    }

    #[test]
    fn dates_are_those_of_http() {
        let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_795_456_593);
        assert_eq!(http_date(at).unwrap(), "Mon, 23 Nov 2026 17:56:33 GMT");
    }

    #[test]
    fn a_temporary_key_sends_its_token_and_signs_it() {
        let url = Url::parse("https://x/v2/file/list").unwrap();
        let moment = Moment { date: "d".into(), nonce: "n".into() };
        let with = |token: Option<&str>| {
            let security_token = token.map(|token| Secret::new(token.to_owned()));
            let key = AccessKey { id: "AKID".into(), secret: Secret::new("HIDDEN".into()), security_token };
            assert!(!format!("{key:?}").contains("HIDDEN") && !format!("{key:?}").contains("STS"), "{key:?}");
            signed(&key, &url, &moment).unwrap()
        };
        let get = |headers: &[(&str, String)], name: &str| {
            headers.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone())
        };
        let (plain, one, other) = (with(None), with(Some("STS-1")), with(Some("STS-2")));
        assert_eq!(get(&plain, "x-acs-security-token"), None);
        assert_eq!(get(&one, "x-acs-security-token").as_deref(), Some("STS-1"));
        assert_eq!(get(&one, "x-acs-accesskey-id").as_deref(), Some("AKID"));
        // Nobody can put another token in its place.
        let signatures = [&plain, &one, &other].map(|headers| get(headers, "authorization").unwrap());
        assert!(signatures.iter().all(|signature| signature.starts_with("acs AKID:")), "{signatures:?}");
        assert!(signatures[0] != signatures[1] && signatures[1] != signatures[2], "{signatures:?}");
    }
}
