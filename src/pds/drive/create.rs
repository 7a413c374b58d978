//! The call `create` for files: an upload session, or an instant upload.
//!
//! An upload is invisible to other clients until `complete`. So a `create` whose answer was lost is sent again, and
//! the first upload session expires.

use std::time::SystemTime;

use super::dialect::CreateForm;
use super::{Drive, FileMeta, meta};
use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, PartNumber, Sha1Hash, UploadId};
use crate::pds::retry::{Delivery, Idempotency, RequestFailure, RetryPolicy};
use crate::pds::transport::CallPriority;
use crate::pds::types::{CheckNameMode, CreateRequest, CreateResponse, FileType, PartUrl};
use crate::posix::{self, Tags};
use crate::rolling_sha1::Sha1Midstate;

/// The parameters of a `create` call for a file.
#[derive(Clone, Debug)]
pub struct NewFile<'a> {
    pub parent: &'a FileId,
    pub name: &'a str,
    /// The file that gets a new revision. `None` creates a new file.
    pub overwrite: Option<&'a FileId>,
    /// The behaviour if the name of a new file is taken.
    pub mode: CheckNameMode,
    /// Size and SHA-1 of the whole content, for instant upload.
    pub content: Option<(u64, Sha1Hash)>,
    pub mtime: Option<SystemTime>,
    pub tags: Tags,
    /// The parts to presign URLs for, with the SHA-1 midstate before each. Not empty.
    pub parts: &'a [(PartNumber, Sha1Midstate)],
}

/// An upload begun by `create`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UploadSession {
    /// The file that will get the revision.
    pub file_id: FileId,
    pub upload_id: UploadId,
    /// Parts may be sent in any order, else one at a time in order.
    pub parallel: bool,
    /// The file exists and gets a new revision.
    pub overwrites: bool,
}

/// A file that `create` completed, because the service already had the content.
#[derive(Clone, PartialEq, Debug)]
pub struct InstantUpload {
    pub file_id: FileId,
    /// The file, if the answer says what became of it. The time of its creation is that of the call.
    pub(super) meta: Option<FileMeta>,
    /// The answer says so, or the file is new. Else only a hash shows that the file has the content.
    pub(super) is_certain: bool,
}

/// The result of `create`.
#[derive(Clone, Debug)]
pub enum CreateOutcome {
    /// An upload session, and the presigned URLs in the requested order.
    Session(UploadSession, Vec<PartUrl>),
    /// The service already had the content, so the file is complete.
    InstantUpload(InstantUpload),
    /// Nothing was created, because this object has the name.
    NameTaken(FileId, FileType),
}

impl Drive {
    /// Whether the domain begins no upload without the size of the file.
    pub fn needs_size(&self) -> bool {
        self.0.dialect.needs_size()
    }

    /// Begins an upload. If the domain refuses the form of the call, tries the other forms.
    pub async fn create_file(&self, file: &NewFile<'_>) -> Result<CreateOutcome> {
        self.create_with_policy(file, self.0.transfer).await
    }

    async fn create_with_policy(&self, file: &NewFile<'_>, policy: RetryPolicy) -> Result<CreateOutcome> {
        let mut form = self.0.dialect.create_form();
        loop {
            let failure = match self.create_once(file, form, policy).await {
                Ok(outcome) => {
                    self.0.dialect.learn(form, file.content.map(|(_, sha1)| sha1));
                    return Ok(outcome);
                }
                Err(failure) => failure,
            };
            if file.content.is_none() && self.0.dialect.learn_needs_size(&failure) {
                let why = "the domain demands the size of a file at its beginning, so a file of more than one part \
                           needs a local copy (cache_size)";
                return Err(failure.error.context(why));
            }
            let Some(next) = form.after(&failure, file.content.is_some(), file.mtime.is_some()) else {
                return Err(failure.error);
            };
            tracing::debug!(error = %failure.error, "create is sent again in another form");
            form = next;
        }
    }

    async fn create_once(
        &self,
        file: &NewFile<'_>,
        form: CreateForm,
        policy: RetryPolicy,
    ) -> std::result::Result<CreateOutcome, RequestFailure> {
        let mut tags = file.tags.clone();
        if let Some(mtime) = file.mtime.filter(|_| !form.sends_mtime) {
            tags.extend(posix::unbound_mtime(mtime));
        }
        let sha1 = file.content.map(|(_, sha1)| sha1.to_string()).filter(|_| form.sends_sha1());
        let request = CreateRequest {
            drive_id: self.id(),
            parent_file_id: file.parent,
            name: file.name,
            file_type: FileType::File,
            check_name_mode: file.mode,
            file_id: file.overwrite,
            size: file.content.map(|(size, _)| size),
            parallel_upload: Some(form.parallel),
            part_info_list: form.part_requests(file.parts),
            content_hash_name: sha1.is_some().then_some("sha1"),
            content_hash: sha1,
            local_modified_at: file.mtime.filter(|_| form.sends_mtime).and_then(meta::wire_time),
            user_tags: self.user_tags(&tags),
        };
        let answer: CreateResponse = self
            .0
            .session
            .call(("/v2/file/create", CallPriority::Commit), Idempotency::Safe, policy, &request)
            .await?;
        if answer.exist && file.overwrite.is_none() {
            return Ok(CreateOutcome::NameTaken(answer.file_id, answer.file_type.unwrap_or(FileType::File)));
        }
        if file.overwrite.is_some_and(|target| *target != answer.file_id) {
            return Err(invalid_answer("create: the answer is about another file than the one to overwrite"));
        }
        let is_available = answer.status.as_deref() == Some("available") && answer.upload_id.is_none();
        if answer.rapid_upload || is_available && !answer.exist {
            let is_certain = answer.rapid_upload || file.overwrite.is_none();
            let meta = self.instant_meta(file, &answer);
            let instant = InstantUpload { file_id: answer.file_id, meta, is_certain };
            return Ok(CreateOutcome::InstantUpload(instant));
        }
        if answer.exist && answer.upload_id.is_none() {
            return Err(refused_overwrite(file.name));
        }
        let Some(upload_id) = answer.upload_id else {
            return Err(invalid_answer("create: the answer has neither an upload_id nor a complete file"));
        };
        check_urls(file.parts.iter().map(|(number, _)| *number), &answer.part_info_list)?;
        Ok(CreateOutcome::Session(
            UploadSession {
                file_id: answer.file_id,
                upload_id,
                parallel: form.parallel,
                overwrites: file.overwrite.is_some(),
            },
            answer.part_info_list,
        ))
    }

    /// The file of an instant upload. `None` if the answer does not say enough.
    fn instant_meta(&self, file: &NewFile<'_>, answer: &CreateResponse) -> Option<FileMeta> {
        let revision = answer.revision_id.clone().filter(|_| answer.rapid_upload)?;
        let ((size, sha1), now) = (file.content?, clock::now());
        // An overwritten file may be elsewhere.
        let parent = answer.parent_file_id.as_ref();
        let parent = if file.overwrite.is_none() { parent.unwrap_or(file.parent) } else { parent? };
        let at_resolution =
            |mtime| if self.0.keeps_metadata { mtime } else { posix::at_drive_resolution(mtime) };
        Some(FileMeta {
            file_id: answer.file_id.clone(),
            parent_id: Some(parent.clone()),
            name: answer.file_name.clone().unwrap_or_else(|| file.name.to_owned()),
            kind: FileType::File,
            size,
            mtime: file.mtime.map_or(now, at_resolution),
            changed_at: now,
            created_at: now,
            revision: Some(revision),
            sha1: Some(sha1),
            crc64: None,
            posix: self.kept_posix(&file.tags),
        })
    }

    /// A file that an instant upload made of `former`. Some services keep the former tags beside the new ones.
    pub(super) fn overwritten(&self, meta: FileMeta, former: &FileMeta) -> FileMeta {
        let mut tags = former.tags();
        tags.extend(meta.tags());
        FileMeta { created_at: former.created_at, posix: self.kept_posix(&tags), ..meta }
    }

    /// Gives `target` a new revision with the content of `source` by instant upload. `None` if the service
    /// does not support that; then nothing has changed.
    pub async fn replace(&self, target: &FileMeta, source: &FileMeta) -> Result<Option<FileMeta>> {
        let sha1 = source.sha1.filter(|_| self.0.dialect.create_form().sends_sha1());
        let (Some(sha1), Some(parent)) = (sha1, &target.parent_id) else {
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
            parts: &[(PartNumber::FIRST, Sha1Midstate::START)],
        };
        // A program waits for the rename: it fails if the credential is revoked, and in a long outage.
        let outage_max = RetryPolicy::INTERACTIVE.outage_max;
        let policy = RetryPolicy { waits_for_login: false, outage_max, ..self.0.transfer };
        let created = match self.create_with_policy(&file, policy).await {
            // Some domains refuse to overwrite in this mode.
            Err(error) if error.kind() == ErrorKind::Exists => return Ok(None),
            created => created?,
        };
        let CreateOutcome::InstantUpload(instant) = created else { return Ok(None) };
        if let Some(meta) = instant.meta {
            return Ok(Some(FileMeta { crc64: source.crc64, ..self.overwritten(meta, target) }));
        }
        let meta = self.get(&instant.file_id).await?;
        if meta.size != source.size || meta.sha1 != Some(sha1) {
            return Err(Error::new(
                ErrorKind::Integrity,
                "the file has different content after the instant upload",
            ));
        }
        Ok(Some(meta))
    }
}

/// There must be one URL per part, in the requested order.
pub(super) fn check_urls(
    requested: impl ExactSizeIterator<Item = PartNumber>,
    returned: &[PartUrl],
) -> std::result::Result<(), RequestFailure> {
    if requested.len() == returned.len() && requested.eq(returned.iter().map(|url| url.part_number)) {
        return Ok(());
    }
    Err(invalid_answer("the service returned URLs for other parts than requested"))
}

fn invalid_answer(detail: &str) -> RequestFailure {
    final_failure(Error::new(ErrorKind::Protocol, detail))
}

fn final_failure(error: Error) -> RequestFailure {
    RequestFailure {
        status: None,
        error,
        code: String::new(),
        delivery: Delivery::Answered,
        retry_after: None,
    }
}

fn refused_overwrite(name: &str) -> RequestFailure {
    let detail = format!("create: the service did not overwrite {name:?}; save the file under another name");
    final_failure(Error::new(ErrorKind::Exists, detail))
}
