//! Files that live on this machine only: lock and junk files, which are for this machine anyway and would cost
//! an upload each.
//!
//! What decides is the name that a file is made under. Such a file is an unsaved one that is never settled: in
//! the tree it stands like any other file that the drive does not have yet, and its [`OpenFile`] is kept while
//! it has a name. What the drive has stays there under any name. A file that stays here and is renamed to
//! an ordinary name, or over what is not such a file, goes to the drive before the rename returns.

use std::sync::Arc;
use std::time::Instant;

use super::changes::At;
use super::{Vfs, leave_session_thread};
use crate::content::open_file::OpenFile;
use crate::content::space::Space;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Ino;
use crate::tree::Name;

/// Files that stay here, at most: what is made beyond them is an ordinary file.
const FILES_MAX: usize = 4096;
/// Room for them where there shall be no staged copies, in bytes.
const BYTES_MAX: u64 = 64 << 20;

/// The room for such files, where staged copies have that one.
pub(super) fn room(space: &Arc<Space>, free_bytes_min: u64) -> Arc<Space> {
    if space.is_off() { Space::new(space.folder(), Some(BYTES_MAX), free_bytes_min) } else { space.clone() }
}

impl Vfs {
    /// A file was made under this name.
    pub(super) fn stay_if_local_only(&self, file: &OpenFile, parent: Ino, name: &Name) -> Result<()> {
        if !self.is_local_only(parent, name) {
            return Ok(());
        }
        if !self.files.keep(file.ino(), FILES_MAX) {
            self.drop_unreachable();
            if !self.files.keep(file.ino(), FILES_MAX) {
                if self.is_here_only(parent) {
                    let detail = format!("{FILES_MAX} files live on this machine only");
                    return Err(Error::new(ErrorKind::NoSpace, detail));
                }
                tracing::warn!("{FILES_MAX} files live on this machine only; {name} will be on the drive");
                return Ok(());
            }
        }
        file.stay();
        Ok(())
    }

    fn is_local_only(&self, parent: Ino, name: &Name) -> bool {
        self.config.local_only.matches(name.as_str()) || self.is_trash_note(parent)
    }

    /// Files that stay here go with their folder, where somebody else has removed it.
    pub(super) fn drop_unreachable(&self) {
        let unreachable: Vec<Ino> = {
            let tree = self.tree();
            self.files.kept().into_iter().filter(|ino| !tree.is_below(*ino, Ino::ROOT)).collect()
        };
        for ino in unreachable {
            self.tree().unlink(ino, Instant::now());
            self.orphan(ino);
        }
    }

    /// An inode has lost its name: whoever has the file open goes on with it, and nothing of it comes to the
    /// drive.
    pub(super) fn orphan(&self, ino: Ino) {
        if let Some(file) = self.files.get(ino) {
            file.unlinked();
            self.files.let_go(ino);
        }
    }

    /// Renames a file that stays here. Where it is not to stay, it is on the drive when this returns, unless
    /// somebody is still writing; where that fails, it is where and what it was.
    pub(super) async fn rename_local(
        &self,
        file: &Arc<OpenFile>,
        from: &At,
        target: Option<Ino>,
        to: &At,
    ) -> Result<()> {
        let ino = file.ino();
        let is_local = |ino| self.files.get(ino).is_some_and(|file| file.is_local());
        if self.is_local_only(to.dir, &to.name) && target.is_none_or(is_local) {
            return self.rename_unsaved(ino, Some(file.clone()), target, to).await;
        }
        if let Some(open) = target.and_then(|target| self.files.get(target)).filter(|open| open.is_unsaved())
        {
            // Where this one is refused, that one must be there still, with all that was written to it.
            self.settle(&open).await?;
        }
        let file = self.open_file(ino, true)?;
        leave_session_thread().await;
        let outcome = match tokio::task::block_in_place(|| file.publish()) {
            Ok(published) => {
                let renamed = self.rename_unsaved(ino, Some(file.clone()), target, to).await;
                (renamed, published)
            }
            Err(error) => (Err(error), None),
        };
        let (mut done, published) = outcome;
        // What was not renamed stays here: it must not come to the drive under the name that it has.
        let is_for_drive = done.is_ok() || published.is_none();
        if self.files.leave_writer(ino) && is_for_drive {
            done = done.and(self.settle(&file).await);
        }
        match (&done, published) {
            (Ok(()), _) => self.files.let_go(ino),
            (Err(_), Some(published)) => {
                file.withdraw(published);
                let back = self.tree().rename_back(ino, from.dir, &from.name, Instant::now());
                if let Err(error) = back {
                    tracing::warn!(%error, "{} stays on this machine as {}", from.name, to.name);
                }
            }
            (Err(_), None) => {}
        }
        self.close_file(&file);
        done
    }
}
