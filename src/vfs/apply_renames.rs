//! Applies renames to the drive that happened during a commit. See [`super::late_renames`].

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::Vfs;
use super::late_renames::LateRename;
use super::types::UnsavedFile;
use crate::content::commit::CommitOutcome;
use crate::content::open_file::OpenFile;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Ino;
use crate::pds::drive::FileMeta;
use crate::pds::types::CheckNameMode;
use crate::supervised;

/// Renames applied in a row at most: the file may be renamed again while one is applied.
const FOLLOWED_MAX: usize = 8;
/// Time until a retry. The calls themselves have their own retries.
const PAUSE: Duration = Duration::from_secs(10);

impl Vfs {
    /// Applies renames to the drive that happened while a commit was ending.
    pub(super) async fn apply_late_renames(&self, file: &Arc<OpenFile>, committed: CommitOutcome) {
        let late_rename = LateRename { file: file.clone(), committed };
        let (late_rename, moved) = self.try_to_move(late_rename).await;
        let Err(error) = moved else { return };
        let ino = file.ino();
        let path = self.path_of(ino);
        tracing::error!(%ino, %error, "{path}: rename not yet applied on the drive; it will be retried");
        self.failures.record(ino, Some(&error));
        let is_first = {
            let mut pending = self.late_renames.lock();
            pending.insert(ino, late_rename);
            pending.len() == 1
        };
        if is_first {
            let vfs = self.this.clone();
            tokio::spawn(supervised::run("late renames", move || keep_retrying(vfs.clone())));
        }
    }

    /// Retries all pending renames. Returns those that failed again.
    pub(super) async fn retry_late_renames(&self) -> Vec<UnsavedFile> {
        self.late_renames.wait_idle().await;
        let pending: Vec<_> = self.late_renames.lock().values().cloned().collect();
        let mut failed = Vec::new();
        for late_rename in pending {
            let ino = late_rename.file.ino();
            let active = self.late_renames.begin();
            let (late_rename, moved) = self.try_to_move(late_rename).await;
            match moved {
                Ok(()) => {
                    self.progress.metadata_saved();
                    self.late_renames.lock().remove(&ino);
                    self.failures.record(ino, None);
                }
                Err(error) => {
                    self.failures.record(ino, Some(&error));
                    // Keeps the progress of this attempt.
                    self.late_renames.lock().insert(ino, late_rename);
                    failed.push(UnsavedFile { ino: Some(ino), path: self.path_of(ino), error });
                }
            }
            drop(active);
        }
        failed
    }

    /// [`Self::move_to_location`]. After a panic, the rename is as before: it is tried again.
    async fn try_to_move(&self, late_rename: LateRename) -> (LateRename, Result<()>) {
        let vfs = match self.this() {
            Ok(vfs) => vfs,
            Err(error) => return (late_rename, Err(error)),
        };
        let mut moving = late_rename.clone();
        let attempt = async move {
            let moved = vfs.move_to_location(&mut moving).await;
            (moving, moved)
        };
        supervised::run_once("late rename", attempt).await.unwrap_or_else(|| {
            let error = Error::new(ErrorKind::Cancelled, "internal error: the rename panicked");
            (late_rename, Err(error))
        })
    }

    /// Moves the object of a file to its location in the tree. Does nothing if another client has removed it.
    async fn move_to_location(&self, late_rename: &mut LateRename) -> Result<()> {
        let LateRename { file, committed } = late_rename;
        for _ in 0..FOLLOWED_MAX {
            if file.is_unlinked() || file.has_local_content() {
                return Ok(());
            }
            match self.apply_rename(file.ino(), committed, true).await {
                Ok(Some(moved)) => {
                    // The file may be closed by now: only the tree knows later changes.
                    if moved.file_id != committed.meta.file_id {
                        let (mtime, posix) = self.current_attrs(&self.tree(), file.ino(), &moved);
                        self.push_attrs(moved.clone(), mtime, posix).await;
                    }
                    let mut tree = self.tree();
                    // A rename since may have given the file another object, and may have hidden this one.
                    if tree.meta(file.ino()).is_none_or(|now| now.file_id != committed.meta.file_id) {
                        tree.moved_leftover(moved, Instant::now());
                        return Ok(());
                    }
                    let (mtime, posix) = self.current_attrs(&tree, file.ino(), &moved);
                    committed.meta = FileMeta { mtime, posix, ..moved };
                    tree.adopt(file.ino(), committed.meta.clone(), Instant::now())?;
                    drop(tree);
                    file.set_base(&committed.meta);
                }
                Ok(None) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The end of a commit of `meta`: looks for a rename.
    #[cfg(all(test, feature = "server"))]
    pub async fn end_commit_of(&self, file: &Arc<OpenFile>, meta: FileMeta) {
        let Some(target) = self.commit_target(file.ino()) else { return };
        let method = crate::status::CommitMethod::Uploaded;
        self.apply_late_renames(file, CommitOutcome { meta, method, target }).await;
    }

    /// Moves a committed file to the location that it was renamed to during its upload. `is_adopted`: the tree has
    /// had the committed object. A rename since may have given the file another one, and does the rest itself.
    pub(super) async fn apply_rename(
        &self,
        ino: Ino,
        committed: &CommitOutcome,
        is_adopted: bool,
    ) -> Result<Option<FileMeta>> {
        let (location, replaces) = {
            let tree = self.tree();
            let has_object = || tree.meta(ino).is_some_and(|now| now.file_id == committed.meta.file_id);
            let is_current = !is_adopted || has_object();
            (tree.location(ino).filter(|_| is_current), tree.replaces(ino).cloned())
        };
        let Some(location) = location else { return Ok(None) };
        let used = &committed.target;
        if let Some(target) = replaces.filter(|target| target.file_id != committed.meta.file_id) {
            let (meta, superseded) = self.replace_committed(&target, &committed.meta).await?;
            if let Some(superseded) = superseded {
                self.remove_superseded(superseded).await;
            }
            return Ok(Some(meta));
        }
        // The content is committed, so an existing sibling must not prevent the move. The location is that of
        // the drive's answer, not of the target: a new revision of a file keeps the file's location.
        let mut moved = None;
        if location.parent_id != *committed.meta.parent_id.as_ref().unwrap_or(&used.parent) {
            let (meta, to) = (&committed.meta, &location.parent_id);
            moved = Some(self.drive.moved_to(meta, to, CheckNameMode::Ignore).await?);
        }
        if *location.name != *committed.meta.name {
            moved = Some(
                self.drive.rename(&committed.meta.file_id, &location.name, CheckNameMode::Ignore).await?,
            );
        }
        Ok(moved)
    }
}

/// Retries until no late rename is pending, or the file system is gone.
async fn keep_retrying(vfs: Weak<Vfs>) {
    loop {
        tokio::time::sleep(PAUSE).await;
        let Some(vfs) = vfs.upgrade() else { return };
        vfs.retry_late_renames().await;
        if vfs.late_renames.lock().is_empty() {
            return;
        }
    }
}
