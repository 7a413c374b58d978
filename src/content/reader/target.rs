//! The key of committed content.

use std::hash::{Hash, Hasher};
use std::time::SystemTime;

use crate::ids::{FileId, RevisionId, Sha1Hash};
use crate::pds::drive::FileMeta;

/// One committed content of one file. Equal targets have the same bytes.
#[derive(Clone, Debug)]
pub struct ReadTarget {
    pub file_id: FileId,
    /// Without a revision id, hashes and size distinguish contents. With one, an answer may lack a hash.
    pub revision: Option<RevisionId>,
    /// Size in bytes.
    pub size: u64,
    /// The SHA-1 that the drive reports.
    pub sha1: Option<Sha1Hash>,
    /// The CRC-64/XZ that the drive reports.
    pub crc64: Option<u64>,
    /// When the drive last changed the file. Only for a content without revision id and hash.
    pub changed_at: Option<SystemTime>,
}

impl ReadTarget {
    /// The content of `meta`.
    pub fn of(meta: &FileMeta) -> Self {
        let is_named = meta.revision.is_some() || meta.sha1.is_some() || meta.crc64.is_some();
        Self {
            file_id: meta.file_id.clone(),
            revision: meta.revision.clone(),
            size: meta.size,
            sha1: meta.sha1,
            crc64: meta.crc64,
            changed_at: (!is_named).then_some(meta.changed_at),
        }
    }
}

impl PartialEq for ReadTarget {
    fn eq(&self, other: &Self) -> bool {
        let hashes = |target: &Self| (target.sha1, target.crc64, target.changed_at);
        self.file_id == other.file_id
            && self.revision == other.revision
            && self.size == other.size
            && (self.revision.is_some() || hashes(self) == hashes(other))
    }
}

impl Eq for ReadTarget {}

// The file id alone spreads well enough, and is cheap to hash.
impl Hash for ReadTarget {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.file_id.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::reader::tests::target;

    #[test]
    fn revision_decides_whether_contents_are_equal() {
        let plain = target("a", 10);
        let hashed = |target: &ReadTarget| ReadTarget { crc64: Some(7), ..target.clone() };
        assert_ne!(
            ReadTarget { revision: None, ..plain.clone() },
            ReadTarget { revision: None, ..hashed(&plain) }
        );
        let of = |id: &str| ReadTarget { revision: Some(RevisionId::new(id).unwrap()), ..plain.clone() };
        assert_eq!(of("r1"), hashed(&of("r1")));
        assert_ne!(of("r1"), of("r2"));
        assert_ne!(of("r1"), ReadTarget { size: 11, ..of("r1") });
        assert_ne!(of("r1"), ReadTarget { revision: None, ..plain });
    }
}
