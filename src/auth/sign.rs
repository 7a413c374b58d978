//! Authorization headers: a bearer token, or a signature with an access key.
//!
//! Signatures follow the API gateway of the official SDKs (scheme `acs`, HMAC-SHA1). A test compares them
//! with captured requests of an SDK. They are valid for 15 minutes, so each attempt is signed anew.

use std::fmt::Write as _;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha1::Sha1;
use url::Url;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;

const API_VERSION: &str = "2022-03-01";
const JSON: &str = "application/json";
const SIGNED_TYPE: &str = "application/json; charset=utf-8";

/// An access key of a RAM user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AccessKey {
    pub id: String,
    pub secret: Secret<String>,
    /// Only of a temporary key (STS).
    pub security_token: Option<Secret<String>>,
}

/// The authorization of a call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Authorization {
    Bearer(Secret<String>),
    Key(AccessKey),
}

impl Authorization {
    pub fn secrets(&self) -> Vec<&str> {
        match self {
            Self::Bearer(token) => vec![token.expose()],
            Self::Key(AccessKey { secret, security_token, .. }) => {
                let token = security_token.as_ref().map(|token| token.expose().as_str());
                std::iter::once(secret.expose().as_str()).chain(token).collect()
            }
        }
    }
}

/// The part of a signature that differs between attempts.
#[derive(Clone, Debug)]
pub struct SignatureStamp {
    /// `Mon, 23 Nov 2026 17:56:33 GMT`.
    pub date: String,
    pub nonce: String,
}

impl SignatureStamp {
    pub fn now() -> Result<Self> {
        Ok(Self { date: http_date(SystemTime::now())?, nonce: random_hex(16)? })
    }
}

/// The headers of a POST with a JSON body, except its length.
pub fn authorization_headers(
    authorization: &Authorization,
    url: &Url,
) -> Result<Vec<(&'static str, String)>> {
    match authorization {
        Authorization::Bearer(token) => Ok(vec![
            ("content-type", JSON.to_owned()),
            ("authorization", format!("Bearer {}", token.expose())),
        ]),
        Authorization::Key(key) => signed_headers(key, url, &SignatureStamp::now()?),
    }
}

fn signed_headers(key: &AccessKey, url: &Url, stamp: &SignatureStamp) -> Result<Vec<(&'static str, String)>> {
    let mut acs = vec![
        ("x-acs-action", action_name(url.path())),
        ("x-acs-signature-method", "HMAC-SHA1".to_owned()),
        ("x-acs-signature-nonce", stamp.nonce.clone()),
        ("x-acs-signature-version", "1.0".to_owned()),
        ("x-acs-version", API_VERSION.to_owned()),
    ];
    if let Some(token) = &key.security_token {
        acs.push(("x-acs-accesskey-id", key.id.clone()));
        acs.push(("x-acs-security-token", token.expose().clone()));
    }
    acs.sort_unstable();
    // Method, Accept, Content-MD5 (none), Content-Type, Date, the x-acs headers by name, path and query.
    let mut text = format!("POST\n{JSON}\n\n{SIGNED_TYPE}\n{}\n", stamp.date);
    for (name, value) in &acs {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{name}:{}", value.trim());
    }
    text.push_str(url.path());
    if let Some(query) = url.query() {
        let _ = write!(text, "?{query}");
    }
    let mut mac = Hmac::<Sha1>::new_from_slice(key.secret.expose().as_bytes())
        .map_err(|e| Error::with_source(ErrorKind::Invalid, "the access key is not usable", e))?;
    mac.update(text.as_bytes());
    let signature = STANDARD.encode(mac.finalize().into_bytes());
    acs.push(("accept", JSON.to_owned()));
    acs.push(("content-type", SIGNED_TYPE.to_owned()));
    acs.push(("date", stamp.date.clone()));
    acs.push(("authorization", format!("acs {}:{signature}", key.id)));
    Ok(acs)
}

/// The action name of a path: verb first, then the area unless the verb implies it. `/v2/file/get_upload_url`
/// is `GetUploadUrl`, `/v2/file/list` is `ListFile`.
fn action_name(path: &str) -> String {
    let (area, verb) = path.trim_start_matches("/v2/").split_once('/').unwrap_or(("", path));
    let named = match (area, verb) {
        ("file", "put_usertags" | "delete_usertags") => return camel_case(&format!("file_{verb}")),
        ("file", "get_upload_url" | "get_download_url" | "list_uploaded_parts" | "list_delta")
        | ("drive", "get_default_drive" | "list_my_drives")
        | ("", _) => "",
        ("recyclebin", "trash") => "file",
        (area, _) => area,
    };
    let verb = verb.trim_start_matches('/');
    if named.is_empty() { camel_case(verb) } else { camel_case(&format!("{verb}_{named}")) }
}

fn camel_case(name: &str) -> String {
    let capital = |word: &str| {
        let mut letters = word.chars();
        let first = letters.next().map(|c| c.to_ascii_uppercase());
        first.into_iter().chain(letters).collect::<String>()
    };
    name.split('_').map(capital).collect()
}

fn http_date(at: SystemTime) -> Result<String> {
    let wrong = |e: jiff::Error| {
        Error::with_source(ErrorKind::Io, "the clock of this machine is out of range; correct it", e)
    };
    let at = jiff::Timestamp::try_from(at).map_err(wrong)?;
    Ok(at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string())
}

/// Random bytes in lower-case hex.
pub fn random_hex(bytes: usize) -> Result<String> {
    let mut raw = vec![0; bytes];
    getrandom::fill(&mut raw)
        .map_err(|e| Error::with_source(ErrorKind::Io, "cannot get random bytes from the kernel", e))?;
    Ok(raw.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares with captured requests of an official SDK.
    #[test]
    fn signatures_match_the_official_sdk() {
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
            let ours =
                signed_headers(&key, &url, &SignatureStamp { date: header("date").unwrap(), nonce }).unwrap();
            for (name, value) in ours {
                assert_eq!(Some(value), header(name), "{name} of {url}");
            }
            compared += 1;
        }
        assert_eq!(compared, 9);
    }

    #[test]
    fn http_date_has_the_standard_format() {
        let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_795_456_593);
        assert_eq!(http_date(at).unwrap(), "Mon, 23 Nov 2026 17:56:33 GMT");
    }

    #[test]
    fn security_token_is_sent_and_signed() {
        let url = Url::parse("https://x/v2/file/list").unwrap();
        let stamp = SignatureStamp { date: "d".into(), nonce: "n".into() };
        let with = |token: Option<&str>| {
            let security_token = token.map(|token| Secret::new(token.to_owned()));
            let key = AccessKey { id: "AKID".into(), secret: Secret::new("HIDDEN".into()), security_token };
            assert!(!format!("{key:?}").contains("HIDDEN") && !format!("{key:?}").contains("STS"), "{key:?}");
            signed_headers(&key, &url, &stamp).unwrap()
        };
        let get = |headers: &[(&str, String)], name: &str| {
            headers.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone())
        };
        let (plain, one, other) = (with(None), with(Some("STS-1")), with(Some("STS-2")));
        assert_eq!(get(&plain, "x-acs-security-token"), None);
        assert_eq!(get(&one, "x-acs-security-token").as_deref(), Some("STS-1"));
        assert_eq!(get(&one, "x-acs-accesskey-id").as_deref(), Some("AKID"));
        // The signature covers the token.
        let signatures = [&plain, &one, &other].map(|headers| get(headers, "authorization").unwrap());
        assert!(signatures.iter().all(|signature| signature.starts_with("acs AKID:")), "{signatures:?}");
        assert!(signatures[0] != signatures[1] && signatures[1] != signatures[2], "{signatures:?}");
    }
}
