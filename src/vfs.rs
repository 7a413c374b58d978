//! One async function per file-system operation; no fuser, no HTTP.
//!
//! `fuse.rs` is the only caller. Names live in `vfs/names.rs` and `vfs/dirs.rs` (on the `tree`),
//! bytes in `vfs/files.rs` (on `content`). No table lock is held across an await.

use std::ffi::OsStr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Ino;
use crate::pds::types::FileType;

/// Attributes as `stat` shows them.
#[derive(Clone, Debug, PartialEq)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Bytes.
    pub size: u64,
    /// Last access; the drive keeps none, so it is the modification time.
    pub atime: SystemTime,
    /// Last change of content.
    pub mtime: SystemTime,
    /// Last change of anything.
    pub ctime: SystemTime,
    /// When the object came to be.
    pub crtime: SystemTime,
    /// File or folder.
    pub kind: FileType,
    /// Permission bits, 0 to 0o7777.
    pub perm: u16,
    /// Links: 1 for files, 2 for folders.
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

/// One line of a folder listing.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// Inode number.
    pub ino: Ino,
    /// File or folder.
    pub kind: FileType,
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
pub struct Vfs {}

#[allow(
    clippy::unused_async,
    unused_variables,
    missing_docs,
    clippy::unused_self,
    clippy::trivially_copy_pass_by_ref
)]
impl Vfs {
    /// The root is known without the network.
    pub async fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Option<Entry>> {
        missing()
    } // None: remembered as absent; a Some was counted once
    pub fn negative_ttl(&self) -> Duration {
        Duration::ZERO
    }
    pub fn forget(&self, ino: Ino, lookups: u64) {}
    pub fn count_lookup(&self, ino: Ino) {} // before a readdirplus entry is put into the reply; forget(ino, 1) if it did not fit
    pub async fn getattr(&self, ino: Ino) -> Result<Entry> {
        missing()
    }
    pub async fn setattr(&self, ino: Ino, fh: Option<Fh>, set: SetAttr) -> Result<Entry> {
        missing()
    }
    pub async fn mkdir(&self, parent: Ino, name: &OsStr) -> Result<Entry> {
        missing()
    }
    pub async fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        missing()
    }
    pub async fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        missing()
    }
    pub async fn rename(&self, from: (Ino, &OsStr), to: (Ino, &OsStr), mode: RenameMode) -> Result<()> {
        missing()
    }
    pub async fn access(&self, ino: Ino, mask: i32, caller: Caller) -> Result<()> {
        missing()
    }
    pub async fn statfs(&self) -> Statfs {
        Statfs { blocks: 0, blocks_free: 0 }
    }
    pub async fn opendir(&self, ino: Ino) -> Result<Fh> {
        missing()
    }
    /// Up to a few hundred entries after `cookie`; empty at the end.
    pub async fn readdir(&self, dh: Fh, cookie: u64, plus: bool) -> Result<Vec<DirEntry>> {
        missing()
    }
    pub fn releasedir(&self, dh: Fh) {}
    pub async fn open(&self, ino: Ino, flags: i32, caller: Caller) -> Result<Opened> {
        missing()
    } // flags: open(2)
    pub async fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        flags: i32,
        caller: Caller,
    ) -> Result<(Entry, Opened)> {
        missing()
    }
    pub async fn read(&self, fh: Fh, offset: u64, size: u32) -> Result<Bytes> {
        missing()
    }
    /// The fast path of a write: takes the bytes if that needs no waiting, else `None` and nothing was taken.
    pub fn write_now(&self, fh: Fh, offset: u64, bytes: &[u8]) -> Option<Result<u32>> {
        None
    }
    pub async fn write(&self, fh: Fh, offset: u64, bytes: Bytes) -> Result<u32> {
        missing()
    }
    pub async fn flush(&self, fh: Fh, caller: Caller) -> Result<()> {
        missing()
    }
    pub async fn release(&self, fh: Fh) -> Result<()> {
        missing()
    }
    pub async fn fsync(&self, fh: Fh) -> Result<()> {
        missing()
    }
    /// Settles everything open; the names and errors of what could not be settled.
    pub async fn drain(&self) -> Vec<(String, Error)> {
        Vec::new()
    }
}

fn missing<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Unsupported, "not offered"))
}
