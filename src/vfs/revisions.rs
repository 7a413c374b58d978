//! The revisions of a file: list, read, restore.

use std::time::Instant;

use bytes::Bytes;

use super::Vfs;
use crate::content::reader::{ReadCursor, ReadTarget};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, Ino, RevisionId};
use crate::pds::drive::Revision;
use crate::pds::types::FileType;
use crate::tree::Identity;

/// Bytes that one step of a reader returns.
const STEP_BYTES: u64 = 1 << 20;

/// Reads one revision from its beginning to its end.
#[derive(Debug)]
pub struct RevisionReader {
    target: ReadTarget,
    cursor: ReadCursor,
    offset: u64,
}

impl Vfs {
    /// The revisions of a file, the newest first.
    pub async fn revisions(&self, ino: Ino) -> Result<Vec<Revision>> {
        self.drive.revisions(&self.saved_file(ino)?).await
    }

    /// A reader for a revision.
    pub async fn open_revision(&self, ino: Ino, id: &RevisionId) -> Result<RevisionReader> {
        let file_id = self.saved_file(ino)?;
        let revision = find(self.drive.revisions(&file_id).await?, id)?;
        let size = revision.size.ok_or_else(|| {
            Error::protocol(format!("the service reports no size of version {}", revision.id))
        })?;
        let target = ReadTarget {
            file_id,
            revision: Some(revision.id),
            size,
            sha1: revision.sha1,
            crc64: revision.crc64,
            changed_at: None,
        };
        Ok(RevisionReader { target, cursor: self.reader.cursor(), offset: 0 })
    }

    /// The next bytes of a revision; empty at the end.
    pub async fn read_revision(&self, from: &mut RevisionReader) -> Result<Bytes> {
        let bytes = self.reader.read(&from.target, &from.cursor, from.offset, STEP_BYTES).await?;
        from.offset += bytes.len() as u64;
        if bytes.is_empty() && from.offset < from.target.size {
            return Err(Error::new(ErrorKind::Integrity, "the version is shorter than its recorded size"));
        }
        Ok(bytes)
    }

    /// Makes the content of an older revision the content of the file. Unsaved content is never replaced.
    pub async fn restore_revision(&self, ino: Ino, id: &RevisionId) -> Result<()> {
        self.check_accepts_content()?;
        let file_id = self.saved_file(ino)?;
        let revision = find(self.drive.revisions(&file_id).await?, id)?;
        if revision.is_latest {
            return Err(Error::new(
                ErrorKind::Exists,
                "the file has this content already: it is the latest version",
            ));
        }
        if self.files.get(ino).is_some_and(|file| file.has_local_content()) {
            let detail = "a program is writing the file; close it, then restore the version";
            return Err(Error::new(ErrorKind::Busy, detail));
        }
        self.drive.restore_revision(&file_id, id).await?;
        let requested_at = Instant::now();
        let meta = self.drive.get(&file_id).await?;
        self.reader.forget(&file_id);
        self.tree().merge_object(meta, requested_at);
        Ok(())
    }

    /// The object of a file that is on the drive.
    fn saved_file(&self, ino: Ino) -> Result<FileId> {
        let tree = self.tree();
        if tree.kind(ino)? == FileType::Folder {
            return Err(Error::new(ErrorKind::IsDirectory, "a directory has no versions"));
        }
        match tree.identity(ino) {
            Some(Identity::Remote(file_id)) => Ok(file_id),
            Some(Identity::Local) => {
                Err(Error::new(ErrorKind::NotFound, "the file has no versions yet: it is not on the drive"))
            }
            None => Err(Error::new(ErrorKind::NotFound, "the file was removed")),
        }
    }
}

fn find(revisions: Vec<Revision>, id: &RevisionId) -> Result<Revision> {
    let missing = || Error::new(ErrorKind::NotFound, format!("the file has no version {id}"));
    revisions.into_iter().find(|revision| revision.id == *id).ok_or_else(missing)
}
