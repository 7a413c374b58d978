//! One async function per file-system operation; no fuser, no HTTP.
//!
//! `fuse.rs` is the only caller. Names live in `vfs/names.rs` and `vfs/dirs.rs` (on the `tree`),
//! bytes in `vfs/files.rs` (on `content`). No table lock is held across an await.

mod attributes;
mod callers;
mod changes;
mod commit;
mod dirs;
mod files;
mod late_renames;
mod local_only;
mod moving;
mod names;
mod pending;
mod removal;
mod reshape;
mod sights;
mod trash_can;
mod unsaved_renames;

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use lru::LruCache;
use tokio::task::JoinSet;

use crate::config::MountConfig;
use crate::content::budget::Budget;
use crate::content::in_flight::Gate;
use crate::content::open_files::OpenFiles;
use crate::content::reader::Reader;
use crate::content::shipper::Env;
use crate::content::space::Space;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Ino, RevisionId};
use crate::pds::drive::Drive;
use crate::status::Progress;
pub use crate::tree::Kind;
use crate::tree::Tree;

use callers::Device;
pub use callers::is_killed;
use dirs::Dirs;
use files::Handles;
use late_renames::LateRenames;
use moving::Moving;
use names::QuotaCache;
use pending::PendingAttrs;
use sights::Failures;
pub use sights::{Load, SeenFile, Sight, Stage, sum_up};

/// What stands for attributes among the names of what is not on the drive.
const ATTRIBUTES: &str = "attributes";

/// Attributes as `stat` shows them.
#[derive(Clone, Debug, PartialEq)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Bytes.
    pub size: u64,
    /// Last access that a program has set, else the modification time.
    pub atime: SystemTime,
    /// Last change of content.
    pub mtime: SystemTime,
    /// Last change of anything.
    pub ctime: SystemTime,
    /// When the object came to be.
    pub crtime: SystemTime,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, 0 to 0o7777.
    pub perm: u16,
    /// Names that lead to it.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A name that was found, and how long the kernel may believe it.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its attributes.
    pub attr: Attr,
    /// For name and attributes.
    pub ttl: Duration,
}

/// Who asks. FUSE gives the id of the *thread*.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Thread id; 0 for the kernel itself.
    pub tid: u32,
}

/// An open file of this mount.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Fh(pub u64);

/// How the kernel shall treat the handle.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened {
    /// The handle.
    pub fh: Fh,
    /// Reads and writes go past the page cache.
    pub direct_io: bool,
    /// What the page cache has of this inode is still true.
    pub keep_cache: bool,
}

/// What `setattr` changes; `None` leaves a thing as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SystemTime>,
    /// Last change of content.
    pub mtime: Option<SystemTime>,
}

/// What an fallocate does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allocation {
    /// The stretch becomes zeros.
    pub zeroes: bool,
    /// The file becomes as long as the stretch reaches.
    pub grows: bool,
}

/// One line of a folder listing.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// Inode number.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// The name as shown.
    pub name: std::ffi::OsString,
    /// Where to go on after this entry; stable for the handle's life.
    pub cookie: u64,
    /// Attributes, for readdirplus. `None` for `.` and `..`, and where plus was not asked for.
    pub entry: Option<Entry>,
}

/// Space on the drive, in blocks of [`Statfs::BLOCK_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statfs {
    /// All blocks.
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
}

impl Statfs {
    /// Unit of the block counts.
    pub const BLOCK_BYTES: u32 = 4096;
}

/// Something that could not be brought to the drive.
#[derive(Clone, Debug)]
pub struct Left {
    /// The file; `None` where it is no file.
    pub ino: Option<Ino>,
    /// Path below the mount, for people.
    pub name: String,
    /// Why.
    pub error: Error,
}

/// What rename does with an existing target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RenameMode {
    /// It gives way.
    Replace,
    /// EEXIST.
    NoReplace,
    /// The two swap places.
    Exchange,
}

/// The file system: operations on inodes.
#[derive(Debug)]
pub struct Vfs {
    this: Weak<Self>,
    config: Arc<MountConfig>,
    drive: Drive,
    /// Names. Never held across an await; locked before no other lock.
    tree: Arc<Mutex<Tree>>,
    dirs: Dirs,
    quota: QuotaCache,
    /// Bytes of files that are open.
    files: OpenFiles,
    handles: Handles,
    reader: Arc<Reader>,
    env: Arc<Env>,
    progress: Arc<Progress>,
    pending: Arc<PendingAttrs>,
    /// What the kernel calls this mount; known once it is mounted.
    device: OnceLock<Device>,
    /// The revision that the kernel's page cache has of an inode. A leaf lock.
    cached: Mutex<LruCache<Ino, RevisionId>>,
    /// Why files could not be saved, for as long as that is so.
    failures: Failures,
    late_renames: LateRenames,
    moving: Moving,
}

/// Inodes whose page cache is remembered to be good.
const CACHED_INODES_MAX: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();

/// Leaves the thread of whoever asked, which must not wait for the local disk: what follows runs in a
/// task.
async fn leave_session_thread() {
    tokio::task::yield_now().await;
}

impl Vfs {
    /// A file system on a drive. Makes no call; must be called within a tokio runtime.
    pub fn new(config: Arc<MountConfig>, drive: Drive, progress: Arc<Progress>) -> Arc<Self> {
        let part_bytes = config.part_size.get();
        // One part's worth of buffers is left to a part that fills.
        let in_flight_max = (config.buffer_bytes_max / part_bytes).saturating_sub(1);
        let in_flight_max = in_flight_max.clamp(1, config.parts_in_flight_max as u64);
        let reader = Reader::new(drive.clone(), config.read_cache_bytes_max);
        let space = Space::new(&config.spill_dir, config.staged_bytes_max, config.free_bytes_min);
        let tree = Tree::new(&config.root_id, config.metadata_ttl, SystemTime::now());
        let tree = Arc::new(Mutex::new(tree));
        let known_tree = Arc::downgrade(&tree);
        let vfs = Arc::new_cyclic(|this: &Weak<Self>| {
            let env = Arc::new(Env {
                places: this.clone(),
                drive: drive.clone(),
                budget: Budget::new(config.buffer_bytes_max, part_bytes),
                gate: Gate::new(in_flight_max as usize, part_bytes),
                part_size: config.part_size,
                spill_dir: config.spill_dir.clone(),
                local_space: local_only::room(&space, config.free_bytes_min),
                space,
                reader: reader.clone(),
                runtime: tokio::runtime::Handle::current(),
            });
            Self {
                env,
                this: this.clone(),
                tree,
                dirs: Dirs::new(),
                quota: QuotaCache::new(),
                files: OpenFiles::default(),
                handles: Handles::default(),
                reader,
                pending: Arc::new(PendingAttrs::new(progress.clone())),
                device: OnceLock::new(),
                cached: Mutex::new(LruCache::new(CACHED_INODES_MAX)),
                failures: Failures::default(),
                late_renames: LateRenames::default(),
                moving: Moving::default(),
                progress,
                drive,
                config,
            }
        });
        let (pending, drive) = (vfs.pending.clone(), vfs.drive.clone());
        tokio::spawn(async move { pending.run(&drive, || known_tree.upgrade()).await });
        vfs
    }

    /// The mount has this device number (`major:minor`).
    pub fn mounted_on(&self, device: &str) {
        if let Some(device) = Device::parse(device) {
            // Mounted once; a second call would say the same.
            let _ = self.device.set(device);
        }
    }

    /// The drive.
    pub fn drive(&self) -> &Drive {
        &self.drive
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn this(&self) -> Result<Arc<Self>> {
        self.this.upgrade().ok_or_else(|| Error::new(ErrorKind::Cancelled, "the mount is going away"))
    }

    /// Whether the page cache of an inode is of this revision; remembers that it is from now on.
    fn page_cache_is_of(&self, ino: Ino, revision: Option<RevisionId>) -> bool {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(revision) = revision else {
            cached.pop(&ino);
            return false;
        };
        cached.put(ino, revision.clone()) == Some(revision)
    }

    /// Settles everything open; what could not be settled.
    pub async fn drain(&self) -> Vec<Left> {
        let mut settles = JoinSet::new();
        for file in self.files.all() {
            let Ok(vfs) = self.this() else { break };
            settles.spawn(async move {
                let outcome = vfs.settle(&file).await;
                let ino = file.ino();
                outcome.err().map(|error| Left { ino: Some(ino), name: vfs.name_of(ino), error })
            });
        }
        let mut unsaved: Vec<_> = settles.join_all().await.into_iter().flatten().collect();
        unsaved.extend(self.bring_strays_home().await);
        if let Err(error) = self.pending.flush(&self.drive, &self.tree).await {
            unsaved.push(Left { ino: None, name: ATTRIBUTES.into(), error });
        }
        unsaved
    }

    /// The same, and what an earlier drain has left and nobody has saved since: who had it open may be gone.
    pub async fn drain_again(&self, before: Vec<Left>) -> Vec<Left> {
        let mut left = self.drain().await;
        let known: HashSet<_> = left.iter().filter_map(|left| left.ino).collect();
        let is_lost = |ino: Ino| !known.contains(&ino) && self.failures.get(ino).is_some();
        left.extend(before.into_iter().filter(|left| left.ino.is_some_and(is_lost)));
        left
    }

    /// Names of open files whose content is not on the drive, and what else is not.
    pub fn unsaved(&self) -> Vec<String> {
        let files = self.files.all();
        let unsaved = files.iter().filter(|file| file.sight().stage.is_unsaved() && !file.is_orphan());
        let names = unsaved.map(|file| self.name_of(file.ino()));
        let attributes = (self.pending_attributes() > 0).then(|| ATTRIBUTES.to_owned());
        names.chain(attributes).collect()
    }

    /// Path below the mount, for people.
    pub fn name_of(&self, ino: Ino) -> String {
        self.tree().display_path(ino)
    }
}
