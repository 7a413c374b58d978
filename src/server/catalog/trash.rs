//! The recycle bin, and permanent deletion.

use super::database::Table;
use super::records::{CatalogOp, ClientAttrs, Node, NodeKind};
use super::{CatalogState, DriveId, FileId, ServiceError};
use crate::server::clock;

impl CatalogState {
    /// Fails if the folder has entries.
    pub(in crate::server) fn check_empty(&self, drive: &DriveId, file: &FileId) -> Result<(), ServiceError> {
        let full = self.folder(drive, file).is_some_and(|folder| !folder.is_empty());
        if full && self.quirks.check_folder_empty {
            return Err(ServiceError::conflict("The folder is not empty."));
        }
        Ok(())
    }

    /// Moves an object with everything below it to the recycle bin.
    pub(in crate::server) fn trash(
        &mut self,
        drive: &DriveId,
        file: &FileId,
        now_ms: i64,
    ) -> Result<(), ServiceError> {
        self.live(drive, file)?;
        // Strictly increasing, so that the order also holds within a millisecond.
        let newest_ms = self.recycle_bin.get(drive).and_then(|bin| bin.last()).map(|(at_ms, _)| *at_ms);
        let at_ms = newest_ms.map_or(now_ms, |newest_ms| now_ms.max(newest_ms.saturating_add(1)));
        self.edit(file, CatalogOp::Trash, |node| node.trashed_ms = Some(at_ms))
    }

    /// The recycle bin of a drive, newest first, beginning after `after`.
    pub(in crate::server) fn bin<'a>(
        &'a self,
        drive: &DriveId,
        after: Option<&(i64, FileId)>,
    ) -> impl Iterator<Item = (&'a (i64, FileId), &'a Node)> {
        use std::ops::Bound;
        let to = after.map_or(Bound::Unbounded, |last| Bound::Excluded(last.clone()));
        self.recycle_bin
            .get(drive)
            .into_iter()
            .flat_map(move |bin| bin.range((Bound::Unbounded, to.clone())).rev())
            .filter_map(|entry| Some((entry, self.nodes.get(&entry.1)?)))
    }

    /// Restores an object to its old folder; to the root if that folder was deleted; to a root folder of the
    /// same name if that folder is in the recycle bin itself.
    pub(in crate::server) fn restore(
        &mut self,
        drive: &DriveId,
        file: &FileId,
        now_ms: i64,
    ) -> Result<(), ServiceError> {
        let node = self.node(drive, file)?;
        if node.trashed_ms.is_none() {
            return Err(ServiceError::not_found("File"));
        }
        let parent = match self.nodes.get(&node.parent) {
            None => FileId::root(),
            Some(above) if self.is_trashed(above) => {
                let name = above.name.clone();
                self.root_folder_named(drive, &name, now_ms)?
            }
            Some(above) => above.file_id.clone(),
        };
        self.edit(file, CatalogOp::Restore, |node| {
            node.trashed_ms = None;
            node.parent = parent;
            node.updated_ms = now_ms;
        })
    }

    /// The folder with this name in the root. Makes it if it does not exist.
    fn root_folder_named(
        &mut self,
        drive: &DriveId,
        name: &str,
        now_ms: i64,
    ) -> Result<FileId, ServiceError> {
        if let Some(folder) = self.sibling(drive, &FileId::root(), name, None).filter(|n| n.is_folder()) {
            return Ok(folder.file_id.clone());
        }
        let file_id = clock::file_id(now_ms)?;
        let folder = Node {
            file_id: file_id.clone(),
            drive_id: drive.clone(),
            parent: FileId::root(),
            name: name.to_owned(),
            kind: NodeKind::Folder,
            created_ms: now_ms,
            updated_ms: now_ms,
            trashed_ms: None,
            attrs: ClientAttrs::default(),
        };
        self.insert(folder, CatalogOp::Create)?;
        Ok(file_id)
    }

    /// Deletes an object with everything below it permanently.
    pub(in crate::server) fn delete(&mut self, drive: &DriveId, file: &FileId) -> Result<(), ServiceError> {
        let parent = self.node(drive, file)?.parent.clone();
        for id in self.below(drive, file).into_iter().rev() {
            let Some(node) = self.nodes.remove(&id) else { continue };
            self.unindex(&node);
            self.delete_record(Table::Nodes, id.as_str().as_bytes());
            if let Some(drive) = self.drives.get_mut(&node.drive_id) {
                drive.used_bytes = drive.used_bytes.saturating_sub(node.held_bytes());
            }
            for revision in node.revisions() {
                self.release(&revision.hash);
            }
        }
        self.record_delta(drive, file, CatalogOp::Delete, vec![parent])
    }

    pub(in crate::server) fn clear_bin(&mut self, drive: &DriveId) -> Result<(), ServiceError> {
        self.drive(drive)?;
        let all: Vec<_> = self.bin(drive, None).map(|(_, node)| node.file_id.clone()).collect();
        all.iter().try_for_each(|file| self.delete(drive, file))
    }

    /// Drops one reference of a blob. The last one deletes the blob.
    pub(super) fn release(&mut self, hash: &str) {
        let Some(held) = self.blobs.get_mut(hash) else { return };
        held.revisions = held.revisions.saturating_sub(1);
        if held.revisions > 0 {
            return;
        }
        if let Some(held) = self.blobs.remove(hash) {
            let record = &held.blob.record;
            if let Some(sizes) = self.sizes_by_pre_hash.get_mut(&record.pre_hash) {
                if let Some(at) = sizes.iter().position(|size| *size == record.size) {
                    sizes.swap_remove(at);
                }
                if sizes.is_empty() {
                    self.sizes_by_pre_hash.remove(&record.pre_hash);
                }
            }
            self.delete_record(Table::Blobs, hash.as_bytes());
            self.change.obsolete_blobs.push(held.blob);
        }
    }
}
