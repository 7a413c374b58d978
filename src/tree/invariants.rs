//! Invariants of every tree, for tests and fuzz targets.

use std::ffi::OsStr;

use super::inodes::{Backing, InodeBody, Tree};
use super::name::Name;
use crate::ids::Ino;

impl Tree {
    /// Panics if an invariant does not hold.
    pub fn check_invariants(&self) {
        let root = self.inodes.get(&Ino::ROOT);
        assert!(
            root.is_some_and(|root| matches!(root.backing, Backing::Remote(_)) && root.dentry_ref.is_none())
        );
        let mut live = 0;
        for (&ino, inode) in &self.inodes {
            if let Backing::Remote(meta) = &inode.backing {
                live += 1;
                assert_eq!(self.by_file_id.get(&meta.file_id), Some(&ino), "{meta:?}");
            }
            if let Some(dentry_ref) = &inode.dentry_ref {
                let parent = self.directory(dentry_ref.parent);
                let dentry = parent.ok().and_then(|parent| parent.children.get(&dentry_ref.name));
                assert_eq!(dentry.map(|d| d.ino), Some(ino), "{dentry_ref:?}");
            }
            if let InodeBody::Directory(directory) = &inode.body {
                for (name, dentry) in &directory.children {
                    let child = self.inodes.get(&dentry.ino).and_then(|child| child.dentry_ref.as_ref());
                    let place = child.map(|dentry_ref| (dentry_ref.parent, &dentry_ref.name));
                    assert_eq!(place, Some((ino, name)));
                    assert!(Name::new(OsStr::new(&**name)).is_ok(), "{name:?}");
                }
            }
            if let InodeBody::File { replaces: Some(meta) } = &inode.body {
                assert_eq!(self.replacing.get(&meta.file_id), Some(&ino));
            }
            let has_unsaved = match &inode.body {
                InodeBody::Directory(directory) => directory.children.values().any(|d| self.is_protected(d)),
                InodeBody::File { .. } => false,
            };
            let is_needed = ino == Ino::ROOT
                || inode.lookups > 0
                || inode.pins > 0
                || inode.dentry_ref.is_some()
                || has_unsaved;
            assert!(is_needed, "{ino} is not referenced: {inode:?}");
            let parent = self.parent(ino).filter(|_| ino != Ino::ROOT);
            assert!(parent.is_none_or(|parent| !self.is_below(parent, ino)), "{ino} is below itself");
        }
        assert_eq!(live, self.by_file_id.len());
    }
}
