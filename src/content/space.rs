//! Room for staged copies on the local disk: a hard cap, and what must stay free for others.

use std::ffi::CString;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Notify;

use super::kept::Kept;
use crate::error::{Error, ErrorKind, Result};

/// Parts of streams that may wait for the disk at once, before streams begin to wait for it too.
const WAITING_PARTS: usize = 8;
/// The same, at most: several streams may find room for one part at once.
const WAITING_PARTS_MAX: usize = 2 * WAITING_PARTS;
/// Largest cap that is not asked for.
const BYTES_MAX: u64 = 20 << 30;
/// How many bytes are taken before the disk is asked again what it has.
const ASK_EVERY_BYTES: u64 = 32 << 20;

/// A copy that is worth something and never needed.
pub(super) trait Spare: fmt::Debug + Send + Sync {
    /// Bytes that it takes.
    fn bytes(&self) -> u64;

    /// Gives its room back. `false` where it has none to give any more.
    fn give_way(&self) -> bool;
}

/// The room of all staged copies of a mount.
#[derive(Debug)]
pub struct Space {
    folder: PathBuf,
    bytes_max: u64,
    free_bytes_min: u64,
    taken: AtomicU64,
    /// Bytes that may still be taken before the disk is asked again.
    unasked: AtomicU64,
    /// Parts of streams that wait to be copied, over the whole mount: they keep memory that the streams
    /// need.
    waiting_parts: AtomicUsize,
    part_done: Notify,
    /// What gives way where room is short.
    kept: Kept,
    /// What gives way after that, the largest first. A leaf lock.
    spares: Mutex<Vec<Weak<dyn Spare>>>,
}

/// Bytes of the room that belong to one copy; given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    space: Arc<Space>,
    bytes: u64,
}

impl Space {
    /// At most `bytes_max` in files in `folder`, or a share of its disk, which keeps `free_bytes_min`
    /// free.
    pub fn new(folder: &Path, bytes_max: Option<u64>, free_bytes_min: u64) -> Arc<Self> {
        let share_of_disk = || disk_bytes(folder).map_or(BYTES_MAX, |disk| (disk / 10).min(BYTES_MAX));
        let bytes_max = bytes_max.unwrap_or_else(share_of_disk);
        let (taken, unasked) = (AtomicU64::new(0), AtomicU64::new(0));
        let (folder, waiting_parts) = (folder.to_owned(), AtomicUsize::new(0));
        let (part_done, kept, spares) = (Notify::new(), Kept::default(), Mutex::default());
        Arc::new(Self {
            folder,
            bytes_max,
            free_bytes_min,
            taken,
            unasked,
            waiting_parts,
            part_done,
            kept,
            spares,
        })
    }

    /// Whether there shall be no copies at all.
    pub fn is_off(&self) -> bool {
        self.bytes_max == 0
    }

    /// Where copies lie.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Copies of committed contents.
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Bytes that copies have taken.
    pub fn taken_bytes(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// One more part of a stream waits to be copied; `false` where too many do already.
    pub(super) fn part_waits(&self) -> bool {
        let fits = |waiting: usize| (waiting < WAITING_PARTS_MAX).then_some(waiting + 1);
        self.waiting_parts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    /// Whether so many parts wait to be copied that it would be better not to make more.
    pub(super) fn is_behind(&self) -> bool {
        self.waiting_parts.load(Ordering::Relaxed) >= WAITING_PARTS
    }

    /// So many parts wait no longer.
    pub(super) fn parts_done(&self, parts: usize) {
        self.waiting_parts.fetch_sub(parts, Ordering::Relaxed);
        self.part_done.notify_waiters();
    }

    /// Resolves when a part was copied after the call.
    pub fn part_done(&self) -> tokio::sync::futures::Notified<'_> {
        self.part_done.notified()
    }

    /// A share of nothing yet.
    pub fn share(self: &Arc<Self>) -> Share {
        Share { space: self.clone(), bytes: 0 }
    }

    /// A copy that gives way to those that are needed.
    pub(super) fn add_spare(&self, spare: Weak<dyn Spare>) {
        let mut spares = self.spares.lock().unwrap_or_else(PoisonError::into_inner);
        spares.retain(|spare| spare.strong_count() > 0);
        spares.push(spare);
    }

    fn give_way(&self) -> bool {
        let spares = self.spares.lock().unwrap_or_else(PoisonError::into_inner);
        let mut spares: Vec<_> = spares.iter().filter_map(Weak::upgrade).collect();
        spares.sort_by_key(|spare| std::cmp::Reverse(spare.bytes()));
        spares.iter().any(|spare| spare.give_way())
    }

    /// Takes room, at the cost of copies that are only kept, and, where it `is_needed`, of spare ones.
    fn take(&self, bytes: u64, is_needed: bool) -> Result<()> {
        loop {
            match self.try_take(bytes) {
                Err(error)
                    if error.kind() == ErrorKind::NoSpace
                        && (self.kept.drop_oldest() || is_needed && self.give_way()) => {}
                outcome => return outcome,
            }
        }
    }

    fn try_take(&self, bytes: u64) -> Result<()> {
        let fits = |taken: u64| taken.checked_add(bytes).filter(|sum| *sum <= self.bytes_max);
        if self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_err() {
            let detail = format!(
                "local copies of files that are being changed have reached their {} bytes; a larger \
                 --cache-size allows more",
                self.bytes_max
            );
            return Err(Error::new(ErrorKind::NoSpace, detail));
        }
        let spend = |left: u64| left.checked_sub(bytes);
        if self.unasked.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_err() {
            let free = free_bytes(&self.folder);
            if free.is_some_and(|free| free.saturating_sub(bytes) < self.free_bytes_min) {
                self.give_back(bytes);
                let detail = format!("{} is short of free space", self.folder.display());
                return Err(Error::new(ErrorKind::NoSpace, detail));
            }
            self.unasked.store(ASK_EVERY_BYTES.min(self.free_bytes_min / 4), Ordering::Relaxed);
        }
        Ok(())
    }

    fn give_back(&self, bytes: u64) {
        self.taken.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Share {
    /// Of which it is a share.
    pub fn space(&self) -> &Arc<Space> {
        &self.space
    }

    /// Makes the share so large; `NoSpace` changes nothing.
    pub fn resize(&mut self, bytes: u64) -> Result<()> {
        self.resize_for(bytes, true)
    }

    /// The same for what is not needed.
    pub fn resize_spare(&mut self, bytes: u64) -> Result<()> {
        self.resize_for(bytes, false)
    }

    fn resize_for(&mut self, bytes: u64, is_needed: bool) -> Result<()> {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.space.take(more, is_needed)?,
            None => self.space.give_back(self.bytes - bytes),
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.space.give_back(self.bytes);
    }
}

/// Bytes that this user may still write to the disk of a folder; `None` where it does not tell.
fn free_bytes(folder: &Path) -> Option<u64> {
    statvfs(folder).map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Size of the disk of a folder in bytes; `None` where it does not tell.
fn disk_bytes(folder: &Path) -> Option<u64> {
    statvfs(folder).map(|disk| disk.f_blocks.saturating_mul(disk.f_frsize))
}

fn statvfs(folder: &Path) -> Option<libc::statvfs> {
    let path = CString::new(folder.as_os_str().as_bytes()).ok()?;
    // SAFETY: zeroed is a valid statvfs; path and buffer outlive the call.
    let (failed, disk) = unsafe {
        let mut disk: libc::statvfs = std::mem::zeroed();
        let failed = libc::statvfs(path.as_ptr(), &raw mut disk);
        (failed, disk)
    };
    (failed == 0).then_some(disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cap_holds_and_shares_come_back() {
        let space = Space::new(Path::new("/"), Some(100), 0);
        let (mut one, mut two) = (space.share(), space.share());
        one.resize(60).unwrap();
        assert_eq!(two.resize(41).unwrap_err().kind(), ErrorKind::NoSpace);
        two.resize(40).unwrap();
        one.resize(10).unwrap();
        assert_eq!(space.taken_bytes(), 50);
        drop(two);
        one.resize(100).unwrap();
        drop(one);
        assert_eq!(space.taken_bytes(), 0);
    }

    #[test]
    fn a_disk_keeps_its_free_space() {
        let space = Space::new(Path::new("/"), Some(u64::MAX), u64::MAX);
        let refused = space.share().resize(1).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NoSpace);
        assert_eq!(space.taken_bytes(), 0);
        assert!(disk_bytes(Path::new("/")).unwrap() >= free_bytes(Path::new("/")).unwrap());
        let space = Space::new(Path::new("/"), None, 0);
        assert_eq!(space.bytes_max, BYTES_MAX.min(disk_bytes(Path::new("/")).unwrap() / 10));
        assert_eq!(free_bytes(Path::new("/no/such/folder")), None);
    }
}
