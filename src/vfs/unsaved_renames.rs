//! Renames of files with unsaved content, without waiting for their commit.

use std::sync::Arc;
use std::time::Instant;

use super::Vfs;
use super::close::process_of;
use super::superseded::{Reason, Superseded};
use super::types::{Caller, NameInDir};
use crate::content::commit::CommitOutcome;
use crate::content::open_file::OpenFile;
use crate::error::{ErrorKind, Result};
use crate::ids::{FileId, Ino};
use crate::pds::drive::FileMeta;
use crate::status::CommitMethod;
use crate::tree::{Identity, RemoteLocation, display_name};

impl Vfs {
    /// Renames the dentry. The next commit brings the content to the new location. An existing object of the
    /// file is moved at once where possible: other clients see the rename, and the old name is free.
    pub(super) async fn rename_unsaved(
        &self,
        (source, file): (Ino, Option<Arc<OpenFile>>),
        (target, to): (Option<Ino>, &NameInDir),
        caller: Caller,
    ) -> Result<()> {
        if let Some(open) = target.and_then(|target| self.files.get(target))
            && self.tree().objects(open.ino()).elsewhere.is_some()
        {
            // It has two objects. Neither may go before the content that replaces both is committed.
            self.commit_for(&[process_of(caller)], &open).await?;
        }
        let guard = self.active_renames.begin([source]);
        // A running commit would move it back to where the commit started.
        let is_running = file.as_ref().is_some_and(|file| file.running_commit().is_some());
        let known = {
            let tree = self.tree();
            let is_new = |ino| tree.identity(ino) == Some(Identity::Local) && tree.replaces(ino).is_none();
            let is_free = target.is_none_or(is_new) && tree.replaces(source).is_none();
            let is_there = is_free && !is_running && tree.is_at_location(source);
            tree.meta(source).filter(|_| is_there).cloned().zip(tree.location(source))
        };
        if let Some((meta, location)) = known {
            let to_dir_id = self.dir_id(to.dir)?;
            self.move_remote_object(source, &meta, (&location, &to_dir_id), to).await?;
        }
        let superseded = {
            let mut tree = self.tree();
            let superseded = tree.rename_unsaved(source, to.dir, &to.name, Instant::now())?;
            if let Some(target) = target {
                self.mark_unlinked(target);
            }
            superseded
        };
        drop(guard);
        if let Some(file) = &file {
            file.set_path(&self.path_of(source));
        }
        for object in superseded {
            self.remove_superseded(Superseded { object, former: target, reason: Reason::Unused }).await;
        }
        if let Some(file) = file {
            self.finish_late_commit(&file).await;
        }
        Ok(())
    }

    /// Moves the existing object of an unsaved file. On failure the next commit moves it.
    async fn move_remote_object(
        &self,
        ino: Ino,
        meta: &FileMeta,
        (from, to_dir_id): (&RemoteLocation, &FileId),
        to: &NameInDir,
    ) -> Result<()> {
        let moving = self.mark_moving(&[ino]);
        let old_name = display_name(&meta.name, meta.kind);
        let old_name_is_free = from.parent == to.dir || self.tree().child(to.dir, &old_name).is_none();
        let dir_ids = (&from.parent_id, to_dir_id);
        match self.move_on_drive(meta, dir_ids, &to.name.remote(), old_name_is_free).await {
            Ok(moved) => {
                let mut tree = self.tree();
                // Only the location: a commit that ended during the call knows the content better.
                if let Some(now) = tree.meta(ino).filter(|now| now.file_id == moved.file_id).cloned() {
                    let (parent_id, name) = (moved.parent_id, moved.name);
                    tree.merge_object(FileMeta { parent_id, name, ..now }, Instant::now());
                }
            }
            Err(error) if error.kind() == ErrorKind::Exists => return Err(error),
            Err(error) => tracing::debug!(%error, "cannot move an unsaved file now; its commit will move it"),
        }
        drop(moving);
        Ok(())
    }

    /// If the commit ended during the calls, applies the rename to the drive and the tree.
    async fn finish_late_commit(&self, file: &Arc<OpenFile>) {
        if file.has_local_content() || file.is_unlinked() {
            return;
        }
        let ino = file.ino();
        let meta = {
            let tree = self.tree();
            tree.meta(ino).filter(|_| matches!(tree.identity(ino), Some(Identity::Remote(_)))).cloned()
        };
        let (Some(meta), Some(target)) = (meta, self.commit_target(ino)) else { return };
        let committed = CommitOutcome { meta, method: CommitMethod::Unchanged, target };
        let guard = self.late_renames.begin();
        self.apply_late_renames(file, committed).await;
        drop(guard);
        let mut tree = self.tree();
        if let Some(meta) = tree.meta(ino).filter(|_| tree.is_at_location(ino)).cloned()
            && !file.is_unlinked()
        {
            // Its own object: never refused.
            let _ = tree.adopt(ino, meta, Instant::now());
        }
    }
}
