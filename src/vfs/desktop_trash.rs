//! Maps the trash of desktops to the recycle bin of the drive.
//!
//! A desktop that moves a file to the trash creates directories in the root of the mount, writes a note with
//! the original location, and renames the file:
//!
//! ```text
//!   .Trash-1000/info/NAME.trashinfo     the note
//!   .Trash-1000/files/NAME              the file
//! ```
//!
//! On the drive these directories would disturb other clients, and the files would still use quota. Therefore
//! the directories are local-only, and the root does not list them. A file renamed into `files` goes to the recycle
//! bin, from which every client can restore it. Its inode stays in `files` as an entry ([`super::sync_trash`]): a
//! rename out of there restores the object, a removal there deletes it for good, and so does a rename into the directory
//! `expunged` of the trash, which is how the trash daemon of GNOME deletes. If the drive has such a directory already,
//! its entries stay, and no new ones are added.

use std::sync::Arc;
use std::time::Instant;

use super::Vfs;
use super::close::process_of;
use super::types::{Caller, Entry, NameInDir};
use crate::clock;
use crate::config::RemoveMode;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Ino;
use crate::pds::drive::FileMeta;
use crate::pds::types::FileType;
use crate::posix::Posix;
use crate::tree::{Identity, ListedEntry, Name, Tree};

/// Name of a trash directory without the user id.
const TRASH_PREFIX: &str = ".Trash-";
const UID_DIGITS_MAX: usize = 10;
/// Directory for trashed files.
pub(super) const FILES: &str = "files";
/// Directory for notes, and the suffix of their names.
pub(super) const INFO: &str = "info";
pub(super) const NOTE_SUFFIX: &str = ".trashinfo";

/// Directory from which the trash daemon of GNOME deletes.
const EXPUNGED: &str = "expunged";

/// Role of a directory in a trash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum TrashDir {
    /// The trash directory itself, or another directory in it.
    Other,
    Files,
    /// The notes about trashed files.
    Info,
    Expunged,
}

/// The name of the trash of a user.
pub(super) fn own_trash_name(uid: u32) -> String {
    format!("{TRASH_PREFIX}{uid}")
}

fn is_trash_name(name: &str) -> bool {
    name.strip_prefix(TRASH_PREFIX).is_some_and(|uid| {
        (1..=UID_DIGITS_MAX).contains(&uid.len()) && uid.bytes().all(|digit| digit.is_ascii_digit())
    })
}

fn trash_dir(tree: &Tree, dir: Ino) -> Option<TrashDir> {
    let above = tree.parent(dir)?;
    if above == Ino::ROOT {
        return tree.display_name(dir).filter(|name| is_trash_name(name)).map(|_| TrashDir::Other);
    }
    if tree.parent(above)? != Ino::ROOT || !is_trash_name(&tree.display_name(above)?) {
        return None;
    }
    Some(match &*tree.display_name(dir)? {
        FILES => TrashDir::Files,
        INFO => TrashDir::Info,
        EXPUNGED => TrashDir::Expunged,
        _ => TrashDir::Other,
    })
}

impl Vfs {
    /// Whether a new directory of this name is local-only.
    pub(super) fn is_local_dir_name(&self, parent: Ino, name: &Name) -> bool {
        (parent == Ino::ROOT && is_trash_name(name.as_str())) || self.is_local_dir(parent)
    }

    /// Whether a directory is local-only.
    pub(super) fn is_local_dir(&self, dir: Ino) -> bool {
        self.tree().identity(dir) == Some(Identity::Local)
    }

    /// Whether a new file in this directory is local-only: a note, or any file in a local-only directory.
    pub(super) fn is_trash_note(&self, dir: Ino) -> bool {
        let tree = self.tree();
        tree.identity(dir) == Some(Identity::Local) || trash_dir(&tree, dir) == Some(TrashDir::Info)
    }

    /// Creates a local-only directory. It has an owner, which desktops check.
    pub(super) fn make_local_dir(
        &self,
        parent: Ino,
        name: &Name,
        mode: u32,
        caller: Caller,
    ) -> Result<Entry> {
        let (mut posix, now) = (Posix::default(), clock::now());
        posix.perm = Some((mode & 0o7777) as u16);
        posix.owner = Some((caller.uid, caller.gid));
        let ino = {
            let mut tree = self.tree();
            let ino = tree.create_local_dir(parent, name, Instant::now(), (now, Some(Arc::new(posix))))?;
            // For the entry that is returned.
            let _ = tree.count_lookup(ino);
            ino
        };
        self.entry(ino)
    }

    pub(super) fn remove_local_dir(&self, ino: Ino) -> Result<()> {
        let mut tree = self.tree();
        if tree.entry_count(ino) > 0 {
            return Err(Error::new(ErrorKind::NotEmpty, "directory not empty"));
        }
        tree.unlink(ino, Instant::now());
        Ok(())
    }

    /// Handles a rename into a trash. Returns `false` for other renames, and an error for renames that a
    /// trash does not allow.
    pub(super) async fn rename_into_trash(
        &self,
        (source, kind): (Ino, FileType),
        from: &NameInDir,
        to: &NameInDir,
        caller: Caller,
    ) -> Result<bool> {
        let refused = |why: &str| Err(Error::new(ErrorKind::NotPermitted, why));
        let (enters_trash, is_inside, is_local_dir) = {
            let tree = self.tree();
            if kind == FileType::Folder && tree.identity(source) == Some(Identity::Local) {
                return refused("a local-only trash directory cannot be renamed");
            }
            let is_inside = from.dir == to.dir || trash_dir(&tree, from.dir).is_some();
            let enters_trash = !is_inside && trash_dir(&tree, to.dir) == Some(TrashDir::Files);
            (enters_trash, is_inside, tree.identity(to.dir) == Some(Identity::Local))
        };
        if enters_trash {
            self.move_to_recycle_bin((source, kind), to, caller).await?;
            return Ok(true);
        }
        let is_local_file = self.files.get(source).is_some_and(|file| file.is_local());
        if is_local_dir && !(is_local_file && is_inside) {
            return refused("files can be moved only into the directory \"files\" of a trash");
        }
        Ok(false)
    }

    /// Commits the content and moves a file or directory to the recycle bin, for any setting of `remove`.
    async fn move_to_recycle_bin(
        &self,
        (source, kind): (Ino, FileType),
        to: &NameInDir,
        caller: Caller,
    ) -> Result<()> {
        for file in self.files.all() {
            let is_below = self.tree().is_below(file.ino(), source);
            if is_below && file.has_local_content() {
                self.commit_for(&[process_of(caller)], &file).await?;
            }
        }
        self.tree().pin(source)?;
        let has_entry = self.recycle(source, kind, to).await;
        self.tree().unpin(source);
        if !has_entry? {
            self.drop_detached_local_files();
            self.remove_note(to);
        }
        Ok(())
    }

    /// Returns whether the trash has an entry for it: not for a local-only file, which is gone, and not in a trash that
    /// the drive has.
    async fn recycle(&self, source: Ino, kind: FileType, to: &NameInDir) -> Result<bool> {
        let known = self.tree().meta(source).cloned();
        let recycled = known.filter(|_| self.is_local_dir(to.dir));
        let _entering = recycled.as_ref().map(|meta| self.trash_entries.begin(&meta.file_id));
        match kind {
            FileType::File => self.remove_file(source, RemoveMode::Trash).await?,
            FileType::Folder => {
                let dir_id = self.dir_id(source)?;
                self.drive.remove(&dir_id, RemoveMode::Trash).await?;
            }
        }
        let now = Instant::now();
        let Some(meta) = recycled else {
            self.tree().unlink(source, now);
            return Ok(false);
        };
        // Of an earlier stay in the recycle bin, from which another client restored it.
        self.drop_trash_entry(&meta.file_id);
        let mut tree = self.tree();
        let entry = if self.files.get(source).is_none() {
            tree.recycled(source, to.dir, &to.name, now)?;
            source
        } else {
            // Open handles keep the inode of the removed file.
            tree.create_local(to.dir, &to.name, now, (meta.mtime, meta.posix.clone()))?
        };
        self.trash_entries.add(entry, meta);
        Ok(true)
    }

    /// Removes the note about a file that a trash does not keep.
    fn remove_note(&self, to: &NameInDir) {
        let note = {
            let tree = self.tree();
            let info = tree.parent(to.dir).and_then(|trash| tree.child(trash, INFO));
            info.and_then(|info| tree.child(info, &format!("{}{NOTE_SUFFIX}", to.name)))
        };
        if let Some(note) = note.filter(|note| self.files.get(*note).is_some_and(|file| file.is_local())) {
            self.mark_unlinked(note);
            self.tree().unlink(note, Instant::now());
        }
    }

    /// Restores an object of the recycle bin, or deletes it for good if it goes to `expunged`.
    pub(super) async fn rename_out_of_trash(
        &self,
        (source, recycled): (Ino, FileMeta),
        target: Option<Ino>,
        to: &NameInDir,
    ) -> Result<()> {
        if target.is_some() {
            let detail = format!("{} exists: rename it, then restore the file", to.name);
            return Err(Error::new(ErrorKind::Exists, detail));
        }
        let role = trash_dir(&self.tree(), to.dir);
        match role {
            None => self.restore_to((source, recycled), to).await,
            Some(TrashDir::Expunged) if self.is_local_dir(to.dir) => {
                self.delete_trash_entry(source, &recycled.file_id).await
            }
            Some(_) => Err(Error::new(
                ErrorKind::NotPermitted,
                "a file in the recycle bin can only be restored or deleted",
            )),
        }
    }

    async fn restore_to(&self, (source, recycled): (Ino, FileMeta), to: &NameInDir) -> Result<()> {
        self.check_not_recycled(to.dir)?;
        let to_dir_id = self.dir_id(to.dir)?;
        let object = &recycled.file_id;
        let restored = match self.drive.restore(object).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.drop_trash_entry(object);
                return Err(error);
            }
            restored => restored?,
        };
        let from = restored.parent_id.clone().unwrap_or_else(|| self.config.root_id.clone());
        let name = to.name.remote();
        let moved = if from == to_dir_id && *restored.name == *name {
            restored
        } else {
            let moved = self.move_on_drive(&restored, (&from, &to_dir_id), &name, false).await;
            match moved {
                Ok(moved) => moved,
                Err(error) => {
                    if let Err(error) = self.drive.remove(object, RemoveMode::Trash).await {
                        tracing::warn!(%error, "{} was restored to its former place: not moved from there", to.name);
                        self.drop_trash_entry(object);
                    }
                    return Err(error);
                }
            }
        };
        self.trash_entries.remove(object);
        self.tree().restored(source, to.dir, &to.name, moved, Instant::now())
    }

    /// Whether an entry of a directory is the trash of a user, which the root does not list: programs that copy or
    /// delete everything would work on what was deleted.
    pub(super) fn is_hidden_trash(&self, dir: Ino, listed: &ListedEntry) -> bool {
        dir == Ino::ROOT && is_trash_name(&listed.name) && self.is_local_dir(listed.ino)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trash_name_has_a_user_id() {
        for name in [".Trash-0", ".Trash-1000", ".Trash-4294967295"] {
            assert!(is_trash_name(name), "{name}");
        }
        for name in [".Trash", ".Trash-", ".Trash-me", ".Trash-1000x", "Trash-1", ".Trash-12345678901"] {
            assert!(!is_trash_name(name), "{name}");
        }
    }
}
