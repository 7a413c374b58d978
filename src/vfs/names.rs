//! Names: looking them up, and attributes.
//!
//! The root is known without the network. What the tree believes is answered at once; the rest is
//! asked for once, whoever waits for it.

use std::ffi::OsStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Attr, Caller, Entry, Statfs, Vfs};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Ino;
use crate::pds::drive::Quota;
use crate::tree::{Found, Identity, Kind, Name};

/// Folders up to this size are read again as a whole when one of their names is in doubt.
const RELIST_ENTRIES_MAX: usize = 1000;
/// Longest time that the kernel remembers an absent name by itself.
const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(5);
/// How long the drive is waited for where an older answer is known.
pub(super) const KNOWN_WAIT_MAX: Duration = Duration::from_secs(3);
/// How long the drive's quota is taken as true.
const QUOTA_TTL: Duration = Duration::from_secs(10);
/// How long the very first `statfs` waits for the drive.
const QUOTA_WAIT_MAX: Duration = Duration::from_secs(1);
/// Free space shown where the drive has no limit, or has not told yet, in bytes.
const FREE_BYTES_ASSUMED: u64 = 1 << 50;

/// The last quota that the drive told.
#[derive(Debug, Default)]
pub(super) struct QuotaCache {
    /// A leaf lock.
    told: Mutex<Option<(Instant, Quota)>>,
    /// Held while the drive is being asked.
    asking: tokio::sync::Mutex<()>,
}

impl QuotaCache {
    pub(super) fn new() -> Self {
        Self::default()
    }

    fn get(&self) -> Option<(Instant, Quota)> {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vfs {
    /// How long the kernel may remember that a name is absent.
    pub fn negative_ttl(&self) -> Duration {
        // Asking again costs nothing while the listing is believed, and that is older already.
        self.config.metadata_ttl.min(NEGATIVE_TTL_MAX)
    }

    /// Finds a name; `None` where it is absent. An entry that is given was counted once.
    pub async fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Option<Entry>> {
        let name = match Name::new(name) {
            // Nothing can have such a name. Whoever makes it is told why it cannot.
            Err(error) if error.kind() == ErrorKind::InvalidName => return Ok(None),
            name => name?,
        };
        // An inode may be dropped between the two steps; then the name is looked for again.
        for _ in 0..3 {
            let Some(ino) = self.resolve(parent, &name).await? else { return Ok(None) };
            if self.tree().count_lookup(ino) {
                return self.entry(ino).map(Some);
            }
        }
        Err(Error::new(ErrorKind::Stale, format!("{name} keeps changing")))
    }

    /// The inode behind a name.
    pub(super) async fn resolve(&self, parent: Ino, name: &Name) -> Result<Option<Ino>> {
        let (found, entries) = {
            let tree = self.tree();
            (tree.find(parent, name.as_str(), Instant::now())?, tree.entry_count(parent))
        };
        match found {
            Found::Fresh(ino) => Ok(Some(ino)),
            Found::Absent => Ok(None),
            Found::Unknown => self.resolve_by_reading(parent, name).await,
            Found::Stale(ino) if self.is_drive_away(parent) => Ok(Some(ino)),
            Found::Stale(ino) => {
                let is_large = entries > RELIST_ENTRIES_MAX;
                let asked = self.resolve_again(parent, name, is_large.then_some(ino));
                match tokio::time::timeout(KNOWN_WAIT_MAX, asked).await {
                    Ok(Err(error)) if is_outage(&error) => Ok(Some(ino)),
                    Ok(outcome) => outcome,
                    Err(_) => {
                        // What was known is better than an answer that does not come.
                        self.dirs.note_silence();
                        Ok(Some(ino))
                    }
                }
            }
        }
    }

    async fn resolve_again(&self, parent: Ino, name: &Name, alone: Option<Ino>) -> Result<Option<Ino>> {
        if let Some(ino) = alone {
            self.refresh(ino).await?;
            if self.tree().child(parent, name.as_str()) == Some(ino) {
                return Ok(Some(ino));
            }
            // It is gone, but something else may have the name.
        }
        self.resolve_by_reading(parent, name).await
    }

    /// Whether the drive would not answer, as far as is known. Asks all the same, but waits for nothing.
    pub(super) fn is_drive_away(&self, dir: Ino) -> bool {
        let is_away = self.answers_not();
        if is_away && let Err(error) = self.read_folder(dir) {
            tracing::debug!(%error, "the drive is not asked again");
        }
        is_away
    }

    /// Reads the folder until the name has been seen, or to its end.
    async fn resolve_by_reading(&self, parent: Ino, name: &Name) -> Result<Option<Ino>> {
        let reading = self.read_folder(parent)?;
        loop {
            let changed = reading.changed();
            let ended = reading.has_ended();
            if let Found::Fresh(ino) = self.tree().find(parent, name.as_str(), Instant::now())? {
                return Ok(Some(ino));
            }
            match ended {
                Some(Ok(())) => return Ok(self.tree().child(parent, name.as_str())),
                Some(Err(error)) => return Err(error),
                None => changed.await,
            }
        }
    }

    /// The inode behind a name that must be there.
    pub(super) async fn resolve_existing(&self, parent: Ino, name: &Name) -> Result<Ino> {
        let absent = || Error::new(ErrorKind::NotFound, format!("{name} does not exist"));
        self.resolve(parent, name).await?.ok_or_else(absent)
    }

    /// Asks the drive for one object.
    async fn refresh(&self, ino: Ino) -> Result<()> {
        let Some(Identity::Remote(file)) = self.tree().identity(ino) else { return Ok(()) };
        let asked_at = Instant::now();
        let answer = self.drive.get(&file).await;
        self.dirs.note_outcome(answer.as_ref().err());
        let mut tree = self.tree();
        match answer {
            Ok(meta) => tree.observe(meta, asked_at),
            Err(error) if error.kind() == ErrorKind::NotFound => tree.vanished(&file),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The kernel has forgotten an inode so many times.
    pub fn forget(&self, ino: Ino, lookups: u64) {
        self.tree().forget(ino, lookups);
    }

    /// The kernel is about to learn of an inode.
    pub fn count_lookup(&self, ino: Ino) {
        // Where the inode is gone, so will be the entry that is asked for next.
        let _ = self.tree().count_lookup(ino);
    }

    /// Attributes. Where the drive cannot be asked, those that are known.
    pub async fn getattr(&self, ino: Ino) -> Result<Entry> {
        let entry = self.entry(ino)?;
        let parent = self.tree().parent(ino).unwrap_or(ino);
        if !entry.ttl.is_zero() || ino == Ino::ROOT || self.is_drive_away(parent) {
            return Ok(entry);
        }
        match tokio::time::timeout(KNOWN_WAIT_MAX, self.refresh(ino)).await {
            Ok(Ok(())) => self.entry(ino),
            outcome => {
                if outcome.is_err() {
                    self.dirs.note_silence();
                }
                tracing::debug!(%ino, ?outcome, "attributes are of before");
                Ok(entry)
            }
        }
    }

    /// Attributes as known here.
    pub(super) fn entry(&self, ino: Ino) -> Result<Entry> {
        let now = Instant::now();
        let (stat, mut ttl, wanted, meta) = {
            let tree = self.tree();
            let meta = tree.meta(ino).cloned();
            (tree.stat(ino)?, tree.attrs_fresh_for(ino, now), self.wanted(&tree, ino), meta)
        };
        let (mut size, mut mtime, posix) = match wanted {
            // Names that came to a folder since count.
            Some((mtime, posix)) if stat.kind != Kind::Folder => {
                (stat.size, mtime.unwrap_or(stat.mtime), posix)
            }
            Some((_, posix)) => (stat.size, stat.mtime, posix),
            None => (stat.size, stat.mtime, stat.posix),
        };
        if let Some(file) = self.files.get(ino) {
            if file.is_unsaved() || stat.nlink == 0 {
                (size, mtime) = (file.size(), file.mtime());
                // Whoever asks shall see it grow.
                ttl = ttl.min(Duration::from_millis(100));
            } else if let Some(former) = meta.and_then(|meta| file.former(&meta)) {
                // The kernel reads to here, for whoever has it open; the time tells that there is something else now.
                size = former.size;
            }
        }
        let known = posix.as_deref();
        let (uid, gid) = known.and_then(|posix| posix.owner).unwrap_or((self.config.uid, self.config.gid));
        let attr = Attr {
            ino,
            size,
            atime: known.and_then(|posix| posix.atime).unwrap_or(mtime),
            mtime,
            ctime: stat.ctime.max(mtime),
            crtime: stat.crtime,
            kind: stat.kind,
            perm: known.and_then(|posix| posix.perm).unwrap_or_else(|| self.usual_perm(stat.kind)),
            nlink: stat.nlink,
            uid,
            gid,
        };
        Ok(Entry { attr, ttl })
    }

    /// The kernel checks permissions itself (`default_permissions`); here it is told that all is well.
    #[allow(clippy::unused_async)] // Operations are asynchronous, whether they wait or not.
    pub async fn access(&self, ino: Ino, _mask: i32, _caller: Caller) -> Result<()> {
        self.tree().kind(ino).map(|_| ())
    }

    /// Space on the drive. Never waits for the network, but the very first time for a moment.
    pub async fn statfs(&self) -> Statfs {
        match self.quota.get() {
            Some((at, _)) if at.elapsed() < QUOTA_TTL => {}
            told => {
                if let Ok(vfs) = self.this() {
                    let asked = self.env.runtime.spawn(async move { vfs.ask_quota().await });
                    if told.is_none() {
                        // Late or failed: the assumption serves.
                        let _ = tokio::time::timeout(QUOTA_WAIT_MAX, asked).await;
                    }
                }
            }
        }
        statfs_of(self.quota.get().map(|(_, quota)| quota))
    }

    async fn ask_quota(&self) {
        let Ok(_one_at_a_time) = self.quota.asking.try_lock() else { return };
        match self.drive.quota().await {
            Ok(quota) => {
                let mut told = self.quota.told.lock().unwrap_or_else(PoisonError::into_inner);
                *told = Some((Instant::now(), quota));
            }
            Err(error) => tracing::debug!(%error, "the drive's quota is not known"),
        }
    }
}

/// Whether an error says nothing about the drive's content, only that it cannot be asked now.
pub(super) fn is_outage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::Timeout | ErrorKind::Throttled)
}

fn statfs_of(quota: Option<Quota>) -> Statfs {
    let block = u64::from(Statfs::BLOCK_BYTES);
    let used = quota.map_or(0, |quota| quota.used_bytes);
    let free = match quota.and_then(|quota| quota.total_bytes) {
        Some(total) => total.saturating_sub(used),
        None => FREE_BYTES_ASSUMED,
    };
    Statfs { blocks: (used + free) / block, blocks_free: free / block }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_the_drives_quota() {
        let quota = |total_bytes, used_bytes| statfs_of(Some(Quota { total_bytes, used_bytes }));
        assert_eq!(quota(Some(8192), 4096), Statfs { blocks: 2, blocks_free: 1 });
        assert_eq!(quota(Some(4096), 8192).blocks_free, 0);
        assert!(quota(None, 4096).blocks_free > 1 << 30);
        assert!(statfs_of(None).blocks_free > 1 << 30);
    }
}
