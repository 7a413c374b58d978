//! Apps that log in with an RSA key, and the DER form of their keys.

use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject as _;

const TAG_SEQUENCE: u8 = 0x30;
const TAG_BIT_STRING: u8 = 0x03;

/// An app that logs in with an RSA key, without a user.
#[derive(Clone, Debug)]
pub struct ServiceApp {
    pub(super) client_id: String,
    /// `RSAPublicKey` in DER.
    pub(super) public_key: Vec<u8>,
}

impl ServiceApp {
    /// An app with its RSA public key in PEM (`-----BEGIN PUBLIC KEY-----`). The error is a message for
    /// the user.
    pub fn new(client_id: &str, public_key_pem: &str) -> Result<Self, String> {
        let info = SubjectPublicKeyInfoDer::from_pem_slice(public_key_pem.as_bytes()).map_err(|e| {
            format!("no public key in PEM form: {e} (make one with: openssl pkey -in KEY -pubout)")
        })?;
        let public_key = rsa_key(info.as_ref()).ok_or("the public key is not an RSA key")?.to_vec();
        Ok(Self { client_id: client_id.to_owned(), public_key })
    }
}

/// Splits a DER element into its content and the rest.
fn der_element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = der.split_first_chunk::<2>()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => (usize::from(*rest.first()?), rest.get(1..)?),
        0x82 => (usize::from(u16::from_be_bytes(*rest.first_chunk()?)), rest.get(2..)?),
        _ => return None,
    };
    (found == tag).then(|| rest.split_at_checked(len))?
}

/// The key in `SEQUENCE { SEQUENCE { algorithm }, BIT STRING { key } }`.
fn rsa_key(info: &[u8]) -> Option<&[u8]> {
    const RSA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    let (info, _) = der_element(info, TAG_SEQUENCE)?;
    let (algorithm, rest) = der_element(info, TAG_SEQUENCE)?;
    let (bits, _) = der_element(rest, TAG_BIT_STRING)?;
    let (unused, key) = bits.split_first()?;
    (algorithm.starts_with(RSA) && *unused == 0).then_some(key)
}
