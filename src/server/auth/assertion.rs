//! Assertions of service apps: RS256, checked by ring from the public key, not by what the client signs with.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;

use crate::server::errors::ApiError;
use crate::server::{App, DOMAIN_ID};

/// Longest life of an assertion, in seconds.
const LIFE_S_MAX: i64 = 900;
/// How much later than now an assertion may begin, in seconds.
const SKEW_S_MAX: i64 = 5;
const TAG_SEQUENCE: u8 = 0x30;
const TAG_BIT_STRING: u8 = 0x03;

/// An app that logs in with a key instead of a user.
#[derive(Clone, Debug)]
pub struct ServiceApp {
    client_id: String,
    /// `RSAPublicKey` in DER.
    public_key: Vec<u8>,
}

/// An assertion that holds, unless it was used before.
pub(super) struct Checked {
    /// Under which its use is remembered.
    pub(super) key: String,
    pub(super) expires_ms: i64,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    #[serde(default)]
    sub_type: String,
    aud: String,
    jti: String,
    exp: i64,
    iat: i64,
}

impl ServiceApp {
    /// An app and its RSA public key in PEM (`-----BEGIN PUBLIC KEY-----`).
    pub fn new(client_id: &str, public_key_pem: &str) -> Result<Self, String> {
        let info = SubjectPublicKeyInfoDer::from_pem_slice(public_key_pem.as_bytes()).map_err(|e| {
            format!("no public key in PEM form ({e}); openssl pkey -in KEY -pubout makes one")
        })?;
        let public_key = rsa_key(info.as_ref()).ok_or("the public key is not an RSA key")?.to_vec();
        Ok(Self { client_id: client_id.to_owned(), public_key })
    }
}

/// One DER element: its content and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = der.split_first_chunk::<2>()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => (usize::from(*rest.first()?), rest.get(1..)?),
        0x82 => (usize::from(u16::from_be_bytes(*rest.first_chunk()?)), rest.get(2..)?),
        _ => return None,
    };
    (found == tag).then(|| rest.split_at_checked(len))?
}

/// The key inside of `SEQUENCE { SEQUENCE { algorithm }, BIT STRING { key } }`.
fn rsa_key(info: &[u8]) -> Option<&[u8]> {
    const RSA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    let (info, _) = element(info, TAG_SEQUENCE)?;
    let (algorithm, rest) = element(info, TAG_SEQUENCE)?;
    let (bits, _) = element(rest, TAG_BIT_STRING)?;
    let (unused, key) = bits.split_first()?;
    (algorithm.starts_with(RSA) && *unused == 0).then_some(key)
}

fn refused(detail: &str) -> ApiError {
    ApiError::invalid("assertion", detail)
}

fn json<T: serde::de::DeserializeOwned>(part: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

/// Checks everything but whether it was used before.
pub(super) fn check(app: &App, client_id: &str, text: &str) -> Result<Checked, ApiError> {
    let apps = &app.config.logins.service_apps;
    let service = apps.iter().find(|service| app.signer.same(client_id, &service.client_id));
    let service = service.ok_or_else(|| ApiError::new(403, "Forbidden", "The client is not known."))?;
    let (signed, signature) = text.rsplit_once('.').ok_or_else(|| refused("It is not a JWT."))?;
    let (header, claims) = signed.split_once('.').ok_or_else(|| refused("It is not a JWT."))?;
    let header: Header = json(header).ok_or_else(|| refused("Its header cannot be read."))?;
    if header.alg != "RS256" {
        return Err(refused("It must be signed with RS256."));
    }
    let signature =
        URL_SAFE_NO_PAD.decode(signature).map_err(|_| refused("Its signature cannot be read."))?;
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &service.public_key)
        .verify(signed.as_bytes(), &signature)
        .map_err(|_| refused("Its signature is not that of the app's key."))?;
    let claims: Claims = json(claims).ok_or_else(|| refused("Its claims cannot be read."))?;
    let now_s = app.clock.now_ms() / 1000;
    let subject = match claims.sub_type.as_str() {
        "service" => DOMAIN_ID,
        "user" => "owner",
        _ => return Err(refused("Its sub_type is neither user nor service.")),
    };
    let complaint = if claims.iss != service.client_id {
        "Its iss is not the client."
    } else if claims.aud != DOMAIN_ID {
        "Its aud is not the domain."
    } else if claims.sub != subject {
        "Its sub is nobody of the domain."
    } else if claims.jti.is_empty() {
        "It has no jti."
    } else if claims.exp <= now_s {
        "It has expired."
    } else if claims.iat > now_s + SKEW_S_MAX {
        "Its iat is in the future."
    } else if claims.exp.saturating_sub(claims.iat) > LIFE_S_MAX {
        "It is valid for too long."
    } else {
        let key = app.signer.fingerprint(&format!("assertion {} {}", claims.iss, claims.jti));
        return Ok(Checked { key, expires_ms: claims.exp.saturating_mul(1000) });
    };
    Err(refused(complaint))
}
