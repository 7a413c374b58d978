//! Parts in requests, and their presigned URLs.

use serde::{Deserialize, Serialize};

use super::request::{lenient, list};
use crate::ids::{PartNumber, UploadId};
use crate::server::call::ApiCall;
use crate::server::config::FirstPartCtx;
use crate::server::digest::{HashName, Midstate};
use crate::server::errors::ServiceError;
use crate::server::sign::{ObjectKey, SignedHeaders, SignedPart};

/// `parallel_sha1_ctx` or `parallel_sha256_ctx`.
#[derive(Deserialize)]
pub(super) struct HashContext {
    #[serde(default, deserialize_with = "list")]
    h: Vec<u64>,
    #[serde(default, deserialize_with = "lenient")]
    part_offset: Option<u64>,
}

/// A part in a request.
#[derive(Deserialize)]
pub(super) struct PartParams {
    #[serde(default, deserialize_with = "lenient")]
    pub(super) part_number: Option<u32>,
    parallel_sha1_ctx: Option<HashContext>,
    parallel_sha256_ctx: Option<HashContext>,
    content_md5: Option<String>,
    content_type: Option<String>,
    pub(super) etag: Option<String>,
}

/// A part in a response.
#[derive(Serialize)]
pub(super) struct SignedPartUrl {
    part_number: u32,
    upload_url: String,
    internal_upload_url: &'static str,
    content_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    signature_info: Option<HeaderSignature>,
}

/// `signature_info`: the PUT is signed by a header.
#[derive(Serialize)]
struct HeaderSignature {
    auth_type: &'static str,
    signature: String,
    sts_token: &'static str,
}

/// The headers that the PUT must have.
#[derive(Default)]
pub(super) struct PartHeaders {
    content_md5: String,
    content_type: String,
}

/// A part number with the declared midstate and headers.
pub(super) type RequestedPart = (u32, Option<Midstate>, PartHeaders);

pub(super) fn read_parts(
    call: &ApiCall,
    requests: Vec<PartParams>,
    parallel: bool,
) -> Result<Vec<RequestedPart>, ServiceError> {
    if requests.len() > PartNumber::MAX as usize {
        return Err(ServiceError::invalid("part_info_list", "part count can not over 10000"));
    }
    requests.into_iter().map(|request| read_part(call, request, parallel)).collect()
}

fn read_part(call: &ApiCall, request: PartParams, parallel: bool) -> Result<RequestedPart, ServiceError> {
    let quirks = &call.app.config.quirks;
    let number = request
        .part_number
        .filter(|number| (1..=PartNumber::MAX).contains(number))
        .ok_or_else(|| ServiceError::invalid("part_info_list", "A part_number is not within 1 to 10000."))?;
    let (ctx, field) = match quirks.hash_name {
        HashName::Sha1 => (request.parallel_sha1_ctx, "parallel_sha1_ctx"),
        HashName::Sha256 => (request.parallel_sha256_ctx, "parallel_sha256_ctx"),
    };
    let ctx = ctx.filter(|_| parallel);
    if parallel && number == 1 {
        let fits = match (quirks.first_part_ctx, ctx.as_ref().map(|ctx| ctx.h.is_empty())) {
            (FirstPartCtx::Any, _)
            | (FirstPartCtx::Empty, Some(true))
            | (FirstPartCtx::Initial, Some(false))
            | (FirstPartCtx::Absent, None) => true,
            (FirstPartCtx::Empty | FirstPartCtx::Initial | FirstPartCtx::Absent, _) => false,
        };
        if !fits {
            return Err(ServiceError::invalid(field, "This form of the context is not accepted for part 1."));
        }
    }
    let state = ctx.map(|ctx| midstate(&ctx, number, quirks.hash_name, field)).transpose()?;
    let signed = PartHeaders {
        content_md5: request.content_md5.unwrap_or_default(),
        content_type: request.content_type.unwrap_or_default(),
    };
    Ok((number, state, signed))
}

fn midstate(ctx: &HashContext, part: u32, name: HashName, field: &str) -> Result<Midstate, ServiceError> {
    let offset = ctx.part_offset.unwrap_or(0);
    if !offset.is_multiple_of(64) {
        return Err(ServiceError::invalid(field, "part_offset is not a multiple of 64."));
    }
    if (part == 1) != (offset == 0) {
        return Err(ServiceError::invalid(field, "part_offset must be 0 for part 1, and only for part 1."));
    }
    let is_empty_start = offset == 0 && ctx.h.is_empty();
    if !is_empty_start && ctx.h.len() != name.words() {
        return Err(ServiceError::invalid(field, &format!("h must have {} words.", name.words())));
    }
    let h = ctx.h.iter().map(|word| u32::try_from(*word)).collect::<Result<_, _>>();
    let h = h.map_err(|_| ServiceError::invalid(field, "A word of h exceeds 32 bits."))?;
    Ok(Midstate { offset, h })
}

/// One URL for each part, in the order of the request.
pub(super) fn sign_parts(
    call: &ApiCall,
    object: &ObjectKey,
    upload: &UploadId,
    parts: Vec<RequestedPart>,
) -> Vec<SignedPartUrl> {
    let app = &call.app;
    let expires_s = app.clock.now_ms() / 1000 + i64::from(app.config.url_ttl_s);
    let default_type = app.config.quirks.part_content_type.as_deref().unwrap_or("");
    parts
        .into_iter()
        .map(|(number, midstate, signed)| {
            let content_type =
                if signed.content_type.is_empty() { default_type.to_owned() } else { signed.content_type };
            let part = SignedPart { upload: upload.clone(), part: number, midstate };
            let declared = SignedHeaders { content_md5: &signed.content_md5, content_type: &content_type };
            let upload_url = app.signer.put_url(&call.base, object, &part, declared, expires_s);
            let signature_info = app
                .config
                .quirks
                .part_authorization
                .clone()
                .map(|signature| HeaderSignature { auth_type: "OSS", signature, sts_token: "" });
            SignedPartUrl {
                part_number: number,
                upload_url,
                internal_upload_url: "",
                content_type,
                signature_info,
            }
        })
        .collect()
}
