//! The calls of an upload session: presigned URLs, PUT of parts, complete.
//!
//! If the answer to `complete` was lost, the file is read: it counts as committed if it has our size and hash.
//! Where the service reports no hashes, an overwritten file must also have changed since just before the call.

use super::create::{InstantUpload, UploadSession, check_urls};
use super::{Drive, FileMeta};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{PartNumber, Sha1Hash};
use crate::pds::part_body::Frame;
use crate::pds::put_control::PutControl;
use crate::pds::retry::{Delivery, Idempotency, RequestFailure};
use crate::pds::transport::{CallPriority, PutAnswer};
use crate::pds::types::{CompleteRequest, File, PartUrl, UploadUrlRequest, UploadUrlResponse};
use crate::rolling_sha1::Sha1Midstate;

/// The result of the PUT of a part, unless it failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PutOutcome {
    Stored {
        /// CRC-64/XZ of the part.
        crc64: u64,
    },
    /// Ordered mode: an earlier attempt, whose answer was lost, has stored the part.
    StoredBefore,
    /// The presigned URL has expired. The caller gets a new one by [`Drive::get_upload_urls`].
    Expired,
    /// The upload session is gone.
    NoSuchUpload,
}

/// The content that a completed file must have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExpectedContent {
    pub size: u64,
    pub sha1: Sha1Hash,
    /// CRC-64/XZ of the whole content. `None` if nothing was sent.
    pub crc64: Option<u64>,
}

impl Drive {
    /// Presigned URLs for parts, in the requested order. Also called to sign expired URLs again.
    pub async fn get_upload_urls(
        &self,
        upload: &UploadSession,
        parts: &[(PartNumber, Sha1Midstate)],
    ) -> Result<Vec<PartUrl>> {
        let request = UploadUrlRequest {
            drive_id: self.id(),
            file_id: &upload.file_id,
            upload_id: &upload.upload_id,
            part_info_list: self.0.dialect.part_requests(parts, upload.parallel),
        };
        let answer: UploadUrlResponse = self
            .0
            .session
            .call(
                ("/v2/file/get_upload_url", CallPriority::PartUrl),
                Idempotency::Safe,
                self.0.transfer,
                &request,
            )
            .await?;
        check_urls(parts.iter().map(|(number, _)| *number), &answer.part_info_list)?;
        Ok(answer.part_info_list)
    }

    /// Sends a part, and sends it again if the CRC-64 of the store differs.
    pub async fn put_part(
        &self,
        url: &PartUrl,
        body: &[Frame],
        control: &impl PutControl,
    ) -> Result<PutOutcome> {
        const ATTEMPTS_MAX: usize = 3;
        for _ in 0..ATTEMPTS_MAX {
            let (stored, sent) =
                match self.0.session.transport().put_part(url, body, self.0.transfer, control).await? {
                    PutAnswer::Stored { stored_crc64, sent_crc64 } => (stored_crc64, sent_crc64),
                    PutAnswer::AlreadyStored => return Ok(PutOutcome::StoredBefore),
                    PutAnswer::Expired => return Ok(PutOutcome::Expired),
                    PutAnswer::NoSuchUpload => return Ok(PutOutcome::NoSuchUpload),
                };
            if stored.is_none_or(|stored| stored == sent) {
                return Ok(PutOutcome::Stored { crc64: sent });
            }
            let part = url.part_number;
            tracing::warn!(%part, "the checksum of an uploaded part differs; sending it again");
        }
        let part = url.part_number;
        let detail =
            format!("the checksum of part {part} differed in {ATTEMPTS_MAX} uploads; save the file again");
        Err(Error::new(ErrorKind::Integrity, detail))
    }

    /// Makes the uploaded parts the latest revision of the file, and checks size and hashes of the result.
    pub async fn complete(&self, upload: &UploadSession, expected: &ExpectedContent) -> Result<FileMeta> {
        let request = CompleteRequest {
            drive_id: self.id(),
            file_id: &upload.file_id,
            upload_id: &upload.upload_id,
            crc64_hash: expected.crc64.map(|crc64| crc64.to_string()),
        };
        let before = self.before_overwrite(upload).await;
        let answer = self
            .0
            .session
            .call::<File>(
                ("/v2/file/complete", CallPriority::Commit),
                Idempotency::Safe,
                self.0.transfer,
                &request,
            )
            .await;
        let mut meta = match answer {
            Ok(file) => self.meta(file)?,
            Err(failure) if is_ambiguous(&failure) => match self.get_latest(&upload.file_id).await {
                Ok(meta) if is_result_of(upload, expected, before.as_ref(), &meta) => meta,
                _ => return Err(failure.error),
            },
            Err(failure) => return Err(failure.error),
        };
        if !meta.has_hash() {
            meta = self.get_latest(&upload.file_id).await?;
        }
        expected.check(&meta)?;
        if !meta.has_hash() && self.0.dialect.is_first_without_hash() {
            tracing::warn!("the service reports no content hashes; only the sizes of uploads can be checked");
        }
        Ok(meta)
    }

    /// The file before `complete` overwrites it, where the service reports no hashes. If the answer is lost,
    /// only a change of the file shows that the call was executed.
    async fn before_overwrite(&self, upload: &UploadSession) -> Option<FileMeta> {
        if !upload.overwrites || !self.0.dialect.lacks_hashes() {
            return None;
        }
        // Without it, a lost answer counts as a failure.
        self.get_latest(&upload.file_id).await.ok()
    }

    /// The file of an instant upload. `former` is the object that it overwrites; `is_new`: it overwrites none. An answer
    /// that names the new revision is believed, because the service has compared the hash. Otherwise the file is read
    /// and checked like a completed one.
    pub async fn get_committed(
        &self,
        instant: &InstantUpload,
        expected: &ExpectedContent,
        (former, is_new): (Option<&FileMeta>, bool),
    ) -> Result<FileMeta> {
        let former = former.filter(|former| former.file_id == instant.file_id);
        if let Some(meta) = instant.meta.clone()
            && (is_new || former.is_some())
        {
            return Ok(former.map_or(meta.clone(), |former| self.overwritten(meta, former)));
        }
        let meta = self.get_latest(&instant.file_id).await?;
        expected.check(&meta)?;
        if !instant.is_certain && !expected.has_hash_of(&meta) {
            let detail = "the service reports neither an instant upload nor a hash of the overwritten file";
            return Err(Error::new(ErrorKind::Integrity, detail));
        }
        Ok(meta)
    }
}

impl ExpectedContent {
    /// Fails with `Integrity` if the drive has other content.
    pub fn check(&self, meta: &FileMeta) -> Result<()> {
        let wrong = |what: &str| {
            let detail = format!(
                "the content on the drive differs from the written content: {what}; save the file again"
            );
            Err(Error::new(ErrorKind::Integrity, detail))
        };
        if meta.size != self.size {
            return wrong(&format!("{} bytes instead of {}", meta.size, self.size));
        }
        if meta.sha1.is_some_and(|sha1| sha1 != self.sha1) {
            return wrong("the SHA-1 differs");
        }
        if meta.crc64.zip(self.crc64).is_some_and(|(theirs, ours)| theirs != ours) {
            return wrong("the CRC-64 differs");
        }
        Ok(())
    }

    /// Whether the service reports a hash of this content for the file.
    fn has_hash_of(&self, meta: &FileMeta) -> bool {
        meta.sha1 == Some(self.sha1) || meta.crc64.is_some() && meta.crc64 == self.crc64
    }
}

/// Whether `meta` is the result of `complete`, whose answer was lost. `before` is the overwritten file.
fn is_result_of(
    upload: &UploadSession,
    expected: &ExpectedContent,
    before: Option<&FileMeta>,
    meta: &FileMeta,
) -> bool {
    let is_new = || !upload.overwrites || before.is_some_and(|before| has_new_content(before, meta));
    expected.check(meta).is_ok() && (expected.has_hash_of(meta) || is_new())
}

/// Whether a file got another revision between two answers. Without revision ids, the time of its last change
/// decides.
fn has_new_content(before: &FileMeta, after: &FileMeta) -> bool {
    match (&before.revision, &after.revision) {
        (Some(before), Some(after)) => before != after,
        _ => before.changed_at < after.changed_at,
    }
}

/// Whether `complete` may have succeeded: the upload session is gone, or the answer was lost.
fn is_ambiguous(failure: &RequestFailure) -> bool {
    failure.is("NotFound.UploadId") || failure.is("AlreadyExist") || failure.delivery == Delivery::Unknown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{FileId, UploadId};

    fn meta(more: &str) -> FileMeta {
        let text = format!(r#"{{"file_id":"f","type":"file","name":"n","size":3{more}}}"#);
        FileMeta::try_from(serde_json::from_str::<File>(&text).unwrap()).unwrap()
    }

    #[test]
    fn equal_size_alone_proves_no_overwrite() {
        let sha1 = Sha1Hash([1; 20]);
        let expected = ExpectedContent { size: 3, sha1, crc64: Some(7) };
        let session = |overwrites| UploadSession {
            file_id: FileId::new("f").unwrap(),
            upload_id: UploadId::new("u").unwrap(),
            parallel: true,
            overwrites,
        };
        let time = |seconds: u32| format!(r#","updated_at":"2026-01-01T00:00:{seconds:02}.000Z""#);
        let revision = |id: &str| format!(r#","revision_id":"{id}"{}"#, time(1));
        let table = [
            // Nothing is known of the time before.
            (None, meta(""), false),
            (None, meta(&revision("r1")), false),
            (None, meta(r#","crc64_hash":"7""#), true),
            (None, meta(r#","crc64_hash":"8""#), false),
            (None, meta(&format!(r#","content_hash":"{sha1}""#)), true),
            (Some(meta(&revision("r1"))), meta(&revision("r1")), false),
            (Some(meta(&revision("r1"))), meta(&revision("r2")), true),
            (Some(meta(&time(1))), meta(&time(1)), false),
            (Some(meta(&time(1))), meta(&time(2)), true),
        ];
        for (before, after, is_result) in table {
            let case = format!("{before:?} {after:?}");
            assert_eq!(is_result_of(&session(true), &expected, before.as_ref(), &after), is_result, "{case}");
        }
        // Only our upload can have made a new file.
        assert!(is_result_of(&session(false), &expected, None, &meta("")));
        let longer = ExpectedContent { size: 4, ..expected };
        assert!(!is_result_of(&session(false), &longer, None, &meta("")));
    }
}
