//! Listings, and how they become dentries.
//!
//! A *pass* is one reading of a folder from its first page to its last. Pages are merged as they
//! arrive, so that their names can be used at once; only the end of the pass says what is gone.
//!
//! # Siblings of one name
//!
//! The newest keeps the plain name; the others are numbered from the oldest on and keep their
//! numbers, so that a new sibling changes one name only. Whoever was shown in this pass is not
//! renamed by a later page of it.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use super::name::{number_of, numbered, shown};
use super::{Body, Dentry, Kind, Object, Spot, Standing, Tree};
use crate::error::Result;
use crate::ids::{FileId, Ino};
use crate::pds::drive::FileMeta;
use crate::pds::types::FileType;

/// A large folder is believed for this many times as long as listing it took, if that is longer
/// than the usual time: a tenth of the time at most goes into listing it again and again.
const FRESH_PER_ELAPSED: u32 = 10;
/// Entries that make a folder large.
const LARGE_ENTRIES_MIN: usize = 1000;
/// How many times as long as others a large folder is believed, at most.
const LARGE_FRESH_MAX: u32 = 4;
/// Doublings of the grace of a created entry that no listing shows although it exists.
const CONFIRMED_MAX: u32 = 6;

/// One reading of a folder.
#[derive(Debug)]
pub struct Pass {
    id: u64,
    dir: Ino,
    started: Instant,
}

impl Pass {
    /// The folder.
    pub fn dir(&self) -> Ino {
        self.dir
    }
}

/// One entry of a folder as shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Its name.
    pub name: Arc<str>,
    /// Its inode.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
}

/// What the end of a pass brings.
#[derive(Debug, Default)]
pub struct Merged {
    /// Entries that are there although no page showed them.
    pub unlisted: Vec<Listed>,
    /// Those of them that a listing should show by now: ask for each, then
    /// [`Tree::observe`] or [`Tree::vanished`].
    pub unconfirmed: Vec<FileId>,
}

impl Tree {
    /// A reading of a folder begins; nothing of it has been asked for yet.
    pub fn begin_pass(&mut self, dir: Ino, now: Instant) -> Result<Pass> {
        self.check_alive(dir)?;
        self.folder_mut(dir)?.is_being_listed = true;
        if self.inodes.len() >= self.evict_at {
            self.evict(now);
        }
        let id = self.next_pass;
        self.next_pass += 1;
        Ok(Pass { id, dir, started: now })
    }

    /// A whole listing at once.
    pub fn merge_listing(&mut self, dir: Ino, items: Vec<FileMeta>, now: Instant) -> Result<Vec<FileId>> {
        let pass = self.begin_pass(dir, now)?;
        self.merge_page(&pass, items, now);
        Ok(self.end_pass(&pass, now)?.unconfirmed)
    }

    /// Some entries of a folder; siblings of one name should come together. Gives what is shown of
    /// them, in the order of their names.
    pub fn merge_page(&mut self, pass: &Pass, items: Vec<FileMeta>, now: Instant) -> Vec<Listed> {
        let mut listed = Vec::with_capacity(items.len());
        let mut believed = Vec::with_capacity(items.len());
        if self.folder(pass.dir).is_err() {
            return listed;
        }
        let mut ids = HashSet::with_capacity(items.len());
        for meta in items {
            // Pages overlap where somebody else changes the folder meanwhile.
            let is_again = !ids.insert(meta.file_id.clone()) || self.was_shown(&meta.file_id, pass);
            if is_again
                || self.tombstones.hides(&meta.file_id, pass.started, self.grace)
                || self.replacing.contains_key(&meta.file_id)
            {
                continue;
            }
            match self.by_file_id.get(&meta.file_id).copied() {
                Some(ino) if self.stands(ino, &meta, pass) => listed.extend(self.see(ino, &meta, pass, now)),
                _ => believed.push((Arc::<str>::from(shown(&meta.name, meta.kind)), meta)),
            }
        }
        // Siblings together, the newest first.
        believed.sort_by(|(a_name, a), (b_name, b)| {
            let age = |meta: &FileMeta| Reverse(meta.created_at);
            a_name.cmp(b_name).then(age(a).cmp(&age(b))).then(b.file_id.cmp(&a.file_id))
        });
        let mut believed = believed.into_iter().peekable();
        while let Some((name, newest)) = believed.next() {
            let mut losers = Vec::new();
            while let Some((_, meta)) = believed.next_if(|(other, _)| *other == name) {
                losers.push(meta);
            }
            let mut number = 2;
            let winner = match self.place_plain(&name, newest, pass, now) {
                Ok(shown) => shown,
                Err(newest) => {
                    // The plain name is taken for this pass; this one is numbered last.
                    losers.insert(0, *newest);
                    None
                }
            };
            listed.extend(winner);
            for meta in losers.into_iter().rev() {
                listed.extend(self.place_numbered(&name, meta, &mut number, pass, now));
            }
        }
        listed
    }

    /// The folder was read to its end: what no page showed is gone, unless we know better.
    pub fn end_pass(&mut self, pass: &Pass, now: Instant) -> Result<Merged> {
        let mut merged = Merged::default();
        let mut gone = Vec::new();
        for (name, dentry) in &self.folder(pass.dir)?.children {
            if dentry.pass >= pass.id {
                continue;
            }
            let Some(inode) = self.inodes.get(&dentry.ino) else { continue };
            let is_recent = self.is_own(dentry, pass.started);
            if !self.is_held(dentry) && !is_recent {
                let (Standing::Created { confirmed }, Object::Live(meta)) = (dentry.standing, &inode.object)
                else {
                    gone.push(dentry.ino);
                    continue;
                };
                let patience = self.grace * (1 << confirmed.min(CONFIRMED_MAX));
                if inode.changed_at.is_none_or(|at| pass.started >= at + patience) {
                    merged.unconfirmed.push(meta.file_id.clone());
                }
            }
            merged.unlisted.push(Listed { name: name.clone(), ino: dentry.ino, kind: inode.shown_kind() });
        }
        for ino in gone {
            self.unlink_dentry(ino);
            self.reap(ino);
        }
        let ttl = self.ttl;
        let folder = self.folder_mut(pass.dir)?;
        folder.is_being_listed = false;
        if folder.distrusted_at.is_none_or(|at| pass.started > at) {
            folder.listed_at = Some(pass.started);
        }
        let elapsed = now.saturating_duration_since(pass.started);
        folder.fresh_for = if folder.children.len() < LARGE_ENTRIES_MIN {
            ttl
        } else {
            elapsed.saturating_mul(FRESH_PER_ELAPSED).clamp(ttl, ttl * LARGE_FRESH_MAX)
        };
        Ok(merged)
    }

    /// The folder could not be read to its end; what was seen of it stays.
    pub fn abandon_pass(&mut self, pass: &Pass) {
        if let Ok(folder) = self.folder_mut(pass.dir) {
            folder.is_being_listed = false;
        }
    }

    /// All entries of a folder, in the order of their names.
    pub fn snapshot(&self, dir: Ino) -> Result<Vec<Listed>> {
        let children = &self.folder(dir)?.children;
        let entries = children.iter().filter_map(|(name, dentry)| {
            let kind = self.inodes.get(&dentry.ino)?.shown_kind();
            Some(Listed { name: name.clone(), ino: dentry.ino, kind })
        });
        Ok(entries.collect())
    }

    /// Whether what is known of an inode outweighs what a listing says of it.
    fn stands(&self, ino: Ino, meta: &FileMeta, pass: &Pass) -> bool {
        let Some(inode) = self.inodes.get(&ino) else { return false };
        let is_recent = inode.changed_at.is_some_and(|at| pass.started < at + self.grace);
        if inode.moving || (is_recent && inode.spot.is_some()) {
            return true;
        }
        // A folder that is listed below itself would make a circle.
        if meta.kind == FileType::Folder && self.is_below(pass.dir, ino) {
            return true;
        }
        let Some(dentry) = self.dentry(ino) else { return false };
        let is_elsewhere = inode.spot.as_ref().is_some_and(|spot| spot.parent != pass.dir);
        // Two listings that disagree: the later one is right.
        dentry.standing == Standing::Unsaved || (is_elsewhere && dentry.seen_at > pass.started)
    }

    /// Whether this pass has shown an object already.
    fn was_shown(&self, file: &FileId, pass: &Pass) -> bool {
        let Some(inode) = self.by_file_id.get(file).and_then(|ino| self.inodes.get(ino)) else {
            return false;
        };
        let Some(spot) = inode.spot.as_ref().filter(|spot| spot.parent == pass.dir && pass.id != 0) else {
            return false;
        };
        self.folder(pass.dir)
            .is_ok_and(|folder| folder.children.get(&spot.name).is_some_and(|dentry| dentry.pass == pass.id))
    }

    /// A listing shows an inode that it cannot change.
    fn see(&mut self, ino: Ino, meta: &FileMeta, pass: &Pass, now: Instant) -> Option<Listed> {
        let inode = self.inodes.get(&ino)?;
        let (spot, kind) = (inode.spot.clone()?, inode.shown_kind());
        if spot.parent != pass.dir {
            return None;
        }
        let dentry = self.dentry_mut(ino)?;
        dentry.pass = pass.id;
        if matches!(dentry.standing, Standing::Created { .. }) && *meta.name == *spot.remote {
            dentry.standing = Standing::Listed;
            dentry.seen_at = now;
        }
        Some(Listed { name: spot.name, ino, kind })
    }

    /// Shows an object under its plain name, if that can be had. `Ok(None)` where it stands behind
    /// an unsaved file of that name.
    fn place_plain(
        &mut self,
        name: &Arc<str>,
        meta: FileMeta,
        pass: &Pass,
        now: Instant,
    ) -> std::result::Result<Option<Listed>, Box<FileMeta>> {
        let ours = self.by_file_id.get(&meta.file_id).copied();
        let holder = self.folder(pass.dir).ok().and_then(|folder| folder.children.get(name).copied());
        let displaced = match holder {
            Some(holder) if Some(holder.ino) == ours => None,
            None => None,
            Some(holder) if holder.standing == Standing::Unsaved => {
                if ours.and_then(|ino| self.parent(ino)) == Some(pass.dir) {
                    // It had a number already.
                    return Err(Box::new(meta));
                }
                if let Ok(folder) = self.folder_mut(pass.dir) {
                    folder.shadowed.insert(name.clone());
                }
                return Ok(None);
            }
            Some(holder)
                if (holder.pass == pass.id && pass.id != 0)
                    || self.is_held(&holder)
                    || self.is_own(&holder, pass.started) =>
            {
                return Err(Box::new(meta));
            }
            Some(holder) => self.unlink_dentry(holder.ino),
        };
        let listed = self.place_at(name.clone(), meta, pass, now);
        if let Some((spot, dentry)) = displaced {
            let kind = self.inodes.get(&dentry.ino).map_or(FileType::File, super::Inode::kind);
            let number = self.free_number(pass.dir, name, kind, &mut 2);
            // The folder exists: it was just used.
            let _ = self.link(dentry.ino, Spot { name: number, ..spot }, dentry);
        }
        Ok(listed)
    }

    fn place_numbered(
        &mut self,
        name: &Arc<str>,
        meta: FileMeta,
        number: &mut u32,
        pass: &Pass,
        now: Instant,
    ) -> Option<Listed> {
        let spot = self.by_file_id.get(&meta.file_id).and_then(|ino| self.inodes.get(ino)?.spot.clone());
        let kept = spot.filter(|spot| {
            spot.parent == pass.dir && spot.name != *name && number_of(&spot.name, name, meta.kind).is_some()
        });
        let name = match kept {
            Some(spot) => spot.name,
            None => self.free_number(pass.dir, name, meta.kind, number),
        };
        self.place_at(name, meta, pass, now)
    }

    /// The first numbered form of a name that nobody has, from `number` on.
    fn free_number(&self, dir: Ino, name: &str, kind: FileType, number: &mut u32) -> Arc<str> {
        loop {
            let candidate = numbered(name, *number, kind);
            *number += 1;
            if self.child(dir, &candidate).is_none() {
                return candidate.into();
            }
        }
    }

    /// Shows an object under exactly this name, which nobody else has.
    fn place_at(&mut self, name: Arc<str>, meta: FileMeta, pass: &Pass, now: Instant) -> Option<Listed> {
        let mut known = self.by_file_id.get(&meta.file_id).copied();
        if let Some(ino) = known
            && self.inodes.get(&ino).is_some_and(|inode| inode.kind() != meta.kind)
        {
            self.vanished(&meta.file_id);
            known = None;
        }
        let file_type = meta.kind;
        let kind = Kind::of(file_type, meta.posix.as_deref());
        let remote = if meta.name == *name { name.clone() } else { Arc::from(&*meta.name) };
        let ino = match known {
            Some(ino) => {
                let inode = self.inodes.get_mut(&ino)?;
                inode.object = Object::Live(meta);
                inode.attrs_at = Some(now);
                ino
            }
            None => self.add_inode(file_type, Object::Live(meta), Some(now)),
        };
        let dentry = Dentry { ino, standing: Standing::Listed, seen_at: now, pass: pass.id };
        let is_there = self
            .inodes
            .get(&ino)?
            .spot
            .as_ref()
            .is_some_and(|spot| spot.parent == pass.dir && spot.name == name && spot.remote == remote);
        if is_there {
            *self.dentry_mut(ino)? = dentry;
        } else {
            let old = self.parent(ino);
            self.link(ino, Spot { parent: pass.dir, name: name.clone(), remote }, dentry).ok()?;
            if let Some(old) = old.filter(|&old| old != pass.dir) {
                self.reap(old);
            }
        }
        Some(Listed { name, ino, kind })
    }

    /// Shows one object that was found outside of a listing.
    pub(super) fn place_one(&mut self, dir: Ino, meta: FileMeta, now: Instant) {
        let pass = Pass { id: 0, dir, started: now };
        self.merge_page(&pass, vec![meta], now);
    }

    /// Gives up entries that nobody uses, of folders that have to be listed again anyway.
    fn evict(&mut self, now: Instant) {
        let mut unused = Vec::new();
        for (&ino, inode) in &self.inodes {
            let Some(spot) = &inode.spot else { continue };
            let is_folder_used = match &inode.body {
                Body::File { .. } => false,
                Body::Folder(folder) => !folder.children.is_empty() || folder.is_being_listed,
            };
            let is_used = inode.lookups > 0 || inode.pins > 0 || is_folder_used;
            let is_stale =
                self.folder(spot.parent).is_ok_and(|folder| !folder.is_being_listed && !folder.is_fresh(now));
            let is_safe = self.dentry(ino).is_some_and(|d| !self.is_held(d) && !self.is_own(d, now));
            if !is_used && is_stale && is_safe {
                unused.push((ino, spot.parent));
            }
        }
        tracing::debug!(count = unused.len(), "inodes that nobody uses are given up");
        for (ino, parent) in unused {
            self.unlink_dentry(ino);
            self.reap(ino);
            self.distrust(parent, now);
        }
        self.evict_at = super::INODES_SOFT_MAX.max(self.inodes.len() * 2);
    }
}
