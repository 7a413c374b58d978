//! Changes made by this mount, and answers of the drive about single objects.
//!
//! The functions here are called after the drive has confirmed a change, or for local-only changes.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::inodes::{Backing, Dentry, DentryRef, DentryState, Identity, Inode, InodeBody, Tree, stale};
use super::name::Name;
use super::objects::Objects;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, Ino};
use crate::pds::drive::FileMeta;
use crate::pds::types::FileType;
use crate::posix::Posix;

/// An object that no inode needs any more. The caller removes it from the drive.
pub type SupersededObject = FileMeta;

impl Tree {
    /// Adds a file that is not on the drive yet. Fails with EEXIST if the name is taken.
    pub fn create_local(
        &mut self,
        dir: Ino,
        name: &Name,
        now: Instant,
        (since, posix): (SystemTime, Option<Arc<Posix>>),
    ) -> Result<Ino> {
        self.create_unbacked(FileType::File, dir, name, now, (since, posix))
    }

    /// Adds a local-only directory. Fails with EEXIST if the name is taken.
    pub fn create_local_dir(
        &mut self,
        dir: Ino,
        name: &Name,
        now: Instant,
        (since, posix): (SystemTime, Option<Arc<Posix>>),
    ) -> Result<Ino> {
        self.create_unbacked(FileType::Folder, dir, name, now, (since, posix))
    }

    fn create_unbacked(
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
        let ino = self.add_inode(kind, Backing::None { since, posix }, Some(now));
        let dentry_ref = DentryRef { parent: dir, name: name.shared(), remote: name.remote() };
        self.link(ino, dentry_ref, new_dentry(ino, DentryState::Unsaved, now))?;
        self.attrs_changed(ino, now, since);
        Ok(ino)
    }

    /// Adds an object that this mount just created on the drive.
    pub fn insert(&mut self, dir: Ino, name: &Name, meta: FileMeta, now: Instant) -> Result<Ino> {
        self.check_alive(dir)?;
        let ino = match self.by_file_id.get(&meta.file_id) {
            // A listing has added it already.
            Some(&ino) if self.kind(ino)? == meta.kind && !self.is_below(dir, ino) => ino,
            Some(_) => return Err(wrong_object(&meta)),
            None => self.add_inode(meta.kind, Backing::Remote(meta.clone()), Some(now)),
        };
        let is_new_dir = meta.kind == FileType::Folder;
        self.moved(ino, dir, name, meta, now)?;
        if is_new_dir && let Ok(directory) = self.directory_mut(ino) {
            directory.listed_at = Some(now);
        }
        Ok(ino)
    }

    /// Marks a file as unsaved: listings do not change it until [`Self::adopt`] or [`Self::discard`].
    pub fn mark_unsaved(&mut self, ino: Ino) {
        if let Some(dentry) = self.dentry_mut(ino) {
            dentry.state = DentryState::Unsaved;
        }
    }

    /// Records a commit: the drive has the file as `meta`, possibly as another object than before.
    ///
    /// If `meta` is not at [`Self::location`], the file stays unsaved. The caller moves the object and
    /// calls this again.
    pub fn adopt(&mut self, ino: Ino, meta: FileMeta, now: Instant) -> Result<()> {
        if !self.inodes.contains_key(&ino) {
            return Ok(());
        }
        if let Some(other) = self.by_file_id.get(&meta.file_id).copied()
            && other != ino
        {
            if self.is_below(ino, other) {
                return Err(wrong_object(&meta));
            }
            self.detach(other);
        }
        self.set_object(ino, meta, now);
        self.end_replacement(ino, now);
        let is_at_location = self.is_at_location(ino);
        if let Some(dentry) = self.dentry_mut(ino) {
            dentry.state =
                if is_at_location { DentryState::Created { confirmed: 0 } } else { DentryState::Unsaved };
            dentry.seen_at = now;
        }
        self.gc_parent(ino);
        Ok(())
    }

    /// Makes `meta` the object of `ino`. The former object gets a tombstone.
    fn set_object(&mut self, ino: Ino, meta: FileMeta, now: Instant) {
        if let Some(other) = self.replacing.get(&meta.file_id).copied().filter(|other| *other != ino) {
            // Its commit must not overwrite this content.
            self.take_replaced(other);
        }
        let Some(inode) = self.inodes.get_mut(&ino) else { return };
        self.leftovers.remove(&meta.file_id);
        inode.attrs_read_at = Some(now);
        inode.changed_at = Some(now);
        let is_unlinked = match &inode.backing {
            Backing::None { .. } => inode.dentry_ref.is_none(),
            Backing::Remote(old) if old.file_id != meta.file_id => {
                self.by_file_id.remove(&old.file_id);
                self.tombstones.add(old.file_id.clone(), now);
                false
            }
            Backing::Remote(_) => false,
            Backing::Removed(_) => true,
        };
        if is_unlinked {
            inode.backing = Backing::Removed(meta);
        } else {
            self.by_file_id.insert(meta.file_id.clone(), ino);
            inode.backing = Backing::Remote(meta);
        }
    }

    /// Ends a pending replacement. An object that was not replaced reappears with the next listing.
    fn end_replacement(&mut self, ino: Ino, now: Instant) {
        let Some(inode) = self.inodes.get_mut(&ino) else { return };
        let InodeBody::File { replaces } = &mut inode.body else { return };
        let Some(replaced) = replaces.take() else { return };
        let is_done = match &inode.backing {
            Backing::Remote(meta) | Backing::Removed(meta) => meta.file_id == replaced.file_id,
            Backing::None { .. } => false,
        };
        let parent = inode.dentry_ref.as_ref().map(|dentry_ref| dentry_ref.parent);
        self.replacing.remove(&replaced.file_id);
        if !is_done && let Some(parent) = parent {
            self.invalidate(parent, now);
        }
    }

    /// Drops unsaved content: the file is again as on the drive, or gone.
    pub fn discard(&mut self, ino: Ino, now: Instant) {
        self.end_replacement(ino, now);
        let Some(dentry_ref) = self.inodes.get(&ino).and_then(|inode| inode.dentry_ref.clone()) else {
            return;
        };
        if self.identity(ino) == Some(Identity::Local) {
            self.unlink_dentry(ino);
            self.gc(ino);
        } else if self.is_at_location(ino) {
            if let Some(dentry) = self.dentry_mut(ino) {
                dentry.state = DentryState::Listed;
            }
        } else if let Some(meta) = self.meta(ino).cloned() {
            // Renamed since: its object still has the old name.
            self.move_to_object(ino, meta, now);
        }
        self.invalidate(dentry_ref.parent, now);
        self.gc(dentry_ref.parent);
    }

    /// Records an unlink. Returns the object that was to be replaced; the caller removes it.
    pub fn unlink(&mut self, ino: Ino, now: Instant) -> Option<SupersededObject> {
        let replaced = self.take_replaced(ino);
        if let Some(Identity::Remote(file)) = self.identity(ino) {
            self.tombstones.add(file, now);
        }
        self.detach(ino);
        replaced
    }

    pub(super) fn take_replaced(&mut self, ino: Ino) -> Option<FileMeta> {
        let InodeBody::File { replaces } = &mut self.inodes.get_mut(&ino)?.body else { return None };
        let replaced = replaces.take()?;
        self.replacing.remove(&replaced.file_id);
        Some(replaced)
    }

    /// Records the removal of an object that has no inode.
    pub fn add_tombstone(&mut self, file: FileId, now: Instant) {
        self.tombstones.add(file, now);
    }

    /// Records that this mount removed an object. Its inode, if any, loses its dentry.
    pub fn removed_object(&mut self, file: FileId, now: Instant) {
        if let Some(ino) = self.by_file_id.get(&file).copied() {
            self.detach(ino);
        }
        self.tombstones.add(file, now);
    }

    /// Records that the drive does not have an object. An unsaved file keeps its name.
    pub fn removed_elsewhere(&mut self, file: &FileId) {
        let Some(ino) = self.by_file_id.get(file).copied() else { return };
        let is_protected = self.dentry(ino).is_some_and(|dentry| self.is_protected(dentry));
        if ino != Ino::ROOT && !is_protected {
            self.detach(ino);
        }
    }

    /// Removes dentry and object of an inode. The inode lives while it is referenced.
    pub(super) fn detach(&mut self, ino: Ino) {
        let removed = self.unlink_dentry(ino);
        self.take_replaced(ino);
        if let Some(inode) = self.inodes.get_mut(&ino)
            && let Backing::Remote(meta) = &inode.backing
        {
            self.by_file_id.remove(&meta.file_id);
            inode.backing = Backing::Removed(meta.clone());
        }
        self.gc(ino);
        if let Some((dentry_ref, _)) = removed {
            self.gc(dentry_ref.parent);
        }
    }

    /// Merges the attributes of one object, requested at `requested_at`. Later changes by this mount win.
    pub fn merge_object(&mut self, meta: FileMeta, requested_at: Instant) {
        let Some(ino) = self.by_file_id.get(&meta.file_id).copied() else { return };
        if self.inodes.get(&ino).and_then(|inode| inode.changed_at).is_some_and(|at| at > requested_at) {
            return;
        }
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.backing = Backing::Remote(meta.clone());
            inode.attrs_read_at = Some(requested_at);
        }
        if ino == Ino::ROOT || self.dentry(ino).is_some_and(|dentry| self.is_protected(dentry)) {
            return;
        }
        if self.is_at_location(ino) {
            if let Some(dentry) = self.dentry_mut(ino) {
                dentry.seen_at = requested_at;
                if let DentryState::Created { confirmed } = &mut dentry.state {
                    *confirmed += 1;
                }
            }
            return;
        }
        tracing::debug!(%ino, name = meta.name, "object has moved on the drive");
        self.move_to_object(ino, meta, requested_at);
    }

    /// Moves the dentry of an inode to the location of its object, if that directory is known.
    fn move_to_object(&mut self, ino: Ino, meta: FileMeta, at: Instant) {
        self.unlink_dentry(ino);
        let directory = meta.parent_id.as_ref().and_then(|id| self.by_file_id.get(id).copied());
        if let Some(directory) = directory.filter(|&directory| !self.is_below(directory, ino)) {
            self.insert_one(directory, meta, at);
        }
        // The new directory may hide the object.
        self.gc(ino);
    }

    /// Protects an inode from listings until [`Self::end_move`], while calls move its object.
    pub fn begin_move(&mut self, ino: Ino) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.moving = true;
        }
    }

    pub fn end_move(&mut self, ino: Ino) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.moving = false;
        }
    }

    /// Records that the drive moved an object to this location.
    pub fn moved(&mut self, ino: Ino, dir: Ino, name: &Name, meta: FileMeta, now: Instant) -> Result<()> {
        let remote = if meta.name == name.as_str() { name.shared() } else { Arc::from(&*meta.name) };
        let old = self.parent(ino);
        self.link(
            ino,
            DentryRef { parent: dir, name: name.shared(), remote },
            new_dentry(ino, DentryState::Created { confirmed: 0 }, now),
        )?;
        self.set_object(ino, meta, now);
        if let Some(old) = old {
            self.gc(old);
        }
        Ok(())
    }

    /// Records a replace: `target` got the content of `source` as `meta`, and `source` was removed. The inode
    /// of the source takes over the object and location of the target. The inode of the target loses both and
    /// lives while it is referenced.
    pub fn replaced(&mut self, source: Ino, target: Ino, meta: FileMeta, now: Instant) -> Result<()> {
        let dentry_ref = self.inode(target)?.dentry_ref.clone().ok_or_else(|| stale(target))?;
        let old = self.parent(source);
        self.detach(target);
        self.set_object(source, meta, now);
        self.link(source, dentry_ref, new_dentry(source, DentryState::Created { confirmed: 0 }, now))?;
        if let Some(old) = old {
            self.gc(old);
        }
        Ok(())
    }

    /// Renames an unsaved file. The commit moves it on the drive.
    ///
    /// If an object of the drive has the name, the commit makes a new revision of that object.
    pub fn rename_unsaved(
        &mut self,
        ino: Ino,
        dir: Ino,
        name: &Name,
        now: Instant,
    ) -> Result<Vec<SupersededObject>> {
        self.check_alive(dir)?;
        let mut superseded = Vec::new();
        let mut inherited = None;
        if let Some(target) = self.child(dir, name.as_str()).filter(|&target| target != ino) {
            if self.kind(target)? == FileType::Folder {
                return Err(Error::new(ErrorKind::IsDirectory, format!("{name} is a directory")));
            }
            let Objects { in_place: here, elsewhere } = self.objects(target);
            let (heir, second) = if here.is_some() { (here, elsewhere) } else { (elsewhere, None) };
            inherited = heir;
            superseded.extend(second);
            self.detach(target);
        }
        if let Some(inherited) = inherited {
            self.replacing.insert(inherited.file_id.clone(), ino);
            if let InodeBody::File { replaces } = &mut self.inode_mut(ino)?.body {
                superseded.extend(replaces.replace(inherited));
            }
        }
        for meta in &superseded {
            self.replacing.remove(&meta.file_id);
            self.supersede(meta.clone());
        }
        let old = self.parent(ino);
        let dentry_ref = DentryRef { parent: dir, name: name.shared(), remote: name.remote() };
        self.link(ino, dentry_ref, new_dentry(ino, DentryState::Unsaved, now))?;
        self.mark_changed(ino, now);
        if let Some(old) = old {
            self.gc(old);
        }
        Ok(superseded)
    }

    /// Gives an unsaved file its former name back, after its commit to the new location failed.
    pub fn revert_rename(&mut self, ino: Ino, dir: Ino, name: &Name, now: Instant) -> Result<()> {
        self.end_replacement(ino, now);
        let failed_dir = self.parent(ino);
        if let Some(failed_dir) = failed_dir {
            self.invalidate(failed_dir, now);
        }
        self.check_alive(dir)?;
        if self.child(dir, name.as_str()).is_some_and(|other| other != ino) {
            return Err(Error::new(ErrorKind::Exists, format!("{name} exists")));
        }
        let dentry_ref = DentryRef { parent: dir, name: name.shared(), remote: name.remote() };
        self.link(ino, dentry_ref, new_dentry(ino, DentryState::Unsaved, now))?;
        if let Some(failed_dir) = failed_dir {
            self.gc(failed_dir);
        }
        Ok(())
    }

    pub fn set_mtime(&mut self, ino: Ino, mtime: SystemTime) -> Result<()> {
        let inode = self.inode_mut(ino)?;
        inode.names_changed_at = None;
        match &mut inode.backing {
            Backing::Remote(meta) | Backing::Removed(meta) => meta.mtime = mtime,
            Backing::None { since, .. } => *since = mtime,
        }
        Ok(())
    }

    pub fn set_posix(&mut self, ino: Ino, posix: Option<Arc<Posix>>) -> Result<()> {
        match &mut self.inode_mut(ino)?.backing {
            Backing::Remote(meta) | Backing::Removed(meta) => meta.posix = posix,
            Backing::None { posix: known, .. } => *known = posix,
        }
        Ok(())
    }

    /// Records attributes that the drive has stored.
    pub fn attrs_stored(&mut self, file: &FileId, mtime: Option<SystemTime>, posix: Option<Arc<Posix>>) {
        let Some(ino) = self.by_file_id.get(file).copied() else { return };
        if let Some(Inode { backing: Backing::Remote(meta), .. }) = self.inodes.get_mut(&ino) {
            meta.posix = posix;
            meta.mtime = mtime.unwrap_or(meta.mtime);
        }
    }

    /// Records that this mount changed attributes at `at`: for a while they win against listings.
    pub fn attrs_changed(&mut self, ino: Ino, now: Instant, at: SystemTime) {
        self.mark_changed(ino, now);
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.attrs_changed_at = Some(at);
        }
    }

    /// Records that this mount changed the content of a file at `at`. The service has its own, later time.
    pub fn content_changed(&mut self, ino: Ino, at: SystemTime) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.attrs_changed_at = inode.attrs_changed_at.max(Some(at));
        }
    }

    /// Records that this mount changed names in `dirs`, and names of `inodes`, at `at`.
    pub fn names_changed(&mut self, dirs: &[Ino], inodes: &[Ino], at: SystemTime) {
        for dir in dirs {
            if let Some(dir) = self.inodes.get_mut(dir) {
                dir.names_changed_at = Some(at);
            }
        }
        for ino in inodes {
            if let Some(inode) = self.inodes.get_mut(ino) {
                inode.attrs_changed_at = Some(at);
            }
        }
    }

    /// Marks everything that was read of a directory until now as stale.
    pub fn invalidate(&mut self, dir: Ino, now: Instant) {
        if let Ok(directory) = self.directory_mut(dir) {
            directory.listed_at = None;
            directory.invalidated_at = Some(now);
        }
    }

    /// Entries that a listing of the directory may lack: unsaved files (`None`), and objects recently created
    /// or moved by this mount.
    pub fn recent_local_entries(&self, dir: Ino, now: Instant) -> Vec<Option<FileId>> {
        let Ok(directory) = self.directory(dir) else { return Vec::new() };
        let entries = directory.children.values().filter_map(|dentry| {
            if self.is_protected(dentry) {
                return Some(None);
            }
            match self.identity(dentry.ino)? {
                Identity::Remote(file) if self.is_recent_change(dentry, now) => Some(Some(file)),
                Identity::Remote(_) | Identity::Local => None,
            }
        });
        entries.collect()
    }

    /// Whether a dentry stays although a listing that began at `started` lacks it.
    pub(super) fn is_recent_change(&self, dentry: &Dentry, started: Instant) -> bool {
        let changed_at = self.inodes.get(&dentry.ino).and_then(|inode| inode.changed_at);
        changed_at.is_some_and(|at| started < at + self.listing_lag)
    }

    fn mark_changed(&mut self, ino: Ino, now: Instant) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.changed_at = Some(now);
        }
    }

    pub(super) fn check_alive(&self, dir: Ino) -> Result<()> {
        self.directory(dir)?;
        match self.inode(dir)?.backing {
            Backing::Remote(_) | Backing::None { .. } => Ok(()),
            Backing::Removed(_) => Err(Error::new(ErrorKind::NotFound, "the directory was removed")),
        }
    }

    fn gc_parent(&mut self, ino: Ino) {
        if let Some(parent) = self.parent(ino) {
            self.gc(parent);
        }
    }
}

/// An object that cannot be new: the tree knows it as another kind, or as a directory above.
fn wrong_object(meta: &FileMeta) -> Error {
    Error::protocol(format!(
        "the service returned the existing object {} for a new {:?}",
        meta.file_id, meta.name
    ))
}

pub(super) fn new_dentry(ino: Ino, state: DentryState, now: Instant) -> Dentry {
    Dentry { ino, state, seen_at: now, listing_id: 0 }
}
