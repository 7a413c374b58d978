//! Reading directories: one listing per directory at a time, shared by all waiting callers, page by page.
//!
//! A listing runs ahead of the kernel, because the next page can only be requested with the marker from the
//! page before. Cookies index the entries of the last read from the beginning, so they stay valid until a
//! rewind, also when the directory changes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Vfs;
use super::listings::{DirHandle, ListingFetch};
use super::lookup::STALE_WAIT_MAX;
use super::types::{Caller, DirEntry, Fh};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, Ino};
use crate::pds::drive::FileMeta;
use crate::pds::listing_bounds::ListingBounds;
use crate::pds::types::FileType;
use crate::tree::{FileKind, ListedEntry, ListingMerge};

/// Most pages in a row without a new entry.
const EMPTY_PAGES_MAX: usize = 100;
/// Most siblings with equal names that wait for the next page.
const PENDING_SIBLINGS_MAX: usize = 1000;
/// Most entries that are queried one by one after a listing. The rest follows after later listings.
const CONFIRMED_PER_LISTING_MAX: usize = 100;
/// Cookies of `.` and `..`.
const DOTS: u64 = 2;

/// Ends a listing on drop. If its task was aborted, the listing has failed.
struct FetchGuard {
    vfs: Arc<Vfs>,
    merge: ListingMerge,
    fetch: Arc<ListingFetch>,
    outcome: Result<()>,
}

impl Drop for FetchGuard {
    fn drop(&mut self) {
        if self.outcome.is_err() {
            self.vfs.tree().abandon_listing(&self.merge);
        }
        // Later callers start a new listing, or use the result of this one.
        self.vfs.dirs.lock_fetches().remove(&self.merge.dir());
        self.fetch.end(self.outcome.clone());
    }
}

impl Vfs {
    /// Starts a listing, or joins the running one.
    pub(super) fn fetch_listing(&self, dir: Ino) -> Result<Arc<ListingFetch>> {
        let vfs = self.this()?;
        let mut fetches = self.dirs.lock_fetches();
        if let Some(fetch) = fetches.get(&dir) {
            return Ok(fetch.clone());
        }
        let (merge, file_id) = {
            let mut tree = self.tree();
            let file_id = tree.meta(dir).map(|meta| meta.file_id.clone()).ok_or_else(gone)?;
            (tree.begin_listing(dir, Instant::now())?, file_id)
        };
        let fetch = Arc::<ListingFetch>::default();
        fetches.insert(dir, fetch.clone());
        drop(fetches);
        let aborted = Error::new(ErrorKind::Cancelled, "the listing was aborted");
        let mut guard = FetchGuard { vfs, merge, fetch: fetch.clone(), outcome: Err(aborted) };
        self.upload_context.runtime.spawn(async move {
            let vfs = guard.vfs.clone();
            let outcome = vfs.fetch_pages(&guard.merge, &file_id, &guard.fetch).await;
            vfs.dirs.note_outcome(outcome.as_ref().err());
            if outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
                vfs.tree().removed_elsewhere(&file_id);
            }
            let (outcome, unconfirmed) = match outcome {
                Ok(unconfirmed) => (Ok(()), unconfirmed),
                Err(error) => (Err(error), Vec::new()),
            };
            guard.outcome = outcome;
            drop(guard);
            vfs.confirm_entries(unconfirmed).await;
        });
        Ok(fetch)
    }

    /// Returns when the drive has returned entries of the root directory, or its end.
    pub async fn check_root_listing(&self) -> Result<()> {
        self.fetch_listing(Ino::ROOT)?.entries(0).await.map(drop)
    }

    /// Lists a directory to its end. Returns objects that the listing should contain and does not.
    async fn fetch_pages(
        &self,
        merge: &ListingMerge,
        dir_id: &FileId,
        fetch: &ListingFetch,
    ) -> Result<Vec<FileId>> {
        let mut bounds = ListingBounds::default();
        let mut empty_pages = 0;
        // Siblings with equal names must be merged together, so the last name of a page waits for the next
        // page.
        let mut pending: Vec<FileMeta> = Vec::new();
        let mut page = self.drive.list_page(dir_id, "").await?;
        loop {
            let next = bounds.check(page.items.iter().map(FileMeta::bytes), page.next_marker)?;
            for listed in std::mem::take(&mut page.urls) {
                self.reader.offer_url(&page.items[listed.index], listed.url);
            }
            pending.extend(page.items);
            let Some(next) = next else {
                let mut tree = self.tree();
                let listed = tree.merge_page(merge, pending, Instant::now());
                let merged = tree.end_listing(merge, Instant::now())?;
                drop(tree);
                fetch.add(listed);
                fetch.add(merged.unlisted);
                return Ok(merged.unconfirmed);
            };
            let last = pending.last().map(|meta| meta.name.clone()).unwrap_or_default();
            let keep = match pending.iter().rposition(|meta| meta.name != last) {
                Some(index) => index + 1,
                None if pending.len() > PENDING_SIBLINGS_MAX => pending.len(),
                None => 0,
            };
            let rest = pending.split_off(keep);
            let complete = std::mem::replace(&mut pending, rest);
            let merge = async {
                // Lets the request for the next page reach the socket before the merge.
                tokio::task::yield_now().await;
                let listed = self.tree().merge_page(merge, complete, Instant::now());
                let is_empty = listed.is_empty();
                fetch.add(listed);
                is_empty
            };
            let (ahead, is_empty) = tokio::join!(self.drive.list_page(dir_id, &next), merge);
            empty_pages = if is_empty { empty_pages + 1 } else { 0 };
            if empty_pages > EMPTY_PAGES_MAX {
                return Err(Error::protocol("invalid listing: too many pages without a new entry"));
            }
            page = ahead?;
        }
    }

    /// Queries objects that a listing should contain and does not.
    async fn confirm_entries(&self, unconfirmed: Vec<FileId>) {
        for file in unconfirmed.into_iter().take(CONFIRMED_PER_LISTING_MAX) {
            let requested_at = Instant::now();
            match self.drive.get_ahead(&file).await {
                Ok(meta) => self.tree().merge_object(meta, requested_at),
                Err(error) if error.kind() == ErrorKind::NotFound => self.tree().removed_elsewhere(&file),
                // The entry stays; it is queried again after a later listing.
                Err(error) => {
                    tracing::debug!(%file, %error, "cannot confirm an entry that a listing lacks");
                    return;
                }
            }
        }
    }

    /// Opens a directory. Starts its listing, unless the known entries are fresh.
    pub async fn opendir(&self, ino: Ino, caller: Caller) -> Result<Fh> {
        self.refresh_trash(ino).await;
        let is_fresh = {
            let tree = self.tree();
            if tree.kind(ino)? != FileType::Folder {
                return Err(Error::new(ErrorKind::NotDirectory, "not a directory"));
            }
            tree.is_listing_fresh(ino, Instant::now())
        };
        if !is_fresh {
            self.fetch_listing(ino)?;
        }
        let fh = Fh(self.dirs.next.fetch_add(1, Ordering::Relaxed) + 1);
        self.tree().pin(ino)?;
        self.dirs.lock_handles().insert(fh, Arc::new(DirHandle::new(ino, caller.uid)));
        Ok(fh)
    }

    /// The entries of a directory now: the known ones while they are fresh, else those of a listing.
    fn snapshot(&self, dir: Ino) -> Result<Arc<ListingFetch>> {
        if self.tree().is_listing_fresh(dir, Instant::now()) {
            return self.known_entries(dir);
        }
        self.fetch_listing(dir)
    }

    fn known_entries(&self, dir: Ino) -> Result<Arc<ListingFetch>> {
        if self.trash_entries.get(dir).is_some() {
            return Ok(Arc::new(ListingFetch::completed(Vec::new())));
        }
        let tree = self.tree();
        self.dirs.shared_snapshot(dir, tree.version(dir)?, || tree.snapshot(dir))
    }

    /// The entries that the cookies of a handle index. New ones for a read from the beginning: a rewind shows
    /// the names that were added since.
    fn entries_for(&self, handle: &DirHandle, cookie: u64) -> Result<Arc<ListingFetch>> {
        if let Some(fetch) = handle.fetch().filter(|_| cookie > 0) {
            return Ok(fetch);
        }
        let fetch = self.snapshot(handle.dir)?;
        self.dirs.hold(handle, &fetch)?;
        Ok(fetch)
    }

    /// Whether the drive is unreachable: the last request failed with an outage, or the drive is offline.
    pub(super) fn is_drive_unreachable(&self) -> bool {
        self.dirs.is_unreachable() || !self.drive.is_online()
    }

    /// Falls back to known entries if the drive does not answer.
    async fn known_if_unreachable(
        &self,
        handle: &DirHandle,
        fetch: Arc<ListingFetch>,
    ) -> Result<Arc<ListingFetch>> {
        if !self.tree().was_listed(handle.dir) {
            return Ok(fetch);
        }
        let wait_max = if self.is_drive_unreachable() { Duration::ZERO } else { STALE_WAIT_MAX };
        let has_answered = match tokio::time::timeout(wait_max, fetch.entries(0)).await {
            Ok(Err(error)) => !error.is_outage(),
            Ok(Ok(_)) => true,
            Err(_) => {
                self.dirs.note_silence();
                false
            }
        };
        if has_answered {
            return Ok(fetch);
        }
        tracing::debug!(ino = %handle.dir, "drive not reachable: using the last listing");
        let known = self.known_entries(handle.dir)?;
        self.dirs.hold(handle, &known)?;
        Ok(known)
    }

    /// Some entries after `cookie`. Empty at the end. With `plus`, they have attributes.
    pub async fn readdir(&self, dh: Fh, cookie: u64, plus: bool) -> Result<Vec<DirEntry>> {
        let handle = self.dirs.lock_handles().get(&dh).cloned();
        let handle = handle.ok_or_else(|| Error::new(ErrorKind::BadHandle, "no such directory handle"))?;
        let mut fetch = self.entries_for(&handle, cookie)?;
        if cookie < DOTS {
            return Ok(self.dots(handle.dir, cookie));
        }
        if cookie == DOTS {
            fetch = self.known_if_unreachable(&handle, fetch).await?;
        }
        let mut index = (cookie - DOTS) as usize;
        loop {
            let listed = fetch.entries(index).await?;
            if listed.is_empty() {
                return Ok(Vec::new());
            }
            let first = index;
            index += listed.len();
            let entries: Vec<_> = listed
                .into_iter()
                .enumerate()
                .filter_map(|(at, entry)| {
                    self.dir_entry(handle.dir, &entry, (first + at + 1) as u64 + DOTS, plus)
                })
                .collect();
            // All of them may be deleted by now; that is not the end.
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
    }

    /// `None` if the name was removed or belongs to another inode by now.
    fn dir_entry(&self, dir: Ino, listed: &ListedEntry, cookie: u64, plus: bool) -> Option<DirEntry> {
        let child = self.tree().child(dir, &listed.name);
        if child != Some(listed.ino) || self.is_hidden_trash(dir, listed) {
            return None;
        }
        Some(DirEntry {
            ino: listed.ino,
            kind: listed.kind,
            name: listed.name.to_string().into(),
            cookie,
            entry: if plus { self.entry(listed.ino).ok() } else { None },
        })
    }

    fn dots(&self, dir: Ino, cookie: u64) -> Vec<DirEntry> {
        let parent = self.tree().parent(dir).unwrap_or(Ino::ROOT);
        let dot = |ino, name: &str, cookie| DirEntry {
            ino,
            kind: FileKind::Directory,
            name: name.into(),
            cookie,
            entry: None,
        };
        let mut dots = vec![dot(dir, ".", 1), dot(parent, "..", 2)];
        dots.split_off(cookie as usize)
    }

    pub fn releasedir(&self, dh: Fh) {
        if let Some(dir) = self.dirs.close(dh) {
            self.tree().unpin(dir);
        }
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Stale, "the directory was removed")
}
