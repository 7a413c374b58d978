//! The quota of local disk space: a hard limit, and a minimum of free space for other programs.
//!
//! Files that are needed reserve their bytes before they are written. If the quota is full, files that are
//! not needed are evicted: first cached files, the least recently used first; then tees, the largest first.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result};
use crate::local_disk::{LocalDisk, LocalFile, disk_bytes, free_bytes};
use crate::units::exact_size;

/// Largest default limit in bytes.
const DEFAULT_BYTES_MAX: u64 = 20 << 30;
/// Bytes reserved between two checks of the free disk space.
const FREE_SPACE_CHECK_BYTES: u64 = 32 << 20;

/// A file that can be dropped for one that is needed.
pub(super) trait Evictable: fmt::Debug + Send + Sync {
    /// Bytes of disk space.
    fn bytes(&self) -> u64;

    /// Drops the file. `false` if it has no space any more. Blocks for the local disk.
    fn evict(&self) -> bool;
}

/// A cache whose files can be dropped one by one.
pub(super) trait EvictableCache: fmt::Debug + Send + Sync {
    /// Drops the least recently used file. `false` if the cache is empty. Does not block.
    fn evict_oldest(&self) -> bool;
}

/// The disk space of all staged files, cached files and spilled parts of a mount.
#[derive(Debug)]
pub struct DiskQuota {
    disk: Arc<LocalDisk>,
    bytes_max: u64,
    free_bytes_min: u64,
    reserved: AtomicU64,
    /// Bytes that may still be reserved before the free space is checked again.
    unchecked_bytes: AtomicU64,
    cache: OnceLock<Weak<dyn EvictableCache>>,
    /// A leaf lock. No tee is evicted under it.
    evictables: Mutex<Vec<Weak<dyn Evictable>>>,
}

/// The reserved bytes of one file. Dropping it releases them.
#[derive(Debug)]
pub(super) struct Reservation {
    quota: Arc<DiskQuota>,
    bytes: u64,
}

impl DiskQuota {
    /// A quota of `bytes_max` for files of `disk`; by default a tenth of the disk, at most 20 GiB. The disk
    /// keeps `free_bytes_min` free.
    pub fn new(disk: Arc<LocalDisk>, bytes_max: Option<u64>, free_bytes_min: u64) -> Arc<Self> {
        let default_max =
            || disk_bytes(disk.dir()).map_or(DEFAULT_BYTES_MAX, |disk| (disk / 10).min(DEFAULT_BYTES_MAX));
        let bytes_max = bytes_max.unwrap_or_else(default_max);
        Arc::new(Self {
            disk,
            bytes_max,
            free_bytes_min,
            reserved: AtomicU64::new(0),
            unchecked_bytes: AtomicU64::new(0),
            cache: OnceLock::new(),
            evictables: Mutex::default(),
        })
    }

    /// Whether staged files are disabled (`--cache-size off`).
    pub fn is_disabled(&self) -> bool {
        self.bytes_max == 0
    }

    /// The disk of the files.
    pub fn disk(&self) -> &Arc<LocalDisk> {
        &self.disk
    }

    pub fn reserved_bytes(&self) -> u64 {
        self.reserved.load(Ordering::Relaxed)
    }

    /// A reservation of no bytes.
    pub(super) fn reservation(self: &Arc<Self>) -> Reservation {
        Reservation { quota: self.clone(), bytes: 0 }
    }

    /// A new file of a user, and its reservation. At the limit of all files, evicts cached files, and with `may_evict`
    /// also tees: these count for no user. Blocks for the local disk.
    pub(super) fn create_file(
        self: &Arc<Self>,
        user: Option<u32>,
        may_evict: bool,
    ) -> Result<(Arc<LocalFile>, Arc<Mutex<Reservation>>)> {
        let reservation = Arc::new(Mutex::new(self.reservation()));
        let create = || self.disk.create(user, reservation.clone());
        let helps = || !self.disk.is_user_at_limit(user);
        let file = self.evict_until(ErrorKind::TooManyFiles, may_evict, helps, create)?;
        Ok((file, reservation))
    }

    /// Sets the cache that is evicted first. Only the first call has an effect.
    pub(super) fn set_cache(&self, cache: Weak<dyn EvictableCache>) {
        let _ = self.cache.set(cache);
    }

    pub(super) fn add_evictable(&self, evictable: Weak<dyn Evictable>) {
        let mut evictables = self.evictables.lock();
        evictables.retain(|evictable| evictable.strong_count() > 0);
        evictables.push(evictable);
    }

    fn evict_cached(&self) -> bool {
        self.cache.get().and_then(Weak::upgrade).is_some_and(|cache| cache.evict_oldest())
    }

    fn evict_largest(&self) -> bool {
        // Without the lock: an eviction waits for the disk, and a new tee needs the list.
        let mut evictables: Vec<_> = self.evictables.lock().iter().filter_map(Weak::upgrade).collect();
        evictables.sort_by_key(|evictable| std::cmp::Reverse(evictable.bytes()));
        evictables.iter().any(|evictable| evictable.evict())
    }

    /// Reserves bytes. Waits for the space of dropped files, then evicts cached files, and with `may_evict` also
    /// tees. Blocks for the local disk.
    fn reserve(&self, bytes: u64, may_evict: bool) -> Result<()> {
        let counted = || self.count(bytes).and_then(|()| self.check_free_space(bytes));
        self.evict_until(ErrorKind::NoSpace, may_evict, || true, counted)
    }

    /// Repeats an attempt that fails with `kind`: after dropped files are closed, then after each eviction while that
    /// `helps`.
    fn evict_until<T>(
        &self,
        kind: ErrorKind,
        may_evict: bool,
        helps: impl Fn() -> bool,
        attempt: impl Fn() -> Result<T>,
    ) -> Result<T> {
        let mut has_waited = false;
        loop {
            match attempt() {
                Err(error)
                    if error.kind() == kind
                        && (!std::mem::replace(&mut has_waited, true)
                            || helps() && (self.evict_cached() || may_evict && self.evict_largest())) =>
                {
                    self.disk.wait_closed();
                }
                outcome => return outcome,
            }
        }
    }

    /// Counts bytes within the limit.
    fn count(&self, bytes: u64) -> Result<()> {
        let fits = |reserved: u64| reserved.checked_add(bytes).filter(|sum| *sum <= self.bytes_max);
        let counted = self.reserved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        counted.map(drop).map_err(|_| {
            let detail = format!(
                "staged files have reached their limit of {}; set a larger --cache-size",
                exact_size(self.bytes_max)
            );
            Error::new(ErrorKind::NoSpace, detail)
        })
    }

    /// Checks the free space for counted bytes. Releases them if it fails.
    fn check_free_space(&self, bytes: u64) -> Result<()> {
        let spend = |left: u64| left.checked_sub(bytes);
        if self.unchecked_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_err() {
            let free = free_bytes(self.disk.dir());
            if free.is_some_and(|free| free.saturating_sub(bytes) < self.free_bytes_min) {
                self.release(bytes);
                let detail = format!(
                    "the disk of {} must keep {} free; delete files there or set a smaller --cache-min-free",
                    self.disk.dir().display(),
                    exact_size(self.free_bytes_min)
                );
                return Err(Error::new(ErrorKind::NoSpace, detail));
            }
            self.unchecked_bytes
                .store(FREE_SPACE_CHECK_BYTES.min(self.free_bytes_min / 4), Ordering::Relaxed);
        }
        Ok(())
    }

    fn release(&self, bytes: u64) {
        self.reserved.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Reservation {
    /// Sets the number of reserved bytes. `NoSpace` changes nothing. Blocks for the local disk.
    pub(super) fn resize(&mut self, bytes: u64) -> Result<()> {
        self.resize_by(bytes, |quota, more| quota.reserve(more, true))
    }

    /// Reserves at least this number of bytes.
    pub(super) fn grow(&mut self, bytes: u64) -> Result<()> {
        self.resize(bytes.max(self.bytes))
    }

    /// Likewise, for an evictable file: evicts no other evictable file.
    pub(super) fn resize_optional(&mut self, bytes: u64) -> Result<()> {
        self.resize_by(bytes, |quota, more| quota.reserve(more, false))
    }

    /// Likewise, for bytes in memory: the free space of the disk does not matter. Evicts nothing and does not block.
    pub(super) fn resize_in_memory(&mut self, bytes: u64) -> Result<()> {
        self.resize_by(bytes, DiskQuota::count)
    }

    fn resize_by(&mut self, bytes: u64, reserve: impl FnOnce(&DiskQuota, u64) -> Result<()>) -> Result<()> {
        match bytes.checked_sub(self.bytes) {
            Some(more) => reserve(&self.quota, more)?,
            None => self.quota.release(self.bytes - bytes),
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.quota.release(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::staged_file::StagedFile;
    use crate::local_disk::FileLimits;
    use std::path::Path;
    use std::time::Duration;

    fn disk() -> Arc<LocalDisk> {
        LocalDisk::new(Path::new("/"), Duration::from_secs(20), FileLimits::NONE)
    }

    #[test]
    fn limit_holds_and_reservations_are_released() {
        let quota = DiskQuota::new(disk(), Some(100), 0);
        let (mut one, mut two) = (quota.reservation(), quota.reservation());
        one.resize(60).unwrap();
        assert_eq!(two.resize(41).unwrap_err().kind(), ErrorKind::NoSpace);
        two.resize(40).unwrap();
        one.resize(10).unwrap();
        assert_eq!(quota.reserved_bytes(), 50);
        drop(two);
        one.resize(100).unwrap();
        drop(one);
        assert_eq!(quota.reserved_bytes(), 0);
    }

    #[test]
    fn disk_keeps_its_free_space() {
        let quota = DiskQuota::new(disk(), Some(u64::MAX), u64::MAX);
        let refused = quota.reservation().resize(1).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NoSpace);
        assert_eq!(quota.reserved_bytes(), 0);
        assert!(disk_bytes(Path::new("/")).unwrap() >= free_bytes(Path::new("/")).unwrap());
        let quota = DiskQuota::new(disk(), None, 0);
        assert_eq!(quota.bytes_max, DEFAULT_BYTES_MAX.min(disk_bytes(Path::new("/")).unwrap() / 10));
        assert_eq!(free_bytes(Path::new("/no/such/dir")), None);
    }

    #[test]
    fn regression_space_of_a_closing_file_is_awaited() {
        let dir = tempfile::tempdir().unwrap();
        let quota = DiskQuota::new(LocalDisk::of(&dir), Some(10), 0);
        let files = [(); 2].map(|()| StagedFile::new(&quota, None, None).unwrap());
        let [dropped, other] = files;
        dropped.write(0, &[1; 10]).unwrap();
        let (close, closing) = std::sync::mpsc::channel::<()>();
        drop(quota.disk().create(None, HungClose(closing.into())).unwrap());
        drop(dropped);
        assert_eq!(quota.reserved_bytes(), 10, "the space is free before the file is closed");
        let writing = std::thread::spawn({
            let other = other.clone();
            move || other.write(0, &[2; 10])
        });
        drop(close);
        writing.join().unwrap().unwrap();
        assert_eq!(quota.reserved_bytes(), 10);
    }

    /// A cache of files that count against the limit.
    #[derive(Debug)]
    struct Cache(Mutex<Vec<Arc<StagedFile>>>);

    impl EvictableCache for Cache {
        fn evict_oldest(&self) -> bool {
            self.0.lock().pop().is_some()
        }
    }

    #[test]
    fn cached_files_are_closed_for_needed_ones() {
        let dir = tempfile::tempdir().unwrap();
        let limits = FileLimits { total: 3, per_user: 3 };
        let quota = DiskQuota::new(LocalDisk::new(dir.path(), Duration::from_secs(20), limits), None, 0);
        let new = || StagedFile::new(&quota, None, Some(1)).map_err(|error| error.kind());
        let cached = || StagedFile::new(&quota, None, None).unwrap();
        let cache = Arc::new(Cache(Mutex::new(vec![cached(), cached()])));
        let evictable: Weak<Cache> = Arc::downgrade(&cache);
        quota.set_cache(evictable);
        let needed = [(); 3].map(|()| new().unwrap());
        assert_eq!(cache.0.lock().len(), 0);
        assert_eq!(new().unwrap_err(), ErrorKind::TooManyFiles);
        drop(needed);
        assert!(new().is_ok());
    }

    #[test]
    fn limit_of_one_user_evicts_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let limits = FileLimits { total: 9, per_user: 2 };
        let quota = DiskQuota::new(LocalDisk::new(dir.path(), Duration::from_secs(20), limits), None, 0);
        let new = |user| StagedFile::new(&quota, None, user).map_err(|error| error.kind());
        let cache = Arc::new(Cache(Mutex::new(vec![new(None).unwrap(), new(None).unwrap()])));
        let evictable: Weak<Cache> = Arc::downgrade(&cache);
        quota.set_cache(evictable);
        let _needed = [(); 2].map(|()| new(Some(1)).unwrap());
        assert_eq!(new(Some(1)).unwrap_err(), ErrorKind::TooManyFiles);
        assert_eq!(cache.0.lock().len(), 2, "cached files are evicted in vain");
    }

    struct HungClose(Mutex<std::sync::mpsc::Receiver<()>>);

    impl Drop for HungClose {
        fn drop(&mut self) {
            let _ = self.0.lock().recv();
        }
    }

    /// A tee whose eviction waits for the disk.
    #[derive(Debug)]
    struct HungTee(std::sync::Barrier, std::sync::Barrier);

    impl Evictable for HungTee {
        fn bytes(&self) -> u64 {
            1
        }

        fn evict(&self) -> bool {
            self.0.wait();
            self.1.wait();
            false
        }
    }

    #[test]
    fn eviction_that_waits_delays_no_new_tee() {
        let quota = DiskQuota::new(disk(), Some(0), 0);
        let tee = Arc::new(HungTee(std::sync::Barrier::new(2), std::sync::Barrier::new(2)));
        let evictable: Weak<HungTee> = Arc::downgrade(&tee);
        quota.add_evictable(evictable.clone());
        let evicting = quota.clone();
        let evicting = std::thread::spawn(move || evicting.reservation().resize(1).unwrap_err().kind());
        tee.0.wait();
        assert!(quota.evictables.try_lock().is_some(), "the list of tees is locked during an eviction");
        tee.1.wait();
        assert_eq!(evicting.join().unwrap(), ErrorKind::NoSpace);
        quota.add_evictable(evictable);
    }
}
