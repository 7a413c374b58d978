//! One typed method per endpoint of a drive: what calls mean.
//!
//! *Reconciles by reading* where a call may or may not have been carried out. Answers are checked before they become types.
//! Uploading has its own file, `drive/upload.rs`.

mod attributes;
mod meta;
mod upload;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::config::{MountConfig, RemoveMode};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{DriveId, FileId, RevisionId, Secret};
use crate::pds::auth::AuthState;
use crate::pds::retry::{Failure, Idempotency, RetryPolicy};
use crate::pds::session::Session;
use crate::pds::transport::{GetAnswer, Timeouts};
use crate::pds::types::{
    AsyncResponse, AsyncTask, AsyncTaskRequest, CheckNameMode, CreateRequest, CreateResponse,
    DownloadUrlRequest, DownloadUrlResponse, DriveInfo, DriveRequest, File, FileRequest, FileType,
    ListRequest, ListResponse, MoveRequest, UpdateRequest,
};
use crate::posix::Tags;

pub use attributes::AttrChange;
pub use meta::FileMeta;
pub use upload::{Created, Expected, NewFile, PutOutcome, Upload};

/// Entries per listing page: the largest that the documents allow.
const PAGE_ENTRIES: u32 = 100;
/// Longest lifetime of a download URL (`expire_sec` of `get_download_url`).
pub const DOWNLOAD_URL_LIFETIME_MAX: Duration = Duration::from_secs(115_200);
/// How long a task of the service (trashing a large folder) is waited for.
const TASK_ELAPSED_MAX: Duration = Duration::from_secs(50);

/// One page of a folder.
#[derive(Clone, PartialEq, Debug)]
pub struct Page {
    /// Its entries, in the order of their names.
    pub items: Vec<FileMeta>,
    /// `None` at the end.
    pub next_marker: Option<String>,
}

/// Space on a drive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quota {
    /// `None` is unlimited.
    pub total_bytes: Option<u64>,
    /// In use.
    pub used_bytes: u64,
}

/// Where content can be read for a while.
#[derive(Clone, Debug)]
pub struct DownloadUrl {
    /// Signed.
    pub url: Secret<String>,
    /// When to stop using it.
    pub expires_at: Instant,
    /// The revision that it serves, where the service says so.
    pub revision: Option<RevisionId>,
    /// Bytes of the content, where the service says so.
    pub size: Option<u64>,
}

/// Why a range could not be read.
#[derive(Clone, Debug)]
pub enum RangeError {
    /// The URL has expired: ask for a new one.
    Expired,
    /// Everything else; transient failures have been retried.
    Failed(Error),
}

/// A drive of a domain. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Drive(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    session: Session,
    drive_id: DriveId,
    transfer: RetryPolicy,
    /// Cleared for good when the domain refuses parallel uploads.
    parallel: AtomicBool,
    /// Whether tags mean anything.
    metadata: bool,
    /// Somebody was told that the service tells no hashes.
    told_of_no_hash: AtomicBool,
}

impl Drive {
    /// A drive as configured; no call is made yet.
    pub fn new(config: &MountConfig) -> Result<Self> {
        let timeouts = Timeouts {
            connect: Duration::from_secs(10),
            call: config.call_timeout,
            stall: config.stall_timeout,
        };
        Ok(Self(Arc::new(Inner {
            session: Session::new(&config.endpoint, config.credential.clone(), timeouts)?,
            drive_id: config.drive_id.clone(),
            transfer: RetryPolicy::transfer(config.commit_timeout),
            parallel: AtomicBool::new(true),
            metadata: config.metadata,
            told_of_no_hash: AtomicBool::new(false),
        })))
    }

    /// The drive's id.
    pub fn id(&self) -> &DriveId {
        &self.0.drive_id
    }

    /// Whether the service can be reached, as far as is known.
    pub fn online(&self) -> watch::Receiver<bool> {
        self.0.session.transport().online()
    }

    /// Whether the service can be reached now, as far as is known.
    pub fn is_online(&self) -> bool {
        self.0.session.transport().is_online()
    }

    /// Bytes of parts that connections have taken, those of repeated attempts too. Grows while
    /// anything is sent.
    pub fn bytes_moved(&self) -> u64 {
        self.0.session.transport().bytes_moved()
    }

    /// Bytes of content that came, those of repeated attempts too.
    pub fn bytes_read(&self) -> u64 {
        self.0.session.transport().bytes_read()
    }

    /// What the service told of an object, checked.
    fn meta(&self, file: File) -> Result<FileMeta> {
        let mut meta = FileMeta::try_from(file)?;
        if !self.0.metadata {
            meta.posix = None;
        }
        Ok(meta)
    }

    /// Whether the service takes our credential, as far as is known. Uploads wait while it does not.
    pub fn auth_state(&self) -> watch::Receiver<AuthState> {
        self.0.session.auth_state()
    }

    /// Reads the credential again, as after a new login; what waits for it goes on.
    pub async fn reload_credentials(&self) -> Result<()> {
        self.0.session.reload_credentials().await
    }

    /// Stores a renewed token that could not be stored when it came. For who ends the program.
    pub async fn store_credentials(&self) {
        self.0.session.store_credentials().await;
    }

    async fn ask<A: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> std::result::Result<A, Failure> {
        self.0.session.call(path, Idempotency::Safe, RetryPolicy::INTERACTIVE, body).await
    }

    /// One page of a folder, ordered by name; `marker` is empty for the first one.
    pub async fn list_page(&self, parent: &FileId, marker: &str) -> Result<Page> {
        let request = ListRequest {
            drive_id: self.id(),
            parent_file_id: parent,
            limit: PAGE_ENTRIES,
            marker,
            order_by: "name",
            order_direction: "ASC",
            fields: "*",
        };
        let page: ListResponse = self.ask("/v2/file/list", &request).await?;
        let mut items = Vec::with_capacity(page.items.len());
        for file in page.items {
            match self.meta(file) {
                Ok(meta) => items.push(meta),
                Err(error) => tracing::warn!(%error, "an entry of a listing cannot be shown"),
            }
        }
        Ok(Page { items, next_marker: Some(page.next_marker).filter(|m| !m.is_empty()) })
    }

    /// One object. `NotFound` where it is gone, in the recycle bin, or still uploading.
    pub async fn get(&self, file: &FileId) -> Result<FileMeta> {
        self.get_by(RetryPolicy::INTERACTIVE, file).await
    }

    /// The same for a commit: it waits as long as an upload does.
    pub async fn newest(&self, file: &FileId) -> Result<FileMeta> {
        self.get_by(self.0.transfer, file).await
    }

    async fn get_by(&self, policy: RetryPolicy, file: &FileId) -> Result<FileMeta> {
        let request = FileRequest { drive_id: self.id(), file_id: file };
        let file: File = self.0.session.call("/v2/file/get", Idempotency::Safe, policy, &request).await?;
        self.meta(file)
    }

    /// The folder of this name in another one; the one that changed last, where several have it.
    pub async fn folder_of(&self, parent: &FileId, name: &str) -> Result<FileId> {
        let mut found: Option<FileMeta> = None;
        let mut marker = String::new();
        loop {
            let page = self.list_page(parent, &marker).await?;
            let named = page.items.into_iter().filter(|item| item.name == name);
            let folders = named.filter(|item| item.kind == FileType::Folder);
            found = found.into_iter().chain(folders).max_by_key(|folder| folder.changed_at);
            match page.next_marker {
                Some(next) if next != marker => marker = next,
                _ => break,
            }
        }
        let missing = || Error::new(ErrorKind::NotFound, format!("there is no folder {name:?} on the drive"));
        found.map(|folder| folder.file_id).ok_or_else(missing)
    }

    /// Makes a folder with these tags; `Exists` where the name is taken.
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
                "/v2/file/create",
                Idempotency::Once,
                RetryPolicy::INTERACTIVE,
                &request,
            )
        };
        let mut perhaps_ours = false;
        let mut answer = attempt().await;
        if matches!(&answer, Err(f) if f.sent == crate::pds::retry::Sent::Maybe) {
            // The first call may have made the folder: then the second one finds it.
            perhaps_ours = true;
            answer = attempt().await;
        }
        let answer = answer?;
        let is_folder = answer.file_type != Some(FileType::File);
        if answer.exist && !(perhaps_ours && is_folder) {
            return Err(Error::new(ErrorKind::Exists, format!("{name:?} exists on the drive")));
        }
        self.get(&answer.file_id).await
    }

    /// To the recycle bin, or away for good. An object that is gone already is a success.
    pub async fn remove(&self, file: &FileId, mode: RemoveMode) -> Result<()> {
        let path = match mode {
            RemoveMode::Trash => "/v2/recyclebin/trash",
            RemoveMode::Delete => "/v2/file/delete",
        };
        let request = FileRequest { drive_id: self.id(), file_id: file };
        match self.ask::<Option<AsyncResponse>>(path, &request).await {
            Ok(answer) => self.finish_task(answer).await,
            Err(failure) if failure.error.kind() == ErrorKind::NotFound => Ok(()),
            Err(failure) => Err(failure.error),
        }
    }

    /// Gives an object another name in its folder. Where that is taken: `Exists`, or (with
    /// [`CheckNameMode::Ignore`]) two siblings of one name.
    pub async fn rename(&self, file: &FileId, name: &str, mode: CheckNameMode) -> Result<FileMeta> {
        let request = UpdateRequest {
            drive_id: self.id(),
            file_id: file,
            name: Some(name),
            check_name_mode: Some(mode),
            local_modified_at: None,
        };
        let meta = match self.ask::<File>("/v2/file/update", &request).await {
            Ok(file) => self.meta(file)?,
            // A second attempt may find the name taken by the first one.
            Err(failure) if failure.error.kind() == ErrorKind::Exists => self.get(file).await?,
            Err(failure) => return Err(failure.error),
        };
        if meta.name == name && meta.file_id == *file {
            return Ok(meta);
        }
        Err(Error::new(ErrorKind::Exists, format!("{name:?} exists on the drive")))
    }

    /// Moves an object to another folder under its name. Where that is taken there: as
    /// [`Self::rename`].
    pub async fn relocate(&self, file: &FileId, to_parent: &FileId, mode: CheckNameMode) -> Result<()> {
        let request = MoveRequest {
            drive_id: self.id(),
            file_id: file,
            to_parent_file_id: to_parent,
            check_name_mode: mode,
        };
        let taken = match self.ask::<Option<AsyncResponse>>("/v2/file/move", &request).await {
            Ok(Some(answer)) if answer.exist => {
                Error::new(ErrorKind::Exists, "the name exists in that folder")
            }
            Ok(answer) => return self.finish_task(answer).await,
            Err(failure) if failure.error.kind() == ErrorKind::Exists => failure.error,
            Err(failure) => return Err(failure.error),
        };
        // A second attempt may find the name taken by the first one.
        if self.get(file).await?.parent_id.as_ref() == Some(to_parent) { Ok(()) } else { Err(taken) }
    }

    /// Space of the drive.
    pub async fn quota(&self) -> Result<Quota> {
        let drive: DriveInfo = self.ask("/v2/drive/get", &DriveRequest { drive_id: self.id() }).await?;
        Ok(Quota {
            total_bytes: u64::try_from(drive.total_size).ok(),
            used_bytes: u64::try_from(drive.used_size).unwrap_or(0),
        })
    }

    /// A URL to read a revision (`None`: the newest) for so long, at most
    /// [`DOWNLOAD_URL_LIFETIME_MAX`].
    pub async fn download_url(
        &self,
        file: &FileId,
        revision: Option<&RevisionId>,
        lifetime: Duration,
    ) -> Result<DownloadUrl> {
        let request = DownloadUrlRequest {
            drive_id: self.id(),
            file_id: file,
            revision_id: revision,
            expire_sec: lifetime.as_secs() as u32,
        };
        let asked_at = Instant::now();
        let (path, policy) = ("/v2/file/get_download_url", RetryPolicy::READING);
        let answer: DownloadUrlResponse =
            self.0.session.call(path, Idempotency::Safe, policy, &request).await?;
        Ok(DownloadUrl {
            url: Secret::new(answer.url),
            expires_at: asked_at + lifetime,
            revision: answer.revision_id,
            size: answer.size,
        })
    }

    /// Exactly the bytes of `range`, which must not be empty.
    pub async fn read_range(
        &self,
        url: &DownloadUrl,
        range: Range<u64>,
    ) -> std::result::Result<Bytes, RangeError> {
        let answer = self
            .0
            .session
            .transport()
            .get_range(&url.url, range.start, range.end, RetryPolicy::READING)
            .await;
        match answer {
            Ok(GetAnswer::Bytes(bytes, total)) => match (total, url.size) {
                (Some(total), Some(size)) if total != size => {
                    let detail = format!("the content has {total} bytes, not the {size} that were announced");
                    Err(RangeError::Failed(Error::new(ErrorKind::Stale, detail)))
                }
                _ => Ok(bytes),
            },
            Ok(GetAnswer::Expired) => Err(RangeError::Expired),
            Err(failure) => Err(RangeError::Failed(failure.error)),
        }
    }

    /// Waits for a task that the service goes on with after its answer.
    async fn finish_task(&self, answer: Option<AsyncResponse>) -> Result<()> {
        let Some(id) = answer.map(|a| a.async_task_id).filter(|id| !id.is_empty()) else {
            return Ok(());
        };
        let start = Instant::now();
        let mut pause = Duration::from_millis(50);
        loop {
            let task: AsyncTask =
                self.ask("/v2/async_task/get", &AsyncTaskRequest { async_task_id: &id }).await?;
            match task.state.as_str() {
                "Succeed" => return Ok(()),
                "Failed" | "PartialSucceed" => {
                    let detail = format!("the service gave up: {} {}", task.error_code, task.error_message);
                    return Err(Error::new(ErrorKind::Io, detail));
                }
                _ if start.elapsed() > TASK_ELAPSED_MAX => {
                    let detail = "the service has not finished; it goes on by itself";
                    return Err(Error::new(ErrorKind::Timeout, detail));
                }
                // There is no event to wait for: the API offers polling only.
                _ => tokio::time::sleep(pause).await,
            }
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }
}
