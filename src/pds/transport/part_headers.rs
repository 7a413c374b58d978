//! The headers that the service demands for the PUT of a part.

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};

use super::failure::protocol_error;
use crate::pds::retry::{Delivery, RequestFailure};
use crate::pds::types::{PartUrl, SignatureInfo};

/// The token of temporary credentials.
const SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-oss-security-token");
/// The kinds of header signatures of the object store.
const SCHEMES: [&str; 2] = ["OSS", "OSS4-HMAC-SHA256"];

pub(super) fn part_headers(url: &PartUrl) -> Result<Vec<(HeaderName, HeaderValue)>, RequestFailure> {
    let mut headers = Vec::new();
    if let Some(content_type) = url.content_type.as_deref().filter(|text| !text.is_empty()) {
        headers.push((CONTENT_TYPE, value(content_type)?));
    }
    let signature = url.signature_info.as_ref().filter(|info| !info.signature.is_empty());
    if let Some(info) = signature {
        headers.push((AUTHORIZATION, secret(&authorization(info)?)?));
        if !info.sts_token.is_empty() {
            headers.push((SECURITY_TOKEN, secret(&info.sts_token)?));
        }
    }
    Ok(headers)
}

/// The signature with its scheme. The API page names the fields and gives no example.
fn authorization(info: &SignatureInfo) -> Result<String, RequestFailure> {
    let scheme_of = |text: &str| SCHEMES.into_iter().find(|scheme| scheme.eq_ignore_ascii_case(text));
    if info.signature.split_once(' ').is_some_and(|(scheme, _)| scheme_of(scheme).is_some()) {
        return Ok(info.signature.clone());
    }
    let scheme = scheme_of(&info.auth_type).ok_or_else(|| {
        let kind = info.auth_type.escape_default();
        unusable(&format!("the service demands a header signature of the unknown type \"{kind}\""))
    })?;
    Ok(format!("{scheme} {}", info.signature))
}

fn secret(text: &str) -> Result<HeaderValue, RequestFailure> {
    let mut value = value(text)?;
    value.set_sensitive(true);
    Ok(value)
}

fn value(text: &str) -> Result<HeaderValue, RequestFailure> {
    HeaderValue::from_str(text)
        .map_err(|_| unusable("the service demands a header that is not possible in HTTP"))
}

fn unusable(detail: &str) -> RequestFailure {
    RequestFailure { delivery: Delivery::Answered, ..protocol_error(format!("part upload: {detail}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(signature_info: &str) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
        let text = format!(
            r#"{{"part_number":1,"upload_url":"http://h/","content_type":"","signature_info":{signature_info}}}"#
        );
        let url: PartUrl = serde_json::from_str(&text).unwrap();
        part_headers(&url).map_err(|failure| failure.error.to_string())
    }

    #[test]
    fn header_signature_becomes_an_authorization() {
        let expected = |text: &str| vec![(AUTHORIZATION, HeaderValue::from_str(text).unwrap())];
        for (info, authorization) in [
            (r#"{"auth_type":"","signature":"OSS id:sig"}"#, "OSS id:sig"),
            (r#"{"auth_type":"oss","signature":"id:sig","sts_token":""}"#, "OSS id:sig"),
            (
                r#"{"auth_type":"OSS4-HMAC-SHA256","signature":"Credential=a"}"#,
                "OSS4-HMAC-SHA256 Credential=a",
            ),
        ] {
            assert_eq!(headers(info).unwrap(), expected(authorization), "{info}");
        }
        let with_token = headers(r#"{"auth_type":"OSS","signature":"id:sig","sts_token":"t"}"#).unwrap();
        assert_eq!(with_token[1], (SECURITY_TOKEN, HeaderValue::from_static("t")));
        for info in ["null", "{}", r#"{"auth_type":"OSS","signature":"","sts_token":null}"#] {
            assert_eq!(headers(info).unwrap(), [], "{info}");
        }
    }

    #[test]
    fn unknown_header_signature_is_named() {
        let error = headers(r#"{"auth_type":"hmac","signature":"id:sig"}"#).unwrap_err();
        assert!(error.contains("unknown type \"hmac\""), "{error}");
        let error = headers(r#"{"auth_type":"OSS","signature":"a\nb"}"#).unwrap_err();
        assert!(error.contains("not possible in HTTP"), "{error}");
    }
}
