//! The commit of written content: from the bytes to a new revision on the drive.
//!
//! A stream whose parts are on the drive only sends its last part. Other content is hashed first, and
//! `create` gets its hash: the drive may have the bytes already, or the file may not have changed.

use std::sync::Arc;

use super::commit_target::CommitTarget;
use super::in_flight_parts::InFlightParts;
use super::part::{FrozenPart, HashedPart, add_all, hash_frames};
use super::part_upload::PartUpload;
use super::staged_file::StagedFile;
use super::tee::Tee;
use super::upload_context::UploadContext;
use super::upload_session::create;
use super::uploader::{Uploader, first_url_requests, off_boundary, upload_parts};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, PartNumber, Sha1Hash};
use crate::pds::drive::{CreateOutcome, ExpectedContent, FileMeta, UploadSession};
use crate::pds::part_body::Frame;
use crate::pds::retry_observer::observed;
use crate::pds::types::PartUrl;
use crate::rolling_sha1::{RollingSha1, Sha1Midstate};
use crate::status::{CommitMethod, Transfer};

/// Largest file that is hashed on the calling thread, in bytes: a thread switch would cost more.
const INLINE_HASH_BYTES_MAX: u64 = 256 << 10;
/// How many targets one commit tries.
const TARGETS_MAX: usize = 3;
/// Bytes of one read of the base revision, for a staged file.
const STAGED_BACKFILL_BYTES: u64 = 4 << 20;

/// One commit, ready to run.
#[derive(Debug)]
pub struct Commit {
    pub(super) context: Arc<UploadContext>,
    pub(super) in_flight: Arc<InFlightParts>,
    pub(super) tee: Option<Tee>,
    pub(super) transfer: Arc<Transfer>,
    pub(super) target: CommitTarget,
    /// The base revision. If it has the same bytes, nothing is committed.
    pub(super) base: Option<FileMeta>,
    pub(super) source: CommitSource,
}

/// The content to commit.
#[derive(Debug)]
pub(super) enum CommitSource {
    /// Parts were sent; the last one follows.
    Stream {
        uploader: Uploader,
        last: Option<FrozenPart>,
        size: u64,
    },
    /// The only part. It was not sent yet.
    SinglePart(FrozenPart),
    Staged(Arc<StagedFile>),
    /// The content could not be prepared.
    Failed(Error),
}

/// A committed file.
#[derive(Clone, Debug)]
pub struct CommitOutcome {
    /// The file as the drive confirmed it.
    pub meta: FileMeta,
    pub method: CommitMethod,
    /// The target that was used.
    pub target: CommitTarget,
}

/// Content that was hashed before any of it is sent.
struct HashedContent {
    size: u64,
    sha1: Sha1Hash,
    parts: Vec<HashedPart>,
}

impl Commit {
    /// The parts that readers use during the commit.
    pub(super) fn in_flight(&self) -> &Arc<InFlightParts> {
        &self.in_flight
    }

    /// The transfer whose progress shows that the commit is not stalled.
    pub fn transfer(&self) -> &Arc<Transfer> {
        &self.transfer
    }

    pub async fn run(self) -> Result<CommitOutcome> {
        self.transfer.committing();
        observed(self.transfer.clone(), Box::pin(self.commit())).await
    }

    async fn commit(mut self) -> Result<CommitOutcome> {
        match std::mem::replace(&mut self.source, CommitSource::Failed(already_run())) {
            CommitSource::Stream { uploader, last, size } => {
                self.transfer.expect_bytes(size);
                self.commit_stream(uploader, last, size).await
            }
            CommitSource::SinglePart(part) => {
                // Readers get the bytes from here until the commit ends.
                self.in_flight.retain_all();
                let content = hash_parts(vec![part], &self.transfer).await?;
                self.commit_hashed(content).await
            }
            CommitSource::Staged(staged) => {
                self.transfer.expect_bytes(staged.size());
                if let Some(outcome) = self.commit_clone(&staged).await? {
                    return Ok(outcome);
                }
                self.backfill(&staged).await?;
                let content = hash_parts(staged.parts(self.context.part_size)?, &self.transfer).await?;
                self.transfer.expect_bytes(content.size);
                self.commit_hashed(content).await
            }
            CommitSource::Failed(error) => Err(error),
        }
    }

    /// The outcome without an upload, if the base revision has these bytes and is still the latest.
    async fn unchanged(&self, expected: &ExpectedContent) -> Result<Option<CommitOutcome>> {
        let is_same = |meta: &FileMeta| meta.size == expected.size && meta.sha1 == Some(expected.sha1);
        let Some(base) = self.base.as_ref().filter(|base| is_same(base)) else { return Ok(None) };
        let meta = match self.context.drive.get_latest(&base.file_id).await {
            Ok(meta) => meta,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let target = self.target.clone();
        Ok(is_same(&meta).then_some(CommitOutcome { meta, method: CommitMethod::Unchanged, target }))
    }

    async fn commit_stream(
        self,
        mut uploader: Uploader,
        last: Option<FrozenPart>,
        size: u64,
    ) -> Result<CommitOutcome> {
        let uploaded = match uploader.finish(last).await {
            Err(error) if self.context.stages_all() => return self.resend(size, None, error).await,
            uploaded => uploaded?,
        };
        let expected = ExpectedContent { size, sha1: uploaded.sha1, crc64: Some(uploaded.crc64) };
        if let Some(outcome) = self.unchanged(&expected).await? {
            return Ok(outcome);
        }
        match self.context.drive.complete(&uploaded.session, &expected).await {
            Ok(meta) => Ok(CommitOutcome { meta, method: CommitMethod::Uploaded, target: uploaded.target }),
            Err(error) if self.is_misplaced(&error, &uploaded.target) => {
                let gone = uploaded.target.overwrite.filter(|_| error.kind() == ErrorKind::NotFound);
                self.resend(size, gone, error).await
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the drive refused a commit because of its target: the name was taken, the file to overwrite
    /// is gone, or the file was moved and its old parent is gone.
    fn is_misplaced(&self, error: &Error, used: &CommitTarget) -> bool {
        match error.kind() {
            ErrorKind::Exists => true,
            ErrorKind::NotFound => used.overwrite.is_some() || used.has_moved(&self.context.resolver),
            _ => false,
        }
    }

    /// Commits streamed content to the current target, after the drive `refused` the session or its target.
    /// `gone` is an object that the drive reported as missing. The bytes come from the tee; without one the commit
    /// fails.
    async fn resend(mut self, size: u64, gone: Option<FileId>, refused: Error) -> Result<CommitOutcome> {
        let Some(tee) = self.tee.clone() else { return Err(refused) };
        tracing::info!(name = self.target.name, %refused, "upload restarts");
        let staged = tee.wait_for_file(size).await?.ok_or(refused)?;
        if staged.size() != size {
            // A stream that could not be staged as a whole has left bytes behind the sent ones.
            let truncated = staged.clone();
            self.context.disk.run(move || truncated.truncate(size)).await?;
        }
        let content = hash_parts(staged.parts(self.context.part_size)?, &self.transfer).await?;
        self.commit_with_retries(&content, gone).await
    }

    /// Commits a clone of a whole file by instant upload: the drive has the bytes. `None` for other content,
    /// and if the drive requires an upload.
    async fn commit_clone(&mut self, staged: &StagedFile) -> Result<Option<CommitOutcome>> {
        let Some((source, size)) = staged.clone_source() else { return Ok(None) };
        let Some(sha1) = source.sha1.filter(|_| source.size == size) else { return Ok(None) };
        let expected = ExpectedContent { size, sha1, crc64: None };
        if let Some(outcome) = self.unchanged(&expected).await? {
            return Ok(Some(outcome));
        }
        let first = [(PartNumber::FIRST, Sha1Midstate::START)];
        self.target.refresh(&self.context.resolver)?;
        let created = create(&self.context, &mut self.target, Some((size, sha1)), &first).await?;
        let CreateOutcome::InstantUpload(instant) = created else { return Ok(None) };
        let former = (self.base.as_ref(), self.target.overwrite.is_none());
        let meta = self.context.drive.get_committed(&instant, &expected, former).await?;
        let meta = FileMeta { crc64: meta.crc64.or(source.crc64), ..meta };
        let target = self.target.clone();
        Ok(Some(CommitOutcome { meta, method: CommitMethod::Instant, target }))
    }

    /// Fills the holes of a staged file from its base revision. If that reads the whole base, its SHA-1 is checked.
    async fn backfill(&self, staged: &Arc<StagedFile>) -> Result<()> {
        let cursor = self.context.reader.cursor();
        let (mut hash, mut filled) = (RollingSha1::default(), None);
        while let Some((base, offset, len)) = staged.next_backfill(STAGED_BACKFILL_BYTES) {
            let bytes = self.context.reader.read(&base, &cursor, offset, len).await?;
            if bytes.is_empty() {
                let detail = "the base revision on the drive is shorter than its recorded size";
                return Err(Error::new(ErrorKind::Integrity, detail));
            }
            self.transfer.prepared(bytes.len() as u64);
            let staged = staged.clone();
            let fill = move || {
                if hash.bytes() == offset {
                    hash.update(&bytes);
                }
                staged.backfill(offset, &bytes).map(|()| hash)
            };
            hash = self.context.disk.run(fill).await?;
            filled = Some(base);
        }
        match filled {
            Some(base)
                if hash.bytes() == base.size && base.sha1.is_some_and(|sha1| sha1 != hash.digest()) =>
            {
                self.context.reader.drop_blocks(&base);
                let detail = "the bytes that were read of the older revision do not have the SHA-1 that the drive \
                              reports: they were altered in the store or on the way; the file on the drive is \
                              unchanged, save it again";
                Err(Error::new(ErrorKind::Integrity, detail))
            }
            _ => Ok(()),
        }
    }

    async fn commit_hashed(mut self, content: HashedContent) -> Result<CommitOutcome> {
        self.commit_with_retries(&content, None).await
    }

    /// Commits to the current target, and again if that changes. `gone` is an object that the drive reported
    /// as missing; it is not overwritten even if the tree still has it.
    async fn commit_with_retries(
        &mut self,
        content: &HashedContent,
        mut gone: Option<FileId>,
    ) -> Result<CommitOutcome> {
        let expected = ExpectedContent { size: content.size, sha1: content.sha1, crc64: None };
        if let Some(outcome) = self.unchanged(&expected).await? {
            return Ok(outcome);
        }
        let mut tries_left = TARGETS_MAX;
        loop {
            self.target.refresh(&self.context.resolver)?;
            self.target.overwrite.take_if(|object| Some(&*object) == gone.as_ref());
            tries_left -= 1;
            match self.commit_once(content, expected).await {
                // During the upload the file was renamed, or another client took the name or deleted the
                // file.
                Err(error) if tries_left > 0 && self.is_misplaced(&error, &self.target) => {
                    if error.kind() == ErrorKind::NotFound {
                        gone = self.target.overwrite.take().or(gone);
                    }
                }
                outcome => return outcome,
            }
        }
    }

    async fn commit_once(
        &mut self,
        content: &HashedContent,
        expected: ExpectedContent,
    ) -> Result<CommitOutcome> {
        let drive = self.context.drive.clone();
        let size_and_sha1 = Some((content.size, content.sha1));
        let first = first_url_requests(&content.parts);
        let (session, urls) = match create(&self.context, &mut self.target, size_and_sha1, &first).await? {
            CreateOutcome::Session(session, urls) => (session, urls),
            CreateOutcome::InstantUpload(instant) => {
                let former = (self.base.as_ref(), self.target.overwrite.is_none());
                let meta = drive.get_committed(&instant, &expected, former).await?;
                let target = self.target.clone();
                return Ok(CommitOutcome { meta, method: CommitMethod::Instant, target });
            }
            CreateOutcome::NameTaken(..) => {
                return Err(Error::new(ErrorKind::Exists, "the drive has another object of that name"));
            }
        };
        let crc64 = self.send(&session, urls, content.parts.clone()).await?;
        let meta = drive.complete(&session, &ExpectedContent { crc64: Some(crc64), ..expected }).await?;
        Ok(CommitOutcome { meta, method: CommitMethod::Uploaded, target: self.target.clone() })
    }

    async fn send(
        &self,
        session: &UploadSession,
        mut urls: Vec<PartUrl>,
        mut parts: Vec<HashedPart>,
    ) -> Result<u64> {
        let (context, in_flight) = (self.context.clone(), self.in_flight.clone());
        let transfer = self.transfer.clone();
        transfer.restarted();
        if parts.len() > 1 {
            return upload_parts(context, session, urls, parts, in_flight, transfer).await;
        }
        // Most files are small: one part needs no task of its own.
        let (Some(part), Some(url)) = (parts.pop(), urls.pop()) else {
            return Err(Error::new(ErrorKind::Protocol, "the service returned no URL for a part"));
        };
        let upload = PartUpload::new(context, in_flight, transfer, session.clone(), part);
        upload.run(url).await.map(|(_, _, crc64)| crc64)
    }
}

fn already_run() -> Error {
    Error::new(ErrorKind::Cancelled, "a commit ran twice")
}

/// Hashes parts in order: small ones in memory on this thread, others on blocking threads.
async fn hash_parts(parts: Vec<FrozenPart>, transfer: &Transfer) -> Result<HashedContent> {
    let mut rolling = RollingSha1::default();
    let (mut size, mut hashed) = (0, Vec::with_capacity(parts.len()));
    for part in parts {
        // Part sizes are multiples of 64, so there is a midstate at every boundary.
        let midstate = rolling.midstate().ok_or_else(off_boundary)?;
        let is_quick = part.bytes <= INLINE_HASH_BYTES_MAX && !part.frames.iter().any(Frame::is_stored);
        rolling = if is_quick {
            transfer.prepared(part.bytes);
            add_all(&part.frames, rolling, RollingSha1::update)?
        } else {
            hash_frames(rolling, &part.frames, |bytes| transfer.prepared(bytes)).await?
        };
        size += part.bytes;
        hashed.push((part, midstate));
    }
    Ok(HashedContent { size, sha1: rolling.digest(), parts: hashed })
}
