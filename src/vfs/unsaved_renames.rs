//! Renaming a file whose content is not on the drive yet, without waiting for it.

use std::sync::Arc;
use std::time::Instant;

use super::Vfs;
use super::changes::At;
use crate::content::finish::Finished;
use crate::content::open_file::OpenFile;
use crate::error::{ErrorKind, Result};
use crate::ids::{FileId, Ino};
use crate::pds::drive::FileMeta;
use crate::status::Commit;
use crate::tree::{Identity, Place, shown};

impl Vfs {
    /// The dentry; the commit to come brings the content to its new place. What the drive has of the file goes
    /// there at once where that can be: others see the rename, and the old name is free.
    pub(super) async fn rename_unsaved(
        &self,
        source: Ino,
        file: Option<Arc<OpenFile>>,
        target: Option<Ino>,
        to: &At,
    ) -> Result<()> {
        if let Some(open) = target.and_then(|target| self.files.get(target))
            && self.tree().objects(open.ino()).elsewhere.is_some()
        {
            // Of its two objects, neither may go before the content that is to replace both is on the drive.
            self.settle(&open).await?;
        }
        let mover = self.moving.begin([source]);
        // A commit that is under way would take it back to where it began.
        let is_running = file.as_ref().is_some_and(|file| file.running().is_some());
        let known = {
            let tree = self.tree();
            let is_new = |ino| tree.identity(ino) == Some(Identity::Local) && tree.replaces(ino).is_none();
            let is_free = target.is_none_or(is_new) && tree.replaces(source).is_none();
            let is_there = is_free && !is_running && tree.is_at_place(source);
            tree.meta(source).filter(|_| is_there).cloned().zip(tree.place(source))
        };
        if let Some((meta, place)) = known {
            let to_folder = self.folder_id(to.dir)?;
            self.move_early(source, &meta, (&place, &to_folder), to).await?;
        }
        let superseded = {
            let mut tree = self.tree();
            let superseded = tree.rename_unsaved(source, to.dir, &to.name, Instant::now())?;
            if let Some(target) = target {
                self.orphan(target);
            }
            superseded
        };
        drop(mover);
        if let Some(file) = &file {
            file.renamed(&self.name_of(source));
        }
        for object in superseded {
            self.remove_superseded(object, target).await?;
        }
        if let Some(file) = file {
            self.after_commit_meanwhile(&file).await;
        }
        Ok(())
    }

    /// Moves what the drive has of an unsaved file. Where that cannot be, its commit does it.
    async fn move_early(
        &self,
        ino: Ino,
        meta: &FileMeta,
        (from, to_folder): (&Place, &FileId),
        to: &At,
    ) -> Result<()> {
        let held = self.hold(&[ino]);
        let shown = shown(&meta.name, meta.kind);
        let old_name_is_free = from.parent == to.dir || self.tree().child(to.dir, &shown).is_none();
        let folders = (&from.parent_id, to_folder);
        match self.move_on_drive(meta, folders, &to.name.remote(), old_name_is_free).await {
            Ok(moved) => {
                let mut tree = self.tree();
                // Only the place: of the content, a commit that has ended meanwhile knows more.
                if let Some(now) = tree.meta(ino).filter(|now| now.file_id == moved.file_id).cloned() {
                    let (parent_id, name) = (moved.parent_id, moved.name);
                    tree.observe(FileMeta { parent_id, name, ..now }, Instant::now());
                }
            }
            Err(error) if error.kind() == ErrorKind::Exists => return Err(error),
            Err(error) => tracing::debug!(%error, "an unsaved file is moved when it is committed"),
        }
        drop(held);
        Ok(())
    }

    /// The commit may have ended while the drive was asked: then nobody else brings the file to its place.
    async fn after_commit_meanwhile(&self, file: &Arc<OpenFile>) {
        if file.is_unsaved() || file.is_orphan() {
            return;
        }
        let ino = file.ino();
        let meta = {
            let tree = self.tree();
            tree.meta(ino).filter(|_| matches!(tree.identity(ino), Some(Identity::Remote(_)))).cloned()
        };
        let (Some(meta), Some(destination)) = (meta, self.destination(ino)) else { return };
        let finished = Finished { meta, how: Commit::Unchanged, destination };
        let under_way = self.late_renames.begin();
        self.follow_late_renames(file, finished).await;
        drop(under_way);
        let mut tree = self.tree();
        if let Some(meta) = tree.meta(ino).filter(|_| tree.is_at_place(ino)).cloned()
            && !file.is_orphan()
        {
            tree.adopt(ino, meta, Instant::now());
        }
    }
}
