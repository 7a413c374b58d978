//! Reference counts of inodes, and the only functions that add and remove dentries.

use super::inodes::{Backing, Dentry, DentryRef, DentryState, InodeBody, Tree};
use crate::error::Result;
use crate::ids::Ino;
use crate::pds::drive::FileMeta;
use crate::pds::types::FileType;

impl Tree {
    /// Counts a lookup before the kernel learns of the inode. `false` if the inode is gone: do not report
    /// it.
    #[must_use]
    pub fn count_lookup(&mut self, ino: Ino) -> bool {
        let inode = self.inodes.get_mut(&ino);
        inode.map(|inode| inode.lookups += 1).is_some()
    }

    pub fn forget(&mut self, ino: Ino, lookups: u64) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            debug_assert!(inode.lookups >= lookups, "{ino} was looked up {} times", inode.lookups);
            inode.lookups = inode.lookups.saturating_sub(lookups);
            self.gc(ino);
        }
    }

    /// Keeps an inode while it has open handles or unsaved content. Each call needs one [`Self::unpin`].
    pub fn pin(&mut self, ino: Ino) -> Result<()> {
        self.inode_mut(ino)?.pins += 1;
        Ok(())
    }

    pub fn unpin(&mut self, ino: Ino) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            debug_assert!(inode.pins > 0, "{ino} is not pinned");
            inode.pins = inode.pins.saturating_sub(1);
            self.gc(ino);
        }
    }

    /// Removes an inode without references, and everything that was only reachable through it.
    pub(super) fn gc(&mut self, ino: Ino) {
        let mut candidates = vec![ino];
        while let Some(ino) = candidates.pop() {
            let Some(inode) = self.inodes.get(&ino) else { continue };
            if ino == Ino::ROOT || inode.dentry_ref.is_some() || inode.lookups > 0 || inode.pins > 0 {
                continue;
            }
            // An unsaved file needs its directory for its location.
            if let InodeBody::Directory(directory) = &inode.body
                && directory.children.values().any(|dentry| self.is_protected(dentry))
            {
                continue;
            }
            let Some(inode) = self.inodes.remove(&ino) else { continue };
            match &inode.backing {
                Backing::Remote(meta) => {
                    self.by_file_id.remove(&meta.file_id);
                }
                Backing::None { .. } | Backing::Removed(_) => {}
            }
            match inode.body {
                InodeBody::File { replaces: Some(meta) } => {
                    self.replacing.remove(&meta.file_id);
                }
                InodeBody::File { replaces: None } => {}
                InodeBody::Directory(directory) => {
                    for dentry in directory.children.into_values() {
                        if let Some(child) = self.inodes.get_mut(&dentry.ino) {
                            child.dentry_ref = None;
                            candidates.push(dentry.ino);
                        }
                    }
                }
            }
        }
    }

    /// Gives the object of a file a new inode. The old inode keeps `former` as its removed object and lives
    /// while it is referenced, like a replaced file. Returns `false` for protected dentries and pending
    /// replacements.
    pub fn reallocate_inode(&mut self, ino: Ino, former: FileMeta) -> bool {
        let is_possible =
            self.dentry(ino).is_some_and(|dentry| !self.is_protected(dentry)) && self.replaces(ino).is_none();
        let Some(inode) =
            self.inodes.get_mut(&ino).filter(|inode| is_possible && inode.kind() == FileType::File)
        else {
            return false;
        };
        let Backing::Remote(meta) = std::mem::replace(&mut inode.backing, Backing::Removed(former)) else {
            // Every other state is protected.
            return false;
        };
        let (dentry_ref, attrs_read_at, changed_at) =
            (inode.dentry_ref.take(), inode.attrs_read_at, inode.changed_at);
        let file = meta.file_id.clone();
        let new_ino = self.add_inode(FileType::File, Backing::Remote(meta), attrs_read_at);
        self.by_file_id.insert(file, new_ino);
        let parent = dentry_ref.as_ref().map(|dentry_ref| dentry_ref.parent);
        if let Some(inode) = self.inodes.get_mut(&new_ino) {
            (inode.dentry_ref, inode.changed_at) = (dentry_ref, changed_at);
        }
        if let Some(directory) = parent.and_then(|parent| self.directory_mut(parent).ok()) {
            directory.version += 1;
        }
        if let Some(dentry) = self.dentry_mut(new_ino) {
            dentry.ino = new_ino;
        }
        self.gc(ino);
        true
    }

    pub(super) fn is_protected(&self, dentry: &Dentry) -> bool {
        dentry.state == DentryState::Unsaved || self.inodes.get(&dentry.ino).is_some_and(|inode| inode.moving)
    }

    /// Gives `ino` its one dentry. Removes the dentry that had the name.
    pub(super) fn link(&mut self, ino: Ino, dentry_ref: DentryRef, dentry: Dentry) -> Result<()> {
        self.directory(dentry_ref.parent)?;
        self.unlink_dentry(ino);
        if let Some(other) = self.child(dentry_ref.parent, &dentry_ref.name) {
            self.unlink_dentry(other);
            self.gc(other);
        }
        let is_dir = self.kind(ino)? == FileType::Folder;
        let directory = self.directory_mut(dentry_ref.parent)?;
        directory.children.insert(dentry_ref.name.clone(), dentry);
        directory.version += 1;
        directory.subdirs += usize::from(is_dir);
        self.inode_mut(ino)?.dentry_ref = Some(dentry_ref);
        Ok(())
    }

    /// Removes the dentry of an inode. The caller calls [`Self::gc`] if this may have been the last
    /// reference.
    pub(super) fn unlink_dentry(&mut self, ino: Ino) -> Option<(DentryRef, Dentry)> {
        let inode = self.inodes.get_mut(&ino)?;
        let (dentry_ref, is_dir) = (inode.dentry_ref.take()?, inode.kind() == FileType::Folder);
        let directory = self.directory_mut(dentry_ref.parent).ok()?;
        let dentry = directory.children.remove(&dentry_ref.name)?;
        directory.version += 1;
        directory.subdirs -= usize::from(is_dir);
        if directory.shadowed.remove(&dentry_ref.name) {
            // The next listing shows the hidden object.
            directory.listed_at = None;
        }
        Some((dentry_ref, dentry))
    }
}
