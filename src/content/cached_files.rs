//! Committed content that is still in staged files: the read cache of files just written, and the starting
//! point of later changes.
//!
//! Cached files use disk space that no other file needs now. If the quota is full, the least recently used
//! one is evicted. A file may be evicted between any two calls, so readers look it up each time.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};

use super::disk_quota::{DiskQuota, EvictableCache};
use super::reader::ReadTarget;
use super::staged_file::StagedFile;

/// Cached files at most. Each holds one file descriptor.
const FILES_MAX: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// Complete staged files by their content.
#[derive(Debug)]
pub struct CachedFiles {
    /// A leaf lock. No file is dropped under it: that releases its reservation.
    files: Mutex<LruCache<ReadTarget, Arc<StagedFile>>>,
    /// Number of files, read without the lock.
    count: AtomicUsize,
}

impl CachedFiles {
    /// An empty cache, registered for eviction with `quota`.
    pub fn new(quota: &DiskQuota) -> Arc<Self> {
        let files = Mutex::new(LruCache::new(FILES_MAX));
        let cache = Arc::new(Self { files, count: AtomicUsize::new(0) });
        let weak = Arc::downgrade(&cache);
        quota.set_cache(weak);
        cache
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<ReadTarget, Arc<StagedFile>>> {
        self.files.lock()
    }

    /// Changes the table. The caller drops removed files after the lock is released.
    fn change<T>(&self, change: impl FnOnce(&mut LruCache<ReadTarget, Arc<StagedFile>>) -> T) -> T {
        let mut files = self.lock();
        let out = change(&mut files);
        self.count.store(files.len(), Ordering::Relaxed);
        out
    }

    /// Adds a complete staged file. It counts for no user: it is evicted before another file is refused.
    pub(super) fn insert(&self, target: ReadTarget, staged: Arc<StagedFile>) {
        if let Err(error) = staged.count_for(None) {
            tracing::debug!(%error, "a cached file still counts for its user");
        }
        let pushed_out = self.change(|files| files.push(target, staged));
        drop(pushed_out);
    }

    /// The file of a content. Counts as a use.
    pub(super) fn get(&self, target: &ReadTarget) -> Option<Arc<StagedFile>> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.lock().get(target).cloned()
    }

    /// Whether a content is cached now.
    #[cfg(test)]
    fn contains(&self, target: &ReadTarget) -> bool {
        self.count.load(Ordering::Relaxed) > 0 && self.lock().contains(target)
    }

    /// Takes the file of a content out of the cache.
    pub fn remove(&self, target: &ReadTarget) -> Option<Arc<StagedFile>> {
        self.change(|files| files.pop(target))
    }

    /// Moves a content to another key: it belongs to another file or revision now.
    pub(super) fn rekey(&self, old: &ReadTarget, new: ReadTarget) {
        if let Some(staged) = self.remove(old) {
            self.insert(new, staged);
        }
    }
}

impl EvictableCache for CachedFiles {
    fn evict_oldest(&self) -> bool {
        self.change(LruCache::pop_lru).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::ids::FileId;
    use crate::local_disk::LocalDisk;

    fn target(name: &str) -> ReadTarget {
        ReadTarget {
            file_id: FileId::new(name).unwrap(),
            revision: None,
            size: 10,
            sha1: None,
            crc64: None,
            changed_at: None,
        }
    }

    fn staged(quota: &Arc<DiskQuota>) -> Arc<StagedFile> {
        let staged = StagedFile::new(quota, None, None).unwrap();
        staged.write(0, &[1; 10]).unwrap();
        staged
    }

    #[test]
    fn least_recently_used_file_is_evicted() {
        let dir = tempfile::tempdir().unwrap();
        let quota = DiskQuota::new(LocalDisk::of(&dir), Some(35), 0);
        let cache = CachedFiles::new(&quota);
        for name in ["a", "b", "c"] {
            cache.insert(target(name), staged(&quota));
        }
        assert!(cache.get(&target("a")).is_some());
        let other = staged(&quota);
        assert_eq!(["a", "b", "c"].map(|name| cache.contains(&target(name))), [true, false, true]);
        other.write(10, &[1; 15]).unwrap();
        assert_eq!(["a", "b", "c"].map(|name| cache.contains(&target(name))), [true, false, false]);
        assert_eq!(quota.reserved_bytes(), 35);
        other.write(25, &[1; 10]).unwrap();
        assert!(!cache.contains(&target("a")));
        assert_eq!(other.write(35, b"x").unwrap_err().kind(), ErrorKind::NoSpace);
    }

    #[test]
    fn evicted_file_in_use_keeps_its_space() {
        let dir = tempfile::tempdir().unwrap();
        let quota = DiskQuota::new(LocalDisk::of(&dir), Some(10), 0);
        let cache = CachedFiles::new(&quota);
        cache.insert(target("a"), staged(&quota));
        let used = cache.get(&target("a")).unwrap();
        let other = StagedFile::new(&quota, None, None).unwrap();
        assert_eq!(other.write(0, b"x").unwrap_err().kind(), ErrorKind::NoSpace);
        drop(used);
        other.write(0, b"x").unwrap();
    }

    #[test]
    fn files_are_found_by_their_content() {
        let dir = tempfile::tempdir().unwrap();
        let quota = DiskQuota::new(LocalDisk::of(&dir), None, 0);
        let cache = CachedFiles::new(&quota);
        cache.insert(target("a"), staged(&quota));
        cache.rekey(&target("a"), target("b"));
        cache.rekey(&target("a"), target("c"));
        assert_eq!(["a", "b", "c"].map(|name| cache.contains(&target(name))), [false, true, false]);
        assert!(cache.remove(&target("b")).is_some() && cache.remove(&target("b")).is_none());
        assert!(!cache.evict_oldest());
        for n in 0..300 {
            cache.insert(target(&format!("f{n}")), StagedFile::new(&quota, None, None).unwrap());
        }
        assert!(!cache.contains(&target("f0")) && cache.contains(&target("f299")));
    }
}
