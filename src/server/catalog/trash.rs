//! The recycle bin and permanent removal.

use super::journal::Table;
use super::records::{Kind, Node, Op, Traits};
use super::{ApiError, DriveId, FileId, State};
use crate::server::clock;

impl State {
    /// Refuses a folder with entries where the caller wants an empty one.
    pub(in crate::server) fn check_empty(&self, drive: &DriveId, file: &FileId) -> Result<(), ApiError> {
        let full = self.folder(drive, file).is_some_and(|folder| !folder.is_empty());
        if full && self.quirks.check_folder_empty {
            return Err(ApiError::conflict("The folder is not empty."));
        }
        Ok(())
    }

    /// Puts an object into the recycle bin, with what is below it.
    pub(in crate::server) fn trash(
        &mut self,
        drive: &DriveId,
        file: &FileId,
        now_ms: i64,
    ) -> Result<(), ApiError> {
        self.live(drive, file)?;
        // What came later is newer, also within a millisecond.
        let newest_ms = self.bin.get(drive).and_then(|bin| bin.last()).map(|(at_ms, _)| *at_ms);
        let at_ms = newest_ms.map_or(now_ms, |newest_ms| now_ms.max(newest_ms.saturating_add(1)));
        self.edit(file, Op::Trash, |node| node.trashed_ms = Some(at_ms))
    }

    /// The recycle bin of a drive, newest first, from after `after`.
    pub(in crate::server) fn bin<'a>(
        &'a self,
        drive: &DriveId,
        after: Option<&(i64, FileId)>,
    ) -> impl Iterator<Item = (&'a (i64, FileId), &'a Node)> {
        use std::ops::Bound;
        let to = after.map_or(Bound::Unbounded, |last| Bound::Excluded(last.clone()));
        self.bin
            .get(drive)
            .into_iter()
            .flat_map(move |bin| bin.range((Bound::Unbounded, to.clone())).rev())
            .filter_map(|entry| Some((entry, self.nodes.get(&entry.1)?)))
    }

    /// Takes an object out of the recycle bin: to its old folder; to the root if that is gone; to
    /// a new folder of the same name if that is in the recycle bin itself.
    pub(in crate::server) fn restore(
        &mut self,
        drive: &DriveId,
        file: &FileId,
        now_ms: i64,
    ) -> Result<(), ApiError> {
        let node = self.any(drive, file)?;
        if node.trashed_ms.is_none() {
            return Err(ApiError::not_found("File"));
        }
        let parent = match self.nodes.get(&node.parent) {
            None => FileId::root(),
            Some(above) if self.is_trashed(above) => {
                let name = above.name.clone();
                self.standing_folder(drive, &name, now_ms)?
            }
            Some(above) => above.file_id.clone(),
        };
        self.edit(file, Op::Restore, |node| {
            node.trashed_ms = None;
            node.parent = parent;
            node.updated_ms = now_ms;
        })
    }

    /// A folder of this name in the root, made if there is none.
    fn standing_folder(&mut self, drive: &DriveId, name: &str, now_ms: i64) -> Result<FileId, ApiError> {
        if let Some(folder) = self.sibling(drive, &FileId::root(), name, None).filter(|n| n.is_folder()) {
            return Ok(folder.file_id.clone());
        }
        let file_id = clock::file_id(now_ms)?;
        let folder = Node {
            file_id: file_id.clone(),
            drive_id: drive.clone(),
            parent: FileId::root(),
            name: name.to_owned(),
            kind: Kind::Folder,
            created_ms: now_ms,
            updated_ms: now_ms,
            trashed_ms: None,
            traits: Traits::default(),
        };
        self.insert(folder, Op::Create)?;
        Ok(file_id)
    }

    /// Removes an object and what is below it for good.
    pub(in crate::server) fn delete(&mut self, drive: &DriveId, file: &FileId) -> Result<(), ApiError> {
        self.any(drive, file)?;
        for id in self.below(drive, file).into_iter().rev() {
            let Some(node) = self.nodes.remove(&id) else { continue };
            self.unindex(&node);
            self.erase(Table::Nodes, id.as_str().as_bytes());
            if let Some(drive) = self.drives.get_mut(&node.drive_id) {
                drive.used_bytes = drive.used_bytes.saturating_sub(node.held_bytes());
            }
            for revision in node.revisions() {
                self.release(&revision.hash);
            }
        }
        self.note(drive, file, Op::Delete)
    }

    /// Empties the recycle bin of a drive.
    pub(in crate::server) fn clear_bin(&mut self, drive: &DriveId) -> Result<(), ApiError> {
        self.drive(drive)?;
        let all: Vec<_> = self.bin(drive, None).map(|(_, node)| node.file_id.clone()).collect();
        all.iter().try_for_each(|file| self.delete(drive, file))
    }

    /// One revision less holds a blob; the last one takes it along.
    pub(super) fn release(&mut self, hash: &str) {
        let Some(held) = self.blobs.get_mut(hash) else { return };
        held.revisions = held.revisions.saturating_sub(1);
        if held.revisions > 0 {
            return;
        }
        if let Some(held) = self.blobs.remove(hash) {
            let record = &held.blob.record;
            if let Some(sizes) = self.heads.get_mut(&record.pre_hash) {
                if let Some(at) = sizes.iter().position(|size| *size == record.size) {
                    sizes.swap_remove(at);
                }
                if sizes.is_empty() {
                    self.heads.remove(&record.pre_hash);
                }
            }
            self.erase(Table::Blobs, hash.as_bytes());
            self.change.doomed_blobs.push(held.blob);
        }
    }
}
