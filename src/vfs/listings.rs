//! Directory listings, running and complete, and the handles that read them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::types::Fh;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Ino;
use crate::tree::ListedEntry;
use crate::units::exact_duration;

/// Most entries returned to the kernel at once.
const ENTRIES_PER_CALL: usize = 512;

/// Longest wait of a caller for the next page with new entries.
const PAGE_WAIT_MAX: Duration = Duration::from_secs(60);

/// Most entries that the handles of one user hold. Handles share the entries of a directory that does not change.
const ENTRIES_PER_USER_MAX: usize = 2_000_000;

/// Directory handles and running listings.
#[derive(Debug, Default)]
pub(super) struct Dirs {
    /// Locked before the tree.
    fetches: Mutex<HashMap<Ino, Arc<ListingFetch>>>,
    /// A leaf lock.
    handles: Mutex<HashMap<Fh, Arc<DirHandle>>>,
    /// The known entries that handles read now, with the version of their directory. A leaf lock.
    snapshots: Mutex<HashMap<Ino, (u64, Weak<ListingFetch>)>>,
    held: Arc<HeldEntries>,
    pub(super) next: AtomicU64,
    /// The last request failed with an outage, or its answer is overdue.
    is_unreachable: AtomicBool,
}

/// Numbers of entries that handles hold, by user. A leaf lock.
#[derive(Debug, Default)]
struct HeldEntries(Mutex<HashMap<u32, usize>>);

impl HeldEntries {
    fn add(&self, user: u32, entries: usize) {
        *self.0.lock().entry(user).or_default() += entries;
    }

    fn remove(&self, user: u32, entries: usize) {
        let mut held = self.0.lock();
        if let Some(count) = held.get_mut(&user) {
            *count -= entries;
            if *count == 0 {
                held.remove(&user);
            }
        }
    }

    fn of(&self, user: u32) -> usize {
        self.0.lock().get(&user).copied().unwrap_or(0)
    }
}

/// The handles of a user that hold a listing.
#[derive(Debug)]
struct Holder {
    handles: usize,
    held: Arc<HeldEntries>,
}

/// A listing that a handle holds. It counts once for each user with such a handle.
#[derive(Debug)]
struct HeldListing {
    fetch: Arc<ListingFetch>,
    user: u32,
}

impl Drop for HeldListing {
    fn drop(&mut self) {
        let mut state = self.fetch.lock();
        let entries = state.entries.len();
        if let Entry::Occupied(mut holder) = state.holders.entry(self.user) {
            holder.get_mut().handles -= 1;
            if holder.get().handles == 0 {
                holder.remove().held.remove(self.user, entries);
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct DirHandle {
    pub(super) dir: Ino,
    /// The user who opened it.
    user: u32,
    /// The entries of the last read from the beginning, to which the cookies belong. `None` before the first
    /// one. A leaf lock.
    fetch: Mutex<Option<HeldListing>>,
}

/// A listing of a directory, running or complete.
#[derive(Debug)]
pub(super) struct ListingFetch {
    /// Locked before [`HeldEntries`]; otherwise a leaf lock.
    state: Mutex<ListingState>,
    changed: Notify,
    page_wait_max: Duration,
}

#[derive(Debug, Default)]
struct ListingState {
    entries: Vec<ListedEntry>,
    ended: Option<Result<()>>,
    /// By user.
    holders: HashMap<u32, Holder>,
}

impl Default for ListingFetch {
    fn default() -> Self {
        Self { state: Mutex::default(), changed: Notify::new(), page_wait_max: PAGE_WAIT_MAX }
    }
}

impl ListingFetch {
    fn lock(&self) -> MutexGuard<'_, ListingState> {
        self.state.lock()
    }

    /// A complete listing from known entries.
    pub(super) fn completed(entries: Vec<ListedEntry>) -> Self {
        let state = ListingState { entries, ended: Some(Ok(())), holders: HashMap::new() };
        Self { state: Mutex::new(state), ..Self::default() }
    }

    pub(super) fn add(&self, entries: Vec<ListedEntry>) {
        if entries.is_empty() {
            return;
        }
        let mut state = self.lock();
        for (user, holder) in &state.holders {
            holder.held.add(*user, entries.len());
        }
        state.entries.extend(entries);
        drop(state);
        self.changed.notify_waiters();
    }

    pub(super) fn end(&self, outcome: Result<()>) {
        self.lock().ended.get_or_insert(outcome);
        self.changed.notify_waiters();
    }

    /// Resolves when entries are added or the listing ends after this call. `Timeout` after a wait of
    /// [`PAGE_WAIT_MAX`].
    pub(super) fn changed(&self) -> impl Future<Output = Result<()>> {
        let (changed, limit) = (self.changed.notified(), self.page_wait_max);
        async move {
            let late = |_| {
                let detail = format!("directory listing: no page for {}", exact_duration(limit));
                Error::new(ErrorKind::Timeout, detail)
            };
            tokio::time::timeout(limit, changed).await.map_err(late)
        }
    }

    /// `None` while the listing runs.
    pub(super) fn outcome(&self) -> Option<Result<()>> {
        self.lock().ended.clone()
    }

    /// Some entries from `index` on. Waits for them while the listing runs. Empty at the end.
    pub(super) async fn entries(&self, index: usize) -> Result<Vec<ListedEntry>> {
        loop {
            let changed = self.changed();
            {
                let state = self.lock();
                if index < state.entries.len() {
                    let end = state.entries.len().min(index + ENTRIES_PER_CALL);
                    return Ok(state.entries[index..end].to_vec());
                }
                if let Some(outcome) = &state.ended {
                    return outcome.clone().map(|()| Vec::new());
                }
            }
            changed.await?;
        }
    }
}

impl Dirs {
    /// The known entries of a directory, shared by all handles that read this version of it.
    pub(super) fn shared_snapshot(
        &self,
        dir: Ino,
        version: u64,
        read: impl FnOnce() -> Result<Vec<ListedEntry>>,
    ) -> Result<Arc<ListingFetch>> {
        let mut snapshots = self.snapshots.lock();
        let known =
            snapshots.get(&dir).filter(|(of, _)| *of == version).and_then(|(_, fetch)| fetch.upgrade());
        if let Some(known) = known {
            return Ok(known);
        }
        let fetch = Arc::new(ListingFetch::completed(read()?));
        snapshots.insert(dir, (version, Arc::downgrade(&fetch)));
        Ok(fetch)
    }

    /// Makes a handle hold a listing instead of its former one. `TooManyFiles` if its user holds too many entries.
    pub(super) fn hold(&self, handle: &DirHandle, fetch: &Arc<ListingFetch>) -> Result<()> {
        let (user, former) = (handle.user, handle.fetch.lock().take());
        drop(former);
        let mut state = fetch.lock();
        if let Some(holder) = state.holders.get_mut(&user) {
            holder.handles += 1;
        } else {
            let held = self.held.of(user);
            if held > 0 && held + state.entries.len() > ENTRIES_PER_USER_MAX {
                let detail = format!(
                    "open directories of this user hold {held} entries, and the limit is {ENTRIES_PER_USER_MAX}: \
                     close directories"
                );
                return Err(Error::new(ErrorKind::TooManyFiles, detail));
            }
            self.held.add(user, state.entries.len());
            state.holders.insert(user, Holder { handles: 1, held: self.held.clone() });
        }
        drop(state);
        // Another call with this handle may have stored one meanwhile.
        let former = handle.fetch.lock().replace(HeldListing { fetch: fetch.clone(), user });
        drop(former);
        Ok(())
    }

    /// Removes a handle, and the snapshot of its directory unless another handle holds it.
    pub(super) fn close(&self, dh: Fh) -> Option<Ino> {
        let handle = self.handles.lock().remove(&dh)?;
        let dir = handle.dir;
        drop(handle);
        let mut snapshots = self.snapshots.lock();
        if snapshots.get(&dir).is_some_and(|(_, fetch)| fetch.strong_count() == 0) {
            snapshots.remove(&dir);
        }
        Some(dir)
    }

    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn lock_fetches(&self) -> MutexGuard<'_, HashMap<Ino, Arc<ListingFetch>>> {
        self.fetches.lock()
    }

    /// Whether the last request failed with an outage, or its answer is overdue.
    pub(super) fn is_unreachable(&self) -> bool {
        self.is_unreachable.load(Ordering::Relaxed)
    }

    pub(super) fn note_outcome(&self, error: Option<&Error>) {
        self.is_unreachable.store(error.is_some_and(Error::is_outage), Ordering::Relaxed);
    }

    /// Records that an answer is overdue. Until one arrives, stale answers are used at once.
    pub(super) fn note_silence(&self) {
        self.is_unreachable.store(true, Ordering::Relaxed);
    }

    pub(super) fn lock_handles(&self) -> MutexGuard<'_, HashMap<Fh, Arc<DirHandle>>> {
        self.handles.lock()
    }
}

impl DirHandle {
    pub(super) fn new(dir: Ino, user: u32) -> Self {
        Self { dir, user, fetch: Mutex::default() }
    }

    pub(super) fn fetch(&self) -> Option<Arc<ListingFetch>> {
        self.fetch.lock().as_ref().map(|held| held.fetch.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(count: usize) -> Vec<ListedEntry> {
        let entry = ListedEntry { name: "f".into(), ino: Ino(7), kind: crate::tree::FileKind::File };
        vec![entry; count]
    }

    #[test]
    fn handles_of_unchanged_directory_share_entries() {
        let dirs = Dirs::new();
        let mut handles = Vec::new();
        for n in 0..10_000 {
            let (handle, version) = (DirHandle::new(Ino(5), 1), 1 + n / 9_000);
            let fetch = dirs.shared_snapshot(Ino(5), version, || Ok(entries(100))).unwrap();
            dirs.hold(&handle, &fetch).unwrap();
            handles.push(handle);
        }
        assert_eq!(dirs.held.of(1), 200, "two versions of the directory");
        drop(handles);
        assert_eq!(dirs.held.of(1), 0);
    }

    #[test]
    fn entries_of_a_changing_directory_are_bounded() {
        let dirs = Dirs::new();
        let hold = |handle: &DirHandle, version| {
            let fetch =
                dirs.shared_snapshot(Ino(5), version, || Ok(entries(ENTRIES_PER_USER_MAX / 4))).unwrap();
            dirs.hold(handle, &fetch).map_err(|error| error.kind())
        };
        let handles: Vec<_> = (0..5).map(|_| DirHandle::new(Ino(5), 1)).collect();
        for (version, handle) in handles.iter().enumerate().take(4) {
            hold(handle, version as u64).unwrap();
        }
        assert_eq!(hold(&handles[4], 9), Err(ErrorKind::TooManyFiles));
        // Other users, and handles that are read again, are not affected.
        assert_eq!(hold(&DirHandle::new(Ino(5), 2), 9), Ok(()));
        assert_eq!(hold(&handles[0], 10), Ok(()));
        drop(handles);
        assert_eq!(hold(&DirHandle::new(Ino(5), 1), 11), Ok(()));
    }

    #[test]
    fn listing_counts_for_users_that_hold_it() {
        let (dirs, handles) = (Dirs::new(), [1, 2, 2].map(|user| DirHandle::new(Ino(5), user)));
        for handle in &handles {
            let fetch = dirs.shared_snapshot(Ino(5), 1, || Ok(entries(3))).unwrap();
            dirs.hold(handle, &fetch).unwrap();
        }
        assert_eq!((dirs.held.of(1), dirs.held.of(2)), (3, 3));
        let [first, second, third] = handles;
        drop(first);
        drop(second);
        assert_eq!((dirs.held.of(1), dirs.held.of(2)), (0, 3));
        drop(third);
        assert_eq!(dirs.held.of(2), 0);
    }

    #[test]
    fn pages_that_arrive_later_count_too() {
        let (dirs, fetch, handle) = (Dirs::new(), Arc::<ListingFetch>::default(), DirHandle::new(Ino(5), 1));
        fetch.add(entries(3));
        dirs.hold(&handle, &fetch).unwrap();
        fetch.add(entries(4));
        assert_eq!(dirs.held.of(1), 7);
        drop((handle, fetch));
        assert_eq!(dirs.held.of(1), 0);
    }

    #[tokio::test]
    async fn wait_for_a_page_is_bounded() {
        let fetch = ListingFetch { page_wait_max: Duration::from_millis(10), ..ListingFetch::default() };
        let entries = tokio::time::timeout(Duration::from_secs(20), fetch.entries(0)).await;
        let late = entries.expect("the wait has no bound");
        assert_eq!(late.unwrap_err().kind(), ErrorKind::Timeout);
        let changed = fetch.changed();
        fetch.end(Ok(()));
        changed.await.unwrap();
    }
}
