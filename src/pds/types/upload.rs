//! The bodies of the calls of an upload session.

use serde::{Deserialize, Serialize};

use crate::ids::{DriveId, FileId, PartNumber, UploadId};
use crate::rolling_sha1::Sha1Midstate;

/// `parallel_sha1_ctx`: the SHA-1 midstate before a part (API page `UploadPartInfo`).
///
/// The first part carries `h: []`, as the official client sends it, or on some domains the initial value of SHA-1.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WireSha1Ctx {
    /// Empty for the first part, otherwise five words.
    #[serde(default)]
    pub h: Vec<u64>,
    /// File bytes before the part, a multiple of 64.
    #[serde(default)]
    pub part_offset: u64,
}

impl WireSha1Ctx {
    /// The context of the first part with the initial value of SHA-1.
    pub fn initial() -> Self {
        let Sha1Midstate { h, part_offset } = Sha1Midstate::START;
        Self { h: h.iter().map(|&word| word.into()).collect(), part_offset }
    }
}

impl From<Sha1Midstate> for WireSha1Ctx {
    fn from(ctx: Sha1Midstate) -> Self {
        let h =
            if ctx.part_offset == 0 { Vec::new() } else { ctx.h.iter().map(|&word| word.into()).collect() };
        Self { h, part_offset: ctx.part_offset }
    }
}

/// One part in a `create` or `get_upload_url` request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PartRequest {
    /// 1 to 10,000.
    pub part_number: PartNumber,
    /// The SHA-1 midstate before the part; only in parallel mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel_sha1_ctx: Option<WireSha1Ctx>,
}

/// The presigned upload URL of a part.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct PartUrl {
    /// 1 to 10,000.
    pub part_number: PartNumber,
    /// Absolute. Presigned, so it is never printed.
    pub upload_url: String,
    /// If not empty, the PUT must have exactly this `Content-Type`.
    #[serde(default)]
    pub content_type: Option<String>,
    /// If set, the PUT is signed by a header, not by its URL.
    #[serde(default)]
    pub signature_info: Option<SignatureInfo>,
}

/// The header signature of the PUT of a part. All fields may be empty.
#[derive(Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct SignatureInfo {
    /// The kind of the signature.
    #[serde(deserialize_with = "super::null_is_empty")]
    pub auth_type: String,
    /// For the header `Authorization`.
    #[serde(deserialize_with = "super::null_is_empty")]
    pub signature: String,
    #[serde(deserialize_with = "super::null_is_empty")]
    pub sts_token: String,
}

impl std::fmt::Debug for PartUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartUrl").field("part_number", &self.part_number).finish_non_exhaustive()
    }
}

/// `POST /v2/file/get_upload_url`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct UploadUrlRequest<'a> {
    pub drive_id: &'a DriveId,
    pub file_id: &'a FileId,
    pub upload_id: &'a UploadId,
    /// Not empty.
    pub part_info_list: Vec<PartRequest>,
}

/// The answer to `get_upload_url`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct UploadUrlResponse {
    /// In the requested order.
    #[serde(default)]
    pub part_info_list: Vec<PartUrl>,
}

/// `POST /v2/file/complete`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct CompleteRequest<'a> {
    pub drive_id: &'a DriveId,
    pub file_id: &'a FileId,
    pub upload_id: &'a UploadId,
    /// Decimal CRC-64/XZ of the content, which the service verifies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crc64_hash: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rolling_sha1::RollingSha1;

    #[test]
    fn first_part_has_an_empty_midstate() {
        let ctx = RollingSha1::default().midstate().map(WireSha1Ctx::from);
        assert_eq!(serde_json::to_string(&ctx).unwrap(), r#"{"h":[],"part_offset":0}"#);
    }

    #[test]
    fn presigned_urls_are_not_printed() {
        let text =
            r#"{"part_number":1,"upload_url":"http://h/p?Signature=s","signature_info":{"signature":"s"}}"#;
        let url: PartUrl = serde_json::from_str(text).unwrap();
        assert!(!format!("{url:?}").contains("s\""), "{url:?}");
        assert!(!format!("{url:?}").contains("Signature="));
    }
}
