//! Parts as requests name them, and the signed URLs that they get.

use serde::{Deserialize, Serialize};

use super::request::{lenient, list};
use crate::ids::{PartNumber, UploadId};
use crate::server::config::FirstPartCtx;
use crate::server::digest::{HashName, Midstate};
use crate::server::errors::ApiError;
use crate::server::http::Call;
use crate::server::sign::{Declared, Object, PartOf};

/// `parallel_sha1_ctx` and its like.
#[derive(Deserialize)]
pub(super) struct Ctx {
    #[serde(default, deserialize_with = "list")]
    h: Vec<u64>,
    #[serde(default, deserialize_with = "lenient")]
    part_offset: Option<u64>,
}

/// A part as requests name it.
#[derive(Deserialize)]
pub(super) struct PartAsk {
    #[serde(default, deserialize_with = "lenient")]
    pub(super) part_number: Option<u32>,
    parallel_sha1_ctx: Option<Ctx>,
    parallel_sha256_ctx: Option<Ctx>,
    content_md5: Option<String>,
    content_type: Option<String>,
    pub(super) etag: Option<String>,
}

/// A part as answers name it.
#[derive(Serialize)]
pub(super) struct PartUrl {
    part_number: u32,
    upload_url: String,
    internal_upload_url: &'static str,
    content_type: String,
}

/// Headers that a PUT must carry.
#[derive(Default)]
pub(super) struct Signed {
    content_md5: String,
    content_type: String,
}

/// A part with the state that was declared for it.
pub(super) type Asked = (u32, Option<Midstate>, Signed);

pub(super) fn read_parts(call: &Call, asks: Vec<PartAsk>, parallel: bool) -> Result<Vec<Asked>, ApiError> {
    if asks.len() > PartNumber::MAX as usize {
        return Err(ApiError::invalid("part_info_list", "part count can not over 10000"));
    }
    asks.into_iter().map(|ask| read_part(call, ask, parallel)).collect()
}

fn read_part(call: &Call, ask: PartAsk, parallel: bool) -> Result<Asked, ApiError> {
    let quirks = &call.app.config.quirks;
    let number = ask
        .part_number
        .filter(|number| (1..=PartNumber::MAX).contains(number))
        .ok_or_else(|| ApiError::invalid("part_info_list", "A part_number is not within 1 to 10000."))?;
    let (ctx, field) = match quirks.hash_name {
        HashName::Sha1 => (ask.parallel_sha1_ctx, "parallel_sha1_ctx"),
        HashName::Sha256 => (ask.parallel_sha256_ctx, "parallel_sha256_ctx"),
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
            return Err(ApiError::invalid(field, "Part 1 declares another form of its state."));
        }
    }
    let state = ctx.map(|ctx| midstate(&ctx, number, quirks.hash_name, field)).transpose()?;
    let signed = Signed {
        content_md5: ask.content_md5.unwrap_or_default(),
        content_type: ask.content_type.unwrap_or_default(),
    };
    Ok((number, state, signed))
}

fn midstate(ctx: &Ctx, part: u32, name: HashName, field: &str) -> Result<Midstate, ApiError> {
    let offset = ctx.part_offset.unwrap_or(0);
    if !offset.is_multiple_of(64) {
        return Err(ApiError::invalid(field, "part_offset is not a multiple of 64."));
    }
    if (part == 1) != (offset == 0) {
        return Err(ApiError::invalid(field, "part_offset is 0 for part 1 and for no other."));
    }
    let is_empty_start = offset == 0 && ctx.h.is_empty();
    if !is_empty_start && ctx.h.len() != name.words() {
        return Err(ApiError::invalid(field, &format!("h must have {} words.", name.words())));
    }
    let h = ctx.h.iter().map(|word| u32::try_from(*word)).collect::<Result<_, _>>();
    let h = h.map_err(|_| ApiError::invalid(field, "A word of h is not below 2^32."))?;
    Ok(Midstate { offset, h })
}

/// One URL for each part, in the order asked for.
pub(super) fn sign_parts(call: &Call, object: &Object, upload: &UploadId, parts: Vec<Asked>) -> Vec<PartUrl> {
    let app = &call.app;
    let expires_s = app.clock.now_ms() / 1000 + i64::from(app.config.url_ttl_s);
    let default_type = app.config.quirks.part_content_type.as_deref().unwrap_or("");
    parts
        .into_iter()
        .map(|(number, midstate, signed)| {
            let content_type =
                if signed.content_type.is_empty() { default_type.to_owned() } else { signed.content_type };
            let part = PartOf { upload: upload.clone(), part: number, midstate };
            let declared = Declared { content_md5: &signed.content_md5, content_type: &content_type };
            let upload_url = app.signer.put_url(&call.base, object, &part, declared, expires_s);
            PartUrl { part_number: number, upload_url, internal_upload_url: "", content_type }
        })
        .collect()
}
