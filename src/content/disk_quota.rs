//! The quota of local disk space: a hard limit, and a minimum of free space for other programs.
//!
//! Files that are needed reserve their bytes before they are written. If the quota is full, files that are
//! not needed are evicted: first cached files, the least recently used first; then tees, the largest first.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use rustix::fs::{StatVfs, statvfs};
use tokio::sync::Notify;

use crate::error::{Error, ErrorKind, Result};
use crate::units::exact_size;

/// Queued parts of tees at which streams begin to wait for the disk.
const TEE_PARTS_SOFT_MAX: usize = 8;
/// Queued parts of tees at most: several streams may pass the soft limit at once.
const TEE_PARTS_MAX: usize = 2 * TEE_PARTS_SOFT_MAX;
/// Largest default limit in bytes.
const DEFAULT_BYTES_MAX: u64 = 20 << 30;
/// Bytes reserved between two checks of the free disk space.
const FREE_SPACE_CHECK_BYTES: u64 = 32 << 20;

/// A file that can be dropped for one that is needed.
pub(super) trait Evictable: fmt::Debug + Send + Sync {
    /// Bytes of disk space.
    fn bytes(&self) -> u64;

    /// Drops the file. `false` if it was dropped before.
    fn evict(&self) -> bool;
}

/// A cache whose files can be dropped one by one.
pub(super) trait EvictableCache: fmt::Debug + Send + Sync {
    /// Drops the least recently used file. `false` if the cache is empty.
    fn evict_oldest(&self) -> bool;
}

/// The disk space of all staged and cached files of a mount.
#[derive(Debug)]
pub struct DiskQuota {
    dir: PathBuf,
    bytes_max: u64,
    free_bytes_min: u64,
    reserved: AtomicU64,
    /// Bytes that may still be reserved before the free space is checked again.
    unchecked_bytes: AtomicU64,
    /// Parts that tees have yet to write, over the whole mount. They hold memory that the streams need.
    tee_parts_queued: AtomicUsize,
    tee_part_written: Notify,
    cache: OnceLock<Weak<dyn EvictableCache>>,
    /// Held while a tee is evicted: the lock of the tee is taken under it.
    evictables: Mutex<Vec<Weak<dyn Evictable>>>,
}

/// The reserved bytes of one file. Dropping it releases them.
#[derive(Debug)]
pub(super) struct Reservation {
    quota: Arc<DiskQuota>,
    bytes: u64,
}

impl DiskQuota {
    /// A quota of `bytes_max` for files in `dir`; by default a tenth of the disk, at most 20 GiB. The disk
    /// keeps `free_bytes_min` free.
    pub fn new(dir: &Path, bytes_max: Option<u64>, free_bytes_min: u64) -> Arc<Self> {
        let default_max =
            || disk_bytes(dir).map_or(DEFAULT_BYTES_MAX, |disk| (disk / 10).min(DEFAULT_BYTES_MAX));
        Arc::new(Self {
            dir: dir.to_owned(),
            bytes_max: bytes_max.unwrap_or_else(default_max),
            free_bytes_min,
            reserved: AtomicU64::new(0),
            unchecked_bytes: AtomicU64::new(0),
            tee_parts_queued: AtomicUsize::new(0),
            tee_part_written: Notify::new(),
            cache: OnceLock::new(),
            evictables: Mutex::default(),
        })
    }

    /// Whether staged files are disabled (`--cache-size off`).
    pub fn is_disabled(&self) -> bool {
        self.bytes_max == 0
    }

    /// The directory of the files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn reserved_bytes(&self) -> u64 {
        self.reserved.load(Ordering::Relaxed)
    }

    /// Counts one more part that a tee has to write. `false` if too many are queued.
    pub(super) fn queue_tee_part(&self) -> bool {
        let fits = |queued: usize| (queued < TEE_PARTS_MAX).then_some(queued + 1);
        self.tee_parts_queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    /// Whether the queued tee parts have reached the soft limit, at which streams pause.
    pub(super) fn is_tee_backlogged(&self) -> bool {
        self.tee_parts_queued.load(Ordering::Relaxed) >= TEE_PARTS_SOFT_MAX
    }

    /// Removes written or dropped parts from the count of queued ones.
    pub(super) fn finish_tee_parts(&self, parts: usize) {
        self.tee_parts_queued.fetch_sub(parts, Ordering::Relaxed);
        self.tee_part_written.notify_waiters();
    }

    /// Resolves when a tee part is written or dropped after this call.
    pub fn tee_part_written(&self) -> tokio::sync::futures::Notified<'_> {
        self.tee_part_written.notified()
    }

    /// A reservation of no bytes.
    pub(super) fn reservation(self: &Arc<Self>) -> Reservation {
        Reservation { quota: self.clone(), bytes: 0 }
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
        let evictables = self.evictables.lock();
        let mut evictables: Vec<_> = evictables.iter().filter_map(Weak::upgrade).collect();
        evictables.sort_by_key(|evictable| std::cmp::Reverse(evictable.bytes()));
        evictables.iter().any(|evictable| evictable.evict())
    }

    /// Reserves bytes. Evicts cached files, and with `may_evict` also tees.
    fn reserve(&self, bytes: u64, may_evict: bool) -> Result<()> {
        loop {
            match self.try_reserve(bytes) {
                Err(error)
                    if error.kind() == ErrorKind::NoSpace
                        && (self.evict_cached() || may_evict && self.evict_largest()) => {}
                outcome => return outcome,
            }
        }
    }

    fn try_reserve(&self, bytes: u64) -> Result<()> {
        let fits = |reserved: u64| reserved.checked_add(bytes).filter(|sum| *sum <= self.bytes_max);
        if self.reserved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_err() {
            let detail = format!(
                "staged files have reached their limit of {}; set a larger --cache-size",
                exact_size(self.bytes_max)
            );
            return Err(Error::new(ErrorKind::NoSpace, detail));
        }
        let spend = |left: u64| left.checked_sub(bytes);
        if self.unchecked_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_err() {
            let free = free_bytes(&self.dir);
            if free.is_some_and(|free| free.saturating_sub(bytes) < self.free_bytes_min) {
                self.release(bytes);
                let detail = format!(
                    "the disk of {} must keep {} free; delete files there or set a smaller --cache-min-free",
                    self.dir.display(),
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
    pub(super) fn quota(&self) -> &Arc<DiskQuota> {
        &self.quota
    }

    /// Sets the number of reserved bytes. `NoSpace` changes nothing.
    pub(super) fn resize(&mut self, bytes: u64) -> Result<()> {
        self.resize_for(bytes, true)
    }

    /// Likewise, for an evictable file: evicts no other evictable file.
    pub(super) fn resize_optional(&mut self, bytes: u64) -> Result<()> {
        self.resize_for(bytes, false)
    }

    fn resize_for(&mut self, bytes: u64, may_evict: bool) -> Result<()> {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.quota.reserve(more, may_evict)?,
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

/// Free bytes for this user on the disk of a directory; `None` if that is not known.
fn free_bytes(dir: &Path) -> Option<u64> {
    disk(dir).map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Size of the disk of a directory in bytes; `None` if that is not known.
fn disk_bytes(dir: &Path) -> Option<u64> {
    disk(dir).map(|disk| disk.f_blocks.saturating_mul(disk.f_frsize))
}

fn disk(dir: &Path) -> Option<StatVfs> {
    statvfs(dir).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_holds_and_reservations_are_released() {
        let quota = DiskQuota::new(Path::new("/"), Some(100), 0);
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
        let quota = DiskQuota::new(Path::new("/"), Some(u64::MAX), u64::MAX);
        let refused = quota.reservation().resize(1).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NoSpace);
        assert_eq!(quota.reserved_bytes(), 0);
        assert!(disk_bytes(Path::new("/")).unwrap() >= free_bytes(Path::new("/")).unwrap());
        let quota = DiskQuota::new(Path::new("/"), None, 0);
        assert_eq!(quota.bytes_max, DEFAULT_BYTES_MAX.min(disk_bytes(Path::new("/")).unwrap() / 10));
        assert_eq!(free_bytes(Path::new("/no/such/dir")), None);
    }
}
