//! What keeps an inode alive, and the one place where dentries come and go.

use super::{Body, Dentry, Object, Spot, Standing, Tree};
use crate::error::Result;
use crate::ids::Ino;
use crate::pds::drive::FileMeta;
use crate::pds::types::FileType;

impl Tree {
    /// The kernel is about to be told of this inode. False where it is gone: tell nothing.
    #[must_use]
    pub fn count_lookup(&mut self, ino: Ino) -> bool {
        let inode = self.inodes.get_mut(&ino);
        inode.map(|inode| inode.lookups += 1).is_some()
    }

    /// The kernel has forgotten that many lookups.
    pub fn forget(&mut self, ino: Ino, lookups: u64) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            debug_assert!(inode.lookups >= lookups, "{ino} was looked up {} times", inode.lookups);
            inode.lookups = inode.lookups.saturating_sub(lookups);
            self.reap(ino);
        }
    }

    /// Keeps an inode while it has open handles or unsaved content.
    pub fn pin(&mut self, ino: Ino) -> Result<()> {
        self.inode_mut(ino)?.pins += 1;
        Ok(())
    }

    /// Takes one pin back.
    pub fn unpin(&mut self, ino: Ino) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            debug_assert!(inode.pins > 0, "{ino} is not pinned");
            inode.pins = inode.pins.saturating_sub(1);
            self.reap(ino);
        }
    }

    /// Lets go of an inode that nothing refers to, and of what only it led to.
    pub(super) fn reap(&mut self, ino: Ino) {
        let mut candidates = vec![ino];
        while let Some(ino) = candidates.pop() {
            let Some(inode) = self.inodes.get(&ino) else { continue };
            if ino == Ino::ROOT || inode.spot.is_some() || inode.lookups > 0 || inode.pins > 0 {
                continue;
            }
            // An unsaved file needs its folder to know where it belongs.
            if let Body::Folder(folder) = &inode.body
                && folder.children.values().any(|dentry| self.is_held(dentry))
            {
                continue;
            }
            let Some(inode) = self.inodes.remove(&ino) else { continue };
            match &inode.object {
                Object::Live(meta) => {
                    self.by_file_id.remove(&meta.file_id);
                }
                Object::Unborn { .. } | Object::Gone(_) => {}
            }
            match inode.body {
                Body::File { replaces: Some(meta) } => {
                    self.replacing.remove(&meta.file_id);
                }
                Body::File { replaces: None } => {}
                Body::Folder(folder) => {
                    for dentry in folder.children.into_values() {
                        if let Some(child) = self.inodes.get_mut(&dentry.ino) {
                            child.spot = None;
                            candidates.push(dentry.ino);
                        }
                    }
                }
            }
        }
    }

    /// Whether no listing may touch this dentry.
    /// Shows the object of a file as another inode from now on. The one that it was becomes what it stood for before,
    /// `former`, like one that was replaced: it lives on while it is referred to. `false` where that cannot be.
    pub fn renew(&mut self, ino: Ino, former: FileMeta) -> bool {
        let can_be =
            self.dentry(ino).is_some_and(|dentry| !self.is_held(dentry)) && self.replaces(ino).is_none();
        let Some(inode) = self.inodes.get_mut(&ino).filter(|inode| can_be && inode.kind() == FileType::File)
        else {
            return false;
        };
        let Object::Live(meta) = std::mem::replace(&mut inode.object, Object::Gone(former)) else {
            // What is not live is held.
            return false;
        };
        let (spot, attrs_at, changed_at) = (inode.spot.take(), inode.attrs_at, inode.changed_at);
        let file = meta.file_id.clone();
        let fresh = self.add_inode(FileType::File, Object::Live(meta), attrs_at);
        self.by_file_id.insert(file, fresh);
        if let Some(inode) = self.inodes.get_mut(&fresh) {
            (inode.spot, inode.changed_at) = (spot, changed_at);
        }
        if let Some(dentry) = self.dentry_mut(fresh) {
            dentry.ino = fresh;
        }
        self.reap(ino);
        true
    }

    pub(super) fn is_held(&self, dentry: &Dentry) -> bool {
        dentry.standing == Standing::Unsaved || self.inodes.get(&dentry.ino).is_some_and(|inode| inode.moving)
    }

    /// Gives `ino` its one dentry. Whoever had the name loses it.
    pub(super) fn link(&mut self, ino: Ino, spot: Spot, dentry: Dentry) -> Result<()> {
        self.folder(spot.parent)?;
        self.unlink_dentry(ino);
        if let Some(other) = self.child(spot.parent, &spot.name) {
            self.unlink_dentry(other);
            self.reap(other);
        }
        let is_folder = self.kind(ino)? == FileType::Folder;
        let folder = self.folder_mut(spot.parent)?;
        folder.children.insert(spot.name.clone(), dentry);
        folder.subfolders += usize::from(is_folder);
        self.inode_mut(ino)?.spot = Some(spot);
        Ok(())
    }

    /// Takes the dentry of an inode away. The caller reaps where that may have been the last reference.
    pub(super) fn unlink_dentry(&mut self, ino: Ino) -> Option<(Spot, Dentry)> {
        let inode = self.inodes.get_mut(&ino)?;
        let (spot, is_folder) = (inode.spot.take()?, inode.kind() == FileType::Folder);
        let folder = self.folder_mut(spot.parent).ok()?;
        let dentry = folder.children.remove(&spot.name)?;
        folder.subfolders -= usize::from(is_folder);
        if folder.shadowed.remove(&spot.name) {
            // What stood behind it is to be shown.
            folder.listed_at = None;
        }
        Some((spot, dentry))
    }
}
