//! Changes to the older revisions of a file.

use super::records::{CatalogOp, ClientAttrs, Revision};
use super::{CatalogState, DriveId, FileId, ServiceError};
use crate::server::clock;

impl CatalogState {
    /// Sets `keep_forever` and the description of a revision.
    pub(in crate::server) fn update_revision(
        &mut self,
        file: &FileId,
        id: &str,
        keep_forever: Option<bool>,
        description: Option<String>,
        now_ms: i64,
    ) -> Result<(), ServiceError> {
        self.edit_revisions(file, CatalogOp::Update, now_ms, |revisions| {
            if let Some(found) = revisions.iter_mut().find(|revision| revision.revision_id.as_str() == id) {
                found.keep_forever = keep_forever.unwrap_or(found.keep_forever);
                found.description = description.unwrap_or_else(|| std::mem::take(&mut found.description));
            }
        })
    }

    /// Adds a new revision with the content of an old one.
    pub(in crate::server) fn restore_revision(
        &mut self,
        drive: &DriveId,
        file: &FileId,
        old: Revision,
        now_ms: i64,
    ) -> Result<(), ServiceError> {
        self.check_quota(drive, old.size)?;
        let node = self.live(drive, file)?;
        let (parent, name) = (node.parent.clone(), node.name.clone());
        let restored = Revision {
            revision_id: clock::revision_id(now_ms)?,
            created_ms: now_ms,
            keep_forever: false,
            description: String::new(),
            ..old
        };
        self.commit_revision(Some(file.clone()), drive, parent, name, ClientAttrs::default(), restored)?;
        Ok(())
    }

    pub(in crate::server) fn delete_revision(
        &mut self,
        file: &FileId,
        id: &str,
        now_ms: i64,
    ) -> Result<(), ServiceError> {
        self.edit_revisions(file, CatalogOp::Update, now_ms, |revisions| {
            revisions.retain(|revision| revision.revision_id.as_str() != id);
        })
    }
}
