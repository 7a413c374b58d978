//! Attributes set after a commit: times, modes, owners, extended attributes.
//!
//! File managers set times and modes after they close a copied file. Such changes are gathered for about a
//! second and sent together. Until then, `stat` returns them from here.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::FileId;
use crate::pds::drive::{AttrChange, Drive, FileMeta};
use crate::posix::{self, Posix};
use crate::status::{FailedObject, Progress};
use crate::tree::Tree;

const GATHER_TIME: Duration = Duration::from_secs(1);

/// Objects per request. A waiting caller sees progress after each batch.
const BATCH_MAX: usize = 100;

/// Bytes of attributes in a request. One object may have more.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// Memory of an extended attribute beyond its text, in bytes.
const XATTR_OVERHEAD_BYTES: usize = 80;

/// Bytes of attributes that wait. Beyond them a change waits for a flush.
const BYTES_MAX: usize = 16 << 20;

/// Time until a retry. The calls themselves have their own retries.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(10);

/// Refusals because of another operation on the object, after which its attributes are given up. An operation
/// that never ends must not keep them pending.
const CONFLICTS_MAX: u32 = 5;

/// Refusals that are remembered.
const REFUSED_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// The attributes that an object is to have on the drive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredAttrs {
    pub mtime: SystemTime,
    /// All other attributes.
    pub posix: Option<Arc<Posix>>,
}

/// An object whose attributes are not on the drive yet.
#[derive(Clone, PartialEq, Debug)]
struct Pending {
    desired: DesiredAttrs,
    sends_mtime: bool,
    sends_tags: bool,
    /// Keys of tags that the drive may have. Those of `desired` among them stay.
    stale: BTreeSet<String>,
    /// How often the drive refused it because of another operation.
    conflicts: u32,
}

impl Pending {
    /// Whether both change the same.
    fn is_same(&self, other: &Self) -> bool {
        Self { conflicts: other.conflicts, ..self.clone() } == *other
    }

    fn bytes(&self) -> usize {
        let stale = self.stale.iter().map(String::len).sum::<usize>();
        let of_posix =
            |posix: &Arc<Posix>| posix.bytes() + posix.xattr_names().count() * XATTR_OVERHEAD_BYTES;
        size_of::<Self>() + stale + self.desired.posix.as_ref().map_or(0, of_posix)
    }

    fn change(&self) -> AttrChange {
        let DesiredAttrs { mtime, posix } = &self.desired;
        let tags = posix::tags(posix.as_deref(), *mtime);
        let stale = self.stale.iter().filter(|key| !tags.contains_key(*key)).cloned().collect();
        AttrChange { mtime: self.sends_mtime.then_some(*mtime), tags, sends_tags: self.sends_tags, stale }
    }
}

/// All changes that wait, and their bytes.
#[derive(Debug, Default)]
struct Changes {
    by_file: HashMap<FileId, Pending>,
    bytes: usize,
}

impl Changes {
    fn insert(&mut self, file: FileId, pending: Pending) {
        self.bytes += pending.bytes();
        if let Some(before) = self.by_file.insert(file, pending) {
            self.bytes -= before.bytes();
        }
    }

    fn remove(&mut self, file: &FileId) -> Option<Pending> {
        let removed = self.by_file.remove(file)?;
        self.bytes -= removed.bytes();
        Some(removed)
    }
}

#[derive(Debug)]
pub struct PendingAttrs {
    /// Locked after the tree. A leaf lock.
    changes: Mutex<Changes>,
    arrived: Notify,
    /// Held while changes are sent, so that a flush waits for a running one.
    sending: tokio::sync::Mutex<()>,
    /// The refusals of attributes by the drive, until the attributes change or the object is removed.
    /// Bounded: keeps the newest. A leaf lock.
    refused: Mutex<LruCache<FileId, Error>>,
    progress: Arc<Progress>,
}

impl PendingAttrs {
    /// Refusals are reported to `progress`.
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
        self.refused.lock()
    }

    /// The error with which the drive refused the last attributes of an object.
    pub fn refusal(&self, file: &FileId) -> Option<Error> {
        self.refused().peek(file).cloned()
    }

    /// Number of objects whose attributes were refused.
    pub fn refused_count(&self) -> usize {
        self.refused().len()
    }

    fn lock(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock()
    }

    /// Sets the attributes of an object that the drive has as `known`.
    pub fn set(&self, known: &FileMeta, desired: DesiredAttrs) {
        self.clear_refusal(&known.file_id);
        let old = (known.posix.as_deref(), known.mtime);
        let new = (desired.posix.as_deref(), desired.mtime);
        let mut stale = posix::stale_keys(old, new);
        let (mut sends_mtime, mut sends_tags) = (old.1 != new.1, !posix::has_same_tags(old, new));
        let mut changes = self.lock();
        if let Some(before) = changes.remove(&known.file_id) {
            // A change that may be in flight must be sent again, even if the tree shows the old value: the
            // drive may have stored the other one.
            sends_mtime |= before.sends_mtime;
            sends_tags |= before.sends_tags;
            if before.sends_tags {
                let sent = (before.desired.posix.as_deref(), before.desired.mtime);
                stale.extend(posix::stale_keys(sent, new));
            }
            stale.extend(before.stale);
        }
        if !sends_mtime && !sends_tags {
            return;
        }
        let pending = Pending { desired, sends_mtime, sends_tags, stale, conflicts: 0 };
        changes.insert(known.file_id.clone(), pending);
        drop(changes);
        self.arrived.notify_one();
    }

    fn has_room(&self) -> bool {
        self.lock().bytes < BYTES_MAX
    }

    /// Returns at once, or sends changes until few enough wait. Fails if the drive does not take them.
    pub async fn wait_for_room(&self, drive: &Drive, tree: &Mutex<Tree>) -> Result<()> {
        while !self.has_room() {
            let _one_at_a_time = self.sending.lock().await;
            // Another caller may have sent them meanwhile.
            if self.has_room() {
                break;
            }
            let sent = self.send(drive, tree, self.all(), || self.has_room()).await;
            if self.has_room() {
                break;
            }
            sent?;
        }
        Ok(())
    }

    /// All changes that wait.
    fn all(&self) -> Vec<(FileId, Pending)> {
        self.lock().by_file.iter().map(|(file, pending)| (file.clone(), pending.clone())).collect()
    }

    /// Attributes of an object that are not on the drive yet. The time is `Some` only if it has changed.
    pub fn get(&self, file: &FileId) -> Option<(Option<SystemTime>, Option<Arc<Posix>>)> {
        let changes = self.lock();
        let Pending { desired, sends_mtime, .. } = changes.by_file.get(file)?;
        Some((sends_mtime.then_some(desired.mtime), desired.posix.clone()))
    }

    /// Number of objects with attributes that are not on the drive yet.
    pub fn count(&self) -> usize {
        self.lock().by_file.len()
    }

    /// Bytes of the attributes that wait.
    #[cfg(all(test, feature = "server"))]
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Drops changes of an object that is gone, or that has new content with its own attributes.
    pub fn forget(&self, file: &FileId) {
        self.lock().remove(file);
        self.clear_refusal(file);
    }

    fn clear_refusal(&self, file: &FileId) {
        if self.refused().pop(file).is_some() {
            self.progress.clear_failure(&FailedObject::Attributes(file.clone()));
        }
    }

    /// Sends gathered changes periodically, until the tree is gone.
    pub async fn run(&self, drive: &Drive, tree: impl Fn() -> Option<Arc<Mutex<Tree>>>) {
        if self.count() > 0 {
            // Left by a run that panicked.
            self.arrived.notify_one();
        }
        loop {
            self.arrived.notified().await;
            tokio::time::sleep(GATHER_TIME).await;
            let Some(tree) = tree() else { return };
            if let Err(error) = self.flush(drive, &tree).await {
                tracing::warn!(%error, "cannot store attributes; they will be retried");
                tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                self.arrived.notify_one();
            }
        }
    }

    /// Sends the changes of one file now.
    pub async fn flush_file(&self, drive: &Drive, tree: &Mutex<Tree>, file: &FileId) -> Result<()> {
        let _one_at_a_time = self.sending.lock().await;
        let Some(pending) = self.lock().by_file.get(file).cloned() else { return Ok(()) };
        self.send(drive, tree, vec![(file.clone(), pending)], || false).await
    }

    /// Sends all changes now. Failed ones stay queued; returns the first error.
    pub async fn flush(&self, drive: &Drive, tree: &Mutex<Tree>) -> Result<()> {
        let _one_at_a_time = self.sending.lock().await;
        self.send(drive, tree, self.all(), || false).await
    }

    /// Sends changes in batches, until `is_enough`. The caller holds `sending`.
    async fn send(
        &self,
        drive: &Drive,
        tree: &Mutex<Tree>,
        all: Vec<(FileId, Pending)>,
        is_enough: impl Fn() -> bool,
    ) -> Result<()> {
        let (mut first, mut rest) = (Ok(()), &all[..]);
        while !rest.is_empty() && !is_enough() {
            let (batch, later) = rest.split_at(batch_len(rest));
            rest = later;
            let changes: Vec<_> =
                batch.iter().map(|(file, pending)| (file.clone(), pending.change())).collect();
            let outcomes = drive.set_attributes(&changes).await;
            let is_unreachable = outcomes.iter().all(|outcome| outcome.as_ref().is_err_and(Error::is_outage));
            first = first.and(self.conclude_all(tree, batch, outcomes));
            if is_unreachable {
                // The drive is unreachable: the remaining batches would fail too, after a timeout each.
                break;
            }
            self.progress.metadata_saved();
        }
        first
    }

    fn conclude_all(
        &self,
        tree: &Mutex<Tree>,
        all: &[(FileId, Pending)],
        outcomes: Vec<Result<()>>,
    ) -> Result<()> {
        let mut tree = tree.lock();
        let concluded = all.iter().zip(outcomes).map(|((file, sent), outcome)| {
            if outcome.is_ok() {
                // Before the change is dropped here: the tree may have an older value.
                let mtime = sent.sends_mtime.then_some(sent.desired.mtime);
                tree.attrs_stored(file, mtime, sent.desired.posix.clone());
            }
            self.conclude(&tree, file, sent, outcome)
        });
        // Every outcome is handled, even after an error.
        concluded.fold(Ok(()), Result::and)
    }

    /// Whether a change that failed is sent again. Counts conflicts with other operations.
    fn is_pending_after(&self, error: &Error, file: &FileId, sent: &Pending) -> bool {
        if error.kind() != ErrorKind::Busy {
            return !is_permanent(error);
        }
        if let Some(pending) = self.lock().by_file.get_mut(file).filter(|pending| pending.is_same(sent)) {
            pending.conflicts += 1;
        }
        sent.conflicts + 1 < CONFLICTS_MAX
    }

    /// Drops a change that the drive has stored or permanently refused.
    fn conclude(&self, tree: &Tree, file: &FileId, sent: &Pending, outcome: Result<()>) -> Result<()> {
        let refused = match outcome {
            Ok(()) => None,
            Err(error) if self.is_pending_after(&error, file, sent) => return Err(error),
            // The object is gone, and its attributes with it.
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => Some(error.context("the drive refused its attributes")),
        };
        let mut changes = self.lock();
        // A later change of the file stays for the next round.
        if changes.by_file.get(file).is_none_or(|now| !now.is_same(sent)) {
            return Ok(());
        }
        changes.remove(file);
        drop(changes);
        if let Some(error) = refused {
            let path = tree.ino_of(file).map_or_else(|| file.to_string(), |ino| tree.display_path(ino));
            tracing::warn!(op = "attributes", errno = error.errno(), "{path}: {error}");
            self.progress.attributes_refused(file, &path, &error);
            self.refused().put(file.clone(), error);
        }
        Ok(())
    }
}

/// The number of changes for the next request: at least one.
fn batch_len(changes: &[(FileId, Pending)]) -> usize {
    let mut bytes = 0;
    let fits = |(_, pending): &&(FileId, Pending)| {
        bytes += pending.bytes();
        bytes <= BATCH_BYTES_MAX
    };
    changes.iter().take(BATCH_MAX).take_while(fits).count().max(1)
}

/// Whether the drive refused an operation, and a repetition would get the same answer.
fn is_permanent(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound
            | ErrorKind::NoDrive
            | ErrorKind::Denied
            | ErrorKind::Invalid
            | ErrorKind::InvalidName
            | ErrorKind::Unsupported
            | ErrorKind::Protocol
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Credential, MountConfig};
    use crate::ids::{DriveId, Secret};
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
        pending.lock().by_file[&known().file_id].change()
    }

    #[test]
    fn unchanged_attributes_are_not_pending() {
        let pending = PendingAttrs::new(Progress::new());
        pending.set(&known(), DesiredAttrs { mtime: at(0), posix: None });
        assert_eq!(pending.get(&known().file_id), None);
    }

    #[test]
    fn reverted_change_is_sent_too() {
        let pending = PendingAttrs::new(Progress::new());
        pending.set(&known(), DesiredAttrs { mtime: at(5), posix: Some(with_perm(0o600)) });
        assert_eq!(pending.get(&known().file_id), Some((Some(at(5)), Some(with_perm(0o600)))));
        // The drive may have stored the first change by now.
        pending.set(&known(), DesiredAttrs { mtime: at(0), posix: None });
        let change = change(&pending);
        assert_eq!((change.mtime, change.tags.len()), (Some(at(0)), 0));
        assert_eq!(change.stale.into_iter().collect::<Vec<_>>(), ["pdsfs.mode"]);
    }

    fn with_xattrs(count: usize) -> Arc<Posix> {
        let mut posix = Posix::default();
        for n in 0..count {
            assert!(posix.set_xattr(format!("a{n}").as_bytes(), &[b'x'; 1900]));
        }
        Arc::new(posix)
    }

    #[test]
    fn batches_are_cut_by_bytes() {
        let pending = |count| {
            let desired = DesiredAttrs { mtime: at(0), posix: Some(with_xattrs(count)) };
            let stale = BTreeSet::new();
            (known().file_id, Pending { desired, sends_mtime: false, sends_tags: true, stale, conflicts: 0 })
        };
        assert_eq!(batch_len(&vec![pending(0); 250]), BATCH_MAX);
        assert_eq!(batch_len(&vec![pending(200); 9]), 2);
        assert_eq!(batch_len(&[pending(900), pending(0)]), 1);
    }

    #[test]
    fn waiting_bytes_are_counted() {
        let pending = PendingAttrs::new(Progress::new());
        for count in [900, 3, 0, 900] {
            let posix = Some(with_xattrs(count)).filter(|_| count > 0);
            pending.set(&known(), DesiredAttrs { mtime: at(5), posix });
            let bytes = pending.lock().bytes;
            assert!((1900 * count..2100 * count + 20_000).contains(&bytes), "{count}: {bytes}");
            assert!(pending.has_room());
        }
        pending.forget(&known().file_id);
        assert_eq!(pending.lock().bytes, 0);
    }

    #[test]
    fn pending_time_survives_another_change() {
        let pending = PendingAttrs::new(Progress::new());
        pending.set(&known(), DesiredAttrs { mtime: at(5), posix: None });
        pending.set(&known(), DesiredAttrs { mtime: at(5), posix: Some(with_perm(0o600)) });
        let change = change(&pending);
        assert_eq!((change.mtime, change.tags["pdsfs.mode"].as_str()), (Some(at(5)), "0600"));
        pending.forget(&known().file_id);
        assert_eq!(pending.get(&known().file_id), None);
    }

    #[tokio::test]
    async fn room_made_by_others_needs_no_call() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", silent.local_addr().unwrap()).parse().unwrap();
        let token = Credential::Token(Secret::new("token".to_owned()));
        let config = MountConfig::new(endpoint, DriveId::new("1").unwrap(), token);
        let (drive, tree) = (Drive::new(&config).unwrap(), Tree::new(&config.root_id, GATHER_TIME, at(0)));
        let (pending, tree) = (PendingAttrs::new(Progress::new()), Mutex::new(tree));
        let files =
            ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"].map(|id| FileId::new(id).unwrap());
        for file in &files {
            let known = FileMeta { file_id: file.clone(), ..known() };
            pending.set(&known, DesiredAttrs { mtime: at(0), posix: Some(with_xattrs(900)) });
        }
        assert!(!pending.has_room());
        let others = pending.sending.lock().await;
        let mut waiting = std::pin::pin!(pending.wait_for_room(&drive, &tree));
        tokio::select! {
            biased;
            _ = &mut waiting => panic!("it does not wait"),
            () = std::future::ready(()) => {}
        }
        files[..5].iter().for_each(|file| pending.forget(file));
        drop(others);
        tokio::select! {
            waited = waiting => waited.unwrap(),
            _ = silent.accept() => panic!("changes are sent although there is room"),
        }
    }
}
