//! Lookup of names, and attributes.
//!
//! The root is known without the network. Fresh entries are answered from the tree. Other entries need one
//! request to the drive, shared by all waiting callers.

use std::ffi::OsStr;
use std::time::{Duration, Instant};

use super::Vfs;
use super::attributes::SETID_BITS;
use super::types::{Attr, Caller, Entry};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Ino;
use crate::tree::{FileKind, Identity, Name, NameState};

/// For a stale name in a directory up to this size, the whole directory is listed again.
const RELIST_ENTRIES_MAX: usize = 1000;
/// Upper bound for the TTL of negative entries in the kernel.
const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(5);
/// How long to wait for the drive if a stale answer exists.
pub(super) const STALE_WAIT_MAX: Duration = Duration::from_secs(3);
impl Vfs {
    /// TTL of negative entries in the kernel.
    pub fn negative_ttl(&self) -> Duration {
        // The listing that proves the absence is older than the entry, so a long TTL would outlast it. A
        // repeated lookup costs nothing while the listing is fresh.
        self.config.options.metadata_ttl.min(NEGATIVE_TTL_MAX)
    }

    /// Finds a name. The returned entry was counted as one lookup.
    pub async fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Option<Entry>> {
        self.prefetch_trash(parent);
        match self.lookup_known(parent, name).await? {
            None => self.offer_trash(parent, name),
            found => Ok(found),
        }
    }

    /// Like [`Self::lookup`], without a look into the recycle bin.
    pub(super) async fn lookup_known(&self, parent: Ino, name: &OsStr) -> Result<Option<Entry>> {
        if self.trash_entries.get(parent).is_some() {
            // Nothing can be done with a single entry of a directory in the recycle bin.
            return Ok(None);
        }
        let name = match Name::new(name) {
            // No file can have such a name. Creating it returns the reason.
            Err(error) if error.kind() == ErrorKind::InvalidName => return Ok(None),
            name => name?,
        };
        // An inode may be dropped between the two steps; then the lookup is repeated.
        for _ in 0..3 {
            let Some(ino) = self.resolve(parent, &name).await? else { return Ok(None) };
            if self.tree().count_lookup(ino) {
                return self.entry(ino).map(Some);
            }
        }
        Err(Error::new(ErrorKind::Stale, format!("{name} changed during every lookup")))
    }

    pub(super) async fn resolve(&self, parent: Ino, name: &Name) -> Result<Option<Ino>> {
        let (found, entries) = {
            let tree = self.tree();
            (tree.find(parent, name.as_str(), Instant::now())?, tree.entry_count(parent))
        };
        match found {
            NameState::Fresh(ino) => Ok(Some(ino)),
            NameState::Absent => Ok(None),
            NameState::Unknown => self.resolve_by_listing(parent, name).await,
            NameState::Stale(ino) if self.probe_if_unreachable(parent) => Ok(Some(ino)),
            NameState::Stale(ino) => {
                let is_large = entries > RELIST_ENTRIES_MAX;
                let request = self.revalidate(parent, name, is_large.then_some(ino));
                match tokio::time::timeout(STALE_WAIT_MAX, request).await {
                    Ok(Err(error)) if error.is_outage() => Ok(Some(ino)),
                    Ok(outcome) => outcome,
                    Err(_) => {
                        // Stale attributes are better than none.
                        self.dirs.note_silence();
                        Ok(Some(ino))
                    }
                }
            }
        }
    }

    async fn revalidate(&self, parent: Ino, name: &Name, single: Option<Ino>) -> Result<Option<Ino>> {
        if let Some(ino) = single {
            self.refresh(ino).await?;
            if self.tree().child(parent, name.as_str()) == Some(ino) {
                return Ok(Some(ino));
            }
            // It is gone; another object may have the name.
        }
        self.resolve_by_listing(parent, name).await
    }

    /// Whether the drive is unreachable. If so, starts a listing as a probe, without waiting for it.
    pub(super) fn probe_if_unreachable(&self, dir: Ino) -> bool {
        let is_unreachable = self.is_drive_unreachable();
        if is_unreachable && let Err(error) = self.fetch_listing(dir) {
            tracing::debug!(%error, "cannot start a listing as a probe");
        }
        is_unreachable
    }

    /// Lists the directory until the name appears, or to its end.
    async fn resolve_by_listing(&self, parent: Ino, name: &Name) -> Result<Option<Ino>> {
        let fetch = self.fetch_listing(parent)?;
        loop {
            let changed = fetch.changed();
            let ended = fetch.outcome();
            if let NameState::Fresh(ino) = self.tree().find(parent, name.as_str(), Instant::now())? {
                return Ok(Some(ino));
            }
            match ended {
                Some(Ok(())) => return Ok(self.tree().child(parent, name.as_str())),
                Some(Err(error)) => return Err(error),
                None => changed.await?,
            }
        }
    }

    /// Like [`Self::resolve`]; fails with ENOENT if the name is absent.
    pub(super) async fn resolve_existing(&self, parent: Ino, name: &Name) -> Result<Ino> {
        let absent = || Error::new(ErrorKind::NotFound, format!("{name} does not exist"));
        self.resolve(parent, name).await?.ok_or_else(absent)
    }

    /// Reads the attributes of one object from the drive.
    async fn refresh(&self, ino: Ino) -> Result<()> {
        let Some(Identity::Remote(file)) = self.tree().identity(ino) else { return Ok(()) };
        let requested_at = Instant::now();
        let answer = self.drive.get(&file).await;
        self.dirs.note_outcome(answer.as_ref().err());
        let mut tree = self.tree();
        match answer {
            Ok(meta) => tree.merge_object(meta, requested_at),
            Err(error) if error.kind() == ErrorKind::NotFound => tree.removed_elsewhere(&file),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The kernel dropped `lookups` references to an inode.
    pub fn forget(&self, ino: Ino, lookups: u64) {
        self.tree().forget(ino, lookups);
    }

    /// Counts a lookup that the kernel is about to learn of.
    pub fn count_lookup(&self, ino: Ino) {
        // If the inode is gone, the next request for it fails.
        let _ = self.tree().count_lookup(ino);
    }

    /// Attributes; stale ones if the drive does not return newer ones in time.
    pub async fn getattr(&self, ino: Ino) -> Result<Entry> {
        let entry = self.entry(ino)?;
        let parent = self.tree().parent(ino).unwrap_or(ino);
        // The TTL of an entry may be zero although its attributes are fresh.
        let is_fresh = !self.tree().attrs_fresh_for(ino, Instant::now()).is_zero();
        if is_fresh || ino == Ino::ROOT || self.probe_if_unreachable(parent) {
            return Ok(entry);
        }
        match tokio::time::timeout(STALE_WAIT_MAX, self.refresh(ino)).await {
            Ok(Ok(())) => self.entry(ino),
            outcome => {
                if outcome.is_err() {
                    self.dirs.note_silence();
                }
                tracing::debug!(%ino, ?outcome, "drive not reachable: using stale attributes");
                Ok(entry)
            }
        }
    }

    /// Attributes as known locally.
    pub(super) fn entry(&self, ino: Ino) -> Result<Entry> {
        let now = Instant::now();
        let (stat, mut ttl, pending, meta) = {
            let tree = self.tree();
            let meta = tree.meta(ino).cloned();
            (tree.stat(ino)?, tree.attrs_fresh_for(ino, now), self.pending_attrs(&tree, ino), meta)
        };
        let is_remote = meta.is_some();
        let (mut size, mut mtime, posix) = match pending {
            // The mtime of a directory includes later changes of names in it.
            Some((mtime, posix)) if stat.kind != FileKind::Directory => {
                (stat.size, mtime.unwrap_or(stat.mtime), posix)
            }
            Some((_, posix)) => (stat.size, stat.mtime, posix),
            None => (stat.size, stat.mtime, stat.posix),
        };
        if let Some(recycled) = self.trash_entries.get(ino) {
            (size, mtime) = (recycled.size, recycled.mtime);
        } else if let Some(file) = self.files.get(ino) {
            if file.has_local_content() || stat.nlink == 0 {
                (size, mtime) = (file.size(), file.mtime());
                // A program that polls the file sees it grow.
                ttl = ttl.min(Duration::from_millis(100));
            } else if let Some(former) = meta.and_then(|meta| file.stale_base(&meta)) {
                // Open handles read the former revision, so the kernel needs its size. The time shows the
                // change.
                size = former.size;
            }
        }
        let known = posix.as_deref();
        let rules = self.attr_rules();
        let perm = rules.perm(known, stat.kind).unwrap_or_else(|| self.default_mode(stat.kind));
        if perm & SETID_BITS != 0 && stat.kind == FileKind::File {
            // A write clears these bits here, and the kernel would show the cached ones until the TTL ends.
            ttl = Duration::ZERO;
        }
        let (uid, gid) = rules.owner(known, is_remote).unwrap_or((self.config.uid, self.config.gid));
        let attr = Attr {
            ino,
            size,
            atime: known.and_then(|posix| posix.atime).unwrap_or(stat.crtime),
            mtime,
            ctime: stat.ctime.max(mtime),
            crtime: stat.crtime,
            kind: stat.kind,
            perm,
            nlink: stat.nlink,
            uid,
            gid,
        };
        Ok(Entry { attr, ttl })
    }

    /// The kernel checks permissions (`default_permissions`); here every access is allowed.
    #[allow(clippy::unused_async)] // Operations are asynchronous, whether they wait or not.
    pub async fn access(&self, ino: Ino, _mask: i32, _caller: Caller) -> Result<()> {
        self.tree().kind(ino).map(|_| ())
    }
}
