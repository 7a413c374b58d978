//! Local-only files: lock and junk files that matter on this machine only and would cost an upload each.
//!
//! The name at creation decides. A local-only file is an unsaved file that is never committed: in the tree it
//! looks like any file that is not on the drive yet, and its [`OpenFile`] is kept while it has a name. Files
//! that exist on the drive stay there under any name. A local-only file that is renamed to an ordinary name,
//! or over an ordinary file, is committed before the rename returns.

use std::sync::Arc;
use std::time::Instant;

use super::Vfs;
use super::close::process_of;
use super::types::{Caller, NameInDir};
use crate::content::open_file::OpenFile;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Ino;
use crate::status::FailedObject;
use crate::tree::Name;

/// Most local-only files. Above this count, new ones become ordinary files.
const FILES_MAX: usize = 4096;
impl Vfs {
    /// Makes a new file local-only if its name matches a pattern or its directory requires it.
    pub(super) fn make_local_if_matching(&self, file: &OpenFile, parent: Ino, name: &Name) -> Result<()> {
        if !self.is_local_only(parent, name) {
            return Ok(());
        }
        if !self.files.pin(file.ino(), FILES_MAX) {
            self.drop_detached_local_files();
            if !self.files.pin(file.ino(), FILES_MAX) {
                if self.is_local_dir(parent) {
                    let detail = format!("limit of {FILES_MAX} local-only files reached");
                    return Err(Error::new(ErrorKind::NoSpace, detail));
                }
                tracing::warn!("limit of {FILES_MAX} local-only files reached: {name} will be uploaded");
                return Ok(());
            }
        }
        file.make_local();
        Ok(())
    }

    fn is_local_only(&self, parent: Ino, name: &Name) -> bool {
        self.config.options.local_only.matches(name.as_str()) || self.is_trash_note(parent)
    }

    /// Removes local-only files whose directory was removed by another client.
    pub(super) fn drop_detached_local_files(&self) {
        let detached: Vec<Ino> = {
            let tree = self.tree();
            self.files.pinned().into_iter().filter(|ino| !tree.is_below(*ino, Ino::ROOT)).collect()
        };
        for ino in detached {
            self.tree().unlink(ino, Instant::now());
            self.mark_unlinked(ino);
        }
    }

    /// Marks the open file of an inode as unlinked: open handles continue, and nothing is committed any more.
    pub(super) fn mark_unlinked(&self, ino: Ino) {
        self.progress.clear_failure(&FailedObject::Content(ino));
        if let Some(file) = self.files.get(ino) {
            file.mark_unlinked();
            self.files.unpin(ino);
        }
    }

    /// Renames a local-only file. If the new name is an ordinary one, the file is committed before this
    /// returns, unless it has a writer. If that fails, the file keeps its name and stays local-only.
    pub(super) async fn rename_local(
        &self,
        file: &Arc<OpenFile>,
        from: &NameInDir,
        (target, to): (Option<Ino>, &NameInDir),
        caller: Caller,
    ) -> Result<()> {
        let ino = file.ino();
        let is_local = |ino| self.files.get(ino).is_some_and(|file| file.is_local());
        if self.is_local_only(to.dir, &to.name) && target.is_none_or(is_local) {
            return self.rename_unsaved((ino, Some(file.clone())), (target, to), caller).await;
        }
        if let Some(open) =
            target.and_then(|target| self.files.get(target)).filter(|open| open.has_local_content())
        {
            // If the rename fails, the target must still exist with all its content.
            self.commit_for(&[process_of(caller)], &open).await?;
        }
        let file = self.open_file(ino, true)?;
        let outcome = match file.promote().await {
            Ok(promoted) => {
                let renamed = self.rename_unsaved((ino, Some(file.clone())), (target, to), caller).await;
                (renamed, promoted)
            }
            Err(error) => (Err(error), None),
        };
        let (mut done, promoted) = outcome;
        // A file that was not renamed stays local-only: it must not be committed under its local-only name.
        if done.is_ok() || promoted.is_none() {
            done = done.and(self.release_writer(&file).await);
        } else {
            self.files.release_writer(ino);
        }
        match (&done, promoted) {
            (Ok(()), _) => self.files.unpin(ino),
            (Err(_), Some(promoted)) => {
                file.demote(promoted);
                let back = self.tree().revert_rename(ino, from.dir, &from.name, Instant::now());
                if let Err(error) = back {
                    let (old, new) = (&from.name, &to.name);
                    tracing::warn!(%error, "cannot restore the name {old}: the local-only file is now {new}");
                }
            }
            (Err(_), None) => {}
        }
        self.close_file(&file);
        done
    }
}
