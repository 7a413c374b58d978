//! Removing: unlink, rmdir, and whatever else takes an object from the drive.
//!
//! The drive is changed first and the tree after it, so that a failure leaves what was believed. What an object held
//! stays readable for who has it open, and for who has begun to copy it.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::time::Instant;

use super::{Vfs, leave_session_thread};
use crate::config::RemoveMode;
use crate::content::finish::target;
use crate::content::reader::ReadTarget;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, Ino};
use crate::pds::drive::FileMeta;
use crate::pds::types::FileType;
use crate::posix;
use crate::tree::{Identity, Name};

/// Pages that are read to find out that a folder is empty.
const EMPTY_PAGES_MAX: usize = 100;

impl Vfs {
    /// Removes a file: to the recycle bin, or for good.
    pub async fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.check_writable()?;
        let name = Name::new(name)?;
        let ino = self.resolve_existing(parent, &name).await?;
        if self.tree().kind(ino)? == FileType::Folder {
            return Err(Error::new(ErrorKind::IsDirectory, format!("{name} is a folder")));
        }
        self.remove_file(ino, self.config.remove).await?;
        self.tree().names_set(&[parent], &[ino], posix::now());
        Ok(())
    }

    /// A file is an orphan only when the drive has let go of it: where that fails, it is what it
    /// was, and what is written to it is not lost.
    pub(super) async fn remove_file(&self, ino: Ino, mode: RemoveMode) -> Result<()> {
        if let Some(file) = self.files.get(ino) {
            leave_session_thread().await;
            tokio::task::block_in_place(|| file.take_back());
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
                // A commit that ended meanwhile has made another object.
                let next = [object, replaced].into_iter().flatten().find(|id| !removed.contains(id));
                if next.is_none() {
                    // From now on no commit of it begins; one that runs removes what it makes.
                    self.orphan(ino);
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
            drop(self.env.space.kept().take(&target(&meta)));
        }
        let mut tree = self.tree();
        for file_id in removed {
            tree.entomb(file_id, Instant::now());
        }
        Ok(())
    }

    /// Removes an object that nothing here stands for any more; `former` was the inode of it.
    pub(super) async fn remove_superseded(&self, object: FileMeta, former: Option<Ino>) -> Result<()> {
        self.remove_object(&object.file_id, former, self.config.remove).await?;
        self.pending.forget(&object.file_id);
        self.tree().superseded(object.file_id, Instant::now());
        Ok(())
    }

    /// Takes an object from the drive; `ino` is, or was, the inode of it.
    pub(super) async fn remove_object(
        &self,
        file_id: &FileId,
        ino: Option<Ino>,
        mode: RemoveMode,
    ) -> Result<()> {
        let held = self.hold_readers(file_id, ino).await;
        let removed = self.drive.remove(file_id, mode).await;
        if removed.is_err() {
            for held in &held {
                self.reader.let_go(held);
            }
        }
        removed
    }

    /// Who has a file open goes on reading it when it is deleted, and so does who has begun to copy it.
    async fn hold_readers(&self, file_id: &FileId, ino: Option<Ino>) -> HashSet<ReadTarget> {
        let base = ino.and_then(|ino| self.files.get(ino)).and_then(|file| file.base());
        let read = base.filter(|base| base.file_id == *file_id).map(|base| target(&base));
        let copied = self.files.all().into_iter().filter_map(|file| file.copies(file_id));
        let mut held = HashSet::new();
        for target in copied.chain(read).filter(|target| target.size > 0).collect::<HashSet<_>>() {
            match self.reader.hold(&target).await {
                Ok(()) => _ = held.insert(target),
                // The deletion itself will tell of a drive that does not answer.
                Err(error) => {
                    tracing::debug!(%file_id, %error, "an open file will not be readable once it is deleted");
                }
            }
        }
        held
    }

    /// Removes an empty folder.
    pub async fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.check_writable()?;
        let name = Name::new(name)?;
        let ino = self.resolve_existing(parent, &name).await?;
        if self.tree().kind(ino)? == FileType::File {
            return Err(Error::new(ErrorKind::NotDirectory, format!("{name} is a file")));
        }
        self.remove_folder(ino).await?;
        self.tree().names_set(&[parent], &[ino], posix::now());
        Ok(())
    }

    pub(super) async fn remove_folder(&self, ino: Ino) -> Result<()> {
        if self.is_here_only(ino) {
            return self.remove_trash_folder(ino);
        }
        let folder = self.folder_id(ino)?;
        self.check_empty(ino, &folder).await?;
        self.drive.remove(&folder, self.config.remove).await?;
        self.tree().unlink(ino, Instant::now());
        Ok(())
    }

    /// Asks the drive, not the tree: removing a folder takes everything in it along.
    async fn check_empty(&self, ino: Ino, folder: &FileId) -> Result<()> {
        let not_empty = || Error::new(ErrorKind::NotEmpty, "the folder is not empty");
        let started = Instant::now();
        let own = self.tree().own_entries(ino, started);
        for entry in own {
            let Some(file) = entry else { return Err(not_empty()) };
            // No listing need show it yet, but somebody else may have taken it away.
            match self.drive.get(&file).await {
                Ok(meta) if meta.parent_id.as_ref() == Some(folder) => return Err(not_empty()),
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        let mut marker = String::new();
        for _ in 0..EMPTY_PAGES_MAX {
            let page = self.drive.list_page(folder, &marker).await?;
            let tree = self.tree();
            // A listing may still show what was removed here a moment ago.
            if page.items.iter().any(|item| !tree.is_removed(ino, &item.file_id, started)) {
                return Err(not_empty());
            }
            match page.next_marker {
                Some(next) => marker = next,
                None => return Ok(()),
            }
        }
        Err(not_empty())
    }
}
