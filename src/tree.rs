//! Inodes and names: what the mount believes about the drive's tree, and what it did itself.
//!
//! Pure and synchronous: no I/O, and time is an argument. No path is stored anywhere: the drive's
//! ids are stable, so a rename edits one dentry.
//!
//! # What is believed
//!
//! A folder's listing tells everything about its entries, so it is the unit of belief: for a while
//! after a complete one, a name that it lacks is absent. The drive's listings lag behind its
//! changes, so what this mount did itself outweighs a listing that began less than a *grace*
//! after it: what was created or moved here stays, what was removed here stays away.
//!
//! # Life of an inode
//!
//! It lives while the kernel knows it (lookups), a handle is open (pins) or a folder has a dentry
//! for it. Numbers are never used twice. An inode has at most one dentry, as the drive has no hard
//! links. It may change its object: a file saved by rename takes over the id of the file that it
//! replaced.

mod change;
mod life;
mod merge;
pub mod name;
mod objects;
mod stat;
mod tombstones;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, Ino};
use crate::pds::drive::FileMeta;
use crate::pds::types::FileType;
use crate::posix::Posix;

pub use change::Superseded;
pub use merge::{Listed, Merged, Pass};
pub use name::{Name, shown};
pub use objects::Objects;
pub use stat::{Kind, Stat};
use tombstones::Tombstones;

/// How long the drive's listings may lag behind a change that was made here.
pub const GRACE: Duration = Duration::from_secs(10);
/// Inodes beyond which folders that are no longer fresh give up what nobody uses.
const INODES_SOFT_MAX: usize = 300_000;

/// What an inode is on the drive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Identity {
    /// Created here and not on the drive yet.
    Local,
    /// An object of the drive.
    Remote(FileId),
}

/// Where an inode belongs on the drive, as far as this mount has its way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The folder.
    pub parent: Ino,
    /// The folder on the drive.
    pub parent_id: FileId,
    /// The true name, which may be shown differently.
    pub name: Arc<str>,
}

/// What is known of a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// It is this inode.
    Fresh(Ino),
    /// It was this inode when the drive was asked last, too long ago.
    Stale(Ino),
    /// There is no such name.
    Absent,
    /// The drive must be asked.
    Unknown,
}

/// The object behind an inode.
#[derive(Debug)]
enum Object {
    /// None yet; a folder that is none will never be one.
    Unborn { since: SystemTime, posix: Option<Arc<Posix>> },
    /// This one; `by_file_id` leads back.
    Live(FileMeta),
    /// Removed or replaced. Open handles go on with what it was.
    Gone(FileMeta),
}

/// How sure a dentry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Standing {
    /// Has content or a place that the drive does not know; no listing touches it.
    Unsaved,
    /// Made here; no listing has shown it yet. Counts how often its absence was explained.
    Created { confirmed: u32 },
    /// A listing has shown it.
    Listed,
}

#[derive(Clone, Copy, Debug)]
struct Dentry {
    ino: Ino,
    standing: Standing,
    seen_at: Instant,
    /// The pass that saw it last.
    pass: u64,
}

/// Where the one dentry of an inode is.
#[derive(Clone, Debug)]
struct Spot {
    parent: Ino,
    /// As shown: the key in the parent.
    name: Arc<str>,
    /// The true name; the same memory where it is the same name.
    remote: Arc<str>,
}

#[derive(Debug)]
struct Folder {
    children: BTreeMap<Arc<str>, Dentry>,
    /// How many of them are folders.
    subfolders: usize,
    /// Names under which an unsaved file stands before an object of the drive.
    shadowed: HashSet<Arc<str>>,
    /// When the last complete listing began.
    listed_at: Option<Instant>,
    /// How long what was read is believed: longer where listing takes long.
    fresh_for: Duration,
    /// What was read before is not believed.
    distrusted_at: Option<Instant>,
    /// A pass is under way.
    is_being_listed: bool,
}

#[derive(Debug)]
enum Body {
    File {
        /// The object that this one shall become a new revision of.
        replaces: Option<FileMeta>,
    },
    Folder(Folder),
}

#[derive(Debug)]
struct Inode {
    object: Object,
    body: Body,
    spot: Option<Spot>,
    lookups: u64,
    pins: u64,
    /// When this mount changed its attributes last.
    set_at: Option<SystemTime>,
    /// When this mount changed the names in it last.
    names_set_at: Option<SystemTime>,
    /// When the drive told the attributes.
    attrs_at: Option<Instant>,
    /// When this mount changed it last.
    changed_at: Option<Instant>,
    /// Calls that move it are under way: no listing touches it.
    moving: bool,
}

/// The inode table and the dentries.
#[derive(Debug)]
pub struct Tree {
    inodes: HashMap<Ino, Inode>,
    /// Every `Object::Live`, and nothing else.
    by_file_id: HashMap<FileId, Ino>,
    /// The objects of all `Body::File::replaces`.
    replacing: HashMap<FileId, Ino>,
    tombstones: Tombstones,
    next_ino: u64,
    next_pass: u64,
    ttl: Duration,
    grace: Duration,
    /// Inodes at which the next eviction is worth its time.
    evict_at: usize,
}

impl Tree {
    /// A tree of which only the root is known. Listings are believed for `ttl`.
    pub fn new(root: &FileId, ttl: Duration, at: SystemTime) -> Self {
        let meta = FileMeta {
            file_id: root.clone(),
            parent_id: None,
            name: "/".to_owned(),
            kind: FileType::Folder,
            size: 0,
            mtime: at,
            changed_at: at,
            created_at: at,
            revision: None,
            sha1: None,
            crc64: None,
            posix: None,
        };
        let mut tree = Self {
            inodes: HashMap::new(),
            by_file_id: HashMap::new(),
            replacing: HashMap::new(),
            tombstones: Tombstones::default(),
            next_ino: Ino::ROOT.0,
            next_pass: 1,
            ttl,
            grace: GRACE,
            evict_at: INODES_SOFT_MAX,
        };
        tree.add_inode(FileType::Folder, Object::Live(meta), None);
        tree
    }

    /// Adds an inode that nothing refers to yet.
    fn add_inode(&mut self, kind: FileType, object: Object, attrs_at: Option<Instant>) -> Ino {
        let ino = Ino(self.next_ino);
        self.next_ino += 1;
        let body = match kind {
            FileType::File => Body::File { replaces: None },
            FileType::Folder => Body::Folder(Folder {
                children: BTreeMap::new(),
                subfolders: 0,
                shadowed: HashSet::new(),
                listed_at: None,
                fresh_for: self.ttl,
                distrusted_at: None,
                is_being_listed: false,
            }),
        };
        if let Object::Live(meta) = &object {
            self.by_file_id.insert(meta.file_id.clone(), ino);
        }
        let inode = Inode {
            object,
            body,
            spot: None,
            lookups: 0,
            pins: 0,
            set_at: None,
            names_set_at: None,
            attrs_at,
            changed_at: None,
            moving: false,
        };
        self.inodes.insert(ino, inode);
        ino
    }

    fn inode(&self, ino: Ino) -> Result<&Inode> {
        self.inodes.get(&ino).ok_or_else(|| stale(ino))
    }

    fn inode_mut(&mut self, ino: Ino) -> Result<&mut Inode> {
        self.inodes.get_mut(&ino).ok_or_else(|| stale(ino))
    }

    fn folder(&self, ino: Ino) -> Result<&Folder> {
        match &self.inode(ino)?.body {
            Body::Folder(folder) => Ok(folder),
            Body::File { .. } => Err(not_directory()),
        }
    }

    fn folder_mut(&mut self, ino: Ino) -> Result<&mut Folder> {
        match &mut self.inode_mut(ino)?.body {
            Body::Folder(folder) => Ok(folder),
            Body::File { .. } => Err(not_directory()),
        }
    }

    fn dentry_mut(&mut self, ino: Ino) -> Option<&mut Dentry> {
        let spot = self.inodes.get(&ino)?.spot.clone()?;
        self.folder_mut(spot.parent).ok()?.children.get_mut(&spot.name)
    }

    fn dentry(&self, ino: Ino) -> Option<&Dentry> {
        let spot = self.inodes.get(&ino)?.spot.as_ref()?;
        self.folder(spot.parent).ok()?.children.get(&spot.name)
    }

    /// What is known of a name in a folder.
    pub fn find(&self, dir: Ino, name: &str, now: Instant) -> Result<Found> {
        let folder = self.folder(dir)?;
        let is_alive = matches!(self.inode(dir)?.object, Object::Live(_));
        Ok(match folder.children.get(name) {
            Some(dentry) if !is_alive || self.is_held(dentry) || folder.believes(dentry.seen_at, now) => {
                Found::Fresh(dentry.ino)
            }
            Some(dentry) => Found::Stale(dentry.ino),
            None if !is_alive || folder.is_fresh(now) => Found::Absent,
            None => Found::Unknown,
        })
    }

    /// Who has a name in a folder, however long ago that was read.
    pub fn child(&self, dir: Ino, name: &str) -> Option<Ino> {
        Some(self.folder(dir).ok()?.children.get(name)?.ino)
    }

    /// Whether a complete listing is still believed.
    pub fn is_listing_fresh(&self, dir: Ino, now: Instant) -> bool {
        let lives_here = self.identity(dir) == Some(Identity::Local);
        self.folder(dir).is_ok_and(|folder| lives_here || folder.is_fresh(now))
    }

    /// Whether a folder was read to its end, however long ago.
    pub fn was_listed(&self, dir: Ino) -> bool {
        self.folder(dir).is_ok_and(|folder| folder.listed_at.is_some())
    }

    /// How many entries a folder is known to have.
    pub fn entry_count(&self, dir: Ino) -> usize {
        self.folder(dir).map_or(0, |folder| folder.children.len())
    }

    /// The inode of an object.
    pub fn ino_of(&self, file: &FileId) -> Option<Ino> {
        self.by_file_id.get(file).copied()
    }

    /// The object as the drive had it last; also of what was removed since.
    pub fn meta(&self, ino: Ino) -> Option<&FileMeta> {
        match &self.inodes.get(&ino)?.object {
            Object::Unborn { .. } => None,
            Object::Live(meta) | Object::Gone(meta) => Some(meta),
        }
    }

    /// File or folder.
    pub fn kind(&self, ino: Ino) -> Result<FileType> {
        Ok(self.inode(ino)?.kind())
    }

    /// Attributes, however long ago they were read.
    pub fn stat(&self, ino: Ino) -> Result<Stat> {
        let inode = self.inode(ino)?;
        let (size, mtime, ctime, crtime) = match &inode.object {
            Object::Unborn { since, .. } => (0, *since, *since, *since),
            Object::Live(meta) | Object::Gone(meta) => {
                (meta.size, meta.mtime, meta.changed_at, meta.created_at)
            }
        };
        // What the service tells of its own accord changes also when it is only told of these.
        let mtime = inode.names_set_at.unwrap_or(mtime);
        let ctime = inode.set_at.max(inode.names_set_at).map_or(ctime, |at| at.max(mtime));
        let nlink = match &inode.body {
            _ if ino != Ino::ROOT && inode.spot.is_none() => 0,
            Body::Folder(folder) if folder.listed_at.is_some() => 2 + folder.subfolders as u32,
            Body::File { .. } | Body::Folder(_) => 1,
        };
        let posix = inode.posix().cloned();
        Ok(Stat { kind: inode.shown_kind(), size, mtime, ctime, crtime, posix, nlink })
    }

    /// What is known of an inode beyond the drive's own fields.
    pub fn posix(&self, ino: Ino) -> Option<Arc<Posix>> {
        self.inodes.get(&ino)?.posix().cloned()
    }

    /// How long attributes may still be believed; zero when the drive should be asked.
    pub fn attrs_fresh_for(&self, ino: Ino, now: Instant) -> Duration {
        let Some(inode) = self.inodes.get(&ino) else { return Duration::ZERO };
        let is_live = matches!(inode.object, Object::Live(_));
        if ino == Ino::ROOT || !is_live || inode.moving {
            return self.ttl;
        }
        let folder = inode.spot.as_ref().and_then(|spot| self.folder(spot.parent).ok());
        let fresh_for = folder.map_or(self.ttl, |folder| folder.fresh_for);
        let left = inode.attrs_at.map(|at| (at + fresh_for).saturating_duration_since(now));
        left.unwrap_or_default().min(self.ttl)
    }

    /// How long ago the drive told the attributes; `None` where it never did.
    pub fn attrs_age(&self, ino: Ino, now: Instant) -> Option<Duration> {
        Some(now.saturating_duration_since(self.inodes.get(&ino)?.attrs_at?))
    }

    /// Where an inode belongs. `None` for the root and for what was removed.
    pub fn place(&self, ino: Ino) -> Option<Place> {
        let spot = self.inodes.get(&ino)?.spot.as_ref()?;
        let parent_id = self.meta(spot.parent)?.file_id.clone();
        Some(Place { parent: spot.parent, parent_id, name: spot.remote.clone() })
    }

    /// The name that an inode is shown under. `None` for the root and for what was removed.
    pub fn shown_name(&self, ino: Ino) -> Option<Arc<str>> {
        Some(self.inodes.get(&ino)?.spot.as_ref()?.name.clone())
    }

    /// The folder that an inode is shown in; the root is in itself.
    pub fn parent(&self, ino: Ino) -> Option<Ino> {
        if ino == Ino::ROOT {
            return Some(ino);
        }
        Some(self.inodes.get(&ino)?.spot.as_ref()?.parent)
    }

    /// Whether `ino` is `folder` or somewhere below it.
    pub fn is_below(&self, ino: Ino, folder: Ino) -> bool {
        let mut at = Some(ino);
        // No chain is longer than there are inodes.
        for _ in 0..=self.inodes.len() {
            match at {
                Some(here) if here == folder => return true,
                Some(Ino::ROOT) | None => return false,
                Some(here) => at = self.parent(here),
            }
        }
        false
    }

    /// A path for people: log lines and status. Not for finding anything.
    pub fn display_path(&self, ino: Ino) -> String {
        let mut names = Vec::new();
        let mut at = ino;
        while let Some(spot) = self.inodes.get(&at).and_then(|inode| inode.spot.as_ref()) {
            names.push(&*spot.name);
            at = spot.parent;
            if names.len() > self.inodes.len() {
                break;
            }
        }
        names.reverse();
        if at == Ino::ROOT { format!("/{}", names.join("/")) } else { names.join("/") }
    }
}

impl Inode {
    fn posix(&self) -> Option<&Arc<Posix>> {
        match &self.object {
            Object::Unborn { posix, .. } => posix.as_ref(),
            Object::Live(meta) | Object::Gone(meta) => meta.posix.as_ref(),
        }
    }

    fn shown_kind(&self) -> Kind {
        Kind::of(self.kind(), self.posix().map(|posix| &**posix))
    }

    fn kind(&self) -> FileType {
        match self.body {
            Body::File { .. } => FileType::File,
            Body::Folder(_) => FileType::Folder,
        }
    }
}

impl Folder {
    fn believes(&self, read_at: Instant, now: Instant) -> bool {
        now < read_at + self.fresh_for && self.distrusted_at.is_none_or(|at| read_at > at)
    }

    fn is_fresh(&self, now: Instant) -> bool {
        self.listed_at.is_some_and(|at| self.believes(at, now))
    }
}

fn stale(ino: Ino) -> Error {
    Error::new(ErrorKind::Stale, format!("inode {ino} is no longer known; look its name up again"))
}

fn not_directory() -> Error {
    Error::new(ErrorKind::NotDirectory, "it is a file, not a folder")
}
