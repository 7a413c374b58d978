//! The revisions of a file: its content after each upload, as far as the domain keeps them.

use std::time::SystemTime;

use serde::de::IgnoredAny;

use super::Drive;
use super::meta::parse_time;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, RevisionId, Sha1Hash};
use crate::pds::listing_bounds::ListingBounds;
use crate::pds::retry::{Delivery, RequestFailure};
use crate::pds::types::{RevisionItem, RevisionListRequest, RevisionListResponse, RevisionRequest};

/// Revisions per page: the documented maximum.
const PAGE_REVISIONS: u32 = 100;

/// One revision of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Revision {
    pub id: RevisionId,
    /// Counts from 1, if the service numbers revisions.
    pub number: Option<u64>,
    /// Size of the content, if the service reports it.
    pub size: Option<u64>,
    pub created_at: Option<SystemTime>,
    /// SHA-1 of the content. `None` on domains with another hash.
    pub sha1: Option<Sha1Hash>,
    /// CRC-64/XZ of the content.
    pub crc64: Option<u64>,
    /// Name of the user who created it, else the id; empty if neither is known.
    pub author: String,
    pub description: String,
    pub is_latest: bool,
    pub is_kept_forever: bool,
}

impl From<RevisionItem> for Revision {
    fn from(item: RevisionItem) -> Self {
        let is_sha1 = item.content_hash_name.as_deref().is_none_or(|name| name.eq_ignore_ascii_case("sha1"));
        let hash = item.content_hash.filter(|_| is_sha1);
        let author = if item.creator_name.is_empty() { item.creator_id } else { item.creator_name };
        Self {
            id: item.revision_id,
            number: item.revision_version,
            size: item.size,
            created_at: parse_time(item.created_at.as_deref()),
            sha1: hash.and_then(|hex| Sha1Hash::parse(&hex).ok()),
            crc64: item.crc64_hash.and_then(|text| text.parse().ok()),
            author,
            description: item.revision_description,
            is_latest: item.is_latest_version,
            is_kept_forever: item.keep_forever,
        }
    }
}

/// A domain without revisions may not know the call.
fn or_unavailable(failure: RequestFailure) -> Error {
    let is_unknown = matches!(failure.error.kind(), ErrorKind::NoDrive | ErrorKind::Unsupported);
    if failure.delivery == Delivery::Answered && is_unknown {
        return Error::with_source(
            ErrorKind::Unsupported,
            "this domain keeps no versions of files",
            failure.error,
        );
    }
    failure.error
}

impl Drive {
    /// All revisions of a file, in the order of the service: the newest first.
    pub async fn revisions(&self, file: &FileId) -> Result<Vec<Revision>> {
        let (mut revisions, mut bounds, mut marker) = (Vec::new(), ListingBounds::default(), String::new());
        loop {
            let request = RevisionListRequest {
                drive_id: self.id(),
                file_id: file,
                limit: PAGE_REVISIONS,
                marker: &marker,
                fields: "*",
            };
            let page = self.call_safe("/v2/file/revision/list", &request).await;
            let page: RevisionListResponse = page.map_err(or_unavailable)?;
            let bytes =
                |item: &RevisionItem| (item.revision_description.len() + item.creator_name.len()) as u64;
            let next = Some(page.next_marker).filter(|next| !next.is_empty());
            let next = bounds.check(page.items.0.iter().map(bytes), next)?;
            revisions.extend(page.items.0.into_iter().map(Revision::from));
            match next {
                Some(next) => marker = next,
                None => return Ok(revisions),
            }
        }
    }

    /// Makes the content of an older revision the content of the file.
    pub async fn restore_revision(&self, file: &FileId, revision: &RevisionId) -> Result<()> {
        let request = RevisionRequest { drive_id: self.id(), file_id: file, revision_id: revision };
        match self.call_safe::<IgnoredAny>("/v2/file/revision/restore", &request).await {
            Ok(_) => Ok(()),
            // A repeated call finds that the first one has restored it.
            Err(failure) if failure.is("FileLatestRevisionCannotBeRestore") => Ok(()),
            Err(failure) => Err(failure.error),
        }
    }
}
