//! The assertion of a service app: a JWT signed with its key (RS256).
//!
//! An assertion is valid for [`VALIDITY_S`] before and after its creation. If the clock of this machine is
//! wrong by more, the service rejects every assertion.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Serialize;

use super::account::SubjectKind;
use super::sign::random_hex;
use super::token::unix_now_s;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;

/// As in the official SDK.
const VALIDITY_S: u64 = 300;

#[derive(Serialize)]
struct Header {
    alg: &'static str,
    typ: &'static str,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: &'a str,
    sub_type: SubjectKind,
    aud: &'a str,
    jti: String,
    exp: u64,
    iat: u64,
    auto_create: bool,
}

/// Signs a new assertion.
pub fn assertion(
    client_id: &str,
    subject: &str,
    subject_kind: SubjectKind,
    domain_id: &str,
    key_pem: &Secret<String>,
) -> Result<Secret<String>> {
    let key = key(key_pem.expose())?;
    let now = unix_now_s();
    let claims = Claims {
        iss: client_id,
        sub: subject,
        sub_type: subject_kind,
        aud: domain_id,
        jti: random_hex(16)?,
        exp: now + VALIDITY_S,
        iat: now.saturating_sub(VALIDITY_S),
        auto_create: false,
    };
    let encode = |json: serde_json::Result<Vec<u8>>| {
        json.map(|json| URL_SAFE_NO_PAD.encode(json)).map_err(|e| Error::from_source(ErrorKind::Io, e))
    };
    let header = encode(serde_json::to_vec(&Header { alg: "RS256", typ: "JWT" }))?;
    let signed = format!("{header}.{}", encode(serde_json::to_vec(&claims))?);
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature)
        .map_err(|_| Error::new(ErrorKind::Io, "the key of the service app cannot sign"))?;
    Ok(Secret::new(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))))
}

/// Checks that a text is an RSA private key in PEM that can sign.
pub fn check_key(pem: &str) -> Result<()> {
    key(pem).map(|_| ())
}

fn key(pem: &str) -> Result<RsaKeyPair> {
    let wrong = |detail: String| Error::new(ErrorKind::Invalid, detail);
    if pem.contains("ENCRYPTED") {
        let detail = "the private key has a password: remove it with openssl pkey -in KEY -out NEWKEY, and \
            keep the new file private";
        return Err(wrong(detail.to_owned()));
    }
    let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| {
        wrong(format!("no private key in PEM form found ({e}); it begins with -----BEGIN PRIVATE KEY-----"))
    })?;
    let key = match &der {
        PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
        PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
        _ => return Err(wrong("the key is not an RSA key; service apps sign with RS256".to_owned())),
    };
    key.map_err(|e| {
        wrong(format!("the private key is not usable ({e}); it must be RSA with at least 2048 bits"))
    })
}
