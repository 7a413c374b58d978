//! Downloads: the presigned URL of a revision, and ranged reads through it.

use std::time::{Duration, Instant};

use super::{Drive, FileMeta};
use crate::error::{Error, Result};
use crate::ids::{FileId, RevisionId, Secret};
use crate::pds::retry::{Idempotency, RetryPolicy};
use crate::pds::transport::{CallPriority, GetAnswer, RangeBytes, RangeRequest};
use crate::pds::types::{DownloadUrlRequest, DownloadUrlResponse};

/// Longest lifetime of a download URL (`expire_sec` of `get_download_url`).
pub const DOWNLOAD_URL_LIFETIME_MAX: Duration = Duration::from_secs(115_200);

/// A presigned URL for the content of one revision.
#[derive(Clone, Debug)]
pub struct DownloadUrl {
    pub url: Secret<String>,
    /// After this time a new URL must be requested.
    pub expires_at: Instant,
    /// The revision of the content, if the service reports it.
    pub revision: Option<RevisionId>,
    /// Size of the content, if the service reports it.
    pub size: Option<u64>,
}

/// Default lifetime of the URLs in a listing (API page of `ListFile`).
const LISTED_URL_LIFETIME: Duration = Duration::from_secs(900);

impl DownloadUrl {
    /// The URL of a file in a listing that was requested at `requested_at`.
    pub(super) fn listed(url: String, meta: &FileMeta, requested_at: Instant) -> Self {
        Self {
            url: Secret::new(url),
            expires_at: requested_at + LISTED_URL_LIFETIME,
            revision: meta.revision.clone(),
            size: Some(meta.size),
        }
    }
}

/// Why a range could not be read.
#[derive(Clone, Debug)]
pub enum RangeError {
    /// The URL has expired. The caller requests a new one.
    Expired,
    /// Any other failure. Transient ones have been retried.
    Failed(Error),
}

impl Drive {
    /// Requests a presigned URL for a revision (`None`: the latest). `lifetime` is at most
    /// [`DOWNLOAD_URL_LIFETIME_MAX`].
    pub async fn download_url(
        &self,
        file: &FileId,
        revision: Option<&RevisionId>,
        lifetime: Duration,
        priority: CallPriority,
    ) -> Result<DownloadUrl> {
        let request = DownloadUrlRequest {
            drive_id: self.id(),
            file_id: file,
            revision_id: revision,
            expire_sec: lifetime.as_secs() as u32,
        };
        let requested_at = Instant::now();
        let (call, policy) = (("/v2/file/get_download_url", priority), RetryPolicy::READING);
        let answer: DownloadUrlResponse =
            self.0.session.call(call, Idempotency::Safe, policy, &request).await?;
        Ok(DownloadUrl {
            url: Secret::new(answer.url),
            expires_at: requested_at + lifetime,
            revision: answer.revision_id,
            size: answer.size,
        })
    }

    /// Reads exactly the bytes of a range.
    pub async fn read_range(
        &self,
        request: &RangeRequest<'_>,
    ) -> std::result::Result<RangeBytes, RangeError> {
        match self.0.session.transport().get_range(request, RetryPolicy::READING).await {
            Ok(GetAnswer::Bytes(bytes)) => Ok(bytes),
            Ok(GetAnswer::Expired) => Err(RangeError::Expired),
            Err(failure) => Err(RangeError::Failed(failure.error)),
        }
    }
}
