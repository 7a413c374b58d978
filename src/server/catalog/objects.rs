//! Operations on folders and files: create, update, move, copy, find.

use std::collections::HashMap;

use super::database::Table;
use super::records::{CatalogOp, ClientAttrs, Node, NodeKind, Revision};
use super::{CatalogState, CheckNameMode, DriveId, FileId, ServiceError};
use crate::server::clock;

/// The changes of an `update`. `None` leaves a value as it is.
#[derive(Default)]
pub(in crate::server) struct Edits {
    pub(in crate::server) name: Option<String>,
    pub(in crate::server) mode: CheckNameMode,
    pub(in crate::server) local_modified_at: Option<String>,
    pub(in crate::server) hidden: Option<bool>,
    pub(in crate::server) starred: Option<bool>,
    pub(in crate::server) description: Option<String>,
    pub(in crate::server) labels: Option<Vec<String>>,
    pub(in crate::server) user_meta: Option<String>,
    pub(in crate::server) custom_index_key: Option<String>,
}

/// Bound on the objects of one copy, because a copy is made in memory.
const COPIES_MAX: usize = 100_000;

impl CatalogState {
    /// Makes a folder. The inner error is the sibling that has the name.
    pub(in crate::server) fn make_folder(
        &mut self,
        drive: &DriveId,
        parent: &FileId,
        name: &str,
        mode: CheckNameMode,
        attrs: ClientAttrs,
        now_ms: i64,
    ) -> Result<Result<FileId, FileId>, ServiceError> {
        self.check_folder(drive, parent)?;
        let name = match self.resolve_name(drive, parent, name, mode, None, now_ms) {
            Ok(name) => name,
            Err(sibling) => return Ok(Err(sibling.file_id.clone())),
        };
        let file_id = clock::file_id(now_ms)?;
        let node = Node {
            file_id: file_id.clone(),
            drive_id: drive.clone(),
            parent: parent.clone(),
            name,
            kind: NodeKind::Folder,
            created_ms: now_ms,
            updated_ms: now_ms,
            trashed_ms: None,
            attrs,
        };
        self.insert(node, CatalogOp::Create)?;
        Ok(Ok(file_id))
    }

    /// Renames an object and changes its client attributes. The inner error is the sibling that has the name.
    pub(in crate::server) fn update(
        &mut self,
        drive: &DriveId,
        file: &FileId,
        edits: Edits,
        now_ms: i64,
    ) -> Result<Result<(), FileId>, ServiceError> {
        let node = self.live(drive, file)?;
        let parent = node.parent.clone();
        let name = match edits.name {
            Some(name) if name != node.name => {
                match self.resolve_name(drive, &parent, &name, edits.mode, Some(file), now_ms) {
                    Ok(name) => Some(name),
                    Err(sibling) => return Ok(Err(sibling.file_id.clone())),
                }
            }
            _ => None,
        };
        let op = if name.is_some() { CatalogOp::Rename } else { CatalogOp::Update };
        let local_modified_at = edits.local_modified_at.filter(|_| self.quirks.local_modified_at_updatable);
        self.edit(file, op, |node| {
            node.updated_ms = now_ms;
            if let Some(name) = name {
                node.name = name;
            }
            let attrs = &mut node.attrs;
            attrs.local_modified_at = local_modified_at.or_else(|| attrs.local_modified_at.take());
            attrs.hidden = edits.hidden.unwrap_or(attrs.hidden);
            attrs.starred = edits.starred.unwrap_or(attrs.starred);
            attrs.description = edits.description.or_else(|| attrs.description.take());
            attrs.user_meta = edits.user_meta.or_else(|| attrs.user_meta.take());
            if let Some(labels) = edits.labels {
                attrs.labels = labels;
            }
            if let Some(key) = edits.custom_index_key {
                attrs.custom_index_key = Some(key).filter(|key| !key.is_empty());
            }
        })?;
        Ok(Ok(()))
    }

    /// Changes the user tags of an object.
    pub(in crate::server) fn tag(
        &mut self,
        drive: &DriveId,
        file: &FileId,
        now_ms: i64,
        tag: impl FnOnce(&mut std::collections::BTreeMap<String, String>) -> Result<(), ServiceError>,
    ) -> Result<(), ServiceError> {
        let mut tags = self.live(drive, file)?.attrs.user_tags.clone();
        tag(&mut tags)?;
        self.edit(file, CatalogOp::Update, |node| {
            node.updated_ms = now_ms;
            node.attrs.user_tags = tags;
        })
    }

    /// Moves an object. The inner error is the sibling that has the name in the target folder.
    pub(in crate::server) fn move_node(
        &mut self,
        drive: &DriveId,
        file: &FileId,
        to: &FileId,
        new_name: Option<&str>,
        mode: CheckNameMode,
        now_ms: i64,
    ) -> Result<Result<(), FileId>, ServiceError> {
        self.check_folder(drive, to)?;
        let node = self.live(drive, file)?;
        self.check_not_below(file, to)?;
        let wanted = new_name.filter(|_| self.quirks.move_new_name).unwrap_or(&node.name);
        let name = match self.resolve_name(drive, to, wanted, mode, Some(file), now_ms) {
            Ok(name) => name,
            Err(sibling) => return Ok(Err(sibling.file_id.clone())),
        };
        self.edit(file, CatalogOp::Move, |node| {
            node.parent = to.clone();
            node.name = name;
            node.updated_ms = now_ms;
        })?;
        Ok(Ok(()))
    }

    /// Fails if `target` is `folder` or below it.
    fn check_not_below(&self, folder: &FileId, target: &FileId) -> Result<(), ServiceError> {
        let mut at = Some(target);
        while let Some(id) = at {
            if id == folder {
                return Err(ServiceError::invalid("to_parent_file_id", "It is below the object itself."));
            }
            at = self.nodes.get(id).map(|node| &node.parent);
        }
        Ok(())
    }

    /// Copies an object with everything below it. The copies share the blobs.
    pub(in crate::server) fn copy(
        &mut self,
        (drive, file): (&DriveId, &FileId),
        (to_drive, to): (&DriveId, &FileId),
        new_name: Option<&str>,
        mode: CheckNameMode,
        now_ms: i64,
    ) -> Result<FileId, ServiceError> {
        self.check_folder(to_drive, to)?;
        let top = self.live(drive, file)?;
        if drive == to_drive {
            self.check_not_below(file, to)?;
            if self.quirks.refuse_copy_in_folder && top.parent == *to {
                return Err(ServiceError::new(
                    403,
                    "ForbiddenNoPermission.File",
                    "No permission to copy here.",
                ));
            }
        }
        let wanted = new_name.unwrap_or(&top.name);
        let name = self
            .resolve_name(to_drive, to, wanted, mode, None, now_ms)
            .map_err(|_| ServiceError::name_exists())?;
        let copies = self.copies(drive, file, to_drive, to, &name, now_ms)?;
        self.check_quota(to_drive, copies.iter().map(Node::held_bytes).sum())?;
        let Some(first) = copies.first().map(|node| node.file_id.clone()) else {
            return Err(ServiceError::not_found("File"));
        };
        for node in copies {
            self.insert(node, CatalogOp::Create)?;
        }
        Ok(first)
    }

    /// The nodes of a copy, each after its parent.
    fn copies(
        &self,
        drive: &DriveId,
        file: &FileId,
        to_drive: &DriveId,
        to: &FileId,
        name: &str,
        now_ms: i64,
    ) -> Result<Vec<Node>, ServiceError> {
        let mut new_ids = HashMap::new();
        let mut copies = Vec::new();
        for id in self.below(drive, file) {
            let Some(node) = self.nodes.get(&id) else { continue };
            if copies.len() == COPIES_MAX {
                return Err(ServiceError::invalid("file_id", "The folder holds too many objects."));
            }
            let new_id = clock::file_id(now_ms)?;
            let is_top = copies.is_empty();
            let parent = if is_top { to.clone() } else { new_ids.get(&node.parent).unwrap_or(to).clone() };
            let kind = match node.newest() {
                None => NodeKind::Folder,
                Some(newest) => {
                    let first = Revision {
                        revision_id: clock::revision_id(now_ms)?,
                        created_ms: now_ms,
                        version: 1,
                        keep_forever: false,
                        description: String::new(),
                        ..newest.clone()
                    };
                    NodeKind::File { revisions: vec![first] }
                }
            };
            copies.push(Node {
                file_id: new_id.clone(),
                drive_id: to_drive.clone(),
                parent,
                name: if is_top { name.to_owned() } else { node.name.clone() },
                kind,
                created_ms: now_ms,
                updated_ms: now_ms,
                trashed_ms: None,
                attrs: node.attrs.clone(),
            });
            new_ids.insert(id, new_id);
        }
        Ok(copies)
    }

    /// An object and everything below it, each after its parent.
    pub(in crate::server) fn below(&self, drive: &DriveId, top: &FileId) -> Vec<FileId> {
        let mut all = vec![top.clone()];
        let mut at = 0;
        while at < all.len() {
            if let Some(folder) = self.folder(drive, &all[at]) {
                all.extend(folder.ids().cloned());
            }
            at += 1;
        }
        all
    }

    /// The object at a path such as `/a/b/c`.
    pub(in crate::server) fn by_path(&self, drive: &DriveId, path: &str) -> Result<&Node, ServiceError> {
        self.drive(drive)?;
        let mut parent = FileId::root();
        let mut found = None;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let node =
                self.sibling(drive, &parent, name, None).ok_or_else(|| ServiceError::not_found("File"))?;
            parent = node.file_id.clone();
            found = Some(node);
        }
        found.ok_or_else(|| ServiceError::not_found("File"))
    }

    /// All objects of a drive outside the recycle bin, by id, beginning after `after`.
    pub(in crate::server) fn scan<'a>(
        &'a self,
        drive: &'a DriveId,
        after: Option<&FileId>,
    ) -> impl Iterator<Item = &'a Node> {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, |id| Bound::Excluded(id.clone()));
        self.nodes
            .range((from, Bound::Unbounded))
            .map(|(_, node)| node)
            .filter(move |node| node.drive_id == *drive && !self.is_trashed(node))
    }

    /// Changes the revisions of a file. `change` must keep at least one, and their order.
    pub(super) fn edit_revisions(
        &mut self,
        file: &FileId,
        op: CatalogOp,
        now_ms: i64,
        change: impl FnOnce(&mut Vec<Revision>),
    ) -> Result<(), ServiceError> {
        let Some(mut node) = self.nodes.remove(file) else { return Err(ServiceError::not_found("File")) };
        self.unindex(&node);
        let held_before = node.held_bytes();
        let before: Vec<String> = node.revisions().iter().map(|r| r.hash.clone()).collect();
        if let NodeKind::File { revisions } = &mut node.kind {
            change(revisions);
        }
        node.updated_ms = now_ms;
        // Add references before dropping the old ones: a kept blob must not reach zero.
        for revision in node.revisions() {
            if let Some(held) = self.blobs.get_mut(&revision.hash) {
                held.revisions += 1;
            }
        }
        for hash in before {
            self.release(&hash);
        }
        if let Some(drive) = self.drives.get_mut(&node.drive_id) {
            drive.used_bytes = (drive.used_bytes + node.held_bytes()).saturating_sub(held_before);
        }
        self.index(&node);
        self.put_record(Table::Nodes, file.as_str().as_bytes(), &node)?;
        let (drive, parent) = (node.drive_id.clone(), node.parent.clone());
        self.nodes.insert(file.clone(), node);
        self.record_delta(&drive, file, op, vec![parent])
    }
}
