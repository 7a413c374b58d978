//! The target of a commit: parent, name and object of a file on the drive, as the tree knows them now.
//!
//! Names and objects change while content is sent. So an upload resolves its target again at each step.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, Ino};
use crate::posix::Posix;

/// Access of contents and uploads to the names and objects of the tree.
pub trait TargetResolver: fmt::Debug + Send + Sync {
    /// The current target of a file; `None` for a deleted one.
    fn resolve(&self, ino: Ino) -> Option<CommitTarget>;

    /// Whether the file of `target` still has that parent and name.
    fn is_current(&self, target: &CommitTarget) -> bool;

    /// Records that a commit of `ino` overwrites `object`. Refuses if it belongs to another file of this mount, or is
    /// being removed.
    fn claim(&self, object: &FileId, ino: Ino) -> bool;

    /// Records that a file needs a commit: listings do not change it until then.
    fn mark_unsaved(&self, ino: Ino);
}

/// The parent, name and object that a commit creates or overwrites.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommitTarget {
    pub ino: Ino,
    pub parent: FileId,
    pub name: String,
    /// The file that gets a new revision; `None` creates a file.
    pub overwrite: Option<FileId>,
    /// Modification time to store with it.
    pub mtime: Option<SystemTime>,
    pub posix: Option<Arc<Posix>>,
    /// Another file of this mount has the name on the drive until its own commit moves it. The upload may
    /// create a second file of the name.
    pub is_name_shared: bool,
}

impl CommitTarget {
    /// Resolves the target again. `NotFound` for a deleted file.
    pub(super) fn refresh(&mut self, resolver: &Weak<dyn TargetResolver>) -> Result<()> {
        let Some(resolver) = resolver.upgrade() else { return Ok(()) };
        let Some(current) = resolver.resolve(self.ino) else {
            return Err(Error::new(ErrorKind::NotFound, "the file was deleted during its commit"));
        };
        *self = Self { mtime: self.mtime, ..current };
        Ok(())
    }

    /// Whether the file was renamed since the target was resolved.
    pub(super) fn has_moved(&self, resolver: &Weak<dyn TargetResolver>) -> bool {
        resolver.upgrade().is_some_and(|resolver| !resolver.is_current(self))
    }

    /// Adapts the target to `object`, which has the name on the drive. The object gets a new revision, unless
    /// it belongs to another file here, which is about to leave the name and keeps its content, or is being removed.
    pub(super) fn on_name_taken(
        &mut self,
        object: FileId,
        resolver: &Weak<dyn TargetResolver>,
    ) -> Result<()> {
        if self.has_moved(resolver) {
            return self.refresh(resolver);
        }
        if resolver.upgrade().is_none_or(|resolver| resolver.claim(&object, self.ino)) {
            self.overwrite = Some(object);
        } else {
            self.is_name_shared = true;
        }
        Ok(())
    }
}

/// The resolver of tests without a tree. Calls the function for each file that is marked as unsaved.
#[cfg(test)]
pub(super) struct NoTree<F>(pub F);

#[cfg(test)]
impl<F> fmt::Debug for NoTree<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NoTree")
    }
}

#[cfg(test)]
impl<F: Fn() + Send + Sync> TargetResolver for NoTree<F> {
    fn resolve(&self, _: Ino) -> Option<CommitTarget> {
        None
    }

    fn is_current(&self, _: &CommitTarget) -> bool {
        true
    }

    fn claim(&self, _: &FileId, _: Ino) -> bool {
        true
    }

    fn mark_unsaved(&self, _: Ino) {
        (self.0)();
    }
}
