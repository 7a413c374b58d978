//! Commits of files, and their effect on names.
//!
//! A commit runs in a task of its own. It continues when the caller that waits for it is interrupted.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Vfs;
use super::pending_attrs::DesiredAttrs;
use crate::content::commit::{Commit, CommitOutcome};
use crate::content::commit_target::{CommitTarget, TargetResolver};
use crate::content::open_file::{CommitGuard, CommitStep, OpenFile, Unsaved};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, Ino};
use crate::status::Transfer;
use crate::tree::{Identity, Tree};
use crate::units::exact_duration;

/// Bytes of one read of the base revision, for a stream. They go through its part buffers.
const STREAM_BACKFILL_BYTES: u64 = 1 << 20;
/// Progress is checked at least this often, and at least `IDLE_CHECKS_PER_LIMIT` times per limit.
const IDLE_CHECK_INTERVAL_MAX: Duration = Duration::from_secs(5);
const IDLE_CHECKS_PER_LIMIT: u32 = 8;

impl Vfs {
    /// Commits a file if `may_commit` allows it at the moment when the commit begins, under the lock of the
    /// content. Returns whether it did, when the drive has the content.
    pub(super) async fn commit_if(
        &self,
        file: &Arc<OpenFile>,
        may_commit: impl Fn(&Unsaved) -> bool,
    ) -> Result<bool> {
        let mut outcome = loop {
            let begun = file.begin_commit(&may_commit, || self.commit_target(file.ino()));
            let begun = begun.inspect_err(|error| {
                // Errors of unlinked files are not recorded.
                if self.commit_target(file.ino()).is_some() {
                    self.failures.record(file.ino(), Some(error));
                }
            });
            match begun? {
                CommitStep::Clean => return Ok(true),
                CommitStep::Withheld => return Ok(false),
                CommitStep::Backfill => {
                    let backfill = self.backfill(file, u64::MAX).await;
                    backfill.inspect_err(|error| {
                        self.failures.record(file.ino(), Some(error));
                        file.fail(error);
                    })?;
                }
                CommitStep::Join(outcome) => break outcome,
                CommitStep::AwaitDisk => {
                    let ended = file.wait_for_disk().await;
                    ended.inspect_err(|error| self.failures.record(file.ino(), Some(error)))?;
                }
                CommitStep::Run(commit, commit_guard) => {
                    let outcome = commit_guard.outcome();
                    let commit = self.this()?.run_commit(file.clone(), *commit, commit_guard);
                    tokio::spawn(commit);
                    break outcome;
                }
            }
        };
        let ended = outcome.wait_for(Option::is_some).await;
        let aborted = || Err(Error::new(ErrorKind::Cancelled, "the commit was aborted"));
        ended.map_or_else(|_| aborted(), |result| result.clone().unwrap_or_else(aborted)).map(|()| true)
    }

    /// Back-fills an upload from the base revision, up to `to`.
    ///
    /// Boxed because of recursion: writing may need a commit first, and a commit may need back-filling.
    pub(super) fn backfill<'a>(
        &'a self,
        file: &'a Arc<OpenFile>,
        to: u64,
    ) -> Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>> {
        Box::pin(async move {
            let (cursor, resolve_target) = (self.reader.cursor(), || self.commit_target(file.ino()));
            while let Some((target, at, len)) = file.next_backfill(to) {
                let bytes = self.reader.read(&target, &cursor, at, len.min(STREAM_BACKFILL_BYTES)).await?;
                if bytes.is_empty() {
                    let detail = "the base revision on the drive is shorter than its recorded size";
                    return Err(Error::new(ErrorKind::Integrity, detail));
                }
                let step =
                    |done: usize| file.backfill(&target, at + done as u64, &bytes[done..], &resolve_target);
                self.write_steps(file, None, &bytes, step).await?;
            }
            Ok(())
        })
    }

    /// The target of a commit under the current name. `None` for unlinked files.
    pub(super) fn commit_target(&self, ino: Ino) -> Option<CommitTarget> {
        let tree = self.tree();
        let location = tree.location(ino)?;
        let overwrite = match tree.identity(ino) {
            Some(Identity::Remote(file_id)) => Some(file_id),
            Some(Identity::Local) | None => tree.replaces(ino).map(|meta| meta.file_id.clone()),
        };
        let is_name_shared = overwrite.is_none()
            && self.is_name_reserved(&tree, &location.parent_id, &location.name, Some(ino));
        let (parent, name, posix) =
            (location.parent_id, location.name.to_string(), self.posix_of(&tree, ino));
        Some(CommitTarget { ino, parent, name, overwrite, mtime: None, posix, is_name_shared })
    }

    /// Whether another file than `ino` occupies the name on the drive, or may do so for a moment. This is the
    /// case for a file that was renamed here but not yet on the drive, and for a running commit that started
    /// under this name.
    pub(super) fn is_name_reserved(
        &self,
        tree: &Tree,
        dir_id: &FileId,
        name: &str,
        ino: Option<Ino>,
    ) -> bool {
        let others = self.files.all().into_iter().chain(self.late_renames.pending());
        others.filter(|other| Some(other.ino()) != ino).any(|other| {
            other.may_commit_to(dir_id, name) || tree.has_object_elsewhere(other.ino(), dir_id, name)
        })
    }

    async fn run_commit(self: Arc<Self>, file: Arc<OpenFile>, commit: Commit, commit_guard: CommitGuard) {
        // Its name and object may be about to change.
        let ready = self.bounded(self.active_renames.wait_idle(file.ino())).await;
        if file.is_unlinked() {
            return commit_guard.abandon();
        }
        let transfer = commit.transfer().clone();
        let committed = match ready {
            Ok(()) => tokio::select! {
                committed = commit.run() => committed,
                error = self.commit_idle(&transfer) => Err(error),
            },
            Err(error) => Err(error),
        };
        let result = match committed {
            Ok(committed) => self.apply_commit(&file, committed).await,
            Err(error) if file.is_unlinked() => {
                tracing::debug!(%error, "commit of an unlinked file abandoned");
                return commit_guard.abandon();
            }
            Err(error) => Err(error),
        };
        self.failures.record(file.ino(), result.as_ref().err());
        if let Err(error) = &result {
            let (op, ino, errno) = ("commit", file.ino().0, error.errno());
            if error.claim_log_line() {
                tracing::error!(op, ino, errno, "{}: not saved: {error}", self.path_of(file.ino()));
            }
        }
        let guard = self.late_renames.begin();
        commit_guard.finish(&result);
        if let Ok(committed) = result {
            self.apply_late_renames(&file, committed).await;
        }
        drop(guard);
    }

    /// Resolves with a timeout error when a commit makes no progress.
    async fn commit_idle(&self, transfer: &Transfer) -> Error {
        let limit = self.config.options.commit_timeout;
        self.transfer_idle(transfer, limit).await;
        let cause = if transfer.waits_for_others() {
            "other files hold all upload permits, and no data of any file was accepted"
        } else {
            "no data of this file accepted"
        };
        Error::new(ErrorKind::Timeout, format!("commit stalled: {cause} for {}", exact_duration(limit)))
    }

    /// Resolves when for `limit` no byte of a file was uploaded, and none was downloaded or hashed for its
    /// commit. While the file waits for the permits of other files, the time counts only if those do not
    /// move either.
    pub(super) async fn transfer_idle(&self, transfer: &Transfer, limit: Duration) {
        let others = || if transfer.waits_for_others() { Some(self.bytes_moved()) } else { None };
        idle_for(limit, || transfer.bytes_moved().load(Ordering::Relaxed), others).await;
    }

    /// Waits for an event of content or names. Fails with a timeout once no byte has moved for
    /// `commit_timeout`.
    pub(super) async fn bounded<T>(&self, event: impl Future<Output = T>) -> Result<T> {
        let limit = self.config.options.commit_timeout;
        tokio::select! {
            biased;
            outcome = event => Ok(outcome),
            () = self.upload_idle(limit) => {
                let detail = format!("stalled: no data of any file accepted for {}", exact_duration(limit));
                Err(Error::new(ErrorKind::Timeout, detail))
            }
        }
    }

    /// Resolves when for `limit` no byte was uploaded, and none was downloaded or hashed for a commit.
    pub async fn upload_idle(&self, limit: Duration) {
        idle_for(limit, || self.bytes_moved(), || None).await;
    }

    /// Grows with each byte that was uploaded, or downloaded or hashed for a commit. It may wrap.
    fn bytes_moved(&self) -> u64 {
        self.drive.bytes_uploaded().wrapping_add(self.progress.bytes_processed())
    }

    /// Like [`Self::upload_idle`], and no content was downloaded.
    pub async fn drive_idle(&self, limit: Duration) {
        idle_for(limit, || self.bytes_moved().wrapping_add(self.drive.bytes_downloaded()), || None).await;
    }

    /// Records a finished commit in the tree, and applies changes that were made while it ran.
    async fn apply_commit(
        &self,
        file: &Arc<OpenFile>,
        mut committed: CommitOutcome,
    ) -> Result<CommitOutcome> {
        let ino = file.ino();
        self.created.note_commit(&committed);
        if file.is_unlinked() {
            self.remove_unlinked(&committed).await?;
            return Ok(committed);
        }
        if let Some(moved) = self.apply_rename(ino, &committed, false).await? {
            committed.meta = moved;
        }
        let posix = {
            let mut tree = self.tree();
            let posix = self.posix_of(&tree, ino);
            // Since the change, the drive may have returned the attributes from before it.
            tree.set_posix(ino, posix.clone()).ok();
            posix
        };
        committed.meta = self.push_attrs(committed.meta, file.mtime(), posix).await;
        self.reader.forget(&committed.meta.file_id);
        // Before the tree is locked: the lock of the file comes first.
        let changed_at = file.mtime();
        let was_deleted = {
            let mut tree = self.tree();
            let was_deleted = file.is_unlinked();
            if !was_deleted {
                let posix = self.posix_of(&tree, ino);
                if posix != committed.meta.posix {
                    // Changed during the call.
                    let mtime = committed.meta.mtime;
                    self.pending.set(&committed.meta, DesiredAttrs { mtime, posix: posix.clone() });
                    committed.meta.posix = posix;
                }
                // From here on, an unlink finds the new object in the tree.
                tree.adopt(ino, committed.meta.clone(), Instant::now())?;
                tree.content_changed(ino, changed_at);
            }
            was_deleted
        };
        if was_deleted {
            self.remove_unlinked(&committed).await?;
        }
        Ok(committed)
    }

    /// Removes the result of a commit whose file was unlinked while it ran. Keeps an object that belongs to
    /// another file by now.
    async fn remove_unlinked(&self, committed: &CommitOutcome) -> Result<()> {
        let file_id = &committed.meta.file_id;
        if self.tree().is_referenced(file_id) {
            return Ok(());
        }
        self.remove_object(file_id, None, self.config.options.remove).await?;
        self.tree().add_tombstone(file_id.clone(), Instant::now());
        Ok(())
    }
}

impl TargetResolver for Vfs {
    fn resolve(&self, ino: Ino) -> Option<CommitTarget> {
        let target = Self::commit_target(self, ino)?;
        if let Some(file) = self.files.get(ino) {
            file.set_commit_location(Some((target.parent.clone(), target.name.clone())));
        }
        Some(target)
    }

    fn is_current(&self, target: &CommitTarget) -> bool {
        let location = self.tree().location(target.ino);
        location.is_some_and(|location| location.parent_id == target.parent && *location.name == target.name)
    }

    fn claim(&self, object: &FileId, ino: Ino) -> bool {
        let owner = self.tree().claimant(object).filter(|owner| *owner != ino);
        // Also the commit of an unlinked file may still overwrite it.
        let is_in_use = owner.and_then(|owner| self.files.get(owner)?.running_commit()).is_some();
        !is_in_use && self.tree().claim(object, ino)
    }

    fn mark_unsaved(&self, ino: Ino) {
        self.tree().mark_unsaved(ino);
    }
}

/// Resolves when `progress` has returned the same value for `limit`. Time does not count in which `others`
/// returned a number that has changed.
async fn idle_for(limit: Duration, progress: impl Fn() -> u64, others: impl Fn() -> Option<u64>) {
    let pause = (limit / IDLE_CHECKS_PER_LIMIT).min(IDLE_CHECK_INTERVAL_MAX);
    let mut clock = IdleClock { last: progress(), last_others: others(), idle: Duration::ZERO };
    while clock.idle < limit {
        let before = Instant::now();
        tokio::time::sleep(pause.min(limit.saturating_sub(clock.idle))).await;
        clock.advance(before.elapsed(), progress(), others());
    }
}

/// How long there was no progress.
struct IdleClock {
    last: u64,
    last_others: Option<u64>,
    idle: Duration,
}

impl IdleClock {
    fn advance(&mut self, elapsed: Duration, progress: u64, others: Option<u64>) {
        let others_moved = self.last_others.zip(others).is_some_and(|(before, now)| before != now);
        if progress != self.last {
            self.idle = Duration::ZERO;
        } else if !others_moved {
            self.idle += elapsed;
        }
        (self.last, self.last_others) = (progress, others);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Credential, MountConfig, MountOptions};
    use crate::content::open_file::Writer;
    use crate::ids::{DriveId, Secret};
    use crate::pds::drive::Drive;
    use crate::status::Progress;
    use crate::tree::Name;
    use crate::vfs::{Caller, RenameMode};
    use std::ffi::OsStr;

    /// A file system that moves no byte, and a new file of it.
    fn silent() -> (Arc<Vfs>, Arc<OpenFile>) {
        let credential = Credential::Token(Secret::new("token".into()));
        let endpoint = "http://127.0.0.1:9".parse().unwrap();
        let mut config = MountConfig::new(endpoint, DriveId::new("1").unwrap(), credential);
        config.options = MountOptions { commit_timeout: Duration::from_millis(200), ..config.options };
        let config = Arc::new(config);
        let vfs = Vfs::new(config.clone(), Drive::new(&config).unwrap(), Progress::new());
        let file = new_file(&vfs, "f");
        (vfs, file)
    }

    fn new_file(vfs: &Vfs, name: &str) -> Arc<OpenFile> {
        let name = Name::new(name.as_ref()).unwrap();
        let ino = vfs.tree().create_local(Ino::ROOT, &name, Instant::now(), (std::time::UNIX_EPOCH, None));
        vfs.open_file(ino.unwrap(), true).unwrap()
    }

    /// The outcome of an operation that must end by itself.
    async fn ended<T>(operation: impl Future<Output = Result<T>>) -> Option<ErrorKind> {
        let outcome = tokio::time::timeout(Duration::from_secs(20), operation).await;
        outcome.expect("the wait has no bound").err().map(|error| error.kind())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn wait_for_a_commit_is_bounded() {
        let (vfs, file) = silent();
        // Held: this commit does not end.
        let commit = file.begin_commit(|_| true, || vfs.commit_target(file.ino())).unwrap();
        let change = || file.truncate(5, Writer::NoHandle);
        let outcome = ended(vfs.change_content(&file, &[Some(Writer::NoHandle)], change)).await;
        assert_eq!(outcome, Some(ErrorKind::Timeout));
        let _other = new_file(&vfs, "g");
        let (from, to) = ((Ino::ROOT, OsStr::new("g")), (Ino::ROOT, OsStr::new("f")));
        let caller = Caller { uid: 0, gid: 0, tid: std::process::id() };
        let rename = Box::pin(vfs.rename(from, to, RenameMode::Replace, caller));
        assert_eq!(ended(rename).await, Some(ErrorKind::Timeout));
        drop(commit);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn commit_waits_for_a_rename_within_bounds() {
        let (vfs, file) = silent();
        let rename = vfs.active_renames.begin([file.ino()]);
        assert_eq!(ended(vfs.commit_if(&file, |_| true)).await, Some(ErrorKind::Timeout));
        drop(rename);
    }

    #[test]
    fn idle_time_excludes_waits_for_moving_files() {
        const STEP: Duration = Duration::from_secs(1);
        let mut clock = IdleClock { last: 0, last_others: None, idle: Duration::ZERO };
        let idle_s = |clock: &mut IdleClock, progress, others| {
            clock.advance(STEP, progress, others);
            clock.idle.as_secs()
        };
        assert_eq!(idle_s(&mut clock, 0, None), 1);
        assert_eq!(idle_s(&mut clock, 5, None), 0);
        assert_eq!(idle_s(&mut clock, 5, None), 1);
        // It begins to wait for others; they move, stop, and move again.
        assert_eq!(idle_s(&mut clock, 5, Some(10)), 2);
        assert_eq!(idle_s(&mut clock, 5, Some(11)), 2);
        assert_eq!(idle_s(&mut clock, 5, Some(11)), 3);
        assert_eq!(idle_s(&mut clock, 5, Some(12)), 3);
        // Its turn has come.
        assert_eq!(idle_s(&mut clock, 5, None), 4);
        assert_eq!(idle_s(&mut clock, 6, None), 0);
    }
}
