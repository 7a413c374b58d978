//! The trash of desktops, which is the drive's recycle bin.
//!
//! A desktop that moves a file to the trash makes folders in the root of the mount, writes a note of where the
//! file was, and renames the file:
//!
//! ```text
//!   .Trash-1000/info/NAME.trashinfo     a note
//!   .Trash-1000/files/NAME              the file
//! ```
//!
//! On the drive, the folders would be in everybody's way and their files would still take up room. So they
//! live on this machine only, and what is renamed into `files` goes to the recycle bin, which
//! every client of the drive can restore from; its note goes too. Where the drive has such a folder already,
//! what is in it stays, and nothing new comes to it.

use std::sync::Arc;
use std::time::Instant;

use super::changes::At;
use super::{Caller, Entry, Vfs};
use crate::config::RemoveMode;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Ino;
use crate::pds::types::FileType;
use crate::posix::{self, Posix};
use crate::tree::{Identity, Name, Tree};

/// Of the name of a trash, before the number of the user.
const TRASH_PREFIX: &str = ".Trash-";
/// Longest number of a user.
const UID_DIGITS_MAX: usize = 10;
/// The folder of what was thrown away.
const FILES: &str = "files";
/// The folder of the notes, and what their names end in.
const INFO: &str = "info";
const NOTE_SUFFIX: &str = ".trashinfo";

/// What a folder is in a trash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    /// The trash itself, or something else in it.
    Other,
    /// For what is thrown away.
    Files,
    /// For notes; `files` is beside it.
    Info,
}

fn is_trash_name(name: &str) -> bool {
    name.strip_prefix(TRASH_PREFIX).is_some_and(|uid| {
        (1..=UID_DIGITS_MAX).contains(&uid.len()) && uid.bytes().all(|digit| digit.is_ascii_digit())
    })
}

fn part(tree: &Tree, dir: Ino) -> Option<Part> {
    let above = tree.parent(dir)?;
    if above == Ino::ROOT {
        return tree.shown_name(dir).filter(|name| is_trash_name(name)).map(|_| Part::Other);
    }
    if tree.parent(above)? != Ino::ROOT || !is_trash_name(&tree.shown_name(above)?) {
        return None;
    }
    Some(match &*tree.shown_name(dir)? {
        FILES => Part::Files,
        INFO => Part::Info,
        _ => Part::Other,
    })
}

impl Vfs {
    /// Whether a folder of this name lives on this machine only.
    pub(super) fn is_trash_folder(&self, parent: Ino, name: &Name) -> bool {
        (parent == Ino::ROOT && is_trash_name(name.as_str())) || self.is_here_only(parent)
    }

    /// Whether a folder lives on this machine only.
    pub(super) fn is_here_only(&self, dir: Ino) -> bool {
        self.tree().identity(dir) == Some(Identity::Local)
    }

    /// Whether a file that is made here is none for the drive: a note, or anything in a folder that is not
    /// on it.
    pub(super) fn is_trash_note(&self, dir: Ino) -> bool {
        let tree = self.tree();
        tree.identity(dir) == Some(Identity::Local) || part(&tree, dir) == Some(Part::Info)
    }

    /// Makes a folder of a trash. It has an owner, by which the desktop knows whose it is.
    pub(super) fn make_trash_folder(
        &self,
        parent: Ino,
        name: &Name,
        mode: u32,
        caller: Caller,
    ) -> Result<Entry> {
        let (mut posix, now) = (Posix::default(), posix::now());
        posix.perm = Some((mode & 0o7777) as u16);
        posix.owner = Some((caller.uid, caller.gid));
        let ino = {
            let mut tree = self.tree();
            let ino = tree.create_local_folder(parent, name, Instant::now(), (now, Some(Arc::new(posix))))?;
            // For the entry that is returned.
            let _ = tree.count_lookup(ino);
            ino
        };
        self.entry(ino)
    }

    /// Removes a folder that lives on this machine only.
    pub(super) fn remove_trash_folder(&self, ino: Ino) -> Result<()> {
        let mut tree = self.tree();
        if tree.entry_count(ino) > 0 {
            return Err(Error::new(ErrorKind::NotEmpty, "the folder is not empty"));
        }
        tree.unlink(ino, Instant::now());
        Ok(())
    }

    /// A rename that throws something away, or that no trash allows; `false` where it is any other.
    pub(super) async fn rename_into_trash(
        &self,
        source: Ino,
        kind: FileType,
        from: &At,
        to: &At,
    ) -> Result<bool> {
        let refused = |why: &str| Err(Error::new(ErrorKind::NotPermitted, why));
        let (throws, is_inside, is_here_only) = {
            let tree = self.tree();
            if kind == FileType::Folder && tree.identity(source) == Some(Identity::Local) {
                return refused("the trash of a desktop stays where it is");
            }
            let is_inside = from.dir == to.dir || part(&tree, from.dir).is_some();
            let throws = !is_inside && part(&tree, to.dir) == Some(Part::Files);
            (throws, is_inside, tree.identity(to.dir) == Some(Identity::Local))
        };
        if throws {
            self.throw_away(source, kind, to).await?;
            return Ok(true);
        }
        let stays = self.files.get(source).is_some_and(|file| file.is_local());
        if is_here_only && !(stays && is_inside) {
            return refused("only what goes to the folder \"files\" of a trash is thrown away");
        }
        Ok(false)
    }

    /// Moves something to the recycle bin, whatever removing means otherwise, with all that was written to it.
    async fn throw_away(&self, source: Ino, kind: FileType, to: &At) -> Result<()> {
        for file in self.files.all() {
            let is_below = self.tree().is_below(file.ino(), source);
            if is_below && file.is_unsaved() {
                self.settle(&file).await?;
            }
        }
        match kind {
            FileType::File => self.remove_file(source, RemoveMode::Trash).await?,
            FileType::Folder => {
                let folder = self.folder_id(source)?;
                self.drive.remove(&folder, RemoveMode::Trash).await?;
                self.tree().unlink(source, Instant::now());
                self.drop_unreachable();
            }
        }
        let note = {
            let tree = self.tree();
            let info = tree.parent(to.dir).and_then(|trash| tree.child(trash, INFO));
            info.and_then(|info| tree.child(info, &format!("{}{NOTE_SUFFIX}", to.name)))
        };
        if let Some(note) = note.filter(|note| self.files.get(*note).is_some_and(|file| file.is_local())) {
            self.orphan(note);
            self.tree().unlink(note, Instant::now());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trash_is_of_a_user() {
        for name in [".Trash-0", ".Trash-1000", ".Trash-4294967295"] {
            assert!(is_trash_name(name), "{name}");
        }
        for name in [".Trash", ".Trash-", ".Trash-me", ".Trash-1000x", "Trash-1", ".Trash-12345678901"] {
            assert!(!is_trash_name(name), "{name}");
        }
    }
}
