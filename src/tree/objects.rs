//! The objects on the drive behind an inode.
//!
//! ```text
//!   an unsaved file was renamed from "a" to "b", over another file:
//!
//!     name here  objects on the drive
//!     b          b: becomes a new revision at the commit     (in_place)
//!                a: the object of the file until the commit  (elsewhere)
//! ```

use std::time::Instant;

use super::inodes::{Backing, Identity, InodeBody, Tree};
use super::leftovers::Removal;
use crate::ids::{FileId, Ino};
use crate::pds::drive::FileMeta;

#[derive(Clone, PartialEq, Debug, Default)]
pub struct Objects {
    /// The object at the file's current location.
    pub in_place: Option<FileMeta>,
    /// The file's own object at its former location, until a commit moves it.
    pub elsewhere: Option<FileMeta>,
}

impl Tree {
    /// `None` for an inode that was removed or replaced.
    pub fn identity(&self, ino: Ino) -> Option<Identity> {
        match &self.inodes.get(&ino)?.backing {
            Backing::None { .. } => Some(Identity::Local),
            Backing::Remote(meta) => Some(Identity::Remote(meta.file_id.clone())),
            Backing::Removed(_) => None,
        }
    }

    /// The object that becomes a new revision when the file is committed.
    pub fn replaces(&self, ino: Ino) -> Option<&FileMeta> {
        match &self.inodes.get(&ino)?.body {
            InodeBody::File { replaces } => replaces.as_ref(),
            InodeBody::Directory(_) => None,
        }
    }

    pub fn objects(&self, ino: Ino) -> Objects {
        let live = match self.inodes.get(&ino).map(|inode| &inode.backing) {
            Some(Backing::Remote(meta)) => Some(meta.clone()),
            Some(Backing::None { .. } | Backing::Removed(_)) | None => None,
        };
        match self.replaces(ino) {
            Some(here) => Objects { in_place: Some(here.clone()), elsewhere: live },
            None if self.is_at_location(ino) => Objects { in_place: live, elsewhere: None },
            None => Objects { in_place: None, elsewhere: live },
        }
    }

    /// Whether the file's own object is still in this folder under this name, and the file is not.
    pub fn has_object_elsewhere(&self, ino: Ino, dir_id: &FileId, name: &str) -> bool {
        let Some(Backing::Remote(meta)) = self.inodes.get(&ino).map(|inode| &inode.backing) else {
            return false;
        };
        meta.name == name
            && meta.parent_id.as_ref() == Some(dir_id)
            && (self.replaces(ino).is_some() || !self.is_at_location(ino))
    }

    /// Whether the object is at the inode's current location.
    pub fn is_at_location(&self, ino: Ino) -> bool {
        let Some(Backing::Remote(meta)) = self.inodes.get(&ino).map(|inode| &inode.backing) else {
            return false;
        };
        let Some(location) = self.location(ino) else { return false };
        *meta.name == *location.name && meta.parent_id.as_ref().is_none_or(|id| *id == location.parent_id)
    }

    /// Records that `ino` overwrites an object, which is hidden until that has succeeded. Refuses if the object belongs
    /// to another inode, now or after a pending commit, or is being removed.
    pub fn claim(&mut self, object: &FileId, ino: Ino) -> bool {
        let owners = [self.by_file_id.get(object), self.replacing.get(object)];
        let removal = self.leftovers.get(object).map(|left| left.removal);
        let is_free = match removal {
            Some(Removal::Running | Removal::Failed { .. }) => false,
            // Without a name, no commit of its owner starts.
            Some(Removal::Claimed(owner)) => owner == ino || self.display_name(owner).is_none(),
            Some(Removal::Refused) | None => true,
        };
        let is_claimed = is_free && owners.into_iter().flatten().all(|owner| *owner == ino);
        if is_claimed {
            self.set_removal(object, Removal::Claimed(ino));
        }
        is_claimed
    }

    /// The file that has claimed a hidden object.
    pub fn claimant(&self, object: &FileId) -> Option<Ino> {
        match self.leftovers.get(object)?.removal {
            Removal::Claimed(owner) => Some(owner),
            Removal::Running | Removal::Failed { .. } | Removal::Refused => None,
        }
    }

    /// Whether an object belongs to an inode, now or after a pending commit.
    pub fn is_referenced(&self, file: &FileId) -> bool {
        let is_claimed = || self.claimant(file).is_some_and(|owner| self.display_name(owner).is_some());
        self.by_file_id.contains_key(file) || self.replacing.contains_key(file) || is_claimed()
    }

    /// Whether an object in a listing that began at `started` is one that this mount removed from this directory, or
    /// one that it hides.
    pub fn is_removed(&self, dir: Ino, listed: &FileMeta, started: Instant) -> bool {
        let file = &listed.file_id;
        if self.leftovers.get(file).is_some() {
            // It still exists, so its tombstone says nothing about a change by another client.
            return self.leftovers.has_unchanged(listed);
        }
        if self.tombstones.hides(file, started, self.listing_lag) {
            return true;
        }
        let Some(inode) = self.by_file_id.get(file).and_then(|ino| self.inodes.get(ino)) else {
            return false;
        };
        let is_elsewhere = inode.dentry_ref.as_ref().is_some_and(|dentry_ref| dentry_ref.parent != dir);
        is_elsewhere && (inode.moving || inode.changed_at.is_some_and(|at| started < at + self.listing_lag))
    }

    /// Hides an object whose removal begins, until another client changes it: no inode needs it, and no commit may
    /// overwrite it. Called together with the change that makes it superfluous.
    pub fn supersede(&mut self, object: FileMeta) {
        self.leftovers.add(object);
    }

    /// Shows a hidden object again.
    pub fn show_leftover(&mut self, object: &FileId) {
        self.leftovers.remove(object);
    }

    /// Records that this mount moved an object that is still hidden. Listings may lag.
    pub fn moved_leftover(&mut self, moved: FileMeta, now: Instant) {
        let file = moved.file_id.clone();
        if let Some(left) = self.leftovers.get_mut(&file) {
            // Another client may have changed the content since.
            let FileMeta { parent_id, name, changed_at, .. } = moved;
            left.object = FileMeta { parent_id, name, changed_at, ..left.object.clone() };
            self.add_tombstone(file, now);
        }
    }

    /// Records that the drive has removed a hidden object.
    pub fn removed_leftover(&mut self, object: FileId, now: Instant) {
        self.leftovers.remove(&object);
        self.add_tombstone(object, now);
    }

    /// Records the state of the removal of an object that is still hidden.
    pub fn set_removal(&mut self, object: &FileId, removal: Removal) {
        if let Some(left) = self.leftovers.get_mut(object) {
            left.removal = removal;
        }
    }

    /// Hidden objects whose removal has failed, how often, and whether only the recycle bin is right for them.
    pub fn failed_removals(&self) -> Vec<(FileMeta, u32, bool)> {
        let failed = self.leftovers.iter().filter_map(|left| match left.removal {
            Removal::Failed { tries, to_bin } => Some((left.object.clone(), tries, to_bin)),
            Removal::Running | Removal::Refused | Removal::Claimed(_) => None,
        });
        failed.collect()
    }

    /// Whether an object is hidden, by its present attributes. One that another client has changed is visible from then
    /// on.
    pub fn hides_leftover(&mut self, object: &FileMeta) -> bool {
        let (was_hidden, is_hidden) =
            (self.leftovers.get(&object.file_id).is_some(), self.leftovers.hides(object));
        if was_hidden && !is_hidden {
            self.tombstones.remove(&object.file_id);
        }
        is_hidden
    }

    /// The hidden object at a location of the drive.
    pub fn leftover_at(&self, dir_id: &FileId, name: &str) -> Option<&FileMeta> {
        self.leftovers.at(dir_id, name)
    }
}
