//! The key of committed content.

use std::hash::{Hash, Hasher};

use crate::ids::{FileId, RevisionId, Sha1Hash};
use crate::pds::drive::FileMeta;

/// One committed content of one file. Equal targets have the same bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadTarget {
    pub file_id: FileId,
    /// Without a revision id, hash and size distinguish contents.
    pub revision: Option<RevisionId>,
    /// Size in bytes.
    pub size: u64,
    /// The SHA-1 that the drive reports.
    pub sha1: Option<Sha1Hash>,
}

impl ReadTarget {
    /// The content of `meta`.
    pub fn of(meta: &FileMeta) -> Self {
        Self {
            file_id: meta.file_id.clone(),
            revision: meta.revision.clone(),
            size: meta.size,
            sha1: meta.sha1,
        }
    }
}

// The file id alone spreads well enough, and is cheap to hash.
impl Hash for ReadTarget {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.file_id.hash(state);
    }
}
