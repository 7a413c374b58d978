//! Removal: unlink, rmdir, and other calls that remove objects from the drive.
//!
//! The drive is changed first and the tree after it, so that a failure leaves the tree unchanged. The content
//! of a removed object stays readable for open handles and for copies in progress.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::time::Instant;

use super::Vfs;
use crate::clock;
use crate::config::RemoveMode;
use crate::content::reader::ReadTarget;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, Ino};
use crate::pds::listing_bounds::ListingBounds;
use crate::pds::types::FileType;
use crate::tree::{Identity, Name};

/// Most pages that are read to find out that a directory is empty.
const EMPTY_PAGES_MAX: usize = 100;

impl Vfs {
    /// Moves a file to the recycle bin or deletes it, as configured.
    pub async fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let name = Name::new(name)?;
        let ino = self.resolve_existing(parent, &name).await?;
        if self.tree().kind(ino)? == FileType::Folder {
            return Err(Error::new(ErrorKind::IsDirectory, format!("{name} is a directory")));
        }
        if let Some(recycled) = self.trash_entries.get(ino) {
            return self.delete_trash_entry(ino, &recycled.file_id).await;
        }
        self.remove_file(ino, self.config.options.remove).await?;
        self.tree().names_changed(&[parent], &[ino], clock::now());
        Ok(())
    }

    /// Marks the file as unlinked only after the drive removed it: if that fails, the file and its unsaved
    /// content stay.
    pub(super) async fn remove_file(&self, ino: Ino, mode: RemoveMode) -> Result<()> {
        if let Some(file) = self.files.get(ino) {
            file.stage_for_unlink().await;
        }
        let known = self.tree().meta(ino).cloned();
        let mut removed = HashSet::new();
        loop {
            let next = {
                let mut tree = self.tree();
                let object = match tree.identity(ino) {
                    Some(Identity::Remote(file_id)) => Some(file_id),
                    Some(Identity::Local) | None => None,
                };
                let replaced = tree.replaces(ino).map(|meta| meta.file_id.clone());
                // A commit that ended during the last iteration may have created another object.
                let next = [object, replaced].into_iter().flatten().find(|id| !removed.contains(id));
                if next.is_none() {
                    // From here on no commit of it starts. A running commit removes its result.
                    self.mark_unlinked(ino);
                    tree.unlink(ino, Instant::now());
                }
                next
            };
            let Some(file_id) = next else { break };
            self.remove_object(&file_id, Some(ino), mode).await?;
            self.pending.forget(&file_id);
            removed.insert(file_id);
        }
        if let (Some(meta), None) = (known, self.files.get(ino)) {
            drop(self.upload_context.cached_files.remove(&ReadTarget::of(&meta)));
        }
        let mut tree = self.tree();
        for file_id in removed {
            tree.add_tombstone(file_id, Instant::now());
        }
        Ok(())
    }

    /// Removes an object from the drive. `ino` is, or was, its inode.
    pub(super) async fn remove_object(
        &self,
        file_id: &FileId,
        ino: Option<Ino>,
        mode: RemoveMode,
    ) -> Result<()> {
        let pinned = self.preserve_for_readers(file_id, ino).await;
        let removed = self.drive.remove(file_id, mode).await;
        self.quota.free_space.note_removal();
        if removed.is_err() {
            for target in &pinned {
                self.reader.unpin(target);
            }
        }
        removed
    }

    /// Keeps the content of an object readable for open handles and for copies in progress.
    async fn preserve_for_readers(&self, file_id: &FileId, ino: Option<Ino>) -> HashSet<ReadTarget> {
        let base = ino.and_then(|ino| self.files.get(ino)).and_then(|file| file.base());
        let read = base.filter(|base| base.file_id == *file_id).map(|base| ReadTarget::of(&base));
        let copied = self.files.all().into_iter().filter_map(|file| file.pending_clone_of(file_id));
        let mut pinned = HashSet::new();
        for target in copied.chain(read).filter(|target| target.size > 0).collect::<HashSet<_>>() {
            match self.reader.pin(&target).await {
                Ok(()) => _ = pinned.insert(target),
                // If the drive does not answer, the removal itself returns the error.
                Err(error) => {
                    tracing::debug!(%file_id, %error, "cannot preserve the content of an open file");
                }
            }
        }
        pinned
    }

    pub async fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let name = Name::new(name)?;
        let ino = self.resolve_existing(parent, &name).await?;
        if self.tree().kind(ino)? == FileType::File {
            return Err(Error::new(ErrorKind::NotDirectory, format!("{name} is not a directory")));
        }
        if let Some(recycled) = self.trash_entries.get(ino) {
            return self.delete_trash_entry(ino, &recycled.file_id).await;
        }
        self.remove_dir(ino).await?;
        self.tree().names_changed(&[parent], &[ino], clock::now());
        Ok(())
    }

    pub(super) async fn remove_dir(&self, ino: Ino) -> Result<()> {
        if self.is_local_dir(ino) {
            return self.remove_local_dir(ino);
        }
        let dir_id = self.dir_id(ino)?;
        self.check_empty(ino, &dir_id).await?;
        self.drive.remove(&dir_id, self.config.options.remove).await?;
        self.tree().unlink(ino, Instant::now());
        Ok(())
    }

    /// Queries the drive, not the tree: removing a directory removes everything in it.
    async fn check_empty(&self, ino: Ino, dir_id: &FileId) -> Result<()> {
        let not_empty = || Error::new(ErrorKind::NotEmpty, "directory not empty");
        let started = Instant::now();
        let recent = self.tree().recent_local_entries(ino, started);
        for entry in recent {
            let Some(file) = entry else { return Err(not_empty()) };
            // A listing may lack it for now, and another client may have removed it.
            match self.drive.get(&file).await {
                Ok(meta) if meta.parent_id.as_ref() == Some(dir_id) => return Err(not_empty()),
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        let (mut bounds, mut marker) = (ListingBounds::default(), String::new());
        for _ in 0..EMPTY_PAGES_MAX {
            let page = self.drive.list_page(dir_id, &marker).await?;
            let tree = self.tree();
            // A listing may still contain recently removed entries.
            if page.items.iter().any(|item| !tree.is_removed(ino, item, started)) {
                return Err(not_empty());
            }
            match bounds.check([], page.next_marker)? {
                Some(next) => marker = next,
                None => return Ok(()),
            }
        }
        Err(not_empty())
    }
}
