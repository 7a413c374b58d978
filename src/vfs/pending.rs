//! Attributes that arrive after the commit: times, modes, owners, extended attributes.
//!
//! Every file manager sets times and modes after it has closed what it copied. Such changes are gathered for
//! about a second and sent together; until the drive has them, they are shown from here.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use lru::LruCache;
use tokio::sync::Notify;

use super::names::is_outage;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::FileId;
use crate::pds::drive::{AttrChange, Drive, FileMeta};
use crate::posix::{self, Posix};
use crate::status::Progress;
use crate::tree::Tree;

/// How long changes are gathered.
const GATHER: Duration = Duration::from_secs(1);

/// Objects that are told of together; whoever waits for all sees them go.
const TOGETHER_MAX: usize = 100;

/// Until the next try, after all the retries of the calls themselves.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(10);

/// Refusals that are remembered.
const REFUSED_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// What an object shall become.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Its modification time.
    pub mtime: SystemTime,
    /// Everything else.
    pub posix: Option<Arc<Posix>>,
}

/// One object that is not yet what it shall be.
#[derive(Clone, PartialEq, Debug)]
struct Pending {
    wanted: Wanted,
    change: AttrChange,
}

/// Changes that the drive does not have yet.
#[derive(Debug)]
pub struct PendingAttrs {
    /// A leaf lock, below the tree's.
    changes: Mutex<HashMap<FileId, Pending>>,
    arrived: Notify,
    /// Held while changes are being sent, so that a flush waits for what is under way.
    sending: tokio::sync::Mutex<()>,
    /// Why the drive does not keep what an object was given, until it is given something else or goes; the newest.
    /// A leaf lock.
    refused: Mutex<LruCache<FileId, Error>>,
    progress: Arc<Progress>,
}

impl PendingAttrs {
    /// Nothing is pending. What the drive refuses is told to `progress`.
    pub fn new(progress: Arc<Progress>) -> Self {
        Self {
            changes: Mutex::default(),
            arrived: Notify::new(),
            sending: tokio::sync::Mutex::new(()),
            refused: Mutex::new(LruCache::new(REFUSED_MAX)),
            progress,
        }
    }

    fn refused(&self) -> MutexGuard<'_, LruCache<FileId, Error>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the drive does not keep what an object was given last.
    pub fn refusal(&self, file: &FileId) -> Option<Error> {
        self.refused().peek(file).cloned()
    }

    /// Objects of which the drive does not keep what they were given.
    pub fn refused_count(&self) -> usize {
        self.refused().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FileId, Pending>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An object that the drive has as `known`, as far as the tree knows, shall become `wanted`.
    pub fn set(&self, known: &FileMeta, wanted: Wanted) {
        self.refused().pop(&known.file_id);
        let mut changes = self.lock();
        let (old, new) = (known.tags(), posix::tags(wanted.posix.as_deref(), wanted.mtime));
        let mut stale = posix::stale_keys(&old, &new);
        let (mut sends_mtime, mut sends_tags) = (known.mtime != wanted.mtime, old != new);
        if let Some(before) = changes.remove(&known.file_id) {
            // What was on its way has to be told again, also where the tree shows it so already: the drive may
            // be told, or have been told, the other thing.
            sends_mtime |= before.change.mtime.is_some();
            sends_tags |= before.change.tags.is_some();
            stale.extend(before.change.stale);
            stale.extend(posix::stale_keys(&before.change.tags.unwrap_or_default(), &new));
            stale.retain(|key| !new.contains_key(key));
        }
        let change =
            AttrChange { mtime: sends_mtime.then_some(wanted.mtime), tags: sends_tags.then_some(new), stale };
        if change == AttrChange::default() {
            return;
        }
        changes.insert(known.file_id.clone(), Pending { wanted, change });
        drop(changes);
        self.arrived.notify_one();
    }

    /// What an object shall become, where the drive does not have that yet; the time only where that is
    /// what it does not have.
    pub fn get(&self, file: &FileId) -> Option<(Option<SystemTime>, Option<Arc<Posix>>)> {
        let changes = self.lock();
        let Pending { wanted, change } = changes.get(file)?;
        Some((change.mtime.map(|_| wanted.mtime), wanted.posix.clone()))
    }

    /// Objects whose attributes the drive does not have yet.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// The file is gone, or its content is a new one with attributes of its own.
    pub fn forget(&self, file: &FileId) {
        self.lock().remove(file);
        self.refused().pop(file);
    }

    /// Sends what has gathered, every now and then, until the tree is gone.
    pub async fn run(&self, drive: &Drive, tree: impl Fn() -> Option<Arc<Mutex<Tree>>>) {
        loop {
            self.arrived.notified().await;
            tokio::time::sleep(GATHER).await;
            let Some(tree) = tree() else { return };
            if let Err(error) = self.flush(drive, &tree).await {
                tracing::warn!(%error, "attributes could not be stored; they will be tried again");
                tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                self.arrived.notify_one();
            }
        }
    }

    /// Sends the changes of one file now, if there are any.
    pub async fn flush_file(&self, drive: &Drive, tree: &Mutex<Tree>, file: &FileId) -> Result<()> {
        let _one_at_a_time = self.sending.lock().await;
        let Some(pending) = self.lock().get(file).cloned() else { return Ok(()) };
        self.send(drive, tree, vec![(file.clone(), pending)]).await
    }

    /// Sends everything now. What could not be sent stays; the first failure of it.
    pub async fn flush(&self, drive: &Drive, tree: &Mutex<Tree>) -> Result<()> {
        let _one_at_a_time = self.sending.lock().await;
        let all: Vec<_> = self.lock().iter().map(|(file, pending)| (file.clone(), pending.clone())).collect();
        self.send(drive, tree, all).await
    }

    async fn send(&self, drive: &Drive, tree: &Mutex<Tree>, all: Vec<(FileId, Pending)>) -> Result<()> {
        let mut first = Ok(());
        for some in all.chunks(TOGETHER_MAX) {
            let changes: Vec<_> =
                some.iter().map(|(file, pending)| (file.clone(), pending.change.clone())).collect();
            let outcomes = drive.set_attributes(&changes).await;
            let is_away = outcomes.iter().all(|outcome| outcome.as_ref().is_err_and(is_outage));
            first = first.and(self.settle_all(tree, some, outcomes));
            if is_away {
                // The others would not fare better, and each would take its time.
                break;
            }
            self.progress.stepped();
        }
        first
    }

    fn settle_all(
        &self,
        tree: &Mutex<Tree>,
        all: &[(FileId, Pending)],
        outcomes: Vec<Result<()>>,
    ) -> Result<()> {
        let mut tree = tree.lock().unwrap_or_else(PoisonError::into_inner);
        let settled = all.iter().zip(outcomes).map(|((file, sent), outcome)| {
            if outcome.is_ok() {
                // Before it is forgotten here: what the tree was told of last may be older.
                let mtime = sent.change.mtime.map(|_| sent.wanted.mtime);
                tree.attrs_told(file, mtime, sent.wanted.posix.clone());
            }
            self.settle(&tree, file, sent, outcome)
        });
        // Each is settled, whatever came of the others.
        settled.fold(Ok(()), Result::and)
    }

    /// Forgets a change that the drive took, or that it will never take.
    fn settle(&self, tree: &Tree, file: &FileId, sent: &Pending, outcome: Result<()>) -> Result<()> {
        let refused = match outcome {
            Ok(()) => None,
            Err(error) if !is_final(&error) => return Err(error),
            // It is gone, and its attributes with it.
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => Some(error.context("the drive does not keep its attributes")),
        };
        let mut changes = self.lock();
        // A later change for the file stays for the next round.
        if changes.get(file) != Some(sent) {
            return Ok(());
        }
        changes.remove(file);
        drop(changes);
        if let Some(error) = refused {
            let path = tree.ino_of(file).map_or_else(|| file.to_string(), |ino| tree.display_path(ino));
            tracing::warn!(op = "attributes", errno = error.errno(), "{path}: {error}");
            self.progress.attributes_refused(&path, &error);
            self.refused().put(file.clone(), error);
        }
        Ok(())
    }
}

fn is_final(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound
            | ErrorKind::NoDrive
            | ErrorKind::Denied
            | ErrorKind::Invalid
            | ErrorKind::Protocol
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pds::types::FileType;
    use std::time::UNIX_EPOCH;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn known() -> FileMeta {
        FileMeta {
            file_id: FileId::new("f").unwrap(),
            parent_id: None,
            name: "f".to_owned(),
            kind: FileType::File,
            size: 0,
            mtime: at(0),
            changed_at: at(0),
            created_at: at(0),
            revision: None,
            sha1: None,
            crc64: None,
            posix: None,
        }
    }

    fn with_perm(perm: u16) -> Arc<Posix> {
        let mut posix = Posix::default();
        posix.perm = Some(perm);
        Arc::new(posix)
    }

    fn change(pending: &PendingAttrs) -> AttrChange {
        pending.lock()[&known().file_id].change.clone()
    }

    #[test]
    fn nothing_is_pending_where_nothing_changes() {
        let pending = PendingAttrs::new(Progress::new());
        pending.set(&known(), Wanted { mtime: at(0), posix: None });
        assert_eq!(pending.get(&known().file_id), None);
    }

    #[test]
    fn what_is_taken_back_is_told_too() {
        let pending = PendingAttrs::new(Progress::new());
        pending.set(&known(), Wanted { mtime: at(5), posix: Some(with_perm(0o600)) });
        assert_eq!(pending.get(&known().file_id), Some((Some(at(5)), Some(with_perm(0o600)))));
        // The drive may have been told of the first by now.
        pending.set(&known(), Wanted { mtime: at(0), posix: None });
        let change = change(&pending);
        assert_eq!((change.mtime, change.tags.unwrap().len()), (Some(at(0)), 0));
        assert_eq!(change.stale.into_iter().collect::<Vec<_>>(), ["pdsfs.mode"]);
    }

    #[test]
    fn a_time_that_is_pending_survives_a_change_of_something_else() {
        let pending = PendingAttrs::new(Progress::new());
        pending.set(&known(), Wanted { mtime: at(5), posix: None });
        pending.set(&known(), Wanted { mtime: at(5), posix: Some(with_perm(0o600)) });
        let change = change(&pending);
        assert_eq!((change.mtime, change.tags.unwrap()["pdsfs.mode"].as_str()), (Some(at(5)), "0600"));
        pending.forget(&known().file_id);
        assert_eq!(pending.get(&known().file_id), None);
    }
}
