//! What this mount does to the tree, and what the drive tells of single objects.
//!
//! Every function here is called after the drive has agreed, or for things that only exist here.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::{Body, Dentry, Identity, Inode, Object, Objects, Spot, Standing, Tree};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, Ino};
use crate::pds::drive::FileMeta;
use crate::pds::types::FileType;
use crate::posix::Posix;
use crate::tree::Name;

/// An object that nothing here stands for any more; the caller removes it from the drive.
pub type Superseded = FileMeta;

impl Tree {
    /// A file that was created here and is not on the drive yet. The name must be absent.
    pub fn create_local(
        &mut self,
        dir: Ino,
        name: &Name,
        now: Instant,
        (since, posix): (SystemTime, Option<Arc<Posix>>),
    ) -> Result<Ino> {
        self.create_unborn(FileType::File, dir, name, now, (since, posix))
    }

    /// A folder that lives on this machine only. The name must be absent.
    pub fn create_local_folder(
        &mut self,
        dir: Ino,
        name: &Name,
        now: Instant,
        (since, posix): (SystemTime, Option<Arc<Posix>>),
    ) -> Result<Ino> {
        self.create_unborn(FileType::Folder, dir, name, now, (since, posix))
    }

    fn create_unborn(
        &mut self,
        kind: FileType,
        dir: Ino,
        name: &Name,
        now: Instant,
        (since, posix): (SystemTime, Option<Arc<Posix>>),
    ) -> Result<Ino> {
        if self.child(dir, name.as_str()).is_some() {
            return Err(Error::new(ErrorKind::Exists, format!("{name} exists")));
        }
        self.check_alive(dir)?;
        let ino = self.add_inode(kind, Object::Unborn { since, posix }, Some(now));
        let spot = Spot { parent: dir, name: name.shared(), remote: name.remote() };
        self.link(ino, spot, own_dentry(ino, Standing::Unsaved, now))?;
        self.attrs_set(ino, now, since);
        Ok(ino)
    }

    /// An object that was just made on the drive, in a folder, under this name.
    pub fn insert(&mut self, dir: Ino, name: &Name, meta: FileMeta, now: Instant) -> Result<Ino> {
        self.check_alive(dir)?;
        let ino = match self.by_file_id.get(&meta.file_id) {
            // A listing was faster.
            Some(&ino) => ino,
            None => self.add_inode(meta.kind, Object::Live(meta.clone()), Some(now)),
        };
        let is_new_folder = meta.kind == FileType::Folder;
        self.moved(ino, dir, name, meta, now)?;
        if is_new_folder && let Ok(folder) = self.folder_mut(ino) {
            folder.listed_at = Some(now);
        }
        Ok(ino)
    }

    /// The file has content or attributes that the drive does not have yet: no listing touches it
    /// until [`Self::adopt`] or [`Self::discard`].
    pub fn mark_unsaved(&mut self, ino: Ino) {
        if let Some(dentry) = self.dentry_mut(ino) {
            dentry.standing = Standing::Unsaved;
        }
    }

    /// The drive has the file now, as `meta` says; perhaps as another object than before.
    ///
    /// Where `meta` is elsewhere than [`Self::place`], the file stays unsaved: the caller moves it
    /// and adopts again.
    pub fn adopt(&mut self, ino: Ino, meta: FileMeta, now: Instant) {
        if !self.inodes.contains_key(&ino) {
            return;
        }
        if let Some(other) = self.by_file_id.get(&meta.file_id).copied()
            && other != ino
        {
            self.bury(other);
        }
        self.replacing.remove(&meta.file_id);
        self.become_object(ino, meta, now);
        self.stop_replacing(ino, now);
        let is_at_place = self.is_at_place(ino);
        if let Some(dentry) = self.dentry_mut(ino) {
            dentry.standing =
                if is_at_place { Standing::Created { confirmed: 0 } } else { Standing::Unsaved };
            dentry.seen_at = now;
        }
        self.reap_parent(ino);
    }

    /// Makes `meta` the object of `ino`; its former object is left behind.
    fn become_object(&mut self, ino: Ino, meta: FileMeta, now: Instant) {
        let Some(inode) = self.inodes.get_mut(&ino) else { return };
        inode.attrs_at = Some(now);
        inode.changed_at = Some(now);
        let is_orphan = match &inode.object {
            Object::Unborn { .. } => inode.spot.is_none(),
            Object::Live(old) if old.file_id != meta.file_id => {
                self.by_file_id.remove(&old.file_id);
                self.tombstones.add(old.file_id.clone(), now);
                false
            }
            Object::Live(_) => false,
            Object::Gone(_) => true,
        };
        if is_orphan {
            inode.object = Object::Gone(meta);
        } else {
            self.by_file_id.insert(meta.file_id.clone(), ino);
            inode.object = Object::Live(meta);
        }
    }

    /// The commit is over: whatever the file should have replaced and did not is shown again.
    fn stop_replacing(&mut self, ino: Ino, now: Instant) {
        let Some(inode) = self.inodes.get_mut(&ino) else { return };
        let Body::File { replaces } = &mut inode.body else { return };
        let Some(replaced) = replaces.take() else { return };
        let is_done = match &inode.object {
            Object::Live(meta) | Object::Gone(meta) => meta.file_id == replaced.file_id,
            Object::Unborn { .. } => false,
        };
        let parent = inode.spot.as_ref().map(|spot| spot.parent);
        self.replacing.remove(&replaced.file_id);
        if !is_done && let Some(parent) = parent {
            self.distrust(parent, now);
        }
    }

    /// What the file had unsaved is given up: it is again what the drive has, or nothing.
    pub fn discard(&mut self, ino: Ino, now: Instant) {
        self.stop_replacing(ino, now);
        let Some(spot) = self.inodes.get(&ino).and_then(|inode| inode.spot.clone()) else { return };
        if self.identity(ino) == Some(Identity::Local) {
            self.unlink_dentry(ino);
            self.reap(ino);
        } else if let Some(dentry) = self.dentry_mut(ino) {
            dentry.standing = Standing::Listed;
        }
        self.distrust(spot.parent, now);
        self.reap(spot.parent);
    }

    /// Removed here. The object behind `replaces` is left to the caller.
    pub fn unlink(&mut self, ino: Ino, now: Instant) -> Option<Superseded> {
        let replaced = self.take_replaced(ino);
        if let Some(Identity::Remote(file)) = self.identity(ino) {
            self.tombstones.add(file, now);
        }
        self.bury(ino);
        replaced
    }

    /// A file without a name takes nobody's place.
    fn take_replaced(&mut self, ino: Ino) -> Option<FileMeta> {
        let Body::File { replaces } = &mut self.inodes.get_mut(&ino)?.body else { return None };
        let replaced = replaces.take()?;
        self.replacing.remove(&replaced.file_id);
        Some(replaced)
    }

    /// An object was removed from the drive by this mount without having an inode.
    pub fn entomb(&mut self, file: FileId, now: Instant) {
        self.tombstones.add(file, now);
    }

    /// An object was removed from the drive by this mount; its inode, if it has one, is shown nowhere.
    pub fn superseded(&mut self, file: FileId, now: Instant) {
        if let Some(ino) = self.by_file_id.get(&file).copied() {
            self.bury(ino);
        }
        self.tombstones.add(file, now);
    }

    /// The drive says that this object does not exist. Unsaved content keeps its name.
    pub fn vanished(&mut self, file: &FileId) {
        let Some(ino) = self.by_file_id.get(file).copied() else { return };
        let is_held = self.dentry(ino).is_some_and(|dentry| self.is_held(dentry));
        if ino != Ino::ROOT && !is_held {
            self.bury(ino);
        }
    }

    /// Takes dentry and object from an inode, which lives on while it is referred to.
    fn bury(&mut self, ino: Ino) {
        let removed = self.unlink_dentry(ino);
        self.take_replaced(ino);
        if let Some(inode) = self.inodes.get_mut(&ino)
            && let Object::Live(meta) = &inode.object
        {
            self.by_file_id.remove(&meta.file_id);
            inode.object = Object::Gone(meta.clone());
        }
        self.reap(ino);
        if let Some((spot, _)) = removed {
            self.reap(spot.parent);
        }
    }

    /// The drive was asked for one object at `asked_at` and this is its answer. What this mount has changed
    /// since is newer.
    pub fn observe(&mut self, meta: FileMeta, asked_at: Instant) {
        let Some(ino) = self.by_file_id.get(&meta.file_id).copied() else { return };
        if self.inodes.get(&ino).and_then(|inode| inode.changed_at).is_some_and(|at| at > asked_at) {
            return;
        }
        let (name, parent_id) = (meta.name.clone(), meta.parent_id.clone());
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.object = Object::Live(meta.clone());
            inode.attrs_at = Some(asked_at);
        }
        if ino == Ino::ROOT || self.dentry(ino).is_some_and(|dentry| self.is_held(dentry)) {
            return;
        }
        if self.is_at_place(ino) {
            if let Some(dentry) = self.dentry_mut(ino) {
                dentry.seen_at = asked_at;
                if let Standing::Created { confirmed } = &mut dentry.standing {
                    *confirmed += 1;
                }
            }
            return;
        }
        self.unlink_dentry(ino);
        let folder = parent_id.and_then(|id| self.by_file_id.get(&id).copied());
        match folder.filter(|&folder| !self.is_below(folder, ino)) {
            Some(folder) => {
                tracing::debug!(%ino, name, "found in another place");
                self.place_one(folder, meta, asked_at);
            }
            None => self.reap(ino),
        }
    }

    /// Calls that move an inode begin: until [`Self::release`], no listing touches it.
    pub fn hold(&mut self, ino: Ino) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.moving = true;
        }
    }

    /// The calls that move an inode are over.
    pub fn release(&mut self, ino: Ino) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.moving = false;
        }
    }

    /// The drive has moved an object to this place.
    pub fn moved(&mut self, ino: Ino, dir: Ino, name: &Name, meta: FileMeta, now: Instant) -> Result<()> {
        let remote = if meta.name == name.as_str() { name.shared() } else { Arc::from(&*meta.name) };
        let old = self.parent(ino);
        self.link(
            ino,
            Spot { parent: dir, name: name.shared(), remote },
            own_dentry(ino, Standing::Created { confirmed: 0 }, now),
        )?;
        self.become_object(ino, meta, now);
        if let Some(old) = old {
            self.reap(old);
        }
        Ok(())
    }

    /// `target` was given the content of `source` as `meta`, and `source` was removed: the inode of
    /// the source takes over the target's object and place, and the target's lives on without both.
    pub fn replaced(&mut self, source: Ino, target: Ino, meta: FileMeta, now: Instant) -> Result<()> {
        let spot = self.inode(target)?.spot.clone().ok_or_else(|| super::stale(target))?;
        let old = self.parent(source);
        self.bury(target);
        self.become_object(source, meta, now);
        self.link(source, spot, own_dentry(source, Standing::Created { confirmed: 0 }, now))?;
        if let Some(old) = old {
            self.reap(old);
        }
        Ok(())
    }

    /// Gives a file with unsaved content another name. Its commit will bring it there.
    ///
    /// An object of the drive that had the name is what the commit makes a new revision of.
    pub fn rename_unsaved(
        &mut self,
        ino: Ino,
        dir: Ino,
        name: &Name,
        now: Instant,
    ) -> Result<Vec<Superseded>> {
        self.check_alive(dir)?;
        let mut superseded = Vec::new();
        let mut inherited = None;
        if let Some(target) = self.child(dir, name.as_str()).filter(|&target| target != ino) {
            if self.kind(target)? == FileType::Folder {
                return Err(Error::new(ErrorKind::IsDirectory, format!("{name} is a folder")));
            }
            let Objects { here, elsewhere } = self.objects(target);
            let (heir, second) = if here.is_some() { (here, elsewhere) } else { (elsewhere, None) };
            inherited = heir;
            superseded.extend(second);
            self.bury(target);
        }
        if let Some(inherited) = inherited {
            self.replacing.insert(inherited.file_id.clone(), ino);
            if let Body::File { replaces } = &mut self.inode_mut(ino)?.body {
                superseded.extend(replaces.replace(inherited));
            }
        }
        for meta in &superseded {
            self.replacing.remove(&meta.file_id);
        }
        let old = self.parent(ino);
        let spot = Spot { parent: dir, name: name.shared(), remote: name.remote() };
        self.link(ino, spot, own_dentry(ino, Standing::Unsaved, now))?;
        self.touch(ino, now);
        if let Some(old) = old {
            self.reap(old);
        }
        Ok(superseded)
    }

    /// An unsaved file could not be brought to the place that it was renamed to: it has its former one again.
    pub fn rename_back(&mut self, ino: Ino, dir: Ino, name: &Name, now: Instant) -> Result<()> {
        self.stop_replacing(ino, now);
        let failed_at = self.parent(ino);
        if let Some(failed_at) = failed_at {
            self.distrust(failed_at, now);
        }
        self.check_alive(dir)?;
        if self.child(dir, name.as_str()).is_some_and(|other| other != ino) {
            return Err(Error::new(ErrorKind::Exists, format!("{name} exists by now")));
        }
        let spot = Spot { parent: dir, name: name.shared(), remote: name.remote() };
        self.link(ino, spot, own_dentry(ino, Standing::Unsaved, now))?;
        if let Some(failed_at) = failed_at {
            self.reap(failed_at);
        }
        Ok(())
    }

    /// The drive has been, or will be, told another modification time.
    pub fn set_mtime(&mut self, ino: Ino, mtime: SystemTime) -> Result<()> {
        let inode = self.inode_mut(ino)?;
        inode.names_set_at = None;
        match &mut inode.object {
            Object::Live(meta) | Object::Gone(meta) => meta.mtime = mtime,
            Object::Unborn { since, .. } => *since = mtime,
        }
        Ok(())
    }

    /// The drive has been, or will be, told what else is known of an inode.
    pub fn set_posix(&mut self, ino: Ino, posix: Option<Arc<Posix>>) -> Result<()> {
        match &mut self.inode_mut(ino)?.object {
            Object::Live(meta) | Object::Gone(meta) => meta.posix = posix,
            Object::Unborn { posix: known, .. } => *known = posix,
        }
        Ok(())
    }

    /// The drive was told these of an object.
    pub fn attrs_told(&mut self, file: &FileId, mtime: Option<SystemTime>, posix: Option<Arc<Posix>>) {
        let Some(ino) = self.by_file_id.get(file).copied() else { return };
        if let Some(Inode { object: Object::Live(meta), .. }) = self.inodes.get_mut(&ino) {
            meta.posix = posix;
            meta.mtime = mtime.unwrap_or(meta.mtime);
        }
    }

    /// Attributes of an inode were set here: for a while, no listing knows better.
    pub fn attrs_set(&mut self, ino: Ino, now: Instant, at: SystemTime) {
        self.touch(ino, now);
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.set_at = Some(at);
        }
    }

    /// Names in folders were changed here, and what they stand for with them.
    pub fn names_set(&mut self, dirs: &[Ino], inodes: &[Ino], at: SystemTime) {
        for dir in dirs {
            if let Some(dir) = self.inodes.get_mut(dir) {
                dir.names_set_at = Some(at);
            }
        }
        for ino in inodes {
            if let Some(inode) = self.inodes.get_mut(ino) {
                inode.set_at = Some(at);
            }
        }
    }

    /// What was read of a folder so far has proved wrong.
    pub fn distrust(&mut self, dir: Ino, now: Instant) {
        if let Ok(folder) = self.folder_mut(dir) {
            folder.listed_at = None;
            folder.distrusted_at = Some(now);
        }
    }

    /// Entries of a folder that a listing need not show: what is unsaved (without an id), and what
    /// was made or moved here just now.
    pub fn own_entries(&self, dir: Ino, now: Instant) -> Vec<Option<FileId>> {
        let Ok(folder) = self.folder(dir) else { return Vec::new() };
        let entries = folder.children.values().filter_map(|dentry| {
            if self.is_held(dentry) {
                return Some(None);
            }
            match self.identity(dentry.ino)? {
                Identity::Remote(file) if self.is_own(dentry, now) => Some(Some(file)),
                Identity::Remote(_) | Identity::Local => None,
            }
        });
        entries.collect()
    }

    /// Whether a listing that began at `started` may show an object that this mount has taken away
    /// from this folder.
    pub fn is_removed(&self, dir: Ino, file: &FileId, started: Instant) -> bool {
        if self.tombstones.hides(file, started, self.grace) {
            return true;
        }
        let Some(inode) = self.by_file_id.get(file).and_then(|ino| self.inodes.get(ino)) else {
            return false;
        };
        let is_elsewhere = inode.spot.as_ref().is_some_and(|spot| spot.parent != dir);
        is_elsewhere && (inode.moving || inode.changed_at.is_some_and(|at| started < at + self.grace))
    }

    /// Whether a dentry stands although a listing that began at `started` does not show it.
    pub(super) fn is_own(&self, dentry: &Dentry, started: Instant) -> bool {
        let changed_at = self.inodes.get(&dentry.ino).and_then(|inode| inode.changed_at);
        changed_at.is_some_and(|at| started < at + self.grace)
    }

    fn touch(&mut self, ino: Ino, now: Instant) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.changed_at = Some(now);
        }
    }

    pub(super) fn check_alive(&self, dir: Ino) -> Result<()> {
        self.folder(dir)?;
        match self.inode(dir)?.object {
            Object::Live(_) | Object::Unborn { .. } => Ok(()),
            Object::Gone(_) => {
                Err(Error::new(ErrorKind::NotFound, "the folder was removed; nothing can be made in it"))
            }
        }
    }

    fn reap_parent(&mut self, ino: Ino) {
        if let Some(parent) = self.parent(ino) {
            self.reap(parent);
        }
    }
}

fn own_dentry(ino: Ino, standing: Standing, now: Instant) -> Dentry {
    Dentry { ino, standing, seen_at: now, pass: 0 }
}
