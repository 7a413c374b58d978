//! Objects that go to the recycle bin of the drive, and come back.

use std::time::Instant;

use super::change::new_dentry;
use super::inodes::{Backing, DentryRef, DentryState, Tree};
use super::name::Name;
use crate::error::Result;
use crate::ids::Ino;
use crate::pds::drive::FileMeta;

impl Tree {
    /// Records that the drive has moved an object to its recycle bin. The inode loses it and stands for it here.
    pub fn recycled(&mut self, ino: Ino, dir: Ino, name: &Name, now: Instant) -> Result<()> {
        self.check_alive(dir)?;
        self.take_replaced(ino);
        let inode = self.inode_mut(ino)?;
        if let Backing::Remote(meta) | Backing::Removed(meta) = &inode.backing {
            let (file, since, posix) = (meta.file_id.clone(), meta.mtime, meta.posix.clone());
            inode.backing = Backing::None { since, posix };
            if self.by_file_id.get(&file) == Some(&ino) {
                self.by_file_id.remove(&file);
            }
            self.tombstones.add(file, now);
        }
        let old = self.parent(ino);
        let dentry_ref = DentryRef { parent: dir, name: name.shared(), remote: name.remote() };
        self.link(ino, dentry_ref, new_dentry(ino, DentryState::Unsaved, now))?;
        if let Some(old) = old {
            self.gc(old);
        }
        Ok(())
    }

    /// Records that an object is back from the recycle bin of the drive at this place, with the inode that stood for it.
    pub fn restored(&mut self, ino: Ino, dir: Ino, name: &Name, meta: FileMeta, now: Instant) -> Result<()> {
        self.tombstones.remove(&meta.file_id);
        if let Some(other) = self.by_file_id.get(&meta.file_id).copied().filter(|other| *other != ino) {
            // A listing has shown it already.
            self.detach(other);
        }
        self.moved(ino, dir, name, meta, now)?;
        // Another client may have changed it in between.
        self.invalidate(ino, now);
        Ok(())
    }

    /// Records that an object is back from the recycle bin of the drive, where its name and folder were kept.
    pub fn restored_elsewhere(&mut self, meta: FileMeta, now: Instant) {
        self.tombstones.remove(&meta.file_id);
        let directory = meta.parent_id.as_ref().and_then(|id| self.by_file_id.get(id).copied());
        if let Some(directory) = directory {
            self.insert_one(directory, meta, now);
        }
    }
}
