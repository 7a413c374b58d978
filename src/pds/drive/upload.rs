//! The calls of an upload: create, part URLs, PUT, complete.
//!
//! A file being uploaded is invisible to everybody until `complete`, so a `create` whose answer
//! was lost may simply be sent again: what the first one began expires by itself. A lost answer to
//! `complete` is reconciled by reading: the file being there with our hash is a success.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use super::{Drive, FileMeta, meta};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, PartNumber, Sha1Hash, UploadId};
use crate::pds::frame::Frame;
use crate::pds::retry::{Failure, Idempotency, RetryPolicy, Sent};
use crate::pds::transport::PutAnswer;
use crate::pds::types::{
    CheckNameMode, CompleteRequest, CreateRequest, CreateResponse, File, FileType, PartRequest, PartUrl,
    UploadUrlRequest, UploadUrlResponse, WireSha1Ctx,
};
use crate::posix::Tags;
use crate::rolling_sha1::Sha1Ctx;

/// A file to be uploaded.
#[derive(Clone, Debug)]
pub struct NewFile<'a> {
    /// The folder.
    pub parent: &'a FileId,
    /// The name there.
    pub name: &'a str,
    /// The file that gets a new revision; `None` makes a new file.
    pub overwrite: Option<&'a FileId>,
    /// What a new file does where the name is taken.
    pub mode: CheckNameMode,
    /// Size and SHA-1 where the whole content is known: the service may have it already.
    pub content: Option<(u64, Sha1Hash)>,
    /// The client's modification time.
    pub mtime: Option<SystemTime>,
    /// What goes into `user_tags`.
    pub tags: Tags,
    /// The parts whose URLs shall come with the answer; not empty.
    pub parts: &'a [(PartNumber, Sha1Ctx)],
}

/// An upload session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Upload {
    /// The file it will become a revision of.
    pub file_id: FileId,
    /// The session.
    pub upload_id: UploadId,
    /// Parts may be sent in any order. Otherwise one at a time, in order.
    pub parallel: bool,
}

/// What `create` led to.
#[derive(Clone, Debug)]
pub enum Created {
    /// A session, and the URLs asked for, in that order.
    Session(Upload, Vec<PartUrl>),
    /// The service had the bytes: the file is complete.
    Instant(FileId),
    /// Nothing was created: the name belongs to this object.
    Taken(FileId, FileType),
}

/// How the PUT of a part ended, as far as it did not fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PutOutcome {
    /// The store has it.
    Stored {
        /// CRC-64/XZ of the part.
        crc64: u64,
    },
    /// Ordered mode: the store has it from an attempt whose answer was lost.
    StoredBefore,
    /// The URL has expired: ask for a new one.
    Expired,
    /// The session is gone.
    NoSuchUpload,
}

/// What a completed file must turn out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Expected {
    /// Bytes.
    pub size: u64,
    /// Of the whole content.
    pub sha1: Sha1Hash,
    /// CRC-64/XZ of the whole content; `None` where nothing was sent.
    pub crc64: Option<u64>,
}

impl Drive {
    /// Whether parts may be sent in any order, as far as is known.
    pub fn is_parallel(&self) -> bool {
        self.0.parallel.load(Ordering::Relaxed)
    }

    /// Begins an upload. Falls back to the ordered mode, for good, where the domain wants that.
    pub async fn create_file(&self, file: &NewFile<'_>) -> Result<Created> {
        self.create_within(file, self.0.transfer).await
    }

    async fn create_within(&self, file: &NewFile<'_>, policy: RetryPolicy) -> Result<Created> {
        let parallel = self.is_parallel();
        match self.create_once(file, parallel, policy).await {
            Err(failure) if parallel && failure.is("InvalidParameterNotSupported.ParallelUpload") => {
                tracing::info!("the domain refuses parallel uploads: parts go one at a time, in order");
                self.0.parallel.store(false, Ordering::Relaxed);
                Ok(self.create_once(file, false, policy).await?)
            }
            outcome => Ok(outcome?),
        }
    }

    async fn create_once(
        &self,
        file: &NewFile<'_>,
        parallel: bool,
        policy: RetryPolicy,
    ) -> std::result::Result<Created, Failure> {
        let request = CreateRequest {
            drive_id: self.id(),
            parent_file_id: file.parent,
            name: file.name,
            file_type: FileType::File,
            check_name_mode: file.mode,
            file_id: file.overwrite,
            size: file.content.map(|(size, _)| size),
            parallel_upload: Some(parallel),
            part_info_list: part_requests(file.parts, parallel),
            content_hash: file.content.map(|(_, sha1)| sha1.to_string()),
            content_hash_name: file.content.map(|_| "sha1"),
            local_modified_at: file.mtime.and_then(meta::wire_time),
            user_tags: self.user_tags(&file.tags),
        };
        let answer: CreateResponse =
            self.0.session.call("/v2/file/create", Idempotency::Safe, policy, &request).await?;
        if answer.exist && file.overwrite.is_none() {
            return Ok(Created::Taken(answer.file_id, answer.file_type.unwrap_or(FileType::File)));
        }
        if file.overwrite.is_some_and(|target| *target != answer.file_id) {
            return Err(nonsense("create: the service answers for another file than the one to overwrite"));
        }
        if answer.rapid_upload || answer.status.as_deref() == Some("available") && answer.upload_id.is_none()
        {
            return Ok(Created::Instant(answer.file_id));
        }
        let Some(upload_id) = answer.upload_id else {
            return Err(nonsense("create: the answer has neither an upload_id nor a finished file"));
        };
        check_urls(file.parts.iter().map(|(number, _)| *number), &answer.part_info_list)?;
        Ok(Created::Session(Upload { file_id: answer.file_id, upload_id, parallel }, answer.part_info_list))
    }

    /// URLs for parts, in the order asked for.
    pub async fn part_urls(&self, upload: &Upload, parts: &[(PartNumber, Sha1Ctx)]) -> Result<Vec<PartUrl>> {
        let request = UploadUrlRequest {
            drive_id: self.id(),
            file_id: &upload.file_id,
            upload_id: &upload.upload_id,
            part_info_list: part_requests(parts, upload.parallel),
        };
        let answer: UploadUrlResponse = self
            .0
            .session
            .call("/v2/file/get_upload_url", Idempotency::Safe, self.0.transfer, &request)
            .await?;
        check_urls(parts.iter().map(|(number, _)| *number), &answer.part_info_list)?;
        Ok(answer.part_info_list)
    }

    /// Sends a part. Where the store gives a CRC-64, it is that of what was sent. Sets `throttled` where
    /// the store asked for fewer requests, whatever came of it.
    pub async fn put_part(
        &self,
        url: &PartUrl,
        body: &[Frame],
        throttled: &AtomicBool,
    ) -> Result<PutOutcome> {
        const DAMAGED_MAX: usize = 3;
        for _ in 0..DAMAGED_MAX {
            let (stored, sent) =
                match self.0.session.transport().put_part(url, body, self.0.transfer, throttled).await? {
                    PutAnswer::Stored { stored_crc64, sent_crc64 } => (stored_crc64, sent_crc64),
                    PutAnswer::AlreadyStored => return Ok(PutOutcome::StoredBefore),
                    PutAnswer::Expired => return Ok(PutOutcome::Expired),
                    PutAnswer::NoSuchUpload => return Ok(PutOutcome::NoSuchUpload),
                };
            if stored.is_none_or(|stored| stored == sent) {
                return Ok(PutOutcome::Stored { crc64: sent });
            }
            tracing::warn!(part = %url.part_number, "a part was damaged on its way; sending it again");
        }
        let detail = format!("part {} arrived damaged {DAMAGED_MAX} times", url.part_number);
        Err(Error::new(ErrorKind::Integrity, detail))
    }

    /// Makes the uploaded parts the newest revision of the file. The answer is checked against
    /// what we know of the content.
    pub async fn complete(&self, upload: &Upload, expected: &Expected) -> Result<FileMeta> {
        let request = CompleteRequest {
            drive_id: self.id(),
            file_id: &upload.file_id,
            upload_id: &upload.upload_id,
            crc64_hash: expected.crc64.map(|crc64| crc64.to_string()),
        };
        let answer = self
            .0
            .session
            .call::<File>("/v2/file/complete", Idempotency::Safe, self.0.transfer, &request)
            .await;
        let mut meta = match answer {
            Ok(file) => self.meta(file)?,
            Err(failure) if is_ambiguous(&failure) => {
                match self.get_by(self.0.transfer, &upload.file_id).await {
                    Ok(meta) if expected.check(&meta).is_ok() => meta,
                    _ => return Err(failure.error),
                }
            }
            Err(failure) => return Err(failure.error),
        };
        if meta.sha1.is_none() && meta.crc64.is_none() {
            meta = self.get_by(self.0.transfer, &upload.file_id).await?;
        }
        expected.check(&meta)?;
        if meta.sha1.is_none()
            && meta.crc64.is_none()
            && !self.0.told_of_no_hash.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                "the service tells no hash of what it has: of uploads, only the sizes can be compared"
            );
        }
        Ok(meta)
    }

    /// The committed file behind an instant upload, checked like a completed one.
    pub async fn committed(&self, file: &FileId, expected: &Expected) -> Result<FileMeta> {
        let meta = self.get_by(self.0.transfer, file).await?;
        expected.check(&meta)?;
        Ok(meta)
    }

    /// Gives `target` a new revision with the content of `source` by instant upload. `None` where
    /// the service does not do that; then nothing has changed.
    pub async fn replace(&self, target: &FileMeta, source: &FileMeta) -> Result<Option<FileMeta>> {
        let (Some(sha1), Some(parent)) = (source.sha1, &target.parent_id) else {
            return Ok(None);
        };
        let file = NewFile {
            parent,
            name: &target.name,
            overwrite: Some(&target.file_id),
            mode: CheckNameMode::Refuse,
            content: Some((source.size, sha1)),
            mtime: Some(source.mtime),
            tags: source.tags(),
            parts: &[(PartNumber::FIRST, Sha1Ctx::START)],
        };
        // A program waits for a rename: with a dead credential it fails, and in a long outage.
        let outage_max = RetryPolicy::INTERACTIVE.outage_max;
        let policy = RetryPolicy { parks: false, outage_max, ..self.0.transfer };
        let Created::Instant(file_id) = self.create_within(&file, policy).await? else {
            return Ok(None);
        };
        let meta = self.get(&file_id).await?;
        if meta.size != source.size || meta.sha1 != Some(sha1) {
            return Err(Error::new(ErrorKind::Integrity, "the instant upload gave the file other bytes"));
        }
        Ok(Some(meta))
    }
}

impl Expected {
    /// Whether the drive has what we sent.
    pub fn check(&self, meta: &FileMeta) -> Result<()> {
        let wrong = |what: &str| {
            let detail = format!("the drive holds other bytes than were written: {what}");
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
}

/// An upload session that is gone, or an answer that was lost: the file itself tells.
fn is_ambiguous(failure: &Failure) -> bool {
    failure.is("NotFound.UploadId") || failure.is("AlreadyExist") || failure.sent == Sent::Maybe
}

fn part_requests(parts: &[(PartNumber, Sha1Ctx)], parallel: bool) -> Vec<PartRequest> {
    let request = |&(part_number, ctx): &(PartNumber, Sha1Ctx)| PartRequest {
        part_number,
        parallel_sha1_ctx: parallel.then(|| WireSha1Ctx::from(ctx)),
    };
    parts.iter().map(request).collect()
}

/// One URL per part, in the order asked for.
fn check_urls(
    asked: impl ExactSizeIterator<Item = PartNumber>,
    given: &[PartUrl],
) -> std::result::Result<(), Failure> {
    if asked.len() == given.len() && asked.eq(given.iter().map(|url| url.part_number)) {
        return Ok(());
    }
    Err(nonsense("the service gave URLs for other parts than were asked for"))
}

fn nonsense(detail: &str) -> Failure {
    let error = Error::new(ErrorKind::Protocol, detail);
    Failure { error, code: String::new(), sent: Sent::Answered, retry_after: None }
}
