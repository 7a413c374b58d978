//! The inode table, the dentries, and read access to both.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, Ino};
use crate::pds::drive::FileMeta;
use crate::pds::types::FileType;
use crate::posix::Posix;

use super::leftovers::Leftovers;
use super::stat::{FileKind, Stat};
use super::tombstones::Tombstones;

/// How long the drive's listings may lag behind a change made by this mount.
pub const LISTING_LAG: Duration = Duration::from_secs(10);
/// Above this count, stale directories drop entries that are not in use.
pub(super) const INODES_SOFT_MAX: usize = 300_000;

/// The identity of an inode on the drive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Identity {
    /// Not on the drive: a file that was not committed yet, or a local-only file or directory.
    Local,
    Remote(FileId),
}

/// The location that an inode has, or gets with its commit, on the drive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RemoteLocation {
    pub parent: Ino,
    pub parent_id: FileId,
    /// The name on the drive. The kernel may see a different [`display_name`](super::display_name).
    pub name: Arc<str>,
}

/// Result of looking a name up in the tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NameState {
    Fresh(Ino),
    /// The listing that showed this inode is too old.
    Stale(Ino),
    Absent,
    /// Only a request to the drive can tell.
    Unknown,
}

/// The object on the drive behind an inode.
#[derive(Debug)]
pub(super) enum Backing {
    /// No object yet. A directory in this state stays local-only.
    None { since: SystemTime, posix: Option<Arc<Posix>> },
    /// The key in `by_file_id`.
    Remote(FileMeta),
    /// Removed or replaced. Open handles continue with the last known attributes.
    Removed(FileMeta),
}

/// How far a dentry is confirmed by the drive:
///
/// ```text
/// Unsaved --commit--> Created --listed--> Listed
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum DentryState {
    /// Content or location is not on the drive. Listings do not change the dentry.
    Unsaved,
    /// Created by this mount and not in a listing yet. `confirmed` counts how often a single query found the
    /// object.
    Created {
        confirmed: u32,
    },
    Listed,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Dentry {
    pub(super) ino: Ino,
    pub(super) state: DentryState,
    /// Time of the listing or answer that last confirmed it, or of the change by this mount that made it.
    pub(super) seen_at: Instant,
    /// The last listing that contained it.
    pub(super) listing_id: u64,
}

/// Position of the one dentry of an inode.
#[derive(Clone, Debug)]
pub(super) struct DentryRef {
    pub(super) parent: Ino,
    /// The name that the kernel sees: the key in the parent.
    pub(super) name: Arc<str>,
    /// The name on the drive. Shares memory with `name` if both are equal.
    pub(super) remote: Arc<str>,
}

#[derive(Debug)]
pub(super) struct Directory {
    pub(super) children: BTreeMap<Arc<str>, Dentry>,
    /// Changes with the names in `children`.
    pub(super) version: u64,
    /// Number of children that are directories.
    pub(super) subdirs: usize,
    /// Names under which an unsaved file hides an object of the drive.
    pub(super) shadowed: HashSet<Arc<str>>,
    /// The numbers from which searches for a free numbered name begin, by the name with the highest number. Cleared
    /// when a listing begins: numbers that are free by then are used again.
    pub(super) next_numbers: HashMap<String, u32>,
    /// Start of the last complete listing.
    pub(super) listed_at: Option<Instant>,
    /// How long a listing is fresh. Longer if the listing took long.
    pub(super) fresh_for: Duration,
    /// Listings from before this time are stale.
    pub(super) invalidated_at: Option<Instant>,
    pub(super) is_being_listed: bool,
}

#[derive(Debug)]
pub(super) enum InodeBody {
    File {
        /// The object that becomes a new revision when this file is committed.
        replaces: Option<FileMeta>,
    },
    Directory(Directory),
}

#[derive(Debug)]
pub(super) struct Inode {
    pub(super) backing: Backing,
    pub(super) body: InodeBody,
    pub(super) dentry_ref: Option<DentryRef>,
    pub(super) lookups: u64,
    pub(super) pins: u64,
    /// Creation by this mount. The service has its own, later time.
    pub(super) created_at: Option<SystemTime>,
    /// Last change of attributes by this mount.
    pub(super) attrs_changed_at: Option<SystemTime>,
    /// Last change of names in this directory by this mount.
    pub(super) names_changed_at: Option<SystemTime>,
    /// Last time the drive returned the attributes.
    pub(super) attrs_read_at: Option<Instant>,
    /// Last change of any kind by this mount.
    pub(super) changed_at: Option<Instant>,
    /// A rename on the drive is running: listings do not change the dentry.
    pub(super) moving: bool,
}

#[derive(Debug)]
pub struct Tree {
    pub(super) inodes: HashMap<Ino, Inode>,
    /// Contains exactly the inodes in state `Backing::Remote`.
    pub(super) by_file_id: HashMap<FileId, Ino>,
    /// The objects of all `InodeBody::File::replaces`.
    pub(super) replacing: HashMap<FileId, Ino>,
    pub(super) tombstones: Tombstones,
    pub(super) leftovers: Leftovers,
    pub(super) next_ino: u64,
    pub(super) next_listing: u64,
    pub(super) ttl: Duration,
    pub(super) listing_lag: Duration,
    /// Inode count at which the next eviction runs.
    pub(super) evict_at: usize,
    /// Lookups of numbered names.
    #[cfg(test)]
    pub(super) number_lookups: u64,
}

impl Tree {
    /// A tree that contains only the root. Listings are fresh for `ttl`.
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
            leftovers: Leftovers::default(),
            next_ino: Ino::ROOT.0,
            next_listing: 1,
            ttl,
            listing_lag: LISTING_LAG,
            evict_at: INODES_SOFT_MAX,
            #[cfg(test)]
            number_lookups: 0,
        };
        tree.add_inode(FileType::Folder, Backing::Remote(meta), None);
        tree
    }

    /// Adds an inode without any reference to it.
    pub(super) fn add_inode(
        &mut self,
        kind: FileType,
        backing: Backing,
        attrs_read_at: Option<Instant>,
    ) -> Ino {
        let ino = Ino(self.next_ino);
        self.next_ino += 1;
        let body = match kind {
            FileType::File => InodeBody::File { replaces: None },
            FileType::Folder => InodeBody::Directory(Directory {
                children: BTreeMap::new(),
                version: 0,
                subdirs: 0,
                shadowed: HashSet::new(),
                next_numbers: HashMap::new(),
                listed_at: None,
                fresh_for: self.ttl,
                invalidated_at: None,
                is_being_listed: false,
            }),
        };
        if let Backing::Remote(meta) = &backing {
            self.by_file_id.insert(meta.file_id.clone(), ino);
        }
        let created_at = match &backing {
            Backing::None { since, .. } => Some(*since),
            Backing::Remote(_) | Backing::Removed(_) => None,
        };
        let inode = Inode {
            backing,
            body,
            dentry_ref: None,
            lookups: 0,
            pins: 0,
            created_at,
            attrs_changed_at: None,
            names_changed_at: None,
            attrs_read_at,
            changed_at: None,
            moving: false,
        };
        self.inodes.insert(ino, inode);
        ino
    }

    pub(super) fn inode(&self, ino: Ino) -> Result<&Inode> {
        self.inodes.get(&ino).ok_or_else(|| stale(ino))
    }

    pub(super) fn inode_mut(&mut self, ino: Ino) -> Result<&mut Inode> {
        self.inodes.get_mut(&ino).ok_or_else(|| stale(ino))
    }

    pub(super) fn directory(&self, ino: Ino) -> Result<&Directory> {
        match &self.inode(ino)?.body {
            InodeBody::Directory(directory) => Ok(directory),
            InodeBody::File { .. } => Err(not_directory()),
        }
    }

    pub(super) fn directory_mut(&mut self, ino: Ino) -> Result<&mut Directory> {
        match &mut self.inode_mut(ino)?.body {
            InodeBody::Directory(directory) => Ok(directory),
            InodeBody::File { .. } => Err(not_directory()),
        }
    }

    pub(super) fn dentry_mut(&mut self, ino: Ino) -> Option<&mut Dentry> {
        let dentry_ref = self.inodes.get(&ino)?.dentry_ref.clone()?;
        self.directory_mut(dentry_ref.parent).ok()?.children.get_mut(&dentry_ref.name)
    }

    pub(super) fn dentry(&self, ino: Ino) -> Option<&Dentry> {
        let dentry_ref = self.inodes.get(&ino)?.dentry_ref.as_ref()?;
        self.directory(dentry_ref.parent).ok()?.children.get(&dentry_ref.name)
    }

    pub fn find(&self, dir: Ino, name: &str, now: Instant) -> Result<NameState> {
        let directory = self.directory(dir)?;
        let is_alive = matches!(self.inode(dir)?.backing, Backing::Remote(_));
        Ok(match directory.children.get(name) {
            Some(dentry)
                if !is_alive || self.is_protected(dentry) || directory.is_fresh(dentry.seen_at, now) =>
            {
                NameState::Fresh(dentry.ino)
            }
            Some(dentry) => NameState::Stale(dentry.ino),
            None if !is_alive || directory.is_listing_fresh(now) => NameState::Absent,
            None => NameState::Unknown,
        })
    }

    /// The inode of a name, fresh or stale.
    pub fn child(&self, dir: Ino, name: &str) -> Option<Ino> {
        Some(self.directory(dir).ok()?.children.get(name)?.ino)
    }

    pub fn is_listing_fresh(&self, dir: Ino, now: Instant) -> bool {
        let is_local = self.identity(dir) == Some(Identity::Local);
        self.directory(dir).is_ok_and(|directory| is_local || directory.is_listing_fresh(now))
    }

    /// Whether a complete listing was read and not invalidated since.
    pub fn was_listed(&self, dir: Ino) -> bool {
        self.directory(dir).is_ok_and(|directory| directory.listed_at.is_some())
    }

    /// Number of known entries, fresh or stale.
    pub fn entry_count(&self, dir: Ino) -> usize {
        self.directory(dir).map_or(0, |directory| directory.children.len())
    }

    pub fn ino_of(&self, file: &FileId) -> Option<Ino> {
        self.by_file_id.get(file).copied()
    }

    /// The last known attributes of the object, also after its removal.
    pub fn meta(&self, ino: Ino) -> Option<&FileMeta> {
        match &self.inodes.get(&ino)?.backing {
            Backing::None { .. } => None,
            Backing::Remote(meta) | Backing::Removed(meta) => Some(meta),
        }
    }

    pub fn kind(&self, ino: Ino) -> Result<FileType> {
        Ok(self.inode(ino)?.kind())
    }

    /// The last known attributes, fresh or stale.
    pub fn stat(&self, ino: Ino) -> Result<Stat> {
        let inode = self.inode(ino)?;
        let (size, mtime, ctime, crtime) = match &inode.backing {
            Backing::None { since, .. } => (0, *since, *since, *since),
            Backing::Remote(meta) | Backing::Removed(meta) => {
                (meta.size, meta.mtime, meta.changed_at, meta.created_at)
            }
        };
        // The service also changes its own timestamps when only attributes are stored.
        let mtime = inode.names_changed_at.unwrap_or(mtime);
        let ctime = inode.attrs_changed_at.max(inode.names_changed_at).map_or(ctime, |at| at.max(mtime));
        let nlink = match &inode.body {
            _ if ino != Ino::ROOT && inode.dentry_ref.is_none() => 0,
            InodeBody::Directory(directory) if directory.listed_at.is_some() => 2 + directory.subdirs as u32,
            InodeBody::File { .. } | InodeBody::Directory(_) => 1,
        };
        let (crtime, posix) = (inode.created_at.unwrap_or(crtime), inode.posix().cloned());
        Ok(Stat { kind: inode.file_kind(), size, mtime, ctime, crtime, posix, nlink })
    }

    /// The attributes for which the drive has no field.
    pub fn posix(&self, ino: Ino) -> Option<Arc<Posix>> {
        self.inodes.get(&ino)?.posix().cloned()
    }

    /// Remaining TTL of the attributes. Zero if they are stale.
    pub fn attrs_fresh_for(&self, ino: Ino, now: Instant) -> Duration {
        let Some(inode) = self.inodes.get(&ino) else { return Duration::ZERO };
        let is_live = matches!(inode.backing, Backing::Remote(_));
        if ino == Ino::ROOT || !is_live || inode.moving {
            return self.ttl;
        }
        let directory =
            inode.dentry_ref.as_ref().and_then(|dentry_ref| self.directory(dentry_ref.parent).ok());
        let fresh_for = directory.map_or(self.ttl, |directory| directory.fresh_for);
        let left = inode.attrs_read_at.map(|at| (at + fresh_for).saturating_duration_since(now));
        left.unwrap_or_default().min(self.ttl)
    }

    /// Time since the drive returned the attributes. `None` if it never did.
    pub fn attrs_age(&self, ino: Ino, now: Instant) -> Option<Duration> {
        Some(now.saturating_duration_since(self.inodes.get(&ino)?.attrs_read_at?))
    }

    /// `None` for the root and for removed inodes.
    pub fn location(&self, ino: Ino) -> Option<RemoteLocation> {
        let dentry_ref = self.inodes.get(&ino)?.dentry_ref.as_ref()?;
        let parent_id = self.meta(dentry_ref.parent)?.file_id.clone();
        Some(RemoteLocation { parent: dentry_ref.parent, parent_id, name: dentry_ref.remote.clone() })
    }

    /// The name that the kernel sees. `None` for the root and for removed inodes.
    pub fn display_name(&self, ino: Ino) -> Option<Arc<str>> {
        Some(self.inodes.get(&ino)?.dentry_ref.as_ref()?.name.clone())
    }

    /// The root is its own parent.
    pub fn parent(&self, ino: Ino) -> Option<Ino> {
        if ino == Ino::ROOT {
            return Some(ino);
        }
        Some(self.inodes.get(&ino)?.dentry_ref.as_ref()?.parent)
    }

    /// Whether `ino` is `directory` or below it.
    pub fn is_below(&self, ino: Ino, directory: Ino) -> bool {
        let mut at = Some(ino);
        // No chain is longer than the number of inodes.
        for _ in 0..=self.inodes.len() {
            match at {
                Some(here) if here == directory => return true,
                Some(Ino::ROOT) | None => return false,
                Some(here) => at = self.parent(here),
            }
        }
        false
    }

    /// A path for log lines and status. Not a key: paths are ambiguous.
    pub fn display_path(&self, ino: Ino) -> String {
        let mut names = Vec::new();
        let mut at = ino;
        while let Some(dentry_ref) = self.inodes.get(&at).and_then(|inode| inode.dentry_ref.as_ref()) {
            names.push(&*dentry_ref.name);
            at = dentry_ref.parent;
            if names.len() > self.inodes.len() {
                break;
            }
        }
        names.reverse();
        if at == Ino::ROOT { format!("/{}", names.join("/")) } else { names.join("/") }
    }
}

impl Inode {
    pub(super) fn posix(&self) -> Option<&Arc<Posix>> {
        match &self.backing {
            Backing::None { posix, .. } => posix.as_ref(),
            Backing::Remote(meta) | Backing::Removed(meta) => meta.posix.as_ref(),
        }
    }

    pub(super) fn file_kind(&self) -> FileKind {
        FileKind::of(self.kind(), self.posix().map(|posix| &**posix))
    }

    pub(super) fn kind(&self) -> FileType {
        match self.body {
            InodeBody::File { .. } => FileType::File,
            InodeBody::Directory(_) => FileType::Folder,
        }
    }
}

impl Directory {
    pub(super) fn is_fresh(&self, read_at: Instant, now: Instant) -> bool {
        now < read_at + self.fresh_for && self.invalidated_at.is_none_or(|at| read_at > at)
    }

    pub(super) fn is_listing_fresh(&self, now: Instant) -> bool {
        self.listed_at.is_some_and(|at| self.is_fresh(at, now))
    }
}

pub(super) fn stale(ino: Ino) -> Error {
    Error::new(ErrorKind::Stale, format!("inode {ino} is unknown; look its name up again"))
}

pub(super) fn not_directory() -> Error {
    Error::new(ErrorKind::NotDirectory, "not a directory")
}
