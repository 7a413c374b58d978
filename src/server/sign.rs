//! Presigned URLs of the object store, and the other keyed hashes of the server.
//!
//! The key is stored in the data folder, so URLs stay valid across a restart. The path of a URL names drive,
//! file and revision; its query holds part number, upload id, expiry and the declared midstate. All of it is
//! signed, and also the `Content-Type` and `Content-MD5` of the PUT.

use std::collections::HashMap;
use std::fmt::Write as _;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha1::Sha1;

use super::clock::{decode_hex, hex};
use super::digest::Midstate;
use crate::ids::{DriveId, FileId, RevisionId, UploadId};

type HmacSha1 = Hmac<Sha1>;

/// First segment of every object path.
pub(super) const OBJECT_PREFIX: &str = "/data/";

/// The `OSSAccessKeyId` of every URL.
const ACCESS_KEY_ID: &str = "pdsfs";

#[derive(Debug)]
pub(super) struct Signer {
    key: Vec<u8>,
}

/// The object that a URL names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ObjectKey {
    pub(super) drive: DriveId,
    pub(super) file: FileId,
    pub(super) revision: RevisionId,
}

/// The part that an upload URL names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct SignedPart {
    pub(super) upload: UploadId,
    pub(super) part: u32,
    pub(super) midstate: Option<Midstate>,
}

/// Why a URL was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum UrlError {
    Malformed,
    Signature,
    /// With the Unix time of the expiry.
    Expired(i64),
}

/// The headers of a PUT that the signature covers.
#[derive(Clone, Copy, Default)]
pub(super) struct SignedHeaders<'a> {
    pub(super) content_md5: &'a str,
    pub(super) content_type: &'a str,
}

impl ObjectKey {
    fn path(&self) -> String {
        format!("{OBJECT_PREFIX}{}%2F{}%2F{}", self.drive, self.file, self.revision)
    }

    fn parse(path: &str) -> Option<Self> {
        let name = path.strip_prefix(OBJECT_PREFIX)?.replace("%2f", "%2F");
        let mut ids = name.split("%2F");
        let (drive, file, revision) = (ids.next()?, ids.next()?, ids.next()?);
        let object = Self {
            drive: DriveId::new(drive).ok()?,
            file: FileId::new(file).ok()?,
            revision: RevisionId::new(revision).ok()?,
        };
        ids.next().is_none().then_some(object)
    }
}

impl Signer {
    pub(super) fn new(key: Vec<u8>) -> Self {
        Self { key }
    }

    fn mac(&self, parts: &[&str]) -> Option<HmacSha1> {
        // HMAC accepts keys of any length, so this does not fail.
        let mut mac = HmacSha1::new_from_slice(&self.key).ok()?;
        for part in parts {
            mac.update(part.as_bytes());
            mac.update(b"\n");
        }
        Some(mac)
    }

    fn hex_mac(&self, parts: &[&str]) -> String {
        self.mac(parts).map(|mac| hex(&mac.finalize().into_bytes())).unwrap_or_default()
    }

    /// A keyed hash of a token. The catalog stores it instead of the token.
    pub(super) fn fingerprint(&self, secret: &str) -> String {
        self.hex_mac(&["token", secret])
    }

    /// Compares two secrets in constant time.
    pub(super) fn constant_time_eq(&self, given: &str, wanted: &str) -> bool {
        let Some(given) = self.mac(&["compare", given]) else { return false };
        self.mac(&["compare", wanted])
            .is_some_and(|wanted| wanted.verify_slice(&given.finalize().into_bytes()).is_ok())
    }

    /// The token of a share until a time.
    pub(super) fn share_token(&self, share_id: &str, expires_ms: i64) -> String {
        let expires = expires_ms.to_string();
        let signature = self.hex_mac(&["share", share_id, &expires]);
        format!("{share_id}.{expires}.{signature}")
    }

    /// The share of a token; `None` if the token has expired or was not issued here.
    pub(super) fn check_share_token(&self, token: &str, now_ms: i64) -> Option<String> {
        let (share_id, rest) = token.split_once('.')?;
        let expires_ms = rest.split_once('.')?.0.parse().ok().filter(|at_ms| *at_ms > now_ms)?;
        self.constant_time_eq(token, &self.share_token(share_id, expires_ms)).then(|| share_id.to_owned())
    }

    /// A download URL.
    pub(super) fn get_url(&self, base: &str, object: &ObjectKey, expires_s: i64) -> String {
        let path = object.path();
        let expires = expires_s.to_string();
        let signature = self.hex_mac(&["GET", &expires, &path]);
        format!("{base}{path}?Expires={expires}&OSSAccessKeyId={ACCESS_KEY_ID}&Signature={signature}")
    }

    /// The upload URL of a part.
    pub(super) fn put_url(
        &self,
        base: &str,
        object: &ObjectKey,
        part: &SignedPart,
        declared: SignedHeaders<'_>,
        expires_s: i64,
    ) -> String {
        let path = object.path();
        let expires = expires_s.to_string();
        let number = part.part.to_string();
        let state = part.midstate.as_ref().map(encode).unwrap_or_default();
        let signature = self.put_signature(&path, part.upload.as_str(), &number, &state, declared, &expires);
        let mut url = format!(
            "{base}{path}?Expires={expires}&OSSAccessKeyId={ACCESS_KEY_ID}&Signature={signature}&partNumber={number}&uploadId={}",
            part.upload
        );
        if !state.is_empty() {
            // Writing to a String does not fail.
            let _ = write!(url, "&x-oss-hash-ctx={state}");
        }
        url
    }

    fn put_signature(
        &self,
        path: &str,
        upload: &str,
        part: &str,
        state: &str,
        declared: SignedHeaders<'_>,
        expires: &str,
    ) -> String {
        self.hex_mac(&[
            "PUT",
            declared.content_md5,
            declared.content_type,
            expires,
            path,
            upload,
            part,
            state,
        ])
    }

    /// Verifies a download URL.
    pub(super) fn check_get(&self, path: &str, query: &str, now_s: i64) -> Result<ObjectKey, UrlError> {
        let query = parse_query(query);
        let get = |key: &str| query.get(key).map_or("", String::as_str);
        let object = ObjectKey::parse(path).ok_or(UrlError::Malformed)?;
        let expires = get("Expires");
        let wanted = self.hex_mac(&["GET", expires, &object.path()]);
        self.check(get("Signature"), &wanted, expires, now_s)?;
        Ok(object)
    }

    /// Verifies an upload URL.
    pub(super) fn check_put(
        &self,
        path: &str,
        query: &str,
        declared: SignedHeaders<'_>,
        now_s: i64,
    ) -> Result<(ObjectKey, SignedPart), UrlError> {
        let query = parse_query(query);
        let get = |key: &str| query.get(key).map_or("", String::as_str);
        let object = ObjectKey::parse(path).ok_or(UrlError::Malformed)?;
        let (expires, number, upload) = (get("Expires"), get("partNumber"), get("uploadId"));
        let state = get("x-oss-hash-ctx");
        let wanted = self.put_signature(&object.path(), upload, number, state, declared, expires);
        self.check(get("Signature"), &wanted, expires, now_s)?;
        let part = SignedPart {
            upload: UploadId::new(upload).map_err(|_| UrlError::Malformed)?,
            part: number.parse().map_err(|_| UrlError::Malformed)?,
            midstate: if state.is_empty() { None } else { Some(decode(state).ok_or(UrlError::Malformed)?) },
        };
        Ok((object, part))
    }

    fn check(&self, given: &str, wanted: &str, expires: &str, now_s: i64) -> Result<(), UrlError> {
        if !self.constant_time_eq(given, wanted) {
            return Err(UrlError::Signature);
        }
        let expires: i64 = expires.parse().map_err(|_| UrlError::Malformed)?;
        if expires < now_s { Err(UrlError::Expired(expires)) } else { Ok(()) }
    }
}

fn parse_query(query: &str) -> HashMap<String, String> {
    url::form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}

/// The offset in 16 hex digits, then the words in 8 each.
fn encode(state: &Midstate) -> String {
    let words = state.h.iter().flat_map(|word| word.to_be_bytes());
    hex(&state.offset.to_be_bytes().into_iter().chain(words).collect::<Vec<_>>())
}

fn decode(text: &str) -> Option<Midstate> {
    let raw = decode_hex(text)?;
    let (offset, words) = raw.split_at_checked(8)?;
    let words = words.chunks(4).map(|word| Some(u32::from_be_bytes(word.try_into().ok()?)));
    Some(Midstate { offset: u64::from_be_bytes(offset.try_into().ok()?), h: words.collect::<Option<_>>()? })
}

/// Fuzz target: path and query of an object URL. Both have one meaning, and no signature fits by chance.
#[cfg(any(test, fuzzing))]
pub(super) fn check_object_url(signer: &Signer, path: &str, query: &str, now_s: i64) {
    if let Some(object) = ObjectKey::parse(path) {
        assert_eq!(ObjectKey::parse(&object.path()).as_ref(), Some(&object));
        check_signed_urls(signer, &object, query, now_s);
    }
    if let Some(state) = decode(query) {
        assert_eq!(decode(&encode(&state)), Some(state));
    }
    assert!(signer.check_get(path, query, now_s).is_err(), "{path} {query}");
    assert!(signer.check_put(path, query, SignedHeaders::default(), now_s).is_err(), "{path} {query}");
    assert_eq!(signer.check_share_token(path, now_s), None);
    let token = signer.share_token(path, now_s + 1);
    assert!(path.contains('.') || signer.check_share_token(&token, now_s).as_deref() == Some(path), "{path}");
}

/// The signed URLs of an object have the parameters that were signed.
#[cfg(any(test, fuzzing))]
fn check_signed_urls(signer: &Signer, object: &ObjectKey, query: &str, now_s: i64) {
    let query = parse_query(query);
    let get = |key: &str| query.get(key).map_or("", String::as_str);
    let expires_s = get("Expires").parse().unwrap_or(now_s);
    let is_expired = |result: UrlError| expires_s < now_s && result == UrlError::Expired(expires_s);
    let url = signer.get_url("", object, expires_s);
    let Some((path, signed)) = url.rsplit_once('?') else { return };
    assert!(signer.check_get(path, signed, now_s).map_or_else(is_expired, |found| found == *object), "{url}");
    // The server makes the ids of uploads.
    let Some(upload) = UploadId::new(get("uploadId")).ok().filter(|id| decode_hex(id.as_str()).is_some())
    else {
        return;
    };
    let part = SignedPart {
        upload,
        part: get("partNumber").parse().unwrap_or(1),
        midstate: decode(get("x-oss-hash-ctx")),
    };
    let url = signer.put_url("", object, &part, SignedHeaders::default(), expires_s);
    let Some((path, signed)) = url.rsplit_once('?') else { return };
    let found = signer.check_put(path, signed, SignedHeaders::default(), now_s);
    assert!(found.map_or_else(is_expired, |found| found == (object.clone(), part)), "{url}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture() -> (Signer, ObjectKey, SignedPart) {
        let object = ObjectKey {
            drive: DriveId::new("1").unwrap(),
            file: FileId::new("f1").unwrap(),
            revision: RevisionId::new("r1").unwrap(),
        };
        let part = SignedPart {
            upload: UploadId::new("UP").unwrap(),
            part: 3,
            midstate: Some(Midstate { offset: 64, h: vec![1, 2, 3, 4, u32::MAX] }),
        };
        (Signer::new(b"key".to_vec()), object, part)
    }

    #[test]
    fn every_field_of_an_upload_url_is_signed() {
        let (signer, object, part) = fixture();
        let url = signer.put_url("http://h", &object, &part, SignedHeaders::default(), 100);
        let (path, query) = url.strip_prefix("http://h").unwrap().split_once('?').unwrap();
        let check =
            |path: &str, query: &str, now| signer.check_put(path, query, SignedHeaders::default(), now);
        assert_eq!(check(path, query, 100), Ok((object, part)));
        assert_eq!(check(path, query, 101), Err(UrlError::Expired(100)));
        for (from, to) in [("=3&", "=4&"), ("Expires=1", "Expires=9"), ("=UP", "=UQ"), ("ctx=0", "ctx=1")] {
            assert!(query.contains(from), "{query}");
            assert_eq!(check(path, &query.replace(from, to), 100), Err(UrlError::Signature), "{from}");
        }
        assert_eq!(check(&path.replace("f1", "f2"), query, 100), Err(UrlError::Signature));
        let typed = SignedHeaders { content_type: "text/plain", ..SignedHeaders::default() };
        assert_eq!(signer.check_put(path, query, typed, 100), Err(UrlError::Signature));
    }

    #[test]
    fn download_url_is_refused_for_a_put() {
        let (signer, object, _) = fixture();
        let url = signer.get_url("", &object, 100);
        let (path, query) = url.split_once('?').unwrap();
        assert_eq!(signer.check_get(path, query, 1), Ok(object));
        assert_eq!(signer.check_put(path, query, SignedHeaders::default(), 1), Err(UrlError::Signature));
        assert_eq!(Signer::new(b"other".to_vec()).check_get(path, query, 1), Err(UrlError::Signature));
    }

    #[test]
    fn secrets_are_compared_by_value() {
        let signer = Signer::new(b"key".to_vec());
        assert!(
            signer.constant_time_eq("a", "a")
                && !signer.constant_time_eq("a", "b")
                && !signer.constant_time_eq("", "a")
        );
    }
}
