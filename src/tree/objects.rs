//! What the drive has behind an inode, and where.
//!
//! ```text
//!   an unsaved file is shown as "b", was "a", and took the place of another file:
//!
//!     shown      on the drive
//!     b          b: what it shall become a new revision of (here)
//!                a: what it was until now                  (elsewhere)
//! ```

use super::{Body, Identity, Object, Tree};
use crate::ids::{FileId, Ino};
use crate::pds::drive::FileMeta;

/// The objects behind a file.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Objects {
    /// Stands where the file is shown.
    pub here: Option<FileMeta>,
    /// Is the file's, and stands where it was before, until a commit brings it here.
    pub elsewhere: Option<FileMeta>,
}

impl Tree {
    /// What an inode is on the drive. `None` for one that was removed or replaced.
    pub fn identity(&self, ino: Ino) -> Option<Identity> {
        match &self.inodes.get(&ino)?.object {
            Object::Unborn { .. } => Some(Identity::Local),
            Object::Live(meta) => Some(Identity::Remote(meta.file_id.clone())),
            Object::Gone(_) => None,
        }
    }

    /// The object that a file shall become a new revision of when it is committed.
    pub fn replaces(&self, ino: Ino) -> Option<&FileMeta> {
        match &self.inodes.get(&ino)?.body {
            Body::File { replaces } => replaces.as_ref(),
            Body::Folder(_) => None,
        }
    }

    /// The objects of the drive behind a file.
    pub fn objects(&self, ino: Ino) -> Objects {
        let live = match self.inodes.get(&ino).map(|inode| &inode.object) {
            Some(Object::Live(meta)) => Some(meta.clone()),
            Some(Object::Unborn { .. } | Object::Gone(_)) | None => None,
        };
        match self.replaces(ino) {
            Some(here) => Objects { here: Some(here.clone()), elsewhere: live },
            None if self.is_at_place(ino) => Objects { here: live, elsewhere: None },
            None => Objects { here: None, elsewhere: live },
        }
    }

    /// Whether the drive has an inode's object where the inode is shown.
    pub fn is_at_place(&self, ino: Ino) -> bool {
        let Some(Object::Live(meta)) = self.inodes.get(&ino).map(|inode| &inode.object) else { return false };
        let Some(place) = self.place(ino) else { return false };
        *meta.name == *place.name && meta.parent_id.as_ref().is_none_or(|id| *id == place.parent_id)
    }

    /// Whether an object is, or will be a new revision of, another file than `ino`.
    pub fn is_anothers(&self, object: &FileId, ino: Ino) -> bool {
        let owners = [self.by_file_id.get(object), self.replacing.get(object)];
        owners.into_iter().flatten().any(|owner| *owner != ino)
    }

    /// Whether an object has an inode, or will be made a new revision of.
    pub fn is_wanted(&self, file: &FileId) -> bool {
        self.by_file_id.contains_key(file) || self.replacing.contains_key(file)
    }
}
