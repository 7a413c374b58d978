//! What there is: drives, folders, files, uploads, blobs, the change feed and tokens.
//!
//! The whole catalog is in memory; the journal keeps it on disk. A call takes the lock, checks
//! everything, changes memory and queues the records, and is answered when they are stored. No
//! lock is held across an await, and none but this one guards the state.

mod commits;
mod feed;
mod index;
pub(super) mod journal;
mod load;
mod objects;
pub(super) mod records;
mod revisions;
mod trash;
mod uploads;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use serde::Serialize;

use self::index::Folder;
use self::journal::{Change, Journal, Table, Write};
use self::records::{Delta, Drive, Node, Op, Token, Upload};
use super::blobs::Blob;
use super::clock::name_stamp;
use super::config::{Quirks, ServerConfig};
use super::errors::ApiError;
use crate::ids::{DriveId, FileId, UploadId};
use crate::pds::types::CheckNameMode;

pub(super) use self::commits::Plan;
pub(super) use self::index::{Marker, Order, compare};
pub(super) use self::load::open;
pub(super) use self::objects::Edits;
pub(super) use self::uploads::{Begun, NewUpload};

/// The catalog of a running server.
#[derive(Debug)]
pub(super) struct Catalog {
    state: Mutex<State>,
    /// Wakes whoever waits for a `complete` of the same upload.
    pub(super) settled: tokio::sync::Notify,
}

/// A blob and how many revisions hold it.
#[derive(Debug)]
struct Held {
    blob: Arc<Blob>,
    revisions: u64,
}

/// Everything in memory. Methods that change something queue the records in `change`.
#[derive(Debug)]
pub(super) struct State {
    quirks: Quirks,
    quota_bytes: Option<u64>,
    drives: BTreeMap<DriveId, Drive>,
    /// By id, so that a scan has an order. The root folders are not among them.
    nodes: BTreeMap<FileId, Node>,
    /// Listings by drive and folder. Objects in the recycle bin are in none.
    folders: HashMap<(DriveId, FileId), Folder>,
    bin: HashMap<DriveId, BTreeSet<(i64, FileId)>>,
    uploads: HashMap<UploadId, Upload>,
    blobs: HashMap<String, Held>,
    /// Sizes of the blobs that begin with a KiB of this hash.
    heads: HashMap<String, Vec<u64>>,
    deltas: VecDeque<Delta>,
    next_seq: u64,
    tokens: HashMap<String, Token>,
    /// Asynchronous work that was accepted, and how often it still says that it runs.
    tasks: HashMap<String, u32>,
    meta: HashMap<String, Vec<u8>>,
    change: Change,
    /// None after the server was stopped.
    journal: Option<Journal>,
}

impl Catalog {
    fn new(state: State) -> Self {
        Self { state: Mutex::new(state), settled: tokio::sync::Notify::new() }
    }

    /// Looks.
    pub(super) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.lock())
    }

    /// Changes memory only.
    pub(super) fn touch<T>(&self, touch: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let out = touch(&mut state);
        debug_assert!(state.change.is_empty(), "a change that nobody stores");
        out
    }

    /// Changes memory and disk. `change` returns an error only before it has changed anything.
    pub(super) async fn change<T>(
        &self,
        change: impl FnOnce(&mut State) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        self.change_and_wait_if(change, |_| true).await
    }

    /// The same, waiting for the disk only where the outcome asks for it.
    pub(super) async fn change_and_wait_if<T>(
        &self,
        change: impl FnOnce(&mut State) -> Result<T, ApiError>,
        must_wait: impl FnOnce(&T) -> bool,
    ) -> Result<T, ApiError> {
        let (out, stored) = self.queue(change, must_wait)?;
        if let Some(stored) = stored {
            stored.await.map_err(|_| ApiError::internal("the catalog cannot be written"))?;
        }
        Ok(out)
    }

    /// The same without waiting for the disk: for what may be lost with the process, because nobody
    /// was promised a file yet. Changes reach the disk in order, so whoever waits for a later one has
    /// waited for this.
    pub(super) fn change_soon<T>(
        &self,
        change: impl FnOnce(&mut State) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        self.queue(change, |_| false).map(|(out, _)| out)
    }

    /// Changes memory and gives the change to the journal; the receiver only where the outcome asks for it.
    fn queue<T>(
        &self,
        change: impl FnOnce(&mut State) -> Result<T, ApiError>,
        must_wait: impl FnOnce(&T) -> bool,
    ) -> Result<(T, Option<oneshot::Receiver<()>>), ApiError> {
        let mut state = self.lock();
        if state.journal.is_none() {
            return Err(ApiError::internal("the server is stopping"));
        }
        let out = change(&mut state);
        let queued = std::mem::take(&mut state.change);
        debug_assert!(out.is_ok() || queued.is_empty(), "an error after a change");
        let stored = match &state.journal {
            Some(journal) if !queued.is_empty() => {
                let is_awaited = out.as_ref().is_ok_and(must_wait);
                Some(journal.queue(queued, is_awaited)).filter(|_| is_awaited)
            }
            _ => None,
        };
        Ok((out?, stored))
    }

    /// Refuses every later change and lets the journal end.
    pub(super) fn close(&self) {
        self.lock().journal = None;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn put(&mut self, table: Table, key: &[u8], value: &impl Serialize) -> Result<(), ApiError> {
        let value = serde_json::to_vec(value).map_err(|e| ApiError::internal(e.to_string()))?;
        self.change.writes.push(Write { table, key: key.to_vec(), value: Some(value) });
        Ok(())
    }

    fn erase(&mut self, table: Table, key: &[u8]) {
        self.change.writes.push(Write { table, key: key.to_vec(), value: None });
    }

    /// The drive, or 404.
    pub(super) fn drive(&self, drive: &DriveId) -> Result<&Drive, ApiError> {
        self.drives.get(drive).ok_or_else(|| ApiError::not_found("Drive"))
    }

    pub(super) fn drives(&self) -> impl Iterator<Item = &Drive> {
        self.drives.values()
    }

    pub(super) fn quota_bytes(&self) -> Option<u64> {
        self.quota_bytes
    }

    /// Whether `bytes` more fit.
    pub(super) fn check_quota(&self, drive: &DriveId, bytes: u64) -> Result<(), ApiError> {
        let used = self.drive(drive)?.used_bytes;
        match self.quota_bytes {
            Some(quota) if used.saturating_add(bytes) > quota => {
                Err(ApiError::quota(self.quirks.quota_status))
            }
            _ => Ok(()),
        }
    }

    /// An object that can be reached: not in the recycle bin, nor below something that is.
    pub(super) fn live(&self, drive: &DriveId, file: &FileId) -> Result<&Node, ApiError> {
        self.drive(drive)?;
        let node = self.any(drive, file)?;
        if !self.is_trashed(node) {
            return Ok(node);
        }
        Err(if self.quirks.trashed_is_forbidden {
            ApiError::new(403, "ForbiddenFileInTheRecycleBin", "file in the recycle bin is forbidden")
        } else {
            ApiError::not_found("File")
        })
    }

    /// An object, in the recycle bin or not.
    pub(super) fn any(&self, drive: &DriveId, file: &FileId) -> Result<&Node, ApiError> {
        self.nodes.get(file).filter(|node| node.drive_id == *drive).ok_or_else(|| ApiError::not_found("File"))
    }

    fn is_trashed(&self, node: &Node) -> bool {
        let mut at = node;
        loop {
            if at.trashed_ms.is_some() {
                return true;
            }
            // Only the root is no node. Folders cannot be moved below themselves, so this ends.
            match self.nodes.get(&at.parent) {
                Some(above) => at = above,
                None => return false,
            }
        }
    }

    /// A folder that can take children, or the root.
    pub(super) fn check_folder(&self, drive: &DriveId, folder: &FileId) -> Result<(), ApiError> {
        self.drive(drive)?;
        if folder.as_str() == "root" || self.live(drive, folder)?.is_folder() {
            return Ok(());
        }
        Err(ApiError::invalid("parent_file_id", "It is not a folder."))
    }

    /// The listing of a folder; none if it never had an entry.
    pub(super) fn folder(&self, drive: &DriveId, folder: &FileId) -> Option<&Folder> {
        self.folders.get(&(drive.clone(), folder.clone()))
    }

    fn fold(&self, name: &str) -> String {
        if self.quirks.case_insensitive_names { name.to_lowercase() } else { name.to_owned() }
    }

    /// The first object of this name in a folder, other than `except`.
    pub(super) fn sibling(
        &self,
        drive: &DriveId,
        parent: &FileId,
        name: &str,
        except: Option<&FileId>,
    ) -> Option<&Node> {
        let named = self.folder(drive, parent)?.named(&self.fold(name));
        named.iter().filter(|id| Some(*id) != except).find_map(|id| self.nodes.get(id))
    }

    /// The name that an object gets in the end, or the sibling that has it.
    fn settle_name<'a>(
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
                let stamp = name_stamp(now_ms);
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
        let name = self.fold(&node.name);
        match node.trashed_ms {
            Some(at) => {
                self.bin.entry(node.drive_id.clone()).or_default().insert((at, node.file_id.clone()));
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
            if let Some(bin) = self.bin.get_mut(&node.drive_id) {
                bin.remove(&(at, node.file_id.clone()));
            }
            return;
        }
        let name = self.fold(&node.name);
        let key = (node.drive_id.clone(), node.parent.clone());
        if let Some(folder) = self.folders.get_mut(&key) {
            folder.remove(node, &name);
            if folder.is_empty() {
                self.folders.remove(&key);
            }
        }
    }

    /// Puts a new node.
    fn insert(&mut self, node: Node, op: Op) -> Result<(), ApiError> {
        self.put(Table::Nodes, node.file_id.as_str().as_bytes(), &node)?;
        if let Some(drive) = self.drives.get_mut(&node.drive_id) {
            drive.used_bytes += node.held_bytes();
        }
        for revision in node.revisions() {
            if let Some(held) = self.blobs.get_mut(&revision.hash) {
                held.revisions += 1;
            }
        }
        self.index(&node);
        self.note(&node.drive_id, &node.file_id, op)?;
        self.nodes.insert(node.file_id.clone(), node);
        Ok(())
    }

    /// Changes a node that exists; its revisions must stay as they are.
    fn edit(&mut self, file: &FileId, op: Op, edit: impl FnOnce(&mut Node)) -> Result<(), ApiError> {
        let Some(mut node) = self.nodes.remove(file) else { return Err(ApiError::not_found("File")) };
        self.unindex(&node);
        edit(&mut node);
        self.index(&node);
        self.put(Table::Nodes, file.as_str().as_bytes(), &node)?;
        let drive = node.drive_id.clone();
        self.nodes.insert(file.clone(), node);
        self.note(&drive, file, op)
    }

    /// A value that is neither object nor token.
    pub(super) fn meta(&self, key: &str) -> Option<&[u8]> {
        self.meta.get(key).map(Vec::as_slice)
    }

    pub(super) fn token(&self, key: &str) -> Option<&Token> {
        self.tokens.get(key)
    }

    pub(super) fn put_token(&mut self, key: &str, token: Token) -> Result<(), ApiError> {
        self.put(Table::Tokens, key.as_bytes(), &token)?;
        self.tokens.insert(key.to_owned(), token);
        Ok(())
    }

    /// Forgets what has expired. A code is remembered for a day longer, so that who brings it is told why it is
    /// not taken.
    pub(super) fn drop_expired_tokens(&mut self, now_ms: i64) {
        let expired = |token: &Token| match token {
            Token::Access { expires_ms } | Token::Assertion { expires_ms } => *expires_ms < now_ms,
            Token::Code { expires_ms, .. } => expires_ms.saturating_add(CODE_MEMORY_MS) < now_ms,
            Token::Refresh | Token::Spent => false,
        };
        let gone: Vec<_> =
            self.tokens.iter().filter(|(_, token)| expired(token)).map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.tokens.remove(&key);
            self.erase(Table::Tokens, key.as_bytes());
        }
    }

    /// Ends every login. What was used before stays used.
    pub(super) fn drop_all_tokens(&mut self) {
        let is_live = |token: &Token| !matches!(token, Token::Spent | Token::Assertion { .. });
        let gone: Vec<_> =
            self.tokens.iter().filter(|(_, token)| is_live(token)).map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.tokens.remove(&key);
            self.erase(Table::Tokens, key.as_bytes());
        }
    }

    /// Accepts asynchronous work that is done already; its task says `Running` so often.
    pub(super) fn accept_task(&mut self, task: &str, polls: u32) {
        if self.tasks.len() >= TASKS_MAX {
            self.tasks.clear();
        }
        self.tasks.insert(task.to_owned(), polls);
    }

    /// Whether a task still says that it runs; none if there is no such task.
    pub(super) fn poll_task(&mut self, task: &str) -> Option<bool> {
        let polls = self.tasks.get_mut(task)?;
        let runs = *polls > 0;
        *polls = polls.saturating_sub(1);
        Some(runs)
    }
}

/// How long a code is remembered after its end, in milliseconds.
const CODE_MEMORY_MS: i64 = 86_400_000;

/// Most tasks that are remembered.
const TASKS_MAX: usize = 10_000;

impl From<&ServerConfig> for State {
    fn from(config: &ServerConfig) -> Self {
        Self {
            quirks: config.quirks.clone(),
            quota_bytes: config.quota_bytes,
            drives: BTreeMap::new(),
            nodes: BTreeMap::new(),
            folders: HashMap::new(),
            bin: HashMap::new(),
            uploads: HashMap::new(),
            blobs: HashMap::new(),
            heads: HashMap::new(),
            deltas: VecDeque::new(),
            next_seq: 1,
            tokens: HashMap::new(),
            tasks: HashMap::new(),
            meta: HashMap::new(),
            change: Change::default(),
            journal: None,
        }
    }
}
