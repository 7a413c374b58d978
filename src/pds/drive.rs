//! The calls of a drive: one typed method per endpoint.
//!
//! If the outcome of a call is unknown, the method reads the object to find out. Answers are checked before
//! they become types. Uploads, downloads and attributes have their own files in `drive/`.

mod attributes;
mod bin_usage;
mod create;
mod dialect;
mod download;
mod folder_search;
mod listing;
mod meta;
mod recycle_bin;
mod revisions;
mod subfolder_listings;
mod upload;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::clock;
use crate::config::{MountConfig, RemoveMode};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{DriveId, FileId, RevisionId};
use crate::messages::Cause;
use crate::pds::listing_bounds::ListingBounds;
use crate::pds::retry::{Delivery, Idempotency, RequestFailure, RetryPolicy};
use crate::pds::session::Session;
use crate::pds::tokens::AuthState;
use crate::pds::transport::{ExtraRoots, TransportLimits, TrustedPeers};
use crate::pds::types::{
    AsyncResponse, AsyncTask, AsyncTaskRequest, CheckNameMode, CreateRequest, CreateResponse, DriveInfo,
    DriveRequest, File, FileRequest, FileType, MoveRequest, UpdateRequest,
};
use crate::posix::{ParsedTags, Posix, Tags};
use crate::units::exact_duration;

pub use crate::pds::transport::{CallPriority, ObjectInfo, OpenBody, RangeRequest};
pub use attributes::AttrChange;
pub use bin_usage::BinUsage;
pub use create::{CreateOutcome, NewFile, UploadSession};
pub use download::{DOWNLOAD_URL_LIFETIME_MAX, DownloadUrl, RangeError};
pub use meta::FileMeta;
pub use recycle_bin::Recycled;
pub use revisions::Revision;
pub use upload::{ExpectedContent, PutOutcome};

use dialect::Dialect;

/// How long to wait for an asynchronous task of the service, such as trashing a large folder.
const TASK_ELAPSED_MAX: Duration = Duration::from_secs(50);

/// The space of a drive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quota {
    /// `None` if unlimited.
    pub total_bytes: Option<u64>,
    pub used_bytes: u64,
}

/// A drive of a domain. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Drive(Arc<DriveInner>);

#[derive(Debug)]
struct DriveInner {
    session: Session,
    drive_id: DriveId,
    /// The retry policy of uploads and commits.
    transfer: RetryPolicy,
    /// Whether POSIX attributes are kept in user tags (setting `metadata`).
    keeps_metadata: bool,
    dialect: Dialect,
    subfolder_listings: subfolder_listings::SubfolderListings,
}

impl Drive {
    /// Makes no call yet.
    pub fn new(config: &MountConfig) -> Result<Self> {
        let limits = TransportLimits {
            connect: Duration::from_secs(10),
            call: config.options.call_timeout,
            idle: config.options.stall_timeout,
            calls_max: config.options.concurrent_calls,
        };
        let peers = TrustedPeers {
            roots: ExtraRoots::read(config.options.ca_file.as_deref())?,
            content_hosts: config.options.content_hosts.clone(),
        };
        Ok(Self(Arc::new(DriveInner {
            session: Session::new(&config.endpoint, config.credential.clone(), limits, peers)?,
            drive_id: config.drive_id.clone(),
            transfer: RetryPolicy::transfer(config.options.commit_timeout),
            keeps_metadata: config.options.metadata,
            dialect: Dialect::default(),
            subfolder_listings: subfolder_listings::SubfolderListings::default(),
        })))
    }

    pub fn id(&self) -> &DriveId {
        &self.0.drive_id
    }

    pub fn online(&self) -> watch::Receiver<bool> {
        self.0.session.transport().online()
    }

    /// Why the service cannot be reached, while it cannot.
    pub fn outage(&self) -> Cause {
        self.0.session.transport().outage()
    }

    pub fn is_online(&self) -> bool {
        self.0.session.transport().is_online()
    }

    /// Fails all calls from now on: the service is gone for good.
    #[cfg(feature = "server")]
    pub fn abandon(&self, why: &str) {
        self.0.session.transport().abandon(why);
    }

    /// Bytes of parts that connections have accepted, including repeated attempts. Grows during every upload.
    pub fn bytes_uploaded(&self) -> u64 {
        self.0.session.transport().bytes_uploaded()
    }

    /// Bytes of content that were received, including repeated attempts.
    pub fn bytes_downloaded(&self) -> u64 {
        self.0.session.transport().bytes_downloaded()
    }

    fn meta(&self, file: File) -> Result<FileMeta> {
        let hash_name = file.content_hash_name.clone();
        let mut meta = FileMeta::try_from(file)?;
        if meta.kind == FileType::File {
            self.0.dialect.note_hash(&meta.file_id, meta.has_hash(), hash_name.as_deref());
        }
        if !self.0.keeps_metadata {
            meta.posix = None;
        }
        Ok(meta)
    }

    /// Uploads are parked while the credential is revoked.
    pub fn auth_state(&self) -> watch::Receiver<AuthState> {
        self.0.session.auth_state()
    }

    /// Reads the credential again after a new login. Parked calls continue.
    pub async fn reload_credentials(&self) -> Result<()> {
        self.0.session.reload_credentials().await
    }

    /// Tries once more to store a refreshed token that could not be stored. Called before the process exits.
    pub async fn store_credentials(&self) {
        self.0.session.store_credentials().await;
    }

    /// An idempotent call that blocks a program or the kernel.
    async fn call_safe<A: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> std::result::Result<A, RequestFailure> {
        let call = (path, CallPriority::Lookup);
        self.0.session.call(call, Idempotency::Safe, RetryPolicy::INTERACTIVE, body).await
    }

    /// `NotFound` if the object is deleted, in the recycle bin, or still uploading.
    pub async fn get(&self, file: &FileId) -> Result<FileMeta> {
        self.get_with(RetryPolicy::INTERACTIVE, CallPriority::Lookup, file).await
    }

    /// The object unless it is in the recycle bin, deleted, or still uploading.
    pub async fn get_live(&self, file: &FileId) -> Result<Option<FileMeta>> {
        let request = FileRequest { drive_id: self.id(), file_id: file };
        match self.call_safe::<File>("/v2/file/get", &request).await {
            Ok(file) if file.trashed_at.is_some() || file.trashed == Some(true) => Ok(None),
            Ok(file) => self.meta(file).map(Some),
            Err(failure) if failure.error.kind() == ErrorKind::NotFound => Ok(None),
            Err(failure) => Err(failure.error),
        }
    }

    /// Like [`Self::get`], and no program waits.
    pub async fn get_ahead(&self, file: &FileId) -> Result<FileMeta> {
        self.get_with(RetryPolicy::INTERACTIVE, CallPriority::ReadAhead, file).await
    }

    /// Like [`Self::get`], for a commit.
    pub async fn get_latest(&self, file: &FileId) -> Result<FileMeta> {
        self.get_with(self.0.transfer, CallPriority::Commit, file).await
    }

    async fn get_with(&self, policy: RetryPolicy, priority: CallPriority, file: &FileId) -> Result<FileMeta> {
        let request = FileRequest { drive_id: self.id(), file_id: file };
        let file: File =
            self.0.session.call(("/v2/file/get", priority), Idempotency::Safe, policy, &request).await?;
        self.meta(file)
    }

    /// The child folder of this name. If several have it, the one that was changed last.
    pub async fn find_folder(&self, parent: &FileId, name: &str) -> Result<FileId> {
        let mut found: Option<FileMeta> = None;
        let (mut bounds, mut marker) = (ListingBounds::default(), String::new());
        loop {
            let page = self.list_page(parent, &marker).await?;
            let next = bounds.check(page.items.iter().map(FileMeta::bytes), page.next_marker)?;
            let named = page.items.into_iter().filter(|item| item.name == name);
            let folders = named.filter(|item| item.kind == FileType::Folder);
            found = found.into_iter().chain(folders).max_by_key(|folder| folder.changed_at);
            match next {
                Some(next) => marker = next,
                None => break,
            }
        }
        let missing = || Error::new(ErrorKind::NotFound, format!("no folder {name:?} on the drive"));
        found.map(|folder| folder.file_id).ok_or_else(missing)
    }

    /// Creates a folder with these tags. `Exists` if the name is taken.
    pub async fn create_folder(&self, parent: &FileId, name: &str, tags: &Tags) -> Result<FileMeta> {
        let request = CreateRequest {
            drive_id: self.id(),
            parent_file_id: parent,
            name,
            file_type: FileType::Folder,
            check_name_mode: CheckNameMode::Refuse,
            file_id: None,
            size: None,
            parallel_upload: None,
            part_info_list: Vec::new(),
            content_hash: None,
            content_hash_name: None,
            local_modified_at: None,
            user_tags: self.user_tags(tags),
        };
        let attempt = || {
            self.0.session.call::<CreateResponse>(
                ("/v2/file/create", CallPriority::Lookup),
                Idempotency::Once,
                RetryPolicy::INTERACTIVE,
                &request,
            )
        };
        let mut may_be_ours = false;
        let mut answer = attempt().await;
        if matches!(&answer, Err(f) if f.delivery == Delivery::Unknown) {
            // The first attempt may have created the folder, which the second one then finds.
            may_be_ours = true;
            answer = attempt().await;
        }
        let answer = answer?;
        let is_folder = answer.file_type != Some(FileType::File);
        if answer.exist && !(may_be_ours && is_folder) {
            return Err(Error::new(ErrorKind::Exists, format!("{name:?} already exists on the drive")));
        }
        if may_be_ours {
            return self.get(&answer.file_id).await;
        }
        let (now, posix) = (clock::now(), self.kept_posix(tags));
        Ok(FileMeta {
            file_id: answer.file_id,
            parent_id: Some(parent.clone()),
            name: answer.file_name.unwrap_or_else(|| name.to_owned()),
            kind: FileType::Folder,
            size: 0,
            mtime: now,
            changed_at: now,
            created_at: now,
            revision: None,
            sha1: None,
            crc64: None,
            posix,
        })
    }

    /// The attributes that an object has after it was created with these tags.
    fn kept_posix(&self, tags: &Tags) -> Option<Arc<Posix>> {
        let kept = tags.clone().into_iter().filter(|_| self.0.keeps_metadata).collect();
        ParsedTags::parse(kept).posix
    }

    /// Moves an object to the recycle bin or deletes it permanently. Succeeds if it does not exist.
    pub async fn remove(&self, file: &FileId, mode: RemoveMode) -> Result<()> {
        let path = match mode {
            RemoveMode::Trash => "/v2/recyclebin/trash",
            RemoveMode::Delete => "/v2/file/delete",
        };
        let request = FileRequest { drive_id: self.id(), file_id: file };
        match self.call_safe::<Option<AsyncResponse>>(path, &request).await {
            Ok(answer) => self.finish_task(answer).await,
            Err(failure) if failure.error.kind() == ErrorKind::NotFound => Ok(()),
            Err(failure) => Err(failure.error),
        }
    }

    /// Renames an object in its folder. If the name is taken: `Exists`, or with [`CheckNameMode::Ignore`] two
    /// siblings of one name.
    pub async fn rename(&self, file: &FileId, name: &str, mode: CheckNameMode) -> Result<FileMeta> {
        let request = UpdateRequest {
            drive_id: self.id(),
            file_id: file,
            name: Some(name),
            check_name_mode: Some(mode),
            local_modified_at: None,
        };
        let meta = match self.call_safe::<File>("/v2/file/update", &request).await {
            Ok(file) => self.meta(file)?,
            // A second attempt may find that the first one has taken the name.
            Err(failure) if failure.error.kind() == ErrorKind::Exists => self.get(file).await?,
            Err(failure) => return Err(failure.error),
        };
        if meta.name == name && meta.file_id == *file {
            return Ok(meta);
        }
        Err(Error::new(ErrorKind::Exists, format!("{name:?} already exists on the drive")))
    }

    /// Moves an object as it was known as `meta` to another folder. Returns it as it is there.
    pub async fn moved_to(
        &self,
        meta: &FileMeta,
        to_parent: &FileId,
        mode: CheckNameMode,
    ) -> Result<FileMeta> {
        let revision = self.move_to(&meta.file_id, to_parent, mode).await?;
        // A file may have other content by now, unless the answer says which.
        if meta.kind == FileType::File && (revision.is_none() || revision != meta.revision) {
            return self.get(&meta.file_id).await;
        }
        Ok(FileMeta { parent_id: Some(to_parent.clone()), changed_at: clock::now(), ..meta.clone() })
    }

    /// Moves an object to another folder under its name. If that is taken: as [`Self::rename`]. Returns its
    /// revision, if the service reports it.
    pub async fn move_to(
        &self,
        file: &FileId,
        to_parent: &FileId,
        mode: CheckNameMode,
    ) -> Result<Option<RevisionId>> {
        let request = MoveRequest {
            drive_id: self.id(),
            file_id: file,
            to_parent_file_id: to_parent,
            check_name_mode: mode,
        };
        let taken = match self.call_safe::<Option<AsyncResponse>>("/v2/file/move", &request).await {
            Ok(Some(answer)) if answer.exist => {
                Error::new(ErrorKind::Exists, "the name already exists in the target folder")
            }
            Ok(answer) => {
                let revision = answer.as_ref().and_then(|answer| answer.revision_id.clone());
                return self.finish_task(answer).await.map(|()| revision);
            }
            Err(failure) if failure.error.kind() == ErrorKind::Exists => failure.error,
            Err(failure) => return Err(failure.error),
        };
        // A second attempt may find that the first one has taken the name.
        let meta = self.get(file).await?;
        if meta.parent_id.as_ref() == Some(to_parent) { Ok(meta.revision) } else { Err(taken) }
    }

    async fn info(&self) -> Result<DriveInfo> {
        Ok(self.call_safe("/v2/drive/get", &DriveRequest { drive_id: self.id() }).await?)
    }

    /// Whether the drive belongs to a group (a team drive), not to one user.
    pub async fn is_of_group(&self) -> Result<bool> {
        Ok(self.info().await?.owner_type == "group")
    }

    pub async fn quota(&self) -> Result<Quota> {
        let drive = self.info().await?;
        Ok(Quota {
            total_bytes: u64::try_from(drive.total_size).ok().filter(|total| *total > 0),
            used_bytes: u64::try_from(drive.used_size).unwrap_or(0),
        })
    }

    /// Waits for the asynchronous task of an answer, if there is one.
    async fn finish_task(&self, answer: Option<AsyncResponse>) -> Result<()> {
        let Some(id) = answer.map(|a| a.async_task_id).filter(|id| !id.is_empty()) else {
            return Ok(());
        };
        let start = Instant::now();
        let mut pause = Duration::from_millis(50);
        loop {
            let task: AsyncTask =
                self.call_safe("/v2/async_task/get", &AsyncTaskRequest { async_task_id: &id }).await?;
            match if task.state.is_empty() { &task.status } else { &task.state }.as_str() {
                "Succeed" => return Ok(()),
                "Failed" | "PartialSucceed" => {
                    let detail = format!(
                        "the service did not finish the operation: {} {}",
                        task.error_code, task.error_message
                    );
                    return Err(Error::new(ErrorKind::Io, detail));
                }
                _ if start.elapsed() > TASK_ELAPSED_MAX => {
                    let detail = format!(
                        "the service has not finished the operation within {}; it continues there",
                        exact_duration(TASK_ELAPSED_MAX)
                    );
                    return Err(Error::new(ErrorKind::Timeout, detail));
                }
                // The API offers polling only.
                _ => tokio::time::sleep(pause).await,
            }
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }
}
