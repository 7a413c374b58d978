//! Merges directory listings into dentries.
//!
//! The pages of a listing are merged as they arrive, so that their names can be used at once. Only the end of
//! the listing shows which entries are gone.
//!
//! # Siblings with equal names
//!
//! The newest sibling keeps the plain name. The others get numbers, starting with the oldest, and keep them,
//! so that a new sibling changes only one name. A later page does not rename an entry of an earlier page of
//! the same listing.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use super::inodes::{Backing, Dentry, DentryRef, DentryState, INODES_SOFT_MAX, Inode, InodeBody, Tree};
use super::name::{disambiguated, disambiguation_number, display_name};
use super::stat::FileKind;
use crate::error::Result;
use crate::ids::{FileId, Ino};
use crate::pds::drive::FileMeta;
use crate::pds::types::FileType;

/// A large directory is fresh for this multiple of the time that its listing took, but at least for the usual
/// TTL. Repeated listings thus take at most a tenth of the time, up to the bound of [`LARGE_FRESH_MAX`].
const FRESH_PER_ELAPSED: u32 = 10;
/// Entry count from which a directory is large.
const LARGE_ENTRIES_MIN: usize = 1000;
/// Upper bound for the TTL of a large directory, as a multiple of the usual TTL.
const LARGE_FRESH_MAX: u32 = 4;
/// Upper bound for doubling the listing lag of an object that exists and is missing in listings.
const CONFIRMED_MAX: u32 = 6;

/// A listing in progress, from its first page to its last.
#[derive(Debug)]
pub struct ListingMerge {
    id: u64,
    dir: Ino,
    started: Instant,
}

impl ListingMerge {
    pub fn dir(&self) -> Ino {
        self.dir
    }
}

/// One directory entry with the name that the kernel sees.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedEntry {
    pub name: Arc<str>,
    pub ino: Ino,
    pub kind: FileKind,
}

/// Result of a complete listing.
#[derive(Debug, Default)]
pub struct ListingOutcome {
    /// Entries that exist although no page contained them.
    pub unlisted: Vec<ListedEntry>,
    /// Objects among them that a listing should contain by now. The caller queries each one and calls
    /// [`Tree::merge_object`] or [`Tree::removed_elsewhere`].
    pub unconfirmed: Vec<FileId>,
}

impl Tree {
    /// Begins a listing. Called before the first page is requested.
    pub fn begin_listing(&mut self, dir: Ino, now: Instant) -> Result<ListingMerge> {
        self.check_alive(dir)?;
        let directory = self.directory_mut(dir)?;
        directory.is_being_listed = true;
        directory.next_numbers.clear();
        if self.inodes.len() >= self.evict_at {
            self.evict(now);
        }
        let id = self.next_listing;
        self.next_listing += 1;
        Ok(ListingMerge { id, dir, started: now })
    }

    /// Merges a complete listing in one step.
    #[cfg(test)]
    pub fn merge_listing(&mut self, dir: Ino, items: Vec<FileMeta>, now: Instant) -> Result<Vec<FileId>> {
        let listing = self.begin_listing(dir, now)?;
        self.merge_page(&listing, items, now);
        Ok(self.end_listing(&listing, now)?.unconfirmed)
    }

    /// Merges a page and returns its visible entries, ordered by name. Siblings with equal names should be in
    /// the same page.
    pub fn merge_page(
        &mut self,
        listing: &ListingMerge,
        items: Vec<FileMeta>,
        now: Instant,
    ) -> Vec<ListedEntry> {
        let mut listed = Vec::with_capacity(items.len());
        let mut to_insert = Vec::with_capacity(items.len());
        if self.directory(listing.dir).is_err() {
            return listed;
        }
        let mut ids = HashSet::with_capacity(items.len());
        for meta in items {
            // Pages overlap if another client changes the directory at the same time.
            let is_repeated = !ids.insert(meta.file_id.clone()) || self.was_listed_by(&meta.file_id, listing);
            if is_repeated
                || self.tombstones.hides(&meta.file_id, listing.started, self.listing_lag)
                || self.leftovers.hides(&meta)
                || self.replacing.contains_key(&meta.file_id)
            {
                continue;
            }
            match self.by_file_id.get(&meta.file_id).copied() {
                Some(ino) if self.outweighs_listing(ino, listing) => {
                    listed.extend(self.record_listed(ino, &meta, listing, now));
                }
                _ => to_insert.push((Arc::<str>::from(display_name(&meta.name, meta.kind)), meta)),
            }
        }
        // Siblings together, the newest first.
        to_insert.sort_by(|(a_name, a), (b_name, b)| {
            let age = |meta: &FileMeta| Reverse(meta.created_at);
            a_name.cmp(b_name).then(age(a).cmp(&age(b))).then(b.file_id.cmp(&a.file_id))
        });
        let mut to_insert = to_insert.into_iter().peekable();
        while let Some((name, newest)) = to_insert.next() {
            let mut others = Vec::new();
            while let Some((_, meta)) = to_insert.next_if(|(other, _)| *other == name) {
                others.push(meta);
            }
            let plain = match self.insert_plain(&name, newest, listing, now) {
                Ok(entry) => entry,
                Err(newest) => {
                    // The plain name is taken in this listing; this one gets the last number.
                    others.insert(0, *newest);
                    None
                }
            };
            listed.extend(plain);
            for meta in others.into_iter().rev() {
                listed.extend(self.insert_disambiguated(&name, meta, listing, now));
            }
        }
        listed
    }

    /// Ends a listing: entries that no page contained are removed, except recent and unsaved ones.
    pub fn end_listing(&mut self, listing: &ListingMerge, now: Instant) -> Result<ListingOutcome> {
        let mut merged = ListingOutcome::default();
        let mut gone = Vec::new();
        for (name, dentry) in &self.directory(listing.dir)?.children {
            if dentry.listing_id >= listing.id {
                continue;
            }
            let Some(inode) = self.inodes.get(&dentry.ino) else { continue };
            let is_recent = self.is_recent_change(dentry, listing.started);
            if !self.is_protected(dentry) && !is_recent {
                let (DentryState::Created { confirmed }, Backing::Remote(meta)) =
                    (dentry.state, &inode.backing)
                else {
                    gone.push(dentry.ino);
                    continue;
                };
                let confirm_after = self.listing_lag * (1 << confirmed.min(CONFIRMED_MAX));
                if inode.changed_at.is_none_or(|at| listing.started >= at + confirm_after) {
                    merged.unconfirmed.push(meta.file_id.clone());
                }
            }
            merged.unlisted.push(ListedEntry {
                name: name.clone(),
                ino: dentry.ino,
                kind: inode.file_kind(),
            });
        }
        for ino in gone {
            self.unlink_dentry(ino);
            self.gc(ino);
        }
        let ttl = self.ttl;
        let directory = self.directory_mut(listing.dir)?;
        directory.is_being_listed = false;
        if directory.invalidated_at.is_none_or(|at| listing.started > at) {
            directory.listed_at = Some(listing.started);
        }
        let elapsed = now.saturating_duration_since(listing.started);
        directory.fresh_for = if directory.children.len() < LARGE_ENTRIES_MIN {
            ttl
        } else {
            elapsed.saturating_mul(FRESH_PER_ELAPSED).clamp(ttl, ttl * LARGE_FRESH_MAX)
        };
        Ok(merged)
    }

    /// Ends a listing that failed. Entries from its pages stay.
    pub fn abandon_listing(&mut self, listing: &ListingMerge) {
        if let Ok(directory) = self.directory_mut(listing.dir) {
            directory.is_being_listed = false;
        }
    }

    /// Differs if the names in a directory have changed since.
    pub fn version(&self, dir: Ino) -> Result<u64> {
        Ok(self.directory(dir)?.version)
    }

    /// All entries, ordered by name.
    pub fn snapshot(&self, dir: Ino) -> Result<Vec<ListedEntry>> {
        let children = &self.directory(dir)?.children;
        let entries = children.iter().filter_map(|(name, dentry)| {
            let kind = self.inodes.get(&dentry.ino)?.file_kind();
            Some(ListedEntry { name: name.clone(), ino: dentry.ino, kind })
        });
        Ok(entries.collect())
    }

    /// Whether the state of an inode is newer than its entry in a listing.
    fn outweighs_listing(&self, ino: Ino, listing: &ListingMerge) -> bool {
        let Some(inode) = self.inodes.get(&ino) else { return false };
        let is_recent = inode.changed_at.is_some_and(|at| listing.started < at + self.listing_lag);
        if inode.moving || (is_recent && inode.dentry_ref.is_some()) {
            return true;
        }
        // A directory that is listed below itself would make a cycle, and a file in its place would remove it during
        // its own listing.
        if self.is_below(listing.dir, ino) {
            return true;
        }
        let Some(dentry) = self.dentry(ino) else { return false };
        let is_elsewhere =
            inode.dentry_ref.as_ref().is_some_and(|dentry_ref| dentry_ref.parent != listing.dir);
        // Of two listings that disagree, the later one wins.
        dentry.state == DentryState::Unsaved || (is_elsewhere && dentry.seen_at > listing.started)
    }

    /// Whether an earlier page of this listing contained an object.
    fn was_listed_by(&self, file: &FileId, listing: &ListingMerge) -> bool {
        let Some(inode) = self.by_file_id.get(file).and_then(|ino| self.inodes.get(ino)) else {
            return false;
        };
        let Some(dentry_ref) = inode
            .dentry_ref
            .as_ref()
            .filter(|dentry_ref| dentry_ref.parent == listing.dir && listing.id != 0)
        else {
            return false;
        };
        self.directory(listing.dir).is_ok_and(|directory| {
            directory.children.get(&dentry_ref.name).is_some_and(|dentry| dentry.listing_id == listing.id)
        })
    }

    /// Records that a listing contained an inode that it must not change.
    fn record_listed(
        &mut self,
        ino: Ino,
        meta: &FileMeta,
        listing: &ListingMerge,
        now: Instant,
    ) -> Option<ListedEntry> {
        let inode = self.inodes.get(&ino)?;
        let (dentry_ref, kind) = (inode.dentry_ref.clone()?, inode.file_kind());
        if dentry_ref.parent != listing.dir {
            return None;
        }
        let dentry = self.dentry_mut(ino)?;
        dentry.listing_id = listing.id;
        if matches!(dentry.state, DentryState::Created { .. }) && *meta.name == *dentry_ref.remote {
            dentry.state = DentryState::Listed;
            dentry.seen_at = now;
        }
        Some(ListedEntry { name: dentry_ref.name, ino, kind })
    }

    /// Inserts an object under its plain name. `Ok(None)` if an unsaved file hides it; `Err` if the
    /// name is taken.
    fn insert_plain(
        &mut self,
        name: &Arc<str>,
        meta: FileMeta,
        listing: &ListingMerge,
        now: Instant,
    ) -> std::result::Result<Option<ListedEntry>, Box<FileMeta>> {
        let own_ino = self.by_file_id.get(&meta.file_id).copied();
        let holder =
            self.directory(listing.dir).ok().and_then(|directory| directory.children.get(name).copied());
        let displaced = match holder {
            Some(holder) if Some(holder.ino) == own_ino => None,
            None => None,
            Some(holder) if holder.state == DentryState::Unsaved => {
                if own_ino.and_then(|ino| self.parent(ino)) == Some(listing.dir) {
                    // It has a number already.
                    return Err(Box::new(meta));
                }
                if let Ok(directory) = self.directory_mut(listing.dir) {
                    directory.shadowed.insert(name.clone());
                }
                return Ok(None);
            }
            Some(holder)
                if (holder.listing_id == listing.id && listing.id != 0)
                    || self.is_protected(&holder)
                    || self.is_recent_change(&holder, listing.started) =>
            {
                return Err(Box::new(meta));
            }
            Some(holder) => self.unlink_dentry(holder.ino),
        };
        let listed = self.insert_as(name.clone(), meta, listing, now);
        if let Some((dentry_ref, dentry)) = displaced {
            let kind = self.inodes.get(&dentry.ino).map_or(FileType::File, Inode::kind);
            let number = self.free_name(listing.dir, name, kind);
            // Cannot fail: the directory was just used.
            let _ = self.link(dentry.ino, DentryRef { name: number, ..dentry_ref }, dentry);
        }
        Ok(listed)
    }

    fn insert_disambiguated(
        &mut self,
        name: &Arc<str>,
        meta: FileMeta,
        listing: &ListingMerge,
        now: Instant,
    ) -> Option<ListedEntry> {
        let dentry_ref =
            self.by_file_id.get(&meta.file_id).and_then(|ino| self.inodes.get(ino)?.dentry_ref.clone());
        let kept = dentry_ref.filter(|dentry_ref| {
            dentry_ref.parent == listing.dir
                && dentry_ref.name != *name
                && disambiguation_number(&dentry_ref.name, name, meta.kind).is_some()
        });
        let name = match kept {
            Some(dentry_ref) => dentry_ref.name,
            None => self.free_name(listing.dir, name, meta.kind),
        };
        self.insert_as(name, meta, listing, now)
    }

    /// The next free numbered form of a name. Each number is looked up once in a listing, however many siblings it
    /// has. Names that differ only where they are shortened share their numbers.
    fn free_name(&mut self, dir: Ino, name: &str, kind: FileType) -> Arc<str> {
        let family = disambiguated(name, u32::MAX, kind);
        let known = self.directory(dir).ok().and_then(|directory| directory.next_numbers.get(&family));
        let mut number = known.copied().unwrap_or(2);
        loop {
            let candidate = disambiguated(name, number, kind);
            number += 1;
            #[cfg(test)]
            {
                self.number_lookups += 1;
            }
            if self.child(dir, &candidate).is_none() {
                if let Ok(directory) = self.directory_mut(dir) {
                    directory.next_numbers.insert(family, number);
                }
                return candidate.into();
            }
        }
    }

    /// Inserts an object under exactly this name, which must be free or its own.
    fn insert_as(
        &mut self,
        name: Arc<str>,
        meta: FileMeta,
        listing: &ListingMerge,
        now: Instant,
    ) -> Option<ListedEntry> {
        let mut known = self.by_file_id.get(&meta.file_id).copied();
        if let Some(ino) = known
            && self.inodes.get(&ino).is_some_and(|inode| inode.kind() != meta.kind)
        {
            self.removed_elsewhere(&meta.file_id);
            known = None;
        }
        let file_type = meta.kind;
        let kind = FileKind::of(file_type, meta.posix.as_deref());
        let remote = if meta.name == *name { name.clone() } else { Arc::from(&*meta.name) };
        let ino = match known {
            Some(ino) => {
                let inode = self.inodes.get_mut(&ino)?;
                inode.backing = Backing::Remote(meta);
                inode.attrs_read_at = Some(now);
                ino
            }
            None => self.add_inode(file_type, Backing::Remote(meta), Some(now)),
        };
        let dentry = Dentry { ino, state: DentryState::Listed, seen_at: now, listing_id: listing.id };
        let is_there = self.inodes.get(&ino)?.dentry_ref.as_ref().is_some_and(|dentry_ref| {
            dentry_ref.parent == listing.dir && dentry_ref.name == name && dentry_ref.remote == remote
        });
        if is_there {
            *self.dentry_mut(ino)? = dentry;
        } else {
            let old = self.parent(ino);
            self.link(ino, DentryRef { parent: listing.dir, name: name.clone(), remote }, dentry).ok()?;
            if let Some(old) = old.filter(|&old| old != listing.dir) {
                self.gc(old);
            }
        }
        Some(ListedEntry { name, ino, kind })
    }

    /// Inserts one object that was found outside of a listing.
    pub(super) fn insert_one(&mut self, dir: Ino, meta: FileMeta, now: Instant) {
        let listing = ListingMerge { id: 0, dir, started: now };
        self.merge_page(&listing, vec![meta], now);
    }

    /// Drops unused entries of stale directories.
    fn evict(&mut self, now: Instant) {
        let mut unused = Vec::new();
        for (&ino, inode) in &self.inodes {
            let Some(dentry_ref) = &inode.dentry_ref else { continue };
            let is_dir_used = match &inode.body {
                InodeBody::File { .. } => false,
                InodeBody::Directory(directory) => {
                    !directory.children.is_empty() || directory.is_being_listed
                }
            };
            let is_used = inode.lookups > 0 || inode.pins > 0 || is_dir_used;
            let is_stale = self
                .directory(dentry_ref.parent)
                .is_ok_and(|directory| !directory.is_being_listed && !directory.is_listing_fresh(now));
            let is_safe =
                self.dentry(ino).is_some_and(|d| !self.is_protected(d) && !self.is_recent_change(d, now));
            if !is_used && is_stale && is_safe {
                unused.push((ino, dentry_ref.parent));
            }
        }
        tracing::debug!(count = unused.len(), "evicting unused inodes");
        for (ino, parent) in unused {
            self.unlink_dentry(ino);
            self.gc(ino);
            self.invalidate(parent, now);
        }
        self.evict_at = INODES_SOFT_MAX.max(self.inodes.len() * 2);
    }
}
