//! Objects that a rename or a commit has made superfluous.
//!
//! [`super::remove_superseded`] removes them.

use std::num::NonZeroUsize;

use lru::LruCache;
use parking_lot::Mutex;

use crate::content::commit::CommitOutcome;
use crate::ids::{FileId, Ino, RevisionId};
use crate::pds::drive::FileMeta;
use crate::status::CommitMethod;

/// Most objects that are remembered as created here. The oldest are forgotten, and go to the recycle bin.
const CREATED_MAX: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// An object that is not needed any more.
#[derive(Clone, Debug)]
pub(super) struct Superseded {
    pub(super) object: FileMeta,
    /// The inode that it had.
    pub(super) former: Option<Ino>,
    pub(super) reason: Reason,
}

#[derive(Clone, Debug)]
pub(super) enum Reason {
    /// This object has its content, as far as the answer to an instant upload shows.
    Copied(FileId),
    /// Another object has taken its name. That object had this folder and name before.
    Displaced(FileId, String),
    /// No file needs it.
    Unused,
}

/// Objects that commits of this mount created, and their first revisions. Without those that it overwrote: other
/// clients may have written revisions in between. A leaf lock.
#[derive(Debug)]
pub(super) struct CreatedObjects(Mutex<LruCache<FileId, Option<RevisionId>>>);

impl Default for CreatedObjects {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(CREATED_MAX)))
    }
}

impl CreatedObjects {
    /// Records a commit of this mount.
    pub(super) fn note_commit(&self, committed: &CommitOutcome) {
        if committed.method == CommitMethod::Unchanged {
            return;
        }
        let (file, mut created) = (&committed.meta.file_id, self.0.lock());
        if committed.target.overwrite.is_none() {
            created.put(file.clone(), committed.meta.revision.clone());
        } else {
            created.pop(file);
        }
    }

    /// Whether this mount created the object and its content is the first one.
    pub(super) fn is_ours(&self, object: &FileMeta) -> bool {
        self.0.lock().peek(&object.file_id).is_some_and(|ours| ours.is_some() && *ours == object.revision)
    }
}
