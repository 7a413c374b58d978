//! Error responses in the three forms of the service.
//!
//! API calls return JSON with a `code` of the form `Class.Resource`; the gateway in front of them returns
//! headers without a body; the object store returns XML. The codes are the documented ones. This file is the
//! only place that chooses a code where none is documented.

use std::fmt::Write as _;
use std::io;

/// The error response to an API call.
#[derive(Clone, Debug)]
pub(super) struct ServiceError {
    pub(super) status: u16,
    pub(super) code: String,
    pub(super) message: String,
    /// Additional members of the JSON body.
    pub(super) extra: Vec<(&'static str, String)>,
    /// Sent as the gateway does: headers and an empty body.
    pub(super) from_gateway: bool,
}

impl ServiceError {
    pub(super) fn new(status: u16, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { status, code: code.into(), message: message.into(), extra: Vec::new(), from_gateway: false }
    }

    /// 400: the parameter `name`, in its JSON spelling, is invalid.
    pub(super) fn invalid(name: &str, detail: &str) -> Self {
        let message = format!("The input parameter {name} is not valid. {detail}");
        Self::new(400, format!("InvalidParameter.{}", pascal_case(name)), message)
    }

    /// 400: the parameter `name` is required.
    pub(super) fn missing(name: &str) -> Self {
        let message = format!("The input parameter {name} is missing.");
        Self::new(400, format!("InvalidParameterMissing.{}", pascal_case(name)), message)
    }

    /// 404 for a resource such as `File`.
    pub(super) fn not_found(resource: &str) -> Self {
        let what = snake_case(resource);
        Self::new(
            404,
            format!("NotFound.{resource}"),
            format!("The resource {what} cannot be found. No such {what}"),
        )
    }

    /// The gateway's 404 for an unknown path.
    pub(super) fn no_route() -> Self {
        Self { from_gateway: true, ..Self::new(404, "I404NF", "API not found") }
    }

    /// 409: a sibling has the name.
    pub(super) fn name_exists() -> Self {
        Self::new(409, "AlreadyExist.File", "The resource file has already exists. file has already exists")
    }

    /// 409: the state of the object does not allow the call.
    pub(super) fn conflict(message: &str) -> Self {
        Self::new(409, "StateConflict", message)
    }

    /// 403: the share does not permit the call.
    pub(super) fn share_refused(message: &str) -> Self {
        Self::new(403, "ForbiddenNoPermission.ShareLink", message)
    }

    /// The drive is full.
    pub(super) fn quota(status: u16) -> Self {
        Self::new(
            status,
            "QuotaExhausted.Drive",
            "The resource drive has exceeded the limit. File size exceeded drive capacity",
        )
    }

    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "InternalError", message)
    }

    /// The JSON body.
    pub(super) fn body(&self) -> Vec<u8> {
        let mut map = serde_json::Map::new();
        map.insert("code".into(), self.code.clone().into());
        map.insert("message".into(), self.message.clone().into());
        for (key, value) in &self.extra {
            map.insert((*key).into(), value.clone().into());
        }
        serde_json::Value::Object(map).to_string().into_bytes()
    }
}

impl From<io::Error> for ServiceError {
    fn from(error: io::Error) -> Self {
        Self::internal(error.to_string())
    }
}

/// The error response of the object store.
#[derive(Clone, Debug)]
pub(super) struct OssError {
    pub(super) status: u16,
    pub(super) code: String,
    pub(super) message: String,
    /// Additional XML elements, such as `PartNumber`.
    pub(super) extra: Vec<(&'static str, String)>,
}

impl OssError {
    pub(super) fn new(status: u16, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { status, code: code.into(), message: message.into(), extra: Vec::new() }
    }

    pub(super) fn with(mut self, element: &'static str, text: impl Into<String>) -> Self {
        self.extra.push((element, text.into()));
        self
    }

    pub(super) fn url_expired(expires: &str, now: &str) -> Self {
        Self::new(403, "AccessDenied", "Request has expired.")
            .with("Expires", expires)
            .with("ServerTime", now)
            .with("EC", "0002-00000069")
    }

    pub(super) fn bad_signature() -> Self {
        Self::new(
            403,
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match the signature you provided. Check your key and signing method.",
        )
    }

    pub(super) fn no_such_upload() -> Self {
        Self::new(
            404,
            "NoSuchUpload",
            "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or completed.",
        )
    }

    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "InternalError", message)
    }

    /// The XML body.
    pub(super) fn body(&self, request_id: &str, host: &str) -> Vec<u8> {
        let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error>\n");
        let request_id = request_id.to_owned();
        let host = host.to_owned();
        let fixed =
            [("Code", &self.code), ("Message", &self.message), ("RequestId", &request_id), ("HostId", &host)];
        let more = self.extra.iter().map(|(element, text)| (*element, text));
        for (element, text) in fixed.into_iter().chain(more) {
            // Writing to a String does not fail.
            let _ = writeln!(xml, "  <{element}>{}</{element}>", escape(text));
        }
        xml.push_str("</Error>\n");
        xml.into_bytes()
    }
}

impl From<io::Error> for OssError {
    fn from(error: io::Error) -> Self {
        Self::internal(error.to_string())
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push('?'),
            c => out.push(c),
        }
    }
    out
}

/// `part_info_list` as `PartInfoList`.
fn pascal_case(name: &str) -> String {
    name.split('_')
        .flat_map(|word| {
            let mut letters = word.chars();
            letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters)
        })
        .collect()
}

/// `UploadId` as `upload_id`.
fn snake_case(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_class_and_resource() {
        assert_eq!(ServiceError::invalid("part_info_list", "").code, "InvalidParameter.PartInfoList");
        assert_eq!(ServiceError::not_found("UploadId").code, "NotFound.UploadId");
        assert!(ServiceError::not_found("UploadId").message.contains("No such upload_id"));
    }

    #[test]
    fn object_store_errors_are_xml() {
        let error = OssError::new(400, "PartNotSequential", "a<b").with("PartNumber", "2");
        let text = String::from_utf8(error.body("R", "h")).unwrap();
        assert!(text.starts_with("<?xml"), "{text}");
        assert!(text.contains("<PartNumber>2</PartNumber>") && text.contains("a&lt;b"), "{text}");
    }
}
