//! Directory listings, running and complete, and the handles that read them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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

/// Directory handles and running listings.
#[derive(Debug, Default)]
pub(super) struct Dirs {
    /// Locked before the tree.
    fetches: Mutex<HashMap<Ino, Arc<ListingFetch>>>,
    /// A leaf lock.
    handles: Mutex<HashMap<Fh, Arc<DirHandle>>>,
    pub(super) next: AtomicU64,
    /// The last request failed with an outage, or its answer is overdue.
    is_unreachable: AtomicBool,
}

#[derive(Debug)]
pub(super) struct DirHandle {
    pub(super) dir: Ino,
    /// The entries of the last read from the beginning, to which the cookies belong. `None` before the first
    /// one. A leaf lock.
    fetch: Mutex<Option<Arc<ListingFetch>>>,
}

/// A listing of a directory, running or complete.
#[derive(Debug)]
pub(super) struct ListingFetch {
    /// A leaf lock.
    state: Mutex<ListingState>,
    changed: Notify,
    page_wait_max: Duration,
}

#[derive(Debug, Default)]
struct ListingState {
    entries: Vec<ListedEntry>,
    ended: Option<Result<()>>,
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
        Self { state: Mutex::new(ListingState { entries, ended: Some(Ok(())) }), ..Self::default() }
    }

    pub(super) fn add(&self, entries: Vec<ListedEntry>) {
        if entries.is_empty() {
            return;
        }
        self.lock().entries.extend(entries);
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
    pub(super) fn new(dir: Ino) -> Self {
        Self { dir, fetch: Mutex::default() }
    }

    pub(super) fn set_fetch(&self, fetch: Arc<ListingFetch>) {
        *self.fetch.lock() = Some(fetch);
    }

    pub(super) fn fetch(&self) -> Option<Arc<ListingFetch>> {
        self.fetch.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
