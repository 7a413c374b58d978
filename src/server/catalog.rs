//! The metadata: drives, folders, files, uploads, blobs, the change feed and tokens.
//!
//! The whole catalog is in memory, and a database file has a copy. A call takes the lock, validates, changes
//! memory and queues the changed records; its response waits until they are stored. One lock guards the
//! state, and it is never held across an await.

mod archives;
mod complete;
pub(super) mod database;
mod feed;
mod index;
mod load;
mod objects;
pub(super) mod records;
mod revisions;
mod share_records;
mod shares;
mod trash;
mod uploads;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use serde::Serialize;

use self::database::{Change, Table, Write, WriteQueue};
use self::index::Folder;
use self::records::{Archive, CatalogOp, Delta, DriveRecord, Node, Token, Upload};
use self::share_records::Shares;
use super::blobs::Blob;
use super::clock::auto_rename_stamp;
use super::config::{Quirks, ServerConfig};
use super::errors::ServiceError;
use crate::ids::{DriveId, FileId, UploadId};
use crate::pds::types::CheckNameMode;

pub(super) use self::archives::ArchiveEntry;
pub(super) use self::complete::PendingComplete;
pub(super) use self::feed::Changed;
pub(super) use self::index::{Marker, SortOrder, compare};
pub(super) use self::load::open;
pub(super) use self::objects::Edits;
pub(super) use self::share_records::{Share, ShareSettings, ShareStatus, ShareUse};
pub(super) use self::uploads::{CreateResult, NewUpload};

#[derive(Debug)]
pub(super) struct Catalog {
    /// A leaf lock. Held while the catalog changes in memory; the database thread writes afterwards.
    state: Mutex<CatalogState>,
    /// Notified at the end of every `complete`. Another `complete` of the same upload waits for it.
    pub(super) complete_ended: tokio::sync::Notify,
}

/// A blob and the number of revisions that refer to it.
#[derive(Debug)]
struct BlobEntry {
    blob: Arc<Blob>,
    revisions: u64,
}

/// The catalog in memory. Methods that change it add the changed records to `change`.
#[derive(Debug)]
pub(super) struct CatalogState {
    quirks: Quirks,
    quota_bytes: Option<u64>,
    drives: BTreeMap<DriveId, DriveRecord>,
    /// Ordered by id, for `file/scan`. The root folders have no node.
    nodes: BTreeMap<FileId, Node>,
    /// Listings by drive and folder, without the objects in the recycle bin.
    folders: HashMap<(DriveId, FileId), Folder>,
    recycle_bin: HashMap<DriveId, BTreeSet<(i64, FileId)>>,
    uploads: HashMap<UploadId, Upload>,
    blobs: HashMap<String, BlobEntry>,
    /// Sizes of the blobs by the SHA-1 of their first KiB.
    sizes_by_pre_hash: HashMap<String, Vec<u64>>,
    deltas: VecDeque<Delta>,
    next_seq: u64,
    tokens: HashMap<String, Token>,
    shares: Shares,
    /// Asynchronous tasks, with the number of polls that still return `Running`.
    tasks: HashMap<String, u32>,
    archives: HashMap<String, Archive>,
    meta: HashMap<String, Vec<u8>>,
    /// The records changed by the current call.
    change: Change,
    /// `None` once the server is stopping.
    write_queue: Option<WriteQueue>,
}

impl Catalog {
    fn new(state: CatalogState) -> Self {
        Self { state: Mutex::new(state), complete_ended: tokio::sync::Notify::new() }
    }

    pub(super) fn read<T>(&self, look: impl FnOnce(&CatalogState) -> T) -> T {
        look(&self.lock())
    }

    /// Changes memory only, for state that need not survive a restart.
    pub(super) fn change_in_memory<T>(&self, touch: impl FnOnce(&mut CatalogState) -> T) -> T {
        let mut state = self.lock();
        let out = touch(&mut state);
        debug_assert!(state.change.is_empty(), "a change that is not stored");
        out
    }

    /// Changes memory, and waits until the change is stored. Invariant: `change` returns an error only before
    /// it has changed anything.
    pub(super) async fn change<T>(
        &self,
        change: impl FnOnce(&mut CatalogState) -> Result<T, ServiceError>,
    ) -> Result<T, ServiceError> {
        self.change_and_wait_if(change, |_| true).await
    }

    /// Like [`Self::change`], but waits for the disk only if `must_wait` returns true for the outcome.
    pub(super) async fn change_and_wait_if<T>(
        &self,
        change: impl FnOnce(&mut CatalogState) -> Result<T, ServiceError>,
        must_wait: impl FnOnce(&T) -> bool,
    ) -> Result<T, ServiceError> {
        let (out, stored) = self.queue(change, must_wait)?;
        if let Some(stored) = stored {
            stored.await.map_err(|_| ServiceError::internal("cannot write the catalog"))?;
        }
        Ok(out)
    }

    /// Like [`Self::change`], without waiting for the disk: for changes that a crash may lose, because no
    /// file was acknowledged yet. Changes reach the disk in order, so waiting for a later change covers this
    /// one.
    pub(super) fn change_no_wait<T>(
        &self,
        change: impl FnOnce(&mut CatalogState) -> Result<T, ServiceError>,
    ) -> Result<T, ServiceError> {
        self.queue(change, |_| false).map(|(out, _)| out)
    }

    /// Changes memory and queues the records. Returns a receiver if the caller must wait for the disk.
    fn queue<T>(
        &self,
        change: impl FnOnce(&mut CatalogState) -> Result<T, ServiceError>,
        must_wait: impl FnOnce(&T) -> bool,
    ) -> Result<(T, Option<oneshot::Receiver<()>>), ServiceError> {
        let mut state = self.lock();
        if state.write_queue.is_none() {
            return Err(ServiceError::internal("the server is stopping"));
        }
        let out = change(&mut state);
        let queued = std::mem::take(&mut state.change);
        debug_assert!(out.is_ok() || queued.is_empty(), "an error after a change");
        let stored = match &state.write_queue {
            Some(queue) if !queued.is_empty() => {
                let is_awaited = out.as_ref().is_ok_and(must_wait);
                Some(queue.push(queued, is_awaited)).filter(|_| is_awaited)
            }
            _ => None,
        };
        Ok((out?, stored))
    }

    /// Refuses later changes and ends the writing thread.
    pub(super) fn close(&self) {
        self.lock().write_queue = None;
    }

    fn lock(&self) -> MutexGuard<'_, CatalogState> {
        self.state.lock()
    }
}

impl CatalogState {
    fn put_record(&mut self, table: Table, key: &[u8], value: &impl Serialize) -> Result<(), ServiceError> {
        let value = serde_json::to_vec(value).map_err(|e| ServiceError::internal(e.to_string()))?;
        self.change.writes.push(Write { table, key: key.to_vec(), value: Some(value) });
        Ok(())
    }

    fn delete_record(&mut self, table: Table, key: &[u8]) {
        self.change.writes.push(Write { table, key: key.to_vec(), value: None });
    }

    /// The drive, or 404.
    pub(super) fn drive(&self, drive: &DriveId) -> Result<&DriveRecord, ServiceError> {
        self.drives.get(drive).ok_or_else(|| ServiceError::not_found("Drive"))
    }

    pub(super) fn drives(&self) -> impl Iterator<Item = &DriveRecord> {
        self.drives.values()
    }

    pub(super) fn quota_bytes(&self) -> Option<u64> {
        self.quota_bytes
    }

    /// Fails if `bytes` more exceed the quota.
    pub(super) fn check_quota(&self, drive: &DriveId, bytes: u64) -> Result<(), ServiceError> {
        let used = self.drive(drive)?.used_bytes;
        match self.quota_bytes {
            Some(quota) if used.saturating_add(bytes) > quota => {
                Err(ServiceError::quota(self.quirks.quota_status))
            }
            _ => Ok(()),
        }
    }

    /// An object that is neither in the recycle bin nor below a folder in it.
    pub(super) fn live(&self, drive: &DriveId, file: &FileId) -> Result<&Node, ServiceError> {
        self.drive(drive)?;
        let node = self.node(drive, file)?;
        if !self.is_trashed(node) {
            return Ok(node);
        }
        Err(if self.quirks.trashed_is_forbidden {
            ServiceError::new(403, "ForbiddenFileInTheRecycleBin", "file in the recycle bin is forbidden")
        } else {
            ServiceError::not_found("File")
        })
    }

    /// An object, also one in the recycle bin.
    pub(super) fn node(&self, drive: &DriveId, file: &FileId) -> Result<&Node, ServiceError> {
        self.nodes
            .get(file)
            .filter(|node| node.drive_id == *drive)
            .ok_or_else(|| ServiceError::not_found("File"))
    }

    fn is_trashed(&self, node: &Node) -> bool {
        let mut at = node;
        loop {
            if at.trashed_ms.is_some() {
                return true;
            }
            // The root has no node. Folders cannot be moved below themselves, so the loop ends.
            match self.nodes.get(&at.parent) {
                Some(above) => at = above,
                None => return false,
            }
        }
    }

    /// Fails unless `folder` is the root or a folder outside the recycle bin.
    pub(super) fn check_folder(&self, drive: &DriveId, folder: &FileId) -> Result<(), ServiceError> {
        self.drive(drive)?;
        if folder.as_str() == "root" || self.live(drive, folder)?.is_folder() {
            return Ok(());
        }
        Err(ServiceError::invalid("parent_file_id", "It is not a folder."))
    }

    /// The listing of a folder; `None` if it is empty.
    pub(super) fn folder(&self, drive: &DriveId, folder: &FileId) -> Option<&Folder> {
        self.folders.get(&(drive.clone(), folder.clone()))
    }

    fn fold_case(&self, name: &str) -> String {
        if self.quirks.case_insensitive_names { name.to_lowercase() } else { name.to_owned() }
    }

    /// The oldest object with this name in a folder, without `except`.
    pub(super) fn sibling(
        &self,
        drive: &DriveId,
        parent: &FileId,
        name: &str,
        except: Option<&FileId>,
    ) -> Option<&Node> {
        let named = self.folder(drive, parent)?.named(&self.fold_case(name));
        named.iter().filter(|id| Some(*id) != except).find_map(|id| self.nodes.get(id))
    }

    /// Applies `check_name_mode`: the name to use, or the sibling that has the requested one.
    fn resolve_name<'a>(
        &'a self,
        drive: &DriveId,
        parent: &FileId,
        name: &str,
        mode: CheckNameMode,
        except: Option<&FileId>,
        now_ms: i64,
    ) -> Result<String, &'a Node> {
        let Some(sibling) = self.sibling(drive, parent, name, except) else { return Ok(name.to_owned()) };
        match mode {
            CheckNameMode::Ignore => Ok(name.to_owned()),
            CheckNameMode::Refuse => Err(sibling),
            CheckNameMode::AutoRename => {
                let stamp = auto_rename_stamp(now_ms);
                let (stem, ending) = match name.rfind('.') {
                    Some(at) if at > 0 => name.split_at(at),
                    _ => (name, ""),
                };
                let first = format!("{stem}_{stamp}{ending}");
                let others = (1u32..).map(|n| format!("{stem}_{stamp}_{n}{ending}"));
                let is_free = |name: &String| self.sibling(drive, parent, name, except).is_none();
                Ok(std::iter::once(first).chain(others).find(is_free).unwrap_or_else(|| name.to_owned()))
            }
        }
    }

    fn index(&mut self, node: &Node) {
        let name = self.fold_case(&node.name);
        match node.trashed_ms {
            Some(at) => {
                self.recycle_bin.entry(node.drive_id.clone()).or_default().insert((at, node.file_id.clone()));
            }
            None => self
                .folders
                .entry((node.drive_id.clone(), node.parent.clone()))
                .or_default()
                .insert(node, name),
        }
    }

    fn unindex(&mut self, node: &Node) {
        if let Some(at) = node.trashed_ms {
            if let Some(bin) = self.recycle_bin.get_mut(&node.drive_id) {
                bin.remove(&(at, node.file_id.clone()));
            }
            return;
        }
        let name = self.fold_case(&node.name);
        let key = (node.drive_id.clone(), node.parent.clone());
        if let Some(folder) = self.folders.get_mut(&key) {
            folder.remove(node, &name);
            if folder.is_empty() {
                self.folders.remove(&key);
            }
        }
    }

    /// Adds a node.
    fn insert(&mut self, node: Node, op: CatalogOp) -> Result<(), ServiceError> {
        self.put_record(Table::Nodes, node.file_id.as_str().as_bytes(), &node)?;
        if let Some(drive) = self.drives.get_mut(&node.drive_id) {
            drive.used_bytes += node.held_bytes();
        }
        for revision in node.revisions() {
            if let Some(held) = self.blobs.get_mut(&revision.hash) {
                held.revisions += 1;
            }
        }
        self.index(&node);
        self.record_delta(&node.drive_id, &node.file_id, op, vec![node.parent.clone()])?;
        self.nodes.insert(node.file_id.clone(), node);
        Ok(())
    }

    /// Changes an existing node, but not its revisions (see [`Self::edit_revisions`]).
    fn edit(
        &mut self,
        file: &FileId,
        op: CatalogOp,
        edit: impl FnOnce(&mut Node),
    ) -> Result<(), ServiceError> {
        let Some(mut node) = self.nodes.remove(file) else { return Err(ServiceError::not_found("File")) };
        self.unindex(&node);
        let former = node.parent.clone();
        edit(&mut node);
        self.index(&node);
        self.put_record(Table::Nodes, file.as_str().as_bytes(), &node)?;
        let (drive, parent) = (node.drive_id.clone(), node.parent.clone());
        self.nodes.insert(file.clone(), node);
        let parents = if former == parent { vec![parent] } else { vec![former, parent] };
        self.record_delta(&drive, file, op, parents)
    }

    /// A value of the server itself, such as its signing key.
    pub(super) fn meta(&self, key: &str) -> Option<&[u8]> {
        self.meta.get(key).map(Vec::as_slice)
    }

    pub(super) fn token(&self, key: &str) -> Option<&Token> {
        self.tokens.get(key)
    }

    pub(super) fn put_token(&mut self, key: &str, token: Token) -> Result<(), ServiceError> {
        self.put_record(Table::Tokens, key.as_bytes(), &token)?;
        self.tokens.insert(key.to_owned(), token);
        Ok(())
    }

    /// Removes expired tokens. Authorization codes are kept for one more day, so that a late exchange gets
    /// the error "expired".
    pub(super) fn drop_expired_tokens(&mut self, now_ms: i64) {
        let expired = |token: &Token| match token {
            Token::Access { expires_ms } | Token::Assertion { expires_ms } => *expires_ms < now_ms,
            Token::Code { expires_ms, .. } => expires_ms.saturating_add(EXPIRED_CODE_TTL_MS) < now_ms,
            Token::Refresh | Token::ServiceRefresh | Token::Spent => false,
        };
        let gone: Vec<_> =
            self.tokens.iter().filter(|(_, token)| expired(token)).map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.tokens.remove(&key);
            self.delete_record(Table::Tokens, key.as_bytes());
        }
    }

    /// Revokes every login. Spent tokens and used assertions stay recorded.
    pub(super) fn drop_all_tokens(&mut self) {
        let is_live = |token: &Token| !matches!(token, Token::Spent | Token::Assertion { .. });
        let gone: Vec<_> =
            self.tokens.iter().filter(|(_, token)| is_live(token)).map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.tokens.remove(&key);
            self.delete_record(Table::Tokens, key.as_bytes());
        }
    }

    /// Adds a task for work that is already done. The next `polls` polls return `Running`.
    pub(super) fn accept_task(&mut self, task: &str, polls: u32) {
        if self.tasks.len() >= TASKS_MAX {
            self.tasks.clear();
        }
        self.tasks.insert(task.to_owned(), polls);
    }

    /// Polls a task: true for `Running`; `None` if the task is unknown.
    pub(super) fn poll_task(&mut self, task: &str) -> Option<bool> {
        let polls = self.tasks.get_mut(task)?;
        let runs = *polls > 0;
        *polls = polls.saturating_sub(1);
        Some(runs)
    }
}

/// How long an expired authorization code is kept.
const EXPIRED_CODE_TTL_MS: i64 = 86_400_000;

/// Bound on the kept tasks.
const TASKS_MAX: usize = 10_000;

impl From<&ServerConfig> for CatalogState {
    fn from(config: &ServerConfig) -> Self {
        Self {
            quirks: config.quirks.clone(),
            quota_bytes: config.quota_bytes,
            drives: BTreeMap::new(),
            nodes: BTreeMap::new(),
            folders: HashMap::new(),
            recycle_bin: HashMap::new(),
            uploads: HashMap::new(),
            blobs: HashMap::new(),
            sizes_by_pre_hash: HashMap::new(),
            deltas: VecDeque::new(),
            next_seq: 1,
            tokens: HashMap::new(),
            shares: Shares::new(),
            tasks: HashMap::new(),
            archives: HashMap::new(),
            meta: HashMap::new(),
            change: Change::default(),
            write_queue: None,
        }
    }
}
