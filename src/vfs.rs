//! The file system: one async function per file-system operation. Knows neither fuser nor HTTP.
//!
//! The FUSE adapter calls the operations; the control API and the daemon call the inspection functions. Names
//! are in [`lookup`], [`readdir`] and [`rename`] (on top of `tree`), bytes are in [`file_io`] (on top of
//! `content`). No lock on a table is held across an await.

mod active_renames;
mod apply_renames;
mod attributes;
mod callers;
mod close;
mod commit;
mod commit_failures;
mod desktop_trash;
mod drain;
mod file_io;
mod free_space;
mod handles;
mod inspect;
mod late_renames;
mod listings;
mod local_only;
mod lookup;
mod pending_attrs;
mod quota_cache;
mod readdir;
mod recycle_bin;
mod remove;
mod remove_superseded;
mod rename;
mod revisions;
mod statfs;
mod stop_flag;
mod superseded;
mod sync_trash;
mod trash_entries;
mod truncate;
mod types;
mod unsaved_renames;
mod unsaved_status;
mod write_wait;

use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock, Weak};
use std::time::SystemTime;

use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};

use crate::config::MountConfig;
use crate::content::buffer_pool::BufferPool;
use crate::content::cached_files::CachedFiles;
use crate::content::disk_quota::DiskQuota;
pub use crate::content::open_file::WriteAt;
use crate::content::open_files::OpenFiles;
use crate::content::reader::Reader;
use crate::content::tee_queue::TeeQueue;
use crate::content::upload_context::UploadContext;
use crate::content::upload_limiter::UploadLimiter;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Ino, RevisionId};
use crate::local_disk::{FileLimits, LocalDisk};
use crate::pds::drive::Drive;
use crate::status::Progress;
use crate::supervised;
pub use crate::tree::FileKind;
use crate::tree::Tree;

use active_renames::ActiveRenames;
#[cfg(any(test, fuzzing))]
pub use callers::check_proc_texts;
pub use callers::{OwnInspector, ProcessInspector};
use commit_failures::CommitFailures;
pub use drain::{DrainReport, StopDrains};
use handles::Handles;
use late_renames::LateRenames;
use listings::Dirs;
use pending_attrs::PendingAttrs;
use quota_cache::QuotaCache;
use stop_flag::StopFlag;
use superseded::CreatedObjects;
use trash_entries::TrashEntries;
pub use types::{
    Attr, Caller, DirEntry, Entry, FallocateMode, Fh, OpenedFile, RecycledItem, RenameMode, SetAttr, Statfs,
    UnsavedFile,
};
pub use unsaved_status::{Stage, UnsavedFileStatus, summarize};

#[derive(Debug)]
pub struct Vfs {
    this: Weak<Self>,
    config: Arc<MountConfig>,
    drive: Drive,
    /// Locked after the state of an `OpenFile` and after `Dirs::fetches`; before the table of open files and
    /// all leaf locks. Never held across an await.
    tree: Arc<Mutex<Tree>>,
    dirs: Dirs,
    quota: QuotaCache,
    files: OpenFiles,
    handles: Handles,
    reader: Arc<Reader>,
    upload_context: Arc<UploadContext>,
    progress: Arc<Progress>,
    pending: Arc<PendingAttrs>,
    /// Known once the drive is mounted.
    inspector: OnceLock<Arc<dyn ProcessInspector>>,
    /// The revision in the kernel's page cache. A leaf lock.
    cached_revisions: Mutex<LruCache<Ino, RevisionId>>,
    /// Errors of the last commits, until a commit succeeds.
    failures: CommitFailures,
    late_renames: LateRenames,
    created: CreatedObjects,
    active_renames: ActiveRenames,
    trash_entries: TrashEntries,
    stop: StopFlag,
}

/// Quota for local-only files if staged files are off, in bytes.
const LOCAL_ONLY_BYTES_MAX: u64 = 64 << 20;
/// Most entries of [`Vfs::cached_revisions`].
const CACHED_INODES_MAX: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();

impl Vfs {
    /// Makes no call to the drive. Must be called within a tokio runtime.
    pub fn new(config: Arc<MountConfig>, drive: Drive, progress: Arc<Progress>) -> Arc<Self> {
        let part_bytes = config.options.part_size.get();
        // One part buffer stays free for the part that is being filled.
        let in_flight_max = (config.options.buffer_size / part_bytes).saturating_sub(1);
        let in_flight_max = in_flight_max.clamp(1, config.options.parts_in_flight as u64);
        let reader = Reader::new(drive.clone(), config.options.read_cache);
        let limits = FileLimits::of_process(config.options.allow_other);
        let disk = LocalDisk::new(&config.spill_dir, config.options.commit_timeout, limits);
        let free_bytes_min = config.options.cache_min_free;
        let disk_quota = DiskQuota::new(disk.clone(), config.options.cache_size, free_bytes_min);
        let tree = Tree::new(&config.root_id, config.options.metadata_ttl, SystemTime::now());
        let tree = Arc::new(Mutex::new(tree));
        let weak_tree = Arc::downgrade(&tree);
        let vfs = Arc::new_cyclic(|this: &Weak<Self>| {
            let upload_context = Arc::new(UploadContext {
                resolver: this.clone(),
                drive: drive.clone(),
                buffer_pool: BufferPool::new(config.options.buffer_size, part_bytes),
                upload_limiter: UploadLimiter::new(in_flight_max as usize, part_bytes),
                part_size: config.options.part_size,
                zero_fill_max: config.options.zero_fill_max,
                disk,
                tees: TeeQueue::new(disk_quota.clone(), config.options.buffer_size),
                local_quota: quota_or(&disk_quota, Some(LOCAL_ONLY_BYTES_MAX), free_bytes_min),
                spill_quota: quota_or(&disk_quota, None, free_bytes_min),
                cached_files: CachedFiles::new(&disk_quota),
                quota: disk_quota,
                reader: reader.clone(),
                runtime: tokio::runtime::Handle::current(),
            });
            Self {
                upload_context,
                this: this.clone(),
                tree,
                dirs: Dirs::new(),
                quota: QuotaCache::new(),
                files: OpenFiles::default(),
                handles: Handles::default(),
                reader,
                pending: Arc::new(PendingAttrs::new(progress.clone())),
                inspector: OnceLock::new(),
                cached_revisions: Mutex::new(LruCache::new(CACHED_INODES_MAX)),
                failures: CommitFailures::default(),
                late_renames: LateRenames::default(),
                created: CreatedObjects::default(),
                active_renames: ActiveRenames::default(),
                trash_entries: TrashEntries::default(),
                stop: StopFlag::default(),
                progress,
                drive,
                config,
            }
        });
        let (pending, drive) = (vfs.pending.clone(), vfs.drive.clone());
        tokio::spawn(supervised::run("attributes", move || {
            let (pending, drive, tree) = (pending.clone(), drive.clone(), weak_tree.clone());
            async move { pending.run(&drive, || tree.upgrade()).await }
        }));
        vfs
    }

    /// Sets what answers questions about the processes that use the mount. Must be called once, after the mount.
    pub fn set_inspector(&self, inspector: Arc<dyn ProcessInspector>) {
        // Cannot fail: a file system is mounted once.
        let _ = self.inspector.set(inspector);
    }

    /// Resolves to whether the calling thread is being killed.
    pub async fn is_killed(&self, tid: u32) -> bool {
        let inspector = self.inspector.get().cloned();
        // `/proc` may answer only after a request of the thread: `execve` closes descriptors under a lock of its
        // process.
        let look = move || callers::is_killed(tid, inspector.as_deref());
        tokio::task::spawn_blocking(look).await.unwrap_or(false)
    }

    pub fn drive(&self) -> &Drive {
        &self.drive
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock()
    }

    fn this(&self) -> Result<Arc<Self>> {
        self.this
            .upgrade()
            .ok_or_else(|| Error::new(ErrorKind::Cancelled, "the file system is shutting down"))
    }

    /// Records the revision that the kernel's page cache contains from now on. Returns whether it contained
    /// the same one before.
    fn set_cached_revision(&self, ino: Ino, revision: Option<RevisionId>) -> bool {
        let mut cached = self.cached_revisions.lock();
        let Some(revision) = revision else {
            cached.pop(&ino);
            return false;
        };
        cached.put(ino, revision.clone()) == Some(revision)
    }

    /// Path below the mountpoint, for display.
    pub fn path_of(&self, ino: Ino) -> String {
        self.tree().display_path(ino)
    }
}

/// The quota of staged files for other files too. If it is disabled, they have their own.
fn quota_or(quota: &Arc<DiskQuota>, own_bytes_max: Option<u64>, free_bytes_min: u64) -> Arc<DiskQuota> {
    if quota.is_disabled() {
        DiskQuota::new(quota.disk().clone(), own_bytes_max, free_bytes_min)
    } else {
        quota.clone()
    }
}
